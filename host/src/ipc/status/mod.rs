//! What a process reports of itself, to `vdectl status`.
//!
//! Each `vdens` and each `vde_plug` listens on a SEQPACKET socket in the user's runtime directory
//! ([`server`]); the socket's name is the process id. Whoever connects gets one message: a file in
//! memory that holds a [`Process`] as JSON. So an answer of any length takes the process one call,
//! which cannot block.
//!
//! A supervisor asks its workers for the [`Report`]s on their links, and passes them on unread.
//!
//! A report never ends its sender. Bytes of a path that are not UTF-8 are U+FFFD in it. If a report
//! cannot be made, the answer says why.

pub mod server;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use vdens_plugin_kit::{Peer, SwitchStatus, Tier};

use crate::error::Result;
use crate::sys::interface::Traffic;
use crate::sys::runtime;

/// A process; `R` is a link's report, read or unread.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Process<R> {
    /// Its id.
    pub pid: u32,
    /// `vdens` or `vde_plug`.
    pub program: String,
    /// The version of that.
    pub version: String,
    /// The command that vdens runs, or the arguments of vde_plug.
    pub command: Vec<String>,
    /// Its working directory, which relative paths in VNLs start from, as text.
    pub directory: String,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// Why there is no panel; empty if there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub no_panel: String,
    /// Its links, in order.
    pub links: Vec<Entry<R>>,
}

/// A link, and what its worker reports, if it does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry<R> {
    /// The link.
    #[serde(flatten)]
    pub link: LinkEntry,
    /// The report.
    pub report: Option<R>,
}

/// A link, as the one who supervises it sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinkEntry {
    /// The interface's name; empty for an end of a plug.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interface: String,
    /// What it is plugged into.
    pub vnl: String,
    /// How it is served.
    pub service: Service,
    /// The process that serves it, if there is one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
    /// How often that was started again.
    pub restarts: u32,
    /// How it ended last; empty if it has not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_end: String,
    /// What the interface itself has seen, whoever carried it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_traffic: Option<Traffic>,
}

/// How a link is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// As it should be.
    Served,
    /// Its worker is there, and did not answer in time.
    Silent,
    /// Its worker has ended and is to be started again.
    Restarting,
    /// Not any more: its interface was deleted.
    Closed,
}

/// What the one who serves a link reports.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Whether the far end is there.
    pub carrier: bool,
    /// How frames go, if it is.
    pub tier: Option<Tier>,
    /// Why not in a better way, or why the far end is not there; empty if there is nothing to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Who is at the far end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// What came from the far end and went through this process.
    pub received: Counters,
    /// What went there likewise.
    pub sent: Counters,
    /// The plugin that serves the link, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<PluginReport>,
    /// The ports and the forwarding database, if the link is a switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch: Option<SwitchStatus>,
    /// What else the transport tells.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, String>,
}

/// A plugin.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PluginReport {
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
    /// The source could not make a frame of them, because they were too short or too long, or made no sense.
    pub malformed: u64,
    /// The sink's queue was full, and the source serves others and cannot wait.
    pub queue_full: u64,
    /// The sink could not send them: its far end is not there or does not take them, or the interface is down.
    pub undeliverable: u64,
}

impl Dropped {
    /// All of them.
    pub fn total(&self) -> u64 {
        let causes = [self.malformed, self.queue_full, self.undeliverable];
        causes.into_iter().fold(0, u64::saturating_add)
    }
}

/// The calling process, still without links; `command` is what it runs or was called with.
pub fn this_process<R>(
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
        no_panel: no_panel.into(),
        links: Vec::new(),
    }
}

/// The directory in the runtime directory that the sockets are in. Process ids are only unique
/// within their namespace, so that is part of the name.
pub fn directory() -> Result<String> {
    Ok(format!("status-{}", runtime::namespace("pid")?))
}
