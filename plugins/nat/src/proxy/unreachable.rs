//! Errors that datagrams met outside, as the ICMP messages that their senders inside expect.
//!
//! The kernel queues such errors on the socket that sent the datagram (IP_RECVERR, ip(7)). A client
//! finds the socket that a message is about by the headers of the original packet in it, so these
//! are written as the client sent them (RFC 792; RFC 4443, section 3.1).

use std::net::{IpAddr, SocketAddr};

/// What came of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Where it was sent.
    pub to: SocketAddr,
    /// Who said that it cannot be delivered.
    pub from: IpAddr,
    /// Type and code of the ICMP message.
    pub kind: u8,
    pub code: u8,
    /// The next hop's MTU in bytes, if the datagram was too long; else 0.
    pub mtu: u32,
}

/// The headers of UDP over IPv6, in bytes.
const V6_HEADERS: usize = 48;

/// The ICMP message for the client that sent the datagram, or none if the families differ. The
/// checksum of one over IPv4 is complete; the kernel completes that over IPv6.
pub(crate) fn message(failure: &Failure, client: SocketAddr) -> Option<Vec<u8>> {
    let mut bytes = vec![failure.kind, failure.code, 0, 0];
    match (client.ip(), failure.to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend([0, 0]);
            bytes.extend((failure.mtu.min(65_535) as u16).to_be_bytes());
            let mut header = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = super::echo::checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend(failure.mtu.to_be_bytes());
            bytes.extend([0x60, 0, 0, 0, 0, (V6_HEADERS - 40) as u8, 17, 64]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        _ => return None,
    }
    bytes.extend(client.port().to_be_bytes());
    bytes.extend(failure.to.port().to_be_bytes());
    bytes.extend([0, 8, 0, 0]);
    if client.is_ipv4() {
        let sum = super::echo::checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_packet_that_they_are_about() {
        let failure = Failure {
            to: "192.0.2.1:9".parse().unwrap(),
            from: "192.0.2.1".parse().unwrap(),
            kind: 3,
            code: 3,
            mtu: 0,
        };
        let bytes = message(&failure, "10.0.2.15:4000".parse().unwrap()).unwrap();
        assert_eq!(bytes.len(), 8 + 20 + 8);
        assert_eq!(super::super::echo::checksum(&bytes), 0);
        assert_eq!(bytes[28..32], [0x0f, 0xa0, 0, 9]);
        assert_eq!(message(&failure, "[fd00::1]:4000".parse().unwrap()), None);
    }
}
