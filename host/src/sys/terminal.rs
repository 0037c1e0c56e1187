//! The terminal's foreground process group.
//!
//! A shell with job control makes itself the terminal's foreground group, and gives the terminal
//! back at its end. A shell in a PID namespace of its own cannot: the group that had the terminal
//! before has no number there. So the process that started the shell takes the terminal back.

use std::io;
use std::os::fd::AsFd;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// The foreground group of this process's terminal, which is this process's own.
#[derive(Debug)]
pub(crate) struct Foreground(Pid);

impl Foreground {
    /// `None` if standard input is no terminal, or this process is in the background.
    pub(crate) fn of_this_process() -> Option<Self> {
        let own = getpgrp();
        (tcgetpgrp(io::stdin().as_fd()) == Ok(own)).then_some(Self(own))
    }

    /// Makes the group the foreground group again.
    pub(crate) fn restore(&self) {
        // A background process that does so is stopped, unless it blocks SIGTTOU (tcsetpgrp(3)).
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTTOU);
        let mut before = SigSet::empty();
        let blocked = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&stop), Some(&mut before));
        if let Err(errno) = tcsetpgrp(io::stdin().as_fd(), self.0) {
            log::debug!("cannot take the terminal back: {errno}");
        }
        if blocked.is_ok() {
            let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        }
    }
}
