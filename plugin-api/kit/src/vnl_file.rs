//! The meaning of a path: the directory of a switch, or a file with a VNL; and the default switch.
//!
//! # Theory of operation
//!
//! A VNL can run a command (`cmd://…`), so a file with a VNL is a script. It is read only if nobody
//! but root and the user can have written it. The file is opened with `O_PATH`, which has no effect
//! on a FIFO or a device and follows no link. Its metadata is checked on that descriptor, and the
//! line is read from the same file through `/proc/self/fd`. A symbolic link is followed only if
//! root or the user made it.
//!
//! A directory that the user names may belong to anybody, because the switch's mode decides who may
//! plug in. The user did not choose a default directory, and in `/tmp` anybody can make one. So a
//! default directory must be root's or the user's, unless a link of theirs leads to it. A file in a
//! place that all users share may only hold a VNL of [`PLAIN_SCHEMES`].

use std::env;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::readlinkat;

use crate::error::{Error, ErrorKind, Result};
use crate::trust::{self, Fault};
use crate::vnl::Vnl;

/// The schemes that run no command, load no foreign code and nest no VNL.
pub const PLAIN_SCHEMES: [&str; 6] = ["vde", "ptp", "tap", "udp", "vxlan", "null"];

/// The default places below the home directory, best first.
const HOME_PLACES: [&str; 2] = [".vdeplug/default", ".vde2/default.switch"];

/// The default places that all users share, best first; after those below the home directory.
const SHARED_PLACES: [&str; 2] = ["/var/run/vde.ctl", "/tmp/vde.ctl"];

/// The longest VNL in a file, in bytes.
const MAX_VNL: u64 = 64 * 1024;

/// The most symbolic links that are followed, as in path_resolution(7).
const MAX_LINKS: usize = 40;

/// The meaning of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The directory of a switch. If it does not exist, the scheme `vde` reports that.
    Directory(PathBuf),
    /// A VNL from a file.
    Vnl(String),
}

/// The meaning of a path that the user has named.
///
/// # Errors
/// There is a file that cannot be read, has no VNL, or is not trusted.
pub fn named(path: &Path) -> Result<Place> {
    let is_other = fs::metadata(path).is_ok_and(|meta| !meta.is_dir());
    let directory = Place::Directory(path.to_owned());
    if !is_other {
        return Ok(directory);
    }
    match open(path) {
        Ok(found) if found.meta.is_file() => found.read(path).map(Place::Vnl),
        Ok(_) => Ok(directory),
        Err(Trouble::Link(link, fault)) => Err(foreign_link(&link, fault)),
        Err(Trouble::Io(error)) => Err(cannot_read(path, &error)),
    }
}

/// The default switch: the first of the default places that exists.
///
/// # Errors
/// There is none, or it is not trusted.
pub fn default_switch() -> Result<Place> {
    let home = env::var_os("HOME").map(PathBuf::from);
    let home = home.filter(|home| home.is_absolute());
    let at_home = HOME_PLACES
        .iter()
        .filter_map(|name| Some((home.as_ref()?.join(name), false)));
    let shared = SHARED_PLACES.map(|path| (PathBuf::from(path), true));
    let places: Vec<_> = at_home.chain(shared).collect();
    for (path, is_shared) in &places {
        if let Some(place) = default_place(path, *is_shared)? {
            return Ok(place);
        }
    }
    let tried: Vec<_> = places.iter().map(|p| p.0.display().to_string()).collect();
    let message = format!(
        "there is no default switch: none of {} exists",
        tried.join(", ")
    );
    Err(Error::new(ErrorKind::NotFound, message)
        .hint("name a VNL, or set defaults.vnl in the configuration"))
}

