//! The forwarding database: at which address each station is.
//!
//! A hash table with a keyed hash, so that nobody can make stations collide. It is bounded: when it is full of
//! what has not expired, new stations are not learned, and their frames go to the group. Time is passed in.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// The most stations remembered.
pub(crate) const CAPACITY: usize = 16_384;

/// A full table is looked through for what has expired at most this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Entry {
    at: SocketAddr,
    seen: Instant,
}

/// Stations and where they were heard from.
#[derive(Debug)]
pub(crate) struct Fdb {
    stations: HashMap<Mac, Entry>,
    expiry: Duration,
    last_sweep: Option<Instant>,
}

impl Fdb {
    pub(crate) fn new(expiry: Duration) -> Self {
        Self {
            stations: HashMap::new(),
            expiry,
            last_sweep: None,
        }
    }

    /// Notes that a frame of `station` came from `at`. Groups of stations are nowhere.
    pub(crate) fn learn(&mut self, station: Mac, at: SocketAddr, now: Instant) {
        if is_group(station) {
            return;
        }
        let entry = Entry { at, seen: now };
        if let Some(known) = self.stations.get_mut(&station) {
            *known = entry;
        } else if self.stations.len() < CAPACITY || self.sweep(now) {
            self.stations.insert(station, entry);
        }
    }

    /// Where `station` is, if that is known.
    pub(crate) fn lookup(&self, station: Mac, now: Instant) -> Option<SocketAddr> {
        let entry = self.stations.get(&station)?;
        (now.saturating_duration_since(entry.seen) < self.expiry).then_some(entry.at)
    }

    /// Removes what has expired; whether there is room then.
    fn sweep(&mut self, now: Instant) -> bool {
        let is_due = |last| now.saturating_duration_since(last) >= SWEEP_EVERY;
        if self.last_sweep.is_none_or(is_due) {
            self.last_sweep = Some(now);
            let expiry = self.expiry;
            self.stations
                .retain(|_, entry| now.saturating_duration_since(entry.seen) < expiry);
        }
        self.stations.len() < CAPACITY
    }
}

/// Whether an address is a group's, of which the broadcast address is one.
fn is_group(station: Mac) -> bool {
    station[0] & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 4789))
    }

    fn station(number: u32) -> Mac {
        let [a, b, c, d] = number.to_be_bytes();
        [2, 0, a, b, c, d]
    }

    #[test]
    fn stations_are_where_they_were_heard_last_and_not_for_ever() {
        let (mut fdb, now) = (Fdb::new(Duration::from_secs(10)), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        fdb.learn(station(1), at(1), now);
        fdb.learn([0xff; 6], at(1), now);
        assert_eq!(fdb.lookup(station(1), later(9)), Some(at(1)));
        assert_eq!(fdb.lookup([0xff; 6], now), None);
        fdb.learn(station(1), at(2), later(9));
        assert_eq!(fdb.lookup(station(1), later(18)), Some(at(2)));
        assert_eq!(fdb.lookup(station(1), later(19)), None);
    }

    #[test]
    fn a_full_table_learns_again_when_something_has_expired() {
        let (mut fdb, now) = (Fdb::new(Duration::from_secs(10)), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        for number in 0..CAPACITY as u32 {
            fdb.learn(station(number), at(1), now);
        }
        let new = station(u32::MAX);
        fdb.learn(new, at(2), later(5));
        assert_eq!(fdb.lookup(new, later(5)), None);
        assert_eq!(fdb.stations.len(), CAPACITY);
        fdb.learn(station(7), at(3), later(5));
        fdb.learn(new, at(2), later(10));
        assert_eq!(fdb.lookup(new, later(10)), Some(at(2)));
        assert_eq!(fdb.lookup(station(7), later(10)), Some(at(3)));
        assert_eq!(fdb.stations.len(), 2);
    }
}
