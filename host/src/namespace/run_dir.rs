//! A `/run` of the session's own, in which the user, who appears as root there, can write.
//!
//! Programs that run as root keep their sockets and pid files in /run, which belongs to the
//! machine's root. So an empty file system is mounted there. What the user's own programs need of
//! the machine's /run stays visible: the user's runtime directory, and the directory that
//! /etc/resolv.conf leads to where systemd-resolved writes it.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::{NOTHING, in_memory};
use crate::error::{Error, Result, system};
use crate::sys::environment::absolute_variable;

const RUN: &str = "/run";

/// Mounts it. The calling process's mount namespace must be private.
///
/// # Errors
/// The kernel refuses a mount.
pub(super) fn mount_private() -> Result<()> {
    let kept = absolute_variable("XDG_RUNTIME_DIR").into_iter();
    let kept = kept.chain([PathBuf::from("/run/systemd/resolve")]);
    let kept: Vec<PathBuf> = kept
        .filter(|dir| dir.starts_with(RUN) && dir != Path::new(RUN) && dir.is_dir())
        .collect();
    in_memory(|new| {
        for dir in &kept {
            let below = dir.strip_prefix(RUN).unwrap_or(dir);
            let place = new.join(below);
            make(&place)?;
            bind(dir, &place)?;
        }
        // As on any machine, all may make locks (tmpfiles.d(5)).
        let lock = new.join("lock");
        make(&lock)?;
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o1777))
            .map_err(|error| Error::path("open to all", &lock, &error))?;
        bind(new, Path::new(RUN))
    })
}

fn make(dir: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
    made.map_err(|error| Error::path("make", dir, &error))
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), target, NOTHING, flags, NOTHING)
        .map_err(system(format_args!("mount on {}", target.display())))
}
