//! The far end of a link: what it is, what it can take, and the best way for frames to reach it.
//!
//! # Theory of operation
//!
//! A [`FarEnd`] acts on the messages of a [`Negotiation`], and remembers what came of them. If the
//! far end is a legacy program, it gets ordinary frames, one a datagram. If it is one of ours,
//!
//! * the interface is plugged into the far end's, where both are on one panel. From then on the
//!   kernel carries the frames;
//! * otherwise it is sent super-frames, as far as its host takes them.
//!
//! A far end has one of three roles. On a **cable**, both ends plug in their own interface and
//! announce whether that worked; if either failed, neither counts as plugged. A **switch** offers
//! its client a bridge, and the client tells its place on the panel and plugs itself in. A
//! **client** of this switch does the same; the switch notes it, and can unplug the client
//! ([`FarEnd::decline`]). Frames that a plugged client and its switch still send each other are
//! dropped, so a lost message costs some work and no frame.
//!
//! Only a far end of the same user can be on the user's panel. Another user's is told no panel
//! address, and what it offers is ignored.
//!
//! A message never breaks a link: one that finds no room in the socket is sent later, and one that
//! finds no far end is lost. An interface can be plugged only once the host uses the link, so that
//! waits for [`FarEnd::update`].
//!
//! # How to use it
//!
//! A transport whose socket is connected to the far end gives it to a [`DatagramLink`], and has
//! nothing else to do. One that needs more keeps a [`FarEnd`] beside its socket, and calls
//! [`FarEnd::receive`] and [`FarEnd::send`] from the link's functions of these names, and
//! [`FarEnd::update`] from [`Link::recv`] and [`Link::other_side`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::parent_id;
use std::time::{Duration, Instant};

use log::{debug, info, warn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send, setsockopt, sockopt};
use nix::unistd::geteuid;

use crate::datagram::send_datagrams;
use crate::negotiation::{Event, Negotiation, Received};
use crate::wire::control::Mark;
use crate::wire::hello::{Body, Cable, Nonce, SUPER_PREFIX, is_message};
use crate::{
    Error, Frame, FrameAction, Host, Link, MAX_LEGACY_FRAME, MAX_LEGACY_MTU, Offloads,
    PanelAddress, Peer, Result, RxBatch, State, Status, TxBatch,
};

/// How long a far end that has introduced itself may take for its proof. There is no carrier until
/// then: the interface would be served through user space for a moment, and be plugged right after.
const PROOF: Duration = Duration::from_millis(150);

/// How long a far end that may be one of ours may take to answer.
const ANSWER: Duration = Duration::from_millis(60);

/// How long a far end of ours may take to plug in its interface: longer, on a busy machine.
const PLUGGING: Duration = Duration::from_millis(300);

/// The longest message, in bytes: a header, an envelope, and a place with its length in one byte.
const MAX_MESSAGE: usize = 400;

/// The most messages that a switch sends before its reply.
const MAX_GREETINGS: usize = 4;

/// The send buffer asked for where super-frames are sent, in bytes; the usual one holds four.
const SEND_BUFFER: usize = 4 << 20;

/// What the far end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The other end of a cable.
    Cable,
    /// The switch that this end is a client of.
    Switch,
    /// A client of this switch.
    Client,
}

/// Whether the kernel carries the frames.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plugging {
    /// No.
    No,
    /// Not yet: [`FarEnd::update`] plugs the interface in.
    Due,
    /// Yes.
    Done,
    /// No, though both ends are on one panel, for this reason.
    Failed(String),
}

/// The far end of a link.
#[derive(Debug)]
pub struct FarEnd {
    role: Role,
    host: Host,
    host_offloads: Offloads,
    is_present: bool,
    is_foreign: bool,
    /// The negotiation with it; `None` if there can be none.
    negotiation: Option<Negotiation>,
    plugging: Plugging,
    /// Whether it has announced if its interface could be plugged.
    has_announced: bool,
    /// When it introduced itself, if its proof is still to come.
    introduced: Option<Instant>,
}

