//! [`Reconnecting`]: a link that reopens its transport when it breaks.
//!
//! While the transport is closed the link reports no carrier, and drops and counts what is sent.
//! Its descriptor is a timer then; when the timer expires, the link tries to open the transport.
//! So the other side of the pump goes on undisturbed, above all a switch that serves others.
//!
//! A transport is on trial until a frame has come from it. The log says that the link is back only
//! then. Opening some transports proves nothing: a command, for example, can always be started. If
//! such a one breaks on trial, it is reopened after pauses that double up to [`LONGEST_PAUSE`], so
//! that a wrong ssh key does not hammer a server. A transport that names its peer has reached the
//! far end, so its pauses stay short: all links of a restarted switch are back at the same time.
//!
//! A link may also start closed ([`Wait`]), for a far end that is yet to come. That is for failures
//! that may pass, not for a VNL that makes no sense.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use log::Level;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vdens_plugin_kit::{AlwaysReady, Link, RxBatch, State, Status, TxBatch};

use crate::error::{Error, ErrorKind, Result, system};

/// The pause before a transport is opened again that broke or could not be opened.
const PAUSE: Duration = Duration::from_millis(250);

/// The longest pause before a transport is opened again that broke on trial.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How long a transport that no frame has come from must stay open with a carrier to be announced
/// as back. A command does not say whether it has reached the far end.
const PROOF: Duration = Duration::from_secs(5);

/// Failures closer together than this are logged at debug level.
const QUIET: Duration = Duration::from_secs(5);

/// What to do about a link that cannot be opened yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Fail at once.
    #[default]
    No,
    /// Start closed, and open it when that is possible.
    Meanwhile,
    /// Try for that long before going on, then fail.
    AtMost(Duration),
}

/// Opens a transport.
pub(crate) type Open = Box<dyn FnMut() -> Result<Box<dyn Link>> + Send>;

/// A link that reopens its transport when it breaks.
pub(crate) struct Reconnecting {
    /// The link's name in the log.
    name: String,
    open: Open,
    transport: Transport,
    /// When the transport broke last.
    broke: Option<Instant>,
    /// The state that the link at the other side of the pump had last.
    other_side: State,
    /// Expires when it is time to open the transport.
    timer: TimerFd,
    /// Always writable: the pump waits for it while the transport is closed.
    writable: AlwaysReady,
}

/// Where a transport is in its life.
enum Transport {
    Closed {
        outage: Outage,
        /// How often in a row it broke on trial without having named its peer.
        failures: u32,
        /// The refusal that was logged last, and when.
        refusal: Option<(String, Instant)>,
    },
    Open {
        link: Box<dyn Link>,
        /// `None` once frames have flowed.
        trial: Option<Trial>,
    },
}

/// The time in which an open transport has not proved that frames can flow.
struct Trial {
    since: Instant,
    /// Whether the transport names its peer.
    has_peer: bool,
    /// How often in a row it broke on trial before, without having named its peer.
    failures: u32,
    /// The outage before; `None` once its end is announced, and after the first opening.
    outage: Option<Outage>,
}

/// Why and how a link is without its transport.
#[derive(Clone)]
struct Outage {
    error: Error,
    /// The most severe level that it was logged at. Its end is logged at the same.
    level: Level,
}

impl Transport {
    fn closed(outage: Outage, failures: u32) -> Self {
        Self::Closed {
            outage,
            failures,
            refusal: None,
        }
    }

    fn on_trial(link: Box<dyn Link>, failures: u32, outage: Option<Outage>) -> Self {
        let trial = Some(Trial {
            since: Instant::now(),
            has_peer: link.status().peer.is_some(),
            failures,
            outage,
        });
        Self::Open { link, trial }
    }

    fn link(&self) -> Option<&dyn Link> {
        match self {
            Self::Closed { .. } => None,
            Self::Open { link, .. } => Some(link.as_ref()),
        }
    }

    fn link_mut(&mut self) -> Option<&mut dyn Link> {
        match self {
            Self::Closed { .. } => None,
            Self::Open { link, .. } => Some(link.as_mut()),
        }
    }
}

