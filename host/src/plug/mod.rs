//! `vde_plug`: a cable between two ends.
//!
//! The near end is a VNL. The far end is a second VNL, a command, this process's own standard input
//! and output, or a program that uses our libvdeplug.so.2 (`program`). The plug opens both, moves
//! frames between them, and ends when a stream ends or a signal comes. A VNL that breaks is opened
//! again ([`reconnecting`](crate::worker::reconnecting)). With the plug go its sockets, its command
//! and its pid file.
//!
//! In the background (`-d`) a child opens the ends and reports over a channel, so that the parent's
//! exit status is true.
//!
//! No supervisor is above a plug, so it arranges three things itself. Before it loads a plugin it
//! forks a panel [`Service`], for a switch with members on the panel and for ends whose frames the
//! kernel carries (`carried`). Then it loads its plugins and enters its sandbox, and starts a
//! [`Watchdog`], which ends the plug if a plugin hangs when a signal comes. From the start on it
//! blocks signals, so that what it makes is removed at the end. Only while plugins are loaded they
//! end it at once: the service removes what there is by then.

mod carried;
pub mod login;
pub(crate) mod pidfile;
mod program;

use std::convert::Infallible;
use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{self, Command};
use std::time::SystemTime;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::Signal;
use vdens_plugin_kit::stream::{CommandStream, Stream};
use vdens_plugin_kit::vnl::Vnl;
use vdens_plugin_kit::wire::vdestream::Vdestream;
use vdens_plugin_kit::{Capabilities, HostPort, Link, OpenOptions, PanelAddress};

use crate::cli::config::Config;
use crate::cli::mistakes::{self, CommandLine, misplaced};
use crate::cli::vnls;
use crate::cli::{EndOptions, VdePlug, is_option, text};
use crate::error::{Error, ErrorKind, Result, system};
use crate::ipc::background::{self, Lifetime};
use crate::ipc::status::server::Server;
use crate::ipc::status::{self, Entry, LinkEntry, Process, Report, this_process};
use crate::output::Line;
use crate::panel::{PanelClient, Service};
use crate::plug::carried::CarriedEnd;
use crate::plug::pidfile::PidFile;
use crate::plug::program::{Program, TapPort};
use crate::plugins::host_services::{InstalledPlugins, Opener, Own};
use crate::sandbox::{Beside, Sandbox};
use crate::sys::runtime;
use crate::sys::service_manager;
use crate::sys::signals::Signals;
use crate::sys::watchdog::Watchdog;
use crate::worker::driver::{self, Control, Driver, Stop};
use crate::worker::pump::{Side, Sides};
use crate::worker::tier::Watch;

/// The exit status of `vde_plug` when it fails.
pub const EXIT_FAILURE: i32 = 1;

/// What the far end of the cable is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Far<'a> {
    Stdio,
    Vnl(String),
    Command(Vec<OsString>),
    Program(&'a Program),
}

/// Runs a plug. Returns the exit status: 0 when a stream ended, 128 + n for signal n.
///
/// # Errors
/// An end cannot be opened, or a stream breaks.
pub fn run(cli: &VdePlug, config: &Config) -> Result<i32> {
    let Some(fd) = cli.program_fd else {
        return run_between(cli, config, None);
    };
    let program = Program::at(fd)?;
    run_between(cli, config, Some(&program)).inspect_err(|error| program.refuse(error))
}

/// Runs a plug whose far end is the program, or what the arguments say.
fn run_between(cli: &VdePlug, config: &Config, program: Option<&Program>) -> Result<i32> {
    let default = config.defaults.vnl.as_deref();
    let (near, far) = match program {
        Some(program) => (only(&cli.rest)?, Far::Program(program)),
        None => ends(&cli.rest)?,
    };
    if cli.daemon && far == Far::Stdio {
        return Err(
            Error::usage("standard input and output cannot go to the background")
                .hint("give a second VNL, or leave -d out"),
        );
    }
    let plugins = cli.links.plugins(&cli.common, config)?;
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
        panel: cli.links.uses_panel(config),
        listed_as: Some("vde_plug"),
        near,
        far,
    };
    if !cli.daemon {
        return plug.run(|| {
            service_manager::tell_ready();
            Ok(())
        });
    }
    background::start(|starter| plug.run(|| starter.announce(Lifetime::Own)))?;
    Ok(0)
}

