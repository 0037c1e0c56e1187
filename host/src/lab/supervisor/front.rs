//! How a lab is found and reached: its name, its two sockets, and the connections to them.
//!
//! `vdectl status` asks on one socket, `vdectl lab` on the other ([`lab_socket`]). A connection to
//! the second carries one request. Whoever asks for the lab's end waits for the end of the
//! connection; whoever watches the lab gets its events.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use vdens_impairment::request::Request as LinkChange;

use super::Request;
use crate::error::{Error, Result};
use crate::ipc::lab_socket::{self, Asker};
use crate::ipc::listener::{BACKLOG, Listener};
use crate::ipc::status::Process;
use crate::ipc::status::lab::{Happening, LabEvent, LabState};
use crate::ipc::status::server::Server;
use crate::ipc::{Channel, MAX_REPORT, Received, ToLab, malformed, read_report};
use crate::lab::shape::Interface;
use crate::sys::names::{Claim, Kind, Member};

/// Where something can come in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Door {
    Status,
    Lab,
    Asker(usize),
}

/// What somebody wants.
#[derive(Debug)]
pub(super) enum Wish {
    /// The lab's status.
    Status,
    /// The end of the lab.
    End,
    /// A change of the lab. The connection waits for the outcome.
    Change(Asker, Result<Request>),
    /// A change of the link at an interface. The same.
    Link(Asker, Interface, LinkChange),
    /// Events from now on. The first says what the lab does.
    Watch(Asker),
}

/// The ways to a lab.
#[derive(Debug)]
pub(super) struct Front {
    /// The lab's name. It is given up before those who wait for the end learn of that.
    claim: Claim,
    lab: Option<Listener>,
    status: Option<Server>,
    /// Connections that have asked for nothing yet, or wait for the end.
    askers: Vec<Asker>,
    /// Connections that get the events.
    watchers: Vec<Asker>,
}

impl Front {
    /// Claims the lab's name, and listens.
    ///
    /// # Errors
    /// The name is in use, or the runtime directory cannot be used.
    pub(super) fn open(name: &str) -> Result<Self> {
        Ok(Self {
            claim: Claim::take(name, Kind::Lab)?,
            lab: Some(lab_socket::listen()?),
            status: Server::start(),
            askers: Vec::new(),
            watchers: Vec::new(),
        })
    }

    /// The lab's name.
    pub(super) fn name(&self) -> &str {
        self.claim.name()
    }

    /// Says which nodes the lab's name leads to.
    ///
    /// # Errors
    /// The runtime directory is full.
    pub(super) fn publish(&mut self, members: Vec<Member>) -> Result<()> {
        self.claim.publish(members)
    }

    /// What is to be polled.
    pub(super) fn doors(&self) -> impl Iterator<Item = Door> {
        let askers = (0..self.askers.len()).map(Door::Asker);
        [Door::Status, Door::Lab].into_iter().chain(askers)
    }

    /// A door's descriptor, if it is open.
    pub(super) fn fd(&self, door: Door) -> Option<BorrowedFd<'_>> {
        match door {
            Door::Status => self.status.as_ref().map(AsFd::as_fd),
            Door::Lab => self.lab.as_ref().map(AsFd::as_fd),
            Door::Asker(at) => self.askers.get(at).map(AsFd::as_fd),
        }
    }

    /// Receives what has come in. Doors are served from the last to the first, because an asker
    /// that has asked leaves its place.
    pub(super) fn receive(&mut self, door: Door) -> Option<Wish> {
        match door {
            Door::Status => {
                let accepted = self.status.as_mut()?.accept();
                let accepted = accepted.inspect_err(|error| log::info!("{error}"));
                if accepted.is_err() {
                    self.status = None;
                }
                accepted
                    .is_ok_and(|is_asked| is_asked)
                    .then_some(Wish::Status)
            }
            Door::Lab => {
                self.accept();
                None
            }
            Door::Asker(at) => self.read(at),
        }
    }

    /// Accepts connections, and closes those that are too many.
    fn accept(&mut self) {
        while let Some(listener) = &mut self.lab {
            match listener.accept() {
                Ok(Some(asker)) if self.askers.len() < BACKLOG => {
                    self.askers.push(Channel::from(asker));
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(error) => {
                    log::error!("vdectl lab cannot change the lab any more: {error}");
                    self.lab = None;
                }
            }
        }
    }

    /// Reads what an asker wants.
    fn read(&mut self, at: usize) -> Option<Wish> {
        let asker = self.askers.remove(at);
        match asker.receive() {
            Ok(Received::Message(ToLab::Down, _)) => {
                self.askers.push(asker);
                Some(Wish::End)
            }
            Ok(Received::Message(ToLab::Watch, _)) => Some(Wish::Watch(asker)),
            Ok(Received::Message(ToLab::Apply, mut fds)) => {
                let request = fds
                    .pop()
                    .ok_or_else(|| Error::closed("a descriptor was lost"))
                    .and_then(|fd| read_report(fd, MAX_REPORT))
                    .and_then(|text| serde_json::from_str::<Request>(&text).map_err(malformed));
                Some(Wish::Change(asker, request))
            }
            Ok(Received::Message(
                ToLab::Link {
                    node,
                    interface: name,
                    change,
                },
                _,
            )) => Some(Wish::Link(asker, Interface { node, name }, change)),
            Ok(Received::Malformed(why)) => Some(Wish::Change(asker, Err(malformed(why)))),
            Ok(Received::Closed) | Err(_) => None,
        }
    }

    /// Answers those who want the status.
    pub(super) fn answer_status(&mut self, process: &Process<()>) {
        if let Some(status) = &mut self.status {
            status.answer(process);
        }
    }

    /// Sends an asker the events from now on.
    pub(super) fn watch(&mut self, asker: Asker, state: LabState) {
        if asker
            .send_report(&self.event(Happening::State { state }))
            .is_ok()
        {
            self.watchers.push(asker);
        }
    }

    /// Whether somebody gets the events.
    pub(super) fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    /// Ends the connections of those who get the events.
    pub(super) fn dismiss_watchers(&mut self) {
        self.watchers.clear();
    }

    /// Sends an event to those who watch. One who does not read loses the connection.
    pub(super) fn tell(&mut self, what: Happening) {
        if !self.watchers.is_empty() {
            let event = self.event(what);
            self.watchers
                .retain(|watcher| watcher.send_report(&event).is_ok());
        }
    }

    fn event(&self, what: Happening) -> LabEvent {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        LabEvent {
            time: now.unwrap_or_default().as_secs_f64(),
            lab: self.name().to_owned(),
            what,
        }
    }

    /// Lets nobody find the lab's status any more.
    pub(super) fn close(&mut self) {
        self.status = None;
    }

    /// Drops all but the name, in a forked process.
    pub(super) fn forget(&mut self) {
        self.askers.clear();
        self.watchers.clear();
        (self.lab, self.status) = (None, None);
    }
}
