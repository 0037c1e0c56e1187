//! The supervisor: the process that the user started, which stays until the command ends.
//!
//! It forks the namespace child and a worker for each interface. When the links are open it has the
//! interfaces made, on the `panel` where the link wants that and there is one, else as taps by the namespace child;
//! it gives each worker its side of the link, and when all links have settled tells the child to run the command.
//! From then on it supervises: it carries out the workers' orders on the panel, asks them whether they are
//! there, and starts those that die again (see `link`). It holds the interfaces, so a worker that dies costs a
//! link its carrier and nothing else. The session ends with the command; closing the channels then tells the
//! workers to clean up and go.
//!
//! Where the system's limits have no room for a panel and the namespace, that is found out when the namespace is made; then
//! the session is started anew, without a panel.
//!
//! Everything happens in `turn`: one wait for signals, channels, the socket of `vdectl status` and the next
//! deadline, and what is to be done about them. Before the command runs whatever fails, and whatever takes too long, ends
//! the session; then nothing does.
//!
//! It is single-threaded and loads no plugin: forking stays safe throughout. Each child first
//! drops what it inherited and does not need, so that a closed channel is seen by the one at its other end.

mod link;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::unistd::getpid;
use vdens_plugin_kit::PanelAddress;

use crate::cli::vnls;
use crate::error::{EXIT_FAILURE, Error, ErrorKind, Result};
use crate::ipc::{
    Channel, FromNamespace, FromWorker, Order, Received, Reply, ReportReply, Request, ToNamespace,
    malformed,
};
use crate::namespace::{self, Plan};
use crate::panel::{self, Panel, new_place, port_index};
use crate::sys::child::{Child, end_all, exit_child, reap_strangers};
use crate::sys::process::{give_back_memory, wait};
use crate::sys::runtime;
use crate::sys::signals::Signals;
use crate::sys::user_namespace::is_crowded;
use crate::tools::status::server::Server;
use crate::tools::status::{self, Process};
use crate::worker::carrier::LinkWatch;
use crate::worker::reconnecting::Wait;
use crate::worker::{self, Job};
use link::{BEAT, Link, PATIENCE_AT_OPEN, Side, Stage, Worker};

/// How long children may take to clean up at the end.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a link may take to open, and again to settle, before the command runs.
const OPENING: Duration = BEAT.saturating_mul(PATIENCE_AT_OPEN);
/// How long workers may take to report.
const REPORTING: Duration = Duration::from_millis(500);

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

/// What a turn waits for.
#[derive(Clone, Copy)]
enum Source {
    Signals,
    Namespace,
    Control(usize),
    Orders(usize),
    Status,
}

struct Supervisor<'a> {
    plan: &'a Plan,
    signals: &'a Signals,
    panel: Option<Panel>,
    /// Why there is none.
    no_panel: String,
    /// Why there is no namespace, if that is because there is a panel.
    crowded: Option<Error>,
    command: Child,
    /// The namespace child's channel, until it becomes the command.
    namespace: Option<Channel<ToNamespace, FromNamespace>>,
    /// The network namespace that it has made, until it is used.
    network: Option<OwnedFd>,
    /// What it has sent when the interfaces were made, until it is used.
    interfaces: Option<Vec<OwnedFd>>,
    links: Vec<Link>,
    /// Whether the command was told to run.
    is_running: bool,
    /// When to ask the workers whether they are there.
    next_beat: Instant,
    started: SystemTime,
    status: Option<Server>,
    /// Until when reports are waited for, if somebody asks.
    reporting: Option<Instant>,
}

/// Runs the command in a namespace as planned, with one link a job, in the order of the plan's
/// interfaces. Returns the command's exit status, 128 + n if signal n ended it.
///
/// # Errors
/// The namespace, a link or the command could not be had.
pub fn run(plan: &Plan, jobs: Vec<Job>) -> Result<i32, Failure> {
    let signals = Signals::block()?;
    runtime::complain();
    let (panel, no_panel) = panel_for(plan, &jobs);
    let mut supervisor = Supervisor::start(plan, jobs.clone(), &signals, panel, no_panel)?;
    let outcome = supervisor.session();
    // The end lets go of the panel, which makes room.
    let Some(error) = supervisor.end() else {
        return outcome;
    };
    let why = without_panel(&error);
    let mut supervisor = Supervisor::start(plan, jobs, &signals, None, why)?;
    let outcome = supervisor.session();
    supervisor.end();
    outcome
}

