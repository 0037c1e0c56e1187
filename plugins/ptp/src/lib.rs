//! `ptp://PATH[seqpacket/mode=…/group=…]`: a cable between two ends that meet at a socket's path.
//!
//! # Theory of operation
//!
//! Two generations of the protocol are in use, `dgram` and `seqpacket`. A new end probes the path
//! and joins the end that it finds there, of either generation. If there is none, it comes first.
//! It then uses the generation that it used last; at the start seqpacket if the VNL says so, else
//! dgram.
//!
//! An end of either generation is an `End`. If it cannot go on, because its peer hung up or its
//! path was taken, it is dropped, and `Ptp` joins again as at the start. So two ends find each
//! other in whatever order they leave and return.
//!
//! When a peer appears, the two ends find out whether the kernel can carry the frames, or
//! super-frames can be sent ([`FarEnd`]).
//!
//! Not all changes can be waited for. A killed process leaves its path behind, and no event tells
//! when a path appears. So a timer ticks every `TICK`, and a tick costs a few cheap system calls.
//! A peer of ours has announced its process, whose end a pidfd tells. From then on events call for
//! the ticks that matter, and the timer ticks every `SLOW_TICK`, in case the events missed
//! something: a directory that was moved away, say, or a process of another PID namespace.
//!
//! The host waits for an epoll instance over the timer and the socket that frames come from. A
//! dgram end's socket is read without asking epoll first; epoll is asked when it is empty, and now
//! and then. Frames are sent straight to the socket. Without a peer they are dropped and counted.

mod dgram;
mod seqpacket;
mod sockets;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::unistd::geteuid;
use vdens_plugin_kit::bound_socket::{Access, Occupant, remove_stale};
use vdens_plugin_kit::log::{debug, warn};
use vdens_plugin_kit::process::open_pidfd;
use vdens_plugin_kit::user::{self, Name};
use vdens_plugin_kit::vnl::{self, Keys, Spec};
use vdens_plugin_kit::wire::hello::Cable;
use vdens_plugin_kit::{
    AlwaysReady, Batch, Capabilities, Error, ErrorKind, FarEnd, Host, Link, OpenOptions,
    OpenRequest, Peer as Credentials, Result, RxBatch, State, Status, TxBatch,
};

use dgram::Dgram;
use seqpacket::{Connector, Listener};

const KEYS: Keys = Keys::new(&["seqpacket", "mode", "group"]);

/// How often an end checks its peer: often enough for an interface to lose its carrier within
/// 200 ms, and so seldom that an idle end takes less than a thousandth of a processor.
const TICK: Duration = Duration::from_millis(120);

/// How often an end checks its peer if events tell most of what can happen. The supervisor wakes
/// the worker once a second anyway.
const SLOW_TICK: Duration = Duration::from_secs(1);

/// How long a killed end may take to leave: its process outlives the command for a moment.
const LEAVE_LIMIT: Duration = Duration::from_millis(500);

/// How long to wait before joining again after it failed.
const RETRY: Duration = Duration::from_millis(500);

/// How often to try again when another process changes the path at the same time.
const RACES: usize = 8;

/// How long to wait for the other process then.
const RACE_PAUSE: Duration = Duration::from_millis(1);

/// How many times in a row to read a dgram end's socket without asking epoll, while frames come.
const FRAMES_ONLY: u32 = 16;

/// A descriptor's data in the epoll instance: it brings frames.
const DATA: u64 = 0;
/// It calls for a tick.
const TICKS: u64 = 1;

/// The generations of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generation {
    Dgram,
    Seqpacket,
}

/// Where the ends meet.
#[derive(Clone, Debug)]
struct Place {
    /// The first comer's path.
    path: PathBuf,
    /// The second comer's, in the dgram generation.
    plus: PathBuf,
    access: Access,
    /// What to use when no other end is there.
    generation: Generation,
}

