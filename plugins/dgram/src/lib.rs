//! `dgram://OWN->FAR[key…]` and `dgram://OWN[key…]`: a cable of UNIX datagrams between two paths.
//!
//! # Theory of operation
//!
//! Each frame is a datagram, as QEMU's `-netdev dgram` sends them, and libkrun, vfkit and gvproxy.
//! This end binds the path OWN. It connects to the peer's socket, so that the kernel refuses the
//! datagrams of others, and poll shows a full queue. Where the peer is comes from the VNL (FAR), or
//! from its first datagram.
//!
//! There is no handshake and no hang-up. While it has a path to look at, each tick of a timer
//! connects again: if the same socket is there, nothing changes; an error says that none is there.
//! A socket that was replaced counts as gone until the next tick, so that the kernel asks for its
//! neighbours' addresses again.
//!
//! vfkit's convention is a first datagram of four bytes, `VFKT`, which tells where the client is.
//! It is no frame, so it is dropped. With the key `vfkit` this end sends one.

mod target;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vdens_plugin_kit::bound_socket::{
    Access, BoundSocket, Occupant, SocketFile, cannot_use, disconnect, probe, remove_stale,
};
use vdens_plugin_kit::log::{debug, warn};
use vdens_plugin_kit::user::FarUser;
use vdens_plugin_kit::{
    AlwaysReady, DatagramLink, Error, ErrorKind, FarEnd, Link, MAX_LEGACY_FRAME, MAX_LEGACY_MTU,
    OpenRequest, Peer, Result, RxBatch, State, Status, TxBatch,
};

use target::Target;

/// How often the peer's path is looked at.
const TICK: Duration = Duration::from_millis(250);

/// What a client of vfkit's convention sends first.
const VFKIT: &[u8] = b"VFKT";

/// How many datagrams without a peer are looked at in one call.
const STRANGERS: usize = 32;

/// Bytes of send buffer to ask for; the kernel gives what the system's limit allows.
const SEND_BUFFER: usize = 4 << 20;

/// The link.
struct Dgram {
    socket: DatagramLink<UnixDatagram>,
    own: BoundSocket,
    /// Where the peer is; `None` until it has said so.
    far: Option<PathBuf>,
    /// Whether the VNL says where the peer is.
    is_named: bool,
    user: FarUser,
    sends_vfkit: bool,
    /// The peer's socket, while this end is connected to it.
    peer: Option<SocketFile>,
    /// Why the last attempt to connect failed, unless there is just nothing.
    complaint: Option<Error>,
    timer: TimerFd,
    /// Readable when the socket is, and at each tick.
    ready: Epoll,
    /// To send to while there is no peer.
    always: AlwaysReady,
}

impl Dgram {
    fn open(target: Target, request: &OpenRequest<'_>) -> Result<Self> {
        let (socket, own) = bind(&target.own, target.access)?;
        let cannot = |what: &'static str| move |errno: Errno| Error::io(what, &errno.into());
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(cannot("make an epoll instance"))?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(cannot("make a timer"))?;
        for fd in [socket.as_fd(), timer.as_fd()] {
            ready
                .add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))
                .map_err(cannot("watch a descriptor"))?;
        }
        let mut link = Self {
            socket: DatagramLink::with(socket, FarEnd::legacy()),
            own,
            is_named: target.far.is_some(),
            far: target.far,
            user: FarUser::new(target.user, request.vnl, request.host),
            sends_vfkit: target.sends_vfkit,
            peer: None,
            complaint: None,
            timer,
            ready,
            always: AlwaysReady::new()?,
        };
        if link.is_named {
            link.tick_every(Some(TICK));
            link.follow();
        }
        Ok(link)
    }

    /// Has the timer tick, or stops it.
    fn tick_every(&mut self, pace: Option<Duration>) {
        // It cannot fail: the timer and the time are valid.
        let _ = match pace {
            Some(pace) => {
                let every = Expiration::Interval(TimeSpec::from_duration(pace));
                self.timer.set(every, TimerSetTimeFlags::empty())
            }
            None => self.timer.unset(),
        };
    }

    /// Connects to what is at the peer's path now.
    fn follow(&mut self) {
        let Some(far) = self.far.clone() else {
            return;
        };
        match self.join(&far) {
            Ok(file) => {
                if self.peer.is_none() {
                    debug!("{}: carrier true", self.own.path().display());
                    if self.sends_vfkit {
                        // If the peer has no room, it is not ready for frames either.
                        let _ = self.socket.socket().send(VFKIT);
                    }
                }
                self.complaint = None;
                self.peer = Some(file);
            }
            Err(error) => {
                self.lose_peer();
                if let Some(error) = error
                    && self.complaint.as_ref() != Some(&error)
                {
                    warn!("{error}");
                    self.complaint = Some(error);
                }
            }
        }
    }

    /// Connects to the socket at a path, unless it has replaced another one. The error is `None` if
    /// there is just no socket.
    fn join(&self, far: &Path) -> Result<SocketFile, Option<Error>> {
        let file = SocketFile::open(far).map_err(|errno| cannot_connect(far, errno))?;
        if self.peer.as_ref().is_some_and(|peer| peer.id != file.id) {
            return Err(None);
        }
        let what = format!("the far end at {}", far.display());
        self.user.check(what, file.owner)?;
        let connected = file.connect(self.socket.socket());
        connected.map_err(|errno| cannot_connect(far, errno))?;
        self.user.remember(file.owner);
        Ok(file)
    }

    fn lose_peer(&mut self) {
        if self.peer.take().is_some() {
            debug!("{}: carrier false", self.own.path().display());
            disconnect(self.socket.socket());
        }
        if !self.is_named {
            self.far = None;
            self.tick_every(None);
        }
    }

    /// Joins the sender of the first datagram that can be answered, and drops those before it.
    fn find_peer(&mut self, batch: &mut RxBatch<'_>) {
        let mut bytes = [0; MAX_LEGACY_FRAME + 1];
        for _ in 0..STRANGERS {
            let Ok((length, sender)) = self.socket.socket().recv_from(&mut bytes) else {
                return;
            };
            self.far = sender.as_pathname().map(Path::to_owned);
            self.follow();
            if self.peer.is_some() {
                match &bytes[..length] {
                    VFKIT => {}
                    frame if length <= MAX_LEGACY_FRAME => drop(batch.push(frame)),
                    _ => batch.count_dropped(1),
                }
                return self.tick_every(Some(TICK));
            }
            batch.count_dropped(1);
        }
    }

    /// Does what a tick calls for.
    fn tick(&mut self) -> Result<()> {
        // Clears the timer, which ticks on.
        let mut ticks = [0; 8];
        if nix::unistd::read(&self.timer, &mut ticks).is_err() {
            return Ok(());
        }
        if !self.own.is_intact() {
            let own = self.own.path().display();
            return Err(Error::closed(format!("{own} was removed")));
        }
        self.follow();
        Ok(())
    }
}

