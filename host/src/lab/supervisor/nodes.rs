//! The nodes of a lab that run: their inits, what each still has to do, and what it answers.
//!
//! Each node has a queue of requests to its init, of which one is under way. A node with something
//! to do waits for the nodes that it comes after. What a node has not done is taken out of the
//! lab's [`Shape`], so that the next change does it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::error::{Error, ErrorKind, Result};
use crate::ipc::status::lab::{Happening, NodeStatus, ServiceStatus, is_shown};
use crate::ipc::{Channel, FromNode, Received, ToNode, malformed};
use crate::lab::difference::told;
use crate::lab::model::Node;
use crate::lab::of_node;
use crate::lab::shape::Shape;
use crate::lab::spawn::{self, Inheritance};
use crate::lab::wiring::Network;
use crate::panel::Panel;
use crate::sys::names::Member;
use crate::sys::netlink::InterfaceStatus;
use crate::sys::process::wait;
use crate::sys::signals::Signals;

/// How long nodes may take to end: their processes have two seconds after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(5);

/// A node's init, and what the supervisor knows of the node.
#[derive(Debug)]
struct NodeProcess {
    pid: Pid,
    channel: Channel<ToNode, FromNode>,
    network: Network,
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

/// The nodes that run, by name.
#[derive(Debug, Default)]
pub(super) struct Nodes(BTreeMap<String, NodeProcess>);

impl Nodes {
    /// Starts nodes. If one cannot be started, none is left.
    ///
    /// # Errors
    /// A limit does not allow so many, or the kernel refuses namespaces.
    pub(super) fn start(
        &mut self,
        fresh: &[&Node],
        panel: &Panel,
        from_here: (&Signals, Inheritance),
        forget: &mut dyn FnMut(),
    ) -> Result<()> {
        let mut started = Vec::new();
        let mut forget = || {
            self.0.clear();
            forget();
        };
        let outcome = spawn::start(fresh, panel, from_here, &mut forget, &mut started);
        let made = outcome.and_then(|()| {
            let channels = started.iter().map(|(_, channel)| channel);
            let names = fresh.iter().map(|node| node.name.as_str());
            spawn::await_made(names.zip(channels))
        });
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                end(started, from_here.0);
                return Err(error);
            }
        };
        let names = fresh.iter().map(|node| &node.name);
        for ((name, (pid, channel)), [namespace, netlink]) in names.zip(started).zip(made) {
            let netlink = netlink.into();
            let node = NodeProcess {
                pid,
                channel,
                network: Network { namespace, netlink },
                queue: VecDeque::new(),
                working: None,
                services: Vec::new(),
            };
            self.0.insert(name.clone(), node);
        }
        Ok(())
    }

    /// The names.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// The descriptor of a node's channel.
    pub(super) fn fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.0.get(name).map(|node| node.channel.as_fd())
    }

    /// The process that is process 1 of a node.
    pub(super) fn pid(&self, name: &str) -> Option<u32> {
        let node = self.0.get(name)?;
        Some(node.pid.as_raw().cast_unsigned())
    }

    /// The network of a node.
    ///
    /// # Errors
    /// The node has ended.
    pub(super) fn network(&self, name: &str) -> Result<&Network> {
        let node = self.0.get(name);
        node.map(|node| &node.network)
            .ok_or_else(|| of_node(name, Error::closed("it has ended")))
    }

    /// What the lab's name leads to.
    pub(super) fn members(&self) -> Vec<Member> {
        let member = |(name, node): (&String, &NodeProcess)| {
            Member::of(name, node.pid.as_raw().cast_unsigned())
        };
        self.0.iter().filter_map(member).collect()
    }

    /// Adds to what nodes have to do.
    pub(super) fn queue(&mut self, work: &[(String, Vec<ToNode>)]) {
        for (name, work) in work {
            if let Some(node) = self.0.get_mut(name) {
                node.queue.extend(work.iter().cloned());
            }
        }
    }

    /// Whether no node has anything to do.
    pub(super) fn are_idle(&self) -> bool {
        self.0.values().all(NodeProcess::is_idle)
    }

    /// Sends each node that has something to do its next request, unless it waits for another node.
    ///
    /// # Errors
    /// A node does not take it.
    pub(super) fn dispatch(&mut self, shape: &Shape) -> Result<()> {
        let busy = self.0.iter().filter(|(_, node)| !node.is_idle());
        let busy: BTreeSet<String> = busy.map(|(name, _)| name.clone()).collect();
        for name in &busy {
            let shape = shape.nodes.get(name);
            let waits = shape.is_some_and(|shape| !shape.after.is_disjoint(&busy));
            let Some(node) = self.0.get_mut(name).filter(|_| !waits) else {
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

    /// Drops what the nodes have not begun.
    pub(super) fn drop_work(&mut self, shape: &mut Shape) {
        for (name, node) in &mut self.0 {
            if let Some(shape) = shape.nodes.get_mut(name) {
                let left = node.queue.drain(..);
                left.for_each(|task| undo(&mut shape.node, &task));
            }
        }
    }

    /// Receives what a node's init has sent. Returns what has happened, if something has.
    ///
    /// # Errors
    /// What the node was to do has failed.
    pub(super) fn receive(&mut self, name: &str, shape: &mut Shape) -> Result<Option<Happening>> {
        let Some(node) = self.0.get_mut(name) else {
            return Ok(None);
        };
        let message = match node.channel.receive()? {
            Received::Message(message, _) => message,
            Received::Malformed(why) => return Err(malformed(why)),
            // SIGCHLD tells.
            Received::Closed => return Ok(None),
        };
        if let FromNode::ServiceEnded {
            service,
            status,
            output,
        } = message
        {
            return Ok(node.service_ended(name, &service, status, output));
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
        match (&outcome, shape.nodes.get_mut(name)) {
            (Ok(()), _) => node.note(&task),
            (Err(_), Some(shape)) => undo(&mut shape.node, &task),
            (Err(_), None) => {}
        }
        let (node, task) = (name.to_owned(), told(&task));
        outcome.map(|()| Some(Happening::Done { node, task }))
    }

    /// The node whose init was this process, which has ended. It is forgotten.
    pub(super) fn take_ended(&mut self, pid: Pid) -> Option<String> {
        let node = self.0.iter().find(|(_, node)| node.pid == pid);
        let name = node.map(|(name, _)| name.clone())?;
        self.0.remove(&name);
        Some(name)
    }

    /// Ends nodes, and waits until they have ended.
    pub(super) fn end(&mut self, names: &[String], signals: &Signals) {
        let ended = names.iter().filter_map(|name| self.0.remove(name));
        end(
            ended.map(|node| (node.pid, node.channel)).collect(),
            signals,
        );
    }

    /// Ends all nodes.
    pub(super) fn end_all(&mut self, signals: &Signals) {
        let names: Vec<String> = self.0.keys().cloned().collect();
        self.end(&names, signals);
    }

    /// Drops all, in a forked process.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    /// The nodes as they are now.
    pub(super) fn status(&self, shape: &Shape) -> Vec<NodeStatus> {
        let status = |(name, node): (&String, &NodeProcess)| {
            let shape = shape.nodes.get(name);
            NodeStatus {
                name: name.clone(),
                pid: node.pid.as_raw().cast_unsigned(),
                hostname: shape
                    .map(|shape| shape.node.hostname.clone())
                    .unwrap_or_default(),
                working: node.working.as_ref().map(told),
                interfaces: interfaces(&node.network),
                services: node.services.clone(),
                has_machine: shape.is_some_and(|shape| shape.node.machine.is_some()),
            }
        };
        self.0.iter().map(status).collect()
    }
}

impl NodeProcess {
    /// Notes that a request is done.
    fn note(&mut self, task: &ToNode) {
        match task {
            ToNode::Start(command) => self.services.push(ServiceStatus {
                command: command.clone(),
                ..ServiceStatus::default()
            }),
            ToNode::Stop(command) => {
                let mut services = self.services.iter();
                if let Some(at) = services.position(|service| service.command == *command) {
                    self.services.remove(at);
                }
            }
            _ => {}
        }
    }

    fn service_ended(
        &mut self,
        node: &str,
        service: &str,
        status: i32,
        output: String,
    ) -> Option<Happening> {
        let command = service.trim().lines().next().unwrap_or_default();
        let said = output.lines().last().unwrap_or("it printed nothing");
        log::warn!("node {node}: the service '{command}' ended with status {status}: {said}");
        let mut services = self.services.iter_mut();
        let it = services.find(|it| it.command == service && it.ended.is_none())?;
        (it.ended, it.output) = (Some(status), output);
        let (node, service) = (node.to_owned(), it.clone());
        Some(Happening::ServiceEnded { node, service })
    }
}

/// The interfaces of a node, without the loopback interface.
fn interfaces(network: &Network) -> Vec<InterfaceStatus> {
    let mut interfaces = network.netlink.interfaces().unwrap_or_default();
    interfaces.retain(|interface| interface.name != "lo");
    interfaces.sort_by_key(|interface| interface.index);
    for interface in &mut interfaces {
        interface.addresses.retain(is_shown);
    }
    interfaces
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
fn end(nodes: Vec<spawn::Started>, signals: &Signals) {
    for (_, channel) in &nodes {
        // If its init hangs, it is killed below.
        let _ = channel.send(&ToNode::End, &[]);
    }
    let mut left: BTreeSet<Pid> = nodes.iter().map(|(pid, _)| *pid).collect();
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
