//! The difference between two labs, without I/O.
//!
//! A [`Difference`] lists what is to be done in the order in which it is done:
//!
//! 1. cut the cables that are gone or different, and those of nodes and switches that go;
//! 2. end nodes, and remove switches;
//! 3. start nodes, and make switches;
//! 4. connect cables; take and give addresses; change the impairments of cables that stay;
//! 5. have the nodes set what changed, run the new commands, and start and stop services.
//!
//! What two shapes have in common is in no list, so its connections last. A node is replaced only
//! if its user ids change, because a namespace's ids are fixed. Removed commands and kernel
//! parameters are not undone: nobody knows how.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::model::Node;
use super::shape::{Cable, Interface, NodeShape, Shape};
use crate::ipc::ToNode;

/// What is to be done to make one shape another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Cables to remove, with their interfaces.
    pub cut: Vec<Cable>,
    /// Nodes to end.
    pub end: Vec<String>,
    /// Switches to remove.
    pub remove_switches: Vec<String>,
    /// Nodes to start.
    pub start: Vec<NodeShape>,
    /// Switches to make.
    pub add_switches: Vec<String>,
    /// Cables to make, with their interfaces.
    pub connect: Vec<Cable>,
    /// Cables whose impairments change, as they are and as they are to be.
    pub impair: Vec<[Cable; 2]>,
    /// Addresses to take from interfaces that stay.
    pub take: Vec<(Interface, IpNet)>,
    /// Addresses to give to interfaces, which may be new.
    pub give: Vec<(Interface, IpNet)>,
    /// What nodes have to do, in order.
    pub work: Vec<(String, Vec<ToNode>)>,
}

impl Difference {
    /// The difference that makes `old` to `new`.
    pub(crate) fn between(old: &Shape, new: &Shape) -> Self {
        let goes = |name: &String| match (old.nodes.get(name), new.nodes.get(name)) {
            (Some(old), Some(new)) => ids(&old.node) != ids(&new.node),
            (Some(_), None) => true,
            (None, _) => false,
        };
        let ended: BTreeSet<&String> = old.nodes.keys().filter(|name| goes(name)).collect();
        // Two cables that differ in their impairments only are the same one.
        let unimpaired = |cable: &Cable| cable.with_impairments("");
        let is_lost = |cable: &Cable| {
            let mut plugs = cable.plugs().iter();
            plugs.any(|plug| ended.contains(&plug.interface.node))
        };
        let wanted: BTreeMap<Cable, &Cable> =
            new.cables.iter().map(|it| (unimpaired(it), it)).collect();
        let mut cut: Vec<&Cable> = Vec::new();
        let mut kept: BTreeSet<&Cable> = BTreeSet::new();
        let mut impair = Vec::new();
        for cable in &old.cables {
            match wanted.get(&unimpaired(cable)) {
                Some(same) if !is_lost(cable) => {
                    kept.insert(same);
                    impair.extend((*same != cable).then(|| [cable, same].map(Cable::clone)));
                }
                _ => cut.push(cable),
            }
        }
        let connect = new.cables.iter().filter(|cable| !kept.contains(cable));
        let connect: Vec<Cable> = connect.cloned().collect();
        let interfaces_of = |cables: &mut dyn Iterator<Item = &Cable>| -> BTreeSet<Interface> {
            let plugs = cables.flat_map(Cable::plugs);
            plugs.map(|plug| plug.interface.clone()).collect()
        };
        let gone = interfaces_of(&mut cut.iter().copied());
        let fresh = interfaces_of(&mut connect.iter());
        let start: Vec<NodeShape> = new
            .nodes
            .iter()
            .filter(|(name, _)| !old.nodes.contains_key(*name) || ended.contains(name))
            .map(|(_, node)| node.clone())
            .collect();
        let work = new.nodes.iter().map(|(name, node)| {
            let before = old.nodes.get(name).filter(|_| !ended.contains(name));
            (name.clone(), work(before.map(|old| &old.node), &node.node))
        });
        Self {
            end: ended.iter().map(|name| (*name).clone()).collect(),
            remove_switches: old.switches.difference(&new.switches).cloned().collect(),
            add_switches: new.switches.difference(&old.switches).cloned().collect(),
            take: old
                .addresses
                .iter()
                .filter(|given| !new.addresses.contains(*given) && !gone.contains(&given.0))
                .cloned()
                .collect(),
            give: new
                .addresses
                .iter()
                .filter(|given| !old.addresses.contains(*given) || fresh.contains(&given.0))
                .cloned()
                .collect(),
            work: work.filter(|(_, work)| !work.is_empty()).collect(),
            cut: cut.into_iter().cloned().collect(),
            connect,
            impair,
            start,
        }
    }

