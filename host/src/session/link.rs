//! One interface's link, as its supervisor sees it: the hold on the interface, and the worker.
//!
//! A worker that dies costs the interface its carrier, and is started again after a delay that
//! doubles from `FIRST_DELAY` to `LAST_DELAY`. One that hangs is helped to die: it is asked at
//! every beat whether it is there, and ended when it owes the answer for too many. Beats are
//! counted, not time: while the supervisor itself is stopped, nobody is late.
//!
//! A command may delete its interface. The worker of a tap notices that by itself and ends. For a
//! port of the panel, the supervisor asks the kernel at every beat whether the port still exists,
//! with one ioctl that takes no lock, and tells the worker when it does not. The kernel's
//! notifications (RTNLGRP_LINK) would come a second earlier. But those of the panel would wake the
//! supervisors of all sessions at every change, and those of the session's namespace say nothing
//! about an interface that was moved to another one and deleted there.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::ipc::{Channel, FromWorker, MAX_REPORT, Order, Reply, Request, ToWorker, read_report};
use crate::panel::{self, Panel};
use crate::sys::child::{Child, Exit};
use crate::tools::status::interface;
use crate::tools::status::{Entry, LinkEntry, Report, Service};
use crate::worker::carrier::{LinkWatch, WatchedTap};
use crate::worker::reconnecting::Wait;
use crate::worker::{self, Job};

/// How long after its death a worker is started again, the first time.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest such delay.
const LAST_DELAY: Duration = Duration::from_secs(5);
/// How long a worker must have lived for the delay to start anew.
const STABLE: Duration = Duration::from_secs(10);

/// How often workers are asked whether they are there.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// For how many beats a worker may owe an answer. One that is stopped for three seconds does no
/// harm.
const PATIENCE: u32 = 5;
/// The same for a worker that has not opened its link yet.
pub(super) const PATIENCE_AT_OPEN: u32 = 10;

/// The supervisor's hold on an interface.
pub(super) enum Side {
    Tap(OwnedFd, Rc<LinkWatch>),
    /// A port of the panel, by its place, and a watch over the panel.
    Port(String, LinkWatch),
}

/// How far a worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It opens its link.
    Opening,
    /// It has; whether the link wants the panel.
    Open(bool),
    /// The link and the interface know of each other.
    Settled,
}

/// Where the supervisor asks a worker.
pub(super) type Control = Channel<ToWorker, FromWorker>;
/// Where a worker asks the supervisor.
pub(super) type Orders = Channel<Reply, Request>;

pub(super) struct Worker {
    pub(super) child: Child,
    pub(super) control: Control,
    pub(super) orders: Orders,
    pub(super) stage: Stage,
    started: Instant,
    /// For how many beats it owes an answer; `None` if it does not.
    owes: Option<u32>,
    /// Whether it owes a report.
    owes_report: bool,
    report: Option<Box<RawValue>>,
    /// Whether its channels are closed: then it is about to end.
    pub(super) is_closed: bool,
}

impl Worker {
    pub(super) fn new(child: Child, control: Control, orders: Orders) -> Self {
        Self {
            child,
            control,
            orders,
            stage: Stage::Opening,
            started: Instant::now(),
            owes: None,
            owes_report: false,
            report: None,
            is_closed: false,
        }
    }

    /// It has closed a channel. A worker does that when it ends, and one that goes on without is of
    /// no use.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        self.child.kill();
    }

    /// It has answered.
    pub(super) fn is_alive(&mut self) {
        self.owes = None;
    }

    /// A malformed message has come. It may have been the report, but it is no answer to a ping: a
    /// worker that sends nothing else is ended as one that hangs.
    pub(super) fn take_malformed(&mut self, why: &str) {
        if self.owes_report {
            self.take_report(Err(format!("a message was malformed: {why}")));
        }
    }

    /// Takes a report that has come, or why there is none.
    pub(super) fn take_report(&mut self, report: Result<Vec<OwnedFd>, String>) {
        self.owes_report = false;
        let text = report.and_then(|mut fds| {
            let fd = fds.pop().ok_or("a descriptor was lost")?;
            read_report(fd, MAX_REPORT).map_err(|error| error.to_string())
        });
        let text = text.or_else(|why| {
            serde_json::to_string(&Report {
                reason: format!("no report: {why}"),
                ..Report::default()
            })
        });
        self.report = text.and_then(RawValue::from_string).ok();
    }

    /// Whether a report is still to come.
    pub(super) fn owes_report(&self) -> bool {
        self.owes_report && !self.is_closed
    }

    /// Asks for a report.
    pub(super) fn ask_for_report(&mut self) {
        self.report = None;
        if self.owes_report {
            return;
        }
        match self.control.send(&ToWorker::SendReport, &[]) {
            Ok(()) => self.owes_report = true,
            Err(error) => {
                let pid = self.child.pid();
                log::info!("process {pid} is not asked for its status: {error}");
            }
        }
    }
}

/// One interface's link.
pub(super) struct Link {
    pub(super) job: Job,
    pub(super) side: Option<Side>,
    pub(super) worker: Option<Worker>,
    /// What the worker has had kept for its successor.
    pub(super) kept: Option<OwnedFd>,
    /// When to start a worker, if there is none; `None` if never.
    pub(super) restart: Option<Instant>,
    delay: Duration,
    restarts: u32,
    last_end: String,
}

