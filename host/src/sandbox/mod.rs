//! The sandbox of a process that has links: what it may do from when its plugins are loaded.
//!
//! # Theory of operation
//!
//! Every plugin of vdens says in words what its links need ([`needs`]), and so may others. The
//! process loads the plugins of its VNLs, nested ones too, and confines itself to what they need
//! and what every such process does ([`vdens_sandbox`]). Only then it opens its links: opening one
//! again is opening it, so it needs no more then. If one plugin does not say what it needs, the
//! process is not confined, but no program that it starts gains rights. If one runs commands of the
//! user's (`anything`), they may.
//!
//! A call that the sandbox refuses is logged. What Landlock refuses is the plugin's error;
//! [`explain`] adds that it was the sandbox.

mod needs;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use caps::{CapSet, Capability, CapsHashSet};
use log::LevelFilter;
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{AccessFlags, access};
use vdens_plugin_kit::vnl::{Outline, Vnl};
use vdens_sandbox::{Calls, Confinement, Group, InForce, Rule, Use, log_to};

use crate::error::Error;
use crate::ipc::status::Report;
use crate::logging;
use crate::output::{self, kept};
use crate::plugins::host_services::{InstalledPlugins, Opener};
use crate::worker::NEARBY;
pub(crate) use needs::ANYTHING;
use needs::Needs;

/// What every process that has links reads: the C library's data and modules, and its own state.
const READ: [&str; 15] = [
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/proc/self",
    "/proc/sys",
    "/sys/devices/system/cpu",
    "/dev/urandom",
    "/etc/group",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
];

/// What is read to find out which processes of the user live: others than itself, too.
const PROCESSES: &str = "/proc";

/// What is read to look up a host's name. The files in /etc are replaced when they change, so a
/// rule for each would not last.
const NETWORK_READ: [&str; 6] = [
    "/etc",
    "/run/systemd/resolve",
    "/run/resolvconf",
    "/run/NetworkManager",
    "/run/connman",
    "/var/lib/sss",
];

/// The capabilities that transports use, if the process has them.
const CAPABILITIES: [Capability; 8] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
];

/// This process's sandbox.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sandbox(Arc<State>);

/// How a process is confined.
#[derive(Debug, Default)]
enum State {
    /// It has not entered its sandbox yet.
    #[default]
    Undecided,
    /// By what is in force, to what is needed.
    Confined {
        in_force: InForce,
        needs: Needs,
        /// The directories of sockets that VNLs name, and what was there.
        places: Vec<(PathBuf, Option<(u64, u64)>)>,
    },
    /// Not, and why.
    Open(String),
}

/// What a process does beside its links.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beside {
    /// It serves sockets in these directories.
    pub(crate) sockets: Vec<PathBuf>,
    /// It makes and removes files in these.
    pub(crate) files: Vec<PathBuf>,
    /// It has children, which it may have to end.
    pub(crate) children: bool,
    /// It runs a command at its other end.
    pub(crate) command: bool,
}

impl Sandbox {
    /// Confines this process, which is to open these VNLs, each by its opener. If there is none it
    /// runs a command. The log calls it `name`.
    pub(crate) fn enter(
        name: &str,
        plugins: &InstalledPlugins,
        links: &[(Opener, &str)],
        beside: Beside,
    ) -> Self {
        let state = confine(name, plugins, links, beside).unwrap_or_else(State::Open);
        log::info!("{name}: {}", state.text());
        Self(Arc::new(state))
    }
}

