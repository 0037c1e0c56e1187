//! An open connection: its two descriptors.
//!
//! # Theory of operation
//!
//! A C program may use a connection that it has closed. So a [`Connection`] is never freed: its
//! descriptors become -1, which every call refuses with EBADF, and its memory waits for the next
//! `vde_open`. Descriptors are atomics, because two threads may use one connection.
//!
//! The data descriptor is a socket or a tap ([`Kind`]). Both hold one frame for each call. A tap
//! knows no flags and no far end, so `recv` and `send` supply what it lacks:
//!
//! | | socket | tap |
//! |---|---|---|
//! | `MSG_DONTWAIT` | the kernel's | a read with `RWF_NOWAIT` |
//! | the helper has ended | the kernel reports it | the control descriptor is polled, too |
//! | no carrier | the helper drops the frame | EIO: the frame is dropped here |
//!
//! A socket whose helper has ended stays readable for good, and a program that polls the data
//! descriptor alone, as QEMU does, would never sleep again. So the first `recv` that finds the end
//! puts a descriptor that is never readable in its place.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::close;
use vdens_plugin_kit::MIN_FRAME;

use crate::helper::{self, Request};

/// The descriptor of a connection that is closed.
const CLOSED: RawFd = -1;

/// What the data descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Socket,
    Tap,
    /// It stands for a socket whose helper has ended.
    Ended,
}

impl Kind {
    fn from_u8(number: u8) -> Self {
        [Self::Socket, Self::Tap]
            .into_iter()
            .find(|kind| *kind as u8 == number)
            .unwrap_or(Self::Ended)
    }
}

/// `VDECONN`.
#[derive(Debug)]
pub struct Connection {
    data: AtomicI32,
    control: AtomicI32,
    kind: AtomicU8,
}

/// Connections that are closed; the one that was closed first is used first.
static UNUSED: Mutex<VecDeque<&'static Connection>> = Mutex::new(VecDeque::new());

