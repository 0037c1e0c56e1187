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
//! A worker that ends is started again, and finds the interfaces as they are. The same state
//! machine as a session's decides that ([`Link`]).
//!
//! Impairments change while a worker runs: the supervisor asks the worker's `netem://` link, as
//! `vdectl link` asks that of a session. It does not wait for the answer, because a link that is
//! set up again may have a request for the supervisor first. A worker that does not answer is
//! killed: the next one opens the link with the new impairments.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::unistd::{Pid, getpid};
use vdens_impairment::request::{Answer, Request, SCHEME};
use vdens_plugin_kit::PanelAddress;
use vdens_plugin_kit::control::{self, Question};
use vdens_plugin_kit::tap::Tap;

use super::shape::Cable;
use super::wiring::Network;
use crate::error::{EXIT_FAILURE, Error, ErrorKind, Result};
use crate::ipc::{Channel, FromWorker, Received, Reply, ReportReply, malformed};
use crate::panel::{Panel, new_place, port_index};
use crate::plugins::host_services::InstalledPlugins;
use crate::session::held::{Channels, HeldLink, WorkerProcess};
use crate::session::link::{BEAT, Link, LinkAction, Stage, WorkerEvent};
use crate::sys::child::{CLEANUP_LIMIT, Child, Exit, end_all, exit_child};
use crate::sys::process::wait;
use crate::sys::signals::Signals;
use crate::worker::carrier::LinkWatch;
use crate::worker::reconnecting::Wait;
use crate::worker::target::LinkTarget;
use crate::worker::{self, Job, Nearby};

/// How long a worker's link may take to change its impairments.
const CHANGE_LIMIT: Duration = Duration::from_secs(5);

/// The default MTU of an interface, in bytes.
const DEFAULT_MTU: u32 = 1500;

/// Which of a worker's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Where the supervisor asks.
    Control,
    /// Where the worker asks.
    Requests,
    /// Where its `netem://` link answers.
    Change,
}

/// A link with a worker.
struct OutsideLink {
    cable: Cable,
    held: HeldLink,
    link: Link,
    /// Whether it has settled once. From then on its worker may fail.
    is_running: bool,
    /// Whether `netem://` is to give it no carrier.
    is_unplugged: bool,
    /// The change that its `netem://` link makes, and when that must have answered.
    change: Option<(Question, Instant)>,
}

impl OutsideLink {
    /// Asks the worker's `netem://` link for a change. A worker that is being started has it
    /// already.
    fn ask(&mut self, request: &Request) -> Result<()> {
        let Some(worker) = self.held.child() else {
            return Ok(());
        };
        // Dropped first, because the next question comes from the same place.
        self.change = None;
        // Of links that are nested in each other, the outermost was made last.
        let sockets = control::find_of(SCHEME, worker.pid().as_raw().cast_unsigned());
        let socket = sockets.last().ok_or_else(|| {
            let message = "its process takes no changes: it has no directory for requests";
            Error::new(ErrorKind::NotFound, message)
        })?;
        let question = Question::send(socket, request)?;
        self.change = Some((question, Instant::now() + CHANGE_LIMIT));
        Ok(())
    }
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

