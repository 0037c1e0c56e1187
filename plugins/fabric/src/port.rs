//! Ports: a client's data socket, and the frames that wait for it.
//!
//! Frames for a port go straight to its socket. Frames that the socket does not take wait in the
//! port's queue until epoll reports room. When the queue is full too, frames are dropped and
//! counted. So a client that never reads costs a bounded amount of memory, and no time. All queues
//! together have one bound (`memory`).
//!
//! A client of ours may announce that it takes super-frames, and is sent these from then on. Every
//! other is sent complete frames only.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::net::{UnixDatagram, UnixStream};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use vdens_plugin_kit::wire::hello::SUPER_PREFIX;
use vdens_plugin_kit::{
    BATCH_FRAMES, FarEnd, Frame, Offloads, TxBatch, VNET_HEADER_LEN, send_datagrams,
};

use vdens_rstp::PortState;
use vdens_switch_control::{MAX_VLAN, Mac, StormLimit, Traffic};

use crate::directory::DirectorySocket;
use crate::memory::Memory;
use crate::queue::Queue;
use crate::storm::Meter;
use crate::vlan::{Membership, Wanted};

/// A port's id within the switch. Port numbers are what clients see, and can be any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PortId(pub(crate) u32);

/// The host's side of the link.
pub(crate) const LOCAL: PortId = PortId(0);

/// Where a static station is whose port has no client.
pub(crate) const NOWHERE: PortId = PortId(u32::MAX - 4096);

/// Which bridge on the panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BridgeKey {
    /// That of one VLAN, 0 for none, whose ports have no tags.
    Vlan(u16),
    /// That of all VLANs, between which the kernel filters.
    Filter,
}

impl BridgeKey {
    /// A number of its own.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Vlan(vlan) => vlan as u32,
            Self::Filter => MAX_VLAN as u32 + 1,
        }
    }

    /// The bridge of that number.
    pub(crate) fn of_number(number: u32) -> Option<Self> {
        match u16::try_from(number).ok()? {
            vlan @ 0..=MAX_VLAN => Some(Self::Vlan(vlan)),
            _ => (number == Self::Filter.number()).then_some(Self::Filter),
        }
    }

    /// The one VLAN that it is for.
    pub(crate) fn vlan(self) -> Option<u16> {
        match self {
            Self::Vlan(vlan) => Some(vlan),
            Self::Filter => None,
        }
    }
}

impl PortId {
    /// A bridge on the panel, seen through its tap.
    pub(crate) const fn bridge(key: BridgeKey) -> Self {
        Self(u32::MAX - key.number())
    }

    /// The bridge that it is.
    pub(crate) fn bridge_key(self) -> Option<BridgeKey> {
        BridgeKey::of_number(u32::MAX - self.0)
    }
}

/// A set of frames of a batch: bit i is for frame i.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection(u32);

const _: () = assert!(BATCH_FRAMES <= u32::BITS as usize);

impl Selection {
    pub(crate) fn insert(&mut self, index: usize) {
        self.0 |= 1 << index;
    }

    fn remove(&mut self, index: usize) {
        self.0 &= !(1 << index);
    }

    pub(crate) fn contains(self, index: usize) -> bool {
        self.0 >> index & 1 != 0
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The same selection in a batch made from this one's. `origins` has for each frame the number
    /// of the frame that it was made from.
    pub(crate) fn among(self, origins: &[u8]) -> Self {
        let mut selection = Self::default();
        for (index, origin) in origins.iter().enumerate() {
            if self.contains(usize::from(*origin)) {
                selection.insert(index);
            }
        }
        selection
    }

    /// Without the first `count`.
    fn skip(self, count: usize) -> Self {
        Self((0..count).fold(self.0, |bits, _| bits & bits.wrapping_sub(1)))
    }

    fn len(self) -> u64 {
        u64::from(self.0.count_ones())
    }

    /// The numbers of the frames.
    pub(crate) fn indices(self) -> impl Iterator<Item = usize> {
        let mut bits = self.0;
        std::iter::from_fn(move || {
            let index = bits.trailing_zeros() as usize;
            let rest = bits.wrapping_sub(1) & bits;
            (std::mem::replace(&mut bits, rest) != 0).then_some(index)
        })
    }

    /// The frames selected from `batch`.
    pub(crate) fn of<'a>(self, batch: &'a TxBatch<'_>) -> impl Iterator<Item = Frame<'a>> {
        self.indices().filter_map(|index| batch.frame(index))
    }
}

/// What is set of a port, in the form in which frames need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) membership: Membership,
    /// The only address that may send from it.
    pub(crate) lock: Option<Mac>,
    /// The number of the port that gets a copy of its frames.
    pub(crate) mirror: Option<u32>,
}

