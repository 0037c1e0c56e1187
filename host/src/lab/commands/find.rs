//! Finding labs and their nodes by what the user names.

use crate::error::{Error, ErrorKind, Result};
use crate::ipc::lab_socket;
use crate::ipc::status::LabStatus;
use crate::ipc::status::lab::NodeStatus;
use crate::tools::status::client;

/// A running lab.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Its supervisor.
    pub(super) pid: u32,
    pub(super) lab: LabStatus,
}

/// A node of a running lab.
#[derive(Clone, Debug)]
pub(super) struct FoundNode {
    /// The lab's name.
    pub(super) lab: String,
    pub(super) node: NodeStatus,
}

/// All labs of this user, by name.
///
/// # Errors
/// The runtime directory cannot be read, or a lab does not answer.
pub(super) fn labs() -> Result<Vec<Found>> {
    let mut labs = Vec::new();
    for answer in client::ask_all()? {
        match answer.process {
            Ok(process) => labs.extend(process.lab.map(|lab| Found {
                pid: answer.pid,
                lab,
            })),
            Err(error) => log::warn!("process {}: {error}", answer.pid),
        }
    }
    labs.sort_by(|a, b| a.lab.name.cmp(&b.lab.name));
    Ok(labs)
}

/// The lab of that name; without a name, the only one.
///
/// # Errors
/// There is none, or there are several.
pub(super) fn the_lab(name: Option<&str>) -> Result<Found> {
    let labs = labs()?;
    match (name, &labs[..]) {
        (Some(name), labs) => {
            let found = labs.iter().find(|found| found.lab.name == name);
            found.cloned().ok_or_else(|| lab_socket::none(name))
        }
        (None, [only]) => Ok(only.clone()),
        (None, []) => Err(Error::new(ErrorKind::NotFound, "no lab is running")
            .hint("start one: vdectl lab up FILE")),
        (None, several) => {
            let names: Vec<_> = several.iter().map(|found| &*found.lab.name).collect();
            Err(Error::usage("several labs are running")
                .hint(format!("name one of them: {}", names.join(", "))))
        }
    }
}

/// The nodes that a pattern means: `LAB/NODES`, or `NODES` of the only lab that has some. In NODES
/// `*` stands for any characters, and `?` for one.
///
/// # Errors
/// There is none, or several labs have such nodes.
pub(super) fn nodes(pattern: &str) -> Result<Vec<FoundNode>> {
    let (lab, names) = match pattern.split_once('/') {
        Some((lab, names)) => (Some(lab), names),
        None => (None, pattern),
    };
    let labs = match lab {
        Some(lab) => vec![the_lab(Some(lab))?],
        None => labs()?,
    };
    let mut found: Vec<Vec<FoundNode>> = Vec::new();
    for Found { lab, .. } in labs {
        let nodes = lab.nodes.into_iter();
        let nodes = nodes.filter(|node| matches(names, &node.name));
        let nodes: Vec<_> = nodes
            .map(|node| FoundNode {
                lab: lab.name.clone(),
                node,
            })
            .collect();
        if !nodes.is_empty() {
            found.push(nodes);
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => {
            let message = format!("no running lab has a node '{pattern}'");
            Err(Error::new(ErrorKind::NotFound, message)
                .hint("vdectl lab status lists the labs and their nodes"))
        }
        _ => {
            let labs: Vec<_> = found.iter().map(|nodes| &*nodes[0].lab).collect();
            let message = format!("the labs {} have nodes '{pattern}'", labs.join(", "));
            Err(Error::usage(message).hint(format!("name one: {}/{pattern}", labs[0])))
        }
    }
}

/// Whether a name matches a pattern.
fn matches(pattern: &str, name: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => name.is_empty(),
        Some('*') => {
            let mut ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
            ends.any(|at| matches(rest.as_str(), &name[at..]))
        }
        Some(expected) => {
            let mut letters = name.chars();
            let is_one = letters
                .next()
                .is_some_and(|letter| expected == '?' || letter == expected);
            is_one && matches(rest.as_str(), letters.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names() {
        for (pattern, name) in [
            ("h*", "h12"),
            ("*", "r"),
            ("h?", "h1"),
            ("r1", "r1"),
            ("*1", "h11"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("h*", "r1"),
            ("h?", "h12"),
            ("r", "r1"),
            ("", "x"),
            ("h?", "h"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
