//! The driver: opens links with retries, runs the pump between two of them, and meanwhile serves
//! the process's control.
//!
//! Both a link worker and `vde_plug` are driven by it. They differ in their [`Control`]: the
//! supervisor's channel, or signals and the socket of `vdectl status`.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use vdens_plugin_kit::Link;

use crate::error::{Error, Result};
use crate::ipc::status::Report;
use crate::sys::process::wait;
use crate::worker::pump::{Event, Pump, Side, Sides};
use crate::worker::reconnecting::{Open, Reconnecting, Wait};
use crate::worker::tier::Watch;

/// Why a driver stops.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The control has asked for it; the process's exit status.
    Exit(i32),
    /// The link at this side broke.
    Broken(Side, Error),
    /// The driver cannot go on.
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// What a process that drives links does beside.
pub(crate) trait Control {
    /// Readable when there is something to handle.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Handles what has come. `report` describes the link at a side.
    ///
    /// # Errors
    /// What came ends the process, or cannot be handled.
    fn handle(&mut self, report: &dyn Fn(Side) -> Report) -> Result<(), Stop>;
}

/// Opens a link that is reopened when it breaks. Serves `control` while it waits.
///
/// # Errors
/// As for [`Reconnecting::open`], or `control` ends the process.
pub(crate) fn open(
    name: String,
    open: Open,
    wait: Wait,
    control: &mut dyn Control,
) -> Result<Reconnecting, Stop> {
    Reconnecting::open(name, open, wait, |error, time| pause(error, time, control))
}

/// Serves `control` for `time`, in which a link waits because of `error`.
fn pause(error: &Error, time: Duration, control: &mut dyn Control) -> Result<(), Stop> {
    let until = Instant::now() + time;
    while Instant::now() < until {
        let mut fds = [PollFd::new(control.fd(), PollFlags::POLLIN)];
        wait(&mut fds, Some(until))?;
        if fds[0].any() == Some(true) {
            control.handle(&|_| Report {
                reason: error.to_string(),
                ..Report::default()
            })?;
        }
    }
    Ok(())
}

/// Two links that are driven.
pub(crate) struct Driver<'a> {
    pump: Pump<'a>,
    /// The tier of the link at this side, if it is to be logged.
    watches: Sides<Option<Watch>>,
    /// A link that broke before the driver ran.
    broken: Option<(Side, Error)>,
}

impl<'a> Driver<'a> {
    /// Brings two open links together: each knows the other's state then.
    pub(crate) fn settle(
        near: &'a mut dyn Link,
        far: &'a mut dyn Link,
        watches: Sides<Option<Watch>>,
    ) -> Self {
        let mut pump = Pump::new(near, far);
        let broken = pump.settle().err();
        Self {
            pump,
            watches,
            broken,
        }
    }

    /// Moves frames and serves `control`, until something ends that.
    pub(crate) fn run(&mut self, control: &mut dyn Control) -> Stop {
        if let Some((side, error)) = self.broken.take() {
            return Stop::Broken(side, error);
        }
        loop {
            if let Err(stop) = self.turn(control) {
                return stop;
            }
        }
    }

    /// Moves frames until there is an event, and handles that.
    fn turn(&mut self, control: &mut dyn Control) -> Result<(), Stop> {
        let watches = Side::BOTH.map(|side| self.watches[side].as_ref());
        let due = watches.into_iter().flatten().filter_map(Watch::due).min();
        match self.pump.run(control.fd(), due)? {
            Event::Control => control.handle(&|side| self.report(side))?,
            Event::Changed(side) => self.look(side, true),
            Event::Time => {
                let is_due = |watch: &Watch| watch.due().is_some_and(|due| due <= Instant::now());
                for side in Side::BOTH {
                    if self.watches[side].as_ref().is_some_and(is_due) {
                        self.look(side, false);
                    }
                }
            }
            Event::Broken(side, error) => return Err(Stop::Broken(side, error)),
        }
        Ok(())
    }

    fn look(&mut self, side: Side, is_change: bool) {
        if let Some(watch) = &mut self.watches[side] {
            let opposite = self.pump.link(side.other());
            watch.look(opposite, self.pump.link(side), is_change);
        }
    }

    fn report(&self, side: Side) -> Report {
        let (received, sent) = (side, side.other());
        let [received, sent] = [received, sent].map(|source| self.pump.counters(source));
        let opposite = self.pump.link(side.other());
        Report::new(opposite, self.pump.link(side), received, sent)
    }
}
