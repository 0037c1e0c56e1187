//! The loop of a connection's thread: frames between the C plugin and the link's socket pair.
//!
//! The plugin is called when its data descriptor is readable, once after each look at it, as the next call might block; and
//! for every frame that comes from the link. Frames that the link has no room for wait here, and the plugin meanwhile. The loop
//! ends when the link closes its end, when the control descriptor is readable (the far end is
//! gone), or when the plugin fails. `vde_recv` does not tell an empty datagram from the end of a stream, nor a
//! transient error from a lasting one. Poll does: a hang-up ends the connection at once; a descriptor with nothing
//! left to read was a passing trouble; one that stays readable, call after call, has failed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vdens_plugin_kit::{Error, MAX_LEGACY_FRAME};

use crate::connection::{Connection, Received};

/// Frames from the link in a row while none come from the plugin.
const TURN: usize = 32;

/// Fruitless calls of `vde_recv` in a row that make a broken connection.
const STRIKES: u32 = 32;

/// What poll says of a descriptor that nothing will come from any more.
const HANG_UP: PollFlags = PollFlags::POLLHUP.union(PollFlags::POLLNVAL);

/// Why a loop ended.
pub(crate) enum End {
    /// The link closed its end.
    Closed,
    /// The connection is of no more use.
    Broken(Error),
}

/// What the loop works on.
pub(crate) struct Ferry<'a> {
    /// This end of the socket pair, non-blocking. Closed before the connection, which may take its time.
    pair: UnixDatagram,
    connection: Connection,
    /// Frames that were lost on the way to the plugin.
    lost: &'a AtomicU64,
    /// A frame that the link had no room for: its first bytes in `room`.
    waiting: Option<usize>,
    room: Box<[u8; MAX_LEGACY_FRAME]>,
    strikes: u32,
}

impl<'a> Ferry<'a> {
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

    /// Moves frames until something ends that. Both ends are still open then.
    pub(crate) fn run(&mut self) -> End {
        loop {
            if let Err(end) = self.turn() {
                return end;
            }
        }
    }

    fn turn(&mut self) -> Result<(), End> {
        let ready = self.wait()?;
        if ready.control {
            return Err(broken(Error::closed("the far end is gone")));
        }
        if ready.pair {
            // One for one, if both have some.
            self.put_out(if ready.data.is_empty() { TURN } else { 1 })?;
        }
        if ready.room {
            self.land()?;
        }
        if !ready.data.is_empty() {
            self.take_in(ready.data)?;
        }
        Ok(())
    }

    /// Waits until there is something to do.
    fn wait(&self) -> Result<Ready, End> {
        let pair = self.pair.as_fd();
        let full = self.waiting.is_some();
        let wanted = [
            Some((pair, PollFlags::POLLIN)),
            (!full).then(|| (self.connection.data(), PollFlags::POLLIN)),
            full.then_some((pair, PollFlags::POLLOUT)),
            self.connection.control().map(|fd| (fd, PollFlags::POLLIN)),
        ];
        // A descriptor that nothing is wanted of would still report a hang-up, again and again.
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

    /// From the link to the plugin.
    fn put_out(&mut self, at_most: usize) -> Result<(), End> {
        let mut frame = [0; MAX_LEGACY_FRAME];
        for _ in 0..at_most {
            match self.pair.recv(&mut frame) {
                Ok(0) => return Err(End::Closed),
                Ok(len) if self.connection.send(&frame[..len]) => {}
                Ok(_) => {
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => return not_now(&error),
            }
        }
        Ok(())
    }

    /// A frame from the plugin to the link. `state` is what poll said of the data descriptor.
    fn take_in(&mut self, state: PollFlags) -> Result<(), End> {
        let failure = match self.connection.recv(&mut self.room[..]) {
            Received::Frame(len) => {
                self.waiting = Some(len);
                self.land()?;
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

    /// What a fruitless call means, by the states before and after it.
    fn judge(&mut self, why: &str, before: PollFlags, after: PollFlags) -> Result<(), End> {
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
        let message = format!("the C plugin receives nothing, again and again: {why}");
        Err(broken(Error::closed(message)))
    }

    /// Gives the frame that waits to the link, if there is room.
    fn land(&mut self) -> Result<(), End> {
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
    /// What is the matter with the data descriptor.
    data: PollFlags,
    room: bool,
    control: bool,
}

fn broken(error: Error) -> End {
    End::Broken(error)
}

/// A full or empty queue is no failure; any other means that the link has closed its end.
fn not_now(error: &io::Error) -> Result<(), End> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(End::Closed),
    }
}

/// What poll says of a descriptor at once.
fn look(fd: BorrowedFd<'_>) -> PollFlags {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) => fds[0].revents().unwrap_or(PollFlags::empty()),
        Err(_) => PollFlags::empty(),
    }
}