fn confine(
    name: &str,
    plugins: &InstalledPlugins,
    links: &[(Opener, &str)],
    beside: Beside,
) -> Result<State, String> {
    if !plugins.is_confined() {
        return Err("the sandbox is switched off".into());
    }
    if beside.command || links.is_empty() {
        return Err("it runs a command".into());
    }
    let cannot = |error: &dyn std::fmt::Display| format!("the kernel refuses: {error}");
    let mut needs = Needs::default();
    let collected = links
        .iter()
        .map(|(opener, vnl)| collect(*opener, vnl, &mut needs));
    // Each, because one may need anything.
    let collected = collected.fold(Ok(()), Result::and);
    if needs.anything {
        return Err("a plugin says that its links may do anything".into());
    }
    if let Err(why) = collected {
        set_no_new_privs().map_err(|error| cannot(&error))?;
        return Err(why);
    }
    let sockets = beside
        .sockets
        .iter()
        .map(|path| (Use::Sockets, path.clone()));
    let files = beside.files.into_iter().map(|path| (Use::File, path));
    // It removes what dead processes have left beside its sockets.
    let processes = beside
        .sockets
        .first()
        .map(|_| (Use::Read, PROCESSES.into()));
    for (usage, path) in sockets.chain(files).chain(processes) {
        needs.unix |= usage == Use::Sockets;
        needs.rules.push(Rule::new(usage, path));
    }
    log_refusals(name);
    drop_capabilities().map_err(|error| cannot(&error))?;
    let confinement = confinement(&needs, plugins, beside.children);
    let places = needs.directories.iter();
    let places = places.map(|path| (path.clone(), identity(path))).collect();
    let in_force = confinement.enter().map_err(|error| cannot(&error))?;
    Ok(State::Confined {
        in_force,
        needs,
        places,
    })
}

/// Has the calls logged that the sandbox of this process refuses, which the log calls `name`.
pub(crate) fn log_refusals(name: &str) {
    let log = logging::descriptor();
    output::keep_open(log);
    let log = log.filter(|_| log::max_level() >= LevelFilter::Warn);
    log_to(
        // A signal handler must not wait for a reader.
        log.and_then(kept).map(AsRawFd::as_raw_fd).or(log),
        format!("[WARN] {name}: its sandbox refuses the system call "),
        "; --no-sandbox runs it without one".into(),
    );
}

/// What distinguishes the file at a path from one that takes its place.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let meta = fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// Adds what a VNL needs, and what those need that are nested in it.
///
/// # Errors
/// Why what one of them needs is not known. That of the others is added.
fn collect(opener: Opener, vnl: &str, needs: &mut Needs) -> Result<(), String> {
    let mut collected = Ok(());
    let mut next = Some(vnl);
    while let Some(vnl) = next.filter(|vnl| *vnl != NEARBY) {
        let Vnl { scheme, argument } = Vnl::parse(vnl).map_err(|error| error.to_string())?;
        let outline = Outline::new(argument);
        collected = collected.and(add(opener, scheme, &outline, needs));
        next = outline.nested;
    }
    collected
}

/// Adds what the links of a scheme need, for one whose VNL has this outline.
fn add(
    opener: Opener,
    scheme: &str,
    outline: &Outline<'_>,
    needs: &mut Needs,
) -> Result<(), String> {
    let words = opener.needs(scheme).map_err(|error| error.to_string())?;
    let words =
        words.ok_or_else(|| format!("the plugin for {scheme}:// does not say what it needs"))?;
    needs.add(words, outline).map_err(|word| {
        format!("the plugin for {scheme}:// says that it needs '{word}', which is unknown")
    })
}

/// The confinement to these needs.
fn confinement(needs: &Needs, plugins: &InstalledPlugins, has_children: bool) -> Confinement {
    if needs.exec {
        return Confinement::of_what_starts_programs();
    }
    let families = match (needs.unix, needs.network) {
        (true, true) => &[
            libc::AF_UNIX,
            libc::AF_INET,
            libc::AF_INET6,
            libc::AF_NETLINK,
        ][..],
        (true, false) => &[libc::AF_UNIX],
        (false, true) => &[libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK],
        (false, false) => &[],
    };
    let mut groups = vec![
        Group::Runtime,
        Group::Loop,
        Group::Streams,
        Group::Threads,
        Group::Read,
        Group::Sockets(families),
    ];
    groups.extend(needs.changes_files().then_some(Group::Files));
    groups.extend(has_children.then_some(Group::Children));
    let network = NETWORK_READ.iter().filter(|_| needs.network);
    let read = READ.iter().chain(network).map(PathBuf::from);
    let read = read.chain(plugins.directories());
    let mut rules: Vec<_> = read.map(|path| Rule::new(Use::Read, path)).collect();
    rules.push(Rule::new(Use::Device, "/dev/null"));
    rules.extend(needs.rules.iter().cloned());
    Confinement {
        calls: Calls::only(groups),
        files: Some(rules),
        network: needs.network,
        signals: has_children,
    }
}

