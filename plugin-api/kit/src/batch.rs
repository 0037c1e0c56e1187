//! Batches of frames, the only thing that crosses the plugin boundary while traffic flows.
//!
//! A [`Batch`] is an arena of bytes, and slots that say where in it each frame lies. The host
//! allocates both once. It hands a batch to the receiving link, which fills it, and then to the
//! sending link, which empties it. So two calls move up to [`BATCH_FRAMES`] frames, and nothing is
//! allocated or copied.
//!
//! In front of each frame are [`VNET_HEADER_LEN`] bytes of virtio network header ([`VnetHeader`]),
//! all zero for a complete frame. A link whose far end takes offloads reports that
//! ([`crate::State::offloads`]). Then it may receive and send super-frames of up to 64 KiB, and
//! frames with incomplete checksums. Header and frame are contiguous, so that a tap or a socket
//! takes both in one piece.
//!
//! A link sees a batch as [`RxBatch`] or [`TxBatch`]. They check every access against the arena, so
//! a wrong slot costs a frame, never memory.

use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use vdens_plugin_c::{
    BATCH_FRAMES, Batch as RawBatch, MAX_FRAME, MIN_FRAME, Slot as RawSlot, VNET_HEADER_LEN,
};

use crate::datagram;
use crate::frame::{Frame, VnetHeader};

/// Bytes of a batch's arena: [`BATCH_FRAMES`] legacy frames, or seven super-frames.
const ARENA: usize = 7 * (MAX_FRAME + 4 * VNET_HEADER_LEN);

/// A [`RawBatch`] whose pointers are known to be good.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Storage(RawBatch);

impl Storage {
    /// The batch that a caller has lent.
    ///
    /// # Safety
    /// `raw` is valid and exclusive for `'a`: `arena` points to `arena_len` initialised bytes and
    /// `slots` to `slot_capacity` initialised slots, which nothing else uses.
    pub(crate) unsafe fn lent<'a>(raw: *mut RawBatch) -> &'a mut Self {
        // SAFETY: per this function's contract; Storage is a transparent RawBatch.
        unsafe { &mut *raw.cast() }
    }

    /// Lends the batch to a function of the ABI. Returns `None` if that changed where the arena or
    /// the slots are, which stay as they were.
    pub(crate) fn lend<T>(&mut self, call: impl FnOnce(*mut RawBatch) -> T) -> Option<T> {
        let places = |raw: &RawBatch| (raw.arena, raw.arena_len, raw.slots, raw.slot_capacity);
        let lent = places(&self.0);
        let result = call(&raw mut self.0);
        let is_same = places(&self.0) == lent;
        let raw = &mut self.0;
        (raw.arena, raw.arena_len, raw.slots, raw.slot_capacity) = lent;
        is_same.then_some(result)
    }

    /// As [`Storage::lend`], to a function that may only count dropped frames.
    pub(crate) fn lend_for_reading<T>(
        &mut self,
        call: impl FnOnce(*mut RawBatch) -> T,
    ) -> Option<T> {
        let lent = (self.0.used, self.0.len);
        let result = self.lend(call);
        (self.0.used, self.0.len) = lent;
        result
    }

    fn arena(&self) -> &[u8] {
        // SAFETY: `arena` points to `arena_len` initialised bytes, which this view borrows.
        unsafe { std::slice::from_raw_parts(self.0.arena, self.0.arena_len as usize) }
    }

