//! Running commands in nodes, from outside.

use std::ffi::{CString, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, execvp};
use vdens_plugin_kit::process::open_pidfd;

use crate::error::{EXIT_FAILURE, EXIT_NOT_FOUND, EXIT_NOT_RUNNABLE, Error, Result, system};
use crate::namespace::keep_capabilities;
use crate::output::complain;
use crate::sys::child::{Child, Exit, exit_child};

/// Where a command's standard streams go; those of this process where there is none.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub(super) input: Option<OwnedFd>,
    pub(super) output: Option<OwnedFd>,
    pub(super) errors: Option<OwnedFd>,
}

/// Starts a command in the namespaces of the process `pid`, a node's init. What is returned has the
/// command's exit status, and ends after it.
///
/// # Errors
/// The node is gone, or there are too many processes.
pub(super) fn start(pid: u32, words: &[OsString], streams: Streams) -> Result<Child> {
    let words = words
        .iter()
        .map(|word| CString::new(word.clone().into_vec()));
    let words: Vec<CString> = words
        .collect::<Result<_, _>>()
        .map_err(|_| Error::usage("an argument has a NUL byte in it"))?;
    let node = open_pidfd(pid).map_err(|error| Error::io("enter the node", &error))?;
    match Child::fork()? {
        Some(child) => Ok(child),
        None => exit_child(|| {
            enter(&node, streams)
                .and_then(|()| run(&words))
                .unwrap_or_else(|error| {
                    complain(error);
                    EXIT_FAILURE
                })
        }),
    }
}

/// Joins the user and network namespace of the process `pid`.
///
/// # Errors
/// The node is gone.
pub(super) fn enter_network(pid: u32) -> Result<()> {
    let node = open_pidfd(pid).map_err(|error| Error::io("enter the node", &error))?;
    let namespaces = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET;
    setns(node, namespaces).map_err(system("enter the node"))
}

fn enter(node: &OwnedFd, streams: Streams) -> Result<()> {
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID;
    let directory = std::env::current_dir();
    setns(node, namespaces).map_err(system("enter the node"))?;
    // A new mount namespace starts at its root.
    if let Ok(directory) = directory {
        let _ = std::env::set_current_dir(directory);
    }
    let redirected = [
        streams.input.map(dup2_stdin),
        streams.output.map(dup2_stdout),
        streams.errors.map(dup2_stderr),
    ];
    let mut redirected = redirected.into_iter().flatten();
    redirected
        .try_for_each(|outcome| outcome)
        .map_err(system("redirect a command's output"))
}

/// Prepares a process in a node to execute the command: it ends with its parent.
fn ready() -> Result<()> {
    keep_capabilities(true)?;
    set_pdeathsig(Signal::SIGKILL).map_err(system("ask for a signal at the parent's death"))
}

/// Runs the command in a child, which is in the PID namespace that this process has entered.
/// Returns its exit status.
fn run(words: &[CString]) -> Result<i32> {
    match Child::fork()? {
        Some(mut child) => Ok(child.wait(None).map_or(EXIT_FAILURE, Exit::code)),
        None => exit_child(|| match ready() {
            Ok(()) => {
                let Err(errno) = execvp(&words[0], words);
                complain(system(format_args!("run '{}'", words[0].to_string_lossy()))(errno));
                match errno {
                    nix::errno::Errno::ENOENT => EXIT_NOT_FOUND,
                    _ => EXIT_NOT_RUNNABLE,
                }
            }
            Err(error) => {
                complain(error);
                EXIT_FAILURE
            }
        }),
    }
}
