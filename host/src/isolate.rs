//! Code that may crash or hang, run in a child: what it says comes back through a pipe.
//!
//! Looking at a plugin means running it. The child leads a process group of its own, and the group is killed when
//! the child has ended or its time is over, so that nothing it started outlives it; it dies with its parent, too.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, pipe2, setpgid};

use crate::error::{Result, system};
use crate::process::{exit_child, fork_child};

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

/// Runs `life` in a child, for at most `limit`. It says what it has to say into the file it is given; its standard
/// input and output are /dev/null. For processes with one thread.
///
/// # Errors
/// There are too many processes or descriptors.
pub fn isolated(limit: Duration, life: impl FnOnce(File)) -> Result<Fate> {
    let (from, to) = pipe2(OFlag::O_CLOEXEC).map_err(system("make a pipe"))?;
    let Some(child) = fork_child()? else {
        drop(from);
        exit_child(|| {
            let alone = setpgid(Pid::from_raw(0), Pid::from_raw(0))
                .and_then(|()| prctl::set_pdeathsig(Signal::SIGKILL))
                .and_then(|()| open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()))
                .and_then(|null| dup2_stdin(&null).and_then(|()| dup2_stdout(&null)));
            if alone.is_err() {
                return 1;
            }
            life(File::from(to));
            0
        })
    };
    drop(to);
    // Both do it, so that it is done whoever comes first.
    let _ = setpgid(child, child);
    let mut said = Vec::new();
    let in_time = hear(File::from(from), Instant::now() + limit, &mut said);
    let status = match in_time {
        true => ended(child, limit),
        false => None,
    };
    // Its group may be empty by now.
    let _ = killpg(child, Signal::SIGKILL);
    let end = match status {
        Some(end) => end,
        None => {
            let _ = waitpid(child, None);
            End::Hung
        }
    };
    Ok(Fate { said, end })
}

/// Reads all that the child says; whether it finished in time.
fn hear(mut pipe: File, deadline: Instant, said: &mut Vec<u8>) -> bool {
    let mut bytes = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(_) => return false,
        }
        match pipe.read(&mut bytes) {
            Ok(0) => return true,
            Ok(read) => said.extend_from_slice(&bytes[..read]),
            Err(_) => return false,
        }
    }
}

/// Waits for the end of a child that has closed its pipe.
fn ended(child: Pid, limit: Duration) -> Option<End> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        match waitpid(child, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, status)) => return Some(End::Exited(status)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Some(End::Killed(signal)),
            Ok(_) => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => return Some(End::Exited(1)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_a_child_does_is_known() {
        let fate = isolated(Duration::from_secs(10), |mut to| {
            let _ = to.write_all(b"hello");
        });
        let fate = fate.unwrap();
        assert_eq!((&fate.said[..], fate.end), (&b"hello"[..], End::Exited(0)));
        let crash = isolated(Duration::from_secs(10), |_| std::process::abort());
        assert_eq!(crash.unwrap().end, End::Killed(Signal::SIGABRT));
        let hang = isolated(Duration::from_millis(100), |_| {
            std::thread::sleep(Duration::from_secs(60));
        });
        assert_eq!(hang.unwrap().end, End::Hung);
    }
}
