//! UDP: each client address and port inside has one socket outside, whatever it sends to.
//!
//! # Theory of operation
//!
//! Mapping and filtering are endpoint-independent (RFC 4787, REQ-1 and REQ-8): everything that
//! arrives at the socket outside goes to its client, and seems to come from where it really comes
//! from. For that there is one transparent socket per remote port, which answers from whatever
//! address ([`Stock`]).
//!
//! A mapping ends when nothing has passed for a time (REQ-5), and the idlest one ends when there
//! are too many.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use slab::Slab;
use socket2::{Domain, Socket, Type};

use super::datagram::{self, Batch, Run};
use super::destination::{Destination, Destinations, loopback};
use super::echo::Echo;
use super::forwards::shown;
use super::names::Names;
use super::poll::{Poll, Token};
use super::spare::not_last;
use super::stock::Stock;
use super::unreachable::{Failure, HEADER, Sent};

/// How long a mapping lives while nothing passes: RFC 4787 (REQ-5) recommends five minutes.
const IDLE: Duration = Duration::from_secs(300);

/// As [`IDLE`], while the client sends only to name servers: resolvers take a new port for each
/// question, and REQ-5 allows less for well-known ports.
const IDLE_NAMES: Duration = Duration::from_secs(30);

/// The port of name servers.
const NAMES: u16 = 53;

/// The most mappings, and so sockets.
const LIMIT: usize = 4096;

/// The most sockets that answer from ports.
const PORTS: usize = 256;

/// The size of a socket's buffers, in bytes.
const BUFFER: usize = 1 << 20;

struct Mapping {
    client: SocketAddr,
    socket: Socket,
    used: Instant,
    /// For how long it may be idle.
    idle: Duration,
    /// It is a forward's, and stays.
    stays: bool,
}

/// All mappings.
pub(crate) struct Udp {
    inside: Vec<OwnedFd>,
    bind: Option<IpAddr>,
    /// The gateway's addresses.
    gateways: Vec<IpAddr>,
    mappings: Slab<Mapping>,
    clients: HashMap<SocketAddr, usize>,
    /// The sockets that answer, by port and whether it is one of IPv6.
    answering: HashMap<(u16, bool), Socket>,
    batch: Batch,
    pub counts: Counts,
}

/// What has been so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub bytes_out: u64,
    pub bytes_in: u64,
    /// Datagrams that were dropped.
    pub dropped: u64,
    /// Mappings that ended for another.
    pub evicted: u64,
}

impl Udp {
    pub(crate) fn new(
        inside: Vec<OwnedFd>,
        bind: Option<IpAddr>,
        gateways: Vec<IpAddr>,
        poll: &Poll,
    ) -> io::Result<Self> {
        for (index, socket) in inside.iter().enumerate() {
            poll.read(socket, Token::Datagrams(index))?;
        }
        Ok(Self {
            inside,
            bind,
            gateways,
            mappings: Slab::new(),
            clients: HashMap::new(),
            answering: HashMap::new(),
            batch: Batch::default(),
            counts: Counts::default(),
        })
    }

    /// How many mappings there are.
    pub(crate) fn open(&self) -> usize {
        self.mappings.len()
    }

    /// Moves datagrams from inside; `true` if there may be more.
    pub(crate) fn on_datagrams(
        &mut self,
        family: usize,
        poll: &Poll,
        destinations: &Destinations,
        names: &mut Names,
        echo: &Echo,
    ) -> io::Result<bool> {
        let mut batch = std::mem::take(&mut self.batch);
        let end = batch.receive(&self.inside[family]);
        for run in &batch.runs {
            let bytes = batch.bytes(run);
            let Some(to) = run.to else {
                self.counts.dropped += 1;
                continue;
            };
            // What a forward's station answers to the gateway is for a client on the loopback.
            let is_forward = self
                .clients
                .get(&run.from)
                .is_some_and(|&index| self.mappings[index].stays);
            match destinations.find(to) {
                Destination::Nowhere if is_forward && destinations.is_own(to.ip()) => {
                    let to = SocketAddr::new(loopback(to.ip()), to.port());
                    self.send(poll, run, bytes, to, destinations, echo);
                }
                Destination::Outside(to) => self.send(poll, run, bytes, to, destinations, echo),
                Destination::Names => {
                    let size = run.segment().map_or(bytes.len(), usize::from).max(1);
                    for question in bytes.chunks(size) {
                        names.ask(poll, run.from, to, question);
                    }
                }
                Destination::Nowhere => self.counts.dropped += 1,
            }
        }
        self.batch = batch;
        match end {
            None => Ok(true),
            Some(Errno::EAGAIN) => Ok(false),
            Some(Errno::EBADF) => Err(Errno::EBADF.into()),
            // A datagram that cannot be read is one that is lost.
            Some(_) => {
                self.counts.dropped += 1;
                Ok(true)
            }
        }
    }

