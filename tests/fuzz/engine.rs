//! Running a target: the corpus, new inputs, and what is done with one that fails.

use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use crate::random::Random;

/// The longest that an input may take, in time of the processor.
pub(crate) const LONGEST: Duration = Duration::from_secs(1);

/// The most that the process may grow while a target runs, in KiB.
pub(crate) const GROWTH: u64 = 32 * 1024;

/// The longest input, in bytes.
const LONGEST_INPUT: usize = 128 * 1024;

/// Something to be fuzzed.
pub(crate) trait Target {
    /// Appends an input, of the kind that the target expects or nearly so, to `input`, which is empty.
    fn generate(&mut self, random: &mut Random, input: &mut Vec<u8>);

    /// Tries an input.
    ///
    /// # Errors
    /// A property that does not hold for it. A panic is a finding too.
    fn check(&mut self, input: &[u8]) -> Result<(), String>;
}

/// Makes a target anew, as after one that has panicked.
pub(crate) type Make = fn() -> Box<dyn Target>;

/// An error that reads `message`, unless `holds`.
pub(crate) fn ensure(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    match holds {
        true => Ok(()),
        false => Err(message()),
    }
}

/// A target with its corpus.
pub(crate) struct Engine {
    name: &'static str,
    make: Make,
    directory: PathBuf,
    corpus: Vec<Vec<u8>>,
    seed: u64,
}

/// A run without a finding.
#[derive(Debug)]
pub(crate) struct Summary {
    name: &'static str,
    kept: usize,
    iterations: u64,
    seed: u64,
    took: Duration,
    longest: Duration,
    /// In KiB.
    grown: u64,
}

/// An input for which something does not hold.
#[derive(Debug)]
pub(crate) struct Finding {
    name: &'static str,
    seed: u64,
    what: String,
    input: Vec<u8>,
    /// Where the input is kept, or why it is not.
    kept: String,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} kept and {} new inputs of seed {} without a finding, {:.0} a second of processor time, {:.1} ms the longest, {} KiB grown",
            self.name,
            self.kept,
            self.iterations,
            self.seed,
            self.iterations as f64 / self.took.as_secs_f64().max(1e-9),
            self.longest.as_secs_f64() * 1000.0,
            self.grown,
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex: String = self
            .input
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        write!(
            f,
            "FINDING in {}, seed {}: {}\n  input: {hex}\n  {}",
            self.name, self.seed, self.what, self.kept
        )
    }
}

impl Engine {
    /// A target by its name, which is also that of its directory below `corpus`.
    pub(crate) fn new(name: &'static str, make: Make, corpus: &Path, seed: u64) -> Self {
        let directory = corpus.join(name);
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        // So that the order, and with it what a seed gives, is the same everywhere.
        files.sort();
        let corpus = files
            .iter()
            .filter_map(|file| fs::read(file).ok())
            .collect();
        Self {
            name,
            make,
            directory,
            corpus,
            seed,
        }
    }

    /// Tries the corpus and `iterations` new inputs.
    ///
    /// # Errors
    /// The first finding; its input was put into the corpus.
    pub(crate) fn run(&self, iterations: u64) -> Result<Summary, Finding> {
        let mut target = (self.make)();
        // As large as it becomes on what is known.
        let mut meter = Meter::start();
        for input in &self.corpus {
            self.attempt(&mut *target, input, &mut meter)?;
        }
        let before = peak_memory();
        let start = processor_time();
        let mut random = Random::new(self.seed);
        let mut input = Vec::new();
        for _ in 0..iterations {
            input.clear();
            self.invent(&mut *target, &mut random, &mut input);
            self.attempt(&mut *target, &input, &mut meter)?;
        }
        let grown = peak_memory().saturating_sub(before);
        if grown > GROWTH {
            return Err(self.finding(format!("the process has grown by {grown} KiB"), &input));
        }
        Ok(Summary {
            name: self.name,
            kept: self.corpus.len(),
            iterations,
            seed: self.seed,
            took: meter.last.saturating_sub(start),
            longest: meter.longest,
            grown,
        })
    }

