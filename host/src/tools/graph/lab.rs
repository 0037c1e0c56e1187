//! The part of a graph that a lab is.
//!
//! Its nodes are named `LAB/NODE`, as everywhere. A link's end outside joins a network as the end
//! of a session does, so a session on a lab's switch or cable is drawn beside the lab.

use std::collections::BTreeMap;
use std::path::Path;

use super::builder::{Builder, shown};
use super::model::{End, Interface, Kind};
use crate::ipc::status::lab::{LabStatus, LinkEnd, NodeStatus};
use crate::sys::netlink::InterfaceStatus;

impl Builder {
    /// Adds a lab.
    pub(super) fn lab(&mut self, lab: &LabStatus) {
        let mut ends = BTreeMap::new();
        let mut nodes: Vec<_> = lab.nodes.iter().collect();
        nodes.sort_by_key(|node| natural(&node.name));
        for node in nodes {
            let index = self.member(&lab.name, node);
            for (number, interface) in in_order(node).into_iter().enumerate() {
                let interface = (node.name.as_str(), interface.name.as_str());
                let end = End {
                    node: index,
                    interface: Some(number),
                };
                ends.insert(interface, end);
            }
        }
        let mut switches = BTreeMap::new();
        for name in &lab.switches {
            let node = self.node(Kind::Switch, format!("{}/{name}", lab.name), String::new());
            let interface = None;
            switches.insert(name.as_str(), End { node, interface });
        }
        let directory = Path::new(&lab.file).parent().unwrap_or(Path::new("/"));
        let directory = directory.to_string_lossy();
        for link in &lab.links {
            self.own.extend(link.worker);
            let label = link.impairments.clone().unwrap_or_default();
            // An end that does not exist any more has no place in the picture.
            let found = link.ends.each_ref().map(|end| match end {
                LinkEnd::Interface { node, name } => {
                    ends.get(&(node.as_str(), name.as_str())).copied()
                }
                LinkEnd::Switch(name) => switches.get(name.as_str()).copied(),
                LinkEnd::Vnl(_) => None,
            });
            match (found, &link.ends) {
                ([Some(a), Some(b)], _) => self.link([a, b], label, link.carrier),
                ([Some(end), None], [_, LinkEnd::Vnl(vnl)])
                | ([None, Some(end)], [LinkEnd::Vnl(vnl), _]) => {
                    self.vnl(vnl, &directory, end, label, link.carrier);
                }
                _ => {}
            }
        }
    }

    /// The node of a lab's node.
    fn member(&mut self, lab: &str, node: &NodeStatus) -> usize {
        self.own.push(node.pid);
        let note = match &node.working {
            Some(working) => working.clone(),
            None if node.hostname == node.name => String::new(),
            None => node.hostname.clone(),
        };
        let index = self.node(Kind::Namespace, format!("{lab}/{}", node.name), note);
        for interface in in_order(node) {
            self.interface(
                index,
                Interface {
                    name: interface.name.clone(),
                    addresses: shown(&interface.addresses),
                    is_up: interface.carrier,
                },
            );
        }
        index
    }
}

/// The interfaces of a node in the order of their names.
fn in_order(node: &NodeStatus) -> Vec<&InterfaceStatus> {
    let mut interfaces: Vec<_> = node.interfaces.iter().collect();
    interfaces.sort_by_key(|interface| natural(&interface.name));
    interfaces
}

/// The place of a name among others, so that eth2 is before eth10.
fn natural(name: &str) -> (&str, usize, &str) {
    let letters = name.trim_end_matches(|c: char| c.is_ascii_digit());
    (letters, name.len(), name)
}

#[cfg(test)]
mod tests {
    use crate::tools::graph::builder::tests::{answer, pairs};
    use crate::tools::graph::model::Graph;
    use serde_json::json;

    #[test]
    fn a_labs_links_switches_and_uplinks_are_drawn_beside_sessions() {
        let interface = |name: &str, address: &str| {
            json!({"name": name, "addresses": [address], "mac": "", "mtu": 1500, "carrier": true,
                   "traffic": {}})
        };
        let node = |name: &str, interfaces: Vec<serde_json::Value>| {
            json!({"name": name, "pid": 1, "hostname": name, "interfaces": interfaces,
                   "services": []})
        };
        let end = |node: &str, name: &str| json!({"interface": {"node": node, "name": name}});
        let lab = json!({"name": "lab", "file": "/work/lab.toml", "state": "running",
        "nodes": [
            node("r1", vec![interface("eth1", "10.1.0.1/24"), interface("eth0", "10.0.0.1/24")]),
            node("h1", vec![interface("eth0", "10.0.0.2/24")]),
        ],
        "switches": ["lan"],
        "links": [
            {"ends": [end("r1", "eth0"), {"switch": "lan"}], "carrier": true},
            {"ends": [end("h1", "eth0"), {"switch": "lan"}], "carrier": false,
             "impairments": "delay=20ms"},
            {"ends": [end("r1", "eth1"), {"vnl": "ptp://p"}], "carrier": true},
            {"ends": [{"switch": "lan"}, {"vnl": "nat://"}], "carrier": true},
            {"ends": [end("gone", "eth0"), {"switch": "lan"}], "carrier": true},
        ]});
        let mut supervisor = answer(20, &[("", "null://", json!({}))]);
        let process = supervisor.process.as_mut().unwrap();
        process.program = "lab".into();
        process.links.clear();
        process.lab = Some(serde_json::from_value(lab).unwrap());
        let session = answer(10, &[("vde0", "ptp:///work/p", json!({"carrier": true}))]);
        let graph = Graph::of(&[session, supervisor]);
        let names: Vec<&str> = graph.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["sh -i", "lab/h1", "lab/r1", "lab/lan", "nat://"]);
        let mut found = pairs(&graph);
        found.sort_unstable();
        assert_eq!(found, [[0, 2], [1, 3], [2, 3], [3, 4]]);
        let down = graph.links.iter().find(|link| !link.is_up).unwrap();
        assert_eq!(down.label, "delay=20ms");
        assert_eq!(graph.nodes[2].interfaces[1].addresses, ["10.1.0.1/24"]);
        assert_eq!(graph.around("lab").unwrap().nodes.len(), 5);
    }
}
