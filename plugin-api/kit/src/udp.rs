//! Frames in UDP datagrams, one per datagram, for transports over IP: `udp://`, `vxlan://`.
//!
//! # Theory of operation
//!
//! A [`Socket`] moves batches of frames with few passes through the kernel's network stack. Frames
//! of one length to one destination, such as the segments of a TCP stream, leave as one message,
//! which the kernel or the network card cuts (`UDP_SEGMENT`, Linux 4.18). The kernel may hand over
//! received datagrams of one length from one sender as one message (`UDP_GRO`, Linux 5.0), which
//! this module cuts. Between two such sockets on one machine, nothing is cut on the way.
//!
//! The socket learns what the kernel can do when it is opened, and from refused messages:
//!
//! * The kernel does not cut a message whose datagrams exceed the interface's MTU. From then on,
//!   datagrams of that length go one by one, as fragments.
//! * An interface that cannot do checksums (EIO) gets no joined datagrams at all.
//!
//! A message may have more frames than a batch has room for. The rest waits in the socket, and
//! [`Socket::fd`] is readable until it is gone.
//!
//! UDP has no acknowledgement. So errors from the network (ICMP) do not break the link: the frame
//! is lost, as others are.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use crate::datagram::{self, Datagram, Joined};
use crate::ready::AlwaysReady;
use crate::{Error, ErrorKind, Frame, Result, RxBatch, TxBatch};

/// The wanted length of each queue, in bytes; the kernel gives at most net.core.rmem_max and
/// wmem_max.
const QUEUE: usize = 4 << 20;

/// Messages per receiving system call.
const MESSAGES: usize = 8;

/// Bytes of room per message; none is longer.
const MESSAGE: usize = 1 << 16;

/// How many errors from the network one call of `recv` ignores.
const MAX_ERRORS: u32 = 16;

/// The addresses of a host, with a port. `host` is a name, an IPv4 address, or an IPv6 address in
/// brackets. May block, because it asks the resolver (getaddrinfo).
///
/// # Errors
/// `host` is malformed, has no address, or the resolver fails.
pub fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let name = literal.unwrap_or(host);
    let is_sound = match literal {
        Some(literal) => literal.contains(':'),
        None => !name.is_empty() && !name.contains(['[', ']', ':']),
    };
    if !is_sound {
        let message = format!("'{}' is no host", host.escape_debug());
        return Err(Error::usage(message)
            .hint("give a name or an address, an IPv6 address in brackets: [::1]"));
    }
    let failed = |why: String| {
        let message = format!(
            "cannot find the address of '{}': {why}",
            host.escape_debug()
        );
        Error::new(ErrorKind::NotFound, message)
    };
    let found = (name, port).to_socket_addrs();
    let addresses: Vec<_> = found.map_err(|error| failed(error.to_string()))?.collect();
    match addresses.is_empty() {
        true => Err(failed("it has none".to_owned())),
        false => Ok(addresses),
    }
}

/// A UDP socket that moves batches of frames.
#[derive(Debug)]
pub struct Socket {
    socket: UdpSocket,
    /// The longest datagrams, in bytes, that may be joined.
    longest_joined: usize,
    waiting: Waiting,
    always: AlwaysReady,
}

/// Received messages that had no room in a batch yet.
#[derive(Debug)]
struct Waiting {
    room: Box<[u8]>,
    messages: [Joined; MESSAGES],
    /// The number of messages.
    count: usize,
    /// The first message that is not used up.
    next: usize,
    /// The bytes of it that are used up.
    used: usize,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.next >= self.count
    }
}

