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
    /// The proxy ends because this kernel can run no gateway, and what it lacks.
    Lacks(String),
    /// Something that a person may want to know.
    Warning(String),
    /// For `vdectl status`.
    Status(BTreeMap<String, String>),
}

/// What a kernel has for a gateway, as `vdectl doctor` reads it.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Probe {
    /// Everything.
    Complete,
    /// Not all of it, and what that means.
    Lacks(String),
    /// Too little for a gateway, and what.
    CannotRun(String),
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
