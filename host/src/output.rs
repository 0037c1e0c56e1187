//! The program's output: makes text safe to show, and writes it.
//!
//! # Theory of operation
//!
//! Much of what the program shows comes from others: peers, switches, guests, plugins, other
//! processes of the user, and file names. A terminal executes control characters, so such a text
//! could retitle the window, hide lines or forge them. The program therefore escapes text once,
//! where it leaves the program: in an error report, in a record of the log, and in each line and
//! each JSON document for standard output. Code that receives or passes on text does not change it.
//!
//! [`Line`] escapes. Escaping is idempotent, because a backslash stays as it is. All standard
//! output is [`Text`], which consists of lines and JSON. Bytes that are not UTF-8 become U+FFFD
//! where a path or a word becomes text.
//!
//! Standard error and the log must not stop the program, even if nobody reads them. So
//! [`write_line`] writes only what the file accepts at once. Standard output may block, because the
//! user asked for it. A process in a sandbox can open them no more, so it does before
//! ([`keep_open`]).

use std::fmt::{self, Display, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::panic;
use std::sync::OnceLock;

use libc::STDERR_FILENO;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::write;
use serde::Serialize;

use crate::error::{Error, Result};

/// The longest line that goes to anything but a regular file, in bytes with its end. POSIX calls it
/// PIPE_BUF: so much goes into a pipe whole or not at all, and does not mix with the lines of other
/// processes.
const MAX_LINE: usize = libc::PIPE_BUF;

/// How long the report of a failure waits for room on standard error, in milliseconds. A terminal
/// that shows much output is full for a moment only.
const STDERR_LIMIT: u16 = 1000;

/// Displays a value on one line: a character that a terminal may execute, or that reorders or
/// breaks the line, is shown as its escape, such as `\u{1b}` or `\n`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line<T>(pub T);

impl<T: Display> Display for Line<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// Passes text on, escaped.
struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl fmt::Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(is_active) {
            let active = part.chars().next_back().filter(|c| is_active(*c));
            let passive = part.len() - active.map_or(0, char::len_utf8);
            self.0.write_str(&part[..passive])?;
            if let Some(active) = active {
                write!(self.0, "{}", active.escape_default())?;
            }
        }
        Ok(())
    }
}

/// Whether a terminal executes a character, or reorders or breaks the line at it.
fn is_active(c: char) -> bool {
    // C0, DEL and C1.
    c.is_control()
        // Bidirectional marks, embeddings, overrides and isolates (Unicode Standard Annex #9).
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        // Line and paragraph separator.
        || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Text for standard output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// A value as JSON, in lines of its own.
    ///
    /// # Errors
    /// It has no form in JSON.
    pub fn json(value: &impl Serialize) -> Result<Self> {
        let json = serde_json::to_string_pretty(value)
            .map_err(|error| Error::io("write JSON", &error.into()))?;
        // serde_json escapes C0 only. Outside of strings JSON has no character that is escaped
        // here, but line feeds.
        let mut text = String::with_capacity(json.len() + 1);
        for c in json.chars() {
            match is_active(c) && c != '\n' {
                // All of them are in the Basic Multilingual Plane.
                true => _ = write!(text, "\\u{:04x}", u32::from(c)),
                false => text.push(c),
            }
        }
        text.push('\n');
        Ok(Self(text))
    }

    /// Appends a line.
    pub fn line(&mut self, line: impl Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{}", Line(line));
    }

    /// Appends an empty line.
    pub(crate) fn gap(&mut self) {
        self.0.push('\n');
    }

    /// Writes it to standard output.
    ///
    /// # Errors
    /// As for [`written`].
    pub fn print(&self) -> Result<()> {
        let mut out = io::stdout().lock();
        written(out.write_all(self.0.as_bytes()).and_then(|()| out.flush()))
    }
}

impl<T: Display> FromIterator<T> for Text {
    /// A line for each.
    fn from_iter<I: IntoIterator<Item = T>>(lines: I) -> Self {
        let mut text = Self::default();
        lines.into_iter().for_each(|line| text.line(line));
        text
    }
}

impl AsRef<str> for Text {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The outcome of writing to standard output. A reader that has closed its end is no failure.
///
/// # Errors
/// Not everything was written, for example because the disk is full.
pub fn written(outcome: io::Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("write to standard output", &error))
        }
        _ => Ok(()),
    }
}

