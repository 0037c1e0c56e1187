//! Who holds the panel: a directory with one small file a holder.
//!
//! `$XDG_RUNTIME_DIR/vdens` or, failing that, `/tmp/vdens-UID`, must be the user's and closed to others. In
//! it stands a directory for each user and process namespace that the user works from, because descriptors
//! can only be taken over within these; in that a file `lock`, and for each holder a file named by its
//! process id that says when the process started and which of its descriptors are the panel's.
//!
//! Everything is done under the lock. A file whose process is gone is removed by whoever finds it. Who
//! leaves no holder behind removes the directory, lock included; so one who waited for the lock looks
//! whether what it has locked is still the file of that name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use crate::config::absolute_variable;
use crate::error::{Error, ErrorKind, Result};

/// How long to wait for the lock: it is held for milliseconds, but many may want it at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// A holder's process and its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) pid: u32,
    /// When the process started, in clock ticks since boot: tells it from a later one of the same number.
    started: u64,
    pub(super) user: RawFd,
    pub(super) net: RawFd,
}

/// The registry, locked.
pub(super) struct Registry {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Registry {
    /// Locks the registry, and makes it if need be.
    pub(super) fn lock() -> Result<Self> {
        let dir = directory()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match try_lock(&dir) {
                Ok(lock) => return Ok(Self { dir, _lock: lock }),
                Err((error, false)) => return Err(error),
                Err((error, true)) if Instant::now() >= deadline => return Err(error),
                Err((_, true)) => sleep(Duration::from_millis(1)),
            }
        }
    }

    /// The holders that are alive.
    pub(super) fn holders(&self) -> Vec<Holder> {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let entries = files.filter_map(|file| {
            let pid = file.file_name().to_str()?.parse().ok()?;
            Some((pid, file.path()))
        });
        let alive = entries.filter_map(|(pid, path)| {
            let holder = parse(pid, &fs::read_to_string(&path).ok()?);
            let alive = holder.filter(|holder| start_time(pid) == Some(holder.started));
            if alive.is_none() {
                // Another may have been faster; then it is gone all the same.
                let _ = fs::remove_file(&path);
            }
            alive
        });
        alive.collect()
    }

    /// Registers this process as a holder.
    pub(super) fn register(&self, user: RawFd, net: RawFd) -> Result<Registration> {
        let pid = process::id();
        let path = self.dir.join(pid.to_string());
        let started = start_time(pid).unwrap_or(0);
        fs::write(&path, format!("{started} {user} {net}\n"))
            .map_err(|error| Error::path("write", &path, &error))?;
        Ok(Registration { path, pid })
    }
}

impl Drop for Registry {
    /// Without holders there is nothing to register.
    fn drop(&mut self) {
        if self.holders().is_empty() {
            let _ = fs::remove_file(self.dir.join("lock"));
            let _ = fs::remove_dir(&self.dir);
            if let Some(base) = self.dir.parent() {
                let _ = fs::remove_dir(base);
            }
        }
    }
}

/// This process's entry, removed when dropped by the process that made it.
#[derive(Debug)]
pub(super) struct Registration {
    path: PathBuf,
    pid: u32,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.pid != process::id() {
            return;
        }
        let _registry = Registry::lock();
        // What cannot be removed is removed by the next who finds it stale.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes and locks the registry; an error comes with whether trying again may help, because somebody else
/// has the lock or has just removed the directory.
fn try_lock(dir: &Path) -> Result<Flock<File>, (Error, bool)> {
    let path = dir.join("lock");
    for dir in dir.parent().into_iter().chain([dir]) {
        make_private_dir(dir)?;
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|error| {
            let gone = error.kind() == io::ErrorKind::NotFound;
            (Error::path("open", &path, &error), gone)
        })?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        let held = matches!(errno, Errno::EWOULDBLOCK | Errno::EINTR);
        (Error::path("lock", &path, &errno.into()), held)
    })?;
    match is_at(&lock, &path) {
        true => Ok(lock),
        false => Err((
            Error::closed(format!("{} was removed", path.display())),
            true,
        )),
    }
}

fn parse(pid: u32, text: &str) -> Option<Holder> {
    let mut words = text.split_whitespace();
    Some(Holder {
        pid,
        started: words.next()?.parse().ok()?,
        user: words.next()?.parse().ok()?,
        net: words.next()?.parse().ok()?,
    })
}

/// When a process started: field 22 of /proc/PID/stat (proc(5)), counted behind the name in brackets. `None`
/// if it has ended, even if nobody has taken note of that yet.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The directory for what this user's processes must find of each other; it may not be there.
pub(crate) fn runtime_dir() -> PathBuf {
    match absolute_variable("XDG_RUNTIME_DIR").filter(|dir| is_private(dir)) {
        Some(dir) => dir.join("vdens"),
        None => PathBuf::from(format!("/tmp/vdens-{}", geteuid())),
    }
}

fn directory() -> Result<PathBuf> {
    let base = runtime_dir();
    let namespace = |kind: &str| {
        let path = PathBuf::from(format!("/proc/self/ns/{kind}"));
        let meta = fs::metadata(&path);
        meta.map(|meta| meta.ino())
            .map_err(|error| Error::path("look at", &path, &error))
    };
    Ok(base.join(format!("{}-{}", namespace("user")?, namespace("pid")?)))
}

/// Makes a directory that only the user can enter, or checks that it is one. An error comes with whether
/// trying again may help.
fn make_private_dir(dir: &Path) -> Result<(), (Error, bool)> {
    let made = DirBuilder::new().mode(0o700).create(dir);
    if made.is_ok() || is_private(dir) {
        return Ok(());
    }
    let gone = made.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) || !dir.exists();
    let error = Error::new(
        ErrorKind::Permission,
        format!("{} is not a directory of this user's alone", dir.display()),
    );
    Err((error.hint("remove it, or set XDG_RUNTIME_DIR"), gone))
}

/// Whether a directory is there, is this user's, and closed to others.
pub(crate) fn is_private(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|meta| {
        meta.is_dir() && meta.uid() == geteuid().as_raw() && meta.mode() & 0o077 == 0
    })
}

fn is_at(file: &File, path: &Path) -> bool {
    let (locked, named) = (file.metadata(), fs::symlink_metadata(path));
    locked
        .ok()
        .zip(named.ok())
        .is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()))
}
