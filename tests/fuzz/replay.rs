//! The targets of the fuzzer without libFuzzer: the corpus, and inputs of the targets' generators.

mod targets;

use std::fs;
use std::path::Path;

use targets::{TARGETS, Watched};

/// How many generated inputs each target gets.
const GENERATED: usize = 2000;

#[test]
fn every_property_holds_for_the_corpus() {
    for (name, make) in TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let mut target = Watched::new(make);
        let mut number = 0;
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            // Shown with the output of a test that fails.
            println!("{}", path.display());
            let outcome = target.check(&fs::read(path).unwrap());
            assert_eq!(outcome, Ok(()), "{name}");
            number += 1;
        }
        assert!(number > 0, "{} is empty", directory.display());
    }
}

#[test]
fn every_property_holds_for_generated_inputs() {
    for (name, make) in TARGETS {
        let (mut target, mut random) = (Watched::new(make), fastrand::Rng::with_seed(1));
        let mut input = Vec::new();
        for _ in 0..GENERATED {
            target.generate(&mut random, &mut input);
            assert_eq!(target.check(&input), Ok(()), "{name}: {input:x?}");
        }
    }
}