impl Rules {
    /// Those of a port of one VLAN for which nothing else is set.
    pub(crate) fn access(vlan: u16) -> Self {
        Self {
            membership: Membership::access(vlan),
            lock: None,
            mirror: None,
        }
    }
}

/// Frames that did not enter, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Datagrams that were no frames, or too long, or had an invalid header.
    pub(crate) malformed: u64,
    /// Frames of VLANs that the port is not in.
    pub(crate) vlan: u64,
    /// Frames of other addresses than the one that the port is locked to.
    pub(crate) locked: u64,
    /// Frames that were too many to flood.
    pub(crate) storm: u64,
    /// Frames by a port that the spanning tree does not let forward.
    pub(crate) stp: u64,
    /// Frames that had become too long with a tag, or too short without theirs.
    pub(crate) reformed: u64,
}

impl Refused {
    pub(crate) fn add(&mut self, other: Self) {
        self.malformed += other.malformed;
        self.vlan += other.vlan;
        self.locked += other.locked;
        self.storm += other.storm;
        self.stp += other.stp;
        self.reformed += other.reformed;
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.malformed + self.vlan + self.locked + self.storm + self.stp + self.reformed
    }
}

/// Counters of a port.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Frames from and to the client.
    pub(crate) traffic: Traffic,
    /// Frames from the client that did not enter.
    pub(crate) refused: Refused,
    /// Frames for the client that found no room.
    pub(crate) dropped: u64,
}

impl Counters {
    /// The frames lost, by cause.
    pub(crate) fn losses(&self) -> BTreeMap<String, u64> {
        let causes = [
            ("malformed", self.refused.malformed),
            ("vlan", self.refused.vlan),
            ("locked", self.refused.locked),
            ("storm", self.refused.storm),
            ("stp", self.refused.stp),
            ("tag_length", self.refused.reformed),
            ("queue_full", self.dropped),
        ];
        let causes = causes.iter().filter(|(_, count)| *count > 0);
        causes
            .map(|(cause, count)| ((*cause).to_owned(), *count))
            .collect()
    }
}

/// What a client was told of the panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// It cannot be there.
    None,
    /// It may plug into this bridge. It may have done so and not said it yet.
    Bridge(BridgeKey),
    /// It could be there, and is not to be at present.
    Later,
}

/// What a client of ours says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClientKind {
    /// Whether it is a plug and no interface.
    pub(crate) is_plug: bool,
    /// Whether it tells its place on the panel.
    pub(crate) tells_place: bool,
}

#[derive(Debug)]
pub(crate) struct Port {
    /// The number, which the client may have asked for.
    pub(crate) number: u32,
    /// What the client says of itself, and its process id, for users.
    pub(crate) client: String,
    pub(crate) control: UnixStream,
    pub(crate) data: UnixDatagram,
    /// The data socket's place in the directory; removed with the port.
    _entry: DirectorySocket,
    pub(crate) queue: Queue,
    /// A frame of the switch's own that goes before those in the queue.
    first: Option<Vec<u8>>,
    /// What it does with frames, as the spanning tree says.
    pub(crate) state: PortState,
    /// What the client is and takes. No frames pass here once its interface is on the bridge.
    pub(crate) far_end: FarEnd,
    pub(crate) rules: Rules,
    /// The VLAN that the client has chosen, by the socket that it came through.
    pub(crate) chosen: Option<u16>,
    /// What the client was told of the panel.
    pub(crate) offer: Offer,
    pub(crate) kind: ClientKind,
    /// What the kernel's filter knows of its interface.
    pub(crate) filtered: Option<Membership>,
    /// Frames of the batch that came in that are for this port.
    pub(crate) wanted: Wanted,
    /// The same in the batch at hand.
    pub(crate) selected: Selection,
    /// Whether epoll watches for room in the socket.
    pub(crate) is_watched_for_room: bool,
    pub(crate) counters: Counters,
    /// What it floods.
    pub(crate) meter: Meter,
    /// Whether the client has sent anything.
    pub(crate) has_sent: bool,
    /// Why the port is closing.
    pub(crate) closing: Option<String>,
}

