//! The groups `start-up` and `memory`: what a namespace costs before any frame.
//!
//! Theory of operation. Start-up is the time from starting a program that runs `true` to its end, as its parent sees it. A round takes
//! the median of so many runs that all rounds have [`STARTS`] together.
//!
//! Memory is what is resident of every process that a namespace needs, but not of the command inside. What several of
//! them share counts once, and in full, though the rest of the machine may use it too (so the sum of `Pss`
//! would be less). It is user memory; what the kernel needs for a network namespace comes on top for all.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::Result;
use crate::bench::{Bench, Values};
use crate::lab::{Lab, Maker, PATIENCE, Who, installed};
use crate::process::{Proc, Procs, name, pause};
use crate::results::{Better, Group, Measure, Row, Summary};

/// The name of the group of start-up times.
pub(crate) const STARTUP: &str = "start-up";
/// The name of the group of memory sizes.
pub(crate) const MEMORY: &str = "memory";
/// How often a program is started, all rounds together.
const STARTS: u32 = 20;
/// How many namespaces there are when there are several.
const SEVERAL: usize = 8;

fn vdens_rows(lab: &Lab) -> Vec<Row> {
    let debian = !installed("vdens");
    let no_panel = !lab.has_panel;
    let row = |id, title: &str, rival, missing: Option<&str>| Row {
        id,
        title: title.to_owned(),
        rival,
        missing: missing.map(str::to_owned),
    };
    vec![
        row("ours", "ours", Some("debian"), None),
        row(
            "ours-no-panel",
            "ours, --no-panel",
            Some("debian"),
            no_panel.then_some("this vdens has no --no-panel (and no panel)"),
        ),
        row(
            "debian",
            "Debian's",
            None,
            debian.then_some("vdens is not installed"),
        ),
    ]
}

/// The rows and measures of the start-up times.
pub(crate) fn startup_group(lab: &Lab) -> Group {
    let mut rows = vdens_rows(lab);
    rows.insert(
        0,
        Row {
            id: "unshare",
            title: "unshare -Urn".to_owned(),
            rival: None,
            missing: None,
        },
    );
    let measure = |key, title| Measure::new(key, title, "ms", Better::Less);
    Group {
        id: STARTUP,
        title: "Start-up, `true` and exit",
        reference: Some(("unshare", "unshare")),
        rows,
        measures: vec![
            measure("ptp", "vdens ptp://… true"),
            measure("beside", "vdens ptp://… true, beside another namespace"),
            measure("no", "vdens no true"),
        ],
    }
}

/// The rows and measures of the memory sizes.
pub(crate) fn memory_group(lab: &Lab) -> Group {
    let measure = |key, title: String| Measure::new(key, title, "MiB", Better::Less);
    Group {
        id: MEMORY,
        title: "Memory of an idle namespace, all processes",
        reference: None,
        rows: vdens_rows(lab),
        measures: vec![
            measure("one", "The only namespace, on ptp://".to_owned()),
            measure("several", format!("Each of {SEVERAL}, in pairs on ptp://")),
        ],
    }
}

/// The names of what is run.
pub(crate) fn startup_probes() -> Vec<String> {
    ["ptp", "beside", "no"].map(str::to_owned).to_vec()
}

/// The names of what is run.
pub(crate) fn memory_probes() -> Vec<String> {
    ["one", "several"].map(str::to_owned).to_vec()
}

/// The program and the options that a row stands for.
fn program(lab: &Lab, row: &str) -> (PathBuf, &'static [&'static str]) {
    match row {
        "unshare" => (PathBuf::from("/usr/bin/unshare"), &["-Urn"]),
        "debian" => (lab.program(Maker::Debian, "vdens"), &[]),
        "ours-no-panel" => (lab.program(Maker::Ours, "vdens"), &["--no-panel"]),
        _ => (lab.program(Maker::Ours, "vdens"), &[]),
    }
}

