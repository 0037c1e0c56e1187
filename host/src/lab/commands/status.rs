//! `vdectl lab status`.

use super::find::{self, Found};
use crate::error::Result;
use crate::ipc::status::LabStatus;
use crate::ipc::status::lab::{LabState, LinkStatus, NodeStatus};
use crate::output::{Text, report};

/// Shows a lab, or all of them.
///
/// # Errors
/// There is no lab of that name, or the runtime directory cannot be read.
pub fn show(name: Option<&str>, json: bool, program: &str) -> Result<()> {
    let labs = match name {
        Some(_) => vec![find::the_lab(name)?],
        None => find::labs()?,
    };
    if json {
        let labs: Vec<&LabStatus> = labs.iter().map(|found| &found.lab).collect();
        return Text::json(&labs)?.print();
    }
    if labs.is_empty() {
        report(program, "no lab is running");
    }
    let mut text = Text::default();
    for (number, found) in labs.iter().enumerate() {
        if number > 0 {
            text.gap();
        }
        describe(found, &mut text);
    }
    text.print()
}

fn describe(Found { pid, lab }: &Found, text: &mut Text) {
    let state = match lab.state {
        LabState::Starting => "starting",
        LabState::Running => "running",
        LabState::Changing => "changing",
    };
    text.line(format_args!(
        "lab {}, {state}, process {pid}, {}",
        lab.name, lab.file
    ));
    lab.nodes.iter().for_each(|node| describe_node(node, text));
    for switch in &lab.switches {
        text.line(format_args!("  switch {switch}"));
    }
    lab.links.iter().for_each(|link| describe_link(link, text));
}

fn describe_node(node: &NodeStatus, text: &mut Text) {
    let working = node.working.as_ref().map(|task| format!(", now: {task}"));
    text.line(format_args!(
        "  node {}, process {}{}",
        node.name,
        node.pid,
        working.unwrap_or_default()
    ));
    for interface in &node.interfaces {
        let addresses = interface
            .addresses
            .iter()
            .map(|address| format!(" {address}"));
        let carrier = if interface.carrier {
            ""
        } else {
            ", NO-CARRIER"
        };
        text.line(format_args!(
            "    {}{}{carrier}",
            interface.name,
            addresses.collect::<String>()
        ));
    }
    for service in &node.services {
        match service.ended {
            None => text.line(format_args!("    service {}", service.command)),
            Some(status) => text.line(format_args!(
                "    service {}: ended with status {status}: {}",
                service.command,
                service
                    .output
                    .lines()
                    .last()
                    .unwrap_or("it printed nothing")
            )),
        }
    }
}

fn describe_link(link: &LinkStatus, text: &mut Text) {
    let [a, b] = &link.ends;
    let impairments = link.impairments.as_ref().map(|keys| format!(", {keys}"));
    let carrier = match (link.is_down, link.carrier) {
        (true, _) => ", down",
        (false, true) => "",
        (false, false) => ", NO-CARRIER",
    };
    let worker = link.worker.map(|pid| format!(", process {pid}"));
    text.line(format_args!(
        "  link {a} – {b}{}{carrier}{}",
        impairments.unwrap_or_default(),
        worker.unwrap_or_default()
    ));
}
