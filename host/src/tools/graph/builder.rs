//! What is connected with what, from what the processes report.
//!
//! # Theory of operation
//!
//! A session, a switch, a plug and a peer outside are nodes. Each end of a link joins a network,
//! and the VNL tells which one: two ends of one cable have the path of its socket in common, a
//! client has the directory of its switch. Relative paths start at the process's own directory. So
//! a [`Builder`] collects the ends of each network first. Then it draws the networks:
//!
//! - a cable with two ends is a link between them; with one, a link to a peer that is no process of
//!   this user, or to nobody;
//! - a switch is a node, and each end is a link to it; a switch that nobody here runs is outside;
//! - every other network is a node outside. Two ends of one group, of `vxlan://` for example, are
//!   in one network. A `nat://` or a command is a network for each end.
//!
//! Nested VNLs are peeled off: they become the link's label.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ipnet::IpNet;
use vdens_plugin_kit::Peer;
use vdens_plugin_kit::vnl::Vnl;

use super::model::{End, Graph, Interface, Kind, Link, Node};
use super::network::{Network, Place, innermost, join_words, joined, place};
use crate::ipc::status::lab::is_shown;
use crate::ipc::status::{Entry, Process, Report, Service};
use crate::tools::status::client::Answer;

impl Graph {
    /// The graph of what the processes report. Those that do not answer are nodes without links.
    pub(super) fn of(answers: &[Answer]) -> Self {
        let mut builder = Builder::default();
        for answer in answers {
            match &answer.process {
                Ok(process) => builder.process(process),
                Err(error) => builder.silent(answer.pid, &error.message),
            }
        }
        builder.finish()
    }
}

/// An end that joins a network.
#[derive(Clone, Debug)]
struct Joined {
    end: End,
    label: String,
    vnl: String,
    is_up: bool,
    peer: Option<Peer>,
}

/// A graph that grows.
#[derive(Debug, Default)]
pub(super) struct Builder {
    graph: Graph,
    networks: BTreeMap<Network, Vec<Joined>>,
    /// The switches by their directories.
    switches: BTreeMap<PathBuf, usize>,
    /// The switches by the processes that run them.
    switches_of: BTreeMap<u32, usize>,
    /// The virtual machines with taps, by program and process.
    machines: BTreeMap<String, usize>,
    /// The processes of this user, and their workers.
    pub(super) own: Vec<u32>,
    /// The clients of switches.
    clients: Vec<(usize, Peer)>,
    ends: usize,
}

impl Builder {
    pub(super) fn node(&mut self, kind: Kind, name: String, note: String) -> usize {
        self.graph.nodes.push(Node {
            kind,
            name,
            note,
            is_silent: false,
            interfaces: Vec::new(),
        });
        self.graph.nodes.len() - 1
    }

    pub(super) fn interface(&mut self, node: usize, interface: Interface) -> End {
        let interfaces = &mut self.graph.nodes[node].interfaces;
        interfaces.push(interface);
        End {
            node,
            interface: Some(interfaces.len() - 1),
        }
    }

    pub(super) fn link(&mut self, ends: [End; 2], label: String, is_up: bool) {
        self.graph.links.push(Link { ends, label, is_up });
    }

    fn silent(&mut self, pid: u32, why: &str) {
        let name = format!("process {pid}");
        let node = self.node(Kind::Namespace, name, why.to_owned());
        self.graph.nodes[node].is_silent = true;
    }

    fn process(&mut self, process: &Process<Report>) {
        self.own.push(process.pid);
        let workers = process.links.iter().filter_map(|entry| entry.link.worker);
        self.own.extend(workers);
        match (&process.lab, process.program.as_str()) {
            (Some(lab), _) => self.lab(lab),
            (None, "vde_plug" | "vde_switch") => self.plug(process),
            (None, "vdens-tap") => self.card(process),
            (None, _) => self.session(process),
        }
    }

    fn session(&mut self, process: &Process<Report>) {
        let command = process.command.join(" ");
        let id = format!("{} {}", process.program, process.pid);
        let (name, note) = match &process.name {
            Some(name) if command.is_empty() => (name.clone(), id),
            Some(name) => (name.clone(), format!("{id}: {command}")),
            None => (command, id),
        };
        let node = self.node(Kind::Namespace, name, note);
        self.links(node, process);
    }

    /// A machine, which has a process of `vdens-tap` for each of its cards.
    fn card(&mut self, process: &Process<Report>) {
        let machine = process.command.join(" ");
        let id = format!("{} {}", process.program, process.pid);
        let node = match self.machines.get(&machine) {
            Some(node) => {
                let note = &mut self.graph.nodes[*node].note;
                *note = join_words(&[note, &id]);
                *node
            }
            None => {
                let node = self.node(Kind::Namespace, machine.clone(), id);
                self.machines.insert(machine, node);
                node
            }
        };
        self.links(node, process);
    }

