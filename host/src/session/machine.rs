//! The session as a state machine, without any I/O.
//!
//! [`Machine::step`] takes an event and the time, and returns the actions that follow from them.
//! The loop in `run` polls, makes events of what it sees, and performs the actions.
//!
//! | Phase | The supervisor waits for | Then it |
//! |---|---|---|
//! | namespace pending | the namespace child to make its namespace | |
//! | opening | each worker to open its link | makes ports of the panel, has the child make taps |
//! | interfaces pending | the namespace child to do so | gives each worker its side of the link |
//! | settling | each worker to make link and interface agree | has the child execute the command |
//! | running | the command to end | has the workers end |
//! | ending | all children to end | finishes, or starts over without the panel |
//!
//! Workers open their links from the start, also while the namespace is pending.
//!
//! Before the phase *running*, each failure ends the session, and so does a phase that takes longer
//! than its limit. From then on only the end of the command does: a worker that ends is started
//! again (`link`). A session without a link starts in that phase, because its namespace child waits
//! for nothing.
//!
//! In a PID namespace, its first process takes the namespace child's place: the child forks it and
//! ends.
//!
//! The system's limits may leave no room for both the panel and the namespace. The namespace child
//! finds that out. Then the session ends all children, leaves the panel, which makes room, and
//! starts over.

use std::mem;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::link::{BEAT, Link, LinkAction, MAX_UNANSWERED_AT_OPEN, Stage, WorkerEvent};
use super::{Failure, REPORT_LIMIT};
use crate::error::{Error, ErrorKind};
use crate::ipc::{FromNamespace, ToNamespace, malformed};
use crate::sys::child::Exit;
use crate::sys::user_namespace::is_crowded;

/// How long the namespace child may take to make its namespace, and again to make the interfaces.
/// The kernel makes and removes network namespaces one after the other for the whole machine:
/// beside hundreds of sessions that start or end, that takes seconds.
const NAMESPACE_LIMIT: Duration = Duration::from_secs(30);
/// How long the workers may take to open their links, and again to settle: as long as a worker that
/// opens its link may leave a ping unanswered while the command runs.
const OPENING_LIMIT: Duration = BEAT.saturating_mul(MAX_UNANSWERED_AT_OPEN);

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
    /// The ports were made, except those that the panel has refused.
    PortsMade { refused: Vec<(usize, Error)> },
    /// The worker of a link has done something.
    Worker(usize, WorkerEvent),
    /// Something has failed that the session cannot do without.
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
    /// Hold that process in place of the namespace child.
    HoldFirstProcess(u32, OwnedFd),
    /// Hold the netlink socket in the network namespace.
    HoldNetlink(OwnedFd),
    /// Say that the session runs.
    Announce,
    /// Make ports of the panel for some links, in that network namespace.
    MakePorts(OwnedFd, Vec<usize>),
    /// Send a message to the namespace child.
    ToNamespace(ToNamespace),
    /// Hold the descriptors that came with [`FromNamespace::InterfacesMade`].
    TakeInterfaces(Vec<OwnedFd>),
    /// Do something for a link.
    Link(usize, LinkAction),
    /// Send a signal to the command.
    PassOn(Signal),
    /// Answer the processes that ask for the status.
    AnswerStatus,
    /// Give memory back that only the start needed.
    GiveBackMemory,
    /// End all children; [`Event::ChildrenEnded`] follows.
    EndChildren,
    /// Let go of the panel, because of that error.
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

/// What a session waits for.
#[derive(Debug)]
enum Phase {
    NamespacePending,
    Opening {
        /// The network namespace.
        network: OwnedFd,
    },
    InterfacesPending,
    Settling,
    Running,
    Ending(Next),
    Finished,
}

