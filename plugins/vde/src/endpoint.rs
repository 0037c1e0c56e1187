//! The client's own datagram socket.
//!
//! The switch finds it by its path, so it has one: in the switch's directory or, where that cannot be
//! written, in one of the directories for variable data. The path goes as soon as the two sockets are
//! connected, or when opening fails.
//!
//! Permissions are never wider than they must be, at any moment: the socket is bound with 0700, and
//! opened to the switch's group, or to all, only when the switch runs as another user than this one
//! and not as root. The directory may belong to somebody else, so the path is never followed
//! when permissions change, and only removed while it still is this socket.

use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use nix::unistd::{Gid, Uid, fchownat};
use vdens_plugin_kit::vnl::check_socket_path;
use vdens_plugin_kit::{Error, Result, log};

/// Where the path may be when the switch's directory cannot be written.
const FALLBACKS: [&str; 3] = ["/var/run", "/var/tmp", "/tmp"];

/// Names tried in one directory before giving up on it: a killed process of the same id may have left some.
const ATTEMPTS: u32 = 100;

/// The send buffer asked for, in bytes: some forty full frames. A switch drops what its next port cannot
/// take, and TCP slows down sooner, and loses less, when the queue towards the switch is short.
const SEND_BUFFER: usize = 40_000;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Who may send to the socket while it has a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Access {
    /// The group to give it to, and whether that must succeed.
    group: Option<(Gid, bool)>,
    /// Permission bits, and those that serve when the group could not be given.
    mode: Mode,
    without_group: Mode,
}

impl Access {
    fn new(switch: &Metadata, group: Option<Gid>, mode: Option<u32>) -> Self {
        let own = Mode::from_bits_truncate(0o700);
        let shared = Mode::from_bits_truncate(0o770);
        let open = Mode::from_bits_truncate(0o777);
        let is_foreign = switch.uid() != Uid::effective().as_raw() && switch.uid() != 0;
        let (group, usual, without_group) = match group {
            Some(gid) => (Some((gid, true)), shared, shared),
            None if is_foreign => (Some((Gid::from_raw(switch.gid()), false)), shared, open),
            None => (None, own, own),
        };
        let chosen = mode.map(Mode::from_bits_truncate);
        Self {
            group,
            mode: chosen.unwrap_or(usual),
            without_group: chosen.unwrap_or(without_group),
        }
    }

    fn apply(self, path: &Path) -> nix::Result<()> {
        let mode = match self.group {
            None => self.mode,
            Some((gid, must)) => {
                let flag = AtFlags::AT_SYMLINK_NOFOLLOW;
                match fchownat(AT_FDCWD, path, None, Some(gid), flag) {
                    Ok(()) => self.mode,
                    Err(errno) if must => return Err(errno),
                    Err(_) => self.without_group,
                }
            }
        };
        fchmodat(AT_FDCWD, path, mode, FchmodatFlags::NoFollowSymlink)
    }
}

/// A bound datagram socket; dropping it removes the path.
#[derive(Debug)]
pub(crate) struct Endpoint {
    socket: Option<UnixDatagram>,
    pub(crate) path: PathBuf,
    identity: (u64, u64),
}

impl Endpoint {
    /// Binds a socket that the switch, whose control socket is `switch`, can reach.
    pub(crate) fn bind(
        directory: &Path,
        switch: &Metadata,
        group: Option<Gid>,
        mode: Option<u32>,
    ) -> Result<Self> {
        let access = Access::new(switch, group, mode);
        let hidden = |n| directory.join(format!(".{:05}-{n:05}", std::process::id()));
        let mut outcome = bind_one_of(hidden);
        for fallback in FALLBACKS {
            if let Err(error) = &outcome {
                log::debug!("no socket in {}: {error}", directory.display());
                let visible =
                    |n| Path::new(fallback).join(format!("vde.{:05}-{n:05}", std::process::id()));
                outcome = bind_one_of(visible);
            }
        }
        let endpoint = outcome.map_err(|error| {
            Error::io(
                format_args!(
                    "make a socket in {}, {}",
                    directory.display(),
                    FALLBACKS.join(", ")
                ),
                &error,
            )
            .hint("one of these directories must be writable")
        })?;
        access.apply(&endpoint.path).map_err(|errno| {
            Error::path("set group and mode of", &endpoint.path, &errno.into())
                .hint("you can only give a socket to a group that you belong to")
        })?;
        Ok(endpoint)
    }

    /// Connects to the switch's socket; the path is not needed any more and goes.
    pub(crate) fn connect(mut self, peer: &Path) -> Result<UnixDatagram> {
        let socket = self.socket.take();
        let connected = socket.ok_or(Errno::EBADF).and_then(|socket| {
            connect(socket.as_raw_fd(), &UnixAddr::new(peer)?)?;
            // Without it the link works as well, but not as well.
            let _ = setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER);
            Ok(socket)
        });
        connected
            .map_err(|errno| Error::path("connect to the switch's socket", peer, &errno.into()))
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    path.symlink_metadata().map(|m| (m.dev(), m.ino()))
}

/// Binds to the first of the paths for successive numbers that is free.
fn bind_one_of(path: impl Fn(u32) -> PathBuf) -> io::Result<Endpoint> {
    for _ in 0..ATTEMPTS {
        let path = path(COUNTER.fetch_add(1, Ordering::Relaxed) % 100_000);
        match bind_to(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            outcome => return outcome,
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn bind_to(path: PathBuf) -> io::Result<Endpoint> {
    check_socket_path(&path).map_err(io::Error::other)?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    // The path is made with the socket's own bits.
    fchmod(socket.as_fd(), Mode::from_bits_truncate(0o700))?;
    bind(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
    Ok(Endpoint {
        identity: identity(&path)?,
        socket: Some(socket.into()),
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode_of(endpoint: &Endpoint) -> u32 {
        endpoint.path.metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn private_by_default_and_gone_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let switch = directory.path().metadata().unwrap();
        let a = Endpoint::bind(directory.path(), &switch, None, None).unwrap();
        let b = Endpoint::bind(directory.path(), &switch, None, Some(0o770)).unwrap();
        assert_eq!((mode_of(&a), mode_of(&b)), (0o700, 0o770));
        assert_ne!(a.path, b.path);
        assert!(a.path.starts_with(directory.path()));
        drop((a, b));
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn what_took_its_place_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let switch = directory.path().metadata().unwrap();
        let endpoint = Endpoint::bind(directory.path(), &switch, None, None).unwrap();
        let path = endpoint.path.clone();
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        std::fs::write(&path, "precious").unwrap();
        drop(endpoint);
        assert!(path.exists());
    }

    #[test]
    fn a_directory_too_deep_falls_back() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(90));
        std::fs::create_dir(&deep).unwrap();
        let switch = deep.metadata().unwrap();
        let endpoint = Endpoint::bind(&deep, &switch, None, None).unwrap();
        assert!(!endpoint.path.starts_with(&deep));
        let name = endpoint.path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("vde."), "{name}");
    }

    #[test]
    fn a_switch_of_somebody_else_gets_in() {
        let Ok(metadata) = Path::new("/etc/passwd").metadata() else {
            return;
        };
        let access = Access::new(&metadata, None, None);
        assert_eq!(access.group, None, "root needs no permission");
        let mine = tempfile::NamedTempFile::new().unwrap();
        let gid = Gid::from_raw(12345);
        let mine = mine.path().metadata().unwrap();
        let access = Access::new(&mine, Some(gid), None);
        assert_eq!(access.group, Some((gid, true)));
        assert_eq!(access.mode.bits(), 0o770);
    }
}
