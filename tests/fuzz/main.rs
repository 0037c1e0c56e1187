//! `vdens-fuzz`: every parser and codec that reads what a stranger wrote, under inputs that no one would think of.
//!
//! Theory of operation. A target is one codec and what must be true of it for every input, be it as odd as
//! it may: more than that it does not crash, for example that what was encoded decodes to the same, that the pieces a
//! stream comes in make no difference, that a cut packet's checksums are right as another implementation sees
//! it. An input is bytes, and says everything: whatever else a property needs, such as where to split, is read
//! from it too. So an input that fails once fails always.
//!
//! The `engine` first replays the inputs kept in tests/fuzz/corpus/TARGET, then makes as many more as are asked for: some
//! by the target's own generator, which knows what the format looks like, some of these and of the kept ones mutated. The
//! generator is deterministic: a seed gives the same inputs everywhere. What fails is printed and kept. No input may take longer
//! than `engine::LONGEST`, nor make the process grow by more than `engine::GROWTH`.
//!
//! `control`, `hello`, `vnl`, `stream`, `offload`, `pump` and `settings` are the targets; `packets` has the other implementation for
//! `offload`.

mod control;
mod engine;
mod hello;
mod offload;
mod packets;
mod pump;
mod random;
mod settings;
mod stream;
mod vnl;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use engine::{Engine, Make};

/// Everything that is fuzzed: its name, which is that of its corpus's directory, and how to make it.
const TARGETS: [(&str, Make); 9] = [
    ("vnl", || Box::new(vnl::Locator)),
    ("vdestream", || Box::new(stream::Stream::default())),
    ("request", || Box::new(control::Requests)),
    ("reply", || Box::new(control::Replies)),
    ("hello", || Box::new(hello::Messages)),
    ("cut", || Box::new(offload::Cut::default())),
    ("join", || Box::new(offload::Join::default())),
    ("pump", || Box::new(pump::Pumped::new())),
    ("settings", || Box::new(settings::Settings)),
];

/// Feed every parser and codec inputs that no one would think of
#[derive(Debug, Parser)]
#[command(name = "vdens-fuzz", version)]
struct Options {
    /// How many inputs each target gets, besides those of the corpus
    #[arg(long, default_value_t = 100_000)]
    iterations: u64,

    /// Only this target; can be repeated
    #[arg(long, value_name = "TARGET", value_parser = TARGETS.map(|(name, _)| name))]
    target: Vec<String>,

    /// What the inputs are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Where inputs are kept, a directory for each target
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus"))]
    corpus: PathBuf,
}

fn main() -> ExitCode {
    let options = Options::parse();
    engine::keep_panics();
    let is_wanted =
        |name: &str| options.target.is_empty() || options.target.iter().any(|t| t == name);
    let mut all_hold = true;
    for (name, make) in TARGETS.into_iter().filter(|(name, _)| is_wanted(name)) {
        let engine = Engine::new(name, make, &options.corpus, options.seed);
        match engine.run(options.iterations) {
            Ok(summary) => println!("{summary}"),
            Err(finding) => {
                println!("{finding}");
                all_hold = false;
            }
        }
    }
    match all_hold {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
