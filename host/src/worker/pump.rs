//! The data plane of a worker: frames between two links, in both directions.
//!
//! Each direction owns a batch. It receives when the batch is empty and the source is readable, and
//! sends until the batch is empty again. When the sink's queue is full, it waits for the sink
//! alone: the source's own queue fills and its senders slow down, as on a cable. A shared source, a
//! switch, is never made to wait: what the sink does not take is dropped and counted.
//!
//! Each link is told that the link at the other side takes all offloads, whether it does or not.
//! The batch of each direction is in an offload [`Converter`], which does in user space what the
//! sink needs done.
//!
//! After each call of a link, the pump compares the link's state with the one that the opposite
//! link was told last, and passes it on when it has changed. The loop stops with an [`Event`]: a
//! state has changed, the control descriptor is readable, it is the time that the caller set, or a
//! link broke. After all but the last it can be run again, and nothing is lost.
//!
//! While frames follow each other closely, the pump stays awake between them (`busy_poll`). It
//! counts frames and bytes in plain numbers.

use std::ops::{Index, IndexMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};
use vdens_plugin_kit::offload::Converter;
use vdens_plugin_kit::wire::hello::is_message;
use vdens_plugin_kit::{FrameAction, Link, Offloads, State};

use crate::error::{Error, Result};
use crate::ipc::status::Counters;
use crate::worker::busy_poll::BusyPoll;

/// A side of a pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// A worker's interface; the first end of a `vde_plug`.
    Near,
    /// A worker's transport; the second end of a `vde_plug`.
    Far,
}

impl Side {
    /// Both.
    pub(crate) const BOTH: [Self; 2] = [Self::Near, Self::Far];

    /// The opposite side.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }
}

/// One thing for each side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sides<T> {
    /// That of the near side.
    pub near: T,
    /// That of the far side.
    pub far: T,
}

impl<T> Index<Side> for Sides<T> {
    type Output = T;

    fn index(&self, side: Side) -> &T {
        match side {
            Side::Near => &self.near,
            Side::Far => &self.far,
        }
    }
}

impl<T> IndexMut<Side> for Sides<T> {
    fn index_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Near => &mut self.near,
            Side::Far => &mut self.far,
        }
    }
}

/// What a pump's owner has to see to.
#[derive(Debug)]
pub enum Event {
    /// The control descriptor is readable.
    Control,
    /// The state of the link at this side has changed.
    Changed(Side),
    /// It is time.
    Time,
    /// The link at this side broke.
    Broken(Side, Error),
}

/// One direction.
#[derive(Default)]
struct Flow {
    converter: Converter,
    counters: Counters,
}

impl Flow {
    fn is_blocked(&self) -> bool {
        !self.converter.is_empty()
    }

    /// Receives what the source has, less what would be a message at the sink. A link takes its
    /// peer's messages out, so one that is left was forged by a station behind it.
    fn receive(&mut self, source: &mut dyn Link) -> Result<()> {
        let mut batch = self.converter.rx();
        let received = source.recv(&mut batch);
        batch.filter(0, |frame| match is_message(frame.bytes()) {
            true => FrameAction::Drop,
            false => FrameAction::Keep,
        });
        self.counters.dropped.malformed += self.converter.take_dropped();
        received
    }

    /// Offers what is left to the sink.
    fn offer(&mut self, source_waits: bool, sink: &mut dyn Link) -> Result<()> {
        let offloads = sink.state().offloads;
        while let Some(mut frames) = self.converter.tx(offloads) {
            let offered = frames.len();
            let taken = sink.send(&mut frames)?;
            let bytes: usize = frames.frames().take(taken).map(|f| f.bytes().len()).sum();
            self.converter.taken(taken);
            self.counters.dropped.undeliverable += self.converter.take_lost();
            // A sink may take frames and drop them: usually all of a batch or none.
            let lost = self.converter.take_dropped();
            self.counters.dropped.undeliverable += lost;
            if let Some(sent @ 1..) = (taken as u64).checked_sub(lost) {
                self.counters.frames += sent;
                self.counters.bytes += bytes as u64;
            }
            if taken < offered {
                if !source_waits {
                    self.counters.dropped.queue_full += self.converter.discard();
                }
                break;
            }
        }
        self.counters.dropped.undeliverable += self.converter.take_dropped();
        Ok(())
    }
}

