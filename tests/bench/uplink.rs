//! The group `uplink`: ways to the Internet for a namespace.
//!
//! Theory of operation. Each round opens each [`Way`] anew and runs all probes in turn from its
//! (first) client. "Out" is from the client to the server, "in" the way back. Both ends, what is
//! between them and the tools share the machine, with every contender alike.

use std::fs;
use std::time::Duration;

use crate::Result;
use crate::bench::{Bench, Plan, Values};
use crate::costs::{Memory, Starts};
use crate::internet::{ANSWERS, SERVER, Uplink, Way, internet};
use crate::lab::{Lab, Node, PATIENCE};
use crate::network::wait_for_port;
use crate::process::{pause, wait_for};
use crate::results::{Better, Group, Measure, Row};
use crate::traffic::{IPERF, TcpRun, datagrams, datagrams_back, json, number, rtt_of_processes};

/// The group's name.
pub(crate) const ID: &str = "uplink";
/// The name of the group of start-up times.
pub(crate) const START: &str = "uplink-start";
/// The measure of a start of `true`.
pub(crate) const TRUE: &str = "true";
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

/// Who is started: slirp4netns and the kernel serve namespaces that are there already.
const STARTERS: &[&str] = &["ours", "ours-no-panel", "pasta", "slirp"];
/// What is started.
const STARTS_OF: &[(&str, &str)] = &[
    (TRUE, "`true` and exit"),
    (
        "first-byte",
        "A command in it has the first byte of the server",
    ),
];
/// How often, in a round.
const STARTS: u32 = 15;

/// What is run; the measures of each start with its name.
const PROBES: &[(&str, Run)] = &[
    ("tcp1", |at| tcp(at, 1)),
    ("tcp4", |at| tcp(at, 4)),
    (MANY, many),
    ("requests", requests),
    ("udp-1400", |at| udp(at, 1400)),
    ("udp-64", |at| udp(at, 64)),
    ("rtt", |at| {
        let (client, server) = at.ends();
        let (p50, p99) = rtt_of_processes(at.lab, client, server, at.plan.millis() / 2)?;
        Ok(vec![
            ("rtt-p50".to_owned(), p50),
            ("rtt-p99".to_owned(), p99),
        ])
    }),
];

/// What is run on ways opened for it: no buffer has grown yet, and so many connections are the end
/// of libvdeplug's slirp.
const ALONE: &[(&str, Run)] = &[("memory", memory)];

/// Probes left out of a quick run.
const NOT_QUICK: &[&str] = &["tcp4", "udp-64"];
/// The probe with [`CLIENTS`] clients at once.
const MANY: &str = "many";
const CLIENTS: usize = 8;
/// Who is measured with that many.
const WITH_MANY: &[Way] = &[Way::Kernel, Way::Switch];
/// How many connections are open when memory is measured.
const CONNECTIONS: usize = 1000;
/// The server's port for these.
const KEPT: u16 = 7011;

type Run = fn(&At<'_>) -> Result<Values>;

/// Where a probe runs.
struct At<'a> {
    lab: &'a Lab,
    plan: &'a Plan,
    uplink: &'a Uplink<'a>,
}

impl At<'_> {
    /// The client and the server.
    fn ends(&self) -> (&Node, &Node) {
        (&self.uplink.clients[0], &self.uplink.server)
    }
}

