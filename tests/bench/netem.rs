//! The group `netem`: how exactly `netem://` does what it is told.
//!
//! Theory of operation. A `vde_plug` between two cables delays what the benchmark's own tool sends
//! into the one and receives from the other. It has a processor of the machine, and the tool
//! another. The time of a frame is taken where it goes into the plug's socket and where it comes
//! out of it, so this is `netem://` and no more.
//!
//! What users have is more: two namespaces share a cable, and what the first sends goes through
//! `netem://`. There the time is taken from the sender's call to the receiver's kernel. So the
//! whole path counts, and what this is without a delay is measured beside.
//!
//! The rate is that of the Ethernet frames, so what arrives of TCP is scaled by the headers, which
//! a full segment has 66 bytes of.

use std::path::Path;
use std::time::Duration;

use crate::Result;
use crate::bench::{Bench, Values};
use crate::lab::{Lab, Maker, PATIENCE, Who};
use crate::network::{Contender, Medium, Network, wait_for_port};
use crate::process::{Proc, wait_for};
use crate::results::{Better, Group, Measure, Row};
use crate::traffic::{Offer, TcpRun, json, number, udp};

/// The group's name.
pub(crate) const ID: &str = "netem";

/// The measure of delays.
pub(crate) const DELAY: &str = "delay";

/// What is measured: keys, titles, units, and what is good enough.
pub(crate) const MEASURES: &[(&str, &str, &str, f64)] = &[
    (
        DELAY,
        "100 kpps, delay=70ms: frames not within 1 ms of it",
        "%",
        1.0,
    ),
    (
        "loss",
        "100 kpps, loss=10%: off the expected count",
        "σ",
        3.3,
    ),
    ("udp", "100 kpps, rate=50mbit: off it", "%", 1.0),
    ("tcp", "TCP, rate=1gbit: off it", "%", 1.0),
];

/// Datagrams a second.
const RATE: u64 = 100_000;
/// The delay, in milliseconds.
const LATE: u64 = 70;
/// The port that datagrams are sent to.
const PORT: u16 = 7009;
/// The bytes of a datagram of 64 bytes as an Ethernet frame.
const FRAME: f64 = 64.0 + 8.0 + 20.0 + 14.0;
/// The bytes of a full TCP segment with timestamps, at an MTU of 1500, as an Ethernet frame and
/// without headers.
const SEGMENT: (f64, f64) = (1514.0, 1448.0);

/// The row of the plug alone.
pub(crate) const PLUG: &str = "ours-plug";
/// The row of two namespaces.
pub(crate) const OURS: &str = "ours";
/// The row of two namespaces that wait for nothing.
const PLAIN: &str = "ours-plain";

/// The group's rows and measures.
pub(crate) fn group(lab: &Lab) -> Group {
    let measure = |(key, title, unit, _): &(&'static str, &'static str, &'static str, f64)| {
        Measure::new(*key, *title, unit, Better::Less).absolute()
    };
    let row = |id, title: &str| Row {
        id,
        title: title.to_owned(),
        rival: None,
        missing: CONTENDER.missing(lab),
    };
    Group {
        id: ID,
        title: "Accuracy of netem://",
        reference: None,
        rivals: "",
        rows: vec![
            row(PLUG, "a `vde_plug` alone"),
            row(OURS, "between two namespaces"),
            row(PLAIN, "between two namespaces, no delay"),
        ],
        measures: MEASURES.iter().map(measure).collect(),
    }
}

/// The names of what is run.
pub(crate) fn probes() -> Vec<String> {
    MEASURES.iter().map(|(key, ..)| (*key).to_owned()).collect()
}

/// Measures a row.
pub(crate) fn visit(bench: &mut Bench<'_>, row: &str, probes: &[String]) {
    let (lab, millis) = (bench.lab, bench.plan.millis());
    for probe in probes {
        let measure: fn(&Lab, u64) -> Result<f64> = match (row, probe.as_str()) {
            (PLUG, DELAY) => plug,
            (PLAIN, DELAY) => |lab, millis| delay(lab, millis, 0),
            (OURS, DELAY) => |lab, millis| delay(lab, millis, LATE),
            (OURS, "loss") => loss,
            (OURS, "udp") => datagrams,
            (OURS, "tcp") => tcp,
            _ => continue,
        };
        bench.measure(ID, row, probe, || {
            Ok::<Values, _>(vec![(probe.clone(), measure(lab, millis)?)])
        });
    }
}

const CONTENDER: Contender = Contender::ours("ours", "ours", Medium::Netem);

