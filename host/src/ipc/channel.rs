//! A typed channel between two of our processes: a SEQPACKET socket pair.
//!
//! A message is one packet: a serde enum as JSON, and descriptors beside it. SEQPACKET keeps
//! messages apart, and tells the receiver when the other end is closed. An empty packet would look
//! the same (recv(2)), but none is sent: the shortest JSON has a byte.
//!
//! Both the length of a message and the number of its descriptors are bounded. A message that is
//! longer, or that is not JSON of the expected type, is [`Received::Malformed`].

use std::io::{self, IoSlice};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, sendmsg, shutdown,
    socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result, system};
use crate::sys::process::wait;

/// The longest message, in bytes.
const MAX_MESSAGE: usize = 8192;
/// The most descriptors a message carries: the kernel's limit (SCM_MAX_FD).
pub(crate) const MAX_FDS: usize = 253;

/// What was received from a channel.
#[derive(Debug)]
pub(crate) enum Received<T> {
    /// A message and its descriptors.
    Message(T, Vec<OwnedFd>),
    /// The other end is closed.
    Closed,
    /// A packet that is no message of this conversation, and why not. Its descriptors are closed.
    Malformed(String),
}

impl<T> Received<T> {
    /// The message and its descriptors, or `None` if the other end is closed. For conversations
    /// that a malformed message ends.
    ///
    /// # Errors
    /// The message is malformed.
    pub(crate) fn well_formed(self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        match self {
            Self::Message(message, fds) => Ok(Some((message, fds))),
            Self::Closed => Ok(None),
            Self::Malformed(why) => Err(malformed(why)),
        }
    }
}

/// The error for a malformed message.
pub(crate) fn malformed(why: impl std::fmt::Display) -> Error {
    let message = format!("another process of vdens sent a malformed message: {why}");
    Error::new(ErrorKind::Protocol, message)
}

/// One end of a conversation, which sends `S` and receives `R`.
#[derive(Debug)]
pub(crate) struct Channel<S, R> {
    socket: OwnedFd,
    directions: PhantomData<fn(S) -> R>,
}

impl<S, R> Channel<S, R> {
    /// A connected pair.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn pair() -> Result<(Self, Channel<R, S>)> {
        socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map(|(a, b)| (Self::from(a), Channel::from(b)))
        .map_err(system("make a socket pair"))
    }

    /// Closes both ends: from then on the other end receives nothing.
    pub(crate) fn close(&self) {
        // It fails only if the other end is closed already.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }
}

impl<S: Serialize, R> Channel<S, R> {
    /// Sends a message with descriptors. It is no error that the other end is closed: the next
    /// receive reports that.
    ///
    /// # Errors
    /// The message is too long, there are too many descriptors, or the system has no memory.
    pub(crate) fn send(&self, message: &S, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = serde_json::to_vec(message)
            .map_err(|error| Error::io("write a message", &error.into()))?;
        if bytes.len() > MAX_MESSAGE {
            return Err(malformed(too_long()));
        }
        self.send_bytes(&bytes, fds)
    }

    fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
        let io = [IoSlice::new(bytes)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(self.socket.as_raw_fd(), &io, rights, flags, None) {
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(errno) => Err(system("send to another process of vdens")(errno)),
        }
    }
}

impl<S, R: DeserializeOwned> Channel<S, R> {
    /// Waits for a message.
    ///
    /// # Errors
    /// recvmsg(2) fails, or descriptors were lost because there was no room for them.
    pub(crate) fn receive(&self) -> Result<Received<R>> {
        self.receive_with(&mut space_for(MAX_FDS))
    }

    /// Waits for a message for `limit` at most.
    ///
    /// # Errors
    /// As for [`Channel::receive`], or no message has come.
    pub(crate) fn receive_within(&self, limit: Duration) -> Result<Received<R>> {
        let deadline = Instant::now() + limit;
        loop {
            let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            wait(&mut fds, Some(deadline))?;
            if fds[0].any() == Some(true) {
                return self.receive();
            }
            if Instant::now() >= deadline {
                let message = format!("another process of vdens has not answered for {limit:?}");
                return Err(Error::new(ErrorKind::Busy, message));
            }
        }
    }

