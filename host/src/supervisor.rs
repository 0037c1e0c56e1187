//! The supervisor: the process that the user started, which stays until the command ends.
//!
//! It forks the namespace child and a worker for each interface. When the links are open it has the
//! interfaces made, on the [`panel`](crate::panel) where the link wants that and there is one, else as taps by the namespace child;
//! it gives each worker its side of the link, and when all links have settled tells the child to run the command.
//! From then on it sits in a poll loop over signals and the workers' channels, and carries out the workers' orders on the panel. It
//! holds the interfaces: a worker that dies costs a link its carrier, and is started again
//! after a delay that doubles from `FIRST_DELAY` to `LAST_DELAY`. The loop ends with the command; closing the
//! channels then tells the workers to clean up and go.
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
use vdens_plugin_api::Ticket;
use vdens_plugin_api::tap::Tap;

use crate::control::{Channel, Message};
use crate::error::{EXIT_FAILURE, Error, ErrorKind, Result, system};
use crate::namespace::{self, Plan};
use crate::panel::{Order, Panel};
use crate::process::{exit_child, fork_child};
use crate::signals::Signals;
use crate::vnls::End;
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

/// The supervisor's hold on an interface.
enum Side {
    Tap(OwnedFd),
    /// A port of the panel, by its place.
    Port(String),
}

/// One interface's link.
struct Link {
    job: Job,
    side: Option<Side>,
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
    panel: Option<Panel>,
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
    let panel = panel_for(plan, &jobs);
    let parent = getpid();
    let (channel, theirs) = Channel::pair()?;
    let Some(command) = fork_child()? else {
        drop(channel);
        exit_child(|| namespace::run(plan, panel.as_ref(), &theirs, &signals, parent));
    };
    drop(theirs);
    let links = jobs.into_iter().enumerate().map(|(number, mut job)| {
        job.ticket = panel.as_ref().map(|panel| Ticket {
            panel: panel.id(),
            place: format!("{parent}n{number}"),
        });
        Link::new(job)
    });
    let mut supervisor = Supervisor {
        links: links.collect(),
        signals,
        panel,
        command,
    };
    let outcome = supervisor.session(channel);
    supervisor.end();
    outcome
}

/// The panel, if it is wanted and there could be a link for it.
fn panel_for(plan: &Plan, jobs: &[Job]) -> Option<Panel> {
    if !plan.panel || !jobs.iter().any(|job| matches!(job.end, End::Vnl(_))) {
        return None;
    }
    Panel::acquire()
        .inspect_err(|error| log::info!("no panel, frames go through user space: {error}"))
        .ok()
}

impl Supervisor {
    /// Everything between the first fork and the command's end.
    fn session(&mut self, channel: Channel) -> Result<i32, Failure> {
        for index in 0..self.links.len() {
            self.start_worker(index)?;
        }
        let namespace = self.await_ready(&channel)?.pop();
        for index in 0..self.links.len() {
            if self.await_open(index)? {
                self.add_port(index, namespace.as_ref());
            }
        }
        drop(namespace);
        let is_tap = |link: &Link| link.side.is_none();
        let taps = self.links.iter().map(is_tap).collect();
        channel.send(&Message::Interfaces(taps), &[])?;
        let mut taps = self.await_ready(&channel)?.into_iter();
        for link in &mut self.links {
            if link.side.is_none() {
                let tap = taps.next();
                let tap =
                    tap.ok_or_else(|| Error::closed("the namespace child lost interfaces"))?;
                link.side = Some(Side::Tap(tap));
            }
            link.give_side()?;
        }
        for index in 0..self.links.len() {
            self.await_settled(index)?;
        }
        channel.send(&Message::Go, &[])?;
        // The channel closes when the command is executed; a message says that it could not be.
        if let Some((Message::Failed(status, error), _)) = channel.receive()? {
            return Err(Failure::Error(status, error));
        }
        drop(channel);
        self.watch()
    }

    /// Waits until a worker's link is open, and returns whether it wants the panel.
    fn await_open(&self, index: usize) -> Result<bool, Failure> {
        match self.await_message(self.worker(index)?)? {
            (Message::Open(panel), _) => Ok(panel),
            _ => Err(died()),
        }
    }

    /// Waits until a worker's link has settled, and carries out its orders meanwhile.
    fn await_settled(&self, index: usize) -> Result<(), Failure> {
        let channel = self.worker(index)?;
        loop {
            match self.await_message(channel)? {
                (Message::Ready, _) => return Ok(()),
                (Message::Order(order), _) => self.obey(channel, &order)?,
                _ => return Err(died()),
            }
        }
    }

    fn worker(&self, index: usize) -> Result<&Channel, Failure> {
        let worker = self.links[index].worker.as_ref().ok_or_else(died)?;
        Ok(&worker.channel)
    }

