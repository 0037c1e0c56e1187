//! The fuzzer, for seconds: docs/reliability.md has the long run.

use std::collections::BTreeSet;
use std::process::Command;

/// What is fuzzed.
const TARGETS: [&str; 9] = [
    "cut",
    "hello",
    "join",
    "pump",
    "reply",
    "request",
    "settings",
    "vdestream",
    "vnl",
];

#[test]
fn a_little_fuzzing() {
    // Another seed than the long run's.
    let output = Command::new(env!("CARGO_BIN_EXE_vdens-fuzz"))
        .args(["--iterations", "20000", "--seed", "2"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}\n{text}");
    let done = text
        .lines()
        .filter(|line| line.contains(" and 20000 new inputs of seed 2 without a finding"));
    let done: BTreeSet<_> = done.filter_map(|line| line.split(':').next()).collect();
    assert_eq!(done, BTreeSet::from(TARGETS), "{text}");
    assert!(
        !text.contains(" 0 kept"),
        "a target without a corpus: {text}"
    );
}