    /// What it does, a line for each change.
    pub(crate) fn summary(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let new: BTreeSet<&String> = self.start.iter().map(|node| &node.node.name).collect();
        lines.extend(self.end.iter().map(|name| format!("- node {name}")));
        lines.extend(
            self.remove_switches
                .iter()
                .map(|name| format!("- switch {name}")),
        );
        lines.extend(self.cut.iter().map(|cable| format!("- link {cable}")));
        lines.extend(new.iter().map(|name| format!("+ node {name}")));
        lines.extend(
            self.add_switches
                .iter()
                .map(|name| format!("+ switch {name}")),
        );
        lines.extend(self.connect.iter().map(|cable| format!("+ link {cable}")));
        lines.extend(self.impair.iter().map(|[_, cable]| {
            let keys = Some(cable.impairments().unwrap_or_default());
            let keys = keys.filter(|keys| !keys.is_empty());
            format!("* link {cable}: {}", keys.unwrap_or("no impairments"))
        }));
        let fresh = self.connect.iter().flat_map(Cable::plugs);
        let fresh: BTreeSet<&Interface> = fresh.map(|plug| &plug.interface).collect();
        let address = |sign, (interface, address): &(Interface, IpNet)| {
            format!("{sign} address {interface} {address}")
        };
        lines.extend(self.take.iter().map(|given| address('-', given)));
        let given = self.give.iter().filter(|given| !fresh.contains(&given.0));
        lines.extend(given.map(|given| address('+', given)));
        let work = self.work.iter().filter(|(name, _)| !new.contains(name));
        lines.extend(work.flat_map(|(name, work)| {
            work.iter()
                .map(move |task| format!("* {name}: {}", told(task)))
        }));
        lines
    }
}

/// What a message makes a node do, for people.
pub(crate) fn told(task: &ToNode) -> String {
    match task {
        ToNode::Hostname(name) => format!("hostname {name}"),
        ToNode::Sysctl { name, value } => format!("sysctl {name}={value}"),
        ToNode::Exec(line) => format!("exec {line}"),
        ToNode::Start(service) => format!("start {service}"),
        ToNode::Stop(service) => format!("stop {service}"),
        ToNode::End => "end".into(),
    }
}

/// What decides the user ids of a node's namespace.
fn ids(node: &Node) -> (bool, bool) {
    (node.root, node.map_auto)
}

/// What a node has to do to become `new`. A node that starts has its host name already.
fn work(old: Option<&Node>, new: &Node) -> Vec<ToNode> {
    let fresh = Node::default();
    let before = old.unwrap_or(&fresh);
    let mut work = Vec::new();
    if old.is_some() && before.hostname != new.hostname {
        work.push(ToNode::Hostname(new.hostname.clone()));
    }
    let sysctl = new.sysctl.iter().filter(|set| !before.sysctl.contains(set));
    work.extend(sysctl.map(|(name, value)| ToNode::Sysctl {
        name: name.clone(),
        value: value.clone(),
    }));
    let stopped = added(&new.services, &before.services);
    work.extend(stopped.map(ToNode::Stop));
    work.extend(added(&before.exec, &new.exec).map(ToNode::Exec));
    work.extend(added(&before.services, &new.services).map(ToNode::Start));
    work
}

