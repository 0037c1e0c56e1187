//! `netem://KEYS{VNL}`: the network that the nested VNL names, impaired: late, lossy, slow.
//!
//! # Theory of operation
//!
//! The link takes every frame that it is offered, in both directions, and a `Path` decides what
//! becomes of it. A timer wakes the link when the next frame is due. Frames that are due in one
//! direction go to the nested link, which may leave them for later, and in the other to the host.
//!
//! Frames stay as they are, so a delay alone lets super-frames pass whole. Where each frame is to
//! have a fate of its own, the link takes no super-frames, and the host cuts them; it asks the same
//! of the far end. Its carrier is the nested link's.
//!
//! `vdectl link` changes the keys while the link runs, through a socket of the link's own
//! ([`ControlSocket`]). It also takes the carrier away: the nested link is closed until it is given
//! back, so that the far end sees it, too. The crate `vdens-impairment` has the keys and what they
//! do.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vdens_impairment::request::{Answer, Request, SCHEME};
use vdens_impairment::{Keys, Path, Settings};
use vdens_plugin_kit::control::ControlSocket;
use vdens_plugin_kit::{
    Batch, Capabilities, Error, Host, Link, OpenRequest, Result, RxBatch, State, Status, TxBatch,
    export_plugin, log,
};

/// An impaired network.
struct Netem {
    /// `None` while the carrier is taken away.
    nested: Option<Box<dyn Link>>,
    host: Host,
    /// What is asked and answered while the link runs, if that is possible.
    control: Option<ControlSocket>,
    /// The interface that the link serves, and the VNL of the network.
    names: (String, String),
    keys: Keys,
    seed: u64,
    tx: Path,
    rx: Path,
    /// The state of the host's other side.
    other_side: State,
    /// Times are counted from here.
    start: Instant,
    /// Frames for the nested link. It has taken the first `taken` of them.
    outgoing: Batch,
    taken: usize,
    /// Frames that the nested link dropped, and that no caller has counted yet.
    dropped: u64,
    /// Frames from the nested link, during [`Link::recv`].
    incoming: Batch,
    wakeups: Wakeups,
    /// When the link delivered last.
    delivered: Duration,
}

/// From one delivery to the next, at the least. Frames that are due closer to each other leave
/// together, so a stream of small frames does not need a wake-up for each.
const PACE: Duration = Duration::from_micros(50);

impl Netem {
    fn open(request: &OpenRequest<'_>) -> Result<Self> {
        let (keys, network) = Keys::with_network(request.argument())?;
        let settings = Settings::of(&keys)?;
        let nested = request.host.open(&network)?;
        let seed = settings.seed.unwrap_or_else(|| fastrand::u64(..));
        let [tx, rx] = seeds(seed);
        // Without, the link only cannot be changed.
        let control = ControlSocket::open(SCHEME)
            .inspect_err(|error| log::warn!("vdectl link cannot change netem://: {error}"));
        let mut netem = Self {
            nested: Some(nested),
            host: request.host,
            control: control.ok(),
            names: (request.host.port().interface, network),
            keys,
            seed,
            tx: Path::new(settings.tx, tx),
            rx: Path::new(settings.rx, rx),
            other_side: State::DOWN,
            start: Instant::now(),
            outgoing: Batch::new(),
            taken: 0,
            dropped: 0,
            incoming: Batch::new(),
            wakeups: Wakeups::new()?,
            delivered: Duration::ZERO,
        };
        if let Some(control) = &netem.control {
            netem
                .wakeups
                .watch_control(control.fd())
                .map_err(cannot_wait)?;
        }
        netem.wait()?;
        Ok(netem)
    }

    /// Serves what is asked.
    fn serve(&mut self, now: Duration) {
        while let Some((request, asker)) =
            self.control.as_ref().and_then(ControlSocket::next_request)
        {
            let error = self.perform(request, now).err();
            let answer = self.answer(error);
            if let Some(control) = &self.control {
                control.answer(&asker, &answer);
            }
        }
    }

    fn perform(&mut self, request: Request, now: Duration) -> Result<()> {
        match request {
            Request::Show => return Ok(()),
            Request::Set { replace, words } => self.set(replace, &words, now)?,
            Request::Down => self.take_down(),
            Request::Up => self.bring_up()?,
        }
        self.announce();
        Ok(())
    }

    /// Changes keys, all or none.
    fn set(&mut self, replace: bool, words: &[String], now: Duration) -> Result<()> {
        let mut keys = match replace {
            true => Keys::default(),
            false => self.keys.clone(),
        };
        words.iter().try_for_each(|word| keys.change(word))?;
        let settings = Settings::of(&keys)?;
        self.tx.change(now, settings.tx);
        self.rx.change(now, settings.rx);
        // A seed that is set again starts chance again.
        if words.iter().any(|word| word.starts_with("seed="))
            && let Some(seed) = settings.seed
        {
            let [tx, rx] = seeds(seed);
            self.tx.reseed(tx);
            self.rx.reseed(rx);
            self.seed = seed;
        }
        self.keys = keys;
        Ok(())
    }

