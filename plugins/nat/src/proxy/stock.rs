//! Sockets in the gateway's namespace, made by the gateway before they are needed.
//!
//! A process gives its sockets the network namespace that it is in, so the gateway makes them; what
//! they are bound to is the proxy's choice. They are transparent: any address will do. The proxy
//! may bind ports below 1024, because its user owns the gateway's user namespace
//! (user_namespaces(7)).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use socket2::Socket;

use crate::forward::Protocol;
use crate::heartbeat::Heartbeat;
use crate::wire::{Answer, Channel, Kind, Request, STOCK};

/// The sockets that are there.
pub(crate) struct Stock {
    channel: Channel,
    sockets: HashMap<Kind, Vec<OwnedFd>>,
    /// The kinds that have been asked for.
    asked: Vec<Kind>,
    heartbeat: Heartbeat,
    /// Why the gateway has made none, the last time that it could not.
    pub refused: Option<String>,
    /// Who has which address, as the gateway said last.
    pub leases: Vec<String>,
    /// Whether that has changed since it was told to the plugin.
    pub has_new_leases: bool,
}

impl Stock {
    /// Asks for the first ones.
    ///
    /// # Errors
    /// The gateway is gone.
    pub(crate) fn new(channel: Channel, ipv6: bool) -> io::Result<Self> {
        let mut stock = Self {
            channel,
            sockets: HashMap::new(),
            asked: Vec::new(),
            heartbeat: Heartbeat::default(),
            refused: None,
            leases: Vec::new(),
            has_new_leases: false,
        };
        let families = [Some(false), ipv6.then_some(true)];
        for ipv6 in families.into_iter().flatten() {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                stock.ask(Kind { protocol, ipv6 })?;
            }
        }
        Ok(stock)
    }

    /// Whether there are sockets of a kind now, one and a spare. If not, some are asked for.
    ///
    /// # Errors
    /// The gateway is gone.
    pub(crate) fn has(&mut self, protocol: Protocol, ipv6: bool) -> io::Result<bool> {
        let kind = Kind { protocol, ipv6 };
        let is_there = self.sockets.get(&kind).is_some_and(|all| all.len() > 1);
        if !is_there && !self.asked.contains(&kind) {
            self.ask(kind)?;
        }
        Ok(is_there)
    }

    /// A socket, bound to an address.
    ///
    /// # Errors
    /// There is none left now (`WouldBlock`), or the address is taken.
    pub(crate) fn bound(&mut self, protocol: Protocol, to: SocketAddr) -> io::Result<Socket> {
        let kind = Kind {
            protocol,
            ipv6: to.is_ipv6(),
        };
        let sockets = self.sockets.entry(kind).or_default();
        let socket = sockets.pop();
        if sockets.len() < STOCK / 2 && !self.asked.contains(&kind) {
            self.ask(kind)?;
        }
        let socket = Socket::from(socket.ok_or(io::ErrorKind::WouldBlock)?);
        socket.bind(&to.into())?;
        Ok(socket)
    }

    /// A socket that sends datagrams from a port of any address.
    ///
    /// # Errors
    /// As for [`Stock::bound`].
    pub(crate) fn answering(&mut self, port: u16, ipv6: bool) -> io::Result<Socket> {
        let any: IpAddr = if ipv6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        self.bound(Protocol::Udp, SocketAddr::new(any, port))
    }

    /// Asks whether the gateway still runs.
    ///
    /// # Errors
    /// It has not answered for too long, or is gone.
    pub(crate) fn ask_gateway(&mut self) -> io::Result<()> {
        if !self.heartbeat.ask() {
            return Err(io::Error::other("the gateway of nat:// does not answer"));
        }
        match self.channel.request(Request::Ping) {
            // Its socket has questions enough.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ended()),
            sent => sent,
        }
    }

    /// Takes what the gateway has made.
    ///
    /// # Errors
    /// The gateway is gone.
    pub(crate) fn refill(&mut self) -> io::Result<()> {
        loop {
            match self.channel.receive_answer() {
                Ok(Some(answer)) => {
                    self.heartbeat.answered();
                    self.take(answer);
                }
                Ok(None) => return Err(ended()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self, answer: Answer) {
        let (kind, made) = match answer {
            Answer::Sockets(kind, made) => (kind, made),
            Answer::Leases(leases) => {
                self.leases = leases;
                self.has_new_leases = true;
                return;
            }
            Answer::Alive => return,
        };
        self.asked.retain(|asked| *asked != kind);
        match made {
            Ok(sockets) => self.sockets.entry(kind).or_default().extend(sockets),
            // The next that needs one asks again.
            Err(why) => self.refused = Some(why),
        }
    }

    fn ask(&mut self, kind: Kind) -> io::Result<()> {
        self.channel.request(Request::Sockets(kind))?;
        self.asked.push(kind);
        Ok(())
    }
}

fn ended() -> io::Error {
    io::Error::other("the gateway ended")
}
