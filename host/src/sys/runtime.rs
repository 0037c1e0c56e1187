//! The user's runtime directory, in which the processes of one user find each other.
//!
//! It is `vdens` in `$XDG_RUNTIME_DIR` or, without that, in the usual runtime directory of a login,
//! `/run/user/UID`. Where neither exists it is `/tmp/vdens-UID`. Another user may have made that
//! first. Then this user's processes do not find each other, and [`complain`] warns of it. The
//! directory must belong to the user and be closed to others. It contains the registry of the
//! panel's holders and the sockets of `vdectl status`.
//!
//! A directory is checked once, when it is opened as a [`Dir`]. Its files are then reached through
//! its descriptor, so a later change of the names on its path does no harm.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use nix::unistd::geteuid;

use super::environment::absolute_variable;
use crate::error::{Error, ErrorKind, Result};

/// How many files [`Dir::sweep`] checks at least: a few hundredths of a millisecond each.
const MIN_CHECKED: usize = 8;

/// The directory, which need not exist.
pub(crate) fn base() -> PathBuf {
    let of_login = || PathBuf::from(format!("/run/user/{}", geteuid()));
    let named = absolute_variable("XDG_RUNTIME_DIR").unwrap_or_else(of_login);
    match is_private(&named) {
        true => named.join("vdens"),
        false => in_tmp(),
    }
}

/// The directory where there is no better one. Any user can make it.
fn in_tmp() -> PathBuf {
    PathBuf::from(format!("/tmp/vdens-{}", geteuid()))
}

/// Warns if the runtime directory that the environment names does not exist: processes that were
/// started with another one are not found.
pub(crate) fn complain_of_environment() {
    const NAME: &str = "XDG_RUNTIME_DIR";
    if let Some(dir) = absolute_variable(NAME).filter(|dir| !dir.exists()) {
        log::warn!(
            "{NAME} is {}, which does not exist: processes are looked for in {} only",
            dir.display(),
            base().display()
        );
    }
}

/// Warns if the runtime directory cannot be used, and of the consequence.
pub(crate) fn complain() {
    if let Err(error) = Dir::open(base())
        && error.kind == ErrorKind::Permission
    {
        let cost = "your processes do not find each other: frames between them go through user \
                    space, and vdectl status does not show them";
        log::warn!("{}, so {cost}; {}", error.message, error.hint);
    }
}

/// A directory that belongs to the user and is closed to others, held by its descriptor.
#[derive(Debug)]
pub(crate) struct Dir {
    file: File,
    /// Its path when it was opened: for messages, and for its own name.
    path: PathBuf,
}

impl Dir {
    /// The runtime directory, which is made if need be.
    ///
    /// # Errors
    /// It cannot be made or is not private. [`ErrorKind::NotFound`]: another process has just
    /// removed it.
    pub(crate) fn runtime() -> Result<Self> {
        let base = base();
        Self::make(&base, base.clone()).map_err(|error| match base.parent() {
            // No process of this program removes and makes the directory above, so waiting does not
            // help.
            Some(above) if !above.exists() => Error {
                kind: ErrorKind::Other,
                ..error
            },
            _ => error,
        })
    }

    /// The directories in which this user's processes may be: not all need have been started with
    /// the same environment.
    pub(crate) fn all() -> Vec<Self> {
        let mut places = vec![base(), in_tmp()];
        places.dedup();
        places
            .into_iter()
            .filter_map(|at| Self::open(at).ok())
            .collect()
    }

    /// The directory `name` in it, which is made if need be.
    ///
    /// # Errors
    /// As for [`Dir::runtime`].
    pub(crate) fn make_dir(&self, name: &str) -> Result<Self> {
        Self::make(&self.at(name), self.path.join(name))
    }

    /// The directory `name` in it.
    ///
    /// # Errors
    /// It does not exist or is not private.
    pub(crate) fn dir(&self, name: &str) -> Result<Self> {
        Self::look(&self.at(name), self.path.join(name))
    }

