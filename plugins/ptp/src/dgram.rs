//! The dgram generation: two datagram sockets, one at `PATH`, one at `PATH+`.
//!
//! # Theory of operation
//!
//! Each end is bound to one path and connected to the other. Poll can see a full queue only of a
//! connected socket. Between two ends that are connected to each other, the send buffer is the only
//! limit. The queue of one that is not has room for the ten datagrams of
//! `net.unix.max_dgram_qlen`.
//!
//! There is no handshake and no hang-up, so each tick connects again. This one system call follows
//! the peer. If the same socket is there, nothing changes; a new one replaces the old; an error
//! says that none is there. EPERM means that the peer's socket is connected to another one, mostly
//! to that of this end's predecessor. An end of ours disconnects at its next tick, a legacy one
//! when it sends next. Nothing can reach it until then, so there is no carrier.
//!
//! Without a peer the socket is disconnected. A connected one refuses all others, and a legacy end
//! that finds it so does not start. This must be quick if the peer is run twice in a row. So
//! inotify watches call for a tick when the peer's socket or this end's is unlinked or moved. A
//! killed peer unlinks nothing; its process's end, or the timer's tick, finds it gone.
//!
//! The session stores the socket ([`vdens_plugin_kit::Host::store_fd`]). A worker that replaces a
//! dead one goes on with it, and a legacy end that is connected to it is served on.
//!
//! An end gives up ([`End::tick`]) if its own path is gone or leads to another socket, or if the
//! peer's path leads to a socket of the other generation.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use vdens_plugin_kit::bound_socket::{
    Access, BoundSocket, Occupant, SocketFile, disconnect, remove_stale,
};
use vdens_plugin_kit::log::{debug, warn};
use vdens_plugin_kit::{Peer as Credentials, Result, RxBatch};

use crate::sockets::{self, admits};
use crate::{DATA, End, Place, TICKS, watch};

#[derive(Debug)]
pub(crate) struct Dgram {
    /// Which users' sockets this end joins.
    access: Access,
    own: BoundSocket,
    socket: OwnedFd,
    peer: PathBuf,
    /// Readable when the peer's socket or this end's is unlinked or moved; `None` if the system's
    /// limit is reached.
    departures: Option<Inotify>,
    carrier: bool,
    /// More frames may be waiting than fitted into the last batch.
    behind: bool,
    /// Why the last attempt to connect failed.
    last: Option<Errno>,
    /// The peer's socket file.
    peer_file: Option<SocketFile>,
}

impl Dgram {
    /// Binds `PATH`; `None` if another process was faster.
    pub(crate) fn first(place: &Place, epoll: &Epoll) -> Result<Option<Self>> {
        let end = sockets::bind(SockType::Datagram, &place.path, place.access)?;
        end.map(|(own, socket)| Self::new(place, own, socket, place.plus.clone(), epoll))
            .transpose()
    }

    /// Binds `PATH+`; `None` if another process was faster.
    pub(crate) fn second(place: &Place, epoll: &Epoll) -> Result<Option<Self>> {
        match sockets::probe(&place.plus)? {
            Occupant::Datagram | Occupant::Connected => return Err(sockets::busy(&place.path)),
            Occupant::Stale => remove_stale(&place.plus)?,
            Occupant::Nothing => {}
        }
        let end = sockets::bind(SockType::Datagram, &place.plus, place.access)?;
        end.map(|(own, socket)| Self::new(place, own, socket, place.path.clone(), epoll))
            .transpose()
    }

    /// Takes over a socket that this process's predecessor bound to either path; `None` if it is
    /// another socket. A peer that is connected to it stays connected.
    pub(crate) fn resume(place: &Place, socket: OwnedFd, epoll: &Epoll) -> Result<Option<Self>> {
        if getsockopt(&socket, sockopt::SockType) != Ok(SockType::Datagram) {
            return Ok(None);
        }
        let paths = [(&place.path, &place.plus), (&place.plus, &place.path)];
        let adopted = |(path, peer): (&PathBuf, &PathBuf)| {
            Some((BoundSocket::adopt(&socket, path)?, peer.clone()))
        };
        match paths.into_iter().find_map(adopted) {
            Some((own, peer)) => Self::new(place, own, socket, peer, epoll).map(Some),
            None => Ok(None),
        }
    }

