//! Forwards: ports outside that lead inside, changed while everything else goes on.
//!
//! Of TCP a socket listens outside; each connection is connected inside from the address of who
//! connects, so that the service sees it. Of UDP the socket outside is that of a mapping which
//! never ends. A client on this machine's loopback is shown as the gateway: its own address would
//! mean the service's.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use slab::Slab;
use socket2::{Domain, Socket, Type};

use super::poll::{Poll, Token};
use super::stock::Stock;
use super::tcp::Tcp;
use super::udp::Udp;
use crate::forward::{Forward, Protocol};

/// The connections that wait to be accepted, at most.
const BACKLOG: i32 = 1024;

/// How many connections of one forward are taken before others have their turn.
const TURN: usize = 64;

/// The most forwards.
const LIMIT: usize = 4096;

/// Where each forward's socket is.
enum Place {
    /// Its index among the listeners.
    Tcp(usize),
    /// Its index among the mappings.
    Udp(usize),
}

/// All forwards.
pub(crate) struct Forwards {
    places: BTreeMap<Forward, Place>,
    listeners: Slab<(Socket, SocketAddr)>,
    /// The listeners whose connections wait for a socket inside.
    waiting: Vec<usize>,
    /// The gateway's addresses.
    gateways: Vec<IpAddr>,
}

impl Forwards {
    pub(crate) fn new(gateways: Vec<IpAddr>) -> Self {
        Self {
            places: BTreeMap::new(),
            listeners: Slab::new(),
            waiting: Vec::new(),
            gateways,
        }
    }

    /// The forwards, in order.
    pub(crate) fn list(&self) -> impl Iterator<Item = &Forward> {
        self.places.keys()
    }

    /// The forward that listens already where another one would.
    pub(crate) fn other(&self, forward: &Forward) -> Option<&Forward> {
        self.places.keys().find(|other| other.collides(forward))
    }

    /// Begins to forward, with a socket of [`bind`].
    ///
    /// # Errors
    /// It is forwarded already, or a limit is reached.
    pub(crate) fn add(
        &mut self,
        forward: Forward,
        socket: Socket,
        poll: &Poll,
        udp: &mut Udp,
    ) -> io::Result<()> {
        if self.places.len() >= LIMIT {
            return Err(io::Error::other(format!(
                "there are {LIMIT} forwards already"
            )));
        }
        let place = match forward.protocol {
            Protocol::Tcp => {
                let index = self.listeners.insert((socket, forward.to));
                poll.read(&self.listeners[index].0, Token::Forward(index))?;
                Place::Tcp(index)
            }
            Protocol::Udp => Place::Udp(udp.forward(socket, forward.to, poll)?),
        };
        self.places.insert(forward, place);
        Ok(())
    }

    /// Ends a forward. Its connections go on.
    ///
    /// # Errors
    /// There is no such forward.
    pub(crate) fn remove(&mut self, forward: &Forward, udp: &mut Udp) -> io::Result<()> {
        match self.places.remove(forward) {
            Some(Place::Tcp(index)) => drop(self.listeners.remove(index)),
            Some(Place::Udp(index)) => udp.remove(index),
            None => return Err(io::Error::other("it is not forwarded")),
        }
        Ok(())
    }

    /// The listeners to be looked after when there are sockets inside again.
    pub(crate) fn take_waiting(&mut self) -> Vec<Token> {
        self.waiting.drain(..).map(Token::Forward).collect()
    }

    /// Takes connections from outside; `true` if there may be more.
    ///
    /// # Errors
    /// The gateway is gone.
    pub(crate) fn on_accept(
        &mut self,
        index: usize,
        poll: &Poll,
        stock: &mut Stock,
        tcp: &mut Tcp,
    ) -> io::Result<bool> {
        let Some((listener, to)) = self.listeners.get(index) else {
            return Ok(false);
        };
        for _ in 0..TURN {
            if !stock.has(Protocol::Tcp, to.is_ipv6())? {
                self.waiting.push(index);
                return Ok(false);
            }
            match listener.accept() {
                Ok((outside, from)) => {
                    let from = from.as_socket().unwrap_or(*to);
                    let shown = shown(&self.gateways, from, *to);
                    let _ = outside.set_nonblocking(true);
                    tcp.on_incoming(outside, shown, *to, poll, stock);
                }
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ECONNABORTED | Errno::EINTR) => {}
                    _ => return Ok(false),
                },
            }
        }
        Ok(true)
    }
}

/// The socket outside of a forward.
///
/// # Errors
/// The port is taken, or the user may not have it.
pub(crate) fn bind(forward: &Forward) -> io::Result<Socket> {
    let domain = Domain::for_address(forward.listen);
    let make = || {
        let kind = match forward.protocol {
            Protocol::Tcp => Type::STREAM,
            Protocol::Udp => Type::DGRAM,
        };
        let socket = Socket::new(domain, kind.nonblocking().cloexec(), None)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(true)?;
        }
        if forward.protocol == Protocol::Tcp {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&forward.listen.into())?;
        if forward.protocol == Protocol::Tcp {
            socket.listen(BACKLOG)?;
        }
        Ok(socket)
    };
    make().map_err(|error: io::Error| {
        let advice = match (error.kind(), forward.protocol) {
            (io::ErrorKind::PermissionDenied, _) => "; take a port from 1024 on",
            (io::ErrorKind::AddrInUse, Protocol::Tcp) => {
                "; another program has the port: take another one, or see which with ss -ltnp"
            }
            (io::ErrorKind::AddrInUse, Protocol::Udp) => {
                "; another program has the port: take another one, or see which with ss -lunp"
            }
            (io::ErrorKind::AddrNotAvailable, _) => "; ip addr shows the addresses of this machine",
            _ => "",
        };
        io::Error::new(
            error.kind(),
            format!("cannot forward {forward}: {error}{advice}"),
        )
    })
}

/// The address that a station sees of who connects. Port 0 is any port.
pub(crate) fn shown(gateways: &[IpAddr], from: SocketAddr, to: SocketAddr) -> SocketAddr {
    if from.is_ipv4() == to.is_ipv4() && !from.ip().is_loopback() {
        return from;
    }
    let gateway = gateways.iter().find(|ip| ip.is_ipv4() == to.is_ipv4());
    gateway.map_or(from, |ip| SocketAddr::new(*ip, 0))
}
