//! The links that need user space: impaired ones, and those to networks outside of the lab. Each
//! has a worker process, as a session's link has.
//!
//! A link to the outside is a session's link: the worker opens the VNL and says whether it wants
//! the panel. Then the supervisor makes the interface: a port of the panel, or a tap. For a
//! switch's uplink the interface is in the lab's fabric, and a port of the switch's bridge.
//!
//! An impaired link between two nodes is a tap in each. The worker's own side is the first node's
//! tap. What it opens is `netem://…{nearby://}`, where `nearby://` means the second node's tap
//! ([`NEARBY`](worker::NEARBY)).
//!
//! A worker that ends is started again, and finds the interfaces as they are ([`ServedLink`]).
//!
//! Impairments change while a worker runs: the supervisor asks the worker's `netem://` link, as
//! `vdectl link` asks that of a session. It does not wait for the answer, because a link that is
//! set up again may have a request for the supervisor first. A worker that does not answer is
//! killed: the next one opens the link with the new impairments.

mod link;
mod tap;

use std::os::fd::BorrowedFd;
use std::time::Instant;

use nix::unistd::Pid;
use vdens_impairment::request::Request;

use self::link::OutsideLink;
pub(super) use self::tap::NodeTap;
use super::shape::Cable;
use super::wiring::Network;
use crate::error::Result;
use crate::panel::Panel;
use crate::plugins::host_services::InstalledPlugins;
use crate::session::link::{BEAT, Link, LinkAction, Stage};
use crate::session::served::{ServedLink, Way};
use crate::sys::child::{CLEANUP_LIMIT, Child, end_all};
use crate::sys::signals::Signals;
use crate::worker::target::LinkTarget;

/// What a link's supervisor receives from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    /// The link's worker.
    Worker(Way),
    /// The worker's `netem://` link, which answers.
    Change,
}

/// All links with workers.
pub(super) struct Outside {
    links: Vec<OutsideLink>,
    plugins: InstalledPlugins,
    /// When the workers are pinged next.
    beat: Instant,
}

/// What starting a worker takes.
pub(super) struct Surroundings<'a> {
    pub(super) signals: &'a Signals,
    /// Drops what the supervisor holds, in the forked process.
    pub(super) forget: &'a mut dyn FnMut(),
}

impl Outside {
    pub(super) fn new(plugins: InstalledPlugins) -> Self {
        Self {
            links: Vec::new(),
            plugins,
            beat: Instant::now() + BEAT,
        }
    }

    /// Adds the link of a cable, whose worker is to be started. Skips a cable that the kernel
    /// carries. `number` and `taps` are those of [`OutsideLink::new`].
    ///
    /// # Errors
    /// A scheme has no plugin, or the kernel has no random numbers.
    pub(super) fn add(
        &mut self,
        cable: &Cable,
        number: u32,
        taps: Option<[NodeTap; 2]>,
        panel: &Panel,
    ) -> Result<()> {
        let link = OutsideLink::new(cable, number, taps, panel, &self.plugins)?;
        self.links.extend(link);
        Ok(())
    }

    /// Starts the workers of new links.
    ///
    /// # Errors
    /// There are too many processes.
    pub(super) fn start(
        &mut self,
        panel: &Panel,
        surroundings: &mut Surroundings<'_>,
    ) -> Result<()> {
        for at in 0..self.links.len() {
            self.start_worker(at, panel, surroundings)?;
        }
        Ok(())
    }

    /// Starts the worker of a link that wants one.
    fn start_worker(
        &mut self,
        at: usize,
        panel: &Panel,
        surroundings: &mut Surroundings<'_>,
    ) -> Result<()> {
        let served = &mut self.links[at].served;
        if !served.wants_worker(Instant::now()) {
            return Ok(());
        }
        if let Some(worker) = served.start_worker(panel)? {
            (surroundings.forget)();
            self.links.clear();
            worker.run(surroundings.signals);
        }
        Ok(())
    }

    /// The channels that the supervisor polls.
    pub(super) fn channels(&self) -> impl Iterator<Item = (usize, Channel)> {
        let channels = [
            Channel::Worker(Way::Requests),
            Channel::Worker(Way::Control),
            Channel::Change,
        ];
        (0..self.links.len()).flat_map(move |at| channels.map(|channel| (at, channel)))
    }