impl FarEnd {
    /// The other end of a cable, which is not there yet.
    pub fn on_cable(host: Host) -> Self {
        Self::new(Role::Cable, host, None)
    }

    /// The switch that this end asks for a port, and the mark for the request's description. It is
    /// `foreign` if it is not the own user's.
    ///
    /// # Errors
    /// The kernel has no random numbers.
    pub fn switch(host: Host, is_foreign: bool) -> Result<(Self, Mark)> {
        let nonce = Nonce::new()?;
        let port = host.port();
        let address = port.panel_address;
        let panel = address.as_ref().map_or(0, |own| own.panel);
        let address = address.filter(|_| !is_foreign);
        let mark = Mark {
            panel,
            tells_place: address.is_some(),
            nonce,
            is_plug: port.interface.is_empty(),
        };
        let negotiation = Negotiation::as_client(nonce).with_panel_address(address);
        let mut switch = Self::new(Role::Switch, host, Some(negotiation));
        switch.is_present = true;
        switch.is_foreign = is_foreign;
        Ok((switch, mark))
    }

    /// A client of this switch, whose request carried `mark`: a legacy client's carries none. It
    /// may plug into the bridge at `bridge`.
    pub fn client(mark: Option<Mark>, bridge: Option<PanelAddress>) -> Self {
        let negotiation = mark.and_then(|mark| {
            let own = Nonce::new()
                .inspect_err(|error| warn!("a client is served as a legacy one: {error}"))
                .ok()?;
            Some(Negotiation::as_switch(own, bridge, mark.nonce))
        });
        let mut client = Self::new(Role::Client, Host::without_services(), negotiation);
        client.is_present = true;
        client
    }

    /// A far end that is known to be none of ours: it is sent ordinary frames, and no messages.
    pub fn legacy() -> Self {
        Self::client(None, None)
    }

    fn new(role: Role, host: Host, negotiation: Option<Negotiation>) -> Self {
        Self {
            role,
            host,
            host_offloads: Offloads::NONE,
            is_present: false,
            is_foreign: false,
            negotiation,
            plugging: Plugging::No,
            has_announced: false,
            introduced: None,
        }
    }

    /// The far end appears on `cable`. It is `foreign` if it is not known to be the own user's.
    pub fn appear(&mut self, cable: Cable, is_foreign: bool) {
        self.disappear();
        self.is_present = true;
        self.is_foreign = is_foreign;
        let port = self.host.port();
        // Where there is an interface, this process is a worker: users know its parent, vdens.
        let process = match port.interface.is_empty() {
            true => std::process::id(),
            false => parent_id(),
        };
        let address = port.panel_address.filter(|_| !is_foreign);
        self.negotiation = Nonce::new()
            .inspect_err(|error| warn!("the far end is treated as a legacy one: {error}"))
            .ok()
            .map(|own| Negotiation::on_cable(cable, own, address, process));
        self.set_host_offloads(self.host_offloads);
    }

    /// The far end is gone.
    pub fn disappear(&mut self) {
        *self = Self {
            host_offloads: self.host_offloads,
            ..Self::new(self.role, self.host, None)
        };
    }

    /// Whether the far end is there.
    pub fn is_present(&self) -> bool {
        self.is_present
    }

    /// Whether there is a negotiation with the far end. There is none with a legacy client.
    pub fn negotiates(&self) -> bool {
        self.negotiation.is_some()
    }

    /// Whether the far end has proven that it is one of ours.
    pub fn is_proven(&self) -> bool {
        self.negotiation
            .as_ref()
            .is_some_and(Negotiation::is_proven)
    }

    /// The process that a user knows a proven far end by, as it says itself.
    pub fn peer_process(&self) -> Option<u32> {
        self.negotiation
            .as_ref()
            .and_then(Negotiation::peer_process)
    }

    /// Whether the kernel carries the frames.
    pub fn is_plugged(&self) -> bool {
        self.plugging == Plugging::Done
    }

    /// Where a client of this switch is on the panel of the bridge that it was offered, if it has
    /// said so.
    pub fn place(&self) -> Option<&str> {
        let negotiation = self.negotiation.as_ref();
        let negotiation = negotiation.filter(|negotiation| negotiation.has_common_panel())?;
        let address = negotiation.peer_panel_address()?;
        Some(&address.place)
    }

