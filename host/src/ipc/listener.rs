//! A socket by which other processes of this user reach this one: in a directory of the runtime
//! directory, called like this process's id.
//!
//! The socket listens before it gets its name. So a socket whose process is gone is stale, and the
//! next process that listens in that directory removes it. Connections of other users are closed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, accept4, connect, getsockopt, socket, sockopt,
};
use nix::unistd::geteuid;
use vdens_plugin_kit::bound_socket::{Access, BoundSocket};

use crate::error::{Error, ErrorKind, Result, system};
use crate::sys::runtime::{self, Dir};

/// How many connections can wait to be accepted. More are refused.
pub(crate) const BACKLOG: usize = 32;

/// How often making the directory is tried again when another process removes it.
const RACES: usize = 20;

/// A process that accepts a connection does not wait for the peer.
const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// A socket of this process. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    /// `None` once it is removed.
    path: Option<BoundSocket>,
    dir: Dir,
    pid: u32,
    /// A descriptor to give up when there are no others, so that a connection can be refused.
    spare: Option<File>,
}

impl Listener {
    /// Makes the socket in the directory of that name.
    ///
    /// # Errors
    /// The runtime directory cannot be used.
    pub(crate) fn start(directory: &str) -> Result<Self> {
        let make_dir = || Dir::runtime()?.make_dir(directory);
        let mut races = 0;
        loop {
            match make_dir().and_then(Self::listen_in) {
                // Another process may remove the empty directory.
                Err(error) if error.kind == ErrorKind::NotFound && races < RACES => races += 1,
                outcome => return outcome,
            }
        }
    }

    fn listen_in(dir: Dir) -> Result<Self> {
        sweep(&dir);
        let pid = process::id();
        let name = pid.to_string();
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None)
            .map_err(system("make a socket"))?;
        let access = Access {
            mode: 0o600,
            group: None,
        };
        let path = BoundSocket::listen(&socket, &dir.at(&name), access, BACKLOG as i32).map_err(
            |error| {
                let cause = io::Error::from_raw_os_error(error.errno);
                Error::path("make", &dir.shown(&name), &cause)
            },
        )?;
        Ok(Self {
            socket,
            path: Some(path),
            dir,
            pid,
            spare: File::open("/dev/null").ok(),
        })
    }

    /// The next connection of this user, if one waits.
    ///
    /// # Errors
    /// The socket is of no more use.
    pub(crate) fn accept(&mut self) -> Result<Option<OwnedFd>> {
        loop {
            match self.accept_any() {
                Ok(connection) => {
                    let peer = getsockopt(&connection, sockopt::PeerCredentials);
                    if peer.is_ok_and(|peer| peer.uid() == geteuid().as_raw()) {
                        return Ok(Some(connection));
                    }
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                // Out of descriptors. The socket would stay readable, so the connection is refused.
                Err(errno) => self
                    .refuse()
                    .map_err(|_| system("accept connections")(errno))?,
            }
        }
    }

    fn accept_any(&self) -> nix::Result<OwnedFd> {
        let fd = accept4(self.socket.as_raw_fd(), FLAGS)?;
        // SAFETY: accept4 returned this descriptor just now, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Closes the next connection, with the spare descriptor.
    fn refuse(&mut self) -> io::Result<()> {
        self.spare.take().ok_or(Errno::EMFILE)?;
        drop(self.accept_any()?);
        self.spare = Some(File::open("/dev/null")?);
        Ok(())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    /// Only the process that made the socket removes it. A forked child closes its copy.
    fn drop(&mut self) {
        if self.pid != process::id() {
            return;
        }
        self.path = None;
        // Fails while the directory has other sockets, or stale ones.
        if !self.dir.remove() {
            sweep(&self.dir);
            self.dir.remove();
        }
    }
}

/// Removes the sockets of processes that are gone.
fn sweep(dir: &Dir) {
    dir.sweep(|pid, _| runtime::start_time(pid).is_some());
}

/// Connects to the socket of a process in the directory of that name. `None` if it has none.
///
/// # Errors
/// The socket cannot be reached.
pub(crate) fn connect_to(directory: &str, pid: u32) -> Result<Option<OwnedFd>> {
    let name = pid.to_string();
    for base in Dir::all() {
        let Ok(dir) = base.dir(directory) else {
            continue;
        };
        let reach = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
            connect(socket.as_raw_fd(), &UnixAddr::new(&dir.at(&name))?)?;
            Ok(socket)
        };
        match reach() {
            Ok(socket) => return Ok(Some(socket)),
            Err(Errno::ECONNREFUSED | Errno::ENOENT) => {}
            Err(errno) => {
                return Err(Error::path("connect to", &dir.shown(&name), &errno.into()));
            }
        }
    }
    Ok(None)
}
