//! A resolv.conf for the session alone.
//!
//! In the private mount namespace, a file is mounted on `/etc/resolv.conf`: one that the user names
//! (`-r`), or one made from name server addresses (`-R`). The host's file never changes. A symbolic
//! link at `/etc/resolv.conf` is not followed: the file is mounted on the link itself, dangling or
//! not. If there is nothing at that path, an overlay on `/etc` makes a file to mount on.
//!
//! The files for this are made on a tmpfs that is mounted for a moment, in this mount namespace
//! alone. So no other user sees their names or could take them first. A file without a name, from
//! `memfd_create` or `O_TMPFILE`, would not do, because the kernel does not bind-mount it.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use super::{NOTHING, in_memory};
use crate::error::{Error, Result, system};
use crate::namespace::auto::Names;

const TARGET: &str = "/etc/resolv.conf";

/// The source of the session's resolv.conf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resolv {
    /// A file (`-r`).
    File(PathBuf),
    /// Name servers (`-R`).
    Servers(Vec<IpAddr>),
    /// What the network says (`--auto`).
    Names(Names),
}

impl Resolv {
    /// Chooses between `-R` and `-r`: `-R` wins.
    ///
    /// # Errors
    /// An address is invalid, or the file does not exist.
    pub(crate) fn choose(servers: Option<&str>, file: Option<&Path>) -> Result<Option<Self>> {
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

    /// Mounts the file at /etc/resolv.conf. The calling process's mount namespace must be private.
    ///
    /// # Errors
    /// The kernel refuses the mount.
    pub(crate) fn mount(&self) -> Result<()> {
        let place = place()?;
        match self {
            Self::File(file) => bind(file, &place),
            Self::Servers(servers) => {
                let lines = servers.iter().map(|ip| format!("nameserver {ip}\n"));
                write(&lines.collect::<String>(), &place)
            }
            Self::Names(names) => {
                let search = (!names.search.is_empty())
                    .then(|| format!("search {}\n", names.search.join(" ")));
                let servers = names
                    .servers
                    .iter()
                    .map(|server| format!("nameserver {server}\n"));
                write(
                    &search.into_iter().chain(servers).collect::<String>(),
                    &place,
                )
            }
        }
    }
}

/// Shows a text at a place.
fn write(text: &str, place: &OwnedFd) -> Result<()> {
    in_memory(|dir| {
        let file = dir.join("resolv.conf");
        fs::write(&file, text).map_err(|error| Error::path("write", &file, &error))?;
        // The mount keeps the file when the tmpfs is unmounted.
        bind(&file, place)
    })
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

/// A descriptor of the place to mount on, so that a symbolic link is not followed.
fn place() -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let find = || open(TARGET, flags, Mode::empty());
    match find() {
        Err(Errno::ENOENT) => {
            overlay_etc()?;
            find()
        }
        found => found,
    }
    .map_err(system(format_args!("find {TARGET}")))
}

/// Mounts an overlay on /etc, in which the user can make and replace files that no other session
/// sees. Its resolv.conf is a file of the user's with what the machine's says; empty if there is
/// none.
///
/// # Errors
/// The kernel refuses; before Linux 5.11 it does so always.
pub(super) fn overlay_etc() -> Result<()> {
    in_memory(|dir| {
        let (upper, work) = (dir.join("upper"), dir.join("work"));
        let made = [&upper, &work].into_iter().try_for_each(fs::create_dir);
        let text = fs::read(TARGET).unwrap_or_default();
        made.and_then(|()| fs::write(upper.join("resolv.conf"), text))
            .map_err(|error| Error::path("write in", dir, &error))?;
        let options = format!(
            "lowerdir=/etc,upperdir={},workdir={},userxattr",
            upper.display(),
            work.display()
        );
        let (kind, none) = (Some("overlay"), MsFlags::empty());
        mount(kind, "/etc", kind, none, Some(&*options))
            .map_err(system(format_args!("make {TARGET}, which does not exist")))
    })
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
