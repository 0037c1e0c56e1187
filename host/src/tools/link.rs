//! `vdectl link`: the impairments of links that run through `netem://`, changed while they run.
//!
//! Each such link has a socket for requests ([`vdens_plugin_kit::control`]), and tells which
//! process and interface it serves. What it is asked and answers is in
//! [`vdens_impairment::request`].
//!
//! Of links that are nested in each other, the outermost is meant.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
pub use vdens_impairment::request::Request;
use vdens_impairment::request::{Answer, SCHEME};
use vdens_plugin_kit::control;

use super::status::client;
use crate::error::{Error, ErrorKind, Result};
use crate::output::Text;

/// A link that runs through `netem://`.
struct Link {
    socket: PathBuf,
    answer: Answer,
    /// The vdens or vde_plug that it belongs to, and its name or id for the user.
    process: u32,
    owner: String,
}

/// How a link is shown in JSON.
#[derive(Serialize)]
struct Shown<'a> {
    link: String,
    process: u32,
    network: &'a str,
    is_down: bool,
    keys: &'a BTreeMap<String, String>,
    sent: &'a str,
    received: &'a str,
}

impl Link {
    fn name(&self) -> String {
        match self.answer.interface.is_empty() {
            true => self.owner.clone(),
            false => format!("{}:{}", self.owner, self.answer.interface),
        }
    }

    fn shown(&self) -> Shown<'_> {
        Shown {
            link: self.name(),
            process: self.process,
            network: &self.answer.network,
            is_down: self.answer.is_down,
            keys: &self.answer.keys,
            sent: &self.answer.tx,
            received: &self.answer.rx,
        }
    }

    fn is_meant(&self, name: &str) -> bool {
        let (owner, interface) = match name.split_once(':') {
            Some((owner, interface)) => (owner, Some(interface)),
            None => (name, None),
        };
        (owner == self.owner || owner == self.process.to_string())
            && interface.is_none_or(|interface| interface == self.answer.interface)
    }
}

/// Shows all links that can be changed, or one.
///
/// # Errors
/// There is no such link.
pub fn show(name: Option<&str>, json: bool) -> Result<()> {
    let links = match name {
        Some(name) => vec![find(name)?],
        None => all()?,
    };
    if json {
        return Text::json(&links.iter().map(Link::shown).collect::<Vec<_>>())?.print();
    }
    let mut output = Text::default();
    for link in &links {
        let state = if link.answer.is_down { "down" } else { "up" };
        let keys = link
            .answer
            .keys
            .iter()
            .map(|(key, value)| match value.is_empty() {
                true => key.clone(),
                false => format!("{key}={value}"),
            });
        let words: Vec<_> = [state.to_owned()].into_iter().chain(keys).collect();
        output.line(format_args!("{}  {}", link.name(), words.join(" ")));
        output.line(format_args!("  network   {}", link.answer.network));
        output.line(format_args!("  sent      {}", link.answer.tx));
        output.line(format_args!("  received  {}", link.answer.rx));
    }
    output.print()
}

/// Changes links: each of them as asked, or says why not.
///
/// # Errors
/// There is no such link, or it cannot be done. What was done on others before stays.
pub fn change(names: &[String], request: &Request) -> Result<()> {
    let links: Vec<_> = names.iter().map(|name| find(name)).collect::<Result<_>>()?;
    for (link, name) in links.iter().zip(names) {
        let answer: Answer = control::ask(&link.socket, request)?;
        if let Some(error) = answer.error {
            let shown = name.escape_debug();
            return Err(Error::usage(format!("cannot change {shown}: {error}")));
        }
    }
    Ok(())
}

/// The link of this name.
fn find(name: &str) -> Result<Link> {
    let mut found: Vec<_> = all()?
        .into_iter()
        .filter(|link| link.is_meant(name))
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(last), false) => {
            let interfaces: Vec<_> = found.iter().chain([&last]).map(Link::name).collect();
            let shown = name.escape_debug();
            let message = format!("{shown} has more than one link through netem://");
            Err(Error::usage(message).hint(format!("name one: {}", interfaces.join(", "))))
        }
        (None, _) => {
            let message = format!("{} has no link through netem://", name.escape_debug());
            Err(Error::new(ErrorKind::NotFound, message)
                .hint("start it with netem://{VNL}; vdectl link show lists those that are"))
        }
    }
}

/// All links of this user's that can be changed, the outermost ones.
fn all() -> Result<Vec<Link>> {
    let processes = client::ask_all()?;
    let mut links: Vec<Link> = Vec::new();
    for socket in control::find(SCHEME) {
        // One that does not answer has ended.
        let Ok(answer) = control::ask::<Answer>(&socket, &Request::Show) else {
            continue;
        };
        // A plug serves its links itself; the parent of a worker is its session.
        let owner = answer.processes.iter().find_map(|process| {
            let known = processes.iter().find(|known| known.pid == *process)?;
            let name = known
                .process
                .as_ref()
                .ok()
                .and_then(|process| process.name.clone());
            Some((known.pid, name.unwrap_or_else(|| known.pid.to_string())))
        });
        let Some((process, owner)) = owner else {
            continue;
        };
        let new = Link {
            socket,
            answer,
            process,
            owner,
        };
        // One nests another if the other's network is within its own.
        let nests = |outer: &Link, inner: &Link| {
            outer.answer.processes == inner.answer.processes
                && outer
                    .answer
                    .network
                    .contains(&format!("{{{}}}", inner.answer.network))
        };
        if !links.iter().any(|link| nests(link, &new)) {
            links.retain(|link| !nests(&new, link));
            links.push(new);
        }
    }
    links.sort_by_key(Link::name);
    Ok(links)
}
