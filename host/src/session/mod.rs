//! The supervisor: the process that the user started, which stays until the command ends.
//!
//! It forks the namespace child and a worker for each interface. When the links are open it has the
//! interfaces made: on the panel where the link wants that, else as taps by the namespace child. It
//! gives each worker its side of the link. When all links have settled, it tells the namespace
//! child to execute the command.
//!
//! From then on it supervises: it executes the workers' requests, pings the workers, and starts
//! those again that end. It holds the interfaces, so a worker that dies costs its link the carrier
//! and nothing else. The session ends with the command. Closing the channels then tells the workers
//! to clean up and end.
//!
//! | Module | |
//! |---|---|
//! | `machine` | the session's phases: which event leads to which actions, without I/O |
//! | `link` | the same for one link and its worker |
//! | `run` | the loop that polls, makes events, and performs the actions |
//! | `held` | what the supervisor holds for a link: its worker's channels, its interface |
//! | `served` | one link and its worker, for the supervisors of labs and of `vdens-tap` |
//!
//! In the background (`-d`) a child is the supervisor, and says over a channel when the session
//! runs, so that the parent's exit status is true.
//!
//! The supervisor is single-threaded and loads no plugin, so it may fork at any time. Each child
//! first drops what it has inherited and does not need, so that a process sees when the channel's
//! other end is closed.

pub(crate) mod held;
pub(crate) mod link;
mod machine;
mod run;
pub(crate) mod served;

use std::time::Duration;

use nix::sys::signal::Signal;
use vdens_plugin_kit::PanelAddress;

use crate::error::{EXIT_FAILURE, Error};
use crate::ipc::background::{self, Starter};
use crate::namespace::Plan;
use crate::panel::{Panel, new_place};
use crate::sys::process::detach;
use crate::sys::runtime;
use crate::sys::signals::Signals;
use crate::worker::Job;
use crate::worker::target::LinkTarget;
use run::Supervisor;

/// How long workers may take to report: `vdectl status` waits for a second.
pub(crate) const REPORT_LIMIT: Duration = Duration::from_millis(500);

/// Why there is no exit status of the command to pass on.
#[derive(Debug)]
pub enum Failure {
    /// An error: the exit status, and what to tell the user.
    Error(i32, Error),
    /// A signal came before the command ran.
    Signal(Signal),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(EXIT_FAILURE, error)
    }
}

/// Runs the command in a namespace as planned, with one link a job, in the order of the plan's
/// interfaces. Returns the command's exit status, 128 + n if signal n ended it; in the background,
/// 0 when the session runs.
///
/// # Errors
/// The namespace or a link cannot be made, or the command cannot be executed.
pub fn run(plan: &Plan, jobs: Vec<Job>) -> Result<i32, Failure> {
    runtime::complain();
    if !plan.is_detached {
        return supervise(plan, jobs, None);
    }
    background::start(|starter| {
        // What the command inherits is not the terminal.
        detach()?;
        match supervise(plan, jobs, Some(starter)) {
            Ok(status) => Ok(status),
            Err(Failure::Error(_, error)) => Err(error),
            Err(Failure::Signal(signal)) => Ok(128 + signal as i32),
        }
    })?;
    Ok(0)
}

/// Supervises the session. Tells `starter` when it runs.
fn supervise(
    plan: &Plan,
    mut jobs: Vec<Job>,
    starter: Option<&mut Starter>,
) -> Result<i32, Failure> {
    let signals = Signals::block()?;
    let panel = panel_for(plan, &jobs);
    if let Ok(panel) = &panel {
        for job in &mut jobs {
            job.panel_address = Some(PanelAddress {
                panel: panel.id(),
                place: new_place()?,
            });
        }
    }
    Supervisor::run(plan, jobs, &signals, panel, starter)
}

/// The panel, or why there is none.
fn panel_for(plan: &Plan, jobs: &[Job]) -> Result<Panel, String> {
    if !plan.panel {
        return Err("it is switched off".into());
    }
    if !jobs
        .iter()
        .any(|job| matches!(job.target, LinkTarget::Vnl(_)))
    {
        return Err(String::new());
    }
    Panel::acquire().map_err(|error| without_panel(&error))
}

/// Says why there is no panel.
fn without_panel(error: &Error) -> String {
    log::info!("no panel, frames go through user space: {error}");
    error.to_string()
}
