//! Confines a process: the system calls, paths and networks that it may use from now on.
//!
//! # Theory of operation
//!
//! A [`Confinement`] is data. [`Confinement::enter`] makes it true for the calling process, and
//! nothing takes it back:
//!
//! 1. no_new_privs: no program that it may execute gains rights;
//! 2. Landlock rules (landlock(7)), as far as the kernel has them: which files it may open, make
//!    and remove, whether TCP is open to it, and that it reaches neither processes nor abstract
//!    sockets outside;
//! 3. a seccomp filter (seccomp(2)): which system calls it may make ([`Calls`]).
//!
//! A call that the filter refuses fails with EPERM, and the first of each kind is logged by its
//! name ([`log_to`]). What Landlock refuses fails with EACCES.
//!
//! Landlock confines the calling thread and those that it starts, the filter all threads. So enter
//! before there are others, or confine these as well.
//!
//! This crate has no module of vdens below it: both the host and the program of `nat://` use it.

mod calls;
mod files;
mod refusal;

pub use calls::{Calls, Group};
pub use files::{Rule, Use, landlock_version};
pub use refusal::log_to;

use std::io;

use nix::sys::prctl::set_no_new_privs;

/// What a process may do.
#[derive(Clone, Debug)]
pub struct Confinement {
    /// The system calls that it may make.
    pub calls: Calls,
    /// The files that it may use; `None` if it may use all.
    pub files: Option<Vec<Rule>>,
    /// Whether it may use TCP. Which sockets it may make at all, `calls` says.
    pub network: bool,
    /// Whether it may signal processes that it has not started since.
    pub signals: bool,
}

/// What is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    /// Whether Landlock rules are: the kernel may have none.
    pub landlock: bool,
}

impl Confinement {
    /// The confinement of a process that starts other programs, which inherit it.
    pub fn of_what_starts_programs() -> Self {
        Self {
            calls: Calls::NotDangerous,
            files: None,
            network: true,
            signals: true,
        }
    }

    /// Confines this process. If that fails it may be confined in part.
    ///
    /// # Errors
    /// The kernel has no seccomp filters, or does not take this one.
    pub fn enter(&self) -> io::Result<InForce> {
        set_no_new_privs()?;
        // Before rules for files are in force, which may close /proc.
        let guards_mask = refusal::can_guard_mask();
        let landlock = match &self.files {
            Some(rules) => files::enter(rules, self.network, self.signals)?,
            None => false,
        };
        self.calls.enter(guards_mask)?;
        Ok(InForce { landlock })
    }
}

#[cfg(test)]
mod tests;
