//! Who holds the panel: a directory with one small file a holder.
//!
//! In the user's [`runtime`] directory stands a directory for each user and process namespace that
//! the user works from, because descriptors can only be taken over within these; it is checked once
//! and then used by its descriptor. In it is a file `lock`, and for each holder a file named by its
//! process id that says when the process started and which of its descriptors are the panel's.
//!
//! Everything is done under the lock. A file whose process is gone is removed by whoever finds it:
//! each process looks at a few. Who
//! leaves no holder behind removes the directory, lock included; so one who waited for the lock looks
//! whether what it has locked is still the file of that name.
//!
//! Any process of the user may write to the directory. A file there is used only if it is a regular
//! one, is opened without blocking, and no more of it is read than a holder writes. So neither a
//! FIFO nor an endless file stops another process.

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
/// How long to wait for the lock: it is held for milliseconds, but many may want it at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait between two looks at the lock, the first time.
const FIRST_PAUSE: Duration = Duration::from_micros(100);
/// The longest such pause: a hundred who look all the time would leave the holder no processor.
const LAST_PAUSE: Duration = Duration::from_millis(16);
/// The longest text of a holder's file, in bytes: a 64-bit and two 32-bit numbers fit.
const MAX_TEXT: u64 = 64;
/// How to open a file that another process may have made: opening a FIFO does not block.
const WARILY: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

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
    dir: Arc<Dir>,
    _lock: Flock<File>,
}

impl Registry {
    /// Locks the registry, and makes it if need be.
    pub(super) fn lock() -> Result<Self> {
        Self::lock_unless(|| false)
    }

    /// As [`Registry::lock`], but gives up waiting when `is_over` says so.
    pub(super) fn lock_unless(is_over: impl Fn() -> bool) -> Result<Self> {
        let (user, pid) = (runtime::namespace("user")?, runtime::namespace("pid")?);
        let name = format!("{user}-{pid}");
        let find = || Dir::runtime()?.make_dir(&name).map(Arc::new);
        Self::lock_in(find, is_over)
    }

    /// Locks the registry in the directory that `find` gives, which is asked again if that was
    /// removed meanwhile. Gives up waiting when `is_over` says so.
    fn lock_in(find: impl Fn() -> Result<Arc<Dir>>, is_over: impl Fn() -> bool) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
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
            .custom_flags(WARILY)
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

    /// The holders that are alive. Each is looked at only when it is asked for: so who needs one
    /// holder needs as long beside hundreds as beside one.
    pub(super) fn holders(&self) -> impl Iterator<Item = Holder> {
        let names = self.dir.names().unwrap_or_default().into_iter();
        names.filter_map(|name| living(name.parse().ok()?, &self.dir.at(&name)))
    }

    /// Registers this process as a holder.
    pub(super) fn register(&self, user: RawFd, net: RawFd) -> Result<Registration> {
        let pid = process::id();
        let name = pid.to_string();
        let started = runtime::start_time(pid).unwrap_or(0);
        // A file of that name is not this process's. It may be a FIFO, so it is not opened.
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
    /// Without holders there is nothing to register.
    fn drop(&mut self) {
        if !self.dir.sweep(|pid, path| living(pid, path).is_some()) {
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
        // Whoever has the lock is a holder, and cleans up when it goes: so this one need not wait
        // for it, unless it is the last.
        let lock = |is_over| Registry::lock_in(|| Ok(Arc::clone(&self.dir)), || is_over);
        let registry = lock(true);
        // What cannot be removed is removed by the next who finds it stale.
        let _ = fs::remove_file(self.dir.at(&self.pid.to_string()));
        let names = || self.dir.names().unwrap_or_default();
        if registry.is_err() && !names().iter().any(|name| name != LOCK) {
            drop(lock(false));
        }
    }
}

/// The holder of which a file tells, if it is alive.
fn living(pid: u32, path: &Path) -> Option<Holder> {
    let holder = read_holder(pid, path);
    holder.filter(|holder| runtime::start_time(pid) == Some(holder.started))
}

/// What a holder's file says; `None` if it is none.
fn read_holder(pid: u32, path: &Path) -> Option<Holder> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(WARILY).open(path);
    let file = opened.and_then(regular).ok()?;
    let mut text = String::new();
    file.take(MAX_TEXT).read_to_string(&mut text).ok()?;
    parse(pid, &text)
}

/// The file, if it is a regular one.
fn regular(file: File) -> io::Result<File> {
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file; remove it")),
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

/// Whether the lock in a directory is this file.
fn is_in(lock: &File, dir: &Dir) -> bool {
    let (locked, named) = (lock.metadata(), fs::symlink_metadata(dir.at(LOCK)));
    locked
        .ok()
        .zip(named.ok())
        .is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()))
}
