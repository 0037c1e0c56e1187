//! Which interfaces the words of a command line mean.
//!
//! A word is an interface, or a session or node with all that it has. A lab means each of its links
//! once, at the first of its ends that is a node's interface: so a frame is there once for each
//! link that it passes, also on a link between two nodes.

use crate::error::{Error, ErrorKind, Result};
use crate::ipc::lab_socket;
use crate::ipc::status::lab::{LabStatus, LinkEnd, LinkStatus};
use crate::sys::names;
use crate::tools::status::client::{ask_all, ask_one};
use crate::tools::targets::{self, Target};

/// An interface to capture on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name for the user, `r1:eth0`.
    pub(super) name: String,
    /// The session or node. When its process ends, the capture on the interface does.
    pub(super) target: Target,
    /// Its name there.
    pub(super) interface: String,
}

/// The interfaces that users call by these names, and those of all links of a lab. A name without
/// an interface means all interfaces of the session or node.
///
/// # Errors
/// There is no such session, node or lab, or it has no link.
pub fn places(words: &[String], lab: Option<&str>) -> Result<Vec<Place>> {
    let mut places: Vec<Place> = Vec::new();
    let of_lab = lab.map(of_lab).transpose()?.unwrap_or_default();
    for word in words.iter().chain(&of_lab) {
        let target = targets::resolve(word)?;
        let interfaces = match &target.interface {
            Some(interface) => vec![interface.clone()],
            None => interfaces(&target)?,
        };
        if interfaces.is_empty() {
            let message = format!("{} has no interface to capture on", target.name);
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        for interface in interfaces {
            let place = Place {
                name: format!("{}:{interface}", target.name),
                target: target.clone(),
                interface,
            };
            if !places.iter().any(|known| known.name == place.name) {
                places.push(place);
            }
        }
    }
    Ok(places)
}

/// All interfaces of a session or node.
fn interfaces(target: &Target) -> Result<Vec<String>> {
    let Some(process) = ask_one(target.process)? else {
        return Ok(Vec::new());
    };
    let names = match process.lab {
        Some(lab) => {
            let nodes = lab.nodes.into_iter();
            let nodes = nodes.filter(|node| node.pid == target.namespace);
            nodes
                .flat_map(|node| node.interfaces)
                .map(|interface| interface.name)
                .collect()
        }
        None => process
            .links
            .into_iter()
            .map(|entry| entry.link.interface)
            .filter(|name| !name.is_empty())
            .collect(),
    };
    Ok(names)
}

/// An interface of each link of a lab, as `LAB/NODE:INTERFACE`.
fn of_lab(name: &str) -> Result<Vec<String>> {
    names::check(name)?;
    let running = ask_all()?.into_iter();
    let mut labs = running.filter_map(|answer| answer.process.ok()?.lab);
    let lab = labs.find(|lab| lab.name == name);
    let words = words_of(&lab.ok_or_else(|| lab_socket::none(name))?);
    match words.is_empty() {
        false => Ok(words),
        true => {
            let message = format!("the lab '{name}' has no link to capture on");
            Err(Error::new(ErrorKind::NotFound, message))
        }
    }
}

fn words_of(lab: &LabStatus) -> Vec<String> {
    let word = |link: &LinkStatus| {
        let mut ends = link.ends.iter();
        ends.find_map(|end| match end {
            LinkEnd::Interface { node, name } => Some(format!("{}/{node}:{name}", lab.name)),
            LinkEnd::Switch(_) | LinkEnd::Vnl(_) => None,
        })
    };
    lab.links.iter().filter_map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_link_of_a_lab_is_captured_once() {
        let end = |node: &str, name: &str| json!({"interface": {"node": node, "name": name}});
        let lab = json!({"name": "wan", "file": "/x", "state": "running", "nodes": [],
        "switches": ["lan"],
        "links": [
            {"ends": [end("r1", "eth0"), end("r2", "eth0")], "carrier": true},
            {"ends": [{"switch": "lan"}, end("r2", "eth1")], "carrier": true},
            {"ends": [{"switch": "lan"}, {"vnl": "nat://"}], "carrier": true},
        ]});
        let lab: LabStatus = serde_json::from_value(lab).unwrap();
        assert_eq!(words_of(&lab), ["wan/r1:eth0", "wan/r2:eth1"]);
    }
}
