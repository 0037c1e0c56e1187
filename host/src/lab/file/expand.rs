//! From a lab file to the lab: groups and globs become nodes and interfaces, and what refers to
//! something else is resolved.
//!
//! # Theory of operation
//!
//! There are four passes, because each refers to what the ones before made: nodes, links and
//! switches, what nodes say of others and of interfaces, and tests. A pass goes on after a fault,
//! so that several are reported at once, but the next pass does not start: its faults would be
//! consequences.
//!
//! Expansion multiplies: a few lines can ask for anything. [`Budget`] limits what a lab takes.
//!
//! What a string's `{n}` is ([`template`](super::template)):
//!
//! - the number of the link or switch, if that has a `count`;
//! - else the number of the node: of the one that the string belongs to, or that a glob matched.
//!
//! A group numbers its nodes. A node that is written alone has the number that its name ends with,
//! so that r1, r2 and r3 are matched by `r*` like a group.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::time::Duration;

use super::check;
use super::ends::{self, Wiring, Written, WrittenNode};
use super::place::{Fault, Part, Placed};
use super::template::fill;
use super::types::{File, LinkEntry, MachineEntry, NodeEntry, SwitchEntry, TestEntry};
use crate::cli::plan::check_hostname;
use crate::error::{Error, Result as Checked};
use crate::lab::machine::{self, TAP};
use crate::lab::model::{End, Lab, Link, Machine, Node, Switch, Test};
use crate::plugins::search::similar;

/// The most nodes of a lab.
const MAX_NODES: usize = 4096;

/// What a lab may take, in bytes: several times what one of [`MAX_NODES`] in a line needs.
const BUDGET: usize = 4 << 20;

/// What each thing in a lab takes beside its text, in bytes.
const OVERHEAD: usize = 64;

/// How long a test is tried.
const WITHIN: Duration = Duration::from_secs(10);

/// The most nodes that a message names.
const MAX_NAMED: usize = 8;

pub(super) type Result<T> = std::result::Result<T, Fault>;

/// Makes a lab of a file. `has_scheme` tells whether a plugin serves a scheme.
///
/// # Errors
/// What is wrong with it, at least one fault.
pub(super) fn expand(
    file: &File,
    default_name: &str,
    has_scheme: &dyn Fn(&str) -> Checked<()>,
) -> std::result::Result<Lab, Vec<Fault>> {
    let name = lab_name(file, default_name).map_err(|fault| vec![fault])?;
    let mut expansion = Expansion {
        lab: Lab {
            name,
            ..Lab::default()
        },
        index_of: HashMap::new(),
        groups: HashSet::new(),
        numbers: Vec::new(),
        interfaces: Vec::new(),
        titles: HashSet::new(),
        budget: Budget(BUDGET),
        has_scheme,
    };
    let mut members = Vec::new();
    none(all(&file.nodes, |(name, entry)| {
        members.push((entry, expansion.nodes(name, entry)?));
        Ok(())
    }))?;
    let mut faults = all(&file.links, |entry| expansion.links(entry));
    faults.extend(all(&file.switches, |entry| expansion.switches(entry)));
    none(faults)?;
    none(all(&members, |(entry, range)| {
        expansion.references(entry, range.clone())
    }))?;
    expansion
        .check_order(&members)
        .map_err(|fault| vec![fault])?;
    none(all(&file.tests, |entry| expansion.tests(entry)))?;
    Ok(expansion.lab)
}

/// Does something with each entry, and collects the faults.
fn all<T>(entries: impl IntoIterator<Item = T>, act: impl FnMut(T) -> Result<()>) -> Vec<Fault> {
    entries
        .into_iter()
        .map(act)
        .filter_map(std::result::Result::err)
        .collect()
}

fn none(faults: Vec<Fault>) -> std::result::Result<(), Vec<Fault>> {
    if faults.is_empty() {
        Ok(())
    } else {
        Err(faults)
    }
}

/// Checks a text, and places the error.
pub(super) fn at<T>(part: &Part<'_>, outcome: Checked<T>) -> Result<T> {
    outcome.map_err(|error| part.fault(error))
}