impl Connection {
    /// Opens a connection.
    ///
    /// # Errors
    /// As for [`helper::open`].
    pub(crate) fn open(request: &Request<'_>) -> nix::Result<&'static Self> {
        let (control, data) = helper::open(request)?;
        let kind = match getsockopt(&data, sockopt::SockType) {
            Ok(_) => Kind::Socket,
            Err(_) => Kind::Tap,
        };
        let mut unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = unused.pop_front().unwrap_or_else(|| {
            Box::leak(Box::new(Self {
                data: AtomicI32::new(CLOSED),
                control: AtomicI32::new(CLOSED),
                kind: AtomicU8::new(0),
            }))
        });
        connection.kind.store(kind as u8, Ordering::Relaxed);
        connection.data.store(data.into_raw_fd(), Ordering::Relaxed);
        connection
            .control
            .store(control.into_raw_fd(), Ordering::Relaxed);
        Ok(connection)
    }

    /// The data descriptor.
    ///
    /// # Errors
    /// EBADF: the connection is closed.
    pub(crate) fn data(&self) -> nix::Result<RawFd> {
        open_descriptor(&self.data)
    }

    /// The control descriptor.
    ///
    /// # Errors
    /// As for [`Connection::data`].
    pub(crate) fn control(&self) -> nix::Result<RawFd> {
        open_descriptor(&self.control)
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// EBADF: it is closed already.
    pub(crate) fn close(&'static self) -> nix::Result<()> {
        let take = |fd: &AtomicI32| match fd.swap(CLOSED, Ordering::Relaxed) {
            CLOSED => Err(Errno::EBADF),
            fd => Ok(fd),
        };
        let data = take(&self.data)?;
        let control = take(&self.control);
        // A program may have closed them itself, which is its own affair.
        let _ = (close(data), control.map(close));
        let mut unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner);
        unused.push_back(self);
        Ok(())
    }

    /// Receives a frame. Waits for one, unless the descriptor or the flags say otherwise.
    ///
    /// # Errors
    /// EAGAIN: there is none; ECONNRESET: the helper has ended.
    pub(crate) fn recv(&self, room: &mut [u8], flags: c_int) -> nix::Result<usize> {
        let data = self.data()?;
        match Kind::from_u8(self.kind.load(Ordering::Relaxed)) {
            Kind::Socket => {
                let received = receive(data, room, flags);
                if received.is_err_and(|errno| errno == Errno::ECONNRESET) {
                    self.end(data);
                }
                received
            }
            Kind::Tap => loop {
                match read_now(data, room) {
                    Err(Errno::EAGAIN) => self.wait_for_tap(data, flags)?,
                    Err(Errno::EBADFD) => return Err(Errno::ECONNRESET),
                    read => return read,
                }
            },
            Kind::Ended => Err(Errno::ECONNRESET),
        }
    }

    /// Sends a frame. What is too short to be one is dropped.
    ///
    /// # Errors
    /// EAGAIN: the queue is full; ECONNRESET: the helper has ended.
    pub(crate) fn send(&self, frame: &[u8], flags: c_int) -> nix::Result<usize> {
        let data = self.data()?;
        if frame.len() < MIN_FRAME {
            return Ok(frame.len());
        }
        let (bytes, len) = (frame.as_ptr().cast::<c_void>(), frame.len());
        match Kind::from_u8(self.kind.load(Ordering::Relaxed)) {
            Kind::Socket => {
                // SAFETY: the kernel only reads the frame.
                let sent = unsafe { libc::send(data, bytes, len, flags | libc::MSG_NOSIGNAL) };
                match Errno::result(sent) {
                    Err(Errno::EPIPE) => Err(Errno::ECONNRESET),
                    sent => sent.map(isize::cast_unsigned),
                }
            }
            Kind::Tap => {
                // SAFETY: as above. A tap never makes a writer wait.
                let written = unsafe { libc::write(data, bytes, len) };
                match Errno::result(written) {
                    Err(Errno::EIO) if !self.has_ended(PollTimeout::ZERO, None)? => Ok(len),
                    Err(Errno::EIO | Errno::EBADFD) => Err(Errno::ECONNRESET),
                    written => written.map(isize::cast_unsigned),
                }
            }
            Kind::Ended => Err(Errno::ECONNRESET),
        }
    }

    /// Puts a descriptor that is never readable in the place of a socket whose helper has ended.
    fn end(&self, data: RawFd) {
        let Ok(idle) = EventFd::from_flags(EfdFlags::EFD_CLOEXEC) else {
            return;
        };
        self.kind.store(Kind::Ended as u8, Ordering::Relaxed);
        let idle = OwnedFd::from(idle);
        // SAFETY: both descriptors are open, and `data` belongs to this connection.
        unsafe { libc::dup3(idle.as_raw_fd(), data, libc::O_CLOEXEC) };
    }

    /// Waits until the tap has a frame.
    fn wait_for_tap(&self, data: RawFd, flags: c_int) -> nix::Result<()> {
        // SAFETY: the descriptor is open as long as the program does not close it during the call.
        let tap = unsafe { BorrowedFd::borrow_raw(data) };
        let is_waiting = flags & libc::MSG_DONTWAIT == 0
            && !OFlag::from_bits_retain(fcntl(tap, FcntlArg::F_GETFL)?).contains(OFlag::O_NONBLOCK);
        let limit = match is_waiting {
            true => PollTimeout::NONE,
            false => PollTimeout::ZERO,
        };
        match (self.has_ended(limit, Some(tap))?, is_waiting) {
            (true, _) => Err(Errno::ECONNRESET),
            (false, true) => Ok(()),
            (false, false) => Err(Errno::EAGAIN),
        }
    }

    /// Waits for the control descriptor, or for a frame on the tap. Whether the helper has ended.
    fn has_ended(&self, limit: PollTimeout, tap: Option<BorrowedFd<'_>>) -> nix::Result<bool> {
        // SAFETY: as in `wait_for_tap`.
        let control = unsafe { BorrowedFd::borrow_raw(self.control()?) };
        let mut fds = [
            PollFd::new(control, PollFlags::POLLIN),
            PollFd::new(tap.unwrap_or(control), PollFlags::POLLIN),
        ];
        poll(&mut fds, limit)?;
        Ok(fds[0].any() == Some(true))
    }
}

fn open_descriptor(fd: &AtomicI32) -> nix::Result<RawFd> {
    match fd.load(Ordering::Relaxed) {
        CLOSED => Err(Errno::EBADF),
        fd => Ok(fd),
    }
}

/// Receives a packet. The end of the connection is ECONNRESET.
fn receive(data: RawFd, room: &mut [u8], flags: c_int) -> nix::Result<usize> {
    // With MSG_TRUNC the kernel returns a packet's true length.
    let flags = flags | libc::MSG_TRUNC;
    // SAFETY: the kernel writes at most `room.len()` bytes to `room`.
    let got = unsafe { libc::recv(data, room.as_mut_ptr().cast(), room.len(), flags) };
    match Errno::result(got)?.cast_unsigned() {
        0 => Err(Errno::ECONNRESET),
        got => Ok(got.min(room.len())),
    }
}

/// Reads a frame from a tap, without waiting for one.
fn read_now(data: RawFd, room: &mut [u8]) -> nix::Result<usize> {
    let room = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    // SAFETY: the kernel writes at most `iov_len` bytes to the room, which is borrowed meanwhile.
    let read = || unsafe { libc::preadv2(data, &raw const room, 1, -1, libc::RWF_NOWAIT) };
    match Errno::result(read()) {
        // Older kernels cannot do that with a tap.
        Err(Errno::EOPNOTSUPP) => {}
        got => return got.map(isize::cast_unsigned),
    }
    // SAFETY: the descriptor is open as long as the program does not close it during the call.
    let tap = unsafe { BorrowedFd::borrow_raw(data) };
    if poll(
        &mut [PollFd::new(tap, PollFlags::POLLIN)],
        PollTimeout::ZERO,
    )? == 0
    {
        return Err(Errno::EAGAIN);
    }
    // SAFETY: as above.
    let got = unsafe { libc::readv(data, &raw const room, 1) };
    Errno::result(got).map(isize::cast_unsigned)
}
