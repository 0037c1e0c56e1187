//! The life of `vde_plug`: a cable between two open ends.
//!
//! One end is a VNL; the other a second VNL, a command, or this process's own standard input and output. In the background
//! (`-d`) the child opens the ends and tells the parent over a pipe, so that the parent's
//! exit status is the truth. A VNL that breaks is opened again ([`Lasting`]). The plug ends when a stream does, or with a
//! signal; either way its sockets, its command and its pid file are gone with it. Before an end is opened signals are blocked and a
//! [`Service`] is started, for a switch with members on the panel. Should a plugin hang when a signal comes, the [`Guard`]
//! ends the plug.

pub mod pidfile;

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{self, Command};
use std::time::{Duration, Instant, SystemTime};

use nix::poll::{PollFd, PollFlags};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::setsid;
use vdens_plugin_kit::stream::{CommandStream, Stream};
use vdens_plugin_kit::vnl::Vnl;
use vdens_plugin_kit::{HostPort, Link, OpenOptions};

use crate::cli::config::Config;
use crate::cli::mistakes::{self, CommandLine, misplaced};
use crate::cli::vnls;
use crate::cli::{EndOptions, VdePlug, is_option, text};
use crate::error::{Error, ErrorKind, Result, system};
use crate::ipc::{Channel, Nothing, Startup};
use crate::output::Line;
use crate::panel::{self, Service};
use crate::plug::pidfile::PidFile;
use crate::plugins::host_services::{Opener, Plugins};
use crate::sys::child::Child;
use crate::sys::process::{detach, wait};
use crate::sys::runtime;
use crate::sys::signals::Signals;
use crate::sys::watchdog::Guard;
use crate::tools::status::server::Server;
use crate::tools::status::{self, Entry, LinkEntry, Process, Report, this_process};
use crate::worker::pump::{Pump, Stop};
use crate::worker::reconnecting::Lasting;
use crate::worker::tier::Watch;

/// The exit status of `vde_plug` when it fails.
pub const EXIT_FAILURE: i32 = 1;

/// What the far end of the cable is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Far {
    Stdio,
    Vnl(String),
    Command(Vec<OsString>),
}

/// Runs a plug. Returns the exit status: 0 when a stream ended, 128 + n for signal n.
///
/// # Errors
/// An end cannot be opened, or a stream breaks.
pub fn run(cli: &VdePlug, config: &Config) -> Result<i32> {
    let default = config.defaults.vnl.as_deref();
    let (near, far) = ends(&cli.rest)?;
    if cli.daemon && far == Far::Stdio {
        return Err(
            Error::usage("standard input and output cannot go to the background")
                .hint("give a second VNL, or leave -d out"),
        );
    }
    let plugins = Plugins::new(&cli.common.plugin_dir, config)?;
    let resolve = |vnl: &str| {
        let is_waiting = cli.links.wait.is_some();
        mistakes::check(vnl, CommandLine::VdePlug, &plugins, is_waiting)?;
        vnls::resolve(vnl, default)
    };
    let near = resolve(&near)?;
    let far = match far {
        Far::Vnl(vnl) => Far::Vnl(resolve(&vnl)?),
        other => other,
    };
    if let Far::Vnl(far) = &far {
        mistakes::check_cable(&near, far)?;
    }
    let plug = Plug {
        cli,
        plugins,
        panel: panel::is_wanted(cli.links.no_panel, config),
        is_listed: true,
        near,
        far,
    };
    if !cli.daemon {
        return plug.run(|| Ok(()));
    }
    let (channel, theirs) = Channel::<Nothing, Startup>::pair()?;
    if Child::fork()?.is_some() {
        drop(theirs);
        return match channel.receive()?.well_formed()? {
            Some((Startup::Open, _)) => Ok(0),
            Some((Startup::Failed(error), _)) => Err(error),
            None => Err(Error::closed("the background process died while starting")),
        };
    }
    drop(channel);
    setsid().map_err(system("start a session"))?;
    // Until it is open it goes with the command that is to open it.
    set_pdeathsig(Signal::SIGTERM).map_err(system("ask for a signal at the parent's death"))?;
    let mut told = false;
    let outcome = plug.run(|| {
        detach()?;
        set_pdeathsig(None).map_err(system("leave the parent"))?;
        told = true;
        theirs.send(&Startup::Open, &[])
    });
    if let Err(error) = outcome {
        match told {
            true => log::error!("{error}"),
            false => theirs.send(&Startup::Failed(error), &[])?,
        }
        process::exit(EXIT_FAILURE);
    }
    outcome
}

