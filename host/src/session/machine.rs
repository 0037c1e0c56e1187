//! The session as a state machine, without any I/O.
//!
//! [`Machine::step`] takes an event and the time, and returns the actions that follow from them. The
//! loop in `run` polls, makes events of what it sees, and performs the actions.
//!
//! | Phase | The supervisor waits for | What it does then |
//! |---|---|---|
//! | namespace pending | the namespace child to make its namespace; workers open their links meanwhile | |
//! | opening | each worker to open its link | it makes a port of the panel for each link that wants one, and tells the namespace child to make and configure the other interfaces |
//! | interfaces pending | the namespace child to do so | it gives each worker its side of the link |
//! | settling | each worker to make link and interface know each other's state | it tells the namespace child to execute the command |
//! | running | the command to end | it ends the workers |
//! | ending | all children to end | it finishes, or starts over without the panel |
//!
//! Before the phase *running*, each failure and each limit that is exceeded ends the session. From
//! then on nothing does but the end of the command: a worker that ends is started again (`link`).
//! A session without a link starts in that phase, because its namespace child waits for nothing.
//!
//! The system's limits may leave no room for both the panel and the namespace. The namespace child
//! finds that out. Then the session ends all children, leaves the panel, which makes room, and
//! starts over.

use std::mem;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::Failure;
use super::link::{BEAT, Link, LinkAction, MAX_UNANSWERED_AT_OPEN, WorkerEvent};
use crate::error::{Error, ErrorKind};
use crate::ipc::{FromNamespace, ToNamespace, malformed};
use crate::sys::child::Exit;
use crate::sys::user_namespace::is_crowded;

/// How long the namespace child may take to make its namespace, and again to make the interfaces.
/// The kernel makes and removes network namespaces one after the other for the whole machine:
/// beside hundreds of sessions that start or end, that takes seconds.
const NAMESPACE_LIMIT: Duration = Duration::from_secs(30);
/// How long all workers together may take to open their links, and again to settle. A worker that
/// hangs from the start is killed no sooner once the command runs.
const OPENING_LIMIT: Duration = BEAT.saturating_mul(MAX_UNANSWERED_AT_OPEN);
/// How long workers may take to report: `vdectl status` waits for a second.
const REPORT_LIMIT: Duration = Duration::from_millis(500);

/// What the loop has seen. Links are numbered in the order of the plan.
#[derive(Debug)]
pub(super) enum Event {
    /// The namespace child has sent a message.
    Namespace(FromNamespace, Vec<OwnedFd>),
    /// The namespace child has closed its channel: the command is executed.
    NamespaceClosed,
    /// The command has ended, or the namespace child before it could execute the command. All that
    /// it has sent was an event before.
    CommandEnded(Exit),
    /// The ports were made, but those that the panel has refused.
    PortsMade { refused: Vec<(usize, Error)> },
    /// The worker of a link has done something.
    Worker(usize, WorkerEvent),
    /// Something failed without which there is no session.
    Failed(Error),
    /// A signal has come, other than SIGCHLD.
    Signal(Signal),
    /// A process asks for the status.
    StatusQuery,
    /// Time has passed.
    Time,
    /// All children have ended.
    ChildrenEnded,
}

/// What the loop does.
#[derive(Debug)]
pub(super) enum Action {
    /// Fork the namespace child.
    StartNamespace,
    /// Make ports of the panel for some links, in that network namespace.
    MakePorts(OwnedFd, Vec<usize>),
    /// Send a message to the namespace child.
    ToNamespace(ToNamespace),
    /// Hold these descriptors: what came with [`FromNamespace::InterfacesMade`].
    TakeInterfaces(Vec<OwnedFd>),
    /// Do something for a link.
    Link(usize, LinkAction),
    /// Send a signal to the command.
    PassOn(Signal),
    /// Answer all who ask for the status.
    AnswerStatus,
    /// Give memory back that only the start needed.
    GiveBackMemory,
    /// End all children; [`Event::ChildrenEnded`] follows.
    EndChildren,
    /// Let go of the panel, for that reason.
    LeavePanel(Error),
    /// Return from the loop.
    Finish(Result<i32, Failure>),
}

