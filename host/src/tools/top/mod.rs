//! `vdectl top`: what all links move, as it happens.
//!
//! Once in an interval all processes are asked for their status, and [`rates`] has what their
//! counters gained. [`screen`] draws that. In between the loop waits for keys and signals.
//!
//! The terminal is as it was before on every way out: at the end of the loop, on an error, on a
//! panic (ratatui's hook), and on the signals that end a process, which are read like keys.

mod rates;
mod screen;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use serde::Serialize;

use self::rates::{Moving, Order, Rates};
use self::screen::View;
use super::status::client::{ask_again, ask_all};
use crate::error::{Error, ErrorKind, Result};
use crate::output::Text;
use crate::sys::process::wait;
use crate::sys::signals::Signals;

/// How rates are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On the terminal, until the user ends it.
    Live,
    /// As lines, once.
    Once,
    /// As JSON, once.
    Json,
}

/// What JSON has.
#[derive(Serialize)]
struct Shown<'a> {
    links: &'a [Moving],
}

/// Shows the rates of all links. Returns the exit status.
///
/// # Errors
/// There is no terminal, or the processes cannot be found.
pub fn run(mode: Mode, interval: Duration) -> Result<i32> {
    if mode == Mode::Live {
        return live(interval);
    }
    let mut rates = Rates::default();
    rates.take(&ask_all()?, Instant::now());
    sleep(interval);
    rates.take(&ask_all()?, Instant::now());
    Order::default().sort(&mut rates.links);
    let links = &rates.links;
    let text = match mode {
        Mode::Json => Text::json(&Shown { links })?,
        Mode::Live | Mode::Once => screen::lines(links),
    };
    text.print()?;
    Ok(0)
}

/// The terminal, which becomes as it was when this is dropped.
struct Screen(DefaultTerminal);

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone cannot be restored.
        let _ = ratatui::try_restore();
    }
}

fn live(interval: Duration) -> Result<i32> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        let message = "vdectl top needs a terminal";
        return Err(Error::new(ErrorKind::Unsupported, message).hint("use --once or --json"));
    }
    let cannot = |error| Error::io("use the terminal", &error);
    let signals = Signals::block()?;
    let mut view = View::default();
    // A warning belongs before the screen.
    view.rates.take(&ask_all()?, Instant::now());
    let mut screen = Screen(ratatui::try_init().map_err(cannot)?);
    let mut next = Instant::now() + interval;
    loop {
        let now = Instant::now();
        if now >= next {
            view.rates.take(&ask_again()?, Instant::now());
            next = now + interval;
        }
        screen.0.draw(|frame| view.draw(frame)).map_err(cannot)?;
        let stdin = io::stdin();
        let mut fds = [
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        wait(&mut fds, Some(next))?;
        if let Some(signal) = signals.next().filter(|signal| *signal != Signal::SIGCHLD) {
            return Ok(128 + signal as i32);
        }
        while event::poll(Duration::ZERO).map_err(cannot)? {
            if let Event::Key(key) = event::read().map_err(cannot)?
                && key.kind != KeyEventKind::Release
                && press(&mut view, key)
            {
                return Ok(0);
            }
        }
    }
}

/// Does what a key is for. Returns whether the user has had enough.
fn press(view: &mut View, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Char('b') => view.order = Order::Bits,
        KeyCode::Char('p') => view.order = Order::Frames,
        KeyCode::Char('d') => view.order = Order::Drops,
        KeyCode::Char('n') => view.order = Order::Name,
        KeyCode::Down | KeyCode::Char('j') => view.first = view.first.saturating_add(1),
        KeyCode::Up | KeyCode::Char('k') => view.first = view.first.saturating_sub(1),
        KeyCode::PageDown => view.first = view.first.saturating_add(10),
        KeyCode::PageUp => view.first = view.first.saturating_sub(10),
        _ => {}
    }
    false
}
