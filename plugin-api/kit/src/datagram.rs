//! Many datagrams per system call: recvmmsg and sendmmsg over slices.
//!
//! The message headers are on the stack and point into the caller's buffers, so nothing is
//! allocated. No call blocks, whatever the socket's mode is.
//!
//! A UDP message may be several joined datagrams of one length, the last of which may be shorter. A
//! control message has that length (`UDP_SEGMENT` for sending, `UDP_GRO` for receiving,
//! `linux/udp.h`).

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{SockaddrLike, SockaddrStorage};

use vdens_plugin_c::BATCH_FRAMES;

/// The most datagrams in one message (UDP_MAX_SEGMENTS, `linux/udp.h`).
const MAX_JOINED: usize = 64;

/// The most bytes in one message: a 64 KiB packet less the headers of IPv4 and UDP.
const MAX_MESSAGE: usize = 65_535 - 20 - 8;

const EMPTY_IOVEC: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

fn headers() -> [libc::mmsghdr; BATCH_FRAMES] {
    // SAFETY: mmsghdr is plain data for which all bits zero is a valid value: no name, no data, no
    // control.
    unsafe { std::mem::zeroed() }
}

/// Receives up to `lengths.len()` datagrams, number i at `room[i * stride + front..(i + 1) *
/// stride]`, and stores their true lengths, which may exceed their places. Returns how many it
/// received, 0 if none was waiting.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    room: &mut [u8],
    stride: usize,
    front: usize,
    lengths: &mut [usize],
) -> io::Result<usize> {
    let mut iovecs = [EMPTY_IOVEC; BATCH_FRAMES];
    let mut messages = headers();
    let count = room
        .chunks_exact_mut(stride)
        .zip(iovecs.iter_mut().zip(messages.iter_mut()))
        .take(lengths.len())
        .map(|(place, (iovec, message))| {
            let place = &mut place[front..];
            *iovec = libc::iovec {
                iov_base: place.as_mut_ptr().cast(),
                iov_len: place.len(),
            };
            message.msg_hdr.msg_iov = iovec;
            message.msg_hdr.msg_iovlen = 1;
        })
        .count();
    // SAFETY: the first `count` messages point to iovecs that point into `room`; all outlive the
    // call.
    let taken = unsafe { receive_messages(socket, &mut messages[..count], libc::MSG_TRUNC)? };
    for (length, message) in lengths.iter_mut().zip(&messages[..taken]) {
        *length = message.msg_len as usize;
    }
    Ok(taken)
}

/// Sends up to [`BATCH_FRAMES`] datagrams on a connected socket with one system call (sendmmsg).
/// Each has two parts, the first of which may be empty (see
/// [`Frame::wrapped`](crate::Frame::wrapped)). Returns how many the socket took, which is fewer
/// than all, or 0, if its queue is full.
///
/// # Errors
/// sendmmsg refuses the first datagram. A full queue is no error.
pub fn send_datagrams<'a>(
    socket: impl AsFd,
    datagrams: impl Iterator<Item = [&'a [u8]; 2]>,
) -> io::Result<usize> {
    let mut iovecs = [[EMPTY_IOVEC; 2]; BATCH_FRAMES];
    let mut messages = headers();
    let count = datagrams
        .zip(iovecs.iter_mut().zip(messages.iter_mut()))
        .map(|(parts, (iovec, message))| {
            *iovec = parts.map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
            let used = if parts[0].is_empty() {
                &mut iovec[1..]
            } else {
                &mut iovec[..]
            };
            message.msg_hdr.msg_iov = used.as_mut_ptr();
            message.msg_hdr.msg_iovlen = used.len();
        })
        .count();
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: the first `count` messages point to iovecs that point to live datagrams, which the
    // kernel only reads.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            messages.as_mut_ptr(),
            count as u32,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if sent < 0 {
        return none_if_would_block();
    }
    Ok(sent as usize)
}

fn none_if_would_block() -> io::Result<usize> {
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => Ok(0),
        _ => Err(error),
    }
}

/// A datagram to send.
pub(crate) struct Datagram<'a> {
    /// Its destination; `None` on a connected socket.
    pub(crate) to: Option<SocketAddr>,
    /// Its bytes, in two parts, the first of which may be empty.
    pub(crate) parts: [&'a [u8]; 2],
}

