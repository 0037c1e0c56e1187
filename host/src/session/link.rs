//! One interface's link as a state machine: its worker's states, without any I/O.
//!
//! [`Link::step`] takes what the worker has done, and returns the action that follows from it.
//!
//! A worker that ends is started again after a delay that doubles from `FIRST_DELAY` to
//! `LAST_DELAY`. A worker that hangs is killed: the supervisor pings each worker at every beat, and
//! kills one that has not answered for too many beats. Beats are counted instead of time, so that
//! no worker is late when the supervisor itself was stopped.

use std::mem;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::ipc::status::Service;
use crate::ipc::{FromWorker, ToWorker};
use crate::sys::child::Exit;
use crate::worker;

/// How long after its end a worker is started again, the first time: soon enough for connections
/// not to notice.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest such delay: what the user mends must work again soon.
const LAST_DELAY: Duration = Duration::from_secs(5);
/// A worker that has lived this long has not failed at once, so the next delay is the first again.
const STABLE: Duration = Duration::from_secs(10);

/// The time between two pings of a worker.
pub(crate) const BEAT: Duration = Duration::from_secs(1);
/// For how many beats a worker may leave a ping unanswered. A worker that is stopped for three
/// seconds does no harm.
const MAX_UNANSWERED: u32 = 5;
/// The same for a worker that opens its link: a plugin may have to resolve a name first.
pub(crate) const MAX_UNANSWERED_AT_OPEN: u32 = 10;

/// What a worker has done.
#[derive(Debug)]
pub(crate) enum WorkerEvent {
    /// It has sent a message on its first channel.
    Message(FromWorker),
    /// It has sent a malformed message there.
    Malformed,
    /// It has closed a channel.
    Closed,
    /// It has ended. All that it has sent was an event before.
    Ended {
        exit: Exit,
        /// Whether the interface was deleted, as far as the supervisor can see.
        is_deleted: bool,
    },
}

/// What the loop does for a link.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LinkAction {
    /// Fork a worker.
    Start,
    /// Tell the worker what its side of the link is.
    GiveSide,
    /// Send the worker a message.
    Send(ToWorker),
    /// Tell the worker if its interface was deleted.
    CheckInterface,
    /// Kill the worker and close its channels.
    Kill,
    /// The same for a worker that does not answer.
    KillHanging,
    /// Take the interface's carrier away: a worker is started again after the delay.
    AwaitRestart { exit: Exit, delay: Duration },
    /// The interface was deleted: let go of what is held for the link.
    Close,
    /// Log the failure of the link.
    Warn(Error),
}

/// How far a worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It opens its link.
    Opening,
    /// Its link is open.
    Open { wants_panel: bool },
    /// The link and the interface know each other's state.
    Settled,
    /// It was killed or has closed a channel, and is about to end.
    Closing,
}

/// Whether a worker has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ping {
    Answered,
    /// The ping was sent so many beats ago.
    Unanswered(u32),
    /// It is killed for not answering, and ends when the kernel lets it.
    GivenUp,
}

#[derive(Debug)]
struct Worker {
    stage: Stage,
    started: Instant,
    ping: Ping,
    /// Whether it has not yet sent a report that the supervisor asked for.
    owes_report: bool,
}

/// Who serves the link.
#[derive(Debug)]
enum State {
    /// A worker.
    Served(Worker),
    /// A worker that is to be started.
    Restarting { at: Instant },
    /// No worker, for good: the interface was deleted.
    Closed,
}

/// One interface's link.
#[derive(Debug)]
pub(crate) struct Link {
    /// Its name for errors: the interface and the VNL.
    name: String,
    state: State,
    /// The delay before the next restart.
    delay: Duration,
    restarts: u32,
    /// How the last worker ended.
    last_exit: Option<Exit>,
}

