//! The seqpacket generation: a listener at `PATH` and one connection to it.
//!
//! # Theory of operation
//!
//! The first end is a [`Listener`], the second a [`Connector`]. The listener answers a newcomer
//! with one byte: 0 if the connection is the link, or EISCONN if the listener has a peer already;
//! then it closes the connection. A hang-up means that the peer is gone. The listener then waits
//! for the next one. The connector gives up and joins from the start, and becomes the listener if
//! no other end has.
//!
//! After the byte, both hold a [`Connection`], whose packets are frames. A hang-up makes the socket
//! readable, and every read return nothing, as an empty packet does. So the flags of epoll are
//! checked before reading, and what a peer sent before it hung up is read packet by packet.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollFlags};
use nix::sys::socket::{self, Backlog, MsgFlags, Shutdown, SockFlag, SockType, sockopt};
use vdens_plugin_kit::bound_socket::BoundSocket;
use vdens_plugin_kit::log::{debug, warn};
use vdens_plugin_kit::{Error, ErrorKind, Peer as Credentials, Result, RxBatch};

use crate::sockets::{self, admits};
use crate::{DATA, End, Place, TICKS, watch};

/// How long a connector waits for the listener's byte.
const GREETING_LIMIT: Duration = Duration::from_secs(2);

/// What epoll reports for a socket whose peer has hung up.
const HANG_UP: EpollFlags = EpollFlags::EPOLLRDHUP
    .union(EpollFlags::EPOLLHUP)
    .union(EpollFlags::EPOLLERR);

/// An established connection.
#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    /// Whether nothing can be sent any more. There may be packets left to receive.
    closing: bool,
}

impl Connection {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            closing: false,
        }
    }

    fn peer(&self) -> Option<BorrowedFd<'_>> {
        (!self.closing).then(|| self.socket.as_fd())
    }

    fn credentials(&self) -> Credentials {
        let peer = socket::getsockopt(&self.socket, sockopt::PeerCredentials).ok();
        Credentials {
            uid: peer.map(|peer| peer.uid()),
            pid: peer.and_then(|peer| u32::try_from(peer.pid()).ok()),
            ..Credentials::default()
        }
    }

    /// Hangs up. What has been received can still be read.
    fn close(&mut self) {
        self.closing = true;
        let _ = socket::shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Receives what fits. Returns `false` if the connection is over.
    fn receive(&mut self, events: EpollFlags, max_frame: usize, batch: &mut RxBatch<'_>) -> bool {
        if !events.intersects(HANG_UP) {
            // An error here is the first sign of a hang-up, whose flags come with the next call.
            let _ = batch.receive_datagrams(&self.socket, max_frame);
            return true;
        }
        self.closing = true;
        let read = |room: &mut [u8]| {
            let length = receive(&self.socket, room)?;
            if length == 0 {
                return Err(Errno::ENOTCONN);
            }
            // A packet that is too long is dropped, as an empty one is.
            Ok(if length > room.len() { 0 } else { length })
        };
        loop {
            match batch.fill(max_frame, read) {
                Ok(true) | Err(Errno::ECONNRESET | Errno::EINTR) => {}
                Ok(false) => return true,
                Err(_) => return false,
            }
        }
    }
}

/// Receives one packet and returns its true length, 0 at a hang-up.
fn receive(socket: &OwnedFd, room: &mut [u8]) -> nix::Result<usize> {
    socket::recv(
        socket.as_raw_fd(),
        room,
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC,
    )
}

/// The first end. A newcomer calls for a tick, which accepts it: a legacy one waits two seconds for
/// its byte.
#[derive(Debug)]
pub(crate) struct Listener {
    own: BoundSocket,
    socket: OwnedFd,
    connection: Option<Connection>,
}

impl Listener {
    /// Binds `PATH`; `None` if another process was faster.
    pub(crate) fn bind(place: &Place, epoll: &Epoll) -> Result<Option<Self>> {
        let Some((own, socket)) = sockets::bind(SockType::SeqPacket, &place.path, place.access)?
        else {
            return Ok(None);
        };
        Backlog::new(1)
            .and_then(|backlog| socket::listen(&socket, backlog))
            .map_err(|errno| Error::path("listen at", own.path(), &errno.into()))?;
        watch(epoll, &socket, TICKS)?;
        Ok(Some(Self {
            own,
            socket,
            connection: None,
        }))
    }

    /// Answers a newcomer; EAGAIN if there is none.
    fn accept(&mut self, epoll: &Epoll) -> Result<(), Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let newcomer = socket::accept4(self.socket.as_raw_fd(), flags)?;
        // SAFETY: accept4 returned this descriptor just now, and nothing else owns it.
        let newcomer = unsafe { OwnedFd::from_raw_fd(newcomer) };
        let answer = match self.connection {
            None => 0,
            Some(_) => Errno::EISCONN as u8,
        };
        socket::send(newcomer.as_raw_fd(), &[answer], MsgFlags::MSG_NOSIGNAL)?;
        if self.connection.is_none() {
            sockets::enlarge(&newcomer);
            watch(epoll, &newcomer, DATA).map_err(|error| Errno::from_raw(error.errno))?;
            self.connection = Some(Connection::new(newcomer));
            debug!("{}: carrier true", self.own.path().display());
        }
        Ok(())
    }
}

