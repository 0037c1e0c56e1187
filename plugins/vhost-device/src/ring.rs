//! A ring of buffers: one virtqueue in the split format (virtio 1.2, section 2.7).
//!
//! # Theory of operation
//!
//! The guest makes chains of buffers available, and this side uses them: it takes what is in them,
//! or fills them, and puts their numbers into the used ring. `virtio-queue` reads what is available
//! and follows the chains, and this module does what net devices need besides: several chains that
//! are used at once, or given back.
//!
//! All of it is in the guest's memory, so nothing of it can be trusted. A chain is followed over at
//! most as many descriptors as the ring has; each access is checked by `vm-memory`. What no driver
//! does is a [`Fault`], and the ring is used no more until the front end starts it again.
//!
//! Either side tells the other only of what it waits for. With EVENT_IDX each has a place for the
//! number that it waits for (section 2.7.7); without, a flag.

use std::fmt;
use std::num::Wrapping;
use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};

use nix::unistd::write;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::memory::Memory;
use crate::protocol::RingAddress;
use crate::wakeups::{Gate, Kick};

/// The most descriptors of a ring; QEMU has 1024 at the most.
const MAX_SIZE: u16 = 4096;

/// What no driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// More chains are available than there can be.
    Available,
    /// A chain is empty, too long, or goes on where there is nothing.
    Chain,
    /// A buffer is to be written that is to be read, or the other way round.
    Direction,
    /// A buffer or the ring is outside of the guest's memory.
    Memory,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Available => "more buffers are available than there can be",
            Self::Chain => "a chain of buffers is malformed",
            Self::Direction => "a buffer is in the wrong direction",
            Self::Memory => "a buffer is outside of the guest's memory",
        })
    }
}

/// Which way a ring's buffers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// This side fills them.
    ToGuest,
    /// The guest has filled them.
    FromGuest,
}

/// Whether a ring is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Stopped,
    Started,
    /// There was a fault.
    Broken,
}

/// A chain of buffers.
#[derive(Clone, Copy, Debug)]
struct Chain {
    head: u16,
    /// Bytes of all its buffers.
    length: usize,
}

/// What became of a frame for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// It is in the ring.
    Done,
    /// There are too few buffers at present.
    Full,
    /// It fits into no buffers that the guest provides.
    TooLong,
}

/// A ring.
#[derive(Debug)]
pub(crate) struct Ring {
    direction: Direction,
    queue: Queue,
    phase: Phase,
    is_enabled: bool,
    kick: Option<Kick>,
    pub(crate) call: Option<OwnedFd>,
    pub(crate) error: Option<OwnedFd>,
    /// The buffers of the chains at hand, and these chains.
    buffers: Vec<(GuestAddress, usize)>,
    chains: Vec<Chain>,
    /// Chains that were used, with the bytes written, and which the guest is not told of.
    used: Vec<(u16, u32)>,
}

impl Ring {
    pub(crate) fn new(direction: Direction) -> Self {
        Self {
            direction,
            // The only error is about a size that is no power of two.
            queue: Queue::new(MAX_SIZE).unwrap_or_default(),
            phase: Phase::Stopped,
            is_enabled: false,
            kick: None,
            call: None,
            error: None,
            buffers: Vec::new(),
            chains: Vec::new(),
            used: Vec::new(),
        }
    }

    pub(crate) fn set_size(&mut self, size: u32) -> Result<(), String> {
        self.is_at_rest()?;
        let size16 = u16::try_from(size).map_err(|_| "it is too long".to_owned());
        size16
            .and_then(|size| self.queue.try_set_size(size).map_err(|e| e.to_string()))
            .map_err(|why| format!("a ring of {size} descriptors cannot be used: {why}"))
    }

