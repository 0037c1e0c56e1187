//! One direction of a link: which frames are lost, and when the others leave.
//!
//! # Theory of operation
//!
//! A frame is lost, doubled, corrupted or neither, as chance has it. What is left goes through two
//! stages, both of which are arithmetic on its arrival:
//!
//! 1. the rate: a frame departs when the frames before it have, and its own bits are out. A rate
//!    that was not used is saved up to the burst. Frames that wait for their departure are bounded
//!    by the limit, and one too many is dropped;
//! 2. the delay and its variation, counted from the departure. A frame in flight may overtake
//!    another, unless they are to stay ordered.
//!
//! A frame that is reordered skips both. Until a frame is due, it is in a heap. Its buffer is then
//! used again.
//!
//! On a busy machine the caller may have no processor when a frame is due. Frames that it takes
//! when it is late may have waited for it all that time, so the line does not count as unused since
//! then ([`Path::wake`]). Otherwise each such moment would cost a part of the rate.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use vdens_plugin_kit::offload::{Segments, examine};
use vdens_plugin_kit::{Frame, RxBatch, VnetHeader};

use crate::random::{Channel, Delay, Event};
use crate::settings::Direction;

/// The most bytes in flight, so that a long delay cannot take all memory.
const MAX_IN_FLIGHT: usize = 256 << 20;

/// The most buffers that are kept for later frames.
const MAX_SPARE: usize = 1024;

/// A frame in flight.
#[derive(Debug)]
struct InFlight {
    due: Duration,
    /// When it left the queue for the rate, or will.
    departure: Duration,
    /// Its number, so that frames which are due at the same time stay in order.
    number: u64,
    header: VnetHeader,
    bytes: Vec<u8>,
}