/// The panel, if it is wanted and there could be a link for it, or why there is none.
fn panel_for(plan: &Plan, jobs: &[Job]) -> (Option<Panel>, String) {
    if !plan.panel {
        return (None, "it is switched off".into());
    }
    if !jobs.iter().any(|job| matches!(job.end, vnls::End::Vnl(_))) {
        return (None, String::new());
    }
    match Panel::acquire() {
        Ok(panel) => (Some(panel), String::new()),
        Err(error) => (None, without_panel(&error)),
    }
}

/// Says why there is no panel.
fn without_panel(error: &Error) -> String {
    log::info!("no panel, frames go through user space: {error}");
    error.to_string()
}

impl<'a> Supervisor<'a> {
    /// Forks the namespace child.
    fn start(
        plan: &'a Plan,
        jobs: Vec<Job>,
        signals: &'a Signals,
        panel: Option<Panel>,
        no_panel: String,
    ) -> Result<Self> {
        let parent = getpid();
        let (channel, theirs) = Channel::pair()?;
        let Some(command) = Child::fork()? else {
            drop(channel);
            exit_child(|| namespace::run(plan, panel.as_ref(), &theirs, signals, parent));
        };
        drop(theirs);
        let panel_address = |panel: &Panel| -> Result<PanelAddress> {
            Ok(PanelAddress {
                panel: panel.id(),
                place: new_place()?,
            })
        };
        let links = jobs.into_iter().map(|mut job| {
            job.panel_address = panel.as_ref().map(panel_address).transpose()?;
            Ok(Link::new(job))
        });
        Ok(Self {
            plan,
            links: links.collect::<Result<_>>()?,
            signals,
            panel,
            no_panel,
            crowded: None,
            command,
            namespace: Some(channel),
            network: None,
            interfaces: None,
            is_running: false,
            next_beat: Instant::now(),
            started: SystemTime::now(),
            status: Server::start(),
            reporting: None,
        })
    }

    /// Everything between the first fork and the command's end.
    fn session(&mut self) -> Result<i32, Failure> {
        // Without an interface the namespace child needs nothing, and does not wait.
        if !self.links.is_empty() {
            self.plug_in()?;
        }
        self.is_running = true;
        give_back_memory();
        self.next_beat = Instant::now() + BEAT;
        loop {
            match self.command.exit() {
                Some(exit) => return Ok(exit.code()),
                None => self.turn(None)?,
            }
        }
    }

    /// Opens the links, makes the interfaces together with the namespace child and brings the two together.
    fn plug_in(&mut self) -> Result<(), Failure> {
        for index in 0..self.links.len() {
            self.start_worker(index)?;
        }
        let network = self.await_namespace(|s| s.network.take())?;
        self.await_stage("the plugin has not opened the link", |stage| {
            stage != Stage::Opening
        })?;
        for index in 0..self.links.len() {
            if self.links[index].stage() == Some(Stage::Open(true)) {
                self.add_port(index, &network)?;
            }
        }
        drop(network);
        let is_tap = |link: &Link| link.side.is_none();
        let taps = self.links.iter().map(is_tap).collect();
        self.tell_namespace(&ToNamespace::MakeInterfaces(taps))?;
        let mut taps = self.await_namespace(|s| s.interfaces.take())?.into_iter();
        let lost = || Error::closed("the namespace child lost interfaces");
        let watch = Rc::new(LinkWatch::from(taps.next().ok_or_else(lost)?));
        for link in &mut self.links {
            if link.side.is_none() {
                let tap = taps.next().ok_or_else(lost)?;
                link.side = Some(Side::Tap(tap, Rc::clone(&watch)));
            }
            link.give_side()?;
        }
        self.await_stage("the link does not settle", |stage| stage == Stage::Settled)?;
        self.tell_namespace(&ToNamespace::Run)
    }

