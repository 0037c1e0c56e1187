//! Messages between the supervisor and its children: a few bytes over a SEQPACKET pair.
//!
//! The namespace child tells that its namespace and then its interfaces are there, handing over their
//! descriptors, and why the command cannot be run. The supervisor says which interfaces to make, and go.
//!
//! A worker has two pairs. Over the first it tells that its link is open, or why not, and that it has settled; the
//! supervisor says what its side of the link is, and from then on asks, whether it is there and for a report.
//! It also tells the worker when the interface was deleted.
//! Over the second the worker asks: it gives orders for the panel, one at a time. So neither side mistakes a
//! question for the answer to its own. Closing the first pair is a message too: to a child it means
//! the session is over.
//!
//! A report may be long, so it is a file in memory, whose descriptor is sent. That is also how a
//! process answers to `vdens --status`. Reading one neither blocks nor takes more memory than the
//! reader allows, whoever has sent it.

use std::fs::File;
use std::io::{self, IoSlice, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, sendmsg, shutdown,
    socketpair,
};
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result, system};
use crate::panel::Order;
use crate::process::wait;

/// The longest message, in bytes.
const MAX_MESSAGE: usize = 4096;
/// The longest report, in bytes. One of a switch that knows as many stations as it can has 8 MiB.
pub const MAX_REPORT: u64 = 16 << 20;
/// The most descriptors a message carries: the kernel's limit (SCM_MAX_FD).
pub const MAX_FDS: usize = 253;

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Done: the namespace or the interfaces are there.
    Ready,
    /// An order was carried out, on the panel of this identity; the tap that it made comes along.
    Done(u64),
    /// A worker's link is open; whether it wants the panel.
    Open(bool),
    /// For each interface, whether the namespace child is to make it, as a tap.
    Interfaces(Vec<bool>),
    /// A worker's side of its link: whether it is a port of the panel, else the tap and the watch over
    /// it that come along.
    Side(bool),
    /// The interface that a worker serves was deleted.
    Deleted,
    /// To be done on the panel.
    Order(Order),
    /// To be held for a worker's successor: the descriptor that comes along, or none.
    Keep,
    /// It failed, with the exit status that this means.
    Failed(i32, Error),
    /// Go on: run the command.
    Go,
    /// Are you there?
    Ping,
    /// Yes.
    Alive,
    /// A report is asked for, or comes along.
    Report,
    /// There is no report, and why.
    NoReport(String),
}

/// One end of the pair.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// A connected pair.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn pair() -> Result<(Self, Self)> {
        socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map(|(a, b)| (Self(a), Self(b)))
        .map_err(system("make a socket pair"))
    }

    /// Sends a message with descriptors. A receiver that is gone is no error: its end is noticed elsewhere.
    ///
    /// # Errors
    /// There are too many descriptors, or the system has no memory.
    pub fn send(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = encode(message);
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
        let io = [IoSlice::new(&bytes)];
        match sendmsg::<()>(
            self.0.as_raw_fd(),
            &io,
            rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(errno) => Err(system("talk to another process of vdens")(errno)),
        }
    }

    /// As [`Channel::receive`], but an error if nothing comes within `patience`.
    ///
    /// # Errors
    /// As for [`Channel::receive`], and that nothing came.
    pub fn receive_within(&self, patience: Duration) -> Result<Option<(Message, Vec<OwnedFd>)>> {
        let deadline = Instant::now() + patience;
        loop {
            let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            wait(&mut fds, Some(deadline))?;
            if fds[0].any() == Some(true) {
                return self.receive();
            }
            if Instant::now() >= deadline {
                let message = format!("another process of vdens is silent for {patience:?}");
                return Err(Error::new(ErrorKind::Busy, message));
            }
        }
    }

    /// Sends a report, or why there is none.
    ///
    /// # Errors
    /// Neither can be sent: the system has no memory left.
    pub fn send_report(&self, report: &impl Serialize) -> Result<()> {
        write_report(report)
            .and_then(|file| self.send(&Message::Report, &[file.as_fd()]))
            .or_else(|error| self.send(&Message::NoReport(error.to_string()), &[]))
    }

    /// Closes both ends: the other one hears nothing more but that.
    pub fn close(&self) {
        // It fails only if the other end is closed already.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }

    /// Waits for a message and its descriptors; `None` if the other end is closed.
    ///
    /// # Errors
    /// The receiving fails, or descriptors were lost for want of room.
    pub fn receive(&self) -> Result<Option<(Message, Vec<OwnedFd>)>> {
        self.receive_with(&mut space_for(MAX_FDS))
    }

    /// As [`Channel::receive`], with `space` for descriptors.
    fn receive_with(&self, space: &mut [u64]) -> Result<Option<(Message, Vec<OwnedFd>)>> {
        let mut bytes = [0; MAX_MESSAGE];
        let received = loop {
            match receive(self.as_fd(), &mut bytes, space) {
                Ok(received) => break received,
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(errno) => return Err(system("listen to another process of vdens")(errno)),
            }
        };
        if received.is_cut {
            // The descriptors that did arrive are closed here.
            let source = io::Error::from_raw_os_error(libc::EMFILE);
            return Err(Error::io(
                "receive descriptors from another process of vdens",
                &source,
            ));
        }
        Ok(decode(&bytes[..received.length]).map(|message| (message, received.fds)))
    }
}

