//! `vdens-bench`: how fast the links are, beside what else one could use.
//!
//! Theory of operation. `lab` is the machine: who runs programs, and namespaces; `process` ends
//! what was started. `network` wires contenders, `traffic` measures between two nodes by means of
//! `tools`, which are this same program inside the namespaces. `internet` wires the contenders of
//! `uplink`. That, `links`, `switches`, `stuck`, `costs`, `crowd`, `idle`, `labs`, `machines` and
//! `netem` are the groups of measurements, which `bench` runs in rounds. `results` keeps what comes
//! out, and `report` prints it. `figures` is the results file, from which `pages` and `chart` draw
//! the pages. `compare` shows two builds beside each other. docs/performance.md is the manual.

mod bench;
mod chart;
mod compare;
mod costs;
mod crowd;
mod figures;
mod idle;
mod internet;
mod lab;
mod labs;
mod links;
mod machines;
mod netem;
mod network;
mod pages;
mod process;
mod report;
mod results;
mod stuck;
mod switches;
mod tools;
mod traffic;
mod uplink;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use serde_json::{Value, json};

use bench::Plan;
use figures::Figures;
use lab::{Lab, installed, is_root};
use tools::Tool;

/// Whatever goes wrong ends up as a line for a person.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Measure vdens beside Debian's and beside a veth pair, in namespaces of its own
#[derive(Debug, Parser)]
#[command(name = "vdens-bench", version, args_conflicts_with_subcommands = true)]
struct Options {
    /// How often everything is measured: a round takes 21 minutes [default: 5]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// How long each measurement of traffic takes [default: 2]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: Option<u64>,

    /// A smoke test: one round, a second or less for each, the less important left out
    #[arg(long)]
    quick: bool,

    /// Measure only what has PATTERN in its name, as --list prints them; can be repeated. Ratios
    /// need the row they refer to (veth, bridge, unshare, or Debian's)
    #[arg(long, value_name = "PATTERN")]
    only: Vec<String>,

    /// Where our programs and plugins are [default: beside this program]
    #[arg(long, value_name = "DIR")]
    bin: Option<PathBuf>,

    /// Measure the programs and plugins in DIR by turns with ours, only what is ours, and compare.
    /// Writes no files
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,

    /// Where to write the results and the pages that show them; docs has those of the documentation
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,

    /// Measure nothing, and draw the pages from this results file; the tables of further ones
    /// follow
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rounds", "seconds", "quick", "only", "bin", "against"])]
    from: Vec<PathBuf>,

    /// Print the names of everything, and what this machine cannot do
    #[arg(long)]
    list: bool,

    #[command(subcommand)]
    tool: Option<Hidden>,
}

/// Prints a result. Who reads may go away meanwhile (`| head`): there are files as well, and things
/// to clean up.
pub(crate) fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Prints a line to standard error, if it has a reader.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What the benchmark runs itself with, inside namespaces.
#[derive(Debug, clap::Subcommand)]
enum Hidden {
    #[command(subcommand, hide = true)]
    Tool(Tool),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match options.tool {
        Some(Hidden::Tool(tool)) => tool.run().map(|()| ExitCode::SUCCESS),
        None => match options.from.split_first() {
            Some((file, more)) => redraw(file, more, &options.out).map(|()| ExitCode::SUCCESS),
            None => measure(options),
        },
    };
    result.unwrap_or_else(|error| {
        tell(&format!("vdens-bench: {error}"));
        ExitCode::FAILURE
    })
}

/// Draws the pages from a results file, and the tables of more.
fn redraw(file: &Path, more: &[PathBuf], out: &Path) -> Result<()> {
    let mut figures = Figures::read(file)?;
    for file in more {
        figures.append(Figures::read(file)?);
    }
    pages::write(&figures, out)
}

fn measure(options: Options) -> Result<ExitCode> {
    let (rounds, seconds) = if options.quick { (1, 1) } else { (5, 2) };
    let plan = Plan {
        rounds: options.rounds.unwrap_or(rounds),
        seconds: options.seconds.unwrap_or(seconds),
        quick: options.quick,
        only: options.only,
    };
    let programs = match options.bin {
        Some(directory) => directory,
        None => std::env::current_exe()?
            .parent()
            .ok_or("this program has no directory")?
            .to_owned(),
    };
    let lab = process::catch_signals_after(|| Lab::new(&programs))?;
    if options.list {
        list(&lab, &plan);
        return Ok(ExitCode::SUCCESS);
    }
    if !installed("iperf3") {
        tell("vdens-bench: iperf3 is not installed: there will be no TCP");
    }
    if cfg!(debug_assertions) {
        tell("vdens-bench: a debug build: senders are slower than they should be");
    }
    if let Some(directory) = options.against {
        let old = process::catch_signals_after(|| Lab::new(&directory))?;
        return compare(&lab, &old, &plan);
    }
    warn_of_missing(&lab, &plan);
    let machine = machine(&plan, &lab);
    let [results] = bench::run([&lab], &plan);
    let figures = results.figures(machine, report::measured_bars(&results));
    let origin = figures.origin().join("; ");
    print(&format!("{origin}\n{}\n", report::text(&results)));
    pages::write(&figures, &options.out)?;
    process::check_interrupted()?;
    Ok(match results.failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(2),
    })
}

/// Measures two builds.
fn compare(new: &Lab, old: &Lab, plan: &Plan) -> Result<ExitCode> {
    let [new, old] = bench::run([new, old], plan);
    print(&compare::text(&new, &old));
    process::check_interrupted()?;
    Ok(match new.failures.is_empty() && old.failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(2),
    })
}

/// Says beforehand what will not be measured.
fn warn_of_missing(lab: &Lab, plan: &Plan) {
    for (group, probes, _) in bench::groups(lab, plan) {
        for row in &group.rows {
            let name = format!("{}/{}", group.id, row.id);
            let mut probes = probes.iter();
            let is_wanted = probes.any(|probe| plan.wants(&format!("{name}/{probe}")));
            if let Some(why) = row.missing.as_ref().filter(|_| is_wanted) {
                tell(&format!("vdens-bench: MISSING: {name}: {why}"));
            }
        }
    }
}

fn list(lab: &Lab, plan: &Plan) {
    for (group, probes, _) in bench::groups(lab, plan) {
        for row in &group.rows {
            for probe in &probes {
                let name = format!("{}/{}/{probe}", group.id, row.id);
                let missing = row.missing.as_ref();
                let missing = missing.map(|why| format!("  (missing: {why})"));
                if plan.wants(&name) {
                    print(&format!("{name}{}\n", missing.unwrap_or_default()));
                }
            }
        }
    }
}

/// What the figures depend on.
fn machine(plan: &Plan, lab: &Lab) -> Value {
    let read = |path| {
        fs::read_to_string(path).map_or_else(|_| String::new(), |text| text.trim().to_owned())
    };
    let output = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Some(text.lines().next()?.to_owned())
    };
    let packages = ["vdens", "vdeplug", "vde-switch"].map(|package| {
        let version = output("dpkg-query", &["-W", "-f", "${Version}\n", package]);
        (package, version)
    });
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    json!({
        "date": output("date", &["-u", "+%Y-%m-%d"]),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "command": format!("vdens-bench {}", arguments.join(" ")).trim_end(),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "quick": plan.quick,
        "root": is_root(),
        "user": lab.user(),
        "load": read("/proc/loadavg"),
        "iperf3": output("iperf3", &["--version"]),
        "debian": packages.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
    })
}