/// Prints a failure as one line, `PROGRAM: MESSAGE`, to standard error, if that accepts it.
pub fn report(program: &str, error: impl Display) {
    complain(format_args!("{program}: {error}"));
}

/// Writes a line to standard error. If there is no room for the line, this waits for it up to
/// [`STDERR_LIMIT`]. A line that cannot be written is lost, because it can be reported nowhere
/// else.
pub fn complain(line: impl Display) {
    let (stderr, line) = (io::stderr(), Line(line).to_string());
    let is_full = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
    if write_line(stderr.as_fd(), &line).is_err_and(is_full)
        && is_writable(stderr.as_fd(), STDERR_LIMIT.into())
    {
        let _ = write_line(stderr.as_fd(), &line);
    }
}

/// Reports panics of this program as it reports failures, because Rust's own hook blocks on
/// standard error. With `RUST_BACKTRACE` Rust's hook stays.
pub(crate) fn report_panics(program: &'static str) {
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        panic::set_hook(Box::new(move |panic| {
            let payload = panic.payload();
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            let what = text.unwrap_or("for no reason");
            let place = panic.location().map(|place| format!(" at {place}"));
            let place = place.unwrap_or_default();
            complain(format_args!("{program}: panicked{place}: {what}"));
        }));
    }
}

