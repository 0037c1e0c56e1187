//! What values may be, as they are now: VNLs, sessions, labs, nodes, links.
//!
//! A key press waits for these, so they ask as little as they can. Schemes are the names of plugin
//! files, and no plugin is loaded. Sessions, labs and nodes are in the runtime directory. Only the
//! interfaces of links are asked of the processes that have them.

use std::ffi::OsStr;
use std::path::Path;

use clap_complete::CompletionCandidate;
use clap_complete::engine::{ArgValueCompleter, PathCompleter, ValueCompleter};

use crate::cli::Common;
use crate::cli::config::Config;
use crate::ipc::status::{Process, Report};
use crate::switch::words::KNOWN;
use crate::sys::names::{self, Kind};
use crate::tools::status::client::ask_again;
use crate::tools::switch::directories;

type Candidates = Vec<CompletionCandidate>;

/// A VNL.
pub(crate) fn vnls() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| vnl(&word.to_string_lossy()))
}

/// A plugin: a scheme, or a file.
pub(crate) fn plugins() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        let schemes = schemes().into_iter().map(CompletionCandidate::new);
        let mut found = beginning(word, schemes);
        found.extend(PathCompleter::file().complete(word));
        found
    })
}

/// A session's name.
pub(crate) fn sessions() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| beginning(word, named(Kind::Session)))
}

/// A session or a node.
pub(crate) fn targets() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        beginning(word, named(Kind::Session).into_iter().chain(all_nodes()))
    })
}

/// A lab's name.
pub(crate) fn labs() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| beginning(word, named(Kind::Lab)))
}

/// A lab's name or file.
pub(crate) fn labs_and_files() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        let mut found = beginning(word, named(Kind::Lab));
        found.extend(lab_file(word));
        found
    })
}

/// A lab's file.
pub(crate) fn lab_files() -> ArgValueCompleter {
    ArgValueCompleter::new(lab_file)
}

/// A session's or lab's name.
pub(crate) fn names() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        let labs = named(Kind::Lab).into_iter();
        beginning(word, named(Kind::Session).into_iter().chain(labs))
    })
}

/// A node of a lab.
pub(crate) fn nodes() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| beginning(word, all_nodes()))
}

/// A link, by its session or node and its interface.
pub(crate) fn links() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        let answers = ask_again().unwrap_or_default().into_iter();
        let processes = answers.filter_map(|answer| answer.process.ok());
        let links = processes.flat_map(|process| links_of(&process));
        beginning(word, links)
    })
}

/// A switch, by its directory.
pub(crate) fn running_switches() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        let running = directories().into_iter().map(CompletionCandidate::new);
        let mut found = beginning(word, running);
        found.extend(PathCompleter::dir().complete(word));
        found
    })
}

/// A word of a sentence that changes a switch.
pub(crate) fn switch_words() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| beginning(word, KNOWN.map(CompletionCandidate::new)))
}

/// A key of netem:// with its `=`.
pub(crate) fn keys() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| beginning(word, netem_keys()))
}

/// A process that can forward.
pub(crate) fn processes() -> ArgValueCompleter {
    ArgValueCompleter::new(|word: &OsStr| {
        let answers = ask_again().unwrap_or_default().into_iter();
        let processes = answers.filter_map(|answer| answer.process.ok());
        let described = processes.map(|process| {
            let about = format!("{} {}", process.program, process.command.join(" "));
            CompletionCandidate::new(process.pid.to_string()).help(Some(about.into()))
        });
        beginning(word, described)
    })
}

/// Those that begin with a word.
fn beginning(
    word: &OsStr,
    candidates: impl IntoIterator<Item = CompletionCandidate>,
) -> Candidates {
    let begins = |candidate: &CompletionCandidate| {
        let value = candidate.get_value().as_encoded_bytes();
        value.starts_with(word.as_encoded_bytes())
    };
    candidates.into_iter().filter(begins).collect()
}

/// The names of a kind that are in use.
fn named(kind: Kind) -> Candidates {
    let all = names::all().unwrap_or_default().into_iter();
    let about = match kind {
        Kind::Session => "session",
        Kind::Lab => "lab",
    };
    let named = all.filter(|named| named.kind == kind);
    named
        .map(|named| CompletionCandidate::new(named.name).help(Some(about.into())))
        .collect()
}

/// The nodes of all labs, as LAB/NODE.
fn all_nodes() -> Candidates {
    let all = names::all().unwrap_or_default().into_iter();
    let labs = all.filter(|named| named.kind == Kind::Lab);
    let nodes = labs.flat_map(|lab| {
        let members = lab.members.into_iter();
        let words = members.map(move |node| format!("{}/{}", lab.name, node.name));
        words.map(|word| CompletionCandidate::new(word).help(Some("node".into())))
    });
    nodes.collect()
}