    /// As [`Channel::receive`], with `space` for descriptors.
    fn receive_with(&self, space: &mut [u64]) -> Result<Received<R>> {
        let mut bytes = [0; MAX_MESSAGE];
        let packet = loop {
            match receive(self.as_fd(), &mut bytes, space) {
                Ok(packet) => break packet,
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(Received::Closed),
                Err(errno) => return Err(system("receive from another process of vdens")(errno)),
            }
        };
        if packet.has_lost_fds {
            // The descriptors that did arrive are closed here.
            let source = io::Error::from_raw_os_error(libc::EMFILE);
            return Err(Error::io(
                "receive descriptors from another process of vdens",
                &source,
            ));
        }
        if packet.is_cut {
            return Ok(Received::Malformed(too_long()));
        }
        Ok(match &bytes[..packet.length] {
            [] => Received::Closed,
            bytes => match serde_json::from_slice(bytes) {
                Ok(message) => Received::Message(message, packet.fds),
                Err(error) => Received::Malformed(error.to_string()),
            },
        })
    }
}

impl<S, R> From<OwnedFd> for Channel<S, R> {
    /// A connected SEQPACKET socket.
    fn from(socket: OwnedFd) -> Self {
        Self {
            socket,
            directions: PhantomData,
        }
    }
}

impl<S, R> AsFd for Channel<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn too_long() -> String {
    format!("it has more than {MAX_MESSAGE} bytes")
}

/// What recvmsg(2) has returned.
struct Packet {
    /// How many bytes.
    length: usize,
    fds: Vec<OwnedFd>,
    /// Whether bytes were lost: they did not fit into the buffer.
    is_cut: bool,
    /// Whether some of the descriptors were lost: they did not fit into the buffer, or would exceed
    /// the limit of open files.
    has_lost_fds: bool,
}

/// Room for the control message that brings `count` descriptors (cmsg(3)), aligned as that is.
fn space_for(count: usize) -> Vec<u64> {
    let length = u32::try_from(count * size_of::<RawFd>()).unwrap_or(u32::MAX);
    // SAFETY: it only calculates.
    let space = unsafe { libc::CMSG_SPACE(length) } as usize;
    vec![0; space.div_ceil(size_of::<u64>())]
}

