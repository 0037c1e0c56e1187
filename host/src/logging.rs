//! The log: standard error unless a file is named, warnings and worse unless more is asked for.
//!
//! Set up once in the first process; forked children inherit it. Plugins' records arrive here
//! through the plugin kit. On standard error a record is one short line, in a file it has the time,
//! the process and the source as well.
//!
//! The log never stops the program. A line that cannot be written at once, because nobody reads the
//! pipe or the disk is full, is lost. Lost lines are counted, and the next line that can be written
//! is preceded by their number.

use std::fs::{File, OpenOptions};
use std::io::stderr;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::error::{Error, Result};
use crate::output::{Line, write_line};
use crate::{cli, config};

/// What the command line and the configuration say about logging.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice<'a> {
    /// How often `-v` was given.
    pub verbose: u8,
    /// Whether `-q` was given.
    pub quiet: bool,
    /// The level in the configuration.
    pub level: Option<LevelFilter>,
    /// The file to append to.
    pub file: Option<&'a Path>,
}

impl<'a> Choice<'a> {
    /// The command line's choice where it makes one, else the configuration's.
    pub fn new(cli: &'a cli::Common, config: &'a config::Config) -> Self {
        Self {
            verbose: cli.verbose,
            quiet: cli.quiet,
            level: config.log.level,
            file: cli.log_file.as_deref().or(config.log.file.as_deref()),
        }
    }

    /// The level: the command line's, else the configuration's, else warnings.
    pub fn level(&self) -> LevelFilter {
        match (self.quiet, self.verbose) {
            (true, _) => LevelFilter::Error,
            (_, 0) => self.level.unwrap_or(LevelFilter::Warn),
            (_, 1) => LevelFilter::Info,
            (_, 2) => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        }
    }
}

/// Starts logging.
///
/// # Errors
/// The log file cannot be opened.
pub fn start(choice: &Choice<'_>) -> Result<()> {
    let place = match choice.file {
        None => Place::StandardError,
        Some(path) => {
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                // It may be a pipe, which nobody reads.
                .custom_flags(libc::O_NONBLOCK)
                .open(path)
                .map_err(|error| Error::path("open the log file", path, &error))?;
            Place::File(file, path.display().to_string())
        }
    };
    log::set_max_level(choice.level());
    // The only way to fail is a logger that is there already, which then serves.
    let _ = log::set_boxed_logger(Box::new(Logger(Mutex::new(Output { place, lost: 0 }))));
    Ok(())
}

struct Logger(Mutex<Output>);

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut output = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let message = record.args().to_string();
            output.write(record.level(), record.target(), &message);
        }
    }

    fn flush(&self) {}
}

/// Where the log goes.
enum Place {
    StandardError,
    /// A file and its name.
    File(File, String),
}

/// The log, and how many lines of it were lost and not told of yet.
struct Output {
    place: Place,
    lost: u64,
}

impl Output {
    fn write(&mut self, level: Level, target: &str, message: &str) {
        if self.lost > 0 {
            let name = match &self.place {
                Place::StandardError => "standard error",
                Place::File(_, name) => name,
            };
            let notice = match self.lost {
                1 => format!("1 line of the log was lost: {name} did not take it"),
                lost => format!("{lost} lines of the log were lost: {name} did not take them"),
            };
            if self.put(Level::Warn, module_path!(), &notice) {
                self.lost = 0;
            }
        }
        if !self.put(level, target, message) {
            self.lost += 1;
        }
    }

    /// Writes a record; whether it was taken.
    fn put(&self, level: Level, target: &str, message: &str) -> bool {
        match &self.place {
            Place::StandardError => {
                let line = Line(format_args!("[{level}] {message}")).to_string();
                write_line(stderr().as_fd(), &line)
            }
            Place::File(file, _) => {
                let (time, pid) = (timestamp(SystemTime::now()), process::id());
                let line = Line(format_args!("{time} [{level}] {pid} {target}: {message}"));
                write_line(file.as_fd(), &line.to_string())
            }
        }
        .is_ok()
    }
}

/// A time in UTC as RFC 3339 has it, to the second.
fn timestamp(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    // The year starts with March, so that the leap day is its last, and years are counted within
    // eras of 400 years of the Gregorian calendar, which have 146,097 days each. 719,468 days lie
    // between 1 March of year 0 and 1970.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!(
        "{:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z",
        era * 400 + year + next,
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::pipe;
    use std::io::Read;
    use std::time::Duration;

    #[test]
    fn times_are_told() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(
                timestamp(UNIX_EPOCH + Duration::from_secs(seconds)),
                expected
            );
        }
    }

    #[test]
    fn a_pipe_that_nobody_reads_costs_lines_and_they_are_counted() {
        let (from, to) = pipe().unwrap();
        let mut from = File::from(from);
        let place = Place::File(File::from(to), "the pipe".into());
        let mut output = Output { place, lost: 0 };
        let mut written: u64 = 0;
        while output.lost < 3 {
            output.write(Level::Warn, "t", "a\x1b\nb");
            written += 1;
        }
        let mut bytes = vec![0; 1 << 20];
        let read = from.read(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
        assert_eq!(text.lines().count() as u64, written - 3);
        assert!(text.ends_with(" t: a\\u{1b}\\nb\n"), "{text}");
        output.write(Level::Info, "t", "again");
        drop(output);
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        let [lost, again] = text.lines().collect::<Vec<_>>()[..] else {
            panic!("{text}");
        };
        assert!(
            lost.contains("[WARN]")
                && lost.ends_with("3 lines of the log were lost: the pipe did not take them"),
            "{text}"
        );
        assert!(
            again.contains("[INFO]") && again.ends_with("t: again"),
            "{text}"
        );
    }
}