/// Two links and the frames on their way between them.
pub struct Pump<'a> {
    links: Sides<&'a mut dyn Link>,
    /// The state of the link at this side that the opposite link was told last.
    announced: Sides<Option<State>>,
    /// Whether a change of this link's state is still to be reported to the owner.
    changed: Sides<bool>,
    /// The direction that starts at this side.
    flows: Sides<Flow>,
    waiting: BusyPoll,
}

impl<'a> Pump<'a> {
    /// A pump between two open links.
    pub fn new(near: &'a mut dyn Link, far: &'a mut dyn Link) -> Self {
        Self {
            links: Sides { near, far },
            announced: Sides::default(),
            changed: Sides::default(),
            flows: Sides::default(),
            waiting: BusyPoll::default(),
        }
    }

    /// Tells each link the other's state, and lets each do what it has to do at once. Call it
    /// first.
    ///
    /// # Errors
    /// A link broke: its side, and why.
    pub fn settle(&mut self) -> Result<(), (Side, Error)> {
        let readable = Sides {
            near: true,
            far: true,
        };
        let ready = Ready {
            readable,
            ..Ready::default()
        };
        self.announce(Side::Near);
        self.announce(Side::Far);
        self.step(Side::Far, &ready)?;
        self.step(Side::Near, &ready)
    }

    /// The link at a side.
    pub fn link(&self, side: Side) -> &dyn Link {
        &*self.links[side]
    }

    /// Moves frames until there is an event, at `until` at the latest.
    ///
    /// # Errors
    /// The waiting itself fails.
    pub fn run(&mut self, control: impl AsFd, until: Option<Instant>) -> Result<Event> {
        loop {
            for side in Side::BOTH {
                if std::mem::take(&mut self.changed[side]) {
                    return Ok(Event::Changed(side));
                }
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                return Ok(Event::Time);
            }
            let ready = self.wait(control.as_fd(), until)?;
            if ready.control {
                return Ok(Event::Control);
            }
            for source in Side::BOTH {
                if let Err((side, error)) = self.step(source, &ready) {
                    return Ok(Event::Broken(side, error));
                }
            }
        }
    }

    /// What was moved from the link at `source` to the other.
    pub fn counters(&self, source: Side) -> Counters {
        self.flows[source].counters
    }

    /// One direction's turn. An error names the side that broke.
    fn step(&mut self, source: Side, ready: &Ready) -> Result<(), (Side, Error)> {
        let sink = source.other();
        let flow = &mut self.flows[source];
        if ready.readable[source] {
            let received = flow.receive(self.links[source]);
            received.map_err(|error| (source, error))?;
        }
        if flow.is_blocked() && (ready.readable[source] || ready.writable[sink]) {
            let source_waits = !self.links[source].is_shared();
            let offered = flow.offer(source_waits, self.links[sink]);
            offered.map_err(|error| (sink, error))?;
            self.announce(sink);
        }
        if ready.readable[source] {
            self.announce(source);
        }
        Ok(())
    }

    /// Tells the opposite link the state of the one at `side`, if it has changed.
    fn announce(&mut self, side: Side) {
        let state = self.links[side].state().with_offloads(Offloads::ALL);
        if self.announced[side] != Some(state) {
            self.announced[side] = Some(state);
            self.changed[side] = true;
            self.links[side.other()].other_side(state);
        }
    }

    /// Waits until there is something to do, and returns what.
    fn wait(&mut self, control: BorrowedFd<'_>, until: Option<Instant>) -> Result<Ready> {
        let Sides { near, far } = &self.links;
        // The flow that starts at this side has frames that the opposite link has not taken.
        let near_is_blocked = self.flows.near.is_blocked();
        let far_is_blocked = self.flows.far.is_blocked();
        let wanted = [
            (near.fd(), PollFlags::POLLIN, !near_is_blocked),
            (far.fd(), PollFlags::POLLIN, !far_is_blocked),
            (near.send_fd(), PollFlags::POLLOUT, far_is_blocked),
            (far.send_fd(), PollFlags::POLLOUT, near_is_blocked),
            (control, PollFlags::POLLIN, true),
        ];
        // A descriptor that nothing is wanted of would still report a hang-up, again and again; the
        // control descriptor stands in for it.
        let mut fds = wanted.map(|(fd, flags, is_wanted)| match is_wanted {
            true => PollFd::new(fd, flags),
            false => PollFd::new(control, PollFlags::empty()),
        });
        self.waiting.wait(&mut fds, until)?;
        let ready = |i: usize| wanted[i].2 && fds[i].any() == Some(true);
        Ok(Ready {
            readable: Sides {
                near: ready(0),
                far: ready(1),
            },
            writable: Sides {
                near: ready(2),
                far: ready(3),
            },
            control: ready(4),
        })
    }
}

