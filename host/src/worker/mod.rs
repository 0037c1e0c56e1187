//! A link worker: the process in which one VNL's plugin lives.
//!
//! It opens the VNL, says so over its channel to the supervisor, is told what its own side of the
//! link is (a tap in the namespace, or a port of the panel), and pumps frames until the channel
//! closes. A link that breaks, or that cannot be opened yet and is to be waited for, costs the
//! interface its carrier until it is back ([`Lasting`]). Whatever else happens ends the process,
//! and the supervisor starts another.
//!
//! Between frames it answers the supervisor, which asks now and then whether it is still there: a
//! plugin that never comes back from a call is found out by its silence.

pub mod busy_poll;
pub mod carrier;
pub mod pump;
pub mod reconnecting;
pub mod tier;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::unistd::{Pid, setsid};
use vdens_plugin_kit::stream::CommandStream;
use vdens_plugin_kit::{HostPort, Link, OpenOptions, PanelAddress};

use crate::cli::vnls::End;
use crate::error::{EXIT_FAILURE, Error, Result};
use crate::ipc::{Channel, FromWorker, Received, Reply, Request, ToWorker, malformed};
use crate::panel::{PanelClient, PanelPort};
use crate::plugins::host_services::{Opener, Plugins};
use crate::sys::process::{give_back_memory, map_large_allocations, wait};
use crate::sys::signals::{self, Signals};
use crate::tools::status::Report;
use crate::worker::carrier::{LinkWatch, WatchedTap};
use crate::worker::pump::{Pump, Stop};
use crate::worker::reconnecting::{Lasting, Wait};
use crate::worker::tier::Watch;

/// The exit status of a worker whose interface was deleted: starting another is of no use.
pub const EXIT_NO_INTERFACE: i32 = 3;

/// A worker's own side of its link.
enum Side {
    Tap(WatchedTap),
    Port(PanelPort),
}

impl Side {
    fn as_link(&mut self) -> &mut dyn Link {
        match self {
            Self::Tap(tap) => tap,
            Self::Port(port) => port,
        }
    }
}

/// What a worker is to do.
#[derive(Clone, Debug)]
pub struct Job {
    /// The interface's name.
    pub interface: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// What it is to be plugged into.
    pub end: End,
    /// What to do if that is not there yet.
    pub wait: Wait,
    /// Where plugins are found.
    pub plugins: Plugins,
    /// The interface's place on the panel, if there is one.
    pub panel_address: Option<PanelAddress>,
}

/// A worker's ends of its two channels.
#[derive(Debug)]
pub struct Channels {
    /// Where it answers.
    pub control: Channel<FromWorker, ToWorker>,
    /// Where it asks.
    pub orders: Channel<Request, Reply>,
}

/// The life of a worker, which its predecessor has left `kept`; returns its exit status.
pub fn run(
    job: &Job,
    channels: Channels,
    kept: Option<OwnedFd>,
    signals: &Signals,
    supervisor: Pid,
) -> i32 {
    map_large_allocations();
    // The terminal's signals are for the command: a session of its own keeps them away.
    let _ = setsid();
    let ready = signals
        .restore()
        .and_then(|()| signals::follow_parent(supervisor));
    let Channels { control, orders } = channels;
    let orders = PanelClient::to_supervisor(orders);
    let port = HostPort {
        interface: job.interface.clone(),
        mtu: job.mtu,
        panel_address: job.panel_address.clone(),
    };
    let opener = Opener::new(job.plugins.clone(), port, Some(orders), kept);
    let worker = Worker {
        job,
        opener,
        control,
    };
    let outcome = ready.and_then(|()| {
        let link = worker.open()?;
        match worker.side(&link, orders)? {
            Some(side) => worker.serve(link, side),
            None => Ok(0),
        }
    });
    outcome.unwrap_or_else(|error| {
        // If the supervisor is gone there is nobody to tell.
        let _ = worker.control.send(&FromWorker::Failed(error), &[]);
        EXIT_FAILURE
    })
}

struct Worker<'a> {
    job: &'a Job,
    opener: Opener,
    control: Channel<FromWorker, ToWorker>,
}

