//! The names of this user's sessions and labs: one file for each, in `names` in the runtime
//! directory.
//!
//! A process claims a name by locking the file of that name (fcntl(2), `F_SETLK`). The kernel
//! releases such a lock when the process ends, however it ends, and no child inherits it. It also
//! tells who holds the lock (`F_GETLK`), so a name leads to a living process or to none. The file
//! holds the [`Member`]s that the name leads to: the session itself, or the nodes of a lab. To
//! change them, the holder locks a new file and renames it to the name, so that a reader sees the
//! old members or the new ones.
//!
//! A lock is released when its holder closes any descriptor of the file. So a process that has a
//! [`Claim`] must not look names up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};

use super::runtime::{self, Dir};
use crate::error::{Error, ErrorKind, Result, system};

/// The directory's name.
const NAMES: &str = "names";
/// The longest name, in bytes.
const MAX_NAME: usize = 32;
/// The longest file, in bytes: a lab of ten thousand nodes.
const MAX_TEXT: u64 = 1 << 20;
/// How often a file that was replaced or removed meanwhile is opened again.
const RACES: usize = 50;
/// Nothing at a name is trusted: it may be a symbolic link, or a FIFO, whose opening would block.
const UNTRUSTED: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// What has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// A session.
    Session,
    /// A lab, with nodes that have names of their own.
    Lab,
}

/// A set of namespaces that a name leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// The session's name, or the node's.
    pub name: String,
    /// A process in these namespaces that lives as long as they are used.
    pub pid: u32,
    /// When that process started, in clock ticks since boot, so that no other process with its id
    /// is taken for it.
    pub started: u64,
}

impl Member {
    /// The member that a process stands for. `None` if the process has ended.
    pub(crate) fn of(name: &str, pid: u32) -> Option<Self> {
        Some(Self {
            name: name.into(),
            pid,
            started: runtime::start_time(pid)?,
        })
    }
}

/// What a file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    kind: Kind,
    members: Vec<Member>,
}

/// A name in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// The name.
    pub name: String,
    /// The process that has it. 0 if it is in a PID namespace that is not visible from here.
    pub holder: u32,
    /// What it is.
    pub kind: Kind,
    /// What it leads to; nothing while it starts.
    pub members: Vec<Member>,
}

/// Checks the name of a session or lab.
///
/// # Errors
/// It cannot be one.
pub(crate) fn check(name: &str) -> Result<()> {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_name = name.len() <= MAX_NAME
        && name.bytes().all(is_inner)
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && !name.bytes().all(|byte| byte.is_ascii_digit());
    match is_name {
        true => Ok(()),
        false => Err(Error::usage(format!("'{}' cannot be a name", name.escape_debug())).hint(
            format!(
                "a name has letters, digits, '.', '_' and '-', starts with a letter or digit, is not \
                 a number, and has at most {MAX_NAME} characters"
            ),
        )),
    }
}

/// A name that this process has. Dropping it in this process gives the name up.
#[derive(Debug)]
pub(crate) struct Claim {
    dir: Dir,
    name: String,
    kind: Kind,
    /// The locked file.
    file: File,
    process: u32,
}

impl Claim {
    /// Claims a name for this process.
    ///
    /// # Errors
    /// The name is in use, or the runtime directory cannot be used.
    pub(crate) fn take(name: &str, kind: Kind) -> Result<Self> {
        check(name)?;
        let make_dir = || Dir::runtime()?.make_dir(NAMES);
        let mut races = 0;
        loop {
            // The last process that had a name removes the directory.
            match make_dir().and_then(|dir| Self::take_in(dir, name, kind)) {
                Err(error) if error.kind == ErrorKind::NotFound && races < RACES => races += 1,
                outcome => return outcome,
            }
        }
    }

