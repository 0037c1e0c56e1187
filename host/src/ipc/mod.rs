//! The channels between this program's own processes.
//!
//! Each conversation has a [`Channel`] of its own: a SEQPACKET socket pair that carries one serde
//! enum in each direction, and descriptors beside it.
//!
//! | Conversation | The first sends | The second sends |
//! |---|---|---|
//! | supervisor, namespace child | [`ToNamespace`] | [`FromNamespace`] |
//! | supervisor, worker | [`ToWorker`] | [`FromWorker`] |
//! | worker, supervisor or panel service | [`Request`] | [`Reply`] |
//! | a program, its process in the background | [`Nothing`] | [`Startup`] |
//! | a process, its helper ([`in_child`]) | [`Nothing`] | [`HelperReply`] |
//! | `vdectl status`, any process | [`Nothing`] | [`ReportReply`] |
//! | a lab's supervisor, a node's init | [`ToNode`] | [`FromNode`] |
//! | a lab's supervisor, the process that starts nodes | [`Nothing`] | [`FromSpawner`] |
//! | `vdectl lab`, a lab's supervisor | [`ToLab`] | [`FromLab`] |
//!
//! A worker has two channels. On the first the supervisor asks, on the second the worker does, so
//! that neither takes a question for the answer to its own. Closing a child's first channel tells
//! the child to end.
//!
//! A malformed message is not a closed channel. The receiver logs it and carries on with the next
//! one. Where only one message is expected, the receiver fails.
//!
//! A report can be long, so the sender puts it in a file in memory and sends the descriptor.
//! Reading one neither blocks nor takes more memory than the reader allows, whatever the sender
//! does.

pub(crate) mod background;
mod channel;
mod helper;
mod lab;
pub(crate) mod lab_socket;
pub(crate) mod listener;
mod message;
mod report;
pub mod status;

pub(crate) use channel::{Channel, MAX_FDS, Received, malformed};
pub(crate) use helper::in_child;
pub(crate) use lab::{FromLab, FromNode, FromSpawner, ToLab, ToNode};
pub(crate) use message::{
    BridgeVlans, FromNamespace, FromWorker, HelperReply, Nothing, Order, Reply, ReportReply,
    Request, Startup, ToNamespace, ToWorker,
};
pub(crate) use report::{MAX_REPORT, read_report};
