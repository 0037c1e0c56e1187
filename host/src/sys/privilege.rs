//! Refuses to run with more rights than the caller has.
//!
//! The caller of either program chooses code and files for it: plugins (`--plugin-dir`,
//! `VDENS_PLUGIN_PATH`, `HOME`), commands (`cmd://`), configuration and log files. With a setuid or
//! setgid bit, or with file capabilities, the programs would give these rights to every user who
//! can execute them. They need no such rights: a user namespace gives all that they use.
//!
//! The kernel reports at `execve` whether it raised the process's rights (AT_SECURE, getauxval(3)).
//! It does so too for a setuid wrapper that kept its rights, and for a security module that starts
//! the program in another domain. A setuid bit that raises nothing is not refused: for the file's
//! owner, on a `nosuid` mount, under `no_new_privs`.

use std::env;

use nix::unistd::{getegid, geteuid, getgid, getuid};

use crate::error::{Error, ErrorKind, Result};

/// Fails if the kernel raised this process's rights above its caller's. Call it before anything is
/// read that the caller controls, the command line included.
///
/// # Errors
/// The kernel raised them. The error names the cause and the remedy.
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