    /// Makes a client of this switch unplug its interface, so that it is served here.
    pub fn decline(&mut self, socket: impl AsFd) {
        self.plugging = Plugging::No;
        if let Some(negotiation) = &mut self.negotiation {
            negotiation.announce(Body::Declined);
        }
        self.announce(socket);
    }

    /// Whether the interface may be plugged in: for [`Link::wants_panel`]. A switch has said so by
    /// the time that the link is open.
    pub fn wants_panel(&self) -> bool {
        self.role == Role::Cable || self.plugging == Plugging::Due
    }

    /// What frames sent to the far end may leave undone.
    pub fn offloads(&self) -> Offloads {
        self.negotiation
            .as_ref()
            .map_or(Offloads::NONE, Negotiation::peer_offloads)
    }

    /// How long after its appearance the far end may still change the link's state by itself;
    /// `None` if everything is agreed.
    pub fn settling_time(&self) -> Option<Duration> {
        match (self.is_proven(), self.has_common_panel()) {
            (false, _) => Some(ANSWER),
            (true, true) if !self.has_announced => Some(PLUGGING),
            (true, _) => None,
        }
    }

    fn has_common_panel(&self) -> bool {
        let own = self.host.port().panel_address;
        let peer = self
            .negotiation
            .as_ref()
            .and_then(Negotiation::peer_panel_address);
        !self.is_foreign
            && own
                .zip(peer)
                .is_some_and(|(own, peer)| own.panel == peer.panel)
    }

    /// Receives the messages that a switch has sent before its reply, and leaves all frames.
    pub fn receive_greetings(&mut self, socket: impl AsFd) {
        let fd = socket.as_fd().as_raw_fd();
        let mut bytes = [0; MAX_MESSAGE];
        for _ in 0..MAX_GREETINGS {
            let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            let length = recv(fd, &mut bytes, peek).unwrap_or(0);
            let message = &bytes[..length];
            if !is_message(message) || message.starts_with(&SUPER_PREFIX) {
                break;
            }
            self.handle(message);
            let _ = recv(fd, &mut [0; 1], MsgFlags::MSG_DONTWAIT);
        }
        self.enlarge(socket);
    }

    /// Receives what waits on `socket`, and leaves the frames for the network in `batch`. Returns
    /// how many datagrams came.
    ///
    /// # Errors
    /// What recvmmsg reports, except that nothing is waiting.
    pub fn receive(&mut self, socket: impl AsFd, batch: &mut RxBatch<'_>) -> io::Result<usize> {
        let first = batch.len();
        let received = batch.receive_datagrams(&socket, self.max_datagram())?;
        if received > 0 {
            let before = self.offloads();
            self.filter(first, batch);
            if self.offloads() != before {
                self.enlarge(socket);
            }
        }
        Ok(received)
    }

    /// Takes the messages out of the frames from number `first` on, and unwraps super-frames.
    pub fn filter(&mut self, first: usize, batch: &mut RxBatch<'_>) {
        batch.filter(first, |frame| self.handle(frame.bytes()));
    }

    /// The longest datagram to expect, in bytes.
    pub fn max_datagram(&self) -> usize {
        self.negotiation
            .as_ref()
            .map_or(MAX_LEGACY_FRAME, Negotiation::max_datagram)
    }

