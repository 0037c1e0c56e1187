//! Datagrams with what the kernel says about them: where they were sent, and how many are in one
//! piece (UDP_GRO and UDP_SEGMENT, udp(7)).
//!
//! Datagrams that wait in a socket are gathered ([`Batch`]): a run of equal ones goes on as one
//! piece, which the kernel handles once: 1.7 times as many reach a receiver outside.

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
};

use super::unreachable::{Failure, HEADER};

/// The longest piece, in bytes: what a UDP packet can hold.
pub(crate) const LONGEST: usize = 65_535;

/// A piece that was received: one datagram, or several of equal length but for the last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub from: SocketAddr,
    /// Where it was sent, if the socket says so.
    pub to: Option<SocketAddr>,
    pub length: usize,
    /// The length of each datagram in it, if there are several.
    pub segment: Option<u16>,
}

/// How many bytes are received before they are sent on.
const GATHERED: usize = 4 * LONGEST;

/// The most runs in a turn, however short: each may need a socket of its own.
const RUNS: usize = 64;

/// The most datagrams in a piece that every kernel with UDP_SEGMENT sends (UDP_MAX_SEGMENTS).
const SEGMENTS: usize = 64;

/// The most bytes in a piece that is sent, which leaves room for headers.
const PIECE: usize = 65_400;

/// Datagrams from one sender to one receiver, of equal length but for the last.
pub(crate) struct Run {
    pub from: SocketAddr,
    /// Where they were sent, if the socket says so.
    pub to: Option<SocketAddr>,
    /// Where they are in the batch.
    place: Range<usize>,
    /// The length of each.
    size: usize,
}

impl Run {
    /// A run of one datagram.
    #[cfg(test)]
    pub(crate) fn of(from: SocketAddr, to: SocketAddr) -> Self {
        Self {
            from,
            to: Some(to),
            place: 0..1,
            size: 1,
        }
    }

    /// The length of each datagram, if there are several.
    pub(crate) fn segment(&self) -> Option<u16> {
        let is_one = self.size == 0 || self.size == self.place.len();
        u16::try_from(self.size).ok().filter(|_| !is_one)
    }

    /// Whether a piece whose datagrams have a length continues the run.
    fn takes(&self, piece: &Received, size: usize) -> bool {
        let length = self.place.len() + piece.length;
        (self.from, self.to) == (piece.from, piece.to)
            && self.size > 0
            && self.place.len().is_multiple_of(self.size)
            && (size == self.size || (1..self.size).contains(&piece.length))
            && length <= PIECE
            && length.div_ceil(self.size) <= SEGMENTS
    }
}

/// What was received from a socket in one turn.
#[derive(Default)]
pub(crate) struct Batch {
    buffer: Vec<u8>,
    pub runs: Vec<Run>,
}

impl Batch {
    /// Receives what there is, and tells why there is no more, unless the batch is full.
    pub(crate) fn receive(&mut self, socket: impl AsFd) -> Option<Errno> {
        self.buffer.resize(GATHERED, 0);
        self.runs.clear();
        let mut end = 0;
        while self.runs.len() < RUNS && GATHERED - end >= LONGEST {
            let start = end;
            let piece = match receive(&socket, &mut self.buffer[start..]) {
                Ok(piece) => piece,
                Err(error) => return Some(error),
            };
            end += piece.length;
            let size = piece.segment.map_or(piece.length, usize::from);
            match self.runs.last_mut() {
                Some(run) if run.takes(&piece, size) => run.place.end = end,
                _ => self.runs.push(Run {
                    from: piece.from,
                    to: piece.to,
                    place: start..end,
                    size,
                }),
            }
        }
        None
    }

    /// The bytes of a run.
    pub(crate) fn bytes(&self, run: &Run) -> &[u8] {
        &self.buffer[run.place.clone()]
    }
}

