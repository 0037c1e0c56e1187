//! The user's runtime directory: where processes of one user find each other.
//!
//! It is `$XDG_RUNTIME_DIR/vdens` or, failing that, `/tmp/vdens-UID`, and must be the user's and closed to others.
//! In it are the registry of the panel's holders and the sockets of `vdens --status`.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use crate::config::absolute_variable;
use crate::error::{Error, ErrorKind, Result};

/// The directory, which need not exist.
pub fn base() -> PathBuf {
    match absolute_variable("XDG_RUNTIME_DIR").filter(|dir| is_private(dir)) {
        Some(dir) => dir.join("vdens"),
        None => PathBuf::from(format!("/tmp/vdens-{}", geteuid())),
    }
}

/// The directories in which this user's processes may be, for they need not all have been started with the same
/// environment: [`base`], `/tmp/vdens-UID`, and without a `$XDG_RUNTIME_DIR` the usual one of a login.
pub fn bases() -> Vec<PathBuf> {
    let uid = geteuid();
    let mut bases = vec![base(), PathBuf::from(format!("/tmp/vdens-{uid}"))];
    if absolute_variable("XDG_RUNTIME_DIR").is_none() {
        bases.push(PathBuf::from(format!("/run/user/{uid}/vdens")));
    }
    bases.dedup();
    bases.retain(|dir| is_private(dir));
    bases
}

/// The number of this process's namespace of a kind (`user`, `pid`, …).
///
/// # Errors
/// There is no /proc.
pub fn namespace(kind: &str) -> Result<u64> {
    let path = PathBuf::from(format!("/proc/self/ns/{kind}"));
    let meta = fs::metadata(&path);
    meta.map(|meta| meta.ino())
        .map_err(|error| Error::path("look at", &path, &error))
}

/// When a process started, in clock ticks since boot: field 22 of /proc/PID/stat (proc(5)), counted behind the name in brackets. `None`
/// if it has ended, even if nobody has taken note of that yet.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Makes a directory that only the user can enter, or checks that it is one.
///
/// # Errors
/// It is not, or cannot be made; and whether trying again may help.
pub fn make_private_dir(dir: &Path) -> Result<(), (Error, bool)> {
    let made = DirBuilder::new().mode(0o700).create(dir);
    if made.is_ok() || is_private(dir) {
        return Ok(());
    }
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        let gone = error.kind() == io::ErrorKind::NotFound;
        return Err((Error::path("make", dir, &error), gone));
    }
    let gone = !dir.exists();
    let error = Error::new(
        ErrorKind::Permission,
        format!("{} is not a directory of this user's alone", dir.display()),
    );
    Err((error.hint("remove it, or set XDG_RUNTIME_DIR"), gone))
}

/// Whether a directory is there, is this user's, and closed to others.
pub fn is_private(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|meta| {
        meta.is_dir() && meta.uid() == geteuid().as_raw() && meta.mode() & 0o077 == 0
    })
}
