//! `vdectl stop`: ends sessions, with everything that runs in them.
//!
//! The first process of a session's PID namespace does that by itself, when its supervisor passes
//! SIGPWR on ([`init`](crate::namespace::init)). A session without one has no such process, so
//! this one looks for the processes in its network namespace: it sends them SIGTERM, and SIGKILL
//! to those that are left after a while. The supervisor ends with the command.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread::sleep;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use vdens_plugin_kit::process::open_pidfd;

use super::list::sessions;
use crate::cli::vdectl::sessions::Stop;
use crate::error::{Error, ErrorKind, Result};
use crate::namespace::init::GRACE;
use crate::output::report;
use crate::sys::process::wait;
use crate::sys::runtime;
use crate::tools::status::client::ask_all;
use crate::tools::targets::{Target, resolve_whole};

/// Ends the sessions that the command line names. Those that can be ended are, whatever comes of
/// the others.
///
/// # Errors
/// A session does not exist, or cannot be ended.
pub(super) fn run(arguments: &Stop, quiet: bool) -> Result<()> {
    let mut words = arguments.names.clone();
    if arguments.all {
        let answers = ask_all()?;
        words.extend(sessions(&answers).map(|process| process.pid.to_string()));
        if words.is_empty() && !quiet {
            report("vdectl", "no session of yours is running");
        }
    }
    let mut failure = None;
    let ending: Vec<Ending> = words
        .iter()
        .filter_map(|word| match Ending::begin(word) {
            Ok(ending) => Some(ending),
            // With --all, one that ended meanwhile is what was asked for.
            Err(error) if arguments.all && error.kind == ErrorKind::NotFound => None,
            Err(error) => {
                failure.get_or_insert(error);
                None
            }
        })
        .collect();
    for session in ending {
        if let Err(error) = session.finish() {
            failure.get_or_insert(error);
        }
    }
    failure.map_or(Ok(()), Err)
}

/// A session that was asked to end.
struct Ending {
    name: String,
    supervisor: OwnedFd,
    target: Target,
    has_own_pids: bool,
    network: u64,
    asked: Instant,
}

impl Ending {
    fn begin(word: &str) -> Result<Self> {
        let target = resolve_whole(word)?;
        if let Some(lab) = &target.lab {
            let message = format!("{word} is a node of the lab {lab}, and no session");
            return Err(Error::usage(message).hint(format!("vdectl lab down {lab}")));
        }
        let gone = |_| Error::closed(format!("{} has ended", target.name));
        let supervisor = open_pidfd(target.process).map_err(gone)?;
        let of = |kind: &str| {
            let path = format!("/proc/{}/ns/{kind}", target.namespace);
            fs::metadata(&path)
                .map(|meta| meta.ino())
                .map_err(|error| Error::path("look at", path.as_ref(), &error))
        };
        let has_own_pids = of("pid")? != runtime::namespace("pid")?;
        let network = of("net")?;
        if network == runtime::namespace("net")? {
            let message = format!("this process runs in {} itself", target.name);
            return Err(Error::usage(message).hint("end it from outside, or with exit"));
        }
        let ending = Self {
            name: target.name.clone(),
            supervisor,
            target,
            has_own_pids,
            network,
            asked: Instant::now(),
        };
        match has_own_pids {
            true => signal(&ending.supervisor, Signal::SIGPWR),
            false => ending.signal_members(Signal::SIGTERM),
        }
        Ok(ending)
    }

    /// Waits for its end, and enforces it.
    fn finish(self) -> Result<()> {
        let limit = self.asked + GRACE;
        if !self.has_own_pids {
            // What is no child of the supervisor is not waited for by it.
            while Instant::now() < limit && !self.members().is_empty() {
                sleep(GRACE / 1000);
            }
            // One that starts others may have started one just now.
            while !self.members().is_empty() && Instant::now() < limit + GRACE {
                self.signal_members(Signal::SIGKILL);
                sleep(GRACE / 1000);
            }
        }
        if self.is_over_by(limit + GRACE) {
            return Ok(());
        }
        // The supervisor, or the first process of the PID namespace, hangs or is stopped.
        if let Ok(first) = open_pidfd(self.target.namespace)
            && runtime::start_time(self.target.namespace) == Some(self.target.started)
        {
            signal(&first, Signal::SIGKILL);
        }
        signal(&self.supervisor, Signal::SIGKILL);
        match self.is_over_by(Instant::now() + GRACE) {
            true => Ok(()),
            false => {
                let message = format!("{} does not end, even when it is killed", self.name);
                Err(Error::new(ErrorKind::Busy, message).hint(
                    "a process in it waits for a device or file system: see ps -eo pid,stat,wchan",
                ))
            }
        }
    }

    fn is_over_by(&self, deadline: Instant) -> bool {
        loop {
            let mut fds = [PollFd::new(self.supervisor.as_fd(), PollFlags::POLLIN)];
            match wait(&mut fds, Some(deadline)) {
                Ok(()) if fds[0].any() == Some(true) => return true,
                Ok(()) if Instant::now() < deadline => {}
                _ => return false,
            }
        }
    }

    /// The processes in the session's network namespace.
    fn members(&self) -> Vec<OwnedFd> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(|pid: u32| {
            // Held first, so that the process which is looked at is the one that gets the signal.
            let pidfd = open_pidfd(pid).ok()?;
            let network = fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
            // One that has ended and is not reaped has no namespaces.
            (network.ino() == self.network).then_some(pidfd)
        })
        .collect()
    }

    fn signal_members(&self, kind: Signal) {
        for member in self.members() {
            signal(&member, kind);
            // One that is stopped takes the signal only when it goes on.
            signal(&member, Signal::SIGCONT);
        }
    }
}

fn signal(pidfd: &OwnedFd, signal: Signal) {
    let (fd, info) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: the call reads no memory: without information about the sender the kernel fills
    // that in (pidfd_send_signal(2)).
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal as i32, info, 0) };
    if let Err(errno) = Errno::result(sent) {
        log::debug!("cannot send {signal}: {errno}");
    }
}
