//! `vdectl forward`: ports of the host that lead into a network behind `nat://`, changed while it
//! runs.
//!
//! Each gateway has a socket for requests ([`vdens_plugin_kit::control`]); what it is asked and
//! answers is in plugins/nat/src/proxy/control.rs.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vdens_plugin_kit::control;

use crate::error::{Error, ErrorKind, Result};
use crate::output::Text;

/// The scheme whose links are asked.
const SCHEME: &str = "nat";

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Begin to forward.
    Add,
    /// Stop it.
    Remove,
}

/// A gateway's answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Answer {
    /// Why it cannot be done.
    #[serde(skip_serializing)]
    error: Option<String>,
    /// The processes that the gateway belongs to.
    processes: Vec<u32>,
    /// What is forwarded.
    forwards: Vec<String>,
}

/// Lists the forwards of all gateways, or of the one that a process has.
///
/// # Errors
/// The process has none.
pub fn list(of: Option<u32>, json: bool) -> Result<()> {
    let answers: Vec<_> = gateways(of)?
        .into_iter()
        .map(|(_, answer)| answer)
        .collect();
    if json {
        return Text::json(&answers)?.print();
    }
    let mut output = Text::default();
    for answer in answers {
        let processes: Vec<_> = answer.processes.iter().map(ToString::to_string).collect();
        output.line(format_args!("process {}", processes.join(", ")));
        for forward in answer.forwards {
            output.line(format_args!("  {forward}"));
        }
    }
    output.print()
}

/// Adds or removes forwards.
///
/// # Errors
/// There is no gateway or more than one, or it cannot do it: what was done before stays.
pub fn change(of: Option<u32>, change: &Change, forwards: &[String]) -> Result<()> {
    let mut found = gateways(of)?;
    let (path, _) = match (found.pop(), found.is_empty()) {
        (Some(only), true) => only,
        (None, _) => {
            let message = "nothing of yours runs behind nat://";
            return Err(
                Error::new(ErrorKind::NotFound, message).hint("start it with vdens --auto nat://")
            );
        }
        (Some(_), false) => {
            return Err(
                Error::usage("more than one network of yours is behind nat://")
                    .hint("say whose is meant with --of PID; vdectl forward list shows them"),
            );
        }
    };
    for forward in forwards {
        let Some((protocol @ ("tcp" | "udp"), text)) = forward.split_once('=') else {
            return Err(
                Error::usage(format!("'{}' is no forward", forward.escape_debug()))
                    .hint("write tcp=8080:80 or udp=5353:53"),
            );
        };
        let verb = match change {
            Change::Add => "add",
            Change::Remove => "remove",
        };
        let request = serde_json::json!({ verb: [protocol, text] });
        let answer: Answer = control::ask(&path, &request)?;
        if let Some(error) = answer.error {
            return Err(Error::new(ErrorKind::Other, error));
        }
    }
    Ok(())
}

/// The gateways that answer: where their sockets are, and what they say.
fn gateways(of: Option<u32>) -> Result<Vec<(PathBuf, Answer)>> {
    let ask = |path: PathBuf| Some((path.clone(), control::ask(&path, &"list").ok()?));
    // One that does not answer has ended.
    let mut found: Vec<(_, Answer)> = control::find(SCHEME).into_iter().filter_map(ask).collect();
    if let Some(of) = of {
        found.retain(|(_, answer)| answer.processes.contains(&of));
        if found.is_empty() {
            let message = format!("process {of} has no network behind nat://");
            return Err(Error::new(ErrorKind::NotFound, message)
                .hint("vdectl forward list shows those that have"));
        }
    }
    Ok(found)
}
