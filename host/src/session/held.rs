//! What the supervisor holds for one link: its worker's process and channels, and its interface.
//!
//! A command may delete its interface. The worker of a tap notices that by itself and ends. For a
//! port of the panel, the supervisor asks the kernel at every beat whether the port still exists,
//! with one ioctl that takes no lock, and tells the worker when it does not. The kernel's
//! notifications (RTNLGRP_LINK) would come a second earlier. But those of the panel would wake the
//! supervisors of all sessions at every change, and those of the session's namespace say nothing
//! about an interface that was moved to another one and deleted there.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::unistd::{Pid, getpid};
use serde_json::value::RawValue;
use vdens_plugin_kit::bound_socket::close_and_reclaim;

use super::link::{Link, LinkAction, WorkerEvent};
use crate::error::{Error, ErrorKind, Result};
use crate::ipc::status::{Entry, LinkEntry, Report};
use crate::ipc::{
    Channel, FromWorker, MAX_REPORT, Order, Received, Reply, ReportReply, Request, ToWorker,
    malformed, read_report,
};
use crate::panel::{self, Panel};
use crate::sys::child::{Child, exit_child};
use crate::sys::interface::Traffic;
use crate::sys::signals::Signals;
use crate::worker::carrier::{LinkWatch, WatchedTap};
use crate::worker::reconnecting::Wait;
use crate::worker::{self, Job};

/// The supervisor's hold on an interface.
enum Side {
    Tap(OwnedFd, Rc<LinkWatch>),
    /// A port of the panel, by its place, and a watch over the panel.
    Port(String, LinkWatch),
}

/// The supervisor's ends of a worker's two channels.
pub(crate) struct Channels {
    /// Where the supervisor asks.
    pub(crate) control: Channel<ToWorker, FromWorker>,
    /// Where the worker asks.
    pub(crate) requests: Channel<Reply, Request>,
}

/// A worker that is not reaped yet.
pub(crate) struct WorkerProcess {
    pub(crate) child: Child,
    /// `None` once the worker was killed or has closed one.
    pub(crate) channels: Option<Channels>,
}

/// What a worker starts with, in its own process.
pub(crate) struct NewWorker {
    job: Job,
    channels: worker::Channels,
    stored: Option<OwnedFd>,
    /// Its supervisor.
    parent: Pid,
}

impl NewWorker {
    /// The worker's life. The caller has dropped what only the supervisor needs.
    pub(crate) fn run(self, signals: &Signals) -> ! {
        exit_child(|| worker::run(&self.job, self.channels, self.stored, signals, self.parent))
    }
}

/// One link's resources.
pub(crate) struct HeldLink {
    pub(crate) job: Job,
    pub(crate) process: Option<WorkerProcess>,
    /// What the worker has stored for its successor.
    pub(crate) stored: Option<OwnedFd>,
    /// The interface, once it is made.
    side: Option<Side>,
    /// What the worker has reported last, until it is used.
    report: Option<Box<RawValue>>,
}

impl HeldLink {
    pub(crate) fn new(job: Job) -> Self {
        Self {
            job,
            process: None,
            stored: None,
            side: None,
            report: None,
        }
    }

    pub(crate) fn channels(&self) -> Option<&Channels> {
        self.process.as_ref()?.channels.as_ref()
    }

    /// Forks the worker, and holds it. Returns in the worker's process what it starts with.
    ///
    /// # Errors
    /// There are too many processes or descriptors.
    pub(crate) fn fork_worker(&mut self) -> Result<Option<NewWorker>> {
        let parent = getpid();
        let (control, its_control) = Channel::pair()?;
        let (requests, its_requests) = Channel::pair()?;
        let Some(child) = Child::fork()? else {
            return Ok(Some(NewWorker {
                job: self.job.clone(),
                channels: worker::Channels {
                    control: its_control,
                    orders: its_requests,
                },
                stored: self.stored.take(),
                parent,
            }));
        };
        let (label, target, pid) = (&self.job.label, &self.job.target, child.pid());
        log::info!("{label}: process {pid} serves {target}");
        let channels = Some(Channels { control, requests });
        self.process = Some(WorkerProcess { child, channels });
        Ok(None)
    }

    /// Receives what the worker has sent on its first channel. A message that cannot be received is
    /// logged and costs the worker nothing else. `None` if the channel is closed already.
    pub(crate) fn receive(&mut self) -> Option<WorkerEvent> {
        let event = match self.channels()?.control.receive() {
            Ok(Received::Message(message, fds)) => {
                if let FromWorker::Report(reply) = &message {
                    self.take_report(reply, fds);
                }
                WorkerEvent::Message(message)
            }
            Ok(Received::Malformed(why)) => {
                log::warn!("{}: {}", self.job.label, malformed(&why));
                let why = format!("a message was malformed: {why}");
                self.take_report(&ReportReply::None(why), Vec::new());
                WorkerEvent::Malformed
            }
            Ok(Received::Closed) => WorkerEvent::Closed,
            // The descriptor of a report may have been lost.
            Err(error) => {
                log::warn!("{}: {error}", self.job.label);
                let reply = ReportReply::None(error.to_string());
                self.take_report(&reply, Vec::new());
                WorkerEvent::Message(FromWorker::Report(reply))
            }
        };
        Some(event)
    }