    /// A channel's descriptor, while it is open.
    pub(super) fn fd(&self, at: usize, channel: Channel) -> Option<BorrowedFd<'_>> {
        self.links.get(at)?.fd(channel)
    }

    /// Receives what a worker has sent.
    ///
    /// # Errors
    /// A link that never ran has failed, or a link cannot be changed.
    pub(super) fn receive(&mut self, at: usize, channel: Channel, panel: &Panel) -> Result<()> {
        let link = self.links.get_mut(at);
        link.map_or(Ok(()), |link| link.receive(channel, panel))
    }

    /// The links that are open and have no interface yet, with what that is for.
    pub(super) fn without_interface(&self) -> Vec<(usize, Cable)> {
        let is_open = |link: &ServedLink| matches!(link.link.stage(), Some(Stage::Open { .. }));
        let links = self.links.iter().enumerate();
        let links =
            links.filter(|(_, link)| is_open(&link.served) && !link.served.held.has_interface());
        links.map(|(at, link)| (at, link.cable.clone())).collect()
    }

    /// Makes the interface of a link in a network. Returns its name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn make_interface(
        &mut self,
        at: usize,
        panel: &Panel,
        network: &Network,
    ) -> Result<String> {
        self.links[at].make_interface(panel, network)
    }

    /// Tells the workers of links whose interfaces were made what their sides are.
    ///
    /// # Errors
    /// A link that never ran has failed.
    pub(super) fn give_side(&mut self, at: usize, panel: &Panel) -> Result<()> {
        let served = &mut self.links[at].served;
        served.perform(LinkAction::GiveSide, panel)
    }

    /// Whether all links have settled, or do so again after a failure, and no change is under way.
    pub(super) fn is_settled(&self) -> bool {
        let mut links = self.links.iter();
        links.all(|link| link.served.is_running() && link.change.is_none())
    }

    /// Changes what impairs a cable, by a request to its `netem://` link.
    ///
    /// # Errors
    /// A link that never ran has failed.
    pub(super) fn impair(
        &mut self,
        [old, new]: [&Cable; 2],
        request: &Request,
        panel: &Panel,
    ) -> Result<()> {
        let mut links = self.links.iter_mut();
        let Some(link) = links.find(|link| link.cable == *old) else {
            return Ok(());
        };
        if let Some(vnl) = new.vnl() {
            link.served.held.job.target = LinkTarget::Vnl(vnl);
        }
        link.cable = new.clone();
        link.change(request, panel)
    }

    /// Takes the carrier of an impaired link away, or gives it back.
    ///
    /// # Errors
    /// A link that never ran has failed.
    pub(super) fn unplug(&mut self, cable: &Cable, is_down: bool, panel: &Panel) -> Result<()> {
        let mut links = self.links.iter_mut();
        let Some(link) = links.find(|link| link.cable == *cable) else {
            return Ok(());
        };
        link.is_unplugged = is_down;
        let request = if is_down { Request::Down } else { Request::Up };
        link.change(&request, panel)
    }

    /// When [`Outside::tick`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let links = || self.links.iter().map(|link| &link.served.link);
        let has_worker = links().any(|link| link.stage().is_some());
        let restarts = links().filter_map(Link::restart);
        let changes = self.links.iter();
        let changes = changes.filter_map(|link| Some(link.change.as_ref()?.1));
        let dues = restarts.chain(changes);
        dues.chain(has_worker.then_some(self.beat)).min()
    }

    /// Pings the workers, kills those that hang, and starts those that are due.
    ///
    /// # Errors
    /// A link that never ran has failed.
    pub(super) fn tick(
        &mut self,
        panel: &Panel,
        surroundings: &mut Surroundings<'_>,
    ) -> Result<()> {
        let now = Instant::now();
        let is_beat = now >= self.beat;
        if is_beat {
            self.beat = now + BEAT;
        }
        for at in 0..self.links.len() {
            self.links[at].end_late_change(now, panel)?;
            if is_beat {
                self.links[at].served.beat(panel)?;
            }
            if self.links[at].served.is_running() {
                self.start_worker(at, panel, surroundings)?;
            }
        }
        Ok(())
    }

    /// Handles the end of a process, if it is one of these workers. `false` if it is not.
    ///
    /// # Errors
    /// A link that never ran has failed.
    pub(super) fn reap(&mut self, pid: Pid, panel: &Panel) -> Result<bool> {
        let is_it = |link: &OutsideLink| link.served.child().map(Child::pid) == Some(pid);
        let mut links = self.links.iter_mut();
        match links.find(|link| is_it(link)) {
            Some(link) => link.reap(panel).map(|()| true),
            None => Ok(false),
        }
    }

    /// Ends the links of these cables, and returns those of their interfaces that are in the lab's
    /// fabric.
    pub(super) fn cut(&mut self, cables: &[Cable]) -> Vec<String> {
        let is_cut = |link: &mut OutsideLink| cables.contains(&link.cable);
        let cut: Vec<_> = self.links.extract_if(.., is_cut).collect();
        let uplinks = cut
            .iter()
            .filter(|link| matches!(link.cable, Cable::Uplink { .. }));
        let uplinks = uplinks
            .map(|link| link.served.held.job.interface.clone())
            .collect();
        end(cut);
        uplinks
    }

    /// Ends all links.
    pub(super) fn end(&mut self) {
        end(std::mem::take(&mut self.links));
    }

    /// Drops all, in a forked process.
    pub(super) fn forget(&mut self) {
        self.links.clear();
    }

    /// The name of the interface at the first end of a cable with a worker.
    pub(super) fn interface(&self, cable: &Cable) -> Option<&str> {
        let link = self.links.iter().find(|link| link.cable == *cable)?;
        Some(&link.served.held.job.interface)
    }

    /// The uplink whose interface in the fabric has this name.
    pub(super) fn uplink(&self, interface: &str) -> Option<&Cable> {
        let mut links = self.links.iter();
        let is_it = |link: &&OutsideLink| {
            matches!(link.cable, Cable::Uplink { .. })
                && link.served.held.job.interface == interface
        };
        links.find(is_it).map(|link| &link.cable)
    }

    /// The process of a cable's worker.
    pub(super) fn worker(&self, cable: &Cable) -> Option<u32> {
        let link = self.links.iter().find(|link| link.cable == *cable)?;
        Some(link.served.child()?.pid().as_raw().cast_unsigned())
    }
}

fn end(mut links: Vec<OutsideLink>) {
    let workers: Vec<Child> = links
        .iter_mut()
        .filter_map(|link| link.served.held.release())
        .collect();
    end_all(workers, CLEANUP_LIMIT);
    links
        .iter_mut()
        .for_each(|link| link.served.held.close_stored());
}