impl Port {
    pub(crate) fn new(
        number: u32,
        client: String,
        control: UnixStream,
        data: UnixDatagram,
        entry: DirectorySocket,
        far_end: FarEnd,
    ) -> Self {
        let user =
            getsockopt(&control, sockopt::PeerCredentials).map_or(u32::MAX, |peer| peer.uid());
        Self {
            number,
            client,
            control,
            data,
            _entry: entry,
            queue: Queue::new(user),
            first: None,
            state: PortState::Forwarding,
            far_end,
            rules: Rules::access(0),
            chosen: None,
            offer: Offer::None,
            kind: ClientKind::default(),
            filtered: None,
            wanted: Wanted::default(),
            selected: Selection::default(),
            is_watched_for_room: false,
            counters: Counters::default(),
            meter: Meter::new(StormLimit::Off),
            has_sent: false,
            closing: None,
        }
    }

    /// What the client says of itself: the kernel's words stand behind its own.
    pub(crate) fn description(&self) -> &str {
        let said = self.client.rsplit_once(", process ");
        said.map_or(self.client.as_str(), |(said, _)| said)
    }

    /// The bridge on the panel that the client's interface is on.
    pub(crate) fn bridge(&self) -> Option<BridgeKey> {
        match self.offer {
            Offer::Bridge(key) if self.far_end.is_plugged() => Some(key),
            _ => None,
        }
    }

    /// Whether the client takes super-frames, with everything left undone.
    pub(crate) fn takes_super_frames(&self) -> bool {
        self.far_end.offloads().contains(Offloads::ALL)
    }

