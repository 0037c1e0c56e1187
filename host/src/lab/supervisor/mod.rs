//! A lab's supervisor: the process that `vdectl lab up` leaves behind.
//!
//! # Theory of operation
//!
//! The supervisor knows the lab as it is. To start a lab and to change one is the same: it computes
//! the difference to the lab as it is to be, and performs that at once ([`parts`]). What the nodes
//! have to do themselves comes after that ([`nodes`]). Meanwhile, and for as long as the lab runs,
//! it waits for what nodes, workers, signals and users say ([`front`]), and handles one after the
//! other. Before the commands of nodes run, it waits for links that lead outside ([`carrier`]).
//!
//! | Phase | |
//! |---|---|
//! | starting | the first failure ends the lab, and `up` reports it |
//! | changing | the first failure drops the requests that are left, and `apply` reports it |
//! | running | nothing is left to do |
//! | ending | a signal came, or `vdectl lab down` |
//!
//! The supervisor has one thread and loads no plugin. The nodes' inits are its children; if it is
//! killed, the kernel kills them, and everything in the nodes.

mod carrier;
mod front;
mod links;
mod nodes;
mod parts;
mod report;

use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::SystemTime;

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use serde::{Deserialize, Serialize};

use self::carrier::Place;
use self::front::{Door, Front, Wish};
use self::parts::Parts;
use super::model::{Lab, Node};
use super::of_node;
use super::outside::Channel;
use super::spawn::Inheritance;
use crate::error::{Error, ErrorKind, Result};
use crate::ipc::FromLab;
use crate::ipc::lab_socket::Asker;
use crate::ipc::status::lab::{Happening, LabState};
use crate::ipc::status::{Process, this_process};
use crate::plugins::host_services::InstalledPlugins;
use crate::sys::process::{give_back_memory, wait};
use crate::sys::signals::Signals;

/// A lab and its file, as `vdectl lab` sends them to the supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// The lab as it is to be.
    pub(super) lab: Lab,
    /// The file that says so, as an absolute path.
    pub(super) file: String,
}

/// What the lab does.
#[derive(Debug)]
enum Phase {
    Starting,
    Running,
    /// For whom, and what was changed.
    Changing(Asker, Vec<String>),
    Ending,
}

/// What a turn polls.
#[derive(Clone, Debug)]
enum Source {
    Signals,
    Door(Door),
    Node(String),
    Worker(usize, Channel),
    Changes(Place),
}

pub(super) struct Supervisor<'a> {
    signals: &'a Signals,
    file: String,
    started: SystemTime,
    phase: Phase,
    parts: Parts<'a>,
    /// Dropped last: who waits for the end of the lab learns of it then.
    front: Front,
}

impl<'a> Supervisor<'a> {
    /// The life of a lab. Calls `ready` when it runs.
    ///
    /// # Errors
    /// The lab cannot be made as it is to be. Nothing of it is left.
    pub(super) fn run(
        request: &Request,
        inheritance: Inheritance,
        plugins: InstalledPlugins,
        signals: &'a Signals,
        ready: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut supervisor = Self {
            signals,
            file: request.file.clone(),
            started: SystemTime::now(),
            phase: Phase::Starting,
            front: Front::open(&request.lab.name)?,
            parts: Parts::new(&request.lab, inheritance, plugins, signals)?,
        };
        let outcome = supervisor.live(&request.lab, ready);
        supervisor.end();
        outcome
    }