fn lab_name(file: &File, default_name: &str) -> Result<String> {
    if let Some(name) = &file.name {
        return at(&name.part(), check::name("lab", &name.value)).map(|()| name.value.clone());
    }
    match check::name("lab", default_name) {
        Ok(()) => Ok(default_name.to_owned()),
        Err(error) => {
            let hint = format!("write name = \"NAME\" in the first line: {}", error.hint);
            Err(Fault::at(0, Error::usage(error.message).hint(hint)))
        }
    }
}

/// How many there are to be; `None` if it is not said.
fn count(count: Option<&Placed<u32>>) -> Result<Option<i64>> {
    match count {
        Some(count) if !(1..=MAX_NODES as u32).contains(&count.value) => {
            let message = format!("a count of {} is not possible", count.value);
            let hint = format!("write a number from 1 to {MAX_NODES}");
            Err(count.fault(Error::usage(message).hint(hint)))
        }
        count => Ok(count.map(|count| count.value.into())),
    }
}

/// What may still be made, in bytes.
struct Budget(usize);

impl Budget {
    /// Takes what a thing with so much text takes.
    fn spend(&mut self, part: &Part<'_>, text: usize) -> Result<()> {
        let too_large = || {
            let error = Error::usage("the lab is too large once it is expanded");
            part.fault(error.hint("use smaller counts, or fewer and shorter texts"))
        };
        self.0 = self.0.checked_sub(text + OVERHEAD).ok_or_else(too_large)?;
        Ok(())
    }
}

/// A lab that is being made.
struct Expansion<'a> {
    lab: Lab,
    index_of: HashMap<String, usize>,
    /// The names of the groups.
    groups: HashSet<&'a str>,
    /// The number of each node.
    numbers: Vec<Option<i64>>,
    /// The interfaces of each node.
    interfaces: Vec<BTreeSet<String>>,
    /// The names of the tests.
    titles: HashSet<String>,
    budget: Budget,
    has_scheme: &'a dyn Fn(&str) -> Checked<()>,
}

impl<'a> Expansion<'a> {
    /// The first pass: adds the nodes of an entry. Returns their indices.
    fn nodes(&mut self, name: &'a Placed<String>, entry: &NodeEntry) -> Result<Range<usize>> {
        let part = name.part();
        at(&part, check::name("node", part.text))?;
        let first = self.lab.nodes.len();
        match count(entry.count.as_ref())? {
            None => {
                let digits = part
                    .text
                    .trim_end_matches(|c: char| c.is_ascii_digit())
                    .len();
                self.node(
                    &part,
                    part.text.to_owned(),
                    part.text[digits..].parse().ok(),
                    entry,
                )?;
            }
            Some(count) => {
                self.groups.insert(part.text);
                for n in 1..=count {
                    self.node(&part, format!("{}{n}", part.text), Some(n), entry)?;
                }
            }
        }
        Ok(first..self.lab.nodes.len())
    }

    fn node(
        &mut self,
        part: &Part<'_>,
        name: String,
        number: Option<i64>,
        entry: &NodeEntry,
    ) -> Result<()> {
        at(part, check::name("node", &name))?;
        if self.lab.nodes.len() == MAX_NODES {
            let message = format!("the lab has more than {MAX_NODES} nodes");
            return Err(part.fault(Error::usage(message).hint("use smaller counts, or two labs")));
        }
        self.budget.spend(part, 2 * name.len())?;
        if self
            .index_of
            .insert(name.clone(), self.lab.nodes.len())
            .is_some()
        {
            let message = format!("there are two nodes '{name}'");
            let hint = "rename the node, or the group whose members are numbered so";
            return Err(part.fault(Error::usage(message).hint(hint)));
        }
        self.numbers.push(number);
        self.interfaces.push(BTreeSet::new());
        self.lab.nodes.push(Node {
            hostname: name.clone(),
            name,
            root: entry.root,
            map_auto: entry.map_auto,
            machine: entry.qemu.as_ref().map(|_| Machine::default()),
            ..Node::default()
        });
        Ok(())
    }

