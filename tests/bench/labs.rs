//! The group `labs`: networks from a file, beside root's script and Mininet.
//!
//! Theory of operation. Each contender makes the same line of nodes, one link between two
//! neighbours with an address at each end, and removes it: ours as an ordinary user with `vdectl
//! lab up` and `down`, root with `ip netns add` and one `ip -batch`, Mininet with `--topo linear`.
//! What a lab of 1,000 nodes takes is for ours alone: its nodes are a tree of ten below each.
//! Traffic runs over one link of a lab, and over a veth pair between two of root's namespaces.
//!
//! `vdectl exec` and nsenter(1) run `true` in one session by turns. So do streams on the panel with
//! and without a capture of all their frames.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use vdens_tests::children;

use crate::Result;
use crate::bench::{Bench, Values};
use crate::idle::busy;
use crate::lab::{Lab, Maker, Node, Who, installed, is_root};
use crate::network::{Contender, Medium};
use crate::process::{Proc, pause, wait_for};
use crate::results::{Better, Group, Measure, Row, Summary};
use crate::traffic::{TcpRun, rtt};

/// The group's name.
pub(crate) const ID: &str = "labs";
/// The measure of a line that is made and removed.
pub(crate) const LINE: &str = "line";
/// The measure of TCP over a link.
pub(crate) const TCP: &str = "lab-tcp";
/// The measure of round trips over a link.
pub(crate) const RTT: &str = "lab-rtt";
/// What is reached by a lab of many nodes: the measure, what it is, and the bar.
pub(crate) const TREE: [(&str, &str, f64); 3] = [
    (
        "tree-to-hundred",
        "up with 1,000 nodes in a tree, ratio to 100",
        12.0,
    ),
    ("memory", "MiB of each of 1,000 nodes", 1.5),
    ("idle", "% of a processor that 1,000 idle nodes take", 1.0),
];

/// What takes turns with something else: the measure, what it is, its unit, and the bar.
pub(crate) const TURNS: [(&str, &str, &str, f64); 2] = [
    (EXEC, "`vdectl exec`, ratio to `nsenter`", "ratio", 2.0),
    (CAPTURE, "TCP on the panel, lost to a capture", "%", 5.0),
];
const EXEC: &str = "exec";
const CAPTURE: &str = "capture";

/// How often a command is run in a session, each way.
const COMMANDS: usize = 50;
/// How often a stream is measured with a capture, and without.
const STREAMS: usize = 8;

/// How long a contender may take to make or remove a line: Mininet takes seconds.
const LIMIT: Duration = Duration::from_secs(120);
/// How long nodes that have just started are left alone, and then watched.
const SETTLING: Duration = Duration::from_secs(10);

/// The group's rows and measures.
pub(crate) fn group(_: &Lab) -> Group {
    let time = |key, title| Measure::new(key, title, "ms", Better::Less);
    let no_root = (!is_root()).then(|| "it needs root".to_owned());
    // Mininet's own switch needs a kernel module, so it has the kernel's bridges.
    let mut needs = [("mn", "mininet"), ("brctl", "bridge-utils")].into_iter();
    let mininet = needs.find(|(program, _)| !installed(program));
    let mininet = mininet.map(|(_, package)| format!("{package} is not installed"));
    let row = |id, title: &str, missing| Row {
        id,
        title: title.to_owned(),
        rival: None,
        missing,
    };
    let [ratio, memory, idle] = TREE;
    Group {
        id: ID,
        title: "Labs",
        reference: Some(("root", "root's")),
        rivals: "Debian's",
        rows: vec![
            row("root", "root's `ip netns`, `ip -batch`", no_root.clone()),
            row("ours", "ours", None),
            row("mininet", "Mininet, as root", no_root.or(mininet)),
        ],
        measures: vec![
            time(LINE, "100 nodes in a line, made and removed"),
            time("hundred", "`lab up`, 100 nodes in a tree"),
            time("tree", "`lab up`, 1,000 nodes in a tree"),
            Measure::new(ratio.0, ratio.1, "ratio", Better::Less).absolute(),
            Measure::new(memory.0, memory.1, "MiB", Better::Less).absolute(),
            Measure::new(idle.0, idle.1, "%", Better::Less).absolute(),
            Measure::new(TCP, "TCP over a link", "Gbit/s", Better::More),
            Measure::new(RTT, "Round trip over a link", "µs", Better::Less),
        ]
        .into_iter()
        .chain(
            TURNS.map(|(key, title, unit, _)| {
                Measure::new(key, title, unit, Better::Less).absolute()
            }),
        )
        .collect(),
    }
}