    /// Handles the bytes of a received frame.
    fn handle(&mut self, bytes: &[u8]) -> FrameAction {
        // A switch may unplug its client.
        let is_idle = self.role != Role::Cable && self.is_plugged();
        if is_idle && !(self.role == Role::Switch && is_message(bytes)) {
            return FrameAction::Consume;
        }
        let Some(negotiation) = &mut self.negotiation else {
            return FrameAction::Keep;
        };
        let received = negotiation.receive(bytes);
        let offers_bridge = negotiation.panel_address().is_some();
        self.introduced = match self.role == Role::Cable && negotiation.is_introduced() {
            true => self.introduced.or_else(|| Some(Instant::now())),
            false => None,
        };
        if let Received::Message(Some(event)) = received {
            match (event, self.role) {
                (Event::Proven, _) if self.has_common_panel() => self.plugging = Plugging::Due,
                (Event::Restarted, _) => {
                    self.plugging = Plugging::No;
                    self.has_announced = false;
                }
                // Only a client that was offered the bridge can be plugged into it.
                (Event::Plugged, Role::Client) if offers_bridge => self.plugging = Plugging::Done,
                (Event::Declined, Role::Switch) if self.plugging == Plugging::Done => {
                    self.plugging = Plugging::Failed("the switch serves it in user space".into());
                }
                (Event::Plugged, Role::Cable) => self.has_announced = true,
                (Event::Declined, Role::Cable) => {
                    self.has_announced = true;
                    self.plugging = Plugging::Failed("the peer cannot be plugged in".into());
                }
                _ => {}
            }
        }
        received.action()
    }

    /// Sends the frames of `batch`, as the far end takes them, with one system call if possible.
    /// Drops and counts those that are too long. Returns how many frames were taken.
    ///
    /// # Errors
    /// What sendmmsg reports of the first frame, except that the queue is full.
    pub fn send(&self, socket: impl AsFd, batch: &mut TxBatch<'_>) -> io::Result<usize> {
        let mut taken = 0;
        while taken < batch.len() {
            let mut offered = 0;
            let frames = batch.frames().skip(taken);
            let datagrams = frames.map_while(|frame| self.datagram(frame));
            let sent = send_datagrams(&socket, datagrams.inspect(|_| offered += 1));
            match sent {
                Ok(sent) if offered > 0 => {
                    taken += sent;
                    if sent < offered {
                        break;
                    }
                }
                Err(error) if error.raw_os_error() != Some(libc::EMSGSIZE) => match taken {
                    0 => return Err(error),
                    // The next call reports it.
                    _ => break,
                },
                _ => {
                    batch.count_dropped(1);
                    taken += 1;
                }
            }
        }
        Ok(taken)
    }

