//! Child processes: forking, waiting, signalling, killing. This program forks nowhere else.
//!
//! A [`Child`] is held by a pidfd (pidfd_open(2), Linux 5.3). The pidfd becomes readable when the
//! process ends, so waiting is one poll(2) with a deadline. A signal sent through it reaches this
//! child or nobody, because a pidfd, unlike a process id, is never given to another process.
//!
//! A child is asked to end by closing its channel. [`end_all`] gives it time to clean up, and then
//! kills it. SIGTERM would not do: the processes of this program leave it at its default, which
//! ends them without cleanup.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use vdens_plugin_kit::process::open_pidfd;

use crate::error::{EXIT_FAILURE, Error, Result, system};
use crate::sys::process::wait;

/// How long a process that has loaded plugins may take to clean up at its end, before it is killed.
/// Plugins remove their sockets and end their helpers, which takes milliseconds unless the machine
/// is busy.
pub(crate) const CLEANUP_LIMIT: Duration = Duration::from_secs(5);

/// How long a killed process may take to end: on a busy machine it waits for a processor first. One
/// that waits for a device or a file system that does not answer cannot be ended.
const KILLED: Duration = Duration::from_secs(5);

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// By itself, with this status.
    Status(i32),
    /// By a signal.
    Signal(Signal),
}

impl Exit {
    /// The exit status that a shell reports: 128 + n for signal n.
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Status(status) => status,
            Self::Signal(signal) => 128 + signal as i32,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A child process. Dropping it neither ends nor reaps the process.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    /// How it ended, once it is reaped.
    exit: Option<Exit>,
}

impl Child {
    /// Forks; `None` in the child. For processes that have one thread and have loaded no plugin:
    /// the child inherits no lock that another thread holds.
    ///
    /// # Errors
    /// There are too many processes or descriptors.
    pub(crate) fn fork() -> Result<Option<Self>> {
        // SAFETY: callers have one thread, so the child may do anything.
        let ForkResult::Parent { child: pid } =
            unsafe { fork() }.map_err(system("start a process"))?
        else {
            return Ok(None);
        };
        // The number is still the child's, because only this process can reap it.
        match open_pidfd(pid.as_raw() as u32) {
            Ok(pidfd) => Ok(Some(Self {
                pid,
                pidfd,
                exit: None,
            })),
            Err(error) => {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
                Err(Error::io("hold a child process", &error))
            }
        }
    }

    /// A child that another process has forked for this one (CLONE_PARENT, clone(2)).
    pub(crate) fn adopt(pid: u32, pidfd: OwnedFd) -> Self {
        let pid = Pid::from_raw(pid.cast_signed());
        Self {
            pid,
            pidfd,
            exit: None,
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// How it ended, if it has been reaped.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.exit
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// ESRCH: it has ended and is reaped.
    pub(crate) fn signal(&self, signal: Signal) -> nix::Result<()> {
        let (fd, signal) = (self.pidfd.as_raw_fd(), signal as i32);
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the call reads no memory: without information about the sender the kernel fills
        // that in (pidfd_send_signal(2)).
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, 0) };
        Errno::result(sent).map(drop)
    }

    /// Kills it.
    pub(crate) fn kill(&self) {
        // It may have ended by itself.
        let _ = self.signal(Signal::SIGKILL);
    }

    /// Waits for its end, until `deadline` if there is one. Does not reap it, so its process group
    /// keeps its number.
    pub(crate) fn has_ended_by(&self, deadline: Option<Instant>) -> bool {
        loop {
            let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            match wait(&mut fds, deadline) {
                Ok(()) if fds[0].any() == Some(true) => return true,
                Ok(()) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
                _ => return false,
            }
        }
    }

    /// Waits for its end, until `deadline` if there is one, and reaps it. `None` if it goes on.
    pub(crate) fn wait(&mut self, deadline: Option<Instant>) -> Option<Exit> {
        if self.exit.is_none() && self.has_ended_by(deadline) {
            let id = Id::PIDFd(self.pidfd.as_fd());
            self.exit = Some(match waitid(id, WaitPidFlag::WEXITED) {
                Ok(WaitStatus::Exited(_, status)) => Exit::Status(status),
                Ok(WaitStatus::Signaled(_, signal, _)) => Exit::Signal(signal),
                // A parent that ignored SIGCHLD has handed that down, so the kernel reaps.
                _ => Exit::Status(EXIT_FAILURE),
            });
        }
        self.exit
    }