    /// Makes an interface on the panel; if that fails, a tap will do.
    fn add_port(&mut self, index: usize, namespace: Option<&OwnedFd>) {
        let link = &mut self.links[index];
        let (Some(panel), Some(ticket)) = (&self.panel, &link.job.ticket) else {
            return;
        };
        let order = Order::AddPort(ticket.place.clone(), link.job.interface.clone());
        match panel.carry_out(&order, namespace.map(AsFd::as_fd)) {
            Ok(_) => link.side = Some(Side::Port(ticket.place.clone())),
            Err(error) => log::info!("{}: not on the panel: {error}", link.job.interface),
        }
    }

    /// Carries out a worker's order and tells it how that went.
    fn obey(&self, channel: &Channel, order: &Order) -> Result<()> {
        let outcome = match &self.panel {
            Some(panel) => panel.carry_out(order, None),
            None => Err(Error::new(ErrorKind::Unsupported, "there is no panel")),
        };
        match outcome {
            Ok(tap) => {
                let fds: Vec<_> = tap.iter().map(AsFd::as_fd).collect();
                channel.send(&Message::Ready, &fds)
            }
            Err(error) => channel.send(&Message::Failed(EXIT_FAILURE, error), &[]),
        }
    }

    /// Waits until the namespace child is ready, and returns the descriptors it sends.
    fn await_ready(&self, channel: &Channel) -> Result<Vec<OwnedFd>, Failure> {
        match self.await_message(channel)? {
            (Message::Ready, fds) => Ok(fds),
            _ => Err(died()),
        }
    }

    /// Waits for a child's next message; a failure that it reports is one here.
    fn await_message(&self, channel: &Channel) -> Result<(Message, Vec<OwnedFd>), Failure> {
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
                    Some((Message::Failed(status, error), _)) => Err(Failure::Error(status, error)),
                    Some(message) => Ok(message),
                    None => Err(died()),
                };
            }
        }
    }

    /// The main loop: until the command ends.
    fn watch(&mut self) -> Result<i32, Failure> {
        loop {
            self.restart_due()?;
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let workers: Vec<usize> = (0..self.links.len())
                .filter(|index| self.links[*index].worker.is_some())
                .collect();
            let channels = self.links.iter().filter_map(|link| link.worker.as_ref());
            fds.extend(channels.map(|w| PollFd::new(w.channel.as_fd(), PollFlags::POLLIN)));
            wait(
                &mut fds,
                self.links.iter().filter_map(|link| link.restart).min(),
            )?;
            let heard = fds[1..].iter().map(|fd| fd.any() == Some(true));
            let heard: Vec<bool> = heard.collect();
            drop(fds);
            for (index, _) in workers.iter().zip(heard).filter(|(_, heard)| *heard) {
                self.hear(*index)?;
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

    /// Takes what a worker says: an order, or after a restart that its link is open, or why not.
    fn hear(&self, index: usize) -> Result<()> {
        let link = &self.links[index];
        let Some(worker) = &link.worker else {
            return Ok(());
        };
        match worker.channel.receive() {
            Ok(Some((Message::Order(order), _))) => self.obey(&worker.channel, &order),
            Ok(Some((Message::Open(_), _))) => link.give_side(),
            Ok(Some((Message::Failed(_, error), _))) => {
                log::warn!("{}: {error}", link.job.interface);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => {
                log::debug!("{error}");
                Ok(())
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
                link.lost_worker(status, self.panel.as_ref());
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
            exit_child(|| worker::run(&link.job, theirs, signals, parent));
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
    fn new(job: Job) -> Self {
        Self {
            job,
            side: None,
            worker: None,
            restart: None,
            delay: FIRST_DELAY,
        }
    }

    /// Tells the worker what its side of the link is.
    fn give_side(&self) -> Result<()> {
        let Some(Worker { channel, .. }) = &self.worker else {
            return Ok(());
        };
        match &self.side {
            Some(Side::Tap(tap)) => channel.send(&Message::Side(false), &[tap.as_fd()]),
            Some(Side::Port(_)) => channel.send(&Message::Side(true), &[]),
            None => Ok(()),
        }
    }

    fn lost_worker(&mut self, status: i32, panel: Option<&Panel>) {
        let lived = self.worker.take().map(|worker| worker.started.elapsed());
        if lived.is_some_and(|lived| lived >= STABLE) {
            self.delay = FIRST_DELAY;
        }
        let name = &self.job.interface;
        if status == worker::EXIT_NO_INTERFACE {
            log::warn!("{name}: the interface was deleted, its link is closed");
            return;
        }
        let no_carrier = match (&self.side, panel) {
            (Some(Side::Port(place)), Some(panel)) => panel
                .carry_out(&Order::Unplug(place.clone()), None)
                .map(drop),
            (Some(Side::Tap(tap)), _) => tap
                .try_clone()
                .map(|tap| Tap::from_fd(tap, name.clone()).set_carrier(false))
                .map_err(|error| Error::io("set the carrier", &error)),
            _ => Ok(()),
        };
        if let Err(error) = no_carrier {
            log::warn!("{name}: {error}");
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

fn died() -> Failure {
    Error::closed("a process of vdens died while starting").into()
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
