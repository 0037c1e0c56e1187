//! The events that drive the switch, and the link that the host sees.
//!
//! One call of [`Link::recv`] serves the descriptors that are ready, each for one batch. It ends as
//! soon as there is a frame for the host. The host's batch always has room for all frames that one
//! port can have received, so the switch needs no queue for the local port. Descriptors that were
//! reported and not served come first at the next call, so no port can keep another waiting. Events
//! are only hints: one that comes too late, or for the successor of a port, does nothing.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vdens_plugin_kit::control::ControlSocket;
use vdens_plugin_kit::fdb::Fdb;
use vdens_plugin_kit::wire::control::{Mark, Reply, Request};
use vdens_plugin_kit::{
    Batch, Error, FarEnd, Host, Link, Offloads, PanelAddress, Result, RxBatch, State, Status,
    TxBatch, log,
};

use vdens_switch_control::{Mac, SCHEME};

use crate::config::Config;
use crate::control::{self, Applicant, Applicants, Peer, Refusal};
use crate::directory::Directory;
use crate::doors::Doors;
use crate::events::Events;
use crate::forwarding::Fabric;
use crate::manage::memory_of;
use crate::memory::Memory;
use crate::port::{BridgeKey, ClientKind, LOCAL, Offer, Port, PortId};
use crate::settings::{PortSettings, Settings};
use crate::status;
use crate::storm::CALM;
use crate::tree::Tree;

/// The most stations that are known.
pub(crate) const CAPACITY: usize = 131_072;

/// How many events are taken from epoll at a time.
const EVENTS: usize = 64;
/// How many clients are accepted at a time.
const ACCEPTS: usize = 16;
/// How long no client is accepted after the descriptors have run out.
const OVERLOAD_PAUSE: Duration = Duration::from_secs(1);

/// The state of the switch, seen from its ports: it takes all offloads, and does itself what other
/// ports do not take.
pub(crate) const TAKES_ALL: State = State::UP.with_offloads(Offloads::ALL);

/// What a descriptor in the epoll instance is for: its data there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Timer,
    /// The socket through which clients choose a VLAN, or none with 0.
    Listener(u16),
    Applicant(u32),
    Control(PortId),
    Data(PortId),
    /// A bridge on the panel.
    Bridge(BridgeKey),
    Requests,
}

impl Source {
    pub(crate) fn event(self, flags: EpollFlags) -> EpollEvent {
        let (kind, index) = match self {
            Self::Timer => (0, 0),
            Self::Listener(vlan) => (1, u32::from(vlan)),
            Self::Applicant(slot) => (2, slot),
            Self::Control(id) => (3, id.0),
            Self::Data(id) => (4, id.0),
            Self::Bridge(key) => (5, key.number()),
            Self::Requests => (6, 0),
        };
        EpollEvent::new(flags, kind << 32 | u64::from(index))
    }

    fn of(event: EpollEvent) -> Self {
        let index = event.data() as u32;
        match event.data() >> 32 {
            0 => Self::Timer,
            1 => Self::Listener(index as u16),
            2 => Self::Applicant(index),
            3 => Self::Control(PortId(index)),
            4 => Self::Data(PortId(index)),
            5 => BridgeKey::of_number(index).map_or(Self::Requests, Self::Bridge),
            _ => Self::Requests,
        }
    }
}

/// The one timer, armed for the earliest deadline.
#[derive(Debug)]
struct Timer {
    fd: TimerFd,
    armed: Option<Instant>,
}

impl Timer {
    fn new() -> nix::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self {
            fd: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            armed: None,
        })
    }

    fn arm(&mut self, deadline: Option<Instant>) -> nix::Result<()> {
        if self.armed == deadline {
            return Ok(());
        }
        self.armed = deadline;
        let Some(deadline) = deadline else {
            return self.fd.unset();
        };
        // Zero would disarm it.
        let left = deadline.saturating_duration_since(Instant::now());
        let left = TimeSpec::from_duration(left.max(Duration::from_millis(1)));
        self.fd
            .set(Expiration::OneShot(left), TimerSetTimeFlags::empty())
    }

    /// To be called when the descriptor is readable. It can then be armed again.
    fn acknowledge(&mut self) {
        // It must be read; how often it has expired does not matter.
        let _ = nix::unistd::read(&self.fd, &mut [0; 8]);
        self.armed = None;
    }
}

