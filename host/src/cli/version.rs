//! What `--version` prints: the version, the commit if it is known, and the doors of the plugin ABI
//! that plugins can have.
//! `-V` prints the first line alone.

use std::sync::LazyLock;

use vdens_plugin_kit::adapters::Door;

static LONG: LazyLock<String> = LazyLock::new(|| {
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("VDENS_COMMIT").map(|commit| format!("commit {commit}\n"));
    let doors: Vec<&str> = Door::ALL.iter().map(|door| door.name()).collect();
    let doors = doors.join(", ");
    format!(
        "{version}\n{}plugin ABI 1 ({doors})",
        commit.unwrap_or_default()
    )
});

/// The version in full.
pub(crate) fn long() -> &'static str {
    &LONG
}
