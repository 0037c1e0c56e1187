//! Refuses to run with more rights than the caller has.
//!
//! Both programs take code from where their caller says: plugins (`--plugin-dir`, `VDENS_PLUGIN_PATH`, `HOME`),
//! commands (`cmd://`), configuration and log files. So with a setuid or setgid bit, or with file capabilities, they
//! would hand these rights to whoever can execute them. They need none: a user namespace gives all that is used. The
//! kernel says at `execve` whether it raised the process's rights (AT_SECURE, getauxval(3)); this also covers a setuid
//! wrapper that did not drop its rights, and a security module that starts the program in another domain. A setuid bit
//! that raises nothing (for its own owner, on a `nosuid` mount, under `no_new_privs`) is harmless and not refused.

use std::env;

use nix::unistd::{getegid, geteuid, getgid, getuid};

use crate::error::{Error, ErrorKind, Result};

/// Fails if the kernel raised this process's rights above its caller's. To be called before anything is read that the
/// caller controls, the command line included.
///
/// # Errors
/// It did; the error says by what, and what to do.
pub fn refuse_raised() -> Result<()> {
    // SAFETY: getauxval only reads the vector that the kernel gave this process.
    if unsafe { libc::getauxval(libc::AT_SECURE) } == 0 {
        return Ok(());
    }
    let file = env::current_exe().map_or_else(|_| "FILE".into(), |file| file.display().to_string());
    let (real, effective) = (getuid(), geteuid());
    let (why, remedy) = if real != effective {
        (
            format!("it runs as uid {effective} for uid {real}"),
            format!("vdens needs no setuid bit, remove it: chmod u-s {file}"),
        )
    } else if getgid() != getegid() {
        (
            format!("it runs as gid {} for gid {}", getegid(), getgid()),
            format!("vdens needs no setgid bit, remove it: chmod g-s {file}"),
        )
    } else {
        (
            "it has file capabilities, or a security module changes its domain".to_owned(),
            format!("vdens needs neither, remove the capabilities: setcap -r {file}"),
        )
    };
    let message = format!("cannot run with more rights than the caller has: {file}: {why}");
    Err(Error::new(ErrorKind::Permission, message).hint(remedy))
}
