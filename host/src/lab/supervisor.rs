//! A lab's supervisor: the process that `vdectl lab up` leaves behind.
//!
//! # Theory of operation
//!
//! The supervisor knows the lab as it is (`shape`). To start a lab and to change one is the same:
//! it computes the [`Difference`] to the lab as it is to be, and performs that. Ending nodes,
//! starting them and connecting them happens at once, in one call ([`Supervisor::rebuild`]). What
//! the nodes have to do themselves comes after that: each has a queue of requests to its init, of
//! which one is under way. A node with commands waits for the nodes that it comes after.
//!
//! | Phase | |
//! |---|---|
//! | starting | the first failure ends the lab, and `up` reports it |
//! | changing | the first failure drops the requests that are left, and `apply` reports it |
//! | running | nothing is left to do |
//! | ending | a signal came, or `vdectl lab down` |
//!
//! Whatever fails, `shape` says what there is, so the next `apply` does what is missing.
//!
//! The supervisor has one thread and loads no plugin. The nodes' inits are its children; if it is
//! killed, the kernel kills them, and everything in the nodes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::iter;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::claim::{Asker, Control};
use super::model::{Lab, Node};
use super::of_node;
use super::outside::{NodeTap, Outside, Surroundings, Way};
use super::shape::{Cable, Difference, Plug, Shape, told};
use super::spawn::{self, Inheritance};
use super::wiring::{Network, Wiring};
use crate::error::{Error, ErrorKind, Result};
use crate::ipc::status::lab::{
    Happening, LabEvent, LabState, LabStatus, LinkEnd, LinkStatus, NodeStatus, ServiceStatus,
    is_shown,
};
use crate::ipc::status::server::Server;
use crate::ipc::status::{Process, Report, this_process};
use crate::ipc::{
    Channel, FromLab, FromNode, MAX_REPORT, Received, ToLab, ToNode, malformed, read_report,
};
use crate::panel::Panel;
use crate::plugins::host_services::InstalledPlugins;
use crate::sys::names::{Claim, Kind, Member};
use crate::sys::process::{give_back_memory, wait};
use crate::sys::signals::Signals;

/// How long nodes may take to end: their processes have two seconds after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A lab and its file, as `vdectl lab` sends them to the supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Request {
    /// The lab as it is to be.
    pub(super) lab: Lab,
    /// The file that says so, as an absolute path.
    pub(super) file: String,
}

/// A node's init, and what the supervisor knows of the node.
#[derive(Debug)]
struct NodeProcess {
    pid: Pid,
    channel: Channel<ToNode, FromNode>,
    /// Once its namespaces are made.
    network: Option<Network>,
    /// What it still has to do.
    queue: VecDeque<ToNode>,
    /// What it does now.
    working: Option<ToNode>,
    services: Vec<ServiceStatus>,
}

impl NodeProcess {
    fn is_idle(&self) -> bool {
        self.working.is_none() && self.queue.is_empty()
    }
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
    Status,
    Control,
    Asker(usize),
    Node(String),
    Worker(usize, Way),
}

