//! `vdectl link`: links that are changed while they run: those through `netem://`, and those of
//! labs.
//!
//! Each link through `netem://` has a socket for requests ([`vdens_plugin_kit::control`]), and
//! tells which process and interface it serves. What it is asked and answers is in
//! [`vdens_impairment::request`]. Of links that are nested in each other, the outermost is meant.
//!
//! A lab's link is changed by the lab's supervisor, which remembers the change ([`ToLab::Link`]).
//! It is named by the interface at either end, and its impairments are those that this end has:
//! what one end sends, the other receives.

use std::collections::BTreeMap;
use std::mem;
use std::path::PathBuf;

use serde::Serialize;
pub use vdens_impairment::request::Request;
use vdens_impairment::request::{Answer, SCHEME};
use vdens_impairment::swapped_word;
use vdens_plugin_kit::control;

use super::status::client;
use crate::error::{Error, ErrorKind, Result};
use crate::ipc::status::LabStatus;
use crate::ipc::status::lab::{LinkEnd, LinkStatus};
use crate::ipc::{FromLab, ToLab, lab_socket, malformed};
use crate::output::Text;

/// A link that can be changed.
struct Link {
    /// The vdens, vde_plug or lab that it belongs to.
    process: u32,
    /// The name of that for the user, or its id; for a lab's link `LAB/NODE`.
    owner: String,
    /// The interface that it serves; empty for none.
    interface: String,
    /// The VNL of the network, or the link's other end in the lab.
    network: String,
    is_down: bool,
    place: Place,
    /// What its `netem://` says, if it has one.
    impaired: Option<Impaired>,
}

/// Who changes it.
enum Place {
    /// The link itself, at this socket.
    Socket(PathBuf),
    /// A lab's supervisor.
    Lab {
        /// The lab's name.
        lab: String,
        /// The node's.
        node: String,
        /// Whether this is the link's second end, which a list does not show.
        is_second: bool,
    },
}

/// What a link through `netem://` says, as the interface has it.
struct Impaired {
    keys: BTreeMap<String, String>,
    sent: String,
    received: String,
}

/// How a link is shown in JSON.
#[derive(Serialize)]
struct Shown<'a> {
    link: String,
    process: u32,
    network: &'a str,
    is_down: bool,
    keys: Option<&'a BTreeMap<String, String>>,
    sent: Option<&'a str>,
    received: Option<&'a str>,
}

impl Link {
    fn name(&self) -> String {
        match self.interface.is_empty() {
            true => self.owner.clone(),
            false => format!("{}:{}", self.owner, self.interface),
        }
    }

    fn shown(&self) -> Shown<'_> {
        let impaired = self.impaired.as_ref();
        Shown {
            link: self.name(),
            process: self.process,
            network: &self.network,
            is_down: self.is_down,
            keys: impaired.map(|it| &it.keys),
            sent: impaired.map(|it| it.sent.as_str()),
            received: impaired.map(|it| it.received.as_str()),
        }
    }

    /// Whether a word means the link: `NAME` or `PID`, or in a lab `LAB/NODE` or `NODE`, each with
    /// or without an interface.
    fn is_meant(&self, word: &str) -> bool {
        let (owner, interface) = match word.split_once(':') {
            Some((owner, interface)) => (owner, Some(interface)),
            None => (word, None),
        };
        let is_owner = owner == self.owner
            || match &self.place {
                Place::Socket(_) => owner == self.process.to_string(),
                Place::Lab { node, .. } => owner == node,
            };
        is_owner && interface.is_none_or(|interface| interface == self.interface)
    }

    /// Changes it.
    fn change(&self, request: &Request) -> Result<()> {
        match &self.place {
            Place::Socket(socket) => {
                let answer: Answer = control::ask(socket, request)?;
                answer.error.map_or(Ok(()), |why| Err(Error::usage(why)))
            }
            Place::Lab { lab, node, .. } => {
                let channel = lab_socket::connect_to(lab)?;
                let request = ToLab::Link {
                    node: node.clone(),
                    interface: self.interface.clone(),
                    change: request.clone(),
                };
                channel.send(&request, &[])?;
                match channel.receive()?.well_formed()? {
                    Some((FromLab::Done(_), _)) => Ok(()),
                    Some((FromLab::Failed(error), _)) => Err(error),
                    Some((FromLab::Report(_), _)) => Err(malformed("it is no answer")),
                    None => Err(Error::closed("the lab has ended")),
                }
            }
        }
    }
}

/// Shows all links that can be changed, or one.
///
/// # Errors
/// There is no such link.
pub fn show(name: Option<&str>, json: bool) -> Result<()> {
    let all = all()?;
    let links: Vec<&Link> = match name {
        Some(name) => vec![find(&all, name)?],
        None => {
            let is_second = |link: &Link| {
                matches!(
                    link.place,
                    Place::Lab {
                        is_second: true,
                        ..
                    }
                )
            };
            all.iter().filter(|link| !is_second(link)).collect()
        }
    };
    if json {
        return Text::json(&links.iter().map(|link| link.shown()).collect::<Vec<_>>())?.print();
    }
    let mut output = Text::default();
    for link in &links {
        let state = if link.is_down { "down" } else { "up" };
        let keys = link.impaired.iter().flat_map(|impaired| &impaired.keys);
        let keys = keys.map(|(key, value)| match value.is_empty() {
            true => key.clone(),
            false => format!("{key}={value}"),
        });
        let words: Vec<_> = [state.to_owned()].into_iter().chain(keys).collect();
        output.line(format_args!("{}  {}", link.name(), words.join(" ")));
        output.line(format_args!("  network   {}", link.network));
        if let Some(impaired) = &link.impaired {
            output.line(format_args!("  sent      {}", impaired.sent));
            output.line(format_args!("  received  {}", impaired.received));
        }
    }
    output.print()
}

