//! Joining a session: its namespaces, with what its processes may do there.
//!
//! A process that may do so is any of the user who made them: the kernel gives that user all
//! capabilities over a user namespace of its own and those below (user_namespaces(7)). setns(2)
//! takes a pidfd since Linux 5.8 and joins all namespaces of the process at once. Those that
//! the caller is in already are left out, as the kernel refuses to join a user namespace again.
//!
//! A PID namespace is joined by the children of the process that asks for it. So
//! [`Door::execute`] forks there, and waits. In between it does what a shell does for a job: when
//! the command stops, it stops too, and at its end it takes the terminal back. Without a PID
//! namespace it executes the command in this very process.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir};
use vdens_plugin_kit::process::open_pidfd;

use super::capabilities::Rights;
use super::{arguments, execute};
use crate::error::{EXIT_FAILURE, Error, ErrorKind, Result, system};
use crate::ipc::in_child;
use crate::sys::child::{Child, exit_child};
use crate::sys::runtime;
use crate::sys::signals::{Signals, default};
use crate::sys::terminal::Foreground;

/// The namespaces that a session can have of its own, as /proc names them.
const KINDS: [(&str, CloneFlags); 5] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("net", CloneFlags::CLONE_NEWNET),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("pid", CloneFlags::CLONE_NEWPID),
];

/// The namespaces of a process, which can be joined.
#[derive(Debug)]
pub(crate) struct Door {
    pidfd: OwnedFd,
    /// The namespaces that differ from the caller's.
    kinds: CloneFlags,
    rights: Rights,
}

impl Door {
    /// The namespaces of the process `pid`, which started at that time, in clock ticks since boot.
    ///
    /// # Errors
    /// The process has ended, or it is another user's.
    pub(crate) fn of(pid: u32, started: u64) -> Result<Self> {
        let gone = || Error::closed(format!("process {pid} has ended"));
        let pidfd = open_pidfd(pid).map_err(|_| gone())?;
        // While the pidfd is open, and the process was the right one then, so is what follows.
        if runtime::start_time(pid) != Some(started) {
            return Err(gone());
        }
        let mut kinds = CloneFlags::empty();
        for (kind, flag) in KINDS {
            kinds.set(flag, namespace(pid, kind)? != runtime::namespace(kind)?);
        }
        let rights = Rights::of_process(pid)?;
        Ok(Self {
            pidfd,
            kinds,
            rights,
        })
    }

    /// Runs `work` in a child that has joined the namespaces, with all capabilities over them, but
    /// for the PID namespace. Returns the descriptors that it results in.
    ///
    /// # Errors
    /// The kernel refuses, or `work` fails.
    pub(crate) fn inside(
        &self,
        work: impl FnOnce() -> Result<Vec<OwnedFd>>,
    ) -> Result<Vec<OwnedFd>> {
        in_child(|| {
            self.join(self.kinds - CloneFlags::CLONE_NEWPID)?;
            work()
        })
    }

    /// Executes a command there, or the user's shell if it is empty, and returns its exit status.
    /// Where there is no PID namespace to join, the calling process becomes the command. For
    /// processes with one thread.
    ///
    /// # Errors
    /// The kernel refuses, or the command cannot be executed: the exit status, and why.
    pub(crate) fn execute(&self, command: &[OsString]) -> Result<i32, (i32, Error)> {
        let fail = |error| (EXIT_FAILURE, error);
        let arguments = arguments(command).map_err(fail)?;
        let become_command = || {
            let taken = self.rights.take();
            default(Signal::SIGPIPE);
            taken.map_or_else(|error| (EXIT_FAILURE, error), |()| execute(&arguments))
        };
        let has_pids = self.kinds.contains(CloneFlags::CLONE_NEWPID);
        if !has_pids {
            self.join(self.kinds).map_err(fail)?;
            return Err(become_command());
        }
        let signals = Signals::block().map_err(fail)?;
        let terminal = Foreground::of_this_process();
        self.join(self.kinds).map_err(fail)?;
        let child = Child::fork().map_err(fail)?;
        let Some(child) = child else {
            exit_child(|| {
                // The parent is in another PID namespace, so its end cannot be seen but by this.
                let prepared = set_pdeathsig(Signal::SIGKILL)
                    .map_err(system("ask for a signal at the parent's death"))
                    .and_then(|()| signals.restore());
                let (status, error) = match prepared {
                    Ok(()) => become_command(),
                    Err(error) => fail(error),
                };
                crate::output::report("vdectl", error);
                status
            })
        };
        let status = attend(child.pid(), &signals);
        if let Some(terminal) = terminal {
            terminal.restore();
        }
        Ok(status)
    }

    fn join(&self, kinds: CloneFlags) -> Result<()> {
        if kinds.is_empty() {
            return Ok(());
        }
        let directory = env::current_dir();
        setns(&self.pidfd, kinds).map_err(|errno| {
            let error = system("join the namespaces")(errno);
            match errno {
                Errno::EPERM => error.hint("only the user who started the session may join it"),
                Errno::ESRCH => Error::closed("the process in the namespaces has ended"),
                Errno::EINVAL => error.hint("Linux before 5.8 cannot; nsenter(1) may"),
                _ => error,
            }
        })?;
        // Joining a mount namespace leads to its root directory (setns(2)).
        if kinds.contains(CloneFlags::CLONE_NEWNS)
            && let Ok(directory) = directory
            && let Err(errno) = chdir(&directory)
        {
            log::info!("{} cannot be entered there: {errno}", directory.display());
        }
        Ok(())
    }
}

/// The number of a process's namespace.
fn namespace(pid: u32, kind: &str) -> Result<u64> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
    match fs::metadata(&path) {
        Ok(meta) => Ok(meta.ino()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let message = format!("process {pid} belongs to another user");
            Err(Error::new(ErrorKind::Permission, message)
                .hint("only the user who started a session may join it"))
        }
        Err(_) => Err(Error::closed(format!("process {pid} has ended"))),
    }
}

/// Waits for the end of a child, and stops when it stops. Returns its exit status.
fn attend(child: Pid, signals: &Signals) -> i32 {
    loop {
        // The signals that end this process are for the child. Those of the terminal it has got.
        let passed = signals.wait();
        if let Some(signal @ (Signal::SIGTERM | Signal::SIGHUP)) = passed {
            let _ = kill(child, signal);
        }
        loop {
            let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED;
            match waitpid(child, Some(flags)) {
                Ok(WaitStatus::Exited(_, status)) => return status,
                Ok(WaitStatus::Signaled(_, signal, _)) => return 128 + signal as i32,
                Ok(WaitStatus::Stopped(..)) => {
                    // The shell that started this process sees it stop, and continues it later.
                    let _ = raise(Signal::SIGSTOP);
                    let _ = kill(child, Signal::SIGCONT);
                }
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(_) => return EXIT_FAILURE,
            }
        }
    }
}