impl Place {
    fn parse(argument: &str, options: &OpenOptions) -> Result<Self> {
        let spec = Spec::path_grammar(argument, &KEYS)?;
        spec.no_nested()?;
        let path = spec.absolute_path()?;
        let mut plus = path.clone().into_os_string();
        plus.push("+");
        let plus = PathBuf::from(plus);
        vnl::check_socket_path(&path)?;
        vnl::check_socket_path(&plus)?;
        let mode = spec.mode("mode")?.or(options.mode);
        let group = spec.get("group").or(options.group.as_deref());
        Ok(Self {
            path,
            plus,
            access: Access {
                mode: mode.unwrap_or(0o700) & 0o777,
                group: group.map(vnl::group_id).transpose()?,
            },
            generation: match spec.has("seqpacket") {
                true => Generation::Seqpacket,
                false => Generation::Dgram,
            },
        })
    }
}

/// One end, of either generation.
trait End: Send {
    /// The socket to the peer, if there is one.
    fn peer(&self) -> Option<BorrowedFd<'_>>;

    /// Whether events call for a tick when the path, or that of a living peer, changes.
    fn has_events(&self) -> bool {
        true
    }

    /// Whether [`End::receive`] works without events from epoll.
    fn needs_no_events(&self) -> bool {
        false
    }

    /// The socket that a successor of this process can go on with, if there is one.
    fn persistent_socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What the kernel knows of the peer.
    fn credentials(&self) -> Credentials;

    /// Sending to the peer failed: there is no [`End::peer`] until it is found again.
    fn peer_lost(&mut self);

    /// Receives datagrams of up to `max_frame` bytes, after `events` on the socket.
    fn receive(&mut self, events: EpollFlags, max_frame: usize, batch: &mut RxBatch<'_>);

    /// Checks the path and the peer. Returns `false` if this end cannot go on and must be replaced.
    fn tick(&mut self, epoll: &Epoll) -> bool;
}

/// Makes `epoll` watch a descriptor that is for [`DATA`] or [`TICKS`].
fn watch(epoll: &Epoll, fd: impl AsFd, purpose: u64) -> Result<()> {
    let mut flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
    // An event calls for one tick, even if that cannot handle it.
    flags.set(EpollFlags::EPOLLET, purpose == TICKS);
    epoll
        .add(fd, EpollEvent::new(flags, purpose))
        .map_err(|errno| Error::io("watch a descriptor", &errno.into()))
}

/// Whether the process of a pidfd has ended.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) != Ok(0)
}

/// The link.
struct Ptp {
    place: Place,
    /// `None` while joining fails.
    end: Option<Box<dyn End>>,
    host: Host,
    /// Whether the session stores a socket of this end.
    is_stored: bool,
    far_end: FarEnd,
    /// The peer's first user and its last.
    users: Option<[u32; 2]>,
    /// When to join again.
    retry: Instant,
    /// Why joining failed last.
    complaint: Option<Error>,
    epoll: Epoll,
    timer: TimerFd,
    /// How often the timer ticks.
    pace: Duration,
    /// The pidfd of the peer's process, whose end calls for a tick.
    peer_process: Option<OwnedFd>,
    /// How often in a row the socket was read without asking epoll.
    frames_only: u32,
    /// Always writable: to wait for while there is no peer.
    writable: AlwaysReady,
}

impl Ptp {
    fn open(place: Place, host: Host) -> Result<Self> {
        let cannot = |what: &'static str| move |errno: nix::Error| Error::io(what, &errno.into());
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(cannot("make an epoll instance"))?;
        let timer = TimerFd::new(
            ClockId::CLOCK_MONOTONIC,
            TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
        )
        .map_err(cannot("make a timer"))?;
        watch(&epoll, &timer, TICKS)?;
        let mut link = Self {
            place,
            end: None,
            host,
            is_stored: false,
            far_end: FarEnd::on_cable(host),
            users: None,
            retry: Instant::now(),
            complaint: None,
            epoll,
            timer,
            pace: Duration::ZERO,
            peer_process: None,
            frames_only: 0,
            writable: AlwaysReady::new()?,
        };
        link.tick_every(TICK).map_err(cannot("set a timer"))?;
        link.end = Some(match link.resume()? {
            Some(end) => end,
            None => link.join_when_there_is_room()?,
        });
        link.store();
        link.check_peer();
        link.announce();
        link.settle();
        Ok(link)
    }

