//! Datagrams as a cable's far end may send them, through the pump of a worker: whatever they are,
//! it comes to rest.
//!
//! The source passes a datagram to a negotiation, as the schemes do whose ends may be ours: it
//! unwraps the super-frames of a peer that has proven to be ours, and keeps messages for itself.
//! The sink takes frames as a socket does: so many a call, and none in a call for which its queue
//! is full. Its descriptor says that it has room all the same, so a pump that offers what cannot be
//! taken would do so for ever; here it is stopped and found out.

use fastrand::Rng;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};
use vdens::ipc::status::Counters;
use vdens::worker::pump::{Event, Pump, Side};
use vdens_plugin_kit::negotiation::{Negotiation, Received};
use vdens_plugin_kit::wire::hello::{Body, Cable, Message, Nonce, SUPER_PREFIX, is_message};
use vdens_plugin_kit::{
    BATCH_FRAMES, Link, MIN_FRAME, Result as ApiResult, RxBatch, State, TxBatch, VNET_HEADER_LEN,
    VnetHeader,
};

use super::offload::SINKS;
use super::packets::{ACK, Flow};
use super::{Target, append, ensure, pick};

/// The most datagrams of an input, and the most bytes in one.
const MOST: usize = 40;
const LONGEST: usize = 1024;

/// The most calls that a frame may cost: a super-frame has a segment a byte, and every other call
/// finds a full queue.
const CALLS: usize = 2 * LONGEST + 2;

/// The two ends' nonces, which no input has by chance.
const OWN: Nonce = Nonce(0x9e37_79b9_7f4a_7c15);
const PEERS: Nonce = Nonce(0xbf58_476d_1ce4_e5b9);

/// An input: a byte for what the sink takes, one for how much at a time, one for when its queue is
/// full, one for the source (bit 0: it serves others too; bit 1: the peer has proven nothing), and
/// each datagram behind its length.
pub(crate) struct Pumped {
    /// Always readable and writable.
    ready: EventFd,
    /// Never readable.
    never: EventFd,
    /// Readable when the pump is to stop.
    stop: EventFd,
}

impl Pumped {
    pub(crate) fn new() -> Self {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let event = |value| EventFd::from_value_and_flags(value, flags);
        let make = || Some((event(1).ok()?, event(0).ok()?, event(0).ok()?));
        let Some((ready, never, stop)) = make() else {
            panic!("there are no descriptors left");
        };
        Self { ready, never, stop }
    }
}

/// Gives datagrams, and stops the pump when it is asked for more than there are.
struct Source<'a> {
    fds: &'a Pumped,
    datagrams: &'a [&'a [u8]],
    is_shared: bool,
    negotiation: Negotiation,
    messages: u64,
}

/// What this end knows of its peer, which has proven to be one of ours or not.
fn negotiation(is_proven: bool) -> Negotiation {
    let mut negotiation = Negotiation::as_switch(OWN, None, PEERS);
    if is_proven {
        let message = Message {
            cable: Cable::default(),
            to: OWN,
            from: PEERS,
            body: Body::Declined,
        };
        negotiation.receive(&message.encode());
    }
    negotiation
}

impl Link for Source<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fds.ready.as_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> ApiResult<()> {
        if self.datagrams.is_empty() {
            let _ = self.fds.stop.write(1);
        }
        while let [datagram, rest @ ..] = self.datagrams
            && batch.push(datagram)
        {
            self.datagrams = rest;
        }
        batch.filter(0, |frame| {
            let received = self.negotiation.receive(frame.bytes());
            self.messages += u64::from(matches!(received, Received::Message(_)));
            received.action()
        });
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> ApiResult<usize> {
        Ok(batch.len())
    }

    fn is_shared(&self) -> bool {
        self.is_shared
    }
}

/// Takes frames, and stops a pump that has called too often.
struct Sink<'a> {
    fds: &'a Pumped,
    state: State,
    chunk: usize,
    /// One bit for each of the next calls: whether the queue is full.
    full: u8,
    calls_left: usize,
    frames: u64,
    bytes: u64,
}

impl Link for Sink<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fds.never.as_fd()
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.fds.ready.as_fd()
    }

    fn recv(&mut self, _batch: &mut RxBatch<'_>) -> ApiResult<()> {
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> ApiResult<usize> {
        let Some(left) = self.calls_left.checked_sub(1) else {
            let _ = self.fds.stop.write(1);
            return Ok(0);
        };
        self.calls_left = left;
        // Never twice in a row.
        let is_full = self.full & 3 == 1;
        self.full = self.full.rotate_left(1);
        if is_full {
            return Ok(0);
        }
        let mut taken = 0;
        for frame in batch.frames().take(self.chunk) {
            taken += 1;
            self.frames += 1;
            self.bytes += frame.bytes().len() as u64;
        }
        Ok(taken)
    }

    fn state(&self) -> State {
        self.state
    }
}

/// What becomes of a datagram at the source.
#[derive(PartialEq, Eq)]
enum Kind {
    Malformed,
    Message,
    Frame,
}