    fn arena_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `arena`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.0.arena, self.0.arena_len as usize) }
    }

    /// Bytes of the arena behind those in use.
    fn room(&self) -> usize {
        self.0.arena_len.saturating_sub(self.0.used) as usize
    }

    fn free(&mut self) -> &mut [u8] {
        let start = self.arena().len() - self.room();
        &mut self.arena_mut()[start..]
    }

    /// All slots, those in use first.
    fn all_slots(&mut self) -> &mut [RawSlot] {
        // SAFETY: `slots` points to `slot_capacity` initialised slots, which this view borrows.
        unsafe { std::slice::from_raw_parts_mut(self.0.slots, self.0.slot_capacity as usize) }
    }

    fn slots(&self) -> &[RawSlot] {
        // SAFETY: `slots` points to `slot_capacity` initialised slots owned by the Batch this view
        // borrows.
        let slots =
            unsafe { std::slice::from_raw_parts(self.0.slots, self.0.slot_capacity as usize) };
        &slots[..self.count()]
    }

    fn has_slot(&self) -> bool {
        self.0.len < self.0.slot_capacity
    }

    /// Slots in use. A plugin sets `len`, so it is no more than a claim.
    fn count(&self) -> usize {
        self.0.len.min(self.0.slot_capacity) as usize
    }

    /// Makes `len` bytes at the start of the free space the next frame, and moves the free space on
    /// by `stride`.
    fn commit(&mut self, len: usize, stride: usize) {
        if !self.has_slot() || stride > self.room() || len > stride {
            return;
        }
        let (index, offset) = (self.count(), self.0.used);
        self.all_slots()[index] = RawSlot {
            offset,
            len: len as u32,
        };
        self.0.len += 1;
        self.0.used += stride as u32;
    }

    /// Copies slot `from` to slot `to`, without `cut` bytes at its start.
    pub(crate) fn move_slot(&mut self, from: usize, to: usize, cut: u32) {
        let slots = self.all_slots();
        if from < slots.len() && to < slots.len() {
            slots[to] = RawSlot {
                offset: slots[from].offset.saturating_add(cut),
                len: slots[from].len.saturating_sub(cut),
            };
        }
    }

    /// Removes the bytes `at..at + len` of a frame that has them: the bytes in front move.
    fn cut(&mut self, index: usize, at: usize, len: usize) {
        let slot = self.slots().get(index).copied().unwrap_or_default();
        let start = slot.offset as usize;
        let front = start..start + VNET_HEADER_LEN + at + len;
        if let Some(front) = self.arena_mut().get_mut(front) {
            let header = VnetHeader::from_bytes(front).unwrap_or_default();
            let shifted = header.shifted(-i16::try_from(len).unwrap_or(i16::MAX));
            front[..VNET_HEADER_LEN].copy_from_slice(&shifted.to_bytes());
            front.copy_within(..VNET_HEADER_LEN + at, len);
        }
    }

    fn frame(&self, index: usize) -> Option<Frame<'_>> {
        let slot = self.slots().get(index)?;
        let start = slot.offset as usize;
        let end = start.checked_add(slot.len as usize)?;
        Frame::from_entry(self.arena().get(start..end)?)
    }
}

/// The arena and slots of a batch. The host owns it; links see it through [`RxBatch`] and
/// [`TxBatch`].
#[derive(Debug)]
pub struct Batch {
    raw: Storage,
}

// SAFETY: the pointers in `raw` are owned by this value alone and point to plain bytes.
unsafe impl Send for Batch {}

impl Batch {
    /// An empty batch. Allocates about 450 KiB, most of it untouched until super-frames come.
    pub fn new() -> Self {
        let arena = Box::leak(vec![0_u8; ARENA].into_boxed_slice());
        let slots = Box::leak(vec![RawSlot::default(); BATCH_FRAMES].into_boxed_slice());
        Self {
            raw: Storage(RawBatch {
                arena: arena.as_mut_ptr(),
                arena_len: ARENA as u32,
                used: 0,
                slots: slots.as_mut_ptr(),
                slot_capacity: BATCH_FRAMES as u32,
                len: 0,
                dropped: 0,
            }),
        }
    }

    /// Frames in the batch.
    pub fn len(&self) -> usize {
        self.raw.count()
    }

    /// Whether there is no frame in the batch.
    pub fn is_empty(&self) -> bool {
        self.raw.0.len == 0
    }

    /// Removes all frames.
    pub fn clear(&mut self) {
        self.raw.0.len = 0;
        self.raw.0.used = 0;
    }

