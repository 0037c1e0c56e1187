//! The queue of held connections: first packets of TCP connections that wait for the proxy's
//! verdict (linux/netfilter/nfnetlink_queue.h).
//!
//! The gateway opens and binds the queue, the proxy reads from it and answers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use vdens_netfilter::message::{Message, attributes};

use super::rules::QUEUE;

// Types of messages in the subsystem NFNL_SUBSYS_QUEUE (3).
const PACKET: u16 = 3 << 8;
const VERDICT: u16 = 3 << 8 | 1;
const CONFIG: u16 = 3 << 8 | 2;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;

/// How much of each packet is read, in bytes: its headers.
const COPIED: u32 = 128;

/// How many packets wait at most; the kernel drops further ones, and their senders try again.
const LENGTH: u32 = 16_384;

/// A connection that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The kernel's number of the packet.
    pub packet: u32,
    /// Who connects.
    pub from: SocketAddr,
    /// Where to.
    pub to: SocketAddr,
}

/// What becomes of a connection that waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes on, with a mark.
    Accept(u32),
    /// Its packet is dropped: its sender will send it again.
    Drop,
}

/// The queue's socket.
pub(crate) struct Queue(OwnedFd);

impl From<OwnedFd> for Queue {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Queue> for OwnedFd {
    fn from(queue: Queue) -> Self {
        queue.0
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Queue {
    /// Opens and binds the queue in this network namespace.
    ///
    /// # Errors
    /// The kernel has no nfnetlink_queue.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            flags,
            SockProtocol::NetlinkNetFilter,
        )?;
        debug_assert_eq!(SockProtocol::NetlinkNetFilter as isize, NETLINK_NETFILTER);
        let _ = setsockopt(&fd, sockopt::RcvBuf, &(4 << 20));
        use std::os::fd::AsRawFd;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let queue = Self(fd);
        queue.configure(|m| {
            // NFQNL_CFG_CMD_BIND for any protocol.
            m.put(1, &[1, 0, 0, 0]);
            // NFQNL_COPY_PACKET.
            let mut parameters = COPIED.to_be_bytes().to_vec();
            parameters.push(2);
            m.put(2, &parameters);
            m.put_be32(3, LENGTH);
        })?;
        Ok(queue)
    }

    fn configure(&self, fill: impl FnOnce(&mut Message)) -> io::Result<()> {
        let mut message = Message::new(CONFIG, NLM_F_REQUEST | NLM_F_ACK, 1, &header());
        fill(&mut message);
        self.send(message)?;
        // The socket does not block, but the kernel has answered when `send` returns.
        let mut reply = [0; 512];
        let length = self.receive(&mut reply)?;
        match reply[..length].get(16..20) {
            Some(&[a, b, c, d]) => match i32::from_ne_bytes([a, b, c, d]) {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(-code)),
            },
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The next held connections, into `out`; `false` if none waits. What is no first packet of a
    /// connection is let through.
    ///
    /// # Errors
    /// The socket is broken.
    pub(crate) fn next(&self, out: &mut Vec<Held>) -> io::Result<bool> {
        let mut buffer = [0; 8192];
        let length = match self.receive(&mut buffer) {
            Ok(length) => length,
            Err(Errno::EAGAIN) => return Ok(false),
            // Packets were lost for lack of room; their senders try again.
            Err(Errno::ENOBUFS | Errno::EINTR) => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        for packet in packets(&buffer[..length]) {
            match packet {
                (_, Some(held)) => out.push(held),
                // Without an answer it waits for the queue's end.
                (number, None) => drop(self.answer(number, Verdict::Accept(0))),
            }
        }
        Ok(true)
    }

    /// Says what becomes of a packet.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn answer(&self, packet: u32, verdict: Verdict) -> io::Result<()> {
        let mut message = Message::new(VERDICT, NLM_F_REQUEST, 0, &header());
        // NF_ACCEPT or NF_DROP, then the packet's number.
        let accept = u32::from(matches!(verdict, Verdict::Accept(_)));
        let mut value = accept.to_be_bytes().to_vec();
        value.extend(packet.to_be_bytes());
        message.put(2, &value);
        if let Verdict::Accept(mark) = verdict
            && mark != 0
        {
            message.put_be32(3, mark);
        }
        match self.send(message) {
            // The packet is gone already.
            Err(Errno::ENOENT) => Ok(()),
            sent => Ok(sent?),
        }
    }

    fn send(&self, message: Message) -> nix::Result<()> {
        use std::os::fd::AsRawFd;
        send(self.0.as_raw_fd(), &message.finish(), MsgFlags::empty()).map(drop)
    }

    fn receive(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        use std::os::fd::AsRawFd;
        recv(self.0.as_raw_fd(), buffer, MsgFlags::empty())
    }
}

/// `struct nfgenmsg`: any address family, version 0, the queue's number.
fn header() -> [u8; 4] {
    let [high, low] = QUEUE.to_be_bytes();
    [0, 0, high, low]
}

/// The packets in a datagram of the queue: each one's number, and the connection if it begins one.
pub(crate) fn packets(mut bytes: &[u8]) -> Vec<(u32, Option<Held>)> {
    let mut found = Vec::new();
    while let Some((head, _)) = bytes.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let Some(message) = bytes.get(20..length) else {
            break;
        };
        if kind == PACKET {
            let (mut number, mut payload) = (None, &[][..]);
            for (kind, value) in attributes(message) {
                match kind {
                    1 => number = value.first_chunk().map(|n| u32::from_be_bytes(*n)),
                    10 => payload = value,
                    _ => {}
                }
            }
            if let Some(packet) = number {
                let held = ends(payload).map(|(from, to)| Held { packet, from, to });
                found.push((packet, held));
            }
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    found
}

/// Source and destination of a TCP packet over IPv4 or IPv6 (RFC 791, 8200 and 9293). Of IPv6 only
/// a packet without extension headers: no TCP of today sends others.
pub(crate) fn ends(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let (from, to, tcp): (IpAddr, IpAddr, _) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 15) * 4;
            if *packet.get(9)? != 6 || header < 20 {
                return None;
            }
            let from: [u8; 4] = *packet.get(12..)?.first_chunk()?;
            let to: [u8; 4] = *packet.get(16..)?.first_chunk()?;
            (from.into(), to.into(), packet.get(header..)?)
        }
        6 => {
            if *packet.get(6)? != 6 {
                return None;
            }
            let from: [u8; 16] = *packet.get(8..)?.first_chunk()?;
            let to: [u8; 16] = *packet.get(24..)?.first_chunk()?;
            (from.into(), to.into(), packet.get(40..)?)
        }
        _ => return None,
    };
    let [a, b, c, d] = *tcp.first_chunk()?;
    let (source, destination) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Some(((from, source).into(), (to, destination).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_packets() {
        let mut v4 = vec![
            0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 1, 2, 3, 4,
        ];
        v4.extend([0x9c, 0x40, 0, 80]);
        let (from, to) = ends(&v4).unwrap();
        assert_eq!(from, "10.0.2.15:40000".parse().unwrap());
        assert_eq!(to, "1.2.3.4:80".parse().unwrap());
        for cut in 0..v4.len() {
            assert_eq!(ends(&v4[..cut]), None);
        }
        let mut v6 = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
        v6.extend([1; 16]);
        v6.extend([2; 16]);
        v6.extend([0, 1, 0, 2]);
        assert_eq!(ends(&v6).unwrap().1.port(), 2);
        for cut in 0..v6.len() {
            assert_eq!(ends(&v6[..cut]), None);
        }
    }
}
