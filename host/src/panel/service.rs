//! The panel service: executes orders for a process that loads plugins and has no supervisor
//! (`vde_plug`).
//!
//! Such a process cannot fork, because a plugin may have started threads. So it forks the service
//! before it loads a plugin. The service has one thread and no plugin. It executes the orders that
//! come over a channel, and takes over the panel when the first one comes. It ends when the channel
//! closes: the [`Service`] was dropped, or the process died. It ignores the signals that end the
//! process, which reach the whole process group. Nothing kills it when the process dies, because it
//! deletes then what the process has left on the panel; each of its waits has a limit.
//!
//! The process may turn on it, should a plugin's parser be broken. So the service confines itself
//! to the system calls of its orders. Files are not confined: Landlock would keep it from taking
//! the panel's namespaces over from other processes.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::setsid;
use vdens_sandbox::{Calls, Confinement, Group};

use super::{Panel, PanelClient, answer, no_successor};
use crate::error::{EXIT_FAILURE, Result};
use crate::ipc::{Channel, Received, Reply, Request, malformed};
use crate::sandbox;
use crate::sys::child::{Child, end_all, exit_child};
use crate::sys::process::detach;
use crate::sys::signals;

/// How long the service may take to execute an order. After that the process goes on without the
/// panel. Longer than the wait for the registry's lock.
const EXECUTION_LIMIT: Duration = Duration::from_secs(15);

/// How long the service may take to end before it is killed.
const END_LIMIT: Duration = Duration::from_secs(2);

/// This process's panel service.
#[derive(Debug)]
pub(crate) struct Service {
    client: PanelClient,
    /// `None` once it has ended.
    process: Option<Child>,
}

impl Service {
    /// Starts the service, confined if that is wanted. The calling process must not have loaded a
    /// plugin.
    ///
    /// # Errors
    /// There are too many processes or descriptors.
    pub(crate) fn start(is_confined: bool) -> Result<Self> {
        let (channel, theirs) = Channel::pair()?;
        let Some(process) = Child::fork()? else {
            drop(channel);
            exit_child(|| serve(&theirs, is_confined).map_or(EXIT_FAILURE, |()| 0));
        };
        Ok(Self {
            client: PanelClient::over(channel, Some(EXECUTION_LIMIT)),
            process: Some(process),
        })
    }

    /// Sends orders to it.
    pub(crate) fn client(&self) -> PanelClient {
        self.client
    }

    /// Reaps the process if it has ended. Call it at SIGCHLD.
    pub(crate) fn reap(&mut self) {
        self.process.take_if(|process| process.reap().is_some());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.client.close();
        end_all(self.process.take(), END_LIMIT);
    }
}

/// What the service does: it forks children that enter the panel's namespaces, configures the panel
/// by netlink, and uses the registry's files.
fn confinement() -> Confinement {
    let groups = vec![
        Group::Runtime,
        Group::Loop,
        Group::Streams,
        Group::Sockets(&[libc::AF_INET, libc::AF_NETLINK]),
        Group::Read,
        Group::Files,
        Group::Processes,
        Group::Children,
    ];
    let more = vec![libc::SYS_setns, libc::SYS_unshare];
    Confinement {
        calls: Calls::Only { groups, more },
        files: None,
        network: true,
        signals: true,
    }
}

/// The service's main loop.
fn serve(channel: &Channel<Reply, Request>, is_confined: bool) -> Result<()> {
    let ignored = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
    ];
    ignored.into_iter().for_each(signals::ignore);
    // The service must keep neither a terminal nor a pipe open. It is not a group leader, so this
    // cannot fail.
    let _ = setsid();
    detach()?;
    if is_confined {
        sandbox::log_refusals("the panel service");
        if let Err(error) = confinement().enter() {
            log::info!("the panel service is not confined: {error}");
        }
    }
    let mut panel = None;
    loop {
        match channel.receive()? {
            Received::Message(Request::Execute(order), _) => {
                let held = match &mut panel {
                    Some(panel) => Ok(&*panel),
                    none => Panel::acquire().map(|acquired| &*none.insert(acquired)),
                };
                answer(held, channel, &order)?;
            }
            Received::Message(Request::StoreFd, _) => {
                channel.send(&Reply::Failed(no_successor()), &[])?;
            }
            Received::Malformed(why) => channel.send(&Reply::Failed(malformed(why)), &[])?,
            Received::Closed => return Ok(()),
        }
    }
}
