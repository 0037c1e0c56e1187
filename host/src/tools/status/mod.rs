//! `vdectl status`: what the user's running processes tell of themselves.
//!
//! Each `vdens` and each `vde_plug` listens on a SEQPACKET socket named by its process id in the user's [`crate::sys::runtime`]
//! directory ([`server`]). Whoever connects gets one message, a file in memory with a [`Process`] as JSON. So an
//! answer of any length takes the one who gives it a single call that cannot block. `vdectl status` asks all at
//! once ([`client`]) and prints what they say ([`text`]).
//!
//! What there is to say of a link its own process knows: a supervisor asks its workers for their [`Report`]s, and
//! passes them on unread.
//!
//! A report never ends its sender. Reports are text: bytes of a path that are not UTF-8 are in them
//! as U+FFFD. If a report cannot be made the answer says why. The asker believes no answer: it takes
//! one only from the process whose id is the socket's name, only in a file in memory, so that reading
//! cannot block, and only up to [`crate::ipc::MAX_REPORT`]. [`text`] can print every number.

pub mod client;
pub mod interface;
pub mod server;
pub mod text;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use vdens_plugin_kit::vnl::Vnl;
use vdens_plugin_kit::{Link, Peer, SwitchStatus, Tier};

use crate::error::Result;
use crate::plugins::host_services::Opener;
use crate::sys::runtime;
use crate::worker::pump::Counters;
use crate::worker::tier;
use interface::Traffic;

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

impl Report {
    /// The report of the link `far`, whose frames go to and come from `near`.
    pub fn new(near: &dyn Link, far: &dyn Link, received: Counters, sent: Counters) -> Self {
        let status = far.status();
        let tier = tier::tier(near, far, &status);
        Self {
            carrier: far.state().carrier,
            tier,
            reason: tier::reason(tier, &status).to_owned(),
            peer: status.peer,
            received,
            sent,
            plugin: None,
            switch: status.switch,
            extra: status.extra,
        }
    }

    /// Adds the plugin that opened `vnl`, if it is one that a plugin has opened.
    #[must_use]
    pub fn with_plugin(mut self, opener: Opener, vnl: &str) -> Self {
        let scheme = Vnl::parse(vnl).ok().map(|vnl| vnl.scheme);
        let plugin = scheme.and_then(|scheme| opener.plugin(scheme));
        self.plugin = plugin.map(|(manifest, file)| PluginReport {
            scheme: manifest.scheme,
            version: manifest.version,
            file: file.display().to_string(),
        });
        self
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
fn directory() -> Result<String> {
    Ok(format!("status-{}", runtime::namespace("pid")?))
}