fn tcp(at: &At<'_>, streams: u32) -> Result<Values> {
    let (client, server) = at.ends();
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

/// What all clients get at once, one stream each.
fn many(at: &At<'_>) -> Result<Values> {
    let clients = &at.uplink.clients;
    if clients.len() < CLIENTS {
        return Ok(Values::new());
    }
    let mut values = Values::new();
    for (direction, reverse) in [("out", false), ("in", true)] {
        let run = |(client, port): (&Node, u16)| {
            let ends = [client, &at.uplink.server];
            TcpRun::start_on(port, at.lab, ends, 1, at.plan.seconds, reverse)
        };
        let runs: Vec<TcpRun<'_>> = clients
            .iter()
            .zip(IPERF..)
            .map(run)
            .collect::<Result<_>>()?;
        let mut sum = 0.0;
        for run in runs {
            sum += run.finish()?.rate;
        }
        values.push((format!("{MANY}-{direction}"), sum));
    }
    Ok(values)
}

fn requests(at: &At<'_>) -> Result<Values> {
    let (client, _) = at.ends();
    let words = format!("requests {SERVER}:{ANSWERS} {}", at.plan.millis());
    let limit = Duration::from_millis(at.plan.millis()) + PATIENCE;
    let report = json(&at.lab.tool_inside(client, &words).output(limit)?)?;
    let number = |key| number(&report, key);
    let answers = number("answers")?;
    let values = [
        ("requests-rate", answers / number("seconds")? / 1000.0),
        ("requests-p50", number("p50")?),
        ("requests-p99", number("p99")?),
        ("requests-failed", 100.0 * number("lost")? / answers),
    ];
    Ok(values.map(|(key, value)| (key.to_owned(), value)).into())
}

fn udp(at: &At<'_>, size: usize) -> Result<Values> {
    let ((client, server), millis) = (at.ends(), at.plan.millis() / 2);
    let out = datagrams(at.lab, client, server, size, millis)?;
    let back = datagrams_back(at.lab, client, server, size, millis)?;
    Ok(vec![
        (format!("udp-{size}-out"), out),
        (format!("udp-{size}-in"), back),
    ])
}

/// Memory of the contender's processes, without and with connections on which nothing happens.
fn memory(at: &At<'_>) -> Result<Values> {
    let (client, server) = at.ends();
    let mebibytes = || -> Result<f64> {
        let mut memory = Memory::default();
        for id in at.uplink.processes(at.lab) {
            memory.add(id)?;
        }
        Ok(memory.kibibytes() / 1024.0)
    };
    let before = mebibytes()?;
    if before == 0.0 {
        // The kernel has no process.
        return Ok(Values::new());
    }
    let keep = at.lab.tool_inside(server, &format!("keep {KEPT}"));
    wait_for_port(&keep, "tcp", KEPT)?;
    let open = format!("open {SERVER}:{KEPT} {CONNECTIONS}");
    let open = at.lab.tool_inside(client, &open);
    wait_for("the connections", PATIENCE, || {
        let all = established(client, 2) >= CONNECTIONS && established(server, 1) >= CONNECTIONS;
        (all || open.check().is_err()).then_some(())
    })?;
    open.check()?;
    pause(Duration::from_millis(300))?;
    let with = mebibytes()?;
    Ok(vec![
        ("memory".to_owned(), before),
        (format!("memory-{CONNECTIONS}"), with),
    ])
}

/// How many connections a node has to or at the port [`KEPT`], which is in a column of the table.
fn established(node: &Node, column: usize) -> usize {
    let table = fs::read_to_string(format!("/proc/{}/net/tcp", node.pid)).unwrap_or_default();
    let port = format!(":{KEPT:04X}");
    let is_one = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(3) == Some(&"01") && words[column].ends_with(&port)
    };
    table.lines().filter(is_one).count()
}

/// The group's rows and measures.
pub(crate) fn group(lab: &Lab) -> Group {
    let mut measures = Vec::new();
    let mut add = |key: &str, title: &str, unit, better| {
        measures.push(Measure::new(key, title, unit, better));
    };
    for (key, title, unit) in [
        ("tcp1", "TCP, 1 stream".to_owned(), "Gbit/s"),
        ("tcp4", "TCP, 4 streams".to_owned(), "Gbit/s"),
        (MANY, format!("TCP, {CLIENTS} clients at once"), "Gbit/s"),
        ("udp-1400", "UDP, 1,400 bytes, received".to_owned(), "kpps"),
        ("udp-64", "UDP, 64 bytes, received".to_owned(), "kpps"),
    ] {
        for direction in ["out", "in"] {
            let (key, title) = (
                format!("{key}-{direction}"),
                format!("{title}, {direction}"),
            );
            add(&key, &title, unit, Better::More);
        }
        if key.starts_with("tcp") {
            let (key, title) = (format!("{key}-effort"), format!("{title}, processor time"));
            add(&key, &title, "s/GiB", Better::Less);
        }
    }
    add("requests-rate", "Requests", "thousand/s", Better::More);
    for (key, title) in [
        ("requests", "Time of a request"),
        ("rtt", "Round trip of UDP between two processes, idle"),
    ] {
        for (rank, name) in [("p50", "median"), ("p99", "99th percentile")] {
            let (key, title) = (format!("{key}-{rank}"), format!("{title}, {name}"));
            add(&key, &title, "µs", Better::Less);
        }
    }
    add("memory", "Memory", "MiB", Better::Less);
    let title = format!("Memory, {CONNECTIONS} idle connections");
    add(
        &format!("memory-{CONNECTIONS}"),
        &title,
        "MiB",
        Better::Less,
    );
    let failed = Measure::new("requests-failed", "Requests failed", "%", Better::Less);
    measures.push(failed.absolute());
    Group {
        id: ID,
        title: "Ways to the Internet",
        reference: Some((REFERENCE, "kernel")),
        rivals: "pasta",
        rows: CONTENDERS
            .iter()
            .map(|contender| row(lab, contender))
            .collect(),
        measures,
    }
}

