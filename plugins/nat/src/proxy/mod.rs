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

mod datagram;
mod destination;
mod echo;
mod forwards;
mod names;
mod pipes;
mod poll;
mod stock;
mod stream;
mod tcp;
mod udp;
mod unreachable;

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket,
};
use socket2::Socket;

use crate::forward::Forward;
use crate::gateway::Inside;
use crate::report::{self, Report};
use crate::settings::Task;
use crate::wire::Channel;
use destination::Destinations;
use echo::Echo;
use forwards::Forwards;
use names::Names;
use poll::{Event, Poll, Token};
use stock::Stock;
use tcp::Tcp;
use udp::Udp;

/// How often timeouts are looked at.
const TICK: Duration = Duration::from_secs(5);

/// Descriptors that are not for connections.
const RESERVED: usize = 512;

/// Runs until the plugin ends. `plugin` is the socket that it holds the other end of.
///
/// # Errors
/// The gateway cannot be made, or has ended.
pub(crate) fn run(task: &Task, plugin: &UnixStream) -> io::Result<()> {
    let limit = descriptors();
    let poll = Poll::new()?;
    poll.read(plugin, Token::Plugin)?;
    let mut bound = Vec::new();
    for forward in &task.settings.forwards {
        bound.push((*forward, forwards::bind(forward)?));
    }
    report::tell(plugin, &Report::Started)?;
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
    let mut gateway = start_gateway(task, &path)?;
    let result = serve(task, listener, poll, limit, bound);
    let _ = gateway.kill();
    let _ = gateway.wait();
    result
}

/// Raises the limit of descriptors as far as the user may, and tells how many there are.
fn descriptors() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard as usize,
        Err(_) => soft as usize,
    }
}

/// Starts the session that the gateway runs in.
fn start_gateway(task: &Task, socket: &std::path::Path) -> io::Result<Child> {
    let mut command = Command::new(&task.vdens);
    command.arg("-q");
    if !task.panel {
        command.arg("--no-panel");
    }
    for address in task.settings.gateways() {
        command.arg("--addr").arg(address.to_string());
    }
    command.arg(format!("ptp://{}", task.directory.join("cable").display()));
    command
        .arg("--")
        .arg(std::env::current_exe()?)
        .arg("gateway");
    command
        .arg(serde_json::to_string(&task.settings)?)
        .arg(socket);
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?;
            Ok(())
        });
    }
    command.spawn()
}

fn serve(
    task: &Task,
    listener: OwnedFd,
    mut poll: Poll,
    limit: usize,
    bound: Vec<(Forward, Socket)>,
) -> io::Result<()> {
    use std::os::fd::{AsRawFd, FromRawFd};
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4 has just made the descriptor for this process.
    let channel = Channel::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let Some((_hold, inside, queue)) = channel.receive_sockets()? else {
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
    let connections = limit.saturating_sub(RESERVED).max(64) / 2;
    let gateways: Vec<IpAddr> = task.settings.gateways().iter().map(IpNet::addr).collect();
    let mut proxy = Proxy {
        destinations: Destinations::new(&task.settings),
        names: Names::new(task.settings.dns.clone()),
        tcp: Tcp::new(tcp, queue, bind, connections, &poll)?,
        udp: Udp::new(udp, bind, gateways.clone(), &poll)?,
        echo: Echo::new(icmp, &poll)?,
        forwards: Forwards::new(gateways),
        stock: Stock::new(channel, task.settings.net6.is_some())?,
        again: VecDeque::new(),
    };
    for (forward, socket) in bound {
        proxy.forwards.add(forward, socket, &poll, &mut proxy.udp)?;
    }
    let mut events: Vec<Event> = Vec::new();
    let mut tick = Instant::now() + TICK;
    loop {
        let now = Instant::now();
        if now >= tick {
            proxy.expire(now);
            tick = now + TICK;
        }
        proxy.names.expire(now, &poll);
        let wake = proxy.names.due().map_or(tick, |due| due.min(tick));
        let busy = proxy.tcp.is_busy() || !proxy.again.is_empty();
        let wait = if busy {
            Duration::ZERO
        } else {
            wake.saturating_duration_since(now)
        };
        events.clear();
        poll.wait(Some(wait), &mut events)?;
        for event in &events {
            if event.token == Token::Plugin {
                return Ok(());
            }
            proxy.handle(*event, &poll)?;
        }
        for _ in 0..proxy.again.len() {
            if let Some(event) = proxy.again.pop_front() {
                proxy.handle(event, &poll)?;
            }
        }
        proxy.tcp.turn();
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
    stock: Stock,
    /// The sockets that had more than their turn allowed.
    again: VecDeque<Event>,
}

impl Proxy {
    fn handle(&mut self, event: Event, poll: &Poll) -> io::Result<()> {
        let more = match event.token {
            Token::Plugin => false,
            Token::Gateway => {
                self.stock.refill()?;
                false
            }
            Token::Accept(family) => {
                self.tcp
                    .on_accept(family, poll, &self.destinations, &self.names)?;
                false
            }
            Token::Queue => {
                self.tcp.on_queue(poll, &self.destinations, &self.names)?;
                false
            }
            Token::Connect(index) => {
                self.tcp.on_connect(event, index, poll)?;
                false
            }
            Token::Inside(index) | Token::Outside(index) => {
                self.tcp.on_flow(event, index);
                false
            }
            Token::Datagrams(family) => self.udp.on_datagrams(
                family,
                poll,
                &mut self.stock,
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
                    .on_accept(index, poll, &mut self.stock, &mut self.tcp);
                false
            }
        };
        if more {
            self.again.push_back(event);
        }
        Ok(())
    }

    fn expire(&mut self, now: Instant) {
        self.tcp.expire(now);
        self.udp.expire(now);
        self.echo.expire(now);
    }
}
