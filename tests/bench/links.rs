//! The group `links`: two namespaces and what is between them.
//!
//! Theory of operation. Each round wires each contender anew, and runs all probes in turn from its
//! second end. A probe that fails does not keep the next from running, unless a process of the link
//! has ended.

use crate::bench::{Bench, Plan, Values};
use crate::lab::{Lab, Maker};
use crate::network::{Contender, Medium, Network};
use crate::results::{Better, Group, Measure, Row};
use crate::traffic::{Offer, TcpRun, rtt, rtt_of_processes, rtt_under_load, udp};

/// The group's name.
pub(crate) const ID: &str = "links";
/// The contender that the others are compared with.
pub(crate) const REFERENCE: &str = "veth";

const CONTENDERS: &[Contender] = &[
    Contender::ours(REFERENCE, "veth pair, no vdens", Medium::Veth),
    Contender::ours("ours-ptp", "ours, ptp://", Medium::Ptp).versus("debian-ptp"),
    Contender::ours("ours-ptp-big", "ours, ptp://, --big-tcp", Medium::Ptp)
        .with_big_tcp()
        .versus("debian-ptp"),
    Contender::ours("ours-ptp-no-panel", "ours, ptp://, --no-panel", Medium::Ptp)
        .without_panel()
        .versus("debian-ptp"),
    Contender::ours("ours-ptp-2-users", "ours, ptp://, two users", Medium::Ptp)
        .of_two_users()
        .versus("debian-ptp"),
    Contender::ours(
        "ours-switch",
        "ours on our switch://",
        Medium::Plug(Maker::Ours),
    )
    .versus("debian-vde-switch"),
    Contender::ours(
        "ours-switch-no-panel",
        "ours on our switch://, --no-panel",
        Medium::Plug(Maker::Ours),
    )
    .without_panel()
    .versus("debian-vde-switch"),
    Contender::ours(
        "ours-switch-2-users",
        "ours on our switch://, two users",
        Medium::Plug(Maker::Ours),
    )
    .of_two_users()
    .versus("debian-vde-switch"),
    Contender::ours("ours-tap", "ours on tap://", Medium::Tap).versus("debian-tap"),
    Contender::ours("ours-udp", "ours, udp://", Medium::Udp).versus("debian-udp"),
    Contender::ours("ours-vxlan", "ours, vxlan://", Medium::Vxlan).versus("debian-vxlan"),
    Contender::ours(
        "ours-vde-switch",
        "ours on Debian's vde_switch",
        Medium::VdeSwitch,
    )
    .versus("debian-vde-switch"),
    Contender::mixed("mixed-ptp", "ours with Debian's, ptp://", Medium::Ptp).versus("debian-ptp"),
    Contender::debian("debian-ptp", "Debian's, ptp://", Medium::Ptp),
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
    Contender::debian("debian-tap", "Debian's on tap://", Medium::Tap),
    Contender::debian("debian-udp", "Debian's, udp://", Medium::Udp),
    Contender::debian("debian-vxlan", "Debian's, vxlan://", Medium::Vxlan),
];

/// What is run on a link; the measures of each start with its name.
const PROBES: &[(&str, Run)] = &[
    ("tcp1", |at| tcp(at, 1)),
    ("tcp4", |at| tcp(at, 4)),
    ("udp-overload", |at| {
        received(at, "udp-overload", Offer::Overload)
    }),
    ("udp-1-sender", |at| {
        received(at, "udp-1-sender", Offer::OneSender)
    }),
    ("udp-20k", |at| paced(at, "udp-20k", 20_000)),
    ("udp-100k", |at| paced(at, "udp-100k", 100_000)),
    ("rtt-idle", |at| {
        let nodes = &at.net.nodes;
        let found = rtt(at.lab, &nodes[1], &nodes[0], at.plan.millis(), 0)?;
        Ok(percentiles("rtt-idle", found))
    }),
    ("rtt-load", |at| {
        let nodes = &at.net.nodes;
        let found = rtt_under_load(at.lab, &nodes[1], &nodes[0], at.plan.seconds)?;
        Ok(percentiles("rtt-load", found))
    }),
    ("rtt-processes", |at| {
        let nodes = &at.net.nodes;
        let found = rtt_of_processes(at.lab, &nodes[1], &nodes[0], at.plan.millis() / 2)?;
        Ok(percentiles("rtt-processes", found))
    }),
];

/// Probes left out of a quick run.
const NOT_QUICK: &[&str] = &["tcp4", "udp-1-sender", "udp-100k", "rtt-processes"];

type Run = fn(&At<'_>) -> crate::Result<Values>;

/// Where a probe runs.
struct At<'a> {
    lab: &'a Lab,
    plan: &'a Plan,
    net: &'a Network<'a>,
}