impl Ord for InFlight {
    /// The next to leave is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

impl PartialOrd for InFlight {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for InFlight {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for InFlight {}

/// What became of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// As the keys say.
    pub lost: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// With a wrong bit.
    pub corrupted: u64,
    /// Not delayed.
    pub reordered: u64,
    /// Over the limit, more in flight than memory is for, or while the link was down.
    pub dropped: u64,
}

/// Frames that wait for the rate, as the times at which they depart.
#[derive(Debug, Default)]
struct Waiting {
    departures: VecDeque<(Duration, usize)>,
    packets: usize,
    /// When the last of them is out. It lies in the past after a silence.
    free: Duration,
    stall: Stall,
}

/// A time in which the caller had no processor.
#[derive(Debug, Default)]
struct Stall {
    since: Duration,
    /// Until when frames are taken that may have come meanwhile.
    until: Duration,
}

/// How long a caller that was late may take to read what has come meanwhile.
const READING: Duration = Duration::from_millis(1);

impl Waiting {
    /// When a frame departs that arrives `now`; `None` if too many wait.
    fn departs(&mut self, now: Duration, frame: Size, settings: &Direction) -> Option<Duration> {
        let Some(rate) = settings.rate else {
            return Some(now);
        };
        while let Some((at, packets)) = self.departures.front()
            && *at <= now
        {
            self.packets -= packets;
            self.departures.pop_front();
        }
        if self.packets + frame.packets > settings.limit.max(frame.packets) {
            return None;
        }
        let seconds = |bytes: f64| Duration::from_secs_f64(bytes * 8.0 / rate);
        let mut earliest = now.saturating_sub(seconds(settings.burst));
        if now <= self.stall.until {
            earliest = earliest.min(self.stall.since);
        }
        self.free = self.free.max(earliest) + seconds(frame.bytes as f64);
        let departure = self.free.max(now);
        self.departures.push_back((departure, frame.packets));
        self.packets += frame.packets;
        Some(departure)
    }
}

/// A frame's size on a wire: of a super-frame, that of the packets which it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    packets: usize,
    bytes: usize,
}

impl Size {
    fn of(frame: Frame<'_>) -> Self {
        let len = frame.bytes().len();
        match examine(frame) {
            Some(Segments { count, longest }) if count > 1 => {
                let headers = longest - usize::from(frame.header().gso_size);
                Self {
                    packets: count,
                    bytes: len + (count - 1) * headers,
                }
            }
            _ => Self {
                packets: 1,
                bytes: len,
            },
        }
    }
}

/// All that is left to chance.
#[derive(Debug)]
struct Dice {
    loss: Channel,
    duplicate: Event,
    corrupt: Event,
    reorder: Event,
    delay: Delay,
    /// Frames since the last that was reordered.
    since_reordered: u32,
}

impl Dice {
    fn new(seed: u64) -> Self {
        let mut seeds = fastrand::Rng::with_seed(seed);
        let mut seed = || seeds.u64(..);
        Self {
            loss: Channel::new(seed()),
            duplicate: Event::new(seed()),
            corrupt: Event::new(seed()),
            reorder: Event::new(seed()),
            delay: Delay::new(seed()),
            since_reordered: 0,
        }
    }
}

/// One direction of a link.
#[derive(Debug)]
pub struct Path {
    settings: Direction,
    dice: Dice,
    /// Whether all frames are dropped.
    is_cut: bool,
    waiting: Waiting,
    in_flight: BinaryHeap<InFlight>,
    bytes_in_flight: usize,
    /// When the last frame is due that is to stay in order.
    last_due: Duration,
    number: u64,
    spare: Vec<Vec<u8>>,
    counters: Counters,
}

impl Path {
    /// A path with these impairments. `seed` decides all that is left to chance.
    pub fn new(settings: Direction, seed: u64) -> Self {
        Self {
            settings,
            dice: Dice::new(seed),
            is_cut: false,
            waiting: Waiting::default(),
            in_flight: BinaryHeap::new(),
            bytes_in_flight: 0,
            last_due: Duration::ZERO,
            number: 0,
            spare: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// The impairments.
    pub fn settings(&self) -> &Direction {
        &self.settings
    }

    /// Has other impairments from `now` on. Frames in flight keep their delay, but those that wait
    /// for the rate leave at the new one.
    pub fn change(&mut self, now: Duration, settings: Direction) {
        let stretch = match (self.settings.rate, settings.rate) {
            (Some(old), Some(new)) => old / new,
            (Some(_), None) => 0.0,
            (None, _) => 1.0,
        };
        self.settings = settings;
        if stretch == 1.0 {
            return;
        }
        let again = |at: Duration| match at.checked_sub(now) {
            Some(left) => now + left.mul_f64(stretch),
            None => at,
        };
        self.waiting.free = again(self.waiting.free);
        for (at, _) in &mut self.waiting.departures {
            *at = again(*at);
        }
        let mut frames = std::mem::take(&mut self.in_flight).into_vec();
        for frame in &mut frames {
            let departure = again(frame.departure);
            frame.due = frame.due - frame.departure + departure;
            frame.departure = departure;
        }
        self.last_due = frames.iter().map(|frame| frame.due).max().unwrap_or(now);
        self.in_flight = frames.into();
    }

    /// Draws anew all that is left to chance.
    pub fn reseed(&mut self, seed: u64) {
        self.dice = Dice::new(seed);
    }

    /// Loses all frames in flight and those that come, or no longer does.
    pub fn cut(&mut self, is_cut: bool) {
        self.is_cut = is_cut;
        if is_cut {
            self.counters.dropped += self.in_flight.len() as u64;
            self.in_flight.clear();
            self.bytes_in_flight = 0;
            self.waiting = Waiting::default();
            self.last_due = Duration::ZERO;
        }
    }

    /// What became of frames.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Frames in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Tells that the caller is there again, before it takes or delivers frames. If a frame is due
    /// already, it is late.
    pub fn wake(&mut self, now: Duration) {
        if let Some(since) = self.next_due().filter(|due| *due < now) {
            let until = now + READING;
            self.waiting.stall = Stall { since, until };
        }
    }

    /// Takes a frame that arrives `now`. Times are from a start of the caller's choice.
    pub fn take(&mut self, now: Duration, frame: Frame<'_>) {
        if self.is_cut {
            self.counters.dropped += 1;
            return;
        }
        let is_duplicated = self.dice.duplicate.happens(self.settings.duplicate);
        let is_lost = self.dice.loss.loses(self.settings.loss);
        self.counters.duplicated += u64::from(is_duplicated);
        self.counters.lost += u64::from(is_lost);
        for _ in 0..1 + u8::from(is_duplicated) - u8::from(is_lost) {
            self.launch(now, frame);
        }
    }

    fn launch(&mut self, now: Duration, frame: Frame<'_>) {
        let size = Size::of(frame);
        let Some((departure, due)) = self.times(now, size) else {
            self.counters.dropped += 1;
            return;
        };
        if self.bytes_in_flight + frame.bytes().len() > MAX_IN_FLIGHT {
            self.counters.dropped += 1;
            return;
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.extend_from_slice(frame.bytes());
        if self.dice.corrupt.happens(self.settings.corrupt) {
            let bit = self.dice.corrupt.below(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            self.counters.corrupted += 1;
        }
        self.bytes_in_flight += bytes.len();
        self.number += 1;
        self.in_flight.push(InFlight {
            due,
            departure,
            number: self.number,
            header: frame.header(),
            bytes,
        });
    }

    /// When a frame departs and is due that arrives `now`; `None` if it is dropped.
    fn times(&mut self, now: Duration, frame: Size) -> Option<(Duration, Duration)> {
        let Direction {
            reorder,
            gap,
            delay,
            jitter,
            correlation,
            ref distribution,
            is_ordered,
            ..
        } = self.settings;
        self.dice.since_reordered = self.dice.since_reordered.saturating_add(1);
        let may_reorder = reorder.probability > 0.0 && self.dice.since_reordered >= gap;
        if may_reorder && self.dice.reorder.happens(reorder) {
            self.dice.since_reordered = 0;
            self.counters.reordered += 1;
            return Some((now, now));
        }
        let departure = self.waiting.departs(now, frame, &self.settings)?;
        let mut seconds = delay.as_secs_f64();
        if !jitter.is_zero() {
            seconds += jitter.as_secs_f64() * self.dice.delay.variation(distribution, correlation);
        }
        let mut due = departure + Duration::from_secs_f64(seconds.max(0.0));
        if is_ordered {
            due = due.max(self.last_due);
            self.last_due = due;
        }
        Some((departure, due))
    }

    /// When the next frame is due.
    pub fn next_due(&self) -> Option<Duration> {
        self.in_flight.peek().map(|frame| frame.due)
    }

    /// Moves the frames that are due into a batch, as many as fit.
    pub fn deliver(&mut self, now: Duration, batch: &mut RxBatch<'_>) {
        while let Some(frame) = self.in_flight.peek()
            && frame.due <= now
            && batch.push_offloaded(frame.header, &frame.bytes)
        {
            let Some(mut frame) = self.in_flight.pop() else {
                return;
            };
            self.bytes_in_flight -= frame.bytes.len();
            if self.spare.len() < MAX_SPARE {
                frame.bytes.clear();
                self.spare.push(frame.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use vdens_plugin_kit::{BATCH_FRAMES, Batch};

    fn path(keys: &str) -> Path {
        let settings = Settings::parse(keys).unwrap();
        Path::new(settings.tx, settings.seed.unwrap_or(1))
    }

    const MS: Duration = Duration::from_millis(1);

    /// Sends `count` frames of `len` bytes, one each `every`, and returns when each was delivered,
    /// by its number.
    fn run(path: &mut Path, count: u32, len: usize, every: Duration) -> Vec<(u32, Duration)> {
        let mut delivered = Vec::new();
        let (mut sent, mut now) = (0, Duration::ZERO);
        let mut batch = Batch::new();
        loop {
            let next_sent = (sent < count).then(|| sent * every);
            let Some(next) = [next_sent, path.next_due()].into_iter().flatten().min() else {
                return delivered;
            };
            now = next.max(now);
            if next_sent == Some(next) {
                let mut frame = vec![0; len];
                frame[..4].copy_from_slice(&sent.to_be_bytes());
                batch.clear();
                batch.rx().push(&frame);
                path.take(now, batch.tx(0).frame(0).unwrap());
                sent += 1;
            }
            batch.clear();
            path.deliver(now, &mut batch.rx());
            for frame in batch.tx(0).frames() {
                let number = frame.bytes().first_chunk().copied().unwrap();
                delivered.push((u32::from_be_bytes(number), now));
            }
        }
    }

    #[test]
    fn without_impairments_frames_pass_at_once() {
        let mut path = path("seed=1");
        let delivered = run(&mut path, 3, 60, MS);
        assert_eq!(delivered, [(0, Duration::ZERO), (1, MS), (2, 2 * MS)]);
    }

    #[test]
    fn a_delay_is_added_to_each_frame() {
        let mut path = path("delay=70ms");
        for (number, at) in run(&mut path, 1000, 60, MS / 100) {
            assert_eq!(at, number * MS / 100 + 70 * MS);
        }
        assert_eq!(path.bytes_in_flight, 0);
    }

    #[test]
    fn a_jitter_reorders_unless_told_otherwise() {
        let numbers = |keys| -> Vec<u32> {
            let delivered = run(&mut path(keys), 1000, 60, MS);
            delivered.into_iter().map(|(number, _)| number).collect()
        };
        let jittered = numbers("delay=50ms/jitter=10ms/distribution=normal");
        assert!(jittered.len() == 1000 && !jittered.is_sorted());
        let ordered = numbers("delay=50ms/jitter=10ms/distribution=normal/ordered");
        assert!(ordered.len() == 1000 && ordered.is_sorted());
    }

    #[test]
    fn a_rate_spaces_frames_and_drops_what_is_over_the_limit() {
        // 1,000 bytes take a millisecond, and come twice as fast.
        let mut slow = path("rate=8mbit/limit=10/delay=5ms");
        let delivered = run(&mut slow, 1000, 1000, MS / 2);
        let (_, first) = delivered[0];
        assert_eq!(first, 6 * MS);
        let (_, last) = delivered[delivered.len() - 1];
        let rate = delivered.len() as f64 / (last - first + MS).as_secs_f64();
        assert!((rate - 1000.0).abs() < 1.0, "{rate} frames a second");
        assert_eq!(slow.counters.dropped as usize, 1000 - delivered.len());
        // The last frame to come waited for ten milliseconds at the most.
        assert!(last <= 500 * MS + 16 * MS, "{last:?}");
    }

    #[test]
    fn a_caller_that_is_late_costs_no_rate() {
        // A frame takes a millisecond.
        let mut path = path("rate=8mbit/delay=5ms");
        let mut batch = Batch::new();
        batch.rx().push(&[0; 1000]);
        let mut take = |path: &mut Path, now| {
            path.wake(now);
            path.take(now, batch.tx(0).frame(0).unwrap());
            let mut due: Vec<_> = path.in_flight.iter().map(|frame| frame.due).collect();
            due.sort_unstable();
            due.pop().unwrap()
        };
        assert_eq!(take(&mut path, Duration::ZERO), 6 * MS);
        // It was due at 6 ms. What comes now may have waited since then, and three are out by now.
        let due = [14, 14, 14, 15].map(|_| take(&mut path, 9 * MS));
        assert_eq!(due, [14, 14, 14, 15].map(|at| at * MS));
        let mut delivered = Batch::new();
        path.deliver(9 * MS, &mut delivered.rx());
        assert_eq!(delivered.len(), 1);
        // What comes later has not, nor what comes to a caller that is in time.
        assert_eq!(take(&mut path, 11 * MS), 17 * MS);
        path.deliver(14 * MS, &mut delivered.rx());
        path.deliver(17 * MS, &mut delivered.rx());
        assert_eq!(take(&mut path, 30 * MS), 36 * MS);
    }

    #[test]
    fn a_burst_goes_at_once_after_a_silence() {
        let mut path = path("rate=8mbit/burst=4000");
        let delivered = run(&mut path, 6, 1000, Duration::ZERO);
        let times: Vec<_> = delivered.into_iter().map(|(_, at)| at).collect();
        // There was no silence before the start.
        assert_eq!(times, [MS, 2 * MS, 3 * MS, 4 * MS, 5 * MS, 6 * MS]);
        let mut batch = Batch::new();
        for _ in 0..6 {
            batch.rx().push(&[0; 1000]);
        }
        let now = 100 * MS;
        batch.tx(0).frames().for_each(|frame| path.take(now, frame));
        batch.clear();
        path.deliver(now, &mut batch.rx());
        assert_eq!(batch.len(), 4);
        assert_eq!(path.next_due(), Some(now + MS));
    }

    #[test]
    fn what_waits_for_a_rate_leaves_at_the_new_one() {
        // A frame takes 8 ms, and then 1 ms.
        for (keys, times) in [
            ("delay=5ms/rate=8mbit", [13, 15, 16, 17]),
            ("delay=9ms/rate=4mbit", [13, 16, 18, 24]),
            ("delay=5ms", [13, 14, 14, 14]),
        ] {
            let mut path = path("delay=5ms/rate=1mbit");
            let mut batch = Batch::new();
            for _ in 0..3 {
                batch.rx().push(&[0; 1000]);
            }
            batch
                .tx(0)
                .frames()
                .for_each(|frame| path.take(Duration::ZERO, frame));
            let now = 9 * MS;
            path.change(now, Settings::parse(keys).unwrap().tx);
            path.take(now, batch.tx(0).frame(0).unwrap());
            let mut due: Vec<_> = path.in_flight.iter().map(|frame| frame.due).collect();
            due.sort_unstable();
            let expected = times.map(|at| at * MS);
            for (due, expected) in due.iter().zip(expected) {
                assert!(
                    due.abs_diff(expected) <= MS,
                    "{keys}: {due:?}, not {expected:?}"
                );
            }
        }
    }

    #[test]
    fn a_cut_link_loses_everything() {
        let mut path = path("delay=5ms/rate=1mbit");
        let delivered = |path: &mut Path| run(path, 3, 1000, MS).len();
        let mut batch = Batch::new();
        batch.rx().push(&[0; 1000]);
        path.take(MS, batch.tx(0).frame(0).unwrap());
        path.cut(true);
        assert_eq!((path.in_flight(), delivered(&mut path)), (0, 0));
        assert_eq!(path.counters().dropped, 4);
        path.cut(false);
        assert_eq!(delivered(&mut path), 3);
    }

    #[test]
    fn a_super_frame_counts_as_its_packets() {
        const HEADERS: usize = 14 + 20 + 20;
        // What Linux says of the headers' length is that of what lies in one piece.
        let header = VnetHeader {
            flags: 1,
            gso_type: 1,
            hdr_len: 1514,
            gso_size: 1000,
            csum_start: 34,
            csum_offset: 16,
        };
        let size = |header, payload: usize| {
            let mut frame = vec![0; HEADERS + payload];
            frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
            let length = (20 + 20 + payload) as u16;
            frame[16..18].copy_from_slice(&length.to_be_bytes());
            frame[23] = 6;
            frame[46] = 5 << 4;
            let mut batch = Batch::new();
            assert!(batch.rx().push_offloaded(header, &frame));
            let Size { packets, bytes } = Size::of(batch.tx(0).frame(0).unwrap());
            (packets, bytes)
        };
        assert_eq!(size(header, 2500), (3, HEADERS * 3 + 2500));
        assert_eq!(size(header, 1000), (1, HEADERS + 1000));
        assert_eq!(size(VnetHeader::default(), 2500), (1, HEADERS + 2500));
        // What no kernel would take.
        let wrong = VnetHeader {
            csum_start: 9000,
            ..header
        };
        assert_eq!(size(wrong, 2500), (1, HEADERS + 2500));
    }

    #[test]
    fn the_same_frames_are_lost_with_the_same_seed_whatever_else_is_set() {
        let passed = |keys| -> Vec<u32> {
            let delivered = run(&mut path(keys), 2000, 60, MS);
            let mut numbers: Vec<_> = delivered.into_iter().map(|(number, _)| number).collect();
            numbers.sort_unstable();
            numbers
        };
        let once = passed("loss=10%/seed=5");
        assert!((1700..1900).contains(&once.len()), "{}", once.len());
        assert_eq!(
            once,
            passed("loss=10%/seed=5/delay=9ms/jitter=3ms/rate=1mbit")
        );
        assert_ne!(once, passed("loss=10%/seed=6"));
    }

    #[test]
    fn duplicates_corruption_and_reordering_are_as_often_as_told() {
        let mut double = path("duplicate=20%");
        let count = run(&mut double, 2000, 60, MS).len() as u64;
        assert_eq!(count, 2000 + double.counters.duplicated);
        assert!((2300..2500).contains(&count), "{count}");

        let mut path = path("corrupt=10%/delay=5ms/reorder=50%/gap=3");
        let delivered = run(&mut path, 3000, 60, MS);
        let Counters {
            corrupted,
            reordered,
            ..
        } = path.counters;
        assert!((220..380).contains(&corrupted), "{corrupted}");
        // Two frames, and then half of the candidates: every fourth frame.
        assert!((650..850).contains(&reordered), "{reordered}");
        let early = delivered.windows(2).filter(|pair| pair[0].0 > pair[1].0);
        assert!(early.count() > 500);
    }

    #[test]
    fn a_batch_that_is_full_leaves_the_rest() {
        let mut path = path("delay=1ms");
        let mut batch = Batch::new();
        for _ in 0..2 {
            batch.clear();
            for _ in 0..BATCH_FRAMES {
                batch.rx().push(&[0; 60]);
            }
            batch.tx(0).frames().for_each(|frame| path.take(MS, frame));
        }
        batch.clear();
        path.deliver(2 * MS, &mut batch.rx());
        assert_eq!(
            (batch.len(), path.in_flight()),
            (BATCH_FRAMES, BATCH_FRAMES)
        );
        batch.clear();
        path.deliver(2 * MS, &mut batch.rx());
        assert_eq!((batch.len(), path.in_flight()), (BATCH_FRAMES, 0));
    }
}