    fn take_down(&mut self) {
        if let Some(mut nested) = self.nested.take() {
            // What outlives the link, such as a tap of the session's, shows it.
            nested.other_side(State::DOWN);
        }
        self.tx.cut(true);
        self.rx.cut(true);
        self.outgoing.clear();
        self.taken = 0;
    }

    fn bring_up(&mut self) -> Result<()> {
        if self.nested.is_none() {
            self.nested = Some(self.host.open(&self.names.1)?);
        }
        self.tx.cut(false);
        self.rx.cut(false);
        Ok(())
    }

    fn answer(&self, error: Option<Error>) -> Answer {
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        Answer {
            error: error.map(|error| error.to_string()),
            processes: vec![std::process::id(), std::os::unix::process::parent_id()],
            interface: self.names.0.clone(),
            network: self.names.1.clone(),
            is_down: self.nested.is_none(),
            keys: self.keys.iter().map(own).collect(),
            tx: summary(&self.tx),
            rx: summary(&self.rx),
        }
    }

    /// Tells the nested link the state of what is behind this one.
    fn announce(&mut self) {
        let state = self.other_side;
        let offloads = state.offloads.intersection(self.rx.settings().offloads());
        if let Some(nested) = &mut self.nested {
            nested.other_side(state.with_offloads(offloads));
        }
    }

    /// Gives the nested link the frames that are due, until it takes no more.
    fn flush(&mut self, now: Duration) -> Result<()> {
        while !self.is_blocked() {
            self.outgoing.clear();
            self.taken = 0;
            self.tx.deliver(now, &mut self.outgoing.rx());
            if self.outgoing.is_empty() {
                return Ok(());
            }
            self.send_outgoing()?;
        }
        Ok(())
    }

    /// Whether the nested link has left frames for later.
    fn is_blocked(&self) -> bool {
        self.taken < self.outgoing.len()
    }

    fn send_outgoing(&mut self) -> Result<()> {
        if let Some(nested) = &mut self.nested {
            self.taken += nested.send(&mut self.outgoing.tx(self.taken))?;
        }
        self.dropped += self.outgoing.take_dropped();
        Ok(())
    }

    /// Sets what wakes the link next.
    fn wait(&mut self) -> Result<()> {
        let due_out = self.tx.next_due().filter(|_| !self.is_blocked());
        let due = [due_out, self.rx.next_due()].into_iter().flatten().min();
        let due = due.map(|due| due.max(self.delivered + PACE));
        let set = self.wakeups.set_timer(due, self.start.elapsed());
        let watched = set.and_then(|()| match &self.nested {
            Some(nested) => {
                let blocked = self.is_blocked().then(|| nested.send_fd());
                self.wakeups.watch(nested.fd(), blocked)
            }
            None => Ok(()),
        });
        watched.map_err(cannot_wait)
    }
}

impl Link for Netem {
    fn fd(&self) -> BorrowedFd<'_> {
        self.wakeups.epoll.0.as_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let ready = self.wakeups.ready().map_err(cannot_wait)?;
        if let Some(nested) = self.nested.as_mut().filter(|_| ready.may_recv) {
            nested.recv(&mut self.incoming.rx())?;
        }
        if ready.may_send && self.is_blocked() {
            self.send_outgoing()?;
        }
        let now = self.start.elapsed();
        self.rx.wake(now);
        self.tx.wake(now);
        self.delivered = now;
        if ready.is_asked {
            self.serve(now);
        }
        let before = self.rx.counters().dropped;
        for frame in self.incoming.tx(0).frames() {
            self.rx.take(now, frame);
        }
        let dropped = self.rx.counters().dropped - before;
        batch.count_dropped(self.incoming.take_dropped() + dropped);
        self.incoming.clear();
        self.rx.deliver(now, batch);
        self.flush(now)?;
        self.wait()
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        let now = self.start.elapsed();
        self.tx.wake(now);
        let before = self.tx.counters().dropped;
        for frame in batch.frames() {
            self.tx.take(now, frame);
        }
        self.flush(now)?;
        let dropped = self.tx.counters().dropped - before;
        batch.count_dropped(std::mem::take(&mut self.dropped) + dropped);
        self.wait()?;
        Ok(batch.len())
    }

    fn other_side(&mut self, state: State) {
        self.other_side = state;
        self.announce();
    }

    fn state(&self) -> State {
        let state = self
            .nested
            .as_ref()
            .map_or(State::DOWN, |nested| nested.state());
        let offloads = state.offloads.intersection(self.tx.settings().offloads());
        state.with_offloads(offloads)
    }

    fn status(&self) -> Status {
        let mut status = match &self.nested {
            Some(nested) => nested.status(),
            None => Status {
                reason: "vdectl link down".to_owned(),
                ..Status::default()
            },
        };
        let extra = &mut status.extra;
        extra.insert("seed".to_owned(), self.seed.to_string());
        extra.insert("keys".to_owned(), self.keys.to_string());
        extra.insert("tx".to_owned(), summary(&self.tx));
        extra.insert("rx".to_owned(), summary(&self.rx));
        status
    }

    fn is_shared(&self) -> bool {
        self.nested
            .as_ref()
            .is_some_and(|nested| nested.is_shared())
    }
}

