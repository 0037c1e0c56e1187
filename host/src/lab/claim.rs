//! The socket by which `vdectl lab` reaches a lab's supervisor: in the directory `labs` of the
//! user's runtime directory, called like the lab.
//!
//! A supervisor has claimed its lab's name first ([`names`](crate::sys::names)), so a socket that
//! is there was left by one that was killed, and is replaced.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, accept4, connect, getsockopt, socket, sockopt,
};
use nix::unistd::geteuid;
use vdens_plugin_kit::bound_socket::{Access, BoundSocket};

use crate::error::{Error, ErrorKind, Result, system};
use crate::ipc::{Channel, FromLab, ToLab};
use crate::sys::runtime::{self, Dir};

/// How many connections can wait to be accepted.
const BACKLOG: i32 = 16;
/// How often making the directory is tried again when another process removes it.
const RACES: usize = 20;

/// The supervisor's end of a connection.
pub(super) type Asker = Channel<FromLab, ToLab>;

/// The supervisor's socket. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Control {
    listener: OwnedFd,
    /// `None` once it is removed.
    path: Option<BoundSocket>,
    dir: Dir,
    pid: u32,
}

impl Control {
    /// Makes the socket of a lab, whose name this process has claimed.
    ///
    /// # Errors
    /// The runtime directory cannot be used.
    pub(super) fn start(name: &str) -> Result<Self> {
        let directory = directory()?;
        let mut races = 0;
        loop {
            match Dir::runtime()
                .and_then(|base| base.make_dir(&directory))
                .and_then(|dir| Self::listen(dir, name))
            {
                // The last lab removes the directory.
                Err(error) if error.kind == ErrorKind::NotFound && races < RACES => races += 1,
                outcome => return outcome,
            }
        }
    }

    fn listen(dir: Dir, name: &str) -> Result<Self> {
        sweep(&dir);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
            .map_err(system("make a socket"))?;
        let access = Access {
            mode: 0o600,
            group: None,
        };
        let path = BoundSocket::listen(&listener, &dir.at(name), access, BACKLOG)?;
        Ok(Self {
            listener,
            path: Some(path),
            dir,
            pid: process::id(),
        })
    }

    /// The next connection of this user, if there is one.
    pub(super) fn accept(&self) -> Option<Asker> {
        loop {
            // A peer that does not read must not stop the supervisor.
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = match accept4(self.listener.as_raw_fd(), flags) {
                Ok(fd) => fd,
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                Err(_) => return None,
            };
            // SAFETY: accept4 returned this descriptor just now, and nothing else owns it.
            let asker = unsafe { OwnedFd::from_raw_fd(fd) };
            let peer = getsockopt(&asker, sockopt::PeerCredentials);
            if peer.is_ok_and(|peer| peer.uid() == geteuid().as_raw()) {
                return Some(Channel::from(asker));
            }
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Control {
    /// Only the process that made the socket removes it. A forked child closes its copy.
    fn drop(&mut self) {
        if self.pid == process::id() {
            self.path = None;
            // It fails while there are other labs, or stale sockets.
            if !self.dir.remove() {
                sweep(&self.dir);
                self.dir.remove();
            }
        }
    }
}

/// The directory in the runtime directory that has the labs' sockets. Process ids are only unique
/// within their namespace, and a panel belongs to one user namespace.
fn directory() -> Result<String> {
    let (user, pid) = (runtime::namespace("user")?, runtime::namespace("pid")?);
    Ok(format!("labs-{user}-{pid}"))
}

/// Removes the sockets of supervisors that were killed.
fn sweep(dir: &Dir) {
    for name in dir.names().unwrap_or_default() {
        let path = dir.at(&name);
        // A socket that is being made has another name.
        if !name.starts_with('.') && reach(&path).err() == Some(Errno::ECONNREFUSED) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Connects to the socket at a path.
fn reach(path: &Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// Connects to the supervisor of a lab.
///
/// # Errors
/// There is no such lab.
pub(super) fn connect_to(name: &str) -> Result<Channel<ToLab, FromLab>> {
    let directory = directory()?;
    for base in Dir::all() {
        let Ok(dir) = base.dir(&directory) else {
            continue;
        };
        match reach(&dir.at(name)) {
            Ok(socket) => return Ok(Channel::from(socket)),
            Err(Errno::ECONNREFUSED | Errno::ENOENT) => {}
            Err(errno) => {
                return Err(Error::path("connect to", &dir.shown(name), &errno.into()));
            }
        }
    }
    Err(none(name))
}

/// The error if there is no such lab.
pub(super) fn none(name: &str) -> Error {
    let error = Error::new(ErrorKind::NotFound, format!("no lab '{name}' is running"));
    error.hint("vdectl lab status lists those that are")
}
