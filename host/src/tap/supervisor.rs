//! The supervisor of a machine's link: it waits for what the machine, the worker, signals and
//! `vdectl status` say, and handles one after the other.
//!
//! | Phase | Until |
//! |---|---|
//! | opening | the link has settled; then the machine gets the tap. A failure is the program's |
//! | running | the machine or its tap is gone, or a signal comes |

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Instant, SystemTime};

use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;

use super::handover::Machine;
use crate::error::Result;
use crate::ipc::background::{Lifetime, Starter};
use crate::ipc::status::server::Server;
use crate::ipc::status::{Process, this_process};
use crate::panel::Panel;
use crate::session::REPORT_LIMIT;
use crate::session::link::BEAT;
use crate::session::served::{ServedLink, Way};
use crate::sys::child::{CLEANUP_LIMIT, Child, end_all, reap_strangers};
use crate::sys::process::{give_back_memory, wait};
use crate::sys::signals::Signals;
use crate::worker::Job;

/// What a turn polls, from what is handled last to what is handled first.
#[derive(Clone, Copy, Debug)]
enum Source {
    Signals,
    Machine,
    Worker(Way),
    Status,
}

const SOURCES: [Source; 5] = [
    Source::Signals,
    Source::Machine,
    Source::Worker(Way::Requests),
    Source::Worker(Way::Control),
    Source::Status,
];

/// What is left to do.
#[derive(Debug)]
enum Phase {
    /// The machine is to get this tap when the link has settled.
    Opening(OwnedFd),
    Running,
    /// With this exit status.
    Ending(i32),
}

pub(super) struct Supervisor<'a> {
    machine: Machine,
    panel: Panel,
    /// The port's place there.
    place: String,
    served: ServedLink,
    phase: Phase,
    signals: &'a Signals,
    starter: &'a mut Starter,
    status: Option<Server>,
    started: SystemTime,
    /// When the worker is pinged next.
    beat: Instant,
    /// Until when a status query waits for the worker's report, if there is one.
    query: Option<Instant>,
}

impl<'a> Supervisor<'a> {
    /// The life of the link, whose port is at `place`. Returns the exit status.
    ///
    /// # Errors
    /// The machine did not get its tap.
    pub(super) fn run(
        job: Job,
        place: String,
        machine: Machine,
        panel: Panel,
        signals: &'a Signals,
        starter: &'a mut Starter,
    ) -> Result<i32> {
        let name = format!("{} ({})", job.label, job.target);
        let mut served = ServedLink::new(job, name);
        let tap = served.held.make_machine_port(&panel, place.clone())?;
        let mut supervisor = Self {
            machine,
            panel,
            place,
            served,
            phase: Phase::Opening(tap),
            signals,
            starter,
            status: Server::start(),
            started: SystemTime::now(),
            beat: Instant::now() + BEAT,
            query: None,
        };
        let outcome = supervisor.live();
        end_all(supervisor.served.held.release(), CLEANUP_LIMIT);
        supervisor.served.held.close_stored();
        outcome
    }

    fn live(&mut self) -> Result<i32> {
        loop {
            if let Phase::Ending(status) = self.phase {
                return Ok(status);
            }
            self.start_worker()?;
            self.turn()?;
            self.hand_over()?;
        }
    }

    fn start_worker(&mut self) -> Result<()> {
        if !self.served.wants_worker(Instant::now()) {
            return Ok(());
        }
        if let Some(worker) = self.served.start_worker(&self.panel)? {
            self.status = None;
            self.starter.forget();
            self.machine.forget();
            self.phase = Phase::Running;
            worker.run(self.signals);
        }
        Ok(())
    }

    /// Gives the machine its tap when the link has settled.
    fn hand_over(&mut self) -> Result<()> {
        if let Phase::Opening(tap) = &self.phase
            && self.served.is_running()
        {
            self.machine.give(tap.as_fd())?;
            // From now on the tap is gone when the machine has closed it.
            self.phase = Phase::Running;
            self.starter.announce(Lifetime::Own)?;
            give_back_memory();
        }
        Ok(())
    }

    /// Waits until something happens, or until something is due, and handles it.
    fn turn(&mut self) -> Result<()> {
        let sources = SOURCES.into_iter();
        let sources: Vec<_> = sources
            .filter(|source| self.fd(*source).is_some())
            .collect();
        let fds = sources.iter().filter_map(|source| self.fd(*source));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let dues = [Some(self.beat), self.served.link.restart(), self.query];
        wait(&mut fds, dues.into_iter().flatten().min())?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        for (source, is_ready) in sources.into_iter().zip(ready).rev() {
            if is_ready {
                self.handle(source)?;
            }
        }
        let now = Instant::now();
        if self.beat <= now {
            self.beat = now + BEAT;
            self.served.beat(&self.panel)?;
        }
        if self.served.link.is_closed() {
            log::info!("{}: it has closed the tap", self.machine);
            self.phase = Phase::Ending(0);
        }
        if self
            .query
            .is_some_and(|until| until <= now || !self.served.link.owes_report())
        {
            self.query = None;
            self.answer_status();
        }
        Ok(())
    }

    fn fd(&self, source: Source) -> Option<BorrowedFd<'_>> {
        match source {
            Source::Signals => Some(self.signals.as_fd()),
            Source::Machine => Some(self.machine.process()),
            Source::Worker(way) => self.served.fd(way),
            Source::Status => self.status.as_ref().map(AsFd::as_fd),
        }
    }

    fn handle(&mut self, source: Source) -> Result<()> {
        match source {
            Source::Signals => self.read_signals(),
            Source::Machine => {
                log::info!("{}: it has ended", self.machine);
                self.phase = Phase::Ending(0);
                Ok(())
            }
            Source::Worker(way) => self.served.receive(way, &self.panel).map(drop),
            Source::Status => {
                match self.status.as_mut().map(Server::accept) {
                    Some(Ok(true)) => {
                        self.query.get_or_insert(Instant::now() + REPORT_LIMIT);
                        let query = self.served.link.query();
                        return query
                            .map_or(Ok(()), |query| self.served.perform(query, &self.panel));
                    }
                    Some(Ok(false)) | None => {}
                    Some(Err(error)) => {
                        log::info!("{error}");
                        self.status = None;
                    }
                }
                Ok(())
            }
        }
    }

    fn read_signals(&mut self) -> Result<()> {
        while let Some(signal) = self.signals.next() {
            if signal != Signal::SIGCHLD {
                self.phase = Phase::Ending(128 + signal as i32);
            }
        }
        let worker = self.served.child().map(Child::pid);
        reap_strangers(|pid| Some(pid) == worker);
        self.served.reap(&self.panel).map(drop)
    }

    fn answer_status(&mut self) {
        let Some(server) = &mut self.status else {
            return;
        };
        let words = self.machine.words().map(OsString::from);
        let traffic = self.panel.machine_traffic(&self.place);
        let ServedLink { held, link, .. } = &mut self.served;
        let process = Process {
            links: vec![held.entry(link, traffic)],
            ..this_process("vdens-tap", &words, self.started, "")
        };
        server.answer(&process);
    }
}