/// Checks that a VNL has one of `schemes` and nests no other.
///
/// Braces that belong to a name are refused too. They can be written as `%7B` and `%7D`.
///
/// # Errors
/// It has another scheme, or braces.
pub fn check_plain<S: AsRef<str>>(vnl: &str, schemes: &[S]) -> Result<()> {
    let Vnl { scheme, argument } = Vnl::parse(vnl)?;
    let names: Vec<&str> = schemes.iter().map(AsRef::as_ref).collect();
    if !names.contains(&scheme) {
        let message = format!("the scheme '{scheme}' is not allowed here");
        return Err(Error::new(ErrorKind::Permission, message)
            .hint(format!("allowed are {}", names.join(", "))));
    }
    match argument.contains(['{', '}']) {
        true => Err(Error::new(
            ErrorKind::Permission,
            "a VNL within a VNL is not allowed here",
        )
        .hint("write braces that belong to a path as %7B and %7D")),
        false => Ok(()),
    }
}

/// The meaning of a default place; `None` if nothing is there.
fn default_place(path: &Path, is_shared: bool) -> Result<Option<Place>> {
    let found = match open(path) {
        Ok(found) => found,
        Err(Trouble::Link(link, fault)) => return Err(foreign_link(&link, fault)),
        Err(Trouble::Io(_)) => return Ok(None),
    };
    if found.meta.is_dir() {
        return match found.directory_fault(path) {
            None => Ok(Some(Place::Directory(path.to_owned()))),
            Some(fault) => {
                let hint = format!("to use it all the same, name it: vde://{}", path.display());
                Err(refused("default switch", path, &fault.to_string()).hint(hint))
            }
        };
    }
    if !found.meta.is_file() {
        let why = trust::fault(&found.meta).map_or_else(
            || "it is neither a directory nor a file with a VNL".to_owned(),
            |fault| fault.to_string(),
        );
        return Err(refused("default switch", path, &why).hint("remove it, or name a VNL"));
    }
    let vnl = found.read(path)?;
    if is_shared {
        check_plain(&vnl, &PLAIN_SCHEMES).map_err(|error| {
            let why = format!("{}; {}", error.message, error.hint);
            refused("default switch", path, &why).hint("name a VNL, or use ~/.vdeplug/default")
        })?;
    }
    Ok(Some(Place::Vnl(vnl)))
}

/// Why a path cannot be opened.
enum Trouble {
    /// A symbolic link on the way is another user's.
    Link(PathBuf, Fault),
    Io(io::Error),
}

/// The file at a path.
struct Found {
    /// Opened with `O_PATH`.
    file: File,
    meta: Metadata,
    /// Whether a symbolic link, of root or the user, led to it.
    is_behind_link: bool,
}

