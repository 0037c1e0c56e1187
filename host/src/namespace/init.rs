//! Process 1 of a PID namespace: it reaps, and ends everything in the namespace when its work is
//! done.
//!
//! The process that makes the namespace cannot be in it; its children are. [`fork_first`] forks
//! the first one with `CLONE_PARENT`, so that it is a child of the supervisor and the process in
//! between can end. The kernel kills it when the supervisor dies, and everything in the namespace
//! with it.
//!
//! | Signal | Effect |
//! |---|---|
//! | TERM, HUP | passed on to the command; without one, as PWR |
//! | PWR | everything in the namespace is ended: TERM, then KILL after [`GRACE`] |
//! | INT, QUIT | none: the terminal sends them to the command, too |
//!
//! The end of the command has the effect of PWR, and its exit status is the namespace's. A process
//! that has joined the namespace is nobody's child here, so its end is not reported but looked for.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::error::{Result, system};
use crate::sys::child::Exit;
use crate::sys::process::wait;
use crate::sys::signals::Signals;

/// How long processes may take to end after SIGTERM, before they are killed.
pub(crate) const GRACE: Duration = Duration::from_secs(3);

/// How often it is looked whether the last process has ended.
const LOOK: Duration = Duration::from_millis(10);

/// All processes of the namespace but the caller, for kill(2).
const ALL: Pid = Pid::from_raw(-1);

/// Who returns from [`fork_first`].
#[derive(Debug)]
pub(crate) enum Forked {
    /// The process that has forked. The first process has this id here, and this pidfd.
    Parent { pid: u32, pidfd: OwnedFd },
    /// The first process of the namespace, whose parent is the caller's.
    First,
}

/// Forks the first process of the PID namespace that the caller has made. For processes with one
/// thread that have loaded no plugin.
///
/// # Errors
/// There are too many processes or descriptors.
pub(crate) fn fork_first() -> Result<Forked> {
    let mut pidfd: libc::c_int = -1;
    let flags = libc::CLONE_PARENT | libc::CLONE_PIDFD;
    // SAFETY: without CLONE_VM the child has a copy of the memory, as after fork(2): a stack of 0
    // leaves it the caller's. The kernel writes the pidfd to `pidfd`, which outlives the call. The
    // caller has one thread, so no lock is held in the copy.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    match Errno::result(pid).map_err(system("start a process in the PID namespace"))? {
        0 => Ok(Forked::First),
        pid => Ok(Forked::Parent {
            pid: u32::try_from(pid).unwrap_or_default(),
            // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// What the first process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It waits for the command to end, or for a signal.
    Serving,
    /// It has asked all to end, and kills those that are left at the time.
    Ending { status: i32, at: Instant },
}

/// The life of the first process, from when `command` runs, if there is one. Returns the exit
/// status when nothing else is left in the namespace, or when the rest is to be killed, which the
/// kernel does when this process ends.
pub(crate) fn serve(command: Option<Pid>, signals: &Signals) -> i32 {
    let mut state = State::Serving;
    loop {
        let deadline = match state {
            State::Serving => None,
            State::Ending { .. } => Some(Instant::now() + LOOK),
        };
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Err(error) = wait(&mut fds, deadline) {
            log::error!("{error}");
            return crate::error::EXIT_FAILURE;
        }
        while let Some(signal) = signals.next() {
            match (signal, command) {
                (Signal::SIGTERM | Signal::SIGHUP, Some(command)) => {
                    // A command that is stopped takes the signal only when it goes on.
                    for signal in [signal, Signal::SIGCONT] {
                        let _ = kill(command, signal);
                    }
                }
                (Signal::SIGTERM | Signal::SIGHUP | Signal::SIGPWR, _) => end(&mut state, 0),
                _ => {}
            }
        }
        if let Some(exit) = reap(command) {
            end(&mut state, exit.code());
        }
        if let State::Ending { status, at } = state
            && (kill(ALL, None) == Err(Errno::ESRCH) || Instant::now() >= at)
        {
            return status;
        }
    }
}

/// Asks everything in the namespace to end, once.
fn end(state: &mut State, status: i32) {
    match state {
        State::Serving => {
            for signal in [Signal::SIGTERM, Signal::SIGCONT] {
                let _ = kill(ALL, signal);
            }
            *state = State::Ending {
                status,
                at: Instant::now() + GRACE,
            };
        }
        // What asked for the end came first, and the command's status after it.
        State::Ending { status: known, .. } => *known = status,
    }
}

/// Reaps the processes that have ended; how the command ended if it is one of them.
fn reap(command: Option<Pid>) -> Option<Exit> {
    let mut ended = None;
    loop {
        let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, Exit::Status(status)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal)),
            Err(Errno::EINTR) => continue,
            _ => return ended,
        };
        if Some(pid) == command {
            ended = Some(exit);
        }
    }
}