    fn new(
        place: &Place,
        own: BoundSocket,
        socket: OwnedFd,
        peer: PathBuf,
        epoll: &Epoll,
    ) -> Result<Self> {
        watch(epoll, &socket, DATA)?;
        let departures = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        if let Some(departures) = &departures {
            watch(epoll, departures, TICKS)?;
        }
        let mut end = Self {
            access: place.access,
            own,
            socket,
            peer,
            departures,
            carrier: false,
            behind: false,
            last: None,
            peer_file: None,
        };
        end.follow_peer();
        Ok(end)
    }

    /// Has the departure of either socket from its path call for a tick.
    fn watch_paths(&mut self) {
        let flags = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MOVE_SELF;
        let paths = [self.own.path(), &self.peer];
        let is_watched = |departures: &Inotify| {
            let mut watches = paths.iter().map(|path| departures.add_watch(*path, flags));
            watches.all(|watch| watch.is_ok())
        };
        self.departures = self.departures.take().filter(is_watched);
    }

    fn follow_peer(&mut self) {
        let file = SocketFile::open(&self.peer);
        let id = |file: &SocketFile| file.id;
        let known = self.peer_file.as_ref().map(id);
        let replaced = self.carrier && file.as_ref().ok().map(id) != known;
        // A peer that was replaced counts as gone until the next tick.
        let result = match &file {
            Ok(_) if replaced => Err(Errno::ENOENT),
            Ok(file) if !admits(self.access, file.owner) => Err(Errno::EACCES),
            Ok(file) => file.connect(&self.socket),
            Err(errno) => Err(*errno),
        };
        if result.is_ok() && !self.carrier {
            self.watch_paths();
        }
        if result.is_err() && self.carrier {
            disconnect(&self.socket);
        }
        if self.carrier != result.is_ok() {
            debug!("{}: carrier {}", self.own.path().display(), result.is_ok());
        }
        self.carrier = result.is_ok();
        let last = result.err();
        if let Some(errno) = last
            && last != self.last
            && !matches!(
                errno,
                Errno::ENOENT | Errno::ECONNREFUSED | Errno::EPERM | Errno::EPROTOTYPE
            )
        {
            let owner = file.as_ref().ok().map(|file| file.owner);
            let stranger = owner.filter(|owner| !admits(self.access, *owner));
            let error = match stranger {
                Some(owner) => sockets::not_admitted(&self.peer, owner),
                None => sockets::cannot_connect(&self.peer, errno),
            };
            warn!("{error}");
        }
        self.last = last;
        self.peer_file = file.ok();
    }
}

impl End for Dgram {
    fn peer(&self) -> Option<BorrowedFd<'_>> {
        self.carrier.then(|| self.socket.as_fd())
    }

    fn has_events(&self) -> bool {
        self.departures.is_some()
    }

    fn needs_no_events(&self) -> bool {
        true
    }

    fn persistent_socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    /// The kernel does not know a datagram socket's process.
    fn credentials(&self) -> Credentials {
        Credentials {
            uid: self.peer_file.as_ref().map(|file| file.owner),
            ..Credentials::default()
        }
    }

    fn peer_lost(&mut self) {
        disconnect(&self.socket);
        self.carrier = false;
    }

    fn receive(&mut self, _events: EpollFlags, max_frame: usize, batch: &mut RxBatch<'_>) {
        let came = batch
            .receive_datagrams(&self.socket, max_frame)
            .unwrap_or_else(|error| {
                // ECONNRESET: the peer has disconnected. The next tick handles that.
                debug!("{}: receive: {error}", self.own.path().display());
                0
            });
        self.behind = !batch.has_room(max_frame);
        if came > 0 && !self.carrier && !self.behind {
            // A peer is there, and may want an answer before the next tick.
            self.follow_peer();
        }
    }

    fn tick(&mut self, _epoll: &Epoll) -> bool {
        if let Some(departures) = &self.departures {
            // Which event it was does not matter.
            let _ = departures.read_events();
        }
        // When the socket is connected to another peer, the kernel drops what the last one sent.
        if !std::mem::take(&mut self.behind) {
            self.follow_peer();
        }
        self.last != Some(Errno::EPROTOTYPE) && self.own.is_intact()
    }
}
