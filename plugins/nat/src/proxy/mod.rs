//! The proxy: what runs in the caller's namespaces and owns the sockets outside.
//!
//! # Theory of operation
//!
//! It starts the gateway, a session of `vdens` plugged into the cable of the plugin, and gets the
//! sockets that the gateway made in its namespace. Then it is a loop around one epoll instance:
//! connections ([`tcp`]), datagrams ([`udp`]), names ([`names`]) and echo requests ([`echo`]) go
//! from a socket inside to one outside and back.
//!
//! It ends when the plugin does, and the gateway with it.

pub(crate) mod control;
mod datagram;
mod destination;
pub(crate) mod echo;
mod follow;
mod forwards;
pub(crate) mod names;
mod notices;
mod pipes;
mod poll;
mod spare;
mod stock;
mod stream;
mod tcp;
mod udp;
mod unreachable;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::poll::{PollFd, PollFlags, poll as poll_fds};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket,
};
use nix::unistd::{Pid, UnlinkatFlags, getpid, getppid, unlinkat};
use socket2::Socket;
use vdens_plugin_kit::control::ControlSocket;
use vdens_plugin_kit::process::open_pidfd;

use crate::forward::{self, Forward, Protocol, Wish};
use crate::gateway::{Hold, Inside, rules};
use crate::report::{Plugin, Report};
use crate::settings::Task;
use crate::wire::{Channel, Received};
use control::{Answer, Request};
use destination::Destinations;
use echo::Echo;
use follow::Follow;
use forwards::Forwards;
use names::Names;
use notices::Notices;
use poll::{Event, Poll, Token};
use stock::Stock;
use tcp::Tcp;
use udp::Udp;

/// How often timeouts are looked at.
const TICK: Duration = Duration::from_secs(5);

/// How long after something has happened the plugin is told.
const TELL: Duration = Duration::from_secs(1);

/// How often it is looked whether the gateway has ended before it connected, in milliseconds.
const LOOK: u16 = 200;

/// How long the gateway has to start: less than the plugin gives the proxy.
const START: Duration = Duration::from_secs(8);

/// How long the gateway's session may take to clean up: less than the plugin gives the proxy.
const CLEANUP: Duration = Duration::from_secs(3);

/// Runs until the plugin ends.
///
/// # Errors
/// There is no gateway yet, and there can be none. Later errors are reported to the plugin.
pub(crate) fn run(task: &Task, plugin: &mut Plugin) -> io::Result<()> {
    let limit = spare::raise_limit();
    let poll = Poll::new()?;
    poll.read(&*plugin, Token::Plugin)?;
    let mut bound = Vec::new();
    for forward in &task.settings.forwards {
        bound.push((*forward, forwards::bind(forward)?));
    }
    let mut follow = Follow::new(task.inside.clone(), task.settings.nets());
    for &(protocol, listen) in &task.settings.follow {
        follow.add(protocol, listen)?;
    }
    let control = ControlSocket::in_directory(&task.directory).map_err(io::Error::other)?;
    poll.read(control.fd(), Token::Control)?;
    let path = task.directory.join("gateway");
    let listener = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    use std::os::fd::AsRawFd;
    bind(listener.as_raw_fd(), &UnixAddr::new(&path)?)?;
    listen(&listener, Backlog::new(1)?)?;
    let directory = File::open(&task.directory)?;
    let mut gateway = start_gateway(task, &path)?;
    let mut end = Poll::new()?;
    let process = open_pidfd(gateway.id())?;
    end.read(&process, Token::Gateway)?;
    let outside = Outside {
        control,
        bound,
        follow,
        limit,
    };
    let result = match wait_for_gateway(&listener, plugin, &mut gateway) {
        Ok(true) => serve(task, plugin, listener, poll, outside),
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        // The plugin need not wait for the gateway's end.
        let _ = plugin.tell(&Report::of(&error));
    }
    end_gateway(&mut gateway, &mut end);
    // The plugin removes the directory, unless it was killed.
    for name in ["gateway", "control", "cable", "cable+"] {
        let _ = unlinkat(&directory, name, UnlinkatFlags::NoRemoveDir);
    }
    let _ = unlinkat(AT_FDCWD, &task.directory, UnlinkatFlags::RemoveDir);
    Ok(())
}