pub(super) struct Supervisor<'a> {
    signals: &'a Signals,
    inheritance: Inheritance,
    name: String,
    file: String,
    started: SystemTime,
    phase: Phase,
    control: Option<Control>,
    status: Option<Server>,
    panel: Panel,
    wiring: Wiring,
    outside: Outside,
    nodes: BTreeMap<String, NodeProcess>,
    /// The lab as it is.
    shape: Shape,
    /// The lab's name. It is given up before those who wait for the end learn of that.
    claim: Claim,
    /// Connections that have asked for nothing yet, or wait for the end.
    askers: Vec<Asker>,
    /// Connections that get the events.
    watchers: Vec<Asker>,
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
        let claim = Claim::take(&request.lab.name, Kind::Lab)?;
        let control = Control::start(&request.lab.name)?;
        let mut supervisor = Self {
            signals,
            inheritance,
            name: request.lab.name.clone(),
            file: request.file.clone(),
            started: SystemTime::now(),
            phase: Phase::Starting,
            control: Some(control),
            claim,
            status: Server::start(),
            panel: panel(&request.lab)?,
            wiring: Wiring::default(),
            outside: Outside::new(plugins),
            nodes: BTreeMap::new(),
            shape: Shape::default(),
            askers: Vec::new(),
            watchers: Vec::new(),
        };
        let outcome = supervisor.live(&request.lab, ready);
        supervisor.end();
        outcome
    }

    fn live(&mut self, lab: &Lab, ready: impl FnOnce() -> Result<()>) -> Result<()> {
        self.rebuild(&lab.into())?;
        let mut ready = Some(ready);
        loop {
            let is_done =
                self.outside.is_settled() && self.nodes.values().all(NodeProcess::is_idle);
            match mem::replace(&mut self.phase, Phase::Running) {
                Phase::Ending => return Ok(()),
                Phase::Starting if is_done => {
                    give_back_memory();
                    ready.take().map_or(Ok(()), |ready| ready())?;
                    self.tell(Happening::Running);
                }
                Phase::Changing(asker, summary) if is_done => {
                    self.tell(Happening::Running);
                    asker.send(&FromLab::Done(summary), &[])?;
                }
                phase => self.phase = phase,
            }
            let turned = self.dispatch().and_then(|()| self.turn());
            if let Err(error) = turned {
                match mem::replace(&mut self.phase, Phase::Running) {
                    Phase::Changing(asker, _) => {
                        self.drop_work();
                        let message = error.to_string();
                        self.tell(Happening::Failed { message });
                        asker.send(&FromLab::Failed(error), &[])?;
                    }
                    Phase::Starting => return Err(error),
                    Phase::Ending => return Ok(()),
                    Phase::Running => log::error!("lab {}: {error}", self.name),
                }
            }
        }
    }

    /// Makes the lab what it is to be, but for what the nodes have to do, which it queues. Returns
    /// what changes, a line each.
    fn rebuild(&mut self, target: &Shape) -> Result<Vec<String>> {
        let change = Difference::between(&self.shape, target);
        self.take_apart(&change)?;
        self.start_nodes(&change, target)?;
        self.wiring
            .add_switches(&change.add_switches, &self.panel)?;
        self.shape
            .switches
            .extend(change.add_switches.iter().cloned());
        self.connect(&change)?;
        for (name, work) in &change.work {
            if let Some(node) = self.nodes.get_mut(name) {
                node.queue.extend(work.iter().cloned());
            }
        }
        self.shape = target.clone();
        self.publish()?;
        let changes = change.summary();
        self.tell(Happening::Changing {
            changes: changes.clone(),
        });
        Ok(changes)
    }

    /// Says which nodes the lab's name leads to.
    fn publish(&mut self) -> Result<()> {
        let member = |(name, node): (&String, &NodeProcess)| {
            Member::of(name, node.pid.as_raw().cast_unsigned())
        };
        self.claim
            .publish(self.nodes.iter().filter_map(member).collect())
    }

    /// Sends an event to those who watch. One who does not read loses the connection.
    fn tell(&mut self, what: Happening) {
        if self.watchers.is_empty() {
            return;
        }
        let event = event(&self.name, what);
        self.watchers
            .retain(|watcher| watcher.send_report(&event).is_ok());
    }

    fn take_apart(&mut self, change: &Difference) -> Result<()> {
        let anew = (&change.cut[..], &change.connect[..]);
        self.wiring.save_routes(anew, networks(&self.nodes));
        let uplinks = self.outside.cut(&change.cut);
        self.wiring.cut(&change.cut, networks(&self.nodes))?;
        for name in uplinks {
            if let Some(fabric) = self.wiring.fabric() {
                fabric.netlink.delete(&name)?;
            }
        }
        for cable in &change.cut {
            self.shape.cables.remove(cable);
            let plugs = cable.plugs().iter();
            let gone: Vec<_> = plugs.map(|plug| &plug.interface).collect();
            self.shape
                .addresses
                .retain(|(interface, _)| !gone.contains(&interface));
        }
        let ended = change.end.iter().filter_map(|name| self.nodes.remove(name));
        end_nodes(ended.collect(), self.signals);
        for node in &change.end {
            self.tell(Happening::NodeEnded { node: node.clone() });
        }
        let names: BTreeSet<String> = change.end.iter().cloned().collect();
        self.wiring.forget(&names);
        self.shape.nodes.retain(|name, _| !names.contains(name));
        self.wiring.remove_switches(&change.remove_switches)?;
        for name in &change.remove_switches {
            self.shape.switches.remove(name);
        }
        Ok(())
    }

    fn start_nodes(&mut self, change: &Difference, target: &Shape) -> Result<()> {
        if change.start.is_empty() {
            return Ok(());
        }
        let fresh: Vec<&Node> = change.start.iter().map(|node| &node.node).collect();
        let mut started = Vec::new();
        let outcome = {
            let outside = &mut self.outside;
            let mut forget = forgetter(
                &mut self.nodes,
                &mut self.control,
                &mut self.status,
                [&mut self.askers, &mut self.watchers],
            );
            let mut forget = || {
                forget();
                outside.forget();
            };
            let from_here = (self.signals, self.inheritance);
            spawn::start(&fresh, &self.panel, from_here, &mut forget, &mut started)
        };
        let names: Vec<&String> = fresh.iter().map(|node| &node.name).collect();
        for (name, (pid, channel)) in names.iter().zip(started) {
            let node = NodeProcess {
                pid,
                channel,
                network: None,
                queue: VecDeque::new(),
                working: None,
                services: Vec::new(),
            };
            self.nodes.insert((*name).clone(), node);
        }
        outcome?;
        let channels = names.iter().filter_map(|name| {
            let node = self.nodes.get(*name)?;
            Some((name.as_str(), &node.channel))
        });
        let made = spawn::await_made(channels)?;
        for (name, [namespace, netlink]) in names.into_iter().zip(made) {
            if let Some(node) = self.nodes.get_mut(name) {
                let netlink = netlink.into();
                node.network = Some(Network { namespace, netlink });
            }
            if let Some(node) = target.nodes.get(name) {
                self.shape.nodes.insert(name.clone(), node.clone());
            }
            if let Some(node) = self.nodes.get(name) {
                let pid = node.pid.as_raw().cast_unsigned();
                let node = name.clone();
                self.tell(Happening::NodeStarted { node, pid });
            }
        }
        Ok(())
    }

    fn connect(&mut self, change: &Difference) -> Result<()> {
        let nodes = networks(&self.nodes);
        let connected = self.wiring.connect(&change.connect, &self.panel, &nodes);
        if connected.is_err() {
            // What was made is removed, so that it can be made again.
            let _ = self.wiring.cut(&change.connect, &nodes);
            return connected;
        }
        drop(nodes);
        self.add_workers(&change.connect)?;
        self.shape.cables.extend(change.connect.iter().cloned());
        let fresh = change.start.iter().map(|node| node.node.name.as_str());
        let (take, give) = (&change.take, &change.give);
        let nodes = networks(&self.nodes);
        self.wiring.address(fresh, take, give, &nodes)?;
        self.wiring.restore_routes(&nodes);
        Ok(())
    }

    /// Makes the interfaces of impaired links, and starts the workers of those that need one.
    fn add_workers(&mut self, cables: &[Cable]) -> Result<()> {
        let nodes = networks(&self.nodes);
        for cable in cables {
            let taps = match cable {
                Cable::Impaired { plugs, .. } => {
                    let make = |plug: &Plug| -> Result<NodeTap> {
                        let network = nodes(&plug.interface.node)?;
                        let tap = NodeTap::make(&plug.interface.name, &self.panel, network)?;
                        self.wiring.adopt(plug, network)?;
                        Ok(tap)
                    };
                    let [a, b] = plugs.each_ref().map(make);
                    Some([a?, b?])
                }
                _ => None,
            };
            let number = self.wiring.next_index();
            self.outside.add(cable, number, taps, &self.panel)?;
        }
        drop(nodes);
        let mut forget = forgetter(
            &mut self.nodes,
            &mut self.control,
            &mut self.status,
            [&mut self.askers, &mut self.watchers],
        );
        self.outside.start(&mut Surroundings {
            signals: self.signals,
            forget: &mut forget,
        })
    }

    /// Makes the interfaces of links to the outside that are open now.
    fn make_interfaces(&mut self) -> Result<()> {
        for (at, cable) in self.outside.without_interface() {
            match &cable {
                Cable::Outside { plug, .. } => {
                    let network = networks(&self.nodes)(&plug.interface.node)?;
                    self.outside.make_interface(at, &self.panel, network)?;
                    self.wiring.adopt(plug, network)?;
                    let addresses = self.shape.addresses.iter();
                    let given: Vec<_> = addresses
                        .filter(|(interface, _)| *interface == plug.interface)
                        .cloned()
                        .collect();
                    let nodes = networks(&self.nodes);
                    self.wiring.address(iter::empty(), &[], &given, &nodes)?;
                    self.wiring.restore_routes(&nodes);
                }
                Cable::Uplink { switch, .. } => {
                    let fabric = self
                        .wiring
                        .fabric()
                        .ok_or_else(|| Error::closed(format!("the switch {switch} is gone")))?;
                    let name = self.outside.make_interface(at, &self.panel, fabric)?;
                    self.wiring.plug_in(&name, switch)?;
                }
                // Their interfaces are made with the cable.
                Cable::Direct(_) | Cable::Port { .. } | Cable::Impaired { .. } => {}
            }
            self.outside.give_side(at, &self.panel)?;
        }
        Ok(())
    }

    /// Sends each node that has something to do its next request, when all links are up.
    fn dispatch(&mut self) -> Result<()> {
        if !self.outside.is_settled() {
            return Ok(());
        }
        let busy: BTreeSet<String> = self
            .nodes
            .iter()
            .filter(|(_, node)| !node.is_idle())
            .map(|(name, _)| name.clone())
            .collect();
        for name in &busy {
            let shape = self.shape.nodes.get(name);
            let waits = shape.is_some_and(|shape| !shape.after.is_disjoint(&busy));
            let Some(node) = self.nodes.get_mut(name).filter(|_| !waits) else {
                continue;
            };
            if node.working.is_none()
                && let Some(task) = node.queue.pop_front()
            {
                let sent = node.channel.send(&task, &[]);
                node.working = Some(task);
                sent.map_err(|error| of_node(name, error))?;
            }
        }
        Ok(())
    }

    /// Drops what the nodes have not done, which the lab's shape then does not have.
    fn drop_work(&mut self) {
        for (name, node) in &mut self.nodes {
            if let Some(shape) = self.shape.nodes.get_mut(name) {
                let left = node.queue.drain(..);
                left.for_each(|task| undo(&mut shape.node, &task));
            }
        }
    }

    /// Waits until something happens, and handles it.
    fn turn(&mut self) -> Result<()> {
        let sources = self.sources();
        let fds = sources.iter().filter_map(|source| self.fd(source));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        wait(&mut fds, self.outside.deadline())?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        drop(fds);
        // From the last to the first, so that the numbers of the askers stay true.
        for (source, is_ready) in sources.into_iter().zip(ready).rev() {
            if is_ready {
                self.handle(source)?;
            }
        }
        self.make_interfaces()?;
        let mut forget = forgetter(
            &mut self.nodes,
            &mut self.control,
            &mut self.status,
            [&mut self.askers, &mut self.watchers],
        );
        let mut surroundings = Surroundings {
            signals: self.signals,
            forget: &mut forget,
        };
        self.outside.tick(&self.panel, &mut surroundings)
    }

    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![Source::Signals, Source::Control];
        sources.extend((0..self.askers.len()).map(Source::Asker));
        sources.extend(self.nodes.keys().cloned().map(Source::Node));
        let workers = self.outside.channels();
        sources.extend(workers.map(|(at, way)| Source::Worker(at, way)));
        sources.push(Source::Status);
        sources.retain(|source| self.fd(source).is_some());
        sources
    }

    fn fd(&self, source: &Source) -> Option<BorrowedFd<'_>> {
        match source {
            Source::Signals => Some(self.signals.as_fd()),
            Source::Status => self.status.as_ref().map(AsFd::as_fd),
            Source::Control => self.control.as_ref().map(AsFd::as_fd),
            Source::Asker(at) => self.askers.get(*at).map(AsFd::as_fd),
            Source::Node(name) => self.nodes.get(name).map(|node| node.channel.as_fd()),
            Source::Worker(at, way) => self.outside.fd(*at, *way),
        }
    }

    fn handle(&mut self, source: Source) -> Result<()> {
        match source {
            Source::Signals => return self.read_signals(),
            Source::Status => self.answer_status(),
            Source::Control => {
                let accepted = self.control.as_ref().and_then(Control::accept);
                self.askers.extend(accepted);
            }
            Source::Asker(at) => self.hear(at)?,
            Source::Worker(at, way) => return self.outside.receive(at, way, &self.panel),
            Source::Node(name) => {
                return self.receive(&name).map_err(|error| of_node(&name, error));
            }
        }
        Ok(())
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
            if self.outside.reap(pid, &self.panel)? {
                continue;
            }
            let _ = waitpid(pid, None);
            let node = self.nodes.iter().find(|(_, node)| node.pid == pid);
            if let Some(name) = node.map(|(name, _)| name.clone()) {
                self.lose(&name);
            }
        }
        Ok(())
    }

    /// A node has ended, though nobody asked for it. The kernel deletes its interfaces, and those
    /// at the other ends of its links.
    fn lose(&mut self, name: &str) {
        log::error!("lab {}: the node {name} has ended", self.name);
        self.tell(Happening::NodeEnded { node: name.into() });
        self.nodes.remove(name);
        if let Err(error) = self.publish() {
            log::warn!("{error}");
        }
        self.wiring.forget(&BTreeSet::from([name.to_owned()]));
        let shape = &mut self.shape;
        shape.nodes.remove(name);
        let is_of = |cable: &Cable| {
            let mut plugs = cable.plugs().iter();
            plugs.any(|plug| plug.interface.node == name)
        };
        let lost = shape.cables.extract_if(.., |cable| is_of(cable));
        let plugs: Vec<_> = lost.flat_map(|cable| cable.plugs().to_vec()).collect();
        shape.addresses.retain(|(interface, _)| {
            let mut plugs = plugs.iter();
            plugs.all(|plug| plug.interface != *interface)
        });
    }

    /// Receives what an asker wants.
    fn hear(&mut self, at: usize) -> Result<()> {
        let asker = self.askers.remove(at);
        let request = match asker.receive() {
            Ok(Received::Message(ToLab::Down, _)) => {
                self.phase = Phase::Ending;
                // It waits for the end of the connection.
                self.askers.push(asker);
                return Ok(());
            }
            Ok(Received::Message(ToLab::Watch, _)) => {
                let state = self.state();
                if asker
                    .send_report(&event(&self.name, Happening::State { state }))
                    .is_ok()
                {
                    self.watchers.push(asker);
                }
                return Ok(());
            }
            Ok(Received::Message(ToLab::Apply, mut fds)) => fds
                .pop()
                .ok_or_else(|| Error::closed("a descriptor was lost"))
                .and_then(|fd| read_report(fd, MAX_REPORT))
                .and_then(|text| serde_json::from_str::<Request>(&text).map_err(malformed)),
            Ok(Received::Malformed(why)) => Err(malformed(why)),
            Ok(Received::Closed) | Err(_) => return Ok(()),
        };
        let outcome = match (&self.phase, request) {
            (Phase::Running, Ok(request)) => {
                let map_auto = |node: &&Node| node.map_auto;
                match request.lab.nodes.iter().find(map_auto) {
                    Some(node) if !self.panel.has_subordinate_ids() => {
                        let error = Error::usage("the lab was started without subordinate ids");
                        let error = error.hint("start it again: vdectl lab down, vdectl lab up");
                        Err(of_node(&node.name, error))
                    }
                    _ => {
                        self.file = request.file;
                        self.rebuild(&(&request.lab).into())
                    }
                }
            }
            (_, Ok(_)) => Err(Error::new(
                ErrorKind::Busy,
                format!("the lab '{}' is changing already", self.name),
            )
            .hint("try again when it has changed: vdectl lab status")),
            (_, Err(error)) => Err(error),
        };
        match outcome {
            Ok(summary) => self.phase = Phase::Changing(asker, summary),
            Err(error) => asker.send(&FromLab::Failed(error), &[])?,
        }
        Ok(())
    }

    /// Receives what a node's init has sent.
    fn receive(&mut self, name: &str) -> Result<()> {
        let Some(node) = self.nodes.get_mut(name) else {
            return Ok(());
        };
        let message = match node.channel.receive()? {
            Received::Message(message, _) => message,
            Received::Malformed(why) => return Err(malformed(why)),
            // SIGCHLD tells.
            Received::Closed => return Ok(()),
        };
        if let FromNode::ServiceEnded {
            service,
            status,
            output,
        } = message
        {
            log::warn!(
                "lab {}: {name}: '{service}' ended with status {status}",
                self.name
            );
            let mut services = node.services.iter_mut();
            if let Some(it) = services.find(|it| it.command == service && it.ended.is_none()) {
                (it.ended, it.output) = (Some(status), output);
                let (node, service) = (name.to_owned(), it.clone());
                self.tell(Happening::ServiceEnded { node, service });
            }
            return Ok(());
        }
        let Some(task) = node.working.take() else {
            return Err(malformed("nothing was asked for"));
        };
        let outcome = match message {
            FromNode::Executed { status: 0, .. } | FromNode::Done => Ok(()),
            FromNode::Executed { status, output } => Err(failed(&task, status, &output)),
            FromNode::Failed(error) => Err(error),
            FromNode::Made | FromNode::ServiceEnded { .. } => Err(malformed("it is no answer")),
        };
        match (&task, &outcome) {
            (ToNode::Start(command), Ok(())) => node.services.push(ServiceStatus {
                command: command.clone(),
                ..ServiceStatus::default()
            }),
            (ToNode::Stop(command), Ok(())) => {
                let mut services = node.services.iter();
                if let Some(at) = services.position(|service| service.command == *command) {
                    node.services.remove(at);
                }
            }
            (_, Err(_)) => {
                if let Some(shape) = self.shape.nodes.get_mut(name) {
                    undo(&mut shape.node, &task);
                }
            }
            _ => {}
        }
        if outcome.is_ok() {
            let (node, task) = (name.to_owned(), told(&task));
            self.tell(Happening::Done { node, task });
        }
        outcome
    }

    fn answer_status(&mut self) {
        let Some(server) = &mut self.status else {
            return;
        };
        match server.accept() {
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => {
                log::info!("{error}");
                self.status = None;
                return;
            }
        }
        let lab = self.report();
        let words = [self.name.clone().into()];
        let process: Process<Report> = Process {
            lab: Some(lab),
            ..this_process("lab", &words, self.started, "")
        };
        if let Some(server) = &mut self.status {
            server.answer(&process);
        }
    }

    fn state(&self) -> LabState {
        match self.phase {
            Phase::Starting => LabState::Starting,
            Phase::Changing(..) => LabState::Changing,
            Phase::Running | Phase::Ending => LabState::Running,
        }
    }

    /// The lab as it is now.
    fn report(&self) -> LabStatus {
        let node = |(name, node): (&String, &NodeProcess)| {
            let views = node
                .network
                .as_ref()
                .map(|network| network.netlink.interfaces());
            let mut interfaces = views.and_then(Result::ok).unwrap_or_default();
            interfaces.retain(|interface| interface.name != "lo");
            interfaces.sort_by_key(|interface| interface.index);
            for interface in &mut interfaces {
                interface.addresses.retain(is_shown);
            }
            let shape = self.shape.nodes.get(name);
            NodeStatus {
                name: name.clone(),
                pid: node.pid.as_raw().cast_unsigned(),
                hostname: shape
                    .map(|shape| shape.node.hostname.clone())
                    .unwrap_or_default(),
                working: node.working.as_ref().map(told),
                interfaces,
                services: node.services.clone(),
            }
        };
        let nodes: Vec<NodeStatus> = self.nodes.iter().map(node).collect();
        let links = self.shape.cables.iter().map(|cable| {
            let mut plugs = cable.plugs().iter();
            let has_carrier = |plug: &Plug| {
                let (node, name) = (&plug.interface.node, &plug.interface.name);
                let node = nodes.binary_search_by(|other| other.name.cmp(node)).ok();
                let interfaces = node.map(|at| &nodes[at].interfaces);
                let mut interfaces = interfaces.into_iter().flatten();
                interfaces.any(|view| view.name == *name && view.carrier)
            };
            LinkStatus {
                ends: ends(cable),
                impairments: match cable {
                    Cable::Impaired { impairments, .. } => Some(impairments.clone()),
                    _ => None,
                },
                carrier: plugs.all(has_carrier),
                worker: self.outside.worker(cable),
            }
        });
        LabStatus {
            name: self.name.clone(),
            file: self.file.clone(),
            state: self.state(),
            links: links.collect(),
            switches: self.shape.switches.iter().cloned().collect(),
            nodes,
        }
    }

    /// Ends all nodes.
    fn end(&mut self) {
        // Nobody finds the lab any more, and its name is free when its nodes have ended.
        self.status = None;
        self.tell(Happening::Ending);
        self.outside.end();
        end_nodes(
            mem::take(&mut self.nodes).into_values().collect(),
            self.signals,
        );
    }
}

