//! One link and its worker, for a supervisor that has no phases of its own: a lab's, or that of
//! `vdens-tap`.
//!
//! Until the link has settled once, a failure of its worker is one of the link, and ends it. From
//! then on a worker that ends is started again, and finds the interface as it is. The state machine
//! of a session's link decides that ([`Link`]).

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};

use super::held::{HeldLink, NewWorker};
use super::link::{Link, LinkAction, Stage, WorkerEvent};
use crate::error::{EXIT_FAILURE, Result};
use crate::ipc::FromWorker;
use crate::panel::Panel;
use crate::sys::child::{Child, Exit};
use crate::sys::process::wait;
use crate::worker::Job;

/// The end of a worker that could not be started.
pub(super) const NOT_STARTED: WorkerEvent = WorkerEvent::Ended {
    exit: Exit::Status(EXIT_FAILURE),
    is_deleted: false,
};

/// Which of a worker's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Where the supervisor asks.
    Control,
    /// Where the worker asks.
    Requests,
}

/// A link with a worker.
pub(crate) struct ServedLink {
    pub(crate) held: HeldLink,
    pub(crate) link: Link,
    /// Whether it has settled once. From then on its worker may fail.
    is_running: bool,
}

/// What a step has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The link has settled, for the first time or again.
    Settled,
    /// Something else, or nothing.
    Other,
}

impl ServedLink {
    /// A link whose worker is to be started. Errors call it `name`.
    pub(crate) fn new(job: Job, name: String) -> Self {
        Self {
            held: HeldLink::new(job),
            link: Link::new(name, Instant::now()),
            is_running: false,
        }
    }

    /// Whether it has settled once.
    pub(crate) fn is_running(&self) -> bool {
        self.is_running
    }

    /// Starts the worker. Returns in the worker's process what it starts with. If that fails after
    /// the link has settled once, it is tried again later.
    ///
    /// # Errors
    /// There are too many processes.
    pub(crate) fn start_worker(&mut self, panel: &Panel) -> Result<Option<NewWorker>> {
        if !self.is_running {
            return self.held.fork_worker();
        }
        self.link.start(Instant::now());
        self.held.fork_worker().or_else(|error| {
            self.step(WorkerEvent::Message(FromWorker::Failed(error)), panel)?;
            self.step(NOT_STARTED, panel)?;
            Ok(None)
        })
    }

    /// Whether a worker is to be started now.
    pub(crate) fn wants_worker(&self, now: Instant) -> bool {
        let is_new = !self.is_running && self.held.process.is_none();
        is_new || self.link.restart().is_some_and(|due| due <= now)
    }

    /// A channel's descriptor, while it is open.
    pub(crate) fn fd(&self, way: Way) -> Option<BorrowedFd<'_>> {
        let channels = self.held.channels()?;
        Some(match way {
            Way::Control => channels.control.as_fd(),
            Way::Requests => channels.requests.as_fd(),
        })
    }

    /// Receives what the worker has sent.
    ///
    /// # Errors
    /// The link never ran and has failed.
    pub(crate) fn receive(&mut self, way: Way, panel: &Panel) -> Result<Step> {
        let event = match way {
            Way::Control => self.held.receive(),
            Way::Requests => self.held.receive_request(Some(panel)),
        };
        event.map_or(Ok(Step::Other), |event| self.step(event, panel))
    }

    /// Steps the link's state machine, and performs what it decides.
    ///
    /// # Errors
    /// The link never ran and has failed.
    pub(crate) fn step(&mut self, event: WorkerEvent, panel: &Panel) -> Result<Step> {
        let was = self.link.stage();
        let action = self.link.step(event, self.is_running, Instant::now())?;
        let is_new = was != self.link.stage();
        // The interface may be there before the link is open.
        let is_opened = is_new
            && matches!(self.link.stage(), Some(Stage::Open { .. }))
            && self.held.has_interface();
        let action = action.or(is_opened.then_some(LinkAction::GiveSide));
        let has_settled = is_new && self.link.stage() == Some(Stage::Settled);
        self.is_running |= has_settled;
        action.map_or(Ok(()), |action| self.perform(action, panel))?;
        Ok(match has_settled {
            true => Step::Settled,
            false => Step::Other,
        })
    }

    /// Pings the worker, kills it if it hangs, and tells it if its interface was deleted.
    ///
    /// # Errors
    /// The link never ran and has failed.
    pub(crate) fn beat(&mut self, panel: &Panel) -> Result<()> {
        let beat = self.link.beat();
        for action in beat.into_iter().chain([LinkAction::CheckInterface]) {
            self.perform(action, panel)?;
        }
        Ok(())
    }

    /// Performs an action. If that fails, so has the worker.
    ///
    /// # Errors
    /// The link never ran and has failed.
    pub(crate) fn perform(&mut self, action: LinkAction, panel: &Panel) -> Result<()> {
        let Err(error) = self.held.perform(action, Some(panel)) else {
            return Ok(());
        };
        self.step(WorkerEvent::Message(FromWorker::Failed(error)), panel)?;
        self.step(WorkerEvent::Closed, panel).map(drop)
    }

    /// The worker's process.
    pub(crate) fn child(&self) -> Option<&Child> {
        self.held.child()
    }

    /// Reaps the worker if it has ended, after reading what it has sent last.
    ///
    /// # Errors
    /// The link never ran and has failed.
    pub(crate) fn reap(&mut self, panel: &Panel) -> Result<Step> {
        let mut step = Step::Other;
        if !self.held.reap() {
            return Ok(step);
        }
        while self.has_message() {
            step = self.receive(Way::Control, panel)?;
        }
        match self.held.take_ended() {
            Some(ended) => self.step(ended, panel),
            None => Ok(step),
        }
    }

    /// Whether the worker has sent something that was not received.
    fn has_message(&self) -> bool {
        self.fd(Way::Control).is_some_and(|fd| {
            let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
            wait(&mut fds, Some(Instant::now())).is_ok() && fds[0].any() == Some(true)
        })
    }
}