/// Waits until the gateway's session has cleaned up, which is without the proxy, and kills it if it
/// does not. `end` tells of its end.
fn end_gateway(gateway: &mut Child, end: &mut Poll) {
    let deadline = Instant::now() + CLEANUP;
    let _ = kill(Pid::from_raw(gateway.id() as i32), Signal::SIGTERM);
    while let Ok(None) = gateway.try_wait() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || end.wait(Some(left), &mut Vec::new()).is_err() {
            let _ = gateway.kill();
            let _ = gateway.wait();
            return;
        }
    }
}

/// Starts the session that the gateway runs in.
fn start_gateway(task: &Task, socket: &std::path::Path) -> io::Result<Child> {
    let mut command = Command::new(&task.vdens);
    // Not as the user's configuration says: the gateway has its own address, for example.
    command.args(["-q", "--config", "/dev/null"]);
    // The socket of the plugin is this process's alone: its end is how the plugin learns of ours.
    command.stdin(Stdio::null());
    let program = std::env::current_exe()?;
    if let Some(directory) = program.parent() {
        command.arg("--plugin-dir").arg(directory);
    }
    if !task.panel {
        command.arg("--no-panel");
    }
    if task.settings.is_cable {
        // As `--auto` does at the other end.
        command.arg("--big-tcp");
    }
    command.arg("--mac").arg(task.settings.mac());
    for address in task.settings.interface() {
        command.arg("--addr").arg(address.to_string());
    }
    if let Some(mtu) = task.settings.mtu {
        command.arg("--mtu").arg(mtu.to_string());
    }
    command.arg(format!("ptp://{}", task.directory.join("cable").display()));
    command.arg("--").arg(&program).arg("gateway");
    command
        .arg(serde_json::to_string(&task.settings)?)
        .arg(socket);
    let proxy = getpid();
    let follow_proxy = move || {
        set_pdeathsig(Signal::SIGTERM)?;
        // There is no signal for a death before that call.
        match getppid() == proxy {
            true => Ok(()),
            false => Err(Errno::ESRCH.into()),
        }
    };
    // SAFETY: between fork and exec only system calls are made, which are async-signal-safe.
    unsafe { command.pre_exec(follow_proxy) };
    command.spawn()
}