#[derive(Debug)]
pub(super) struct Machine {
    phase: Phase,
    /// When the phase has lasted too long; while the command runs, the next beat.
    due: Option<Instant>,
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
            due: None,
            links: names.map(|name| Link::new(name, now)).collect(),
            query: None,
            has_panel,
            opening_limit: OPENING_LIMIT.saturating_add(wait),
        };
        let mut actions = Vec::new();
        machine.begin(now, &mut actions);
        (machine, actions)
    }

    pub(super) fn link(&self, index: usize) -> &Link {
        &self.links[index]
    }

    /// When [`Event::Time`] is due, if nothing else happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let is_served = |link: &Link| link.stage().is_some();
        let has_beats = !self.is_running() || self.links.iter().any(is_served);
        let due = self.due.filter(|_| has_beats);
        let restarts = self.links.iter().filter_map(Link::restart);
        restarts.chain(due).chain(self.query).min()
    }

    /// What is to be done about an event.
    pub(super) fn step(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match (&self.phase, event) {
            (Phase::Ending(_), Event::ChildrenEnded) => self.leave(now, &mut actions),
            (Phase::Ending(_) | Phase::Finished, _) => {}
            (_, event) => match self.handle(event, now, &mut actions) {
                Ok(()) => self.advance(now, &mut actions),
                Err(failure) => actions = self.end(Next::Finish(Err(failure))),
            },
        }
        actions
    }

    fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        let limit = match phase {
            Phase::NamespacePending | Phase::InterfacesPending => Some(NAMESPACE_LIMIT),
            Phase::Opening { .. } | Phase::Settling => Some(self.opening_limit),
            Phase::Running => Some(BEAT),
            Phase::Ending(_) | Phase::Finished => None,
        };
        self.phase = phase;
        self.due = limit.and_then(|limit| now.checked_add(limit));
    }

    /// Starts the session, or starts it over.
    fn begin(&mut self, now: Instant, actions: &mut Vec<Action>) {
        actions.push(Action::StartNamespace);
        actions.extend(self.each_link(|link| Some(link.start(now))));
        match self.links.is_empty() {
            true => self.run(now, actions),
            false => self.enter(Phase::NamespacePending, now),
        }
    }

    fn run(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.enter(Phase::Running, now);
        actions.push(Action::GiveBackMemory);
    }

    fn end(&mut self, next: Next) -> Vec<Action> {
        self.phase = Phase::Ending(next);
        self.due = None;
        self.query = None;
        vec![Action::EndChildren]
    }

    /// Leaves the phase *ending*.
    fn leave(&mut self, now: Instant, actions: &mut Vec<Action>) {
        match mem::replace(&mut self.phase, Phase::Finished) {
            Phase::Ending(Next::StartOver(error)) => {
                self.has_panel = false;
                actions.push(Action::LeavePanel(error));
                self.begin(now, actions);
            }
            Phase::Ending(Next::Finish(outcome)) => actions.push(Action::Finish(outcome)),
            _ => {}
        }
    }

    /// The actions for all links, in order.
    fn each_link(
        &mut self,
        mut act: impl FnMut(&mut Link) -> Option<LinkAction>,
    ) -> impl Iterator<Item = Action> {
        let links = self.links.iter_mut().enumerate();
        links.filter_map(move |(index, link)| Some(Action::Link(index, act(link)?)))
    }

    fn handle(
        &mut self,
        event: Event,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> Result<(), Failure> {
        let is_running = self.is_running();
        match event {
            Event::Namespace(message, fds) => self.namespace(message, fds, now, actions)?,
            Event::NamespaceClosed | Event::CommandEnded(_) if !is_running => {
                let message = "cannot run the command: the process that prepares it has died";
                return Err(Error::closed(message).into());
            }
            Event::NamespaceClosed => actions.push(Action::Announce),
            Event::CommandEnded(exit) => *actions = self.end(Next::Finish(Ok(exit.code()))),
            Event::PortsMade { refused } => actions.push(self.make_interfaces(&refused, now)?),
            Event::Worker(index, event) => {
                let action = self.links[index].step(event, is_running, now)?;
                actions.extend(action.map(|action| Action::Link(index, action)));
            }
            Event::Failed(error) => return Err(error.into()),
            Event::Signal(signal) if !is_running => return Err(Failure::Signal(signal)),
            Event::Signal(signal @ (Signal::SIGTERM | Signal::SIGHUP | Signal::SIGPWR)) => {
                actions.push(Action::PassOn(signal));
            }
            // The terminal has sent it to the command, too.
            Event::Signal(_) => {}
            Event::StatusQuery => {
                self.query.get_or_insert(now + REPORT_LIMIT);
                actions.extend(self.each_link(Link::query));
            }
            Event::Time => {
                if self.due.is_some_and(|due| due <= now) {
                    if !is_running {
                        return Err(self.late());
                    }
                    self.enter(Phase::Running, now);
                    let check = |link: &mut Link| link.stage().map(|_| LinkAction::CheckInterface);
                    actions.extend(self.each_link(check));
                    actions.extend(self.each_link(Link::beat));
                }
                let is_due = |link: &Link| link.restart().is_some_and(|at| at <= now);
                let restart = |link: &mut Link| is_due(link).then(|| link.start(now));
                actions.extend(self.each_link(restart));
            }
            Event::ChildrenEnded => {}
        }
        Ok(())
    }

    /// Handles a message of the namespace child.
    fn namespace(
        &mut self,
        message: FromNamespace,
        mut fds: Vec<OwnedFd>,
        now: Instant,
        actions: &mut Vec<Action>,
    ) -> Result<(), Failure> {
        match (message, &self.phase) {
            (FromNamespace::NamespaceMade, Phase::NamespacePending) => {
                let (Some(netlink), Some(network)) = (fds.pop(), fds.pop()) else {
                    return Err(malformed("no namespace came along").into());
                };
                actions.push(Action::HoldNetlink(netlink));
                self.enter(Phase::Opening { network }, now);
            }
            (FromNamespace::FirstProcess { pid }, _) => {
                let pidfd = fds.pop();
                let pidfd = pidfd.ok_or_else(|| malformed("no process came along"))?;
                actions.push(Action::HoldFirstProcess(pid, pidfd));
            }
            (FromNamespace::InterfacesMade, Phase::InterfacesPending) => {
                self.enter(Phase::Settling, now);
                actions.push(Action::TakeInterfaces(fds));
                actions.extend(self.each_link(|_| Some(LinkAction::GiveSide)));
            }
            (FromNamespace::Failed { error, .. }, Phase::NamespacePending)
                if self.has_panel && is_crowded(&error) =>
            {
                *actions = self.end(Next::StartOver(error));
            }
            (FromNamespace::Failed { status, error }, _) => {
                return Err(Failure::Error(status, error));
            }
            (FromNamespace::NamespaceMade | FromNamespace::InterfacesMade, _) => {
                return Err(malformed("it is not its turn").into());
            }
        }
        Ok(())
    }

    /// Has the namespace child make the interfaces of all links that are not on the panel. A tap
    /// will do where the panel refuses a port, unless the lack of descriptors is why: then the
    /// interface may exist, and a tap could not be made either.
    fn make_interfaces(
        &mut self,
        refused: &[(usize, Error)],
        now: Instant,
    ) -> Result<Action, Error> {
        let mut errors = refused.iter().map(|(_, error)| error);
        if let Some(error) = errors.find(|error| error.errno == libc::EMFILE) {
            return Err(error.clone());
        }
        let is_refused = |index| refused.iter().any(|(refused, _)| *refused == index);
        let links = self.links.iter().enumerate();
        let taps = links.map(|(index, link)| !wants_panel(link) || is_refused(index));
        let message = ToNamespace::MakeInterfaces(taps.collect());
        self.enter(Phase::InterfacesPending, now);
        Ok(Action::ToNamespace(message))
    }

    /// The failure of a phase that has lasted too long; it names the first link that is late.
    fn late(&self) -> Failure {
        let name = |is_enough: fn(&Link) -> bool| {
            let late = self.links.iter().find(|link| !is_enough(link));
            late.map_or("", Link::name)
        };
        let (complaint, limit) = match self.phase {
            Phase::Opening { .. } => {
                let complaint = format!("{}: the plugin has not opened the link", name(is_open));
                (complaint, self.opening_limit)
            }
            Phase::Settling => {
                let complaint = format!("{}: the link does not settle", name(is_settled));
                (complaint, self.opening_limit)
            }
            Phase::InterfacesPending => ("the interfaces were not made".into(), NAMESPACE_LIMIT),
            _ => ("the namespace was not made".into(), NAMESPACE_LIMIT),
        };
        let error = Error::new(ErrorKind::Busy, format!("{complaint} within {limit:?}"));
        error.hint("-vv may tell what it waits for").into()
    }

    /// Goes on to the next phase if nothing is left to wait for, and answers a status query.
    fn advance(&mut self, now: Instant, actions: &mut Vec<Action>) {
        match mem::replace(&mut self.phase, Phase::Finished) {
            Phase::Opening { network } if self.links.iter().all(is_open) => {
                let mut ports = Vec::from_iter(0..self.links.len());
                ports.retain(|index| wants_panel(&self.links[*index]));
                actions.push(Action::MakePorts(network, ports));
                self.enter(Phase::InterfacesPending, now);
            }
            Phase::Settling if self.links.iter().all(is_settled) => {
                actions.push(Action::ToNamespace(ToNamespace::Run));
                self.run(now, actions);
            }
            phase => self.phase = phase,
        }
        let is_over = |until| until <= now || !self.links.iter().any(Link::owes_report);
        if self.query.is_some_and(is_over) {
            self.query = None;
            actions.push(Action::AnswerStatus);
        }
    }
}

fn is_open(link: &Link) -> bool {
    matches!(link.stage(), Some(Stage::Open { .. } | Stage::Settled))
}

fn is_settled(link: &Link) -> bool {
    link.stage() == Some(Stage::Settled)
}

/// Whether the interface is to be a port of the panel.
fn wants_panel(link: &Link) -> bool {
    link.stage() == Some(Stage::Open { wants_panel: true })
}

#[cfg(test)]
mod tests;
