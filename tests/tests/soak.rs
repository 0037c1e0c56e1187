//! The soak, for a moment: docs/reliability.md has the long one.

use std::process::Command;

use vdens_tests::need;

#[test]
fn a_little_soaking() {
    need!("vdens", "vde_switch");
    let output = Command::new(env!("CARGO_BIN_EXE_vdens-soak"))
        .args(["--seconds", "40", "--seed", "3"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{output:?}");
}