/// Receives a piece into `buffer`.
///
/// # Errors
/// `EAGAIN`: there is none. Else what the socket reports.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> nix::Result<Received> {
    let mut control = cmsg_space!(libc::sockaddr_in6, libc::in6_pktinfo, i32);
    let mut parts = [IoSliceMut::new(buffer)];
    let fd = socket.as_fd().as_raw_fd();
    let message = loop {
        let flags = MsgFlags::MSG_DONTWAIT;
        match recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let from = message
        .address
        .as_ref()
        .and_then(to_std)
        .ok_or(Errno::EAFNOSUPPORT)?;
    let (mut to, mut segment) = (None, None);
    for item in message.cmsgs()? {
        match item {
            ControlMessageOwned::Ipv4OrigDstAddr(a) => {
                let ip = Ipv4Addr::from_bits(u32::from_be(a.sin_addr.s_addr));
                to = Some(SocketAddrV4::new(ip, u16::from_be(a.sin_port)).into());
            }
            ControlMessageOwned::Ipv6OrigDstAddr(a) => {
                let ip = Ipv6Addr::from(a.sin6_addr.s6_addr);
                to = Some(SocketAddrV6::new(ip, u16::from_be(a.sin6_port), 0, 0).into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                to = Some(SocketAddr::new(
                    Ipv6Addr::from(info.ipi6_addr.s6_addr).into(),
                    0,
                ));
            }
            ControlMessageOwned::UdpGroSegments(size) => segment = u16::try_from(size).ok(),
            _ => {}
        }
    }
    let length = message.bytes;
    let segment = segment.filter(|&size| size > 0 && usize::from(size) < length);
    Ok(Received {
        from,
        to,
        length,
        segment,
    })
}

/// Sends a piece to an address, from another one if the socket is a transparent one. A piece whose
/// datagrams are longer than the way takes at once is sent one by one.
///
/// # Errors
/// `EAGAIN`: the socket takes no more now. Else what the kernel says.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    segment: Option<u16>,
    to: SocketAddr,
    from: Option<IpAddr>,
) -> nix::Result<()> {
    match (send_piece(&socket, bytes, segment, to, from), segment) {
        (Err(Errno::EINVAL | Errno::EMSGSIZE | Errno::EIO), Some(size)) => bytes
            .chunks(usize::from(size).max(1))
            .try_for_each(|datagram| send_piece(&socket, datagram, None, to, from)),
        (sent, _) => sent,
    }
}

fn send_piece(
    socket: impl AsFd,
    bytes: &[u8],
    segment: Option<u16>,
    to: SocketAddr,
    from: Option<IpAddr>,
) -> nix::Result<()> {
    let (info4, info6);
    let mut control = Vec::with_capacity(2);
    match from {
        Some(IpAddr::V4(address)) => {
            let s_addr = address.to_bits().to_be();
            info4 = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            control.push(ControlMessage::Ipv4PacketInfo(&info4));
        }
        Some(IpAddr::V6(address)) => {
            info6 = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: address.octets(),
                },
                ipi6_ifindex: 0,
            };
            control.push(ControlMessage::Ipv6PacketInfo(&info6));
        }
        None => {}
    }
    if let Some(segment) = &segment {
        control.push(ControlMessage::UdpGsoSegments(segment));
    }
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let to = SockaddrStorage::from(to);
    let fd = socket.as_fd().as_raw_fd();
    sendmsg(fd, &[IoSlice::new(bytes)], &control, flags, Some(&to)).map(drop)
}

/// The next error that a packet met which the socket sent; of an echo request `start` is then its
/// header.
pub(crate) fn failure(socket: impl AsFd, start: &mut [u8; HEADER]) -> Option<Failure> {
    let mut control = cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let mut parts = [IoSliceMut::new(start)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_ERRQUEUE;
    let fd = socket.as_fd().as_raw_fd();
    let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), flags).ok()?;
    let to = message.address.as_ref().and_then(to_std)?;
    for item in message.cmsgs().ok()? {
        let (error, from): (_, Option<IpAddr>) = match item {
            ControlMessageOwned::Ipv4RecvErr(error, from) => {
                let ip = from.map(|a| Ipv4Addr::from_bits(u32::from_be(a.sin_addr.s_addr)));
                (error, ip.map(IpAddr::from))
            }
            ControlMessageOwned::Ipv6RecvErr(error, from) => (
                error,
                from.map(|a| Ipv6Addr::from(a.sin6_addr.s6_addr).into()),
            ),
            _ => continue,
        };
        let (kind, code) = match error.ee_origin {
            libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => (error.ee_type, error.ee_code),
            // The kernel here says so: too long, or else no route.
            _ if error.ee_errno == libc::EMSGSIZE as u32 => {
                if to.is_ipv4() {
                    (3, 4)
                } else {
                    (2, 0)
                }
            }
            _ if to.is_ipv4() => (3, 0),
            _ => (1, 0),
        };
        let mtu = if error.ee_errno == libc::EMSGSIZE as u32 {
            error.ee_info
        } else {
            0
        };
        let from = from.filter(|ip| !ip.is_unspecified()).unwrap_or(to.ip());
        return Some(Failure {
            to,
            from,
            kind,
            code,
            mtu,
        });
    }
    None
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address
        .as_sockaddr_in()
        .map(|a| SocketAddr::new(a.ip().into(), a.port()));
    v4.or_else(|| {
        address
            .as_sockaddr_in6()
            .map(|a| SocketAddr::new(a.ip().into(), a.port()))
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn datagrams_without_bytes_end_a_turn() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        for _ in 0..=RUNS {
            socket.send_to(&[], to).unwrap();
        }
        let mut batch = Batch::default();
        assert_eq!(batch.receive(&socket), None);
        assert_eq!(batch.runs.len(), RUNS);
        assert_eq!(batch.receive(&socket), Some(Errno::EAGAIN));
        assert_eq!(batch.runs.len(), 1);
    }
}