/// Binds the own path.
fn bind(path: &Path, access: Access) -> Result<(UnixDatagram, BoundSocket)> {
    let found = probe(path).map_err(|error| cannot_use("make a socket at", path, &error))?;
    match found {
        Occupant::Nothing => {}
        Occupant::Stale => remove_stale(path)?,
        Occupant::Datagram | Occupant::Connected => return Err(busy(path)),
    }
    let socket = UnixDatagram::unbound()
        .and_then(|socket| {
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .map_err(|error| Error::io("make a socket", &error))?;
    // With a smaller one the link is slower, nothing else.
    let _ = setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER);
    match BoundSocket::bind(&socket, path, access) {
        Ok(own) => Ok((socket, own)),
        Err(error) if error.errno == Errno::EADDRINUSE as i32 => Err(busy(path)),
        Err(error) => Err(error),
    }
}

fn busy(path: &Path) -> Error {
    let message = format!("another process has a socket at {}", path.display());
    Error::new(ErrorKind::Busy, message).hint("use another path: the own one comes first, OWN->FAR")
}

/// The error for a peer that is not joined; `None` if there is just none, or one that is gone, or
/// that still talks to another process.
fn cannot_connect(path: &Path, errno: Errno) -> Option<Error> {
    let error = Error::path("connect to", path, &errno.into());
    match errno {
        Errno::ENOENT | Errno::ECONNREFUSED | Errno::EPERM => None,
        Errno::EPROTOTYPE => Some(error.hint("it is no datagram socket: use another scheme")),
        Errno::EACCES => Some(error.hint("it belongs to another user, who can open it to you")),
        _ => Some(error),
    }
}

impl Link for Dgram {
    fn fd(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        match self.peer {
            Some(_) => self.socket.send_fd(),
            None => self.always.as_fd(),
        }
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let first = batch.len();
        if self.peer.is_none() && !self.is_named {
            self.find_peer(batch);
        }
        if let Err(error) = self.socket.recv(batch) {
            // ECONNRESET: the peer has disconnected, or gone.
            debug!("{}: {error}", self.own.path().display());
        }
        match batch.len() == first {
            true => self.tick(),
            false => Ok(()),
        }
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        if self.peer.is_some() {
            match self.socket.send(batch) {
                Ok(taken) => return Ok(taken),
                Err(_) => self.lose_peer(),
            }
        }
        batch.count_dropped(batch.len() as u64);
        Ok(batch.len())
    }

    fn state(&self) -> State {
        State::carrier(self.peer.is_some())
    }

    fn status(&self) -> Status {
        Status {
            peer: self.peer.as_ref().map(|peer| Peer {
                uid: Some(peer.owner),
                ..Peer::default()
            }),
            reason: self
                .complaint
                .as_ref()
                .map_or_else(String::new, Error::to_string),
            max_mtu: Some(MAX_LEGACY_MTU),
            ..Status::default()
        }
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let target = Target::parse(request.argument(), &request.options)?;
    Ok(Box::new(Dgram::open(target, request)?))
}

vdens_plugin_kit::export_plugin! {
    scheme: "dgram",
    description: "a cable to QEMU's -netdev dgram or libkrun: dgram://OWN->FAR",
    needs: "sockets:{dir}",
    open: open,
}