/// What follows when the children have ended.
#[derive(Debug)]
enum Next {
    Finish(Result<i32, Failure>),
    /// Without the panel, which has left no room for the namespace.
    StartOver(Error),
}

#[derive(Debug)]
enum Phase {
    NamespacePending {
        deadline: Instant,
    },
    Opening {
        deadline: Option<Instant>,
        /// The network namespace.
        network: OwnedFd,
    },
    InterfacesPending {
        deadline: Instant,
    },
    Settling {
        deadline: Option<Instant>,
    },
    Running {
        next_beat: Instant,
    },
    Ending(Next),
    Finished,
}

#[derive(Debug)]
pub(super) struct Machine {
    phase: Phase,
    links: Vec<Link>,
    /// Until when a status query waits for reports, if there is one.
    query: Option<Instant>,
    has_panel: bool,
    /// How long links may take to open, and again to settle.
    opening_limit: Duration,
}

impl Machine {
    /// A session with links of these names, and the actions that start it. Links may take `wait`
    /// longer than usual to open.
    pub(super) fn start(
        names: impl Iterator<Item = String>,
        wait: Duration,
        has_panel: bool,
        now: Instant,
    ) -> (Self, Vec<Action>) {
        let mut machine = Self {
            phase: Phase::Finished,
            links: names.map(|name| Link::new(name, now)).collect(),
            query: None,
            has_panel,
            opening_limit: OPENING_LIMIT.saturating_add(wait),
        };
        let actions = machine.begin(now);
        (machine, actions)
    }

    pub(super) fn link(&self, index: usize) -> &Link {
        &self.links[index]
    }

