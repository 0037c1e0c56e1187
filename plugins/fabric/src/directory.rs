//! The switch's directory and the sockets in it.
//!
//! The switch locks the directory while it lives. The lock distinguishes a live switch from a
//! killed one, and decides which of two wins that start at once. Other programs' switches use no
//! such lock; their control socket answers. Stale sockets of a dead switch are removed. A directory
//! with anything but sockets in it is left alone.
//!
//! A [`DirectorySocket`] removes its socket when it is dropped. The directory, which every socket
//! keeps alive, removes itself. Nothing is removed that is not the very inode that was made here.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, open};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, lstat};
use nix::unistd::{Gid, Uid, fchown, mkdir};
use vdens_plugin_kit::bound_socket::{Access, BoundSocket, Occupant, probe, remove_stale};
use vdens_plugin_kit::vnl::check_socket_path;
use vdens_plugin_kit::{Error, ErrorKind, Result, log};

use crate::config::Config;

/// The control socket's name.
const CONTROL: &str = "ctl";

/// How many clients may wait to be accepted.
const BACKLOG: i32 = 1024;

/// How long a switch that is ending may hold the lock.
const LOCK_LIMIT: Duration = Duration::from_millis(300);

/// How often to try to make a directory that others make and remove at the same time.
const ATTEMPTS: usize = 20;

type Identity = (u64, u64);

fn identity(stat: &FileStat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// The directory of this switch.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    locked: Flock<OwnedFd>,
    identity: Identity,
    /// Who may use the sockets in it.
    access: Access,
}

impl Directory {
    /// Makes the directory, or takes over that of a dead switch.
    pub(crate) fn open(config: &Config) -> Result<Arc<Self>> {
        let path = &config.directory;
        // The longest name of a socket in it, for any reasonable number of ports.
        check_socket_path(&path.join("fd99999"))?;
        for _ in 0..ATTEMPTS {
            if let Some(directory) = Self::try_open(config)? {
                return Ok(Arc::new(directory));
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("{} keeps appearing and vanishing", path.display()),
        )
        .hint("others start and end there; name another directory"))
    }

    /// `None` if another process removed the directory meanwhile.
    fn try_open(config: &Config) -> Result<Option<Self>> {
        let path = &config.directory;
        match mkdir(path, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => {
                return Err(Error::path("make the directory", path, &errno.into())
                    .hint("the directory it is to be in must exist and be writable"));
            }
        }
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let handle = match open(path, flags, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                return Err(foreign(path, "is not a directory"));
            }
            Err(errno) => return Err(Error::path("open", path, &errno.into()).hint(ELSEWHERE)),
        };
        let found = fstat(&handle).map_err(|errno| Error::path("look at", path, &errno.into()))?;
        if found.st_uid != Uid::effective().as_raw() {
            return Err(Error::new(
                ErrorKind::Permission,
                format!("{} belongs to another user", path.display()),
            )
            .hint(ELSEWHERE));
        }
        let locked = lock(handle).map_err(|errno| match errno {
            Errno::EWOULDBLOCK => occupied(path),
            errno => Error::path("lock", path, &errno.into()),
        })?;
        if !lstat(path).is_ok_and(|now| identity(&now) == identity(&found)) {
            return Ok(None);
        }
        clear(path, &*locked)?;
        let directory = Self {
            path: path.clone(),
            locked,
            identity: identity(&found),
            access: Access {
                mode: config.mode.bits(),
                group: config.group.map(Gid::as_raw),
            },
        };
        directory.open_to(config.group, config.directory_mode)?;
        Ok(Some(directory))
    }

    /// The permission bits of the sockets in it.
    pub(crate) fn mode(&self) -> u32 {
        self.access.mode
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Sets group and permissions of the directory itself.
    fn open_to(&self, group: Option<Gid>, mode: Mode) -> Result<()> {
        let outcome = match group {
            Some(_) => fchown(&*self.locked, None, group),
            None => Ok(()),
        };
        outcome
            .and_then(|()| fchmod(&*self.locked, mode))
            .map_err(|errno| {
                Error::path("set group and mode of", &self.path, &errno.into()).hint(OWN_GROUP)
            })
    }

    /// Makes the control socket for clients that choose a VLAN, or no VLAN with 0; with permission
    /// bits of its own, if there are any.
    pub(crate) fn listen(
        self: &Arc<Self>,
        vlan: u16,
        mode: Option<u32>,
    ) -> Result<(UnixListener, DirectorySocket)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(|errno| Error::io("make a socket", &errno.into()))?;
        let path = match vlan {
            0 => self.path.join(CONTROL),
            vlan => self.path.join(format!("vlan{vlan}")),
        };
        let bound = BoundSocket::listen(&socket, &path, self.access_with(mode), BACKLOG)?;
        Ok((UnixListener::from(socket), self.entry(bound)))
    }

    /// Binds the data socket of port `number`, with the permission bits of the socket that its
    /// client came through.
    pub(crate) fn bind_data(
        self: &Arc<Self>,
        socket: &UnixDatagram,
        number: u32,
        mode: Option<u32>,
    ) -> Result<DirectorySocket> {
        let path = self.path.join(format!("fd{number}"));
        BoundSocket::bind(socket, &path, self.access_with(mode)).map(|bound| self.entry(bound))
    }

    fn access_with(&self, mode: Option<u32>) -> Access {
        Access {
            mode: mode.unwrap_or(self.access.mode),
            ..self.access
        }
    }

    fn entry(self: &Arc<Self>, socket: BoundSocket) -> DirectorySocket {
        DirectorySocket {
            socket,
            _directory: Arc::clone(self),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Clients that were killed while they asked for a port have left their sockets.
        let removed = clear(&self.path, &*self.locked).and_then(|()| {
            let is_same = lstat(&self.path).is_ok_and(|now| identity(&now) == self.identity);
            if is_same {
                fs::remove_dir(&self.path).map_err(|e| Error::path("remove", &self.path, &e))?;
            }
            Ok(())
        });
        if let Err(error) = removed {
            log::info!("{} stays: {error}", self.path.display());
        }
    }
}

