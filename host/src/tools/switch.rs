//! `vdectl switch`: shows and changes switches that run.
//!
//! Each `switch://` and `hub://` has a socket for requests ([`vdens_plugin_kit::control`]). What it
//! is asked and answers is in [`vdens_switch_control`]. A switch is named by its directory, by the
//! process that it is in, or by the session that this belongs to.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vdens_plugin_kit::control;
use vdens_switch_control::{
    Event, General, PortReport, PortSelection, SCHEME, StationReport, StormLimit, StpReport,
    StpTimes, VlanReport, Way,
};

use super::status::client::ask_all;
use crate::cli::vdectl::Part;
use crate::error::{Error, ErrorKind, Result};
use crate::output::{Text, report};
use crate::switch::client::{self, Socket};
use crate::switch::console::{group_id, name, user_id};
use crate::switch::words::{Names, changes};

/// A switch that runs.
struct Switch {
    socket: Socket,
    general: General,
}

/// A switch, or a part of it, in JSON.
#[derive(Default, Serialize)]
struct Shown {
    switch: Option<General>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<Vec<PortReport>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vlans: Option<Vec<VlanReport>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stations: Option<Vec<StationReport>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stp: Option<StpReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Vec<Event>>,
}

/// Shows all switches of the user's, or one, or a part of it.
///
/// # Errors
/// There is no such switch.
pub fn show(word: Option<&str>, what: Option<Part>, json: bool) -> Result<()> {
    let all = all();
    let switches: Vec<&Switch> = match word {
        Some(word) => vec![find(&all, word)?],
        None => all.iter().collect(),
    };
    if switches.is_empty() && !json {
        report("vdectl", "no switch of yours is running");
        return Ok(());
    }
    let shown = switches.iter().map(|switch| switch.shown(what));
    let shown: Vec<Shown> = shown.collect::<Result<_>>()?;
    if json {
        return Text::json(&shown)?.print();
    }
    let mut text = Text::default();
    for shown in &shown {
        shown.print(&mut text);
    }
    text.print()
}

/// Changes a switch.
///
/// # Errors
/// There is no such switch, the words are none, or the switch refuses.
pub fn set(word: &str, words: &[String]) -> Result<()> {
    let names = Names {
        user: &user_id,
        group: &group_id,
    };
    let changes = changes(words, &names)?;
    let all = all();
    let switch = find(&all, word)?;
    client::change(&switch.socket, changes)
        .map(drop)
        .map_err(|error| Error {
            message: format!(
                "cannot change {}: {}",
                switch.general.directory, error.message
            ),
            ..error
        })
}

/// The directories of the user's switches.
pub(crate) fn directories() -> Vec<String> {
    all()
        .into_iter()
        .map(|switch| switch.general.directory)
        .collect()
}

/// All switches of this user's, by their directories.
fn all() -> Vec<Switch> {
    let sockets = control::find(SCHEME).into_iter().map(Socket);
    // One that does not answer has ended.
    let switches = sockets.filter_map(|socket| {
        let general = client::general(&socket).ok()?;
        Some(Switch { socket, general })
    });
    let mut switches: Vec<Switch> = switches.collect();
    switches.sort_by(|a, b| a.general.directory.cmp(&b.general.directory));
    switches
}

/// The switch that a word means.
fn find<'a>(all: &'a [Switch], word: &str) -> Result<&'a Switch> {
    let directory = absolute(Path::new(word));
    let is_there = |switch: &&Switch| absolute(Path::new(&switch.general.directory)) == directory;
    if let Some(switch) = all.iter().find(is_there) {
        return Ok(switch);
    }
    let processes: Vec<u32> = match word.parse() {
        Ok(process) => vec![process],
        Err(_) => {
            let known = ask_all()?.into_iter();
            let known = known.filter_map(|known| Some((known.pid, known.process.ok()?)));
            let named = known.filter(|(_, process)| process.name.as_deref() == Some(word));
            named.map(|(pid, _)| pid).collect()
        }
    };
    let is_of = |switch: &&Switch| {
        switch
            .general
            .processes
            .iter()
            .any(|it| processes.contains(it))
    };
    let found: Vec<&Switch> = all.iter().filter(is_of).collect();
    let shown = word.escape_debug();
    match found[..] {
        [switch] => Ok(switch),
        [] => {
            let message = format!("'{shown}' is no switch of yours that runs");
            Err(Error::new(ErrorKind::NotFound, message)
                .hint("vdectl switch show lists those that are"))
        }
        _ => {
            let message = format!("'{shown}' has more than one switch");
            Err(Error::usage(message).hint("name its directory"))
        }
    }
}

