//! A process's side of `vdectl status`: a socket that its poll loop serves.
//!
//! The socket listens before it gets its name. So if a socket refuses connections, its process is
//! gone, and whoever finds it removes it. Only this user is answered. A process that cannot make a
//! socket, because the directory is full or read-only, runs without one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, accept4, getsockopt, socket, sockopt};
use nix::unistd::geteuid;
use serde::Serialize;
use vdens_plugin_kit::bound_socket::{Access, BoundSocket};

use super::directory;
use crate::error::{Error, ErrorKind, Result, system};
use crate::ipc::{Channel, Nothing, ReportReply};
use crate::sys::runtime::{self, Dir};

/// How many connections can wait for an answer. More are refused.
const MAX_ASKERS: usize = 32;

/// How often making the directory is tried again when another process removes it.
const RACES: usize = 20;

/// The socket of this process.
#[derive(Debug)]
pub(crate) struct Server {
    listener: OwnedFd,
    /// Its path: the process's id in `dir`. `None` once it is removed.
    path: Option<BoundSocket>,
    dir: Dir,
    pid: u32,
    askers: Vec<Channel<ReportReply, Nothing>>,
    /// A descriptor to give up when there are no others, so that a connection can be refused.
    spare: Option<File>,
}

impl Server {
    /// Makes the socket, if that is possible.
    pub(crate) fn start() -> Option<Self> {
        Self::listen()
            .inspect_err(|error| log::info!("vdectl status will not see this: {error}"))
            .ok()
    }

    fn listen() -> Result<Self> {
        let name = directory()?;
        let mut races = 0;
        loop {
            match Dir::runtime()
                .and_then(|base| base.make_dir(&name))
                .and_then(Self::listen_in)
            {
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
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
            .map_err(system("make a socket"))?;
        let access = Access {
            mode: 0o600,
            group: None,
        };
        let path = BoundSocket::listen(&listener, &dir.at(&name), access, MAX_ASKERS as i32)
            .map_err(|error| {
                let cause = io::Error::from_raw_os_error(error.errno);
                Error::path("make", &dir.shown(&name), &cause)
            })?;
        Ok(Self {
            listener,
            path: Some(path),
            dir,
            pid,
            askers: Vec::new(),
            spare: File::open("/dev/null").ok(),
        })
    }

    /// Accepts connections. Returns whether there is one to answer.
    ///
    /// # Errors
    /// The socket is of no more use.
    pub(crate) fn accept(&mut self) -> Result<bool> {
        loop {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            match accept4(self.listener.as_raw_fd(), flags) {
                Ok(fd) => {
                    // SAFETY: accept4 returned this descriptor just now, and nothing else owns it.
                    let asker = unsafe { OwnedFd::from_raw_fd(fd) };
                    let peer = getsockopt(&asker, sockopt::PeerCredentials);
                    let is_user = peer.is_ok_and(|peer| peer.uid() == geteuid().as_raw());
                    if is_user && self.askers.len() < MAX_ASKERS {
                        self.askers.push(Channel::from(asker));
                    }
                }
                Err(Errno::EAGAIN) => return Ok(!self.askers.is_empty()),
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(errno) => {
                    // Out of descriptors. The socket would stay readable, so refuse the connection.
                    let turned_away = self.spare.take().and_then(|_| {
                        let fd = accept4(self.listener.as_raw_fd(), flags).ok()?;
                        // SAFETY: as above.
                        drop(unsafe { OwnedFd::from_raw_fd(fd) });
                        self.spare = File::open("/dev/null").ok();
                        self.spare.is_some().then_some(())
                    });
                    if turned_away.is_none() {
                        return Err(system("answer to vdectl status")(errno));
                    }
                }
            }
        }
    }

    /// Answers all connections with a process.
    pub(crate) fn answer(&mut self, process: &impl Serialize) {
        for asker in self.askers.drain(..) {
            if let Err(error) = asker.send_report(process) {
                log::debug!("vdectl status: {error}");
            }
        }
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Server {
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