    /// The second pass: adds the links of an entry.
    fn links(&mut self, entry: &'a LinkEntry) -> Result<()> {
        let [near, far] = &entry.ends.value[..] else {
            let message = format!("a link has two ends, not {}", entry.ends.value.len());
            let hint = "write ends = [\"r1:eth0\", \"r2:eth0\"], or a [[switches]] for more";
            return Err(entry.ends.fault(Error::usage(message).hint(hint)));
        };
        let ends = [Written::read(near)?, Written::read(far)?];
        let globs = ends
            .each_ref()
            .map(|end| end.node().is_some_and(WrittenNode::is_glob));
        if let Some(count) = count(entry.count.as_ref())? {
            if globs != [false; 2] {
                let message = "a link with a count cannot have '*' in its ends";
                let hint = "name one node by its number, as r{n}, or leave count out";
                return Err(entry.ends.fault(Error::usage(message).hint(hint)));
            }
            for n in 1..=count {
                let node = |end: &Written<'_>| self.end_nodes(end, Some(n));
                let nodes = [node(&ends[0])?, node(&ends[1])?];
                self.link(
                    entry,
                    &ends,
                    nodes.map(|nodes| nodes.first().copied()),
                    [Some(n); 2],
                )?;
            }
            return Ok(());
        }
        let nodes = [
            self.end_nodes(&ends[0], None)?,
            self.end_nodes(&ends[1], None)?,
        ];
        let [of_near, of_far] = nodes.each_ref().map(Vec::len);
        let number_of_links = match globs {
            [true, true] if of_near != of_far => {
                let message = format!(
                    "the ends name {of_near} and {of_far} nodes, and a link takes one of each"
                );
                let hint = "let both match as many nodes, or name one node at one end";
                return Err(entry.ends.fault(Error::usage(message).hint(hint)));
            }
            [true, _] => of_near,
            [_, true] => of_far,
            _ => 1,
        };
        for link in 0..number_of_links {
            let node = [0, 1].map(|side: usize| {
                let nodes = &nodes[side];
                nodes.get(if globs[side] { link } else { 0 }).copied()
            });
            // An end without a glob has the number of the node at the other end.
            let number = |side: usize| node[side].filter(|_| globs[side]);
            let numbers = [number(0).or(number(1)), number(1).or(number(0))];
            let numbers = numbers.map(|node| node.and_then(|node| self.numbers[node]));
            self.link(entry, &ends, node, numbers)?;
        }
        Ok(())
    }