/// Two namespaces that reach each other, and only then are impaired.
fn wire<'lab>(lab: &'lab Lab, keys: &str) -> Result<Network<'lab>> {
    let network = CONTENDER.wire(lab, 2)?;
    let session = network.members().next().ok_or("no namespaces")?;
    let link = format!("{session}:vde0");
    let vdectl = lab.program(Maker::Ours, "vdectl");
    let words = ["link", "set", &link, keys];
    Proc::spawn(lab.command(Who::First, &vdectl, words)).output(PATIENCE)?;
    Ok(network)
}

/// The share of frames that a plug does not give on in time, in percent. One that is lost is not.
fn plug(lab: &Lab, millis: u64) -> Result<f64> {
    let [from, to] = ["from", "to"].map(|name| lab.unique(name));
    let words = format!("cable {from} {to} {millis} {RATE} {}", LATE * 1000);
    let words = ["tool"].into_iter().chain(words.split(' '));
    let ends = Proc::spawn(lab.command(Who::First, &lab.tool(), words));
    for path in [&from, &to] {
        wait_for("the tool's socket", PATIENCE, || {
            Path::new(path).symlink_metadata().ok()
        })?;
    }
    let vnls = [
        format!("netem://delay={LATE}ms{{ptp://{to}}}"),
        format!("ptp://{from}"),
    ];
    let vde_plug = lab.program(Maker::Ours, "vde_plug");
    let plug = Proc::spawn(lab.command(Who::First, &vde_plug, &vnls));
    let report = json(&ends.output(Duration::from_millis(millis) + PATIENCE)?)?;
    plug.check()?;
    let share = number(&report, "in-time")? / number(&report, "sent")?;
    Ok((1.0 - share) * 100.0)
}

/// The share of datagrams that do not come in time from one namespace to another, in percent. One
/// that is lost does not.
fn delay(lab: &Lab, millis: u64, late: u64) -> Result<f64> {
    let network = wire(lab, &format!("tx.delay={late}ms"))?;
    let [from, to] = &network.nodes[..] else {
        return Err("not two namespaces".into());
    };
    let limit = Duration::from_millis(millis) + PATIENCE;
    let words = format!("late {PORT} {} {}", millis + 5000, late * 1000);
    let receiver = lab.tool_inside(to, &words);
    wait_for_port(&receiver, "udp", PORT)?;
    let stamp = format!("stamp {}:{PORT} {millis} {RATE}", to.address);
    let sent = json(&lab.tool_inside(from, &stamp).output(limit)?)?;
    let report = json(&receiver.output(limit)?)?;
    network.check()?;
    let share = number(&report, "in-time")? / number(&sent, "sent")?;
    Ok((1.0 - share) * 100.0)
}

/// How far the count of lost frames is from its mean, in standard deviations of the binomial
/// distribution.
fn loss(lab: &Lab, millis: u64) -> Result<f64> {
    const SHARE: f64 = 0.1;
    let network = wire(lab, "tx.loss=10%")?;
    let [from, to] = &network.nodes[..] else {
        return Err("not two namespaces".into());
    };
    let found = udp(lab, from, to, Offer::Paced(RATE), millis)?;
    network.check()?;
    let sent = found.offered * millis as f64;
    let deviation = (SHARE * (1.0 - SHARE) / sent).sqrt();
    Ok((found.loss / 100.0 - SHARE).abs() / deviation)
}

fn datagrams(lab: &Lab, millis: u64) -> Result<f64> {
    let network = wire(lab, "tx.rate=50mbit")?;
    let [from, to] = &network.nodes[..] else {
        return Err("not two namespaces".into());
    };
    let found = udp(lab, from, to, Offer::Paced(RATE), millis)?;
    network.check()?;
    let seen = found.rate * 1e3 * FRAME * 8.0;
    Ok((seen / 50e6 - 1.0).abs() * 100.0)
}

fn tcp(lab: &Lab, millis: u64) -> Result<f64> {
    let network = wire(lab, "tx.rate=1gbit")?;
    let [from, to] = &network.nodes[..] else {
        return Err("not two namespaces".into());
    };
    // The start and what is in the queue at the end count less in a longer run.
    let seconds = (millis / 1000).max(1) * 5;
    let found = TcpRun::start(lab, from, to, 1, seconds, false)?.finish()?;
    network.check()?;
    let (frame, payload) = SEGMENT;
    Ok((found.rate * frame / payload - 1.0).abs() * 100.0)
}