/// Receives a packet, and owns the descriptors that came with it even if others were lost. In that
/// case nix's `recvmsg` returns none of them, and those that did arrive would never be closed.
fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], space: &mut [u64]) -> nix::Result<Packet> {
    let mut io = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: msghdr is plain data for which all bits zero is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut io;
    header.msg_iovlen = 1;
    header.msg_control = space.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(space) as _;
    let flags = libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to two buffers, with their lengths, that outlive the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let length = Errno::result(length)?.unsigned_abs();
    let mut fds = Vec::new();
    // SAFETY: the kernel filled the buffer, which is aligned, and set the length in the header,
    // which bounds the walk.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    // SAFETY: if not null, it points to a message in that buffer.
    while let Some(message) = unsafe { next.as_ref() } {
        if (message.cmsg_level, message.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: the first only calculates; the second says where the message's data begin.
            let (start, data) = unsafe { (libc::CMSG_LEN(0), libc::CMSG_DATA(next)) };
            let length: usize = message.cmsg_len as _;
            let length = length.saturating_sub(start as usize);
            for index in 0..length / size_of::<RawFd>() {
                // SAFETY: so many numbers are in the message.
                let fd = unsafe { data.cast::<RawFd>().add(index).read_unaligned() };
                // SAFETY: the kernel has just made this descriptor for this process; nothing else
                // owns it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: as for the first.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    Ok(Packet {
        length,
        fds,
        is_cut: header.msg_flags & libc::MSG_TRUNC != 0,
        has_lost_fds: header.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

#[cfg(test)]
mod tests {
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;
    use crate::ipc::{Nothing, ToWorker};

    fn pair() -> (Channel<ToWorker, Nothing>, Channel<Nothing, ToWorker>) {
        Channel::pair().unwrap()
    }

    #[test]
    fn the_end_is_seen_and_silence_is_an_error() {
        let (a, b) = pair();
        let silence = b.receive_within(Duration::from_millis(10)).unwrap_err();
        assert_eq!(silence.kind, ErrorKind::Busy);
        a.send(&ToWorker::Ping, &[]).unwrap();
        drop(a);
        // What was sent before the end comes before it.
        let last = b.receive_within(Duration::from_secs(5)).unwrap();
        assert!(matches!(last, Received::Message(ToWorker::Ping, _)));
        assert!(matches!(b.receive().unwrap(), Received::Closed));
        assert!(b.receive().unwrap().well_formed().unwrap().is_none());
        let (a, b) = pair();
        drop(b);
        a.send(&ToWorker::Ping, &[]).unwrap();
    }

    #[test]
    fn a_malformed_message_does_not_close_the_channel() {
        let (a, b) = pair();
        let name = "vdens-test-malformed";
        let file = memfd_create(name, MFdFlags::MFD_CLOEXEC).unwrap();
        let long = format!("{:>1$}", "\"ping\"", MAX_MESSAGE + 1);
        for bytes in [
            &b"R"[..],
            b"\xff",
            b"\"pong\"",
            b"\"ping",
            b"\"ping\" \"ping\"",
            b"{\"use-tap\":1}",
            long.as_bytes(),
        ] {
            a.send_bytes(bytes, &[file.as_fd()]).unwrap();
            match b.receive().unwrap() {
                Received::Malformed(why) => assert!(!why.is_empty()),
                other => panic!("{bytes:?}: {other:?}"),
            }
            assert_eq!(open_files(name), 1, "its descriptor stays open");
        }
        a.send_bytes(b"nonsense", &[]).unwrap();
        let error = b.receive().unwrap().well_formed().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Protocol);
        let port = "1n0".into();
        a.send(&ToWorker::UsePort { port }, &[]).unwrap();
        let next = b.receive().unwrap();
        assert!(matches!(
            next,
            Received::Message(ToWorker::UsePort { .. }, _)
        ));
    }

    #[test]
    fn a_message_carries_as_many_descriptors_as_the_kernel_allows() {
        let (a, b) = pair();
        let most = [a.as_fd(); MAX_FDS];
        a.send(&ToWorker::UseTap, &most).unwrap();
        match b.receive().unwrap() {
            Received::Message(ToWorker::UseTap, fds) => assert_eq!(fds.len(), MAX_FDS),
            other => panic!("{other:?}"),
        }
        let too_many = [a.as_fd(); MAX_FDS + 1];
        assert!(a.send(&ToWorker::UseTap, &too_many).is_err());
        a.send(&ToWorker::Ping, &[]).unwrap();
        let next = b.receive().unwrap();
        assert!(matches!(next, Received::Message(ToWorker::Ping, _)));
    }

    /// The descriptors of this process that are open files of that name.
    fn open_files(name: &str) -> usize {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let files = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        let named = files.filter(|file| file.to_string_lossy().contains(name));
        named.count()
    }

    #[test]
    fn no_descriptor_stays_open_when_others_are_lost() {
        let (a, b) = pair();
        let name = "vdens-test-cut";
        let file = memfd_create(name, MFdFlags::MFD_CLOEXEC).unwrap();
        let fds = [file.as_fd(); 4];
        a.send(&ToWorker::UseTap, &fds).unwrap();
        // Room for two of the four.
        let lost = b.receive_with(&mut space_for(2));
        assert_eq!(lost.unwrap_err().errno, libc::EMFILE);
        assert_eq!(open_files(name), 1);
        // The next message is not touched by that.
        a.send(&ToWorker::UseTap, &fds).unwrap();
        let Received::Message(_, fds) = b.receive().unwrap() else {
            panic!("no message");
        };
        assert_eq!((fds.len(), open_files(name)), (4, 5));
    }
}
