//! Pipes, through which bulk data goes from one socket to another without being copied (splice(2)).
//!
//! The kernel bounds the memory of a user's pipes (`fs.pipe-user-pages-soft`), so a flow has a pipe
//! only while data is in it. Beyond the bound, or without a descriptor, there is none to be had.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use super::spare::not_last;

/// The size of a pipe, in bytes: what a TCP socket holds.
const SIZE: i32 = 1 << 20;

/// How many pipes are made that large, at most: a quarter of what a user may have by default.
const LARGE: usize = 16;

/// How many idle pipes are kept, at most.
const KEPT: usize = 64;

/// A pipe, and how many bytes are in it.
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// How much it takes, in bytes.
    size: usize,
    /// How much is in it, in bytes.
    pub filled: usize,
}

/// The pipes that are not in use.
#[derive(Default)]
pub(crate) struct Pipes {
    idle: Vec<Pipe>,
    large: usize,
}

impl Pipes {
    /// An empty pipe, unless a limit is reached.
    pub(crate) fn take(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).ok()?;
        let write = not_last(write).ok()?;
        let mut size = 65_536;
        if self.large < LARGE
            && let Ok(granted) = fcntl(&write, FcntlArg::F_SETPIPE_SZ(SIZE))
        {
            self.large += 1;
            size = granted as usize;
        }
        Some(Pipe {
            read,
            write,
            size,
            filled: 0,
        })
    }

    /// Takes an empty pipe back.
    pub(crate) fn give(&mut self, pipe: Pipe) {
        debug_assert_eq!(pipe.filled, 0);
        if self.idle.len() < KEPT {
            self.idle.push(pipe);
        } else {
            self.closed(&pipe);
        }
    }

    /// Takes a pipe that is closed with what is in it.
    pub(crate) fn discard(&mut self, pipe: Pipe) {
        self.closed(&pipe);
    }

    fn closed(&mut self, pipe: &Pipe) {
        if pipe.size > 65_536 {
            self.large -= 1;
        }
    }
}

impl Pipe {
    /// Fills the pipe from a socket; 0 is the end of what comes.
    ///
    /// # Errors
    /// `EAGAIN`: there is nothing, or no room. Else the connection is broken.
    pub(crate) fn fill(&mut self, from: impl AsFd) -> nix::Result<usize> {
        let moved = retry(|| splice(&from, None, &self.write, None, self.size, flags()))?;
        self.filled += moved;
        Ok(moved)
    }

    /// Empties the pipe into a socket, as far as it takes it.
    ///
    /// # Errors
    /// `EAGAIN`: the socket takes no more now. Else the connection is broken.
    pub(crate) fn empty(&mut self, to: impl AsFd) -> nix::Result<usize> {
        let moved = retry(|| splice(&self.read, None, &to, None, self.filled, flags()))?;
        self.filled -= moved;
        Ok(moved)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK
}

fn retry(mut call: impl FnMut() -> nix::Result<usize>) -> nix::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}
