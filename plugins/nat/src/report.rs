//! What the proxy tells the plugin: lines of JSON.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// What the settings ask of the outside is there: the forwards.
    Started,
    /// The proxy ends, and why.
    Failed(String),
    /// Something that a person may want to know.
    Warning(String),
    /// For `vdectl status`.
    Status(BTreeMap<String, String>),
}

/// Tells the plugin something.
///
/// # Errors
/// It is gone.
pub(crate) fn tell(mut plugin: &UnixStream, report: &Report) -> io::Result<()> {
    let mut line = serde_json::to_vec(report)?;
    line.push(b'\n');
    plugin.write_all(&line)
}
