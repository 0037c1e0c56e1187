//! The storm guard: how many frames a port may flood.
//!
//! Where cables make a loop, a frame that is flooded comes back, is flooded again, and so on for
//! ever, as fast as the machine can. So each port may flood so many frames in a second:
//! broadcast, multicast, and those to unknown stations. What is more is dropped. A hub floods every
//! frame, so there only broadcast and multicast count.

use std::time::{Duration, Instant};

use vdens_switch_control::StormLimit;

/// For how long a port may have been silent and then make up for it.
const BURST: Duration = Duration::from_millis(250);

/// How long there must be no frame too many before a storm is over.
pub(crate) const CALM: Duration = Duration::from_secs(10);

/// Counts what a port floods.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter {
    limit: StormLimit,
    /// When the next frame would be due if all came at the limit's pace.
    due: Option<Instant>,
}

impl Meter {
    pub(crate) fn new(limit: StormLimit) -> Self {
        Self { limit, due: None }
    }

    pub(crate) fn set_limit(&mut self, limit: StormLimit) {
        self.limit = limit;
    }

    /// Whether one more frame may be flooded.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        let StormLimit::Frames(limit) = self.limit else {
            return true;
        };
        let earliest = now.checked_sub(BURST);
        let due = self.due.into_iter().chain(earliest).max();
        let is_early = due.is_some_and(|due| due > now);
        if !is_early {
            self.due = due.map(|due| due + Duration::from_secs(1) / limit.max(1));
        }
        !is_early
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(meter: &mut Meter, offered: usize, now: Instant) -> usize {
        (0..offered).filter(|_| meter.admits(now)).count()
    }

    #[test]
    fn a_limit_is_a_rate_and_a_burst() {
        let start = Instant::now() + BURST;
        let mut meter = Meter::new(StormLimit::Frames(1000));
        assert_eq!(admitted(&mut meter, 9000, start), 251);
        assert_eq!(admitted(&mut meter, 9000, start), 0);
        let later = start + Duration::from_millis(100);
        assert_eq!(admitted(&mut meter, 9000, later), 100);
        let much_later = start + Duration::from_secs(100);
        assert_eq!(admitted(&mut meter, 9000, much_later), 251);
        meter.set_limit(StormLimit::Off);
        assert_eq!(admitted(&mut meter, 9000, much_later), 9000);
    }

    #[test]
    fn the_smallest_limit_lets_something_pass() {
        let start = Instant::now() + BURST;
        let mut meter = Meter::new(StormLimit::Frames(1));
        assert_eq!(admitted(&mut meter, 10, start), 1);
        assert_eq!(admitted(&mut meter, 10, start + Duration::from_secs(2)), 1);
    }
}
