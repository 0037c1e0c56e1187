//! Unix sockets that are bound to a path: claiming the path, learning who holds it, giving it back.
//!
//! # Theory of operation
//!
//! A path outlives the process that bound it, so a path alone does not say whether a socket is
//! open behind it. [`probe`] connects a datagram socket to the path and reads the kernel's answer
//! (unix(7), `unix_find_bsd` in `net/unix/af_unix.c`). Nothing is sent, so a listener sees nothing.
//!
//! | the kernel's answer | what is at the path |
//! |---|---|
//! | ECONNREFUSED | a stale socket: no process has it open |
//! | success, or EPERM: it is connected to another socket | a datagram socket |
//! | EPROTOTYPE | a socket of another type |
//!
//! A [`BoundSocket`] remembers the inode that it made. It neither removes nor changes what another
//! process has put at the path since.
//!
//! A socket is never open to more users than asked for: it is made for its owner alone, and gets
//! its group before its mode.

use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{Backlog, UnixAddr, bind, connect, getsockname, listen};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{AccessFlags, access};

use crate::vnl::check_socket_path;
use crate::{Error, Result};

/// Who may connect to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The permission bits of its path.
    pub mode: u32,
    /// The group of its path, if not the process's own.
    pub group: Option<u32>,
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Nothing.
    Nothing,
    /// A socket that no process has open.
    Stale,
    /// An open datagram socket.
    Datagram,
    /// An open socket of another type.
    Connected,
}

/// Says what is at `path`.
///
/// # Errors
/// `ENOTSOCK` if it is not a socket; else the path may not be looked at or connected to.
pub fn probe(path: &Path) -> io::Result<Occupant> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(Errno::ENOTSOCK.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(error) => return Err(error),
    }
    let probe = UnixDatagram::unbound()?;
    // A datagram socket's connect never waits.
    let answer = probe.connect(path).map_err(|error| errno(&error));
    match answer {
        Ok(()) | Err(Errno::EPERM) => Ok(Occupant::Datagram),
        Err(Errno::EPROTOTYPE) => Ok(Occupant::Connected),
        Err(Errno::ECONNREFUSED) => Ok(Occupant::Stale),
        Err(Errno::ENOENT) => Ok(Occupant::Nothing),
        Err(errno) => Err(errno.into()),
    }
}

/// The error for a `path` that [`probe`] cannot look at. `doing` says what it is for, such as
/// "listen at".
pub fn cannot_use(doing: &str, path: &Path, error: &io::Error) -> Error {
    match errno(error) {
        Errno::ENOTSOCK => {
            let message = format!("{} is there and is not a socket", path.display());
            Error::usage(message).hint("remove it or use another path")
        }
        _ => Error::path(doing, path, error),
    }
}

/// Removes the socket at `path`, which [`probe`] found stale. It may be gone already.
///
/// # Errors
/// The directory may not be written.
pub fn remove_stale(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::path("remove the stale socket", path, &error)
                .hint("remove it as its owner or use another path"))
        }
        _ => Ok(()),
    }
}

/// Closes a socket that another process bound to a path. Removes the path if no process has the
/// socket open any more: a process that was killed could not.
pub fn close_and_reclaim(socket: OwnedFd) {
    let address = getsockname::<UnixAddr>(socket.as_raw_fd()).ok();
    let path = address.and_then(|address| address.path().map(Path::to_owned));
    drop(socket);
    let is_stale = |path: &PathBuf| probe(path).is_ok_and(|found| found == Occupant::Stale);
    if let Some(path) = path.filter(is_stale) {
        // If it cannot be removed, the next process that binds the path finds it stale.
        let _ = remove_stale(&path);
    }
}

/// The path that a socket of this process is bound to. Dropping it removes the path; the socket
/// itself is its owner's to close.
#[derive(Debug)]
pub struct BoundSocket {
    path: PathBuf,
    inode: (u64, u64),
    /// The process that bound it: a forked child that drops its copy removes nothing.
    process: u32,
}

impl BoundSocket {
    /// Binds `socket` to `path`.
    ///
    /// # Errors
    /// The path is taken, or was at once taken away (both `EADDRINUSE`); or it cannot be made, or
    /// cannot be given its group.
    pub fn bind(socket: impl AsFd, path: &Path, access: Access) -> Result<Self> {
        check_socket_path(path)?;
        let cannot = |errno: Errno| cannot_bind(path, errno);
        let socket = socket.as_fd();
        // bind(2) makes the path with the socket's own bits.
        fchmod(socket, Mode::from_bits_truncate(access.mode & 0o700)).map_err(cannot)?;
        let address = UnixAddr::new(path).map_err(cannot)?;
        bind(socket.as_raw_fd(), &address).map_err(cannot)?;
        // Another process may take a socket that does not listen yet for a stale one, and remove
        // it.
        let taken = |error: Error| match Errno::from_raw(error.errno) {
            Errno::ENOENT => cannot(Errno::EADDRINUSE),
            _ => error,
        };
        let bound = Self::at(path).map_err(taken)?;
        bound.set_access(access).map_err(taken)?;
        Ok(bound)
    }

