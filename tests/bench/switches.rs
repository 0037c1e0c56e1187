//! The group `switches`: many namespaces on one switch.
//!
//! Theory of operation. Each contender is wired with 2, 8, 32 and 128 ports. On each, one pair
//! carries TCP while the others are idle, then up to [`PAIRS`] pairs at once, then the first node
//! floods the broadcast address. The kernel's interface counters of the others count what arrived.
//! Beside the contender with most ports there is the same one with 2, and their pairs take turns,
//! because the machine's pace changes from minute to minute.
//!
//! For the table of addresses three ports suffice. The first sends from many addresses, so that the
//! switch learns them, and the second sends to these in random order. What arrives at the third
//! went astray: the switch did not know, or forgot, where the address is.

use std::fs;
use std::time::Duration;

use crate::Result;
use crate::bench::{Bench, Plan, Values};
use crate::lab::{Lab, Maker, Node, PATIENCE};
use crate::network::{Contender, Medium, Network};
use crate::process::pause;
use crate::results::{Better, Group, Measure, Row};
use crate::traffic::{TcpRun, json, number};

/// The group's name.
pub(crate) const ID: &str = "switches";
/// The contender that the others are compared with.
pub(crate) const REFERENCE: &str = "bridge";
/// How many pairs talk at once, at most.
const PAIRS: usize = 4;
/// How fast addresses are made known, a second: slow enough for all.
const LEARNING: u64 = 20_000;

const CONTENDERS: &[Contender] = &[
    Contender::ours(REFERENCE, "Linux bridge, no vdens", Medium::Bridge),
    Contender::ours("ours", "ours on our switch://", Medium::Plug(Maker::Ours))
        .unlimited()
        .versus("debian-vde-switch"),
    Contender::ours(
        "ours-no-panel",
        "ours on our switch://, --no-panel",
        Medium::Plug(Maker::Ours),
    )
    .without_panel()
    .unlimited()
    .versus("debian-vde-switch"),
    Contender::ours("ours-vlan", "ours in a VLAN of our switch://", Medium::Vlan).unlimited(),
    Contender::ours(
        "ours-vlan-no-panel",
        "ours in a VLAN of our switch://, --no-panel",
        Medium::Vlan,
    )
    .without_panel()
    .unlimited(),
    Contender::ours(
        "ours-stp",
        "ours on our switch:// with a spanning tree",
        Medium::Tree,
    )
    .unlimited(),
    Contender::debian(
        "debian-on-ours",
        "Debian's on our switch://",
        Medium::Plug(Maker::Ours),
    )
    .unlimited()
    .versus("debian-vde-switch"),
    Contender::debian(
        "debian-vde-switch",
        "Debian's on vde_switch",
        Medium::VdeSwitch,
    ),
    Contender::debian(
        "debian-switch",
        "Debian's on its switch://",
        Medium::Plug(Maker::Debian),
    ),
];

fn ports(plan: &Plan) -> &'static [usize] {
    if plan.quick {
        &[2, 32]
    } else {
        &[2, 8, 32, 128]
    }
}

fn addresses(plan: &Plan) -> &'static [u32] {
    if plan.quick {
        &[1, 1000]
    } else {
        &[1, 1000, 100_000]
    }
}

/// The measure that compares most ports with 2.
pub(crate) fn many(count: usize) -> String {
    format!("pair-{count}-to-2")
}

