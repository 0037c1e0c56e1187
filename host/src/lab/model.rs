//! A lab as it is to be made: the outcome of reading a lab file, and all that the rest of the
//! program knows of one.
//!
//! # Theory of operation
//!
//! A [`Lab`] is complete and right. Groups and globs are expanded, every address is an interface's
//! own, and what can be checked without making anything has been checked: names are unique,
//! a [`Node`]'s index is in range, no node waits for itself, impairments and VNLs are well-formed.
//! So the code that makes a lab handles only failures of the machine.
//!
//! Two labs compare equal if there is nothing to change between them. An index is a position in
//! [`Lab::nodes`] of the same lab: `apply` compares nodes of two labs by name.

use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::sys::netlink::Mac;

/// A lab.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lab {
    /// `name` of the file, or else the file's own name without its extension. It can be a
    /// session's name.
    pub name: String,
    /// In the order of the file, the members of a group by their numbers.
    pub nodes: Vec<Node>,
    /// In the order of the file.
    pub links: Vec<Link>,
    /// In the order of the file.
    pub switches: Vec<Switch>,
    /// In the order of the file.
    pub tests: Vec<Test>,
}

impl Lab {
    /// The nodes in the order in which they start: those of a stage may start at once, and wait
    /// for those of the stages before.
    pub(crate) fn stages(&self) -> Vec<Vec<usize>> {
        // A node is on the stage after the last of those that it waits for. A chain is at most as
        // long as there are nodes.
        let mut stage_of = vec![0_usize; self.nodes.len()];
        let mut waiting: Vec<usize> = self.nodes.iter().map(|node| node.after.len()).collect();
        let mut followers = vec![Vec::new(); self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            node.after
                .iter()
                .for_each(|first| followers[*first].push(index));
        }
        let mut ready: Vec<usize> = (0..waiting.len())
            .filter(|index| waiting[*index] == 0)
            .collect();
        let mut stages: Vec<Vec<usize>> = Vec::new();
        while let Some(index) = ready.pop() {
            let stage = stage_of[index];
            if stages.len() <= stage {
                stages.resize_with(stage + 1, Vec::new);
            }
            stages[stage].push(index);
            for &follower in &followers[index] {
                stage_of[follower] = stage_of[follower].max(stage + 1);
                waiting[follower] -= 1;
                if waiting[follower] == 0 {
                    ready.push(follower);
                }
            }
        }
        stages.iter_mut().for_each(|stage| stage.sort_unstable());
        stages
    }
}

/// A network namespace of its own, and what runs in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    /// Unique in the lab.
    pub name: String,
    /// What `hostname` says; the node's name unless the file says otherwise.
    pub hostname: String,
    /// Kernel parameters as sysctl(8) names them, and their values. They may be those of an
    /// interface, so they are set when the interfaces are there.
    pub sysctl: Vec<(String, String)>,
    /// Commands for `/bin/sh -c`, one after the other, when the interfaces are up. One that fails
    /// ends the start of the lab.
    pub exec: Vec<String>,
    /// Commands for `/bin/sh -c` that run as long as the lab does. They start after `exec`.
    pub services: Vec<String>,
    /// The nodes whose commands have been run, and whose services have been started, before this
    /// node's `exec`.
    pub after: Vec<usize>,
    /// Whether the user is uid 0 inside (`vdens --root`).
    pub root: bool,
    /// Whether the node has the user's subordinate ids (`vdens --map-auto`).
    pub map_auto: bool,
    /// The virtual machine whose cards are the node's interfaces, if it has one.
    pub machine: Option<Machine>,
}

/// A virtual machine, as QEMU takes it. Relative paths start at the lab file's directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The program.
    pub program: String,
    /// The disk's image.
    pub image: Option<String>,
    /// Whether the image keeps what the guest writes.
    pub keep: bool,
    /// The guest's memory, with a unit: `512M`.
    pub memory: String,
    /// The number of its processors.
    pub cpus: u32,
    /// The kernel that is booted, if not from the disk.
    pub kernel: Option<String>,
    /// Its initial file system.
    pub initrd: Option<String>,
    /// Its command line.
    pub append: Option<String>,
    /// Further arguments of the program.
    pub args: Vec<String>,
}

/// An interface of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// The node's index.
    pub node: usize,
    /// The interface's name, unique in the node.
    pub interface: String,
    /// Its addresses, unique in the link or switch.
    pub addresses: Vec<IpNet>,
    /// Its Ethernet address, if the file says one.
    #[serde(with = "mac_text")]
    pub mac: Option<Mac>,
    /// Its MTU in bytes, if not the kernel's choice.
    pub mtu: Option<u32>,
}

/// An Ethernet address as text.
mod mac_text {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::cli::values::MacAddress;
    use crate::sys::netlink::Mac;

    pub(super) fn serialize<S: Serializer>(mac: &Option<Mac>, to: S) -> Result<S::Ok, S::Error> {
        let text = mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
        text.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Mac>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        let mac = text.map(|text| text.parse::<MacAddress>().map(|mac| mac.0));
        mac.transpose().map_err(D::Error::custom)
    }
}

/// What a link or a switch's port leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum End {
    /// An interface of a node.
    Node(Attachment),
    /// A network outside of the lab. Relative paths start at the lab file's directory.
    Vnl(String),
}

/// A cable between two ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    /// The first is always a node's.
    pub ends: [End; 2],
    /// Keys as `netem://` takes them, such as `delay=20ms/tx.loss=1%`, if the link is impaired.
    /// They are those of the first end's interface: `tx.` is for the frames that it sends.
    pub impairments: Option<String>,
}

/// A switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Switch {
    /// Unique among the lab's switches and nodes.
    pub name: String,
    /// What is plugged in.
    pub ports: Vec<End>,
    /// One more port: the VNL that leads outside.
    pub uplink: Option<String>,
    /// The MTU of what leads outside in bytes, if the file says one.
    pub mtu: Option<u32>,
}

/// A command that tells whether the lab works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Test {
    /// Unique in the lab.
    pub name: String,
    /// The index of the node that it runs in.
    pub node: usize,
    /// A command for `/bin/sh -c`.
    pub run: String,
    /// The exit status that passes.
    pub expect: u8,
    /// How long the test may fail before it has failed: it is tried again until it passes.
    pub within: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_on_the_stage_after_all_that_it_waits_for() {
        let node = |after: &[usize]| Node {
            after: after.to_vec(),
            ..Node::default()
        };
        let lab = Lab {
            nodes: vec![node(&[3]), node(&[]), node(&[0, 1]), node(&[1]), node(&[])],
            ..Lab::default()
        };
        assert_eq!(lab.stages(), [vec![1, 4], vec![3], vec![0], vec![2]]);
        assert_eq!(Lab::default().stages(), Vec::<Vec<usize>>::new());
    }
}