fn row(lab: &Lab, (id, title, way): &(&'static str, &str, Way)) -> Row {
    Row {
        id,
        title: (*title).to_owned(),
        rival: id.starts_with("ours").then_some("pasta"),
        missing: way.missing(lab),
    }
}

/// The names of what is run.
pub(crate) fn probes(plan: &Plan) -> Vec<String> {
    let all = PROBES.iter().chain(ALONE).map(|(name, _)| *name);
    all.filter(|name| !plan.quick || !NOT_QUICK.contains(name))
        .map(str::to_owned)
        .collect()
}

fn way(row: &str) -> Option<Way> {
    let found = CONTENDERS.iter().find(|(id, _, _)| *id == row);
    found.map(|(_, _, way)| *way)
}

/// Measures a contender.
pub(crate) fn visit(bench: &mut Bench<'_>, row: &str, probes: &[String]) {
    let Some(way) = way(row) else {
        return;
    };
    let lab = bench.lab;
    let wants = |name: &str| probes.iter().any(|probe| probe == name);
    // A switch has many whatever is measured.
    let count = match way == Way::Switch || (WITH_MANY.contains(&way) && wants(MANY)) {
        true => CLIENTS,
        false => 1,
    };
    for probes in [PROBES, ALONE] {
        let wanted: Vec<_> = probes.iter().filter(|(name, _)| wants(name)).collect();
        if !wanted.is_empty()
            && let Some(uplink) = bench.set_up(ID, row, || way.open(lab, count))
        {
            run(bench, row, &uplink, &wanted);
        }
    }
}

/// Runs probes until a program of the contender's has ended.
fn run(bench: &mut Bench<'_>, row: &str, uplink: &Uplink<'_>, probes: &[&(&str, Run)]) {
    for (name, run) in probes {
        let at = At {
            lab: bench.lab,
            plan: bench.plan,
            uplink,
        };
        bench.measure(ID, row, name, || run(&at));
        if bench.set_up(ID, row, || uplink.check()).is_none() {
            return;
        }
    }
}

/// The rows and measures of the start-up times.
pub(crate) fn start_group(lab: &Lab) -> Group {
    let measure = |(key, title): &(&'static str, &'static str)| {
        Measure::new(*key, *title, "ms", Better::Less)
    };
    Group {
        id: START,
        title: "Start-up with the Internet",
        reference: None,
        rivals: "pasta",
        rows: CONTENDERS
            .iter()
            .filter(|(id, _, _)| STARTERS.contains(id))
            .map(|contender| row(lab, contender))
            .collect(),
        measures: STARTS_OF.iter().map(measure).collect(),
    }
}

/// The names of what is run.
pub(crate) fn start_probes() -> Vec<String> {
    let names = STARTS_OF.iter().map(|(name, _)| (*name).to_owned());
    names.collect()
}

/// Measures how long the rows take to start.
pub(crate) fn visit_start(bench: &mut Bench<'_>, probe: &str, rows: &[&str]) {
    let lab = bench.lab;
    bench.announce(&format!("{START}/*/{probe}"));
    let Some(uplink) = bench.set_up(START, "*", || internet(lab)) else {
        return;
    };
    let tool = lab.tool().display().to_string();
    let server = format!("{SERVER}:{ANSWERS}");
    let command: &[&str] = match probe {
        TRUE => &["true"],
        _ => &[&tool, "tool", "first", &server, "1000"],
    };
    let all = rows.iter().filter_map(|row| {
        let (program, words) = way(row)?.command(lab, command);
        Some(Starts::of(row, program, words, Some(&uplink.host)))
    });
    let mut all: Vec<Starts<'_>> = all.collect();
    for _ in 0..STARTS {
        for starts in &mut all {
            starts.one(lab);
        }
    }
    for starts in all {
        let row = starts.row;
        let median = starts.median();
        bench.record(
            START,
            row,
            probe,
            median.map(|median| vec![(probe.to_owned(), median)]),
        );
    }
}