    /// Gives a peer that is there already a moment to answer, so that the interface need not change
    /// right after it was made.
    fn settle(&mut self) {
        let start = Instant::now();
        let mut batch = Batch::new();
        while self.far_end.is_present()
            && let Some(limit) = self.far_end.settling_time()
        {
            let left = limit.saturating_sub(start.elapsed());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut fds = [PollFd::new(self.fd(), PollFlags::POLLIN)];
            if !poll(&mut fds, timeout).is_ok_and(|ready| ready > 0) {
                return;
            }
            batch.clear();
            self.serve(&mut batch.rx());
            self.announce();
        }
    }

    /// The cable that the ends meet at: the first comer's socket.
    fn cable(&self) -> Cable {
        let file = std::fs::symlink_metadata(&self.place.path);
        file.map_or_else(
            |_| Cable::default(),
            |file| Cable {
                device: file.dev(),
                inode: file.ino(),
            },
        )
    }

    /// Whether the peer is another user's.
    fn is_foreign(&self) -> bool {
        let credentials = self.end.as_ref().map(|end| end.credentials());
        credentials.and_then(|peer| peer.uid) != Some(geteuid().as_raw())
    }

    /// Checks whether a peer has come or gone.
    fn check_peer(&mut self) {
        match (self.far_end.is_present(), self.socket().is_some()) {
            (false, true) => {
                self.check_user();
                self.far_end.appear(self.cable(), self.is_foreign());
            }
            (true, false) => self.far_end.disappear(),
            _ => {}
        }
    }

    /// Warns when the peer has become another user's. It is served all the same: a cable has no
    /// owner, and the mode of this end's socket says which users may join it.
    fn check_user(&mut self) {
        let Some(now) = self.end.as_ref().and_then(|end| end.credentials().uid) else {
            return;
        };
        let [first, last] = *self.users.get_or_insert([now, now]);
        self.users = Some([first, now]);
        if now != last && !user::may_follow(first, now) {
            let (path, now, first) = (self.place.path.display(), Name(now), Name(first));
            warn!("{path}: the far end is user {now}'s now, and was user {first}'s");
        }
    }

    /// Sends the peer the messages that are due.
    fn announce(&mut self) {
        // If the queue is full, a later tick finds room. If the peer is gone, a tick notices.
        if let Some(socket) = self.end.as_ref().and_then(|end| end.peer()) {
            self.far_end.announce(socket);
        }
    }

    /// Does what the peer's messages have made possible.
    fn update(&mut self) {
        if let Some(socket) = self.end.as_ref().and_then(|end| end.peer()) {
            self.far_end.update(socket);
        }
    }

    /// Receives what is waiting, and ticks if that is due.
    fn serve(&mut self, batch: &mut RxBatch<'_>) {
        if self.end.as_ref().is_some_and(|end| end.needs_no_events())
            && self.receive(EpollFlags::EPOLLIN, batch)
            && self.frames_only < FRAMES_ONLY
        {
            self.frames_only += 1;
            return;
        }
        self.frames_only = 0;
        let mut events = [EpollEvent::empty(); 3];
        // It fails only if a signal interrupts it.
        let ready = self
            .epoll
            .wait(&mut events, EpollTimeout::ZERO)
            .unwrap_or(0);
        let ready = &events[..ready];
        // Frames come first: what a peer sent before it left is received before a tick finds it
        // gone.
        if let Some(data) = ready.iter().find(|event| event.data() == DATA) {
            self.receive(data.events(), batch);
        }
        if ready.iter().any(|event| event.data() == TICKS) {
            let _ = self.timer.wait();
            self.tick();
            self.check_peer();
            self.watch_peer();
        }
    }

