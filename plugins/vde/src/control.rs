//! Asking a switch for a port.
//!
//! A named group of ports, and by custom a port number, may have a stream socket of its own beside
//! `ctl`; if there is none, `ctl` serves all. A VLAN that is chosen has one in any case: without
//! it, the link would be on another network. Connecting and the wait for the answer are both
//! limited: a stopped switch must not stop its clients.

use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, send, socket,
    sockopt,
};
use vdens_plugin_kit::log;
use vdens_plugin_kit::vnl::check_socket_path;
use vdens_plugin_kit::wire::control::{REPLY_LEN, Reply, Request, RequestKind};
use vdens_plugin_kit::{Error, ErrorKind, Result};

use crate::target::{Port, Target};

/// How long a switch may take to accept, and again to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// A connection to a switch that has not been asked for anything yet.
#[derive(Debug)]
pub(crate) struct Control {
    stream: UnixStream,
    directory: PathBuf,
    /// The number to ask for, 0 for any.
    port: u32,
    /// What to log if the switch grants a port although it has no such group of ports.
    missing: Option<(log::Level, String)>,
    /// The socket's metadata, for its owner.
    pub(crate) owner: Metadata,
}

impl Control {
    /// Connects to the control socket that serves the port wanted.
    pub(crate) fn connect(target: &Target) -> Result<Self> {
        let directory = &target.directory;
        let special = match &target.port {
            Port::Any => None,
            Port::Number(number) => Some(number.to_string()),
            Port::Group(name) => Some(name.clone()),
        };
        let mut missing = None;
        let port = match &target.port {
            Port::Number(number) => *number,
            Port::Any | Port::Group(_) => 0,
        };
        if let Some(vlan) = target.vlan {
            let path = directory.join(format!("vlan{vlan}"));
            check_socket_path(&path)?;
            let (stream, owner) =
                try_connect(&path).map_err(|error| explain_vlan(directory, vlan, &path, &error))?;
            return Ok(Self::new(stream, owner, directory, port));
        }
        if let Some(name) = special {
            match try_connect(&directory.join(&name)) {
                Ok((stream, owner)) => return Ok(Self::new(stream, owner, directory, 0)),
                Err(error) => missing = Some((name, error)),
            }
        }
        let path = directory.join("ctl");
        check_socket_path(&path)?;
        let (stream, owner) =
            try_connect(&path).map_err(|error| explain(directory, &path, &error))?;
        let level = match &target.port {
            Port::Group(_) => log::Level::Warn,
            _ => log::Level::Debug,
        };
        Ok(Self {
            missing: missing.map(|(name, error)| {
                let shown = directory.display();
                let text =
                    format!("no group of ports '{name}' in {shown}, any port serves ({error})");
                (level, text)
            }),
            ..Self::new(stream, owner, directory, port)
        })
    }

    fn new(stream: UnixStream, owner: Metadata, directory: &Path, port: u32) -> Self {
        Self {
            stream,
            directory: directory.to_owned(),
            port,
            missing: None,
            owner,
        }
    }

    /// The switch's user, as the kernel knows it.
    pub(crate) fn user(&self) -> Result<u32> {
        getsockopt(&self.stream, sockopt::PeerCredentials)
            .map(|peer| peer.uid())
            .map_err(|errno| Error::io("ask whose the switch is", &errno.into()))
    }

    /// Asks for a port for the datagram socket at `socket`. Returns the address of the port's
    /// datagram socket, and the stream that ends with the port.
    pub(crate) fn negotiate(
        mut self,
        socket: &Path,
        description: &[u8],
    ) -> Result<(PathBuf, UnixStream)> {
        let request = Request {
            kind: RequestKind::New,
            port: self.port,
            socket: socket.to_owned(),
            description: description.to_owned(),
        };
        let mut reply = [0; REPLY_LEN];
        let request = request.encode()?;
        // The empty queue of a new connection has room for a whole request.
        let exchange = send(self.stream.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL)
            .map_err(io::Error::from)
            .and_then(|_| read_in_time(&mut self.stream, &mut reply));
        match exchange {
            Ok(()) => {}
            Err(error) if is_timeout(&error) => return Err(self.silent()),
            Err(_) => return Err(self.refused()),
        }
        let reply = Reply::decode(&reply).map_err(|error| {
            let mut error = Error::from(error);
            error.message = format!("{}: {}", self.directory.display(), error.message);
            error.hint("is this the directory of a switch?")
        })?;
        self.stream
            .set_nonblocking(true)
            .map_err(|e| Error::io("make a socket non-blocking", &e))?;
        if let Some((level, text)) = self.missing {
            log::log!(level, "{text}");
        }
        Ok((reply.socket, self.stream))
    }