/// Runs a plug between a VNL, which is opened as it is given, and standard input and output. It
/// makes no files but its link's sockets, so `vdectl status` does not list it.
///
/// # Errors
/// As for [`run`].
pub(crate) fn run_stdio(vnl: String, end: EndOptions, plugins: InstalledPlugins) -> Result<i32> {
    let cli = VdePlug {
        end,
        ..VdePlug::default()
    };
    let plug = Plug {
        cli: &cli,
        plugins,
        panel: false,
        listed_as: None,
        near: vnl,
        far: Far::Stdio,
    };
    plug.run(|| Ok(()))
}

/// Runs a plug between two VNLs, which are opened as they are given, for another program.
///
/// # Errors
/// As for [`run`].
pub(crate) fn run_for(
    program: &'static str,
    (cli, plugins): (&VdePlug, InstalledPlugins),
    panel: bool,
    [near, far]: [String; 2],
    ready: impl FnOnce() -> Result<()>,
) -> Result<i32> {
    let plug = Plug {
        cli,
        plugins,
        panel,
        listed_as: Some(program),
        near,
        far: Far::Vnl(far),
    };
    plug.run(ready)
}

/// The VNL, if the arguments name no second end.
fn only(rest: &[OsString]) -> Result<String> {
    match rest {
        [] => Ok(String::new()),
        [vnl] => text(vnl),
        _ => Err(Error::usage("a plug for a program has one VNL")),
    }
}

