//! Whether only trusted users can change what a path names.
//!
//! # Theory of operation
//!
//! The path is walked from the root directory, one name after the other. Each name is opened
//! relative to the directory before it, and symbolic links are followed by hand. Every directory,
//! link and file on the way must belong to root, the user, or the owner of this program, and others
//! must not be able to write the directories. After such a walk no other user can change what the
//! path leads to: each name on it is in a directory that was looked at, and that only trusted users
//! can write. That is why the file may then be opened by its path.
//!
//! A directory with the sticky bit, such as /tmp, may be passed although others can write it: they
//! can neither remove nor rename what belongs to another user. The file itself must not be in such
//! a directory, because a library may load other libraries from its own directory (`$ORIGIN`), and
//! others can put some there.
//!
//! Inside a user namespace every user that it does not map looks like `nobody`, root included. So
//! the owner of the root directory is trusted, too: there the directories above the user's own
//! belong to `nobody`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;
use vdens_plugin_kit::trust::writable_by_others;

use crate::error::{Error, ErrorKind, Result};

/// The most symbolic links on a path: the kernel's own limit (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Opens a name itself, not the target of a link, and only for its metadata.
const LOOK: OFlag = OFlag::O_PATH
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// A file or directory whose path only trusted users can change.
#[derive(Debug)]
pub(crate) struct Trusted(Step);

/// A directory, link or file on the path.
#[derive(Debug)]
struct Step {
    /// Its path, without symbolic links.
    path: PathBuf,
    file: File,
    meta: Metadata,
}

impl Trusted {
    /// The file that `path` leads to.
    ///
    /// # Errors
    /// Others can change it, or it cannot be found.
    pub(crate) fn file(path: &Path) -> Result<Self> {
        let end = walk(path)?;
        match end.meta.is_file() {
            true => Ok(Self(end.closed()?)),
            false => Err(Error::usage(format!("{} is no file", end.path.display()))),
        }
    }

    /// The directory that `path` leads to, and that others cannot put files into.
    ///
    /// # Errors
    /// Others can change it, or it cannot be found.
    pub(crate) fn directory(path: &Path) -> Result<Self> {
        walk(path)?.closed().map(Self)
    }

    /// The path without symbolic links.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// Checks that the path still leads to what was checked. Other users cannot change that, but an
    /// update may.
    ///
    /// # Errors
    /// It leads elsewhere.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        // The number is not given to another file, because this one is held open.
        let id = |meta: &Metadata| (meta.dev(), meta.ino());
        let named = fs::symlink_metadata(self.path());
        match named.is_ok_and(|meta| id(&meta) == id(&self.0.meta)) {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Busy,
                format!("{} was replaced at this moment", self.path().display()),
            )
            .hint("try again")),
        }
    }
}

impl Step {
    fn new(path: PathBuf, opened: nix::Result<OwnedFd>) -> Result<Self> {
        let cannot = |error: &io::Error| Error::path("look at", &path, error);
        let file = File::from(opened.map_err(|errno| cannot(&errno.into()))?);
        let meta = file.metadata().map_err(|error| cannot(&error))?;
        Ok(Self { path, file, meta })
    }

    fn root() -> Result<Self> {
        Self::new("/".into(), open("/", LOOK, Mode::empty()))
    }

    /// The entry `name` of this directory.
    fn enter(&self, name: &OsStr) -> Result<Self> {
        let path = match name == ".." {
            true => self.path.parent().unwrap_or(&self.path).to_owned(),
            false => self.path.join(name),
        };
        Self::new(path, openat(&self.file, name, LOOK, Mode::empty()))
    }

    /// Checks that others can neither write it nor, if it is a directory, put files into it.
    fn closed(self) -> Result<Self> {
        match writable_by_others(&self.meta) {
            true => Err(self.is_writable()),
            false => Ok(self),
        }
    }

    /// Checks that others cannot replace `entry` in this directory.
    fn check_keeps(&self, entry: &Self) -> Result<()> {
        let is_sticky = self.meta.mode() & libc::S_ISVTX != 0;
        let may_be_open = is_sticky && !entry.meta.is_file();
        match may_be_open || !writable_by_others(&self.meta) {
            true => Ok(()),
            false => Err(self.is_writable()),
        }
    }

    fn check_owner(&self, trusted: &[u32]) -> Result<()> {
        let uid = self.meta.uid();
        if trusted.contains(&uid) {
            return Ok(());
        }
        let message = format!(
            "{} belongs to another user (uid {uid})",
            self.path.display()
        );
        let hint = match self.meta.is_file() {
            true => "install a copy of your own",
            false => ELSEWHERE,
        };
        Err(Error::new(ErrorKind::Permission, message).hint(hint))
    }

    fn is_writable(&self) -> Error {
        let path = self.path.display();
        let hint = match self.meta.mode() & libc::S_ISVTX {
            0 => format!("chmod go-w {path}"),
            // Others are meant to write there.
            _ => ELSEWHERE.into(),
        };
        let message = format!("{path} can be written by others");
        Error::new(ErrorKind::Permission, message).hint(hint)
    }
}

const ELSEWHERE: &str = "put it into a directory that only you or root can write";

