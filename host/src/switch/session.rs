//! A session of the console: the lines that come in, and the text that has not gone out yet.
//!
//! # Theory of operation
//!
//! A client may write lines in pieces or several at once, and may not read. So a session collects
//! bytes until they are a line, and executes the next line only when the client has taken the reply
//! to the last one but for little. A client that never reads fills its own buffers, and neither the
//! switch nor another session waits for it.
//!
//! VDE's `vdeterm` sends commands without an end of line. So at the management socket a line also
//! ends when nothing follows for a while.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};

use super::client::{self, Ask};
use super::console::{Console, END_OF_SESSION, Outcome, Watched, print, too_long};
use crate::error::Result;

/// The longest line, in bytes.
const LONGEST_LINE: usize = 1024;

/// How long a client may be silent within a line before that is its end. A client that sends a line
/// in pieces goes on at once.
const SILENCE: Duration = Duration::from_millis(200);

/// How much text may wait for the client while the next line is executed, in bytes.
const ENOUGH: usize = 64 << 10;

/// How much goes out at once: a pipe or terminal with room takes so much without blocking.
const PIECE: usize = libc::PIPE_BUF;

/// What ends a line's reply, for a person or a script that waits for it.
const PROMPT: &str = "\nvde$ ";

/// A line that a client has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Text(String),
    TooLong,
}

/// The bytes of a client that were not executed yet.
#[derive(Debug, Default)]
pub(crate) struct Input {
    bytes: Vec<u8>,
    /// Whether the line that they belong to has been too long already.
    is_too_long: bool,
    /// Whether no more will come.
    is_at_end: bool,
}

impl Input {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether a line has begun that has not ended.
    fn is_within_line(&self) -> bool {
        self.is_too_long || !self.bytes.is_empty()
    }

    /// The next line. At the end, what is left is one.
    pub(crate) fn next(&mut self) -> Option<Line> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n');
        let end = match end {
            Some(end) => end,
            None if self.bytes.len() > LONGEST_LINE => {
                self.is_too_long = true;
                self.bytes.clear();
                return None;
            }
            None if self.is_at_end && !self.bytes.is_empty() => self.bytes.len(),
            None => return None,
        };
        let line = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
        self.bytes.drain(..self.bytes.len().min(end + 1));
        let is_too_long = std::mem::take(&mut self.is_too_long) || end > LONGEST_LINE;
        Some(match is_too_long {
            true => Line::TooLong,
            false => Line::Text(line),
        })
    }
}

/// Where a session's client is.
#[derive(Debug)]
pub(super) enum Client {
    /// At the management socket.
    Socket(OwnedFd),
    /// At the program's standard input and output, which are a terminal or not.
    Standard {
        input: OwnedFd,
        output: OwnedFd,
        is_terminal: bool,
    },
}

/// How a session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It waits for its client.
    Wait,
    /// It has ended.
    End,
    /// The switch is to end.
    Shutdown,
}

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    input: Input,
    /// When the client has sent something last.
    last_input: Instant,
    /// What the client has not taken yet.
    output: Vec<u8>,
    watched: Watched,
    /// The number of the next event to show.
    next_event: u64,
    /// Whether the client has left, or has been told that the session ends.
    is_ending: bool,
}

impl Session {
    /// A session, which greets a client at the management socket.
    pub(super) fn new(client: Client) -> Self {
        let greeting = match client {
            Client::Socket(_) => format!("{}{PROMPT}", print::banner()),
            Client::Standard {
                is_terminal: true, ..
            } => PROMPT.to_owned(),
            Client::Standard { .. } => String::new(),
        };
        Self {
            client,
            input: Input::default(),
            last_input: Instant::now(),
            output: greeting.into_bytes(),
            watched: Watched::default(),
            next_event: 0,
            is_ending: false,
        }
    }

    /// Whether its client is at standard input.
    pub(super) fn is_standard(&self) -> bool {
        matches!(self.client, Client::Standard { .. })
    }

    /// Whether it wants to know of events.
    pub(super) fn is_watching(&self) -> bool {
        !self.watched.is_empty() && !self.is_ending
    }

