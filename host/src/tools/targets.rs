//! What a word on the command line of `vdectl` means: a session, a lab's node, one of their
//! interfaces.
//!
//! | Word | Meaning |
//! |---|---|
//! | `NAME` | the session of that name, or the node of that name, if there is one of them |
//! | `LAB/NODE` | a lab's node |
//! | `PID` | the session of that process |
//! | any of them, then `:INTERFACE` | an interface there |
//!
//! Names are looked up in the runtime directory ([`names`]), which asks no process, so it takes a
//! fraction of a millisecond. A process is asked for its status.

use super::status::client::ask_one;
use crate::error::{Error, ErrorKind, Result};
use crate::namespace::enter::Door;
use crate::sys::names::{self, Kind, Member, Named};
use crate::sys::runtime;

/// What a word means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The session's or lab's own process, which answers for it.
    pub process: u32,
    /// A process in the namespaces.
    pub namespace: u32,
    /// When that process started, in clock ticks since boot.
    pub started: u64,
    /// The name for messages: the word without the interface.
    pub name: String,
    /// The lab that the node is in, if it is one.
    pub lab: Option<String>,
    /// The interface, if the word names one.
    pub interface: Option<String>,
}

impl Target {
    /// Its namespaces, to be joined.
    ///
    /// # Errors
    /// They are gone.
    pub(crate) fn door(&self) -> Result<Door> {
        Door::of(self.namespace, self.started).map_err(|error| Error {
            message: format!("cannot enter {}: {}", self.name, error.message),
            ..error
        })
    }
}

/// Finds what a word means.
///
/// # Errors
/// It means nothing that runs, or more than one thing.
pub(crate) fn resolve(word: &str) -> Result<Target> {
    let (name, interface) = split(word)?;
    let found = match name.parse() {
        Ok(pid) => of_process(pid)?,
        Err(_) => by_name(name)?,
    };
    let interface = interface.map(str::to_owned);
    Ok(Target { interface, ..found })
}

/// As [`resolve`], for a word that must not name an interface.
///
/// # Errors
/// As for [`resolve`], or it names one.
pub(crate) fn resolve_whole(word: &str) -> Result<Target> {
    let target = resolve(word)?;
    match target.interface {
        None => Ok(target),
        Some(_) => {
            let message = format!("'{word}' names an interface, and a session is wanted");
            Err(Error::usage(message).hint(format!("write {}", target.name)))
        }
    }
}

/// Splits a word into the name and the interface.
fn split(word: &str) -> Result<(&str, Option<&str>)> {
    let (name, interface) = match word.split_once(':') {
        Some((name, interface)) => (name, Some(interface)),
        None => (word, None),
    };
    if name.is_empty() || interface.is_some_and(str::is_empty) {
        let message = format!("'{}' names nothing", word.escape_debug());
        return Err(Error::usage(message).hint("write NAME, LAB/NODE or NAME:INTERFACE"));
    }
    Ok((name, interface))
}

fn by_name(name: &str) -> Result<Target> {
    if let Some((lab, node)) = name.split_once('/') {
        names::check(lab)?;
        let Some(found) = names::find(lab)?.filter(|found| found.kind == Kind::Lab) else {
            return Err(nothing(&format!("lab '{lab}'")));
        };
        let mut members = found.members.iter();
        return match members.find(|member| member.name == node) {
            Some(member) => target(&found, member, name),
            None => Err(nothing(&format!("node '{node}' in the lab '{lab}'"))),
        };
    }
    names::check(name)?;
    let all = names::all()?;
    let nodes = all.iter().filter(|named| named.kind == Kind::Lab);
    let nodes: Vec<(&Named, &Member)> = nodes
        .flat_map(|lab| lab.members.iter().map(move |member| (lab, member)))
        .filter(|(_, member)| member.name == name)
        .collect();
    match all.iter().find(|named| named.name == name) {
        Some(found) if found.kind == Kind::Session => session(found, &nodes),
        lab => node(name, lab.is_some(), &nodes),
    }
}

/// The session of a name that no node has.
fn session(found: &Named, nodes: &[(&Named, &Member)]) -> Result<Target> {
    let name = &found.name;
    if let Some((lab, _)) = nodes.first() {
        let message = format!(
            "'{name}' is a session, and a node of the lab '{}'",
            lab.name
        );
        let process = found.holder;
        return Err(Error::usage(message).hint(format!("write {process} or {}/{name}", lab.name)));
    }
    match found.members.first() {
        Some(member) => target(found, member, name),
        None => {
            let error = Error::new(ErrorKind::Busy, format!("'{name}' is still starting"));
            Err(error.hint(format!("vdectl wait {name}")))
        }
    }
}

/// The node of a name, if one lab has it.
fn node(name: &str, is_lab: bool, nodes: &[(&Named, &Member)]) -> Result<Target> {
    match nodes {
        [(lab, member)] => target(lab, member, name),
        [] if is_lab => Err(Error::usage(format!(
            "'{name}' is a lab, and one of its nodes is wanted"
        ))
        .hint(format!("write {name}/NODE"))),
        [] => Err(nothing(&format!("session or node '{name}'"))),
        several => {
            let words: Vec<String> = several
                .iter()
                .map(|(lab, _)| format!("{}/{name}", lab.name))
                .collect();
            let message = format!("more than one lab has a node '{name}'");
            Err(Error::usage(message).hint(format!("write {}", words.join(" or "))))
        }
    }
}

fn target(found: &Named, member: &Member, name: &str) -> Result<Target> {
    if found.holder == 0 {
        let message = format!("'{name}' runs in another PID namespace");
        return Err(Error::new(ErrorKind::Unsupported, message).hint("look for it there"));
    }
    Ok(Target {
        process: found.holder,
        namespace: member.pid,
        started: member.started,
        name: name.into(),
        lab: (found.kind == Kind::Lab).then(|| found.name.clone()),
        interface: None,
    })
}

/// The session of a process.
fn of_process(pid: u32) -> Result<Target> {
    let Some(process) = ask_one(pid)? else {
        let message = format!("process {pid} is no session of yours");
        return Err(Error::new(ErrorKind::NotFound, message).hint("vdectl ls lists them"));
    };
    let Some(namespace) = process.command_pid else {
        let message = format!(
            "process {pid} is a {}, which is no session",
            process.program
        );
        return Err(Error::usage(message).hint("vdectl ls lists your sessions"));
    };
    let started = runtime::start_time(namespace);
    Ok(Target {
        process: pid,
        namespace,
        started: started.ok_or_else(|| Error::closed(format!("the session of {pid} has ended")))?,
        name: process.name.unwrap_or_else(|| pid.to_string()),
        lab: None,
        interface: None,
    })
}

fn nothing(what: &str) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("no {what} of yours is running"),
    )
    .hint("vdectl ls lists what is")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_may_name_an_interface() {
        assert_eq!(split("r1").unwrap(), ("r1", None));
        assert_eq!(split("lab/r1:eth0").unwrap(), ("lab/r1", Some("eth0")));
        assert_eq!(split("r1:eth0:1").unwrap(), ("r1", Some("eth0:1")));
        for bad in ["", ":", ":eth0", "r1:"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
