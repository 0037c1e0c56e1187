//! The groups `start-up` and `memory`: what a namespace costs before any frame.
//!
//! Theory of operation. Start-up is the time from the moment at which a process executes a program,
//! which runs `true`, to its end as its parent sees it. The fork and the change of user are not
//! part of it. The contenders take turns: each is started [`STARTS`] times in a round, and the
//! median counts. A start that does not end within [`HUNG`] is ended and counted apart.
//!
//! Memory is the resident memory of all processes of a namespace but the command. Pages that
//! several of them share count once, and in full, although other programs may share them too (the
//! sum of `Pss` would be less). What the kernel needs for a network namespace is not in it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use crate::Result;
use crate::bench::{Bench, Values};
use crate::lab::{Lab, Maker, Node, PATIENCE, Who, installed};
use crate::process::{Proc, Procs, pause};
use crate::results::{Better, Group, Measure, Row, Summary};
use vdens_tests::name;

/// The name of the group of start-up times.
pub(crate) const STARTUP: &str = "start-up";
/// The name of the group of memory sizes.
pub(crate) const MEMORY: &str = "memory";
/// How often a program is started in a round.
const STARTS: u32 = 30;
/// How long a start may take. Debian's vdens sometimes never ends.
const HUNG: Duration = Duration::from_secs(1);
/// How many namespaces there are when there are several.
const SEVERAL: usize = 8;

/// What is started: names and titles.
const STARTS_OF: &[(&str, &str)] = &[
    ("ptp", "vdens ptp://… true"),
    ("beside", "vdens ptp://… true, beside another namespace"),
    ("no", "vdens no true"),
];

pub(crate) fn vdens_rows(lab: &Lab) -> Vec<Row> {
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
    let mut measures = Vec::new();
    for (key, title) in STARTS_OF {
        measures.push(Measure::new(*key, *title, "ms", Better::Less));
        let (key, title) = (format!("{key}-hung"), format!("{title}: never ended"));
        measures.push(Measure::new(key, title, "%", Better::Less).absolute());
    }
    Group {
        id: STARTUP,
        title: "Start-up, `true` and exit",
        reference: Some(("unshare", "unshare")),
        rivals: "Debian's",
        rows,
        measures,
    }
}

/// The rows and measures of the memory sizes.
pub(crate) fn memory_group(lab: &Lab) -> Group {
    let measure = |key, title: String| Measure::new(key, title, "MiB", Better::Less);
    Group {
        id: MEMORY,
        title: "Memory of an idle namespace, all processes",
        reference: None,
        rivals: "Debian's",
        rows: vdens_rows(lab),
        measures: vec![
            measure("one", "The only namespace, on ptp://".to_owned()),
            measure("several", format!("Each of {SEVERAL}, in pairs on ptp://")),
        ],
    }
}

/// The names of what is run.
pub(crate) fn startup_probes() -> Vec<String> {
    let names = STARTS_OF.iter().map(|(name, _)| (*name).to_owned());
    names.collect()
}

/// The names of what is run.
pub(crate) fn memory_probes() -> Vec<String> {
    ["one", "several"].map(str::to_owned).to_vec()
}

/// The program and the options that a row stands for.
pub(crate) fn program(lab: &Lab, row: &str) -> (PathBuf, &'static [&'static str]) {
    match row {
        "unshare" => (PathBuf::from("/usr/bin/unshare"), &["-Urn"]),
        "debian" => (lab.program(Maker::Debian, "vdens"), &[]),
        "ours-no-panel" => (lab.program(Maker::Ours, "vdens"), &["--no-panel"]),
        _ => (lab.program(Maker::Ours, "vdens"), &[]),
    }
}

fn start<'lab>(lab: &'lab Lab, row: &str, words: &[&str]) -> Proc<'lab> {
    let (program, options) = program(lab, row);
    Proc::spawn(lab.command(Who::First, &program, options.iter().chain(words)))
}

/// Measures how long the rows take to start.
pub(crate) fn visit_startup(bench: &mut Bench<'_>, probe: &str, rows: &[&str]) {
    let lab = bench.lab;
    // unshare knows no links; it is what `no` compares with.
    let rows = rows
        .iter()
        .filter(|row| **row != "unshare" || probe == "no");
    bench.announce(&format!("{STARTUP}/*/{probe}"));
    let mut all: Vec<Starts<'_>> = Vec::new();
    for row in rows {
        let starts = Starts::prepare(lab, row, probe);
        if let Some(starts) = bench.set_up(STARTUP, row, || starts) {
            all.push(starts);
        }
    }
    for _ in 0..STARTS {
        for starts in &mut all {
            starts.one(lab);
        }
    }
    for starts in all {
        let row = starts.row;
        bench.record(STARTUP, row, probe, starts.values(probe));
    }
}