/// Runs a plug between a VNL, which is opened as it stands, and standard input and output. It makes
/// no files but its link's sockets, so `vdectl status` does not list it.
///
/// # Errors
/// As for [`run`].
pub fn run_stdio(vnl: String, end: EndOptions, plugins: Plugins) -> Result<i32> {
    let cli = VdePlug {
        end,
        ..VdePlug::default()
    };
    let plug = Plug {
        cli: &cli,
        plugins,
        panel: false,
        is_listed: false,
        near: vnl,
        far: Far::Stdio,
    };
    plug.run(|| Ok(()))
}

/// The two ends that the arguments name.
fn ends(rest: &[OsString]) -> Result<(String, Far)> {
    if let Some(at) = rest.iter().position(|word| word == "=") {
        let (vnls, command) = (&rest[..at], &rest[at + 1..]);
        return match (vnls, command) {
            (_, []) => Err(Error::usage("no command stands after '='")),
            ([], _) => Ok((String::new(), Far::Command(command.to_vec()))),
            ([vnl], _) => Ok((text(vnl)?, Far::Command(command.to_vec()))),
            _ => Err(Error::usage("more than one VNL stands before '='")),
        };
    }
    match rest {
        [] => Ok((String::new(), Far::Stdio)),
        [option, ..] | [_, option, ..] if is_option(&option.to_string_lossy()) => {
            Err(misplaced::<VdePlug>(&option.to_string_lossy(), "a VNL"))
        }
        [near] => Ok((text(near)?, Far::Stdio)),
        [near, far] => Ok((text(near)?, Far::Vnl(text(far)?))),
        [_, _, third, ..] => Err(Error::usage(format!(
            "'{}' is one VNL too many",
            third.to_string_lossy()
        ))
        .hint("a plug has two ends; options come before the first VNL")),
    }
}

/// A plug to be opened.
struct Plug<'a> {
    cli: &'a VdePlug,
    plugins: Plugins,
    /// Whether the kernel may carry frames.
    panel: bool,
    /// Whether `vdectl status` lists the plug.
    is_listed: bool,
    near: String,
    far: Far,
}

/// What an end is.
struct About {
    name: String,
    /// What opens it, if it is a VNL.
    opener: Option<Opener>,
}

/// An open end.
type End = (About, Box<dyn Link>);