fn kind(datagram: &[u8], peer_is_proven: bool) -> Kind {
    if datagram.len() < MIN_FRAME {
        return Kind::Malformed;
    }
    match datagram.strip_prefix(&SUPER_PREFIX) {
        None if is_message(datagram) => Kind::Message,
        None => Kind::Frame,
        Some(_) if !peer_is_proven => Kind::Malformed,
        // The pump passes on nothing that the sink's far end would take for a message.
        Some(wrapped) => match wrapped.get(VNET_HEADER_LEN..) {
            Some(frame) if frame.len() >= MIN_FRAME && !is_message(frame) => Kind::Frame,
            _ => Kind::Malformed,
        },
    }
}

impl Target for Pumped {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        append(random, input, 4);
        for _ in 0..random.usize(..12) {
            let mut datagram = Vec::new();
            let mut frame = Vec::new();
            let payload = vec![7; random.usize(..200)];
            let mut flow = Flow::any(random, true);
            flow.flags = ACK;
            flow.append(&payload, true, &mut frame);
            match random.usize(..6) {
                // Too short for header and frame, or just long enough.
                0 | 1 => {
                    datagram.extend(SUPER_PREFIX);
                    let len = random.usize(..VNET_HEADER_LEN + MIN_FRAME + 2);
                    append(random, &mut datagram, len);
                }
                2 => {
                    let header = VnetHeader {
                        flags: random.u8(..) & 1,
                        gso_type: *pick(random, &[0, flow.gso_type(), 3]),
                        gso_size: 1 + random.usize(..300) as u16,
                        csum_start: 34,
                        csum_offset: 16,
                        ..VnetHeader::default()
                    };
                    datagram.extend(SUPER_PREFIX);
                    datagram.extend(header.to_bytes());
                    datagram.extend(&frame);
                }
                3 => {
                    datagram.extend(&SUPER_PREFIX[..random.usize(..SUPER_PREFIX.len())]);
                    let len = random.usize(..30);
                    append(random, &mut datagram, len);
                }
                _ => datagram = frame,
            }
            datagram.truncate(LONGEST);
            input.extend((datagram.len() as u16).to_be_bytes());
            input.extend(&datagram);
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let (&[takes, chunk, full, source], mut rest) =
            input.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let mut datagrams = Vec::new();
        while let [high, low, bytes @ ..] = rest
            && datagrams.len() < MOST
        {
            let len = usize::from(u16::from_be_bytes([*high, *low])).min(bytes.len());
            let (datagram, behind) = bytes.split_at(len);
            rest = behind;
            datagrams.push(&datagram[..len.min(LONGEST)]);
        }
        let offloads = SINKS[usize::from(takes) % SINKS.len()];
        let peer_is_proven = source & 2 == 0;
        let mut source = Source {
            fds: self,
            datagrams: &datagrams,
            is_shared: source & 1 != 0,
            negotiation: negotiation(peer_is_proven),
            messages: 0,
        };
        let mut sink = Sink {
            fds: self,
            state: State {
                offloads,
                ..State::UP
            },
            chunk: 1 + usize::from(chunk) % BATCH_FRAMES,
            full,
            calls_left: CALLS * (datagrams.len() + 1),
            frames: 0,
            bytes: 0,
        };
        let moved = pump(self, &mut source, &mut sink)?;
        ensure(sink.calls_left > 0, || "the pump goes round".into())?;
        ensure(source.datagrams.is_empty(), || {
            format!("{} datagrams are left", source.datagrams.len())
        })?;
        let count = |kind_of: Kind| {
            let of_kind = datagrams
                .iter()
                .filter(|datagram| kind(datagram, peer_is_proven) == kind_of);
            of_kind.count() as u64
        };
        let dropped = moved.dropped;
        ensure(source.messages == count(Kind::Message), || {
            format!("{} messages", source.messages)
        })?;
        ensure(dropped.malformed == count(Kind::Malformed), || {
            format!("{} malformed", dropped.malformed)
        })?;
        ensure(
            (moved.frames, moved.bytes) == (sink.frames, sink.bytes),
            || {
                format!(
                    "{moved:?}, {} frames of {} bytes taken",
                    sink.frames, sink.bytes
                )
            },
        )?;
        ensure(source.is_shared || dropped.queue_full == 0, || {
            format!("{moved:?} though the source waits")
        })?;
        // Some become one where the sink takes super-frames.
        let least = match offloads.0 {
            0 => count(Kind::Frame),
            _ => count(Kind::Frame).min(1),
        };
        let accounted = moved.frames + dropped.undeliverable + dropped.queue_full;
        ensure(accounted >= least, || format!("{moved:?} for {least}"))
    }
}

/// Lets a pump run until a link stops it; what it moved from the source to the sink.
fn pump(fds: &Pumped, source: &mut Source<'_>, sink: &mut Sink<'_>) -> Result<Counters, String> {
    let mut pump = Pump::new(source, sink);
    pump.settle()
        .map_err(|(side, error)| format!("{side:?} broke: {error}"))?;
    let stopped = loop {
        match pump.run(&fds.stop, None) {
            Ok(Event::Changed(_)) => {}
            Ok(Event::Control) => break Ok(pump.counters(Side::Near)),
            stop => break Err(format!("{stop:?}")),
        }
    };
    // For the next input.
    let _ = fds.stop.read();
    stopped
}