    fn source(&self) -> BorrowedFd<'_> {
        match &self.client {
            Client::Socket(socket) => socket.as_fd(),
            Client::Standard { input, .. } => input.as_fd(),
        }
    }

    fn sink(&self) -> BorrowedFd<'_> {
        match &self.client {
            Client::Socket(socket) => socket.as_fd(),
            Client::Standard { output, .. } => output.as_fd(),
        }
    }

    fn may_execute(&self) -> bool {
        !self.is_ending && self.output.len() < ENOUGH
    }

    /// When the line that the client has begun ends by itself.
    pub(super) fn line_ends(&self) -> Option<Instant> {
        let ends = !self.is_standard() && self.may_execute() && self.input.is_within_line();
        ends.then(|| self.last_input + SILENCE)
    }

    /// What the session waits for: input as long as it executes lines, and room for its output.
    pub(super) fn poll_fds(&self) -> Vec<PollFd<'_>> {
        let mut fds = Vec::new();
        if self.may_execute() && !self.input.is_at_end {
            fds.push(PollFd::new(self.source(), PollFlags::POLLIN));
        }
        if !self.output.is_empty() {
            fds.push(PollFd::new(self.sink(), PollFlags::POLLOUT));
        }
        fds
    }

    /// Reads, executes and writes what is possible now.
    pub(super) fn serve(&mut self, console: &Console, switch: &dyn Ask) -> Next {
        if self.may_execute() && !self.input.is_at_end {
            self.receive();
        }
        if self.line_ends().is_some_and(|end| end <= Instant::now()) {
            self.input.push(b"\n");
        }
        loop {
            if self.send().is_err() {
                return Next::End;
            }
            if !self.may_execute() {
                break;
            }
            let Some(line) = self.input.next() else {
                self.is_ending |= self.input.is_at_end;
                break;
            };
            if self.execute(line, console, switch) == Next::Shutdown {
                let _ = self.send();
                return Next::Shutdown;
            }
        }
        match self.is_ending && self.output.is_empty() {
            true => Next::End,
            false => Next::Wait,
        }
    }

    fn execute(&mut self, line: Line, console: &Console, switch: &dyn Ask) -> Next {
        let was_watching = self.is_watching();
        let outcome = match line {
            Line::TooLong => Outcome::Reply(too_long()),
            Line::Text(line) => console.execute(&line, &mut self.watched, switch),
        };
        match outcome {
            Outcome::Blank => self.say("", true),
            Outcome::Reply(reply) => self.say(&reply, true),
            // Standard input has no session to leave.
            Outcome::Logout if self.is_standard() => self.say("", true),
            Outcome::Logout => {
                self.say(END_OF_SESSION, false);
                self.is_ending = true;
            }
            Outcome::Shutdown => {
                if !self.is_standard() {
                    self.say(END_OF_SESSION, false);
                }
                return Next::Shutdown;
            }
        }
        if self.is_watching() && !was_watching {
            // Only what happens from now on is shown.
            if let Ok((_, next)) = client::events(switch, self.next_event) {
                self.next_event = next;
            }
        }
        Next::Wait
    }

    fn say(&mut self, text: &str, prompts: bool) {
        self.output.extend_from_slice(text.as_bytes());
        // A program at standard input reads lines.
        let has_prompt = match self.client {
            Client::Socket(_) => true,
            Client::Standard { is_terminal, .. } => is_terminal,
        };
        if prompts && has_prompt {
            self.output.extend_from_slice(PROMPT.as_bytes());
        }
    }

    /// Shows what has happened. A client that does not read misses it.
    pub(super) fn show_events(&mut self, switch: &dyn Ask) -> Result<()> {
        let (events, next) = client::events(switch, self.next_event)?;
        self.next_event = next;
        for event in events {
            if self.watched.contains(&event.category) && self.output.len() < ENOUGH {
                self.say(&print::event(&event.category, &event.text), false);
            }
        }
        Ok(())
    }

    fn receive(&mut self) {
        let mut bytes = [0; 4096];
        if !is_ready(self.source(), PollFlags::POLLIN) {
            return;
        }
        match read(self.source(), &mut bytes) {
            Ok(0) => self.input.is_at_end = true,
            Ok(length) => {
                self.input.push(&bytes[..length]);
                self.last_input = Instant::now();
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => self.input.is_at_end = true,
        }
    }

    /// Writes what the client takes without being waited for.
    fn send(&mut self) -> nix::Result<()> {
        let mut sent = 0;
        let outcome = loop {
            let rest = &self.output[sent..];
            if rest.is_empty() || !is_ready(self.sink(), PollFlags::POLLOUT) {
                break Ok(());
            }
            match write(self.sink(), &rest[..rest.len().min(PIECE)]) {
                Ok(length) => sent += length,
                Err(Errno::EAGAIN) => break Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => break Err(errno),
            }
        };
        self.output.drain(..sent);
        outcome
    }
}

fn is_ready(fd: BorrowedFd<'_>, event: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, event)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&str]) -> Vec<Line> {
        let mut input = Input::default();
        let mut lines = Vec::new();
        for piece in pieces {
            input.push(piece.as_bytes());
            lines.extend(std::iter::from_fn(|| input.next()));
        }
        input.is_at_end = true;
        lines.extend(std::iter::from_fn(|| input.next()));
        lines
    }

    #[test]
    fn lines_come_in_pieces_or_together() {
        let text = |line: &str| Line::Text(line.into());
        assert_eq!(lines(&["a\nb\n\n"]), [text("a"), text("b"), text("")]);
        assert_eq!(
            lines(&["po", "rt\nv", "l", "an"]),
            [text("port"), text("vlan")]
        );
        assert_eq!(lines(&["", "\n"]), [text("")]);
        assert_eq!(lines(&[]), []);
    }

    #[test]
    fn a_line_that_is_too_long_is_one_line_and_takes_little_memory() {
        let long = "x".repeat(LONGEST_LINE + 1);
        let after = [Line::TooLong, Line::Text("a".into())];
        assert_eq!(lines(&[&format!("{long}\na\n")]), after);
        assert_eq!(lines(&[&long, &long, &long, "\na"]), after);
        assert_eq!(lines(&[&long[1..], "\n"]), [Line::Text(long[1..].into())]);
        let mut input = Input::default();
        for _ in 0..100 {
            input.push(long.as_bytes());
            assert_eq!(input.next(), None);
            assert!(input.bytes.is_empty());
        }
    }
}