impl End for Listener {
    fn peer(&self) -> Option<BorrowedFd<'_>> {
        self.connection.as_ref()?.peer()
    }

    fn credentials(&self) -> Credentials {
        let connection = self.connection.as_ref();
        connection.map(Connection::credentials).unwrap_or_default()
    }

    fn peer_lost(&mut self) {
        self.connection.iter_mut().for_each(Connection::close);
    }

    fn receive(&mut self, events: EpollFlags, max_frame: usize, batch: &mut RxBatch<'_>) {
        if let Some(connection) = &mut self.connection
            && !connection.receive(events, max_frame, batch)
        {
            self.connection = None;
            debug!("{}: carrier false", self.own.path().display());
        }
    }

    fn tick(&mut self, epoll: &Epoll) -> bool {
        // A newcomer waits while the last frames of its predecessor are being read.
        if self
            .connection
            .as_ref()
            .is_none_or(|connection| !connection.closing)
            && let Err(errno) = self.accept(epoll)
            && errno != Errno::EAGAIN
        {
            debug!("{}: accept: {errno}", self.own.path().display());
        }
        self.connection.is_some() || self.own.is_intact()
    }
}

/// The second end.
#[derive(Debug)]
pub(crate) struct Connector {
    connection: Option<Connection>,
    /// Until when to wait for the listener's byte; `None` once it has come.
    deadline: Option<Instant>,
    /// Why the listener refused.
    refusal: Option<Error>,
    path: PathBuf,
}

impl Connector {
    /// Connects to the listener at `PATH`; `None` if it does not listen yet, or no longer.
    pub(crate) fn connect(place: &Place, epoll: &Epoll) -> Result<Option<Self>> {
        let socket = sockets::new(SockType::SeqPacket)?;
        match sockets::connect(&socket, &place.path) {
            Ok(()) => {}
            Err(Errno::ECONNREFUSED | Errno::ENOENT) => return Ok(None),
            Err(Errno::EAGAIN) => return Err(silent(&place.path)),
            Err(Errno::EPROTOTYPE) => return Err(sockets::foreign(&place.path)),
            Err(errno) => return Err(sockets::cannot_connect(&place.path, errno)),
        }
        let connection = Connection::new(socket);
        if let Some(user) = connection.credentials().uid
            && !admits(place.access, user)
        {
            return Err(sockets::not_admitted(&place.path, user));
        }
        watch(epoll, &connection.socket, DATA)?;
        Ok(Some(Self {
            connection: Some(connection),
            deadline: Some(Instant::now() + GREETING_LIMIT),
            refusal: None,
            path: place.path.clone(),
        }))
    }

    /// Waits for the listener's answer. Returns an error if it refuses.
    pub(crate) fn wait_for_greeting(&mut self) -> Result<()> {
        while let (Some(deadline), Some(connection)) = (self.deadline, &self.connection) {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut fds = [PollFd::new(connection.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => return Err(silent(&self.path)),
                Ok(_) => self.greet(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("wait for the far end", &errno.into())),
            }
        }
        self.refusal.take().map_or(Ok(()), Err)
    }

    /// Reads the listener's byte.
    fn greet(&mut self) {
        let Some(connection) = &self.connection else {
            return;
        };
        let mut byte = [0];
        let path = &self.path;
        let refusal = match receive(&connection.socket, &mut byte) {
            Ok(1) if byte == [0] => {
                self.deadline = None;
                debug!("{}: carrier true", path.display());
                return;
            }
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNRESET) => return,
            Ok(1) if i32::from(byte[0]) == Errno::EISCONN as i32 => sockets::busy(path),
            Ok(1) => {
                let errno = Errno::from_raw(i32::from(byte[0]));
                let mut error = Error::path("join", path, &errno.into());
                error.kind = ErrorKind::Busy;
                error.hint("the far end refuses")
            }
            Ok(0) | Err(_) => Error::closed(format!("the far end at {} hung up", path.display())),
            Ok(_) => Error::new(
                ErrorKind::Protocol,
                format!("the far end at {} does not speak ptp", path.display()),
            ),
        };
        self.refusal = Some(refusal);
        self.connection = None;
    }
}

fn silent(path: &Path) -> Error {
    let message = format!("the far end at {} does not answer", path.display());
    Error::new(ErrorKind::Busy, message)
        .hint("see whether the process that listens there is stopped")
}

impl End for Connector {
    fn peer(&self) -> Option<BorrowedFd<'_>> {
        match self.deadline {
            None => self.connection.as_ref()?.peer(),
            Some(_) => None,
        }
    }

    fn credentials(&self) -> Credentials {
        let connection = self.connection.as_ref();
        connection.map(Connection::credentials).unwrap_or_default()
    }

    fn peer_lost(&mut self) {
        self.connection.iter_mut().for_each(Connection::close);
    }

    fn receive(&mut self, events: EpollFlags, max_frame: usize, batch: &mut RxBatch<'_>) {
        if self.deadline.is_some() {
            self.greet();
        } else if let Some(connection) = &mut self.connection
            && !connection.receive(events, max_frame, batch)
        {
            self.connection = None;
            debug!("{}: carrier false", self.path.display());
        }
    }

    fn tick(&mut self, _epoll: &Epoll) -> bool {
        if let Some(refusal) = self.refusal.take() {
            warn!("{refusal}");
        }
        self.connection.is_some()
            && self
                .deadline
                .is_none_or(|deadline| Instant::now() < deadline)
    }
}
