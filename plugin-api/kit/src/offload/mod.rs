//! Offloads in user space, between a kernel that uses them and a peer that knows none.
//!
//! A kernel is fastest with super-frames: TCP data of up to 64 KiB behind one set of headers, with
//! incomplete checksums. A legacy peer takes none of this. So frames are changed on their way from
//! a source to a sink:
//!
//! * super-frames that the sink does not take are cut (`segment`), and checksums are completed;
//! * complete frames to a sink that takes super-frames are joined (`coalesce`).
//!
//! So a source need not know what its sink takes, and may always use all offloads. Each virtio
//! header is checked against its frame, because frames may come from anybody. [`examine`] does only
//! that.
//!
//! Two types do the work. Nothing is allocated after the start, and no frame waits for a later one.
//!
//! * A [`Converter`] is between one source and one sink. The host's pump has one per direction. It
//!   owns the batch that the source fills. Frames that suit the sink, as between two kernels, are
//!   offered from where they are.
//! * A [`Changed`] holds the frames of a batch in another form, and the origin of each. A switch,
//!   which has several sinks, does the work once for all of them.
//!
//! A super-frame may have more segments than a batch has slots, so changing a batch may take
//! several steps. [`Progress`] is how far it has come.

mod checksum;
mod coalesce;
mod packet;
#[cfg(test)]
mod samples;
mod segment;
#[cfg(test)]
mod tests;

use crate::{BATCH_FRAMES, Batch, Frame, Offloads, RxBatch, TxBatch, VnetHeader};

use coalesce::Plan;
use segment::Cut;

/// Bit of [`VnetHeader::flags`]: the checksum is to be completed.
const NEEDS_CSUM: u8 = 1;

// Values of VnetHeader::gso_type (virtio specification 1.2, section 5.1.6).
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Added to the types of TCP, and to no other: the first segment has CWR set.
const ECN: u8 = 0x80;
const TCPV4_ECN: u8 = GSO_TCPV4 | ECN;
const TCPV6_ECN: u8 = GSO_TCPV6 | ECN;

/// Whether a sink that takes `offloads` takes a frame with this header as it is. One with a type
/// that nobody knows, or that ECN makes no sense with, is taken by no sink.
fn suits(header: VnetHeader, offloads: Offloads) -> bool {
    let segments = match header.gso_type {
        GSO_NONE => Offloads::NONE,
        GSO_TCPV4 => Offloads::TSO4,
        TCPV4_ECN => Offloads(Offloads::TSO4.0 | Offloads::TSO_ECN.0),
        GSO_TCPV6 => Offloads::TSO6,
        TCPV6_ECN => Offloads(Offloads::TSO6.0 | Offloads::TSO_ECN.0),
        GSO_UDP => Offloads(Offloads::USO4.0 | Offloads::USO6.0),
        _ => return false,
    };
    offloads.contains(segments) && (header.is_plain() || offloads.contains(Offloads::CSUM))
}

/// The segments of a frame for a sink without offloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Their number; 1 unless the frame is a super-frame.
    pub count: usize,
    /// The bytes of the longest.
    pub longest: usize,
}

/// Checks a frame from anybody. Returns what it would be cut into, or `None` if its virtio header
/// does not fit it.
pub fn examine(frame: Frame<'_>) -> Option<Segments> {
    let (header, bytes) = (frame.header(), frame.bytes());
    if header.gso_type == GSO_NONE {
        let is_sound = header.is_plain() || segment::has_checksum(header, bytes);
        return is_sound.then_some(Segments {
            count: 1,
            longest: bytes.len(),
        });
    }
    let cut = Cut::new(header, bytes)?;
    Some(Segments {
        count: cut.count(),
        longest: cut.longest(),
    })
}

/// How far a batch has been changed; the default is its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// The first frame that is not changed completely.
    frame: usize,
    /// How many segments of that frame there are already.
    segments: usize,
}

/// Frames of a batch, changed for sinks of one kind.
#[derive(Debug, Default)]
pub struct Changed {
    batch: Batch,
    /// Where each frame of `batch` comes from.
    origins: [u8; BATCH_FRAMES],
}

impl Changed {
    /// Replaces what is here by the frames of a batch from `at` on as a sink needs them that takes
    /// `offloads`: as many as fit, and only those whose number `is_wanted`. Moves `at` on. Frames
    /// that make no sense are dropped and counted.
    pub fn resolve(
        &mut self,
        frames: &TxBatch<'_>,
        at: &mut Progress,
        offloads: Offloads,
        is_wanted: impl Fn(usize) -> bool,
    ) {
        self.batch.clear();
        while at.frame < frames.len() {
            if is_wanted(at.frame) {
                let first = self.batch.len();
                let mut out = self.batch.rx();
                let is_done = match frames.frame(at.frame) {
                    Some(frame) => resolve(frame, offloads, &mut at.segments, &mut out),
                    None => {
                        out.count_dropped(1);
                        true
                    }
                };
                self.origins[first..self.batch.len()].fill(at.frame as u8);
                if !is_done {
                    return;
                }
            }
            *at = Progress {
                frame: at.frame + 1,
                segments: 0,
            };
        }
    }

