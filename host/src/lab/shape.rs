//! What a lab consists of, by names, so that a node that moves in the file is the same node. Pure:
//! nothing here touches the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use super::machine;
use super::model::{Attachment, End, Lab, Node, Switch};
use crate::sys::netlink::Mac;
use crate::worker::NEARBY;

/// An interface of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Interface {
    /// The node's name.
    pub node: String,
    /// Its own.
    pub name: String,
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.name)
    }
}

/// An interface as it is to be made. Its addresses are not part of it: they can change while it
/// stays.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Plug {
    /// Which.
    pub interface: Interface,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its MTU, if not the kernel's choice.
    pub mtu: Option<u32>,
}

/// A connection, with the interfaces at its ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cable {
    /// A pair of virtual Ethernet interfaces between two nodes.
    Direct([Plug; 2]),
    /// The same between a node and a switch.
    Port {
        /// The node's end.
        plug: Plug,
        /// The switch.
        switch: String,
    },
    /// A worker moves the frames between two nodes, and impairs them.
    Impaired {
        /// Both ends.
        plugs: [Plug; 2],
        /// Keys of `netem://`, as the first end's interface has them.
        impairments: String,
    },
    /// A worker moves the frames between a node and a network outside.
    Outside {
        /// The node's end.
        plug: Plug,
        /// The network.
        vnl: String,
        /// The impairments, if it can be impaired.
        impairments: Option<String>,
    },
    /// The same for a switch.
    Uplink {
        /// The switch.
        switch: String,
        /// The network.
        vnl: String,
        /// The MTU of the way there, if not the default.
        mtu: Option<u32>,
    },
}

impl Cable {
    /// The interfaces of nodes at its ends.
    pub(crate) fn plugs(&self) -> &[Plug] {
        match self {
            Self::Direct(plugs) | Self::Impaired { plugs, .. } => plugs,
            Self::Port { plug, .. } | Self::Outside { plug, .. } => std::slice::from_ref(plug),
            Self::Uplink { .. } => &[],
        }
    }

    /// The MTU of its first end in bytes, if not the default.
    pub(crate) fn mtu(&self) -> Option<u32> {
        match self {
            Self::Uplink { mtu, .. } => *mtu,
            _ => self.plugs().first().and_then(|plug| plug.mtu),
        }
    }

    /// What impairs it, if it can be impaired.
    pub(crate) fn impairments(&self) -> Option<&str> {
        match self {
            Self::Impaired { impairments, .. } => Some(impairments),
            Self::Outside { impairments, .. } => impairments.as_deref(),
            Self::Direct(_) | Self::Port { .. } | Self::Uplink { .. } => None,
        }
    }

    /// The same cable with other impairments, if it can be impaired.
    pub(crate) fn with_impairments(&self, new: &str) -> Self {
        let mut cable = self.clone();
        match &mut cable {
            Self::Impaired { impairments, .. }
            | Self::Outside {
                impairments: Some(impairments),
                ..
            } => new.clone_into(impairments),
            _ => {}
        }
        cable
    }

    /// The VNL of what a worker impairs, or connects its interface with.
    pub(crate) fn network(&self) -> Option<&str> {
        match self {
            Self::Impaired { .. } => Some(NEARBY),
            Self::Outside { vnl, .. } | Self::Uplink { vnl, .. } => Some(vnl),
            Self::Direct(_) | Self::Port { .. } => None,
        }
    }

    /// What its worker opens, if it has a worker.
    pub(crate) fn vnl(&self) -> Option<String> {
        let network = self.network()?;
        Some(match self.impairments() {
            Some(impairments) => format!("netem://{impairments}{{{network}}}"),
            None => network.to_owned(),
        })
    }
}

impl fmt::Display for Cable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct([a, b]) | Self::Impaired { plugs: [a, b], .. } => {
                write!(f, "{} – {}", a.interface, b.interface)
            }
            Self::Port { plug, switch } => write!(f, "{} – {switch}", plug.interface),
            Self::Outside { plug, vnl, .. } => write!(f, "{} – {vnl}", plug.interface),
            Self::Uplink { switch, vnl, .. } => write!(f, "{switch} – {vnl}"),
        }
    }
}

/// A node, with the others by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeShape {
    /// Its own settings. `after` is empty: see below.
    pub node: Node,
    /// The nodes whose commands have been run before this node's.
    pub after: BTreeSet<String>,
}

/// A lab's parts by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    /// The nodes.
    pub nodes: BTreeMap<String, NodeShape>,
    /// The switches.
    pub switches: BTreeSet<String>,
    /// The cables.
    pub cables: BTreeSet<Cable>,
    /// The addresses of the nodes' interfaces.
    pub addresses: BTreeSet<(Interface, IpNet)>,
}

