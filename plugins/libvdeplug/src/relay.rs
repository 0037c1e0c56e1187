//! The loop of a connection's thread: it moves frames between the C plugin and the link's socket
//! pair.
//!
//! # Theory of operation
//!
//! `vde_recv` may block. So it is called once each time that poll reports the data descriptor
//! readable. `vde_send` is called for each frame from the link. If the link has no room for a
//! frame, the frame waits here, and the plugin is not read meanwhile.
//!
//! The loop ends when the link closes its end of the pair, when the control descriptor is readable
//! (the far end is gone), or when the plugin fails. `vde_recv` does not distinguish an empty
//! datagram from the end of a stream, nor a passing error from a lasting one. Poll does: after a
//! hang-up the connection is broken; a descriptor that is not readable any more had a passing
//! error; one that stays readable call after call has failed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vdens_plugin_kit::{Error, MAX_LEGACY_FRAME};

use crate::connection::{Connection, Received};

/// The most frames from the link in a row, while the plugin has none.
const TURN: usize = 32;

/// After so many calls of `vde_recv` in a row without a frame, the connection is broken.
const STRIKES: u32 = 32;

/// What poll reports for a descriptor that will never have data again.
const HANG_UP: PollFlags = PollFlags::POLLHUP.union(PollFlags::POLLNVAL);

/// Why the loop ended.
pub(crate) enum Stop {
    /// The link closed its end of the pair.
    Closed,
    /// The connection broke.
    Broken(Error),
}

/// A connection, and the pair that its frames go to and come from.
pub(crate) struct Relay<'a> {
    /// This end of the socket pair, non-blocking. It is closed before the connection, which may
    /// take long to close.
    pair: UnixDatagram,
    connection: Connection,
    /// Frames that were lost on the way to the plugin.
    lost: &'a AtomicU64,
    /// The length of a frame in `room` that the link had no room for.
    waiting: Option<usize>,
    room: Box<[u8; MAX_LEGACY_FRAME]>,
    strikes: u32,
}

impl<'a> Relay<'a> {
    pub(crate) fn new(connection: Connection, pair: UnixDatagram, lost: &'a AtomicU64) -> Self {
        Self {
            pair,
            connection,
            lost,
            waiting: None,
            room: Box::new([0; MAX_LEGACY_FRAME]),
            strikes: 0,
        }
    }

    /// Moves frames until the loop has to stop. Leaves both ends open.
    pub(crate) fn run(&mut self) -> Stop {
        loop {
            if let Err(stop) = self.turn() {
                return stop;
            }
        }
    }

    fn turn(&mut self) -> Result<(), Stop> {
        let ready = self.wait()?;
        if ready.control {
            return Err(broken(Error::closed("the far end is gone")));
        }
        if ready.pair {
            // One for one, if both have some.
            self.send_frames(if ready.data.is_empty() { TURN } else { 1 })?;
        }
        if ready.room {
            self.deliver()?;
        }
        if !ready.data.is_empty() {
            self.receive_frame(ready.data)?;
        }
        Ok(())
    }

    /// Waits until there is something to do.
    fn wait(&self) -> Result<Ready, Stop> {
        let pair = self.pair.as_fd();
        let full = self.waiting.is_some();
        let wanted = [
            Some((pair, PollFlags::POLLIN)),
            (!full).then(|| (self.connection.data(), PollFlags::POLLIN)),
            full.then_some((pair, PollFlags::POLLOUT)),
            self.connection.control().map(|fd| (fd, PollFlags::POLLIN)),
        ];
        // An unwanted descriptor must not be polled: it would report a hang-up again and again.
        let mut fds = wanted.map(|wanted| {
            let (fd, flags) = wanted.unwrap_or((pair, PollFlags::empty()));
            PollFd::new(fd, flags)
        });
        while let Err(errno) = poll(&mut fds, PollTimeout::NONE) {
            if errno != Errno::EINTR {
                return Err(broken(Error::io("wait for frames", &errno.into())));
            }
        }
        let ready = |index: usize| wanted[index].is_some() && fds[index].any() == Some(true);
        Ok(Ready {
            pair: ready(0),
            data: match ready(1) {
                true => fds[1].revents().unwrap_or(PollFlags::POLLIN),
                false => PollFlags::empty(),
            },
            room: ready(2),
            control: ready(3),
        })
    }

    /// Sends frames from the link to the plugin.
    fn send_frames(&mut self, at_most: usize) -> Result<(), Stop> {
        let mut frame = [0; MAX_LEGACY_FRAME];
        for _ in 0..at_most {
            match self.pair.recv(&mut frame) {
                Ok(0) => return Err(Stop::Closed),
                Ok(len) if self.connection.send(&frame[..len]) => {}
                Ok(_) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => return not_now(&error),
            }
        }
        Ok(())
    }

    /// Receives a frame from the plugin for the link. `state` is what poll reported for the data
    /// descriptor.
    fn receive_frame(&mut self, state: PollFlags) -> Result<(), Stop> {
        let failure = match self.connection.recv(&mut self.room[..]) {
            Received::Frame(len) => {
                self.waiting = Some(len);
                self.deliver()?;
                None
            }
            Received::Nothing => None,
            Received::Empty => Some("empty frames"),
            Received::Failed(errno) => Some(errno.desc()),
        };
        match failure {
            Some(why) => self.judge(why, state, look(self.connection.data())),
            None => {
                self.strikes = 0;
                Ok(())
            }
        }
    }

    /// Handles a call that brought no frame, by what poll reported before and after it.
    fn judge(&mut self, why: &str, before: PollFlags, after: PollFlags) -> Result<(), Stop> {
        if before.union(after).intersects(HANG_UP) {
            return Err(broken(Error::closed("the far end is gone")));
        }
        self.strikes = if after.is_empty() {
            0
        } else {
            self.strikes + 1
        };
        if self.strikes < STRIKES {
            return Ok(());
        }
        let message = format!("the C plugin receives no frames: {why}");
        Err(broken(Error::closed(message)))
    }

    /// Delivers the waiting frame to the link, if there is room.
    fn deliver(&mut self) -> Result<(), Stop> {
        if let Some(len) = self.waiting {
            match self.pair.send(&self.room[..len]) {
                Ok(_) => self.waiting = None,
                Err(error) => return not_now(&error),
            }
        }
        Ok(())
    }
}

struct Ready {
    pair: bool,
    /// What poll reports for the data descriptor.
    data: PollFlags,
    room: bool,
    control: bool,
}

fn broken(error: Error) -> Stop {
    Stop::Broken(error)
}

/// A full or empty queue is not an error. Any other error means that the link closed its end.
fn not_now(error: &io::Error) -> Result<(), Stop> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(Stop::Closed),
    }
}

/// What poll reports for a descriptor now.
fn look(fd: BorrowedFd<'_>) -> PollFlags {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) => fds[0].revents().unwrap_or(PollFlags::empty()),
        Err(_) => PollFlags::empty(),
    }
}