    /// Has the timer tick every `pace`.
    fn tick_every(&mut self, pace: Duration) -> nix::Result<()> {
        if std::mem::replace(&mut self.pace, pace) == pace {
            return Ok(());
        }
        let every = Expiration::Interval(TimeSpec::from_duration(pace));
        self.timer.set(every, TimerSetTimeFlags::empty())
    }

    /// Waits for the end of the peer's process, if the peer is one of ours. While that lives, the
    /// timer may be slow.
    fn watch_peer(&mut self) {
        let process = self.far_end.peer_process();
        let has_events = self.end.as_ref().is_some_and(|end| end.has_events());
        self.peer_process = process
            .filter(|_| has_events)
            .and_then(|process| open_pidfd(process).ok())
            .filter(|pidfd| !has_ended(pidfd) && watch(&self.epoll, pidfd, TICKS).is_ok());
        let pace = match self.peer_process {
            Some(_) => SLOW_TICK,
            None => TICK,
        };
        // It cannot fail: the timer and the time are valid.
        let _ = self.tick_every(pace);
    }

    /// Receives what is waiting, after `events` on the socket. Returns whether frames came.
    fn receive(&mut self, events: EpollFlags, batch: &mut RxBatch<'_>) -> bool {
        let Some(end) = &mut self.end else {
            return false;
        };
        let first = batch.len();
        end.receive(events, self.far_end.max_datagram(), batch);
        let received = batch.len() > first;
        // A new peer must be known before its first message is handled.
        self.check_peer();
        self.far_end.filter(first, batch);
        received
    }

    /// Goes on with the socket that this process's predecessor has stored, if that is of use.
    fn resume(&mut self) -> Result<Option<Box<dyn End>>> {
        let Some(socket) = self.host.take_fd() else {
            return Ok(None);
        };
        self.is_stored = true;
        let end = Dgram::resume(&self.place, socket, &self.epoll)?;
        if end.is_none() {
            self.store();
        }
        Ok(end.map(|end| {
            self.place.generation = Generation::Dgram;
            Box::new(end) as _
        }))
    }

    /// Has the session store the end's socket for this process's successor, or nothing if there is
    /// none.
    fn store(&mut self) {
        let socket = self.end.as_ref().and_then(|end| end.persistent_socket());
        let was_stored = std::mem::replace(&mut self.is_stored, socket.is_some());
        if (socket.is_some() || was_stored)
            && let Err(error) = self.host.store_fd(socket)
        {
            debug!(
                "{}: the socket is not stored: {error}",
                self.place.path.display()
            );
        }
    }

    /// Joins at open. If there are two ends already, one of them may be about to leave.
    fn join_when_there_is_room(&mut self) -> Result<Box<dyn End>> {
        let deadline = Instant::now() + LEAVE_LIMIT;
        let busy = sockets::busy(&self.place.path);
        let may_pass = |error: &Error| *error == busy || error.kind == ErrorKind::Closed;
        loop {
            match self.join(true) {
                Err(error) if may_pass(&error) && Instant::now() < deadline => sleep(TICK),
                joined => return joined,
            }
        }
    }

    /// Joins the end that is there, or comes first. With `wait`, waits until a listener has agreed.
    fn join(&mut self, wait: bool) -> Result<Box<dyn End>> {
        for _ in 0..RACES {
            if let Some((generation, end)) = self.try_to_join(wait)? {
                self.place.generation = generation;
                return Ok(end);
            }
            sleep(RACE_PAUSE);
        }
        Err(sockets::contended(&self.place.path))
    }