    /// A path to `name` in it that leads through its descriptor, even if the directory was renamed.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.file.as_raw_fd()))
    }

    /// The path of `name` in it for messages.
    pub(crate) fn shown(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The names in it.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let cannot = |error| Error::path("read", &self.path, &error);
        let entries = fs::read_dir(self.at(".")).map_err(cannot)?;
        let names = entries.flatten().map(|entry| entry.file_name());
        Ok(names.filter_map(|name| name.into_string().ok()).collect())
    }

    /// Removes what dead processes have left. `lives` decides that from the process id that is a
    /// file's name and from its path. Returns whether a process is left.
    ///
    /// It checks `MIN_CHECKED` files, and more only until it finds a process. So it takes as long
    /// beside hundreds of processes as beside a few, and the last process removes everything. Each
    /// process starts at another file. If one file in `MIN_CHECKED` is stale, each process finds
    /// one, so there are never many more.
    pub(crate) fn sweep(&self, lives: impl Fn(u32, &Path) -> bool) -> bool {
        // A directory that cannot be read cannot be swept.
        let mut names = self.names().unwrap_or_default();
        let start = process::id() as usize % names.len().max(1);
        names.rotate_left(start);
        let files = names.iter().filter_map(|name| {
            // The name of a socket that is being made starts with a dot.
            let pid = name.trim_start_matches('.').parse().ok()?;
            Some((pid, self.at(name)))
        });
        let mut is_used = false;
        for (looked, (pid, path)) in files.enumerate() {
            if is_used && looked >= MIN_CHECKED {
                break;
            }
            match lives(pid, &path) {
                true => is_used = true,
                // Another process may have removed it first.
                false => drop(fs::remove_file(&path)),
            }
        }
        is_used
    }

    /// Removes it if it is empty, and then the runtime directory above it likewise. Returns whether
    /// it was removed.
    pub(crate) fn remove(&self) -> bool {
        let (Some(base), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return false;
        };
        // Opened first: a removed directory has no parent.
        let Ok(above) = Self::look(&self.at(".."), base.to_owned()) else {
            return false;
        };
        let is_removed = fs::remove_dir(above.at("").join(name)).is_ok();
        if let Some(name) = base.file_name() {
            // It fails while other processes have files there.
            let _ = fs::remove_dir(above.at("..").join(name));
        }
        is_removed
    }

    /// The directory at a path.
    ///
    /// # Errors
    /// As for [`Dir::dir`].
    pub(crate) fn open(path: PathBuf) -> Result<Self> {
        Self::look(&path.clone(), path)
    }

    /// Opens the directory at `at`, which messages call `path`, and makes it if it does not exist.
    fn make(at: &Path, path: PathBuf) -> Result<Self> {
        match DirBuilder::new().mode(0o700).create(at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::path("make the directory", &path, &error))
            }
            _ => Self::look(at, path),
        }
    }

    /// Opens the directory at `at`, which messages call `path`.
    fn look(at: &Path, path: PathBuf) -> Result<Self> {
        let cannot = |error: io::Error| Error::path("look at", &path, &error);
        // With O_PATH, a directory of another user can be opened, too.
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(at);
        let file = file.map_err(cannot)?;
        let meta = file.metadata().map_err(cannot)?;
        match fault(&meta) {
            None => Ok(Self { file, path }),
            Some(fault) => {
                let message = format!(
                    "cannot use the runtime directory {}, {fault}",
                    path.display()
                );
                Err(Error::new(ErrorKind::Permission, message).hint(remedy(&path, &meta)))
            }
        }
    }
}

/// Whether a directory exists, belongs to this user, and is closed to others.
pub(crate) fn is_private(dir: &Path) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|meta| fault(&meta).is_none())
}

/// Why a file is not a private directory, as a clause to follow its name.
pub(crate) fn fault(meta: &Metadata) -> Option<String> {
    let uid = meta.uid();
    if !meta.is_dir() {
        Some("which is not a directory".into())
    } else if uid != geteuid().as_raw() {
        Some(format!("which belongs to another user (uid {uid})"))
    } else if meta.mode() & 0o077 != 0 {
        Some("which others can enter".into())
    } else {
        None
    }
}

/// What to do about a fault of the directory at `path`.
pub(crate) fn remedy(path: &Path, meta: &Metadata) -> String {
    let path = path.display();
    match meta.is_dir() && meta.uid() == geteuid().as_raw() {
        true => format!("chmod 0700 {path}"),
        false => format!("sudo rm -r {path}, or set XDG_RUNTIME_DIR to a directory of your own"),
    }
}

