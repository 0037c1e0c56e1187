//! Who holds the panel: a directory with one small file a holder.
//!
//! In the user's [`runtime`] directory stands a directory for each user and process namespace that the user works from, because descriptors
//! can only be taken over within these; in that a file `lock`, and for each holder a file named by its
//! process id that says when the process started and which of its descriptors are the panel's.
//!
//! Everything is done under the lock. A file whose process is gone is removed by whoever finds it. Who
//! leaves no holder behind removes the directory, lock included; so one who waited for the lock looks
//! whether what it has locked is still the file of that name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, Result};
use crate::runtime;

/// How long to wait for the lock: it is held for milliseconds, but many may want it at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait between two looks at the lock, the first time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest such pause: a hundred who look all the time would leave the holder no processor.
const LAST_PAUSE: Duration = Duration::from_millis(16);

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
        let mut pause = FIRST_PAUSE;
        loop {
            match try_lock(&dir) {
                Ok(lock) => return Ok(Self { dir, _lock: lock }),
                Err((error, false)) => return Err(error),
                Err((error, true)) if Instant::now() >= deadline => return Err(error),
                Err((_, true)) => {
                    sleep(pause);
                    pause = (2 * pause).min(LAST_PAUSE);
                }
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
            let alive = holder.filter(|holder| runtime::start_time(pid) == Some(holder.started));
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
        let started = runtime::start_time(pid).unwrap_or(0);
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
    if let Some(base) = dir.parent() {
        // No process of ours removes and makes the directory above, so waiting for it is no use.
        let may_come = || base.parent().is_some_and(Path::exists);
        runtime::make_private_dir(base).map_err(|(error, gone)| (error, gone && may_come()))?;
    }
    runtime::make_private_dir(dir)?;
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

fn directory() -> Result<PathBuf> {
    let (user, pid) = (runtime::namespace("user")?, runtime::namespace("pid")?);
    Ok(runtime::base().join(format!("{user}-{pid}")))
}

fn is_at(file: &File, path: &Path) -> bool {
    let (locked, named) = (file.metadata(), fs::symlink_metadata(path));
    locked
        .ok()
        .zip(named.ok())
        .is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()))
}
