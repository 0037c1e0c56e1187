//! `test_faulty://FILE`: a link that fails as the file says, to test what a plugin's failure costs.
//!
//! The file holds two words, a function and a fault: `recv abort`. The link reads it at each call,
//! so it can break and recover while it is in use. With an empty file, or none, the link works: it
//! has carrier, and drops what is sent. The function is `open`, `recv`, `send` or `status`. A link
//! that is to fail in `open` closes, so that the host opens it again. A timer makes the host call
//! `recv` every `TICK`.

use std::fs;
use std::hint::black_box;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use vdens_plugin_kit::vnl::{Keys, Spec};
use vdens_plugin_kit::{Error, Link, OpenRequest, Result, RxBatch, Status, TxBatch};

const KEYS: Keys = Keys::new(&[]);

/// The time between two calls of `recv`.
const TICK: Duration = Duration::from_millis(50);

struct Faulty {
    mood: PathBuf,
    timer: TimerFd,
}

impl Faulty {
    /// Fails if the file names `place`.
    fn at(mood: &PathBuf, place: &str) -> Result<()> {
        let text = fs::read_to_string(mood).unwrap_or_default();
        let mut words = text.split_whitespace();
        match (words.next(), words.next()) {
            (Some("open"), _) if place != "open" => Err(Error::closed("it is told to open again")),
            (Some(at), Some(how)) if at == place => fail(how),
            _ => Ok(()),
        }
    }
}

/// Fails in the way that the file names.
fn fail(how: &str) -> Result<()> {
    match how {
        "panic" => panic!("it is told to"),
        "abort" => std::process::abort(),
        "segfault" => {
            let nowhere = black_box(std::ptr::dangling::<u64>());
            // SAFETY: none; the process must die of it.
            black_box(unsafe { nowhere.read_volatile() });
        }
        "loop" => loop {
            black_box(());
        },
        "sleep" => loop {
            thread::sleep(Duration::from_secs(1000));
        },
        "allocate" => loop {
            std::mem::forget(black_box(Vec::<u8>::with_capacity(1 << 20)));
        },
        _ => return Err(Error::closed("it is told to break")),
    }
    Ok(())
}

impl Link for Faulty {
    fn fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    fn recv(&mut self, _batch: &mut RxBatch<'_>) -> Result<()> {
        // The count of expirations does not matter.
        let _ = self.timer.wait();
        Self::at(&self.mood, "recv")
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        Self::at(&self.mood, "send")?;
        Ok(batch.len())
    }

    fn status(&self) -> Status {
        let mood = Self::at(&self.mood, "status");
        Status {
            reason: format!(
                "it is told to be {}",
                if mood.is_ok() { "good" } else { "bad" }
            ),
            ..Status::default()
        }
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let spec = Spec::path_grammar(request.argument(), &KEYS)?;
    let mood = spec.absolute_path()?;
    Faulty::at(&mood, "open")?;
    let cannot = |errno: nix::Error| Error::io("make a timer", &errno.into());
    let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags).map_err(cannot)?;
    let every = Expiration::Interval(TimeSpec::from_duration(TICK));
    timer
        .set(every, TimerSetTimeFlags::empty())
        .map_err(cannot)?;
    Ok(Box::new(Faulty { mood, timer }))
}

vdens_plugin_kit::export_plugin! {
    scheme: "test_faulty",
    description: "fails when it is told to",
    open: open,
}