impl Worker<'_> {
    fn open(&self) -> Result<Lasting> {
        let (job, opener) = (self.job.clone(), self.opener);
        let name = format!("{} ({})", job.interface, job.end);
        let options = OpenOptions {
            description: format!("vdens {}", job.interface),
            ..OpenOptions::default()
        };
        let open = move || match &job.end {
            End::Vnl(vnl) => opener.open(vnl, &options),
            End::Command(command) => Ok(Box::new(CommandStream::shell(command)?) as Box<dyn Link>),
        };
        Lasting::open(name, Box::new(open), self.job.wait, |error, time| {
            self.pause(error, time)
        })
    }

    /// Waits for `time`, or until the supervisor closes the channel: then `false`.
    fn pause(&self, error: &Error, time: Duration) -> Result<bool> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let mut fds = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
            wait(&mut fds, Some(until))?;
            if fds[0].any() == Some(true) {
                let report = || Report {
                    reason: error.to_string(),
                    ..Report::default()
                };
                match self.control.receive()? {
                    Received::Message(message, _) => self.answer(&message, report)?,
                    Received::Malformed(why) => self.ignore(&why),
                    Received::Closed => return Ok(false),
                }
            }
        }
        Ok(true)
    }

    /// Logs a malformed message. The next one may be well formed.
    fn ignore(&self, why: &str) {
        let interface = &self.job.interface;
        log::warn!("{interface}: the supervisor sent a malformed message: {why}");
    }

    /// Answers the supervisor.
    fn answer(&self, message: &ToWorker, report: impl FnOnce() -> Report) -> Result<()> {
        match message {
            ToWorker::Ping => self.control.send(&FromWorker::Pong, &[]),
            ToWorker::SendReport => {
                let report = match &self.job.end {
                    End::Vnl(vnl) => report().with_plugin(self.opener, vnl),
                    End::Command(_) => report(),
                };
                if let Err(error) = self.control.send_report(&report) {
                    log::info!(
                        "{}: vdectl status is not answered: {error}",
                        self.job.interface
                    );
                }
                Ok(())
            }
            // The side is given once. A worker that does not serve the interface yet learns from
            // the next beat that it is deleted.
            ToWorker::UseTap | ToWorker::UsePort | ToWorker::InterfaceDeleted => Ok(()),
        }
    }

    /// Asks the supervisor for this side of the link; `None` if the session is over.
    fn side(&self, link: &dyn Link, orders: PanelClient) -> Result<Option<Side>> {
        let job = self.job;
        let wants_panel = job.panel_address.is_some() && link.wants_panel();
        self.control.send(&FromWorker::Open { wants_panel }, &[])?;
        // A worker that replaces another gets what the interface is, whatever its link would like
        // best.
        loop {
            match self.control.receive()? {
                Received::Message(ToWorker::UsePort, _) => {
                    let panel_address = job.panel_address.as_ref();
                    let panel_address =
                        panel_address.ok_or_else(|| malformed("there is no port"))?;
                    return PanelPort::new(panel_address, orders)
                        .map(|port| Some(Side::Port(port)));
                }
                Received::Message(ToWorker::UseTap, fds) => {
                    let [tap, watch] =
                        fds.try_into().map_err(|_| malformed("no tap came along"))?;
                    let name = job.interface.clone();
                    let tap = WatchedTap::resume(tap, LinkWatch::from(watch), name);
                    return Ok(Some(Side::Tap(tap)));
                }
                Received::Message(message, _) => self.answer(&message, Report::default)?,
                Received::Malformed(why) => self.ignore(&why),
                Received::Closed => return Ok(None),
            }
        }
    }

    /// Serves the interface until the channel closes or the interface is gone.
    fn serve(&self, mut link: Lasting, mut side: Side) -> Result<i32> {
        let mut watch = Watch::new(self.job.interface.clone()).with_mtu(self.job.mtu);
        let mut pump = Pump::new(side.as_link(), &mut link);
        let mut broken = pump.settle().err();
        self.control.send(&FromWorker::Settled, &[])?;
        // Now, because nobody waits for this worker any more.
        give_back_memory();
        loop {
            let stop = match broken.take() {
                Some((side, error)) => Stop::Broken(side, error),
                None => pump.run(&self.control, watch.due())?,
            };
            let [near, far] = pump.links();
            match stop {
                Stop::Control => match self.control.receive()? {
                    Received::Message(ToWorker::InterfaceDeleted, _) => {
                        return Ok(EXIT_NO_INTERFACE);
                    }
                    Received::Message(message, _) => {
                        let [sent, received] = pump.counters();
                        self.answer(&message, || Report::new(near, far, received, sent))?;
                    }
                    Received::Malformed(why) => self.ignore(&why),
                    Received::Closed => return Ok(0),
                },
                Stop::Changed(0) => {}
                Stop::Changed(_) => watch.look(near, far, true),
                Stop::Time => watch.look(near, far, false),
                // A link that lasts does not break, so it is the interface.
                Stop::Broken(_, error) => {
                    log::warn!("{}: {error}", self.job.interface);
                    return Ok(EXIT_NO_INTERFACE);
                }
            }
        }
    }
}