/// Changes links: each of them as asked, or says why not.
///
/// # Errors
/// There is no such link, or it cannot be done. What was done on others before stays.
pub fn change(names: &[String], request: &Request) -> Result<()> {
    let all = all()?;
    let links = names.iter().map(|name| find(&all, name));
    let links: Vec<&Link> = links.collect::<Result<_>>()?;
    for (link, name) in links.iter().zip(names) {
        link.change(request).map_err(|error| Error {
            message: format!("cannot change {}: {}", name.escape_debug(), error.message),
            ..error
        })?;
    }
    Ok(())
}

/// The link of this name.
fn find<'a>(all: &'a [Link], name: &str) -> Result<&'a Link> {
    let found: Vec<_> = all.iter().filter(|link| link.is_meant(name)).collect();
    let shown = name.escape_debug();
    match &found[..] {
        [only] => Ok(only),
        [] => {
            let message = format!("{shown} has no link through netem://, and is no link of a lab");
            Err(Error::new(ErrorKind::NotFound, message)
                .hint("start it with netem://{VNL}; vdectl link show lists those that are"))
        }
        several => {
            let names: Vec<_> = several.iter().map(|link| link.name()).collect();
            let message = format!("{shown} has more than one link that can be changed");
            Err(Error::usage(message).hint(format!("name one: {}", names.join(", "))))
        }
    }
}

/// All links of this user's that can be changed: the outermost ones through `netem://`, and those
/// of labs.
fn all() -> Result<Vec<Link>> {
    let processes = client::ask_all()?;
    let processes = processes.into_iter();
    let processes: Vec<_> = processes
        .filter_map(|known| Some((known.pid, known.process.ok()?)))
        .collect();
    let mut impaired = outermost();
    let mut links: Vec<Link> = Vec::new();
    for (pid, process) in &processes {
        if let Some(lab) = &process.lab {
            let links_of_lab = lab.links.iter();
            links.extend(links_of_lab.flat_map(|link| of_lab(*pid, lab, link, &impaired)));
            // The rest are links of plugs and sessions.
            impaired.retain(|(_, answer)| !answer.processes.contains(pid));
        }
    }
    for (socket, answer) in impaired {
        // A plug serves its links itself; the parent of a worker is its session.
        let owner = answer.processes.iter().find_map(|process| {
            let (pid, known) = processes.iter().find(|(pid, _)| pid == process)?;
            Some((*pid, known.name.clone().unwrap_or_else(|| pid.to_string())))
        });
        if let Some((process, owner)) = owner {
            links.push(Link {
                process,
                owner,
                interface: answer.interface,
                network: answer.network,
                is_down: answer.is_down,
                place: Place::Socket(socket),
                impaired: Some(Impaired {
                    keys: answer.keys,
                    sent: answer.tx,
                    received: answer.rx,
                }),
            });
        }
    }
    links.sort_by_key(Link::name);
    Ok(links)
}

/// The links through `netem://`, without those that others of them nest.
fn outermost() -> Vec<(PathBuf, Answer)> {
    let mut links: Vec<(PathBuf, Answer)> = Vec::new();
    for socket in control::find(SCHEME) {
        // One that does not answer has ended.
        let Ok(answer) = control::ask::<Answer>(&socket, &Request::Show) else {
            continue;
        };
        // One nests another if the other's network is within its own.
        let nests = |outer: &Answer, inner: &Answer| {
            outer.processes == inner.processes
                && outer.network.contains(&format!("{{{}}}", inner.network))
        };
        if !links.iter().any(|(_, link)| nests(link, &answer)) {
            links.retain(|(_, link)| !nests(&answer, link));
            links.push((socket, answer));
        }
    }
    links
}

/// A lab's link, as each node at its ends has it.
fn of_lab(
    process: u32,
    lab: &LabStatus,
    link: &LinkStatus,
    impaired: &[(PathBuf, Answer)],
) -> Vec<Link> {
    let answer = link.worker.and_then(|worker| {
        let mut links = impaired.iter();
        let (_, answer) = links.find(|(_, answer)| answer.processes.first() == Some(&worker))?;
        link.impairments.as_ref().map(|_| answer)
    });
    let ends = link.ends.iter().zip(link.ends.iter().rev()).enumerate();
    let of_end = |(number, (end, other)): (usize, (&LinkEnd, &LinkEnd))| {
        let LinkEnd::Interface { node, name } = end else {
            return None;
        };
        let is_second = number == 1;
        Some(Link {
            process,
            owner: format!("{}/{node}", lab.name),
            interface: name.clone(),
            network: other.to_string(),
            is_down: link.is_down,
            place: Place::Lab {
                lab: lab.name.clone(),
                node: node.clone(),
                is_second,
            },
            impaired: answer.map(|answer| seen(answer, is_second)),
        })
    };
    ends.filter_map(of_end).collect()
}

/// What a link through `netem://` says, as one of its ends has it.
fn seen(answer: &Answer, is_second: bool) -> Impaired {
    let mut impaired = Impaired {
        keys: answer.keys.clone(),
        sent: answer.tx.clone(),
        received: answer.rx.clone(),
    };
    if is_second {
        mem::swap(&mut impaired.sent, &mut impaired.received);
        let keys = mem::take(&mut impaired.keys).into_iter();
        impaired.keys = keys
            .map(|(key, value)| (swapped_word(&key), value))
            .collect();
    }
    impaired
}