    pub(crate) fn set_address(
        &mut self,
        address: RingAddress,
        memory: &Memory,
    ) -> Result<(), String> {
        let guest = |address| {
            memory
                .of_front_end(address)
                .ok_or_else(|| format!("a ring at {address:#x} is outside of the guest's memory"))
        };
        let queue = &mut self.queue;
        let descriptors = queue.try_set_desc_table_address(guest(address.descriptors)?);
        let available = queue.try_set_avail_ring_address(guest(address.available)?);
        let used = queue.try_set_used_ring_address(guest(address.used)?);
        descriptors
            .and(available)
            .and(used)
            .map_err(|error| format!("a ring is not aligned: {error}"))?;
        match self.phase {
            Phase::Started => self.check(memory),
            _ => Ok(()),
        }
    }

    pub(crate) fn set_base(&mut self, base: u32) -> Result<(), String> {
        self.is_at_rest()?;
        // The number counts modulo 65536.
        self.queue.set_next_avail(base as u16);
        Ok(())
    }

    fn is_at_rest(&self) -> Result<(), String> {
        match self.phase {
            Phase::Started => Err("a ring is set up while it is in use".into()),
            Phase::Stopped | Phase::Broken => Ok(()),
        }
    }

    pub(crate) fn enable(&mut self, is_enabled: bool) {
        self.is_enabled = is_enabled;
    }

    /// Starts the ring: the guest may kick from now on.
    pub(crate) fn start(&mut self, kick: Kick, memory: &Memory) -> Result<(), String> {
        self.kick = Some(kick);
        self.phase = Phase::Started;
        self.queue.set_ready(true);
        self.check(memory)?;
        // What a back end before this one has used.
        let used = self.queue.used_idx(&memory.guest, Ordering::Acquire);
        let used = used.map_err(|error| error.to_string())?;
        self.queue.set_next_used(used.0);
        Ok(())
    }

    /// Checks that the ring is in the guest's memory.
    pub(crate) fn check(&self, memory: &Memory) -> Result<(), String> {
        match self.phase != Phase::Started || self.queue.is_valid(&memory.guest) {
            true => Ok(()),
            false => Err("a ring is not in the guest's memory".into()),
        }
    }

    /// Whether what this side writes of `other`, its used ring, is what the guest writes of this
    /// ring, its available ring. Then each buffer that is used would make others available, for
    /// ever.
    pub(crate) fn is_fed_by(&self, other: &Self) -> bool {
        let started = |ring: &Self| ring.phase == Phase::Started;
        let (available, used) = (self.queue.avail_ring(), other.queue.used_ring());
        let available_end = available.saturating_add(6 + 2 * u64::from(self.queue.size()));
        let used_end = used.saturating_add(6 + 8 * u64::from(other.queue.size()));
        started(self) && started(other) && available < used_end && used < available_end
    }

    /// Stops the ring and returns where it would go on.
    pub(crate) fn stop(&mut self) -> u16 {
        let base = self.queue.next_avail();
        self.phase = Phase::Stopped;
        self.queue.set_ready(false);
        self.kick = None;
        self.call = None;
        base
    }

    pub(crate) fn set_event_idx(&mut self, is_agreed: bool) {
        self.queue.set_event_idx(is_agreed);
    }

    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether frames can go through it.
    pub(crate) fn is_usable(&self) -> bool {
        self.phase == Phase::Started && self.is_enabled
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.phase == Phase::Broken
    }

    /// Uses the ring no more, and tells the front end.
    pub(crate) fn break_down(&mut self) {
        self.phase = Phase::Broken;
        self.used.clear();
        signal(self.error.as_ref());
    }