impl Link {
    /// A link whose worker is started now.
    pub(crate) fn new(name: String, now: Instant) -> Self {
        Self {
            name,
            state: served(now),
            delay: FIRST_DELAY,
            restarts: 0,
            last_exit: None,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn worker(&self) -> Option<&Worker> {
        match &self.state {
            State::Served(worker) => Some(worker),
            State::Restarting { .. } | State::Closed => None,
        }
    }

    fn worker_mut(&mut self) -> Option<&mut Worker> {
        match &mut self.state {
            State::Served(worker) => Some(worker),
            State::Restarting { .. } | State::Closed => None,
        }
    }

    /// How far the worker has come, if there is one.
    pub(crate) fn stage(&self) -> Option<Stage> {
        self.worker().map(|worker| worker.stage)
    }

    /// Whether the worker is still to send a report.
    pub(crate) fn owes_report(&self) -> bool {
        let owes = |worker: &Worker| worker.owes_report && worker.stage != Stage::Closing;
        self.worker().is_some_and(owes)
    }

    /// When a worker is to be started, if one is.
    pub(crate) fn restart(&self) -> Option<Instant> {
        match self.state {
            State::Restarting { at } => Some(at),
            State::Served(_) | State::Closed => None,
        }
    }

    /// Whether it has no worker for good, because the interface was deleted.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Starts a worker.
    pub(crate) fn start(&mut self, now: Instant) -> LinkAction {
        self.state = served(now);
        LinkAction::Start
    }

    /// Handles what the worker has done.
    ///
    /// # Errors
    /// The link has failed before the session was running.
    pub(crate) fn step(
        &mut self,
        event: WorkerEvent,
        is_running: bool,
        now: Instant,
    ) -> Result<Option<LinkAction>> {
        let State::Served(worker) = &mut self.state else {
            return Ok(None);
        };
        match event {
            WorkerEvent::Message(message) => {
                worker.ping = Ping::Answered;
                match message {
                    FromWorker::Open { wants_panel } => {
                        worker.stage = Stage::Open { wants_panel };
                        // A worker that replaces another gets the interface that there is.
                        return Ok(is_running.then_some(LinkAction::GiveSide));
                    }
                    FromWorker::Settled => worker.stage = Stage::Settled,
                    FromWorker::Report(_) => worker.owes_report = false,
                    FromWorker::Pong => {}
                    FromWorker::Failed(error) if is_running => {
                        return Ok(Some(LinkAction::Warn(error)));
                    }
                    FromWorker::Failed(error) => return Err(error),
                }
            }
            // It may have been the report, but it is no answer to a ping: a worker that sends
            // nothing else hangs.
            WorkerEvent::Malformed => worker.owes_report = false,
            // A worker does that when it ends, and one that goes on without is of no use.
            WorkerEvent::Closed => {
                worker.stage = Stage::Closing;
                return Ok(Some(LinkAction::Kill));
            }
            WorkerEvent::Ended { exit, .. } if !is_running => {
                let message = format!("{}: its process ended with {exit}", self.name);
                return Err(
                    Error::closed(message).hint("its plugin is to blame; -vv may tell more")
                );
            }
            WorkerEvent::Ended { exit, is_deleted } => {
                if now.saturating_duration_since(worker.started) >= STABLE {
                    self.delay = FIRST_DELAY;
                }
                self.last_exit = Some(exit);
                if is_deleted || exit == Exit::Status(worker::EXIT_NO_INTERFACE) {
                    self.state = State::Closed;
                    return Ok(Some(LinkAction::Close));
                }
                let delay = self.delay;
                self.state = State::Restarting { at: now + delay };
                self.delay = (delay * 2).min(LAST_DELAY);
                self.restarts += 1;
                return Ok(Some(LinkAction::AwaitRestart { exit, delay }));
            }
        }
        Ok(None)
    }

    /// Asks for a report, unless one is still to come.
    pub(crate) fn query(&mut self) -> Option<LinkAction> {
        let worker = self.worker_mut()?;
        let is_asked = mem::replace(&mut worker.owes_report, true);
        (!is_asked).then_some(LinkAction::Send(ToWorker::SendReport))
    }

    /// Pings the worker, or has it killed.
    pub(crate) fn beat(&mut self) -> Option<LinkAction> {
        let worker = self.worker_mut()?;
        let limit = match worker.stage {
            Stage::Opening => MAX_UNANSWERED_AT_OPEN,
            Stage::Open { .. } | Stage::Settled | Stage::Closing => MAX_UNANSWERED,
        };
        match &mut worker.ping {
            Ping::Answered => {
                worker.ping = Ping::Unanswered(0);
                Some(LinkAction::Send(ToWorker::Ping))
            }
            Ping::Unanswered(beats) if *beats < limit => {
                *beats += 1;
                None
            }
            Ping::Unanswered(_) => {
                worker.stage = Stage::Closing;
                worker.ping = Ping::GivenUp;
                Some(LinkAction::KillHanging)
            }
            Ping::GivenUp => None,
        }
    }

    /// How the link is served, how often its worker was started again, and how the last one ended.
    pub(crate) fn service(&self) -> (Service, u32, String) {
        let service = match &self.state {
            State::Served(worker) if worker.owes_report => Service::Silent,
            State::Served(_) => Service::Served,
            State::Restarting { .. } => Service::Restarting,
            State::Closed => Service::Closed,
        };
        let last_exit = self.last_exit.map(|exit| exit.to_string());
        (service, self.restarts, last_exit.unwrap_or_default())
    }
}

/// The state of a link whose worker is started now.
fn served(now: Instant) -> State {
    State::Served(Worker {
        stage: Stage::Opening,
        started: now,
        ping: Ping::Answered,
        owes_report: false,
    })
}