impl Socket {
    /// Takes a bound socket, which may be connected, and gives it long queues.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking, or no descriptor is left.
    pub fn new(socket: UdpSocket) -> Result<Self> {
        socket
            .set_nonblocking(true)
            .map_err(|error| Error::io("use a UDP socket", &error))?;
        // A shorter queue, or datagrams one by one, do as well, only slower.
        let _ = setsockopt(&socket, sockopt::SndBuf, &QUEUE);
        let _ = setsockopt(&socket, sockopt::RcvBuf, &QUEUE);
        let segment = getsockopt(&socket, sockopt::UdpGsoSegment);
        let gro = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        log::debug!("UDP_SEGMENT: {segment:?}, UDP_GRO: {gro:?}");
        Ok(Self {
            socket,
            longest_joined: if segment.is_ok() { usize::MAX } else { 0 },
            waiting: Waiting {
                room: vec![0; MESSAGES * MESSAGE].into_boxed_slice(),
                messages: [Joined::default(); MESSAGES],
                count: 0,
                next: 0,
                used: 0,
            },
            always: AlwaysReady::new()?,
        })
    }

    /// For [`crate::Link::fd`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self.waiting.is_empty() {
            true => self.socket.as_fd(),
            false => self.always.as_fd(),
        }
    }

    /// For [`crate::Link::send_fd`].
    pub fn send_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// For [`crate::Link::recv`]. Calls `frame` with each datagram and its sender. It returns the
    /// frame in the datagram, or `None` to drop it.
    ///
    /// # Errors
    /// The socket fails, for a reason that is not the network's.
    pub fn recv(
        &mut self,
        batch: &mut RxBatch<'_>,
        mut frame: impl for<'d> FnMut(SocketAddr, &'d [u8]) -> Option<&'d [u8]>,
    ) -> Result<()> {
        let mut errors = 0;
        while self.hand_over(batch, &mut frame) {
            let Waiting { room, messages, .. } = &mut self.waiting;
            match datagram::receive_joined(self.socket.as_fd(), room, MESSAGE, messages) {
                Ok(0) => break,
                Ok(count) => {
                    (self.waiting.count, self.waiting.next) = (count, 0);
                }
                Err(error) if is_from_network(&error) && errors < MAX_ERRORS => errors += 1,
                Err(error) if is_from_network(&error) => break,
                Err(error) => return Err(Error::io("receive from a UDP socket", &error)),
            }
        }
        Ok(())
    }

    /// Moves what waits into the batch; `false` if not all had room.
    fn hand_over(
        &mut self,
        batch: &mut RxBatch<'_>,
        frame: &mut impl for<'d> FnMut(SocketAddr, &'d [u8]) -> Option<&'d [u8]>,
    ) -> bool {
        let waiting = &mut self.waiting;
        while !waiting.is_empty() {
            let Joined { from, len, size } = waiting.messages[waiting.next];
            let message = &waiting.room[waiting.next * MESSAGE..][..len];
            if len == 0 {
                batch.count_dropped(1);
            }
            while waiting.used < len {
                let rest = &message[waiting.used..];
                let datagram = &rest[..size.clamp(1, rest.len())];
                let found = from.and_then(|from| frame(from, datagram));
                match found {
                    Some(frame) if !batch.push(frame) => return false,
                    Some(_) => {}
                    None => batch.count_dropped(1),
                }
                waiting.used += datagram.len();
            }
            waiting.next += 1;
            waiting.used = 0;
        }
        true
    }

    /// For [`crate::Link::send`]. Sends each frame behind `header`, which may be empty, to the
    /// destination that `to` returns; `None` on a connected socket.
    ///
    /// # Errors
    /// The socket fails, for a reason that is not the network's.
    pub fn send(
        &mut self,
        batch: &mut TxBatch<'_>,
        header: &[u8],
        to: impl Fn(Frame<'_>) -> Option<SocketAddr>,
    ) -> Result<usize> {
        let (mut sent, mut lost, mut is_second_try) = (0, 0, false);
        while sent < batch.len() {
            let datagrams = batch.frames().skip(sent).map(|frame| Datagram {
                to: to(frame),
                parts: [header, frame.bytes()],
            });
            match datagram::send_joined(self.socket.as_fd(), datagrams, self.longest_joined) {
                Ok(0) => break,
                Ok(taken) => {
                    sent += taken;
                    is_second_try = false;
                }
                Err(unsent) if unsent.datagrams > 1 && self.demote(&unsent.error, unsent.size) => {}
                // The error is about an earlier datagram, so this one is tried again.
                Err(unsent) if is_from_network(&unsent.error) && !is_second_try => {
                    is_second_try = true;
                }
                Err(unsent) if is_broken(&unsent.error) => {
                    return Err(Error::io("send to a UDP socket", &unsent.error));
                }
                Err(unsent) => {
                    sent += unsent.datagrams;
                    lost += unsent.datagrams as u64;
                    is_second_try = false;
                }
            }
        }
        batch.count_dropped(lost);
        Ok(sent)
    }

    /// Joins less, if the error about joined datagrams of `size` bytes calls for it.
    fn demote(&mut self, error: &io::Error, size: usize) -> bool {
        let longest = match error.raw_os_error() {
            Some(libc::EINVAL | libc::EMSGSIZE) => size - 1,
            Some(libc::EIO | libc::EOPNOTSUPP) => 0,
            _ => return false,
        };
        log::debug!("{error}: datagrams of more than {longest} bytes go one by one");
        self.longest_joined = longest;
        true
    }
}