    /// When [`Event::Time`] is due, if nothing else happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let is_served = self.links.iter().any(Link::is_served);
        let phase = match self.phase {
            Phase::NamespacePending { deadline } | Phase::InterfacesPending { deadline } => {
                Some(deadline)
            }
            Phase::Opening { deadline, .. } | Phase::Settling { deadline } => deadline,
            Phase::Running { next_beat } => is_served.then_some(next_beat),
            Phase::Ending(_) | Phase::Finished => None,
        };
        let restarts = self.links.iter().filter_map(Link::restart);
        restarts.chain(phase).chain(self.query).min()
    }

    /// What is to be done about an event.
    pub(super) fn step(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match (&self.phase, event) {
            (Phase::Ending(_), Event::ChildrenEnded) => self.leave(now),
            (Phase::Ending(_) | Phase::Finished, _) => Vec::new(),
            (_, event) => match self.handle(event, now) {
                Ok(mut actions) => {
                    self.advance(now, &mut actions);
                    actions
                }
                Err(failure) => self.end(Next::Finish(Err(failure))),
            },
        }
    }

    fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Starts the session, or starts it over.
    fn begin(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = vec![Action::StartNamespace];
        for (index, link) in self.links.iter_mut().enumerate() {
            actions.push(Action::Link(index, link.start(now)));
        }
        self.phase = match self.links.is_empty() {
            true => running(now, &mut actions),
            false => Phase::NamespacePending {
                deadline: now + NAMESPACE_LIMIT,
            },
        };
        actions
    }

    fn end(&mut self, next: Next) -> Vec<Action> {
        self.phase = Phase::Ending(next);
        self.query = None;
        vec![Action::EndChildren]
    }

    /// Leaves the phase *ending*.
    fn leave(&mut self, now: Instant) -> Vec<Action> {
        match mem::replace(&mut self.phase, Phase::Finished) {
            Phase::Ending(Next::StartOver(error)) => {
                self.has_panel = false;
                let mut actions = vec![Action::LeavePanel(error)];
                actions.extend(self.begin(now));
                actions
            }
            Phase::Ending(Next::Finish(outcome)) => vec![Action::Finish(outcome)],
            _ => Vec::new(),
        }
    }

    fn handle(&mut self, event: Event, now: Instant) -> Result<Vec<Action>, Failure> {
        match event {
            Event::Namespace(message, fds) => return self.namespace(message, fds, now),
            Event::NamespaceClosed | Event::CommandEnded(_) if !self.is_running() => {
                let message = "cannot run the command: the process that prepares it has died";
                return Err(Error::closed(message).into());
            }
            Event::NamespaceClosed => {}
            Event::CommandEnded(exit) => return Ok(self.end(Next::Finish(Ok(exit.code())))),
            Event::PortsMade { refused } => return self.make_interfaces(refused, now),
            Event::Worker(index, event) => {
                let is_running = self.is_running();
                let action = self.links[index].step(event, is_running, now)?;
                return Ok(Vec::from_iter(
                    action.map(|action| Action::Link(index, action)),
                ));
            }
            Event::Failed(error) => return Err(error.into()),
            Event::Signal(signal) if !self.is_running() => return Err(Failure::Signal(signal)),
            Event::Signal(signal @ (Signal::SIGTERM | Signal::SIGHUP)) => {
                return Ok(vec![Action::PassOn(signal)]);
            }
            // The terminal has sent it to the command, too.
            Event::Signal(_) => {}
            Event::StatusQuery => {
                self.query.get_or_insert(now + REPORT_LIMIT);
                let links = self.links.iter_mut().enumerate();
                let query =
                    |(index, link): (usize, &mut Link)| Some(Action::Link(index, link.query()?));
                return Ok(links.filter_map(query).collect());
            }
            Event::Time => return self.time(now),
            Event::ChildrenEnded => {}
        }
        Ok(Vec::new())
    }

    /// Handles a message of the namespace child.
    fn namespace(
        &mut self,
        message: FromNamespace,
        mut fds: Vec<OwnedFd>,
        now: Instant,
    ) -> Result<Vec<Action>, Failure> {
        match (message, &self.phase) {
            (FromNamespace::NamespaceMade, Phase::NamespacePending { .. }) => {
                let network = fds
                    .pop()
                    .ok_or_else(|| malformed("no namespace came along"))?;
                self.phase = Phase::Opening {
                    deadline: now.checked_add(self.opening_limit),
                    network,
                };
                Ok(Vec::new())
            }
            (FromNamespace::InterfacesMade, Phase::InterfacesPending { .. }) => {
                self.phase = Phase::Settling {
                    deadline: now.checked_add(self.opening_limit),
                };
                let mut actions = vec![Action::TakeInterfaces(fds)];
                let give_side = |index| Action::Link(index, LinkAction::GiveSide);
                actions.extend((0..self.links.len()).map(give_side));
                Ok(actions)
            }
            (FromNamespace::Failed { error, .. }, Phase::NamespacePending { .. })
                if self.has_panel && is_crowded(&error) =>
            {
                Ok(self.end(Next::StartOver(error)))
            }
            (FromNamespace::Failed { status, error }, _) => Err(Failure::Error(status, error)),
            (FromNamespace::NamespaceMade | FromNamespace::InterfacesMade, _) => {
                Err(malformed("it is not its turn").into())
            }
        }
    }

    /// Has the namespace child make the interfaces of all links that are not on the panel. A tap
    /// will do where the panel refuses a port, unless the lack of descriptors is why: then the
    /// interface may exist, and a tap could not be made either.
    fn make_interfaces(
        &mut self,
        refused: Vec<(usize, Error)>,
        now: Instant,
    ) -> Result<Vec<Action>, Failure> {
        let is_tap = |(index, link): (usize, &Link)| {
            !link.wants_panel() || refused.iter().any(|(refused, _)| *refused == index)
        };
        let taps = self.links.iter().enumerate().map(is_tap).collect();
        let mut refused = refused.into_iter().map(|(_, error)| error);
        if let Some(error) = refused.find(|error| error.errno == libc::EMFILE) {
            return Err(error.into());
        }
        self.phase = Phase::InterfacesPending {
            deadline: now + NAMESPACE_LIMIT,
        };
        Ok(vec![Action::ToNamespace(ToNamespace::MakeInterfaces(taps))])
    }

    /// Does what is due.
    fn time(&mut self, now: Instant) -> Result<Vec<Action>, Failure> {
        let mut actions = Vec::new();
        match &mut self.phase {
            Phase::NamespacePending { deadline } if *deadline <= now => {
                return Err(late("the namespace was not made", NAMESPACE_LIMIT));
            }
            Phase::InterfacesPending { deadline } if *deadline <= now => {
                return Err(late("the interfaces were not made", NAMESPACE_LIMIT));
            }
            Phase::Opening { deadline, .. } if deadline.is_some_and(|deadline| deadline <= now) => {
                return Err(self.late_link("the plugin has not opened the link", Link::is_open));
            }
            Phase::Settling { deadline } if deadline.is_some_and(|deadline| deadline <= now) => {
                return Err(self.late_link("the link does not settle", Link::is_settled));
            }
            Phase::Running { next_beat } if *next_beat <= now => {
                *next_beat = now + BEAT;
                for (index, link) in self.links.iter_mut().enumerate() {
                    if link.is_served() {
                        actions.push(Action::Link(index, LinkAction::CheckInterface));
                        actions.extend(link.beat().map(|action| Action::Link(index, action)));
                    }
                }
            }
            _ => {}
        }
        for (index, link) in self.links.iter_mut().enumerate() {
            if link.restart().is_some_and(|at| at <= now) {
                actions.push(Action::Link(index, link.start(now)));
            }
        }
        Ok(actions)
    }

    /// The failure of the first link that has not come far enough.
    fn late_link(&self, complaint: &str, is_enough: impl Fn(&Link) -> bool) -> Failure {
        let mut links = self.links.iter();
        let name = links.find(|link| !is_enough(link)).map_or("", Link::name);
        late(&format!("{name}: {complaint}"), self.opening_limit)
    }

    /// Goes on to the next phase if nothing is left to wait for, and answers a status query.
    fn advance(&mut self, now: Instant, actions: &mut Vec<Action>) {
        let all = |is_enough: fn(&Link) -> bool| self.links.iter().all(is_enough);
        let (are_open, are_settled) = (all(Link::is_open), all(Link::is_settled));
        let wants_panel = |index: &usize| self.link(*index).wants_panel();
        let ports = (0..self.links.len()).filter(wants_panel).collect();
        self.phase = match mem::replace(&mut self.phase, Phase::Finished) {
            Phase::Opening { network, .. } if are_open => {
                actions.push(Action::MakePorts(network, ports));
                Phase::InterfacesPending {
                    deadline: now + NAMESPACE_LIMIT,
                }
            }
            Phase::Settling { .. } if are_settled => {
                actions.push(Action::ToNamespace(ToNamespace::Run));
                running(now, actions)
            }
            phase => phase,
        };
        let is_over = |until| until <= now || !self.links.iter().any(Link::owes_report);
        if self.query.is_some_and(is_over) {
            self.query = None;
            actions.push(Action::AnswerStatus);
        }
    }
}

/// Begins the phase *running*.
fn running(now: Instant, actions: &mut Vec<Action>) -> Phase {
    actions.push(Action::GiveBackMemory);
    Phase::Running {
        next_beat: now + BEAT,
    }
}

/// The failure of what was not done in time.
fn late(complaint: &str, limit: Duration) -> Failure {
    let error = Error::new(ErrorKind::Busy, format!("{complaint} within {limit:?}"));
    error.hint("-vv may tell what it waits for").into()
}

#[cfg(test)]
mod tests;