/// Drops the capabilities that no transport uses. An ordinary user's process has none.
fn drop_capabilities() -> Result<(), caps::errors::CapsError> {
    let wanted: CapsHashSet = CAPABILITIES.into_iter().collect();
    for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
        let held = caps::read(None, set)?;
        let kept: CapsHashSet = match set {
            CapSet::Inheritable => CapsHashSet::new(),
            _ => held.intersection(&wanted).copied().collect(),
        };
        if kept != held {
            caps::set(None, set, &kept)?;
        }
    }
    Ok(())
}

impl State {
    /// What is said of it in the log and by `vdectl status`. Empty before it is decided.
    fn text(&self) -> String {
        match self {
            Self::Undecided => String::new(),
            Self::Open(why) => format!("not confined: {why}"),
            Self::Confined { needs, .. } if needs.exec => {
                "confined as a process that starts programs".into()
            }
            Self::Confined { in_force, .. } if !in_force.landlock => {
                "confined, without Landlock, which this kernel lacks".into()
            }
            Self::Confined { .. } => "confined".into(),
        }
    }
}

impl Sandbox {
    /// The report with how this process is confined, in words.
    pub(crate) fn tell(&self, report: Report) -> Report {
        let sandbox = self.0.text();
        Report { sandbox, ..report }
    }

    /// Says of an error that the sandbox is its cause, if it is: Landlock refuses a path that the
    /// file's permissions allow. Whether they do, access(2) says, which Landlock does not govern.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let State::Confined { in_force, .. } = &*self.0 else {
            return error;
        };
        if !in_force.landlock || error.errno != libc::EACCES {
            return error;
        }
        let Some(path) = path_in(&error.message).filter(|path| is_permitted(path)) else {
            return error;
        };
        let hint = format!(
            "the sandbox does not let this link use {}: see docs/sandbox.md, or use --no-sandbox",
            path.display()
        );
        error.hint(hint)
    }

    /// Whether another directory has taken the place of one that a VNL names. The rules hold for
    /// the one that was there; another process would have other rules.
    pub(crate) fn is_outdated(&self) -> bool {
        let State::Confined { places, .. } = &*self.0 else {
            return false;
        };
        let mut places = places.iter();
        places.any(|(path, was)| identity(path).is_some_and(|now| Some(now) != *was))
    }
}

/// The first absolute path in a message, which a colon or the message's end ends.
fn path_in(message: &str) -> Option<&Path> {
    let (_, rest) = message.split_once(" /")?;
    let start = message.len() - rest.len() - 1;
    let path = &message[start..];
    Some(Path::new(path.split(": ").next().unwrap_or(path)))
}

/// Whether a file's permissions, or the directory's if it is not there, allow to use it.
fn is_permitted(path: &Path) -> bool {
    let directory = path.parent().unwrap_or(path);
    match path.exists() {
        true => access(path, AccessFlags::R_OK).is_ok(),
        false => access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_in_a_message_is_found() {
        let path = |message| path_in(message).and_then(Path::to_str);
        assert_eq!(path("cannot open /a/b c: no"), Some("/a/b c"));
        assert_eq!(path("open /a"), Some("/a"));
        assert_eq!(path("nothing: here"), None);
    }
}
