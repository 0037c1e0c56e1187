//! Leases of DHCP are renewed while the session runs (RFC 2131, section 4.4.5).
//!
//! # Theory of operation
//!
//! The process that got the leases becomes the command, so a process of its own keeps them: an
//! orphan, so that the command has no child that it does not know. It ends when the command does.
//!
//! At the time T1 the server that gave a lease is asked to extend it, at T2 all servers are. When
//! the lease ends without an answer, or a server refuses, the address is removed, and the search
//! for a server begins anew. What the servers say of names is not read again: the command may have
//! read /etc/resolv.conf already.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::setsid;
use vdens_plugin_kit::process::open_pidfd;

use super::dhcp4::{Dhcp4, Lease};
use crate::error::{EXIT_FAILURE, Error, Result, system};
use crate::sys::child::{Child, exit_child};
use crate::sys::netlink::Netlink;
use crate::sys::signals::Signals;

/// How far a lease is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Bound,
    /// The server that gave the lease is asked.
    Renewing,
    /// All servers are asked.
    Rebinding,
    /// The lease has ended.
    Lost,
}

/// An interface's lease.
pub(crate) struct Held {
    interface: String,
    dhcp4: Dhcp4,
    lease: Lease,
    since: Instant,
    stage: Stage,
}

impl Held {
    /// A lease that was just given; `None` if it never ends.
    pub(super) fn new(interface: String, dhcp4: Dhcp4, lease: Lease, now: Instant) -> Option<Self> {
        lease.times.map(|_| Self {
            interface,
            dhcp4,
            lease,
            since: now,
            stage: Stage::Bound,
        })
    }

    /// When the next stage begins.
    fn end_of_stage(&self) -> Option<Instant> {
        let times = self.lease.times?;
        let after = match self.stage {
            Stage::Bound => times.renew,
            Stage::Renewing => times.rebind,
            Stage::Rebinding => times.end,
            Stage::Lost => return None,
        };
        Some(self.since + after)
    }

    /// When [`Held::advance`] has something to do.
    fn due(&self) -> Option<Instant> {
        let due = [self.end_of_stage(), self.dhcp4.due()];
        due.into_iter().flatten().min()
    }

    /// Begins the next stage if it is time.
    fn progress(&mut self, netlink: &Netlink, now: Instant) {
        if self.end_of_stage().is_none_or(|end| now < end) {
            return;
        }
        let Some(times) = self.lease.times else {
            return;
        };
        match self.stage {
            Stage::Bound => {
                self.stage = Stage::Renewing;
                let pause = (times.rebind - times.renew) / 2;
                self.dhcp4.extend(&self.lease, false, pause, now);
            }
            Stage::Renewing => {
                self.stage = Stage::Rebinding;
                let pause = (times.end - times.rebind) / 2;
                self.dhcp4.extend(&self.lease, true, pause, now);
            }
            Stage::Rebinding => self.lose(netlink, "no DHCP server has extended its lease", now),
            Stage::Lost => {}
        }
    }

    fn lose(&mut self, netlink: &Netlink, why: &str, now: Instant) {
        let address = self.lease.address;
        log::warn!("{}: lost the address {address}: {why}", self.interface);
        let _ = netlink.remove_address(&self.interface, address.into());
        self.stage = Stage::Lost;
        self.dhcp4.start_over(now);
    }

    /// Reads what has come and asks what is to be asked.
    fn advance(&mut self, netlink: &Netlink, now: Instant) -> Result<()> {
        self.progress(netlink, now);
        let answer = self.dhcp4.advance(now)?;
        if self.dhcp4.was_refused() && self.stage != Stage::Lost {
            self.lose(netlink, "the DHCP server refuses to extend its lease", now);
        }
        let Some(lease) = answer else {
            return Ok(());
        };
        if self.stage == Stage::Lost {
            lease.apply(netlink, &self.interface, false)?;
            log::warn!("{}: has the address {} now", self.interface, lease.address);
        } else {
            log::info!(
                "{}: the lease of {} is extended",
                self.interface,
                lease.address
            );
        }
        self.lease = lease;
        self.since = now;
        self.stage = Stage::Bound;
        Ok(())
    }
}

/// Starts the process that renews leases until this one, as the command, ends.
///
/// # Errors
/// There are too many processes or descriptors.
pub(crate) fn start(held: Vec<Held>, signals: &Signals) -> Result<()> {
    if held.is_empty() {
        return Ok(());
    }
    let command = open_pidfd(std::process::id())
        .map_err(|error| Error::io("hold the command's process", &error))?;
    let Some(mut between) = Child::fork()? else {
        exit_child(|| match Child::fork() {
            Ok(None) => run(held, &command, signals),
            Ok(Some(_)) => 0,
            Err(_) => EXIT_FAILURE,
        });
    };
    between.wait(None);
    Ok(())
}

fn run(mut held: Vec<Held>, command: &OwnedFd, signals: &Signals) -> i32 {
    // The terminal's signals are for the command.
    let _ = setsid();
    let kept = held.iter().map(|held| held.dhcp4.fd().as_raw_fd());
    close_all_but(
        kept.chain([command.as_raw_fd(), libc::STDERR_FILENO])
            .collect(),
    );
    match signals.restore().and_then(|()| serve(&mut held, command)) {
        Ok(()) => 0,
        Err(error) => {
            log::warn!("leases are not renewed any more: {error}");
            EXIT_FAILURE
        }
    }
}

fn serve(held: &mut [Held], command: &OwnedFd) -> Result<()> {
    let netlink = Netlink::open()?;
    loop {
        let now = Instant::now();
        for held in &mut *held {
            held.advance(&netlink, now)?;
        }
        let due = held.iter().filter_map(Held::due).min();
        let wait = due.map(|due| due.saturating_duration_since(now) + Duration::from_millis(1));
        let timeout = wait.map_or(PollTimeout::NONE, |wait| {
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        let sockets = held.iter().map(|held| held.dhcp4.fd());
        let mut fds: Vec<_> = [command.as_fd()]
            .into_iter()
            .chain(sockets)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(system("wait for DHCP servers")(errno)),
        }
        if fds[0].any() == Some(true) {
            return Ok(());
        }
    }
}

/// Closes what this process has inherited: with a copy of the channel, say, the supervisor would
/// not see that the command runs.
fn close_all_but(mut kept: Vec<i32>) {
    kept.sort_unstable();
    let mut from = 0;
    for fd in kept.into_iter().chain([i32::MAX]) {
        if from < fd {
            // SAFETY: this process uses no descriptor but those that are kept, and its end runs no
            // destructor, so nobody refers to what is closed.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
        }
        from = fd.saturating_add(1);
    }
}
