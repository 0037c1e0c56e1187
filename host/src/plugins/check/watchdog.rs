//! Knows which function of the plugin is running, and since when. Ends a check whose plugin blocks.

use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};

use super::CheckResult;

/// How long opening a link may take.
const OPEN: Duration = Duration::from_secs(10);
/// How long any other call may take. A link must not block, but a busy machine can delay it.
const CALL: Duration = Duration::from_secs(5);

/// The calls that are running. `open` runs beside others.
static CALLS: Mutex<Vec<(&'static str, Instant)>> = Mutex::new(Vec::new());
/// Where the result is written, once.
static REPORT: Mutex<Option<File>> = Mutex::new(None);

/// A watchdog. A process has one at most.
#[derive(Debug)]
pub(super) struct Watchdog(());

impl Watchdog {
    /// Starts to watch. The result is written to `to`.
    pub(super) fn start(to: File) -> Self {
        *REPORT.lock().unwrap_or_else(PoisonError::into_inner) = Some(to);
        thread::spawn(watch);
        Self(())
    }

    /// Writes the result.
    pub(super) fn finish(self, verdict: &CheckResult) {
        write(verdict);
    }
}

/// Calls the plugin, watched.
pub(super) fn call<T>(name: &'static str, code: impl FnOnce() -> T) -> T {
    let running = || CALLS.lock().unwrap_or_else(PoisonError::into_inner);
    running().push((name, Instant::now()));
    let result = code();
    let mut running = running();
    if let Some(at) = running.iter().rposition(|(other, _)| *other == name) {
        running.remove(at);
    }
    result
}

fn write(verdict: &CheckResult) {
    let file = REPORT.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(mut file) = file {
        // If the parent is gone, nothing needs the result.
        let _ = file.write_all(&serde_json::to_vec(verdict).unwrap_or_default());
    }
}

fn watch() {
    loop {
        thread::sleep(Duration::from_millis(50));
        let calls = CALLS.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = |name: &str| if name == "open" { OPEN } else { CALL };
        let late = calls
            .iter()
            .find(|(name, since)| since.elapsed() > limit(name));
        let Some((name, _)) = late else {
            continue;
        };
        let why = format!("{name}() did not return within {} s", limit(name).as_secs());
        let remedy = match *name {
            "open" => "open() must give up after a while, with an error that says what is missing",
            _ => "a link must not block: use non-blocking descriptors, and return on EAGAIN",
        };
        write(&CheckResult::failed(why, remedy));
        // The plugin did not return, so nothing can be closed in order.
        let _ = raise(Signal::SIGKILL);
    }
}
