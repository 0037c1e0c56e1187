//! The messages of a lab: between its supervisor and its nodes, and between `vdectl` and the
//! supervisor.

use serde::{Deserialize, Serialize};
use vdens_impairment::request::Request as LinkChange;

use super::message::{ErrorFields, ReportReply};
use crate::error::Error;

/// A lab's supervisor to a node's init. Each is answered, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ToNode {
    /// Set the host name.
    Hostname(String),
    /// Set a kernel parameter, named as sysctl(8) does.
    Sysctl {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// Run a shell command and wait for its end. Answered with [`FromNode::Executed`].
    Exec(String),
    /// Start a shell command that runs as long as the node does.
    Start(String),
    /// End that command.
    Stop(String),
    /// End all processes of the node. The node's end is the answer.
    End,
}

/// A node's init to the lab's supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FromNode {
    /// The node's namespaces exist. Descriptors: the network namespace, and a connection to its
    /// network configuration.
    Made,
    /// The request is done.
    Done,
    /// A command has ended.
    Executed {
        /// Its exit status, 128 + n for signal n.
        status: i32,
        /// The end of its output.
        output: String,
    },
    /// The request, or making the node, has failed.
    Failed(#[serde(with = "ErrorFields")] Error),
    /// A service has ended; no answer to a request.
    ServiceEnded {
        /// Its command.
        service: String,
        /// Its exit status, 128 + n for signal n.
        status: i32,
        /// The end of its output.
        output: String,
    },
}

/// The process that starts nodes, to the lab's supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FromSpawner {
    /// A node's init was started. Descriptor: the supervisor's end of the channel to it.
    Started {
        /// Its process id.
        pid: i32,
    },
    /// It could not be started.
    Failed(#[serde(with = "ErrorFields")] Error),
}

/// `vdectl lab` to a lab's supervisor. One request for each connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ToLab {
    /// End the lab. The answer is the end of the connection.
    Down,
    /// Change the lab. Descriptor: the file in memory with the lab as it is to be.
    Apply,
    /// Change one link.
    Link {
        /// The node at one of its ends.
        node: String,
        /// The interface there.
        interface: String,
        /// What to change, as that end has it.
        change: LinkChange,
    },
    /// Send an event whenever something happens.
    Watch,
}

/// A lab's supervisor to `vdectl lab`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FromLab {
    /// The request is done: what was changed, a line for each.
    Done(Vec<String>),
    /// It failed.
    Failed(#[serde(with = "ErrorFields")] Error),
    /// Something has happened. Descriptor: the file in memory with the event as JSON.
    Report(ReportReply),
}

impl From<ReportReply> for FromLab {
    fn from(report: ReportReply) -> Self {
        Self::Report(report)
    }
}