/// TCP in both directions.
fn tcp(at: &At<'_>, streams: u32) -> crate::Result<Values> {
    let (nodes, seconds) = (&at.net.nodes, at.plan.seconds);
    let mut values = Values::new();
    let (mut retransmits, mut effort) = (0.0, 0.0);
    for (direction, reverse) in [("to", false), ("from", true)] {
        let run = TcpRun::start(at.lab, &nodes[1], &nodes[0], streams, seconds, reverse)?;
        let found = run.finish()?;
        values.push((format!("tcp{streams}-{direction}"), found.rate));
        // Of both directions the worse one, for 10 s.
        retransmits = found.retransmits.max(retransmits);
        effort += found.effort / 2.0;
    }
    values.push((format!("tcp{streams}-retransmits"), retransmits * 10.0));
    values.push((format!("tcp{streams}-effort"), effort));
    Ok(values)
}

fn percentiles(key: &str, (p50, p99): (f64, f64)) -> Values {
    vec![(format!("{key}-p50"), p50), (format!("{key}-p99"), p99)]
}

fn received(at: &At<'_>, key: &str, offer: Offer) -> crate::Result<Values> {
    let nodes = &at.net.nodes;
    let found = udp(at.lab, &nodes[1], &nodes[0], offer, at.plan.millis())?;
    Ok(vec![(key.to_owned(), found.rate)])
}

fn paced(at: &At<'_>, key: &str, rate: u64) -> crate::Result<Values> {
    let nodes = &at.net.nodes;
    let found = udp(
        at.lab,
        &nodes[1],
        &nodes[0],
        Offer::Paced(rate),
        at.plan.millis(),
    )?;
    Ok(vec![
        (format!("{key}-loss"), found.loss),
        (format!("{key}-offered"), found.offered),
    ])
}

/// The group's rows and measures.
pub(crate) fn group(lab: &Lab) -> Group {
    let row = |contender: &Contender| Row {
        id: contender.id,
        title: contender.title.to_owned(),
        rival: contender.rival,
        missing: contender.missing(lab),
    };
    let mut measures = Vec::new();
    for streams in [1, 4] {
        let of = match streams {
            1 => "TCP, 1 stream".to_owned(),
            _ => format!("TCP, {streams} streams"),
        };
        let mut add = |key: &str, title: &str, unit, better| {
            let key = format!("tcp{streams}-{key}");
            measures.push(Measure::new(key, format!("{of}, {title}"), unit, better));
        };
        add("to", "towards the first end", "Gbit/s", Better::More);
        add("from", "from the first end", "Gbit/s", Better::More);
        add("retransmits", "retransmits", "in 10 s", Better::Less);
        add("effort", "processor time", "s/GiB", Better::Less);
    }
    for (key, title) in [
        ("udp-overload", "received under overload"),
        ("udp-1-sender", "received from one sender at full speed"),
    ] {
        let title = format!("UDP, 64 bytes, {title}");
        measures.push(Measure::new(key, title, "kpps", Better::More));
    }
    for rate in ["20k", "100k"] {
        let offered = format!("UDP, 64 bytes, {rate}pps offered");
        measures.push(
            Measure::new(
                format!("udp-{rate}-loss"),
                format!("{offered}: lost"),
                "%",
                Better::Less,
            )
            .absolute(),
        );
        measures.push(
            Measure::new(
                format!("udp-{rate}-offered"),
                format!("{offered}: really offered"),
                "kpps",
                Better::More,
            )
            .absolute(),
        );
    }
    for (key, title) in [
        ("idle", "Round trip, idle"),
        ("load", "Round trip, beside a TCP stream"),
        ("processes", "Round trip between two processes, idle"),
    ] {
        for (rank, name) in [("p50", "median"), ("p99", "99th percentile")] {
            measures.push(Measure::new(
                format!("rtt-{key}-{rank}"),
                format!("{title}, {name}"),
                "µs",
                Better::Less,
            ));
        }
    }
    for measure in &mut measures {
        measure.ratios &= !measure.key.ends_with("retransmits");
    }
    Group {
        id: ID,
        title: "Links between two namespaces",
        reference: Some((REFERENCE, "veth")),
        rivals: "Debian's",
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
    let Some(contender) = CONTENDERS.iter().find(|contender| contender.id == row) else {
        return;
    };
    let lab = bench.lab;
    let Some(net) = bench.set_up(ID, row, || contender.wire(lab, 2)) else {
        return;
    };
    for (name, run) in PROBES {
        if probes.iter().any(|probe| probe == name) {
            let at = At {
                lab,
                plan: bench.plan,
                net: &net,
            };
            bench.measure(ID, row, name, || run(&at));
            if bench.set_up(ID, row, || net.check()).is_none() {
                return;
            }
        }
    }
}