/// The names of what is run.
pub(crate) fn probes() -> Vec<String> {
    [LINE, "tree", "link", EXEC, CAPTURE]
        .map(str::to_owned)
        .to_vec()
}

/// Measures a row.
pub(crate) fn visit(bench: &mut Bench<'_>, row: &str, probes: &[String]) {
    let (lab, plan) = (bench.lab, bench.plan);
    let (quick, seconds) = (plan.quick, plan.seconds);
    for probe in probes {
        bench.measure(ID, row, probe, || match (probe.as_str(), row) {
            (LINE, _) => {
                let count = if quick { 20 } else { 100 };
                let time = line(lab, row, count)?;
                Ok(vec![(LINE.to_owned(), time)])
            }
            ("link", "ours" | "root") => link(lab, row, seconds),
            ("tree", "ours") if !quick => tree(lab),
            (EXEC, "ours") => exec(lab),
            (CAPTURE, "ours") => capture(lab, seconds),
            _ => Ok(Values::new()),
        });
    }
}

/// How long it takes to make and remove a line of nodes, in milliseconds.
fn line(lab: &Lab, row: &str, count: usize) -> Result<f64> {
    let run = |who, program: &Path, words: &[&str]| -> Result<()> {
        Proc::spawn(lab.command(who, program, words))
            .output(LIMIT)
            .map(drop)
    };
    if row == "ours" {
        let ours = OurLab::write(lab, "line", &ours_in_a_line(count))?;
        let start = Instant::now();
        ours.up()?;
        ours.down()?;
        return Ok(start.elapsed().as_secs_f64() * 1000.0);
    }
    let start = Instant::now();
    if row == "mininet" {
        let topology = format!("linear,{count}");
        let words = [
            "--topo",
            &topology,
            "--switch",
            "lxbr",
            "--controller",
            "none",
            "--test",
            "none",
        ];
        run(Who::Caller, Path::new("/usr/bin/mn"), &words)?;
        return Ok(start.elapsed().as_secs_f64() * 1000.0);
    }
    let (up, down) = roots_line(count);
    let outcome = run(Who::Caller, Path::new("/bin/sh"), &["-ec", &up]);
    let removed = run(Who::Caller, Path::new("/bin/sh"), &["-ec", &down]);
    outcome.and(removed)?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

/// The addresses of a link's two ends.
fn addresses(link: usize) -> [String; 2] {
    let (high, low) = (link / 64, link % 64 * 4);
    [1, 2].map(|host| format!("10.{}.{}.{}/30", 100 + high / 256, high % 256, low + host))
}

fn ours_in_a_line(count: usize) -> String {
    let mut text = format!("[nodes.n]\ncount = {count}\n");
    for link in 1..count {
        let [a, b] = addresses(link);
        let next = link + 1;
        let _ = writeln!(
            text,
            "[[links]]\nends = [\"n{link}:r={a}\", \"n{next}:l={b}\"]"
        );
    }
    text
}

/// Root's scripts that make and remove the same line.
fn roots_line(count: usize) -> (String, String) {
    let name = |number: usize| format!("vb{number}");
    let mut batch = String::new();
    for link in 1..count {
        let (a, b) = (name(link), name(link + 1));
        let _ = writeln!(
            batch,
            "link add r netns {a} type veth peer name l netns {b}"
        );
    }
    let (mut up, mut down) = (String::new(), String::new());
    for number in 1..=count {
        let _ = writeln!(up, "ip netns add {}", name(number));
        let _ = writeln!(down, "ip netns del {}", name(number));
    }
    let _ = writeln!(up, "ip -batch - <<'END'\n{batch}END");
    for number in 1..=count {
        let mut batch = "link set lo up\n".to_owned();
        if number > 1 {
            let [_, own] = addresses(number - 1);
            let _ = writeln!(batch, "addr add {own} dev l\nlink set dev l up");
        }
        if number < count {
            let [own, _] = addresses(number);
            let _ = writeln!(batch, "addr add {own} dev r\nlink set dev r up");
        }
        let _ = writeln!(up, "ip -n {} -batch - <<'END'\n{batch}END", name(number));
    }
    (up, down)
}

/// A lab of ours, and its file.
struct OurLab<'lab> {
    lab: &'lab Lab,
    name: &'static str,
    file: String,
}