impl Reconnecting {
    /// Opens the transport for the first time. While it waits, it calls `pause` with the reason and
    /// the time to wait for. An error of `pause` ends the waiting.
    ///
    /// # Errors
    /// The transport cannot be opened and is not waited for, or not any longer; `pause` fails; or
    /// there are no descriptors left.
    pub(crate) fn open<E: From<Error>>(
        name: String,
        mut open: Open,
        wait: Wait,
        pause: impl FnMut(&Error, Duration) -> Result<(), E>,
    ) -> Result<Self, E> {
        let cannot = || system("wait for a link");
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(cannot())?;
        let transport = match first(&mut open, wait, pause)? {
            Ok(link) => Transport::on_trial(link, 0, None),
            Err(error) => {
                log::warn!("{name}: {error}; waiting for it");
                let level = Level::Warn;
                Transport::closed(Outage { error, level }, 0)
            }
        };
        let link = Self {
            name,
            open,
            transport,
            broke: None,
            other_side: State::DOWN,
            timer,
            writable: AlwaysReady::new()?,
        };
        if link.transport.link().is_none() {
            link.set_timer(PAUSE);
        }
        Ok(link)
    }

    fn set_timer(&self, pause: Duration) {
        let once = Expiration::OneShot(TimeSpec::from_duration(pause));
        if let Err(errno) = self.timer.set(once, TimerSetTimeFlags::empty()) {
            log::error!("{}: cannot set a timer: {errno}", self.name);
        }
    }

    /// Closes the transport, which broke, until a timer expires.
    fn close(&mut self, error: Error) {
        let (failures, before) = match &self.transport {
            Transport::Open {
                trial: Some(trial), ..
            } => {
                let is_failure = !trial.has_peer && trial.since.elapsed() < LONGEST_PAUSE;
                let failures = if is_failure { trial.failures + 1 } else { 0 };
                (failures, trial.outage.clone())
            }
            Transport::Open { trial: None, .. } | Transport::Closed { .. } => (0, None),
        };
        let last = self.broke.replace(Instant::now());
        let is_same = |before: &Outage| before.error.to_string() == error.to_string();
        let is_repeated = failures > 1 && before.as_ref().is_some_and(is_same);
        let is_frequent = last.is_some_and(|last| last.elapsed() < QUIET);
        let level = match is_repeated || is_frequent {
            true => Level::Debug,
            false => Level::Warn,
        };
        let pause = pause_after(failures);
        let again = match pause {
            PAUSE => "trying again".to_owned(),
            pause => format!("trying again in {pause:?}"),
        };
        log::log!(level, "{}: {error}; {again}", self.name);
        let level = before.map_or(level, |before| before.level.min(level));
        self.transport = Transport::closed(Outage { error, level }, failures);
        self.set_timer(pause);
    }

    /// Tries to open the transport again.
    fn reopen(&mut self, batch: &mut RxBatch<'_>) {
        let Transport::Closed {
            outage,
            failures,
            refusal,
        } = &mut self.transport
        else {
            return;
        };
        // Reading the timer makes it unreadable; how often it has expired does not matter.
        let _ = self.timer.wait();
        match (self.open)() {
            Ok(mut link) => {
                log::debug!("{}: opened again", self.name);
                link.other_side(self.other_side);
                self.transport = Transport::on_trial(link, *failures, Some(outage.clone()));
                // It may have something to do at once.
                self.receive(batch);
            }
            Err(error) => {
                log::log!(level_of(&error, refusal), "{}: {error}", self.name);
                outage.error = error;
                self.set_timer(PAUSE);
            }
        }
    }

    /// Receives, if the transport is open.
    fn receive(&mut self, batch: &mut RxBatch<'_>) {
        let before = batch.len();
        if self.call(|link| link.recv(batch)).is_some() {
            self.prove(batch.len() > before);
        }
    }

    /// Ends the trial if frames flow: one has come, or the kernel carries them. Announces the end
    /// of an outage then, or when the transport has been open for [`PROOF`].
    fn prove(&mut self, has_received: bool) {
        let state = self.state();
        let Transport::Open { trial, .. } = &mut self.transport else {
            return;
        };
        let Some(Trial { since, outage, .. }) = trial else {
            return;
        };
        let is_proven = has_received || state.plugged;
        let has_lasted = state.carrier && since.elapsed() >= PROOF;
        if (is_proven || has_lasted)
            && let Some(outage) = outage.take()
        {
            log::log!(outage.level, "{}: the link is back", self.name);
        }
        if is_proven {
            *trial = None;
        }
    }

