//! What the switch answers, in the form that scripts know. No I/O.
//!
//! Each function returns whole lines. A name or a description that the switch passes on is escaped,
//! so that it can neither add a line nor end the data.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::path::Path;

use vdens_switch_control::{
    General, Kind, Mac, PortReport, StationReport, StormLimit, StpPort, StpReport, StpRole,
    StpState, Traffic, VlanReport,
};

use super::command::TABLE;
use crate::output::Line;

/// Lines of text.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn line(&mut self, line: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{}", Line(line));
    }
}

/// The commands whose path starts so.
pub(crate) fn help(path: &str) -> String {
    let mut lines = Lines::default();
    lines.line("COMMAND PATH       SYNTAX          HELP");
    lines.line("------------       --------------  ------------");
    for entry in TABLE.iter().filter(|entry| entry.path.starts_with(path)) {
        lines.line(format_args!(
            "{:<18} {:<15} {}",
            entry.path, entry.syntax, entry.help
        ));
    }
    lines.0
}

/// What greets a session: as many lines as scripts skip.
pub(crate) fn banner() -> String {
    format!(
        "vdens switch V.{}\n(no VDE: a program of vdens with the same console)\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// What the switch is.
pub(crate) fn info(general: &General, management: Option<(&Path, u32)>) -> String {
    let mut lines = Lines(format!("{}\n", banner()));
    lines.line(format_args!(
        "pid {} MAC {} uptime {}",
        std::process::id(),
        general.mac,
        general.uptime
    ));
    if let Some((path, mode)) = management {
        lines.line(format_args!("mgmt {} perm {mode:04o}", path.display()));
    }
    lines.0
}

/// Where its sockets are.
pub(crate) fn sockets(general: &General) -> String {
    let mut lines = Lines::default();
    lines.line(format_args!("ctl dir {}", general.directory));
    lines.line(format_args!("std mode {:04o}", general.mode));
    lines.0
}

/// How stations are remembered.
pub(crate) fn station_info(general: &General) -> String {
    let mut lines = Lines::default();
    lines.line(format_args!("Hash size {}", general.capacity));
    lines.line("GC interval 0 secs");
    lines.line(format_args!("GC expire {} secs", general.expiry));
    lines.line("Min persistence 0 secs");
    lines.0
}

/// Stations.
pub(crate) fn stations(stations: &[StationReport]) -> String {
    let mut lines = Lines::default();
    for station in stations {
        let StationReport { vlan, mac, .. } = station;
        let port = station.port.map(|port| format!("{port:03}"));
        let age = station.age.map(|age| format!("age {age} secs"));
        lines.line(format_args!(
            "Hash: 0000 Addr: {mac} VLAN {vlan:04} to port: {}  {}",
            port.as_deref().unwrap_or("panel"),
            age.as_deref().unwrap_or("static"),
        ));
    }
    lines.0
}

/// What holds for all ports.
pub(crate) fn port_info(general: &General) -> String {
    let mut lines = Lines::default();
    lines.line(format_args!("Numports={}", general.num_ports));
    lines.line(format_args!("HUB={}", general.kind == Kind::Hub));
    lines.line("counters=true");
    if let StormLimit::Frames(frames) = general.storm {
        lines.line(format_args!("storm={frames}"));
    }
    lines.0
}

/// Ports. `name` knows users (`true`) and groups by their ids.
pub(crate) fn ports(ports: &[PortReport], name: &dyn Fn(bool, u32) -> String) -> String {
    let mut lines = Lines::default();
    let or_none = |is_user, id: Option<u32>| id.map_or("NONE".into(), |id| name(is_user, id));
    for port in ports {
        let number = port.number;
        let (active, may) = (
            if port.client.is_some() {
                "ACTIVE"
            } else {
                "INACTIVE"
            },
            if port.allocatable { "" } else { "NOT " },
        );
        // The original's number for none.
        let vlan = port.untagged.unwrap_or(4095);
        lines.line(format_args!(
            "Port {number:04} untagged_vlan={vlan:04} {active} - {may}Unnamed Allocatable"
        ));
        lines.line(format_args!(
            " Current User: {} Access Control: (User: {} - Group: {})",
            or_none(true, port.uid),
            or_none(true, port.user),
            or_none(false, port.group),
        ));
        let extra = extra(port);
        if !extra.is_empty() {
            lines.line(format_args!(" {}", extra.join(" ")));
        }
        let Traffic {
            in_frames,
            in_bytes,
            out_frames,
            out_bytes,
        } = port.traffic;
        lines.line(format_args!(
            " IN:  pkts {in_frames:>10}          bytes {in_bytes:>20}"
        ));
        lines.line(format_args!(
            " OUT: pkts {out_frames:>10}          bytes {out_bytes:>20}"
        ));
        if let Some(client) = &port.client {
            lines.line(format_args!(
                "  -- endpoint ID {number:04} module unix prog   : {client}"
            ));
        }
    }
    lines.0
}

/// What is set of a port that the original does not know.
fn extra(port: &PortReport) -> Vec<String> {
    let storm = port.storm.map(|limit| match limit {
        StormLimit::Off => "Storm: OFF".to_owned(),
        StormLimit::Frames(frames) => format!("Storm: {frames}"),
    });
    let guard = port.guard.then(|| "Guard".to_owned());
    let lock = port.lock.map(|mac| format!("Lock: {mac}"));
    let mirror = port.mirror.map(|to| format!("Mirror: {to:04}"));
    [lock, mirror, storm, guard].into_iter().flatten().collect()
}

/// VLANs with those of their ports that `ports` has.
pub(crate) fn vlans(vlans: &[VlanReport], ports: &[PortReport], tree: &StpReport) -> String {
    let state = |port: &PortReport| (u8::from(port.client.is_some()), status(port, tree));
    let states: BTreeMap<u32, _> = ports
        .iter()
        .map(|port| (port.number, state(port)))
        .collect();
    let mut lines = Lines::default();
    for vlan in vlans {
        lines.line(format_args!("VLAN {:04}", vlan.vlan));
        // Frames leave untagged by a port that has the VLAN in both ways.
        let tagged = vlan.tagged.iter().map(|port| (*port, 1));
        let untagged = vlan.untagged.iter().map(|port| (*port, 0));
        let members: BTreeMap<u32, u8> = tagged.chain(untagged).collect();
        for (number, tagged) in members {
            if let Some((active, status)) = states.get(&number) {
                lines.line(format_args!(
                    " -- Port {number:04} tagged={tagged} active={active} status={status}"
                ));
            }
        }
    }
    lines.0
}

/// What a port lets pass. A port without a client is about to learn in the original.
fn status(port: &PortReport, tree: &StpReport) -> &'static str {
    if port.client.is_none() {
        return "Learning";
    }
    let mut ports = tree.ports.iter().filter(|_| tree.enabled);
    match ports.find(|it| it.port == port.number).map(|it| it.state) {
        Some(StpState::Discarding) => "Discarding",
        Some(StpState::Learning) => "Learning",
        Some(StpState::Forwarding) | None => "Forwarding",
    }
}

/// Whether there is a spanning tree.
pub(crate) fn tree_info(general: &General) -> String {
    let mut lines = Lines::default();
    let General { mac, priority, .. } = general;
    lines.line(format_args!(
        "MAC {mac} Priority {priority} (0x{priority:x})"
    ));
    lines.line(format_args!("FSTP={}", general.stp));
    lines.0
}

/// The spanning tree.
pub(crate) fn tree(tree: &StpReport) -> String {
    let mut lines = Lines::default();
    let root = match tree.root_port {
        None => "ROOTSWITCH ",
        Some(_) => "",
    };
    let disabled = if tree.enabled { "" } else { "FSTP IS DISABLED" };
    lines.line(format_args!("FST DATA VLAN 0000 {root}{disabled}"));
    lines.line(format_args!(" ++ root {}", bridge(tree.root)));
    lines.line(format_args!(" ++ designated {}", bridge(tree.bridge)));
    lines.line(format_args!(
        " ++ rootport {:04} cost {} age {} bonusport 0000 bonuscost 0",
        tree.root_port.unwrap_or(0),
        tree.root_cost,
        tree.since
    ));
    for port in &tree.ports {
        lines.line(format_args!(
            " -- Port {:04} tagged=0 portcost={} role={}",
            port.port,
            port.cost,
            role(port)
        ));
    }
    lines.0
}

fn role(port: &StpPort) -> &'static str {
    match port.role {
        StpRole::Root => "Root",
        StpRole::Designated if port.edge => "Edge",
        StpRole::Designated => "Designated",
        StpRole::Alternate | StpRole::Backup => "Alternate/Backup",
        StpRole::Disabled if port.guarded => "Guarded",
        StpRole::Disabled => "Unknown",
    }
}