    fn take_in(dir: Dir, name: &str, kind: Kind) -> Result<Self> {
        sweep(&dir, name);
        let shown = dir.shown(name);
        let file =
            open(&dir.at(name), true).map_err(|error| Error::path("open", &shown, &error))?;
        match lock(&file) {
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(in_use(name, holder(&file))),
            locked => locked.map_err(system(format_args!("lock {}", shown.display())))?,
        }
        if !is_at(&file, &dir.at(name)) {
            let message = format!("{} was removed", shown.display());
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let process = process::id();
        let name = name.to_owned();
        let mut claim = Self {
            dir,
            name,
            kind,
            file,
            process,
        };
        claim.publish(Vec::new())?;
        Ok(claim)
    }

    /// The name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Says what the name leads to.
    ///
    /// # Errors
    /// The runtime directory is full.
    pub(crate) fn publish(&mut self, members: Vec<Member>) -> Result<()> {
        let contents = Contents {
            kind: self.kind,
            members,
        };
        let new = format!(".{}", self.name);
        let write = || {
            let text = serde_json::to_vec(&contents)?;
            let mut file = open(&self.dir.at(&new), true)?;
            lock(&file)?;
            file.set_len(0)?;
            file.write_all(&text)?;
            fs::rename(self.dir.at(&new), self.dir.at(&self.name))?;
            Ok::<_, io::Error>(file)
        };
        let shown = self.dir.shown(&self.name);
        self.file = write().map_err(|error| Error::path("write", &shown, &error))?;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.process == process::id() {
            // If it cannot be removed, the next process finds it stale.
            let _ = fs::remove_file(self.dir.at(&self.name));
            self.dir.remove();
        }
    }
}

/// The name, if it is in use.
///
/// # Errors
/// A directory cannot be used, or the file at the name makes no sense.
pub(crate) fn find(name: &str) -> Result<Option<Named>> {
    for dir in dirs()? {
        if let Some(named) = find_in(&dir, name)? {
            return Ok(Some(named));
        }
    }
    Ok(None)
}

/// All names in use, in order. Removes the files that killed processes have left.
///
/// # Errors
/// A directory cannot be used.
pub(crate) fn all() -> Result<Vec<Named>> {
    let mut all = Vec::new();
    for dir in dirs()? {
        sweep(&dir, "");
        for name in dir.names()?.iter().filter(|name| check(name).is_ok()) {
            match find_in(&dir, name) {
                Ok(named) => all.extend(named),
                Err(error) => log::warn!("{error}"),
            }
        }
    }
    all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn dirs() -> Result<Vec<Dir>> {
    let dirs = Dir::all().into_iter().map(|base| base.dir(NAMES));
    let is_there =
        |dir: &Result<Dir>| !matches!(dir, Err(error) if error.kind == ErrorKind::NotFound);
    dirs.filter(is_there).collect()
}

fn find_in(dir: &Dir, name: &str) -> Result<Option<Named>> {
    let path = dir.at(name);
    let cannot = |error: io::Error| Error::path("read", &dir.shown(name), &error);
    for _ in 0..RACES {
        let file = match open(&path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(cannot)?,
        };
        let mut text = String::new();
        (&file)
            .take(MAX_TEXT)
            .read_to_string(&mut text)
            .map_err(cannot)?;
        let Some(holder) = holder(&file) else {
            // Unlocked, it is stale or was just replaced.
            match is_at(&file, &path) {
                true => return Ok(None),
                false => continue,
            }
        };
        let contents = match text.is_empty() {
            // It was locked a moment ago.
            true => Contents {
                kind: Kind::Session,
                members: Vec::new(),
            },
            false => serde_json::from_str(&text).map_err(|error| cannot(error.into()))?,
        };
        let Contents { kind, members } = contents;
        let name = name.to_owned();
        return Ok(Some(Named {
            name,
            holder,
            kind,
            members,
        }));
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!("'{name}' changes all the time"),
    ))
}

/// Removes the files that killed processes have left, except that of `kept`.
fn sweep(dir: &Dir, kept: &str) {
    for name in dir.names().unwrap_or_default() {
        let path = dir.at(&name);
        if name == kept {
            continue;
        }
        // Only its holder may remove a file. A holder that has it locked already is left alone.
        if let Ok(file) = open(&path, false)
            && holder(&file).is_none()
            && lock(&file).is_ok()
            && is_at(&file, &path)
        {
            let _ = fs::remove_file(&path);
        }
    }
}

fn open(path: &Path, is_made: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(is_made);
    let file = options.mode(0o600).custom_flags(UNTRUSTED).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file; remove it")),
    }
}

/// A lock over a whole file.
fn whole() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn lock(file: &File) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_SETLK(&whole())).map(drop)
}