    /// As [`Ptp::join`]; `None` if another process changed the path meanwhile.
    fn try_to_join(&self, wait: bool) -> Result<Option<(Generation, Box<dyn End>)>> {
        let (place, epoll) = (&self.place, &self.epoll);
        let generation = match sockets::probe(&place.path)? {
            Occupant::Datagram => {
                let end = Dgram::second(place, epoll)?;
                return Ok(end.map(|end| (Generation::Dgram, Box::new(end) as _)));
            }
            Occupant::Connected => {
                let Some(mut end) = Connector::connect(place, epoll)? else {
                    return Ok(None);
                };
                if wait {
                    end.wait_for_greeting()?;
                }
                return Ok(Some((Generation::Seqpacket, Box::new(end))));
            }
            Occupant::Stale => {
                let generation = self.generation_alone()?;
                remove_stale(&place.path)?;
                generation
            }
            Occupant::Nothing => self.generation_alone()?,
        };
        let end: Option<Box<dyn End>> = match generation {
            Generation::Dgram => Dgram::first(place, epoll)?.map(|end| Box::new(end) as _),
            Generation::Seqpacket => Listener::bind(place, epoll)?.map(|end| Box::new(end) as _),
        };
        Ok(end.map(|end| (generation, end)))
    }

    /// What to use when no end is at `PATH`: the generation of an end still at `PATH+`, if any.
    fn generation_alone(&self) -> Result<Generation> {
        match (sockets::probe(&self.place.plus), self.place.generation) {
            (Ok(Occupant::Datagram), _) => Ok(Generation::Dgram),
            (Ok(Occupant::Connected), Generation::Dgram) => Err(sockets::foreign(&self.place.plus)),
            (Ok(_), generation) => Ok(generation),
            (Err(error), Generation::Dgram) => Err(error),
            (Err(_), Generation::Seqpacket) => Ok(Generation::Seqpacket),
        }
    }

    fn tick(&mut self) {
        if self.end.as_mut().is_some_and(|end| !end.tick(&self.epoll)) {
            // It gives up its path before the next tick probes it.
            self.end = None;
            self.store();
            return;
        }
        if self.end.is_some() || Instant::now() < self.retry {
            return;
        }
        match self.join(false) {
            Ok(end) => {
                self.end = Some(end);
                self.complaint = None;
                self.store();
            }
            Err(error) => {
                self.retry = Instant::now() + RETRY;
                if self.complaint.as_ref() != Some(&error) {
                    warn!("{error}");
                    self.complaint = Some(error);
                }
            }
        }
    }

    /// The socket to the peer, if there is one.
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.end.as_ref()?.peer()
    }
}

impl Drop for Ptp {
    fn drop(&mut self) {
        self.end = None;
        self.store();
    }
}

impl Link for Ptp {
    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.socket().unwrap_or(self.writable.as_fd())
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        self.serve(batch);
        self.update();
        if !self.far_end.is_proven() {
            let _ = self.tick_every(TICK);
        }
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        if let Some(end) = &mut self.end
            && let Some(socket) = end.peer()
        {
            match self.far_end.send(socket, batch) {
                Ok(taken) => return Ok(taken),
                Err(_) => {
                    end.peer_lost();
                    let _ = self.tick_every(TICK);
                }
            }
        }
        batch.count_dropped(batch.len() as u64);
        Ok(batch.len())
    }

    fn state(&self) -> State {
        self.far_end.state()
    }

    fn status(&self) -> Status {
        let end = self.end.as_ref().filter(|_| self.far_end.is_present());
        let mut status = end.map_or_else(Status::default, |end| {
            self.far_end.status(end.credentials())
        });
        let generation = match self.place.generation {
            Generation::Dgram => "dgram",
            Generation::Seqpacket => "seqpacket",
        };
        status.extra.insert("generation".into(), generation.into());
        if let Some(complaint) = &self.complaint {
            status.reason = complaint.to_string();
        }
        status
    }

    fn other_side(&mut self, state: State) {
        self.far_end.set_host_offloads(state.offloads);
        self.update();
    }

    fn wants_panel(&self) -> bool {
        self.far_end.wants_panel()
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let place = Place::parse(request.argument(), &request.options)?;
    Ok(Box::new(Ptp::open(place, request.host)?))
}

vdens_plugin_kit::export_plugin! {
    scheme: "ptp",
    description: "a cable between two ends that meet at a socket's path",
    capabilities: Capabilities::SUPER_FRAMES.and(Capabilities::PANEL),
    needs: "sockets:{dir}",
    open: open,
}
