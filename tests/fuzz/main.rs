//! `vdens-fuzz`: libFuzzer, with the target that `$VDENS_FUZZ_TARGET` names.
//!
//! Theory of operation. `tests/fuzz/run` builds this program with coverage counters and starts it
//! for each target. libFuzzer mutates the inputs of the corpus and those it has found, and keeps
//! each that reaches code that none before did. It writes an input that fails, panics or hangs to
//! a file. Every few inputs come from the target's own generator, which knows the format.
//! docs/reliability.md has the properties.

#![no_main]

mod targets;

use std::cell::RefCell;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

use targets::{Make, TARGETS, Target, Watched};

thread_local! {
    // libFuzzer calls from one thread.
    static TARGET: RefCell<Watched> = RefCell::new(Watched::new(named()));
}

/// The target of the environment.
fn named() -> Make {
    let name = std::env::var("VDENS_FUZZ_TARGET").unwrap_or_default();
    let all = TARGETS.iter().chain(&[("maze", maze as Make)]);
    let found = all.into_iter().find(|(target, _)| *target == name);
    let names = TARGETS.map(|(name, _)| name).join(", ");
    found
        .unwrap_or_else(|| panic!("$VDENS_FUZZ_TARGET is '{name}', and must be one of {names}"))
        .1
}

fuzz_target!(|input: &[u8]| {
    let outcome = TARGET.with_borrow_mut(|target| target.check(input));
    outcome.unwrap_or_else(|what| panic!("FINDING: {what}"));
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = fastrand::Rng::with_seed(seed.into());
    if random.u8(..4) != 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let mut input = Vec::new();
    TARGET.with_borrow_mut(|target| target.generate(&mut random, &mut input));
    input.truncate(max_size);
    data[..input.len()].copy_from_slice(&input);
    match random.bool() {
        true => input.len(),
        false => fuzzer_mutate(data, input.len(), max_size),
    }
});

/// A target with a way in that only coverage can show: a test of the fuzzer itself.
fn maze() -> Box<dyn Target> {
    Box::new(Maze)
}

struct Maze;

impl Target for Maze {
    fn generate(&mut self, random: &mut fastrand::Rng, input: &mut Vec<u8>) {
        input.push(random.u8(..));
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        for (door, key) in b"way-in".iter().enumerate() {
            if input.get(door) != Some(key) {
                return Ok(());
            }
        }
        Err("the way in".to_owned())
    }
}
