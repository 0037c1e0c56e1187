//! The forwarding database: behind which port each station is.
//!
//! A hash table with a keyed hash, so that nobody can make addresses collide; an entry is only ever
//! replaced by newer knowledge of the same station. Entries that were not confirmed for the expiry time
//! are not believed any more and swept out now and then. The table is bounded: when it is full, new
//! stations are not learned, which costs their traffic its privacy (it is flooded) and nobody else
//! anything. A table with no expiry time learns nothing.
//!
//! Time is passed in. While the table is empty it asks for no sweep.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::frame::Station;
use crate::port::PortId;

/// The most stations remembered.
pub(crate) const CAPACITY: usize = 131_072;

/// A sweep comes about four times in an expiry time, and this often at least and at most.
const SWEEP_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

#[derive(Clone, Copy, Debug)]
struct Entry {
    port: PortId,
    seen: Instant,
}

#[derive(Debug)]
pub(crate) struct Fdb {
    stations: HashMap<Station, Entry>,
    capacity: usize,
    expiry: Duration,
    next_sweep: Option<Instant>,
    refused: u64,
}

impl Fdb {
    pub(crate) fn new(capacity: usize, expiry: Duration) -> Self {
        Self {
            stations: HashMap::new(),
            capacity,
            expiry,
            next_sweep: None,
            refused: 0,
        }
    }

    /// Notes that a frame of `station` came in by `port`. Groups of stations are nowhere.
    pub(crate) fn learn(&mut self, station: Station, port: PortId, now: Instant) {
        if station.is_multicast() || self.expiry.is_zero() {
            return;
        }
        let entry = Entry { port, seen: now };
        if let Some(known) = self.stations.get_mut(&station) {
            *known = entry;
        } else if self.stations.len() < self.capacity {
            self.stations.insert(station, entry);
            self.next_sweep.get_or_insert(now + self.interval());
        } else {
            self.refused += 1;
        }
    }

    /// The port behind which `station` is, if that is known.
    pub(crate) fn lookup(&self, station: Station, now: Instant) -> Option<PortId> {
        let entry = self.stations.get(&station)?;
        self.is_fresh(entry, now).then_some(entry.port)
    }

    /// Forgets all stations behind a port that is gone.
    pub(crate) fn forget(&mut self, port: PortId) {
        self.stations.retain(|_, entry| entry.port != port);
        self.settle();
    }