    /// The view for a link that receives into the batch.
    pub fn rx(&mut self) -> RxBatch<'_> {
        RxBatch { raw: &mut self.raw }
    }

    /// The view for a link that sends the frames from number `start` on.
    pub fn tx(&mut self, start: usize) -> TxBatch<'_> {
        TxBatch {
            raw: &mut self.raw,
            start,
        }
    }

    /// Returns and resets the count of dropped frames.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.raw.0.dropped)
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let arena =
            std::ptr::slice_from_raw_parts_mut(self.raw.0.arena, self.raw.0.arena_len as usize);
        let slots =
            std::ptr::slice_from_raw_parts_mut(self.raw.0.slots, self.raw.0.slot_capacity as usize);
        // SAFETY: both were leaked from boxes of exactly these lengths in `new`, and nothing else
        // frees them.
        unsafe {
            drop(Box::from_raw(arena));
            drop(Box::from_raw(slots));
        }
    }
}

/// What [`RxBatch::filter`] does with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameAction {
    /// Keeps it.
    Keep,
    /// Removes it: it was for the link itself.
    Consume,
    /// Removes it, and counts it as dropped.
    Drop,
    /// Removes so many bytes at its start, behind which are a virtio header and a frame. A frame
    /// that is too short for both is dropped.
    Unwrap(usize),
    /// Removes `len` bytes from offset `at` on, and adjusts the virtio header, whose offsets must
    /// point behind them. A frame that is too short is dropped.
    Cut {
        /// Bytes from the frame's start.
        at: usize,
        /// Bytes to remove.
        len: usize,
    },
}

/// A batch that a link receives into.
#[derive(Debug)]
pub struct RxBatch<'a> {
    pub(crate) raw: &'a mut Storage,
}

