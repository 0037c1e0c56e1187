//! A link that lasts: one that is opened again whenever it breaks.
//!
//! To whom it is given it is a [`Link`] like any other, without carrier while there is nothing behind it: a timer
//! is its descriptor then, what is sent is dropped and counted, and every `RETRY` opening is tried. So the
//! other side of the host goes on undisturbed, above all a switch that serves others.
//!
//! A command can be started whatever it does then, so to open a link proves nothing. A link that
//! breaks before a frame came is opened again after pauses that double. It is called back only when
//! it has proved that frames can flow.
//!
//! It may also start with nothing behind it ([`Wait`]): a VNL whose far end is yet to come is opened as one whose
//! far end has gone. That is for failures that may pass, not for a VNL that makes no sense.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use log::Level;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vdens_plugin_kit::{Link, RxBatch, State, Status, TxBatch};

use crate::error::{Error, ErrorKind, Result, system};

/// How long after a link broke, or could not be opened, it is opened again.
const RETRY: Duration = Duration::from_millis(250);

/// The longest pause before a link is opened again that breaks before a frame comes.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// How long a link that no frame has come from must last to be called back. A command says nothing
/// of whether it has reached the far end.
const PROOF: Duration = Duration::from_secs(5);

/// How long after it broke it is news that it breaks again.
const NEWS: Duration = Duration::from_secs(5);

/// What to do about a link that cannot be opened yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Fail at once.
    #[default]
    No,
    /// Go on without it until it can.
    Meanwhile,
    /// Try for that long before going on, then fail.
    AtMost(Duration),
}

/// Opens a link.
pub type Open = Box<dyn FnMut() -> Result<Box<dyn Link>> + Send>;

/// A link that is opened again whenever it breaks.
pub struct Lasting {
    /// What to call it in the log.
    name: String,
    open: Open,
    /// `None` while there is nothing behind it.
    link: Option<Box<dyn Link>>,
    /// Why there is nothing.
    failure: Option<Error>,
    /// When it broke last.
    broke: Option<Instant>,
    /// When it was opened last, unless it has proved since that it carries frames.
    unproven: Option<Instant>,
    /// Whether it is still to be said that it is back.
    is_news: bool,
    /// How often it broke without having proved anything.
    failures: u32,
    /// The refusal that was logged last, and when.
    refusal: Option<(String, Instant)>,
    /// The level at which to log that it is back: that of what was last logged about it.
    level: Level,
    /// What the other side was last.
    other_side: State,
    /// Rings when opening is to be tried.
    timer: TimerFd,
    /// Always writable: what to wait for while there is nobody to send to.
    writable: EventFd,
}

impl Lasting {
    /// Opens it for the first time. While it waits it calls `pause` with what it waits for, which comes back after the
    /// time given, or with `false` if the waiting is to be given up.
    ///
    /// # Errors
    /// It cannot be opened, and is not to be waited for, or was for long enough; or there are no descriptors left.
    pub fn open(
        name: String,
        mut open: Open,
        wait: Wait,
        pause: impl FnMut(&Error, Duration) -> Result<bool>,
    ) -> Result<Self> {
        let cannot = || system("wait for a link");
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(cannot())?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let writable = EventFd::from_flags(flags).map_err(cannot())?;
        let (link, failure) = match first(&mut open, wait, pause) {
            Ok(link) => (Some(link), None),
            Err(error) if wait == Wait::Meanwhile && may_pass(&error) => (None, Some(error)),
            Err(error) => return Err(error),
        };
        let lasting = Self {
            name,
            open,
            link,
            failure,
            broke: None,
            unproven: Some(Instant::now()),
            is_news: false,
            failures: 0,
            refusal: None,
            level: Level::Warn,
            other_side: State::DOWN,
            timer,
            writable,
        };
        if let Some(error) = &lasting.failure {
            log::warn!("{}: {error}; waiting for it", lasting.name);
            lasting.set_timer(RETRY);
        }
        Ok(lasting)
    }

    fn set_timer(&self, pause: Duration) {
        let once = Expiration::OneShot(TimeSpec::from_duration(pause));
        if let Err(errno) = self.timer.set(once, TimerSetTimeFlags::empty()) {
            log::error!("{}: cannot set a timer: {errno}", self.name);
        }
    }

    fn lose(&mut self, error: Error) {
        let last = self.broke.replace(Instant::now());
        let lived = self.unproven.take().map(|opened| opened.elapsed());
        let pause = match lived {
            // It may hammer a server, with a wrong key of ssh say.
            Some(time) if time < LONGEST_RETRY => {
                let pause = RETRY.saturating_mul(1 << self.failures.min(16));
                self.failures += 1;
                pause.min(LONGEST_RETRY)
            }
            _ => {
                self.failures = 0;
                RETRY
            }
        };
        let is_same = |last: &Error| last.to_string() == error.to_string();
        let is_old = self.failures > 1 && self.failure.as_ref().is_some_and(is_same);
        let level = match last.is_none_or(|last| last.elapsed() >= NEWS) && !is_old {
            true => Level::Warn,
            false => Level::Debug,
        };
        // Whoever was told that it broke is told that it is back.
        self.level = self.level.min(level);
        let again = match pause {
            RETRY => "trying again".to_owned(),
            pause => format!("trying again in {pause:?}"),
        };
        log::log!(level, "{}: {error}; {again}", self.name);
        self.link = None;
        self.failure = Some(error);
        self.set_timer(pause);
    }

