//! What a process reports of itself, to `vdectl status`.
//!
//! Each `vdens`, `vde_plug` and `vdens-tap` listens on a SEQPACKET socket in the user's runtime
//! directory ([`server`]); the socket's name is the process id. Whoever connects gets one message:
//! a file in memory that holds a [`Process`] as JSON. So an answer of any length takes the process
//! one call, which cannot block.
//!
//! A supervisor asks its workers for the [`Report`]s on their links, and passes them on unread.
//!
//! A report never ends its sender. Bytes of a path that are not UTF-8 are U+FFFD in it. If a report
//! cannot be made, the answer says why.

pub(crate) mod lab;
pub(crate) mod server;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use vdens_plugin_kit::{Peer, SwitchStatus, Tier};

pub(crate) use lab::LabStatus;

use crate::error::Result;
use crate::sys::interface::Traffic;
use crate::sys::runtime;

/// A process. `R` is a link's report, read or unread.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Process<R> {
    /// Its id.
    pub pid: u32,
    /// `vdens`, `vde_plug`, `vdens-tap`, or `lab` for a lab's supervisor.
    pub program: String,
    /// The version of that.
    pub version: String,
    /// The command that vdens runs, the arguments of vde_plug, or the machine of a tap and its id.
    pub command: Vec<String>,
    /// Its working directory, which relative paths in VNLs start from, as text.
    pub directory: String,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// The session's or lab's name, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The session's host name; empty for a plug.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// The session's command, or the first process of its PID namespace; its namespaces are the
    /// session's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command_pid: Option<u32>,
    /// Whether the session has a PID namespace.
    #[serde(default, skip_serializing_if = "is_false")]
    pub has_own_pids: bool,
    /// Why there is no panel; empty if there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub no_panel: String,
    /// The lab that it supervises.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lab: Option<LabStatus>,
    /// Its links, in order.
    pub links: Vec<Entry<R>>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// A link, and its worker's report, if there is one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry<R> {
    /// The link.
    #[serde(flatten)]
    pub link: LinkEntry,
    /// The report.
    pub report: Option<R>,
}

/// A link, as its supervisor sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LinkEntry {
    /// The interface's name; empty for an end of a plug.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// The interface's addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpNet>,
    /// The VNL that it is plugged into.
    pub vnl: String,
    /// How it is served.
    pub service: Service,
    /// Its worker, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
    /// How often the worker was restarted.
    pub restarts: u32,
    /// How the worker ended last; empty if it never did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_end: String,
    /// The kernel's counters of the interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_traffic: Option<Traffic>,
}

/// How a link is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Service {
    /// A worker serves it.
    Served,
    /// Its worker runs, but did not answer in time.
    Silent,
    /// Its worker ended and will be restarted.
    Restarting,
    /// Its interface was deleted.
    Closed,
}

/// What the process that serves a link reports.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Report {
    /// Whether the far end is present.
    pub carrier: bool,
    /// The tier of the data plane, if there is carrier.
    pub tier: Option<Tier>,
    /// Why there is no better tier, or no carrier. May be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The peer at the far end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// Frames from the far end that went through this process.
    pub received: Counters,
    /// Frames to the far end that went through this process.
    pub sent: Counters,
    /// How the process is confined; empty if that is not decided yet.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// The plugin that serves the link, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<PluginReport>,
    /// The ports and the forwarding database, if the link is a switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch: Option<SwitchStatus>,
    /// What else the transport reports.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, String>,
}

/// A plugin.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PluginReport {
    /// Its scheme.
    pub scheme: String,
    /// Its version.
    pub version: String,
    /// Its file, as text.
    pub file: String,
}

/// What a link has moved in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Frames taken by the sink; a super-frame is one.
    pub frames: u64,
    /// Bytes in these frames.
    pub bytes: u64,
    /// Frames lost on the way.
    pub dropped: Dropped,
}

/// Frames lost, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dropped {
    /// Too short, too long or malformed at the source.
    pub malformed: u64,
    /// The sink's queue was full, and the source serves others and cannot wait.
    pub queue_full: u64,
    /// The sink could not send them: its far end is absent or refuses them, or the interface is
    /// down.
    pub undeliverable: u64,
}

/// The calling process, without links. `command` is what it runs or was called with.
pub(crate) fn this_process<R>(
    program: &str,
    command: &[OsString],
    started: SystemTime,
    no_panel: &str,
) -> Process<R> {
    let words = command.iter().map(|word| word.to_string_lossy());
    Process {
        pid: process::id(),
        program: program.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        command: words.map(Cow::into_owned).collect(),
        directory: env::current_dir().unwrap_or_default().display().to_string(),
        started: started
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
        name: None,
        hostname: String::new(),
        command_pid: None,
        has_own_pids: false,
        no_panel: no_panel.into(),
        lab: None,
        links: Vec::new(),
    }
}

/// The directory in the runtime directory that the sockets are in. Process ids are only unique
/// within their namespace, so that is part of the name.
pub(crate) fn directory() -> Result<String> {
    Ok(format!("status-{}", runtime::namespace("pid")?))
}
