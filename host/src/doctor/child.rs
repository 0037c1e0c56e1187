//! A child in which something is tried that may crash, hang or leave something behind.
//!
//! It leads a process group of its own, without a terminal, and writes its findings to a pipe, a line of JSON each. The end
//! of the pipe is waited for until a deadline; then the whole group is killed, so that nothing is left of it either way.
//! A kernel's timer ends the child if its parent cannot.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, alarm, setpgid};

use super::{Finding, KERNEL_PATIENCE};
use crate::error::{Error, Result};
use crate::process::{detach, exit_child, fork_child};

/// Where a child's findings go.
pub(super) struct Reporter(PipeWriter);

impl Reporter {
    /// Tells the parent.
    pub(super) fn add(&self, finding: &Finding) {
        let Ok(mut line) = serde_json::to_vec(finding) else {
            return;
        };
        line.push(b'\n');
        // A parent that is gone needs to know nothing.
        let _ = (&self.0).write_all(&line);
    }
}

/// How a child ended.
pub(super) enum Ending {
    /// By itself.
    Done,
    /// By this signal, or with this exit status: words for a person.
    Died(String),
    /// It had not at the deadline.
    Late,
}

/// A running child.
pub(super) struct Child {
    pid: Pid,
    pipe: PipeReader,
}

impl Child {
    /// Starts a child that does `work`. For processes with one thread, which no plugin has entered.
    pub(super) fn start(work: impl FnOnce(&Reporter)) -> Result<Self> {
        let (pipe, writer) = pipe().map_err(|error| Error::io("make a pipe", &error))?;
        let Some(pid) = fork_child()? else {
            drop(pipe);
            exit_child(|| {
                // What fails here is not what is to be found out.
                let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
                let _ = detach();
                alarm::set(KERNEL_PATIENCE.as_secs() as u32 + 1);
                work(&Reporter(writer));
                0
            });
        };
        // Whoever is first; the other fails.
        let _ = setpgid(pid, pid);
        Ok(Self { pid, pipe })
    }

    /// Waits for its end, which comes at `deadline` at the latest, and returns its findings.
    pub(super) fn finish(mut self, deadline: Instant) -> (Vec<Finding>, Ending) {
        let mut text = Vec::new();
        let mut chunk = [0; 4096];
        while self.is_readable(deadline) {
            match self.pipe.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(len) => text.extend(&chunk[..len]),
            }
        }
        let has_ended = self.ends_before(deadline);
        // Not collected yet, it keeps the group's number from being given to another.
        let _ = killpg(self.pid, Signal::SIGKILL);
        let ending = match waitpid(self.pid, None) {
            _ if !has_ended => Ending::Late,
            Ok(WaitStatus::Signaled(_, signal, _)) => Ending::Died(signal.to_string()),
            Ok(WaitStatus::Exited(_, status)) if status != 0 => {
                Ending::Died(format!("exit status {status}"))
            }
            _ => Ending::Done,
        };
        let lines = text.split(|byte| *byte == b'\n');
        let findings = lines.filter_map(|line| serde_json::from_slice(line).ok());
        (findings.collect(), ending)
    }

    fn is_readable(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
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
