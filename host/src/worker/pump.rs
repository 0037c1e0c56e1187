//! The data plane of a worker: frames between two links, in both directions.
//!
//! Each direction owns a batch. It receives when the batch is empty and the source is readable, and
//! sends until the batch is empty again; when the sink's queue is full it waits for the sink alone, so
//! the source's own queue fills and its senders slow down, as on a cable. A shared source, a switch, is
//! never made to wait: what the sink does not take is dropped and counted.
//!
//! Links are told that the other side takes all offloads, whether it does or not: each direction's batch
//! is in a [`Stage`], which does in user space what the sink needs done.
//!
//! After every call the state of the link that was called is compared with what its opposite was last
//! told, and passed on when it has changed. The loop stops when a state has changed, when the control descriptor
//! becomes readable, which is its owner's to interpret, at a time that its owner sets, or when a link breaks; after all
//! but the last it can be run again, and nothing is lost.
//!
//! While frames follow each other closely the pump stays awake between them (`busy_poll`).
//! Frames and bytes are counted on the way, in plain numbers.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};
use vdens_plugin_kit::offload::Stage;
use vdens_plugin_kit::wire::hello::is_message;
use vdens_plugin_kit::{FrameAction, Link, Offloads, State};

use crate::error::{Error, Result};
use crate::ipc::status::Counters;
use crate::worker::busy_poll::BusyPoll;

/// Why a pump stopped without a failure of its own.
#[derive(Debug)]
pub enum Stop {
    /// The control descriptor is readable.
    Control,
    /// The state of a link has changed: 0 for the first, 1 for the second.
    Changed(usize),
    /// It is time.
    Time,
    /// A link broke: 0 for the first, 1 for the second, and how.
    Broken(usize, Error),
}

/// One direction.
#[derive(Default)]
struct Flow {
    stage: Stage,
    counters: Counters,
}

impl Flow {
    fn is_blocked(&self) -> bool {
        !self.stage.is_empty()
    }

    /// Receives what the source has, less what would be a message at the sink: a link takes its own
    /// out, so what is left was sent by somebody behind it, who is to speak in nobody else's name.
    fn receive(&mut self, source: &mut dyn Link) -> Result<()> {
        let mut batch = self.stage.rx();
        let received = source.recv(&mut batch);
        batch.filter(0, |frame| match is_message(frame.bytes()) {
            true => FrameAction::Drop,
            false => FrameAction::Keep,
        });
        self.counters.dropped.malformed += self.stage.take_dropped();
        received
    }

    /// Offers what is left to the sink.
    fn offer(&mut self, source_waits: bool, sink: &mut dyn Link) -> Result<()> {
        let offloads = sink.state().offloads;
        while let Some(mut frames) = self.stage.tx(offloads) {
            let offered = frames.len();
            let taken = sink.send(&mut frames)?;
            let bytes: usize = frames.frames().take(taken).map(|f| f.bytes().len()).sum();
            self.stage.taken(taken);
            self.counters.dropped.undeliverable += self.stage.take_lost();
            // What a sink takes and drops is lost: usually all of a batch or nothing.
            let lost = self.stage.take_dropped();
            self.counters.dropped.undeliverable += lost;
            if let Some(sent @ 1..) = (taken as u64).checked_sub(lost) {
                self.counters.frames += sent;
                self.counters.bytes += bytes as u64;
            }
            if taken < offered {
                if !source_waits {
                    self.counters.dropped.queue_full += self.stage.discard();
                }
                break;
            }
        }
        self.counters.dropped.undeliverable += self.stage.take_dropped();
        Ok(())
    }
}

/// Two links and what is on its way between them. Flow 0 goes from link 0 to link 1.
pub struct Pump<'a> {
    links: [&'a mut dyn Link; 2],
    told: [Option<State>; 2],
    /// Links whose change of state has not been reported.
    changed: [bool; 2],
    flows: [Flow; 2],
    waiting: BusyPoll,
}

impl<'a> Pump<'a> {
    /// A pump between two open links.
    pub fn new(a: &'a mut dyn Link, b: &'a mut dyn Link) -> Self {
        Self {
            links: [a, b],
            told: [None; 2],
            changed: [false; 2],
            flows: Default::default(),
            waiting: BusyPoll::default(),
        }
    }