    /// A frame as the far end takes it, in two parts; `None` if it is too long.
    pub fn datagram<'a>(&self, frame: Frame<'a>) -> Option<[&'a [u8]; 2]> {
        let is_long = frame.bytes().len() > MAX_LEGACY_FRAME;
        if !self.is_proven() {
            return (!is_long).then_some([&[], frame.bytes()]);
        }
        // A switch forwards super-frames, but no longer frames than its legacy clients take.
        let takes_long = self.role == Role::Cable && self.offloads() != Offloads::NONE;
        let is_super = frame.header().gso_type != 0;
        (!is_long || is_super || takes_long).then(|| frame.wrapped(&SUPER_PREFIX))
    }

    /// Does what has become possible, and sends the messages that are due. To be called when the
    /// link is used: from [`Link::recv`] and [`Link::other_side`].
    pub fn update(&mut self, socket: impl AsFd) {
        self.plug();
        self.announce(socket);
    }

    /// Plugs the interface in, if that is due.
    fn plug(&mut self) {
        let Some(negotiation) = self
            .negotiation
            .as_mut()
            .filter(|_| self.plugging == Plugging::Due)
        else {
            return;
        };
        let peer = negotiation.peer_panel_address();
        let plugged = match (self.role, peer) {
            (_, None) => return,
            (Role::Cable, Some(peer)) => self.host.plug(&peer.place),
            (_, Some(bridge)) => self.host.attach(bridge),
        };
        match plugged {
            Ok(()) => {
                let port = self.host.port();
                let name = match &*port.interface {
                    "" => "the plug",
                    interface => interface,
                };
                info!("{name}: the kernel carries the frames");
                self.plugging = Plugging::Done;
                negotiation.announce(Body::Plugged);
            }
            Err(error) => {
                debug!("not plugged: {error}");
                self.plugging = Plugging::Failed(error.to_string());
                negotiation.announce(Body::Declined);
            }
        }
    }

    /// Sets what the host takes. The far end is told with the next message.
    pub fn set_host_offloads(&mut self, offloads: Offloads) {
        self.host_offloads = offloads;
        if let Some(negotiation) = &mut self.negotiation {
            negotiation.set_host_offloads(offloads);
        }
    }

    /// Sends the messages that are due, as far as there is room.
    pub fn announce(&mut self, socket: impl AsFd) {
        let Some(negotiation) = &mut self.negotiation else {
            return;
        };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while let Some(message) = negotiation.next_message() {
            if let Err(errno) = send(socket.as_fd().as_raw_fd(), &message, flags) {
                debug!("a message to the far end has to wait: {errno}");
                return;
            }
            negotiation.message_sent();
        }
    }

    /// Makes room for super-frames, if they can be sent.
    fn enlarge(&self, socket: impl AsFd) {
        if self.offloads() != Offloads::NONE {
            // With a smaller buffer the link is slower, nothing else.
            let _ = setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER);
        }
    }

    /// The link's state.
    pub fn state(&self) -> State {
        let waits_for_proof = self.introduced.is_some_and(|at| at.elapsed() < PROOF);
        match self.is_present && !waits_for_proof {
            false => State::DOWN,
            true if self.is_plugged() => State::PLUGGED,
            true => State::UP.with_offloads(self.offloads()),
        }
    }

    /// What a user may want to know of the far end. `credentials` is what the kernel tells of it.
    pub fn status(&self, credentials: Peer) -> Status {
        let negotiation = self.negotiation.as_ref();
        let own = self.host.port().panel_address;
        let peer = negotiation.and_then(Negotiation::peer_panel_address);
        let is_switch = self.role != Role::Cable;
        let reason = match (&self.plugging, own, peer) {
            (Plugging::Done, ..) => "",
            _ if !self.is_proven() && is_switch => "the switch is a legacy one",
            _ if !self.is_proven() => "the peer is a legacy one",
            (Plugging::Failed(why), ..) => why,
            _ if is_switch => "this end and the switch have no panel in common",
            _ if self.is_foreign => "the peer belongs to another user",
            (_, None, _) => "this end is not on the panel",
            (_, _, None) => "the peer is not on the panel",
            _ if !self.has_common_panel() => "the peer is on another panel",
            _ => "",
        };
        let description = match (self.is_proven(), is_switch) {
            (true, _) => "vdens",
            (false, true) => "a legacy switch",
            (false, false) => "a legacy program",
        };
        let is_limited = is_switch || self.offloads() == Offloads::NONE;
        Status {
            peer: Some(Peer {
                description: description.into(),
                pid: credentials.pid.or_else(|| self.peer_process()),
                ..credentials
            }),
            reason: reason.into(),
            max_mtu: is_limited.then_some(MAX_LEGACY_MTU),
            ..Status::default()
        }
    }
}

/// A link over a socket that is connected to the far end and keeps datagrams apart. It gets the
/// panel and super-frames where the far end is such a link, too; any other is sent ordinary frames.
/// The socket's datagrams must be as long as super-frames: a UDP socket's cannot.
#[derive(Debug)]
pub struct DatagramLink<S> {
    socket: S,
    far_end: FarEnd,
}

impl<S: AsFd + Send> DatagramLink<S> {
    /// A cable over `socket`, which is non-blocking. Both ends give the same `cable`; the far end's
    /// user is `user`, if that is known.
    pub fn new(socket: S, cable: Cable, user: Option<u32>, host: Host) -> Self {
        let mut far_end = FarEnd::on_cable(host);
        far_end.appear(cable, user != Some(geteuid().as_raw()));
        far_end.announce(&socket);
        Self::with(socket, far_end)
    }

    /// A link to `far_end`, which is present.
    pub fn with(socket: S, far_end: FarEnd) -> Self {
        Self { socket, far_end }
    }

    /// The socket.
    pub fn socket(&self) -> &S {
        &self.socket
    }

    /// The far end.
    pub fn far_end(&self) -> &FarEnd {
        &self.far_end
    }

