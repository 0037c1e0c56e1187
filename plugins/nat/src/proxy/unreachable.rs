//! Errors that datagrams and echo requests met outside, as the ICMP messages that their senders
//! inside expect.
//!
//! The kernel queues such errors on the socket that sent the packet (IP_RECVERR, ip(7)). A client
//! finds the socket that a message is about by the headers of the original packet in it, so these
//! are written as the client sent them (RFC 792; RFC 4443, section 3.1).

use std::net::{IpAddr, SocketAddr};

/// What came of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Where it was sent.
    pub to: SocketAddr,
    /// Who said that it cannot be delivered.
    pub from: IpAddr,
    /// Type and code of the ICMP message.
    pub kind: u8,
    pub code: u8,
    /// The next hop's MTU in bytes, if the packet was too long; else 0.
    pub mtu: u32,
}

impl Failure {
    /// There is no route, says a gateway.
    pub(crate) fn no_route(to: SocketAddr, gateway: IpAddr) -> Self {
        let (kind, code) = if to.is_ipv4() { (3, 0) } else { (1, 0) };
        Self {
            to,
            from: gateway,
            kind,
            code,
            mtu: 0,
        }
    }
}

/// What the client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Datagram,
    /// An echo request, and its header.
    Echo([u8; HEADER]),
}

/// The length of the header of UDP and of an echo request, in bytes: what a message has of a packet
/// behind its IP header.
pub(crate) const HEADER: usize = 8;

/// The ICMP message for the client that sent the packet, or none if the families differ. The
/// checksum of one over IPv4 is complete; the kernel completes that over IPv6.
pub(crate) fn message(failure: &Failure, client: SocketAddr, sent: Sent) -> Option<Vec<u8>> {
    let protocol = match (sent, client) {
        (Sent::Datagram, _) => 17,
        (Sent::Echo(_), SocketAddr::V4(_)) => 1,
        (Sent::Echo(_), SocketAddr::V6(_)) => 58,
    };
    let mut bytes = vec![failure.kind, failure.code, 0, 0];
    match (client.ip(), failure.to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes.extend([0, 0]);
            bytes.extend((failure.mtu.min(65_535) as u16).to_be_bytes());
            let length = (20 + HEADER) as u8;
            let mut header = vec![0x45, 0, 0, length, 0, 0, 0, 0, 64, protocol, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = super::echo::checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend(failure.mtu.to_be_bytes());
            bytes.extend([0x60, 0, 0, 0, 0, HEADER as u8, protocol, 64]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
        }
        _ => return None,
    }
    match sent {
        Sent::Datagram => {
            bytes.extend(client.port().to_be_bytes());
            bytes.extend(failure.to.port().to_be_bytes());
            bytes.extend([0, HEADER as u8, 0, 0]);
        }
        Sent::Echo(header) => bytes.extend(header),
    }
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
        let client = "10.0.2.15:4000".parse().unwrap();
        let bytes = message(&failure, client, Sent::Datagram).unwrap();
        assert_eq!(bytes.len(), 8 + 20 + 8);
        assert_eq!(super::super::echo::checksum(&bytes), 0);
        assert_eq!((bytes[17], &bytes[28..32]), (17, &[0x0f, 0xa0, 0, 9][..]));
        let request = [8, 0, 1, 2, 3, 4, 5, 6];
        let bytes = message(&failure, client, Sent::Echo(request)).unwrap();
        assert_eq!(super::super::echo::checksum(&bytes), 0);
        assert_eq!((bytes[17], &bytes[28..]), (1, &request[..]));
        let other = "[fd00::1]:4000".parse().unwrap();
        assert_eq!(message(&failure, other, Sent::Datagram), None);
    }
}