/// The group's rows and measures.
pub(crate) fn group(lab: &Lab, plan: &Plan) -> Group {
    let row = |contender: &Contender| Row {
        id: contender.id,
        title: contender.title.to_owned(),
        rival: contender.rival,
        missing: contender.missing(lab),
    };
    let mut measures = Vec::new();
    let mut add = |key, title, unit, better| measures.push(Measure::new(key, title, unit, better));
    for &count in ports(plan) {
        let (pairs, more) = ((count / 2).min(PAIRS), Better::More);
        add(
            format!("pair-{count}"),
            format!("TCP, 1 pair, {count} ports"),
            "Gbit/s",
            more,
        );
        if Some(&count) == ports(plan).last() {
            let (key, title) = (
                many(count),
                format!("TCP, 1 pair, {count} ports to 2 ports"),
            );
            add(key, title, "ratio", more);
        }
        if pairs > 1 {
            let title = format!("TCP, {pairs} pairs at once, {count} ports");
            add(format!("pairs-{count}"), title, "Gbit/s", more);
        }
        add(
            format!("broadcast-{count}"),
            format!("Broadcast, {count} ports, delivered to all together"),
            "kpps",
            more,
        );
    }
    for &count in addresses(plan) {
        add(
            format!("fdb-{count}"),
            format!("Frames to {count} addresses behind one port, delivered"),
            "kpps",
            Better::More,
        );
        add(
            format!("fdb-{count}-astray"),
            format!("Frames to {count} addresses behind one port, also sent elsewhere"),
            "%",
            Better::Less,
        );
    }
    for measure in &mut measures {
        measure.ratios &= !(measure.key.ends_with("astray") || measure.key.ends_with("to-2"));
    }
    Group {
        id: ID,
        title: "Switches with many ports",
        reference: Some((REFERENCE, "bridge")),
        rivals: "Debian's",
        rows: CONTENDERS.iter().map(row).collect(),
        measures,
    }
}

/// The names of what is run.
pub(crate) fn probes(plan: &Plan) -> Vec<String> {
    let ports = ports(plan).iter().map(|count| format!("ports-{count}"));
    let tables = addresses(plan).iter().map(|count| format!("fdb-{count}"));
    ports.chain(tables).collect()
}

/// Measures a contender.
pub(crate) fn visit(bench: &mut Bench<'_>, row: &str, probes: &[String]) {
    let Some(contender) = CONTENDERS.iter().find(|contender| contender.id == row) else {
        return;
    };
    let (lab, plan) = (bench.lab, bench.plan);
    for &count in ports(plan) {
        let probe = format!("ports-{count}");
        if probes.contains(&probe) {
            let label = format!("{row} with {count} ports");
            let Some(net) = bench.set_up(ID, &label, || settled(contender, lab, count)) else {
                continue;
            };
            if Some(&count) == ports(plan).last() {
                bench.measure(ID, row, &probe, || {
                    let few = settled(contender, lab, 2)?;
                    pair_beside(lab, plan, &net, &few)
                });
            } else {
                bench.measure(ID, row, &probe, || pair(lab, plan, &net));
            }
            for run in [pairs, broadcast] {
                bench.measure(ID, row, &probe, || run(lab, plan, &net));
            }
        }
    }
    for &count in addresses(plan) {
        let probe = format!("fdb-{count}");
        if probes.contains(&probe)
            && let Some(net) = bench.set_up(ID, row, || settled(contender, lab, 3))
        {
            bench.measure(ID, row, &probe, || table(lab, plan, &net, count));
        }
    }
}

/// A network that has had the time to send what hosts send when an interface comes up.
pub(crate) fn settled<'lab>(
    contender: &Contender,
    lab: &'lab Lab,
    count: usize,
) -> Result<Network<'lab>> {
    let net = contender.wire(lab, count)?;
    pause(Duration::from_millis(if count > 8 { 2000 } else { 200 }))?;
    Ok(net)
}

fn pair(lab: &Lab, plan: &Plan, net: &Network<'_>) -> Result<Values> {
    let rate = throughput(lab, plan, net, 1)?;
    Ok(vec![(format!("pair-{}", net.nodes.len()), rate)])
}

/// A pair among many and a pair alone, in an order that makes up for a machine that gets steadily
/// slower or faster.
fn pair_beside(lab: &Lab, plan: &Plan, net: &Network<'_>, few: &Network<'_>) -> Result<Values> {
    let rate = |net| throughput(lab, plan, net, 1);
    let [alone, among, again, last] = [rate(few)?, rate(net)?, rate(net)?, rate(few)?];
    let count = net.nodes.len();
    Ok(vec![
        (format!("pair-{count}"), f64::midpoint(among, again)),
        (many(count), (among + again) / (alone + last)),
    ])
}

