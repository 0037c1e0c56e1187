//! Log records across the boundary.
//!
//! Each shared object has its own state of the `log` crate, so a plugin's records would be lost. At
//! open, the kit installs a logger in the plugin that passes each record to the host, and a panic
//! hook that does the same with the panic's message and place.

use std::sync::{Once, OnceLock};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Passes a record to the host: its level, its target and its message of one line.
pub(crate) type Sink = Box<dyn Fn(Level, &str, &str) + Send + Sync>;

struct Forwarder;

static HOST: OnceLock<Sink> = OnceLock::new();
static INSTALL: Once = Once::new();

impl Log for Forwarder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let host = HOST.get().filter(|_| self.enabled(record.metadata()));
        if let Some(log) = host {
            let (target, message) = (record.target(), record.args().to_string());
            log(record.level(), target, &message);
        }
    }

    fn flush(&self) {}
}

/// Passes this shared object's records to `host`. Only the first call sets the host.
pub(crate) fn forward_to(host: Sink, level: LevelFilter) {
    INSTALL.call_once(|| {
        // In a unit test the host's logger is this object's own, and set already.
        if HOST.set(host).is_ok() && log::set_logger(&Forwarder).is_ok() {
            std::panic::set_hook(Box::new(|panic| {
                // A record is one line.
                log::error!("{}", panic.to_string().replace('\n', " "));
            }));
        }
    });
    log::set_max_level(level);
}

/// A level as it crosses the boundary: 1 for error to 5 for trace.
pub(crate) fn level_from_code(code: u32) -> Level {
    match code {
        0 | 1 => Level::Error,
        2 => Level::Warn,
        3 => Level::Info,
        4 => Level::Debug,
        _ => Level::Trace,
    }
}

/// A filter as it crosses the boundary: 0 for off to 5 for trace.
pub(crate) fn filter_from_code(code: u32) -> LevelFilter {
    match code {
        0 => LevelFilter::Off,
        code => level_from_code(code).to_level_filter(),
    }
}
