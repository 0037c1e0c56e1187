//! A resolv.conf of the namespace's own.
//!
//! In the private mount namespace something else is mounted on `/etc/resolv.conf`: a file the user names
//! (`-r`), or one made of name server addresses (`-R`). The host's file is never touched. What stands at
//! `/etc/resolv.conf` is taken as it is, not followed: a symbolic link, dangling or not, is itself
//! mounted on. Where there is nothing at all, an overlay is put on `/etc` to make the place.

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use crate::error::{Error, Result, system};

const TARGET: &str = "/etc/resolv.conf";
const NOTHING: Option<&str> = None;

/// Where the namespace's resolv.conf comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolv {
    /// A file to be seen in its place (`-r`).
    File(PathBuf),
    /// Name servers (`-R`).
    Servers(Vec<IpAddr>),
}

impl Resolv {
    /// The choice that `-R` and `-r` make together: `-R` wins.
    ///
    /// # Errors
    /// An address is none, or the file is not there.
    pub fn choose(servers: Option<&str>, file: Option<&Path>) -> Result<Option<Self>> {
        match (servers, file) {
            (Some(servers), _) => parse_servers(servers).map(Self::Servers).map(Some),
            (None, Some(file)) => {
                let path = file.canonicalize();
                let path = path.map_err(|error| Error::path("use the file", file, &error))?;
                Ok(Some(Self::File(path)))
            }
            (None, None) => Ok(None),
        }
    }

    /// Shows it at /etc/resolv.conf of the calling process's mount namespace, which must be private.
    ///
    /// # Errors
    /// The mounting fails.
    pub fn mount(&self) -> Result<()> {
        let place = place()?;
        match self {
            Self::File(file) => bind(file, &place),
            Self::Servers(servers) => {
                let path = temporary_file(servers)?;
                let bound = bind(&path, &place);
                // The mount keeps the file; its name is not needed any more.
                let removed = fs::remove_file(&path);
                bound.and(removed.map_err(|error| Error::path("remove", &path, &error)))
            }
        }
    }
}

/// A comma-separated list of IP addresses.
fn parse_servers(list: &str) -> Result<Vec<IpAddr>> {
    let parse = |word: &str| {
        word.trim().parse().map_err(|_| {
            Error::usage(format!("'{word}' is no IP address of a name server"))
                .hint("give addresses separated by commas, such as 80.80.80.80,2001:db8::1")
        })
    };
    list.split(',').map(parse).collect()
}

fn temporary_file(servers: &[IpAddr]) -> Result<PathBuf> {
    let path = env::temp_dir().join(format!(".vdens-resolv.{}", process::id()));
    let text: String = servers
        .iter()
        .map(|ip| format!("nameserver {ip}\n"))
        .collect();
    let write = || File::create_new(&path)?.write_all(text.as_bytes());
    write().map_err(|error| Error::path("write", &path, &error))?;
    Ok(path)
}

/// The place to mount on, by descriptor, so that a symbolic link is not followed.
fn place() -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let find = || open(TARGET, flags, Mode::empty());
    match find() {
        Err(Errno::ENOENT) => {
            overlay_etc().map_err(system(format_args!("make {TARGET}, which does not exist")))?;
            find()
        }
        found => found,
    }
    .map_err(system(format_args!("find {TARGET}")))
}

/// Puts an overlay on /etc that has an empty resolv.conf. Its upper layer is a tmpfs, mounted for a
/// moment where temporary files are.
fn overlay_etc() -> nix::Result<()> {
    let tmp = env::temp_dir();
    mount(
        NOTHING,
        &tmp,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=0755"),
    )?;
    let (upper, work) = (tmp.join("upper"), tmp.join("work"));
    let made = [&upper, &work].into_iter().try_for_each(fs::create_dir);
    let made = made.and_then(|()| File::create(upper.join("resolv.conf")).map(drop));
    let options = format!(
        "lowerdir=/etc,upperdir={},workdir={},userxattr",
        upper.display(),
        work.display()
    );
    let result = match made {
        Ok(()) => mount(
            Some("overlay"),
            "/etc",
            Some("overlay"),
            MsFlags::empty(),
            Some(&*options),
        ),
        Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))),
    };
    umount2(&tmp, MntFlags::MNT_DETACH)?;
    result
}

fn bind(source: &Path, place: &OwnedFd) -> Result<()> {
    let target = format!("/proc/self/fd/{}", place.as_raw_fd());
    mount(Some(source), &*target, NOTHING, MsFlags::MS_BIND, NOTHING).map_err(system(format_args!(
        "mount {} on {TARGET}",
        source.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_validated() {
        let servers = parse_servers("80.80.80.80, 2001:db8::1").unwrap();
        assert_eq!(servers.len(), 2);
        for bad in ["not an ip", "", "1.2.3.4,", "1.2.3.4 5.6.7.8", "1.2.3"] {
            assert!(parse_servers(bad).is_err(), "{bad}");
        }
    }
}