/// The two ends that the arguments name.
fn ends(rest: &[OsString]) -> Result<(String, Far<'static>)> {
    if let Some(at) = rest.iter().position(|word| word == "=") {
        let (vnls, command) = (&rest[..at], &rest[at + 1..]);
        return match (vnls, command) {
            (_, []) => Err(Error::usage("no command comes after '='")),
            ([], _) => Ok((String::new(), Far::Command(command.to_vec()))),
            ([vnl], _) => Ok((text(vnl)?, Far::Command(command.to_vec()))),
            _ => Err(Error::usage("more than one VNL comes before '='")),
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
    plugins: InstalledPlugins,
    /// Whether the kernel may carry frames.
    panel: bool,
    /// The program as which `vdectl status` lists the plug, if it does.
    listed_as: Option<&'static str>,
    near: String,
    far: Far<'a>,
}

/// An end of the cable.
#[derive(Clone)]
struct PlugEnd {
    name: String,
    /// What opens it, if it is a VNL.
    opener: Option<Opener>,
}

/// What there is before the ends are opened.
struct Prepared {
    /// A pair of ports on the panel, and who can be asked to join them.
    pair: Option<(PanelClient, [PanelAddress; 2])>,
    tap: Option<TapPort>,
    near: Opener,
    far: Opener,
    sandbox: Sandbox,
}

/// An end and its open link.
type OpenEnd = (PlugEnd, Box<dyn Link>);

impl Plug<'_> {
    /// Opens both ends, reports that through `ready`, and moves frames until a stream ends or a
    /// signal comes.
    fn run(&self, ready: impl FnOnce() -> Result<()>) -> Result<i32> {
        let Err(stop) = self.drive(ready);
        let may_close = matches!(self.far, Far::Stdio | Far::Program(_));
        match stop {
            Stop::Exit(status) => Ok(status),
            Stop::Broken(Side::Far, error) if may_close && error.kind == ErrorKind::Closed => Ok(0),
            Stop::Broken(_, error) | Stop::Failed(error) => Err(error),
        }
    }

    fn drive(&self, ready: impl FnOnce() -> Result<()>) -> Result<Infallible, Stop> {
        let signals = Signals::block()?;
        runtime::complain();
        let service = self.start_service().transpose()?;
        let pidfile = self.cli.pidfile.as_deref().map(|path| {
            std::path::absolute(path)
                .map_err(|error| Error::path("find the pid file", path, &error))
        });
        let pidfile = pidfile.transpose()?;
        let client = service.as_ref().map(Service::client);
        let prepared = signals.end_during(|| self.prepare(client))?;
        let watchdog = Watchdog::start(signals, {
            let pidfile = pidfile.clone();
            move || drop(pidfile.map(PidFile::of))
        })?;
        // Dropped after the links, which may use the service.
        let sandbox = prepared.sandbox.clone();
        let mut control = PlugControl::new(watchdog, service, self.program(), sandbox)?;
        let opened = self.open(prepared, &mut control);
        // A signal ends the plug, even if an end could not be opened meanwhile.
        control.handle_ends()?;
        let [(near, mut near_link), (far, mut far_link)] = opened?;
        if let Some(program) = self.listed_as {
            control.serve_status(program, &near, &far)?;
        }
        let _pidfile = pidfile.map(PidFile::write).transpose()?;
        let log = self.cli.log;
        let _log = log.then(|| SystemLog::start(&near.name, &far.name));
        ready()?;
        let far_watch = match self.far {
            Far::Program(_) => None,
            _ => Some(Watch::new(far.name.clone())),
        };
        let watches = Sides {
            near: Some(Watch::new(near.name.clone())),
            far: far_watch,
        };
        let mut driver = Driver::settle(near_link.as_mut(), far_link.as_mut(), watches);
        Err(match driver.run(&mut control) {
            Stop::Broken(side, error) => {
                let end = match side {
                    Side::Near => near,
                    Side::Far => far,
                };
                let message = format!("{}: {}", end.name, error.message);
                Stop::Broken(side, Error { message, ..error })
            }
            stop => stop,
        })
    }

    /// Starts the panel service, if the kernel may carry frames.
    fn start_service(&self) -> Option<Result<Service>> {
        let is_confined = self.plugins.is_confined();
        self.panel.then(|| Service::start(is_confined))
    }

    /// The program, if the far end is one.
    fn program(&self) -> Option<&Program> {
        match self.far {
            Far::Program(program) => Some(program),
            Far::Stdio | Far::Vnl(_) | Far::Command(_) => None,
        }
    }

    /// Loads the plugins and enters the sandbox. `panel` is the service's client.
    fn prepare(&self, panel: Option<PanelClient>) -> Prepared {
        let pair = panel.and_then(|panel| self.make_pair(panel));
        let port = |end: usize| pair.as_ref().map(|(_, ports)| ports[end].clone());
        let tap = panel.and_then(|panel| self.make_tap(panel));
        let address = tap.as_ref().map(|tap| tap.address.clone()).or(port(0));
        let near = self.opener(address, panel);
        let far = self.opener(port(1), panel);
        let sandbox = self.enter_sandbox(near, far, panel.is_some());
        Prepared {
            pair,
            tap,
            near,
            far,
            sandbox,
        }
    }

    fn open(
        &self,
        prepared: Prepared,
        control: &mut PlugControl<'_>,
    ) -> Result<[OpenEnd; 2], Stop> {
        let cli = self.cli;
        let end = &cli.end;
        let Prepared {
            pair,
            tap,
            near,
            far,
            ..
        } = prepared;
        let options = (end.port, &end.group, end.mode);
        let near = self.vnl(&self.near, near, options, control)?;
        let far = match &self.far {
            Far::Vnl(vnl) => {
                let options = (cli.port2, &cli.group2, cli.mode2);
                self.vnl(vnl, far, options, control)?
            }
            Far::Command(words) => command(words)?,
            Far::Program(program) => {
                let link = program.connect(tap, near.1.wants_panel())?;
                let name = program.name().to_owned();
                (PlugEnd { name, opener: None }, link)
            }
            Far::Stdio => stdio()?,
        };
        let Some((client, [port, port2])) = pair else {
            return Ok([near, far]);
        };
        let carried = |(end, link), port: &PanelAddress, opposite: &PanelAddress| {
            let link = CarriedEnd::new(link, port.clone(), opposite.clone(), client);
            (end, Box::new(link) as Box<dyn Link>)
        };
        Ok([carried(near, &port, &port2), carried(far, &port2, &port)])
    }

    /// Makes a tap on the panel for the program, if the far end is one.
    fn make_tap(&self, panel: PanelClient) -> Option<TapPort> {
        self.program()?;
        TapPort::make(panel)
            .inspect_err(|error| log::debug!("the program gets no tap: {error}"))
            .ok()
    }

    /// Makes a pair of ports on the panel, if both ends can use them.
    fn make_pair(&self, panel: PanelClient) -> Option<(PanelClient, [PanelAddress; 2])> {
        let Far::Vnl(far) = &self.far else {
            return None;
        };
        let can_use = |vnl: &String| {
            let scheme = Vnl::parse(vnl).map_or("", |vnl| vnl.scheme);
            let capabilities = self.plugins.capabilities(scheme).unwrap_or_default();
            capabilities.contains(Capabilities::PANEL)
        };
        if ![&self.near, far].into_iter().all(can_use) {
            return None;
        }
        carried::make_pair(panel)
            .inspect_err(|error| log::debug!("the kernel carries no frames of this plug: {error}"))
            .ok()
            .map(|pair| (panel, pair))
    }

    /// Confines this process to what it needs to open the ends, by these openers, and to serve
    /// them.
    fn enter_sandbox(&self, near: Opener, far: Opener, has_children: bool) -> Sandbox {
        let mut links = vec![(near, self.near.as_str())];
        if let Far::Vnl(vnl) = &self.far {
            links.push((far, vnl));
        }
        let base = self.listed_as.map(|_| runtime::base());
        let pidfile = self.cli.pidfile.as_deref();
        let pidfile = pidfile.and_then(|path| std::path::absolute(path).ok());
        let above = |path: Option<PathBuf>| path.and_then(|path| Some(path.parent()?.to_owned()));
        let beside = Beside {
            sockets: above(base).into_iter().collect(),
            files: above(pidfile).into_iter().collect(),
            children: has_children,
            command: matches!(self.far, Far::Command(_)),
        };
        Sandbox::enter(&self.near, &self.plugins, &links, beside)
    }

    fn opener(&self, panel_address: Option<PanelAddress>, panel: Option<PanelClient>) -> Opener {
        let no_interface = HostPort {
            panel_address,
            ..HostPort::default()
        };
        Opener::new(self.plugins.clone(), no_interface, panel, Own::default())
    }

    fn vnl(
        &self,
        vnl: &str,
        opener: Opener,
        (port, group, mode): (Option<u32>, &Option<String>, Option<u32>),
        control: &mut PlugControl<'_>,
    ) -> Result<OpenEnd, Stop> {
        let vnl = vnl.to_owned();
        // A plugin that is not installed is not waited for.
        self.plugins.check(Vnl::parse(&vnl)?.scheme)?;
        let description = self.cli.end.descr.clone();
        let options = OpenOptions {
            description: description.unwrap_or_else(|| match self.program() {
                Some(program) => program.name().to_owned(),
                None => "vde_plug".into(),
            }),
            port,
            group: group.clone(),
            mode,
        };
        let wait = self.cli.links.wait.unwrap_or_default();
        let name = vnl.clone();
        let sandbox = control.sandbox.clone();
        let open = Box::new(move || {
            let opened = opener.open(&vnl, &options);
            opened.map_err(|error| sandbox.explain(error))
        });
        let link = driver::open(name.clone(), open, wait, control)?;
        let opener = Some(opener);
        Ok((PlugEnd { name, opener }, Box::new(link)))
    }
}

/// What a plug serves beside frames: signals, the panel service's end, the program's, and `vdectl
/// status`.
struct PlugControl<'a> {
    /// Readable when one of these has something to handle.
    ready: Epoll,
    watchdog: Watchdog,
    service: Option<Service>,
    program: Option<&'a Program>,
    sandbox: Sandbox,
    status: Option<(Server, &'static str, Sides<PlugEnd>)>,
    started: SystemTime,
}

impl<'a> PlugControl<'a> {
    fn new(
        watchdog: Watchdog,
        service: Option<Service>,
        program: Option<&'a Program>,
        sandbox: Sandbox,
    ) -> Result<Self> {
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC);
        let control = Self {
            ready: ready.map_err(system("wait for signals"))?,
            watchdog,
            service,
            program,
            sandbox,
            status: None,
            started: SystemTime::now(),
        };
        control.watch(&control.watchdog)?;
        program.map_or(Ok(()), |program| control.watch(program))?;
        Ok(control)
    }

    fn watch(&self, fd: impl AsFd) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, 0);
        let added = self.ready.add(fd, event);
        added.map_err(system("wait for signals"))
    }

    /// Has `vdectl status` list this process, as this program.
    fn serve_status(&mut self, program: &'static str, near: &PlugEnd, far: &PlugEnd) -> Result<()> {
        let Some(server) = Server::start() else {
            return Ok(());
        };
        self.watch(&server)?;
        let (near, far) = (near.clone(), far.clone());
        self.status = Some((server, program, Sides { near, far }));
        Ok(())
    }

    /// Reaps the panel service if it has ended.
    ///
    /// # Errors
    /// [`Stop::Exit`]: a signal or the program's end ends the plug.
    fn handle_ends(&mut self) -> Result<(), Stop> {
        while let Some(signal) = self.watchdog.next() {
            match signal {
                Signal::SIGCHLD => self.service.iter_mut().for_each(Service::reap),
                signal => return Err(Stop::Exit(128 + signal as i32)),
            }
        }
        match self.program {
            Some(program) if program.has_ended() => Err(Stop::Exit(0)),
            _ => Ok(()),
        }
    }

    /// Answers status queries.
    fn handle_status(&mut self, report: &dyn Fn(Side) -> Report) {
        let Some((server, name, ends)) = &mut self.status else {
            return;
        };
        let (program, sandbox) = (self.program, &self.sandbox);
        let report = |side| sandbox.tell(report(side));
        let report = |side| match (side, program) {
            // The way of the frames is the VNL's.
            (Side::Far, Some(_)) => Report {
                tier: None,
                reason: String::new(),
                ..report(side)
            },
            _ => report(side),
        };
        match server.accept() {
            Ok(false) => {}
            Ok(true) => {
                let words: Vec<OsString> = env::args_os().skip(1).collect();
                let links = Side::BOTH.map(|side| entry(&ends[side], report(side)));
                let process = Process {
                    links: links.into(),
                    ..this_process(name, &words, self.started, "")
                };
                server.answer(&process);
            }
            Err(error) => {
                log::info!("{error}");
                // Closing the socket takes it out of the epoll instance too.
                self.status = None;
            }
        }
    }
}

