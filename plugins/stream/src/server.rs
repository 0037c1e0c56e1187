//! The end that listens.

use std::io::{self, ErrorKind as IoKind};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use vdens_plugin_kit::bound_socket::{Access, BoundSocket, Occupant, cannot_use, probe};
use vdens_plugin_kit::log::{debug, warn};
use vdens_plugin_kit::udp::resolve;
use vdens_plugin_kit::{
    AlwaysReady, Error, ErrorKind, Link, Result, RxBatch, State, Status, TxBatch,
};

use crate::connection::Connection;
use crate::target::Address;

/// How many peers may wait to be accepted or refused.
const BACKLOG: i32 = 8;

/// A listening socket.
#[derive(Debug)]
enum Listener {
    Unix {
        socket: UnixListener,
        own: BoundSocket,
    },
    Tcp(TcpListener),
}

impl Listener {
    fn bind(address: &Address, access: Access) -> Result<Self> {
        match address {
            Address::Path(path) => bind_unix(path, access),
            Address::Tcp { host, port } => bind_tcp(host, *port),
        }
    }

    /// A connection that waits to be accepted, if there is one.
    fn accept(&self) -> Result<Option<Connection>> {
        loop {
            let accepted = match self {
                Self::Unix { socket, .. } => {
                    let accepted = socket.accept();
                    accepted.map(|(socket, _)| Connection::unix(socket))
                }
                Self::Tcp(socket) => socket.accept().map(|(socket, _)| Connection::tcp(socket)),
            };
            match accepted.map_err(|error| (error.kind(), error)) {
                Ok(connection) => return connection.map(Some),
                Err((IoKind::WouldBlock, _)) => return Ok(None),
                // Another peer may be waiting.
                Err((IoKind::Interrupted | IoKind::ConnectionAborted, _)) => {}
                Err((_, error)) => return Err(Error::io("accept a connection", &error)),
            }
        }
    }

    /// Whether peers can still find the socket.
    fn is_intact(&self) -> bool {
        match self {
            Self::Unix { own, .. } => own.is_intact(),
            Self::Tcp(_) => true,
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix { socket, .. } => socket.as_fd(),
            Self::Tcp(socket) => socket.as_fd(),
        }
    }
}

fn bind_unix(path: &Path, access: Access) -> Result<Listener> {
    let found = probe(path).map_err(|error| cannot_use("listen at", path, &error))?;
    match found {
        // A stale socket is replaced.
        Occupant::Nothing | Occupant::Stale => {}
        Occupant::Datagram | Occupant::Connected => {
            let message = format!("cannot listen at {}: another process does", path.display());
            return Err(Error::new(ErrorKind::Busy, message)
                .hint("use another path, or connect to that process: stream://PATH[connect]"));
        }
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| Error::io("make a socket", &errno.into()))?;
    let own = BoundSocket::listen(&socket, path, access, BACKLOG)?;
    Ok(Listener::Unix {
        socket: socket.into(),
        own,
    })
}

fn bind_tcp(host: &str, port: u16) -> Result<Listener> {
    let cannot = |error: &io::Error| {
        let hint = match error.kind() {
            IoKind::AddrInUse => "another program has that port",
            IoKind::AddrNotAvailable => {
                "to listen, name an address of this machine; to connect, add the key: /connect"
            }
            IoKind::PermissionDenied => "take a port from 1024 on",
            _ => "",
        };
        Error::io(format_args!("listen at {host}:{port}"), error).hint(hint)
    };
    let socket = TcpListener::bind(&resolve(host, port)?[..]).map_err(|error| cannot(&error))?;
    socket
        .set_nonblocking(true)
        .map_err(|error| cannot(&error))?;
    Ok(Listener::Tcp(socket))
}

/// A listening socket, and the peer that has connected to it.
#[derive(Debug)]
pub(crate) struct Server {
    address: Address,
    listener: Listener,
    connection: Option<Connection>,
    /// Whether a second peer was refused during this connection.
    has_refused: bool,
    /// Why the last connection was closed from this side.
    complaint: Option<Error>,
    /// Readable when a peer connects, or when the connected one sends.
    ready: Epoll,
    /// To send to while there is no peer.
    always: AlwaysReady,
}

impl Server {
    pub(crate) fn listen(address: Address, access: Access) -> Result<Self> {
        let listener = Listener::bind(&address, access)?;
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(|errno| Error::io("make an epoll instance", &errno.into()))?;
        watch(&ready, &listener)?;
        Ok(Self {
            address,
            listener,
            connection: None,
            has_refused: false,
            complaint: None,
            ready,
            always: AlwaysReady::new()?,
        })
    }

    /// Takes the peer that waits, or refuses it if there is one already.
    fn accept(&mut self) -> Result<()> {
        while let Some(connection) = self.listener.accept()? {
            let address = &self.address;
            if self.connection.is_none() {
                watch(&self.ready, connection.stream.input())?;
                debug!("{address}: carrier true");
                self.connection = Some(connection);
                self.has_refused = false;
            } else if std::mem::replace(&mut self.has_refused, true) {
                debug!("{address}: another peer was refused");
            } else {
                warn!("{address}: a second peer was refused: one is connected already");
            }
        }
        Ok(())
    }

    /// Closes the connection for this reason, and goes on listening.
    fn disconnect(&mut self, error: Error) -> Result<()> {
        self.connection = None;
        let address = &self.address;
        debug!("{address}: carrier false: {error}");
        if error.kind != ErrorKind::Closed && self.complaint.as_ref() != Some(&error) {
            warn!("{address}: the connection was closed: {error}");
            self.complaint = Some(error);
        }
        match self.listener.is_intact() {
            true => Ok(()),
            false => Err(Error::closed(format!("{address} was removed"))),
        }
    }
}

fn watch(epoll: &Epoll, fd: impl AsFd) -> Result<()> {
    epoll
        .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))
        .map_err(|errno| Error::io("watch a descriptor", &errno.into()))
}

impl Link for Server {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.connection {
            Some(connection) if connection.stream.holds_frames() => connection.stream.fd(),
            _ => self.ready.0.as_fd(),
        }
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        match &self.connection {
            Some(connection) => connection.stream.send_fd(),
            None => self.always.as_fd(),
        }
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let first = batch.len();
        if let Some(connection) = &mut self.connection
            && let Err(error) = connection.stream.recv(batch)
        {
            self.disconnect(error)?;
        }
        // Awake without a frame: it may be a peer.
        match batch.len() == first {
            true => self.accept(),
            false => Ok(()),
        }
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        if let Some(connection) = &mut self.connection {
            match connection.stream.send(batch) {
                Ok(taken) => return Ok(taken),
                Err(error) => self.disconnect(error)?,
            }
        }
        batch.count_dropped(batch.len() as u64);
        Ok(batch.len())
    }

    fn state(&self) -> State {
        State::carrier(self.connection.is_some())
    }

    fn status(&self) -> Status {
        match (&self.connection, &self.complaint) {
            (Some(connection), _) => connection.status(),
            (None, Some(complaint)) => Status {
                reason: complaint.to_string(),
                ..Status::default()
            },
            (None, None) => Status::default(),
        }
    }
}
