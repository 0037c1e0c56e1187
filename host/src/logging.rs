//! The log: standard error unless a file is named, warnings and worse unless more is asked for.
//!
//! The first process sets the log up once, and its forked children inherit it. Plugins' records
//! arrive here through the plugin kit. On standard error a record is one short line. In a file it
//! also has the time, the process and the source.
//!
//! The logger escapes text and target of a record before simplelog makes a line of them, so every
//! record is one line.
//!
//! The log never stops the program. A line that cannot be written at once is lost, for example
//! because nobody reads the pipe or the disk is full. The logger counts lost lines, and writes
//! their number before the next line that can be written.

use std::fs::OpenOptions;
use std::io::{self, Write, stderr};
use std::mem::take;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};
use simplelog::{Config, ConfigBuilder, WriteLogger};

use crate::error::{Error, Result};
use crate::output::{Line, write_line};

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

impl Choice<'_> {
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

/// The descriptor of the log, which stays open; none before [`start`].
static DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);

/// The descriptor of the log, once logging has started.
pub(crate) fn descriptor() -> Option<RawFd> {
    let descriptor = DESCRIPTOR.load(Ordering::Relaxed);
    (descriptor >= 0).then_some(descriptor)
}

/// Starts logging.
///
/// # Errors
/// The log file cannot be opened.
pub fn start(choice: &Choice<'_>) -> Result<()> {
    let level = choice.level();
    let logger = match choice.file {
        None => {
            DESCRIPTOR.store(stderr().as_raw_fd(), Ordering::Relaxed);
            Logger::new(level, short(), stderr(), "standard error".into())
        }
        Some(path) => {
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                // It may be a pipe that nobody reads.
                .custom_flags(libc::O_NONBLOCK)
                .open(path)
                .map_err(|error| Error::path("open the log file", path, &error))?;
            DESCRIPTOR.store(file.as_raw_fd(), Ordering::Relaxed);
            Logger::new(level, long(), file, path.display().to_string())
        }
    };
    log::set_max_level(level);
    // It fails only if there is a logger already, which then stays in use.
    let _ = log::set_boxed_logger(Box::new(logger));
    Ok(())
}

fn short() -> Config {
    ConfigBuilder::new()
        .set_time_level(LevelFilter::Off)
        .set_target_level(LevelFilter::Off)
        .set_location_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .build()
}

fn long() -> Config {
    ConfigBuilder::new()
        .set_time_format_rfc3339()
        .set_target_level(LevelFilter::Error)
        .set_location_level(LevelFilter::Off)
        .set_thread_level(LevelFilter::Off)
        .build()
}

/// Escapes records, passes them on, and reports how many were lost.
struct Logger {
    lines: Mutex<Box<dyn Log>>,
    /// Where the log goes.
    name: String,
    /// Lost lines that are not reported yet.
    lost: Arc<AtomicU64>,
}

impl Logger {
    fn new<F>(level: LevelFilter, config: Config, file: F, name: String) -> Self
    where
        F: AsFd + Send + 'static,
    {
        let lost = Arc::new(AtomicU64::new(0));
        let lines = Lines {
            file,
            line: Vec::new(),
            lost: Arc::clone(&lost),
        };
        Self {
            lines: Mutex::new(WriteLogger::new(level, config, lines)),
            name,
            lost,
        }
    }

    /// Reports how many lines were lost, if any were.
    fn report_lost(&self, lines: &dyn Log) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let name = &self.name;
        let notice = match lost {
            0 => return,
            1 => format!("1 line of the log was lost: {name} did not take it"),
            lost => format!("{lost} lines of the log were lost: {name} did not take them"),
        };
        put(lines, Level::Warn, module_path!(), format_args!("{notice}"));
        if self.lost.load(Ordering::Relaxed) > 0 {
            // The notice was lost as well, and is not counted.
            self.lost.store(lost, Ordering::Relaxed);
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            self.report_lost(&**lines);
            put(&**lines, record.level(), record.target(), *record.args());
        }
    }

    fn flush(&self) {}
}

/// Writes a record on one line.
fn put(lines: &dyn Log, level: Level, target: &str, message: std::fmt::Arguments<'_>) {
    let target = Line(format_args!("{} {target}", process::id())).to_string();
    let mut record = Record::builder();
    record.level(level).target(&target);
    lines.log(&record.args(format_args!("{}", Line(message))).build());
}

/// A file to which each line is written as a whole. A line that cannot be written is counted.
struct Lines<F> {
    file: F,
    /// The line that is being assembled.
    line: Vec<u8>,
    lost: Arc<AtomicU64>,
}

impl<F: AsFd> Write for Lines<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = String::from_utf8_lossy(&take(&mut self.line)).into_owned();
            if write_line(self.file.as_fd(), &line).is_err() {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::pipe;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn a_pipe_that_nobody_reads_costs_lines_and_they_are_counted() {
        let (from, to) = pipe().unwrap();
        let mut from = File::from(from);
        let logger = Logger::new(
            LevelFilter::Trace,
            long(),
            File::from(to),
            "the pipe".into(),
        );
        let write = |level, message: &str| {
            logger.report_lost(&**logger.lines.lock().unwrap());
            put(
                &**logger.lines.lock().unwrap(),
                level,
                "t\n",
                format_args!("{message}"),
            );
        };
        let mut written: u64 = 0;
        while logger.lost.load(Ordering::Relaxed) < 3 {
            write(Level::Warn, "a\x1b\nb");
            written += 1;
        }
        let mut bytes = vec![0; 1 << 20];
        let read = from.read(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
        assert_eq!(text.lines().count() as u64, written - 3);
        assert!(text.ends_with(" t\\n: a\\u{1b}\\nb\n"), "{text}");
        write(Level::Info, "again");
        drop(logger);
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
            again.contains("[INFO]") && again.ends_with("t\\n: again"),
            "{text}"
        );
    }
}