/// The panel that the nodes are members of. One with subordinate ids belongs to the lab alone.
fn panel(lab: &Lab) -> Result<Panel> {
    match lab.nodes.iter().any(|node| node.map_auto) {
        true => Panel::with_subordinate_ids(),
        false => Panel::acquire(),
    }
}

fn event(lab: &str, what: Happening) -> LabEvent {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    LabEvent {
        time: now.unwrap_or_default().as_secs_f64(),
        lab: lab.to_owned(),
        what,
    }
}

/// Drops, in a forked process, what the supervisor holds.
fn forgetter<'a>(
    nodes: &'a mut BTreeMap<String, NodeProcess>,
    control: &'a mut Option<Control>,
    status: &'a mut Option<Server>,
    connections: [&'a mut Vec<Asker>; 2],
) -> impl FnMut() + 'a {
    let [askers, watchers] = connections;
    || {
        nodes.clear();
        askers.clear();
        watchers.clear();
        (*control, *status) = (None, None);
    }
}

/// Finds the network of a node.
fn networks<'a>(nodes: &'a BTreeMap<String, NodeProcess>) -> impl Fn(&str) -> Result<&'a Network> {
    move |name| {
        let network = nodes.get(name).and_then(|node| node.network.as_ref());
        network.ok_or_else(|| of_node(name, Error::closed("it has ended")))
    }
}