    fn link(
        &mut self,
        entry: &'a LinkEntry,
        ends: &[Written<'a>; 2],
        nodes: [Option<usize>; 2],
        numbers: [Option<i64>; 2],
    ) -> Result<()> {
        if let [Some(near), Some(far)] = nodes
            && near == far
        {
            let message = format!("both ends of the link are at {}", self.lab.nodes[near].name);
            let hint = "a link connects two nodes";
            return Err(entry.ends.fault(Error::usage(message).hint(hint)));
        }
        let mut wiring = Wiring::new(entry.mtu.as_ref())?;
        let mut vnl = None;
        for ((end, node), n) in ends.iter().zip(nodes).zip(numbers) {
            match (end, node) {
                (Written::Node(end), Some(node)) => self.plug(&mut wiring, end, node, n)?,
                (Written::Vnl(_), _) if vnl.is_some() => {
                    let message = "neither end of the link is a node's";
                    let hint = "name a node's interface, as r1:eth0, or connect them by vde_plug";
                    return Err(entry.ends.fault(Error::usage(message).hint(hint)));
                }
                (Written::Vnl(part), _) => vnl = Some(self.vnl(part, n)?),
                (Written::Node(_), None) => {}
            }
        }
        let is_swapped = matches!(ends[0], Written::Vnl(_));
        let impairments = ends::impairments(entry, is_swapped, numbers[0].or(numbers[1]))?;
        let text = impairments.as_ref().map_or(0, String::len);
        self.budget.spend(&entry.ends.part_of(""), text)?;
        let ends = wiring.finish(true)?.into_iter().map(End::Node);
        let ends: Vec<End> = ends.chain(vnl.map(End::Vnl)).collect();
        // One end is a node's, the other a node's or a VNL.
        if let Ok(ends) = ends.try_into() {
            self.lab.links.push(Link { ends, impairments });
        }
        Ok(())
    }

    /// The second pass: adds the switches of an entry.
    fn switches(&mut self, entry: &'a SwitchEntry) -> Result<()> {
        match count(entry.count.as_ref())? {
            None => self.switch(entry, None),
            Some(count) => (1..=count).try_for_each(|n| self.switch(entry, Some(n))),
        }
    }

    fn switch(&mut self, entry: &'a SwitchEntry, n: Option<i64>) -> Result<()> {
        let part = entry.name.part();
        let name = fill(part, n)?.into_owned();
        at(&part, check::name("switch", &name))?;
        let is_node = self.index_of.contains_key(&name);
        if is_node || self.lab.switches.iter().any(|switch| switch.name == name) {
            let what = if is_node { "a node" } else { "another switch" };
            let error = Error::usage(format!("{what} has the name '{name}' already"));
            let hint = match n {
                None => "take another name for the switch",
                Some(_) => "write {n} in the name, and take one that no node has",
            };
            return Err(part.fault(error.hint(hint)));
        }
        self.budget.spend(&part, name.len())?;
        let mut wiring = Wiring::new(entry.mtu.as_ref())?;
        // VNLs, and `None` for an interface.
        let mut ports = Vec::new();
        for port in &entry.ports {
            let written = Written::read(port)?;
            match &written {
                Written::Vnl(part) => ports.push(Some(self.vnl(part, n)?)),
                Written::Node(end) => {
                    for node in self.end_nodes(&written, n)? {
                        let number = self.numbers[node].filter(|_| end.is_glob());
                        self.plug(&mut wiring, end, node, n.or(number))?;
                        ports.push(None);
                    }
                }
            }
        }
        let uplink = entry.uplink.as_ref();
        let uplink = uplink
            .map(|uplink| self.vnl(&uplink.part(), n))
            .transpose()?;
        let mtu = wiring.mtu;
        let mut interfaces = wiring.finish(false)?.into_iter();
        let port = |port: Option<String>| match port {
            Some(vnl) => Some(End::Vnl(vnl)),
            None => interfaces.next().map(End::Node),
        };
        let ports = ports.into_iter().filter_map(port).collect();
        self.lab.switches.push(Switch {
            name,
            ports,
            uplink,
            mtu,
        });
        Ok(())
    }

    /// Plugs an interface of a node in.
    fn plug(
        &mut self,
        wiring: &mut Wiring<'a>,
        end: &WrittenNode<'a>,
        node: usize,
        n: Option<i64>,
    ) -> Result<()> {
        let name = wiring.plug(end, node, &self.lab.nodes[node].name, n)?;
        self.budget.spend(&end.interface, name.len())?;
        if self.lab.nodes[node].machine.is_some() {
            at(&end.interface, check::interface_of_machine(&name, TAP))?;
            if let Some(address) = end.address() {
                let name = &self.lab.nodes[node].name;
                let message = format!("{name} is a virtual machine, which has its own addresses");
                let hint = "remove the address, and configure the guest";
                return Err(address.fault(Error::usage(message).hint(hint)));
            }
        }
        if !self.interfaces[node].insert(name.clone()) {
            let message = format!("{}:{name} is used twice", self.lab.nodes[node].name);
            let hint = "each link and each port needs an interface of its own";
            return Err(end.interface.fault(Error::usage(message).hint(hint)));
        }
        Ok(())
    }

    /// The VNL of a part.
    fn vnl(&mut self, part: &Part<'_>, n: Option<i64>) -> Result<String> {
        let vnl = fill(*part, n)?;
        at(part, check::vnl(&vnl, self.has_scheme))?;
        self.budget.spend(part, vnl.len())?;
        Ok(vnl.into_owned())
    }

    fn end_nodes(&self, end: &Written<'_>, n: Option<i64>) -> Result<Vec<usize>> {
        match end {
            Written::Vnl(_) => Ok(Vec::new()),
            Written::Node(end) => self.named(&end.node, n),
        }
    }

    /// The nodes that a name or glob means, at least one.
    fn named(&self, part: &Part<'_>, n: Option<i64>) -> Result<Vec<usize>> {
        let name = fill(*part, n)?;
        if !name.contains('*') {
            return match self.index_of.get(&*name) {
                Some(index) => Ok(vec![*index]),
                None => Err(part.fault(self.no_node(&name))),
            };
        }
        let nodes = self.lab.nodes.iter().enumerate();
        let matching = nodes.filter(|(_, node)| matches(&name, &node.name));
        let matching: Vec<usize> = matching.map(|(index, _)| index).collect();
        match matching.is_empty() {
            false => Ok(matching),
            true => {
                let message = format!("no node's name matches '{}'", name.escape_debug());
                Err(part.fault(Error::usage(message).hint(self.known())))
            }
        }
    }

    fn no_node(&self, name: &str) -> Error {
        let error = Error::usage(format!("there is no node '{}'", name.escape_debug()));
        if self.groups.contains(name) {
            return error.hint(format!(
                "{name} has a count: write {name}1, or {name}* for all"
            ));
        }
        if self.lab.switches.iter().any(|switch| switch.name == name) {
            return error.hint(format!(
                "{name} is a switch: list the interface in its ports"
            ));
        }
        let names = self.lab.nodes.iter().map(|node| node.name.clone());
        match similar(name, names) {
            Some(meant) => error.hint(format!("did you mean '{meant}'?")),
            None => error.hint(self.known()),
        }
    }

    /// Advice for a node that is not there.
    fn known(&self) -> String {
        let names = self.lab.nodes.iter().map(|node| &*node.name);
        let some: Vec<&str> = names.take(MAX_NAMED).collect();
        let more = if self.lab.nodes.len() > MAX_NAMED {
            ", …"
        } else {
            ""
        };
        match some.is_empty() {
            true => "add a node: [nodes.NAME]".to_owned(),
            false => format!("the nodes are {}{more}", some.join(", ")),
        }
    }

    /// The third pass: what the nodes of an entry say of interfaces and other nodes.
    fn references(&mut self, entry: &NodeEntry, range: Range<usize>) -> Result<()> {
        for index in range {
            let n = self.numbers[index];
            if let Some(hostname) = &entry.hostname {
                let part = hostname.part();
                let hostname = fill(part, n)?;
                at(&part, check_hostname(&hostname))?;
                self.lab.nodes[index].hostname = hostname.into_owned();
            }
            for (key, value) in &entry.sysctl {
                let (key, value) = (key.part(), value.part());
                let (name, text) = (fill(key, n)?, fill(value, n)?);
                at(&value, check::sysctl_value(&text))?;
                if let Some(interface) = at(&key, check::sysctl(&name))? {
                    at(&key, self.has_interface(index, interface))?;
                }
                self.budget.spend(&key, name.len() + text.len())?;
                let pair = (name.into_owned(), text.into_owned());
                self.lab.nodes[index].sysctl.push(pair);
            }
            self.lab.nodes[index].exec = self.commands(&entry.exec, n)?;
            self.lab.nodes[index].services = self.commands(&entry.services, n)?;
            if let Some(qemu) = &entry.qemu {
                self.lab.nodes[index].machine = Some(self.machine(qemu, n)?);
            }
            let mut after = BTreeSet::new();
            for first in &entry.after {
                let part = first.part();
                let mut nodes = self.named(&part, n)?;
                // All others, if it is a glob.
                if part.text.contains('*') {
                    nodes.retain(|node| *node != index);
                }
                after.extend(nodes);
                self.budget.spend(&part, after.len() * size_of::<usize>())?;
            }
            self.lab.nodes[index].after = after.into_iter().collect();
        }
        Ok(())
    }

    /// The machine of a node.
    fn machine(&mut self, entry: &MachineEntry, n: Option<i64>) -> Result<Machine> {
        if let Some(cpus) = &entry.cpus
            && !(1..=255).contains(&cpus.value)
        {
            let error = Error::usage(format!("{} processors are not possible", cpus.value));
            return Err(cpus.fault(error.hint("write a number from 1 to 255")));
        }
        if let Some(memory) = &entry.memory {
            at(&memory.part(), check::memory(&memory.value))?;
        }
        let mut word = |word: &Option<Placed<String>>| {
            let word = word.as_ref();
            word.map(|word| self.command(&word.part(), n)).transpose()
        };
        let program = word(&entry.program)?;
        let memory = word(&entry.memory)?;
        Ok(Machine {
            program: program.unwrap_or_else(|| machine::PROGRAM.to_owned()),
            image: word(&entry.image)?,
            keep: entry.keep,
            memory: memory.unwrap_or_else(|| machine::MEMORY.to_owned()),
            cpus: entry.cpus.as_ref().map_or(1, |cpus| cpus.value),
            kernel: word(&entry.kernel)?,
            initrd: word(&entry.initrd)?,
            append: word(&entry.append)?,
            args: self.commands(&entry.args, n)?,
        })
    }

    fn commands(&mut self, commands: &[Placed<String>], n: Option<i64>) -> Result<Vec<String>> {
        commands
            .iter()
            .map(|command| self.command(&command.part(), n))
            .collect()
    }

    fn command(&mut self, part: &Part<'_>, n: Option<i64>) -> Result<String> {
        let command = fill(*part, n)?;
        at(part, check::command(&command))?;
        self.budget.spend(part, command.len())?;
        Ok(command.into_owned())
    }

    fn has_interface(&self, node: usize, interface: &str) -> Checked<()> {
        let interfaces = &self.interfaces[node];
        if interfaces.contains(interface) {
            return Ok(());
        }
        let name = &self.lab.nodes[node].name;
        let error = Error::usage(format!("{name} has no interface '{interface}'"));
        let known: Vec<&str> = interfaces
            .iter()
            .map(|name| &**name)
            .take(MAX_NAMED)
            .collect();
        Err(
            match (
                similar(interface, interfaces.iter().cloned()),
                known.is_empty(),
            ) {
                (Some(meant), _) => error.hint(format!("did you mean {meant}?")),
                (None, true) => error.hint("plug one in by [[links]] or [[switches]]"),
                (None, false) => error.hint(format!("its interfaces are {}", known.join(", "))),
            },
        )
    }

    /// Refuses nodes that wait for each other.
    fn check_order(&self, members: &[(&NodeEntry, Range<usize>)]) -> Result<()> {
        let mut waits: Vec<bool> = vec![true; self.lab.nodes.len()];
        self.lab
            .stages()
            .iter()
            .flatten()
            .for_each(|node| waits[*node] = false);
        let Some(mut node) = waits.iter().position(|waits| *waits) else {
            return Ok(());
        };
        // Each node that never starts waits for another one, so the way comes to a node again.
        let mut way = Vec::new();
        while !way.contains(&node) {
            way.push(node);
            let Some(next) = self.lab.nodes[node].after.iter().find(|next| waits[**next]) else {
                break;
            };
            node = *next;
        }
        way.drain(..way.iter().position(|first| *first == node).unwrap_or(0));
        let name = |node: &usize| &*self.lab.nodes[*node].name;
        let mut chain: Vec<&str> = way.iter().map(name).take(MAX_NAMED).collect();
        if way.len() > MAX_NAMED {
            chain.push("…");
        }
        chain.push(name(&node));
        let message = match way.len() {
            1 => format!("{} waits for itself", chain[0]),
            _ => format!("nodes wait for each other: {}", chain.join(" after ")),
        };
        let error = Error::usage(message).hint("remove one of them from after");
        let entry = members.iter().find(|(_, range)| range.contains(&node));
        let place = entry.and_then(|(entry, _)| entry.after.first());
        Err(match place {
            Some(place) => place.fault(error),
            None => Fault::at(0, error),
        })
    }

    /// The fourth pass: adds the tests of an entry.
    fn tests(&mut self, entry: &TestEntry) -> Result<()> {
        let (node, run) = (entry.node.part(), entry.run.part());
        let within = match &entry.within {
            Some(within) => at(&within.part(), check::time(&within.value))?,
            None => WITHIN,
        };
        for index in self.named(&node, None)? {
            let n = self.numbers[index];
            let run = self.command(&run, n)?;
            let owner = &self.lab.nodes[index].name;
            let (part, name) = match &entry.name {
                Some(name) => {
                    let part = name.part();
                    let filled = fill(part, n)?;
                    // Each of several tests has a name of its own.
                    let name = match node.text.contains('*') && filled == part.text {
                        true => format!("{owner}: {filled}"),
                        false => filled.into_owned(),
                    };
                    (part, name)
                }
                None => {
                    let line = run.trim().lines().next().unwrap_or_default();
                    (entry.run.part(), format!("{owner}: {line}"))
                }
            };
            at(&part, check::title(&name))?;
            if !self.titles.insert(name.clone()) {
                let message = format!("there are two tests '{}'", name.escape_debug());
                let hint = "give the test another name = …";
                return Err(part.fault(Error::usage(message).hint(hint)));
            }
            self.budget.spend(&part, 2 * name.len())?;
            self.lab.tests.push(Test {
                name,
                node: index,
                run,
                expect: entry.expect,
                within,
            });
        }
        Ok(())
    }
}

/// Whether a name matches a glob, in which `*` stands for any characters.
fn matches(glob: &str, name: &str) -> bool {
    let mut pieces = glob.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let Some(last) = pieces.next_back() else {
        return rest.is_empty();
    };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lab::file::parse;

    fn lab(text: &str) -> Lab {
        let lab = parse(Path::new("x.toml"), text, &|_| Ok(()));
        lab.unwrap_or_else(|faults| panic!("{text}\n{faults}"))
    }

    /// The interfaces and addresses of all links' ends, as `h1:eth0=10.0.0.1/24`.
    fn ends(lab: &Lab) -> Vec<[String; 2]> {
        let shown = |end: &End| match end {
            End::Vnl(vnl) => vnl.clone(),
            End::Node(at) => {
                let addresses: Vec<_> = at.addresses.iter().map(ToString::to_string).collect();
                let name = &lab.nodes[at.node].name;
                format!("{name}:{}={}", at.interface, addresses.join(","))
            }
        };
        lab.links
            .iter()
            .map(|link| link.ends.each_ref().map(shown))
            .collect()
    }

    #[test]
    fn a_glob_matches_what_its_pieces_are_in() {
        /// As the definition has it, without any wit.
        fn slowly(glob: &[u8], name: &[u8]) -> bool {
            match (glob.split_first(), name.split_first()) {
                (None, None) => true,
                (Some((b'*', rest)), _) => {
                    slowly(rest, name) || !name.is_empty() && slowly(glob, &name[1..])
                }
                (Some((a, glob)), Some((b, name))) => a == b && slowly(glob, name),
                _ => false,
            }
        }
        // All words of up to five letters.
        let words = |letters: &[char]| {
            let mut all = vec![String::new()];
            for start in 0.. {
                let Some(word) = all.get(start).filter(|word| word.len() < 5).cloned() else {
                    break;
                };
                all.extend(letters.iter().map(|letter| format!("{word}{letter}")));
            }
            all
        };
        for glob in words(&['a', 'b', '*']) {
            for name in words(&['a', 'b']) {
                let expected = slowly(glob.as_bytes(), name.as_bytes());
                assert_eq!(matches(&glob, &name), expected, "{glob} {name}");
            }
        }
    }

    #[test]
    fn a_link_is_made_for_each_node_that_matches() {
        let nodes = "[nodes.a]\ncount = 2\n[nodes.b1]\n[nodes.b2]\n[nodes.hub]\n[[links]]\nends = ";
        let made = |written: &str| ends(&lab(&format!("{nodes}{written}")));
        assert_eq!(
            made("['a*:x=10.0.{n}.1/24', 'hub:x{n}=10.0.{n}.2/24']"),
            [
                ["a1:x=10.0.1.1/24", "hub:x1=10.0.1.2/24"],
                ["a2:x=10.0.2.1/24", "hub:x2=10.0.2.2/24"],
            ]
        );
        assert_eq!(
            made("['a*:x', 'b*:y']"),
            [["a1:x=", "b1:y="], ["a2:x=", "b2:y="]]
        );
        // A node that is written alone has the number that its name ends with.
        assert_eq!(
            made("['udp://x/{n}', 'b*:y']"),
            [["b1:y=", "udp://x/1"], ["b2:y=", "udp://x/2"]]
        );
    }

    #[test]
    fn counting_starts_anew_for_each_link_and_once_for_each_switch() {
        let made = lab("[nodes.a]\ncount = 2\n[nodes.b]\ncount = 2\n\
             [[links]]\nends = ['a*:x=10.0.0.0/30', 'b*:x=10.0.0.0/30']\n\
             [[switches]]\nname = 's'\n\
             ports = ['b*:y=10.1.0.0/24', 'a*:y=10.1.0.0/24,fd00::/64', 'ptp:///c']\n");
        assert_eq!(
            ends(&made),
            [
                ["a1:x=10.0.0.1/30", "b1:x=10.0.0.2/30"],
                ["a2:x=10.0.0.1/30", "b2:x=10.0.0.2/30"],
            ]
        );
        let addresses: Vec<_> = made.switches[0]
            .ports
            .iter()
            .filter_map(|port| match port {
                End::Node(at) => Some(at.addresses.iter().map(ToString::to_string)),
                End::Vnl(_) => None,
            })
            .flatten()
            .collect();
        let v4 = |host: u8| format!("10.1.0.{host}/24");
        let v6 = |host: u8| format!("fd00::{host}/64");
        assert_eq!(addresses, [v4(1), v4(2), v4(3), v6(1), v4(4), v6(2)]);
        assert_eq!(made.switches[0].ports[4], End::Vnl("ptp:///c".into()));
    }

    /// For every count the addresses are those of the network in order, but those that are taken.
    #[test]
    fn every_free_address_is_given_out_once_and_in_order() {
        for prefix in 24..=30_u32 {
            let hosts = (1_usize << (32 - prefix)) - 2;
            for taken in [1, hosts / 2 + 1, hosts] {
                let count = hosts - 1;
                let made = lab(&format!(
                    "[nodes.r]\n[nodes.h]\ncount = {count}\n[[switches]]\nname = 's'\n\
                     ports = ['h*:e=10.0.0.0/{prefix}', 'r:e=10.0.0.{taken}/{prefix}']\n"
                ));
                let expected = (1..=hosts).filter(|host| *host != taken);
                let ports = &made.switches[0].ports[..count];
                for (port, host) in ports.iter().zip(expected) {
                    let End::Node(at) = port else {
                        panic!("{port:?}");
                    };
                    let address = format!("10.0.0.{host}/{prefix}");
                    assert_eq!(at.addresses[0].to_string(), address, "{taken}");
                }
            }
        }
    }

    #[test]
    fn the_largest_lab_fits() {
        let line = "[nodes.r]\ncount = 4096\nexec = ['ip route add default via 10.0.0.1']\n\
                    sysctl = { 'net.ipv4.ip_forward' = 1 }\n\
                    [[links]]\ncount = 4095\nends = ['r{n}:r=10.0.0.0/30', 'r{n+1}:l=10.0.0.0/30']\n\
                    [[tests]]\nnode = 'r*'\nrun = 'ping -c 1 10.0.0.1'\n";
        let made = lab(line);
        assert_eq!(
            (made.nodes.len(), made.links.len(), made.tests.len()),
            (4096, 4095, 4096)
        );
    }
}