/// A socket in the directory; dropping it removes it.
#[derive(Debug)]
pub(crate) struct DirectorySocket {
    socket: BoundSocket,
    _directory: Arc<Directory>,
}

impl DirectorySocket {
    pub(crate) fn path(&self) -> &Path {
        self.socket.path()
    }
}

/// Locks a directory. Gives a switch that is ending a moment to release it.
fn lock(mut handle: OwnedFd) -> Result<Flock<OwnedFd>, Errno> {
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        handle = match Flock::lock(handle, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((handle, Errno::EWOULDBLOCK)) if Instant::now() < deadline => handle,
            Err((_, errno)) => return Err(errno),
        };
        sleep(Duration::from_millis(10));
    }
}

const ELSEWHERE: &str = "name another directory";
const OWN_GROUP: &str = "you can only give files to a group that you belong to";

fn occupied(path: &Path) -> Error {
    let shown = path.display();
    Error::new(
        ErrorKind::Busy,
        format!("a switch or hub is already running in {shown}"),
    )
    .hint(format!(
        "plug into it with vde://{shown}, or name another directory"
    ))
}

fn foreign(path: &Path, why: &str) -> Error {
    Error::new(
        ErrorKind::Other,
        format!("{} {why}, so it is left alone", path.display()),
    )
    .hint("switches and hubs make their directory; name one that does not exist")
}