/// A bridge as its identifier: two bytes of priority and the address.
fn bridge((priority, mac): (u16, Mac)) -> String {
    let [high, low] = priority.to_be_bytes();
    format!("{high:02x}:{low:02x}:{mac}")
}

/// The categories of events.
pub(crate) const CATEGORIES: [(&str, &str, &str); 11] = [
    ("hash/+", "011", "a station has come"),
    ("hash/-", "012", "a station has gone"),
    ("fstp/status", "044", "a port's state has changed"),
    ("fstp/root", "045", "the root has changed"),
    ("fstp/+", "041", "a port has joined the spanning tree"),
    ("fstp/-", "042", "a port has left the spanning tree"),
    ("port/+", "021", "a port has a client"),
    ("port/-", "022", "a client has left"),
    ("port/descr", "023", "a client has said what it is"),
    ("port/ep/+", "031", "a connection has been made"),
    ("port/ep/-", "032", "a connection has been closed"),
];

/// The categories of events whose path starts so, and which of them are on.
pub(crate) fn categories(start: &str, is_on: &dyn Fn(&str) -> bool) -> String {
    let mut lines = Lines::default();
    lines.line("CATEGORY               TAG STATUS HELP");
    lines.line("------------           --- ------ ----");
    for (path, tag, help) in CATEGORIES
        .iter()
        .filter(|(path, ..)| path.starts_with(start))
    {
        let status = if is_on(path) { "ON" } else { "OFF" };
        lines.line(format_args!("{path:<22} {tag} {status:<6} {help}"));
    }
    lines.0
}