    /// Binds `socket` to `path` and listens there, with room for `backlog` connections. The path
    /// appears when the socket already listens, so no client is refused. It replaces what is there.
    ///
    /// # Errors
    /// As for [`BoundSocket::bind`].
    pub fn listen(socket: impl AsFd, path: &Path, access: Access, backlog: i32) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let hidden = path.with_file_name(format!(".{name}"));
        if probe(&hidden).is_ok_and(|found| found == Occupant::Stale) {
            remove_stale(&hidden)?;
        }
        // Errors name the path that the caller knows.
        let named = |error: Error| {
            let [hidden, shown] = [&hidden, path].map(|path| path.display().to_string());
            let message = error.message.replace(&hidden, &shown);
            Error { message, ..error }
        };
        let mut bound = Self::bind(&socket, &hidden, access).map_err(named)?;
        Backlog::new(backlog)
            .and_then(|backlog| listen(&socket, backlog))
            .map_err(io::Error::from)
            .and_then(|()| fs::rename(&hidden, path))
            .map_err(|error| Error::path("listen at", path, &error))?;
        bound.path = path.to_owned();
        Ok(bound)
    }

    /// Takes over `path` from another process that has bound `socket` to it. `None` if `socket` is
    /// bound to another path, or the path is gone.
    pub fn adopt(socket: impl AsFd, path: &Path) -> Option<Self> {
        let address = getsockname::<UnixAddr>(socket.as_fd().as_raw_fd()).ok()?;
        (address.path() == Some(path)).then(|| Self::at(path).ok())?
    }

    fn at(path: &Path) -> Result<Self> {
        let found = fs::symlink_metadata(path)
            .map_err(|error| Error::path("look at", path, &error).hint(NO_ACCESS))?;
        Ok(Self {
            path: path.to_owned(),
            inode: inode(&found),
            process: process::id(),
        })
    }

    /// Sets who may connect.
    ///
    /// # Errors
    /// The user is not a member of the group, or the path leads elsewhere by now.
    pub fn set_access(&self, access: Access) -> Result<()> {
        // The directory may be another user's. What is changed is the socket itself, not what the
        // path leads to by then.
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
            .open(&self.path)
            .and_then(|file| match inode(&file.metadata()?) == self.inode {
                true => Ok(file),
                false => Err(Errno::ENOENT.into()),
            });
        let file = opened.map_err(|error| Error::path("look at", &self.path, &error))?;
        let file = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        if access.group.is_some() {
            chown(&file, None, access.group).map_err(|error| {
                Error::path("give its group to", &self.path, &error)
                    .hint("name a group that you are a member of")
            })?;
        }
        fs::set_permissions(&file, Permissions::from_mode(access.mode))
            .map_err(|error| Error::path("set the mode of", &self.path, &error))
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads to the socket that was bound to it.
    pub fn is_intact(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| inode(&found) == self.inode)
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        if self.process == process::id() && self.is_intact() {
            // If the directory's permissions have changed, the next process finds it stale.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A socket's file, held open, so that the file that is checked is the one that is connected to.
#[derive(Debug)]
pub struct SocketFile {
    file: OwnedFd,
    /// What distinguishes the file from a later one: device, inode, and the time when it was made,
    /// since inodes are used again.
    pub id: (u64, u64, i64, i64),
    /// The user who has bound the socket.
    pub owner: u32,
}

impl SocketFile {
    /// Holds the file at `path`, whatever it is.
    ///
    /// # Errors
    /// There is none, or its directory may not be searched.
    pub fn open(path: &Path) -> nix::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = open(path, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        Ok(Self {
            id: (stat.st_dev, stat.st_ino, stat.st_mtime, stat.st_mtime_nsec),
            owner: stat.st_uid,
            file,
        })
    }

    /// Connects `socket` to the socket that is bound to the file.
    ///
    /// # Errors
    /// As for connect(2).
    pub fn connect(&self, socket: impl AsFd) -> nix::Result<()> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        connect(socket.as_fd().as_raw_fd(), &UnixAddr::new(path.as_str())?)
    }
}

/// Disconnects a datagram socket, so that it receives from any socket.
pub fn disconnect(socket: impl AsFd) {
    let none = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    // SAFETY: `none` is a sockaddr of the length given, which the kernel only reads.
    let result = unsafe {
        libc::connect(
            socket.as_fd().as_raw_fd(),
            &raw const none,
            size_of_val(&none) as libc::socklen_t,
        )
    };
    debug_assert_eq!(result, 0, "disconnecting a datagram socket cannot fail");
}

const NO_ACCESS: &str = "name a path in a directory that you may use";

fn cannot_bind(path: &Path, errno: Errno) -> Error {
    let error = Error::path("make a socket at", path, &errno.into());
    let directory = path.parent().unwrap_or(path);
    let shown = directory.display();
    // Landlock does not govern access(2).
    let is_permitted = || access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    match errno {
        Errno::ENOENT => error.hint(format!("make the directory {shown} first")),
        Errno::EACCES if is_permitted() => error.hint(format!(
            "its sandbox does not let this process write in {shown}: see docs/sandbox.md, or use \
             --no-sandbox"
        )),
        Errno::EACCES => error.hint(format!("you need write permission in {shown}")),
        _ => error,
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn inode(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering};

    const OWN: Access = Access {
        mode: 0o700,
        group: None,
    };

    #[test]
    fn what_the_permissions_allow_is_the_sandboxs_refusal() {
        let dir = Dir::new();
        let hint = |path: &Path| cannot_bind(path, Errno::EACCES).hint;
        assert!(hint(&dir.0.join("socket")).contains("sandbox"));
        let missing = dir.0.join("missing/socket");
        assert!(hint(&missing).contains("write permission"));
    }

    /// A directory that is removed with everything in it.
    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("vdens-bound-socket-{}-{number}", process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn unbound() -> UnixDatagram {
        UnixDatagram::unbound().unwrap()
    }

    #[test]
    fn a_probe_tells_the_living_from_the_dead() {
        let dir = Dir::new();
        let path = dir.at("s");
        assert_eq!(probe(&path).unwrap(), Occupant::Nothing);
        let socket = UnixDatagram::bind(&path).unwrap();
        assert_eq!(probe(&path).unwrap(), Occupant::Datagram);
        let peer = UnixDatagram::bind(dir.at("peer")).unwrap();
        socket.connect(dir.at("peer")).unwrap();
        assert_eq!(probe(&path).unwrap(), Occupant::Datagram, "it is connected");
        drop((socket, peer));
        assert_eq!(probe(&path).unwrap(), Occupant::Stale);
        remove_stale(&path).unwrap();
        remove_stale(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(probe(&path).unwrap(), Occupant::Connected);
        drop(listener);
        assert_eq!(probe(&path).unwrap(), Occupant::Stale);
        fs::write(dir.at("file"), "").unwrap();
        let error = probe(&dir.at("file")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn a_path_goes_with_its_socket_and_not_with_another_one() {
        let dir = Dir::new();
        let path = dir.at("s");
        let first = unbound();
        let bound = BoundSocket::bind(&first, &path, OWN).unwrap();
        let taken = BoundSocket::bind(unbound(), &path, OWN).unwrap_err();
        assert_eq!(taken.errno, libc::EADDRINUSE);
        assert!(bound.is_intact());
        drop(bound);
        assert!(!path.exists());

        let bound = BoundSocket::bind(unbound(), &path, OWN).unwrap();
        fs::rename(&path, dir.at("aside")).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(!bound.is_intact() && bound.set_access(OWN).is_err());
        drop(bound);
        assert!(path.exists());
    }

    #[test]
    fn a_socket_has_the_mode_that_was_asked_for() {
        let dir = Dir::new();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        let access = Access {
            mode: 0o640,
            group: Some(nix::unistd::getegid().as_raw()),
        };
        let bound = BoundSocket::bind(unbound(), &dir.at("s"), access).unwrap();
        assert_eq!(mode(bound.path()), 0o640);
        bound.set_access(OWN).unwrap();
        assert_eq!(mode(bound.path()), 0o700);
    }

    #[test]
    fn a_listener_replaces_a_stale_one_and_is_adopted_by_its_successor() {
        let dir = Dir::new();
        let path = dir.at("s");
        for stale in [".s", "s"] {
            drop(UnixListener::bind(dir.at(stale)).unwrap());
        }
        let socket = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::SeqPacket,
            nix::sys::socket::SockFlag::SOCK_CLOEXEC,
            None,
        );
        let nowhere = dir.at("nowhere/s");
        let refused = BoundSocket::listen(socket.as_ref().unwrap(), &nowhere, OWN, 1).unwrap_err();
        let named = format!("a socket at {}:", nowhere.display());
        assert!(refused.message.contains(&named), "{refused}");
        let bound = BoundSocket::listen(socket.unwrap(), &path, OWN, 1).unwrap();
        assert!(bound.is_intact() && !dir.at(".s").exists());
        drop(bound);

        let socket = unbound();
        let bound = BoundSocket::bind(&socket, &path, OWN).unwrap();
        std::mem::forget(bound);
        assert!(BoundSocket::adopt(&socket, &dir.at("other")).is_none());
        drop(BoundSocket::adopt(&socket, &path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_path_goes_with_the_last_descriptor_of_its_socket() {
        let dir = Dir::new();
        let path = dir.at("s");
        let socket = UnixDatagram::bind(&path).unwrap();
        close_and_reclaim(socket.try_clone().unwrap().into());
        assert!(path.exists());
        close_and_reclaim(socket.into());
        assert!(!path.exists());
        close_and_reclaim(unbound().into());
        close_and_reclaim(File::open("/dev/null").unwrap().into());
    }
}