/// The starts of a row in a round.
#[derive(Debug)]
pub(crate) struct Starts<'a> {
    pub(crate) row: &'a str,
    program: PathBuf,
    words: Vec<String>,
    /// In whose network, if not in the caller's.
    host: Option<&'a Node>,
    /// In milliseconds.
    times: Vec<f64>,
    hung: u32,
    failure: Option<String>,
    /// A session that runs meanwhile.
    _neighbour: Option<Proc<'a>>,
}

impl<'a> Starts<'a> {
    /// None yet, of the row's program with these words.
    pub(crate) fn new(lab: &Lab, row: &'a str, words: Vec<String>) -> Self {
        let (program, options) = program(lab, row);
        let options = options.iter().map(|option| (*option).to_owned());
        Self::of(row, program, options.chain(words).collect(), None)
    }

    /// None yet, of any program, in a host's network.
    pub(crate) fn of(
        row: &'a str,
        program: PathBuf,
        words: Vec<String>,
        host: Option<&'a Node>,
    ) -> Self {
        Self {
            row,
            program,
            words,
            host,
            times: Vec::new(),
            hung: 0,
            failure: None,
            _neighbour: None,
        }
    }

    fn prepare(lab: &'a Lab, row: &'a str, probe: &str) -> Result<Self> {
        let vnl = match probe {
            "no" => "no".to_owned(),
            _ => format!("ptp://{}", lab.unique("start")),
        };
        let words = match row {
            "unshare" => vec!["true".to_owned()],
            _ => vec![vnl, "true".to_owned()],
        };
        let mut neighbour = None;
        if probe == "beside" {
            let vnl = format!("ptp://{}", lab.unique("beside"));
            let proc = neighbour.insert(start(lab, row, &[&vnl, "sleep", "86400"]));
            lab.node_of(proc, Who::First, 0)?;
        }
        Ok(Self {
            _neighbour: neighbour,
            ..Self::new(lab, row, words)
        })
    }

    /// Starts it once, unless it has failed before.
    pub(crate) fn one(&mut self, lab: &Lab) {
        if self.failure.is_none() {
            match self.time(lab) {
                Ok(Some(time)) => self.times.push(time.as_secs_f64() * 1000.0),
                Ok(None) => self.hung += 1,
                Err(error) => self.failure = Some(error.to_string()),
            }
        }
    }

    /// From the program's execution to its end, or to the time that its command reports; `None` if
    /// it does not end.
    fn time(&self, lab: &Lab) -> Result<Option<Duration>> {
        let command = lab.command(Who::First, &self.program, &self.words);
        let (mut reader, writer) = std::io::pipe()?;
        let stamp = move || {
            let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
            (&writer).write_all(&now.as_nanos().to_ne_bytes())
        };
        let spawn = || {
            Proc::spawn_changed(command, |command| {
                // SAFETY: between fork and exec it asks for the time and writes to a pipe, which
                // are system calls only.
                unsafe { command.pre_exec(stamp) };
            })
        };
        let proc = match self.host {
            Some(host) => host.within(spawn)?,
            None => spawn(),
        };
        if !proc.ends(HUNG)? {
            return Ok(None);
        }
        let end = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let end = reported_time(&proc.output(PATIENCE)?).unwrap_or(end);
        let mut stamp = [0; size_of::<u128>()];
        reader.read_exact(&mut stamp)?;
        let begin = Duration::from_nanos(u64::try_from(u128::from_ne_bytes(stamp))?);
        Ok(Some(end - begin))
    }

    /// How long a start takes, in milliseconds.
    pub(crate) fn median(self) -> Result<f64> {
        if let Some(failure) = self.failure {
            return Err(failure.into());
        }
        Ok(Summary::of(self.times).ok_or("it never ended")?.median)
    }

    fn values(self, probe: &str) -> Result<Values> {
        let hung = 100.0 * f64::from(self.hung) / f64::from(STARTS);
        let median = self.median()?;
        Ok(vec![
            (probe.to_owned(), median),
            (format!("{probe}-hung"), hung),
        ])
    }
}

/// The time that a command reports (`tool first`).
fn reported_time(output: &str) -> Option<Duration> {
    let report: Value = serde_json::from_str(output).ok()?;
    report["at"].as_u64().map(Duration::from_nanos)
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
                let proc = start(lab, row, &[&vnl, "sleep", "86400"]);
                lab.node_of(&proc, Who::First, number)?;
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
pub(crate) struct Memory {
    /// What one process alone has, in KiB.
    private: f64,
    /// What it shares, for each mapping; by file and offset or, in what was inherited by a fork, by
    /// address.
    shared: BTreeMap<String, f64>,
}

impl Memory {
    /// Adds a process.
    pub(crate) fn add(&mut self, id: i32) -> Result<()> {
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

    /// The sum.
    pub(crate) fn kibibytes(&self) -> f64 {
        self.private + self.shared.values().sum::<f64>()
    }
}