    /// Calls the transport, if it is open. An error closes it.
    fn call<T>(&mut self, call: impl FnOnce(&mut dyn Link) -> Result<T>) -> Option<T> {
        let link = self.transport.link_mut()?;
        call(link).map_err(|error| self.close(error)).ok()
    }
}

/// The pause after a transport broke: on trial so often in a row, or, for 0, later.
fn pause_after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE)
}

/// The level to log a failure to open at. A far end that is not there yet is expected. A refusal is
/// not: waiting does not end it. It is logged when it differs from the one logged last, and not
/// more often than every [`QUIET`].
fn level_of(error: &Error, last: &mut Option<(String, Instant)>) -> Level {
    if error.kind != ErrorKind::Permission {
        return Level::Debug;
    }
    let text = error.to_string();
    let is_new = last
        .as_ref()
        .is_none_or(|(last, when)| *last != text && when.elapsed() >= QUIET);
    if !is_new {
        return Level::Debug;
    }
    *last = Some((text, Instant::now()));
    Level::Warn
}

/// Opens a transport, and tries again for as long as that may help. The inner error is one to go on
/// without a transport for.
fn first<E: From<Error>>(
    open: &mut Open,
    wait: Wait,
    mut pause: impl FnMut(&Error, Duration) -> Result<(), E>,
) -> Result<Result<Box<dyn Link>>, E> {
    let start = Instant::now();
    loop {
        let error = match open() {
            Ok(link) => return Ok(Ok(link)),
            Err(error) => error,
        };
        match wait {
            Wait::Meanwhile if may_pass(&error) => return Ok(Err(error)),
            Wait::AtMost(time) if may_pass(&error) && start.elapsed() < time => {
                pause(&error, PAUSE)?;
            }
            Wait::No if may_pass(&error) && may_come(&error) => return Err(advise(error).into()),
            Wait::No | Wait::Meanwhile | Wait::AtMost(_) => return Err(error.into()),
        }
    }
}

/// Whether what keeps a transport from being opened may pass by itself, for example when another
/// program starts. That this process has too many files open does not.
fn may_pass(error: &Error) -> bool {
    let is_final = matches!(
        error.kind,
        ErrorKind::Usage | ErrorKind::Unsupported | ErrorKind::Protocol | ErrorKind::Panic
    );
    !is_final && error.errno != libc::EMFILE
}

/// Whether what a transport lacks is something that others may still make or let go. A permission
/// that is missing (EACCES) rarely comes. A tap that is not there is EPERM to an ordinary user.
fn may_come(error: &Error) -> bool {
    let is_to_come = matches!(
        error.kind,
        ErrorKind::NotFound | ErrorKind::Busy | ErrorKind::Closed
    );
    is_to_come || matches!(error.errno, libc::ECONNREFUSED | libc::EPERM)
}

/// Adds a hint at `--wait`.
fn advise(error: Error) -> Error {
    let hint = match error.hint.as_str() {
        "" => "--wait waits for it".to_owned(),
        hint => format!("{hint}; or wait for it with --wait"),
    };
    error.hint(hint)
}