    /// Makes an input: a quarter of them as the target likes it, a quarter out of the corpus with changes,
    /// the rest as the target likes it with changes.
    fn invent(&self, target: &mut dyn Target, random: &mut Random, input: &mut Vec<u8>) {
        let empty = Vec::new();
        let kept = match self.corpus.len() {
            0 => &empty,
            count => &self.corpus[random.below(count)],
        };
        match random.below(4) {
            0 => target.generate(random, input),
            1 if !kept.is_empty() => {
                input.extend(kept);
                random.mutate(input, kept);
            }
            _ => {
                target.generate(random, input);
                random.mutate(input, kept);
            }
        }
        input.truncate(LONGEST_INPUT);
    }

    fn attempt(
        &self,
        target: &mut dyn Target,
        input: &[u8],
        meter: &mut Meter,
    ) -> Result<(), Finding> {
        let outcome = quietly(|| target.check(input));
        let took = meter.lap();
        let outcome =
            outcome.and_then(|()| ensure(took <= LONGEST, || format!("it takes {took:?}")));
        outcome.map_err(|what| self.finding(what, input))
    }

    /// Keeps an input.
    fn finding(&self, what: String, input: &[u8]) -> Finding {
        let mut hasher = DefaultHasher::new();
        input.hash(&mut hasher);
        let file = self
            .directory
            .join(format!("finding-{:016x}", hasher.finish()));
        let written = fs::create_dir_all(&self.directory).and_then(|()| fs::write(&file, input));
        Finding {
            name: self.name,
            seed: self.seed,
            what,
            input: input.to_vec(),
            kept: match written {
                Ok(()) => format!("kept as {}", file.display()),
                Err(error) => format!("not kept: cannot write {}: {error}", file.display()),
            },
        }
    }
}

/// How long inputs take, the making of them included.
struct Meter {
    last: Duration,
    longest: Duration,
}

impl Meter {
    fn start() -> Self {
        Self {
            last: processor_time(),
            longest: Duration::ZERO,
        }
    }

    /// How long the last input took.
    fn lap(&mut self) -> Duration {
        let now = processor_time();
        let took = now.saturating_sub(self.last);
        self.last = now;
        self.longest = self.longest.max(took);
        took
    }
}

/// How much time this thread has had of a processor: on a busy machine less than a clock says.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// The most memory that this process has had, in KiB (proc_pid_status(5)).
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

thread_local! {
    /// What the last panic said.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Has panics kept for [`Finding`]s instead of printed.
pub(crate) fn keep_panics() {
    set_hook(Box::new(|info| {
        PANIC.set(info.to_string().replace('\n', " "))
    }));
}

/// Calls `check`, and makes a panic an error.
fn quietly(check: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(check))
        .unwrap_or_else(|_| Err(format!("panic: {}", PANIC.with_borrow(Clone::clone))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails on inputs that contain 7, panics on those that contain 8 and is slow for those that contain 9.
    struct Picky;

    impl Target for Picky {
        fn generate(&mut self, random: &mut Random, input: &mut Vec<u8>) {
            random.append(input, 3);
        }

        fn check(&mut self, input: &[u8]) -> Result<(), String> {
            assert!(!input.contains(&8), "an 8");
            let start = processor_time();
            while input.contains(&9) && processor_time() - start <= LONGEST {}
            ensure(!input.contains(&7), || "a 7".to_owned())
        }
    }

    fn engine(corpus: &Path) -> Engine {
        Engine::new("picky", || Box::new(Picky), corpus, 1)
    }

    #[test]
    fn what_fails_is_reported_kept_and_found_again() {
        let corpus = tempfile::tempdir().unwrap();
        let finding = engine(corpus.path()).run(100_000).unwrap_err();
        let kept = fs::read_dir(corpus.path().join("picky")).unwrap();
        let kept: Vec<_> = kept
            .map(|entry| fs::read(entry.unwrap().path()).unwrap())
            .collect();
        assert_eq!(kept, std::slice::from_ref(&finding.input));
        assert!(finding.to_string().contains("seed 1"), "{finding}");
        let again = engine(corpus.path()).run(0).unwrap_err();
        assert_eq!(again.what, finding.what);
    }

    #[test]
    fn panics_and_slowness_are_findings() {
        for (input, what) in [([8], "panic"), ([9], "it takes"), ([7], "a 7")] {
            let corpus = tempfile::tempdir().unwrap();
            fs::create_dir(corpus.path().join("picky")).unwrap();
            fs::write(corpus.path().join("picky/x"), input).unwrap();
            let finding = engine(corpus.path()).run(0).unwrap_err();
            assert!(finding.what.starts_with(what), "{finding}");
        }
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(engine(nothing.path()).run(0).unwrap().kept, 0);
    }
}
