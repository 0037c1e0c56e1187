//! A resolv.conf of the namespace's own.
//!
//! In the private mount namespace something else is mounted on `/etc/resolv.conf`: a file the user names
//! (`-r`), or one made of name server addresses (`-R`). The host's file is never touched. What stands at
//! `/etc/resolv.conf` is taken as it is, not followed: a symbolic link, dangling or not, is itself
//! mounted on. Where there is nothing at all, an overlay is put on `/etc` to make the place.
//!
//! What is made for this is made on a tmpfs that is mounted for a moment, in this mount namespace
//! alone. So nothing of it has a name that other users see, or could have taken before. (A file
//! without a name, from `memfd_create` or `O_TMPFILE`, would not do: the kernel does not bind-mount
//! one.)

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;

use super::{NOTHING, while_mounted};
use crate::error::{Error, Result, system};

const TARGET: &str = "/etc/resolv.conf";

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
            Self::Servers(servers) => in_memory(|dir| {
                let file = dir.join("resolv.conf");
                let lines = servers.iter().map(|ip| format!("nameserver {ip}\n"));
                fs::write(&file, lines.collect::<String>())
                    .map_err(|error| Error::path("write", &file, &error))?;
                // The mount keeps the file when the tmpfs has gone.
                bind(&file, &place)
            }),
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

/// The place to mount on, by descriptor, so that a symbolic link is not followed.
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

/// Puts an overlay on /etc that has an empty resolv.conf.
fn overlay_etc() -> Result<()> {
    in_memory(|dir| {
        let (upper, work) = (dir.join("upper"), dir.join("work"));
        let made = [&upper, &work].into_iter().try_for_each(fs::create_dir);
        made.and_then(|()| File::create(upper.join("resolv.conf")).map(drop))
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

/// Calls `work` with a directory on a tmpfs.
fn in_memory(work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    while_mounted("tmpfs", MsFlags::empty(), "mode=0755", work)
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