    /// The links of a process, whose interfaces are on `node`.
    fn links(&mut self, node: usize, process: &Process<Report>) {
        for entry in &process.links {
            let end = self.interface(
                node,
                Interface {
                    name: entry.link.interface.clone(),
                    addresses: shown(&entry.link.addresses),
                    is_up: is_up(entry),
                },
            );
            self.entry(process, entry, end);
        }
    }

    /// A plug is drawn as the switch that it serves, or as two: then the link between them.
    fn plug(&mut self, process: &Process<Report>) {
        let vnls = process.links.iter().map(|entry| entry.link.vnl.as_str());
        let places = vnls.map(|vnl| place(vnl, &process.directory).0);
        let mut served = places.enumerate().filter_map(|(index, place)| match place {
            Place::Serves(path) => Some((index, path)),
            _ => None,
        });
        let (own_side, node) = match served.next() {
            Some((index, path)) => {
                let entry = &process.links[index];
                (Some(index), self.switch(process, entry, path))
            }
            None => {
                let name = format!("vde_plug {}", process.pid);
                (None, self.node(Kind::Plug, name, String::new()))
            }
        };
        let end = End {
            node,
            interface: None,
        };
        for (index, entry) in process.links.iter().enumerate() {
            if Some(index) != own_side {
                self.entry(process, entry, end);
            }
        }
    }

    /// The node of a switch that this process serves.
    fn switch(&mut self, process: &Process<Report>, entry: &Entry<Report>, path: PathBuf) -> usize {
        let scheme = Vnl::parse(&entry.link.vnl).map_or("switch", |vnl| vnl.scheme);
        let name = path.file_name().unwrap_or(path.as_os_str());
        let note = format!("{scheme}, {} {}", process.program, process.pid);
        let node = self.node(Kind::Switch, name.to_string_lossy().into_owned(), note);
        self.switches.insert(path, node);
        self.switches_of.insert(process.pid, node);
        self.switches_of
            .extend(entry.link.worker.map(|worker| (worker, node)));
        let status = entry.report.as_ref().and_then(|r| r.switch.as_ref());
        let ports = status.iter().flat_map(|switch| &switch.ports);
        self.clients
            .extend(ports.map(|port| (node, port.client.clone())));
        node
    }

    /// What a link of a process leads to.
    fn entry(&mut self, process: &Process<Report>, entry: &Entry<Report>, end: End) {
        let vnl = &entry.link.vnl;
        let (place, mut label) = place(vnl, &process.directory);
        let report = entry.report.as_ref();
        // The impairments of netem:// as they are now.
        if let Some(keys) = report.and_then(|report| report.extra.get("keys")) {
            label.clone_from(keys);
        }
        match place {
            Place::Serves(path) => {
                let node = self.switch(process, entry, path);
                let interface = None;
                self.link([end, End { node, interface }], label, is_up(entry));
            }
            Place::Joins(network) => {
                let peer = report.and_then(|report| report.peer.clone());
                self.join(network, end, label, vnl.clone(), is_up(entry), peer);
            }
            Place::Nowhere => {}
        }
    }

    /// An end that a VNL leads to, from a directory.
    pub(super) fn vnl(&mut self, vnl: &str, from: &str, end: End, label: String, is_up: bool) {
        let (place, passed) = place(vnl, from);
        let label = joined(&label, &passed);
        match place {
            Place::Joins(network) => self.join(network, end, label, vnl.to_owned(), is_up, None),
            Place::Serves(path) => {
                let name = path.file_name().unwrap_or(path.as_os_str());
                let name = name.to_string_lossy().into_owned();
                let node = self.node(Kind::Switch, name, String::new());
                self.switches.insert(path, node);
                let interface = None;
                self.link([end, End { node, interface }], label, is_up);
            }
            Place::Nowhere => {}
        }
    }

    fn join(
        &mut self,
        network: Option<Network>,
        end: End,
        label: String,
        vnl: String,
        is_up: bool,
        peer: Option<Peer>,
    ) {
        self.ends += 1;
        let network = network.unwrap_or(Network::Own(self.ends));
        self.networks.entry(network).or_default().push(Joined {
            end,
            label,
            vnl,
            is_up,
            peer,
        });
    }