impl From<OwnedFd> for Channel {
    /// A connected SEQPACKET socket.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A file in memory with a report as JSON.
fn write_report(report: &impl Serialize) -> Result<File> {
    let cannot = |error| Error::io("write a report", &error);
    let text = serde_json::to_vec(report).map_err(|error| cannot(error.into()))?;
    if text.len() as u64 > MAX_REPORT {
        return Err(too_long(MAX_REPORT));
    }
    let fd = memfd_create("vdens-report", MFdFlags::MFD_CLOEXEC)
        .map_err(system("make a file in memory"))?;
    let mut file = File::from(fd);
    file.write_all(&text).map_err(cannot)?;
    Ok(file)
}

/// Reads a report that has come, of at most `limit` bytes.
///
/// # Errors
/// It cannot be read, is longer, or is no file in memory.
pub fn read_report(fd: OwnedFd, limit: u64) -> Result<String> {
    let cannot = |error| Error::io("read a report", &error);
    // Only a file in memory has seals (fcntl(2)). Reading another could block, or not end.
    fcntl(&fd, FcntlArg::F_GET_SEALS)
        .map_err(|_| Error::new(ErrorKind::Protocol, "a report is not in a file in memory"))?;
    let mut file = File::from(fd);
    // The sender wrote it through the same open file, and left the offset at its end.
    file.rewind().map_err(cannot)?;
    let mut text = String::new();
    let read = file.take(limit.saturating_add(1)).read_to_string(&mut text);
    match read.map_err(cannot)? as u64 > limit {
        true => Err(too_long(limit)),
        false => Ok(text),
    }
}

fn too_long(limit: u64) -> Error {
    let message = format!("a report has more than {limit} bytes");
    Error::new(ErrorKind::Unsupported, message)
}

/// What came with a message.
struct Received {
    /// How many bytes.
    length: usize,
    fds: Vec<OwnedFd>,
    /// Whether some of the descriptors were lost: they did not fit into the buffer, or would exceed
    /// the limit of open files.
    is_cut: bool,
}

/// Room for the control message that brings `count` descriptors (cmsg(3)), aligned as that is.
fn space_for(count: usize) -> Vec<u64> {
    let length = u32::try_from(count * size_of::<RawFd>()).unwrap_or(u32::MAX);
    // SAFETY: it only calculates.
    let space = unsafe { libc::CMSG_SPACE(length) } as usize;
    vec![0; space.div_ceil(size_of::<u64>())]
}

/// Receives a message and owns the descriptors that came with it, also when others were lost. In
/// that case nix's `recvmsg` returns none of them, and those that did arrive would stay open for
/// good.
fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8], space: &mut [u64]) -> nix::Result<Received> {
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
    Ok(Received {
        length,
        fds,
        is_cut: header.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

fn encode(message: &Message) -> Vec<u8> {
    match message {
        Message::Ready => vec![b'R'],
        Message::Go => vec![b'G'],
        Message::Ping => vec![b'?'],
        Message::Alive => vec![b'!'],
        Message::Report => vec![b'T'],
        Message::Keep => vec![b'K'],
        Message::Deleted => vec![b'X'],
        Message::Done(panel) => [&b"D"[..], &panel.to_ne_bytes()].concat(),
        Message::Open(panel) => vec![b'O', u8::from(*panel)],
        Message::Side(port) => vec![b'S', u8::from(*port)],
        Message::Interfaces(taps) => {
            let taps = taps.iter().map(|tap| u8::from(*tap));
            [b'I'].into_iter().chain(taps).collect()
        }
        Message::Order(order) => [b"P", order.encode().as_bytes()].concat(),
        Message::NoReport(why) => {
            let mut bytes = [b"N", why.as_bytes()].concat();
            bytes.truncate(MAX_MESSAGE);
            bytes
        }
        Message::Failed(status, error) => {
            let mut bytes = vec![b'F'];
            for number in [*status, error.kind as i32, error.errno] {
                bytes.extend(number.to_ne_bytes());
            }
            bytes.extend(format!("{}\0{}", error.message, error.hint).bytes());
            bytes.truncate(MAX_MESSAGE);
            bytes
        }
    }
}

fn decode(bytes: &[u8]) -> Option<Message> {
    let (tag, rest) = bytes.split_first()?;
    match tag {
        b'R' => Some(Message::Ready),
        b'G' => Some(Message::Go),
        b'?' => Some(Message::Ping),
        b'!' => Some(Message::Alive),
        b'T' => Some(Message::Report),
        b'K' => Some(Message::Keep),
        b'X' => Some(Message::Deleted),
        b'D' => Some(Message::Done(u64::from_ne_bytes(rest.try_into().ok()?))),
        b'O' => Some(Message::Open(rest == [1])),
        b'S' => Some(Message::Side(rest == [1])),
        b'I' => Some(Message::Interfaces(
            rest.iter().map(|tap| *tap == 1).collect(),
        )),
        b'P' => Order::decode(std::str::from_utf8(rest).ok()?).map(Message::Order),
        b'N' => Some(Message::NoReport(
            String::from_utf8_lossy(rest).into_owned(),
        )),
        b'F' => {
            let mut numbers = rest
                .chunks_exact(4)
                .take(3)
                .map(|chunk| i32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
            let (status, kind, errno) = (numbers.next()?, numbers.next()?, numbers.next()?);
            let text = String::from_utf8_lossy(rest.get(12..)?).into_owned();
            let (message, hint) = text.split_once('\0').unwrap_or((&text, ""));
            let mut error = Error::new(ErrorKind::from_code(kind.cast_unsigned()), message);
            error.errno = errno;
            Some(Message::Failed(status, error.hint(hint)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_and_the_end_is_seen() {
        let (a, b) = Channel::pair().unwrap();
        let failure = Error::closed("gone").hint("come back");
        for message in [
            Message::Ready,
            Message::Go,
            Message::Ping,
            Message::Alive,
            Message::Keep,
            Message::Deleted,
            Message::Done(1 << 40),
            Message::Open(true),
            Message::Side(false),
            Message::Interfaces(vec![true, false]),
            Message::Order(Order::AddPort("1n0".into(), 7, "vde0".into())),
            Message::Order(Order::Plug("1n0".into(), "2n0".into())),
            Message::Order(Order::Hub("1n0".into(), 120)),
            Message::Order(Order::Attach("1n0".into(), "2n0".into())),
            Message::NoReport("why".into()),
            Message::Failed(127, failure),
        ] {
            a.send(&message, &[a.as_fd(), a.as_fd()]).unwrap();
            let (got, fds) = b.receive().unwrap().unwrap();
            assert_eq!((got, fds.len()), (message, 2));
        }
        let report = "x".repeat(100_000);
        a.send_report(&report).unwrap();
        let (_, mut fds) = b.receive_within(Duration::from_secs(5)).unwrap().unwrap();
        let text = read_report(fds.pop().unwrap(), MAX_REPORT).unwrap();
        assert_eq!(text, format!("\"{report}\""));
        let silence = b.receive_within(Duration::from_millis(10)).unwrap_err();
        assert_eq!(silence.kind, ErrorKind::Busy);
        drop(a);
        assert!(b.receive().unwrap().is_none());
        b.send(&Message::Go, &[]).unwrap();
    }

    #[test]
    fn a_report_that_cannot_be_made_is_answered() {
        use std::os::unix::ffi::OsStrExt;
        let (a, b) = Channel::pair().unwrap();
        let unspeakable = std::path::Path::new(std::ffi::OsStr::from_bytes(b"/\xff"));
        a.send_report(&unspeakable).unwrap();
        let endless = "x".repeat(MAX_REPORT as usize);
        a.send_report(&endless).unwrap();
        for words in ["UTF-8", "more than 16777216 bytes"] {
            match b.receive().unwrap().unwrap() {
                (Message::NoReport(why), _) => assert!(why.contains(words), "{why}"),
                (other, _) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_does_not_end_is_not_read() {
        let open = |path: &str| OwnedFd::from(File::open(path).unwrap());
        let (pipe, _to) = nix::unistd::pipe().unwrap();
        for endless in [open("/dev/zero"), open("/proc/self/maps"), pipe] {
            let error = read_report(endless, MAX_REPORT).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
        }
        let memory = |size| {
            let file = File::from(memfd_create("x", MFdFlags::MFD_CLOEXEC).unwrap());
            file.set_len(size).unwrap();
            OwnedFd::from(file)
        };
        assert_eq!(read_report(memory(10), 10).unwrap(), "\0".repeat(10));
        let sparse = read_report(memory(1 << 50), 10).unwrap_err();
        assert!(sparse.message.contains("more than 10 bytes"), "{sparse}");
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
        let (a, b) = Channel::pair().unwrap();
        let name = "vdens-test-cut";
        let file = memfd_create(name, MFdFlags::MFD_CLOEXEC).unwrap();
        let fds = [file.as_fd(); 4];
        a.send(&Message::Ready, &fds).unwrap();
        // Room for two of the four.
        let lost = b.receive_with(&mut space_for(2));
        assert_eq!(lost.unwrap_err().errno, libc::EMFILE);
        assert_eq!(open_files(name), 1);
        // The next message is not touched by that.
        a.send(&Message::Ready, &fds).unwrap();
        let (_, fds) = b.receive().unwrap().unwrap();
        assert_eq!((fds.len(), open_files(name)), (4, 5));
    }
}