impl Control for PlugControl<'_> {
    fn fd(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }

    fn handle(&mut self, report: &dyn Fn(Side) -> Report) -> Result<(), Stop> {
        self.handle_ends()?;
        self.handle_status(report);
        Ok(())
    }
}

fn entry(end: &PlugEnd, report: Report) -> Entry<Report> {
    let report = match end.opener {
        Some(opener) => report.with_plugin(opener, &end.name),
        None => report,
    };
    let link = LinkEntry {
        interface: String::new(),
        addresses: Vec::new(),
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

fn command(words: &[OsString]) -> Result<OpenEnd> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Error::usage("there is no command"))?;
    let stream = CommandStream::start(Command::new(program).args(arguments))?;
    let name = program.to_string_lossy().into_owned();
    let opener = None;
    Ok((PlugEnd { name, opener }, Box::new(stream)))
}

fn stdio() -> Result<OpenEnd> {
    let duplicate = |fd: std::io::Result<OwnedFd>| {
        fd.map_err(|error| Error::io("use standard input and output", &error))
    };
    let input = duplicate(io::stdin().as_fd().try_clone_to_owned())?;
    let output = duplicate(io::stdout().as_fd().try_clone_to_owned())?;
    let end = PlugEnd {
        name: "standard input".into(),
        opener: None,
    };
    Ok((end, Box::new(Stream::<Vdestream>::new(input, output)?)))
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
        log.write("START");
        log
    }

    fn write(&self, event: &str) {
        let what = Line(&self.what);
        let record = format!("<30>vde_plug[{}]: {event} {what}", process::id());
        let sent = UnixDatagram::unbound().and_then(|socket| {
            // A system's log that does not read must not stop the plug.
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
        self.write("STOP");
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