impl From<&Lab> for Shape {
    fn from(lab: &Lab) -> Self {
        let mut shape = Self::default();
        let name = |index: usize| lab.nodes[index].name.clone();
        for node in &lab.nodes {
            let after = node.after.iter().map(|first| name(*first)).collect();
            let after_by_name = Vec::new();
            let node = Node {
                after: after_by_name,
                ..node.clone()
            };
            let node = NodeShape { node, after };
            shape.nodes.insert(node.node.name.clone(), node);
        }
        for link in &lab.links {
            let cable = match &link.ends {
                [End::Node(a), End::Node(b)] => {
                    let plugs = [shape.plug(lab, a), shape.plug(lab, b)];
                    match &link.impairments {
                        None => Cable::Direct(plugs),
                        Some(impairments) => Cable::Impaired {
                            plugs,
                            impairments: impairments.clone(),
                        },
                    }
                }
                [End::Node(near), End::Vnl(vnl)] | [End::Vnl(vnl), End::Node(near)] => {
                    Cable::Outside {
                        plug: shape.plug(lab, near),
                        vnl: vnl.clone(),
                        impairments: link.impairments.clone(),
                    }
                }
                // A lab that was checked has none.
                [End::Vnl(_), End::Vnl(_)] => continue,
            };
            shape.cables.insert(cable);
        }
        for switch in &lab.switches {
            let name = || switch.name.clone();
            shape.switches.insert(name());
            for port in &switch.ports {
                let cable = match port {
                    End::Node(near) => Cable::Port {
                        plug: shape.plug(lab, near),
                        switch: name(),
                    },
                    End::Vnl(vnl) => uplink(switch, vnl),
                };
                shape.cables.insert(cable);
            }
            let uplinks = switch.uplink.iter().map(|vnl| uplink(switch, vnl));
            shape.cables.extend(uplinks);
        }
        shape.add_machines();
        shape
    }
}

fn uplink(switch: &Switch, vnl: &str) -> Cable {
    Cable::Uplink {
        switch: switch.name.clone(),
        vnl: vnl.to_owned(),
        mtu: switch.mtu,
    }
}

impl Shape {
    /// Makes the nodes' machines services.
    fn add_machines(&mut self) {
        for (name, NodeShape { node, .. }) in &mut self.nodes {
            let Some(machine) = &node.machine else {
                continue;
            };
            let plugs = self.cables.iter().flat_map(Cable::plugs);
            let mut plugs: Vec<Plug> = plugs
                .filter(|plug| plug.interface.node == *name)
                .cloned()
                .collect();
            plugs.sort();
            node.exec.insert(0, machine::check(machine));
            node.services.push(machine::command(machine, &plugs));
        }
    }

    /// Whether a node has a machine.
    pub(crate) fn has_machine(&self, node: &str) -> bool {
        let node = self.nodes.get(node);
        node.is_some_and(|node| node.node.machine.is_some())
    }

    /// Notes the addresses of an interface, and describes it.
    fn plug(&mut self, lab: &Lab, attachment: &Attachment) -> Plug {
        let interface = Interface {
            node: lab.nodes[attachment.node].name.clone(),
            name: attachment.interface.clone(),
        };
        let addresses = attachment.addresses.iter();
        self.addresses
            .extend(addresses.map(|address| (interface.clone(), *address)));
        Plug {
            mac: attachment
                .mac
                .unwrap_or_else(|| mac_of([&lab.name, &interface.node, &interface.name])),
            interface,
            mtu: attachment.mtu,
        }
    }

    /// Notes that cables are gone, with the interfaces at their ends.
    pub(crate) fn lose(&mut self, cables: &[Cable]) {
        self.cables.retain(|cable| !cables.contains(cable));
        let plugs: Vec<&Plug> = cables.iter().flat_map(Cable::plugs).collect();
        self.addresses
            .retain(|(interface, _)| plugs.iter().all(|plug| plug.interface != *interface));
    }
}

/// The Ethernet address of an interface that has none in the file: locally administered, and always
/// the same for the names of lab, node and interface, so that an interface that is made again keeps
/// it. The hash is FNV-1a with 64 bits, folded to 48.
fn mac_of(names: [&str; 3]) -> Mac {
    let bytes = names.iter().flat_map(|name| name.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [.., a, b, c, d, e, f] = (hash ^ hash >> 48).to_be_bytes();
    [a & 0xfc | 0x02, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::model::Link;

    #[test]
    fn an_interface_has_always_the_same_address() {
        let [a, b] = ["eth0", "eth1"].map(|name| mac_of(["lab", "r1", name]));
        assert_eq!(a, mac_of(["lab", "r1", "eth0"]));
        assert_ne!(a, b);
        assert_ne!(mac_of(["a", "bc", "e"]), mac_of(["ab", "c", "e"]));
        // Locally administered, and no group's (RFC 9542, section 2.1).
        assert!([a, b].iter().all(|mac| mac[0] & 3 == 2));
    }

    #[test]
    fn an_impaired_link_to_the_outside_is_a_nested_vnl() {
        let near = Attachment {
            interface: "eth0".into(),
            ..Attachment::default()
        };
        let node = Node {
            name: "r".into(),
            ..Node::default()
        };
        let lab = Lab {
            nodes: vec![node],
            links: vec![Link {
                ends: [End::Node(near), End::Vnl("vde:///s".into())],
                impairments: Some("delay=1ms".into()),
            }],
            ..Lab::default()
        };
        let shape = Shape::from(&lab);
        let cable = shape.cables.first().unwrap();
        assert_eq!(cable.to_string(), "r:eth0 – vde:///s");
        assert_eq!(cable.vnl().unwrap(), "netem://delay=1ms{vde:///s}");
    }
}
