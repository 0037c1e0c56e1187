//! Orders on the panel for a process that plugins have entered, and that no supervisor stands
//! behind.
//!
//! Such a process cannot fork: a plugin may have started threads. So before it loads any it forks a
//! service, which has one thread and no plugin, and carries out the orders that come over a
//! channel. It takes the panel at the first order, and ends with the channel: when the [`Service`]
//! is dropped, or its process dies. Signals that are meant for the process as a whole it leaves to
//! that.

use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, setsid};

use super::{Orders, Panel, answer, nobody_keeps};
use crate::error::{EXIT_FAILURE, Result};
use crate::ipc::{Channel, Received, Reply, Request, malformed};
use crate::sys::child::{Child, end_all, exit_child};
use crate::sys::process::detach;
use crate::sys::signals;

/// How long it may take to carry out an order; then it hangs, and the plug goes on without the
/// panel. Longer than the registry's lock may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long it may take to end.
const FAREWELL: Duration = Duration::from_secs(2);

/// The service of this process.
#[derive(Debug)]
pub struct Service {
    orders: Orders,
    /// `None` once it has ended.
    process: Option<Child>,
}

impl Service {
    /// Starts it. For processes that no plugin has entered.
    ///
    /// # Errors
    /// There are too many processes or descriptors.
    pub fn start() -> Result<Self> {
        let (channel, theirs) = Channel::pair()?;
        let parent = getpid();
        let Some(process) = Child::fork()? else {
            drop(channel);
            exit_child(|| serve(&theirs, parent).map_or(EXIT_FAILURE, |()| 0));
        };
        Ok(Self {
            orders: Orders::over(channel, Some(PATIENCE)),
            process: Some(process),
        })
    }

    /// The way to it.
    pub fn orders(&self) -> Orders {
        self.orders
    }

    /// Reaps the process if it has ended. Call it at SIGCHLD.
    pub fn reap(&mut self) {
        self.process.take_if(|process| process.reap().is_some());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.orders.close();
        end_all(self.process.take(), FAREWELL);
    }
}

/// The life of the service.
fn serve(channel: &Channel<Reply, Request>, parent: Pid) -> Result<()> {
    let ignored = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
    ];
    ignored.into_iter().for_each(signals::ignore);
    // It must keep neither a terminal nor a pipe open. A group leader, which is none, could not
    // leave its session.
    let _ = setsid();
    detach()?;
    signals::follow_parent(parent)?;
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
                channel.send(&Reply::Failed(nobody_keeps()), &[])?;
            }
            Received::Malformed(why) => channel.send(&Reply::Failed(malformed(why)), &[])?,
            Received::Closed => return Ok(()),
        }
    }
}