impl RxBatch<'_> {
    /// Frames in the batch so far.
    pub fn len(&self) -> usize {
        self.raw.count()
    }

    /// Whether no frame has been received yet.
    pub fn is_empty(&self) -> bool {
        self.raw.0.len == 0
    }

    /// Whether another frame of up to `max_frame` bytes would fit.
    pub fn has_room(&self, max_frame: usize) -> bool {
        self.raw.has_slot() && self.raw.room() >= VNET_HEADER_LEN + max_frame
    }

    /// Copies a complete frame in. Returns `false` if it does not fit. Anything shorter than
    /// [`MIN_FRAME`] is dropped and counted.
    pub fn push(&mut self, frame: &[u8]) -> bool {
        self.push_offloaded(VnetHeader::default(), frame)
    }

    /// Copies a frame with a virtio header in. Returns `false` if it does not fit. Anything shorter
    /// than [`MIN_FRAME`] is dropped and counted.
    pub fn push_offloaded(&mut self, header: VnetHeader, frame: &[u8]) -> bool {
        if frame.len() < MIN_FRAME {
            self.count_dropped(1);
            return true;
        }
        if !self.has_room(frame.len()) {
            return false;
        }
        let total = VNET_HEADER_LEN + frame.len();
        let room = &mut self.raw.free()[..total];
        room[..VNET_HEADER_LEN].copy_from_slice(&header.to_bytes());
        room[VNET_HEADER_LEN..].copy_from_slice(frame);
        self.raw.commit(total, total);
        true
    }

    /// Copies a frame in, with other bytes in place of those in `range`: a tag that is put on or
    /// taken off. The offsets in its virtio header move along. Returns `false` if it does not fit.
    /// Anything shorter than [`MIN_FRAME`], before or after, is dropped and counted.
    pub fn push_replacing(&mut self, frame: Frame<'_>, range: Range<usize>, with: &[u8]) -> bool {
        let bytes = frame.bytes();
        let (Some(front), Some(back)) = (bytes.get(..range.start), bytes.get(range.end..)) else {
            self.count_dropped(1);
            return true;
        };
        let moved = with.len() as i16 - range.len() as i16;
        let header = frame.header().shifted(moved).to_bytes();
        let parts = [&header[..], front, with, back];
        let filled = self.fill_with_header(front.len() + with.len() + back.len(), |room| {
            let mut at = 0;
            for part in parts {
                room[at..at + part.len()].copy_from_slice(part);
                at += part.len();
            }
            Ok::<_, Infallible>(at)
        });
        filled == Ok(true)
    }

    /// Lets `read` write one complete frame of up to `max_frame` bytes into the batch, and return
    /// its length. Returns `Ok(false)` if there is no room, so that `read` was not called. A length
    /// below [`MIN_FRAME`] is dropped and counted.
    ///
    /// # Errors
    /// The error of `read`.
    pub fn fill<E>(
        &mut self,
        max_frame: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<bool, E> {
        self.fill_with_header(max_frame, |room| {
            room[..VNET_HEADER_LEN].fill(0);
            Ok(VNET_HEADER_LEN + read(&mut room[VNET_HEADER_LEN..])?)
        })
    }

    /// As [`RxBatch::fill`], but `read` writes virtio header and frame, and returns the length of
    /// both.
    ///
    /// # Errors
    /// The error of `read`.
    pub fn fill_with_header<E>(
        &mut self,
        max_frame: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<bool, E> {
        if !self.has_room(max_frame) {
            return Ok(false);
        }
        let total = VNET_HEADER_LEN + max_frame;
        let len = read(&mut self.raw.free()[..total])?.min(total);
        if len < VNET_HEADER_LEN + MIN_FRAME {
            self.count_dropped(1);
        } else {
            self.raw.commit(len, len);
        }
        Ok(true)
    }

    /// Receives the datagrams that wait on `socket`, as many as fit, with one system call
    /// (recvmmsg). Each is a complete frame. Datagrams shorter than [`MIN_FRAME`] or longer than
    /// `max_frame` bytes are dropped and counted. Returns how many datagrams were taken off the
    /// socket, 0 if none was waiting.
    ///
    /// # Errors
    /// recvmmsg fails. That no datagram waits is no error.
    pub fn receive_datagrams(&mut self, socket: impl AsFd, max_frame: usize) -> io::Result<usize> {
        let stride = VNET_HEADER_LEN + max_frame;
        let slots = self.raw.0.slot_capacity as usize - self.raw.count();
        let want = slots.min(self.raw.room() / stride).min(BATCH_FRAMES);
        let mut lengths = [0_usize; BATCH_FRAMES];
        let room = &mut self.raw.free()[..want * stride];
        let taken = datagram::receive(
            socket.as_fd(),
            room,
            stride,
            VNET_HEADER_LEN,
            &mut lengths[..want],
        )?;
        for len in &lengths[..taken] {
            let keep = (MIN_FRAME..=max_frame).contains(len);
            self.commit_received(if keep { *len } else { 0 }, stride);
        }
        Ok(taken)
    }

    /// Passes each frame from number `from` on to `decide`, and does what it returns. Entries that
    /// are no frames, or would be none afterwards, are dropped and counted.
    pub fn filter(&mut self, from: usize, mut decide: impl FnMut(Frame<'_>) -> FrameAction) {
        let from = from.min(self.len());
        let (mut kept, mut lost) = (from, 0);
        for index in from..self.len() {
            let Some(frame) = self.raw.frame(index) else {
                lost += 1;
                continue;
            };
            let length = frame.bytes().len();
            let cut = match decide(frame) {
                FrameAction::Consume => continue,
                FrameAction::Drop => None,
                FrameAction::Keep => Some(0),
                FrameAction::Unwrap(prefix) => {
                    let cut = prefix.saturating_add(VNET_HEADER_LEN);
                    (length >= cut.saturating_add(MIN_FRAME)).then_some(cut)
                }
                FrameAction::Cut { at, len } => {
                    (length >= (at + len).max(MIN_FRAME + len)).then(|| {
                        self.raw.cut(index, at, len);
                        len
                    })
                }
            };
            match cut {
                Some(cut) => {
                    self.raw.move_slot(index, kept, cut as u32);
                    kept += 1;
                }
                None => lost += 1,
            }
        }
        self.raw.0.len = kept as u32;
        self.count_dropped(lost);
    }

    /// Drops and counts the entries from number `from` on that are no frames. A plugin that was
    /// built with an older kit may leave such entries. [`TxBatch::len`] counts them, but
    /// [`TxBatch::frames`] does not return them, so a sink could never take them.
    pub(crate) fn drop_undecodable(&mut self, from: usize) {
        self.filter(from, |_| FrameAction::Keep);
    }

    /// Adds a received datagram of `len` bytes, 0 to drop it, whose place of `stride` bytes is at
    /// the start of the free space.
    fn commit_received(&mut self, len: usize, stride: usize) {
        if len == 0 {
            self.count_dropped(1);
            self.raw.0.used = self.raw.0.used.saturating_add(stride as u32);
            return;
        }
        self.raw.free()[..VNET_HEADER_LEN].fill(0);
        self.raw.commit(VNET_HEADER_LEN + len, stride);
    }

    /// Counts received frames that are dropped.
    pub fn count_dropped(&mut self, frames: u64) {
        self.raw.0.dropped = self.raw.0.dropped.saturating_add(frames);
    }
}

/// The frames that a link is to send.
#[derive(Debug)]
pub struct TxBatch<'a> {
    pub(crate) raw: &'a mut Storage,
    pub(crate) start: usize,
}

impl TxBatch<'_> {
    /// Frames to send.
    pub fn len(&self) -> usize {
        self.raw.count().saturating_sub(self.start)
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Frame number `index`, counted from the first that is to be sent; `None` past the last.
    pub fn frame(&self, index: usize) -> Option<Frame<'_>> {
        self.raw.frame(self.start.checked_add(index)?)
    }

    /// The frames in order.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        (self.start..self.raw.count()).filter_map(|index| self.raw.frame(index))
    }

    /// Sends the frames from number `skip` on, one datagram each without the virtio header, with
    /// one system call (sendmmsg) on a connected `socket`. Returns how many the socket took; fewer
    /// than all, or 0, when its queue is full.
    ///
    /// # Errors
    /// sendmmsg refuses the first datagram. A full queue is no error.
    pub fn send_datagrams(&self, socket: impl AsFd, skip: usize) -> io::Result<usize> {
        let frames = self
            .frames()
            .skip(skip)
            .map(|frame| [&[][..], frame.bytes()]);
        datagram::send_datagrams(socket, frames)
    }

    /// Counts frames that are dropped instead of sent.
    pub fn count_dropped(&mut self, frames: u64) {
        self.raw.0.dropped = self.raw.0.dropped.saturating_add(frames);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn frames_go_in_and_come_out_in_order() {
        let mut batch = Batch::new();
        for n in 0..BATCH_FRAMES {
            assert!(batch.rx().push(&[n as u8; 60]));
        }
        assert!(!batch.rx().push(&[0; 60]), "a full batch takes no more");
        let lens: Vec<u8> = batch.tx(30).frames().map(|f| f.bytes()[0]).collect();
        assert_eq!(lens, [30, 31]);
        assert!(batch.tx(0).frames().all(|f| f.header().is_plain()));
        batch.clear();
        assert!(batch.is_empty());
    }

    #[test]
    fn header_survives_the_round_trip() {
        let header = VnetHeader {
            flags: 1,
            gso_type: 4,
            hdr_len: 74,
            gso_size: 1440,
            csum_start: 54,
            csum_offset: 16,
        };
        let mut batch = Batch::new();
        assert!(batch.rx().push_offloaded(header, &[9; MAX_FRAME]));
        let tx = batch.tx(0);
        let frame = tx.frame(0).unwrap();
        assert_eq!(frame.header(), header);
        assert_eq!(frame.bytes().len(), MAX_FRAME);
        assert_eq!(frame.with_header().len(), MAX_FRAME + VNET_HEADER_LEN);
    }

    #[test]
    fn short_and_long_datagrams_are_dropped_and_counted() {
        let (a, b) = UnixDatagram::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        for len in [0, 13, 14, 1500, 9000, 9001] {
            b.send(&vec![len as u8; len]).unwrap();
        }
        let mut batch = Batch::new();
        let taken = batch.rx().receive_datagrams(&a, 9000).unwrap();
        assert_eq!(taken, 6);
        let lens: Vec<usize> = batch.tx(0).frames().map(|f| f.bytes().len()).collect();
        assert_eq!(lens, [14, 1500, 9000]);
        assert_eq!(batch.take_dropped(), 3);
        assert_eq!(batch.rx().receive_datagrams(&a, 9000).unwrap(), 0);
    }

    #[test]
    fn headers_travel_and_frames_can_be_taken_out() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let mut batch = Batch::new();
        for n in 0..6 {
            let header = VnetHeader {
                flags: 1,
                gso_size: n,
                ..VnetHeader::default()
            };
            batch.rx().push_offloaded(header, &[n as u8; 60]);
        }
        batch.rx().push(&[6; 60]);
        let frames = batch.tx(1);
        let wrapped = frames.frames().map(|frame| frame.wrapped(b"prefix"));
        assert_eq!(datagram::send_datagrams(&a, wrapped).unwrap(), 6);
        batch.clear();
        assert_eq!(batch.rx().receive_datagrams(&b, 1000).unwrap(), 6);
        batch.rx().filter(1, |frame| match frame.bytes() {
            [b'p', b'r', ..] if frame.bytes()[20] == 3 => FrameAction::Consume,
            [b'p', b'r', ..] => FrameAction::Unwrap(6),
            _ => FrameAction::Keep,
        });
        let seen = |frame: Frame<'_>| (frame.header().gso_size, frame.bytes().len());
        let left: Vec<_> = batch.tx(1).frames().map(seen).collect();
        assert_eq!(left, [(2, 60), (4, 60), (5, 60), (0, 60)]);
    }

    #[test]
    fn a_wrapping_too_short_for_header_and_frame_is_dropped_and_counted() {
        const PREFIX: usize = 20;
        let mut batch = Batch::new();
        for len in MIN_FRAME..PREFIX + VNET_HEADER_LEN + MIN_FRAME + 2 {
            batch.clear();
            batch.rx().push(&[1; 60]);
            batch.rx().push(&vec![2; len]);
            batch.rx().push(&[3; 60]);
            batch.rx().filter(0, |frame| match frame.bytes()[0] {
                2 => FrameAction::Unwrap(PREFIX),
                _ => FrameAction::Keep,
            });
            let is_whole = len >= PREFIX + VNET_HEADER_LEN + MIN_FRAME;
            let expected = if is_whole { (3, 0) } else { (2, 1) };
            assert_eq!((batch.len(), batch.take_dropped()), expected, "{len}");
            assert_eq!(batch.tx(0).frames().count(), batch.len(), "{len}");
        }
        batch.rx().filter(0, |_| FrameAction::Unwrap(usize::MAX));
        assert_eq!((batch.len(), batch.take_dropped()), (0, 3));
    }

    #[test]
    fn entries_that_are_no_frames_are_dropped_and_counted() {
        let mut batch = Batch::new();
        for n in 0..4 {
            batch.rx().push(&[n; 60]);
        }
        // SAFETY: the slots belong to the batch, and there are more than four.
        unsafe {
            (*batch.raw.0.slots.add(0)).len = 5;
            (*batch.raw.0.slots.add(2)).len = u32::MAX;
            (*batch.raw.0.slots.add(3)).offset = u32::MAX;
        }
        batch.rx().drop_undecodable(1);
        assert_eq!((batch.len(), batch.take_dropped()), (2, 2));
        assert_eq!(batch.tx(1).frame(0).map(|f| f.bytes()[0]), Some(1));
        batch.raw.0.len = u32::MAX;
        assert_eq!(batch.len(), BATCH_FRAMES);
        batch.rx().drop_undecodable(0);
        assert_eq!(batch.tx(0).frames().count(), batch.len());
    }

    #[test]
    fn bytes_can_be_cut_out_and_the_header_follows() {
        let header = VnetHeader {
            flags: 1,
            gso_type: 1,
            hdr_len: 58,
            gso_size: 1000,
            csum_start: 38,
            csum_offset: 16,
        };
        let bytes: Vec<u8> = (0..100).collect();
        let mut batch = Batch::new();
        batch.rx().push(&bytes);
        batch.rx().push_offloaded(header, &bytes);
        batch.rx().push(&bytes[..17]);
        batch.rx().push(&bytes[..18]);
        batch
            .rx()
            .filter(0, |_| FrameAction::Cut { at: 12, len: 4 });
        let left = [&bytes[..12], &bytes[16..]].concat();
        let frames: Vec<_> = batch.tx(0).frames().map(|f| f.bytes().to_vec()).collect();
        assert_eq!(frames, [&left[..], &left, &left[..14]]);
        assert_eq!(batch.take_dropped(), 1);
        let tx = batch.tx(0);
        let headers: Vec<_> = tx.frames().map(|f| f.header()).collect();
        assert!(headers[0] == VnetHeader::default() && headers[2] == headers[0]);
        assert_eq!((headers[1].hdr_len, headers[1].csum_start), (54, 34));
        assert_eq!(headers[1].shifted(4), header);
    }

    #[test]
    fn a_tag_is_put_on_and_taken_off() {
        let header = VnetHeader {
            flags: 1,
            csum_start: 34,
            ..VnetHeader::default()
        };
        let bytes: Vec<u8> = (0..60).collect();
        let tagged = [&bytes[..12], &[0x81, 0, 0, 7], &bytes[12..]].concat();
        let [mut one, mut other] = [Batch::new(), Batch::new()];
        assert!(one.rx().push_offloaded(header, &bytes));
        let plain = one.tx(0);
        let frame = plain.frame(0).unwrap();
        assert!(other.rx().push_replacing(frame, 12..12, &[0x81, 0, 0, 7]));
        // Beyond its end, and too short without the range.
        assert!(other.rx().push_replacing(frame, 58..61, &[]));
        assert!(other.rx().push_replacing(frame, 13..60, &[]));
        assert_eq!((other.len(), other.take_dropped()), (1, 2));
        let mut third = Batch::new();
        let put_on = other.tx(0);
        let frame = put_on.frame(0).unwrap();
        assert_eq!(
            (frame.bytes(), frame.header()),
            (&tagged[..], header.shifted(4))
        );
        assert!(third.rx().push_replacing(frame, 12..16, &[]));
        let taken_off = third.tx(0);
        let frame = taken_off.frame(0).unwrap();
        assert_eq!((frame.bytes(), frame.header()), (&bytes[..], header));
        while third.rx().push(&[0; 60]) {}
        assert!(
            !third
                .rx()
                .push_replacing(plain.frame(0).unwrap(), 0..0, &[])
        );
    }

    #[test]
    fn a_full_queue_takes_some_and_says_how_many() {
        let (a, b) = UnixDatagram::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        let mut batch = Batch::new();
        for _ in 0..BATCH_FRAMES {
            batch.rx().push(&[7; 60]);
        }
        let mut sent = 0;
        while sent < 4096 {
            let n = batch.tx(0).send_datagrams(&a, 0).unwrap();
            sent += n;
            if n < BATCH_FRAMES {
                break;
            }
        }
        b.set_nonblocking(true).unwrap();
        let mut got = 0;
        let mut buffer = [0; 100];
        while b.recv(&mut buffer).is_ok() {
            got += 1;
        }
        assert_eq!(got, sent);
    }
}
