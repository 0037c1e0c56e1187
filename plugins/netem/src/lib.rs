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
//! Modules: `settings` are the keys, with `units`; `random` is chance; `path` is one direction.

mod path;
mod random;
mod settings;
mod units;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vdens_plugin_kit::{
    Batch, Capabilities, Error, Link, OpenRequest, Result, RxBatch, State, Status, TxBatch,
    export_plugin,
};

use path::Path;
use settings::Settings;

/// An impaired network.
struct Netem {
    nested: Box<dyn Link>,
    tx: Path,
    rx: Path,
    seed: u64,
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
}

impl Netem {
    fn open(settings: Settings, nested: Box<dyn Link>) -> Result<Self> {
        let seed = settings.seed.unwrap_or_else(|| fastrand::u64(..));
        let mut seeds = fastrand::Rng::with_seed(seed);
        let mut netem = Self {
            nested,
            tx: Path::new(settings.tx, seeds.u64(..)),
            rx: Path::new(settings.rx, seeds.u64(..)),
            seed,
            start: Instant::now(),
            outgoing: Batch::new(),
            taken: 0,
            dropped: 0,
            incoming: Batch::new(),
            wakeups: Wakeups::new()?,
        };
        netem.wait()?;
        Ok(netem)
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
        self.taken += self.nested.send(&mut self.outgoing.tx(self.taken))?;
        self.dropped += self.outgoing.take_dropped();
        Ok(())
    }

    /// Sets what wakes the link next.
    fn wait(&mut self) -> Result<()> {
        let due_out = self.tx.next_due().filter(|_| !self.is_blocked());
        let due = [due_out, self.rx.next_due()].into_iter().flatten().min();
        let blocked = self.is_blocked().then(|| self.nested.send_fd());
        let set = self.wakeups.set_timer(due, self.start.elapsed());
        set.and_then(|()| self.wakeups.watch(self.nested.fd(), blocked))
            .map_err(cannot_wait)
    }
}

impl Link for Netem {
    fn fd(&self) -> BorrowedFd<'_> {
        self.wakeups.epoll.0.as_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let (may_recv, may_send) = self.wakeups.nested_is_ready().map_err(cannot_wait)?;
        if may_recv {
            self.nested.recv(&mut self.incoming.rx())?;
        }
        if may_send && self.is_blocked() {
            self.send_outgoing()?;
        }
        let now = self.start.elapsed();
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
        self.nested.other_side(State {
            offloads: state.offloads.intersection(self.rx.settings().offloads()),
            ..state
        });
    }

    fn state(&self) -> State {
        let state = self.nested.state();
        State {
            offloads: state.offloads.intersection(self.tx.settings().offloads()),
            ..state
        }
    }

    fn status(&self) -> Status {
        let mut status = self.nested.status();
        let extra = &mut status.extra;
        extra.insert("seed".to_owned(), self.seed.to_string());
        for (direction, path) in [("tx", &self.tx), ("rx", &self.rx)] {
            let counters = path.counters();
            let text = format!(
                "in flight {}, lost {}, duplicated {}, corrupted {}, reordered {}, dropped {}",
                path.in_flight(),
                counters.lost,
                counters.duplicated,
                counters.corrupted,
                counters.reordered,
                counters.dropped,
            );
            extra.insert(direction.to_owned(), text);
        }
        status
    }

    fn is_shared(&self) -> bool {
        self.nested.is_shared()
    }
}

/// What makes the link's descriptor readable: a frame that is due, and the nested link.
struct Wakeups {
    epoll: Epoll,
    timer: TimerFd,
    /// When the timer expires.
    expires: Option<Duration>,
}

/// What the epoll instance says of the nested link's descriptors, and of the timer.
const NESTED: u64 = 1;
const TIMER: u64 = 0;

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

    /// Whether the nested link is to be called: for receiving, and for sending.
    fn nested_is_ready(&self) -> nix::Result<(bool, bool)> {
        let mut events = [EpollEvent::empty(); 4];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO)?;
        let nested = events[..count]
            .iter()
            .filter(|event| event.data() == NESTED);
        let flags = nested.fold(EpollFlags::empty(), |all, event| all | event.events());
        let send = flags.intersects(EpollFlags::EPOLLOUT);
        Ok((flags.intersects(!EpollFlags::EPOLLOUT), send))
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
    let settings = Settings::parse(request.argument())?;
    let nested = request.host.open(&settings.nested)?;
    Ok(Box::new(Netem::open(settings, nested)?))
}

export_plugin! {
    scheme: "netem",
    description: "delay, loss, rate and more on another network: netem://delay=50ms{VNL}",
    capabilities: Capabilities::NESTS.and(Capabilities::SUPER_FRAMES),
    open: open,
}
