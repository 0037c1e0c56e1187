//! The supervisor's loop: it polls, makes events of what it sees, and performs the machine's
//! actions.
//!
//! Signals are polled first but handled last, so that the final messages of a child that has ended
//! are events before its end is one.
//!
//! An action that fails is an event, too. A worker that cannot be started counts as one that has
//! failed and ended.
//!
//! The requests on a worker's second channel neither depend on the session's state nor change it,
//! so the loop executes them without the machine.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Instant, SystemTime};

use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid};

use super::held::{HeldLink, lost_interface};
use super::link::{LinkAction, WorkerEvent};
use super::machine::{Action, Event, Machine};
use super::served::NOT_STARTED;
use super::{Failure, without_panel};
use crate::error::Result;
use crate::ipc::background::{Lifetime, Starter};
use crate::ipc::status::server::Server;
use crate::ipc::status::{self, Process};
use crate::ipc::{Channel, FromNamespace, FromWorker, Received, ToNamespace, malformed};
use crate::namespace::{self, Plan};
use crate::panel::{Panel, port_index};
use crate::sys::child::{CLEANUP_LIMIT, Child, end_all, exit_child, reap_strangers};
use crate::sys::interface;
use crate::sys::names::{Claim, Kind, Member};
use crate::sys::netlink::Netlink;
use crate::sys::process::{give_back_memory, wait};
use crate::sys::signals::Signals;
use crate::sys::terminal::Foreground;
use crate::worker::Job;
use crate::worker::carrier::LinkWatch;
use crate::worker::reconnecting::Wait;

/// What a turn polls.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Namespace,
    Control(usize),
    Requests(usize),
    Status,
}

/// The first process of the PID namespace, a child that this process has not forked. It may end
/// before the message about it comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstProcess {
    /// There is none, or it is held like any child.
    Settled,
    /// It may be there already, so a child that is not known may be it.
    Expected,
    /// It is held now, and may have ended before.
    JustHeld,
}

pub(super) struct Supervisor<'a> {
    plan: &'a Plan,
    signals: &'a Signals,
    /// The panel, or why there is none.
    panel: Result<Panel, String>,
    /// The namespace child, which becomes the command.
    command: Option<Child>,
    first: FirstProcess,
    /// The channel to it, until it is the command.
    namespace: Option<Channel<ToNamespace, FromNamespace>>,
    links: Vec<HeldLink>,
    machine: Machine,
    started: SystemTime,
    status: Option<Server>,
    /// A netlink socket in the network namespace, once that is made.
    netlink: Option<Netlink>,
    /// The session's name, if it has one.
    claim: Option<Claim>,
    /// Who waits for the session to run, if it starts in the background.
    starter: Option<&'a mut Starter>,
    outcome: Option<Result<i32, Failure>>,
}

impl<'a> Supervisor<'a> {
    /// The whole session.
    pub(super) fn run(
        plan: &'a Plan,
        jobs: Vec<Job>,
        signals: &'a Signals,
        panel: Result<Panel, String>,
        starter: Option<&'a mut Starter>,
    ) -> Result<i32, Failure> {
        let claim = |name: &String| Claim::take(name, Kind::Session);
        let claim = plan.name.as_ref().map(claim).transpose()?;
        let terminal = match plan.own_pids {
            true => Foreground::of_this_process(),
            false => None,
        };
        let names = jobs
            .iter()
            .map(|job| format!("{} ({})", job.interface, job.target));
        let waits = jobs.iter().filter_map(|job| match job.wait {
            Wait::AtMost(time) => Some(time),
            Wait::No | Wait::Meanwhile => None,
        });
        let wait = waits.max().unwrap_or_default();
        let (machine, actions) = Machine::start(names, wait, panel.is_ok(), Instant::now());
        let mut supervisor = Self {
            plan,
            signals,
            panel,
            command: None,
            first: FirstProcess::Settled,
            namespace: None,
            machine,
            links: jobs.into_iter().map(HeldLink::new).collect(),
            started: SystemTime::now(),
            status: None,
            netlink: None,
            claim,
            starter,
            outcome: None,
        };
        supervisor.perform_all(actions);
        supervisor.status = Server::start();
        loop {
            if let Some(outcome) = supervisor.outcome {
                if let Some(terminal) = terminal {
                    terminal.restore();
                }
                return outcome;
            }
            if let Err(error) = supervisor.turn() {
                supervisor.handle(Event::Failed(error));
            }
        }
    }