/// The links of a process: of a session its interfaces, of a lab those of its nodes.
fn links_of(process: &Process<Report>) -> Candidates {
    let owner = process
        .name
        .clone()
        .unwrap_or_else(|| process.pid.to_string());
    let links = process.links.iter();
    let own = links.map(|entry| (entry.link.interface.as_str(), entry.link.vnl.clone()));
    let own = own.filter(|(interface, _)| !interface.is_empty());
    let own = own.map(|(interface, vnl)| (format!("{owner}:{interface}"), Some(vnl)));
    let nodes = process.lab.iter().flat_map(|lab| {
        let nodes = lab.nodes.iter().map(move |node| (&lab.name, node));
        nodes.flat_map(|(lab, node)| {
            let interfaces = node.interfaces.iter();
            interfaces.map(move |one| (format!("{lab}/{}:{}", node.name, one.name), None))
        })
    });
    own.chain(nodes)
        .map(|(word, vnl)| CompletionCandidate::new(word).help(vnl.map(Into::into)))
        .collect()
}

fn lab_file(word: &OsStr) -> Candidates {
    let is_lab = |path: &Path| path.extension().is_some_and(|end| end == "toml");
    PathCompleter::any().filter(is_lab).complete(word)
}

/// The schemes that a plugin serves.
fn schemes() -> Vec<String> {
    let config = Config::load(None).unwrap_or_default();
    let Ok(path) = Common::default().search_path(&config) else {
        return Vec::new();
    };
    let plugins = path.survey().into_iter().filter_map(|dir| dir.plugins.ok());
    let used = plugins
        .flatten()
        .filter(|plugin| plugin.shadowed_by.is_none());
    let mut schemes: Vec<String> = used.map(|plugin| plugin.scheme.replace('_', "-")).collect();
    schemes.sort();
    schemes
}

/// What a VNL may become: the scheme, the path or name after it; the same again in braces.
fn vnl(word: &str) -> Candidates {
    if let Some((outer, inner)) = word.rsplit_once('{') {
        let inner = vnl(inner).into_iter();
        return inner
            .map(|one| one.add_prefix(format!("{outer}{{")))
            .collect();
    }
    let Some((scheme, argument)) = word.split_once("://") else {
        let schemes = schemes().into_iter();
        let schemes = schemes.map(|scheme| CompletionCandidate::new(format!("{scheme}://")));
        let mut found = beginning(OsStr::new(word), schemes);
        found.extend(switches(OsStr::new(word)));
        return found;
    };
    let arguments = match scheme {
        "vde" | "switch" | "hub" => PathCompleter::dir().complete(OsStr::new(argument)),
        "tap" => beginning(OsStr::new(argument), taps()),
        "netem" => {
            let start = argument.rfind('/').map_or(0, |slash| slash + 1);
            let (before, key) = argument.split_at(start);
            let found = beginning(OsStr::new(key), netem_keys()).into_iter();
            found.map(|one| one.add_prefix(before)).collect()
        }
        "null" | "nat" | "vlan" | "udp" | "vxlan" | "cmd" | "seqpacket" => Vec::new(),
        _ => PathCompleter::any().complete(OsStr::new(argument)),
    };
    let arguments = arguments.into_iter().filter(|one| one.get_value() != ".");
    arguments
        .map(|one| one.add_prefix(format!("{scheme}://")))
        .collect()
}

/// Directories of switches, and, once a path has begun, all others: they may lead to one.
fn switches(word: &OsStr) -> Candidates {
    let has_begun = word.as_encoded_bytes().contains(&b'/');
    let is_switch = |path: &OsStr| Path::new(path).join("ctl").exists();
    let found = PathCompleter::dir().complete(word).into_iter();
    found
        .filter(|one| one.get_value() != "." && (has_begun || is_switch(one.get_value())))
        .collect()
}

fn netem_keys() -> impl Iterator<Item = CompletionCandidate> {
    let keys = vdens_impairment::NAMES.iter();
    keys.map(|key| CompletionCandidate::new(format!("{key}=")))
}

/// The taps of this network namespace.
fn taps() -> Candidates {
    let interfaces = std::fs::read_dir("/sys/class/net").into_iter().flatten();
    let taps = interfaces
        .flatten()
        .filter(|entry| entry.path().join("tun_flags").exists());
    taps.map(|entry| CompletionCandidate::new(entry.file_name()))
        .collect()
}