/// A path without links and relative parts, if it exists.
fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

impl Switch {
    /// What is to be shown of it.
    fn shown(&self, what: Option<Part>) -> Result<Shown> {
        let socket = &self.socket;
        let mut shown = Shown {
            switch: Some(self.general.clone()),
            ..Shown::default()
        };
        match what {
            None => {}
            Some(Part::Ports) => shown.ports = Some(client::ports(socket, PortSelection::All)?),
            Some(Part::Vlans) => shown.vlans = Some(client::vlans(socket)?),
            Some(Part::Stations) => shown.stations = Some(client::stations(socket, None, None)?),
            Some(Part::Stp) => shown.stp = Some(client::tree(socket)?),
            Some(Part::Events) => shown.events = Some(client::events(socket, 0)?.0),
        }
        Ok(shown)
    }
}

impl Shown {
    fn print(&self, text: &mut Text) {
        if let Some(ports) = &self.ports {
            print_ports(text, ports);
        } else if let Some(vlans) = &self.vlans {
            print_vlans(text, vlans);
        } else if let Some(stations) = &self.stations {
            print_stations(text, stations);
        } else if let Some(tree) = &self.stp {
            print_tree(text, tree);
        } else if let Some(events) = &self.events {
            for Event {
                category,
                text: what,
                ..
            } in events
            {
                text.line(format_args!("{category:<12} {what}"));
            }
        } else if let Some(general) = &self.switch {
            print_general(text, general);
        }
    }
}

fn print_general(text: &mut Text, general: &General) {
    let General {
        directory,
        kind,
        mac,
        num_ports,
        ..
    } = general;
    text.line(format_args!("{directory}  {kind}"));
    let [process, _] = general.processes;
    let seconds = general.uptime;
    text.line(format_args!("  process   {process}, for {seconds} s"));
    text.line(format_args!("  address   {mac}"));
    let used = general.used_ports;
    text.line(format_args!(
        "  ports     {used} used, {num_ports} at most; mode {:o}",
        general.mode
    ));
    let (stations, capacity, expiry) = (general.stations, general.capacity, general.expiry);
    text.line(format_args!(
        "  stations  {stations}, {capacity} at most; forgotten after {expiry} s"
    ));
    text.line(format_args!("  VLANs     {}", general.vlans));
    if !general.panel.is_empty() {
        text.line(format_args!("  panel     {}", general.panel));
    }
    text.line(format_args!("  storm     {}", limit(general.storm)));
    match general.stp {
        true => text.line(format_args!(
            "  stp       on, priority {}, {}",
            general.priority,
            times(general.times)
        )),
        false => text.line("  stp       off"),
    }
}

fn times(times: StpTimes) -> String {
    let StpTimes {
        hello,
        max_age,
        forward_delay,
    } = times;
    format!("hello {hello} s, max age {max_age} s, forward delay {forward_delay} s")
}

fn limit(limit: StormLimit) -> String {
    match limit {
        StormLimit::Off => "off".into(),
        StormLimit::Frames(frames) => format!("{frames} flooded frames a second"),
    }
}

