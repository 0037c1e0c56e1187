//! One link with a worker: what the supervisor holds for it, what its worker sends, and what is
//! asked of its `netem://` link.

use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use vdens_impairment::request::{Answer, Request, SCHEME};
use vdens_plugin_kit::PanelAddress;
use vdens_plugin_kit::control::{self, Question};

use super::Channel;
use super::tap::NodeTap;
use crate::error::{Error, ErrorKind, Result};
use crate::lab::shape::Cable;
use crate::lab::wiring::Network;
use crate::panel::{Panel, new_place, port_index};
use crate::plugins::host_services::InstalledPlugins;
use crate::session::link::{Stage, WorkerEvent};
use crate::session::served::{ServedLink, Step};
use crate::worker::Job;
use crate::worker::reconnecting::Wait;
use crate::worker::target::LinkTarget;

/// How long a worker's link may take to change its impairments.
const CHANGE_LIMIT: Duration = Duration::from_secs(5);

/// The default MTU of an interface, in bytes.
const DEFAULT_MTU: u32 = 1500;

/// A link with a worker.
pub(super) struct OutsideLink {
    pub(super) cable: Cable,
    pub(super) served: ServedLink,
    /// Whether `netem://` is to give it no carrier.
    pub(super) is_unplugged: bool,
    /// The change that its `netem://` link makes, and when that must have answered.
    pub(super) change: Option<(Question, Instant)>,
}

impl OutsideLink {
    /// The link of a cable, whose worker is to be started. The interface of a switch's uplink gets
    /// the name `u` and `number`. For an impaired link `taps` are its interfaces. `None` for a
    /// cable that the kernel carries.
    ///
    /// # Errors
    /// A scheme has no plugin, or the kernel has no random numbers.
    pub(super) fn new(
        cable: &Cable,
        number: u32,
        taps: Option<[NodeTap; 2]>,
        panel: &Panel,
        plugins: &InstalledPlugins,
    ) -> Result<Option<Self>> {
        let Some(vnl) = cable.vnl() else {
            return Ok(None);
        };
        let (interface, label) = match cable.plugs().first() {
            Some(plug) => (plug.interface.name.clone(), plug.interface.to_string()),
            None => (format!("u{number}"), cable.to_string()),
        };
        let target = LinkTarget::Vnl(vnl);
        target
            .scheme()
            .map_or(Ok(()), |scheme| plugins.check(scheme))?;
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
        let job = Job {
            interface,
            label,
            mtu: cable.mtu().unwrap_or(DEFAULT_MTU),
            target,
            wait: Wait::No,
            plugins: plugins.clone(),
            panel_address,
            nearby,
        };
        let mut served = ServedLink::new(job, name);
        if let Some(near) = near {
            served.held.hold_tap(near.tap, Rc::new(near.watch));
        }
        Ok(Some(Self {
            cable: cable.clone(),
            served,
            is_unplugged: false,
            change: None,
        }))
    }

    /// A channel's descriptor, while it is open.
    pub(super) fn fd(&self, channel: Channel) -> Option<BorrowedFd<'_>> {
        match channel {
            Channel::Worker(way) => self.served.fd(way),
            Channel::Change => self.change.as_ref().map(|(question, _)| question.fd()),
        }
    }

    /// Receives what was sent there.
    ///
    /// # Errors
    /// The link never ran and has failed, or it cannot be changed.
    pub(super) fn receive(&mut self, channel: Channel, panel: &Panel) -> Result<()> {
        let step = match channel {
            Channel::Worker(way) => self.served.receive(way, panel),
            Channel::Change => return self.changed(),
        };
        self.stepped(step)
    }

    /// Handles the end of the worker.
    ///
    /// # Errors
    /// The link never ran and has failed.
    pub(super) fn reap(&mut self, panel: &Panel) -> Result<()> {
        // What it was asked last, the next worker does at its start.
        self.change = None;
        let step = self.served.reap(panel);
        self.stepped(step)
    }

    /// Unplugs a link that has settled and is to have no carrier.
    fn stepped(&mut self, step: Result<Step>) -> Result<()> {
        match step.map_err(|error| self.failure(error))? {
            Step::Settled if self.is_unplugged => self.ask(&Request::Down),
            Step::Settled | Step::Other => Ok(()),
        }
    }

    /// Makes the interface in a network. Returns its name.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn make_interface(&mut self, panel: &Panel, network: &Network) -> Result<String> {
        let Self { cable, served, .. } = self;
        let ServedLink { held, link, .. } = served;
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

    /// Has a change made. A worker that cannot be asked is killed: the next one opens the link with
    /// the change.
    ///
    /// # Errors
    /// The link never ran and has failed.
    pub(super) fn change(&mut self, request: &Request, panel: &Panel) -> Result<()> {
        match self.ask(request) {
            Ok(()) => Ok(()),
            Err(error) => {
                log::info!("{}", self.failure(error));
                self.close(panel)
            }
        }
    }

    /// Kills a worker that has not answered to a change in time.
    ///
    /// # Errors
    /// The link never ran and has failed.
    pub(super) fn end_late_change(&mut self, now: Instant, panel: &Panel) -> Result<()> {
        let change = self.change.as_ref();
        if change.is_some_and(|(_, limit)| *limit <= now) {
            self.change = None;
            return self.close(panel);
        }
        Ok(())
    }

    /// Kills the worker.
    fn close(&mut self, panel: &Panel) -> Result<()> {
        let step = self.served.step(WorkerEvent::Closed, panel);
        self.stepped(step)
    }

    /// Asks the worker's `netem://` link for a change. A worker that is being started has it
    /// already.
    fn ask(&mut self, request: &Request) -> Result<()> {
        let Some(worker) = self.served.child() else {
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

    /// Reads the answer to a change.
    fn changed(&mut self) -> Result<()> {
        let Some((question, _)) = self.change.take() else {
            return Ok(());
        };
        let answer = question.answer::<Answer>();
        let outcome =
            answer.and_then(|answer| answer.error.map_or(Ok(()), |why| Err(Error::usage(why))));
        outcome.map_err(|error| self.failure(error))
    }

    /// The error of this link.
    fn failure(&self, error: Error) -> Error {
        Error {
            message: format!("link {}: {}", self.cable, error.message),
            ..error
        }
    }
}
