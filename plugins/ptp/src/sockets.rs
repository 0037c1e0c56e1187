//! Sockets in the file system: what stands at a path, taking a path, giving it back.
//!
//! # Theory of operation
//!
//! A bound socket leaves its path behind when its process is killed, so a path says nothing about
//! whether somebody is there. Connecting a datagram socket does, without a byte on the wire: the kernel
//! says ECONNREFUSED if no socket is bound behind the path any more, EPERM if a datagram socket is but
//! is connected to somebody else, EPROTOTYPE if a socket of another type is. Only what nobody is bound
//! to is ever removed, and only if it is a socket.
//!
//! A path that was taken is a [`Claim`]: it remembers the inode, so that an end neither removes nor
//! mistakes for its own what another process has put there since.
//!
//! Permissions never stand wider than asked, not even for a moment: the socket is created for its owner
//! alone, then given its group, then its mode.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::geteuid;
use vdens_plugin_kit::user::Name;
use vdens_plugin_kit::{Error, ErrorKind, Result};

/// Bytes of send buffer to ask for; the kernel gives what the system's limit allows.
const SEND_BUFFER: usize = 4 << 20;

/// Who may use a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    /// Permission bits.
    pub(crate) mode: u32,
    /// The group, if not the process's own.
    pub(crate) group: Option<u32>,
}

impl Access {
    /// Whether the far end may be `user`'s. Another user's, but for root's, may be only if this end's
    /// socket is open to others. Who is first at a path in a directory of all users, or at the one
    /// beside it, would else receive what is sent to somebody else.
    pub(crate) fn admits(self, user: u32) -> bool {
        user == 0 || user == geteuid().as_raw() || self.mode & 0o022 != 0
    }
}

/// The error for a far end at `path` that belongs to a user whom this end does not admit.
pub(crate) fn not_admitted(path: &Path, user: u32) -> Error {
    let (path, name) = (path.display(), Name(user));
    let message = format!("cannot join the far end at {path}: it belongs to user {name}");
    Error::new(ErrorKind::Permission, message)
        .hint("if you trust that user, open this end with [mode=0777] or [mode=0770/group=…]")
}

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing at all.
    Nothing,
    /// A socket that nobody is bound to any more.
    Stale,
    /// A live datagram socket.
    Dgram,
    /// A live socket of another type.
    Connected,
}

/// Says what stands at `path`; an error if that is no socket or may not be used.
pub(crate) fn probe(path: &Path) -> Result<Found> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {}
        Ok(_) => {
            let message = format!("{} is there and is not a socket", path.display());
            return Err(Error::usage(message).hint("remove it or use another path"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(unreachable(path, &error)),
    }
    match connect(&new(SockType::Datagram)?, path) {
        Ok(()) | Err(Errno::EPERM) => Ok(Found::Dgram),
        Err(Errno::EPROTOTYPE) => Ok(Found::Connected),
        Err(Errno::ECONNREFUSED) => Ok(Found::Stale),
        Err(Errno::ENOENT) => Ok(Found::Nothing),
        Err(errno) => Err(cannot_connect(path, errno)),
    }
}

/// The error for a connection to `path` that the kernel refuses.
pub(crate) fn cannot_connect(path: &Path, errno: Errno) -> Error {
    let error = Error::path("connect to", path, &errno.into());
    match errno {
        Errno::EACCES => {
            error.hint("it belongs to another user, who can open it with [mode=0777] or [group=…]")
        }
        _ => error,
    }
}

/// Removes the stale socket at `path`.
pub(crate) fn remove_stale(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::path("remove the stale socket", path, &error)
                .hint("remove it as its owner or use another path"))
        }
        _ => Ok(()),
    }
}

/// A new socket of `kind`: non-blocking, closed on exec, with a large send buffer.
pub(crate) fn new(kind: SockType) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, kind, flags, None)
        .map_err(|errno| Error::io("make a socket", &errno.into()))?;
    enlarge(&socket);
    Ok(socket)
}

/// Asks for a large send buffer.
pub(crate) fn enlarge(socket: &OwnedFd) {
    // A small one is slower, nothing else.
    let _ = socket::setsockopt(socket, sockopt::SndBuf, &SEND_BUFFER);
}

/// A socket's file, held open, so that what is learned of it and what is connected to are the same.
#[derive(Debug)]
pub(crate) struct Held {
    file: OwnedFd,
    /// What tells the file from a later one: device, inode, and the time it was made, since inodes are
    /// used again.
    pub(crate) id: (u64, u64, i64, i64),
    /// The user who has bound the socket.
    pub(crate) owner: u32,
}

