//! Labs: networks of nodes, links and switches, made from a file.
//!
//! | Module | |
//! |---|---|
//! | `file` | a lab file: TOML in, a lab or faults with their places out |
//! | `model` | a lab as its file describes it |
//! | `shape`, `difference` | the same by names, and what differs between two, without I/O |
//! | `supervisor` | the process that makes a lab, changes it, and holds it |
//! | `spawn`, `node` | starting nodes, and the process that is process 1 in each |
//! | `wiring` | the links that the kernel carries |
//! | `outside` | the links that have a worker |
//! | `machine` | virtual machines in nodes |
//! | `commands` | `vdectl lab`, which reaches the supervisor through `ipc::lab_socket` |

pub mod commands;
mod difference;
pub mod file;
pub(crate) mod machine;
pub(crate) mod model;
mod node;
mod outside;
mod shape;
pub(crate) mod spawn;
pub(crate) mod supervisor;
mod wiring;

use crate::error::Error;

/// An error that concerns a node.
pub(crate) fn of_node(name: &str, error: Error) -> Error {
    Error {
        message: format!("node {name}: {}", error.message),
        ..error
    }
}