    /// Lets `take` have the next chain that the guest has filled; `None` if there is none.
    pub(crate) fn take<R>(
        &mut self,
        memory: &GuestMemoryMmap,
        take: impl FnOnce(&Filled<'_>) -> Result<R, Fault>,
    ) -> Result<Option<R>, Fault> {
        self.buffers.clear();
        let Some(chain) = self.next_chain(memory)? else {
            return Ok(None);
        };
        let filled = Filled {
            memory,
            buffers: &self.buffers,
            length: chain.length,
        };
        let taken = take(&filled)?;
        self.used.push((chain.head, 0));
        Ok(Some(taken))
    }

    /// Puts a frame for the guest into the ring. `header` becomes its virtio header, whose last two
    /// bytes are set to the number of chains if it has twelve. `is_mergeable`: the frame may be in
    /// several chains. If there are too few, shuts the gate and asks the guest to kick.
    pub(crate) fn give(
        &mut self,
        memory: &GuestMemoryMmap,
        mut header: Header,
        frame: &[u8],
        is_mergeable: bool,
        gate: &Gate,
    ) -> Result<Delivery, Fault> {
        let needed = header.length + frame.len();
        let most = if is_mergeable { self.queue.size() } else { 1 };
        let start = self.queue.next_avail();
        self.buffers.clear();
        self.chains.clear();
        let mut room = 0;
        while room < needed {
            if self.chains.len() >= most.into() {
                self.queue.set_next_avail(start);
                return Ok(Delivery::TooLong);
            }
            if let Some(chain) = self.next_chain(memory)? {
                self.chains.push(chain);
                room += chain.length;
                continue;
            }
            gate.shut();
            // What it waits for is the chain behind those at hand, which are given back after that.
            if !self.await_kick(memory)? {
                self.queue.set_next_avail(start);
                return Ok(Delivery::Full);
            }
            gate.open();
        }
        header.set_chains(self.chains.len() as u16);
        scatter(memory, &self.buffers, [header.bytes(), frame])?;
        let mut left = needed;
        for chain in &self.chains {
            let written = chain.length.min(left);
            left -= written;
            self.used.push((chain.head, written as u32));
        }
        Ok(Delivery::Done)
    }

    /// The next chain that is available. Its buffers are appended to `self.buffers`.
    fn next_chain(&mut self, memory: &GuestMemoryMmap) -> Result<Option<Chain>, Fault> {
        let size = usize::from(self.queue.size());
        let mut chains = self.queue.iter(memory).map_err(|_| Fault::Available)?;
        let Some(chain) = chains.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        let (mut length, mut number, mut goes_on) = (0, 0, true);
        for descriptor in chain {
            let is_right = descriptor.is_write_only() == (self.direction == Direction::ToGuest);
            number += 1;
            if !is_right {
                return Err(Fault::Direction);
            }
            if number > size {
                return Err(Fault::Chain);
            }
            let bytes = descriptor.len() as usize;
            self.buffers.push((descriptor.addr(), bytes));
            length += bytes;
            goes_on = descriptor.has_next();
        }
        match goes_on {
            true => Err(Fault::Chain),
            false => Ok(Some(Chain { head, length })),
        }
    }

    /// Tells the guest which chains were used, all at once.
    pub(crate) fn publish(&mut self, memory: &GuestMemoryMmap) -> Result<(), Fault> {
        if self.used.is_empty() {
            return Ok(());
        }
        let (size, ring) = (self.queue.size(), GuestAddress(self.queue.used_ring()));
        let old = Wrapping(self.queue.next_used());
        let mut next = old;
        for (head, written) in self.used.drain(..) {
            // Two numbers of two bytes come before the elements, of two numbers of four.
            let element = (u64::from(head) | u64::from(written) << 32).to_le();
            let at = offset(ring, 4 + 8 * u64::from(next.0 % size))?;
            memory.write_obj(element, at).map_err(|_| Fault::Memory)?;
            next += 1;
        }
        self.queue.set_next_used(next.0);
        memory
            .store(next.0.to_le(), offset(ring, 2)?, Ordering::Release)
            .map_err(|_| Fault::Memory)?;
        // The guest reads the index after it has written what it waits for.
        fence(Ordering::SeqCst);
        if self.is_waited_for(memory, old, next)? {
            signal(self.call.as_ref());
        }
        Ok(())
    }

    /// Whether the guest waits for one of the chains number `old` to `new`.
    fn is_waited_for(
        &self,
        memory: &GuestMemoryMmap,
        old: Wrapping<u16>,
        new: Wrapping<u16>,
    ) -> Result<bool, Fault> {
        let ring = GuestAddress(self.queue.avail_ring());
        let read = |at| {
            let number = memory.load::<u16>(offset(ring, at)?, Ordering::Relaxed);
            number.map(u16::from_le).map_err(|_| Fault::Memory)
        };
        if !self.queue.event_idx_enabled() {
            return Ok(u32::from(read(0)?) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = Wrapping(read(4 + 2 * u64::from(self.queue.size()))?);
        Ok(new - event - Wrapping(1) < new - old)
    }

    /// Asks the guest to kick when it has made chains available. `true` if it has already.
    pub(crate) fn await_kick(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Fault> {
        let enabled = self.queue.enable_notification(memory);
        enabled.map_err(|_| Fault::Memory)
    }

    /// Tells the guest that it need not kick. With EVENT_IDX it does not anyway.
    pub(crate) fn spare_kicks(&mut self, memory: &GuestMemoryMmap) -> Result<(), Fault> {
        let disabled = self.queue.disable_notification(memory);
        disabled.map_err(|_| Fault::Memory)
    }
}

/// The virtio header of a frame for the guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    bytes: [u8; 12],
    length: usize,
}

impl Header {
    /// One of 10 or 12 bytes, of which the first ten are `fields`.
    pub(crate) fn new(fields: [u8; 10], length: usize) -> Self {
        let mut bytes = [0; 12];
        bytes[..10].copy_from_slice(&fields);
        Self { bytes, length }
    }

    fn set_chains(&mut self, number: u16) {
        self.bytes[10..].copy_from_slice(&number.to_le_bytes());
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// A chain that the guest has filled.
#[derive(Debug)]
pub(crate) struct Filled<'a> {
    memory: &'a GuestMemoryMmap,
    buffers: &'a [(GuestAddress, usize)],
    /// Bytes of the chain.
    pub(crate) length: usize,
}

impl Filled<'_> {
    /// Copies what the chain has from byte `skip` on; `out` is no longer than that.
    pub(crate) fn read(&self, mut skip: usize, mut out: &mut [u8]) -> Result<(), Fault> {
        for (address, length) in self.buffers {
            let skipped = skip.min(*length);
            skip -= skipped;
            let taken = (length - skipped).min(out.len());
            let (now, later) = out.split_at_mut(taken);
            if !now.is_empty() {
                let at = offset(*address, skipped as u64)?;
                let read = self.memory.read_slice(now, at);
                read.map_err(|_| Fault::Memory)?;
            }
            out = later;
        }
        Ok(())
    }
}

/// Copies `parts` into buffers, which have room for them.
fn scatter(
    memory: &GuestMemoryMmap,
    buffers: &[(GuestAddress, usize)],
    parts: [&[u8]; 2],
) -> Result<(), Fault> {
    let mut buffers = buffers.iter().copied();
    let (mut at, mut room) = (GuestAddress(0), 0);
    for mut part in parts {
        while !part.is_empty() {
            if room == 0 {
                (at, room) = buffers.next().ok_or(Fault::Chain)?;
                continue;
            }
            let (now, later) = part.split_at(room.min(part.len()));
            memory.write_slice(now, at).map_err(|_| Fault::Memory)?;
            at = offset(at, now.len() as u64)?;
            room -= now.len();
            part = later;
        }
    }
    Ok(())
}

fn offset(address: GuestAddress, bytes: u64) -> Result<GuestAddress, Fault> {
    address.checked_add(bytes).ok_or(Fault::Memory)
}

/// Adds to an eventfd of the front end, which does not block.
fn signal(fd: Option<&OwnedFd>) {
    if let Some(fd) = fd {
        // If it is full, the front end has not read it yet.
        let _ = write(fd, &1_u64.to_ne_bytes());
    }
}
