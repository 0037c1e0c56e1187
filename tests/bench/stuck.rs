//! The group `stuck`: what a client that takes nothing costs the others on a switch.
//!
//! Theory of operation. Four namespaces are on a switch. The first two carry TCP all the time. The
//! fourth sends broadcasts, and a process in the third receives them. That process and the third's
//! vdens are stopped (SIGSTOP) in every other [`SLICE`]. The rate of the pair in a slice is
//! compared with the rate in the neighbouring one, because the machine's pace changes. The median
//! of [`PAIRS`] such ratios counts: running, stopped, stopped, running, …
//!
//! A flood before each slice fills the queues towards the third. During the slice there are
//! [`LOAD`] broadcasts a second. That keeps the queues full, so that the switch meets a full queue
//! again and again, but leaves the pair no more processor time while the third is stopped.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Result;
use crate::bench::{Bench, Values};
use crate::lab::{Lab, Maker, PATIENCE};
use crate::network::{Contender, Medium, Network, wait_for_port};
use crate::process::pause;
use crate::results::{Better, Group, Measure, Row, Summary};
use crate::switches::{Counter, received, settled};
use crate::traffic::TcpRun;
use vdens_tests::{family, name};

/// The group's name.
pub(crate) const ID: &str = "stuck";
/// The measure that is to be 0.
pub(crate) const LOST: &str = "lost";
/// Where the broadcasts go.
const PORT: u16 = 7009;
/// Broadcasts a second.
const LOAD: u64 = 100;
/// How long the flood is, in milliseconds.
const FLOOD: u64 = 100;
/// How long what the flood has left behind may take to go.
const EBB: Duration = Duration::from_millis(300);
/// How long the pair is watched at a time.
const SLICE: Duration = Duration::from_millis(500);
/// How often two neighbouring slices are compared.
const PAIRS: u32 = 10;
/// Longer than all of it takes, in seconds: whatever goes on meanwhile is ended after it.
const ALL: u64 = 120;

const CONTENDERS: &[Contender] = &[
    Contender::ours("ours", "ours on our switch://", Medium::Plug(Maker::Ours))
        .versus("debian-vde-switch"),
    Contender::ours(
        "ours-no-panel",
        "ours on our switch://, --no-panel",
        Medium::Plug(Maker::Ours),
    )
    .without_panel()
    .versus("debian-vde-switch"),
    Contender::debian(
        "debian-vde-switch",
        "Debian's on vde_switch",
        Medium::VdeSwitch,
    ),
];

/// The group's rows and measures.
pub(crate) fn group(lab: &Lab) -> Group {
    let row = |contender: &Contender| Row {
        id: contender.id,
        title: contender.title.to_owned(),
        rival: contender.rival,
        missing: contender.missing(lab),
    };
    let rate = |key, title| Measure::new(key, title, "Gbit/s", Better::More);
    let lost = "TCP, 1 pair, lost while a third client is stopped";
    Group {
        id: ID,
        title: "A stopped client of a switch",
        reference: None,
        rivals: "Debian's",
        rows: CONTENDERS.iter().map(row).collect(),
        measures: vec![
            rate("running", "TCP, 1 pair, a third client runs"),
            rate("stopped", "TCP, 1 pair, a third client is stopped"),
            Measure::new(LOST, lost, "%", Better::Less).absolute(),
        ],
    }
}

/// The names of what is run.
pub(crate) fn probes() -> Vec<String> {
    vec!["pair".to_owned()]
}

/// Measures a contender.
pub(crate) fn visit(bench: &mut Bench<'_>, row: &str, probes: &[String]) {
    let Some(contender) = CONTENDERS.iter().find(|contender| contender.id == row) else {
        return;
    };
    let lab = bench.lab;
    for probe in probes {
        if let Some(net) = bench.set_up(ID, row, || settled(contender, lab, 4)) {
            bench.measure(ID, row, probe, || turns(lab, &net));
        }
    }
}

fn turns(lab: &Lab, net: &Network<'_>) -> Result<Values> {
    let [first, second, third, fourth] = &net.nodes[..] else {
        return Err("not four namespaces".into());
    };
    let receiver = lab.tool_inside(third, &format!("drain {PORT}"));
    wait_for_port(&receiver, "udp", PORT)?;
    let send = |millis: u64, rate: u64| {
        lab.tool_inside(
            fourth,
            &format!("flood 10.77.255.255:{PORT} {millis} {rate}"),
        )
    };
    let slice = |is_stopped: bool| -> Result<f64> {
        let _stopped = is_stopped.then(|| {
            let vdens = net.members().nth(2).map(family).unwrap_or_default();
            Stopped::new(vdens.into_iter().chain([receiver.id()]))
        });
        send(FLOOD, 0).output(PATIENCE)?;
        pause(EBB)?;
        let (before, start) = (received([first], Counter::Bytes)?, Instant::now());
        pause(SLICE)?;
        let bytes = received([first], Counter::Bytes)? - before;
        Ok(bytes * 8.0 / start.elapsed().as_secs_f64() / 1e9)
    };
    let _pair = TcpRun::start(lab, second, first, 1, ALL, false)?;
    let _load = send(ALL * 1000, LOAD);
    let (mut running, mut stopped, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..PAIRS {
        let turn = [number % 2 == 1, number % 2 == 0];
        let rates = [slice(turn[0])?, slice(turn[1])?];
        let [without, with] = if turn[0] { [rates[1], rates[0]] } else { rates };
        running.push(without);
        stopped.push(with);
        lost.push(100.0 * (1.0 - with / without));
    }
    let found = [("running", running), ("stopped", stopped), (LOST, lost)];
    let medians = found.map(|(key, values)| {
        let median = Summary::of(values).map(|summary| summary.median);
        Ok((key.to_owned(), median.ok_or("nothing was measured")?))
    });
    medians.into_iter().collect()
}

/// Processes that are stopped until this is dropped.
#[derive(Debug)]
struct Stopped(Vec<Pid>);

impl Stopped {
    /// Stops processes, supervisors before their workers, whose silence they would not put up with.
    /// A command of vdens goes on: Debian's takes one that stops for one that has ended.
    fn new(ids: impl Iterator<Item = i32>) -> Self {
        let ids = ids.filter(|id| name(*id).as_deref() != Some("sleep"));
        let stopped = Self(ids.map(Pid::from_raw).collect());
        stopped.signal(Signal::SIGSTOP);
        stopped
    }

    fn signal(&self, signal: Signal) {
        for pid in &self.0 {
            // Who has ended is found missing by the next turn.
            let _ = kill(*pid, signal);
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
    }
}
