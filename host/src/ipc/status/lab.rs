//! What a lab's supervisor reports of the lab: everything as it is now, not as the file has it.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::is_false;
use crate::sys::netlink::InterfaceStatus;

/// A lab.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct LabStatus {
    /// Its name.
    pub name: String,
    /// The file that it was last changed to, as an absolute path.
    pub file: String,
    /// What it does.
    pub state: LabState,
    /// Its nodes, by name.
    pub nodes: Vec<NodeStatus>,
    /// Its links, also those to switches and to networks outside.
    pub links: Vec<LinkStatus>,
    /// The names of its switches.
    pub switches: Vec<String>,
}

/// What a lab does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LabState {
    /// It starts.
    #[default]
    Starting,
    /// It is as its file says.
    Running,
    /// It becomes what an edited file says.
    Changing,
}

/// A node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    /// Its name.
    pub name: String,
    /// The process that is process 1 in it.
    pub pid: u32,
    /// What `hostname` says in it.
    pub hostname: String,
    /// What it does, if it still has something to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working: Option<String>,
    /// Its interfaces but the loopback interface, in the order in which they were made, without the
    /// addresses of the link (fe80::/10).
    pub interfaces: Vec<InterfaceStatus>,
    /// Its services.
    pub services: Vec<ServiceStatus>,
    /// Whether it has a virtual machine.
    #[serde(default, skip_serializing_if = "is_false")]
    pub has_machine: bool,
}

/// A service of a node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ServiceStatus {
    /// Its command.
    pub command: String,
    /// Its exit status, if it has ended; 128 + n for signal n.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<i32>,
    /// The end of its output, if it has ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
}

/// A link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LinkStatus {
    /// What it connects.
    pub ends: [LinkEnd; 2],
    /// Keys of `netem://` as the first end has them, if it is impaired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impairments: Option<String>,
    /// Whether it was taken down.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_down: bool,
    /// Whether frames can pass.
    pub carrier: bool,
    /// The worker that moves its frames, if the kernel does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
}

/// One end of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LinkEnd {
    /// An interface of a node.
    Interface {
        /// The node's name.
        node: String,
        /// Its own.
        name: String,
    },
    /// A switch of the lab, by its name.
    Switch(String),
    /// A network outside of the lab.
    Vnl(String),
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface { node, name } => write!(f, "{node}:{name}"),
            Self::Switch(name) | Self::Vnl(name) => f.write_str(name),
        }
    }
}

/// Something that has happened in a lab, as `vdectl lab events` prints it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LabEvent {
    /// When, in seconds since 1970.
    pub time: f64,
    /// The lab's name.
    pub lab: String,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

/// What has happened in a lab.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Happening {
    /// The first event: what the lab does now.
    State {
        /// That.
        state: LabState,
    },
    /// A node was started.
    NodeStarted {
        /// Its name.
        node: String,
        /// Its process 1.
        pid: u32,
    },
    /// A node was ended, or has ended by itself.
    NodeEnded {
        /// Its name.
        node: String,
    },
    /// A node has done something that its file says.
    Done {
        /// Its name.
        node: String,
        /// What.
        task: String,
    },
    /// A service has ended by itself.
    ServiceEnded {
        /// The node's name.
        node: String,
        /// Its status, and the end of its output.
        #[serde(flatten)]
        service: ServiceStatus,
    },
    /// A link's impairments have changed.
    LinkImpaired {
        /// Its ends.
        link: String,
        /// Keys of `netem://` as the first end has them.
        impairments: String,
    },
    /// A link was taken down.
    LinkDown {
        /// Its ends.
        link: String,
    },
    /// A link was brought up again.
    LinkUp {
        /// Its ends.
        link: String,
    },
    /// An interface has got its carrier, or lost it.
    Carrier {
        /// `NODE:INTERFACE`, or the uplink of a switch.
        interface: String,
        /// Whether it has it.
        carrier: bool,
    },
    /// Nothing is left to do.
    Running,
    /// Nodes, links or addresses are being changed.
    Changing {
        /// A line for each change.
        changes: Vec<String>,
    },
    /// A change has failed.
    Failed {
        /// Why.
        message: String,
    },
    /// The lab ends.
    Ending,
}

/// Whether an address is worth showing: every interface has one of the link.
pub(crate) fn is_shown(address: &IpNet) -> bool {
    match address.addr() {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    }
}