    /// Tries to open it again.
    fn reopen(&mut self, batch: &mut RxBatch<'_>) {
        // That it has rung is all that matters.
        let _ = self.timer.wait();
        match (self.open)() {
            Ok(mut link) => {
                log::debug!("{}: opened again", self.name);
                self.refusal = None;
                self.unproven = Some(Instant::now());
                self.is_news = true;
                link.other_side(self.other_side);
                self.link = Some(link);
                // It may have something to do at once.
                self.receive(batch);
            }
            Err(error) => {
                log::log!(self.level_of(&error), "{}: {error}", self.name);
                self.failure = Some(error);
                self.set_timer(RETRY);
            }
        }
    }

    /// Receives, if there is a link.
    fn receive(&mut self, batch: &mut RxBatch<'_>) {
        let before = batch.len();
        if self.try_link(|link| link.recv(batch)).is_some() {
            self.prove(batch.len() > before);
        }
    }

    /// Looks whether the link has proved that frames can flow: one has come, the kernel carries
    /// them, or the link has lasted.
    fn prove(&mut self, has_received: bool) {
        let Some(opened) = self.unproven else {
            return;
        };
        let state = self.state();
        let has_lasted = state.carrier && opened.elapsed() >= PROOF;
        let carries = has_received || state.plugged;
        if carries {
            (self.unproven, self.failures) = (None, 0);
        }
        if (carries || has_lasted) && self.is_news {
            self.is_news = false;
            self.failure = None;
            log::log!(self.level, "{}: the link is back", self.name);
            self.level = Level::Debug;
        }
    }

    /// The level to log a failure to open at. A far end that is not there yet is no news. A refusal
    /// is: waiting does not end it. It is logged when it differs from the last one, and not more
    /// often than every [`NEWS`].
    fn level_of(&mut self, error: &Error) -> Level {
        if error.kind != ErrorKind::Permission {
            return Level::Debug;
        }
        let text = error.to_string();
        let is_news = self
            .refusal
            .as_ref()
            .is_none_or(|(last, when)| *last != text && when.elapsed() >= NEWS);
        if !is_news {
            return Level::Debug;
        }
        self.refusal = Some((text, Instant::now()));
        Level::Warn
    }

    /// Calls the link, if there is one; what does not break it.
    fn try_link<T>(&mut self, call: impl FnOnce(&mut dyn Link) -> Result<T>) -> Option<T> {
        let link = self.link.as_deref_mut()?;
        call(link).map_err(|error| self.lose(error)).ok()
    }
}

/// Opens a link, and tries again for as long as that may help.
fn first(
    open: &mut Open,
    wait: Wait,
    mut pause: impl FnMut(&Error, Duration) -> Result<bool>,
) -> Result<Box<dyn Link>> {
    let deadline = match wait {
        Wait::AtMost(time) => Instant::now().checked_add(time),
        Wait::No | Wait::Meanwhile => Some(Instant::now()),
    };
    loop {
        let error = match open() {
            Ok(link) => return Ok(link),
            Err(error) => error,
        };
        let is_over = deadline.is_some_and(|deadline| deadline <= Instant::now());
        if !may_pass(&error) || is_over || !pause(&error, RETRY)? {
            return Err(match wait {
                Wait::No if may_pass(&error) && may_come(&error) => advise(error),
                _ => error,
            });
        }
    }
}

/// Whether what keeps a link from being opened may pass by itself, when somebody else is started,
/// say. That this process has too many files open does not.
fn may_pass(error: &Error) -> bool {
    let is_final = matches!(
        error.kind,
        ErrorKind::Usage | ErrorKind::Unsupported | ErrorKind::Protocol | ErrorKind::Panic
    );
    !is_final && error.errno != libc::EMFILE
}

/// Whether what a link lacks is something that others may still make or let go. A permission that
/// is missing (EACCES) rarely comes. A tap that is not there is EPERM to an ordinary user.
fn may_come(error: &Error) -> bool {
    let is_to_come = matches!(
        error.kind,
        ErrorKind::NotFound | ErrorKind::Busy | ErrorKind::Closed
    );
    is_to_come || matches!(error.errno, libc::ECONNREFUSED | libc::EPERM)
}

/// Tells of `--wait`.
fn advise(error: Error) -> Error {
    let hint = match error.hint.as_str() {
        "" => "--wait waits for it".to_owned(),
        hint => format!("{hint}; or wait for it with --wait"),
    };
    error.hint(hint)
}

impl Link for Lasting {
    fn fd(&self) -> BorrowedFd<'_> {
        let link = self.link.as_ref();
        link.map_or(self.timer.as_fd(), |link| link.fd())
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        let link = self.link.as_ref();
        link.map_or(self.writable.as_fd(), |link| link.send_fd())
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        match self.link {
            Some(_) => self.receive(batch),
            None => self.reopen(batch),
        }
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        self.prove(false);
        let taken = self.try_link(|link| link.send(batch));
        Ok(taken.unwrap_or_else(|| {
            batch.count_dropped(batch.len() as u64);
            batch.len()
        }))
    }

    fn other_side(&mut self, state: State) {
        self.other_side = state;
        if let Some(link) = &mut self.link {
            link.other_side(state);
        }
    }

    fn state(&self) -> State {
        let link = self.link.as_ref();
        link.map_or(State::DOWN, |link| link.state())
    }

    fn status(&self) -> Status {
        let link = self.link.as_ref();
        link.map_or_else(
            || Status {
                reason: self
                    .failure
                    .as_ref()
                    .map(Error::to_string)
                    .unwrap_or_default(),
                ..Status::default()
            },
            |link| link.status(),
        )
    }

    fn is_shared(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_shared())
    }

    /// One that is still to be opened may.
    fn wants_panel(&self) -> bool {
        self.link.as_ref().is_none_or(|link| link.wants_panel())
    }
}