/// What can be done without waiting, by link.
#[derive(Default)]
struct Ready {
    readable: Sides<bool>,
    writable: Sides<bool>,
    control: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipc::status::Dropped;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::thread;
    use vdens_plugin_kit::{RxBatch, TxBatch};

    struct Socket {
        socket: UnixDatagram,
        shared: bool,
        other_side: Option<State>,
    }

    impl Link for Socket {
        fn fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }
        fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
            let taken = batch.receive_datagrams(&self.socket, 2000);
            taken.map(drop).map_err(|e| Error::io("receive", &e))
        }
        fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
            let sent = batch.send_datagrams(&self.socket, 0);
            sent.map_err(|e| Error::io("send", &e))
        }
        fn other_side(&mut self, state: State) {
            self.other_side = Some(state);
        }
        fn is_shared(&self) -> bool {
            self.shared
        }
    }

    fn cable(shared: bool) -> (Socket, UnixDatagram) {
        let (socket, far) = UnixDatagram::pair().unwrap();
        far.set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .unwrap();
        let other_side = None;
        (
            Socket {
                socket,
                shared,
                other_side,
            },
            far,
        )
    }

    /// Sends `count` numbered frames through a pump whose receiver reads only after all were sent.
    fn pass(count: u16, shared: bool) -> (Vec<u16>, [Counters; 2]) {
        let ((mut a, far_a), (mut b, far_b)) = (cable(shared), cable(false));
        let (stop, control) = UnixStream::pair().unwrap();
        let pump = thread::spawn(move || {
            let mut pump = Pump::new(&mut a, &mut b);
            pump.settle().unwrap();
            while let Event::Changed(_) = pump.run(&control, None).unwrap() {}
            let counters = Side::BOTH.map(|side| pump.counters(side));
            let told = b.other_side.unwrap();
            assert_eq!((told.carrier, told.offloads), (true, Offloads::ALL));
            counters
        });
        let sender = thread::spawn(move || {
            for n in 0..count {
                let mut frame = [0; 60];
                frame[..2].copy_from_slice(&n.to_be_bytes());
                far_a.send(&frame).unwrap();
            }
            far_a
        });
        thread::sleep(std::time::Duration::from_millis(200));
        let mut got = Vec::new();
        let mut frame = [0; 100];
        let limit = if shared {
            None
        } else {
            Some(usize::from(count))
        };
        if shared {
            sender.join().unwrap();
            far_b.set_nonblocking(true).unwrap();
        }
        while limit != Some(got.len()) && far_b.recv(&mut frame).is_ok() {
            got.push(u16::from_be_bytes([frame[0], frame[1]]));
        }
        drop(stop);
        (got, pump.join().unwrap())
    }

    #[test]
    fn a_cable_waits_and_loses_nothing() {
        let (got, counters) = pass(1000, false);
        assert_eq!(got, (0..1000).collect::<Vec<_>>());
        assert_eq!(
            counters[0],
            Counters {
                frames: 1000,
                bytes: 60_000,
                dropped: Dropped::default()
            }
        );
    }

    #[test]
    fn frames_that_look_like_messages_pass_in_neither_direction() {
        let ((mut a, far_a), (mut b, far_b)) = (cable(false), cable(false));
        let mut message = vdens_plugin_kit::wire::hello::SUPER_PREFIX.to_vec();
        message.resize(90, 0);
        for far in [&far_a, &far_b] {
            far.send(&message).unwrap();
            message[19] = 2;
            far.send(&message).unwrap();
            far.send(&[7; 60]).unwrap();
        }
        let mut pump = Pump::new(&mut a, &mut b);
        pump.settle().unwrap();
        for far in [&far_a, &far_b] {
            assert_eq!(far.recv(&mut [0; 100]).unwrap(), 60);
        }
        for counters in Side::BOTH.map(|side| pump.counters(side)) {
            assert_eq!((counters.frames, counters.dropped.malformed), (1, 2));
        }
    }

    #[test]
    fn a_shared_link_is_not_made_to_wait() {
        let (got, counters) = pass(1000, true);
        assert!(got.len() < 1000);
        assert_eq!(counters[0].frames, got.len() as u64);
        assert_eq!(counters[0].frames + counters[0].dropped.queue_full, 1000);
        let other_causes = Dropped {
            queue_full: 0,
            ..counters[0].dropped
        };
        assert_eq!(other_causes, Dropped::default());
    }
}
