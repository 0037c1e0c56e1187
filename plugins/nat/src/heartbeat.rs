//! Whether a process still answers: the plugin asks the proxy, and the proxy the gateway.
//!
//! One that is stopped or hangs keeps its sockets, so their end says nothing of it. It is asked
//! once a beat, and has as many beats to answer as a busy machine may need. A beat counts only when
//! the asking process runs, so that one that was stopped itself accuses nobody.

use std::time::Duration;

/// The time between two questions.
pub(crate) const BEAT: Duration = Duration::from_millis(500);

/// How many questions in a row may stay unanswered.
const UNANSWERED: u32 = 5;

/// The questions to one process.
#[derive(Debug, Default)]
pub(crate) struct Heartbeat {
    unanswered: u32,
}

impl Heartbeat {
    /// Counts a question that is about to be sent; `false` if too many are unanswered.
    #[must_use]
    pub(crate) fn ask(&mut self) -> bool {
        self.unanswered += 1;
        self.unanswered <= UNANSWERED
    }

    /// The process has answered.
    pub(crate) fn answered(&mut self) {
        self.unanswered = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_late_but_not_silent() {
        let mut heartbeat = Heartbeat::default();
        for _ in 0..3 {
            assert!((0..UNANSWERED).all(|_| heartbeat.ask()));
            heartbeat.answered();
        }
        assert!((0..UNANSWERED).all(|_| heartbeat.ask()));
        assert!(!heartbeat.ask());
    }
}