/// Follows a path, checking everything on it but whether others can write the end.
fn walk(path: &Path) -> Result<Step> {
    let cannot = |error: io::Error| Error::path("find", path, &error);
    let path = std::path::absolute(path).map_err(cannot)?;
    let root = Step::root()?;
    let trusted = trusted_owners(&root);
    let mut at = root;
    let mut left = reversed_names(&path);
    let mut links = 0;
    while let Some(name) = left.pop() {
        let next = at.enter(&name)?;
        next.check_owner(&trusted)?;
        at.check_keeps(&next)?;
        if !next.meta.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(cannot(Errno::ELOOP.into()));
        }
        let target = readlinkat(&next.file, "").map_err(|errno| cannot(errno.into()))?;
        let target = Path::new(&target);
        if target.is_absolute() {
            at = Step::root()?;
        }
        left.append(&mut reversed_names(target));
    }
    Ok(at)
}

/// The names on a path, the last one first. `..` stays: what it means depends on the links before
/// it.
fn reversed_names(path: &Path) -> Vec<OsString> {
    let names = path.components().rev();
    let names = names.filter(|name| matches!(name, Component::Normal(_) | Component::ParentDir));
    names.map(|name| name.as_os_str().to_owned()).collect()
}

fn trusted_owners(root: &Step) -> Vec<u32> {
    let program = fs::metadata("/proc/self/exe").map(|meta| meta.uid());
    let owners = [0, geteuid().as_raw(), root.meta.uid()];
    owners.into_iter().chain(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// A directory that was just made below /tmp, which has the sticky bit, with a file `plugin` in
    /// it.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let file = dir.path().join("plugin");
        write(&file);
        (dir, file)
    }

    fn write(file: &Path) {
        fs::write(file, "").unwrap();
        chmod(file, 0o644);
    }

    fn mkdir(dir: &Path, mode: u32) {
        fs::create_dir(dir).unwrap();
        chmod(dir, mode);
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[track_caller]
    fn is_refused(path: &Path, why: &str) {
        let error = Trusted::file(path).unwrap_err().to_string();
        assert!(error.contains(why) && !error.contains('\n'), "{error}");
    }

    #[test]
    fn a_file_of_the_users_in_the_sticky_directory() {
        let (dir, file) = place();
        assert_eq!(Trusted::file(&file).unwrap().path(), file);
        Trusted::directory(dir.path()).unwrap();
        // Right in it the file would have the neighbours that others choose.
        let open = dir.path().join("open");
        mkdir(&open, 0o1777);
        write(&open.join("plugin"));
        let words = format!("{} can be written by others; put it into", open.display());
        is_refused(&open.join("plugin"), &words);
        Trusted::directory(&open).unwrap_err();
        mkdir(&open.join("own"), 0o755);
        write(&open.join("own/plugin"));
        Trusted::file(&open.join("own/plugin")).unwrap();
    }

    #[test]
    fn everything_on_the_way_is_closed_to_others() {
        let (dir, file) = place();
        let (a, b) = (dir.path().join("a"), dir.path().join("a/b"));
        mkdir(&a, 0o755);
        mkdir(&b, 0o755);
        let plugin = b.join("plugin");
        fs::rename(&file, &plugin).unwrap();
        Trusted::file(&plugin).unwrap();
        for path in [&a, &b, &plugin] {
            let mode = path.metadata().unwrap().mode();
            chmod(path, 0o777);
            let words = format!(
                "{0} can be written by others; chmod go-w {0}",
                path.display()
            );
            is_refused(&plugin, &words);
            chmod(path, mode);
        }
        Trusted::file(&plugin).unwrap();
    }

    #[test]
    fn links_are_followed_and_their_directories_looked_at() {
        let (dir, file) = place();
        let at = |name: &str| dir.path().join(name);
        mkdir(&at("open"), 0o777);
        mkdir(&at("own"), 0o755);
        symlink(&file, at("open/absolute")).unwrap();
        symlink("../plugin", at("open/relative")).unwrap();
        is_refused(&at("open/absolute"), "/open can be written by others");
        is_refused(&at("open/relative"), "/open can be written by others");
        symlink("../plugin", at("own/relative")).unwrap();
        symlink("own/../own/relative", at("chain")).unwrap();
        assert_eq!(Trusted::file(&at("chain")).unwrap().path(), file);
        // A link to a place that others can write is no better, wherever it is itself.
        symlink(at("open/relative"), at("own/out")).unwrap();
        is_refused(&at("own/out"), "/open can be written by others");
        symlink("loop", at("loop")).unwrap();
        is_refused(&at("loop"), "symbolic links");
        is_refused(&at("own"), "is no file");
        is_refused(&at("nothing"), "No such file");
        is_refused(&at("plugin/x"), "Not a directory");
    }

    #[test]
    fn a_replacement_is_noticed() {
        let (dir, file) = place();
        let trusted = Trusted::file(&file).unwrap();
        trusted.check_unchanged().unwrap();
        let other = dir.path().join("other");
        write(&other);
        fs::rename(&other, &file).unwrap();
        let error = trusted.check_unchanged().unwrap_err().to_string();
        assert!(
            error.contains("was replaced at this moment; try again"),
            "{error}"
        );
    }
}