    /// Takes turns until every worker has come far enough.
    fn await_stage(
        &mut self,
        complaint: &str,
        is_enough: impl Fn(Stage) -> bool,
    ) -> Result<(), Failure> {
        let waits = self.links.iter().map(|link| match link.job.wait {
            Wait::AtMost(time) => time,
            Wait::No | Wait::Meanwhile => Duration::ZERO,
        });
        let limit = OPENING.saturating_add(waits.max().unwrap_or_default());
        let deadline = Instant::now().checked_add(limit);
        let lags = |link: &&Link| !link.stage().is_some_and(&is_enough);
        while let Some(late) = self.links.iter().find(lags) {
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                let Job { interface, end, .. } = &late.job;
                let message = format!("{interface} ({end}): {complaint} within {limit:?}");
                let error = Error::new(ErrorKind::Busy, message);
                return Err(error.hint("-vv may tell what it waits for").into());
            }
            self.turn(deadline)?;
        }
        Ok(())
    }

    /// Takes turns until the namespace child has sent what `take` takes.
    fn await_namespace<T>(&mut self, take: impl Fn(&mut Self) -> Option<T>) -> Result<T, Failure> {
        loop {
            if let Some(sent) = take(self) {
                return Ok(sent);
            }
            self.turn(None)?;
        }
    }

    fn tell_namespace(&self, message: &ToNamespace) -> Result<(), Failure> {
        let channel = self.namespace.as_ref().ok_or_else(died)?;
        Ok(channel.send(message, &[])?)
    }

    /// Waits until something happens, at most until `deadline`, and sees to it.
    fn turn(&mut self, deadline: Option<Instant>) -> Result<(), Failure> {
        self.do_what_is_due()?;
        let restarts = self.links.iter().filter_map(|link| link.restart);
        let has_workers = self.links.iter().any(|link| link.worker.is_some());
        let beat = (self.is_running && has_workers).then_some(self.next_beat);
        let deadlines = [deadline, beat, self.reporting, restarts.min()];
        let sources = self.sources();
        let mut fds: Vec<PollFd<'_>> = sources
            .iter()
            .filter_map(|source| Some(PollFd::new(self.fd(*source)?, PollFlags::POLLIN)))
            .collect();
        wait(&mut fds, deadlines.into_iter().flatten().min())?;
        let heard: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        drop(fds);
        let heard: Vec<Source> = sources
            .into_iter()
            .zip(heard)
            .filter_map(|(source, heard)| heard.then_some(source))
            .collect();
        // Signals are looked for first and seen to last: who has ended has said everything before.
        for source in heard.iter().rev() {
            match *source {
                Source::Signals => self.hear_signals()?,
                Source::Namespace => self.hear_namespace()?,
                Source::Control(index) => self.hear_worker(index)?,
                Source::Orders(index) => self.obey(index)?,
                Source::Status => self.hear_asker(),
            }
        }
        Ok(())
    }

    fn sources(&self) -> Vec<Source> {
        let mut sources = vec![Source::Signals];
        sources.extend(self.namespace.as_ref().map(|_| Source::Namespace));
        for (index, link) in self.links.iter().enumerate() {
            if link.worker.as_ref().is_some_and(|w| !w.is_closed) {
                sources.extend([Source::Orders(index), Source::Control(index)]);
            }
        }
        sources.extend(self.status.as_ref().map(|_| Source::Status));
        sources
    }

    fn fd(&self, source: Source) -> Option<BorrowedFd<'_>> {
        let worker = |index: usize| self.links[index].worker.as_ref();
        match source {
            Source::Signals => Some(self.signals.as_fd()),
            Source::Namespace => self.namespace.as_ref().map(AsFd::as_fd),
            Source::Control(index) => worker(index).map(|worker| worker.control.as_fd()),
            Source::Orders(index) => worker(index).map(|worker| worker.orders.as_fd()),
            Source::Status => self.status.as_ref().map(AsFd::as_fd),
        }
    }

    /// Does what it is time for.
    fn do_what_is_due(&mut self) -> Result<()> {
        let now = Instant::now();
        for index in 0..self.links.len() {
            if self.links[index].restart.is_some_and(|due| due <= now) {
                self.start_worker(index)?;
            }
        }
        if self.is_running && self.next_beat <= now {
            self.next_beat = now + BEAT;
            for link in &mut self.links {
                link.beat()?;
            }
        }
        let mut workers = self.links.iter().filter_map(|link| link.worker.as_ref());
        if let Some(deadline) = self.reporting
            && (deadline <= now || !workers.any(Worker::owes_report))
        {
            self.reporting = None;
            self.report();
        }
        Ok(())
    }

    fn hear_signals(&mut self) -> Result<(), Failure> {
        while let Some(signal) = self.signals.next() {
            match signal {
                Signal::SIGCHLD => {}
                _ if !self.is_running => return Err(Failure::Signal(signal)),
                Signal::SIGTERM | Signal::SIGHUP => {
                    if let Err(errno) = self.command.signal(signal) {
                        log::debug!("cannot pass {signal} on to the command: {errno}");
                    }
                }
                // The rest comes from the terminal, and reaches the command by itself.
                _ => {}
            }
        }
        self.reap()
    }

    /// Receives from the namespace child. Its channel closes when the command is executed.
    fn hear_namespace(&mut self) -> Result<(), Failure> {
        let Some(channel) = &self.namespace else {
            return Ok(());
        };
        match channel.receive()? {
            Received::Message(FromNamespace::NamespaceMade, mut fds) => {
                self.network = Some(fds.pop().ok_or_else(died)?);
                Ok(())
            }
            Received::Message(FromNamespace::InterfacesMade, fds) => {
                self.interfaces = Some(fds);
                Ok(())
            }
            Received::Message(FromNamespace::Failed { status, error }, _) => {
                let is_crowded = self.panel.is_some() && is_crowded(&error);
                self.crowded = is_crowded.then(|| error.clone());
                Err(Failure::Error(status, error))
            }
            // The child and the supervisor wait for each other, so without this message there is no
            // session.
            Received::Malformed(why) => Err(malformed(why).into()),
            Received::Closed if self.is_running => {
                self.namespace = None;
                Ok(())
            }
            Received::Closed => Err(died()),
        }
    }

    /// Receives from a worker. A message that cannot be received is logged and costs the worker
    /// nothing else.
    fn hear_worker(&mut self, index: usize) -> Result<(), Failure> {
        let link = &mut self.links[index];
        let Some(worker) = &mut link.worker else {
            return Ok(());
        };
        let received = match worker.control.receive() {
            Ok(received) => received,
            // The descriptor of a report may have been lost.
            Err(error) => {
                log::warn!("{}: {error}", link.job.interface);
                worker.is_alive();
                worker.take_report(Err(error.to_string()));
                return Ok(());
            }
        };
        let message = match received {
            Received::Message(message, fds) => (message, fds),
            Received::Malformed(why) => {
                log::warn!("{}: {}", link.job.interface, malformed(&why));
                worker.take_malformed(&why);
                return Ok(());
            }
            Received::Closed => {
                worker.close();
                return Ok(());
            }
        };
        worker.is_alive();
        match message {
            (FromWorker::Open { wants_panel }, _) => {
                worker.stage = Stage::Open(wants_panel);
                // One that replaces another gets what there is.
                link.give_side()?;
            }
            (FromWorker::Settled, _) => worker.stage = Stage::Settled,
            (FromWorker::Pong, _) => {}
            (FromWorker::Report(ReportReply::File), fds) => worker.take_report(Ok(fds)),
            (FromWorker::Report(ReportReply::None(why)), _) => worker.take_report(Err(why)),
            (FromWorker::Failed(error), _) if !self.is_running => return Err(error.into()),
            (FromWorker::Failed(error), _) => log::warn!("{}: {error}", link.job.interface),
        }
        Ok(())
    }

    /// Carries out a worker's order and tells it how that went.
    fn obey(&mut self, index: usize) -> Result<()> {
        let link = &mut self.links[index];
        let Some(worker) = &mut link.worker else {
            return Ok(());
        };
        let none = || Error::new(ErrorKind::Unsupported, "there is no panel");
        match worker.orders.receive() {
            Ok(Received::Message(Request::Execute(order), _)) => {
                let panel = self.panel.as_ref().ok_or_else(none);
                panel::answer(panel, &worker.orders, &order)
            }
            Ok(Received::Message(Request::StoreFd, mut fds)) => {
                link.kept = fds.pop();
                worker.orders.send(&Reply::Stored, &[])
            }
            Ok(Received::Malformed(why)) => {
                let error = malformed(why);
                log::warn!("{}: {error}", link.job.interface);
                worker.orders.send(&Reply::Failed(error), &[])
            }
            Ok(Received::Closed) | Err(_) => {
                worker.close();
                Ok(())
            }
        }
    }

    /// Somebody wants to know: so do the workers have to report.
    fn hear_asker(&mut self) {
        let Some(status) = &mut self.status else {
            return;
        };
        match status.accept() {
            Ok(false) => {}
            Ok(true) => {
                for link in &mut self.links {
                    if let Some(worker) = &mut link.worker {
                        worker.ask_for_report();
                    }
                }
                self.reporting.get_or_insert(Instant::now() + REPORTING);
            }
            Err(error) => {
                log::info!("{error}");
                self.status = None;
            }
        }
    }

    /// Answers who asks.
    fn report(&mut self) {
        let Some(server) = &mut self.status else {
            return;
        };
        let links = self.links.iter_mut();
        let process = Process {
            links: links.map(|link| link.entry(self.command.pid())).collect(),
            ..status::this_process(
                "vdens",
                &namespace::command_words(&self.plan.command),
                self.started,
                &self.no_panel,
            )
        };
        server.answer(&process);
    }

    /// Makes an interface on the panel. If that fails a tap will do, unless the lack of descriptors is
    /// why: then the interface may be there, and a tap could not be made either.
    fn add_port(&mut self, index: usize, network: &OwnedFd) -> Result<()> {
        let link = &mut self.links[index];
        let (Some(panel), Some(panel_address)) = (&self.panel, &link.job.panel_address) else {
            return Ok(());
        };
        let number = port_index(getpid().as_raw().cast_unsigned(), index);
        let order = Order::AddPort {
            port: panel_address.place.clone(),
            index: number,
            interface: link.job.interface.clone(),
        };
        match panel.execute(&order, Some(network.as_fd())) {
            Ok(watch) => {
                let port = |watch| Side::Port(panel_address.place.clone(), LinkWatch::from(watch));
                link.side = watch.map(port);
            }
            Err(error) if error.errno == libc::EMFILE => return Err(error),
            Err(error) => log::info!("{}: not on the panel: {error}", link.job.interface),
        }
        Ok(())
    }

    /// Reaps children that have ended.
    fn reap(&mut self) -> Result<(), Failure> {
        let links = self.links.iter().filter_map(|link| link.worker.as_ref());
        let workers: Vec<_> = links.map(|worker| worker.child.pid()).collect();
        let command = self.command.pid();
        reap_strangers(|pid| pid == command || workers.contains(&pid));
        if self.command.exit().is_none() && self.command.reap().is_some() {
            self.hear_out(Source::Namespace)?;
            if !self.is_running {
                return Err(died());
            }
        }
        for index in 0..self.links.len() {
            let worker = self.links[index].worker.as_mut();
            let Some(exit) = worker.and_then(|worker| worker.child.reap()) else {
                continue;
            };
            if !self.is_running {
                self.hear_out(Source::Control(index))?;
            }
            let link = &mut self.links[index];
            if !self.is_running {
                let Job { interface, end, .. } = &link.job;
                let message = format!("{interface} ({end}): its process ended with {exit}");
                link.worker = None;
                let error = Error::closed(message);
                return Err(error
                    .hint("its plugin is to blame; -vv may tell more")
                    .into());
            }
            link.lose_worker(exit, self.panel.as_ref());
        }
        Ok(())
    }

    /// Hears what a child that has ended said last: it may have said it after the events were looked for.
    fn hear_out(&mut self, source: Source) -> Result<(), Failure> {
        loop {
            let Some(fd) = self.fd(source) else {
                return Ok(());
            };
            let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
            wait(&mut fds, Some(Instant::now()))?;
            if fds[0].any() != Some(true) {
                return Ok(());
            }
            match source {
                Source::Namespace => self.hear_namespace()?,
                Source::Control(index) => self.hear_worker(index)?,
                _ => return Ok(()),
            }
            if let Source::Control(index) = source
                && self.links[index]
                    .worker
                    .as_ref()
                    .is_none_or(|w| w.is_closed)
            {
                return Ok(());
            }
        }
    }

    fn start_worker(&mut self, index: usize) -> Result<()> {
        let parent = getpid();
        let (control, its_control) = Channel::pair()?;
        let (orders, its_orders) = Channel::pair()?;
        let Some(child) = Child::fork()? else {
            drop((control, orders));
            let mut link = self.links.swap_remove(index);
            self.links.clear();
            self.namespace = None;
            self.status = None;
            let channels = worker::Channels {
                control: its_control,
                orders: its_orders,
            };
            let signals = self.signals;
            let kept = link.kept.take();
            exit_child(|| worker::run(&link.job, channels, kept, signals, parent));
        };
        let link = &mut self.links[index];
        link.restart = None;
        log::info!(
            "{}: {} is served by process {}",
            link.job.interface,
            link.job.end,
            child.pid()
        );
        link.worker = Some(Worker::new(child, control, orders));
        Ok(())
    }

    /// Ends what is still there: a namespace child that never became the command, and the workers.
    fn end(mut self) -> Option<Error> {
        self.namespace = None;
        let links = self.links.drain(..);
        // With its link a worker's channels are closed, which asks it to end.
        let workers = links.filter_map(|link| Some(link.worker?.child));
        let mut left: Vec<Child> = workers.collect();
        left.push(self.command);
        end_all(left, PATIENCE);
        self.crowded
    }
}

fn died() -> Failure {
    Error::closed("a process of vdens died while starting").into()
}