    /// Sends datagrams from inside to where they are to go outside.
    fn send(
        &mut self,
        poll: &Poll,
        run: &Run,
        bytes: &[u8],
        to: SocketAddr,
        destinations: &Destinations,
        echo: &Echo,
    ) {
        let Ok(index) = self.mapping(poll, run.from, to.is_ipv4()) else {
            self.counts.dropped += 1;
            return;
        };
        let mapping = &mut self.mappings[index];
        mapping.used = Instant::now();
        if to.port() != NAMES {
            mapping.idle = IDLE;
        }
        let send = || datagram::send(&mapping.socket, bytes, run.segment(), to, None);
        let mut sent = send();
        if let Err(error) = sent {
            // The socket tells of an error that an earlier datagram met.
            let mut is_earlier = false;
            while let Some(failure) = datagram::failure(&mapping.socket, &mut [0; HEADER]) {
                echo.fail(&failure, mapping.client, Sent::Datagram);
                is_earlier = true;
            }
            if is_earlier && error != Errno::EMSGSIZE {
                sent = send();
            }
        }
        match sent {
            Ok(()) => self.counts.bytes_out += bytes.len() as u64,
            Err(error) => {
                self.counts.dropped += 1;
                if let Errno::ENETUNREACH | Errno::EHOSTUNREACH = error {
                    let failure = Failure::no_route(to, destinations.gateway(to.ip()));
                    echo.fail(&failure, mapping.client, Sent::Datagram);
                }
            }
        }
    }

    /// The mapping of a client, which is made if there is none.
    fn mapping(&mut self, poll: &Poll, client: SocketAddr, ipv4: bool) -> io::Result<usize> {
        if let Some(&index) = self.clients.get(&client) {
            return Ok(index);
        }
        if self.mappings.len() >= LIMIT {
            self.evict();
        }
        let domain = if ipv4 { Domain::IPV4 } else { Domain::IPV6 };
        let make = || {
            let kind = Type::DGRAM.nonblocking().cloexec();
            Socket::new(domain, kind, None).and_then(not_last)
        };
        let socket = match make() {
            Err(_) if self.evict() => make(),
            made => made,
        }?;
        let any = if ipv4 {
            IpAddr::from(Ipv4Addr::UNSPECIFIED)
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let from = self
            .bind
            .filter(|bind| bind.is_ipv4() == ipv4)
            .unwrap_or(any);
        // The client's own port where it is free, as RFC 4787 (REQ-3) lets it.
        let same = SocketAddr::new(from, client.port());
        if client.port() < 1024 || socket.bind(&same.into()).is_err() {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        self.insert(client, socket, false, poll)
    }

    /// Ends the idlest mapping; `false` if there is none that may end.
    fn evict(&mut self) -> bool {
        let mortal = self.mappings.iter().filter(|(_, mapping)| !mapping.stays);
        let idlest = mortal.min_by_key(|(_, mapping)| mapping.used);
        let Some((index, _)) = idlest else {
            return false;
        };
        self.counts.evicted += 1;
        self.remove(index);
        true
    }

    fn insert(
        &mut self,
        client: SocketAddr,
        socket: Socket,
        stays: bool,
        poll: &Poll,
    ) -> io::Result<usize> {
        let _ = socket.set_recv_buffer_size(BUFFER);
        let _ = socket.set_send_buffer_size(BUFFER);
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        let _ = match client {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true),
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true),
        };
        let used = Instant::now();
        let index = self.mappings.insert(Mapping {
            client,
            socket,
            used,
            idle: IDLE_NAMES,
            stays,
        });
        if let Err(error) = poll.read(&self.mappings[index].socket, Token::Mapping(index)) {
            self.mappings.remove(index);
            return Err(error);
        }
        self.clients.insert(client, index);
        Ok(index)
    }

    /// Moves datagrams to a client; `true` if there may be more.
    pub(crate) fn on_mapping(&mut self, index: usize, stock: &mut Stock, echo: &Echo) -> bool {
        let Some(mapping) = self.mappings.get_mut(index) else {
            return false;
        };
        mapping.used = Instant::now();
        let client = mapping.client;
        let end = self.batch.receive(&mapping.socket);
        for run in &self.batch.runs {
            let bytes = self.batch.bytes(run);
            let mut from = run.from;
            if mapping.stays {
                let seen = shown(&self.gateways, from, client);
                from = SocketAddr::new(seen.ip(), from.port());
            }
            let key = (from.port(), from.is_ipv6());
            let sent = answering(&mut self.answering, stock, key).is_ok_and(|socket| {
                datagram::send(socket, bytes, run.segment(), client, Some(from.ip())).is_ok()
            });
            match sent {
                true => self.counts.bytes_in += bytes.len() as u64,
                false => self.counts.dropped += 1,
            }
        }
        match end {
            Some(Errno::EAGAIN) => false,
            None => true,
            // An error that an earlier datagram met.
            Some(_) => {
                self.counts.dropped += 1;
                while let Some(failure) = datagram::failure(&mapping.socket, &mut [0; HEADER]) {
                    echo.fail(&failure, client, Sent::Datagram);
                }
                true
            }
        }
    }