    /// Steps the machine, and performs what it decides.
    fn handle(&mut self, event: Event) {
        let actions = self.machine.step(event, Instant::now());
        self.perform_all(actions);
    }

    fn perform_all(&mut self, actions: Vec<Action>) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let mut events = Vec::new();
            let outcome = self.perform(action, &mut events);
            events.extend(outcome.err().map(Event::Failed));
            for event in events {
                actions.extend(self.machine.step(event, Instant::now()));
            }
        }
    }

    /// Waits until something happens, or until something is due, and handles it.
    fn turn(&mut self) -> Result<()> {
        let sources = self.sources();
        let fds = sources.iter().filter_map(|source| self.fd(*source));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        wait(&mut fds, self.machine.deadline())?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        for (source, is_ready) in sources.into_iter().zip(ready).rev() {
            if is_ready {
                self.receive(source)?;
            }
        }
        if self.first == FirstProcess::JustHeld {
            self.first = FirstProcess::Settled;
            self.reap()?;
        }
        self.handle(Event::Time);
        Ok(())
    }

    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![Source::Signals, Source::Namespace];
        for index in 0..self.links.len() {
            sources.extend([Source::Requests(index), Source::Control(index)]);
        }
        sources.push(Source::Status);
        sources.retain(|source| self.fd(*source).is_some());
        sources
    }

    /// The descriptor of a source, while it is one.
    fn fd(&self, source: Source) -> Option<BorrowedFd<'_>> {
        let channels = |index: usize| self.links[index].channels();
        match source {
            Source::Signals => Some(self.signals.as_fd()),
            Source::Namespace => self.namespace.as_ref().map(AsFd::as_fd),
            Source::Control(index) => channels(index).map(|channels| channels.control.as_fd()),
            Source::Requests(index) => channels(index).map(|channels| channels.requests.as_fd()),
            Source::Status => self.status.as_ref().map(AsFd::as_fd),
        }
    }

    /// Handles what a source has, if it has something; whether it had.
    fn receive(&mut self, source: Source) -> Result<bool> {
        // What was ready when it was polled may have been replaced since.
        let Some(fd) = self.fd(source) else {
            return Ok(false);
        };
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        wait(&mut fds, Some(Instant::now()))?;
        if fds[0].any() != Some(true) {
            return Ok(false);
        }
        match source {
            Source::Namespace => self.receive_from_namespace(),
            Source::Control(index) => {
                let event = self.links[index].receive();
                self.handle_worker(index, event);
            }
            Source::Requests(index) => {
                let event = self.links[index].receive_request(self.panel.as_ref().ok());
                self.handle_worker(index, event);
            }
            Source::Signals => self.read_signals()?,
            Source::Status => self.accept_query(),
        }
        Ok(true)
    }

    /// Receives from the namespace child. Its channel closes when the command is executed.
    fn receive_from_namespace(&mut self) {
        let Some(channel) = &self.namespace else {
            return;
        };
        let event = match channel.receive() {
            Ok(Received::Message(message, fds)) => Event::Namespace(message, fds),
            // The child and the supervisor wait for each other, so without this message there is no
            // session.
            Ok(Received::Malformed(why)) => Event::Failed(malformed(why)),
            Err(error) => Event::Failed(error),
            Ok(Received::Closed) => {
                self.namespace = None;
                Event::NamespaceClosed
            }
        };
        self.handle(event);
    }

    fn handle_worker(&mut self, index: usize, event: Option<WorkerEvent>) {
        if let Some(event) = event {
            self.handle(Event::Worker(index, event));
        }
    }

    /// Accepts processes that ask for the status.
    fn accept_query(&mut self) {
        match self.status.as_mut().map(Server::accept) {
            Some(Ok(true)) => self.handle(Event::StatusQuery),
            Some(Ok(false)) | None => {}
            Some(Err(error)) => {
                log::info!("{error}");
                self.status = None;
            }
        }
    }

    fn read_signals(&mut self) -> Result<()> {
        while let Some(signal) = self.signals.next() {
            if signal != Signal::SIGCHLD {
                self.handle(Event::Signal(signal));
            }
        }
        self.reap()
    }

    /// Reaps the children that have ended, after reading what they have sent last.
    fn reap(&mut self) -> Result<()> {
        let workers = self.links.iter().filter_map(HeldLink::child);
        let known: Vec<Pid> = workers.chain(&self.command).map(Child::pid).collect();
        if self.first == FirstProcess::Settled {
            reap_strangers(|pid| known.contains(&pid));
        }
        if self.command.as_mut().and_then(Child::reap).is_some() {
            while self.receive(Source::Namespace)? {}
        }
        // What it has sent may have made the session start over. Then this is another child.
        if let Some(exit) = self.command.as_ref().and_then(Child::exit) {
            self.command = None;
            self.handle(Event::CommandEnded(exit));
        }
        for index in 0..self.links.len() {
            if self.links[index].reap() {
                while self.receive(Source::Control(index))? {}
            }
            if let Some(ended) = self.links[index].take_ended() {
                self.handle(Event::Worker(index, ended));
            }
        }
        Ok(())
    }

    /// Performs an action, and adds the events that follow from it.
    fn perform(&mut self, action: Action, events: &mut Vec<Event>) -> Result<()> {
        match action {
            Action::StartNamespace => self.start_namespace()?,
            Action::MakePorts(network, links) => events.push(self.make_ports(&network, links)),
            Action::ToNamespace(message) => {
                let send = |channel: &Channel<_, _>| channel.send(&message, &[]);
                self.namespace.as_ref().map_or(Ok(()), send)?;
            }
            Action::TakeInterfaces(fds) => self.take_interfaces(fds)?,
            Action::Link(index, action) => self.perform_for_link(index, action, events),
            Action::HoldFirstProcess(pid, pidfd) => {
                self.command = Some(Child::adopt(pid, pidfd));
                self.first = FirstProcess::JustHeld;
            }
            Action::HoldNetlink(socket) => self.netlink = Some(Netlink::from(socket)),
            Action::Announce => self.announce()?,
            Action::PassOn(signal) => {
                // Only the first process of a PID namespace can end everything.
                let signal = match (signal, self.plan.own_pids) {
                    (Signal::SIGPWR, false) => Signal::SIGTERM,
                    (signal, _) => signal,
                };
                // A command that is stopped takes the signal only when it goes on.
                let signals = [signal, Signal::SIGCONT];
                let pass_on = |command: &Child| signals.map(|signal| command.signal(signal));
                for passed in self.command.iter().flat_map(pass_on) {
                    if let Err(errno) = passed {
                        log::debug!("cannot pass {signal} on to the command: {errno}");
                    }
                }
            }
            Action::AnswerStatus => self.answer_status(),
            Action::GiveBackMemory => give_back_memory(),
            Action::EndChildren => {
                self.end_children();
                events.push(Event::ChildrenEnded);
            }
            Action::LeavePanel(error) => {
                self.panel = Err(without_panel(&error));
                for link in &mut self.links {
                    link.job.panel_address = None;
                }
            }
            Action::Finish(outcome) => self.outcome = Some(outcome),
        }
        Ok(())
    }

    /// Performs an action for a link. If that fails, so has the worker.
    fn perform_for_link(&mut self, index: usize, action: LinkAction, events: &mut Vec<Event>) {
        let panel = self.panel.as_ref().ok();
        let (outcome, end) = match action {
            LinkAction::Start => (self.start_worker(index), NOT_STARTED),
            action => (
                self.links[index].perform(action, panel),
                WorkerEvent::Closed,
            ),
        };
        if let Err(error) = outcome {
            let failure = WorkerEvent::Message(FromWorker::Failed(error));
            events.extend([failure, end].map(|event| Event::Worker(index, event)));
        }
    }

    /// Forks the namespace child.
    fn start_namespace(&mut self) -> Result<()> {
        let parent = getpid();
        let (channel, theirs) = Channel::pair()?;
        let Some(command) = Child::fork()? else {
            drop(channel);
            self.let_go();
            let panel = mem::replace(&mut self.panel, Err(String::new())).ok();
            exit_child(|| namespace::run(self.plan, panel, theirs, self.signals, parent));
        };
        self.command = Some(command);
        self.first = match self.plan.own_pids {
            true => FirstProcess::Expected,
            false => FirstProcess::Settled,
        };
        self.namespace = Some(channel);
        Ok(())
    }

    /// Lets go, in a child, of what only the supervisor needs.
    fn let_go(&mut self) {
        self.status = None;
        self.netlink = None;
        self.claim = None;
        self.starter.iter_mut().for_each(|starter| starter.forget());
    }

    /// Says that the session runs: to those who look for its name, and to the process that has
    /// started it in the background.
    fn announce(&mut self) -> Result<()> {
        if let (Some(claim), Some(command)) = (&mut self.claim, &self.command) {
            let member = Member::of(claim.name(), command.pid().as_raw().cast_unsigned());
            claim.publish(member.into_iter().collect())?;
        }
        let starter = self.starter.take();
        starter.map_or(Ok(()), |starter| starter.announce(Lifetime::Own))
    }

    /// Starts the worker of a link.
    fn start_worker(&mut self, index: usize) -> Result<()> {
        if let Some(worker) = self.links[index].fork_worker()? {
            self.links.clear();
            self.namespace = None;
            self.let_go();
            worker.run(self.signals);
        }
        Ok(())
    }

    /// Makes ports of the panel.
    fn make_ports(&mut self, network: &OwnedFd, links: Vec<usize>) -> Event {
        let panel = self.panel.as_ref().ok();
        let mut refused = Vec::new();
        for index in links {
            let link = &mut self.links[index];
            if let Err(error) =
                link.make_port(panel, network, port_index(std::process::id(), index))
            {
                log::info!("{}: not on the panel: {error}", link.job.interface);
                refused.push((index, error));
            }
        }
        Event::PortsMade { refused }
    }

    /// Holds the interfaces that the namespace child has made.
    fn take_interfaces(&mut self, fds: Vec<OwnedFd>) -> Result<()> {
        let mut fds = fds.into_iter();
        let watch = Rc::new(LinkWatch::from(fds.next().ok_or_else(lost_interface)?));
        let mut links = self.links.iter_mut();
        links.try_for_each(|link| link.take_tap(&mut fds, &watch))
    }

    /// Answers the processes that ask for the status.
    fn answer_status(&mut self) {
        let Some(server) = &mut self.status else {
            return;
        };
        let command = self.command.as_ref().map(Child::pid);
        let addresses = self.netlink.as_ref().map(addresses).unwrap_or_default();
        let links = self.links.iter_mut().enumerate();
        let links = links.map(|(index, link)| {
            let traffic = command.and_then(|pid| interface::traffic(pid, &link.job.interface));
            let mut entry = link.entry(self.machine.link(index), traffic);
            let addresses = addresses.get(&entry.link.interface);
            entry.link.addresses = addresses.cloned().unwrap_or_default();
            entry
        });
        let process = Process {
            links: links.collect(),
            name: self.plan.name.clone(),
            hostname: self.plan.hostname.clone().unwrap_or_else(hostname),
            command_pid: command.map(|pid| pid.as_raw().cast_unsigned()),
            has_own_pids: self.plan.own_pids,
            ..status::this_process(
                "vdens",
                &self.plan.command_words(),
                self.started,
                self.panel.as_ref().err().map_or("", String::as_str),
            )
        };
        server.answer(&process);
    }

    /// Ends what is still there: the workers, and a namespace child that never became the command.
    fn end_children(&mut self) {
        self.namespace = None;
        let workers = self.links.iter_mut().filter_map(HeldLink::release);
        end_all(workers.chain(self.command.take()), CLEANUP_LIMIT);
        self.links.iter_mut().for_each(HeldLink::close_stored);
    }
}

/// The addresses of all interfaces in a network namespace, by the interfaces' names. None if the
/// kernel does not tell.
fn addresses(netlink: &Netlink) -> HashMap<String, Vec<IpNet>> {
    let interfaces = netlink.interfaces().unwrap_or_else(|error| {
        log::debug!("{error}");
        Vec::new()
    });
    let interfaces = interfaces.into_iter();
    interfaces
        .map(|interface| (interface.name, interface.addresses))
        .collect()
}

/// The host name of this process.
fn hostname() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