impl<'lab> OurLab<'lab> {
    fn write(lab: &'lab Lab, name: &'static str, text: &str) -> Result<Self> {
        let file = lab.unique(name);
        fs::write(&file, format!("name = \"{name}\"\n{text}"))?;
        Ok(Self { lab, name, file })
    }

    fn vdectl(&self, words: &[&str]) -> Result<String> {
        let vdectl = self.lab.program(Maker::Ours, "vdectl");
        Proc::spawn(self.lab.command(Who::First, &vdectl, words)).output(LIMIT)
    }

    fn up(&self) -> Result<()> {
        self.vdectl(&["lab", "up", &self.file]).map(drop)
    }

    fn down(&self) -> Result<()> {
        self.vdectl(&["lab", "down", self.name]).map(drop)
    }

    /// The supervisor, and the first process of each node, by the node's name.
    fn processes(&self) -> Result<(i32, Vec<(String, i32)>)> {
        let text = self.vdectl(&["lab", "status", self.name])?;
        let number = |line: &str| {
            let (_, rest) = line.split_once("process ")?;
            rest.split(',').next()?.trim().parse().ok()
        };
        let supervisor = text.lines().next().and_then(number);
        let nodes = text.lines().filter_map(|line| {
            let (name, _) = line.strip_prefix("  node ")?.split_once(',')?;
            Some((name.to_owned(), number(line)?))
        });
        Ok((
            supervisor.ok_or("the lab has no supervisor")?,
            nodes.collect(),
        ))
    }
}

impl Drop for OurLab<'_> {
    fn drop(&mut self) {
        // It has ended already, unless something failed.
        let _ = self.down();
        let _ = fs::remove_file(&self.file);
    }
}

/// What a lab of 1,000 nodes takes.
fn tree(lab: &Lab) -> Result<Values> {
    let up = |count| -> Result<(OurLab<'_>, f64)> {
        let mut text = format!("[nodes.n]\ncount = {count}\n");
        for node in 2..=count {
            let [a, b] = addresses(node);
            let (parent, port) = ((node - 2) / 10 + 1, (node - 2) % 10);
            let _ = writeln!(
                text,
                "[[links]]\nends = [\"n{parent}:d{port}={a}\", \"n{node}:u={b}\"]"
            );
        }
        let ours = OurLab::write(lab, "tree", &text)?;
        let start = Instant::now();
        ours.up()?;
        Ok((ours, start.elapsed().as_secs_f64() * 1000.0))
    };
    let (small, hundred) = up(100)?;
    small.down()?;
    drop(small);
    let (large, thousand) = up(1000)?;
    let (supervisor, _) = large.processes()?;
    pause(SETTLING)?;
    let before = busy(&[supervisor])?;
    pause(SETTLING)?;
    let idle = (busy(&[supervisor])? - before) / SETTLING.as_secs_f64() * 100.0;
    let mut kibibytes = 0.0;
    for pid in children(supervisor).into_iter().chain([supervisor]) {
        kibibytes += proportional(pid)?;
    }
    large.down()?;
    let [ratio, memory, idle_key] = TREE.map(|(key, ..)| key);
    Ok(vec![
        ("hundred".to_owned(), hundred),
        ("tree".to_owned(), thousand),
        (ratio.to_owned(), thousand / hundred),
        (memory.to_owned(), kibibytes / 1024.0 / 1000.0),
        (idle_key.to_owned(), idle),
    ])
}

/// A process's share of the memory (PSS), in KiB.
fn proportional(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path)?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let size = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    size.ok_or_else(|| format!("{path} has no Pss").into())
}