    /// Replaces what is here by those frames of a batch whose number `is_wanted`, put together for
    /// a sink that takes `offloads`. `false` if there is nothing to put together, or not all of
    /// them are complete; then there is nothing here.
    pub fn coalesce(
        &mut self,
        frames: &TxBatch<'_>,
        offloads: Offloads,
        is_wanted: impl Fn(usize) -> bool,
    ) -> bool {
        self.batch.clear();
        let wanted = || (0..frames.len()).filter(|number| is_wanted(*number));
        let mut headers = wanted().filter_map(|number| Some(frames.frame(number)?.header()));
        if wanted().nth(1).is_none() || !headers.all(VnetHeader::is_plain) {
            return false;
        }
        let plan = Plan::new(frames, offloads, &is_wanted);
        if plan.is_trivial() {
            return false;
        }
        for number in wanted() {
            let first = self.batch.len();
            plan.write(frames, number, &mut self.batch.rx());
            self.origins[first..self.batch.len()].fill(number as u8);
        }
        true
    }

    /// Whether there are no frames.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// The frames, and for each the number that it has in the batch it was changed from. What was
    /// put together has its first frame's.
    pub fn tx(&mut self) -> (TxBatch<'_>, &[u8]) {
        let origins = &self.origins[..self.batch.len()];
        (self.batch.tx(0), origins)
    }

    /// Takes the count of frames dropped here, which starts again at 0.
    pub fn take_dropped(&mut self) -> u64 {
        self.batch.take_dropped()
    }
}

/// The frames on their way from a source to a sink.
#[derive(Debug, Default)]
pub struct Converter {
    /// What the source gave.
    received: Batch,
    /// Where in `received` the frames begin that are neither taken nor changed.
    at: Progress,
    /// Frames changed for the sink.
    changed: Changed,
    /// Frames at the start of `changed` that the sink has taken.
    sent: usize,
    /// Frames dropped here.
    lost: u64,
}

impl Converter {
    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.at.frame >= self.received.len() && self.sent >= self.changed.batch.len()
    }

    /// The batch for the source to fill. Removes what is left of an earlier one.
    pub fn rx(&mut self) -> RxBatch<'_> {
        self.clear();
        self.received.rx()
    }

    /// The frames to offer next to a sink that takes `offloads`; `None` if there are none left.
    pub fn tx(&mut self, offloads: Offloads) -> Option<TxBatch<'_>> {
        let changed = &mut self.changed.batch;
        if self.sent < changed.len() && !all_suit(&changed.tx(self.sent), offloads) {
            // The sink takes less than it did: its far end is another, and these were for the last.
            self.lost += (changed.len() - self.sent) as u64;
            self.sent = changed.len();
        }
        while self.sent >= self.changed.batch.len() && self.at.frame < self.received.len() {
            self.sent = 0;
            let is_changed = self.change(offloads);
            self.lost += self.changed.take_dropped();
            if !is_changed {
                return Some(self.received.tx(self.at.frame));
            }
        }
        (self.sent < self.changed.batch.len()).then(|| self.changed.batch.tx(self.sent))
    }

    /// Removes the first `frames` of the frames that were offered last: the sink took them.
    pub fn taken(&mut self, frames: usize) {
        let changed = self.changed.batch.len();
        if self.sent < changed {
            self.sent = (self.sent + frames).min(changed);
        } else {
            self.at.frame = (self.at.frame + frames).min(self.received.len());
        }
    }

    /// Removes all frames, and returns how many they were. A frame that is partly taken counts as
    /// one.
    pub fn discard(&mut self) -> u64 {
        let left = (self.received.len() - self.at.frame) + (self.changed.batch.len() - self.sent);
        self.clear();
        left as u64
    }

    /// Returns and resets the count of frames dropped here, because their headers do not fit them
    /// or the sink takes less than it did.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Returns and resets the count of frames dropped by the links and here.
    pub fn take_dropped(&mut self) -> u64 {
        self.received.take_dropped() + self.changed.take_dropped() + self.take_lost()
    }

    fn clear(&mut self) {
        self.received.clear();
        self.changed.batch.clear();
        (self.at, self.sent) = (Progress::default(), 0);
    }

    /// Changes what is left in the first batch as the sink needs it, as much as fits into the
    /// second one, of which nothing is needed any more. `false` if it may stay as it is.
    fn change(&mut self, offloads: Offloads) -> bool {
        let left = self.received.tx(self.at.frame);
        if self.at.segments > 0 || !all_suit(&left, offloads) {
            let frames = self.received.tx(0);
            let Self { changed, at, .. } = self;
            changed.resolve(&frames, at, offloads, |_| true);
            return true;
        }
        let is_changed = self.changed.coalesce(&left, offloads, |_| true);
        if is_changed {
            self.at.frame = self.received.len();
        }
        is_changed
    }
}

/// Whether a sink that takes `offloads` takes all `frames` as they are.
fn all_suit(frames: &TxBatch<'_>, offloads: Offloads) -> bool {
    frames.frames().all(|frame| suits(frame.header(), offloads))
}

/// Does what a sink that takes `offloads` needs done to a frame, the first `segments` segments of
/// which are on their way. `false` if there was no room for everything. A frame that makes no sense
/// is dropped and counted.
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
