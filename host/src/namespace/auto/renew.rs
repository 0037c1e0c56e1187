//! Leases are renewed while the session runs: of DHCP for IPv4 (RFC 2131, section 4.4.5) and of
//! DHCPv6 (RFC 8415, sections 18.2.4 and 18.2.5).
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

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::setsid;
use vdens_plugin_kit::process::open_pidfd;

use super::dhcp4::{self, Dhcp4, Times};
use super::dhcp6::{self, Dhcp6};
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

/// A lease, and the client that got it.
pub(super) enum Leased {
    V4(Dhcp4, dhcp4::Lease),
    V6(Box<Dhcp6>, dhcp6::Lease),
}

impl Leased {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::V4(dhcp4, _) => dhcp4.fd(),
            Self::V6(dhcp6, _) => dhcp6.fd(),
        }
    }

    fn address(&self) -> IpNet {
        match self {
            Self::V4(_, lease) => lease.address.into(),
            Self::V6(_, lease) => lease.address.into(),
        }
    }

    /// `None`: the lease never ends.
    fn times(&self) -> Option<Times> {
        match self {
            Self::V4(_, lease) => lease.times,
            Self::V6(_, lease) => lease.times,
        }
    }

    /// When [`Leased::advance`] has something to say.
    fn due(&self) -> Option<Instant> {
        match self {
            Self::V4(dhcp4, _) => dhcp4.due(),
            Self::V6(dhcp6, _) => dhcp6.due(),
        }
    }

    /// Asks to extend the lease: the server that gave it, or all.
    fn extend(&mut self, all: bool, pause: Duration, now: Instant) {
        match self {
            Self::V4(dhcp4, lease) => dhcp4.extend(lease, all, pause, now),
            Self::V6(dhcp6, lease) => dhcp6.extend(lease, all, pause, now),
        }
    }

    /// Looks for a server anew.
    fn start_over(&mut self, now: Instant) {
        match self {
            Self::V4(dhcp4, _) => dhcp4.start_over(now),
            Self::V6(dhcp6, _) => dhcp6.ask_for_address(now),
        }
    }

    fn was_refused(&self) -> bool {
        match self {
            Self::V4(dhcp4, _) => dhcp4.was_refused(),
            Self::V6(dhcp6, _) => dhcp6.was_refused(),
        }
    }

    /// Reads what has come and asks what is to be asked; whether the lease is a new one or was
    /// extended.
    fn advance(&mut self, now: Instant) -> Result<bool> {
        match self {
            Self::V4(dhcp4, lease) => {
                let new = dhcp4.advance(now)?;
                Ok(new.map(|new| *lease = new).is_some())
            }
            Self::V6(dhcp6, lease) => {
                let new = dhcp6.advance(now)?.and_then(|told| told.lease);
                Ok(new.map(|new| *lease = new).is_some())
            }
        }
    }

    /// Configures the interface.
    fn apply(&self, netlink: &Netlink, interface: &str) -> Result<()> {
        match self {
            Self::V4(_, lease) => lease.apply(netlink, interface),
            Self::V6(_, lease) => netlink.add_address(interface, lease.address.into()),
        }
    }
}

/// An interface's lease.
pub(crate) struct Held {
    interface: String,
    leased: Leased,
    since: Instant,
    stage: Stage,
}

impl Held {
    /// A lease that was just given; `None` if it never ends.
    pub(super) fn new(interface: String, leased: Leased, now: Instant) -> Option<Self> {
        leased.times().is_some().then_some(Self {
            interface,
            leased,
            since: now,
            stage: Stage::Bound,
        })
    }

    /// When the next stage begins.
    fn end_of_stage(&self) -> Option<Instant> {
        let times = self.leased.times()?;
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
        let due = [self.end_of_stage(), self.leased.due()];
        due.into_iter().flatten().min()
    }

    /// Begins the next stage if it is time.
    fn progress(&mut self, netlink: &Netlink, now: Instant) {
        if self.end_of_stage().is_none_or(|end| now < end) {
            return;
        }
        let Some(times) = self.leased.times() else {
            return;
        };
        match self.stage {
            Stage::Bound => {
                self.stage = Stage::Renewing;
                let pause = (times.rebind - times.renew) / 2;
                self.leased.extend(false, pause, now);
            }
            Stage::Renewing => {
                self.stage = Stage::Rebinding;
                let pause = (times.end - times.rebind) / 2;
                self.leased.extend(true, pause, now);
            }
            Stage::Rebinding => self.lose(netlink, "no DHCP server has extended its lease", now),
            Stage::Lost => {}
        }
    }

    fn lose(&mut self, netlink: &Netlink, why: &str, now: Instant) {
        let address = self.leased.address();
        log::warn!("{}: lost the address {address}: {why}", self.interface);
        let _ = netlink.remove_address(&self.interface, address);
        self.stage = Stage::Lost;
        self.leased.start_over(now);
    }

    /// Reads what has come and asks what is to be asked.
    fn advance(&mut self, netlink: &Netlink, now: Instant) -> Result<()> {
        self.progress(netlink, now);
        let is_given = self.leased.advance(now)?;
        if self.leased.was_refused() && self.stage != Stage::Lost {
            self.lose(netlink, "the DHCP server refuses to extend its lease", now);
        }
        if !is_given {
            return Ok(());
        }
        let (interface, address) = (&self.interface, self.leased.address());
        if self.stage == Stage::Lost {
            self.leased.apply(netlink, interface)?;
            log::warn!("{interface}: has the address {address} now");
        } else {
            log::info!("{interface}: the lease of {address} is extended");
        }
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
    let kept = held.iter().map(|held| held.leased.fd().as_raw_fd());
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
        let sockets = held.iter().map(|held| held.leased.fd());
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