/// A message that [`send_joined`] could not send.
#[derive(Debug)]
pub(crate) struct Unsent {
    pub(crate) error: io::Error,
    /// How many datagrams the message has.
    pub(crate) datagrams: usize,
    /// The length of each but the last, in bytes.
    pub(crate) size: usize,
}

/// A control message with the length of joined datagrams, in the memory layout of cmsg(3).
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct SizeMessage {
    header: libc::cmsghdr,
    /// A u16 on the way out, an int on the way in, in host byte order.
    size: [u8; 8],
}

const NO_SIZE: SizeMessage = SizeMessage {
    // SAFETY: cmsghdr is plain data for which all bits zero is a valid value.
    header: unsafe { std::mem::zeroed() },
    size: [0; 8],
};

impl SizeMessage {
    fn new(size: u16) -> Self {
        let mut message = NO_SIZE;
        message.header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<u16>()) as _;
        message.header.cmsg_level = libc::SOL_UDP;
        message.header.cmsg_type = libc::UDP_SEGMENT;
        message.size[..2].copy_from_slice(&size.to_ne_bytes());
        message
    }

    /// What the kernel wrote, if it did.
    fn received(&self, control_len: usize) -> Option<usize> {
        let is_size = control_len >= size_of::<libc::cmsghdr>() + size_of::<libc::c_int>()
            && self.header.cmsg_level == libc::SOL_UDP
            && self.header.cmsg_type == libc::UDP_GRO;
        let size = libc::c_int::from_ne_bytes(*self.size.first_chunk()?);
        usize::try_from(size).ok().filter(|_| is_size)
    }
}

/// The datagrams of a message that is being made.
#[derive(Clone, Copy, Default)]
struct Run {
    to: Option<SocketAddr>,
    /// The length of the first.
    size: usize,
    /// The length of all.
    total: usize,
    count: usize,
    /// Whether the last one is shorter, so that no other may follow.
    is_closed: bool,
}

impl Run {
    /// Whether a datagram can be joined to those in the run, of which none may be longer than
    /// `longest`.
    fn takes(&self, to: Option<SocketAddr>, len: usize, longest: usize) -> bool {
        self.to == to
            && !self.is_closed
            && (1..=self.size).contains(&len)
            && self.size <= longest
            && self.count < MAX_JOINED
            && self.total + len <= MAX_MESSAGE
    }

    fn add(&mut self, len: usize) {
        self.is_closed = len < self.size;
        self.total += len;
        self.count += 1;
    }
}

/// Sends up to [`BATCH_FRAMES`] datagrams with one system call. Neighbours with one destination and
/// one length of at most `longest` bytes are joined. Returns how many datagrams the socket took, 0
/// if its queue is full.
///
/// # Errors
/// The kernel refuses the first message.
pub(crate) fn send_joined<'a>(
    socket: BorrowedFd<'_>,
    datagrams: impl Iterator<Item = Datagram<'a>>,
    longest: usize,
) -> Result<usize, Unsent> {
    let mut iovecs = [EMPTY_IOVEC; 2 * BATCH_FRAMES];
    let mut runs = [Run::default(); BATCH_FRAMES];
    let (mut vectors, mut messages) = (0, 0);
    let mut starts = [0; BATCH_FRAMES];
    for Datagram { to, parts } in datagrams.take(BATCH_FRAMES) {
        let len = parts[0].len() + parts[1].len();
        if messages == 0 || !runs[messages - 1].takes(to, len, longest) {
            starts[messages] = vectors;
            runs[messages] = Run {
                to,
                size: len,
                ..Run::default()
            };
            messages += 1;
        }
        runs[messages - 1].add(len);
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            iovecs[vectors] = libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            };
            vectors += 1;
        }
    }
    if messages == 0 {
        return Ok(0);
    }
    let names = runs.map(|run| run.to.map(SockaddrStorage::from));
    let sizes = runs.map(|run| SizeMessage::new(run.size as u16));
    let mut headers = headers();
    for (number, message) in headers[..messages].iter_mut().enumerate() {
        let end = starts[..messages].get(number + 1).copied();
        let message = &mut message.msg_hdr;
        message.msg_iov = iovecs[starts[number]..].as_mut_ptr();
        message.msg_iovlen = (end.unwrap_or(vectors) - starts[number]) as _;
        if let Some(name) = &names[number] {
            message.msg_name = name.as_ptr().cast_mut().cast();
            message.msg_namelen = name.len();
        }
        if runs[number].count > 1 {
            message.msg_control = (&raw const sizes[number]).cast_mut().cast();
            message.msg_controllen = size_of::<SizeMessage>() as _;
        }
    }
    // SAFETY: the first `messages` headers point to iovecs, which point to live datagrams, to names
    // and to control messages, which all outlive the call; the kernel only reads them.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            messages as u32,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if sent < 0 {
        return none_if_would_block().map_err(|error| Unsent {
            error,
            datagrams: runs[0].count,
            size: runs[0].size,
        });
    }
    let sent = (sent as usize).min(messages);
    Ok(runs[..sent].iter().map(|run| run.count).sum())
}

