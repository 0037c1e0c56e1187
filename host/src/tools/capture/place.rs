//! What users call a session, and its interfaces: `12345`, `12345:vde0`.

use std::fs;

use crate::error::{Error, ErrorKind, Result};
use crate::tools::status::client;

/// A session, and perhaps one of its interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The session's process.
    pub process: u32,
    /// A process in its namespaces.
    pub namespace: u32,
    /// What the user calls it, without the interface.
    pub name: String,
    /// The interface that is meant, if one is.
    pub interface: Option<String>,
}

/// The session of this name.
///
/// # Errors
/// There is none.
pub(super) fn resolve(text: &str) -> Result<Target> {
    let (name, interface) = match text.split_once(':') {
        Some((name, interface)) => (name, Some(interface.to_owned())),
        None => (text, None),
    };
    let all = client::ask_all()?;
    let found = all.iter().find(|answer| answer.pid.to_string() == name);
    let Some(found) = found else {
        let message = format!("nothing of yours is called '{}'", name.escape_debug());
        return Err(Error::new(ErrorKind::NotFound, message).hint("vdectl status lists what runs"));
    };
    Ok(Target {
        process: found.pid,
        namespace: inside(found.pid).unwrap_or(found.pid),
        name: name.to_owned(),
        interface,
    })
}

/// The child of a session that is in its namespaces.
fn inside(process: u32) -> Option<u32> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    let own = namespace(process)?;
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    let mut children = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok());
    children.find(|pid| namespace(*pid).is_some_and(|theirs| theirs != own))
}
