//! A watchdog over a process that loads plugins and has no supervisor: a thread reads its signals.
//!
//! The thread passes each signal on to the poll loop. A plugin that does not return from a call
//! keeps the loop from handling it. So after a signal that ends the process, the thread waits for
//! that for a while, and then ends the process itself. What the plugins have made stays behind
//! then, because no other thread can take it from them.
//!
//! Signals are blocked ([`Signals::block`]) before the process makes anything that it removes at
//! its end. The thread starts when the process has forked for the last time, and has entered its
//! sandbox: Landlock's rules hold for the thread that makes them and for those that it starts.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, sleep};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::unistd::{alarm, pipe2, read};

use crate::error::{Error, Result, system};
use crate::sys::child::CLEANUP_LIMIT;
use crate::sys::process::wait;
use crate::sys::signals::{self, Signals};

/// How long the watchdog's own cleanup may take, in seconds. What it removes may be on a file
/// system that hangs.
const CLEANUP: u32 = 1;

/// The poll loop's end of the pipe from the thread.
#[derive(Debug)]
pub(crate) struct Watchdog(OwnedFd);

impl Watchdog {
    /// Starts the thread, which calls `cleanup` before it ends the process.
    ///
    /// # Errors
    /// There are too many threads or descriptors.
    pub(crate) fn start(signals: Signals, cleanup: impl FnOnce() + Send + 'static) -> Result<Self> {
        let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let (from, to) = pipe2(flags).map_err(system("make a pipe"))?;
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || watch(&signals, to.into(), cleanup))
            .map_err(|error| Error::io("start a thread", &error))?;
        Ok(Self(from))
    }

    /// The next signal that has come in, if any.
    pub(crate) fn next(&self) -> Option<Signal> {
        let mut number = [0];
        let read = read(&self.0, &mut number).ok()?;
        (read == 1).then(|| Signal::try_from(i32::from(number[0])).ok())?
    }
}

impl AsFd for Watchdog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The life of the thread.
fn watch(signals: &Signals, mut to: File, cleanup: impl FnOnce()) {
    let ending = loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if wait(&mut fds, None).is_err() {
            return;
        }
        let Some(signal) = signals.next() else {
            continue;
        };
        // A full pipe has signals enough.
        let _ = to.write_all(&[signal as u8]);
        if signal != Signal::SIGCHLD {
            break signal;
        }
    };
    sleep(CLEANUP_LIMIT);
    signals::default(Signal::SIGALRM);
    alarm::set(CLEANUP);
    cleanup();
    log::error!(
        "a plugin hangs after signal {ending}: exiting without cleanup; the next process that \
         opens the same VNL removes what is left, for example a switch's directory"
    );
    // SAFETY: _exit ends the process and touches no memory.
    unsafe { libc::_exit(128 + ending as i32) }
}
