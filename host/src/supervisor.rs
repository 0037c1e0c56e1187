//! The supervisor: the process that the user started, which stays until the command ends.
//!
//! It forks the namespace child, gets the interfaces' descriptors from it, forks a worker for each
//! interface, and when all links are open tells the child to run the command. From then on it sits in a
//! poll loop over signals and the workers' channels. It holds the interfaces: a worker that
//! dies costs a link its carrier, and is started again after a delay that doubles from
//! [`FIRST_DELAY`] to [`LAST_DELAY`]. The loop ends with the command; closing the channels then tells the
//! workers to clean up and go.
//!
//! It is single-threaded and loads no plugin: forking stays safe throughout. Each child first
//! drops what it inherited and does not need, so that a closed channel is seen by the one at its other end.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use vdens_plugin_api::tap::Tap;

use crate::control::{Channel, Message};
use crate::error::{EXIT_FAILURE, Error, Result, system};
use crate::namespace::{self, Plan};
use crate::process::{exit_child, fork_child};
use crate::signals::Signals;
use crate::worker::{self, Job};

/// How long after its death a worker is started again, the first time.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest such delay.
const LAST_DELAY: Duration = Duration::from_secs(5);
/// How long a worker must have lived for the delay to start anew.
const STABLE: Duration = Duration::from_secs(10);
/// How long children may take to clean up at the end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no exit status of the command to pass on.
#[derive(Debug)]
pub enum Failure {
    /// It failed: the exit status, and what to tell the user.
    Error(i32, Error),
    /// A signal came before the command ran.
    Signal(Signal),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(EXIT_FAILURE, error)
    }
}

/// One interface's link.
struct Link {
    job: Job,
    tap: OwnedFd,
    worker: Option<Worker>,
    /// When to start a worker, if there is none; `None` if never.
    restart: Option<Instant>,
    delay: Duration,
}

struct Worker {
    pid: Pid,
    channel: Channel,
    started: Instant,
}

struct Supervisor {
    signals: Signals,
    command: Pid,
    links: Vec<Link>,
}

/// Runs the command in a namespace as planned, with one link a job, in the order of the plan's
/// interfaces. Returns the command's exit status, 128 + n if signal n ended it.
///
/// # Errors
/// The namespace, a link or the command could not be had.
pub fn run(plan: &Plan, jobs: Vec<Job>) -> Result<i32, Failure> {
    let signals = Signals::block()?;
    let parent = getpid();
    let (channel, theirs) = Channel::pair()?;
    let Some(command) = fork_child()? else {
        drop(channel);
        exit_child(|| namespace::run(plan, &theirs, &signals, parent));
    };
    drop(theirs);
    let mut supervisor = Supervisor {
        signals,
        command,
        links: Vec::new(),
    };
    let outcome = supervisor.session(channel, jobs);
    supervisor.end();
    outcome
}

impl Supervisor {
    /// Everything between the first fork and the command's end.
    fn session(&mut self, channel: Channel, jobs: Vec<Job>) -> Result<i32, Failure> {
        let taps = self.await_ready(&channel)?;
        if taps.len() != jobs.len() {
            return Err(Error::closed("the namespace child lost interfaces").into());
        }
        let links = jobs.into_iter().zip(taps).map(|(job, tap)| Link {
            job,
            tap,
            worker: None,
            restart: None,
            delay: FIRST_DELAY,
        });
        self.links = links.collect();
        for index in 0..self.links.len() {
            self.start_worker(index)?;
        }
        for link in &self.links {
            if let Some(worker) = &link.worker {
                self.await_ready(&worker.channel)?;
            }
        }
        channel.send(&Message::Go, &[])?;
        // The channel closes when the command is executed; a message says that it could not be.
        if let Some((Message::Failed(status, error), _)) = channel.receive()? {
            return Err(Failure::Error(status, error));
        }
        drop(channel);
        self.watch()
    }

    /// Waits until a child is ready, and returns the descriptors it sends.
    fn await_ready(&self, channel: &Channel) -> Result<Vec<OwnedFd>, Failure> {
        loop {
            let mut fds = [&self.signals.as_fd(), &channel.as_fd()]
                .map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
            wait(&mut fds, None)?;
            let heard = fds[1].any() == Some(true);
            match self.signals.next() {
                None | Some(Signal::SIGCHLD) => {}
                Some(signal) => return Err(Failure::Signal(signal)),
            }
            if heard {
                return match channel.receive()? {
                    Some((Message::Ready, fds)) => Ok(fds),
                    Some((Message::Failed(status, error), _)) => Err(Failure::Error(status, error)),
                    _ => Err(Error::closed("a process of vdens died while starting").into()),
                };
            }
        }
    }