    /// Receives a request of the worker, executes it and answers. Returns an event if the channel
    /// has closed.
    pub(crate) fn receive_request(&mut self, panel: Option<&Panel>) -> Option<WorkerEvent> {
        let requests = &self.channels()?.requests;
        let answered = match requests.receive() {
            Ok(Received::Message(request, fds)) => self.execute(request, fds, panel),
            Ok(Received::Malformed(why)) => {
                let error = malformed(why);
                log::warn!("{}: {error}", self.job.label);
                requests.send(&Reply::Failed(error), &[])
            }
            // No descriptor was left for the one that came along. The worker is not to blame.
            Err(error) if [libc::EMFILE, libc::ENFILE].contains(&error.errno) => {
                log::warn!("{}: {error}", self.job.label);
                requests.send(&Reply::Failed(error), &[])
            }
            Ok(Received::Closed) | Err(_) => return Some(WorkerEvent::Closed),
        };
        if let Err(error) = answered {
            log::warn!("{}: {error}", self.job.label);
        }
        None
    }

    /// Performs an action for the link, other than starting its worker.
    pub(crate) fn perform(&mut self, action: LinkAction, panel: Option<&Panel>) -> Result<()> {
        let name = &self.job.label;
        match action {
            LinkAction::GiveSide => return self.give_side(),
            LinkAction::Send(message) => return self.send(&message),
            LinkAction::CheckInterface if self.is_deleted() => {
                return self.send(&ToWorker::InterfaceDeleted);
            }
            LinkAction::Start | LinkAction::CheckInterface => {}
            LinkAction::Kill => self.kill(),
            LinkAction::KillHanging => {
                if let Some(WorkerProcess { child, .. }) = &self.process {
                    let (target, pid) = (&self.job.target, child.pid());
                    log::warn!("{name} ({target}): process {pid} does not answer, killing it");
                }
                self.kill();
            }
            LinkAction::AwaitRestart { exit, delay } => {
                if let Err(error) = self.take_carrier(panel) {
                    log::warn!("{name}: {error}");
                }
                log::warn!(
                    "{name} ({}): the worker ended with {exit}; starting it again in {delay:?}",
                    self.job.target
                );
                // The command runs already, so it waits for no link.
                self.job.wait = Wait::Meanwhile;
            }
            LinkAction::Close => {
                log::warn!("{name}: the interface was deleted, its link is closed");
                self.close_stored();
            }
            LinkAction::Warn(error) => log::warn!("{name}: {error}"),
        }
        Ok(())
    }

    /// Kills the worker and closes its channels.
    fn kill(&mut self) {
        if let Some(process) = &mut self.process {
            process.channels = None;
            process.child.kill();
        }
    }

    pub(crate) fn child(&self) -> Option<&Child> {
        self.process.as_ref().map(|process| &process.child)
    }

    /// Reaps the worker if it has ended; whether it has.
    pub(crate) fn reap(&mut self) -> bool {
        let process = self.process.as_mut();
        process.is_some_and(|process| process.child.reap().is_some())
    }

    /// The end of a worker that is reaped, which this link holds no longer.
    pub(crate) fn take_ended(&mut self) -> Option<WorkerEvent> {
        let exit = self.child()?.exit()?;
        self.process = None;
        let is_deleted = self.is_deleted();
        Some(WorkerEvent::Ended { exit, is_deleted })
    }

    /// Lets go of everything but the job and what was stored, and returns the worker. Closing its
    /// channels asks it to end.
    pub(crate) fn release(&mut self) -> Option<Child> {
        self.side = None;
        self.process.take().map(|process| process.child)
    }

    /// Closes what the worker stored. A socket that a killed worker has left loses its path.
    pub(crate) fn close_stored(&mut self) {
        if let Some(stored) = self.stored.take() {
            close_and_reclaim(stored);
        }
    }

    /// Sends the worker a message.
    fn send(&mut self, message: &ToWorker) -> Result<()> {
        if *message == ToWorker::SendReport {
            self.report = None;
        }
        let send = |channels: &Channels| channels.control.send(message, &[]);
        self.channels().map_or(Ok(()), send)
    }

    /// Tells the worker what its side of the link is.
    fn give_side(&self) -> Result<()> {
        match (self.channels(), &self.side) {
            (Some(Channels { control, .. }), Some(Side::Tap(tap, watch))) => {
                control.send(&ToWorker::UseTap, &[tap.as_fd(), watch.as_fd()])
            }
            (Some(Channels { control, .. }), Some(Side::Port(place, _))) => {
                let port = place.clone();
                control.send(&ToWorker::UsePort { port }, &[])
            }
            _ => Ok(()),
        }
    }

    /// Holds an interface that is a tap, with a watch over it.
    pub(crate) fn hold_tap(&mut self, tap: OwnedFd, watch: Rc<LinkWatch>) {
        self.side = Some(Side::Tap(tap, watch));
    }