impl Plug<'_> {
    /// Opens both ends, says so through `ready`, and pumps until a stream ends or a signal comes.
    fn run(&self, ready: impl FnOnce() -> Result<()>) -> Result<i32> {
        let signals = Signals::block()?;
        runtime::complain();
        let service = self.panel.then(Service::start).transpose()?;
        let pidfile = self.cli.pidfile.as_deref().map(|path| {
            std::path::absolute(path)
                .map_err(|error| Error::path("find the pid file", path, &error))
        });
        let pidfile = pidfile.transpose()?;
        let guard = Guard::start(signals, {
            let pidfile = pidfile.clone();
            move || drop(pidfile.map(PidFile::of))
        })?;
        // Dropped after the links, which may use the service.
        let mut events = Events::new(guard, service)?;
        let ends = self.open(&mut events);
        if let Some(signal) = events.ending() {
            return Ok(128 + signal as i32);
        }
        let [(near, mut near_link), (far, mut far_link)] = ends?;
        if self.is_listed {
            events.serve_status()?;
        }
        let _pidfile = pidfile.map(PidFile::write).transpose()?;
        let _session = self
            .cli
            .log
            .then(|| SystemLog::start(&near.name, &far.name));
        ready()?;
        let pump = Pump::new(near_link.as_mut(), far_link.as_mut());
        self.pump([&near, &far], pump, &mut events)
    }

    fn open(&self, events: &mut Events) -> Result<[End; 2]> {
        let cli = self.cli;
        let end = &cli.end;
        let near = self.vnl(&self.near, end.port, &end.group, end.mode, events)?;
        let far = match &self.far {
            Far::Vnl(vnl) => self.vnl(vnl, cli.port2, &cli.group2, cli.mode2, events)?,
            Far::Command(words) => command(words)?,
            Far::Stdio => stdio()?,
        };
        Ok([near, far])
    }

    fn pump(&self, ends: [&About; 2], mut pump: Pump<'_>, events: &mut Events) -> Result<i32> {
        let mut watches = ends.map(|end| Watch::new(end.name.clone()));
        let mut broken = pump.settle().err();
        loop {
            let due = watches.iter().filter_map(Watch::due).min();
            let stop = match broken.take() {
                Some((side, error)) => Stop::Broken(side, error),
                None => pump.run(&events.ready.0, due)?,
            };
            let links = pump.links();
            match stop {
                Stop::Control => {
                    if let Some(signal) = events.ending() {
                        return Ok(128 + signal as i32);
                    }
                    events.answer(|| {
                        let counters = pump.counters();
                        [0, 1].map(|side| {
                            let (received, sent) = (counters[side], counters[1 - side]);
                            let report = Report::new(links[1 - side], links[side], received, sent);
                            entry(ends[side], report)
                        })
                    });
                }
                Stop::Changed(side) => watches[side].look(links[1 - side], links[side], true),
                Stop::Time => {
                    let is_due = |watch: &Watch| watch.due().is_some_and(|d| d <= Instant::now());
                    for side in [0, 1] {
                        if is_due(&watches[side]) {
                            watches[side].look(links[1 - side], links[side], false);
                        }
                    }
                }
                Stop::Broken(1, error)
                    if self.far == Far::Stdio && error.kind == ErrorKind::Closed =>
                {
                    return Ok(0);
                }
                Stop::Broken(side, mut error) => {
                    error.message = format!("{}: {}", ends[side].name, error.message);
                    return Err(error);
                }
            }
        }
    }

    fn vnl(
        &self,
        vnl: &str,
        port: Option<u32>,
        group: &Option<String>,
        mode: Option<u32>,
        events: &mut Events,
    ) -> Result<End> {
        let vnl = vnl.to_owned();
        // A plugin that is not there is not waited for.
        self.plugins.check(Vnl::parse(&vnl)?.scheme)?;
        let options = OpenOptions {
            description: self
                .cli
                .end
                .descr
                .clone()
                .unwrap_or_else(|| "vde_plug".into()),
            port,
            group: group.clone(),
            mode,
        };
        let no_interface = HostPort {
            interface: String::new(),
            mtu: 0,
            panel_address: None,
        };
        let orders = events.service.as_ref().map(Service::client);
        let opener = Opener::new(self.plugins.clone(), no_interface, orders, None);
        let wait = self.cli.links.wait.unwrap_or_default();
        let name = vnl.clone();
        let open = Box::new(move || opener.open(&vnl, &options));
        let link = Lasting::open(name.clone(), open, wait, |_, time| events.pause(time))?;
        let opener = Some(opener);
        Ok((About { name, opener }, Box::new(link)))
    }
}

/// What a plug waits for beside frames.
struct Events {
    /// Readable when the guard or the status are.
    ready: Epoll,
    guard: Guard,
    /// The signal that ends the plug.
    ending: Option<Signal>,
    service: Option<Service>,
    status: Option<Server>,
    started: SystemTime,
}

impl Events {
    fn new(guard: Guard, service: Option<Service>) -> Result<Self> {
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let events = Self {
            ready: ready.map_err(system("wait for signals"))?,
            guard,
            ending: None,
            service,
            status: None,
            started: SystemTime::now(),
        };
        events.watch(&events.guard)?;
        Ok(events)
    }