/// The other process that has locked a file: 0 if it is not visible here. `None` if there is none.
fn holder(file: &File) -> Option<u32> {
    let mut found = whole();
    fcntl(file, FcntlArg::F_GETLK(&mut found)).ok()?;
    let is_locked = found.l_type != libc::F_UNLCK as libc::c_short;
    is_locked.then(|| u32::try_from(found.l_pid).unwrap_or(0))
}

/// Whether the file is still the one at a path.
fn is_at(file: &File, path: &Path) -> bool {
    let (open, named) = (file.metadata(), fs::symlink_metadata(path));
    let pair = open.ok().zip(named.ok());
    pair.is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()))
}

fn in_use(name: &str, holder: Option<u32>) -> Error {
    let who = match holder {
        Some(pid @ 1..) => format!("process {pid} has it"),
        _ => "a process in another PID namespace has it".into(),
    };
    Error::new(
        ErrorKind::Busy,
        format!("the name '{name}' is in use: {who}"),
    )
    .hint("choose another; vdectl ls lists those in use")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::child::{Child, exit_child};
    use std::os::unix::fs::DirBuilderExt;

    fn dir() -> (tempfile::TempDir, std::path::PathBuf) {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("vdens/names");
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700).recursive(true).create(&path).unwrap();
        (above, path)
    }

    fn opened(path: &Path) -> Dir {
        Dir::open(path.to_owned()).unwrap()
    }

    /// Runs `test` in another process, because a process sees no lock of its own.
    fn elsewhere(test: impl FnOnce() -> bool) -> bool {
        match Child::fork().unwrap() {
            Some(mut child) => child.wait(None).unwrap().code() == 0,
            None => exit_child(|| i32::from(!test())),
        }
    }

    #[test]
    fn names_are_checked() {
        for good in ["r1", "R", "web.example-1_x", "1a", &"x".repeat(32)] {
            check(good).unwrap();
        }
        let long = "x".repeat(33);
        for bad in ["", "12", "-a", ".a", "a b", "a/b", "a:b", "ä", "a\n", &long] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_has_one_holder_and_leads_to_its_members() {
        let (_above, path) = dir();
        let mut claim = Claim::take_in(opened(&path), "r1", Kind::Lab).unwrap();
        let me = process::id();
        assert!(elsewhere(|| {
            let named = find_in(&opened(&path), "r1").unwrap().unwrap();
            named.holder == me && named.members.is_empty() && named.kind == Kind::Lab
        }));
        let members = vec![Member::of("r1", me).unwrap()];
        claim.publish(members.clone()).unwrap();
        assert!(elsewhere(|| {
            let error = Claim::take_in(opened(&path), "r1", Kind::Session).unwrap_err();
            let named = find_in(&opened(&path), "r1").unwrap().unwrap();
            error.message == format!("the name 'r1' is in use: process {me} has it")
                && named.members == members
        }));
        // A child has no part in it.
        assert!(elsewhere(|| {
            drop(claim);
            true
        }));
    }

    #[test]
    fn a_claim_dies_with_its_process() {
        let (_above, path) = dir();
        assert!(elsewhere(|| {
            let claim = Claim::take_in(opened(&path), "r1", Kind::Session).unwrap();
            std::mem::forget(claim);
            true
        }));
        assert!(path.join("r1").exists());
        assert_eq!(find_in(&opened(&path), "r1").unwrap(), None);
        let claim = Claim::take_in(opened(&path), "r2", Kind::Session).unwrap();
        assert!(!path.join("r1").exists(), "a stale file is removed");
        drop(claim);
        assert!(!path.exists(), "the last one removes the directory");
    }

    #[test]
    fn nonsense_at_a_name_is_an_error_or_nothing() {
        let (_above, path) = dir();
        fs::write(path.join("r1"), "nonsense").unwrap();
        assert_eq!(find_in(&opened(&path), "r1").unwrap(), None);
        std::os::unix::fs::symlink("/etc/passwd", path.join("r2")).unwrap();
        assert!(find_in(&opened(&path), "r2").is_err());
        nix::unistd::mkfifo(&path.join("r3"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(find_in(&opened(&path), "r3").is_err());
    }
}
