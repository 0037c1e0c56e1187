//! A link worker: the process that serves one interface, and in which one VNL's plugin lives.
//!
//! The worker opens the VNL and reports that to the supervisor. The supervisor answers with the
//! near side of the link: a tap in the namespace, or a port of the panel. Then the worker moves
//! frames between the two until its channel closes. While the VNL is broken or not open yet, the
//! interface has no carrier ([`reconnecting`]). Any other failure ends the process, and the
//! supervisor starts another.
//!
//! Between frames the worker answers the supervisor, which pings it once a second. A plugin that
//! does not return from a call is found by the missing answers.
//!
//! The modules: [`driver`] runs the pump and serves the supervisor, [`pump`] moves frames,
//! [`busy_poll`] waits for them, [`carrier`] is the tap, [`tier`] finds which way frames take.

pub(crate) mod busy_poll;
pub(crate) mod carrier;
pub(crate) mod driver;
pub mod pump;
pub(crate) mod reconnecting;
mod report;
pub(crate) mod target;
pub(crate) mod tier;

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::unistd::{Pid, setsid};
use vdens_plugin_kit::stream::CommandStream;
use vdens_plugin_kit::{HostPort, Link, OpenOptions, PanelAddress};

use crate::error::{EXIT_FAILURE, Error, Result};
use crate::ipc::status::Report;
use crate::ipc::{Channel, FromWorker, Received, Reply, Request, ToWorker, malformed};
use crate::panel::{PanelClient, PanelPort};
use crate::plugins::host_services::{InstalledPlugins, Opener, Own};
use crate::sandbox::{Beside, Sandbox};
use crate::sys::process::{give_back_memory, map_large_allocations};
use crate::sys::signals::{self, Signals};
use crate::worker::carrier::{LinkWatch, WatchedTap};
use crate::worker::driver::{Control, Driver, Stop};
use crate::worker::pump::{Side, Sides};
use crate::worker::reconnecting::Wait;
use crate::worker::target::LinkTarget;
use crate::worker::tier::Watch;

/// The exit status of a worker whose interface was deleted: another worker would be of no use.
pub(crate) const EXIT_NO_INTERFACE: i32 = 3;

/// What a worker is to do.
#[derive(Clone, Debug)]
pub struct Job {
    /// The interface's name.
    pub(crate) interface: String,
    /// What people call it: its name, in a lab with the node's.
    pub(crate) label: String,
    /// Its MTU in bytes.
    pub(crate) mtu: u32,
    /// What it is to be plugged into.
    pub(crate) target: LinkTarget,
    /// What to do if that is not there yet.
    pub(crate) wait: Wait,
    /// Where plugins are found.
    pub(crate) plugins: InstalledPlugins,
    /// The interface's place on the panel, if there is one.
    pub(crate) panel_address: Option<PanelAddress>,
    /// The tap that `{NEARBY}` in the target means, if there is one.
    pub(crate) nearby: Option<Nearby>,
}

/// A tap of the supervisor's that a VNL can name: the far interface of a lab's impaired link.
#[derive(Clone, Debug)]
pub(crate) struct Nearby {
    /// The tap.
    pub(crate) tap: Arc<OwnedFd>,
    /// A watch over its carrier.
    pub(crate) watch: Arc<LinkWatch>,
    /// Its name.
    pub(crate) name: String,
}

/// The VNL that means the job's [`Nearby`] tap.
pub(crate) const NEARBY: &str = "nearby://";

impl Nearby {
    /// The tap as a link.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn open(&self) -> Result<Box<dyn Link>> {
        let open = || Ok((self.tap.try_clone()?, self.watch.try_clone()?));
        let (tap, watch) = open()
            .map_err(|error| Error::io(format_args!("use the interface {}", self.name), &error))?;
        Ok(Box::new(WatchedTap::resume(tap, watch, self.name.clone())))
    }
}

/// A worker's ends of its two channels.
#[derive(Debug)]
pub(crate) struct Channels {
    /// The supervisor asks, the worker answers.
    pub control: Channel<FromWorker, ToWorker>,
    /// The worker asks, the supervisor answers.
    pub orders: Channel<Request, Reply>,
}

/// The near side of a worker's link.
enum Near {
    Tap(WatchedTap),
    Port(PanelPort),
}

impl Near {
    fn as_link(&mut self) -> &mut dyn Link {
        match self {
            Self::Tap(tap) => tap,
            Self::Port(port) => port,
        }
    }
}

/// The life of a worker; `stored` is the descriptor that the worker before it had stored. Returns
/// the exit status.
pub(crate) fn run(
    job: &Job,
    channels: Channels,
    stored: Option<OwnedFd>,
    signals: &Signals,
    supervisor: Pid,
) -> i32 {
    map_large_allocations();
    // The terminal's signals are for the command: a session of its own keeps them away.
    let _ = setsid();
    let Channels { control, orders } = channels;
    let orders = PanelClient::to_supervisor(orders);
    let port = HostPort {
        interface: job.interface.clone(),
        mtu: job.mtu,
        panel_address: job.panel_address.clone(),
    };
    let mut worker = Worker {
        job,
        opener: Opener::new(
            job.plugins.clone(),
            port,
            Some(orders),
            Own {
                stored,
                nearby: job.nearby.clone(),
            },
        ),
        orders,
        sandbox: Sandbox::default(),
        channel: control,
    };
    let ready = signals
        .restore()
        .and_then(|()| signals::follow_parent(supervisor));
    let Err(stop) = ready.map_err(Stop::from).and_then(|()| worker.serve());
    match stop {
        Stop::Exit(status) => status,
        // The far side reopens its transport instead, so it is the interface that broke.
        Stop::Broken(_, error) => {
            log::warn!("{}: {error}", job.label);
            EXIT_NO_INTERFACE
        }
        Stop::Failed(error) => {
            // It fails if the supervisor has exited, which then needs no answer.
            let _ = worker.channel.send(&FromWorker::Failed(error), &[]);
            EXIT_FAILURE
        }
    }
}

