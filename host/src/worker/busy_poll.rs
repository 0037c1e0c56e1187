//! Waiting for descriptors, awake for a moment when frames are likely to come soon.
//!
//! To put a process to sleep and wake it takes longer than to move a frame through it, on virtual
//! machines several times as long. It is most of a frame's round trip. So after a short wait the
//! next one polls without sleeping, for `SPIN` at most; after a long wait it sleeps at once. Each
//! such poll yields the processor to any process that can use it (sched_yield(2)), so a link in use
//! takes only time that is left over. An idle link sleeps.

use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollTimeout, poll};
use nix::sched::sched_yield;

use crate::error::Result;
use crate::sys::process;

/// How long to stay awake at most.
const SPIN: Duration = Duration::from_micros(100);

/// A wait this short is likely to be followed by another.
const SHORT: Duration = Duration::from_micros(300);

/// What the last wait was like.
#[derive(Debug, Default)]
pub(crate) struct BusyPoll {
    was_short: bool,
}

impl BusyPoll {
    /// Waits as [`process::wait`] does.
    ///
    /// # Errors
    /// As for [`process::wait`].
    pub(crate) fn wait(&mut self, fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<()> {
        let start = Instant::now();
        while self.was_short && start.elapsed() < SPIN {
            if poll(fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
                return Ok(());
            }
            // It never fails on Linux.
            let _ = sched_yield();
        }
        process::wait(fds, deadline)?;
        self.was_short = start.elapsed() < SHORT;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;
    use std::thread;

    use nix::poll::PollFlags;

    #[test]
    fn it_waits_until_something_comes_however_long_that_takes() {
        let (near, far) = UnixDatagram::pair().unwrap();
        let mut waiting = BusyPoll::default();
        for pause in [0, 0, 1, 50, 2000, 0, 50_000] {
            let far = far.try_clone().unwrap();
            let sender = thread::spawn(move || {
                thread::sleep(Duration::from_micros(pause));
                far.send(&[1]).unwrap()
            });
            let mut fds = [PollFd::new(near.as_fd(), PollFlags::POLLIN)];
            waiting.wait(&mut fds, None).unwrap();
            assert_eq!(fds[0].any(), Some(true));
            near.recv(&mut [0]).unwrap();
            sender.join().unwrap();
        }
        assert!(!waiting.was_short, "the last one was long");
    }
}