    fn live(&mut self, lab: &Lab, ready: impl FnOnce() -> Result<()>) -> Result<()> {
        self.rebuild(lab)?;
        let mut ready = Some(ready);
        loop {
            self.await_carrier();
            let is_done = self.parts.is_settled() && self.parts.nodes.are_idle();
            match mem::replace(&mut self.phase, Phase::Running) {
                Phase::Ending => return Ok(()),
                Phase::Starting if is_done => {
                    give_back_memory();
                    ready.take().map_or(Ok(()), |ready| ready())?;
                    self.front.tell(Happening::Running);
                }
                Phase::Changing(asker, summary) if is_done => {
                    self.front.tell(Happening::Running);
                    answer(&asker, &FromLab::Done(summary));
                }
                phase => self.phase = phase,
            }
            let turned = self.turn();
            self.tell_what_happened();
            if let Err(error) = turned {
                match mem::replace(&mut self.phase, Phase::Running) {
                    Phase::Changing(asker, _) => {
                        self.parts.nodes.drop_work(&mut self.parts.shape);
                        let message = error.to_string();
                        self.front.tell(Happening::Failed { message });
                        answer(&asker, &FromLab::Failed(error));
                    }
                    Phase::Starting => return Err(error),
                    Phase::Ending => return Ok(()),
                    Phase::Running => log::error!("lab {}: {error}", self.front.name()),
                }
            }
        }
    }

    /// Makes the lab what it is to be. Returns what changes, a line each.
    fn rebuild(&mut self, lab: &Lab) -> Result<Vec<String>> {
        let front = &mut self.front;
        let rebuilt = self.parts.rebuild(&lab.into(), &mut || front.forget());
        // Even if it failed, nodes may have started and ended.
        let published = self.front.publish(self.parts.nodes.members());
        self.tell_what_happened();
        rebuilt.and_then(|changes| published.map(|()| changes))
    }

    fn tell_what_happened(&mut self) {
        let happened = mem::take(&mut self.parts.happened);
        happened.into_iter().for_each(|what| self.front.tell(what));
    }

    /// Says which links that lead outside have no carrier yet. The lab runs without.
    fn await_carrier(&mut self) {
        for cable in self.parts.await_carrier() {
            let message = format!("link {cable}: no carrier yet, its far end is not there");
            match &mut self.phase {
                Phase::Changing(_, summary) => summary.push(message),
                _ => log::warn!("{message}; vdectl lab status shows when it has"),
            }
        }
    }

