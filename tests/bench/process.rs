//! The tests' processes, for the benchmark: errors instead of panics, and ends by a signal.
//!
//! Theory of operation. A signal to the benchmark makes every wait an error, which unwinds to where
//! everything is cleaned up.

use std::process::{ChildStdin, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use vdens_tests::{Cmd, Output};

use crate::Result;

/// How soon a wait notices a signal to the benchmark.
const ATTENTION: Duration = Duration::from_millis(100);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// The signals that end a program.
const ENDING: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGHUP,
];

/// Sets something up that has to be cleaned up, and then turns the signals that end a program into
/// errors of all waits. Signals that come before wait.
pub(crate) fn catch_signals_after<T>(set_up: impl FnOnce() -> Result<T>) -> Result<T> {
    let signals = SigSet::from_iter(ENDING);
    signals.thread_block()?;
    let made = set_up();
    let action = SigAction::new(
        SigHandler::Handler(interrupt),
        SaFlags::empty(),
        SigSet::empty(),
    );
    for signal in ENDING {
        // SAFETY: the handler only stores to an atomic.
        unsafe { sigaction(signal, &action) }?;
    }
    signals.thread_unblock()?;
    made
}

/// An error if the benchmark is to end.
pub(crate) fn check_interrupted() -> Result<()> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => Err("interrupted".into()),
        false => Ok(()),
    }
}

/// Sleeps, unless the benchmark is to end.
pub(crate) fn pause(time: Duration) -> Result<()> {
    sleep(time);
    check_interrupted()
}

/// Asks until there is an answer.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Option<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if Instant::now() > deadline {
            return Err(format!("not after {limit:?}: {what}").into());
        }
        pause(Duration::from_millis(5))?;
    }
}

/// A running process. Its standard input stays open and silent: vde_switch ends with it.
#[derive(Debug)]
pub(crate) struct Proc<'lab> {
    proc: vdens_tests::Proc<'lab>,
    _stdin: ChildStdin,
}

impl<'lab> Proc<'lab> {
    pub(crate) fn spawn(command: Cmd<'lab>) -> Self {
        Self::spawn_changed(command, |_| ())
    }

    /// Starts a command after a last change.
    pub(crate) fn spawn_changed(command: Cmd<'lab>, change: impl FnOnce(&mut Command)) -> Self {
        let (proc, stdin) = command.leaving_its_group().spawn_changed(change);
        Self {
            proc,
            _stdin: stdin,
        }
    }

    pub(crate) fn id(&self) -> i32 {
        self.proc.pid()
    }

    /// What it wrote to standard output, if it succeeds within a time.
    pub(crate) fn output(mut self, limit: Duration) -> Result<String> {
        let output = self.wait(limit)?;
        match output.status.success() {
            true => Ok(output.stdout),
            false => Err(self.complaint(&output.status.to_string())),
        }
    }

    /// What it wrote to standard output, whatever its status.
    pub(crate) fn any_output(mut self, limit: Duration) -> Result<String> {
        self.wait(limit).map(|output| output.stdout)
    }

    /// An error if it has ended.
    pub(crate) fn check(&self) -> Result<()> {
        match self.proc.is_running() {
            true => Ok(()),
            false => Err(self.complaint("has ended")),
        }
    }

    fn wait(&mut self, limit: Duration) -> Result<Output> {
        match self.ends(limit)? {
            true => Ok(self.proc.output_within(Duration::ZERO)),
            false => Err(self.complaint(&format!("did not end within {limit:?}"))),
        }
    }

    /// Whether it ends within a time.
    pub(crate) fn ends(&self, limit: Duration) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            check_interrupted()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if self.proc.ends_within(left.min(ATTENTION)) {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    fn complaint(&self, what: &str) -> Box<dyn std::error::Error> {
        let stderr = self.proc.stderr();
        let last = stderr.lines().rfind(|line| !line.trim().is_empty());
        let last = last.map(|line| format!(": {line}")).unwrap_or_default();
        format!("{}: {what}{last}", self.proc.label()).into()
    }
}

/// Many processes, which all get SIGTERM before the first is waited for.
#[derive(Debug, Default)]
pub(crate) struct Procs<'lab>(pub(crate) Vec<Proc<'lab>>);

impl Drop for Procs<'_> {
    fn drop(&mut self) {
        for proc in self.0.iter().filter(|proc| proc.proc.is_running()) {
            proc.proc.signal(Signal::SIGTERM);
        }
    }
}