/// Whether an error is about the network, not about the socket.
fn is_from_network(error: &io::Error) -> bool {
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
    matches!(
        errno,
        Errno::ECONNREFUSED
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::ENETDOWN
            | Errno::ENONET
            | Errno::EPROTO
            | Errno::ENOPROTOOPT
            | Errno::EOPNOTSUPP
            | Errno::EMSGSIZE
            | Errno::EACCES
    )
}

/// Whether an error says that the descriptor is no usable socket.
fn is_broken(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT | libc::EDESTADDRREQ)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BATCH_FRAMES, Batch};
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn pair() -> (Socket, Socket) {
        let [a, b] = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        a.connect(b.local_addr().unwrap()).unwrap();
        b.connect(a.local_addr().unwrap()).unwrap();
        (Socket::new(a).unwrap(), Socket::new(b).unwrap())
    }

    fn batch(lengths: &[usize]) -> Batch {
        let mut batch = Batch::new();
        for (number, len) in lengths.iter().enumerate() {
            assert!(batch.rx().push(&vec![number as u8; *len]));
        }
        batch
    }

    /// Receives until nothing comes any more: number and length of each frame, in order.
    fn receive(socket: &mut Socket) -> Vec<(u8, usize)> {
        let (mut batch, mut frames) = (Batch::new(), Vec::new());
        loop {
            let mut fds = [PollFd::new(socket.fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(100_u8)).unwrap() == 0 {
                return frames;
            }
            batch.clear();
            socket.recv(&mut batch.rx(), |_, d| Some(d)).unwrap();
            let seen = batch.tx(0);
            frames.extend(seen.frames().map(|f| (f.bytes()[0], f.bytes().len())));
        }
    }

    fn numbered(lengths: &[usize]) -> Vec<(u8, usize)> {
        let numbered = lengths.iter().enumerate();
        numbered.map(|(number, len)| (number as u8, *len)).collect()
    }

    #[test]
    fn frames_of_all_lengths_arrive_in_order() {
        let (mut a, mut b) = pair();
        for lengths in [
            &[60][..],
            &[1514; BATCH_FRAMES],
            &[1514, 1514, 1514, 700, 1514, 60, 60, 61, 60],
            &[14, 9000, 9000, 65_507, 14],
        ] {
            let mut batch = batch(lengths);
            let mut sent = 0;
            while sent < lengths.len() {
                sent += a.send(&mut batch.tx(sent), &[], |_| None).unwrap();
            }
            assert_eq!(receive(&mut b), numbered(lengths));
        }
    }

    #[test]
    fn more_than_a_batch_holds_waits_and_is_announced() {
        let (mut a, mut b) = pair();
        for _ in 0..3 {
            let mut batch = batch(&[700; BATCH_FRAMES]);
            assert_eq!(
                a.send(&mut batch.tx(0), &[], |_| None).unwrap(),
                BATCH_FRAMES
            );
        }
        let mut batch = batch(&[60; 5]);
        b.recv(&mut batch.rx(), |_, d| Some(d)).unwrap();
        assert_eq!(batch.len(), BATCH_FRAMES);
        let left = receive(&mut b);
        assert_eq!(left.len(), 2 * BATCH_FRAMES + 5);
        assert_eq!(left[0], (BATCH_FRAMES as u8 - 5, 700));
    }

    #[test]
    fn a_kernel_that_joins_nothing_gets_datagrams_one_by_one() {
        let (mut a, mut b) = pair();
        for error in [libc::EINVAL, libc::EMSGSIZE] {
            assert!(a.demote(&io::Error::from_raw_os_error(error), 1000));
            assert_eq!(a.longest_joined, 999);
        }
        assert!(!a.demote(&io::Error::from_raw_os_error(libc::ECONNREFUSED), 1000));
        assert!(a.demote(&io::Error::from_raw_os_error(libc::EIO), 1000));
        let lengths = [1000; BATCH_FRAMES];
        let sent = a.send(&mut batch(&lengths).tx(0), &[], |_| None);
        assert_eq!(sent.unwrap(), BATCH_FRAMES);
        assert_eq!(receive(&mut b), numbered(&lengths));
    }

    #[test]
    fn what_is_no_frame_is_counted_and_a_peer_that_is_not_there_is_no_error() {
        let (mut a, b) = pair();
        let Socket { socket, .. } = b;
        for len in [0, 5, 13, 14] {
            socket.send(&vec![1; len]).unwrap();
        }
        let mut got = Batch::new();
        a.recv(&mut got.rx(), |_, d| Some(d)).unwrap();
        assert_eq!((got.len(), got.take_dropped()), (1, 3));
        let to = socket.local_addr().unwrap();
        drop(socket);
        for _ in 0..10 {
            let mut batch = batch(&[60, 60, 1000]);
            assert_eq!(a.send(&mut batch.tx(0), &[], |_| None).unwrap(), 3);
            a.recv(&mut got.rx(), |_, d| Some(d)).unwrap();
        }
        let mut b = Socket::new(UdpSocket::bind(to).unwrap()).unwrap();
        a.send(&mut batch(&[60]).tx(0), &[], |_| None).unwrap();
        assert_eq!(receive(&mut b), [(0, 60)]);
    }

    #[test]
    fn destinations_and_headers() {
        let [a, b, c] = [0, 1, 2].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        let [to_b, to_c] = [&b, &c].map(|socket| socket.local_addr().unwrap());
        let from = a.local_addr().unwrap();
        let [mut a, mut b, mut c] = [a, b, c].map(|socket| Socket::new(socket).unwrap());
        let mut sent = batch(&[100; 9]);
        let to = |frame: Frame<'_>| {
            Some(if frame.bytes()[0] % 3 == 2 {
                to_c
            } else {
                to_b
            })
        };
        assert_eq!(a.send(&mut sent.tx(0), b"header", to).unwrap(), 9);
        for (socket, count) in [(&mut b, 6), (&mut c, 3)] {
            let mut got = Batch::new();
            socket
                .recv(&mut got.rx(), |who, datagram| {
                    assert_eq!((who, datagram.len()), (from, 106));
                    datagram.strip_prefix(b"header")
                })
                .unwrap();
            assert_eq!(got.len(), count);
        }
    }

    #[test]
    fn hosts_are_names_and_literals() {
        let v4 = resolve("127.0.0.1", 7).unwrap();
        assert_eq!(v4, ["127.0.0.1:7".parse().unwrap()]);
        let v6 = resolve("[::1]", 7).unwrap();
        assert_eq!(v6, ["[::1]:7".parse().unwrap()]);
        assert!(!resolve("localhost", 7).unwrap().is_empty());
        for bad in [
            "",
            "::1",
            "[",
            "[]",
            "[127.0.0.1]",
            "a:b",
            "[::1",
            "no.such.host.invalid",
        ] {
            assert!(resolve(bad, 7).is_err(), "{bad}");
        }
    }
}
