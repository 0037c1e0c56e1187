//! The pid file of `vde_plug -p`.
//!
//! The path on the command line may lead into a directory that others can write, such as `/tmp`,
//! where another user may have made a file of that name first. So the file is opened without
//! following a symbolic link and without truncating it. It is overwritten only if it is empty or an
//! old pid file of this user.
//!
//! A new file appears with its content: scripts wait for the file and read it at once. It is
//! written under another name beside it and then renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use nix::unistd::geteuid;
use vdens_plugin_kit::trust;

use crate::error::{Error, Result};

/// More bytes than a pid file has: the longest id (`u32`) and the end of the line.
const MAX_LENGTH: u64 = 16;

/// A file with this process's id, removed on drop if it still has that.
#[derive(Debug)]
pub(crate) struct PidFile(PathBuf);

impl PidFile {
    /// Writes the process's id to the file at `path`, which is made if it does not exist.
    ///
    /// # Errors
    /// The file cannot be opened, or is not an old pid file of this user.
    pub(crate) fn write(path: PathBuf) -> Result<Self> {
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(libc::ELOOP) => refused(&path, "it is a symbolic link"),
            _ => Error::path("write the pid file", &path, &error),
        };
        match open(&path, &mut OpenOptions::new()) {
            Ok(mut old) => {
                check(&path, &mut old)?;
                old.set_len(0).map_err(failed)?;
                // In append mode: the check has moved the offset.
                writeln!(old, "{}", process::id()).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(&path).map_err(failed)?,
            Err(error) => return Err(failed(error)),
        }
        Ok(Self(path))
    }

    /// The file at `path`, which this process has written or is about to write.
    pub(crate) fn of(path: PathBuf) -> Self {
        Self(path)
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let is_ours = open(&self.0, &mut OpenOptions::new())
            .ok()
            .and_then(|mut file| id(&mut file))
            .is_some_and(|id| id == Some(process::id()));
        if is_ours && let Err(error) = fs::remove_file(&self.0) {
            log::warn!("cannot remove the pid file {}: {error}", self.0.display());
        }
    }
}

/// Makes a file with this process's id.
fn make(path: &Path) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", process::id()));
    let mut file = open(new.as_ref(), OpenOptions::new().create_new(true))?;
    writeln!(file, "{}", process::id())
        .and_then(|()| fs::rename(&new, path))
        .inspect_err(|_| drop(fs::remove_file(&new)))
}

/// Opens the file itself, not the target of a link, and without waiting for the other end of a
/// FIFO.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let options = options.read(true).append(true).mode(0o644);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    options.custom_flags(flags).open(path)
}

/// Checks that an open file may be overwritten.
fn check(path: &Path, file: &mut File) -> Result<()> {
    let meta = file
        .metadata()
        .map_err(|error| Error::path("look at", path, &error))?;
    let why = if !meta.is_file() {
        "it is not a regular file".into()
    } else if meta.uid() != geteuid().as_raw() {
        format!("it belongs to {}", trust::user(meta.uid()))
    } else if meta.nlink() != 1 {
        "it has another name (a hard link)".into()
    } else if id(file).is_none() {
        "its content is not a process id".into()
    } else {
        return Ok(());
    };
    Err(refused(path, &why))
}

fn refused(path: &Path, why: &str) -> Error {
    let message = format!("the pid file {} is not overwritten: {why}", path.display());
    Error::usage(message).hint("give another path with -p")
}

/// The id in a pid file, `None` in it if the file is empty. `None` for any other file.
fn id(file: &mut File) -> Option<Option<u32>> {
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(MAX_LENGTH).read_to_string(&mut text).ok()?;
    match text.trim() {
        "" => text.is_empty().then_some(None),
        id => id.parse().ok().map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_an_old_pid_file_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let own = format!("{}\n", process::id());
        for before in [
            None,
            Some(""),
            Some("1\n"),
            Some("4294967295\n"),
            Some("12"),
        ] {
            if let Some(text) = before {
                fs::write(&path, text).unwrap();
            }
            let pidfile = PidFile::write(path.clone()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), own);
            drop(pidfile);
            assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        }
        for text in ["\n", "text", "1 2", "12345678901234567890", "1\n2\n"] {
            fs::write(&path, text).unwrap();
            assert!(PidFile::write(path.clone()).is_err(), "{text:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, "1\n").unwrap();
        fs::hard_link(&path, dir.path().join("other")).unwrap();
        assert!(PidFile::write(path.clone()).is_err());
        fs::remove_file(&path).unwrap();
        symlink("other", &path).unwrap();
        assert!(PidFile::write(path.clone()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "1\n");
    }

    #[test]
    fn what_took_its_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let pidfile = PidFile::write(path.clone()).unwrap();
        fs::write(&path, "1\n").unwrap();
        drop(pidfile);
        assert!(path.exists());
    }
}