/// The seeds of both directions.
fn seeds(seed: u64) -> [u64; 2] {
    let mut seeds = fastrand::Rng::with_seed(seed);
    [seeds.u64(..), seeds.u64(..)]
}

/// What became of the frames of one direction.
fn summary(path: &Path) -> String {
    let counters = path.counters();
    format!(
        "in flight {}, lost {}, duplicated {}, corrupted {}, reordered {}, dropped {}",
        path.in_flight(),
        counters.lost,
        counters.duplicated,
        counters.corrupted,
        counters.reordered,
        counters.dropped,
    )
}

/// What makes the link's descriptor readable: a frame that is due, the nested link, and requests.
struct Wakeups {
    epoll: Epoll,
    timer: TimerFd,
    /// When the timer expires.
    expires: Option<Duration>,
}

/// What the epoll instance says of the timer, the nested link's descriptors, and the requests.
const TIMER: u64 = 0;
const NESTED: u64 = 1;
const CONTROL: u64 = 2;

/// What is to be done.
#[derive(Clone, Copy, Debug, Default)]
struct Ready {
    /// The nested link is to be called for receiving.
    may_recv: bool,
    /// The nested link is to be called for sending.
    may_send: bool,
    /// There is a request.
    is_asked: bool,
}

impl Wakeups {
    fn new() -> Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let make = || {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
            epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
            Ok((epoll, timer))
        };
        let (epoll, timer) =
            make().map_err(|errno: Errno| Error::io("make a timer", &errno.into()))?;
        Ok(Self {
            epoll,
            timer,
            expires: None,
        })
    }

    /// Lets the timer expire at `due`. Setting it makes it unreadable until then.
    fn set_timer(&mut self, due: Option<Duration>, now: Duration) -> nix::Result<()> {
        let is_over = self.expires.is_some_and(|at| at <= now);
        if due == self.expires && !is_over {
            return Ok(());
        }
        match due {
            None => self.timer.unset()?,
            Some(at) => {
                // A time of zero would switch the timer off.
                let left = at.saturating_sub(now).max(Duration::from_nanos(1));
                let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
                self.timer.set(expiration, TimerSetTimeFlags::empty())?;
            }
        }
        self.expires = due;
        Ok(())
    }

    /// Watches the nested link's descriptors, each until its next event: one for receiving, and one
    /// for sending while the link leaves frames. Any call of the link may have changed them.
    fn watch(&self, recv: BorrowedFd<'_>, send: Option<BorrowedFd<'_>>) -> nix::Result<()> {
        let is_same = send.is_some_and(|send| send.as_raw_fd() == recv.as_raw_fd());
        let out = if is_same {
            EpollFlags::EPOLLOUT
        } else {
            EpollFlags::empty()
        };
        self.watch_one(recv, EpollFlags::EPOLLIN | out)?;
        match send.filter(|_| !is_same) {
            Some(send) => self.watch_one(send, EpollFlags::EPOLLOUT),
            None => Ok(()),
        }
    }

    fn watch_one(&self, fd: BorrowedFd<'_>, flags: EpollFlags) -> nix::Result<()> {
        let event = || EpollEvent::new(flags | EpollFlags::EPOLLONESHOT, NESTED);
        match self.epoll.modify(fd, &mut event()) {
            Err(Errno::ENOENT) => self.epoll.add(fd, event()),
            result => result,
        }
    }

    fn watch_control(&self, control: BorrowedFd<'_>) -> nix::Result<()> {
        self.epoll
            .add(control, EpollEvent::new(EpollFlags::EPOLLIN, CONTROL))
    }

    fn ready(&self) -> nix::Result<Ready> {
        let mut events = [EpollEvent::empty(); 4];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO)?;
        let mut ready = Ready::default();
        for event in &events[..count] {
            match event.data() {
                NESTED => {
                    let flags = event.events();
                    ready.may_recv |= flags.intersects(!EpollFlags::EPOLLOUT);
                    ready.may_send |= flags.intersects(EpollFlags::EPOLLOUT);
                }
                CONTROL => ready.is_asked = true,
                _ => {}
            }
        }
        Ok(ready)
    }
}

fn cannot_wait(errno: Errno) -> Error {
    let error = Error::io("wait for the nested link", &errno.into());
    match errno {
        // The kernel nests few epoll instances in each other (EP_MAX_NESTS of fs/eventpoll.c).
        Errno::ELOOP => error.hint("nest fewer links with a timer in each other, as netem:// is"),
        _ => error,
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    Ok(Box::new(Netem::open(request)?))
}

export_plugin! {
    scheme: "netem",
    description: "delay, loss, rate and more on another network: netem://delay=50ms{VNL}",
    capabilities: Capabilities::NESTS.and(Capabilities::SUPER_FRAMES),
    needs: "sockets:{runtime} sockets:{tmp}",
    open: open,
}
