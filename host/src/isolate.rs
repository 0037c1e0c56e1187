//! Code that may crash, hang or leave something behind, run in a child: what it says comes back through a pipe.
//!
//! The child leads a process group of its own. The end of what it says is waited for until a deadline; then the whole
//! group is killed, so that nothing it started outlives it. It dies with its parent, too.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, getpid, getppid, pipe2, setpgid};

use crate::error::{EXIT_FAILURE, Result, system};
use crate::process::{exit_child, fork_child, wait};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By a signal.
    Killed(Signal),
    /// Not before its time was over.
    Hung,
}

/// What became of a child.
#[derive(Debug)]
pub struct Fate {
    /// What it said.
    pub said: Vec<u8>,
    /// How it ended.
    pub end: End,
}

/// A running child.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pipe: File,
}

impl Child {
    /// Runs `life` in a child. It says what it has to say into the file it is given; its standard input and output
    /// are /dev/null. For processes with one thread, which no plugin has entered.
    ///
    /// # Errors
    /// There are too many processes or descriptors.
    pub fn start(life: impl FnOnce(File)) -> Result<Self> {
        let (from, to) = pipe2(OFlag::O_CLOEXEC).map_err(system("make a pipe"))?;
        let parent = getpid();
        let Some(pid) = fork_child()? else {
            drop(from);
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
        // Both do it, so that it is done whoever comes first.
        let _ = setpgid(pid, pid);
        let pipe = File::from(from);
        Ok(Self { pid, pipe })
    }

    /// Waits for its end, which comes at `deadline` at the latest.
    pub fn finish(mut self, deadline: Instant) -> Fate {
        let mut said = Vec::new();
        let mut bytes = [0; 4096];
        while self.speaks_before(deadline) {
            match self.pipe.read(&mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(read) => said.extend_from_slice(&bytes[..read]),
            }
        }
        let has_ended = self.ends_before(deadline);
        // Not collected yet, it keeps the group's number from being given to another.
        let _ = killpg(self.pid, Signal::SIGKILL);
        let end = match waitpid(self.pid, None) {
            _ if !has_ended => End::Hung,
            Ok(WaitStatus::Signaled(_, signal, _)) => End::Killed(signal),
            Ok(WaitStatus::Exited(_, status)) => End::Exited(status),
            _ => End::Exited(EXIT_FAILURE),
        };
        Fate { said, end }
    }

    /// Whether there is something to read, or the end of it.
    fn speaks_before(&self, deadline: Instant) -> bool {
        loop {
            let mut fds = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
            if wait(&mut fds, Some(deadline)).is_err() {
                return false;
            }
            if fds[0].any() == Some(true) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
        }
    }

    fn ends_before(&self, deadline: Instant) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(self.pid), flags) == Ok(WaitStatus::StillAlive) {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(Duration::from_millis(1));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn fate(limit: Duration, life: impl FnOnce(File)) -> Fate {
        Child::start(life).unwrap().finish(Instant::now() + limit)
    }

    #[test]
    fn what_a_child_does_is_known() {
        let long = Duration::from_secs(10);
        let hello = fate(long, |mut to| {
            let _ = to.write_all(b"hello");
        });
        assert_eq!(
            (&hello.said[..], hello.end),
            (&b"hello"[..], End::Exited(0))
        );
        let crash = fate(long, |_| std::process::abort());
        assert_eq!(crash.end, End::Killed(Signal::SIGABRT));
        let hang = fate(Duration::from_millis(100), |mut to| {
            let _ = to.write_all(b"well");
            sleep(Duration::from_secs(60));
        });
        assert_eq!((&hang.said[..], hang.end), (&b"well"[..], End::Hung));
    }

    #[test]
    fn what_a_child_leaves_behind_is_ended() {
        let said = fate(Duration::from_secs(10), |mut to| {
            if let Ok(Some(pid)) = fork_child() {
                let _ = write!(to, "{pid}");
            } else {
                drop(to);
                sleep(Duration::from_secs(60));
            }
        });
        let left = String::from_utf8(said.said).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let state = || std::fs::read_to_string(format!("/proc/{left}/stat"));
        // Whoever adopts it may not have collected it yet.
        while state().is_ok_and(|state| !state.contains(" Z ")) {
            assert!(Instant::now() < deadline, "process {left} is still there");
            sleep(Duration::from_millis(10));
        }
        assert!(left.parse::<u32>().is_ok(), "{left}");
    }
}
