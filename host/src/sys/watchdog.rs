//! Signals for a process that plugins run in and that nobody stands above: a thread reads them.
//!
//! The thread passes every signal on to the poll loop, which may not get there: a plugin may never come back from a call.
//! So after a signal that ends the process the thread waits for that, and then ends it itself. What the
//! plugins have made is left behind then, as no other thread can take it from them.
//!
//! Signals are blocked before anything is made that has to be removed at the end ([`Signals::block`]), and the thread is started
//! when the process has forked for the last time.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, sleep};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::unistd::{alarm, pipe2, read};

use crate::error::{Error, Result, system};
use crate::sys::process::wait;
use crate::sys::signals::{self, Signals};

/// How long the process may take to end, as long as a worker.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the last words may take, in seconds: what they remove or write may be on a file system
/// that hangs.
const LAST_WORDS: u32 = 1;

/// Signals as they come from the thread.
#[derive(Debug)]
pub struct Guard(OwnedFd);

impl Guard {
    /// Starts the thread. If that has to end the process it calls `last_words` first.
    ///
    /// # Errors
    /// There are too many threads or descriptors.
    pub fn start(signals: Signals, last_words: impl FnOnce() + Send + 'static) -> Result<Self> {
        let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let (from, to) = pipe2(flags).map_err(system("make a pipe"))?;
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || watch(&signals, to.into(), last_words))
            .map_err(|error| Error::io("start a thread", &error))?;
        Ok(Self(from))
    }

    /// The next signal that has come in, if any.
    pub fn next(&self) -> Option<Signal> {
        let mut number = [0];
        let read = read(&self.0, &mut number).ok()?;
        (read == 1).then(|| Signal::try_from(i32::from(number[0])).ok())?
    }
}

impl AsFd for Guard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The life of the thread.
fn watch(signals: &Signals, mut to: File, last_words: impl FnOnce()) {
    let ending = loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if wait(&mut fds, None).is_err() {
            return;
        }
        let Some(signal) = signals.next() else {
            continue;
        };
        // A pipe that is full has more than enough to say.
        let _ = to.write_all(&[signal as u8]);
        if signal != Signal::SIGCHLD {
            break signal;
        }
    };
    sleep(PATIENCE);
    signals::default(Signal::SIGALRM);
    alarm::set(LAST_WORDS);
    last_words();
    log::error!(
        "a plugin hangs, so this process ends as it is at {ending}; what it made, a switch's directory say, is left for the next one"
    );
    // SAFETY: _exit ends the process and touches no memory.
    unsafe { libc::_exit(128 + ending as i32) }
}
