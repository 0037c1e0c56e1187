//! What is asked of a link that runs, and its answer: JSON over the link's socket
//! ([`vdens_plugin_kit::control`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The scheme whose links answer.
pub const SCHEME: &str = "netem";

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Tell what is set, and what became of the frames.
    Show,
    /// Change keys, all or none.
    Set {
        /// Whether to forget what was set before.
        replace: bool,
        /// The changes, as [`Keys::change`](crate::Keys::change) reads them.
        words: Vec<String>,
    },
    /// Take the carrier away, and lose all frames.
    Down,
    /// Give it back.
    Up,
}

/// The link's answer: how things are after the request.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Answer {
    /// Why it cannot be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The processes that the link belongs to: its worker or plug, and that one's parent.
    pub processes: Vec<u32>,
    /// The interface that it serves; empty for none.
    pub interface: String,
    /// The VNL of the network that is impaired.
    pub network: String,
    /// Whether the carrier was taken away.
    pub is_down: bool,
    /// What is set.
    pub keys: BTreeMap<String, String>,
    /// What became of the frames that the interface sent, for a person.
    pub tx: String,
    /// What became of the frames that it received.
    pub rx: String,
}
