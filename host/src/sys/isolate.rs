//! Runs code that may crash, hang or leave processes behind, in a child whose output comes back
//! through a pipe.
//!
//! The child leads a process group of its own. Its parent reads the output until it ends or a
//! deadline comes; then it kills the whole group, so that no process of it is left. The child dies
//! with its parent, too.
//!
//! A process that left the group (`setsid`) is killed, too. For that, this process adopts the
//! orphans among its descendants (PR_SET_CHILD_SUBREAPER, prctl(2)). All this guards against
//! mistakes, not against malice: the code in the child has the user's rights and can kill this
//! process.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl::{set_child_subreaper, set_pdeathsig};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::sys::wait::waitpid;
use nix::unistd::{
    Pid, dup2_stdin, dup2_stdout, getpgid, getpgrp, getpid, getppid, pipe2, setpgid,
};

use crate::error::{EXIT_FAILURE, Result, system};
use crate::sys::child::{Child, Exit, exit_child};
use crate::sys::process::wait;

/// The most output of a child, in bytes. Reports have a few kilobytes.
const MAX_OUTPUT: usize = 1 << 20;
/// How long the processes that a child started may take to end after it.
const LINGERING: Duration = Duration::from_millis(500);
/// The most rounds of killing orphans. Each round finds the children of those that the last one
/// killed.
const MAX_ROUNDS: u32 = 100;

/// The children that are not finished yet.
static LIVE: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself, with this status.
    Exited(i32),
    /// By a signal.
    Killed(Signal),
    /// It did not end before the deadline.
    Hung,
    /// It was killed because it wrote more than `MAX_OUTPUT`.
    Flooded,
}

/// What is known of a child that has ended.
#[derive(Debug)]
pub(crate) struct Fate {
    /// Its output.
    pub said: Vec<u8>,
    /// How it ended.
    pub end: Ending,
    /// The name of a process that it started and left running. `None` if there is none, or if it
    /// was killed.
    pub left: Option<String>,
}

/// A running child.
#[derive(Debug)]
pub(crate) struct Isolated {
    child: Child,
    pipe: File,
}

impl Isolated {
    /// Runs `life` in a child, which writes its output to the file it is given; its standard input
    /// and output are /dev/null. For processes with one thread, which no plugin has entered.
    ///
    /// # Errors
    /// There are too many processes or descriptors.
    pub(crate) fn start(life: impl FnOnce(File)) -> Result<Self> {
        let (from, to) = pipe2(OFlag::O_CLOEXEC).map_err(system("make a pipe"))?;
        let parent = getpid();
        set_child_subreaper(true).map_err(system("become the reaper of orphans"))?;
        let mut live = live();
        let Some(child) = Child::fork()? else {
            drop((live, from));
            exit_child(|| {
                let alone = set_pdeathsig(Signal::SIGKILL)
                    .and_then(|()| setpgid(Pid::from_raw(0), Pid::from_raw(0)))
                    .and_then(|()| {
                        open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
                    })
                    .and_then(|null| dup2_stdin(&null).and_then(|()| dup2_stdout(&null)));
                if alone.is_err() || getppid() != parent {
                    return EXIT_FAILURE;
                }
                life(File::from(to));
                0
            })
        };
        // Both do it, so that it is done whichever comes first.
        let _ = setpgid(child.pid(), child.pid());
        live.push(child.pid());
        drop(live);
        let pipe = File::from(from);
        Ok(Self { child, pipe })
    }

    /// Waits for its end, until `deadline` at the latest.
    pub(crate) fn finish(mut self, deadline: Instant) -> Fate {
        let mut said = Vec::new();
        let mut bytes = [0; 4096];
        while said.len() <= MAX_OUTPUT && self.has_output_by(deadline) {
            match self.pipe.read(&mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(read) => said.extend_from_slice(&bytes[..read]),
            }
        }
        let is_flood = said.len() > MAX_OUTPUT;
        let has_ended = !is_flood && self.child.has_ended_by(Some(deadline));
        let left = if has_ended { lingering() } else { None };
        // Not reaped yet, the child keeps the group's number from being given to another.
        let _ = killpg(self.child.pid(), Signal::SIGKILL);
        let end = match self.child.wait(None) {
            _ if is_flood => Ending::Flooded,
            _ if !has_ended => Ending::Hung,
            Some(Exit::Status(status)) => Ending::Exited(status),
            Some(Exit::Signal(signal)) => Ending::Killed(signal),
            None => Ending::Hung,
        };
        live().retain(|pid| *pid != self.child.pid());
        end_orphans();
        Fate { said, end, left }
    }

    /// Whether there is output, or the end of it, before the deadline and the child's end. A
    /// process that the child started may hold the pipe open after that.
    fn has_output_by(&self, deadline: Instant) -> bool {
        loop {
            // Checked before the pipe, so that all output from before the end is read.
            let has_ended = self.child.has_ended_by(Some(Instant::now()));
            let fds = [self.pipe.as_fd(), self.child.as_fd()];
            let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            if wait(&mut fds, Some(deadline)).is_err() {
                return false;
            }
            if fds[0].any() == Some(true) {
                return true;
            }
            if has_ended || Instant::now() >= deadline {
                return false;
            }
        }
    }
}