/// The lines of `new` that `old` has not, or has less often.
fn added<'a>(old: &'a [String], new: &'a [String]) -> impl Iterator<Item = String> + 'a {
    let mut left: Vec<&String> = old.iter().collect();
    let is_new = move |line: &&String| match left.iter().position(|other| other == line) {
        Some(at) => {
            left.swap_remove(at);
            false
        }
        None => true,
    };
    new.iter().filter(is_new).cloned()
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;
    use crate::lab::model::{Attachment, End, Lab, Link, Switch};

    /// Nodes with these names.
    fn nodes(names: &[&str]) -> Lab {
        let node = |name: &&str| Node {
            name: (*name).into(),
            ..Node::default()
        };
        Lab {
            nodes: names.iter().map(node).collect(),
            ..Lab::default()
        }
    }

    /// The interface `eth` of a node with an address, or with none.
    fn at(node: usize, eth: u32, address: &str) -> End {
        End::Node(Attachment {
            node,
            interface: format!("eth{eth}"),
            addresses: address.parse().ok().into_iter().collect(),
            ..Attachment::default()
        })
    }

    fn link(a: End, b: End) -> Link {
        Link {
            ends: [a, b],
            impairments: None,
        }
    }

    /// Two routers with a link, and a host at a switch.
    fn lab() -> Lab {
        let mut lab = nodes(&["r1", "r2", "h"]);
        lab.links = vec![link(at(0, 0, "10.0.0.1/24"), at(1, 0, "10.0.0.2/24"))];
        lab.switches = vec![Switch {
            name: "lan".into(),
            ports: vec![at(0, 1, "10.1.0.1/24"), at(2, 0, "10.1.0.2/24")],
            uplink: Some("nat://".into()),
            mtu: None,
        }];
        lab
    }

    fn difference(old: &Lab, new: &Lab) -> Difference {
        let difference = Difference::between(&old.into(), &new.into());
        // What is the same is in no list.
        assert_eq!(
            Difference::between(&new.into(), &new.into()),
            Difference::default()
        );
        difference
    }

    fn shown<T: fmt::Display>(all: &[T]) -> Vec<String> {
        all.iter().map(T::to_string).collect()
    }

    #[test]
    fn a_lab_comes_from_nothing() {
        let all = difference(&Lab::default(), &lab());
        assert_eq!(all.start.len(), 3);
        assert_eq!(all.add_switches, ["lan"]);
        assert_eq!(
            shown(&all.connect),
            [
                "r1:eth0 – r2:eth0",
                "h:eth0 – lan",
                "r1:eth1 – lan",
                "lan – nat://"
            ]
        );
        assert_eq!(all.give.len(), 4);
        let nothing = Difference {
            start: Vec::new(),
            add_switches: Vec::new(),
            connect: Vec::new(),
            give: Vec::new(),
            ..all
        };
        assert_eq!(nothing, Difference::default());
    }

    #[test]
    fn a_node_that_goes_takes_its_cables_along() {
        let mut new = lab();
        new.switches[0].ports.pop();
        new.nodes.pop();
        let change = difference(&lab(), &new);
        assert_eq!(change.end, ["h"]);
        assert_eq!(shown(&change.cut), ["h:eth0 – lan"]);
        // Its addresses go with its interface.
        let rest = Difference {
            end: Vec::new(),
            cut: Vec::new(),
            ..change
        };
        assert_eq!(rest, Difference::default());
    }

    #[test]
    fn the_order_of_the_file_does_not_matter() {
        let mut new = nodes(&["h", "r2", "r1"]);
        new.switches = vec![Switch {
            name: "lan".into(),
            ports: vec![at(0, 0, "10.1.0.2/24"), at(2, 1, "10.1.0.1/24")],
            uplink: Some("nat://".into()),
            mtu: None,
        }];
        new.links = vec![link(at(2, 0, "10.0.0.1/24"), at(1, 0, "10.0.0.2/24"))];
        assert_eq!(difference(&lab(), &new), Difference::default());
    }

    #[test]
    fn addresses_change_while_the_interface_stays() {
        let mut new = lab();
        new.links[0] = link(at(0, 0, "10.0.9.1/24"), at(1, 0, "10.0.0.2/24"));
        let change = difference(&lab(), &new);
        assert_eq!((change.take.len(), change.give.len()), (1, 1));
        assert_eq!(
            change.summary(),
            [
                "- address r1:eth0 10.0.0.1/24",
                "+ address r1:eth0 10.0.9.1/24"
            ]
        );
        assert!(change.cut.is_empty() && change.connect.is_empty());
    }

    #[test]
    fn a_cable_that_changes_gets_its_addresses_again() {
        let mut new = lab();
        new.links[0].impairments = Some("delay=20ms".into());
        let change = difference(&lab(), &new);
        assert_eq!(shown(&change.cut), ["r1:eth0 – r2:eth0"]);
        assert_eq!(shown(&change.connect), ["r1:eth0 – r2:eth0"]);
        assert!(matches!(change.connect[0], Cable::Impaired { .. }));
        assert_eq!((change.take.len(), change.give.len()), (0, 2));
    }

    #[test]
    fn a_node_whose_ids_change_is_replaced() {
        let mut new = lab();
        new.nodes[0].root = true;
        let change = difference(&lab(), &new);
        assert_eq!(change.end, ["r1"]);
        assert_eq!(change.start.len(), 1);
        assert_eq!(shown(&change.cut), ["r1:eth0 – r2:eth0", "r1:eth1 – lan"]);
        assert_eq!(shown(&change.connect), shown(&change.cut));
        // The other end's interface is new as well.
        assert_eq!(change.give.len(), 3);
    }

    #[test]
    fn a_node_does_only_what_is_new() {
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        let (mut old, mut new) = (nodes(&["r"]), nodes(&["r"]));
        old.nodes[0].exec = lines(&["a", "b"]);
        old.nodes[0].services = lines(&["s", "t"]);
        old.nodes[0].sysctl = vec![("x".into(), "1".into()), ("y".into(), "1".into())];
        new.nodes[0].hostname = "other".into();
        new.nodes[0].exec = lines(&["b", "c", "b"]);
        new.nodes[0].services = lines(&["t", "u"]);
        new.nodes[0].sysctl = vec![("x".into(), "2".into()), ("y".into(), "1".into())];
        let change = difference(&old, &new);
        let told: Vec<String> = change.work[0].1.iter().map(told).collect();
        assert_eq!(
            told,
            [
                "hostname other",
                "sysctl x=2",
                "stop s",
                "exec c",
                "exec b",
                "start u"
            ]
        );
    }

    #[test]
    fn impairments_change_while_the_cable_stays() {
        let mut old = lab();
        old.links[0].impairments = Some("delay=20ms".into());
        let mut new = old.clone();
        new.links[0].impairments = Some("loss=1%".into());
        let change = difference(&old, &new);
        assert_eq!(change.summary(), ["* link r1:eth0 – r2:eth0: loss=1%"]);
        let [before, after] = &change.impair[0];
        assert_eq!(before.impairments(), Some("delay=20ms"));
        assert_eq!(after.vnl().unwrap(), "netem://loss=1%{nearby://}");
        // If a node is replaced, so is the cable.
        new.nodes[0].root = true;
        let change = difference(&old, &new);
        assert!(change.impair.is_empty());
        let again: Vec<_> = change
            .connect
            .iter()
            .filter_map(Cable::impairments)
            .collect();
        assert_eq!(again, ["loss=1%"]);
    }
}
