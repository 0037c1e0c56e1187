//! Signals as events.
//!
//! A long-running process of this program blocks the signals that it handles and reads them from a
//! signalfd, so that its poll loop handles all events. The command gets the signal mask back that
//! the process was started with.

use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{
    SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask,
};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};

use crate::error::{Error, Result, system};
use crate::sys::child::CLEANUP_LIMIT;
use crate::sys::process::wait;

/// The signals that a supervisor or a plug reads.
const HANDLED: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    // A session is to be stopped, with everything in it. An init process takes this signal so, too.
    Signal::SIGPWR,
    Signal::SIGCHLD,
];

/// Handled signals, blocked and readable.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: SignalFd,
    original: SigSet,
}

impl Signals {
    /// Blocks the signals that are handled, from now on. SIGCHLD gets its default back, because the
    /// kernel reaps the children of a process that was started to ignore it (wait(2)).
    ///
    /// # Errors
    /// The system has no descriptors left.
    pub(crate) fn block() -> Result<Self> {
        default(Signal::SIGCHLD);
        let mut set = SigSet::empty();
        HANDLED.into_iter().for_each(|signal| set.add(signal));
        let mut original = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut original))
            .map_err(system("block signals"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let fd = SignalFd::with_flags(&set, flags).map_err(system("make a signalfd"))?;
        Ok(Self { fd, original })
    }

    /// Does `work`, during which a signal ends this process at once: the work may hang, and there
    /// is nothing yet to remove at the end.
    ///
    /// # Errors
    /// Never on Linux.
    pub(crate) fn end_during<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let mut set = SigSet::empty();
        ending().for_each(|signal| set.add(signal));
        set.thread_unblock().map_err(system("unblock signals"))?;
        let done = work();
        set.thread_block().map_err(system("block signals"))?;
        Ok(done)
    }

    /// The next signal that has come in, if any.
    pub(crate) fn next(&self) -> Option<Signal> {
        let info = self.fd.read_signal().ok().flatten()?;
        Signal::try_from(info.ssi_signo.cast_signed()).ok()
    }

    /// Waits for the next signal. `None` if waiting fails.
    pub(crate) fn wait(&self) -> Option<Signal> {
        loop {
            if let Some(signal) = self.next() {
                return Some(signal);
            }
            let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            wait(&mut fds, None).ok()?;
        }
    }

    /// Restores the signal mask that this process was started with, in a forked child.
    ///
    /// # Errors
    /// Never on Linux.
    pub(crate) fn restore(&self) -> Result<()> {
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.original), None)
            .map_err(system("restore the signal mask"))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a blocked signal that should end this process has come and was not read yet.
pub(crate) fn end_is_pending() -> bool {
    let pending = pending();
    ending().any(|signal| pending.contains(signal))
}

/// The signals that end this process.
fn ending() -> impl Iterator<Item = Signal> {
    let handled = HANDLED.into_iter();
    handled.filter(|signal| *signal != Signal::SIGCHLD)
}

/// Whether a blocked signal that this process handles has come and was not read yet.
pub(crate) fn is_pending() -> bool {
    let pending = pending();
    HANDLED.into_iter().any(|signal| pending.contains(signal))
}

/// The signals that have come, are blocked and were not read yet.
fn pending() -> SigSet {
    let mut pending = *SigSet::empty().as_ref();
    // SAFETY: the kernel writes a signal set to `pending`, which outlives the call; if it fails the
    // set stays empty.
    unsafe { libc::sigpending(&raw mut pending) };
    // SAFETY: it was a valid set before the call and is one after it.
    unsafe { SigSet::from_sigset_t_unchecked(pending) }
}

/// Ignores a signal in this process and in the children it forks.
pub(crate) fn ignore(signal: Signal) {
    let action = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: ignoring a signal runs no handler.
    if let Err(errno) = unsafe { sigaction(signal, &action) } {
        log::debug!("cannot ignore {signal}: {errno}");
    }
}

/// Lets a signal do again what it does by default.
pub(crate) fn default(signal: Signal) {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no handler.
    if let Err(errno) = unsafe { sigaction(signal, &action) } {
        log::debug!("cannot reset {signal}: {errno}");
    }
}

/// Makes the kernel end this process when its parent dies, even if a plugin hangs: at the parent's
/// death a signal sets an alarm, which kills the process if it has not ended by then.
///
/// # Errors
/// The parent has exited already.
pub(crate) fn follow_parent(parent: Pid) -> Result<()> {
    extern "C" fn set_alarm(_: libc::c_int) {
        // SAFETY: alarm is async-signal-safe and touches no memory.
        unsafe { libc::alarm(CLEANUP_LIMIT.as_secs() as u32) };
    }
    let handler = SigHandler::Handler(set_alarm);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler only makes an async-signal-safe call.
    unsafe { sigaction(Signal::SIGUSR2, &action) }.map_err(system("handle a signal"))?;
    set_pdeathsig(Signal::SIGUSR2).map_err(system("ask for a signal at the parent's death"))?;
    match getppid() == parent {
        true => Ok(()),
        false => Err(Error::closed("the parent process is gone")),
    }
}
