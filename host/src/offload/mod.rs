//! Offloads in user space, for a link whose far end takes none and a kernel that gives and takes them.
//!
//! A kernel is fastest with super-frames: TCP data of up to 64 KiB behind one set of headers, checksums left
//! to be completed. A legacy peer knows nothing of this. So frames that a link gives are changed for the link
//! that takes them, with as much done at once as possible:
//!
//! * what the sink does not take is done here: super-frames are cut (`segment`), checksums completed;
//! * complete frames on their way to a sink that takes super-frames are put together (`coalesce`).
//!
//! Between a source and a sink stands a [`Stage`]. It owns the batch that the source fills, and looks at
//! what is to be offered in the light of what the sink takes at that moment. Frames that suit as
//! they are, the rule between two kernels, are offered from where they lie. Others are changed on the way
//! to a second batch. Since a super-frame may be cut into more segments than a batch has slots, the
//! stage remembers how far it has come and fills the second batch again when that was taken. Nothing
//! is allocated after the start, and no frame waits for another to come.
//!
//! The source therefore need not know what the sink takes: it may always leave everything undone.

mod checksum;
mod coalesce;
mod packet;
#[cfg(test)]
mod samples;
mod segment;
#[cfg(test)]
mod tests;

use vdens_plugin_api::{Batch, Frame, Offloads, RxBatch, TxBatch, VnetHeader};

use coalesce::Plan;
use segment::Cut;

/// Bit of [`VnetHeader::flags`]: the checksum is to be completed.
const NEEDS_CSUM: u8 = 1;

// Values of VnetHeader::gso_type (virtio specification 1.2, section 5.1.6).
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Added to the types of TCP: the first segment has CWR set.
const ECN: u8 = 0x80;

/// Whether a sink that takes `offloads` takes a frame with this header as it is. One with a type that
/// nobody knows is taken by no sink.
fn suits(header: VnetHeader, offloads: Offloads) -> bool {
    let segments = match header.gso_type & !ECN {
        GSO_NONE => Offloads::NONE,
        GSO_TCPV4 => Offloads::TSO4,
        GSO_TCPV6 => Offloads::TSO6,
        GSO_UDP => Offloads(Offloads::USO4.0 | Offloads::USO6.0),
        _ => return false,
    };
    offloads.contains(segments)
        && (header.is_plain() || offloads.contains(Offloads::CSUM))
        && (header.gso_type & ECN == 0 || offloads.contains(Offloads::TSO_ECN))
}

/// What is on its way from a source to a sink.
#[derive(Debug, Default)]
pub struct Stage {
    /// What the source gave.
    received: Batch,
    /// The first frame of `received` that is neither taken nor changed completely.
    next: usize,
    /// How many segments of that frame there are in front of it.
    segments: usize,
    /// Frames changed for the sink.
    changed: Batch,
    /// Frames at the start of `changed` that the sink has taken.
    sent: usize,
}

impl Stage {
    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.next >= self.received.len() && self.sent >= self.changed.len()
    }

    /// The batch for the source to fill. To be called on an empty stage; anything else in it is lost.
    pub fn rx(&mut self) -> RxBatch<'_> {
        self.clear();
        self.received.rx()
    }

    /// The frames to offer next to a sink that takes `offloads`; `None` if there are none left.
    pub fn tx(&mut self, offloads: Offloads) -> Option<TxBatch<'_>> {
        if self.sent < self.changed.len() && !all_suit(&self.changed.tx(self.sent), offloads) {
            // The sink takes less than it did: its far end is another, and these were for the last.
            let lost = self.changed.len() - self.sent;
            self.changed.rx().count_dropped(lost as u64);
            self.sent = self.changed.len();
        }
        while self.sent >= self.changed.len() && self.next < self.received.len() {
            self.changed.clear();
            self.sent = 0;
            if !self.change(offloads) {
                return Some(self.received.tx(self.next));
            }
        }
        (self.sent < self.changed.len()).then(|| self.changed.tx(self.sent))
    }

    /// Notes that the sink took the first `frames` of those that were offered last.
    pub fn taken(&mut self, frames: usize) {
        if self.sent < self.changed.len() {
            self.sent = (self.sent + frames).min(self.changed.len());
        } else {
            self.next = (self.next + frames).min(self.received.len());
        }
    }

    /// Forgets all frames, and returns how many there were. One that was not changed completely is one.
    pub fn discard(&mut self) -> u64 {
        let left = (self.received.len() - self.next) + (self.changed.len() - self.sent);
        self.clear();
        left as u64
    }

    /// Takes the count of frames lost by the links and here, which starts again at 0.
    pub fn take_dropped(&mut self) -> u64 {
        self.received.take_dropped() + self.changed.take_dropped()
    }

    fn clear(&mut self) {
        self.received.clear();
        self.changed.clear();
        (self.next, self.segments, self.sent) = (0, 0, 0);
    }

    /// Changes what is left in the first batch as the sink needs it, as much as fits into the empty
    /// second one. `false` if it may stay as it is.
    fn change(&mut self, offloads: Offloads) -> bool {
        let frames = self.received.tx(self.next);
        let mut out = self.changed.rx();
        if self.segments == 0 && all_suit(&frames, offloads) {
            let is_plain = frames.frames().all(|frame| frame.header().is_plain());
            if frames.len() < 2 || !is_plain || !offloads.contains(Offloads::CSUM) {
                return false;
            }
            let plan = Plan::new(&frames, offloads);
            if plan.is_trivial() {
                return false;
            }
            plan.write(&frames, &mut out);
            self.next = self.received.len();
            return true;
        }
        for number in 0..frames.len() {
            match frames.frame(number) {
                Some(frame) => {
                    if !resolve(frame, offloads, &mut self.segments, &mut out) {
                        break;
                    }
                }
                None => out.count_dropped(1),
            }
            self.next += 1;
            self.segments = 0;
        }
        true
    }
}

/// Whether a sink that takes `offloads` takes all `frames` as they are.
fn all_suit(frames: &TxBatch<'_>, offloads: Offloads) -> bool {
    frames.frames().all(|frame| suits(frame.header(), offloads))
}

/// Does what a sink that takes `offloads` needs done to a frame, the first `segments` segments of which
/// are on their way. `false` if there was no room for everything. A frame that makes no sense is dropped and
/// counted.
fn resolve(
    frame: Frame<'_>,
    offloads: Offloads,
    segments: &mut usize,
    out: &mut RxBatch<'_>,
) -> bool {
    let (header, bytes) = (frame.header(), frame.bytes());
    if *segments == 0 && suits(header, offloads) {
        return out.push_offloaded(header, bytes);
    }
    if header.gso_type == GSO_NONE {
        return complete(header, bytes, out);
    }
    let Some(cut) = Cut::new(header, bytes) else {
        out.count_dropped(1);
        return true;
    };
    while *segments < cut.count() {
        let written = out.fill(cut.longest(), |room| {
            Ok::<_, std::convert::Infallible>(cut.write(*segments, room))
        });
        if written != Ok(true) {
            return false;
        }
        *segments += 1;
    }
    true
}

/// Copies a frame and completes its checksum. `false` if there was no room.
fn complete(header: VnetHeader, bytes: &[u8], out: &mut RxBatch<'_>) -> bool {
    let written = out.fill(bytes.len(), |room| {
        room.copy_from_slice(bytes);
        // A frame of no length is dropped and counted.
        let is_sound = segment::complete_checksum(header, room);
        Ok::<_, std::convert::Infallible>(if is_sound { bytes.len() } else { 0 })
    });
    written == Ok(true)
}