    /// Whether the interface is there.
    pub(crate) fn has_interface(&self) -> bool {
        self.side.is_some()
    }

    /// Makes the interface on the panel. Its port has the number `index` there.
    pub(crate) fn make_port(
        &mut self,
        panel: Option<&Panel>,
        network: &OwnedFd,
        index: u32,
    ) -> Result<()> {
        let (Some(panel), Some(address)) = (panel, &self.job.panel_address) else {
            return Err(no_panel());
        };
        let order = Order::AddPort {
            port: address.place.clone(),
            index,
            interface: self.job.interface.clone(),
        };
        let watch = panel.execute(&order, Some(network.as_fd()))?;
        let watch = watch.ok_or_else(|| Error::closed("a helper process lost a descriptor"))?;
        self.side = Some(Side::Port(address.place.clone(), LinkWatch::from(watch)));
        Ok(())
    }

    /// Makes a tap on the panel that is the port at `place`. Returns it, for a virtual machine.
    pub(crate) fn make_machine_port(&mut self, panel: &Panel, place: String) -> Result<OwnedFd> {
        let (tap, watch) = panel.add_tap(&place)?;
        self.side = Some(Side::Port(place, LinkWatch::from(watch)));
        Ok(tap)
    }

    /// Holds the next of the taps that the namespace child has made, unless the interface is a
    /// port.
    pub(crate) fn take_tap(
        &mut self,
        taps: &mut impl Iterator<Item = OwnedFd>,
        watch: &Rc<LinkWatch>,
    ) -> Result<()> {
        if self.side.is_none() {
            let tap = taps.next().ok_or_else(lost_interface)?;
            self.side = Some(Side::Tap(tap, Rc::clone(watch)));
        }
        Ok(())
    }

    /// Whether the interface was deleted, as far as the supervisor can see. Only the worker sees
    /// that of a tap.
    pub(crate) fn is_deleted(&self) -> bool {
        match &self.side {
            Some(Side::Port(place, watch)) => !watch.has(&panel::interface_of(place)),
            Some(Side::Tap(..)) | None => false,
        }
    }

    /// Takes the interface's carrier away, since no worker serves it.
    fn take_carrier(&self, panel: Option<&Panel>) -> Result<()> {
        match (&self.side, panel) {
            (Some(Side::Port(place, _)), Some(panel)) => {
                let port = place.clone();
                panel.execute(&Order::Unplug { port }, None).map(drop)
            }
            (Some(Side::Tap(tap, watch)), _) => {
                let held = tap
                    .try_clone()
                    .and_then(|tap| Ok((tap, watch.try_clone()?)));
                let (tap, watch) = held.map_err(|error| Error::io("set the carrier", &error))?;
                drop(WatchedTap::resume(tap, watch, self.job.interface.clone()));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Executes what the worker requests, and answers.
    fn execute(
        &mut self,
        request: Request,
        mut fds: Vec<OwnedFd>,
        panel: Option<&Panel>,
    ) -> Result<()> {
        if matches!(request, Request::StoreFd) {
            self.stored = fds.pop();
        }
        let Some(Channels { requests, .. }) = self.channels() else {
            return Ok(());
        };
        match request {
            Request::Execute(order) => panel::answer(panel.ok_or_else(no_panel), requests, &order),
            Request::StoreFd => requests.send(&Reply::Stored, &[]),
        }
    }

    /// Takes the report that has come with a message, or notes why there is none.
    fn take_report(&mut self, reply: &ReportReply, mut fds: Vec<OwnedFd>) {
        let text = match reply {
            ReportReply::File => match fds.pop() {
                Some(fd) => read_report(fd, MAX_REPORT).map_err(|error| error.to_string()),
                None => Err("a descriptor was lost".into()),
            },
            ReportReply::None(why) => Err(why.clone()),
        };
        let text = text.or_else(|why| {
            serde_json::to_string(&Report {
                reason: format!("no report: {why}"),
                ..Report::default()
            })
        });
        self.report = text.and_then(RawValue::from_string).ok();
    }

    /// The link for `vdectl status`, whose state is `link`, with the interface's counters, and with
    /// the report that the worker has sent.
    pub(crate) fn entry(
        &mut self,
        link: &Link,
        interface_traffic: Option<Traffic>,
    ) -> Entry<Box<RawValue>> {
        let (service, restarts, last_end) = link.service();
        let pid = self.child().map(Child::pid);
        Entry {
            link: LinkEntry {
                addresses: Vec::new(),
                vnl: self.job.target.to_string(),
                service,
                worker: pid.map(|pid| pid.as_raw().cast_unsigned()),
                restarts,
                last_end,
                interface_traffic,
                interface: self.job.interface.clone(),
            },
            report: self.report.take(),
        }
    }
}

fn no_panel() -> Error {
    Error::new(ErrorKind::Unsupported, "there is no panel")
}

pub(crate) fn lost_interface() -> Error {
    Error::closed("the namespace child lost interfaces")
}
