//! The child processes of `vde_switch`: a plug each.
//!
//! A child says over a channel that its ends are open, or why they cannot be. After that it goes on
//! until it is asked to end, by SIGTERM, which also comes when its parent dies. A child that ends
//! by itself takes the program with it.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid, setpgid};

use super::{EXIT_FAILURE, PROGRAM};
use crate::cli::VdePlug;
use crate::cli::config::Config;
use crate::cli::vde_switch::VdeSwitch;
use crate::error::{Error, Result, system};
use crate::ipc::{Channel, Nothing, Startup};
use crate::plug;
use crate::plugins::host_services::InstalledPlugins;
use crate::sys::child::{CLEANUP_LIMIT, Child, end_all, exit_child};
use crate::sys::process::detach;
use crate::worker::reconnecting::Wait;

/// How long the ends of a plug may take to open. It is a local matter of milliseconds, unless the
/// kernel or a file system is stuck.
const OPEN_LIMIT: Duration = Duration::from_secs(30);

/// A plug in a child.
struct Part {
    /// What messages call it.
    name: String,
    process: Child,
}

/// The children. Dropping them ends them.
pub(super) struct Parts {
    parts: Vec<Part>,
    options: VdePlug,
    plugins: InstalledPlugins,
    uses_panel: bool,
    is_daemon: bool,
}

impl Parts {
    /// No children yet, which will have these options.
    ///
    /// # Errors
    /// A directory of plugins is not absolute.
    pub(super) fn new(cli: &VdeSwitch, config: &Config) -> Result<Self> {
        let mut options = VdePlug {
            common: cli.common(),
            ..VdePlug::default()
        };
        options.links.no_panel = cli.no_panel;
        options.links.no_sandbox = cli.no_sandbox;
        options.end.descr = Some(PROGRAM.into());
        // What cannot be opened at once is an error, and its hint is not --wait, which is no option
        // of this program.
        options.links.wait = Some(Wait::AtMost(Duration::ZERO));
        Ok(Self {
            parts: Vec::new(),
            plugins: options.links.plugins(&options.common, config)?,
            uses_panel: options.links.uses_panel(config),
            options,
            is_daemon: cli.daemon,
        })
    }

    /// Starts a plug between two VNLs, and waits until both are open. The child calls `forget`
    /// first. Returns its process.
    ///
    /// # Errors
    /// An end cannot be opened.
    pub(super) fn start(&mut self, vnls: [String; 2], forget: &mut dyn FnMut()) -> Result<u32> {
        let name = vnls.join(" ");
        let (channel, theirs) = Channel::<Nothing, Startup>::pair()?;
        let parent = getpid();
        let Some(process) = Child::fork()? else {
            drop(channel);
            forget();
            exit_child(|| self.live(parent, vnls, &theirs));
        };
        drop(theirs);
        let pid = process.pid().as_raw().cast_unsigned();
        self.parts.push(Part { name, process });
        match channel.receive_within(OPEN_LIMIT)?.well_formed()? {
            Some((Startup::Open, _)) => Ok(pid),
            Some((Startup::Failed(error), _)) => Err(error),
            None => Err(Error::closed("the switch has died while starting")),
        }
    }

    /// A child's life. Returns its exit status.
    fn live(&self, parent: Pid, vnls: [String; 2], channel: &Channel<Startup, Nothing>) -> i32 {
        let is_open = Cell::new(false);
        let ready = || {
            if self.is_daemon {
                detach()?;
            }
            is_open.set(true);
            channel.send(&Startup::Open, &[])
        };
        let outcome = follow(parent).and_then(|()| {
            let options = (&self.options, self.plugins.clone());
            plug::run_for(PROGRAM, options, self.uses_panel, vnls, ready)
        });
        outcome.unwrap_or_else(|error| {
            match is_open.get() {
                true => log::error!("{error}"),
                // If the parent is gone, nobody needs to know.
                false => _ = channel.send(&Startup::Failed(error), &[]),
            }
            EXIT_FAILURE
        })
    }

    /// What becomes readable when a child ends.
    pub(super) fn poll_fds(&self) -> impl Iterator<Item = PollFd<'_>> {
        let processes = self.parts.iter().map(|part| &part.process);
        processes.map(|process| PollFd::new(process.as_fd(), PollFlags::POLLIN))
    }

    /// Reaps children that have ended.
    ///
    /// # Errors
    /// One has.
    pub(super) fn check(&mut self) -> Result<()> {
        for part in &mut self.parts {
            if let Some(exit) = part.process.reap() {
                let message = format!("{} has ended: {exit}", part.name);
                return Err(Error::closed(message).hint("the log may say why"));
            }
        }
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        for part in &self.parts {
            // One that has ended needs no signal.
            let _ = part.process.signal(Signal::SIGTERM);
        }
        let parts = self.parts.drain(..);
        end_all(parts.map(|part| part.process), CLEANUP_LIMIT);
    }
}

/// Makes this process end with its parent, and no signal of the terminal reach it before.
fn follow(parent: Pid) -> Result<()> {
    let this = Pid::from_raw(0);
    setpgid(this, this).map_err(system("make a process group"))?;
    set_pdeathsig(Signal::SIGTERM).map_err(system("ask for a signal at the parent's death"))?;
    match getppid() == parent {
        true => Ok(()),
        false => Err(Error::closed("the parent process is gone")),
    }
}