/// Waits until the gateway connects; `false` if the plugin has ended.
fn wait_for_gateway(
    listener: &OwnedFd,
    plugin: &mut Plugin,
    gateway: &mut Child,
) -> io::Result<bool> {
    let limit = Instant::now() + START;
    loop {
        let mut fds =
            [listener.as_fd(), plugin.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll_fds(&mut fds, LOOK) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [connects, asks] = fds.map(|fd| fd.any().unwrap_or(false));
        if asks && !plugin.answer()? {
            return Ok(false);
        }
        if connects {
            return Ok(true);
        }
        if Instant::now() >= limit {
            return Err(io::Error::other("the gateway of nat:// does not start"));
        }
        if let Some(status) = gateway.try_wait()? {
            return Err(io::Error::other(format!(
                "the gateway cannot start: {status}"
            )));
        }
    }
}

/// What the proxy has before there is a gateway.
struct Outside {
    control: ControlSocket,
    /// The forwards, and their sockets.
    bound: Vec<(Forward, Socket)>,
    follow: Follow,
    /// The most descriptors for connections and the like.
    limit: usize,
}

fn serve(
    task: &Task,
    plugin: &mut Plugin,
    listener: OwnedFd,
    mut poll: Poll,
    outside: Outside,
) -> io::Result<()> {
    use std::os::fd::{AsRawFd, FromRawFd};
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just made the descriptor for this process.
    let channel = Channel::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let Some(Received {
        hold,
        inside,
        queue,
    }) = channel.receive_sockets()?
    else {
        return Err(io::Error::other("the gateway ended"));
    };
    poll.read(&channel, Token::Gateway)?;
    let (mut tcp, mut udp, mut icmp) = (Vec::new(), Vec::new(), Vec::new());
    for Inside {
        tcp: t,
        udp: u,
        icmp: i,
    } in inside
    {
        tcp.push(t);
        udp.push(u);
        icmp.push(i);
    }
    let bind = task.settings.bind;
    let gateways: Vec<IpAddr> = task.settings.gateways().iter().map(IpNet::addr).collect();
    let mut proxy = Proxy {
        destinations: Destinations::new(&task.settings),
        names: Names::new(task.settings.dns.clone()),
        tcp: Tcp::new(tcp, queue, bind, outside.limit / 2, &poll)?,
        udp: Udp::new(udp, bind, gateways.clone(), &poll)?,
        echo: Echo::new(icmp, &poll)?,
        forwards: Forwards::new(gateways),
        follow: outside.follow,
        control: outside.control,
        processes: task.processes.clone(),
        first_client: task
            .settings
            .first_client()
            .unwrap_or(Ipv4Addr::UNSPECIFIED),
        stock: Stock::new(channel, task.settings.net6.is_some())?,
        again: VecDeque::new(),
    };
    for (forward, socket) in outside.bound {
        proxy.forwards.add(forward, socket, &poll, &mut proxy.udp)?;
    }
    if hold == Hold::None {
        let text = rules::NO_HOLD;
        plugin.tell(&Report::Warning(text.to_owned()))?;
    }
    if proxy.names.servers().is_empty() {
        let text = "/etc/resolv.conf names no name server, so names cannot be looked up inside; give servers with dns=, as in dns=192.0.2.53";
        plugin.tell(&Report::Warning(text.to_owned()))?;
    }
    crate::sandbox::enter_proxy()?;
    plugin.tell(&Report::Serving)?;
    let mut notices = Notices::default();
    let mut telling = Telling::default();
    let mut events: Vec<Event> = Vec::new();
    let mut tick = Instant::now() + TICK;
    loop {
        let now = Instant::now();
        if now >= tick {
            proxy.expire(now);
            for text in notices.due(now, &proxy.limits()) {
                plugin.tell(&Report::Warning(text))?;
            }
            tick = now + TICK;
        }
        proxy.names.expire(now, &poll);
        for text in proxy.follow(now, &poll) {
            plugin.tell(&Report::Warning(text))?;
        }
        let due = [proxy.names.due(), proxy.follow.due(), telling.due];
        let wake = due.into_iter().flatten().fold(tick, Instant::min);
        let busy = proxy.tcp.is_busy() || !proxy.again.is_empty();
        let wait = if busy {
            Duration::ZERO
        } else {
            wake.saturating_duration_since(now)
        };
        events.clear();
        poll.wait(Some(wait), &mut events)?;
        let is_work = |event: &Event| !matches!(event.token, Token::Plugin | Token::Gateway);
        telling.expect(events.iter().any(is_work));
        for event in &events {
            if event.token == Token::Plugin {
                if !plugin.answer()? {
                    return Ok(());
                }
                proxy.stock.ask_gateway()?;
                continue;
            }
            proxy.handle(*event, &poll)?;
        }
        for _ in 0..proxy.again.len() {
            if let Some(event) = proxy.again.pop_front() {
                proxy.handle(event, &poll)?;
            }
        }
        proxy.tcp.turn(&poll);
        telling.expect(std::mem::take(&mut proxy.stock.has_new_leases));
        if telling.is_due(Instant::now()) {
            telling.tell(plugin, proxy.status())?;
        }
    }
}

/// When the plugin is told what there is: a second after something has happened.
#[derive(Default)]
struct Telling {
    due: Option<Instant>,
    told: BTreeMap<String, String>,
}

impl Telling {
    fn expect(&mut self, happened: bool) {
        if happened && self.due.is_none() {
            self.due = Some(Instant::now() + TELL);
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| now >= due)
    }

    fn tell(&mut self, plugin: &mut Plugin, status: BTreeMap<String, String>) -> io::Result<()> {
        self.due = None;
        if status != self.told && plugin.tell(&Report::Status(status.clone()))? {
            self.told = status;
        }
        Ok(())
    }
}

/// The loop's state.
struct Proxy {
    destinations: Destinations,
    names: Names,
    tcp: Tcp,
    udp: Udp,
    echo: Echo,
    forwards: Forwards,
    follow: Follow,
    control: ControlSocket,
    /// The processes that the gateway belongs to.
    processes: Vec<u32>,
    /// The station that a forward leads to if it names none.
    first_client: Ipv4Addr,
    stock: Stock,
    /// The sockets that had more than their turn allowed.
    again: VecDeque<Event>,
}

impl Proxy {
    fn handle(&mut self, event: Event, poll: &Poll) -> io::Result<()> {
        let more = match event.token {
            Token::Plugin => false,
            Token::Control => {
                while let Some((request, asker)) = self.control.next_request() {
                    let answer = self.answer(request, poll);
                    self.control.answer(&asker, &answer);
                }
                false
            }
            Token::Gateway => {
                self.stock.refill()?;
                let waiting = self.forwards.take_waiting();
                self.again.extend(waiting.into_iter().map(Event::readable));
                false
            }
            Token::Accept(family) => {
                self.tcp
                    .on_accept(family, poll, &self.destinations, &self.names)?
            }
            Token::Queue => self.tcp.on_queue(poll, &self.destinations, &self.names)?,
            Token::Connect(index) => {
                self.tcp.on_connect(event, index, poll)?;
                false
            }
            Token::Inside(index) | Token::Outside(index) => {
                self.tcp.on_flow(event, index, poll);
                false
            }
            Token::Datagrams(family) => self.udp.on_datagrams(
                family,
                poll,
                &self.destinations,
                &mut self.names,
                &self.echo,
            )?,
            Token::Mapping(index) => self.udp.on_mapping(index, &mut self.stock, &self.echo),
            Token::Echo(family) => self.echo.on_request(family, poll, &self.destinations),
            Token::Ping(index) => self.echo.on_reply(index),
            Token::Names(index) => {
                if let Some((client, asked, answer)) = self.names.on_answer(index) {
                    self.udp.reply(client, asked, answer, &mut self.stock);
                }
                false
            }
            Token::Forward(index) => {
                self.forwards
                    .on_accept(index, poll, &mut self.stock, &mut self.tcp)?
            }
        };
        if more {
            self.again.push_back(event);
        }
        Ok(())
    }

    /// Does what a request at run time asks.
    fn answer(&mut self, request: Request, poll: &Poll) -> Answer {
        let result = match request {
            Request::List => Ok(()),
            Request::Add(protocol, text) => match self.parse(protocol, &text) {
                Err(error) => Err(error),
                Ok(Wish::Auto(listen)) => self.follow.add(protocol, listen),
                Ok(Wish::Ports(forwards)) => self.add(forwards, poll),
            },
            Request::Remove(protocol, text) => match self.parse(protocol, &text) {
                Err(error) => Err(error),
                Ok(Wish::Auto(listen)) => self.follow.remove(protocol, listen).map(|ended| {
                    for forward in ended {
                        // It may have been removed by hand before.
                        let _ = self.forwards.remove(&forward, &mut self.udp);
                    }
                }),
                Ok(Wish::Ports(forwards)) => forwards
                    .iter()
                    .try_for_each(|forward| self.forwards.remove(forward, &mut self.udp)),
            },
        };
        Answer {
            error: result.err().map(|error| error.to_string()),
            forwards: self.forwarded(),
            processes: self.processes.clone(),
        }
    }

    /// Adds forwards: all of them or none.
    fn add(&mut self, forwards: Vec<Forward>, poll: &Poll) -> io::Result<()> {
        let mut bound = Vec::new();
        for forward in forwards {
            if let Some(other) = self.forwards.other(&forward) {
                return Err(io::Error::other(format!(
                    "cannot forward {forward}: {other} is forwarded already; \
                     remove that first, or take another port"
                )));
            }
            bound.push((forward, forwards::bind(&forward)?));
        }
        bound.into_iter().try_for_each(|(forward, socket)| {
            self.forwards.add(forward, socket, poll, &mut self.udp)
        })
    }

    /// Forwards what listens inside now, if it is time to look; what could not be forwarded.
    fn follow(&mut self, now: Instant, poll: &Poll) -> Vec<String> {
        let changes = self.follow.look(now, self.first_client);
        for forward in &changes.gone {
            // It may have been removed by hand before.
            let _ = self.forwards.remove(forward, &mut self.udp);
        }
        let mut failed: Vec<_> = self.follow.blindness().into_iter().collect();
        for forward in changes.new {
            if self.forwards.other(&forward).is_some() {
                // One that was asked for by number.
                continue;
            }
            let added = self.add(vec![forward], poll);
            failed.extend(self.follow.tried(forward, added));
        }
        failed
    }

    /// What is forwarded, for a person.
    fn forwarded(&self) -> Vec<String> {
        let forwards = self.forwards.list().map(ToString::to_string);
        self.follow.list().chain(forwards).collect()
    }

    fn parse(&self, protocol: Protocol, text: &str) -> io::Result<Wish> {
        forward::parse(protocol, text, self.first_client).map_err(io::Error::other)
    }

    /// How often each limit was reached, and what that means.
    fn limits(&self) -> [(&'static str, u64); 3] {
        let (tcp, udp) = (&self.tcp.counts, &self.udp.counts);
        [
            (
                "connections were refused: there are as many as descriptors allow; \
                 raise the limit of open files (ulimit -n)",
                tcp.limited,
            ),
            (
                "half-open connections ended for new ones: \
                 a client opens more than the far sides answer",
                tcp.evicted,
            ),
            (
                "UDP mappings ended for new ones, the idlest first: \
                 clients use more ports than there is room for",
                udp.evicted,
            ),
        ]
    }

    /// What `vdectl status` shows.
    fn status(&self) -> BTreeMap<String, String> {
        let (tcp, udp) = (&self.tcp.counts, &self.udp.counts);
        let bytes_out = tcp.bytes_out + udp.bytes_out;
        let bytes_in = tcp.bytes_in + udp.bytes_in;
        let mut status: BTreeMap<_, _> = [
            ("connections", self.tcp.open().to_string()),
            ("connections opened", tcp.opened.to_string()),
            ("connections refused", tcp.refused.to_string()),
            ("UDP mappings", self.udp.open().to_string()),
            ("pings", self.echo.open().to_string()),
            ("bytes out", bytes_out.to_string()),
            ("bytes in", bytes_in.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let forwards = self.forwarded();
        let drops = [
            ("dropped: datagrams", udp.dropped),
            ("dropped: connections over the limit", tcp.limited),
            ("dropped: half-open connections", tcp.evicted),
            ("dropped: UDP mappings evicted", udp.evicted),
            ("dropped: names without an answer", self.names.unanswered),
        ];
        let drops = drops.into_iter().filter(|(_, count)| *count > 0);
        status.extend(drops.map(|(name, count)| (name.to_owned(), count.to_string())));
        if !self.stock.leases.is_empty() {
            status.insert("leases".to_owned(), self.stock.leases.join(", "));
        }
        if !forwards.is_empty() {
            status.insert("forwards".to_owned(), forwards.join(", "));
        }
        if let Some(why) = &self.stock.refused {
            status.insert("the gateway makes no sockets".to_owned(), why.clone());
        }
        if let Some(why) = &self.echo.refused {
            let why = format!("{why} (see net.ipv4.ping_group_range)");
            status.insert("ping is refused".to_owned(), why);
        }
        status
    }

    fn expire(&mut self, now: Instant) {
        self.names.refresh();
        self.tcp.expire(now);
        self.udp.expire(now);
        self.echo.expire(now);
    }
}