    /// A frame as it is sent to the client.
    fn datagram<'a>(&self, frame: Frame<'a>) -> [&'a [u8]; 2] {
        // The fabric forwards no frame that is too long.
        let bare = [&[][..], frame.bytes()];
        self.far_end.datagram(frame).unwrap_or(bare)
    }

    /// Sends the selected frames of `batch`, or queues them until there is room. The caller gives
    /// super-frames only to a port that takes them. Returns which of them were sent or queued.
    pub(crate) fn send(
        &mut self,
        batch: &TxBatch<'_>,
        selection: Selection,
        memory: &mut Memory,
    ) -> Selection {
        if self.closing.is_some() {
            return Selection::default();
        }
        let mut left = selection;
        if self.queue.is_empty() {
            let datagrams = selection.of(batch).map(|frame| self.datagram(frame));
            match send_datagrams(&self.data, datagrams) {
                Ok(sent) => {
                    let lengths = selection.of(batch).map(|frame| frame.bytes().len());
                    self.counters.traffic.count_out(lengths.take(sent));
                    left = selection.skip(sent);
                }
                Err(e) => {
                    self.failed(&e, selection.len());
                    return Selection::default();
                }
            }
        }
        let mut taken = selection;
        for index in left.indices() {
            let datagram = batch.frame(index).map(|frame| self.datagram(frame));
            if !datagram.is_some_and(|datagram| self.queue.push(datagram, memory)) {
                self.counters.dropped += 1;
                taken.remove(index);
            }
        }
        taken
    }

    /// Sends a frame of the switch's own before all that wait. Of those that wait themselves, the
    /// last remains.
    pub(crate) fn send_first(&mut self, frame: Frame<'_>) {
        if self.closing.is_none() {
            self.send_datagram_first(self.datagram(frame).concat());
        }
    }

    fn send_datagram_first(&mut self, datagram: Vec<u8>) {
        match send_datagrams(&self.data, [[&[], &datagram[..]]].into_iter()) {
            Ok(0) => self.first = Some(datagram),
            Ok(_) => {
                self.first = None;
                let length = frame_length(&datagram);
                self.counters.traffic.count_out(std::iter::once(length));
            }
            Err(e) => self.failed(&e, 1),
        }
    }

    /// Sends the queued frames, as far as there is room.
    pub(crate) fn flush(&mut self, memory: &mut Memory) {
        if let Some(datagram) = self.first.take() {
            self.send_datagram_first(datagram);
            if self.first.is_some() {
                return;
            }
        }
        while !self.queue.is_empty() {
            let offered = self.queue.len().min(BATCH_FRAMES);
            let datagrams = self.queue.datagrams().map(|datagram| [&[], datagram]);
            match send_datagrams(&self.data, datagrams) {
                Ok(sent) => {
                    let lengths = self.queue.datagrams().map(frame_length);
                    self.counters.traffic.count_out(lengths.take(sent));
                    self.queue.pop(sent, memory);
                    if sent < offered {
                        return;
                    }
                }
                Err(e) => {
                    self.queue.pop(1, memory);
                    self.failed(&e, 1);
                    if self.closing.is_some() {
                        return;
                    }
                }
            }
        }
    }

    /// Drops the newest queued frames until the queue has at most `bytes` of memory.
    pub(crate) fn cut(&mut self, bytes: usize, memory: &mut Memory) {
        self.counters.dropped += self.queue.cut(bytes, memory) as u64;
    }

    /// Whether frames wait for room.
    pub(crate) fn is_congested(&self) -> bool {
        (!self.queue.is_empty() || self.first.is_some()) && self.closing.is_none()
    }

    /// Reads the control stream. Only its end has a meaning.
    pub(crate) fn read_control(&mut self) {
        match self.control.read(&mut [0; 256]) {
            Ok(0) => self.close("the client has gone"),
            Ok(_) => {}
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => self.close("the client has gone"),
            },
        }
    }

    /// Marks the port as closing. The switch removes it after the event at hand.
    pub(crate) fn close(&mut self, why: impl Into<String>) {
        self.closing.get_or_insert_with(|| why.into());
    }

    /// Sending `frames` failed: the first is too long for the socket, or the client is gone.
    fn failed(&mut self, error: &io::Error, frames: u64) {
        self.counters.dropped += frames;
        if error.raw_os_error() != Some(Errno::EMSGSIZE as i32) {
            self.close(format!("its data socket fails: {error}"));
        }
    }
}

/// The bytes of the frame in a datagram.
fn frame_length(datagram: &[u8]) -> usize {
    let wrapping = match datagram.starts_with(&SUPER_PREFIX) {
        true => SUPER_PREFIX.len() + VNET_HEADER_LEN,
        false => 0,
    };
    datagram.len() - wrapping
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdens_plugin_kit::Batch;

    #[test]
    fn selections() {
        let mut batch = Batch::new();
        for n in 0..BATCH_FRAMES {
            assert!(batch.rx().push(&[n as u8; 14]));
        }
        let mut selection = Selection::default();
        assert!(selection.is_empty());
        for index in [31, 0, 5] {
            selection.insert(index);
        }
        let numbers = |selection: Selection, batch: &mut Batch| {
            let tx = batch.tx(0);
            selection.of(&tx).map(|f| f.bytes()[0]).collect::<Vec<_>>()
        };
        assert_eq!(numbers(selection, &mut batch), [0, 5, 31]);
        assert_eq!(numbers(selection.skip(1), &mut batch), [5, 31]);
        assert!(selection.skip(3).is_empty());
        assert_eq!(selection.len(), 3);
        let all = (0..32).fold(Selection::default(), |mut all, i| {
            all.insert(i);
            all
        });
        assert_eq!(numbers(all, &mut batch).len(), 32);
        assert!(all.skip(32).is_empty());
        assert!(selection.contains(5) && !selection.contains(6));
        let changed = selection.among(&[0, 5, 5, 6, 31]);
        assert_eq!(numbers(changed, &mut batch), [0, 1, 2, 4]);
    }
}
