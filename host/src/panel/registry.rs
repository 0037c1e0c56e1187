//! The registry of the processes that hold the panel: a directory with a small file for each.
//!
//! The user's [`runtime`] directory has a directory for each pair of user and process namespace
//! that the user works in, because descriptors can be taken over only between processes of the same
//! pair. It is checked once, and then used through its descriptor. It has a file `lock`, and a file
//! for each holder. That file is named by the holder's process id. It says when the process
//! started, and which of its descriptors are the panel's.
//!
//! Everything happens under the lock. A file whose process has ended is removed by the next process
//! that sees it: each process looks at a few. When no holder is left, the directory is removed, and
//! the lock with it. So a process that has waited for the lock checks that the file it has locked
//! is still the one with that name.
//!
//! Any process of the user may write to the directory. A file there is used only if it is a regular
//! file. It is opened without blocking, and no more is read than a holder writes. So neither a FIFO
//! nor an endless file stops another process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::runtime::{self, Dir};

/// The name of the file that is locked.
const LOCK: &str = "lock";
/// How long to wait for the lock. It is held for milliseconds, but many processes may want it at
/// once.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// The first pause between two attempts to lock.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
/// The longest such pause. A hundred processes that try without pause would starve the lock's
/// holder.
const LAST_PAUSE: Duration = Duration::from_millis(16);
/// The longest text of a holder's file, in bytes: a 64-bit and two 32-bit numbers fit.
const MAX_TEXT: u64 = 64;
/// Flags for opening a file that another process may have made: opening a FIFO does not block.
const UNTRUSTED: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// A holder's process and its descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) pid: u32,
    /// When the process started, in clock ticks since boot. It tells the process from a later one
    /// with the same id.
    started: u64,
    pub(super) user: RawFd,
    pub(super) net: RawFd,
}

/// The registry, locked.
pub(super) struct Registry {
    dir: Arc<Dir>,
    _lock: Flock<File>,
}

impl Registry {
    /// Locks the registry, and makes it if it does not exist.
    pub(super) fn lock() -> Result<Self> {
        Self::lock_unless(|| false)
    }

    /// As [`Registry::lock`], but stops waiting when `is_over` returns true.
    pub(super) fn lock_unless(is_over: impl Fn() -> bool) -> Result<Self> {
        let (user, pid) = (runtime::namespace("user")?, runtime::namespace("pid")?);
        let name = format!("{user}-{pid}");
        let find = || Dir::runtime()?.make_dir(&name).map(Arc::new);
        Self::lock_in(find, is_over)
    }

    /// Locks the registry in the directory that `find` returns. Calls `find` again if the directory
    /// was removed meanwhile. Stops waiting when `is_over` returns true.
    fn lock_in(find: impl Fn() -> Result<Arc<Dir>>, is_over: impl Fn() -> bool) -> Result<Self> {
        let deadline = Instant::now() + LOCK_LIMIT;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match find().and_then(Self::try_lock) {
                Ok(registry) => return Ok(registry),
                Err(error) => error,
            };
            // Another process has the lock, or has just removed it or the directory.
            let may_pass = matches!(error.kind, ErrorKind::Busy | ErrorKind::NotFound);
            if !may_pass || is_over() || Instant::now() >= deadline {
                return Err(error);
            }
            sleep(pause);
            pause = (2 * pause).min(LAST_PAUSE);
        }
    }

    /// Locks the registry in a directory.
    fn try_lock(dir: Arc<Dir>) -> Result<Self> {
        let shown = dir.shown(LOCK);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(UNTRUSTED)
            .open(dir.at(LOCK))
            .and_then(regular)
            .map_err(|error| Error::path("open", &shown, &error))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, errno)| {
            let error = Error::path("lock", &shown, &errno.into());
            match errno {
                Errno::EWOULDBLOCK | Errno::EINTR => Error {
                    kind: ErrorKind::Busy,
                    ..error
                },
                _ => error,
            }
        })?;
        match is_in(&lock, &dir) {
            true => Ok(Self { dir, _lock: lock }),
            false => {
                let message = format!("{} was removed", shown.display());
                Err(Error::new(ErrorKind::NotFound, message))
            }
        }
    }

    /// The holders that are alive. A holder's file is read when the iterator reaches it, so finding
    /// one holder takes no longer beside hundreds of sessions.
    pub(super) fn holders(&self) -> impl Iterator<Item = Holder> {
        let names = self.dir.names().unwrap_or_default().into_iter();
        names.filter_map(|name| living_holder(name.parse().ok()?, &self.dir.at(&name)))
    }

    /// Registers this process as a holder.
    pub(super) fn register(&self, user: RawFd, net: RawFd) -> Result<Registration> {
        let pid = process::id();
        let name = pid.to_string();
        let started = runtime::start_time(pid).unwrap_or(0);
        // A file of that name was left by another process. It may be a FIFO, so it is not opened.
        let _ = fs::remove_file(self.dir.at(&name));
        let text = format!("{started} {user} {net}\n");
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.dir.at(&name))
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| Error::path("write", &self.dir.shown(&name), &error))?;
        let dir = Arc::clone(&self.dir);
        Ok(Registration { dir, pid })
    }
}

impl Drop for Registry {
    /// Removes the registry if it has no holders.
    fn drop(&mut self) {
        if !self
            .dir
            .sweep(|pid, path| living_holder(pid, path).is_some())
        {
            let _ = fs::remove_file(self.dir.at(LOCK));
            self.dir.remove();
        }
    }
}

/// This process's entry, removed when dropped by the process that made it.
#[derive(Debug)]
pub(super) struct Registration {
    dir: Arc<Dir>,
    pid: u32,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.pid != process::id() {
            return;
        }
        // The process that has the lock is a holder, and cleans up when it ends. So this one need
        // not wait for the lock, unless it is the last holder.
        let lock = |is_over| Registry::lock_in(|| Ok(Arc::clone(&self.dir)), || is_over);
        let registry = lock(true);
        // If the file cannot be removed, the next process that sees it stale removes it.
        let _ = fs::remove_file(self.dir.at(&self.pid.to_string()));
        let names = || self.dir.names().unwrap_or_default();
        if registry.is_err() && !names().iter().any(|name| name != LOCK) {
            drop(lock(false));
        }
    }
}

/// The holder that a file describes, if it is alive.
fn living_holder(pid: u32, path: &Path) -> Option<Holder> {
    let holder = read_holder(pid, path);
    holder.filter(|holder| runtime::start_time(pid) == Some(holder.started))
}

/// Reads a holder's file; `None` if it is not one.
fn read_holder(pid: u32, path: &Path) -> Option<Holder> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(UNTRUSTED).open(path);
    let file = opened.and_then(regular).ok()?;
    let mut text = String::new();
    file.take(MAX_TEXT).read_to_string(&mut text).ok()?;
    parse(pid, &text)
}

/// The file, if it is a regular file.
fn regular(file: File) -> io::Result<File> {
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file; remove it")),
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

/// Whether the file that is named `lock` in a directory is this file.
fn is_in(lock: &File, dir: &Dir) -> bool {
    let (locked, named) = (lock.metadata(), fs::symlink_metadata(dir.at(LOCK)));
    locked
        .ok()
        .zip(named.ok())
        .is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()))
}