fn print_ports(text: &mut Text, ports: &[PortReport]) {
    let mut rows = vec![
        [
            "PORT", "UNTAGGED", "TAGGED", "IN", "OUT", "SETTINGS", "CLIENT",
        ]
        .map(str::to_owned),
    ];
    for port in ports {
        let traffic = |frames: u64, bytes: u64| match port.way {
            Way::Filter => "panel, filter".to_owned(),
            Way::Bridge => "panel".to_owned(),
            Way::UserSpace => format!("{frames} ({bytes} B)"),
        };
        rows.push([
            port.number.to_string(),
            port.untagged.map_or("none".into(), |vlan| vlan.to_string()),
            list(&port.tagged),
            traffic(port.traffic.in_frames, port.traffic.in_bytes),
            traffic(port.traffic.out_frames, port.traffic.out_bytes),
            settings(port),
            port.client.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    table(text, &rows);
}

/// What is set of a port that is not usual, and what it has lost.
fn settings(port: &PortReport) -> String {
    let mut words = Vec::new();
    let mut set = |name: &str, value: Option<String>| {
        words.extend(value.map(|value| format!("{name} {value}")));
    };
    set("user", port.user.map(|id| name(true, id)));
    set("group", port.group.map(|id| name(false, id)));
    set("lock", port.lock.map(|mac| mac.to_string()));
    set("mirror", port.mirror.map(|to| to.to_string()));
    set(
        "storm",
        port.storm.map(|it| match it {
            StormLimit::Off => "off".into(),
            StormLimit::Frames(frames) => frames.to_string(),
        }),
    );
    set("allocatable", (!port.allocatable).then(|| "off".into()));
    set("edge", (!port.edge).then(|| "off".into()));
    set("auto-edge", (!port.auto_edge).then(|| "off".into()));
    set("guard", port.guard.then(|| "on".into()));
    let dropped: u64 = port.dropped.values().sum();
    set("lost", (dropped > 0).then(|| dropped.to_string()));
    match words.is_empty() {
        true => "-".into(),
        false => words.join(" "),
    }
}

fn print_vlans(text: &mut Text, vlans: &[VlanReport]) {
    let mut rows = vec![["VLAN", "OFFERED", "UNTAGGED", "TAGGED", "IN", "OUT"].map(str::to_owned)];
    for vlan in vlans {
        rows.push([
            match vlan.vlan {
                0 => "none".into(),
                number => number.to_string(),
            },
            if vlan.is_offered { "yes" } else { "no" }.into(),
            list(&vlan.untagged),
            list(&vlan.tagged),
            vlan.traffic.in_frames.to_string(),
            vlan.traffic.out_frames.to_string(),
        ]);
    }
    table(text, &rows);
}

fn print_stations(text: &mut Text, stations: &[StationReport]) {
    let mut rows = vec![["VLAN", "ADDRESS", "PORT", "AGE"].map(str::to_owned)];
    for station in stations {
        rows.push([
            station.vlan.to_string(),
            station.mac.to_string(),
            station.port.map_or("panel".into(), |port| port.to_string()),
            station
                .age
                .map_or("static".into(), |age| format!("{age} s")),
        ]);
    }
    table(text, &rows);
}

fn print_tree(text: &mut Text, tree: &StpReport) {
    let state = if tree.enabled { "on" } else { "off" };
    text.line(format_args!("spanning tree {state}"));
    let bridge = |(priority, mac)| format!("priority {priority}, {mac}");
    text.line(format_args!("  bridge    {}", bridge(tree.bridge)));
    text.line(format_args!("  root      {}", bridge(tree.root)));
    match tree.root_port {
        None => text.line("  root port none: this is the root"),
        Some(port) => text.line(format_args!("  root port {port}, cost {}", tree.root_cost)),
    }
    text.line(format_args!("  times     {}", times(tree.times)));
    let (changes, since) = (tree.changes, tree.since);
    text.line(format_args!(
        "  changes   {changes}, the last {since} s ago"
    ));
    let mut rows = vec![["PORT", "ROLE", "STATE", "COST", "PRIORITY", "EDGE"].map(str::to_owned)];
    for port in &tree.ports {
        rows.push([
            port.port.to_string(),
            format!("{:?}", port.role).to_lowercase(),
            match port.guarded {
                true => "guarded".into(),
                false => format!("{:?}", port.state).to_lowercase(),
            },
            port.cost.to_string(),
            port.priority.to_string(),
            if port.edge { "yes" } else { "no" }.into(),
        ]);
    }
    table(text, &rows);
}

fn list(numbers: &[impl ToString]) -> String {
    match numbers {
        [] => "-".into(),
        numbers => {
            let numbers = numbers.iter().map(ToString::to_string);
            numbers.collect::<Vec<_>>().join(",")
        }
    }
}

/// Rows with their columns below each other.
fn table<const N: usize>(text: &mut Text, rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        text.line(cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