    /// Adds a link, whose worker is to be started; skips a cable that the kernel carries. The
    /// interface of a switch's uplink gets the name `u` and `number`. For an impaired link `taps`
    /// are its interfaces.
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
        let Some(vnl) = cable.vnl() else {
            return Ok(());
        };
        let (interface, label, mtu) = match cable.plugs().first() {
            Some(plug) => (
                plug.interface.name.clone(),
                plug.interface.to_string(),
                plug.mtu,
            ),
            None => (format!("u{number}"), cable.to_string(), None),
        };
        let target = LinkTarget::Vnl(vnl);
        target
            .scheme()
            .map_or(Ok(()), |scheme| self.plugins.check(scheme))?;
        let name = format!("{label} ({target})");
        let (near, nearby) = match taps {
            Some([near, far]) => (Some(near), Some(far.into_nearby())),
            None => (None, None),
        };
        let panel_address = match near {
            Some(_) => None,
            None => Some(PanelAddress {
                panel: panel.id(),
                place: new_place()?,
            }),
        };
        let mut held = HeldLink::new(Job {
            interface,
            label,
            mtu: mtu.unwrap_or(DEFAULT_MTU),
            target,
            wait: Wait::No,
            plugins: self.plugins.clone(),
            panel_address,
            nearby,
        });
        if let Some(near) = near {
            held.hold_tap(near.tap, Rc::new(near.watch));
        }
        self.links.push(OutsideLink {
            cable: cable.clone(),
            held,
            link: Link::new(name, Instant::now()),
            is_running: false,
            is_unplugged: false,
            change: None,
        });
        Ok(())
    }

    /// Starts the workers of new links.
    ///
    /// # Errors
    /// There are too many processes.
    pub(super) fn start(&mut self, surroundings: &mut Surroundings<'_>) -> Result<()> {
        for at in 0..self.links.len() {
            let link = &self.links[at];
            if link.held.process.is_none() && !link.is_running {
                self.start_worker(at, surroundings)?;
            }
        }
        Ok(())
    }

    fn start_worker(&mut self, at: usize, surroundings: &mut Surroundings<'_>) -> Result<()> {
        let parent = getpid();
        let (control, its_control) = Channel::pair()?;
        let (requests, its_requests) = Channel::pair()?;
        let Some(child) = Child::fork()? else {
            drop((control, requests));
            (surroundings.forget)();
            let HeldLink { job, stored, .. } = self.links.swap_remove(at).held;
            self.links.clear();
            let channels = worker::Channels {
                control: its_control,
                orders: its_requests,
            };
            exit_child(|| worker::run(&job, channels, stored, surroundings.signals, parent));
        };
        let channels = Some(Channels { control, requests });
        self.links[at].held.process = Some(WorkerProcess { child, channels });
        Ok(())
    }

    /// The channels that the supervisor polls.
    pub(super) fn channels(&self) -> impl Iterator<Item = (usize, Way)> {
        let ways = [Way::Requests, Way::Control, Way::Change];
        (0..self.links.len()).flat_map(move |at| ways.map(|way| (at, way)))
    }

    /// A channel's descriptor, while it is open.
    pub(super) fn fd(&self, at: usize, way: Way) -> Option<BorrowedFd<'_>> {
        let link = self.links.get(at)?;
        match way {
            Way::Control => link.held.channels().map(|it| it.control.as_fd()),
            Way::Requests => link.held.channels().map(|it| it.requests.as_fd()),
            Way::Change => link.change.as_ref().map(|(question, _)| question.fd()),
        }
    }

    /// Receives what a worker has sent.
    ///
    /// # Errors
    /// A link that never ran has failed, or a link cannot be changed.
    pub(super) fn receive(&mut self, at: usize, way: Way, panel: &Panel) -> Result<()> {
        if way == Way::Change {
            return self.changed(at);
        }
        let Some(channels) = self.links.get(at).and_then(|link| link.held.channels()) else {
            return Ok(());
        };
        let event = match way {
            Way::Change => return Ok(()),
            Way::Requests => match channels.requests.receive() {
                Ok(Received::Message(request, fds)) => {
                    return self.links[at].held.execute(request, fds, Some(panel));
                }
                Ok(Received::Malformed(why)) => {
                    let failed = Reply::Failed(malformed(why));
                    return channels.requests.send(&failed, &[]);
                }
                Ok(Received::Closed) | Err(_) => WorkerEvent::Closed,
            },
            Way::Control => match channels.control.receive() {
                Ok(Received::Message(message, fds)) => {
                    if let FromWorker::Report(reply) = &message {
                        self.links[at].held.take_report(reply, fds);
                    }
                    WorkerEvent::Message(message)
                }
                Ok(Received::Malformed(why)) => {
                    self.links[at]
                        .held
                        .take_report(&ReportReply::None(why), Vec::new());
                    WorkerEvent::Malformed
                }
                Ok(Received::Closed) => WorkerEvent::Closed,
                Err(error) => WorkerEvent::Message(FromWorker::Failed(error)),
            },
        };
        self.step(at, event, panel)
    }

    /// Steps a link's state machine, and performs what it decides.
    fn step(&mut self, at: usize, event: WorkerEvent, panel: &Panel) -> Result<()> {
        let link = &mut self.links[at];
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let was = link.link.stage();
            let action = link.link.step(event, link.is_running, Instant::now());
            let action = action.map_err(|error| of_cable(&link.cable, error))?;
            // The interfaces of an impaired link are there before it is open.
            let is_opened = was != link.link.stage()
                && matches!(link.link.stage(), Some(Stage::Open { .. }))
                && link.held.has_interface();
            let action = action.or(is_opened.then_some(LinkAction::GiveSide));
            if link.link.stage() == Some(Stage::Settled) && was != link.link.stage() {
                link.is_running = true;
                if link.is_unplugged {
                    link.ask(&Request::Down)?;
                }
            }
            let Some(action) = action else { continue };
            if let Err(error) = link.held.perform(action, Some(panel)) {
                let failure = WorkerEvent::Message(FromWorker::Failed(error));
                events.extend([WorkerEvent::Closed, failure]);
            }
        }
        Ok(())
    }

    /// The links that are open and have no interface yet, with what that is for.
    pub(super) fn without_interface(&self) -> Vec<(usize, Cable)> {
        let is_open = |link: &OutsideLink| matches!(link.link.stage(), Some(Stage::Open { .. }));
        let links = self.links.iter().enumerate();
        let links = links.filter(|(_, link)| is_open(link) && !link.held.has_interface());
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
        let OutsideLink {
            cable, held, link, ..
        } = &mut self.links[at];
        let name = held.job.interface.clone();
        let wants_panel = link.stage() == Some(Stage::Open { wants_panel: true });
        let worker = held
            .child()
            .map_or(0, |child| child.pid().as_raw().cast_unsigned());
        let made = match wants_panel {
            true => held.make_port(Some(panel), &network.namespace, port_index(worker, 0)),
            false => Err(Error::usage("the link does not want it")),
        };
        if let Err(error) = made {
            log::debug!("{cable}: not on the panel: {error}");
            let NodeTap { tap, watch, .. } = NodeTap::make(&name, panel, network)?;
            held.hold_tap(tap, Rc::new(watch));
        }
        Ok(name)
    }

    /// Tells the workers of links whose interfaces were made what their sides are.
    ///
    /// # Errors
    /// A link that never ran has failed.
    pub(super) fn give_side(&mut self, at: usize, panel: &Panel) -> Result<()> {
        self.links[at]
            .held
            .perform(LinkAction::GiveSide, Some(panel))
    }

    /// Whether all links have settled, or do so again after a failure, and no change is under way.
    pub(super) fn is_settled(&self) -> bool {
        let mut links = self.links.iter();
        links.all(|link| link.is_running && link.change.is_none())
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
        let Some(at) = self.links.iter().position(|link| link.cable == *old) else {
            return Ok(());
        };
        let link = &mut self.links[at];
        if let Some(vnl) = new.vnl() {
            link.held.job.target = LinkTarget::Vnl(vnl);
        }
        link.cable = new.clone();
        self.change(at, request, panel)
    }

    /// Takes the carrier of an impaired link away, or gives it back.
    ///
    /// # Errors
    /// A link that never ran has failed.
    pub(super) fn unplug(&mut self, cable: &Cable, is_down: bool, panel: &Panel) -> Result<()> {
        let Some(at) = self.links.iter().position(|link| link.cable == *cable) else {
            return Ok(());
        };
        self.links[at].is_unplugged = is_down;
        let request = if is_down { Request::Down } else { Request::Up };
        self.change(at, &request, panel)
    }

    /// Has a change made. A worker that cannot be asked is killed.
    fn change(&mut self, at: usize, request: &Request, panel: &Panel) -> Result<()> {
        let link = &mut self.links[at];
        match link.ask(request) {
            Ok(()) => Ok(()),
            Err(error) => {
                log::info!("{}", of_cable(&link.cable, error));
                self.step(at, WorkerEvent::Closed, panel)
            }
        }
    }

    /// Reads a link's answer to a change.
    fn changed(&mut self, at: usize) -> Result<()> {
        let link = &mut self.links[at];
        let Some((question, _)) = link.change.take() else {
            return Ok(());
        };
        let answer = question.answer::<Answer>();
        let outcome =
            answer.and_then(|answer| answer.error.map_or(Ok(()), |why| Err(Error::usage(why))));
        outcome.map_err(|error| of_cable(&link.cable, error))
    }

    /// When [`Outside::tick`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let has_worker = self.links.iter().any(|link| link.link.stage().is_some());
        let restarts = self.links.iter().filter_map(|link| link.link.restart());
        let changes = self
            .links
            .iter()
            .filter_map(|link| Some(link.change.as_ref()?.1));
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
            let change = self.links[at].change.as_ref();
            if change.is_some_and(|(_, limit)| *limit <= now) {
                self.links[at].change = None;
                self.step(at, WorkerEvent::Closed, panel)?;
            }
            let OutsideLink { held, link, .. } = &mut self.links[at];
            if link.restart().is_some_and(|due| due <= now) {
                link.start(now);
                if let Err(error) = self.start_worker(at, surroundings) {
                    let failure = WorkerEvent::Message(FromWorker::Failed(error));
                    self.step(at, failure, panel)?;
                    let exit = Exit::Status(EXIT_FAILURE);
                    let is_deleted = false;
                    self.step(at, WorkerEvent::Ended { exit, is_deleted }, panel)?;
                }
            } else if is_beat {
                let pinged = link.beat().map(|action| held.perform(action, Some(panel)));
                pinged.unwrap_or(Ok(()))?;
                held.perform(LinkAction::CheckInterface, Some(panel))?;
            }
        }
        Ok(())
    }

    /// Handles the end of a process, if it is one of these workers. `false` if it is not.
    ///
    /// # Errors
    /// A link that never ran has failed.
    pub(super) fn reap(&mut self, pid: Pid, panel: &Panel) -> Result<bool> {
        let is_it = |link: &OutsideLink| link.held.child().map(Child::pid) == Some(pid);
        let Some(at) = self.links.iter().position(is_it) else {
            return Ok(false);
        };
        self.links[at].held.reap();
        // What it was asked last, the next worker does at its start.
        self.links[at].change = None;
        // What it has sent last comes first.
        while self.has_message(at) {
            self.receive(at, Way::Control, panel)?;
        }
        if let Some(ended) = self.links[at].held.take_ended() {
            self.step(at, ended, panel)?;
        }
        Ok(true)
    }

    fn has_message(&self, at: usize) -> bool {
        self.fd(at, Way::Control).is_some_and(|fd| {
            let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
            wait(&mut fds, Some(Instant::now())).is_ok() && fds[0].any() == Some(true)
        })
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
            .map(|link| link.held.job.interface.clone())
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
        Some(&link.held.job.interface)
    }

    /// The uplink whose interface in the fabric has this name.
    pub(super) fn uplink(&self, interface: &str) -> Option<&Cable> {
        let mut links = self.links.iter();
        let is_it = |link: &&OutsideLink| {
            matches!(link.cable, Cable::Uplink { .. }) && link.held.job.interface == interface
        };
        links.find(is_it).map(|link| &link.cable)
    }

    /// The process of a cable's worker.
    pub(super) fn worker(&self, cable: &Cable) -> Option<u32> {
        let link = self.links.iter().find(|link| link.cable == *cable)?;
        Some(link.held.child()?.pid().as_raw().cast_unsigned())
    }
}