/// Removes stale sockets from the directory. Fails, and removes nothing, if a switch is alive in it
/// or it holds anything but sockets.
fn clear(path: &Path, handle: impl AsFd) -> Result<()> {
    let control = path.join(CONTROL);
    if matches!(
        probe(&control),
        Ok(Occupant::Datagram | Occupant::Connected)
    ) {
        return Err(occupied(path));
    }
    let mut dead = Vec::new();
    let entries = fs::read_dir(path).map_err(|e| Error::path("read", path, &e))?;
    for entry in entries {
        let name = entry
            .map_err(|e| Error::path("read", path, &e))?
            .file_name();
        let found = match fstatat(&handle, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::ENOENT) => continue,
            Err(errno) => return Err(Error::path("look at", &path.join(name), &errno.into())),
        };
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
            let shown = name.to_string_lossy();
            let why = format!("is no switch directory: it holds {shown}");
            return Err(foreign(path, &why));
        }
        match probe(&path.join(&name)) {
            Ok(Occupant::Stale) => dead.push(path.join(name)),
            Ok(Occupant::Nothing) => {}
            _ if name == CONTROL => return Err(occupied(path)),
            _ => {}
        }
    }
    for socket in dead {
        log::debug!("removing the stale socket {}", socket.display());
        let _ = remove_stale(&socket);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use vdens_plugin_kit::OpenOptions;

    use crate::Kind;

    fn config(path: &Path, keys: &str) -> Config {
        let argument = format!("{}{keys}", path.display());
        Config::new(Kind::Switch, &argument, &OpenOptions::default()).unwrap()
    }

    fn open_at(path: &Path) -> Result<Arc<Directory>> {
        Directory::open(&config(path, ""))
    }

    fn refusal(path: &Path) -> (ErrorKind, String) {
        let error = open_at(path).unwrap_err();
        assert!(!error.hint.is_empty(), "{error}");
        (error.kind, error.to_string())
    }

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn is_made_as_asked_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("sw");
        let directory = Directory::open(&config(&path, "[mode=0666/dirmode=2755]")).unwrap();
        let (listener, control) = directory.listen(0, None).unwrap();
        assert_eq!(mode(&path), 0o2755);
        assert_eq!(mode(control.path()), 0o666);
        drop((listener, control, directory));
        assert!(!path.exists());

        let directory = open_at(&path).unwrap();
        let (_listener, control) = directory.listen(0, None).unwrap();
        assert_eq!((mode(&path), mode(control.path())), (0o2700, 0o600));
    }

    #[test]
    fn one_switch_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("sw");
        let directory = open_at(&path).unwrap();
        let (kind, text) = refusal(&path);
        assert_eq!(kind, ErrorKind::Busy);
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        drop(directory);

        // One that knows no lock.
        fs::create_dir(&path).unwrap();
        let listener = UnixListener::bind(path.join("ctl")).unwrap();
        assert_eq!(refusal(&path).0, ErrorKind::Busy);
        assert!(path.join("ctl").exists());
        drop(listener);
        open_at(&path).unwrap();
    }

    #[test]
    fn what_the_dead_left_is_cleared_away() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("sw");
        fs::create_dir(&path).unwrap();
        drop(UnixListener::bind(path.join("ctl")).unwrap());
        for name in ["fd1", ".00123-00000", "001.6"] {
            drop(UnixDatagram::bind(path.join(name)).unwrap());
        }
        let directory = open_at(&path).unwrap();
        let _control = directory.listen(0, None).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    }

    #[test]
    fn sockets_of_the_living_stay() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("sw");
        fs::create_dir(&path).unwrap();
        let client = UnixDatagram::bind(path.join(".00123-00000")).unwrap();
        let directory = open_at(&path).unwrap();
        assert!(path.join(".00123-00000").exists());
        drop(directory);
        assert!(path.exists(), "it is not empty");
        drop(client);
        drop(open_at(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_switch_directory_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("home");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("thesis.tex"), "").unwrap();
        drop(UnixListener::bind(path.join("ctl")).unwrap());
        let mode_before = mode(&path);
        assert!(refusal(&path).1.contains("thesis.tex"));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2);
        assert_eq!(mode(&path), mode_before);

        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refusal(&file).1.contains("not a directory"));
        let link = root.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(refusal(&link).1.contains("not a directory"));
        assert_eq!(refusal(&root.path().join("no/such")).0, ErrorKind::NotFound);
        let long = root.path().join("x".repeat(100));
        assert_eq!(refusal(&long).0, ErrorKind::Usage);
    }

    #[test]
    fn what_took_its_place_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("sw");
        let directory = open_at(&path).unwrap();
        let control = directory.listen(0, None).unwrap();
        fs::remove_file(path.join("ctl")).unwrap();
        fs::write(path.join("ctl"), "precious").unwrap();
        drop((control, directory));
        assert!(path.join("ctl").exists());

        fs::remove_dir_all(&path).unwrap();
        let directory = open_at(&path).unwrap();
        fs::rename(&path, root.path().join("moved")).unwrap();
        fs::create_dir(&path).unwrap();
        drop(directory);
        assert!(path.exists());
    }
}
