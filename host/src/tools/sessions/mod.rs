//! What `vdectl` does with sessions: `ls`, `exec`, `enter`, `stop`, `wait` and `pid`.
//!
//! Their words are looked up by [`targets`](super::targets). `exec` and `enter` join the session
//! themselves ([`enter`](crate::namespace::enter)), so its supervisor has no part in them.

mod list;
mod stop;
mod wait;

use std::ffi::OsString;

use crate::cli::vdectl::sessions::{Exec, SessionTask};
use crate::error::Result;
use crate::lab::commands::exec;
use crate::output::{Text, report};
use crate::tools::console;
use crate::tools::targets::resolve_whole;

/// Does what the command line asks for. Returns the exit status.
///
/// # Errors
/// There is no such session, or it cannot be done.
pub fn run(task: &SessionTask, quiet: bool) -> Result<i32> {
    match task {
        SessionTask::Ls { json } => list::run(*json, quiet)?,
        SessionTask::Exec(Exec { name, command }) => return execute(name, command),
        SessionTask::Enter { name } => return enter(name),
        SessionTask::Stop(arguments) => stop::run(arguments, quiet)?,
        SessionTask::Wait(arguments) => wait::run(arguments)?,
        SessionTask::Pid { name } => {
            let mut text = Text::default();
            text.line(resolve_whole(name)?.namespace);
            text.print()?;
        }
    }
    Ok(0)
}

/// Opens the console of a lab's virtual machine, or starts the user's shell in a session.
fn enter(name: &str) -> Result<i32> {
    let target = resolve_whole(name)?;
    match exec::machine(&target.name) {
        Ok(Some(door)) => console::attend(&door).map(|()| 0),
        // It is a session, or a node without a machine.
        Ok(None) | Err(_) => execute(name, &[]),
    }
}

/// Executes a command in a session; the user's shell if it is empty.
fn execute(name: &str, command: &[OsString]) -> Result<i32> {
    let door = resolve_whole(name)?.door()?;
    Ok(door.execute(command).unwrap_or_else(|(status, error)| {
        report("vdectl", error);
        status
    }))
}