impl Held {
    /// Holds the file at `path`, whatever it is.
    pub(crate) fn open(path: &Path) -> nix::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = open(path, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        Ok(Self {
            id: (stat.st_dev, stat.st_ino, stat.st_mtime, stat.st_mtime_nsec),
            owner: stat.st_uid,
            file,
        })
    }

    /// Connects `socket` to whoever is bound to the file.
    pub(crate) fn connect(&self, socket: &OwnedFd) -> nix::Result<()> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        socket::connect(socket.as_raw_fd(), &UnixAddr::new(path.as_str())?)
    }
}

/// Connects `socket` to whoever is bound to `path`.
pub(crate) fn connect(socket: &OwnedFd, path: &Path) -> nix::Result<()> {
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

/// Makes a datagram socket forget its peer, so that it takes frames from anybody.
pub(crate) fn disconnect(socket: impl AsFd) {
    let nobody = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    // SAFETY: `nobody` is a sockaddr of the length given, which the kernel only reads.
    let result = unsafe {
        libc::connect(
            socket.as_fd().as_raw_fd(),
            &raw const nobody,
            size_of_val(&nobody) as libc::socklen_t,
        )
    };
    debug_assert_eq!(result, 0, "disconnecting a datagram socket cannot fail");
}

/// Takes `path` with a new socket of `kind`; `None` if somebody else was faster.
pub(crate) fn bind(
    kind: SockType,
    path: &Path,
    access: Access,
) -> Result<Option<(Claim, OwnedFd)>> {
    let socket = new(kind)?;
    fchmod(&socket, Mode::from_bits_truncate(access.mode & 0o700))
        .map_err(|errno| Error::io("set a socket's mode", &errno.into()))?;
    let address = UnixAddr::new(path).map_err(|errno| cannot_bind(path, errno))?;
    match socket::bind(socket.as_raw_fd(), &address) {
        Ok(()) => {}
        Err(Errno::EADDRINUSE) => return Ok(None),
        Err(errno) => return Err(cannot_bind(path, errno)),
    }
    let claim = Claim::new(path).map_err(|error| unreachable(path, &error))?;
    if let Some(group) = access.group {
        lchown(path, None, Some(group)).map_err(|error| {
            Error::path("give its group to", path, &error)
                .hint("name a group that you are a member of")
        })?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(access.mode))
        .map_err(|error| Error::path("set the mode of", path, &error))?;
    Ok(Some((claim, socket)))
}

fn cannot_bind(path: &Path, errno: Errno) -> Error {
    let error = Error::path("make a socket at", path, &errno.into());
    let directory = path.parent().unwrap_or(path).display();
    match errno {
        Errno::ENOENT => error.hint(format!("make the directory {directory} first")),
        Errno::EACCES => error.hint(format!("you need write permission in {directory}")),
        _ => error,
    }
}

/// A path that a socket of this process was bound to. Dropping it removes the path.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    inode: (u64, u64),
}

impl Claim {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            inode: inode(path)?,
        })
    }

    /// The path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads to the socket that was bound to it.
    pub(crate) fn is_intact(&self) -> bool {
        inode(&self.path).is_ok_and(|inode| inode == self.inode)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.is_intact() {
            // If the directory's permissions have changed meanwhile, the next comer finds it stale.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Takes over a socket of `kind` that another process has bound to `path`, and its path; `None` if it is another's or
/// the path is gone.
pub(crate) fn take_over(kind: SockType, path: &Path, socket: &OwnedFd) -> Option<Claim> {
    let address = socket::getsockname::<UnixAddr>(socket.as_raw_fd()).ok()?;
    let is_it =
        socket::getsockopt(socket, sockopt::SockType) == Ok(kind) && address.path() == Some(path);
    is_it.then(|| Claim::new(path).ok())?
}

/// The error for a third comer at `path`.
pub(crate) fn busy(path: &Path) -> Error {
    let message = format!("{} has two ends already", path.display());
    Error::new(ErrorKind::Busy, message).hint("close one of them or use another path")
}

/// The error for a path that never stays as it was found.
pub(crate) fn contended(path: &Path) -> Error {
    let message = format!("others keep changing {}", path.display());
    Error::new(ErrorKind::Busy, message).hint("try again")
}

/// The error for a socket at `path` that another program serves.
pub(crate) fn foreign(path: &Path) -> Error {
    let message = format!("{} is no ptp socket", path.display());
    Error::usage(message).hint("another program serves it: use another path or another scheme")
}

/// The path cannot be looked at.
fn unreachable(path: &Path, error: &io::Error) -> Error {
    Error::path("look at", path, error).hint("name a path in a directory that you may use")
}