/// Warnings about clients, at most a few a second: a hostile one must not fill the log.
#[derive(Debug)]
struct ClientWarnings {
    window: Instant,
    count: u32,
}

impl ClientWarnings {
    const A_SECOND: u32 = 5;

    fn warn(&mut self, now: Instant, warning: fmt::Arguments<'_>) {
        if now.saturating_duration_since(self.window) >= Duration::from_secs(1) {
            if let Some(hidden @ 1..) = self.count.checked_sub(Self::A_SECOND) {
                log::warn!("{hidden} more clients were refused");
            }
            (self.window, self.count) = (now, 0);
        }
        self.count += 1;
        if self.count <= Self::A_SECOND {
            log::warn!("{warning}");
        }
    }
}

/// The switch.
#[derive(Debug)]
pub(crate) struct Switch {
    // Dropped before the ports: a client that loses its port must not find the switch again, and
    // make a socket in the directory that is about to be removed.
    pub(crate) doors: Doors,
    pub(crate) host: Host,
    /// The socket for requests, unless it could not be made.
    pub(crate) requests: Option<ControlSocket>,
    pub(crate) events: Events,
    pub(crate) started: Instant,
    /// The switch's own address.
    pub(crate) mac: Mac,
    /// Whether the host uses the link: only then can its interface be plugged.
    pub(crate) is_used: bool,
    /// Whether the other end of the host's link has carrier.
    pub(crate) has_host_carrier: bool,
    /// Whether the host's port is to be on the panel.
    pub(crate) wants_plug: bool,
    pub(crate) epoll: Epoll,
    ready: VecDeque<EpollEvent>,
    timer: Timer,
    pub(crate) fabric: Fabric,
    /// When the storm is over that there is, unless more comes.
    pub(crate) storm: Option<Instant>,
    /// Until when none comes to the panel, after a BPDU from there.
    pub(crate) guarded: Option<Instant>,
    /// How many ports each other user may have.
    user_ports: usize,
    pub(crate) ingress: Batch,
    applicants: Applicants,
    /// A descriptor to give up when there are no others, so that a client can be turned away.
    spare: Option<File>,
    /// Until when no client is accepted, after the descriptors have run out.
    paused: Option<Instant>,
    warnings: ClientWarnings,
    pub(crate) directory: Arc<Directory>,
}

impl Switch {
    pub(crate) fn open(config: &Config, host: Host) -> Result<Self> {
        let directory = Directory::open(config)?;
        let settings = Settings::of(config)?;
        let (epoll, timer) =
            set_up_epoll().map_err(|errno| Error::io("set up epoll", &errno.into()))?;
        let doors = Doors::open(&directory, &epoll, &settings)?;
        let requests = listen_for_requests(&epoll);
        log::info!("{} running in {}", config.kind, directory.path().display());
        let now = Instant::now();
        let mut switch = Self {
            host,
            requests,
            events: Events::default(),
            started: now,
            mac: config.mac.unwrap_or_else(own_address),
            is_used: false,
            has_host_carrier: true,
            wants_plug: false,
            storm: None,
            guarded: None,
            epoll,
            ready: VecDeque::with_capacity(EVENTS),
            timer,
            fabric: Fabric::new(
                settings,
                Fdb::new(CAPACITY, memory_of(config.kind, config.expiry)),
                Memory::new(config.memory),
            ),
            user_ports: config.user_ports,
            ingress: Batch::new(),
            applicants: Applicants::default(),
            doors,
            spare: File::open("/dev/null").ok(),
            paused: None,
            warnings: ClientWarnings {
                window: now,
                count: 0,
            },
            directory,
        };
        if switch.fabric.settings.has_stp {
            switch.start_tree(now);
            switch.follow_tree();
        }
        Ok(switch)
    }