    /// Lets each side know of the other, and each link do what it has to do at once. To be called first.
    ///
    /// # Errors
    /// A link broke: which, and how.
    pub fn settle(&mut self) -> Result<(), (usize, Error)> {
        let ready = Ready {
            readable: [true, true],
            writable: [false, false],
            control: false,
        };
        self.tell(0);
        self.tell(1);
        self.step(1, &ready)?;
        self.step(0, &ready)
    }

    /// The links.
    pub fn links(&self) -> [&dyn Link; 2] {
        let [a, b] = &self.links;
        [&**a, &**b]
    }

    /// Moves frames until there is a reason to stop, at `until` at the latest.
    ///
    /// # Errors
    /// The waiting itself fails.
    pub fn run(&mut self, control: impl AsFd, until: Option<Instant>) -> Result<Stop> {
        loop {
            for side in [0, 1] {
                if std::mem::take(&mut self.changed[side]) {
                    return Ok(Stop::Changed(side));
                }
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                return Ok(Stop::Time);
            }
            let ready = self.wait(control.as_fd(), until)?;
            if ready.control {
                return Ok(Stop::Control);
            }
            for source in [0, 1] {
                if let Err((side, error)) = self.step(source, &ready) {
                    return Ok(Stop::Broken(side, error));
                }
            }
        }
    }

    /// What was moved from link 0 to link 1, and from link 1 to link 0.
    pub fn counters(&self) -> [Counters; 2] {
        [self.flows[0].counters, self.flows[1].counters]
    }

    /// One direction's turn. An error names the side that broke.
    fn step(&mut self, source: usize, ready: &Ready) -> Result<(), (usize, Error)> {
        let sink = 1 - source;
        let flow = &mut self.flows[source];
        if ready.readable[source] {
            let received = flow.receive(self.links[source]);
            received.map_err(|error| (source, error))?;
        }
        if flow.is_blocked() && (ready.readable[source] || ready.writable[sink]) {
            let source_waits = !self.links[source].is_shared();
            let offered = flow.offer(source_waits, self.links[sink]);
            offered.map_err(|error| (sink, error))?;
            self.tell(sink);
        }
        if ready.readable[source] {
            self.tell(source);
        }
        Ok(())
    }

    /// Tells the opposite of link `side` that link's state, if it has changed.
    fn tell(&mut self, side: usize) {
        let state = State {
            offloads: Offloads::ALL,
            ..self.links[side].state()
        };
        if self.told[side] != Some(state) {
            self.told[side] = Some(state);
            self.changed[side] = true;
            self.links[1 - side].other_side(state);
        }
    }

    /// Waits until there is something to do, and says what.
    fn wait(&mut self, control: BorrowedFd<'_>, until: Option<Instant>) -> Result<Ready> {
        let [a, b] = &self.links;
        let blocked = [self.flows[0].is_blocked(), self.flows[1].is_blocked()];
        let wanted = [
            (a.fd(), PollFlags::POLLIN, !blocked[0]),
            (b.fd(), PollFlags::POLLIN, !blocked[1]),
            (a.send_fd(), PollFlags::POLLOUT, blocked[1]),
            (b.send_fd(), PollFlags::POLLOUT, blocked[0]),
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
            readable: [ready(0), ready(1)],
            writable: [ready(2), ready(3)],
            control: ready(4),
        })
    }
}

/// What can be done without waiting, by link.
struct Ready {
    readable: [bool; 2],
    writable: [bool; 2],
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
            while let Stop::Changed(_) = pump.run(&control, None).unwrap() {}
            let counters = pump.counters();
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
        for counters in pump.counters() {
            assert_eq!((counters.frames, counters.dropped.malformed), (1, 2));
        }
    }

    #[test]
    fn a_shared_link_is_not_made_to_wait() {
        let (got, counters) = pass(1000, true);
        assert!(got.len() < 1000);
        assert_eq!(counters[0].frames, got.len() as u64);
        assert_eq!(counters[0].frames + counters[0].dropped.queue_full, 1000);
        assert_eq!(counters[0].dropped.total(), counters[0].dropped.queue_full);
    }
}