fn end(mut links: Vec<OutsideLink>) {
    let workers: Vec<Child> = links
        .iter_mut()
        .filter_map(|link| link.held.release())
        .collect();
    end_all(workers, CLEANUP_LIMIT);
    links.iter_mut().for_each(|link| link.held.close_stored());
}

fn of_cable(cable: &Cable, error: Error) -> Error {
    Error {
        message: format!("link {cable}: {}", error.message),
        ..error
    }
}

/// A tap in a node or in the fabric, and a watch over it.
#[derive(Debug)]
pub(super) struct NodeTap {
    name: String,
    tap: OwnedFd,
    watch: LinkWatch,
}

impl NodeTap {
    /// Makes a tap in a network.
    ///
    /// # Errors
    /// The kernel has no taps, or the name is taken.
    pub(super) fn make(name: &str, panel: &Panel, network: &Network) -> Result<Self> {
        let mut fds = panel.in_network(network.namespace.as_fd(), || {
            let tap = Tap::open(name)?.as_fd().try_clone_to_owned();
            let tap =
                tap.map_err(|error| Error::io(format_args!("make the interface {name}"), &error))?;
            Ok(vec![tap, LinkWatch::open()?.into()])
        })?;
        match (fds.pop(), fds.pop()) {
            (Some(watch), Some(tap)) => Ok(Self {
                name: name.to_owned(),
                tap,
                watch: watch.into(),
            }),
            _ => Err(Error::closed("a helper process lost descriptors")),
        }
    }

    fn into_nearby(self) -> Nearby {
        Nearby {
            tap: Arc::new(self.tap),
            watch: Arc::new(self.watch),
            name: self.name,
        }
    }
}
