//! The program behind the plugin: where it is, where it works, how it is started.

use std::ffi::CStr;
use std::fs;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use vdens_plugin_kit::{Error, ErrorKind, Result};

use crate::report::Report;
use crate::settings::Task;

/// A directory of this link's own, closed to others. It goes when the link does.
pub(crate) fn directory() -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("vdens-nat-");
    builder.permissions(fs::Permissions::from_mode(0o700));
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let made = runtime
        .filter(|dir| dir.is_absolute())
        .map(|dir| builder.tempdir_in(dir));
    match made {
        Some(Ok(directory)) => Ok(directory),
        _ => builder
            .tempdir()
            .map_err(|e| Error::io("make a directory for nat://", &e)),
    }
}

/// The program `vdens`, beside the one that runs here.
pub(crate) fn vdens() -> Result<PathBuf> {
    let here = fs::read_link("/proc/self/exe").map_err(|e| Error::io("find vdens", &e))?;
    let found = here.with_file_name("vdens");
    match found.is_file() {
        true => Ok(found),
        false => Err(missing(&found)),
    }
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
    let found = library.with_file_name("vdens-nat");
    match found.is_file() {
        true => Ok(found),
        false => Err(missing(&found)),
    }
}

fn missing(program: &Path) -> Error {
    let message = format!(
        "nat:// needs the program {}, which is not there",
        program.display()
    );
    Error::new(ErrorKind::NotFound, message).hint("install it from where vdens came from")
}

/// How long the proxy may take to start: it binds sockets and does nothing else before.
const START: Duration = Duration::from_secs(10);

/// The proxy. It ends when this is dropped.
pub(crate) struct Proxy {
    socket: UnixStream,
    child: Child,
    /// The beginning of a line that is not whole yet.
    part: Vec<u8>,
}

impl Proxy {
    /// Starts the proxy, and waits until the forwards are there.
    ///
    /// # Errors
    /// The program is not there, or what the proxy reports.
    pub(crate) fn start(task: &Task) -> Result<Self> {
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
        let child = command.spawn().map_err(|e| failed(&e))?;
        drop(command);
        let mut proxy = Self {
            socket: ours,
            child,
            part: Vec::new(),
        };
        let limit = proxy.socket.set_read_timeout(Some(START));
        limit.map_err(|e| failed(&e))?;
        match proxy.next()? {
            Some(Report::Started) => {}
            Some(Report::Failed(why)) => return Err(Error::new(ErrorKind::Other, why)),
            _ => return Err(Error::closed("vdens-nat does not start")),
        }
        proxy.socket.set_nonblocking(true).map_err(|e| failed(&e))?;
        Ok(proxy)
    }

    /// What is readable when the proxy has told something or has ended.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next thing that the proxy told, if there is one.
    ///
    /// # Errors
    /// The proxy has ended.
    pub(crate) fn next(&mut self) -> Result<Option<Report>> {
        loop {
            if let Some(end) = self.part.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.part.drain(..=end).collect();
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

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
