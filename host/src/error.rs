//! Failures of the host itself: one line for a person.
//!
//! The host and the plugins use the same [`Error`], so that all failures read alike.
//! [`report`](crate::output::report) prints one.

use std::fmt::Display;
use std::io;

use nix::errno::Errno;
pub use vdens_plugin_kit::{Error, ErrorKind, Result};

/// The exit status of `vdens` when it fails itself.
pub const EXIT_FAILURE: i32 = 125;
/// The exit status when the command cannot be run.
pub(crate) const EXIT_NOT_RUNNABLE: i32 = 126;
/// The exit status when there is no such command.
pub(crate) const EXIT_NOT_FOUND: i32 = 127;

/// A system call failed: "cannot ACTION: …".
pub(crate) fn system(action: impl Display) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::io(action, &io::Error::from(errno))
}