    /// Asks epoll for events, unless some of the last ones are left.
    fn poll(&mut self) -> Result<()> {
        if !self.ready.is_empty() {
            return Ok(());
        }
        let mut events = [EpollEvent::empty(); EVENTS];
        match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => self.ready.extend(&events[..count]),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::io("wait for events", &errno.into())),
        }
        Ok(())
    }

    fn handle(&mut self, event: EpollEvent, host: &mut RxBatch<'_>, now: Instant) {
        match Source::of(event) {
            Source::Data(id) => self.serve(id, event.events(), host, now),
            Source::Control(id) => {
                if let Some(port) = self.fabric.ports.get_mut(id) {
                    port.read_control();
                }
            }
            Source::Applicant(slot) => self.read_request(slot, now),
            Source::Listener(vlan) => self.accept(vlan, now),
            Source::Timer => self.tick(now),
            Source::Bridge(key) => self.serve_bridge(key, host, now),
            Source::Requests => self.serve_requests(now),
        }
        self.follow_tree();
    }

    /// Serves a port's data socket.
    fn serve(&mut self, id: PortId, events: EpollFlags, host: &mut RxBatch<'_>, now: Instant) {
        let Some(port) = self.fabric.ports.get_mut(id) else {
            return;
        };
        if events.contains(EpollFlags::EPOLLOUT) {
            port.flush(&mut self.fabric.memory);
            watch_for_room(&self.epoll, id, port);
        }
        if events == EpollFlags::EPOLLOUT {
            return;
        }
        self.ingress.clear();
        let was_plugged = port.far_end.is_plugged();
        match port.far_end.receive(&port.data, &mut self.ingress.rx()) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) => return port.close(format!("its data socket fails: {e}")),
        }
        if port.far_end.is_plugged() {
            // The client sends through the bridge now. Only frames sent before can come here.
            self.ingress.clear();
            if !was_plugged {
                let Port { number, client, .. } = port;
                log::debug!("port {number}: the kernel carries the frames of {client}");
                self.fabric.fdb.forget(id);
                if let Offer::Bridge(key) = port.offer {
                    self.came_to_bridge(id, key);
                }
            }
        }
        let Some(port) = self.fabric.ports.get_mut(id) else {
            return;
        };
        port.has_sent = true;
        port.counters.refused.malformed += self.ingress.take_dropped();
        let frames = self.ingress.tx(0);
        let lengths = frames.frames().map(|frame| frame.bytes().len());
        port.counters.traffic.count_in(lengths);
        let refused = self.fabric.forward(id, &frames, Some(host), now);
        let Some(port) = self.fabric.ports.get_mut(id) else {
            return;
        };
        port.counters.refused.add(refused);
        if refused.storm > 0 {
            let port = format!("port {}, {},", port.number, port.client);
            self.note_storm(&port, now);
        }
    }

    /// Something floods more than it may.
    pub(crate) fn note_storm(&mut self, who: &str, now: Instant) {
        if self.storm.is_none() {
            log::warn!(
                "{who} floods more frames than it may, and the rest is dropped; do cables make a \
                 loop?"
            );
        }
        self.storm = Some(now + CALM);
    }

    /// The storm is over: who was kept off the panel may come again.
    pub(crate) fn calm_down(&mut self) {
        self.storm = None;
        log::info!("the storm is over");
        self.rearrange();
    }

    /// Reads a client's request, and gives the client a port if the request is complete.
    fn read_request(&mut self, slot: u32, now: Instant) {
        let Some(applicant) = self.applicants.get_mut(slot) else {
            return;
        };
        let peer = applicant.peer;
        let outcome = match applicant.read() {
            Ok(None) => return,
            Ok(Some(request)) => match self.applicants.take(slot) {
                Some(applicant) => self.admit(*applicant, &request),
                None => return,
            },
            Err(refusal) => {
                self.applicants.take(slot);
                Err(refusal)
            }
        };
        if let Err(refusal) = outcome {
            self.refuse(peer, &refusal, now);
        }
    }

    fn admit(&mut self, applicant: Applicant, request: &Request) -> Result<(), Refusal> {
        self.admit_user(applicant.peer)?;
        let chosen = applicant.vlan;
        let is_open = |port: &PortSettings| chosen.is_none() || port.has_no_vlan();
        let number = match request.port {
            0 => self
                .free_number(|_, port| {
                    port.allocatable && admits(port, applicant.peer) && is_open(port)
                })
                .ok_or(Refusal::NoneFree)?,
            taken if self.fabric.ports.has_number(taken) => return Err(Refusal::Taken(taken)),
            high if high > self.fabric.settings.num_ports => return Err(Refusal::TooHigh(high)),
            free if !admits(&self.fabric.settings.port(free), applicant.peer) => {
                return Err(Refusal::NotAdmitted(free));
            }
            free if !is_open(&self.fabric.settings.port(free)) => {
                return Err(Refusal::InVlan(free));
            }
            free => free,
        };
        let data = control::reach(&request.socket, applicant.peer)?;
        let offered = &self.fabric.settings.vlans;
        let mode = chosen.and_then(|vlan| offered.get(&vlan)?.as_ref()?.mode);
        let entry = self.directory.bind_data(&data, number, mode);
        let entry = entry.map_err(|error| {
            Refusal::System("bind the port's socket", Errno::from_raw(error.errno))
        })?;
        // The mark is not part of what users see.
        let (description, mark) = match Mark::split(&request.description) {
            Some((text, mark)) => (text.into(), Some(mark)),
            None => (String::from_utf8_lossy(&request.description), None),
        };
        let set = self.fabric.settings_with(number, chosen);
        let can_plug = mark.is_some_and(|mark| mark.panel != 0) && applicant.peer.is_same_user();
        let kind = mark.map_or(ClientKind::default(), |mark| ClientKind {
            is_plug: mark.is_plug,
            tells_place: mark.tells_place,
        });
        let (offer, bridge) = match can_plug {
            true => self.offer(|fabric| fabric.panel_bridge(number, &set, kind)),
            false => (Offer::None, None),
        };
        let far_end = greet(mark, bridge, &data);
        let reply = Reply {
            socket: entry.path().to_owned(),
        };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        // An empty queue has room for so little. If the client is gone, its stream's end says so.
        let _ = send(applicant.stream.as_raw_fd(), &reply.encode()?, flags);
        let client = format!("{description}, {}", applicant.peer);
        let mut port = Port::new(number, client, applicant.stream, data, entry, far_end);
        (port.chosen, port.offer, port.kind) = (chosen, offer, kind);
        log::debug!("port {number} opened for {}", port.client);
        self.events
            .push("port/+", format!("port {number}: {}", port.client));
        let id = self.fabric.add_port(port);
        let Some(port) = self.fabric.ports.get_mut(id) else {
            return Ok(());
        };
        let hang_up = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
        let watched = self
            .epoll
            .modify(&port.control, &mut Source::Control(id).event(hang_up))
            .and_then(|()| {
                let event = Source::Data(id).event(EpollFlags::EPOLLIN);
                self.epoll.add(&port.data, event)
            });
        if let Err(errno) = watched {
            port.close("it cannot be watched");
            return Err(Refusal::System("watch the port", errno));
        }
        self.join_tree(id, number);
        Ok(())
    }

    /// The lowest number that no client has, and that `is_right` with what is set of it.
    pub(crate) fn free_number(&self, is_right: impl Fn(u32, &PortSettings) -> bool) -> Option<u32> {
        let Fabric {
            settings, ports, ..
        } = &self.fabric;
        let taken: HashSet<u32> = ports.iter().map(|(_, port)| port.number).collect();
        let unset = PortSettings::default();
        let is_free = |number: &u32| {
            let set = settings.ports.get(number).unwrap_or(&unset);
            !taken.contains(number) && is_right(*number, set)
        };
        (1..=settings.num_ports).find(is_free)
    }

    /// Checks that a user may have one port more.
    fn admit_user(&self, peer: Peer) -> Result<(), Refusal> {
        let is_full = || self.fabric.ports.of_user(peer.uid()) >= self.user_ports;
        match !peer.is_trusted() && is_full() {
            true => Err(Refusal::TooMany(self.user_ports)),
            false => Ok(()),
        }
    }

    fn refuse(&mut self, peer: Peer, refusal: &Refusal, now: Instant) {
        if refusal.is_notable() {
            self.warnings
                .warn(now, format_args!("refused {peer}: {refusal}"));
        } else {
            log::debug!("refused {peer}: {refusal}");
        }
    }

    /// Accepts clients that choose a VLAN, or none with 0.
    fn accept(&mut self, vlan: u16, now: Instant) {
        for _ in 0..ACCEPTS {
            let Some(listener) = self.doors.listener(vlan) else {
                return;
            };
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) => match e.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ECONNABORTED | Errno::EINTR) => continue,
                    Some(Errno::EAGAIN) => return,
                    _ => return self.overloaded(vlan, &e, now),
                },
            };
            let applied = stream
                .set_nonblocking(true)
                .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))
                .and_then(|()| Applicant::new(stream, vlan, now));
            match applied {
                Ok(applicant) => self.invite(applicant, now),
                Err(errno) => log::debug!("a client left at once: {}", errno.desc()),
            }
        }
    }

    fn invite(&mut self, applicant: Applicant, now: Instant) {
        let (slot, overtaken) = self.applicants.insert(applicant);
        if let Some(overtaken) = overtaken {
            self.refuse(overtaken.peer, &Refusal::Overtaken, now);
        }
        let Some(applicant) = self.applicants.get_mut(slot) else {
            return;
        };
        let event = Source::Applicant(slot).event(EpollFlags::EPOLLIN);
        if let Err(errno) = self.epoll.add(&applicant.stream, event) {
            let peer = applicant.peer;
            self.applicants.take(slot);
            self.refuse(peer, &Refusal::System("watch a client", errno), now);
            return;
        }
        // The request is usually there already.
        self.read_request(slot, now);
    }

    /// A client cannot be accepted. It is turned away with the spare descriptor. Without one,
    /// accepting pauses, because the listener stays ready.
    fn overloaded(&mut self, vlan: u16, error: &std::io::Error, now: Instant) {
        self.warnings
            .warn(now, format_args!("a client cannot be accepted: {error}"));
        if self.spare.take().is_some() {
            let listener = self.doors.listener(vlan);
            let turned_away = listener.is_some_and(|listener| listener.accept().is_ok());
            self.spare = File::open("/dev/null").ok();
            if turned_away && self.spare.is_some() {
                return;
            }
        }
        self.paused = Some(now + OVERLOAD_PAUSE);
        self.doors.watch(&self.epoll, false);
    }

    fn tick(&mut self, now: Instant) {
        self.timer.acknowledge();
        self.tick_tree(now);
        if self.fabric.fdb.next_sweep().is_some_and(|due| due <= now) {
            self.fabric.fdb.sweep(now);
        }
        let late: Vec<Peer> = self.applicants.take_late(now).map(|a| a.peer).collect();
        for peer in late {
            self.refuse(peer, &Refusal::TooSlow, now);
        }
        if self.storm.is_some_and(|until| until <= now) {
            self.calm_down();
        }
        if self.paused.is_some_and(|until| until <= now) {
            self.paused = None;
            if self.spare.is_none() {
                self.spare = File::open("/dev/null").ok();
            }
            self.doors.watch(&self.epoll, true);
        }
    }

    /// To be called after every event: watches for room where frames wait, removes the ports that
    /// are closing, and arms the timer.
    fn settle(&mut self) -> Result<()> {
        let Self {
            fabric,
            epoll,
            events,
            ..
        } = self;
        fabric.drain_congested(|id, port| watch_for_room(epoll, id, port));
        let closed: Vec<(PortId, Port)> = fabric.ports.take_closing(&mut fabric.memory).collect();
        for (id, port) in closed {
            if port.has_sent {
                fabric.fdb.forget(id);
            }
            fabric.pin_stations(port.number);
            if fabric.tree.as_mut().is_some_and(|tree| tree.remove(id)) {
                events.push("fstp/-", format!("port {} has left", port.number));
            }
            events.push("port/-", format!("port {}: {}", port.number, port.client));
            log::debug!(
                "port {} closed, {}: {} ({:?})",
                port.number,
                port.closing.as_deref().unwrap_or_default(),
                port.client,
                port.counters
            );
        }
        self.follow_tree();
        let deadlines = [
            self.fabric.fdb.next_sweep(),
            self.applicants.next_deadline(),
            self.paused,
            self.storm,
            self.guarded,
            self.fabric.local.is_unfiltered().then(Instant::now),
            self.fabric.tree.as_ref().map(Tree::next_deadline),
        ];
        self.timer
            .arm(deadlines.into_iter().flatten().min())
            .map_err(|errno| Error::io("arm the timer", &errno.into()))
    }

    #[cfg(test)]
    pub(crate) fn set_bridge(&mut self, key: BridgeKey, bridge: vdens_plugin_kit::Bridge) {
        self.join_bridge(key, bridge).unwrap();
        self.follow_tree();
    }

    #[cfg(test)]
    pub(crate) fn fabric(&mut self) -> &mut Fabric {
        &mut self.fabric
    }
}

