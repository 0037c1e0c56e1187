//! A lab's name: claimed by its supervisor, found by `vdectl lab`.
//!
//! The user's runtime directory has a directory for labs, in which each supervisor listens on a
//! SEQPACKET socket that is called like its lab. The socket is at once the claim on the name and
//! the way to the supervisor. Claims are made under a lock on the directory itself: a socket that
//! refuses connections was left by a supervisor that was killed, and loses its name.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
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
/// How long to wait for the directory's lock, which is held for a moment.
const LOCK_LIMIT: Duration = Duration::from_secs(10);
/// The pause between two attempts to lock.
const PAUSE: Duration = Duration::from_millis(2);

/// The supervisor's end of a connection.
pub(super) type Asker = Channel<FromLab, ToLab>;

/// A name that this process has claimed. Dropping it gives the name back.
#[derive(Debug)]
pub(super) struct Claim {
    listener: OwnedFd,
    /// `None` once it is given back.
    path: Option<BoundSocket>,
    dir: Dir,
    pid: u32,
}

impl Claim {
    /// Claims a name for this process's lab.
    ///
    /// # Errors
    /// A lab of the user has it.
    pub(super) fn take(name: &str) -> Result<Self> {
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            match Self::try_take(name) {
                // Another process holds the lock, or has just removed the directory.
                Err(error)
                    if matches!(error.kind, ErrorKind::Busy | ErrorKind::NotFound)
                        && error.errno != libc::EADDRINUSE
                        && Instant::now() < deadline =>
                {
                    sleep(PAUSE);
                }
                outcome => return outcome,
            }
        }
    }

    fn try_take(name: &str) -> Result<Self> {
        let dir = Dir::runtime()?.make_dir(&directory()?)?;
        let _lock = lock(&dir)?;
        let path = dir.at(name);
        match reach(&path) {
            Ok(_) => return Err(in_use(name)),
            Err(Errno::ECONNREFUSED) => drop(fs::remove_file(&path)),
            Err(Errno::ENOENT) => {}
            // Its queue is full.
            Err(Errno::EAGAIN) => return Err(in_use(name)),
            Err(errno) => {
                return Err(Error::path("connect to", &dir.shown(name), &errno.into()));
            }
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
            .map_err(system("make a socket"))?;
        let access = Access {
            mode: 0o600,
            group: None,
        };
        let path = BoundSocket::listen(&listener, &path, access, BACKLOG)?;
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

impl AsFd for Claim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Claim {
    /// Only the process that has claimed the name gives it back. A forked child closes its copy.
    fn drop(&mut self) {
        if self.pid == process::id() {
            let _lock = lock(&self.dir);
            self.path = None;
            // It fails while there are other labs.
            self.dir.remove();
        }
    }
}

fn in_use(name: &str) -> Error {
    let error = Error::new(
        ErrorKind::Busy,
        format!("the lab '{name}' is already running"),
    );
    Error {
        errno: libc::EADDRINUSE,
        ..error.hint(format!(
            "vdectl lab apply changes it, vdectl lab down {name} ends it"
        ))
    }
}

/// Locks the directory of claims, without waiting.
fn lock(dir: &Dir) -> Result<Flock<File>> {
    let shown = dir.shown("");
    let file = File::open(dir.at(".")).map_err(|error| Error::path("open", &shown, &error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| Error {
        kind: ErrorKind::Busy,
        ..Error::path("lock", &shown, &errno.into())
    })
}

/// The directory in the runtime directory that has the labs' sockets. Process ids are only unique
/// within their namespace, and a panel belongs to one user namespace.
fn directory() -> Result<String> {
    let (user, pid) = (runtime::namespace("user")?, runtime::namespace("pid")?);
    Ok(format!("labs-{user}-{pid}"))
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