    /// Gives the nodes what they have to do, when all links are up, waits until something happens,
    /// and handles it.
    fn turn(&mut self) -> Result<()> {
        if let Err(error) = self.parts.watch(self.front.is_watched()) {
            log::warn!("{error}");
            self.front.dismiss_watchers();
        }
        if self.parts.is_settled() {
            self.parts.nodes.dispatch(&self.parts.shape)?;
        }
        let sources = self.sources();
        let fds = sources.iter().filter_map(|source| self.fd(source));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let deadlines = [self.parts.outside.deadline(), self.parts.carrier.deadline()];
        wait(&mut fds, deadlines.into_iter().flatten().min())?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        drop(fds);
        // From the last to the first, as the doors are served.
        for (source, is_ready) in sources.into_iter().zip(ready).rev() {
            if is_ready {
                self.handle(source)?;
            }
        }
        self.parts.make_interfaces()?;
        let front = &mut self.front;
        self.parts.tick(&mut || front.forget())
    }

    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![Source::Signals];
        sources.extend(self.front.doors().map(Source::Door));
        sources.extend(self.parts.nodes.names().cloned().map(Source::Node));
        let workers = self.parts.outside.channels();
        sources.extend(workers.map(|(at, channel)| Source::Worker(at, channel)));
        sources.extend(self.parts.watched().cloned().map(Source::Changes));
        sources.retain(|source| self.fd(source).is_some());
        sources
    }

    fn fd(&self, source: &Source) -> Option<BorrowedFd<'_>> {
        match source {
            Source::Signals => Some(self.signals.as_fd()),
            Source::Door(door) => self.front.fd(*door),
            Source::Node(name) => self.parts.nodes.fd(name),
            Source::Worker(at, channel) => self.parts.outside.fd(*at, *channel),
            Source::Changes(place) => self.parts.watched_fd(place),
        }
    }

    fn handle(&mut self, source: Source) -> Result<()> {
        let parts = &mut self.parts;
        match source {
            Source::Signals => self.read_signals(),
            Source::Door(door) => match self.front.receive(door) {
                Some(wish) => self.grant(wish),
                None => Ok(()),
            },
            Source::Worker(at, channel) => parts.outside.receive(at, channel, &parts.panel),
            Source::Changes(place) => {
                parts.read_changes(&place);
                Ok(())
            }
            Source::Node(name) => {
                let happened = parts.nodes.receive(&name, &mut parts.shape);
                let happened = happened.map_err(|error| of_node(&name, error))?;
                parts.happened.extend(happened);
                Ok(())
            }
        }
    }

    fn read_signals(&mut self) -> Result<()> {
        while let Some(signal) = self.signals.next() {
            if signal != Signal::SIGCHLD {
                self.phase = Phase::Ending;
            }
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(status) = waitid(Id::All, flags)
            && let Some(pid) = status.pid()
        {
            if let Some(node) = self.parts.reap(pid)? {
                log::error!("lab {}: the node {node} has ended", self.front.name());
                if let Err(error) = self.front.publish(self.parts.nodes.members()) {
                    log::warn!("{error}");
                }
            }
        }
        Ok(())
    }

    /// Does what somebody wants.
    fn grant(&mut self, wish: Wish) -> Result<()> {
        match wish {
            Wish::Status => {
                let status = self.status();
                self.front.answer_status(&status);
            }
            Wish::End => self.phase = Phase::Ending,
            Wish::Watch(asker) => self.front.watch(asker, self.state()),
            Wish::Change(asker, request) => {
                let changed = request.and_then(|request| self.change(request));
                self.begin(asker, changed);
            }
            Wish::Link(asker, interface, change) => {
                let changed = self.check_idle();
                let changed = changed.and_then(|()| self.parts.change_link(&interface, &change));
                self.begin(asker, changed.map(|()| Vec::new()));
            }
        }
        Ok(())
    }

    /// Waits for the end of a change that has begun, or says why it has not.
    fn begin(&mut self, asker: Asker, changed: Result<Vec<String>>) {
        match changed {
            Ok(summary) => self.phase = Phase::Changing(asker, summary),
            Err(error) => answer(&asker, &FromLab::Failed(error)),
        }
    }

    /// Whether a change may begin.
    fn check_idle(&self) -> Result<()> {
        match self.phase {
            Phase::Running => Ok(()),
            _ => {
                let message = format!("the lab '{}' is changing already", self.front.name());
                Err(Error::new(ErrorKind::Busy, message)
                    .hint("try again when it has changed: vdectl lab status"))
            }
        }
    }

    /// Begins a change. Returns what changes, a line each.
    fn change(&mut self, request: Request) -> Result<Vec<String>> {
        self.check_idle()?;
        let map_auto = |node: &&Node| node.map_auto;
        if let Some(node) = request.lab.nodes.iter().find(map_auto)
            && !self.parts.panel.has_subordinate_ids()
        {
            let error = Error::usage("the lab was started without subordinate ids");
            let error = error.hint("start it again: vdectl lab down, vdectl lab up");
            return Err(of_node(&node.name, error));
        }
        self.file = request.file;
        self.rebuild(&request.lab)
    }

    fn status(&self) -> Process<()> {
        let name = self.front.name();
        let lab = report::report(&self.parts, name, &self.file, self.state());
        Process {
            lab: Some(lab),
            ..this_process("lab", &[name.into()], self.started, "")
        }
    }

    fn state(&self) -> LabState {
        match self.phase {
            Phase::Starting => LabState::Starting,
            Phase::Changing(..) => LabState::Changing,
            Phase::Running | Phase::Ending => LabState::Running,
        }
    }

    /// Ends all nodes.
    fn end(&mut self) {
        // Nobody finds the lab any more, and its name is free when its nodes have ended.
        self.front.close();
        self.front.tell(Happening::Ending);
        self.parts.end();
    }
}

/// Answers an asker. One that was interrupted does not get the answer.
fn answer(asker: &Asker, answer: &FromLab) {
    if let Err(error) = asker.send(answer, &[]) {
        log::debug!("vdectl lab: {error}");
    }
}
