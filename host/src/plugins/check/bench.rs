//! A test bench: one or two open links of the plugin, driven as the host's pump drives them.
//!
//! The bench calls a link only when its descriptor is ready. So a missed wake-up shows as a frame
//! that does not arrive. Both links are in one process and one thread. Only while one end is being
//! opened does another thread serve the other, since opening may wait for an answer of the far end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vdens_plugin_kit::{Batch, Error, ErrorKind, HostPort, Link, OpenOptions, Result, State};

use super::frames;
use super::watchdog::call;
use crate::error::system;
use crate::plugins::host_services::{Opener, Own};
use crate::plugins::search::SearchPath;

/// After this time a frame counts as lost.
pub(super) const FRAME_LIMIT: Duration = Duration::from_secs(2);

/// The bench. The ends have the numbers 0 and 1.
pub(super) struct Bench {
    opener: Opener,
    vnls: [String; 2],
    ends: [Option<Box<dyn Link>>; 2],
    got: [Vec<Vec<u8>>; 2],
    batch: Batch,
    /// How often an end was called because its descriptor was readable.
    pub wakes: u32,
}

impl Bench {
    /// An empty bench.
    pub(super) fn new(path: SearchPath, vnls: [String; 2]) -> Self {
        let port = HostPort {
            interface: "check0".into(),
            mtu: 9000,
            panel_address: None,
        };
        Self {
            opener: Opener::new(path.into(), port, None, Own::default()),
            vnls,
            ends: [None, None],
            got: [Vec::new(), Vec::new()],
            batch: Batch::new(),
            wakes: 0,
        }
    }

    /// Opens an end, and serves the other one meanwhile.
    ///
    /// # Errors
    /// The plugin cannot open it, or the other end broke.
    pub(super) fn open(&mut self, end: usize) -> Result<()> {
        let deadline = Instant::now() + FRAME_LIMIT;
        loop {
            match self.try_open(end) {
                // The far end may not have noticed yet that the previous link was closed.
                Err(error) if error.kind == ErrorKind::Busy && Instant::now() < deadline => {
                    self.serve(Duration::from_millis(20))?;
                }
                outcome => return outcome,
            }
        }
    }

    fn try_open(&mut self, end: usize) -> Result<()> {
        let (opener, vnl) = (self.opener, self.vnls[end].clone());
        let done = AtomicBool::new(false);
        let link = thread::scope(|scope| {
            let opening = scope.spawn(|| {
                let link = call("open", || opener.open(&vnl, &OpenOptions::default()));
                done.store(true, Ordering::Release);
                link
            });
            while !done.load(Ordering::Acquire) {
                self.serve(Duration::from_millis(1))?;
            }
            let panicked = || Error::closed("opening ended in a panic");
            opening.join().map_err(|_| panicked())?
        })?;
        let link = self.ends[end].insert(link);
        call("other_side", || link.other_side(State::UP));
        self.receive(end)
    }

    /// Opens both ends and waits for carrier. Returns whether both have it.
    ///
    /// # Errors
    /// The plugin cannot open one, or an end broke.
    pub(super) fn open_both(&mut self) -> Result<bool> {
        self.open(0)?;
        self.open(1)?;
        self.await_carrier()
    }

    /// Waits until both ends have carrier. Returns whether they do.
    ///
    /// # Errors
    /// An end broke.
    pub(super) fn await_carrier(&mut self) -> Result<bool> {
        self.serve_until(FRAME_LIMIT, |bench| bench.carrier(0) && bench.carrier(1))
    }

    /// Closes an end.
    pub(super) fn close(&mut self, end: usize) {
        let link = self.ends[end].take();
        call("close", || drop(link));
    }

    /// Closes both ends.
    pub(super) fn close_both(&mut self) {
        self.close(0);
        self.close(1);
    }

    /// Closes both ends and opens them again.
    ///
    /// # Errors
    /// As for [`Bench::open`].
    pub(super) fn reopen_both(&mut self) -> Result<()> {
        self.close_both();
        self.open(0)?;
        self.open(1)
    }