fn pairs(lab: &Lab, plan: &Plan, net: &Network<'_>) -> Result<Values> {
    let count = net.nodes.len();
    if count < 4 {
        return Ok(Values::new());
    }
    let rate = throughput(lab, plan, net, (count / 2).min(PAIRS))?;
    Ok(vec![(format!("pairs-{count}"), rate)])
}

/// The sum of what some pairs get at once.
fn throughput(lab: &Lab, plan: &Plan, net: &Network<'_>, pairs: usize) -> Result<f64> {
    let runs: Vec<TcpRun<'_>> = net
        .nodes
        .chunks_exact(2)
        .take(pairs)
        .map(|pair| TcpRun::start(lab, &pair[1], &pair[0], 1, plan.seconds, false))
        .collect::<Result<_>>()?;
    let mut sum = 0.0;
    for run in runs {
        sum += run.finish()?.rate;
    }
    Ok(sum)
}

fn broadcast(lab: &Lab, plan: &Plan, net: &Network<'_>) -> Result<Values> {
    let (sender, others) = net.nodes.split_first().ok_or("no namespaces")?;
    let before = received(others, Counter::Frames)?;
    // The discard port (RFC 863). No server is needed.
    let words = format!("flood 10.77.255.255:9 {} 0", plan.millis());
    let limit = Duration::from_millis(plan.millis()) + PATIENCE;
    let sent = json(&lab.tool_inside(sender, &words).output(limit)?)?;
    pause(Duration::from_millis(300))?;
    let delivered =
        (received(others, Counter::Frames)? - before) / number(&sent, "seconds")? / 1000.0;
    Ok(vec![(format!("broadcast-{}", net.nodes.len()), delivered)])
}

fn table(lab: &Lab, plan: &Plan, net: &Network<'_>, count: u32) -> Result<Values> {
    let [owner, sender, bystander] = &net.nodes[..] else {
        return Err("not three namespaces".into());
    };
    let limit = Duration::from_millis(plan.millis()) + PATIENCE * 2;
    let learn = format!("learn {} {count} {LEARNING}", owner.interface);
    lab.tool_inside(owner, &learn).output(limit)?;
    pause(Duration::from_millis(300))?;
    let before = [
        received([owner], Counter::Frames)?,
        received([bystander], Counter::Frames)?,
    ];
    let spray = format!("spray {} {count} {}", sender.interface, plan.millis());
    let sent = json(&lab.tool_inside(sender, &spray).output(limit)?)?;
    pause(Duration::from_millis(300))?;
    let arrived = received([owner], Counter::Frames)? - before[0];
    let astray = received([bystander], Counter::Frames)? - before[1];
    let rate = arrived / number(&sent, "seconds")? / 1000.0;
    Ok(vec![
        (format!("fdb-{count}"), rate),
        (
            format!("fdb-{count}-astray"),
            100.0 * astray / arrived.max(1.0),
        ),
    ])
}

/// A counter of received traffic, by its place in `/proc/net/dev`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counter {
    Bytes,
    Frames,
}

/// What the interfaces of some nodes have received.
pub(crate) fn received<'a>(
    nodes: impl IntoIterator<Item = &'a Node>,
    counter: Counter,
) -> Result<f64> {
    let mut sum = 0.0;
    for node in nodes {
        let table = fs::read_to_string(format!("/proc/{}/net/dev", node.pid))?;
        let found = table.lines().find_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let mine = name.trim() == node.interface;
            let count = counters.split_whitespace().nth(counter as usize)?;
            mine.then(|| count.parse::<f64>().ok())?
        });
        sum += found.ok_or("no counters of the interface")?;
    }
    Ok(sum)
}
