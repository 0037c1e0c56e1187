//! Warnings that a limit was reached: one line for each, with how often, once a minute at most.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The least time between two warnings of one limit.
const PAUSE: Duration = Duration::from_secs(60);

/// What was warned of.
#[derive(Default)]
pub(crate) struct Notices {
    /// The last count, and when.
    told: BTreeMap<&'static str, (u64, Instant)>,
}

impl Notices {
    /// The warnings that are due, from what happened how often and what that means.
    pub(crate) fn due(&mut self, now: Instant, counts: &[(&'static str, u64)]) -> Vec<String> {
        let mut due = Vec::new();
        for &(what, count) in counts {
            let (before, last) = match self.told.get(what) {
                Some((before, last)) => (*before, Some(*last)),
                None => (0, None),
            };
            let waits = last.is_some_and(|last| now.duration_since(last) < PAUSE);
            if count > before && !waits {
                self.told.insert(what, (count, now));
                due.push(format!("{} {what}", count - before));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_a_minute() {
        let mut notices = Notices::default();
        let start = Instant::now();
        assert!(notices.due(start, &[("dropped", 0)]).is_empty());
        assert_eq!(notices.due(start, &[("dropped", 5)]), ["5 dropped"]);
        let soon = start + Duration::from_secs(5);
        assert!(notices.due(soon, &[("dropped", 900)]).is_empty());
        let later = start + PAUSE;
        assert_eq!(notices.due(later, &[("dropped", 905)]), ["900 dropped"]);
        assert!(notices.due(later + PAUSE, &[("dropped", 905)]).is_empty());
    }
}
