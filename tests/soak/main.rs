//! `vdens-soak`: links that carry TCP for hours while everything they depend on is killed and
//! stopped.
//!
//! Theory of operation. Each link has two namespaces. In one, `stream` sends consecutive numbers
//! through TCP; in the other it receives and compares them, so a byte that is lost, doubled or
//! changed is found at once. Meanwhile, every few seconds, something fails: a worker, a supervisor,
//! a switch, the panel's service, or a session that comes and goes. Samples of memory, descriptors
//! and processes are printed on the way. The soak passes if every stream moved to the end, no byte
//! was wrong, no process grew, and nothing is left behind, which the kit's [`Lab`] checks.
//! docs/reliability.md has the outcome.

mod faults;
mod links;
mod sample;
mod stream;

use std::io;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Parser;
use vdens_tests::Lab;

use faults::Faults;
use links::Links;
use sample::Sample;
use stream::Tool;

/// How long everything settles before memory is looked at.
const WARM_UP: Duration = Duration::from_secs(60);
/// Between samples.
const PERIOD: Duration = Duration::from_secs(30);
/// Between faults.
const PAUSE: Duration = Duration::from_secs(4);
/// How long without faults at the end, in which every stream must move.
const QUIET: Duration = Duration::from_secs(15);
/// How much a process may grow after the warm-up, in KiB.
const GROWTH: u64 = 1024;

/// Keep links of all kinds busy while what they depend on fails
#[derive(Debug, Parser)]
#[command(name = "vdens-soak", args_conflicts_with_subcommands = true)]
struct Options {
    /// How long
    #[arg(long, default_value_t = 3600)]
    seconds: u64,

    /// What decides which faults come when
    #[arg(long, default_value_t = 1)]
    seed: u64,

    #[command(subcommand)]
    tool: Option<Tool>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match options.tool {
        Some(tool) => tool.run(),
        None => soak(&options).unwrap_or_else(|error| {
            eprintln!("vdens-soak: {error}");
            ExitCode::FAILURE
        }),
    }
}

fn soak(options: &Options) -> io::Result<ExitCode> {
    let lab = Lab::new();
    let mut links = Links::new(&lab)?;
    let mut faults = Faults::new(options.seed);
    let start = Instant::now();
    let end = start + Duration::from_secs(options.seconds);
    let mut warm: Option<Sample> = None;
    let mut next = start + PERIOD;
    while Instant::now() + QUIET < end {
        let fault = faults.strike(&mut links);
        println!("{:>6} s  {fault}", start.elapsed().as_secs());
        if Instant::now() >= next {
            next += PERIOD;
            let sample = Sample::take(&links);
            println!("{:>6} s  {sample}; {links}", start.elapsed().as_secs());
            if warm.is_none() && start.elapsed() >= WARM_UP {
                warm = Some(sample);
            }
        }
        sleep(PAUSE);
    }
    let before = links.totals();
    sleep(QUIET);
    let stuck = links.stuck_since(&before);
    let last = Sample::take(&links);
    let grown = warm
        .as_ref()
        .map_or(Vec::new(), |warm| last.grown_since(warm, GROWTH));
    println!(
        "after {} s\n{faults}{links}\n{last}",
        start.elapsed().as_secs()
    );
    let wrong = links.wrong();
    for complaint in wrong.iter().chain(&stuck).chain(&grown) {
        println!("WRONG: {complaint}");
    }
    drop(links);
    // Looks for what is left behind, and panics if there is something.
    drop(lab);
    match wrong.is_empty() && stuck.is_empty() && grown.is_empty() {
        true => {
            println!("as it should be");
            Ok(ExitCode::SUCCESS)
        }
        false => Ok(ExitCode::FAILURE),
    }
}
