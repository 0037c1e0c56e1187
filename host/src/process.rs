//! Forked children: the only place where this program forks.

use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::unistd::{ForkResult, Pid, fork};

use crate::error::{EXIT_FAILURE, Result, system};

/// Forks; `None` in the child. For processes with one thread, which no plugin has entered: the child may
/// then do what it likes.
///
/// # Errors
/// There are too many processes.
pub fn fork_child() -> Result<Option<Pid>> {
    // SAFETY: callers have one thread, so the child inherits no lock that somebody else holds.
    match unsafe { fork() }.map_err(system("start a process"))? {
        ForkResult::Child => Ok(None),
        ForkResult::Parent { child } => Ok(Some(child)),
    }
}

/// Runs a child's life and ends the process without running what the parent registered for its own end.
pub fn exit_child(life: impl FnOnce() -> i32) -> ! {
    let status = catch_unwind(AssertUnwindSafe(life)).unwrap_or(EXIT_FAILURE);
    // SAFETY: _exit ends the process and touches no memory.
    unsafe { libc::_exit(status) }
}
