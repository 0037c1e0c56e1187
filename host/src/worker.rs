//! A link worker: the process in which one VNL's plugin lives.
//!
//! It opens the VNL, says so over its channel to the supervisor, is told what its own side of the link is
//! (a tap in the namespace, or a port of the panel), and pumps frames until the channel closes. A link that breaks costs
//! the interface its carrier; the VNL is opened again every `RETRY` until the far end is back. Whatever
//! else happens ends the process, and the supervisor starts another.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Pid, setsid};
use vdens_plugin_api::stream::CommandStream;
use vdens_plugin_api::tap::Tap;
use vdens_plugin_api::{Link, OpenOptions, Port, State, Ticket};

use crate::control::{Channel, Message};
use crate::error::{EXIT_FAILURE, Result, system};
use crate::loader::SearchPath;
use crate::opener::Opener;
use crate::panel::PanelPort;
use crate::pump::{Pump, Stop};
use crate::signals::{self, Signals};
use crate::vnls::End;

/// How long after a link broke it is opened again.
const RETRY: Duration = Duration::from_millis(250);

/// The exit status of a worker whose interface was deleted: starting another is of no use.
pub const EXIT_NO_INTERFACE: i32 = 3;

/// A worker's own side of its link.
enum Side {
    Tap(Tap),
    Port(PanelPort),
}

impl Side {
    fn as_link(&mut self) -> &mut dyn Link {
        match self {
            Self::Tap(tap) => tap,
            Self::Port(port) => port,
        }
    }
}

/// What a worker is to do.
#[derive(Clone, Debug)]
pub struct Job {
    /// The interface's name.
    pub interface: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// What it is to be plugged into.
    pub end: End,
    /// Where plugins are found.
    pub path: SearchPath,
    /// The interface's place on the panel, if there is one.
    pub ticket: Option<Ticket>,
}

/// The life of a worker; returns its exit status.
pub fn run(job: &Job, channel: Channel, signals: &Signals, supervisor: Pid) -> i32 {
    let channel: &'static Channel = Box::leak(Box::new(channel));
    // The terminal's signals are for the command: a session of its own keeps them away.
    let _ = setsid();
    let ready = signals
        .restore()
        .and_then(|()| signals::follow_parent(supervisor));
    let opener = Opener::new(
        job.path.clone(),
        Port {
            interface: job.interface.clone(),
            mtu: job.mtu,
            ticket: job.ticket.clone(),
        },
        Some(channel),
    );
    let link = match ready.and_then(|()| open(job, opener)) {
        Ok(link) => link,
        Err(error) => {
            // If the supervisor is gone there is nobody to tell.
            let _ = channel.send(&Message::Failed(EXIT_FAILURE, error), &[]);
            return EXIT_FAILURE;
        }
    };
    let side = side(job, link.as_ref(), channel);
    let served = side.and_then(|side| match side {
        Some(side) => serve(job, opener, link, side, channel),
        None => Ok(0),
    });
    served.unwrap_or_else(|error| {
        log::error!("{}: {error}", job.interface);
        EXIT_FAILURE
    })
}

fn open(job: &Job, opener: Opener) -> Result<Box<dyn Link>> {
    let options = OpenOptions {
        description: format!("vdens {}", job.interface),
        ..OpenOptions::default()
    };
    match &job.end {
        End::Vnl(vnl) => opener.open(vnl, &options),
        End::Command(command) => Ok(Box::new(CommandStream::shell(command)?)),
    }
}

/// Asks the supervisor for this side of the link; `None` if the session is over.
fn side(job: &Job, link: &dyn Link, channel: &'static Channel) -> Result<Option<Side>> {
    let wants_panel = job.ticket.is_some() && link.wants_panel();
    channel.send(&Message::Open(wants_panel), &[])?;
    let Some((Message::Side(is_port), mut fds)) = channel.receive()? else {
        return Ok(None);
    };
    // A worker that replaces another gets what the interface is, whatever its link would like best.
    Ok(match (is_port, &job.ticket, fds.pop()) {
        (true, Some(ticket), _) => Some(Side::Port(PanelPort::new(ticket, channel)?)),
        (false, _, Some(tap)) => Some(Side::Tap(Tap::from_fd(tap, job.interface.clone()))),
        _ => None,
    })
}

/// Serves the interface until the channel closes or the interface is gone.
fn serve(
    job: &Job,
    opener: Opener,
    link: Box<dyn Link>,
    mut side: Side,
    channel: &Channel,
) -> Result<i32> {
    let mut open_link = Some(link);
    let mut told = false;
    loop {
        if let Some(mut link) = open_link.take() {
            let mut pump = Pump::new(side.as_link(), link.as_mut());
            let stop = match pump.settle() {
                Ok(()) => {
                    if !std::mem::replace(&mut told, true) {
                        channel.send(&Message::Ready, &[])?;
                    }
                    pump.run(channel)?
                }
                Err((side, error)) => Stop::Broken(side, error),
            };
            match stop {
                Stop::Control => return Ok(0),
                Stop::Broken(0, error) => {
                    log::warn!("{}: {error}", job.interface);
                    return Ok(EXIT_NO_INTERFACE);
                }
                Stop::Broken(_, error) => {
                    log::warn!("{} ({}): {error}; trying again", job.interface, job.end);
                }
            }
        }
        side.as_link().other_side(State::DOWN);
        if closed_within(channel, RETRY)? {
            return Ok(0);
        }
        match open(job, opener) {
            Ok(link) => {
                log::warn!("{} ({}): the link is back", job.interface, job.end);
                open_link = Some(link);
            }
            Err(error) => log::debug!("{} ({}): {error}", job.interface, job.end),
        }
    }
}

/// Waits for `time`, or until the supervisor closes the channel.
fn closed_within(channel: &Channel, time: Duration) -> Result<bool> {
    let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(system("wait for the supervisor")(errno)),
    }
}