    /// Answers a client from an address and port inside.
    pub(crate) fn reply(
        &mut self,
        client: SocketAddr,
        from: SocketAddr,
        bytes: &[u8],
        stock: &mut Stock,
    ) {
        let key = (from.port(), from.is_ipv6());
        let sent = answering(&mut self.answering, stock, key).is_ok_and(|socket| {
            datagram::send(socket, bytes, None, client, Some(from.ip())).is_ok()
        });
        self.counts.dropped += u64::from(!sent);
    }

    /// A socket outside that leads to a station inside, until it is removed: its index.
    ///
    /// # Errors
    /// As for [`Poll::read`].
    pub(crate) fn forward(
        &mut self,
        socket: Socket,
        to: SocketAddr,
        poll: &Poll,
    ) -> io::Result<usize> {
        self.insert(to, socket, true, poll)
    }

    /// Ends a mapping.
    pub(crate) fn remove(&mut self, index: usize) {
        let mapping = self.mappings.remove(index);
        if self.clients.get(&mapping.client) == Some(&index) {
            self.clients.remove(&mapping.client);
        }
    }

    /// Ends the mappings that nobody uses.
    pub(crate) fn expire(&mut self, now: Instant) {
        let is_old =
            |mapping: &Mapping| !mapping.stays && now.duration_since(mapping.used) >= mapping.idle;
        let mappings = self.mappings.iter();
        let old: Vec<_> = mappings
            .filter(|(_, mapping)| is_old(mapping))
            .map(|(index, _)| index)
            .collect();
        for index in old {
            self.remove(index);
        }
    }
}

/// The socket that answers from a port, which is made if there is none.
fn answering<'a>(
    sockets: &'a mut HashMap<(u16, bool), Socket>,
    stock: &mut Stock,
    key: (u16, bool),
) -> io::Result<&'a Socket> {
    if sockets.len() >= PORTS
        && !sockets.contains_key(&key)
        && let Some(other) = sockets.keys().next().copied()
    {
        sockets.remove(&other);
    }
    match sockets.entry(key) {
        Entry::Occupied(entry) => Ok(entry.into_mut()),
        Entry::Vacant(entry) => Ok(entry.insert(stock.answering(key.0, key.1)?)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::settings::Settings;

    /// A table whose clients send to a port of the loopback.
    struct Table {
        udp: Udp,
        poll: Poll,
        echo: Echo,
        destinations: Destinations,
    }

    impl Table {
        fn new() -> Self {
            let poll = Poll::new().unwrap();
            let settings = Settings::parse("host=10.0.2.2").unwrap();
            Self {
                udp: Udp::new(Vec::new(), None, Vec::new(), &poll).unwrap(),
                echo: Echo::new(Vec::new(), &poll).unwrap(),
                destinations: Destinations::new(&settings),
                poll,
            }
        }

        fn send(&mut self, client: &str, to: SocketAddr) {
            let run = Run::of(client.parse().unwrap(), to);
            self.udp
                .send(&self.poll, &run, b"x", to, &self.destinations, &self.echo);
        }

        fn clients(&self) -> Vec<u16> {
            let mut all: Vec<_> = self.udp.clients.keys().map(SocketAddr::port).collect();
            all.sort_unstable();
            all
        }

        /// Ends what is old when nothing has passed for a time.
        fn after(&mut self, idle: Duration) -> Vec<u16> {
            self.udp.expire(Instant::now() + idle);
            self.clients()
        }
    }

    const SHORT: Duration = Duration::from_secs(5);

    #[test]
    fn mappings_end_after_a_time() {
        let mut table = Table::new();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let far = far.local_addr().unwrap();
        let server = "127.0.0.1:53".parse().unwrap();
        table.send("10.0.2.15:1001", server);
        table.send("10.0.2.15:1002", far);
        // Once it is used for more than names, it stays.
        for to in [server, far, server] {
            table.send("10.0.2.15:1003", to);
        }
        let socket = Socket::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        let station = "10.0.2.15:1004".parse().unwrap();
        table.udp.forward(socket, station, &table.poll).unwrap();
        assert_eq!(table.after(IDLE_NAMES - SHORT), [1001, 1002, 1003, 1004]);
        assert_eq!(table.after(IDLE_NAMES), [1002, 1003, 1004]);
        assert_eq!(table.after(IDLE - SHORT), [1002, 1003, 1004]);
        assert_eq!(table.after(IDLE), [1004]);
        assert_eq!(table.udp.open(), 1);
        assert_eq!(table.udp.counts.evicted, 0);
    }

    #[test]
    fn a_mapping_that_is_used_stays() {
        let mut table = Table::new();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        let far = far.local_addr().unwrap();
        for client in ["10.0.2.15:1001", "10.0.2.15:1002"] {
            table.send(client, far);
        }
        let index = table.udp.clients[&"10.0.2.15:1001".parse().unwrap()];
        table.udp.mappings[index].used += SHORT;
        assert_eq!(table.after(IDLE), [1001]);
    }
}