    /// Whether the far end has closed a socket that tells, as SOCK_SEQPACKET does.
    fn is_hung_up(&self) -> bool {
        // poll(2) reports POLLHUP unasked.
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        let is_hang_up = |state: PollFlags| state.contains(PollFlags::POLLHUP);
        poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_some_and(is_hang_up)
    }
}

impl<S: AsFd + Send> Link for DatagramLink<S> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let first = batch.len();
        self.far_end
            .receive(&self.socket, batch)
            .map_err(|error| Error::io("receive", &error))?;
        if batch.len() == first && self.is_hung_up() {
            return Err(Error::closed("the far end is gone"));
        }
        self.far_end.update(&self.socket);
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        self.far_end
            .send(&self.socket, batch)
            .map_err(|error| Error::io("send", &error))
    }

    fn other_side(&mut self, state: State) {
        self.far_end.set_host_offloads(state.offloads);
        self.far_end.update(&self.socket);
    }

    fn state(&self) -> State {
        self.far_end.state()
    }

    fn status(&self) -> Status {
        self.far_end.status(Peer::default())
    }

    fn wants_panel(&self) -> bool {
        self.far_end.wants_panel()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Bridge, ErrorKind, HostPort, HostServices, VnetHeader};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::os::fd::OwnedFd;

    type End = DatagramLink<OwnedFd>;

    const TAKES_ALL: State = State::UP.with_offloads(Offloads::ALL);

    /// TCP over IPv4, to be cut.
    const TSO: VnetHeader = VnetHeader {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
    };

    fn sockets() -> (OwnedFd, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
    }

    fn link(socket: OwnedFd) -> End {
        let own = geteuid().as_raw();
        let host = Host::without_services();
        DatagramLink::new(socket, Cable::default(), Some(own), host)
    }

    /// The lengths of the frames that a link has received.
    fn receive(link: &mut End) -> Result<Vec<usize>> {
        let mut batch = Batch::new();
        link.recv(&mut batch.rx())?;
        let frames = batch.tx(0);
        Ok(frames.frames().map(|frame| frame.bytes().len()).collect())
    }

    fn send_all(link: &mut End, frames: &[(VnetHeader, usize)]) -> (usize, u64) {
        let mut batch = Batch::new();
        for (header, len) in frames {
            assert!(batch.rx().push_offloaded(*header, &vec![1; *len]));
        }
        let sent = link.send(&mut batch.tx(0)).unwrap();
        (sent, batch.take_dropped())
    }

    fn negotiate(a: &mut End, b: &mut End) {
        for _ in 0..4 {
            assert!(receive(a).unwrap().is_empty() && receive(b).unwrap().is_empty());
        }
        assert!(a.far_end().is_proven() && b.far_end().is_proven());
    }

    #[test]
    fn two_links_of_ours_send_super_frames() {
        let (a, b) = sockets();
        let (mut a, mut b) = (link(a), link(b));
        let plain = VnetHeader::default();
        assert_eq!(send_all(&mut a, &[(plain, 60), (plain, 9235)]), (2, 1));
        assert_eq!(receive(&mut b).unwrap(), [60]);
        negotiate(&mut a, &mut b);
        assert_eq!(a.state(), State::UP);
        assert_eq!(a.status().max_mtu, Some(MAX_LEGACY_MTU));
        b.other_side(TAKES_ALL);
        negotiate(&mut a, &mut b);
        assert_eq!((a.state(), b.state()), (TAKES_ALL, State::UP));
        let frames = [(TSO, 60_000), (plain, 60), (plain, 20_000)];
        assert_eq!(send_all(&mut a, &frames), (3, 0));
        assert_eq!(receive(&mut b).unwrap(), [60_000, 60, 20_000]);
        assert_eq!(a.status().reason, "this end is not on the panel");
        drop(b);
        assert_eq!(receive(&mut a).unwrap_err().kind, ErrorKind::Closed);
    }

    #[test]
    fn a_legacy_program_is_sent_frames_alone() {
        let (a, b) = sockets();
        let mut a = link(a);
        a.other_side(TAKES_ALL);
        assert_eq!(send_all(&mut a, &[(VnetHeader::default(), 60)]), (1, 0));
        let mut batch = Batch::new();
        batch.rx().receive_datagrams(&b, 1000).unwrap();
        let lengths = batch.tx(0);
        let lengths: Vec<_> = lengths.frames().map(|frame| frame.bytes().len()).collect();
        assert_eq!(lengths.len(), 2, "a hello and the frame: {lengths:?}");
        assert!(receive(&mut a).unwrap().is_empty());
        assert_eq!(a.state(), State::UP);
        assert_eq!(a.status().reason, "the peer is a legacy one");
    }

    /// A host on panel 7 whose interface can be plugged into anything.
    struct OnPanel;

    impl HostServices for OnPanel {
        fn open(&'static self, vnl: &str) -> Result<Box<dyn Link>> {
            Err(Error::usage(vnl))
        }
        fn port(&self) -> HostPort {
            HostPort {
                panel_address: address("port"),
                ..HostPort::default()
            }
        }
        fn plug(&self, _peer: &str) -> Result<()> {
            Ok(())
        }
        fn attach(&self, _bridge: &PanelAddress) -> Result<()> {
            Ok(())
        }
        fn bridge(&self, _expiry: Duration) -> Result<Bridge> {
            Err(Error::usage("no bridge"))
        }
        fn store_fd(&self, _fd: Option<BorrowedFd<'_>>) -> Result<()> {
            Ok(())
        }
        fn take_fd(&self) -> Option<OwnedFd> {
            None
        }
    }

    fn address(place: &str) -> Option<PanelAddress> {
        Some(PanelAddress {
            panel: 7,
            place: place.into(),
        })
    }

    #[test]
    fn a_switch_learns_its_client_s_place_and_can_unplug_it() {
        let (ours, theirs) = sockets();
        let host = Host::new(&OnPanel);
        for is_foreign in [true, false] {
            let (mut switch, mark) = FarEnd::switch(host, is_foreign).unwrap();
            assert_eq!(mark.tells_place, !is_foreign);
            let mut client = FarEnd::client(Some(mark), address("bridge"));
            client.announce(&ours);
            switch.receive_greetings(&theirs);
            assert_eq!(switch.wants_panel(), !is_foreign);
            switch.update(&theirs);
            assert_eq!(switch.is_plugged(), !is_foreign);
            let mut batch = Batch::new();
            let _ = client.receive(&ours, &mut batch.rx());
            let place = (!is_foreign).then_some("port");
            assert_eq!((client.place(), client.is_plugged()), (place, !is_foreign));
            client.decline(&ours);
            let _ = switch.receive(&theirs, &mut batch.rx());
            assert!(!client.is_plugged() && !switch.is_plugged());
            assert_eq!(switch.state(), State::UP);
        }
    }

    #[test]
    fn a_client_that_was_offered_no_bridge_is_not_plugged() {
        for (bridge, is_plugged) in [(None, false), (address("bridge"), true)] {
            let (ours, theirs) = sockets();
            let own = Nonce::new().unwrap();
            let mark = Mark {
                panel: 7,
                tells_place: false,
                nonce: own,
                is_plug: false,
            };
            let mut client = FarEnd::client(Some(mark), bridge);
            client.announce(&ours);
            let mut negotiation = Negotiation::as_client(own);
            let mut bytes = [0; MAX_MESSAGE];
            let fd = theirs.as_raw_fd();
            while let Ok(len) = recv(fd, &mut bytes, MsgFlags::MSG_DONTWAIT) {
                negotiation.receive(&bytes[..len]);
            }
            negotiation.announce(Body::Plugged);
            let message = negotiation.next_message().unwrap();
            send(fd, &message, MsgFlags::empty()).unwrap();
            let mut batch = Batch::new();
            client.receive(&ours, &mut batch.rx()).unwrap();
            assert_eq!(client.is_plugged(), is_plugged);
            send(fd, &[1; 60], MsgFlags::empty()).unwrap();
            client.receive(&ours, &mut batch.rx()).unwrap();
            assert_eq!(
                batch.is_empty(),
                is_plugged,
                "a plugged client's are dropped"
            );
        }
    }
}
