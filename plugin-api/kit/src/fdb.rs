//! A forwarding database: the place of each station that was heard from, for transports that
//! forward frames to one of several places.
//!
//! It is a hash table with a keyed hash, so that no sender can make stations collide. An entry is
//! only ever replaced by newer knowledge of the same station. It is not believed once it has not
//! been confirmed for the expiry time, and removed by a later sweep. The table is bounded: when it
//! is full of entries that have not expired, new stations are not learned. Their traffic is then
//! flooded, and no other traffic suffers. With an expiry time of zero nothing is learned.
//!
//! A station can be pinned to a place. Then it is there until it is removed, whatever is heard from
//! it. With an expiry time of zero a pinned station has no effect, but is still there.
//!
//! The caller passes the time in.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Four sweeps fit into an expiry time, but they are no closer and no further apart than this.
const SWEEP_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What names a station: its Ethernet address, and its VLAN where that counts.
pub trait Station: Copy + Eq + Hash {
    /// Whether it is a group of stations, the broadcast address among them.
    fn is_group(&self) -> bool;
}

impl Station for [u8; 6] {
    fn is_group(&self) -> bool {
        self[0] & 1 != 0
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry<P> {
    place: P,
    /// When it was last heard from; `None` if it is pinned.
    seen: Option<Instant>,
}

impl<P> Entry<P> {
    /// How long it has been silent, if it is not pinned.
    fn age(&self, now: Instant) -> Option<Duration> {
        self.seen.map(|seen| now.saturating_duration_since(seen))
    }

    /// Whether it is believed.
    fn is_fresh(&self, expiry: Duration, now: Instant) -> bool {
        self.age(now).is_none_or(|age| age < expiry)
    }
}

/// The places `P` of stations `S`.
#[derive(Debug)]
pub struct Fdb<S, P> {
    stations: HashMap<S, Entry<P>>,
    /// How many of them are pinned.
    pinned: usize,
    capacity: usize,
    expiry: Duration,
    next_sweep: Option<Instant>,
    refused: u64,
}

impl<S: Station, P: Copy + PartialEq> Fdb<S, P> {
    /// A table of up to `capacity` stations, each of which is remembered for `expiry`.
    pub fn new(capacity: usize, expiry: Duration) -> Self {
        Self {
            stations: HashMap::new(),
            pinned: 0,
            capacity,
            expiry,
            next_sweep: None,
            refused: 0,
        }
    }

    /// Changes how long stations are remembered from now on, and before. Zero forgets all but those
    /// that are pinned.
    pub fn set_expiry(&mut self, expiry: Duration, now: Instant) {
        self.expiry = expiry;
        self.sweep(now);
    }

    /// Whether a station is in the table.
    pub fn knows(&self, station: S) -> bool {
        self.stations.contains_key(&station)
    }

    /// Removes a station. Returns whether it was in the table.
    pub fn remove(&mut self, station: S) -> bool {
        let removed = self.stations.remove(&station);
        self.pinned -= usize::from(removed.as_ref().is_some_and(|entry| entry.seen.is_none()));
        self.shrink();
        removed.is_some()
    }

    /// Whether a station is pinned.
    pub fn is_pinned(&self, station: S) -> bool {
        let entry = self.stations.get(&station);
        entry.is_some_and(|entry| entry.seen.is_none())
    }

    /// Pins a station to a place, whether it was known or not.
    pub fn pin(&mut self, station: S, place: P) {
        let before = self.stations.insert(station, Entry { place, seen: None });
        self.pinned += usize::from(before.is_none_or(|entry| entry.seen.is_some()));
    }

    /// Learns that a frame of `station` came from `place`. Groups have no place.
    pub fn learn(&mut self, station: S, place: P, now: Instant) {
        if station.is_group() || self.expiry.is_zero() {
            return;
        }
        let seen = Some(now);
        let entry = Entry { place, seen };
        if let Some(known) = self.stations.get_mut(&station) {
            if known.seen.is_some() {
                *known = entry;
            }
            return;
        }
        let is_full = self.stations.len() >= self.capacity;
        if is_full && self.next_sweep.is_some_and(|due| due <= now) {
            self.sweep(now);
        }
        if self.stations.len() < self.capacity {
            self.stations.insert(station, entry);
            self.next_sweep.get_or_insert(now + self.interval());
        } else {
            self.refused += 1;
        }
    }

    /// The place of `station`, if it is known.
    pub fn lookup(&self, station: S, now: Instant) -> Option<P> {
        let entry = self.stations.get(&station)?;
        let is_believed = !self.expiry.is_zero() && entry.is_fresh(self.expiry, now);
        is_believed.then_some(entry.place)
    }

    /// Removes the stations at a place that is gone, but for those that are pinned there.
    pub fn forget(&mut self, place: P) {
        self.stations
            .retain(|_, entry| entry.seen.is_none() || entry.place != place);
        self.shrink();
    }

    /// Removes the entries that have expired.
    pub fn sweep(&mut self, now: Instant) {
        let expiry = self.expiry;
        self.stations.retain(|_, entry| entry.is_fresh(expiry, now));
        self.next_sweep = Some(now + self.interval());
        self.shrink();
    }

    /// When the next sweep is due; `None` while no station can expire.
    pub fn next_sweep(&self) -> Option<Instant> {
        self.next_sweep
    }

    /// The stations that are known, with their places and the time since they were heard from,
    /// which is zero for those that are pinned.
    pub fn stations(&self, now: Instant) -> impl Iterator<Item = (S, P, Duration)> {
        let fresh = self.stations.iter();
        let fresh = fresh.filter(move |(_, entry)| entry.is_fresh(self.expiry, now));
        fresh.map(move |(station, entry)| {
            (*station, entry.place, entry.age(now).unwrap_or_default())
        })
    }

    /// How many stations there are.
    pub fn len(&self) -> usize {
        self.stations.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.stations.is_empty()
    }

    /// How many frames had a source that could not be learned because the table was full.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn interval(&self) -> Duration {
        (self.expiry / 4).clamp(SWEEP_EVERY.0, SWEEP_EVERY.1)
    }

    /// Frees the memory of an empty table.
    fn shrink(&mut self) {
        if self.stations.is_empty() {
            self.stations = HashMap::new();
        }
        if self.stations.len() == self.pinned {
            self.next_sweep = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRY: Duration = Duration::from_secs(120);
    const A: u8 = 1;
    const B: u8 = 2;

    fn station(n: u32) -> [u8; 6] {
        let [a, b, c, d] = n.to_be_bytes();
        [2, 0, a, b, c, d]
    }

    fn after(start: Instant, secs: u64) -> Instant {
        start + Duration::from_secs(secs)
    }

    #[test]
    fn learns_moves_and_forgets() {
        let now = Instant::now();
        let mut fdb = Fdb::new(9, EXPIRY);
        assert_eq!(fdb.lookup(station(1), now), None);
        fdb.learn(station(1), A, now);
        fdb.learn(station(2), A, now);
        assert_eq!(fdb.lookup(station(1), now), Some(A));
        fdb.learn(station(1), B, now);
        assert_eq!(fdb.lookup(station(1), now), Some(B));
        fdb.forget(A);
        assert_eq!(fdb.lookup(station(2), now), None);
        assert_eq!(fdb.lookup(station(1), now), Some(B));
        fdb.forget(B);
        assert_eq!((fdb.len(), fdb.next_sweep()), (0, None));
    }

    #[test]
    fn a_hundred_thousand_stations_evict_nobody() {
        let now = Instant::now();
        let mut fdb = Fdb::new(131_072, EXPIRY);
        for n in 0..100_000_u32 {
            fdb.learn(station(n), n % 7, now);
        }
        assert!((0..100_000).all(|n| fdb.lookup(station(n), now) == Some(n % 7)));
    }

    #[test]
    fn ages() {
        let start = Instant::now();
        let mut fdb = Fdb::new(9, EXPIRY);
        let (quiet, busy) = (station(1), station(2));
        fdb.learn(quiet, A, start);
        fdb.learn(busy, A, start);
        assert_eq!(fdb.next_sweep(), Some(after(start, 30)));
        fdb.learn(busy, A, after(start, 100));
        assert_eq!(fdb.lookup(quiet, after(start, 119)), Some(A));
        assert_eq!(fdb.lookup(quiet, after(start, 120)), None);
        assert_eq!(fdb.lookup(busy, after(start, 219)), Some(A));
        fdb.sweep(after(start, 120));
        assert_eq!(fdb.len(), 1);
        assert_eq!(fdb.next_sweep(), Some(after(start, 150)));
        fdb.sweep(after(start, 220));
        assert_eq!((fdb.len(), fdb.next_sweep()), (0, None));
    }

    #[test]
    fn a_full_table_keeps_what_it_has_until_that_expires() {
        let start = Instant::now();
        let mut fdb = Fdb::new(2, EXPIRY);
        for n in 0..5 {
            fdb.learn(station(n), A, start);
        }
        assert_eq!((fdb.len(), fdb.refused()), (2, 3));
        fdb.learn(station(0), B, after(start, 60));
        assert_eq!(fdb.lookup(station(0), after(start, 60)), Some(B));
        fdb.learn(station(4), A, after(start, 119));
        assert_eq!(fdb.lookup(station(4), after(start, 119)), None);
        fdb.learn(station(4), A, after(start, 150));
        assert_eq!(
            fdb.lookup(station(4), after(start, 150)),
            Some(A),
            "1 has expired"
        );
        assert_eq!(fdb.lookup(station(0), after(start, 150)), Some(B));
    }

    #[test]
    fn the_expiry_time_can_change() {
        let start = Instant::now();
        let mut fdb = Fdb::new(9, EXPIRY);
        fdb.learn(station(1), A, start);
        fdb.set_expiry(Duration::from_secs(10), after(start, 5));
        assert_eq!(fdb.lookup(station(1), after(start, 9)), Some(A));
        assert_eq!(fdb.lookup(station(1), after(start, 10)), None);
        fdb.set_expiry(Duration::ZERO, after(start, 5));
        assert!(fdb.is_empty() && fdb.next_sweep().is_none());
        fdb.set_expiry(EXPIRY, after(start, 6));
        fdb.learn(station(1), A, after(start, 6));
        assert!(fdb.remove(station(1)) && !fdb.remove(station(1)));
        assert!(fdb.is_empty() && fdb.next_sweep().is_none());
    }

    #[test]
    fn a_pinned_station_stays_where_it_is() {
        let start = Instant::now();
        let later = after(start, 1000);
        let mut fdb = Fdb::new(2, EXPIRY);
        fdb.learn(station(1), A, start);
        fdb.pin(station(1), B);
        fdb.pin(station(2), A);
        fdb.learn(station(1), A, later);
        fdb.sweep(later);
        fdb.forget(B);
        assert_eq!(fdb.lookup(station(1), later), Some(B));
        assert_eq!((fdb.len(), fdb.next_sweep()), (2, None));
        assert!(fdb.is_pinned(station(1)) && fdb.stations(later).count() == 2);
        fdb.set_expiry(Duration::ZERO, later);
        assert_eq!(
            fdb.lookup(station(1), later),
            None,
            "all frames are flooded"
        );
        fdb.set_expiry(EXPIRY, later);
        fdb.pin(station(1), A);
        assert_eq!(fdb.lookup(station(1), later), Some(A));
        assert!(fdb.remove(station(1)) && fdb.remove(station(2)));
        assert!(fdb.is_empty() && fdb.pinned == 0);
        fdb.learn(station(1), B, later);
        assert!(fdb.next_sweep().is_some());
    }

    #[test]
    fn groups_are_not_learned() {
        let now = Instant::now();
        let mut fdb = Fdb::new(9, EXPIRY);
        for group in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            fdb.learn(group, A, now);
            assert_eq!(fdb.lookup(group, now), None);
        }
        assert!(fdb.is_empty() && fdb.next_sweep().is_none());
    }

    #[test]
    fn without_an_expiry_time_nothing_is_learned() {
        let now = Instant::now();
        let mut fdb = Fdb::new(9, Duration::ZERO);
        fdb.learn(station(1), A, now);
        assert_eq!(fdb.lookup(station(1), now), None);
        assert_eq!((fdb.len(), fdb.refused(), fdb.next_sweep()), (0, 0, None));
    }
}