impl Link for Reconnecting {
    fn fd(&self) -> BorrowedFd<'_> {
        let link = self.transport.link();
        link.map_or(self.timer.as_fd(), Link::fd)
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        let link = self.transport.link();
        link.map_or(self.writable.as_fd(), Link::send_fd)
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        match self.transport {
            Transport::Open { .. } => self.receive(batch),
            Transport::Closed { .. } => self.reopen(batch),
        }
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        self.prove(false);
        let taken = self.call(|link| link.send(batch));
        Ok(taken.unwrap_or_else(|| {
            batch.count_dropped(batch.len() as u64);
            batch.len()
        }))
    }

    fn other_side(&mut self, state: State) {
        self.other_side = state;
        if let Some(link) = self.transport.link_mut() {
            link.other_side(state);
        }
    }

    fn state(&self) -> State {
        self.transport.link().map_or(State::DOWN, Link::state)
    }

    fn status(&self) -> Status {
        match &self.transport {
            Transport::Open { link, .. } => link.status(),
            Transport::Closed { outage, .. } => Status {
                reason: outage.error.to_string(),
                ..Status::default()
            },
        }
    }

    fn is_shared(&self) -> bool {
        self.transport.link().is_some_and(Link::is_shared)
    }

    /// While the transport is closed, `true`: it may want the panel once it is open.
    fn wants_panel(&self) -> bool {
        self.transport.link().is_none_or(Link::wants_panel)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use vdens_plugin_kit::{Batch, Peer};

    use super::*;

    /// Frames come from a socket; a frame of one byte breaks the link.
    struct Socket(UnixDatagram, Option<Peer>);

    impl Link for Socket {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
        fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
            let mut frame = [0; 60];
            match self.0.recv(&mut frame) {
                Ok(1) => Err(Error::closed("the far end is gone")),
                Ok(length) => {
                    batch.push(&frame[..length]);
                    Ok(())
                }
                Err(_) => Ok(()),
            }
        }
        fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
            Ok(batch.len())
        }
        fn status(&self) -> Status {
            Status {
                peer: self.1.clone(),
                ..Status::default()
            }
        }
    }

    /// The pause until the transport is opened again; `None` while it is open.
    fn pause(link: &Reconnecting) -> Option<Duration> {
        match &link.transport {
            Transport::Open { .. } => None,
            Transport::Closed { failures, .. } => Some(pause_after(*failures)),
        }
    }

    /// A link, and the far end of its transport.
    fn open(peer: Option<Peer>) -> (Reconnecting, UnixDatagram) {
        let (near, far) = UnixDatagram::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let open = move || {
            let socket = Socket(near.try_clone().unwrap(), peer.clone());
            Ok(Box::new(socket) as Box<dyn Link>)
        };
        let name = "test".to_owned();
        let opened = Reconnecting::open::<Error>(name, Box::new(open), Wait::No, |_, _| Ok(()));
        (opened.unwrap(), far)
    }

    #[test]
    fn a_transport_that_names_its_peer_is_reopened_soon() {
        let (mut link, far) = open(Some(Peer::default()));
        let mut batch = Batch::new();
        for _ in 0..5 {
            far.send(&[0]).unwrap();
            link.recv(&mut batch.rx()).unwrap();
            assert_eq!(pause(&link), Some(PAUSE));
            link.recv(&mut batch.rx()).unwrap();
        }
    }

    #[test]
    fn pauses_double_until_a_frame_has_come() {
        let (mut link, far) = open(None);
        let mut batch = Batch::new();
        let mut receive = |link: &mut Reconnecting| link.recv(&mut batch.rx()).unwrap();
        for has_frame in [false, true] {
            for expected in [250, 500, 1000, 2000] {
                assert_eq!(pause(&link), None);
                assert!(link.state().carrier);
                far.send(&[0]).unwrap();
                receive(&mut link);
                assert_eq!(pause(&link), Some(Duration::from_millis(expected)));
                assert!(!link.state().carrier);
                assert_eq!(link.status().reason, "the far end is gone");
                receive(&mut link);
            }
            if !has_frame {
                far.send(&[0; 60]).unwrap();
                receive(&mut link);
                // A transport that has carried frames is opened again after the shortest pause, and
                // is on trial then.
                far.send(&[0]).unwrap();
                receive(&mut link);
                assert_eq!(pause(&link), Some(PAUSE));
                receive(&mut link);
            }
        }
        assert_eq!(pause_after(100), LONGEST_PAUSE);
    }

    #[test]
    fn what_may_not_pass_is_not_waited_for() {
        let open = |error: fn() -> Error, wait| {
            let open = Box::new(move || Err(error()));
            let name = String::new();
            Reconnecting::open(name, open, wait, |error, _| Err(error.clone()))
        };
        let gone = || Error::new(ErrorKind::NotFound, "nothing is there");
        let wrong = || Error::usage("that makes no sense");
        let waiting = open(gone, Wait::Meanwhile).unwrap();
        assert_eq!(waiting.state(), State::DOWN);
        assert_eq!(waiting.status().reason, "nothing is there");
        let hint = open(gone, Wait::No).err().unwrap().hint;
        assert_eq!(hint, "--wait waits for it");
        assert!(open(gone, Wait::AtMost(PAUSE)).is_err());
        for wait in [Wait::No, Wait::Meanwhile, Wait::AtMost(PAUSE)] {
            assert_eq!(open(wrong, wait).err().unwrap().hint, "");
        }
    }
}