/// Writes a line, which must be escaped already, without blocking. If the file is not a regular
/// one, the line is cut to 4096 bytes (PIPE_BUF) and written in one piece.
///
/// `O_NONBLOCK` belongs to the open file, not to the descriptor, so it would affect all processes
/// that share standard error. A pipe or a terminal is therefore opened again for the line. If that
/// fails, because the pipe is another user's, poll(2) tells whether it has room for the line. The
/// write then blocks only if another process fills the pipe first.
///
/// # Errors
/// The file accepts no part of the line, or not all of it; `WouldBlock` if it may later.
pub(crate) fn write_line(fd: BorrowedFd<'_>, line: &str) -> io::Result<()> {
    let kind = SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT;
    let line = match kind {
        SFlag::S_IFREG => format!("{line}\n"),
        _ => format!("{}\n", cut(line)),
    };
    let bytes = line.as_bytes();
    let taken = match kind {
        SFlag::S_IFREG => write(fd, bytes)?,
        SFlag::S_IFSOCK => {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            send(fd.as_raw_fd(), bytes, flags)?
        }
        _ => write_now(fd, kind, bytes)?,
    };
    match taken == bytes.len() {
        true => Ok(()),
        false => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Writes to a pipe or a terminal without blocking, as [`write_line`] describes.
fn write_now(fd: BorrowedFd<'_>, kind: SFlag, bytes: &[u8]) -> io::Result<usize> {
    if let Some(file) = kept(fd) {
        return Ok(write(file, bytes)?);
    }
    match open_anew(fd, kind) {
        Some(file) => Ok(write(&file, bytes)?),
        None if is_writable(fd, PollTimeout::ZERO) => Ok(write(fd, bytes)?),
        None => Err(Errno::EAGAIN.into()),
    }
}

/// As much of the line as fits, with a mark if it was cut.
fn cut(line: &str) -> String {
    const MARK: &str = "…";
    match line.len() < MAX_LINE {
        true => line.to_owned(),
        false => format!("{}{MARK}", up_to(line, MAX_LINE - MARK.len() - 1)),
    }
}

/// The text up to byte `end`, or up to the character that this byte is in.
pub(crate) fn up_to(text: &str, end: usize) -> &str {
    let mut ends = (0..=end.min(text.len())).rev();
    let end = ends.find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// Opens a pipe or a terminal again, non-blocking and for this process alone.
fn open_anew(fd: BorrowedFd<'_>, kind: SFlag) -> Option<File> {
    // Opening other devices may have an effect.
    if kind != SFlag::S_IFIFO && !nix::unistd::isatty(fd).unwrap_or(false) {
        return None;
    }
    let mut options = OpenOptions::new();
    options
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options
        .open(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .ok()
}

/// Pipes and terminals that are opened again for good, by the descriptors that they stand for.
static KEPT: OnceLock<Vec<(RawFd, File)>> = OnceLock::new();

/// Opens standard error and the log again, as far as [`write_line`] would, and keeps them so. The
/// first call counts.
pub(crate) fn keep_open(log: Option<RawFd>) {
    KEPT.get_or_init(|| {
        let descriptors = [Some(STDERR_FILENO), log.filter(|log| *log != STDERR_FILENO)];
        let open = |fd: RawFd| {
            // SAFETY: standard error and the log stay open, and are borrowed for two calls.
            let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
            let kind = SFlag::from_bits_truncate(fstat(borrowed).ok()?.st_mode) & SFlag::S_IFMT;
            Some((fd, open_anew(borrowed, kind)?))
        };
        descriptors.into_iter().flatten().filter_map(open).collect()
    });
}

/// What [`keep_open`] has opened for a descriptor.
pub(crate) fn kept(fd: impl AsRawFd) -> Option<&'static File> {
    let mut kept = KEPT.get()?.iter();
    let found = kept.find(|(of, _)| *of == fd.as_raw_fd());
    found.map(|(_, file)| file)
}

/// Whether a file has room, or reports an error, within `patience`.
fn is_writable(fd: BorrowedFd<'_>, patience: PollTimeout) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll(&mut fds, patience).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::pipe;
    use std::io::Read;

    fn shown(text: &str) -> String {
        Line(text).to_string()
    }

    #[test]
    fn what_a_terminal_would_execute_is_shown() {
        for (text, expected) in [
            ("", ""),
            (
                "plain, größer, 漢字, a\\b 'c'",
                "plain, größer, 漢字, a\\b 'c'",
            ),
            ("\x1b]0;x\x07", "\\u{1b}]0;x\\u{7}"),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{7f}\u{9b}2J\u{85}", "\\u{7f}\\u{9b}2J\\u{85}"),
            (
                "\u{202e}txt.\u{2066}\u{200f}",
                "\\u{202e}txt.\\u{2066}\\u{200f}",
            ),
            ("\u{2028}", "\\u{2028}"),
        ] {
            assert_eq!(shown(text), expected);
            assert_eq!(shown(&shown(text)), expected, "twice is once");
        }
        let all: String = (0..=0x10_ffff).filter_map(char::from_u32).collect();
        assert!(!shown(&all).contains(is_active));
    }

    #[test]
    fn a_text_has_the_lines_that_the_program_wrote() {
        let mut text = Text::default();
        text.line("a\nb");
        text.gap();
        text.line(format_args!("{}", 1));
        assert_eq!(text.as_ref(), "a\\nb\n\n1\n");
    }

    #[test]
    fn json_means_the_same_and_is_harmless() {
        let value = serde_json::json!({ "a\u{9b}": ["\x1b\u{7f}\u{202e}\n", "ß漢"] });
        let text = Text::json(&value).unwrap();
        assert!(!text.as_ref().contains(|c| is_active(c) && c != '\n'));
        assert!(text.as_ref().contains("ß漢"));
        let read: serde_json::Value = serde_json::from_str(text.as_ref()).unwrap();
        assert_eq!(read, value);
    }

    #[test]
    fn a_full_pipe_is_not_waited_for() {
        let (from, to) = pipe().unwrap();
        let line = "x".repeat(99);
        let mut lines = 0;
        let error = loop {
            match write_line(to.as_fd(), &line) {
                Ok(()) => lines += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(to);
        let mut text = String::new();
        File::from(from).read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("{line}\n").repeat(lines), "no line is torn");
    }

    /// Its queue has room for part of a line when it is full.
    #[test]
    fn a_terminal_that_shows_nothing_is_not_waited_for() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let lines = (0..100_000).map(|_| write_line(pty.slave.as_fd(), "a line on a terminal"));
        assert!(lines.filter(Result::is_err).count() > 10_000);
        drop(pty.master);
    }

    #[test]
    fn a_long_line_is_cut_for_a_pipe_only() {
        for line in ["ä".repeat(3000), "x".repeat(MAX_LINE), "x".repeat(9999)] {
            let (from, to) = pipe().unwrap();
            write_line(to.as_fd(), &line).unwrap();
            drop(to);
            let mut text = String::new();
            File::from(from).read_to_string(&mut text).unwrap();
            assert!(
                (MAX_LINE - 2..=MAX_LINE).contains(&text.len()),
                "{}",
                text.len()
            );
            let start = text.strip_suffix("…\n").unwrap();
            assert!(line.starts_with(start));
            let file = tempfile::NamedTempFile::new().unwrap();
            write_line(file.as_file().as_fd(), &line).unwrap();
            assert_eq!(std::fs::read_to_string(file.path()).unwrap(), line + "\n");
        }
        let fits = "x".repeat(MAX_LINE - 1);
        assert_eq!(cut(&fits), fits);
    }
}
