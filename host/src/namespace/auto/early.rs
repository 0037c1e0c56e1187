//! Answers of DHCP servers that come to an address which the interface does not have yet.
//!
//! A server may send its answer to the address that it offers (RFC 2131, section 4.1), even if it
//! is asked to broadcast it; passt does. Without that address the kernel drops such a packet, so a
//! client reads it from a packet socket (packet(7)), which has each IPv4 packet from the IP header
//! on. The socket is open until there is a lease, because it would also be woken for all traffic.
//! Checksums are not looked at: a virtual interface may leave them to be computed. A packet that is
//! not what it seems has not the right transaction.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socket};

use super::dhcp4::CLIENT;
use crate::sys::packet_socket;

/// UDP, in the IP header (IANA's protocol numbers).
const UDP: u8 = 17;

/// The length of a UDP header, in bytes (RFC 768).
const UDP_HEADER: usize = 8;

/// The socket.
pub(super) struct Early(OwnedFd);

impl Early {
    /// Opens the socket on an interface.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn open(interface: &str) -> nix::Result<Self> {
        // Protocol 0: it receives nothing until it is bound to its interface.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
        let index = if_nametoindex(interface)?;
        packet_socket::bind(&socket, libc::ETH_P_IP, index.cast_signed())?;
        Ok(Self(socket))
    }

    /// Reads the next packet, and returns where in `buffer` the message to the client is: nowhere,
    /// if it has none.
    ///
    /// # Errors
    /// EAGAIN: there is none.
    pub(super) fn read(&self, buffer: &mut [u8]) -> nix::Result<Range<usize>> {
        let length = recv(self.0.as_raw_fd(), buffer, MsgFlags::empty())?;
        Ok(message(&buffer[..length]).unwrap_or_default())
    }
}

impl AsFd for Early {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Where in a whole IPv4 packet (RFC 791) the message to the client's UDP port is.
fn message(packet: &[u8]) -> Option<Range<usize>> {
    let first = *packet.first()?;
    let header = usize::from(first & 15) * 4;
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
    if first >> 4 != 4 || fragment != 0 || *packet.get(9)? != UDP {
        return None;
    }
    let datagram = packet.get(header..)?;
    let port = u16::from_be_bytes([*datagram.get(2)?, *datagram.get(3)?]);
    let length = usize::from(u16::from_be_bytes([*datagram.get(4)?, *datagram.get(5)?]));
    let is_whole = (UDP_HEADER..=datagram.len()).contains(&length);
    (port == CLIENT && is_whole).then(|| header + UDP_HEADER..header + length)
}

#[cfg(test)]
mod tests {
    use std::mem;

    use super::*;

    #[test]
    fn only_whole_datagrams_to_the_client() {
        let mut packet = [
            0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, UDP, 0, 0, 10, 0, 2, 2, 10, 0, 2, 15, 0, 67, 0, 68,
            0, 11, 0, 0, b'a', b'b', b'c',
        ];
        assert_eq!(message(&packet), Some(28..31));
        for length in 0..packet.len() {
            assert_eq!(message(&packet[..length]), None, "{length}");
        }
        // Another version, a fragment, another protocol, another port, a length that is too short.
        for (place, wrong) in [(0, 0x65), (6, 0x20), (7, 1), (9, 6), (23, 69), (25, 7)] {
            let right = mem::replace(&mut packet[place], wrong);
            assert_eq!(message(&packet), None, "{place}");
            packet[place] = right;
        }
        // With options.
        packet[0] = 0x46;
        assert_eq!(message(&packet), None);
    }
}
