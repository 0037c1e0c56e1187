//! What a machine may lack: tests that need it are skipped loudly.
//!
//! A test that cannot run here ends early and says `SKIPPED: test: reason` on standard error, past
//! the test runner's capture; `tests/run` repeats these lines at its end.

use std::io::Write;
use std::path::Path;

use crate::User;

/// Where `tests/setup.sh` keeps the virtual machine's kernel and initial ram disk.
pub const GUEST: &str = "/var/cache/vdens-tests/guest";

/// Skips the test, with the reason, unless the machine has what it needs.
///
/// Needs are `"root"`, `"guest"` (the virtual machine), a kernel of at least a version
/// (`"linux 6.7"`), C plugins of libvdeplug (`"libvdeplug_slirp"`) and names of installed programs.
///
/// ```no_run
/// # fn test() {
/// vdens_tests::need!("root", "vde_switch");
/// # }
/// ```
#[macro_export]
macro_rules! need {
    ($($need:expr),+ $(,)?) => {
        if let Some(reason) = $crate::lacks(&[$($need),+]) {
            $crate::skip(&reason);
            return;
        }
    };
}

/// The first of `needs` that this machine does not have, as a reason to skip.
pub fn lacks(needs: &[&str]) -> Option<String> {
    needs.iter().find_map(|&need| match need {
        "root" => (!User::is_root()).then(|| "the test needs root to build its host".to_owned()),
        "guest" => (!Path::new(GUEST).join("initrd.gz").exists())
            .then(|| format!("no virtual machine in {GUEST}: run tests/setup.sh as root")),
        kernel if kernel.starts_with("linux ") => {
            (!is_running_at_least(kernel)).then(|| format!("the kernel is older than {kernel}"))
        }
        plugin if plugin.starts_with("libvdeplug_") => {
            (!has_plugin(plugin)).then(|| format!("the C plugin {plugin} is not installed"))
        }
        program => (!installed(program)).then(|| format!("{program} is not installed")),
    })
}

/// Whether a program is installed.
pub fn installed(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .any(|directory| Path::new(directory).join(program).exists())
}

/// Whether the kernel is of the version in `linux X.Y`, or newer.
fn is_running_at_least(kernel: &str) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = |text: &str| {
        let mut numbers = text.split(['.', '-', ' ', '\n']).map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    version(&release) >= version(kernel.trim_start_matches("linux "))
}

/// Whether one of the system's library directories has libvdeplug's plugin.
fn has_plugin(name: &str) -> bool {
    let directories = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten();
    let file = format!("vdeplug/{name}.so");
    directories
        .map(|entry| entry.path())
        .any(|path| path.join(&file).exists())
}

/// Reports that the running test is skipped.
#[track_caller]
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let place = std::panic::Location::caller();
    let line = format!(
        "SKIPPED: {} ({place}): {reason}\n",
        thread.name().unwrap_or("?")
    );
    // Not eprintln!, which the test runner keeps to itself when the test passes.
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}
