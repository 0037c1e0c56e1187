//! The client's own datagram socket.
//!
//! The switch finds it by its path. The path is in the switch's directory or, if that cannot be
//! written, in one of the directories for variable data. It is removed as soon as the two sockets
//! are connected, or when opening fails.
//!
//! The permissions are never wider than they must be. The socket is made with mode 0700. It is
//! opened to the switch's group, or to all, only if the switch runs neither as this user nor as
//! root.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::{Gid, Uid};
use vdens_plugin_kit::bound_socket::{Access, BoundSocket};
use vdens_plugin_kit::{Error, Result, log};

/// Where the path may be if the switch's directory cannot be written.
const FALLBACKS: [&str; 3] = ["/var/run", "/var/tmp", "/tmp"];

/// How many names are tried in one directory: a killed process of the same id may have left some.
const ATTEMPTS: u32 = 100;

/// The send buffer asked for, in bytes: some forty full frames. A switch drops frames that another
/// port cannot take. With a short queue to the switch, TCP slows down sooner and loses less.
const SEND_BUFFER: usize = 40_000;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Who may send to the socket while it has a path: as few as the switch needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Openness {
    access: Access,
    /// The mode that serves where `access.group` need not and cannot be given.
    without_group: Option<u32>,
}

impl Openness {
    fn new(switch: &Metadata, group: Option<Gid>, mode: Option<u32>) -> Self {
        let is_foreign = switch.uid() != Uid::effective().as_raw() && switch.uid() != 0;
        let (group, usual, without_group) = match group {
            Some(gid) => (Some(gid.as_raw()), 0o770, None),
            None if is_foreign => (Some(switch.gid()), 0o770, Some(mode.unwrap_or(0o777))),
            None => (None, 0o700, None),
        };
        let mode = mode.unwrap_or(usual);
        Self {
            access: Access { mode, group },
            without_group,
        }
    }

    fn apply(self, path: &BoundSocket) -> Result<()> {
        path.set_access(self.access)
            .or_else(|error| match self.without_group {
                Some(mode) => path.set_access(Access { mode, group: None }),
                None => Err(error),
            })
    }
}

/// A bound datagram socket; dropping it removes the path.
#[derive(Debug)]
pub(crate) struct Endpoint {
    socket: UnixDatagram,
    path: BoundSocket,
}

impl Endpoint {
    /// Binds a socket that the switch, whose control socket is `switch`, can reach.
    pub(crate) fn bind(
        directory: &Path,
        switch: &Metadata,
        group: Option<Gid>,
        mode: Option<u32>,
    ) -> Result<Self> {
        let openness = Openness::new(switch, group, mode);
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
            let (shown, others) = (directory.display(), FALLBACKS.join(", "));
            let cause = io::Error::from_raw_os_error(error.errno);
            Error::io(format_args!("make a socket in {shown}, {others}"), &cause)
                .hint("one of these directories must be writable")
        })?;
        openness.apply(&endpoint.path)?;
        Ok(endpoint)
    }

    /// Where the switch finds it.
    pub(crate) fn path(&self) -> &Path {
        self.path.path()
    }

    /// Connects to the switch's socket, and removes the path, which is not needed any more.
    pub(crate) fn connect(self, peer: &Path) -> Result<UnixDatagram> {
        self.socket
            .connect(peer)
            .map_err(|error| Error::path("connect to the switch's socket", peer, &error))?;
        // A longer queue is worse, nothing else.
        let _ = setsockopt(&self.socket, sockopt::SndBuf, &SEND_BUFFER);
        Ok(self.socket)
    }
}

/// Binds to the first of the paths for successive numbers that is free.
fn bind_one_of(path: impl Fn(u32) -> PathBuf) -> Result<Endpoint> {
    let socket = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    let socket = socket.map_err(|error| Error::io("make a socket", &error))?;
    let own = Access {
        mode: 0o700,
        group: None,
    };
    let mut attempt = 0;
    loop {
        attempt += 1;
        let path = path(COUNTER.fetch_add(1, Ordering::Relaxed) % 100_000);
        match BoundSocket::bind(&socket, &path, own) {
            Err(error) if error.errno == Errno::EADDRINUSE as i32 && attempt < ATTEMPTS => {}
            bound => return bound.map(|path| Endpoint { socket, path }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode_of(endpoint: &Endpoint) -> u32 {
        endpoint.path().metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn private_by_default_and_gone_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let switch = directory.path().metadata().unwrap();
        let a = Endpoint::bind(directory.path(), &switch, None, None).unwrap();
        let b = Endpoint::bind(directory.path(), &switch, None, Some(0o770)).unwrap();
        assert_eq!((mode_of(&a), mode_of(&b)), (0o700, 0o770));
        assert_ne!(a.path(), b.path());
        assert!(a.path().starts_with(directory.path()));
        drop((a, b));
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn what_took_its_place_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let switch = directory.path().metadata().unwrap();
        let endpoint = Endpoint::bind(directory.path(), &switch, None, None).unwrap();
        let path = endpoint.path().to_owned();
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
        assert!(!endpoint.path().starts_with(&deep));
        let name = endpoint.path().file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("vde."), "{name}");
    }

    #[test]
    fn a_switch_of_somebody_else_gets_in() {
        let Ok(metadata) = Path::new("/etc/passwd").metadata() else {
            return;
        };
        let got = Openness::new(&metadata, None, None);
        assert_eq!(got.access.group, None, "root needs no permission");
        let mine = tempfile::NamedTempFile::new().unwrap();
        let gid = Gid::from_raw(12345);
        let mine = mine.path().metadata().unwrap();
        let got = Openness::new(&mine, Some(gid), None);
        let group = Some(gid.as_raw());
        assert_eq!(got.access, Access { mode: 0o770, group });
        assert_eq!(got.without_group, None, "it must succeed");
    }
}