fn set_up_epoll() -> nix::Result<(Epoll, Timer)> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let timer = Timer::new()?;
    epoll.add(&timer.fd, Source::Timer.event(EpollFlags::EPOLLIN))?;
    Ok((epoll, timer))
}

/// Greets a client of ours, which is offered the bridge if there is one for it.
fn greet(mark: Option<Mark>, bridge: Option<PanelAddress>, data: &UnixDatagram) -> FarEnd {
    let mut client = FarEnd::client(mark, bridge);
    client.set_host_offloads(TAKES_ALL.offloads);
    client.announce(data);
    client
}

/// Makes the socket for requests. Without one the switch only cannot be changed.
fn listen_for_requests(epoll: &Epoll) -> Option<ControlSocket> {
    let requests = ControlSocket::open(SCHEME)
        .inspect_err(|error| log::warn!("vdectl cannot show or change the switch: {error}"))
        .ok()?;
    let event = Source::Requests.event(EpollFlags::EPOLLIN);
    epoll.add(requests.fd(), event).ok()?;
    Some(requests)
}

/// An address of the switch's own: random, and locally administered.
fn own_address() -> Mac {
    let [_, b, c, d, e, f, ..] = RandomState::new().build_hasher().finish().to_be_bytes();
    Mac([0x02, b, c, d, e, f])
}

