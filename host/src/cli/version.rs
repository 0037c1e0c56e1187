//! What `--version` prints: the version, the commit if it is known, and what plugins can speak.
//! `-V` prints the first line alone.

use std::sync::LazyLock;

/// The ways in which a plugin's file can offer ABI 1, by the names that `vdectl plugin list` has.
const DOORS: &[&str] = &["abi_stable"];

static LONG: LazyLock<String> = LazyLock::new(|| {
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("VDENS_COMMIT").map(|commit| format!("commit {commit}\n"));
    let doors = DOORS.join(", ");
    format!(
        "{version}\n{}plugin ABI 1 ({doors})",
        commit.unwrap_or_default()
    )
});

/// The version in full.
pub(crate) fn long() -> &'static str {
    &LONG
}