    /// Reaps it if it has ended.
    pub(crate) fn reap(&mut self) -> Option<Exit> {
        self.wait(Some(Instant::now()))
    }
}

impl AsFd for Child {
    /// Readable when the child has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Forks a process that is this process's sibling, in new namespaces; `None` in the new process.
/// This process's parent is its parent, which reaps it and at whose death it can get a signal. For
/// processes as [`Child::fork`] is for.
///
/// # Errors
/// A limit does not allow it.
pub(crate) fn fork_sibling(namespaces: CloneFlags) -> Result<Option<Pid>> {
    let flags = namespaces | CloneFlags::CLONE_PARENT;
    let flags = flags.bits() | libc::SIGCHLD;
    // SAFETY: without a stack and other addresses, clone(2) does what fork(2) does. Callers have
    // one thread, so the new process may do anything.
    let outcome = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0, 0, 0, 0) };
    match Errno::result(outcome).map_err(system("start a process in new namespaces"))? {
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(pid as libc::pid_t))),
    }
}

/// Waits for children that were asked to end, for `limit` at most, and kills those that are left.
pub(crate) fn end_all(children: impl IntoIterator<Item = Child>, limit: Duration) {
    let mut left: Vec<Child> = children.into_iter().collect();
    let mut wait_for = |limit| {
        let deadline = Instant::now() + limit;
        left.retain_mut(|child| child.wait(Some(deadline)).is_none());
        left.iter().for_each(Child::kill);
        left.iter().map(Child::pid).collect::<Vec<_>>()
    };
    if wait_for(limit).is_empty() {
        return;
    }
    let left = wait_for(KILLED);
    if !left.is_empty() {
        log::error!("the processes {left:?} cannot be ended");
    }
}

/// Reaps the processes that have ended but for those that are `known`, to their holders. A process
/// has children that it has not forked when another program was executed as `vdens`, or when it is
/// process 1 of a container.
pub(crate) fn reap_strangers(is_known: impl Fn(Pid) -> bool) {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    // A known child that has ended since is reaped at the SIGCHLD that is pending for it, and the
    // strangers behind it then.
    while let Ok(status) = waitid(Id::All, flags)
        && let Some(pid) = status.pid().filter(|pid| !is_known(*pid))
    {
        let _ = waitpid(pid, None);
    }
}

/// Runs a child's life and ends the process, without what the parent registered for its own end.
pub(crate) fn exit_child(life: impl FnOnce() -> i32) -> ! {
    let status = catch_unwind(AssertUnwindSafe(life)).unwrap_or(EXIT_FAILURE);
    // SAFETY: _exit ends the process and touches no memory.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    fn child(life: impl FnOnce() -> i32) -> Child {
        match Child::fork().unwrap() {
            Some(child) => child,
            None => exit_child(life),
        }
    }

    fn endless() -> i32 {
        loop {
            sleep(Duration::from_secs(60));
        }
    }

    #[test]
    fn how_a_child_ended_is_known() {
        let mut child = self::child(|| 7);
        assert_eq!(child.wait(None), Some(Exit::Status(7)));
        assert_eq!(child.exit().map(Exit::code), Some(7));
        assert_eq!(child.signal(Signal::SIGTERM), Err(Errno::ESRCH));
    }

    #[test]
    fn a_wait_ends_at_its_deadline() {
        let mut child = child(endless);
        let start = Instant::now();
        assert_eq!(child.reap(), None);
        let deadline = start + Duration::from_millis(50);
        assert_eq!(child.wait(Some(deadline)), None);
        assert!(Instant::now() >= deadline);
        child.kill();
        assert_eq!(child.wait(None), Some(Exit::Signal(Signal::SIGKILL)));
        assert_eq!(child.exit().map(Exit::code), Some(128 + 9));
    }

    #[test]
    fn what_does_not_end_is_killed() {
        let children = [child(endless), child(|| 0), child(endless)];
        let pids = children.each_ref().map(Child::pid);
        end_all(children, Duration::from_millis(50));
        for pid in pids {
            assert_eq!(waitpid(pid, None), Err(Errno::ECHILD));
        }
    }
}