/// Whether a port may be that of a client.
pub(crate) fn admits(port: &PortSettings, peer: Peer) -> bool {
    let is_open = port.user.is_none() && port.group.is_none();
    is_open
        || peer.is_trusted()
        || port.user == Some(peer.uid())
        || port.group.is_some_and(|group| peer.is_in(group))
}

/// Makes epoll watch for room in a port's socket while frames wait for it, and only then.
pub(crate) fn watch_for_room(epoll: &Epoll, id: PortId, port: &mut Port) {
    let is_wanted = port.is_congested();
    if is_wanted == port.is_watched_for_room {
        return;
    }
    port.is_watched_for_room = is_wanted;
    let room = if is_wanted {
        EpollFlags::EPOLLOUT
    } else {
        EpollFlags::empty()
    };
    let mut event = Source::Data(id).event(EpollFlags::EPOLLIN | room);
    if epoll.modify(&port.data, &mut event).is_err() {
        port.close("it cannot be watched");
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        log::info!(
            "{} in {} closed, {} stations known, {} frames of stations not learned",
            self.fabric.settings.kind,
            self.directory.path().display(),
            self.fabric.fdb.len(),
            self.fabric.fdb.refused()
        );
    }
}

impl Link for Switch {
    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let now = Instant::now();
        self.unplug_unfiltered_host();
        if let Some(tree) = &mut self.fabric.tree {
            tree.give(batch);
        }
        self.poll()?;
        while batch.is_empty()
            && let Some(event) = self.ready.pop_front()
        {
            self.handle(event, batch, now);
        }
        self.settle()
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        let now = Instant::now();
        let lengths = batch.frames().map(|frame| frame.bytes().len());
        self.fabric.local.counters.traffic.count_in(lengths);
        let refused = self.fabric.forward(LOCAL, batch, None, now);
        self.fabric.local.counters.refused.add(refused);
        batch.count_dropped(refused.count());
        if refused.storm > 0 {
            self.note_storm("the switch's own side", now);
        }
        self.settle()?;
        Ok(batch.len())
    }

    fn other_side(&mut self, state: State) {
        self.fabric.local.takes_super_frames = state.offloads.contains(Offloads::ALL);
        self.set_host_carrier(state.carrier);
        let is_first = !std::mem::replace(&mut self.is_used, true);
        let is_interface = !self.host.port().interface.is_empty();
        self.wants_plug = is_interface || state.plugged;
        if is_interface {
            if is_first {
                self.plug_host();
            }
        } else if !state.plugged {
            self.unplug_host();
        } else if self.fabric.local.plugged.is_none() {
            self.plug_host();
        }
        self.follow_tree();
        if self.fabric.local.is_unfiltered()
            && let Err(error) = self.settle()
        {
            log::warn!("the switch's own side reaches nobody: {error}");
        }
    }

    fn state(&self) -> State {
        match self.fabric.local.plugged.is_some() {
            true => State::PLUGGED,
            false => TAKES_ALL,
        }
    }

    fn status(&self) -> Status {
        status::of(&self.fabric, Instant::now())
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn wants_panel(&self) -> bool {
        true
    }
}