/// An event.
pub(crate) fn event(category: &str, text: &str) -> String {
    let mut categories = CATEGORIES.iter().filter(|(path, ..)| *path == category);
    let tag = categories.next().map_or("000", |(_, tag, _)| tag);
    let mut lines = Lines::default();
    lines.line(format_args!("3{tag} {category} {text}"));
    lines.0
}

/// The plugins, of which there are none.
pub(crate) fn plugins() -> String {
    let mut lines = Lines::default();
    lines.line("NAME                   HELP");
    lines.line("------------           ----");
    lines.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_as_scripts_know_it() {
        let port = PortReport {
            number: 5,
            client: Some("x\n.\n1000 Success".into()),
            uid: Some(7),
            untagged: Some(10),
            allocatable: true,
            user: Some(0),
            ..PortReport::default()
        };
        let name = |is_user, id| format!("{}{id}", if is_user { "u" } else { "g" });
        assert_eq!(
            ports(std::slice::from_ref(&port), &name),
            "Port 0005 untagged_vlan=0010 ACTIVE - Unnamed Allocatable\n \
             Current User: u7 Access Control: (User: u0 - Group: NONE)\n \
             IN:  pkts          0          bytes                    0\n \
             OUT: pkts          0          bytes                    0\n  \
             -- endpoint ID 0005 module unix prog   : x\\n.\\n1000 Success\n"
        );
        let idle = PortReport {
            client: None,
            untagged: None,
            lock: Some(Mac([2, 0, 0, 0, 0, 1])),
            mirror: Some(3),
            storm: Some(StormLimit::Frames(9)),
            ..port
        };
        let text = ports(&[idle], &name);
        assert!(
            text.starts_with("Port 0005 untagged_vlan=4095 INACTIVE"),
            "{text}"
        );
        assert!(
            text.contains("\n Lock: 02:00:00:00:00:01 Mirror: 0003 Storm: 9\n"),
            "{text}"
        );
    }

    #[test]
    fn vlans_have_the_ports_that_are_asked_for() {
        let port = |number, client: bool| PortReport {
            number,
            client: client.then(String::new),
            ..PortReport::default()
        };
        let vlan = VlanReport {
            vlan: 5,
            untagged: vec![2, 7],
            tagged: vec![1, 2],
            ..VlanReport::default()
        };
        let ports = [port(1, true), port(2, true), port(7, false)];
        let blocked = StpPort {
            port: 1,
            role: StpRole::Alternate,
            state: StpState::Discarding,
            cost: 1,
            edge: false,
            guarded: false,
            priority: 128,
        };
        let tree = StpReport {
            enabled: true,
            ports: vec![blocked],
            ..StpReport::default()
        };
        let text = " -- Port 0001 tagged=1 active=1 status=Discarding\n \
             -- Port 0002 tagged=0 active=1 status=Forwarding\n";
        assert_eq!(
            vlans(std::slice::from_ref(&vlan), &ports[..2], &tree),
            format!("VLAN 0005\n{text}")
        );
        let idle = " -- Port 0007 tagged=0 active=0 status=Learning\n";
        assert_eq!(
            vlans(&[vlan], &ports, &tree),
            format!("VLAN 0005\n{text}{idle}")
        );
    }

    #[test]
    fn help_has_the_commands_of_a_path() {
        let text = help("port/create");
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "port/createauto                    make a port of any number",
                "port/create        N               make a port that clients must ask for",
            ]
        );
        assert!(
            help("").lines().all(|line| line.len() <= 80),
            "{}",
            help("")
        );
    }

    #[test]
    fn events_and_trees() {
        assert_eq!(event("port/+", "port 1: x\n"), "3021 port/+ port 1: x\\n\n");
        let mac = Mac([0, 0xff, 1, 2, 3, 4]);
        let root = StpReport {
            bridge: (32768, mac),
            root: (4096, mac),
            ..StpReport::default()
        };
        assert_eq!(
            tree(&root).lines().collect::<Vec<_>>(),
            [
                "FST DATA VLAN 0000 ROOTSWITCH FSTP IS DISABLED",
                " ++ root 10:00:00:ff:01:02:03:04",
                " ++ designated 80:00:00:ff:01:02:03:04",
                " ++ rootport 0000 cost 0 age 0 bonusport 0000 bonuscost 0",
            ]
        );
    }
}
