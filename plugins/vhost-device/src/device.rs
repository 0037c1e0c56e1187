//! The network device of one guest: what was agreed on, the guest's memory, and its queues.
//!
//! A device has pairs of queues. Ring 2N brings frames to the guest, ring 2N+1 from it. The control
//! queue stays with the front end. A frame's virtio header is the same as in a batch, but for the
//! number of chains that a frame for the guest is in.
//!
//! Frames of one flow go into one queue, so they arrive in order. Those from the guest are taken
//! from all queues in turn.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vdens_plugin_kit::log::warn;
use vdens_plugin_kit::{
    BATCH_FRAMES, Frame, MAX_FRAME, MIN_FRAME, Offloads, RxBatch, State, TxBatch, VNET_HEADER_LEN,
    VnetHeader,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryMmap;

use crate::memory::Memory;
use crate::protocol::{Event, F_PROTOCOL_FEATURES, PROTOCOL_FEATURES, PROTOCOL_REPLY_ACK, Request};
use crate::ring::{Delivery, Direction, Fault, Filled, Header, Ring};
use crate::wakeups::{Gate, Kick, Wakeups};

/// The features of the device. Those of the control queue and of the link's status are for the
/// front end, which serves them.
const FEATURES: u64 = F_PROTOCOL_FEATURES
    | bits(&[
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_MTU,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_GUEST_USO4,
        VIRTIO_NET_F_GUEST_USO6,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_USO,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_STATUS,
        VIRTIO_NET_F_CTRL_VQ,
        VIRTIO_NET_F_CTRL_RX,
        VIRTIO_NET_F_GUEST_ANNOUNCE,
        VIRTIO_NET_F_MQ,
    ]);

/// What the guest's driver takes in frames for it, by the feature that it agrees to.
const OFFLOADS: [(u32, Offloads); 6] = [
    (VIRTIO_NET_F_GUEST_CSUM, Offloads::CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, Offloads::TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, Offloads::TSO6),
    (VIRTIO_NET_F_GUEST_ECN, Offloads::TSO_ECN),
    (VIRTIO_NET_F_GUEST_USO4, Offloads::USO4),
    (VIRTIO_NET_F_GUEST_USO6, Offloads::USO6),
];

const fn bits(numbers: &[u32]) -> u64 {
    let (mut bits, mut at) = (0, 0);
    while at < numbers.len() {
        bits |= 1 << numbers[at];
        at += 1;
    }
    bits
}

/// The device.
#[derive(Debug)]
pub(crate) struct Device {
    /// What messages call the guest.
    name: String,
    /// The MTU of the interface at the other side, 0 if it is unknown.
    mtu: u32,
    features: u64,
    protocol_features: u64,
    memory: Option<Memory>,
    rings: Vec<Ring>,
    /// The pair whose frames are taken first.
    first: usize,
    /// Whether the guest has more frames than were taken.
    is_pending: bool,
}

impl Device {
    pub(crate) fn new(name: String, pairs: usize, mtu: u32) -> Self {
        let directions = [Direction::ToGuest, Direction::FromGuest];
        let rings = directions.iter().cycle().take(2 * pairs);
        Self {
            name,
            mtu,
            features: 0,
            protocol_features: 0,
            memory: None,
            rings: rings.map(|direction| Ring::new(*direction)).collect(),
            first: 0,
            is_pending: false,
        }
    }

    /// Does what the front end asks, and returns the body of the answer, if there is one.
    ///
    /// # Errors
    /// The request cannot be fulfilled.
    pub(crate) fn handle(
        &mut self,
        request: Request,
        mut fds: Vec<OwnedFd>,
        wakeups: &Arc<Wakeups>,
    ) -> Result<Option<[u8; 8]>, String> {
        // Whatever it is, it may make a queue usable that has frames already.
        self.is_pending = true;
        match request {
            Request::GetFeatures => return Ok(Some(FEATURES.to_ne_bytes())),
            Request::GetProtocolFeatures => return Ok(Some(PROTOCOL_FEATURES.to_ne_bytes())),
            Request::GetQueueNum => {
                return Ok(Some((self.rings.len() as u64 / 2).to_ne_bytes()));
            }
            Request::GetBase { ring } => {
                let base = self.ring(ring)?.stop();
                let body = [ring, base.into()].map(u32::to_ne_bytes);
                return Ok(body.as_flattened().try_into().ok());
            }
            Request::SetFeatures(features) => self.set_features(features)?,
            Request::SetProtocolFeatures(features) => self.protocol_features = features,
            Request::SetOwner => {}
            Request::ResetOwner => self.rings.iter_mut().for_each(|ring| {
                ring.stop();
            }),
            Request::SetMemory(regions) => {
                let memory = Memory::map(regions, fds)?;
                self.rings.iter().try_for_each(|ring| ring.check(&memory))?;
                self.memory = Some(memory);
            }
            Request::SetSize { ring, size } => self.ring(ring)?.set_size(size)?,
            Request::SetAddress { ring, address } => {
                let (ring, memory) = self.ring_and_memory(ring)?;
                ring.set_address(address, memory)?;
                self.check_overlap()?;
            }
            Request::SetBase { ring, base } => self.ring(ring)?.set_base(base)?,
            Request::SetEvent {
                ring,
                event,
                has_fd,
            } => {
                let fd = fds.pop();
                if fd.is_some() != has_fd {
                    return Err("a message has a descriptor too many or too few".into());
                }
                self.set_event(ring, event, fd, wakeups)?;
            }
            Request::Enable { ring, is_enabled } => self.ring(ring)?.enable(is_enabled),
            Request::SetMtu(mtu) => {
                if self.mtu > 0 && mtu > self.mtu.into() {
                    warn!(
                        "{}: the machine's MTU is {mtu}, and the network's is {}; set host_mtu={}",
                        self.name, self.mtu, self.mtu
                    );
                }
            }
        }
        Ok(None)
    }

    /// Whether the front end may ask for acknowledgements.
    pub(crate) fn acknowledges(&self) -> bool {
        self.protocol_features & PROTOCOL_REPLY_ACK != 0
    }

    fn set_features(&mut self, features: u64) -> Result<(), String> {
        if features & !FEATURES != 0 {
            return Err(format!(
                "the features {:#x} were not offered",
                features & !FEATURES
            ));
        }
        self.features = features;
        let event_idx = self.has(VIRTIO_RING_F_EVENT_IDX);
        for ring in &mut self.rings {
            ring.set_event_idx(event_idx);
        }
        Ok(())
    }

    fn set_event(
        &mut self,
        number: u32,
        event: Event,
        fd: Option<OwnedFd>,
        wakeups: &Arc<Wakeups>,
    ) -> Result<(), String> {
        let is_enabled_by_start = self.features & F_PROTOCOL_FEATURES == 0;
        let (ring, memory) = match event {
            Event::Kick => self.ring_and_memory(number)?,
            Event::Call | Event::Error => {
                if let Some(fd) = &fd {
                    // A front end's descriptor must not be able to block.
                    let set = fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
                    set.map_err(|errno| format!("a descriptor cannot be used: {errno}"))?;
                }
                let ring = self.ring(number)?;
                match event {
                    Event::Call => ring.call = fd,
                    _ => ring.error = fd,
                }
                return Ok(());
            }
        };
        // Without, a back end is to look at the ring all the time.
        let fd = fd.ok_or("a ring comes without a descriptor for kicks")?;
        let kick = Kick::new(fd, wakeups, ring.direction() == Direction::ToGuest)
            .map_err(|errno| format!("a descriptor cannot be waited for: {errno}"))?;
        if is_enabled_by_start {
            ring.enable(true);
        }
        ring.start(kick, memory)?;
        self.check_overlap()
    }

    /// Checks that no ring feeds another, or itself.
    fn check_overlap(&self) -> Result<(), String> {
        let is_fed = |ring: &Ring| self.rings.iter().any(|other| ring.is_fed_by(other));
        match self.rings.iter().any(is_fed) {
            true => Err("rings overlap".into()),
            false => Ok(()),
        }
    }

    fn ring(&mut self, number: u32) -> Result<&mut Ring, String> {
        let ring = self.rings.get_mut(number as usize);
        ring.ok_or_else(|| format!("there is no ring {number}"))
    }

    fn ring_and_memory(&mut self, number: u32) -> Result<(&mut Ring, &Memory), String> {
        let ring = self.rings.get_mut(number as usize);
        let ring = ring.ok_or_else(|| format!("there is no ring {number}"))?;
        let memory = self.memory.as_ref();
        Ok((ring, memory.ok_or("there is no memory for the rings")?))
    }

    fn has(&self, feature: u32) -> bool {
        self.features & (1 << feature) != 0
    }

    /// Bytes of a frame's header (virtio 1.2, section 5.1.6).
    fn header_length(&self) -> usize {
        match self.has(VIRTIO_F_VERSION_1) || self.has(VIRTIO_NET_F_MRG_RXBUF) {
            true => VNET_HEADER_LEN + 2,
            false => VNET_HEADER_LEN,
        }
    }

    /// How many pairs of queues are in use.
    pub(crate) fn pairs(&self) -> usize {
        self.usable().count()
    }

    /// The pairs that are in use: the number of the first ring of each.
    fn usable(&self) -> impl Iterator<Item = usize> {
        let pairs = self.rings.chunks(2).enumerate();
        let usable = pairs.filter(|(_, pair)| pair.iter().all(Ring::is_usable));
        usable.map(|(number, _)| 2 * number)
    }

    /// Whether a queue is broken.
    pub(crate) fn is_broken(&self) -> bool {
        self.rings.iter().any(Ring::is_broken)
    }

    /// Carrier while the guest's driver runs, with the offloads that it takes.
    pub(crate) fn state(&self) -> State {
        let agreed = OFFLOADS.iter().filter(|(feature, _)| self.has(*feature));
        let offloads = agreed.fold(0, |offloads, (_, offload)| offloads | offload.0);
        State::carrier(self.memory.is_some() && self.pairs() > 0).with_offloads(Offloads(offloads))
    }

    /// Whether [`Device::receive`] has something to do without a kick.
    pub(crate) fn is_pending(&self) -> bool {
        self.is_pending
    }

    /// Takes frames from the guest.
    pub(crate) fn receive(&mut self, batch: &mut RxBatch<'_>) {
        let (header, pairs) = (self.header_length(), self.rings.len() / 2);
        self.is_pending = false;
        let Some(memory) = &self.memory else {
            return;
        };
        let mut most = BATCH_FRAMES;
        for pair in (self.first..pairs).chain(0..self.first) {
            let ring = &mut self.rings[2 * pair + 1];
            if !ring.is_usable() {
                continue;
            }
            match drain(ring, &memory.guest, header, batch, &mut most) {
                Ok(has_more) => self.is_pending |= has_more,
                Err(fault) => break_down(ring, &self.name, 2 * pair + 1, fault),
            }
        }
        self.first = (self.first + 1) % pairs;
    }

    /// Gives frames to the guest, and returns how many it took. If not all, the gate is shut.
    pub(crate) fn send(&mut self, batch: &mut TxBatch<'_>, gate: &Gate) -> usize {
        let (length, is_mergeable) = (self.header_length(), self.has(VIRTIO_NET_F_MRG_RXBUF));
        let Some(memory) = self.memory.as_ref().map(|memory| &memory.guest) else {
            batch.count_dropped(batch.len() as u64);
            return batch.len();
        };
        let (mut taken, mut lost) = (0, 0);
        for frame in batch.frames() {
            let chosen = match self.pairs() {
                0 | 1 => self.usable().next(),
                pairs => self.usable().nth(flow(frame.bytes()) as usize % pairs),
            };
            let Some(number) = chosen else {
                lost += 1;
                taken += 1;
                continue;
            };
            let ring = &mut self.rings[number];
            let header = Header::new(fields(frame), length);
            match ring.give(memory, header, frame.bytes(), is_mergeable, gate) {
                Ok(Delivery::Done) => {}
                Ok(Delivery::Full) => break,
                Ok(Delivery::TooLong) => lost += 1,
                Err(fault) => {
                    lost += 1;
                    break_down(ring, &self.name, number, fault);
                }
            }
            taken += 1;
        }
        for (number, ring) in self.rings.iter_mut().enumerate().step_by(2) {
            if ring.is_usable()
                && let Err(fault) = ring.publish(memory)
            {
                break_down(ring, &self.name, number, fault);
            }
        }
        batch.count_dropped(lost);
        taken
    }
}

/// Takes up to `most` frames from a ring. `true` if it has more.
fn drain(
    ring: &mut Ring,
    memory: &GuestMemoryMmap,
    header: usize,
    batch: &mut RxBatch<'_>,
    most: &mut usize,
) -> Result<bool, Fault> {
    ring.spare_kicks(memory)?;
    let has_more = loop {
        if *most == 0 || !batch.has_room(MAX_FRAME) {
            break true;
        }
        let taken = ring.take(memory, |chain| receive(chain, header, batch))?;
        if taken.is_none() && !ring.await_kick(memory)? {
            break false;
        }
        *most -= 1;
    };
    ring.publish(memory)?;
    Ok(has_more)
}

/// Copies a frame of the guest into a batch, if it can be one.
fn receive(chain: &Filled<'_>, header: usize, batch: &mut RxBatch<'_>) -> Result<(), Fault> {
    let length = chain.length.saturating_sub(header);
    if !(MIN_FRAME..=MAX_FRAME).contains(&length) {
        batch.count_dropped(1);
        return Ok(());
    }
    let filled = batch.fill_with_header(length, |room| {
        let (fields, frame) = room.split_at_mut(VNET_HEADER_LEN);
        chain.read(0, fields)?;
        fields.copy_from_slice(&vnet_header(fields).to_bytes());
        chain.read(header, frame)?;
        Ok(room.len())
    });
    filled.map(drop)
}

/// The virtio header of a frame from the guest. The specification has little-endian numbers.
fn vnet_header(fields: &[u8]) -> VnetHeader {
    let header = VnetHeader::from_bytes(fields).unwrap_or_default();
    VnetHeader {
        flags: header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8,
        gso_type: header.gso_type,
        hdr_len: u16::from_le(header.hdr_len),
        gso_size: u16::from_le(header.gso_size),
        csum_start: u16::from_le(header.csum_start),
        csum_offset: u16::from_le(header.csum_offset),
    }
}

/// The virtio header of a frame for the guest.
fn fields(frame: Frame<'_>) -> [u8; VNET_HEADER_LEN] {
    let header = frame.header();
    let known = (VIRTIO_NET_HDR_F_NEEDS_CSUM | VIRTIO_NET_HDR_F_DATA_VALID) as u8;
    VnetHeader {
        flags: header.flags & known,
        gso_type: header.gso_type,
        hdr_len: header.hdr_len.to_le(),
        gso_size: header.gso_size.to_le(),
        csum_start: header.csum_start.to_le(),
        csum_offset: header.csum_offset.to_le(),
    }
    .to_bytes()
}

/// A number that all frames of a flow have (FNV-1a over addresses and ports).
fn flow(frame: &[u8]) -> u32 {
    let key = match frame.get(12..14) {
        // Without options, the ports are behind the addresses.
        Some([0x08, 0x00]) => frame.get(26..38),
        Some([0x86, 0xdd]) => frame.get(22..58),
        _ => None,
    };
    let key = key.unwrap_or(frame.get(..12).unwrap_or_default());
    let hash = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    key.iter().fold(0x811c_9dc5, hash)
}

fn break_down(ring: &mut Ring, name: &str, number: usize, fault: Fault) {
    ring.break_down();
    warn!(
        "{name}: queue {number} of the machine is not used any more: {fault}; restart its driver"
    );
}
