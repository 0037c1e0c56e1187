//! Requests at run time: forwards are added, removed and listed, over the link's socket
//! ([`vdens_plugin_kit::control`]) in the gateway's directory.

use serde::{Deserialize, Serialize};

use crate::forward::Protocol;

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Begin to forward what the text says.
    Add(Protocol, String),
    /// Stop it.
    Remove(Protocol, String),
    /// Tell what is forwarded, and whose gateway this is.
    List,
}

/// The answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Why it cannot be done.
    pub error: Option<String>,
    /// The forwards after it.
    pub forwards: Vec<String>,
    /// The processes that the gateway belongs to: the session, or the plug.
    pub processes: Vec<u32>,
}

/// See [`crate::fuzz::messages`].
pub(crate) fn fuzz(input: &[u8]) -> Result<(), String> {
    crate::fuzz::again::<Request>(input)?;
    crate::fuzz::again::<Answer>(input)
}