    /// Draws the networks.
    pub(super) fn finish(mut self) -> Graph {
        for (network, mut joined) in std::mem::take(&mut self.networks) {
            let node = match &network {
                Network::Cable(_) if joined.len() == 2 => {
                    let is_up = joined.iter().all(|end| end.is_up);
                    if let (Some(b), Some(a)) = (joined.pop(), joined.pop()) {
                        let label = super::network::joined(&a.label, &b.label);
                        self.link([a.end, b.end], label, is_up);
                    }
                    continue;
                }
                Network::Switch(path) => {
                    let mut pids = joined.iter().filter_map(|end| end.peer.as_ref()?.pid);
                    let by_peer = pids.find_map(|pid| self.switches_of.get(&pid));
                    self.switches.get(path).or(by_peer).copied()
                }
                _ => None,
            };
            let node = node.unwrap_or_else(|| self.outside(&joined));
            let interface = None;
            for Joined {
                end, label, is_up, ..
            } in joined
            {
                self.link([end, End { node, interface }], label, is_up);
            }
        }
        for (node, client) in std::mem::take(&mut self.clients) {
            if !client.pid.is_some_and(|pid| self.own.contains(&pid)) {
                let (name, note) = described(&client);
                let peer = self.node(Kind::Outside, name, note);
                let ends = [node, peer].map(|node| End {
                    node,
                    interface: None,
                });
                self.link(ends, String::new(), true);
            }
        }
        self.graph
    }

    /// The node for a network that no process here is.
    fn outside(&mut self, joined: &[Joined]) -> usize {
        let vnl = joined.first().map_or("", |end| end.vnl.as_str());
        let peer = joined.iter().find_map(|end| end.peer.as_ref());
        let (name, note) = match peer.map(described) {
            Some((name, note)) if !name.is_empty() && vnl.starts_with("ptp:") => {
                (name, join_words(&[&note, innermost(vnl)]))
            }
            _ => (innermost(vnl).to_owned(), String::new()),
        };
        self.node(Kind::Outside, name, note)
    }
}

/// A peer's own description, and what the kernel knows of it.
fn described(peer: &Peer) -> (String, String) {
    let pid = peer
        .pid
        .map_or(String::new(), |pid| format!("process {pid}"));
    let uid = peer.uid.map_or(String::new(), |uid| format!("user {uid}"));
    let note = join_words(&[&pid, &uid]);
    match peer.description.as_str() {
        "" => (note, String::new()),
        description => (description.to_owned(), note),
    }
}

/// The addresses worth a place in the picture.
pub(super) fn shown(addresses: &[IpNet]) -> Vec<String> {
    let shown = addresses.iter().filter(|address| is_shown(address));
    shown.map(ToString::to_string).collect()
}

