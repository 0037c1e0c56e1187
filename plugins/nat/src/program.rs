//! The program `vdens-nat`: which of its two parts it is.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use nix::sched::{CloneFlags, unshare};

use crate::gateway::Hold;
use crate::report::{Plugin, Probe, Report};
use crate::{gateway, proxy};

/// Runs the proxy, and tells the plugin why it ends.
fn start_proxy(task: &str) -> io::Result<()> {
    let task = serde_json::from_str(task)?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut plugin = Plugin::new(socket)?;
    proxy::run(&task, &mut plugin).or_else(|error| {
        let report = Report::of(&error);
        plugin.tell(&report).map(drop)
    })
}

/// Prints what this kernel has for a gateway, a line of JSON.
fn probe() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    let found = match gateway::rules::install("vde0", true) {
        Ok(Hold::None) => Probe::Lacks(gateway::rules::NO_HOLD.to_owned()),
        Ok(_) => Probe::Complete,
        Err(error) => Probe::CannotRun(error.to_string()),
    };
    println!("{}", serde_json::to_string(&found)?);
    Ok(())
}

/// What the program `vdens-nat` does with its arguments: it is the proxy or the gateway.
pub fn program(arguments: &[String]) -> ExitCode {
    // SAFETY: getauxval only reads what the kernel told this process at its start (getauxval(3)).
    let is_raised = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    if is_raised {
        eprintln!(
            "vdens-nat: it has more rights than its caller; it needs neither a setuid bit nor capabilities: chmod ug-s, setcap -r"
        );
        return ExitCode::from(125);
    }
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["proxy", task] => start_proxy(task),
        ["gateway", settings, socket] => serde_json::from_str(settings)
            .map_err(io::Error::from)
            .and_then(|settings| gateway::run(&settings, Path::new(socket))),
        ["probe"] => probe(),
        _ => {
            eprintln!("vdens-nat: started by the plugin nat; it is not to be run by hand");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vdens-nat: {error}");
            ExitCode::FAILURE
        }
    }
}
