//! The storm guard: how much a port may flood.
//!
//! In a loop of cables a frame that is flooded comes back and is flooded again, as fast as the
//! machine can. So the frames that a port floods in a second are counted, and those above the limit
//! are dropped. They are dropped until the second is over, and so all copies of the frame that
//! circulate are dropped: the loop is quiet until the next frame is flooded.
//!
//! Flooded are frames for groups, and those for stations that are not known. In a hub all frames
//! go everywhere, so only those for groups count there.

use std::time::{Duration, Instant};

use vdens_switch_control::StormLimit;

/// What the limit is for.
const WINDOW: Duration = Duration::from_secs(1);

/// So many windows one after the other above the limit are no burst, but a loop.
const LOOP: u32 = 3;

/// Counts what one port floods.
#[derive(Clone, Debug)]
pub(crate) struct StormGuard {
    limit: StormLimit,
    /// When the present window began.
    start: Option<Instant>,
    flooded: u32,
    /// Windows before this one that were above the limit, without one between them that was not.
    loud: u32,
}

impl StormGuard {
    pub(crate) fn new(limit: StormLimit) -> Self {
        Self {
            limit,
            start: None,
            flooded: 0,
            loud: 0,
        }
    }

    pub(crate) fn set(&mut self, limit: StormLimit) {
        self.limit = limit;
    }

    /// Whether the port may flood one frame more.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        let StormLimit::Frames(limit) = self.limit else {
            return true;
        };
        let age = self.start.map(|start| now.saturating_duration_since(start));
        if age.is_none_or(|age| age >= WINDOW) {
            let was_loud = self.flooded > limit && age.is_some_and(|age| age < 2 * WINDOW);
            self.loud = if was_loud { self.loud + 1 } else { 0 };
            self.start = Some(now);
            self.flooded = 0;
        }
        self.flooded = self.flooded.saturating_add(1);
        self.flooded <= limit
    }

    /// The loop is gone.
    pub(crate) fn calm(&mut self) {
        (self.flooded, self.loud) = (0, 0);
    }

    /// Whether what comes is more than a burst.
    pub(crate) fn is_loop(&self) -> bool {
        self.loud >= LOOP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_for_a_second() {
        let start = Instant::now();
        let mut guard = StormGuard::new(StormLimit::Frames(10));
        let mut admitted = |at: Duration| (0..100).filter(|_| guard.admits(start + at)).count();
        assert_eq!(admitted(Duration::ZERO), 10);
        assert_eq!(admitted(WINDOW / 2), 0);
        assert_eq!(admitted(WINDOW), 10);
        guard.set(StormLimit::Off);
        assert!((0..100).all(|_| guard.admits(start + WINDOW)));
    }

    #[test]
    fn a_loop_is_loud_for_some_time() {
        let start = Instant::now();
        let mut guard = StormGuard::new(StormLimit::Frames(10));
        for (second, loud) in [
            (0, true),
            (1, true),
            (2, false),
            (3, true),
            (4, true),
            (5, true),
        ] {
            for _ in 0..if loud { 11 } else { 10 } {
                guard.admits(start + second * WINDOW);
            }
            assert!(!guard.is_loop(), "{second}");
        }
        guard.admits(start + 6 * WINDOW);
        assert!(guard.is_loop());
        // A silence ends it.
        guard.admits(start + 60 * WINDOW);
        assert!(!guard.is_loop());
    }
}
