//! `vdectl wait`: waits until a session runs, and until its links have carrier.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cli::vdectl::sessions::Wait;
use crate::error::{Error, ErrorKind, Result};
use crate::ipc::status::{Process, Report};
use crate::tools::status::client::ask_one;
use crate::tools::targets::{Target, resolve_whole};

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(20);

/// Waits.
///
/// # Errors
/// The session does not start in time, or ends meanwhile, or its links have no carrier in time.
pub(super) fn run(arguments: &Wait) -> Result<()> {
    let deadline = Instant::now().checked_add(arguments.timeout);
    let mut known: Option<Target> = None;
    loop {
        let obstacle = match (resolve_whole(&arguments.name), &known) {
            (Ok(target), _) if !arguments.link_up => {
                drop(target);
                return Ok(());
            }
            (Ok(target), _) => {
                let process = ask_one(target.process)?;
                known = Some(target);
                match process.as_ref().and_then(without_carrier) {
                    None if process.is_some() => return Ok(()),
                    None => Error::closed(format!("{} has ended", arguments.name)),
                    Some(interface) => {
                        let message = format!("{interface} of {} has no carrier", arguments.name);
                        Error::new(ErrorKind::Busy, message).hint("start its far end")
                    }
                }
            }
            (Err(error), None) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Busy) => {
                error
            }
            (Err(error), None) => return Err(error),
            (Err(_), Some(_)) => {
                return Err(Error::closed(format!("{} has ended", arguments.name)));
            }
        };
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            let message = format!("{} after {:?}", obstacle.message, arguments.timeout);
            return Err(Error {
                message,
                ..obstacle
            });
        }
        sleep(LOOK);
    }
}

/// The first interface of a session that has no carrier.
fn without_carrier(process: &Process<Report>) -> Option<&str> {
    let has_carrier = |report: &Report| report.carrier;
    let late = process
        .links
        .iter()
        .find(|entry| !entry.report.as_ref().is_some_and(has_carrier));
    late.map(|entry| entry.link.interface.as_str())
}