fn live() -> MutexGuard<'static, Vec<Pid>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The children of this process that it adopted: those that are neither in `LIVE` nor in this
/// process's group, which all other processes that it starts are in. None if the kernel does not
/// list children (CONFIG_PROC_CHILDREN).
fn orphans() -> Vec<Pid> {
    let pid = getpid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let pids = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    let pids = pids.map(Pid::from_raw);
    let (live, own) = (live(), getpgrp());
    let is_ours = |pid: &Pid| live.contains(pid) || getpgid(Some(*pid)) == Ok(own);
    pids.filter(|pid| !is_ours(pid)).collect()
}

/// Waits for the orphans to end by themselves. Returns the name of one that goes on.
fn lingering() -> Option<String> {
    let deadline = Instant::now() + LINGERING;
    loop {
        let name = orphans().into_iter().find_map(running_name)?;
        if Instant::now() >= deadline {
            return Some(name);
        }
        sleep(Duration::from_millis(5));
    }
}

/// The name of a process that has not ended. In proc_pid_stat(5) the name may have any character.
fn running_name(pid: Pid) -> Option<String> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let (start, rest) = stat.rsplit_once(") ")?;
    let (_, name) = start.split_once('(')?;
    let has_ended = rest.starts_with(['Z', 'X']);
    (!has_ended).then(|| name.escape_debug().to_string())
}

/// Kills and reaps the orphans, and theirs.
fn end_orphans() {
    for _ in 0..MAX_ROUNDS {
        let orphans = orphans();
        if orphans.is_empty() {
            return;
        }
        for pid in orphans {
            // A program with another user's rights (sudo) cannot be killed, and is not waited for.
            if kill(pid, Signal::SIGKILL).is_ok() {
                let _ = waitpid(pid, None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// One at a time: the orphans of one would be found by another.
    fn fate(limit: Duration, life: impl FnOnce(File)) -> Fate {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Isolated::start(life)
            .unwrap()
            .finish(Instant::now() + limit)
    }

    #[test]
    fn what_a_child_does_is_known() {
        let long = Duration::from_secs(10);
        let hello = fate(long, |mut to| {
            let _ = to.write_all(b"hello");
        });
        assert_eq!(
            (&hello.said[..], hello.end),
            (&b"hello"[..], Ending::Exited(0))
        );
        let crash = fate(long, |_| std::process::abort());
        assert_eq!(crash.end, Ending::Killed(Signal::SIGABRT));
        let hang = fate(Duration::from_millis(100), |mut to| {
            let _ = to.write_all(b"well");
            sleep(Duration::from_secs(60));
        });
        assert_eq!((&hang.said[..], hang.end), (&b"well"[..], Ending::Hung));
    }

    #[test]
    fn what_a_child_leaves_behind_is_ended() {
        let said = fate(Duration::from_secs(10), |mut to| {
            if let Ok(Some(child)) = Child::fork() {
                let _ = write!(to, "{}", child.pid());
            } else {
                drop(to);
                sleep(Duration::from_secs(60));
            }
        });
        let left = String::from_utf8(said.said).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let state = || std::fs::read_to_string(format!("/proc/{left}/stat"));
        // The process that adopts it may not have reaped it yet.
        while state().is_ok_and(|state| !state.contains(" Z ")) {
            assert!(Instant::now() < deadline, "process {left} is still there");
            sleep(Duration::from_millis(10));
        }
        assert!(left.parse::<u32>().is_ok(), "{left}");
    }

    /// Starts a process that leaves the group and holds the pipe open; the process itself ends.
    fn escape(mut to: File) {
        if let Ok(None) = Child::fork() {
            let _ = nix::unistd::setsid();
            match Child::fork() {
                Ok(None) => {
                    let _ = write!(to, "{}", std::process::id());
                    sleep(Duration::from_secs(600));
                }
                _ => exit_child(|| 0),
            }
        }
        // The number is written before the group goes.
        sleep(Duration::from_millis(300));
    }

    #[test]
    fn what_has_left_the_group_is_ended_too() {
        let start = Instant::now();
        let fate = fate(Duration::from_secs(600), escape);
        assert!(start.elapsed() < Duration::from_secs(300));
        assert_eq!(fate.end, Ending::Exited(0));
        assert!(fate.left.is_some());
        let left = String::from_utf8(fate.said).unwrap();
        assert!(left.parse::<u32>().is_ok(), "{left}");
        assert!(!std::path::Path::new(&format!("/proc/{left}")).exists());
    }

    #[test]
    fn a_flood_is_no_report() {
        let start = Instant::now();
        let fate = fate(Duration::from_secs(600), |mut to| {
            while to.write_all(&[b'x'; 4096]).is_ok() {}
        });
        assert_eq!(fate.end, Ending::Flooded);
        assert!(fate.said.len() <= MAX_OUTPUT + 4096);
        assert!(start.elapsed() < Duration::from_secs(300));
    }
}
