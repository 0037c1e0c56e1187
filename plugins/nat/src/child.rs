//! The program behind the plugin: where it is, where it works, how it is started.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use tempfile::TempDir;
use vdens_plugin_kit::process::open_pidfd;
use vdens_plugin_kit::trust::{self, Fault};
use vdens_plugin_kit::{Error, ErrorKind, Result, log};

use crate::heartbeat::Heartbeat;
use crate::report::{PING, Report};
use crate::settings::Task;

/// How the name of a link's directory begins.
const PREFIX: &str = "vdens-nat-";

/// How many directories are made before it is given up to lock one.
const ATTEMPTS: usize = 8;

/// A directory of a link's own, closed to others. It goes when the link does. Of a link that was
/// killed together with its proxy, the next link removes it: nobody has locked it any more.
pub(crate) struct Directory {
    directory: TempDir,
    _lock: Flock<File>,
}

impl Directory {
    /// Makes one, and removes those that were left.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn new() -> Result<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let made = runtime
            .filter(|dir| dir.is_absolute())
            .map(|dir| Self::new_in(&dir));
        match made {
            Some(Ok(directory)) => Ok(directory),
            _ => Self::new_in(&std::env::temp_dir())
                .map_err(|e| Error::io("make a directory for nat://", &e)),
        }
    }

    fn new_in(parent: &Path) -> io::Result<Self> {
        remove_left(parent);
        for _ in 0..ATTEMPTS {
            let directory = tempfile::Builder::new()
                .prefix(PREFIX)
                .permissions(fs::Permissions::from_mode(0o700))
                .tempdir_in(parent)?;
            // Another link that looks for what was left may be first to lock it, and removes it.
            if let Some(lock) = lock(directory.path()) {
                return Ok(Self {
                    directory,
                    _lock: lock,
                });
            }
        }
        Err(io::Error::other("it cannot be locked"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Locks a directory of this user's; `None` if there is none, or another process has locked it.
fn lock(directory: &Path) -> Option<Flock<File>> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(flags)
        .open(directory)
        .ok()?;
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).ok()?;
    let (locked, named) = (lock.metadata().ok()?, fs::symlink_metadata(directory).ok()?);
    let is_same = (locked.dev(), locked.ino()) == (named.dev(), named.ino());
    (is_same && locked.uid() == geteuid().as_raw()).then_some(lock)
}

/// Removes the directories that links have left.
fn remove_left(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_one = entry.file_name().to_string_lossy().starts_with(PREFIX);
        if is_one && let Some(_lock) = lock(&entry.path()) {
            // Where that fails it is tried again by the next link.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The program `vdens`, beside the one that runs here.
pub(crate) fn vdens() -> Result<PathBuf> {
    let here = fs::read_link("/proc/self/exe").map_err(|e| Error::io("find vdens", &e))?;
    beside(&here, "vdens")
}

/// The other children of this process's parent: the one that becomes a session's command is among
/// them, as are the workers of the session's other links.
pub(crate) fn siblings() -> Result<Vec<u32>> {
    let (own, parent) = (std::process::id(), std::os::unix::process::parent_id());
    let processes = fs::read_dir("/proc").map_err(|e| Error::io("list processes", &e))?;
    let ids = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(ids
        .filter(|&id| id != own && parent_of(id) == Some(parent))
        .collect())
}

/// The parent of a process (proc_pid_stat(5): the second word behind the program's name, which is
/// in brackets and may have brackets in it).
fn parent_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, behind) = stat.rsplit_once(") ")?;
    behind.split(' ').nth(1)?.parse().ok()
}

/// The program `vdens-nat`, beside this plugin.
fn program() -> Result<PathBuf> {
    static HERE: u8 = 0;
    // SAFETY: an all-zero Dl_info is a valid one: its members are pointers and numbers.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is writable for the call, and the address is one of this library.
    let found = unsafe { libc::dladdr((&raw const HERE).cast(), &raw mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return Err(Error::io("find vdens-nat", &io::Error::last_os_error()));
    }
    // SAFETY: dladdr succeeded, so the name is a string that lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let library = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    beside(library, "vdens-nat")
}

/// The program of a name in the directory of a file that runs here already. Nobody else can put
/// programs there: the host has checked the directory of each plugin. The program itself must be
/// root's, the user's or of the owner of that file, and others must not be able to write it.
fn beside(file: &Path, name: &str) -> Result<PathBuf> {
    let found = file.with_file_name(name);
    // Of a symbolic link it is the link that is found, which is no file.
    let meta = match fs::symlink_metadata(&found) {
        Ok(meta) if meta.is_file() => meta,
        _ => return Err(missing(&found)),
    };
    let is_same_owner = fs::metadata(file).is_ok_and(|file| file.uid() == meta.uid());
    let fault = match trust::fault(&meta) {
        Some(Fault::Foreign(_)) if is_same_owner => {
            trust::writable_by_others(&meta).then_some(Fault::Writable)
        }
        fault => fault,
    };
    let Some(fault) = fault else {
        return Ok(found);
    };
    let message = format!("cannot run {}: {fault}", found.display());
    let hint = match fault {
        Fault::Foreign(_) => "install a copy of your own, with the plugin".to_owned(),
        Fault::Writable => format!("chmod go-w {}", found.display()),
    };
    Err(Error::new(ErrorKind::Permission, message).hint(hint))
}

fn missing(program: &Path) -> Error {
    let message = format!(
        "nat:// needs the program {}, which is not there",
        program.display()
    );
    Error::new(ErrorKind::NotFound, message).hint("install it from where vdens came from")
}

/// How long the proxy may take to serve: less than the host gives a link to open.
const START: Duration = Duration::from_secs(9);

/// How long the proxy may take to end, with its gateway: less than the host gives a worker.
const END: Duration = Duration::from_secs(4);

/// What the proxy's process does before it becomes the proxy.
fn detach() -> io::Result<()> {
    // One that is stopped does not see that this process ends: it goes on then, and does.
    set_pdeathsig(Signal::SIGCONT)?;
    // Whatever the caller has left open is closed with exec. Kernels before 5.11 cannot do that;
    // there the proxy has what any program has that the caller starts.
    let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
    // SAFETY: close_range touches no memory, and nothing is closed before exec.
    unsafe { libc::close_range(3, libc::c_uint::MAX, flags) };
    Ok(())
}

/// The proxy. It ends when this is dropped.
pub(crate) struct Proxy {
    socket: UnixStream,
    child: Child,
    /// Its pidfd, which is readable when it has ended.
    process: OwnedFd,
    /// The beginning of a line that is not whole yet.
    part: Vec<u8>,
    heartbeat: Heartbeat,
}

/// How the proxy's start ends.
pub(crate) enum Start {
    /// It serves.
    Serves(Proxy),
    /// This kernel can run no gateway, and what it lacks.
    Lacks(String),
}

impl Proxy {
    /// Starts the proxy, and waits until it serves: whoever sees the link's carrier sends at once.
    ///
    /// # Errors
    /// The program is not there, it takes too long, or what it reports.
    pub(crate) fn start(task: &Task) -> Result<Start> {
        let failed = |e: &io::Error| Error::io("start vdens-nat", e);
        let (ours, theirs) = UnixStream::pair().map_err(|e| failed(&e))?;
        let task = serde_json::to_string(task).map_err(|e| failed(&e.into()))?;
        let stdin = Stdio::from(OwnedFd::from(theirs));
        let mut command = Command::new(program()?);
        command
            .arg("proxy")
            .arg(task)
            .stdin(stdin)
            .stdout(Stdio::null());
        // SAFETY: between fork and exec only system calls are made, which are async-signal-safe.
        unsafe { command.pre_exec(detach) };
        let child = command.spawn().map_err(|e| failed(&e))?;
        drop(command);
        let process = open_pidfd(child.id()).map_err(|e| failed(&e))?;
        let mut proxy = Self {
            socket: ours,
            child,
            process,
            part: Vec::new(),
            heartbeat: Heartbeat::default(),
        };
        let limit = Instant::now() + START;
        loop {
            let left = limit.saturating_duration_since(Instant::now());
            // Zero would be no limit.
            let left = Some(left.max(Duration::from_millis(1)));
            proxy
                .socket
                .set_read_timeout(left)
                .map_err(|e| failed(&e))?;
            match proxy.next()? {
                Some(Report::Serving) => break,
                Some(Report::Failed(why)) => return Err(Error::new(ErrorKind::Other, why)),
                Some(Report::Lacks(why)) => return Ok(Start::Lacks(why)),
                Some(Report::Warning(text)) => warn(&text),
                Some(Report::Alive | Report::Status(_)) => {}
                None => {
                    let why = "the gateway of nat:// does not serve in time; try again";
                    return Err(Error::closed(why));
                }
            }
        }
        proxy.socket.set_nonblocking(true).map_err(|e| failed(&e))?;
        Ok(Start::Serves(proxy))
    }

    /// What is readable when the proxy has told something or has ended.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Asks whether the proxy still runs.
    ///
    /// # Errors
    /// It has not answered for too long, or has ended.
    pub(crate) fn ask(&mut self) -> Result<()> {
        if !self.heartbeat.ask() {
            return Err(Error::closed("the proxy of nat:// does not answer"));
        }
        match self.socket.write(&[PING]) {
            // Its socket has questions enough.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(Error::io("ask the proxy of nat://", &error)),
            Ok(_) => Ok(()),
        }
    }

    /// The next thing that the proxy told, if there is one.
    ///
    /// # Errors
    /// The proxy has ended.
    pub(crate) fn next(&mut self) -> Result<Option<Report>> {
        loop {
            if let Some(end) = self.part.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.part.drain(..=end).collect();
                self.heartbeat.answered();
                let report = serde_json::from_slice(&line);
                return report
                    .map(Some)
                    .map_err(|e| Error::io("understand vdens-nat", &e.into()));
            }
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(Error::closed("the proxy of nat:// has ended")),
                Ok(count) => self.part.extend(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(Error::io("hear from vdens-nat", &error)),
            }
        }
    }
}

/// Logs what the proxy says to the user.
pub(crate) fn warn(text: &str) {
    log::warn!("nat://: {text}");
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        // It ends its gateway first. The directory can be removed only when nothing makes files in
        // it.
        let deadline = Instant::now() + END;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.process.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => break drop(self.child.kill()),
                Ok(_) => break,
            }
        }
        let _ = self.child.wait();
    }
}
