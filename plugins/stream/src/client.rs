//! The end that connects.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use vdens_plugin_kit::udp::resolve;
use vdens_plugin_kit::user::{AllowedUser, FarUser};
use vdens_plugin_kit::{
    Error, ErrorKind, Link, OpenRequest, Result, RxBatch, Status, TxBatch, log,
};

use crate::connection::Connection;
use crate::target::Address;

/// How long all addresses of a host may take to answer. A worker that says nothing for longer is
/// killed.
const LIMIT: Duration = Duration::from_secs(3);

const NOBODY: &str = "start the far end first, or leave out the key 'connect' to listen there";

/// A connection that this end made.
#[derive(Debug)]
pub(crate) struct Client {
    connection: Connection,
    address: Address,
}

impl Client {
    /// Connects to a peer of an allowed user.
    pub(crate) fn connect(
        address: &Address,
        user: AllowedUser,
        request: &OpenRequest<'_>,
    ) -> Result<Self> {
        let connection = match address {
            Address::Path(path) => {
                let connection = Connection::unix(connect_unix(path)?)?;
                if let Some(uid) = connection.peer.uid {
                    let far_user = FarUser::new(user, request.vnl, request.host);
                    far_user.check(format_args!("the far end at {address}"), uid)?;
                    far_user.remember(uid);
                }
                connection
            }
            Address::Tcp { host, port } => Connection::tcp(connect_tcp(host, *port)?)?,
        };
        log::debug!("connected to {address}");
        Ok(Self {
            connection,
            address: address.clone(),
        })
    }

    /// The error for a connection that has ended.
    fn broken(&self, error: Error) -> Error {
        Error {
            message: format!("{}: {}", self.address, error.message),
            ..error
        }
    }
}

fn connect_unix(path: &Path) -> Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| Error::io("make a socket", &errno.into()))?;
    let connected = UnixAddr::new(path).and_then(|to| connect(socket.as_raw_fd(), &to));
    connected.map_err(|errno| {
        let error = Error::path("connect to", path, &errno.into());
        match errno {
            Errno::ENOENT | Errno::ECONNREFUSED => error.hint(NOBODY),
            Errno::EPROTOTYPE => error.hint("it is no stream socket: use another scheme"),
            Errno::EAGAIN => Error {
                kind: ErrorKind::Busy,
                ..error.hint("the process that listens there does not accept connections")
            },
            Errno::EACCES => error.hint("it belongs to another user, who can open it to you"),
            _ => error,
        }
    })?;
    Ok(socket.into())
}

fn connect_tcp(host: &str, port: u16) -> Result<TcpStream> {
    let addresses = resolve(host, port)?;
    let end = Instant::now() + LIMIT;
    let mut failure = None;
    for address in addresses {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = Some(cannot_connect(address, &error)),
        }
    }
    Err(failure.unwrap_or_else(|| Error::closed(format!("{host} has no address"))))
}

fn cannot_connect(address: SocketAddr, source: &std::io::Error) -> Error {
    let error = Error::io(format_args!("connect to {address}"), source);
    match source.kind() {
        std::io::ErrorKind::ConnectionRefused => error.hint(NOBODY),
        _ => error,
    }
}

impl Link for Client {
    fn fd(&self) -> BorrowedFd<'_> {
        self.connection.stream.fd()
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.connection.stream.send_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let received = self.connection.stream.recv(batch);
        received.map_err(|error| self.broken(error))
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        let sent = self.connection.stream.send(batch);
        sent.map_err(|error| self.broken(error))
    }

    fn status(&self) -> Status {
        self.connection.status()
    }
}