    fn watch(&self, fd: impl AsFd) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, 0);
        let added = self.ready.add(fd, event);
        added.map_err(system("wait for signals"))
    }

    /// Lets others see this process.
    fn serve_status(&mut self) -> Result<()> {
        self.status = Server::start();
        self.status
            .as_ref()
            .map_or(Ok(()), |status| self.watch(status))
    }

    /// The signal that ends the plug, if it has come. Collects the service if that has ended.
    fn ending(&mut self) -> Option<Signal> {
        while let Some(signal) = self.guard.next() {
            match signal {
                Signal::SIGCHLD => self.service.iter_mut().for_each(Service::reap),
                signal => self.ending = Some(signal),
            }
        }
        self.ending
    }

    /// Waits for `time`, or until a signal ends the plug: then `false`.
    fn pause(&mut self, time: Duration) -> Result<bool> {
        let until = Instant::now() + time;
        while self.ending().is_none() {
            if Instant::now() >= until {
                return Ok(true);
            }
            let mut fds = [PollFd::new(self.guard.as_fd(), PollFlags::POLLIN)];
            wait(&mut fds, Some(until))?;
        }
        Ok(false)
    }

    /// Answers who asks for the status.
    fn answer(&mut self, links: impl FnOnce() -> [Entry<Report>; 2]) {
        let Some(status) = &mut self.status else {
            return;
        };
        match status.accept() {
            Ok(false) => {}
            Ok(true) => {
                let words: Vec<OsString> = env::args_os().skip(1).collect();
                let process = Process {
                    links: links().into(),
                    ..this_process("vde_plug", &words, self.started, "")
                };
                status.answer(&process);
            }
            Err(error) => {
                log::info!("{error}");
                // Closing the socket takes it out of the epoll instance too.
                self.status = None;
            }
        }
    }
}

fn entry(end: &About, report: Report) -> Entry<Report> {
    let report = match end.opener {
        Some(opener) => report.with_plugin(opener, &end.name),
        None => report,
    };
    let link = LinkEntry {
        interface: String::new(),
        vnl: end.name.clone(),
        service: status::Service::Served,
        worker: None,
        restarts: 0,
        last_end: String::new(),
        interface_traffic: None,
    };
    let report = Some(report);
    Entry { link, report }
}

fn command(words: &[OsString]) -> Result<End> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Error::usage("there is no command"))?;
    let stream = CommandStream::start(Command::new(program).args(arguments))?;
    let name = program.to_string_lossy().into_owned();
    let opener = None;
    Ok((About { name, opener }, Box::new(stream)))
}

fn stdio() -> Result<End> {
    let duplicate = |fd: std::io::Result<OwnedFd>| {
        fd.map_err(|error| Error::io("use standard input and output", &error))
    };
    let input = duplicate(io::stdin().as_fd().try_clone_to_owned())?;
    let output = duplicate(io::stdout().as_fd().try_clone_to_owned())?;
    let about = About {
        name: "standard input".into(),
        opener: None,
    };
    Ok((about, Box::new(Stream::new(input, output)?)))
}

/// A line in the system's log (syslog(3), facility daemon, priority info) at start and at end.
struct SystemLog {
    what: String,
}

impl SystemLog {
    fn start(near: &str, far: &str) -> Self {
        let log = Self {
            what: format!("{near} {far}"),
        };
        log.say("START");
        log
    }

    fn say(&self, event: &str) {
        let what = Line(&self.what);
        let record = format!("<30>vde_plug[{}]: {event} {what}", process::id());
        let sent = UnixDatagram::unbound().and_then(|socket| {
            // A system's log that is stuck stops nobody.
            socket.set_nonblocking(true)?;
            socket.send_to(record.as_bytes(), "/dev/log")
        });
        if let Err(error) = sent {
            log::warn!("cannot write to the system's log at /dev/log: {error}");
        }
    }
}

impl Drop for SystemLog {
    fn drop(&mut self) {
        self.say("STOP");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_two_ends() {
        let words = |text: &str| {
            text.split_whitespace()
                .map(OsString::from)
                .collect::<Vec<_>>()
        };
        let parse = |text: &str| ends(&words(text));
        assert_eq!(parse("").unwrap(), (String::new(), Far::Stdio));
        assert_eq!(parse("a").unwrap(), ("a".into(), Far::Stdio));
        assert_eq!(parse("a b").unwrap(), ("a".into(), Far::Vnl("b".into())));
        assert_eq!(
            parse("= ssh h").unwrap(),
            (String::new(), Far::Command(words("ssh h")))
        );
        assert_eq!(
            parse("a = b = c").unwrap(),
            ("a".into(), Far::Command(words("b = c")))
        );
        for bad in ["a b c", "a b = c", "a ="] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
