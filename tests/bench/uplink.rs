//! The group `uplink`: ways to the Internet for a namespace.
//!
//! Theory of operation. Each round opens each [`Way`] anew and runs all probes in turn from its
//! (first) client. "Out" is from the client to the server, "in" the way back. Both ends, what is
//! between them and the tools share the machine, with every contender alike.

use crate::bench::{Bench, Plan, Values};
use crate::internet::{Uplink, Way};
use crate::lab::Lab;
use crate::results::{Better, Group, Measure, Row};
use crate::traffic::TcpRun;

/// The group's name.
pub(crate) const ID: &str = "uplink";
/// The contender that the others are compared with.
pub(crate) const REFERENCE: &str = "kernel";

/// Names, titles and ways.
const CONTENDERS: &[(&str, &str, Way)] = &[
    (REFERENCE, "kernel NAT by root", Way::Kernel),
    ("ours", "ours, nat://", Way::Nat { panel: true }),
    (
        "ours-no-panel",
        "ours, nat://, --no-panel",
        Way::Nat { panel: false },
    ),
    (
        "ours-switch",
        "ours, on our switch with nat://",
        Way::Switch,
    ),
    ("pasta", "pasta", Way::Pasta),
    ("slirp4netns", "slirp4netns", Way::Slirp4netns),
    ("slirp", "ours, libvdeplug's slirp://", Way::Slirp),
];

/// What is run; the measures of each start with its name.
const PROBES: &[(&str, Run)] = &[("tcp1", |at| tcp(at, 1)), ("tcp4", |at| tcp(at, 4))];

/// Probes left out of a quick run.
const NOT_QUICK: &[&str] = &["tcp4"];

type Run = fn(&At<'_>) -> crate::Result<Values>;

/// Where a probe runs.
struct At<'a> {
    lab: &'a Lab,
    plan: &'a Plan,
    uplink: &'a Uplink<'a>,
}

fn tcp(at: &At<'_>, streams: u32) -> crate::Result<Values> {
    let (client, server) = (&at.uplink.clients[0], &at.uplink.server);
    let mut values = Values::new();
    let mut effort = 0.0;
    for (direction, reverse) in [("out", false), ("in", true)] {
        let run = TcpRun::start(at.lab, client, server, streams, at.plan.seconds, reverse)?;
        let found = run.finish()?;
        values.push((format!("tcp{streams}-{direction}"), found.rate));
        effort += found.effort / 2.0;
    }
    values.push((format!("tcp{streams}-effort"), effort));
    Ok(values)
}

/// The group's rows and measures.
pub(crate) fn group(lab: &Lab) -> Group {
    let row = |(id, title, way): &(&'static str, &str, Way)| Row {
        id,
        title: (*title).to_owned(),
        rival: id.starts_with("ours").then_some("pasta"),
        missing: way.missing(lab),
    };
    let mut measures = Vec::new();
    let mut add = |key, title, unit, better| measures.push(Measure::new(key, title, unit, better));
    for (streams, title) in [(1, "TCP, 1 stream"), (4, "TCP, 4 streams")] {
        for direction in ["out", "in"] {
            let key = format!("tcp{streams}-{direction}");
            add(key, format!("{title}, {direction}"), "Gbit/s", Better::More);
        }
        let (key, title) = (
            format!("tcp{streams}-effort"),
            format!("{title}, processor time"),
        );
        add(key, title, "s/GiB", Better::Less);
    }
    Group {
        id: ID,
        title: "Ways to the Internet",
        reference: Some((REFERENCE, "kernel")),
        rivals: "pasta",
        rows: CONTENDERS.iter().map(row).collect(),
        measures,
    }
}

/// The names of what is run.
pub(crate) fn probes(plan: &Plan) -> Vec<String> {
    let all = PROBES.iter().map(|(name, _)| *name);
    all.filter(|name| !plan.quick || !NOT_QUICK.contains(name))
        .map(str::to_owned)
        .collect()
}

/// Measures a contender.
pub(crate) fn visit(bench: &mut Bench<'_>, row: &str, probes: &[String]) {
    let Some((_, _, way)) = CONTENDERS.iter().find(|(id, _, _)| *id == row) else {
        return;
    };
    let lab = bench.lab;
    let Some(uplink) = bench.set_up(ID, row, || way.open(lab, 1)) else {
        return;
    };
    for (name, run) in PROBES {
        if probes.iter().any(|probe| probe == name) {
            let at = At {
                lab,
                plan: bench.plan,
                uplink: &uplink,
            };
            bench.measure(ID, row, name, || run(&at));
            if bench.set_up(ID, row, || uplink.check()).is_none() {
                return;
            }
        }
    }
}
