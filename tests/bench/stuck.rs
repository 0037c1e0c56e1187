//! The group `stuck`: what a client that takes nothing costs the others on a switch.
//!
//! Theory of operation. Four namespaces are on a switch. The first two talk TCP. The fourth sends broadcasts, of which a
//! process in the third receives each. Then the third's vdens and that process are stopped (SIGSTOP), and the same is done again.
//! Both take turns: running, stopped, stopped, running.
//!
//! Before each turn a flood fills the queues towards the third. During the turn broadcasts are few, [`LOAD`] a second: enough to keep
//! them full, so that the switch meets a full queue a thousand times a second, but so few that who is stopped
//! leaves no processor time worth mentioning to the pair.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Result;
use crate::bench::{Bench, Plan, Values};
use crate::lab::{Lab, Maker, PATIENCE};
use crate::network::{Contender, Medium, Network, wait_for_port};
use crate::process::{family, name};
use crate::results::{Better, Group, Measure, Row};
use crate::switches::{settled, throughput};

/// The group's name.
pub(crate) const ID: &str = "stuck";
/// The measure that is to be 0.
pub(crate) const LOST: &str = "lost";
/// Where the broadcasts go.
const PORT: u16 = 7009;
/// Broadcasts a second.
const LOAD: u64 = 1000;
/// How long the flood is, in milliseconds.
const FLOOD: u64 = 300;

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
    let (lab, plan) = (bench.lab, bench.plan);
    for probe in probes {
        if let Some(net) = bench.set_up(ID, row, || settled(contender, lab, 4)) {
            bench.measure(ID, row, probe, || turns(lab, plan, &net));
        }
    }
}

fn turns(lab: &Lab, plan: &Plan, net: &Network) -> Result<Values> {
    let rate = |is_stopped| turn(lab, plan, net, is_stopped);
    let [running, stopped, again, last] = [rate(false)?, rate(true)?, rate(true)?, rate(false)?];
    let (running, stopped) = (f64::midpoint(running, last), f64::midpoint(stopped, again));
    Ok(vec![
        ("running".to_owned(), running),
        ("stopped".to_owned(), stopped),
        (LOST.to_owned(), 100.0 * (1.0 - stopped / running)),
    ])
}

/// What the pair gets, beside broadcasts that the third node receives or does not.
fn turn(lab: &Lab, plan: &Plan, net: &Network, is_stopped: bool) -> Result<f64> {
    let (Some(third), Some(fourth)) = (net.nodes.get(2), net.nodes.get(3)) else {
        return Err("not four namespaces".into());
    };
    let receiver = lab.tool_inside(third, &format!("drain {PORT}"))?;
    wait_for_port(&receiver, "udp", PORT)?;
    let stopped = is_stopped.then(|| {
        let vdens = net.members().nth(2).map(family).unwrap_or_default();
        Stopped::new(vdens.into_iter().chain([receiver.id()]))
    });
    let send = |millis: u64, rate: u64| {
        lab.tool_inside(
            fourth,
            &format!("flood 10.77.255.255:{PORT} {millis} {rate}"),
        )
    };
    send(FLOOD, 0)?.output(PATIENCE)?;
    // Longer than the pair takes; it is ended after it.
    let load = send(plan.seconds * 1000 + 60_000, LOAD)?;
    let rate = throughput(lab, plan, net, 1);
    drop((load, stopped));
    rate
}

/// Processes that are stopped until this is dropped.
#[derive(Debug)]
struct Stopped(Vec<Pid>);

impl Stopped {
    /// Stops processes, supervisors before their workers, whose silence they would not put up with. A command of
    /// vdens goes on: Debian's takes one that stops for one that has ended.
    fn new(ids: impl Iterator<Item = u32>) -> Self {
        let ids = ids.filter(|id| name(*id).as_deref() != Some("sleep"));
        let stopped = Self(ids.map(|id| Pid::from_raw(id.cast_signed())).collect());
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
