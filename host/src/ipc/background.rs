//! Starting a process that stays in the background.
//!
//! A child is that process. The process that the user has started waits until the child says over a
//! channel that it runs, or why it cannot, so that the exit status is true. Until then the child
//! ends with it.

use std::process;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::setsid;

use super::{Channel, Nothing, Startup};
use crate::error::{EXIT_FAILURE, Error, Result, system};
use crate::sys::child::Child;
use crate::sys::process::detach;

/// How long a process in the background lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is ended.
    Own,
    /// As long as the process that starts it, at most.
    Caller,
}

/// What the child tells the process that the user has started, once.
#[derive(Debug)]
pub(crate) struct Starter(Option<Channel<Startup, Nothing>>);

impl Starter {
    /// Says that the child runs, and leaves the terminal.
    ///
    /// # Errors
    /// The system has no /dev/null or no memory.
    pub(crate) fn announce(&mut self, lifetime: Lifetime) -> Result<()> {
        let Some(channel) = self.0.take() else {
            return Ok(());
        };
        detach()?;
        if lifetime == Lifetime::Own {
            set_pdeathsig(None).map_err(system("leave the parent"))?;
        }
        channel.send(&Startup::Open, &[])
    }

    /// Lets go, in a child of the child.
    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }
}

/// Has a child live `life`, and returns when that has announced itself. The child exits with what
/// `life` returns. The calling process must have one thread and no plugin.
///
/// # Errors
/// `life` fails before that, or there are too many processes.
pub(crate) fn start(life: impl FnOnce(&mut Starter) -> Result<i32>) -> Result<()> {
    let (channel, theirs) = Channel::<Nothing, Startup>::pair()?;
    if Child::fork()?.is_some() {
        drop(theirs);
        return match channel.receive()?.well_formed()? {
            Some((Startup::Open, _)) => Ok(()),
            Some((Startup::Failed(error), _)) => Err(error),
            None => Err(Error::closed("the background process died while starting")),
        };
    }
    drop(channel);
    let mut starter = Starter(Some(theirs));
    let outcome = setsid()
        .map_err(system("start a session"))
        .and_then(|_| {
            set_pdeathsig(Signal::SIGTERM).map_err(system("ask for a signal at the parent's death"))
        })
        .and_then(|()| life(&mut starter));
    process::exit(match (outcome, starter.0) {
        (Ok(status), _) => status,
        (Err(error), Some(channel)) => {
            // If the process that the user has started is gone, nobody needs to know.
            let _ = channel.send(&Startup::Failed(error), &[]);
            EXIT_FAILURE
        }
        (Err(error), None) => {
            log::error!("{error}");
            EXIT_FAILURE
        }
    })
}
