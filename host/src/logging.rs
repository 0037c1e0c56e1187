//! The log: standard error unless a file is named, warnings and worse unless more is asked for.
//!
//! Set up once in the first process; forked children inherit it. Plugins' records arrive here through
//! the plugin kit. On standard error a record is one short line, in a file it has the time and the
//! process as well.

use std::fs::OpenOptions;
use std::io::stderr;
use std::path::Path;

use log::LevelFilter;
use simplelog::{Config, ConfigBuilder, WriteLogger};

use crate::error::{Error, Result};
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
    let logger = match choice.file {
        None => WriteLogger::new(choice.level(), short(), stderr()) as Box<dyn log::Log>,
        Some(path) => {
            let file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .map_err(|error| Error::path("open the log file", path, &error))?;
            WriteLogger::new(choice.level(), long(), file)
        }
    };
    log::set_max_level(choice.level());
    // The only way to fail is a logger that is there already, which then serves.
    let _ = log::set_boxed_logger(logger);
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