struct Worker<'a> {
    job: &'a Job,
    opener: Opener,
    orders: PanelClient,
    sandbox: Sandbox,
    /// Where the supervisor asks.
    channel: Channel<FromWorker, ToWorker>,
}

impl Worker<'_> {
    /// Opens the link and serves the interface.
    fn serve(&mut self) -> Result<Infallible, Stop> {
        let (job, opener) = (self.job.clone(), self.opener);
        let name = format!("{} ({})", job.label, job.target);
        let options = OpenOptions {
            description: format!("vdens {}", job.label),
            ..OpenOptions::default()
        };
        let links = job.target.vnl().map(|vnl| (opener, vnl));
        let beside = Beside::default();
        self.sandbox = Sandbox::enter(&name, &job.plugins, links.as_slice(), beside);
        let sandbox = self.sandbox.clone();
        let open = move || match &job.target {
            LinkTarget::Vnl(vnl) => {
                let opened = opener.open(vnl, &options);
                opened.map_err(|error| sandbox.explain(error))
            }
            LinkTarget::Command(command) => {
                Ok(Box::new(CommandStream::shell(command)?) as Box<dyn Link>)
            }
        };
        let mut far = driver::open(name, Box::new(open), self.job.wait, self)?;
        let mut near = self.near(&far)?;
        let watches = Sides {
            near: None,
            far: Some(Watch::new(self.job.interface.clone()).with_mtu(self.job.mtu)),
        };
        let mut driver = Driver::settle(near.as_link(), &mut far, watches);
        self.channel.send(&FromWorker::Settled, &[])?;
        // Now, because the supervisor does not wait for this worker any more.
        give_back_memory();
        Err(driver.run(self))
    }

    /// Asks the supervisor for the near side of the link. A worker that replaces another gets the
    /// interface as it is, whatever its own link prefers.
    fn near(&mut self, far: &dyn Link) -> Result<Near, Stop> {
        let job = self.job;
        let wants_panel = job.panel_address.is_some() && far.wants_panel();
        let open = FromWorker::Open { wants_panel };
        self.channel.send(&open, &[])?;
        loop {
            match self.receive()? {
                Some((ToWorker::UsePort { port }, _)) => {
                    return Ok(Near::Port(PanelPort::new(port, self.orders)?));
                }
                Some((ToWorker::UseTap, fds)) => {
                    let fds: Result<[OwnedFd; 2], _> = fds.try_into();
                    let [tap, watch] = fds.map_err(|_| malformed("it has no tap"))?;
                    let (watch, name) = (LinkWatch::from(watch), job.interface.clone());
                    return Ok(Near::Tap(WatchedTap::resume(tap, watch, name)));
                }
                Some((message, _)) => self.answer(&message, &|_| Report::default())?,
                None => {}
            }
        }
    }

    /// Receives from the supervisor. Logs a malformed message, because the next one may be well
    /// formed, and returns `None`. A closed channel ends the worker.
    fn receive(&self) -> Result<Option<(ToWorker, Vec<OwnedFd>)>, Stop> {
        match self.channel.receive()? {
            Received::Message(message, fds) => Ok(Some((message, fds))),
            Received::Malformed(why) => {
                let interface = &self.job.label;
                log::warn!("{interface}: the supervisor sent a malformed message: {why}");
                Ok(None)
            }
            Received::Closed => Err(Stop::Exit(0)),
        }
    }

    fn answer(&self, message: &ToWorker, report: &dyn Fn(Side) -> Report) -> Result<(), Stop> {
        match message {
            ToWorker::Ping if self.sandbox.is_outdated() => {
                let message = "the directory of its socket was replaced";
                return Err(Stop::Failed(Error::closed(message)));
            }
            ToWorker::Ping => self.channel.send(&FromWorker::Pong, &[])?,
            ToWorker::SendReport => {
                let report = self.sandbox.tell(report(Side::Far));
                let report = match &self.job.target {
                    LinkTarget::Vnl(vnl) => report.with_plugin(self.opener, vnl),
                    LinkTarget::Command(_) => report,
                };
                if let Err(error) = self.channel.send_report(&report) {
                    let interface = &self.job.label;
                    log::info!("{interface}: vdectl status gets no report: {error}");
                }
            }
            ToWorker::InterfaceDeleted => return Err(Stop::Exit(EXIT_NO_INTERFACE)),
            // The near side is given once.
            ToWorker::UseTap | ToWorker::UsePort { .. } => {}
        }
        Ok(())
    }
}

impl Control for Worker<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    fn handle(&mut self, report: &dyn Fn(Side) -> Report) -> Result<(), Stop> {
        match self.receive()? {
            Some((message, _)) => self.answer(&message, report),
            None => Ok(()),
        }
    }
}