/// TCP and round trips over one link.
fn link(lab: &Lab, row: &str, seconds: u64) -> Result<Values> {
    let text =
        "[nodes.n]\ncount = 2\n[[links]]\nends = [\"n1:e=10.99.0.1/24\", \"n2:e=10.99.0.2/24\"]\n";
    let node = |pid, user, address: &str| Node {
        pid,
        user,
        interface: "e".to_owned(),
        address: address.to_owned(),
    };
    let addresses = ["10.99.0.1", "10.99.0.2"];
    if row == "ours" {
        let ours = OurLab::write(lab, "link", text)?;
        ours.up()?;
        let (_, nodes) = ours.processes()?;
        let [(_, a), (_, b)] = &nodes[..] else {
            return Err("the lab does not have two nodes".into());
        };
        let user = Some(Who::First);
        let ends = [node(*a, user, addresses[0]), node(*b, user, addresses[1])];
        let values = traffic(lab, &ends, seconds)?;
        ours.down()?;
        return Ok(values);
    }
    let (_holder, first) = lab.bare_node(1)?;
    let (_other, second) = lab.bare_node(2)?;
    let script = format!(
        "ip link add e netns {0} type veth peer name e netns {1}
         nsenter -t {0} -n sh -ec 'ip addr add 10.99.0.1/24 dev e; ip link set e up'
         nsenter -t {1} -n sh -ec 'ip addr add 10.99.0.2/24 dev e; ip link set e up'",
        first.pid, second.pid
    );
    Proc::spawn(lab.command(Who::Caller, Path::new("/bin/sh"), ["-ec", &script])).output(LIMIT)?;
    let ends = [
        node(first.pid, first.user, addresses[0]),
        node(second.pid, second.user, addresses[1]),
    ];
    traffic(lab, &ends, seconds)
}

fn traffic(lab: &Lab, [from, to]: &[Node; 2], seconds: u64) -> Result<Values> {
    let tcp = TcpRun::start(lab, from, to, 1, seconds, false)?.finish()?;
    let (middle, _) = rtt(lab, from, to, seconds * 1000, 1000)?;
    Ok(vec![(TCP.to_owned(), tcp.rate), (RTT.to_owned(), middle)])
}

/// How long `vdectl exec` takes in comparison with `nsenter` into the same namespaces, as the same
/// user.
fn exec(lab: &Lab) -> Result<Values> {
    let vdens = lab.program(Maker::Ours, "vdens");
    let words = ["--name", "exec", "null://", "sleep", "86400"];
    let _session = Proc::spawn(lab.command(Who::First, &vdens, words));
    let vdectl = lab.program(Maker::Ours, "vdectl");
    let run = |program: &Path, words: &[&str]| {
        Proc::spawn(lab.command(Who::First, program, words)).output(LIMIT)
    };
    run(&vdectl, &["wait", "exec", "--timeout", "15"])?;
    let pid = run(&vdectl, &["pid", "exec"])?;
    let nsenter = [
        "--preserve-credentials",
        "-U",
        "-n",
        "-t",
        pid.trim(),
        "true",
    ];
    let ours = ["exec", "exec", "true"];
    let nsenter: (&Path, &[&str]) = (Path::new("/usr/bin/nsenter"), &nsenter);
    let mut times = [(nsenter, Vec::new()), ((&vdectl, &ours), Vec::new())];
    for _ in 0..COMMANDS {
        for ((program, words), times) in &mut times {
            let start = Instant::now();
            run(program, words)?;
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let [(_, nsenter), (_, ours)] = times;
    Ok(vec![(EXEC.to_owned(), median(ours)? / median(nsenter)?)])
}

/// The share of a stream's rate that a capture of all its frames takes, in percent.
fn capture(lab: &Lab, seconds: u64) -> Result<Values> {
    let panel = Contender::ours("ours", "ours", Medium::Ptp);
    let network = panel.wire(lab, 2)?;
    let [from, to] = &network.nodes[..] else {
        return Err("not two namespaces".into());
    };
    let session = network.members().next().ok_or("no session")?;
    let link = format!("{session}:vde0");
    let vdectl = lab.program(Maker::Ours, "vdectl");
    let file = lab.unique("capture");
    let stream = || -> Result<f64> {
        let run = TcpRun::start(lab, from, to, 1, seconds, false)?;
        Ok(run.finish()?.rate)
    };
    let captured = || -> Result<f64> {
        let words = ["capture", &link, "-w", &file];
        let capture = Proc::spawn(lab.command(Who::First, &vdectl, words));
        wait_for("the capture", LIMIT, || Path::new(&file).metadata().ok())?;
        let rate = stream();
        capture.check()?;
        drop(capture);
        fs::remove_file(&file)?;
        rate
    };
    let mut ratios = Vec::new();
    for turn in 0..STREAMS {
        // Nor is one of them always the first.
        let ratio = match turn % 2 {
            0 => captured()? / stream()?,
            _ => stream().and_then(|plain| Ok(captured()? / plain))?,
        };
        ratios.push(ratio);
    }
    network.check()?;
    Ok(vec![(CAPTURE.to_owned(), (1.0 - median(ratios)?) * 100.0)])
}

fn median(values: Vec<f64>) -> Result<f64> {
    Ok(Summary::of(values).ok_or("nothing was measured")?.median)
}
