//! Running commands in nodes, from outside.

use std::ffi::OsString;
use std::os::fd::OwnedFd;

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::error::{EXIT_FAILURE, Error, Result, system};
use crate::namespace::enter::Door;
use crate::output::report;
use crate::sys::child::{Child, exit_child};
use crate::sys::runtime;

/// Where a command's standard streams go.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) input: OwnedFd,
    pub(super) output: OwnedFd,
    pub(super) errors: OwnedFd,
}

/// The namespaces of a node, whose init is the process `pid`.
///
/// # Errors
/// The node has ended.
pub(super) fn door(pid: u32) -> Result<Door> {
    let started = runtime::start_time(pid).ok_or_else(|| Error::closed("it has ended"))?;
    Door::of(pid, started)
}

/// Starts a command in a node. What is returned has the command's exit status, and ends after it.
/// If it is killed, so is the command.
///
/// # Errors
/// The node has ended, or there are too many processes.
pub(super) fn start(door: &Door, words: &[OsString], streams: Streams) -> Result<Child> {
    if let Some(child) = Child::fork()? {
        return Ok(child);
    }
    exit_child(|| {
        let redirected = dup2_stdin(&streams.input)
            .and_then(|()| dup2_stdout(&streams.output))
            .and_then(|()| dup2_stderr(&streams.errors));
        let redirected = redirected.map_err(system("redirect a command's output"));
        drop(streams);
        let outcome = redirected
            .map_err(|error| (EXIT_FAILURE, error))
            .and_then(|()| door.execute(words));
        outcome.unwrap_or_else(|(status, error)| {
            report("vdectl", error);
            status
        })
    })
}