    /// The main loop: until the command ends.
    fn watch(&mut self) -> Result<i32, Failure> {
        loop {
            self.restart_due()?;
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let workers = self.links.iter().filter_map(|link| link.worker.as_ref());
            let channels: Vec<&Channel> = workers.map(|worker| &worker.channel).collect();
            fds.extend(
                channels
                    .iter()
                    .map(|c| PollFd::new(c.as_fd(), PollFlags::POLLIN)),
            );
            wait(
                &mut fds,
                self.links.iter().filter_map(|link| link.restart).min(),
            )?;
            for (channel, fd) in channels.iter().zip(&fds[1..]) {
                if fd.any() == Some(true) {
                    hear(channel);
                }
            }
            while let Some(signal) = self.signals.next() {
                match signal {
                    Signal::SIGTERM | Signal::SIGHUP => self.forward(signal),
                    // The rest comes from the terminal, and reaches the command by itself.
                    _ => {}
                }
            }
            if let Some(status) = self.reap() {
                return Ok(status);
            }
        }
    }

    fn forward(&self, signal: Signal) {
        if let Err(errno) = kill(self.command, signal) {
            log::debug!("cannot pass {signal} on to the command: {errno}");
        }
    }

    /// Collects children that have ended; the command's exit status if it is among them.
    fn reap(&mut self) -> Option<i32> {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, status)) => (pid, status),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return None,
                Ok(_) => continue,
            };
            if pid == self.command {
                return Some(status);
            }
            let is_it = |worker: &Worker| worker.pid == pid;
            let mut links = self.links.iter_mut();
            if let Some(link) = links.find(|link| link.worker.as_ref().is_some_and(is_it)) {
                link.lost_worker(status);
            }
        }
    }

    fn restart_due(&mut self) -> Result<()> {
        let now = Instant::now();
        for index in 0..self.links.len() {
            if self.links[index].restart.is_some_and(|due| due <= now) {
                self.start_worker(index)?;
            }
        }
        Ok(())
    }

    fn start_worker(&mut self, index: usize) -> Result<()> {
        let parent = getpid();
        let (channel, theirs) = Channel::pair()?;
        let Some(pid) = fork_child()? else {
            drop(channel);
            let link = self.links.swap_remove(index);
            self.links.clear();
            let signals = &self.signals;
            exit_child(|| worker::run(&link.job, link.tap, &theirs, signals, parent));
        };
        let link = &mut self.links[index];
        link.restart = None;
        link.worker = Some(Worker {
            pid,
            channel,
            started: Instant::now(),
        });
        log::info!(
            "{}: {} is served by process {pid}",
            link.job.interface,
            link.job.end
        );
        Ok(())
    }

    /// Ends what is still there: a namespace child that never became the command, and the workers.
    fn end(&mut self) {
        let mut left: Vec<Pid> = self
            .links
            .drain(..)
            .filter_map(|link| Some(link.worker?.pid))
            .chain([self.command])
            .collect();
        let deadline = Instant::now() + PATIENCE;
        let mut killed = false;
        loop {
            left.retain(|pid| {
                waitpid(*pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive)
            });
            if left.is_empty() {
                return;
            }
            if Instant::now() < deadline {
                sleep(Duration::from_millis(1));
            } else if killed {
                log::error!("processes {left:?} cannot be ended");
                return;
            } else {
                for pid in &left {
                    // One that has just ended is no failure.
                    let _ = kill(*pid, Signal::SIGKILL);
                }
                killed = true;
                sleep(Duration::from_millis(100));
            }
        }
    }
}

impl Link {
    fn lost_worker(&mut self, status: i32) {
        let lived = self.worker.take().map(|worker| worker.started.elapsed());
        if lived.is_some_and(|lived| lived >= STABLE) {
            self.delay = FIRST_DELAY;
        }
        let name = &self.job.interface;
        if status == worker::EXIT_NO_INTERFACE {
            log::warn!("{name}: the interface was deleted, its link is closed");
            return;
        }
        if let Ok(tap) = self.tap.try_clone() {
            Tap::from_fd(tap, name.clone()).set_carrier(false);
        }
        log::warn!(
            "{name} ({}): the worker ended with status {status}; starting it again in {:?}",
            self.job.end,
            self.delay
        );
        self.restart = Some(Instant::now() + self.delay);
        self.delay = (self.delay * 2).min(LAST_DELAY);
    }
}

/// Takes what a worker says after the start: that it is ready again, or why not.
fn hear(channel: &Channel) {
    match channel.receive() {
        Ok(Some((Message::Failed(_, error), _))) => log::warn!("{error}"),
        Ok(_) => {}
        Err(error) => log::debug!("{error}"),
    }
}

/// Polls, until `deadline` if there is one.
fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<()> {
    let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: a timeout of 0 just before the deadline would spin.
        let left = left + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(system("wait for events")(errno)),
    }
}