impl Link {
    pub(super) fn new(job: Job) -> Self {
        Self {
            job,
            side: None,
            worker: None,
            kept: None,
            restart: None,
            delay: FIRST_DELAY,
            restarts: 0,
            last_end: String::new(),
        }
    }

    /// How far it has come.
    pub(super) fn stage(&self) -> Option<Stage> {
        self.worker.as_ref().map(|worker| worker.stage)
    }

    /// Tells the worker what its side of the link is.
    pub(super) fn give_side(&self) -> Result<()> {
        let Some(Worker { control, .. }) = &self.worker else {
            return Ok(());
        };
        match &self.side {
            Some(Side::Tap(tap, watch)) => {
                control.send(&ToWorker::UseTap, &[tap.as_fd(), watch.as_fd()])
            }
            Some(Side::Port(..)) => control.send(&ToWorker::UsePort, &[]),
            None => Ok(()),
        }
    }

    /// Whether the interface was deleted, as far as the supervisor can see. Only the worker sees
    /// that of a tap.
    fn is_deleted(&self) -> bool {
        match &self.side {
            Some(Side::Port(place, watch)) => !watch.has(&panel::interface_of(place)),
            Some(Side::Tap(..)) | None => false,
        }
    }

    /// Asks the worker whether it is there, or ends it if it has owed the answer for too long.
    /// Tells it if its interface was deleted.
    pub(super) fn beat(&mut self) -> Result<()> {
        let is_deleted = self.is_deleted();
        let Some(worker) = &mut self.worker else {
            return Ok(());
        };
        if is_deleted {
            worker.control.send(&ToWorker::InterfaceDeleted, &[])?;
        }
        let patience = match worker.stage {
            Stage::Opening => PATIENCE_AT_OPEN,
            Stage::Open(_) | Stage::Settled => PATIENCE,
        };
        match &mut worker.owes {
            None => {
                worker.owes = Some(0);
                worker.control.send(&ToWorker::Ping, &[])
            }
            Some(beats) if *beats < patience => {
                *beats += 1;
                Ok(())
            }
            Some(_) => {
                let (name, end, pid) = (&self.job.interface, &self.job.end, worker.child.pid());
                log::warn!("{name} ({end}): process {pid} hangs, and is ended");
                worker.child.kill();
                Ok(())
            }
        }
    }

    /// The worker has ended: takes the carrier away, and has another started later.
    pub(super) fn lose_worker(&mut self, exit: Exit, panel: Option<&Panel>) {
        let lived = self.worker.take().map(|worker| worker.started.elapsed());
        if lived.is_some_and(|lived| lived >= STABLE) {
            self.delay = FIRST_DELAY;
        }
        self.last_end = exit.to_string();
        let name = &self.job.interface;
        if exit == Exit::Status(worker::EXIT_NO_INTERFACE) || self.is_deleted() {
            log::warn!("{name}: the interface was deleted, its link is closed");
            self.kept = None;
            return;
        }
        if let Err(error) = self.take_carrier(panel) {
            log::warn!("{name}: {error}");
        }
        log::warn!(
            "{name} ({}): the worker ended with {exit}; starting it again in {:?}",
            self.job.end,
            self.delay
        );
        self.restart = Some(Instant::now() + self.delay);
        self.delay = (self.delay * 2).min(LAST_DELAY);
        self.restarts += 1;
        // The session has started, so there is nobody to fail for.
        self.job.wait = Wait::Meanwhile;
    }

    fn take_carrier(&self, panel: Option<&Panel>) -> Result<()> {
        match (&self.side, panel) {
            (Some(Side::Port(place, _)), Some(panel)) => panel
                .execute(
                    &Order::Unplug {
                        port: place.clone(),
                    },
                    None,
                )
                .map(drop),
            (Some(Side::Tap(tap, watch)), _) => {
                let held = tap
                    .try_clone()
                    .and_then(|tap| Ok((tap, watch.try_clone()?)));
                held.map(|(tap, watch)| {
                    drop(WatchedTap::resume(tap, watch, self.job.interface.clone()));
                })
                .map_err(|error| Error::io("set the carrier", &error))
            }
            _ => Ok(()),
        }
    }

    /// The link for `vdectl status`, with the report that the worker has given; `command` is in
    /// the interface's namespace.
    pub(super) fn entry(&mut self, command: Pid) -> Entry<Box<RawValue>> {
        let worker = self.worker.as_mut();
        let service = match &worker {
            Some(worker) if worker.owes_report => Service::Silent,
            Some(_) => Service::Served,
            None if self.restart.is_some() => Service::Restarting,
            None => Service::Closed,
        };
        Entry {
            link: LinkEntry {
                interface: self.job.interface.clone(),
                vnl: self.job.end.to_string(),
                service,
                worker: worker
                    .as_ref()
                    .map(|w| w.child.pid().as_raw().cast_unsigned()),
                restarts: self.restarts,
                last_end: self.last_end.clone(),
                interface_traffic: interface::traffic(command, &self.job.interface),
            },
            report: worker.and_then(|worker| worker.report.take()),
        }
    }
}