fn is_up(entry: &Entry<Report>) -> bool {
    entry.link.service == Service::Served && entry.report.as_ref().is_some_and(|r| r.carrier)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::error::Error;
    use serde_json::{Value, json};

    /// A process in /work with these links: interface, VNL, and its report.
    pub(in crate::tools::graph) fn answer(pid: u32, links: &[(&str, &str, Value)]) -> Answer {
        let links: Vec<Value> = links
            .iter()
            .map(|(interface, vnl, report)| {
                json!({"interface": interface, "vnl": vnl, "service": "served",
                       "worker": pid + 1, "restarts": 0, "report": report})
            })
            .collect();
        let program = if links[0]["interface"] == "" {
            "vde_plug"
        } else {
            "vdens"
        };
        let process = json!({"pid": pid, "program": program, "version": "0",
            "command": ["sh", "-i"], "directory": "/work", "started": 0, "links": links});
        let process =
            serde_json::from_value(process).map_err(|error| Error::usage(error.to_string()));
        Answer { pid, process }
    }

    #[test]
    fn a_session_has_its_name_and_its_addresses() {
        let mut answer = answer(10, &[("vde0", "null://", up())]);
        let process = answer.process.as_mut().unwrap();
        process.name = Some("r1".into());
        process.links[0].link.addresses = ["10.0.0.1/24", "fe80::1/64"]
            .map(|a| a.parse().unwrap())
            .to_vec();
        let node = &Graph::of(&[answer]).nodes[0];
        assert_eq!(
            (node.name.as_str(), node.note.as_str()),
            ("r1", "vdens 10: sh -i")
        );
        assert_eq!(node.interfaces[0].addresses, ["10.0.0.1/24"]);
    }

    pub(in crate::tools::graph) fn up() -> Value {
        json!({"carrier": true})
    }

    pub(in crate::tools::graph) fn names(graph: &Graph) -> Vec<&str> {
        graph.nodes.iter().map(|node| node.name.as_str()).collect()
    }

    /// Which nodes are linked.
    pub(in crate::tools::graph) fn pairs(graph: &Graph) -> Vec<[usize; 2]> {
        graph
            .links
            .iter()
            .map(|link| link.ends.map(|end| end.node))
            .collect()
    }

    #[test]
    fn two_sessions_on_one_cable_are_one_link() {
        let graph = Graph::of(&[
            answer(10, &[("vde0", "ptp://p", up())]),
            answer(20, &[("vde0", "ptp:///work/x/../p[mode=0600]", up())]),
        ]);
        assert_eq!(names(&graph), ["sh -i", "sh -i"]);
        assert_eq!(pairs(&graph), [[0, 1]]);
        let link = &graph.links[0];
        assert!(link.is_up);
        assert_eq!(graph.interface(link.ends[1]).unwrap().name, "vde0");
        // One end has noticed that the other is gone.
        let graph = Graph::of(&[
            answer(10, &[("vde0", "ptp://p", up())]),
            answer(20, &[("vde0", "ptp://p", json!({}))]),
        ]);
        assert!(!graph.links[0].is_up);
    }

    #[test]
    fn sessions_hang_on_their_switch_and_a_plug_joins_two() {
        let port = |pid| json!({"number": 1, "client": {"description": "qemu", "pid": pid}});
        let ports = json!({"carrier": true, "switch": {"ports": [port(21), port(99)], "fdb": []}});
        let graph = Graph::of(&[
            answer(10, &[("", "null://", up()), ("", "switch://sw", ports)]),
            answer(
                20,
                &[("vde0", "vde:///work/sw", up()), ("vde1", "null://", up())],
            ),
            answer(30, &[("", "vde://sw", up()), ("", "vde:///other", up())]),
            answer(40, &[("vde0", "switch://own", up())]),
            answer(50, &[("", "nat://", up()), ("", "hub://h", up())]),
        ]);
        assert_eq!(
            names(&graph),
            [
                "sw",
                "sh -i",
                "vde_plug 30",
                "sh -i",
                "own",
                "h",
                "vde:///other",
                "nat://",
                "qemu"
            ]
        );
        let kinds = graph.nodes.iter().map(|node| node.kind).collect::<Vec<_>>();
        let (space, switch, outside) = (Kind::Namespace, Kind::Switch, Kind::Outside);
        let plug = Kind::Plug;
        assert_eq!(
            kinds,
            [
                switch, space, plug, space, switch, switch, outside, outside, outside
            ]
        );
        let mut found = pairs(&graph);
        found.sort_unstable();
        // The client of the switch that is one of the processes is drawn once.
        assert_eq!(found, [[0, 8], [1, 0], [2, 0], [2, 6], [3, 4], [5, 7]]);
        assert_eq!(graph.nodes[0].note, "switch, vde_plug 10");
        assert_eq!(graph.nodes[8].note, "process 99");
    }

    #[test]
    fn a_switch_is_known_by_its_process_if_its_path_differs() {
        let report = json!({"carrier": true, "peer": {"pid": 10}});
        let graph = Graph::of(&[
            answer(10, &[("", "null://", up()), ("", "switch://sw", up())]),
            answer(20, &[("vde0", "vde:///link/to/sw", report)]),
        ]);
        assert_eq!(pairs(&graph), [[1, 0]]);
    }

    #[test]
    fn who_is_not_ours_is_outside_and_a_silent_process_is_alone() {
        let peer = json!({"carrier": true, "peer": {"description": "<b>", "uid": 1001}});
        let mut answers = vec![
            answer(
                10,
                &[("vde0", "ptp://p", peer), ("vde1", "ptp://q", json!({}))],
            ),
            answer(
                20,
                &[
                    ("vde0", "vxlan://239.0.0.1", up()),
                    ("vde1", "nat://", up()),
                ],
            ),
            answer(
                30,
                &[
                    ("vde0", "vxlan://239.0.0.1", up()),
                    ("vde1", "nat://", up()),
                ],
            ),
        ];
        answers.push(Answer {
            pid: 40,
            process: Err(Error::closed("silence")),
        });
        let graph = Graph::of(&answers);
        let last = &names(&graph)[3..];
        let outside = [
            "process 40",
            "<b>",
            "ptp://q",
            "vxlan://239.0.0.1",
            "nat://",
            "nat://",
        ];
        assert_eq!(last, outside);
        assert_eq!(graph.nodes[4].note, "user 1001, ptp://p");
        assert!(graph.nodes[3].is_silent);
        let down: Vec<bool> = graph.links.iter().map(|link| link.is_up).collect();
        assert_eq!(down, [true, false, true, true, true, true]);
        // Both are on one VXLAN, and each has its own NAT.
        let graph = graph.around("process 40").unwrap();
        assert_eq!((graph.nodes.len(), graph.links.len()), (1, 0));
    }

    #[test]
    fn nested_vnls_are_the_label_of_their_link() {
        let live = json!({"carrier": true, "extra": {"keys": "delay=5ms"}});
        let graph = Graph::of(&[
            answer(10, &[("vde0", "netem://delay=20ms{ptp://p}", live)]),
            answer(20, &[("vde0", "netem://loss=1%{vlan://5{ptp://p}}", up())]),
        ]);
        assert_eq!(pairs(&graph), [[0, 1]]);
        assert_eq!(graph.links[0].label, "delay=5ms, loss=1%, vlan://5");
    }
}