    /// An end that is open.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn end(&mut self, end: usize) -> Result<&mut Box<dyn Link>> {
        self.ends[end]
            .as_mut()
            .ok_or_else(|| Error::closed("the link is closed"))
    }

    /// Whether an end is open and has carrier.
    pub(super) fn carrier(&self, end: usize) -> bool {
        let link = self.ends[end].as_ref();
        link.is_some_and(|link| call("state", || link.state()).carrier)
    }

    /// The frames of the other end that arrived at this one since the last call.
    pub(super) fn take(&mut self, end: usize) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.got[end])
    }

    /// Calls an end to receive.
    fn receive(&mut self, end: usize) -> Result<()> {
        let Some(link) = &mut self.ends[end] else {
            return Ok(());
        };
        self.batch.clear();
        call("recv", || link.recv(&mut self.batch.rx()))?;
        let frames = self.batch.tx(0);
        let frames = frames.frames().map(|frame| frame.bytes());
        self.got[end].extend(
            frames
                .filter(|f| frames::is_from(1 - end, f))
                .map(<[u8]>::to_vec),
        );
        Ok(())
    }

    /// Waits until an end is readable, `time` at most, and receives. Returns whether one was.
    ///
    /// # Errors
    /// An end broke.
    pub(super) fn serve(&mut self, time: Duration) -> Result<bool> {
        let ready = self.wait(time, None)?;
        for end in [0, 1] {
            if ready[end] {
                self.wakes += 1;
                self.receive(end)?;
            }
        }
        Ok(ready.contains(&true))
    }

    /// Serves the ends until `done`, `time` at most. Returns whether it is done.
    ///
    /// # Errors
    /// An end broke.
    pub(super) fn serve_until(
        &mut self,
        time: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<bool> {
        let deadline = Instant::now() + time;
        loop {
            if done(self) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.serve(left.min(Duration::from_millis(20)))?;
        }
    }

    /// Waits until an end is readable, or `writable` is. Returns which are readable.
    fn wait(&self, time: Duration, writable: Option<usize>) -> Result<[bool; 2]> {
        let open: Vec<usize> = (0..2).filter(|end| self.ends[*end].is_some()).collect();
        let links = open.iter().filter_map(|end| self.ends[*end].as_ref());
        let mut fds: Vec<PollFd<'_>> = links
            .map(|link| PollFd::new(call("fd", || link.fd()), PollFlags::POLLIN))
            .collect();
        if let Some(link) = writable.and_then(|end| self.ends[end].as_ref()) {
            fds.push(PollFd::new(
                call("send_fd", || link.send_fd()),
                PollFlags::POLLOUT,
            ));
        }
        // Rounded up: a wait of no time at all would spin.
        let milliseconds = time.as_micros().div_ceil(1000);
        match poll(
            &mut fds,
            PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(system("wait for the links")(errno)),
        }
        let mut ready = [false; 2];
        for (end, fd) in open.iter().zip(&fds) {
            ready[*end] = fd.any() == Some(true);
        }
        Ok(ready)
    }

    /// Whether an end's descriptor for sending is writable.
    ///
    /// # Errors
    /// The end is closed.
    pub(super) fn is_writable(&mut self, end: usize) -> Result<bool> {
        let link = self.end(end)?;
        let mut fds = [PollFd::new(
            call("send_fd", || link.send_fd()),
            PollFlags::POLLOUT,
        )];
        Ok(poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0))
    }

    /// Offers up to a batch of frames to an end. Returns how many it accepted.
    ///
    /// # Errors
    /// The end broke.
    pub(super) fn offer(&mut self, end: usize, frames: &[Vec<u8>]) -> Result<usize> {
        self.batch.clear();
        let fit = frames
            .iter()
            .take_while(|frame| self.batch.rx().push(frame))
            .count();
        let link = self.ends[end].as_mut();
        let link = link.ok_or_else(|| Error::closed("the link is closed"))?;
        let mut taken = 0;
        while taken < fit {
            let took = call("send", || link.send(&mut self.batch.tx(taken)))?;
            if took == 0 {
                break;
            }
            taken += took;
        }
        Ok(taken)
    }

    /// Sends frames from an end in batches of `size`. Each batch waits until the one before
    /// arrived. Returns what arrived.
    ///
    /// # Errors
    /// An end broke, or one accepts no frames although the other receives.
    pub(super) fn pass(
        &mut self,
        from: usize,
        frames: &[Vec<u8>],
        size: usize,
    ) -> Result<Vec<Vec<u8>>> {
        let to = 1 - from;
        let mut due = 0;
        for batch in frames.chunks(size) {
            let mut taken = 0;
            let deadline = Instant::now() + FRAME_LIMIT;
            while taken < batch.len() {
                taken += self.offer(from, &batch[taken..])?;
                if taken < batch.len() && Instant::now() > deadline {
                    let message = "send() accepts nothing although the far end receives";
                    return Err(Error::closed(message).hint(
                        "send_fd() must be writable, and send() accept frames, when there is room",
                    ));
                }
                if taken < batch.len() {
                    let ready = self.wait(Duration::from_millis(20), Some(from))?;
                    for end in [0, 1] {
                        if ready[end] {
                            self.receive(end)?;
                        }
                    }
                }
            }
            due += batch.len();
            if !self.serve_until(FRAME_LIMIT, |bench| bench.got[to].len() >= due)? {
                break;
            }
        }
        // A superfluous frame would have arrived by now, or arrives soon.
        self.serve(Duration::from_millis(1))?;
        Ok(self.take(to))
    }
}