/// Opens the file at `path` without any effect on it. Follows trusted symbolic links.
fn open(path: &Path) -> Result<Found, Trouble> {
    let mut path = path.to_owned();
    for links in 0..=MAX_LINKS {
        let mut options = OpenOptions::new();
        options.read(true);
        options.custom_flags(libc::O_PATH | libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(Trouble::Io)?;
        let meta = file.metadata().map_err(Trouble::Io)?;
        if !meta.is_symlink() {
            let is_behind_link = links > 0;
            return Ok(Found {
                file,
                meta,
                is_behind_link,
            });
        }
        if let Some(fault) = trust::foreign(&meta) {
            return Err(Trouble::Link(path, fault));
        }
        let target = readlinkat(&file, "").map_err(|errno| Trouble::Io(errno.into()))?;
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(Trouble::Io(io::Error::from_raw_os_error(libc::ELOOP)))
}

impl Found {
    /// Why a directory at a default place is not trusted. It is trusted if root or the user chose
    /// it, by a link or by making it where nobody else can.
    fn directory_fault(&self, path: &Path) -> Option<Fault> {
        let parent = path.parent().and_then(|parent| fs::metadata(parent).ok());
        let is_private = parent.is_some_and(|meta| trust::fault(&meta).is_none());
        match self.is_behind_link || is_private {
            true => None,
            false => trust::fault(&self.meta),
        }
    }

    /// The VNL in the first line of a regular file.
    fn read(&self, path: &Path) -> Result<String> {
        if let Some(fault) = trust::fault(&self.meta) {
            let hint = match fault {
                Fault::Foreign(_) => "if you trust it, write its VNL on the command line".into(),
                Fault::Writable => format!("chmod go-w {}", path.display()),
            };
            return Err(refused("VNL file", path, &fault.to_string()).hint(hint));
        }
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let reader = options
            .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
            .map_err(|error| cannot_read(path, &error))?;
        let mut line = String::new();
        BufReader::new(reader.take(MAX_VNL))
            .read_line(&mut line)
            .map_err(|error| cannot_read(path, &error))?;
        // The error quotes nothing unless a scheme comes first: a file without a VNL may hold a
        // secret.
        let has_scheme = |vnl: &str| {
            let scheme = vnl.split_once("://").map(|(scheme, _)| scheme);
            scheme.is_some_and(Vnl::is_scheme)
        };
        match line.trim() {
            vnl if has_scheme(vnl) => Vnl::parse(vnl).map(|_| vnl.to_owned()),
            vnl if !vnl.is_empty() && Vnl::parse(vnl).is_ok() => Ok(vnl.to_owned()),
            _ => Err(Error::usage(format!(
                "the file {} has no VNL in its first line",
                path.display()
            ))
            .hint("write one there, such as vde:///tmp/sw")),
        }
    }
}

fn cannot_read(path: &Path, error: &io::Error) -> Error {
    Error::path("read the VNL in", path, error)
}

fn foreign_link(link: &Path, fault: Fault) -> Error {
    refused("link", link, &fault.to_string()).hint("name what it leads to, if you trust it")
}

fn refused(what: &str, path: &Path, why: &str) -> Error {
    let message = format!("the {what} {} is refused: {why}", path.display());
    Error::new(ErrorKind::Permission, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn write(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(path: &Path) -> String {
        named(path).unwrap_err().to_string()
    }

    #[test]
    fn a_path_is_a_directory_or_a_file_with_a_vnl() {
        let dir = std::env::temp_dir().join(format!("vdens-vnl-file-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let file = dir.join("f");
        assert_eq!(named(&file).unwrap(), Place::Directory(file.clone()));
        assert_eq!(named(&dir).unwrap(), Place::Directory(dir.clone()));
        write(&file, "ptp:///tmp/a\nrest", 0o600);
        assert_eq!(named(&file).unwrap(), Place::Vnl("ptp:///tmp/a".into()));
        let links = [dir.join("l"), dir.join("loop")];
        symlink("f", &links[0]).unwrap();
        symlink("loop", &links[1]).unwrap();
        assert_eq!(named(&links[0]).unwrap(), Place::Vnl("ptp:///tmp/a".into()));
        assert_eq!(
            named(&links[1]).unwrap(),
            Place::Directory(links[1].clone())
        );
        write(&file, "ptp:///tmp/a", 0o646);
        assert!(refusal(&file).contains("written by others; chmod go-w"));
        assert!(refusal(&links[0]).contains("written by others"));
        for (text, word) in [
            ("", "no VNL"),
            ("\nnull://", "no VNL"),
            ("A B://", "no VNL"),
        ] {
            write(&file, text, 0o600);
            assert!(refusal(&file).contains(word));
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn plain_vnls() {
        for vnl in ["/tmp/sw", "vde:///tmp/sw[3]", "ptp:///tmp/a", "ptp:///a%7B"] {
            check_plain(vnl, &["vde", "ptp"]).unwrap();
        }
        for vnl in [
            "cmd://id",
            "vlan://1{/tmp/sw}",
            "vde:///a{b}",
            "udp://1",
            "x y://",
        ] {
            assert!(check_plain(vnl, &["vde", "ptp"]).is_err(), "{vnl}");
        }
        assert!(check_plain("libvdeplug://cmd://id", &PLAIN_SCHEMES).is_err());
    }
}