fn start(lab: &Lab, row: &str, words: &[&str]) -> Result<Proc> {
    let (program, options) = program(lab, row);
    Proc::spawn(lab.command(Who::First, &program, options.iter().chain(words)))
}

/// Measures how long a row takes to start.
pub(crate) fn visit_startup(bench: &mut Bench<'_>, row: &str, probes: &[String]) {
    let lab = bench.lab;
    let runs = STARTS.div_ceil(bench.plan.rounds);
    for probe in probes {
        // unshare knows no links; it is what `no` compares with.
        if row == "unshare" && probe != "no" {
            continue;
        }
        bench.measure(STARTUP, row, probe, || {
            let vnl = match probe.as_str() {
                "no" => "no".to_owned(),
                _ => format!("ptp://{}", lab.unique("start")),
            };
            let words: &[&str] = match row {
                "unshare" => &["true"],
                _ => &[&vnl, "true"],
            };
            let mut neighbour = Procs::default();
            if probe == "beside" {
                let vnl = format!("ptp://{}", lab.unique("beside"));
                let mut proc = start(lab, row, &[&vnl, "sleep", "86400"])?;
                lab.node_of(&mut proc, Who::First, 0)?;
                neighbour.0.push(proc);
            }
            let times = (0..runs)
                .map(|_| {
                    let begin = Instant::now();
                    start(lab, row, words)?.output(PATIENCE)?;
                    Ok(begin.elapsed().as_secs_f64() * 1000.0)
                })
                .collect::<Result<Vec<f64>>>()?;
            let median = Summary::of(times).ok_or("no runs")?.median;
            Ok(Values::from([(probe.clone(), median)]))
        });
    }
}

/// Measures how much memory a row's namespaces need.
pub(crate) fn visit_memory(bench: &mut Bench<'_>, row: &str, probes: &[String]) {
    let lab = bench.lab;
    for probe in probes {
        bench.measure(MEMORY, row, probe, || {
            let count = if probe == "one" { 1 } else { SEVERAL };
            let mut procs = Procs::default();
            let mut vnl = String::new();
            for number in 0..count {
                if number % 2 == 0 {
                    vnl = format!("ptp://{}", lab.unique("memory"));
                }
                let mut proc = start(lab, row, &[&vnl, "sleep", "86400"])?;
                lab.node_of(&mut proc, Who::First, number)?;
                procs.0.push(proc);
            }
            pause(Duration::from_millis(500))?;
            let mut memory = Memory::default();
            for id in lab.remains() {
                if name(id).as_deref() != Some("sleep") {
                    memory.add(id)?;
                }
            }
            let mebibytes = memory.kibibytes() / 1024.0 / count as f64;
            Ok(vec![(probe.clone(), mebibytes)])
        });
    }
}

/// Resident memory of processes of which some share pages.
#[derive(Debug, Default)]
struct Memory {
    /// What one process alone has, in KiB.
    private: f64,
    /// What it shares, for each mapping; by file and offset or, in what was inherited by a fork, by address.
    shared: BTreeMap<String, f64>,
}

impl Memory {
    fn add(&mut self, id: u32) -> Result<()> {
        let path = format!("/proc/{id}/smaps");
        let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let mut mapping = String::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [key, size, "kB"] => {
                    let size: f64 = size.parse()?;
                    match key {
                        "Private_Clean:" | "Private_Dirty:" => self.private += size,
                        // One follows the other, and they are for different pages.
                        "Shared_Clean:" | "Shared_Dirty:" => {
                            let most = self.shared.entry(format!("{mapping} {key}")).or_default();
                            *most = most.max(size);
                        }
                        _ => {}
                    }
                }
                // Addresses, permissions, offset, device, inode, name.
                [addresses, _, offset, device, inode, ..] if addresses.contains('-') => {
                    mapping = match inode {
                        "0" => addresses.to_owned(),
                        _ => format!("{device} {inode} {offset}"),
                    };
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn kibibytes(&self) -> f64 {
        self.private + self.shared.values().sum::<f64>()
    }
}
