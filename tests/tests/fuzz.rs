//! The fuzzer with coverage, for seconds: docs/reliability.md has the long run. `--test fuzz` has
//! the corpus without it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use vdens_tests::need;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// Runs tests/fuzz/run.
fn fuzz(words: &[&str]) -> (Output, String) {
    let mut run = Command::new(directory().join("run"));
    let output = run.args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{run:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, text)
}

#[test]
fn a_little_fuzzing() {
    need!("g++");
    let corpus = std::fs::read_dir(directory().join("corpus")).unwrap();
    let targets = corpus.count();
    let (output, text) = fuzz(&["-runs=20000", "-seed=2"]);
    assert!(output.status.success(), "{output:?}\n{text}");
    // libFuzzer may run one input more.
    let done = text.matches("Done 2000").count();
    assert_eq!((done, targets), (22, 22), "{text}");
}

/// The input that fails is six bytes of which each opens a branch: coverage finds one at a time,
/// chance alone would need 2^48 inputs.
#[test]
fn coverage_leads_to_the_input_that_fails_which_is_kept() {
    need!("g++");
    let kept = tempfile::tempdir().unwrap();
    let found = kept.path().join("finding-");
    let keep = format!("-artifact_prefix={}", found.display());
    let (output, text) = fuzz(&["-runs=10000000", "-seed=1", &keep, "maze"]);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("FINDING: the way in"), "{text}");
    let finding = std::fs::read_dir(kept.path()).unwrap().next();
    let finding = finding.expect("the input is kept").unwrap().path();
    assert!(std::fs::read(&finding).unwrap().starts_with(b"way-in"));
    let (again, text) = fuzz(&[finding.to_str().unwrap(), "-runs=1", "maze"]);
    assert!(
        !again.status.success() && text.contains("the way in"),
        "{text}"
    );
}