/// The two ends of a cable.
fn ends(cable: &Cable) -> [LinkEnd; 2] {
    let interface = |plug: &Plug| LinkEnd::Interface {
        node: plug.interface.node.clone(),
        name: plug.interface.name.clone(),
    };
    match cable {
        Cable::Direct(plugs) | Cable::Impaired { plugs, .. } => plugs.each_ref().map(interface),
        Cable::Port { plug, switch } => [interface(plug), LinkEnd::Switch(switch.clone())],
        Cable::Outside { plug, vnl } => [interface(plug), LinkEnd::Vnl(vnl.clone())],
        Cable::Uplink { switch, vnl } => {
            [LinkEnd::Switch(switch.clone()), LinkEnd::Vnl(vnl.clone())]
        }
    }
}

/// The error for a command that has failed.
fn failed(task: &ToNode, status: i32, output: &str) -> Error {
    let lines: Vec<_> = output
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let output = match &lines[..] {
        [] => "it printed nothing".to_owned(),
        lines => lines.join("; "),
    };
    let message = format!("{}: exit status {status}: {output}", told(task));
    Error::new(ErrorKind::Other, message)
}

/// Takes what was not done out of a node's settings, so that it is done the next time.
fn undo(node: &mut Node, task: &ToNode) {
    let remove = |lines: &mut Vec<String>, line: &String| {
        if let Some(at) = lines.iter().rposition(|other| other == line) {
            lines.remove(at);
        }
    };
    match task {
        ToNode::Hostname(_) => node.hostname.clear(),
        ToNode::Sysctl { name, .. } => node.sysctl.retain(|(other, _)| other != name),
        ToNode::Exec(line) => remove(&mut node.exec, line),
        ToNode::Start(service) => remove(&mut node.services, service),
        ToNode::Stop(service) => node.services.push(service.clone()),
        ToNode::End => {}
    }
}

/// Ends nodes, and waits until they have ended.
fn end_nodes(nodes: Vec<NodeProcess>, signals: &Signals) {
    for node in &nodes {
        // If its init hangs, it is killed below.
        let _ = node.channel.send(&ToNode::End, &[]);
    }
    let mut left: BTreeSet<Pid> = nodes.iter().map(|node| node.pid).collect();
    let deadline = Instant::now() + END_LIMIT;
    let mut is_killed = false;
    while !left.is_empty() {
        let flags = WaitPidFlag::WNOHANG;
        left.retain(|pid| {
            let status = waitpid(*pid, Some(flags));
            status.is_ok_and(|status| status.pid().is_none())
        });
        if left.is_empty() {
            break;
        }
        if Instant::now() >= deadline && !is_killed {
            is_killed = true;
            for pid in &left {
                // Each is a child that was not reaped, so the number is still its own.
                let _ = kill(*pid, Signal::SIGKILL);
            }
        }
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let until = deadline.max(Instant::now() + Duration::from_millis(100));
        if wait(&mut fds, Some(until)).is_err() {
            break;
        }
        while signals.next().is_some() {}
    }
}