/// Receives into `messages` with one system call. Returns how many it received, 0 if none was
/// waiting.
///
/// # Safety
/// The messages point to memory that outlives the call and is used for nothing else during it.
unsafe fn receive_messages(
    socket: BorrowedFd<'_>,
    messages: &mut [libc::mmsghdr],
    flags: i32,
) -> io::Result<usize> {
    if messages.is_empty() {
        return Ok(0);
    }
    // SAFETY: per this function's contract.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            messages.len() as u32,
            flags | libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
        )
    };
    match usize::try_from(received) {
        Ok(received) => Ok(received.min(messages.len())),
        Err(_) => none_if_would_block(),
    }
}

/// A received message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Joined {
    /// Its sender, if that is an internet address.
    pub(crate) from: Option<SocketAddr>,
    /// Bytes of the message.
    pub(crate) len: usize,
    /// Bytes of each datagram in it but the last.
    pub(crate) size: usize,
}

/// Receives up to `received.len()` messages, at most [`BATCH_FRAMES`], with one system call, number
/// i to the start of `room[i * stride..(i + 1) * stride]`. Returns how many it received, 0 if none
/// was waiting.
pub(crate) fn receive_joined(
    socket: BorrowedFd<'_>,
    room: &mut [u8],
    stride: usize,
    received: &mut [Joined],
) -> io::Result<usize> {
    let mut iovecs = [EMPTY_IOVEC; BATCH_FRAMES];
    // SAFETY: sockaddr_storage is plain data for which all bits zero is a valid value.
    let mut names: [libc::sockaddr_storage; BATCH_FRAMES] = unsafe { std::mem::zeroed() };
    let mut sizes = [NO_SIZE; BATCH_FRAMES];
    let mut messages = headers();
    let places = room.chunks_exact_mut(stride).take(received.len());
    let count = places
        .zip(iovecs.iter_mut().zip(names.iter_mut()))
        .zip(sizes.iter_mut().zip(messages.iter_mut()))
        .map(|((place, (iovec, name)), (size, message))| {
            *iovec = libc::iovec {
                iov_base: place.as_mut_ptr().cast(),
                iov_len: place.len(),
            };
            let message = &mut message.msg_hdr;
            message.msg_iov = iovec;
            message.msg_iovlen = 1;
            message.msg_name = (&raw mut *name).cast();
            message.msg_namelen = size_of::<libc::sockaddr_storage>() as _;
            message.msg_control = (&raw mut *size).cast();
            message.msg_controllen = size_of::<SizeMessage>() as _;
        })
        .count();
    // SAFETY: the first `count` messages point to iovecs that point into `room`, to names and to
    // control messages; all outlive the call and are used for nothing else during it.
    let taken = unsafe { receive_messages(socket, &mut messages[..count], 0)? };
    for (number, received) in received[..taken].iter_mut().enumerate() {
        let len = (messages[number].msg_len as usize).min(stride);
        let header = &messages[number].msg_hdr;
        let size = sizes[number].received(header.msg_controllen);
        *received = Joined {
            from: address(&names[number], header.msg_namelen),
            len,
            size: size.unwrap_or(len),
        };
    }
    Ok(taken)
}

/// An internet address as the kernel wrote it.
fn address(name: &libc::sockaddr_storage, len: libc::socklen_t) -> Option<SocketAddr> {
    // SAFETY: `name` is a whole sockaddr_storage, of which `len` bytes at most are looked at.
    let name = unsafe { SockaddrStorage::from_raw((&raw const *name).cast(), Some(len)) }?;
    let v4 = || {
        name.as_sockaddr_in()
            .map(|name| SocketAddr::V4((*name).into()))
    };
    let v6 = || {
        name.as_sockaddr_in6()
            .map(|name| SocketAddr::V6((*name).into()))
    };
    v4().or_else(v6)
}