    /// Removes what has expired.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let expiry = self.expiry;
        self.stations
            .retain(|_, entry| now.saturating_duration_since(entry.seen) < expiry);
        self.next_sweep = Some(now + self.interval());
        self.settle();
    }

    /// When to sweep next, `None` while there is nothing to forget.
    pub(crate) fn next_sweep(&self) -> Option<Instant> {
        self.next_sweep
    }

    /// The stations that are believed in, with their ports and how long ago they were heard of.
    pub(crate) fn stations(
        &self,
        now: Instant,
    ) -> impl Iterator<Item = (Station, PortId, Duration)> {
        let fresh = self
            .stations
            .iter()
            .filter(move |(_, entry)| self.is_fresh(entry, now));
        fresh.map(move |(station, entry)| {
            let age = now.saturating_duration_since(entry.seen);
            (*station, entry.port, age)
        })
    }

    /// Stations known.
    pub(crate) fn len(&self) -> usize {
        self.stations.len()
    }

    /// Frames whose source could not be learned because the table was full.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    fn is_fresh(&self, entry: &Entry, now: Instant) -> bool {
        now.saturating_duration_since(entry.seen) < self.expiry
    }

    fn interval(&self) -> Duration {
        (self.expiry / 4).clamp(SWEEP_EVERY.0, SWEEP_EVERY.1)
    }

    /// Gives back what an empty table does not need.
    fn settle(&mut self) {
        if self.stations.is_empty() {
            self.stations = HashMap::new();
            self.next_sweep = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Addresses;

    const EXPIRY: Duration = Duration::from_secs(120);
    const A: PortId = PortId(1);
    const B: PortId = PortId(2);

    fn station(n: u32, vlan: u16) -> Station {
        let mut frame = [0; 18];
        frame[8..12].copy_from_slice(&n.to_be_bytes());
        frame[12..14].copy_from_slice(&[0x81, 0]);
        frame[14..16].copy_from_slice(&vlan.to_be_bytes());
        Addresses::of(&frame).unwrap().source
    }

    fn after(start: Instant, secs: u64) -> Instant {
        start + Duration::from_secs(secs)
    }

    #[test]
    fn learns_moves_and_forgets() {
        let now = Instant::now();
        let mut fdb = Fdb::new(CAPACITY, EXPIRY);
        let (one, two) = (station(1, 0), station(2, 0));
        assert_eq!(fdb.lookup(one, now), None);
        fdb.learn(one, A, now);
        fdb.learn(two, A, now);
        assert_eq!(fdb.lookup(one, now), Some(A));
        fdb.learn(one, B, now);
        assert_eq!(fdb.lookup(one, now), Some(B));
        fdb.forget(A);
        assert_eq!(fdb.lookup(two, now), None);
        assert_eq!(fdb.lookup(one, now), Some(B));
        fdb.forget(B);
        assert_eq!((fdb.len(), fdb.next_sweep()), (0, None));
    }

    #[test]
    fn the_same_address_on_each_of_4096_vlans() {
        let now = Instant::now();
        let mut fdb = Fdb::new(CAPACITY, EXPIRY);
        for vlan in 0..4096 {
            fdb.learn(station(1, vlan), PortId(u32::from(vlan)), now);
        }
        for vlan in 0..4096 {
            let port = PortId(u32::from(vlan));
            assert_eq!(fdb.lookup(station(1, vlan), now), Some(port));
        }
    }

    #[test]
    fn a_hundred_thousand_stations_evict_nobody() {
        let now = Instant::now();
        let mut fdb = Fdb::new(CAPACITY, EXPIRY);
        for n in 0..100_000 {
            fdb.learn(station(n, 1), PortId(n % 7), now);
        }
        assert!((0..100_000).all(|n| fdb.lookup(station(n, 1), now) == Some(PortId(n % 7))));
    }

    #[test]
    fn ages() {
        let start = Instant::now();
        let mut fdb = Fdb::new(CAPACITY, EXPIRY);
        let (quiet, busy) = (station(1, 0), station(2, 0));
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
    fn a_full_table_keeps_what_it_has() {
        let start = Instant::now();
        let mut fdb = Fdb::new(2, EXPIRY);
        for n in 0..5 {
            fdb.learn(station(n, 0), A, start);
        }
        assert_eq!((fdb.len(), fdb.refused()), (2, 3));
        fdb.learn(station(0, 0), B, after(start, 60));
        assert_eq!(fdb.lookup(station(0, 0), after(start, 60)), Some(B));
        fdb.sweep(after(start, 120));
        fdb.learn(station(4, 0), A, after(start, 120));
        assert_eq!(fdb.lookup(station(4, 0), after(start, 120)), Some(A));
    }

    #[test]
    fn without_an_expiry_time_nothing_is_learned() {
        let now = Instant::now();
        let mut fdb = Fdb::new(CAPACITY, Duration::ZERO);
        fdb.learn(station(1, 0), A, now);
        assert_eq!(fdb.lookup(station(1, 0), now), None);
        assert_eq!((fdb.len(), fdb.refused(), fdb.next_sweep()), (0, 0, None));
    }

    #[test]
    fn groups_are_not_learned() {
        let mut fdb = Fdb::new(CAPACITY, EXPIRY);
        let frame = [0xff; 14];
        let group = Addresses::of(&frame).unwrap().source;
        fdb.learn(group, A, Instant::now());
        assert_eq!((fdb.len(), fdb.next_sweep()), (0, None));
    }
}
