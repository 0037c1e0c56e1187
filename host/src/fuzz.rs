//! What must be true of parsers that nothing outside this crate uses, for the fuzzer (tests/fuzz).

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

use vdens_impairment::Keys;
use vdens_plugin_kit::vnl::Vnl;
use vdens_switch_control::{Answer, Request};

use crate::lab::file;
use crate::lab::model::{Attachment, End, Lab};
use crate::switch::client::Ask;
use crate::switch::console::command::{self, Command};
use crate::switch::console::{Console, Outcome, Watched};
use crate::switch::session::{Input, Line};

/// What a network says to `--auto`: DHCP, router advertisements, DHCPv6.
///
/// # Errors
/// A property that does not hold.
pub fn auto(message: &[u8]) -> Result<(), String> {
    for names in crate::namespace::auto::names_in(message) {
        // They become lines of a resolv.conf.
        for server in &names.servers {
            let address = server
                .split_once('%')
                .map_or(&**server, |(address, _)| address);
            address
                .parse::<IpAddr>()
                .map_err(|error| format!("{server:?}: {error}"))?;
        }
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        let bad = |domain: &&String| domain.is_empty() || !domain.bytes().all(is_word);
        if let Some(domain) = names.search.iter().find(bad) {
            return Err(format!("{domain:?} is no domain"));
        }
    }
    Ok(())
}

/// A switch that always gives the same answer.
struct Parrot(Answer);

impl Ask for Parrot {
    fn ask(&self, _: &Request) -> crate::error::Result<Answer> {
        Ok(self.0.clone())
    }
}

/// What a client of the console says, in pieces of so many bytes, and what the switch answers to
/// all of it.
///
/// # Errors
/// A property that does not hold: the pieces make a difference, or a reply has not the form that
/// scripts know.
pub fn console(said: &[u8], piece: usize, answer: &[u8]) -> Result<(), String> {
    let lines = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut input = Input::default();
        let mut lines = Vec::new();
        for piece in pieces {
            input.push(piece);
            lines.extend(std::iter::from_fn(|| input.next()));
        }
        lines
    };
    let whole = lines(&mut [said].into_iter());
    let in_pieces = lines(&mut said.chunks(piece.max(1)));
    if whole != in_pieces {
        return Err(format!("{whole:?} and {in_pieces:?} are the same bytes"));
    }
    let switch = Parrot(serde_json::from_slice(answer).unwrap_or_default());
    let (console, mut watched) = (Console::default(), Watched::default());
    for line in whole {
        let Line::Text(line) = line else {
            continue;
        };
        // The files of this machine are not part of the input.
        let command = command::parse(&line);
        if let command::Line::Command {
            command: Command::Load(_),
            ..
        } = command
        {
            continue;
        }
        if let Outcome::Reply(reply) = console.execute(&line, &mut watched, &switch) {
            reply_is_right(&reply).map_err(|why| format!("{line:?}: {why}: {reply:?}"))?;
        }
    }
    Ok(())
}

fn reply_is_right(reply: &str) -> Result<(), &'static str> {
    let mut lines: Vec<&str> = reply.lines().collect();
    let status = lines.pop().unwrap_or_default();
    let is_code = status.len() > 5 && status.starts_with('1') && status.as_bytes()[4] == b' ';
    if !is_code || !reply.ends_with('\n') {
        return Err("it does not end with a code");
    }
    if reply.contains(|c: char| c.is_control() && c != '\n') {
        return Err("a terminal would execute it");
    }
    match lines[..] {
        [] => Ok(()),
        ["0000 DATA END WITH '.'", ref data @ .., "."] if !data.contains(&".") => Ok(()),
        _ => Err("its data have no end, or two"),
    }
}

/// A lab file. `file` is what messages call it.
///
/// # Errors
/// A property that does not hold: a fault without a place, or a lab that is not what
/// [`model`](crate::lab::model) promises.
pub fn lab(file: &Path, text: &str) -> Result<(), String> {
    match file::parse(file, text, &|_| Ok(())) {
        Ok(lab) => lab_is_right(&lab),
        Err(faults) => faults.to_string().lines().try_for_each(|line| {
            let place = line.strip_prefix(&format!("{}:", file.display()));
            let mut numbers = place.unwrap_or_default().splitn(3, ':');
            let mut number = || numbers.next()?.parse::<usize>().ok();
            let (row, column) = (number().unwrap_or(0), number().unwrap_or(0));
            let there = text
                .split('\n')
                .nth(row.wrapping_sub(1))
                .unwrap_or_default();
            match row > 0 && (1..=there.chars().count() + 1).contains(&column) {
                true => Ok(()),
                false => Err(format!("there is no such place: {line:?}")),
            }
        }),
    }
}

fn lab_is_right(lab: &Lab) -> Result<(), String> {
    let unique = |what: &str, all: Vec<String>| {
        let mut seen = HashSet::new();
        match all.into_iter().find(|one| !seen.insert(one.clone())) {
            Some(twice) => Err(format!("{what} {twice} is there twice")),
            None => Ok(()),
        }
    };
    let names = lab.nodes.iter().map(|node| &node.name);
    let names = names.chain(lab.switches.iter().map(|switch| &switch.name));
    unique("the name", names.cloned().collect())?;
    unique(
        "the test",
        lab.tests.iter().map(|test| test.name.clone()).collect(),
    )?;
    let starting = lab.stages().concat();
    if starting.len() != lab.nodes.len() {
        return Err(format!(
            "{} of {} nodes start",
            starting.len(),
            lab.nodes.len()
        ));
    }
    let segments = lab.links.iter().map(|link| &link.ends[..]);
    let segments = segments.chain(lab.switches.iter().map(|switch| &switch.ports[..]));
    let mut interfaces = Vec::new();
    for ends in segments {
        let mut addresses = Vec::new();
        for end in ends {
            match end {
                End::Vnl(vnl) => drop(Vnl::parse(vnl).map_err(|error| error.to_string())?),
                End::Node(Attachment {
                    node, interface, ..
                }) if *node >= lab.nodes.len() => {
                    return Err(format!("{interface} is at node {node}"));
                }
                End::Node(attachment) => {
                    interfaces.push(format!("{}:{}", attachment.node, attachment.interface));
                    addresses.extend(
                        attachment
                            .addresses
                            .iter()
                            .map(|net| net.addr().to_string()),
                    );
                }
            }
        }
        unique("the address", addresses)?;
    }
    unique("the interface", interfaces)?;
    for link in &lab.links {
        if !matches!(link.ends[0], End::Node(_)) {
            return Err(format!("the first end is no node's: {link:?}"));
        }
        let keys = link.impairments.as_deref().unwrap_or_default();
        Keys::parse(keys).map_err(|error| format!("{keys}: {error}"))?;
    }
    // The supervisor gets it so.
    let json = serde_json::to_string(lab).map_err(|error| error.to_string())?;
    match serde_json::from_str::<Lab>(&json) {
        Ok(read) if read == *lab => Ok(()),
        outcome => Err(format!("{json} is read as {outcome:?}")),
    }
}

/// A lab file whose first node has one command.
///
/// # Errors
/// That is not `command`.
pub fn lab_command(text: &str, command: &str) -> Result<(), String> {
    let lab = file::parse(Path::new("x.toml"), text, &|_| Ok(())).map_err(|e| e.to_string())?;
    match &*lab.nodes[0].exec {
        [read] if read == command => Ok(()),
        read => Err(format!("{command:?} is read as {read:?}")),
    }
}