    fn silent(&self) -> Error {
        Error::new(
            ErrorKind::Other,
            format!(
                "the switch {} does not answer within {} s",
                self.directory.display(),
                ANSWER_LIMIT.as_secs()
            ),
        )
        .hint("its process hangs or is stopped")
    }

    fn refused(&self) -> Error {
        let directory = self.directory.display();
        match self.port {
            0 => Error::new(
                ErrorKind::Permission,
                format!("the switch {directory} refused a port"),
            )
            .hint("its log says why; it may be full"),
            port => Error::new(
                ErrorKind::Busy,
                format!("the switch {directory} refused port {port}"),
            )
            .hint("the port may be in use; without a number the switch picks a free one"),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Fills `buffer` within [`ANSWER_LIMIT`], however slowly the bytes come.
fn read_in_time(stream: &mut UnixStream, mut buffer: &mut [u8]) -> io::Result<()> {
    let deadline = Instant::now() + ANSWER_LIMIT;
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => buffer = &mut buffer[n..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn try_connect(path: &Path) -> io::Result<(UnixStream, Metadata)> {
    let owner = fs::metadata(path)?;
    if !owner.file_type().is_socket() {
        return Err(Errno::ENOTSOCK.into());
    }
    let flags = SockFlag::SOCK_CLOEXEC;
    let stream = UnixStream::from(socket(AddressFamily::Unix, SockType::Stream, flags, None)?);
    // This limits connect as well, which waits while the switch's queue of connections is full.
    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok((stream, owner))
}

/// The error for a VLAN that cannot be chosen.
fn explain_vlan(directory: &Path, vlan: u16, socket: &Path, cause: &io::Error) -> Error {
    let ctl = directory.join("ctl");
    if let Err(error) = try_connect(&ctl)
        && error.kind() != io::ErrorKind::PermissionDenied
    {
        return explain(directory, &ctl, &error);
    }
    let shown = directory.display();
    let errno = cause.raw_os_error().unwrap_or(0);
    let (kind, message, hint) = match Errno::from_raw(errno) {
        Errno::ENOENT | Errno::ENOTSOCK | Errno::EPROTOTYPE | Errno::ECONNREFUSED => (
            ErrorKind::NotFound,
            format!("the switch {shown} does not offer VLAN {vlan}"),
            "its owner offers VLANs with the switch's key vlans, or with vdectl switch",
        ),
        Errno::EACCES | Errno::EPERM => (
            ErrorKind::Permission,
            format!("no permission to choose VLAN {vlan} of the switch {shown}"),
            "its owner decides who may, when the VLAN is offered",
        ),
        _ => return Error::path("connect to", socket, cause),
    };
    Error {
        kind,
        errno,
        message,
        hint: hint.to_owned(),
    }
}

/// The error for a switch that cannot be connected to.
fn explain(directory: &Path, ctl: &Path, cause: &io::Error) -> Error {
    let shown = directory.display();
    let start = format!("start one with: vde_plug null:// switch://{shown}");
    let errno = cause.raw_os_error().unwrap_or(0);
    let error = |kind, message: String, hint: String| Error {
        kind,
        errno,
        message,
        hint,
    };
    match fs::metadata(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let message = format!("there is no switch directory {shown}");
            return error(ErrorKind::NotFound, message, start);
        }
        Ok(found) if !found.is_dir() => {
            let message = format!("{shown} is not a switch: it is not a directory");
            let hint = "name the directory in which the switch has its socket ctl".to_owned();
            return error(ErrorKind::NotFound, message, hint);
        }
        _ => {}
    }
    match Errno::from_raw(errno) {
        Errno::ENOENT | Errno::ENOTSOCK | Errno::EPROTOTYPE => error(
            ErrorKind::NotFound,
            format!("{shown} is not a switch directory: it has no listening socket ctl"),
            start,
        ),
        Errno::ECONNREFUSED => error(
            ErrorKind::NotFound,
            format!("the switch of {shown} is not running; only its directory is left"),
            start,
        ),
        Errno::EACCES | Errno::EPERM => error(
            ErrorKind::Permission,
            format!("no permission to use the switch {shown}"),
            "its owner grants it with the switch's keys mode and group".to_owned(),
        ),
        Errno::EAGAIN => error(
            ErrorKind::Busy,
            format!("the switch {shown} accepts no connection"),
            "its process hangs or is stopped".to_owned(),
        ),
        _ => Error::path("connect to", ctl, cause),
    }
}
