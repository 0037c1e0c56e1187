//! The sockets of both generations: which users are admitted, how sockets are made and connected,
//! and the errors that name their paths.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::unistd::geteuid;
use vdens_plugin_kit::bound_socket::{self, Access, BoundSocket, Occupant};
use vdens_plugin_kit::user::Name;
use vdens_plugin_kit::{Error, ErrorKind, Result};

/// Bytes of send buffer to ask for; the kernel gives what the system's limit allows.
const SEND_BUFFER: usize = 4 << 20;

/// Whether a far end of `user` may join an end whose socket has `access`. Only root, the own user,
/// and everybody else if the socket is open to others: the user who is first at a path in a shared
/// directory would otherwise receive what is meant for another.
pub(crate) fn admits(access: Access, user: u32) -> bool {
    user == 0 || user == geteuid().as_raw() || access.mode & 0o022 != 0
}

/// The error for a peer at `path` that belongs to a user whom this end does not admit.
pub(crate) fn not_admitted(path: &Path, user: u32) -> Error {
    let (path, name) = (path.display(), Name(user));
    let message = format!("cannot join the far end at {path}: it belongs to user {name}");
    Error::new(ErrorKind::Permission, message)
        .hint("if you trust that user, open this end with [mode=0777] or [mode=0770/group=…]")
}

/// What is at `path`.
///
/// # Errors
/// It is not a socket, or may not be used.
pub(crate) fn probe(path: &Path) -> Result<Occupant> {
    bound_socket::probe(path).map_err(|error| {
        match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::ENOTSOCK => bound_socket::cannot_use("use", path, &error),
            errno => cannot_connect(path, errno),
        }
    })
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
    // With a smaller one the link is slower, nothing else.
    let _ = socket::setsockopt(socket, sockopt::SndBuf, &SEND_BUFFER);
}

/// Connects `socket` to the socket that is bound to `path`.
pub(crate) fn connect(socket: &OwnedFd, path: &Path) -> nix::Result<()> {
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

/// Binds a new socket of `kind` to `path`; `None` if another process was faster.
pub(crate) fn bind(
    kind: SockType,
    path: &Path,
    access: Access,
) -> Result<Option<(BoundSocket, OwnedFd)>> {
    let socket = new(kind)?;
    match BoundSocket::bind(&socket, path, access) {
        Ok(bound) => Ok(Some((bound, socket))),
        Err(error) if error.errno == Errno::EADDRINUSE as i32 => Ok(None),
        Err(error) => Err(error),
    }
}

/// The error for a third end at `path`.
pub(crate) fn busy(path: &Path) -> Error {
    let message = format!("{} has two ends already", path.display());
    Error::new(ErrorKind::Busy, message).hint("close one of them or use another path")
}

/// The error for a path that others keep changing.
pub(crate) fn contended(path: &Path) -> Error {
    let message = format!("others keep changing {}", path.display());
    Error::new(ErrorKind::Busy, message).hint("try again")
}

/// The error for a socket at `path` that another program serves.
pub(crate) fn foreign(path: &Path) -> Error {
    let message = format!("{} is no ptp socket", path.display());
    Error::usage(message).hint("another program serves it: use another path or another scheme")
}
