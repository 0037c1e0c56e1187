//! The kit that the end-to-end tests are written with.
//!
//! Theory of operation. A test makes a [`Lab`]: a directory of its own below `/tmp`, with a copy of
//! the built programs and plugins in it and a home for an ordinary [`User`]. Everything a test
//! starts is a [`Cmd`] of the lab, runs as that user and becomes a [`Proc`], or a [`Session`]: a
//! shell behind a pipe, inside a namespace or a virtual machine, that runs one script after the
//! other. [`Tmux`] is a terminal with a user typing, [`Netns`] a network namespace standing in
//! for the host.
//!
//! `cargo test` may run as root or not. As root every command drops to the user `vdens-test` unless
//! it says otherwise; as anybody else that user is the one who runs the tests, and a test that
//! needs root is skipped, with a line on standard error ([`need!`]).
//!
//! Every wait is bounded. Processes end with the value that stands for them, also when a test
//! panics. A lab's end is a test in itself: it fails if anything that was started in it, any path
//! or any interface is still there. Commands carry `VDENS_LAB=<lab>` in their environment, by which
//! their descendants are found.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "panicking is how a test kit reports"
)]

mod lab;
mod need;
mod netns;
mod process;
mod rust;
mod session;
mod tmux;
mod user;

use std::time::{Duration, Instant};

pub use lab::{Lab, PROGRAMS, copy_programs, target};
pub use need::{GUEST, installed, lacks, skip};
pub use netns::Netns;
pub use process::{Cmd, Output, Proc, children, family, name};
pub use rust::{SECOND_RUSTC, build, cargo};
pub use session::Session;
pub use tmux::Tmux;
pub use user::User;

/// How long anything that should happen at once may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A limit for a quiet machine, stretched by what this one has to do: a limit that a test is about
/// must be short, and must hold beside other programs.
pub fn stretched(limit: Duration) -> Duration {
    // proc_loadavg(5): processes that wanted a processor, in the last minute and now.
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut words = load.split([' ', '/']);
    let mut number = |at| words.nth(at).and_then(|word| word.parse::<f64>().ok());
    let (minute, now) = (number(0).unwrap_or(0.0), number(2).unwrap_or(0.0));
    let processors = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    limit.mul_f64(1.0 + minute.max(now) / processors)
}

/// Asks `probe` until it says yes.
///
/// # Panics
/// When it has not after `limit`, naming `what`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, probe: impl FnMut() -> bool) {
    assert!(becomes_true(limit, probe), "not after {limit:?}: {what}");
}

/// Asks `probe` until it says yes, at most for `limit`; whether it did.
pub fn becomes_true(limit: Duration, mut probe: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if probe() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