/// The number of this process's namespace of a kind (`user`, `pid`, …).
///
/// # Errors
/// /proc is not mounted.
pub(crate) fn namespace(kind: &str) -> Result<u64> {
    let path = PathBuf::from(format!("/proc/self/ns/{kind}"));
    let meta = fs::metadata(&path);
    meta.map(|meta| meta.ino())
        .map_err(|error| Error::path("look at", &path, &error))
}

/// When a process started, in clock ticks since boot: field 22 of /proc/PID/stat (proc(5)), counted
/// behind the name in brackets. `None` if it has ended, even if nobody has taken note of that yet.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    // One call reads what is needed, and much more: the name has 64 bytes at most, a number 20.
    let mut stat = [0; 1024];
    let length = File::open(format!("/proc/{pid}/stat"))
        .and_then(|mut file| file.read(&mut stat))
        .ok()?;
    // The name has any bytes.
    let stat = String::from_utf8_lossy(&stat[..length]);
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A private directory.
    fn base() -> (tempfile::TempDir, Dir) {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("vdens");
        let dir = Dir::make(&path, path.clone()).unwrap();
        (above, dir)
    }

    #[test]
    fn what_is_not_private_is_refused() {
        let (above, base) = base();
        base.make_dir("x").unwrap();
        base.make_dir("x").unwrap();
        let at = |name: &str| above.path().join("vdens").join(name);
        fs::set_permissions(at("x"), fs::Permissions::from_mode(0o755)).unwrap();
        let error = base.make_dir("x").unwrap_err();
        let message = format!(
            "cannot use the runtime directory {0}, which others can enter; chmod 0700 {0}",
            at("x").display()
        );
        assert_eq!(
            (error.kind, error.to_string()),
            (ErrorKind::Permission, message)
        );
        fs::write(at("file"), "").unwrap();
        symlink("x", at("link")).unwrap();
        for name in ["file", "link"] {
            let error = base.dir(name).unwrap_err().to_string();
            assert!(
                error.contains("which is not a directory; sudo rm -r"),
                "{error}"
            );
        }
        assert_eq!(base.dir("nothing").unwrap_err().kind, ErrorKind::NotFound);
    }

    #[test]
    fn names_on_the_way_do_not_matter_once_it_is_open() {
        let (above, base) = base();
        let x = base.make_dir("x").unwrap();
        let moved = above.path().join("moved");
        fs::rename(above.path().join("vdens"), &moved).unwrap();
        // Another stands in its place.
        fs::create_dir_all(above.path().join("vdens/x")).unwrap();
        fs::write(x.at("file"), "").unwrap();
        assert_eq!(x.names().unwrap(), ["file"]);
        assert!(moved.join("x/file").exists());
    }

    #[test]
    fn a_sweep_removes_what_is_stale_and_looks_at_few() {
        let (_above, base) = base();
        let dir = base.make_dir("x").unwrap();
        for n in 0..100 {
            fs::write(dir.at(&n.to_string()), "").unwrap();
        }
        let looked = std::cell::Cell::new(0);
        let all_live = |_: u32, _: &Path| {
            looked.set(looked.get() + 1);
            true
        };
        assert!(dir.sweep(all_live));
        assert_eq!(looked.get(), MIN_CHECKED);
        // It goes on to the only one that lives.
        while dir.sweep(|pid, _| pid == 7) && dir.names().unwrap().len() > 1 {}
        assert_eq!(dir.names().unwrap(), ["7"]);
        assert!(!dir.sweep(|_, _| false));
        assert_eq!(dir.names().unwrap(), [""; 0]);
    }

    #[test]
    fn empty_directories_are_removed() {
        let (above, base) = base();
        let (x, y) = (base.make_dir("x").unwrap(), base.make_dir("y").unwrap());
        fs::write(x.at("file"), "").unwrap();
        assert!(!x.remove() && y.remove());
        fs::remove_file(x.at("file")).unwrap();
        assert!(x.remove());
        assert_eq!(fs::read_dir(above.path()).unwrap().count(), 0);
        // There is no way back into it.
        assert_eq!(base.make_dir("z").unwrap_err().kind, ErrorKind::NotFound);
    }
}
