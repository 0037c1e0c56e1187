//! Echo requests (ping), sent on by ping sockets (icmp(7)), which need no privilege where
//! `net.ipv4.ping_group_range` allows them.
//!
//! A ping socket replaces the identifier of what it sends by its own, so each client address and
//! identifier has a socket. The gateway's own addresses are answered here. Errors that a request
//! meets outside come back as ICMP ([`unreachable`]).

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};

use super::datagram::{self, LONGEST};
use super::destination::{Destination, Destinations};
use super::poll::{Poll, Token};
use super::spare::not_last;
use super::unreachable::{self, Failure, HEADER, Sent};

/// How long a socket lives while no answer comes.
const IDLE: Duration = Duration::from_secs(30);

/// The most sockets.
const LIMIT: usize = 256;

/// How many packets of one socket are moved before others have their turn.
const TURN: usize = 64;

// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443).
const REQUEST_V4: u8 = 8;
const REPLY_V4: u8 = 0;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;

/// A client, and the identifier of its requests.
type Client = (IpAddr, [u8; 2]);

struct Ping {
    client: Client,
    socket: Socket,
    used: Instant,
}

/// All clients that ping.
pub(crate) struct Echo {
    inside: Vec<OwnedFd>,
    pings: Slab<Ping>,
    clients: HashMap<Client, usize>,
    buffer: Vec<u8>,
    /// Why ping sockets cannot be had, once that has been seen.
    pub refused: Option<String>,
}

impl Echo {
    pub(crate) fn new(inside: Vec<OwnedFd>, poll: &Poll) -> io::Result<Self> {
        for (index, socket) in inside.iter().enumerate() {
            poll.read(socket, Token::Echo(index))?;
        }
        Ok(Self {
            inside,
            pings: Slab::new(),
            clients: HashMap::new(),
            buffer: vec![0; LONGEST],
            refused: None,
        })
    }

    /// How many clients wait for answers.
    pub(crate) fn open(&self) -> usize {
        self.pings.len()
    }

    /// Sends requests from inside on; `true` if there may be more.
    pub(crate) fn on_request(
        &mut self,
        family: usize,
        poll: &Poll,
        destinations: &Destinations,
    ) -> bool {
        for _ in 0..TURN {
            let received = match datagram::receive(&self.inside[family], &mut self.buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return false,
                Err(_) => continue,
            };
            let packet = &mut self.buffer[..received.length];
            let Some((to, message)) = request(packet, received.to.map(|to| to.ip())) else {
                continue;
            };
            let from = received.from.ip();
            if destinations.is_own(to) {
                message[0] = if to.is_ipv4() { REPLY_V4 } else { REPLY_V6 };
                reply(&self.inside[family], from, to, message);
                continue;
            }
            let Destination::Outside(to) = destinations.find(SocketAddr::new(to, 0)) else {
                continue;
            };
            let client = (from, [message[4], message[5]]);
            let message = message.to_vec();
            match self.ping(poll, client) {
                Ok(index) => self.send(index, &message, to, destinations),
                Err(error) => self.refused = Some(error.to_string()),
            }
        }
        true
    }

    /// Sends a request on.
    fn send(&mut self, index: usize, message: &[u8], to: SocketAddr, destinations: &Destinations) {
        self.pings[index].used = Instant::now();
        let send = |echo: &Self| echo.pings[index].socket.send_to(message, &to.into());
        let mut sent = send(self);
        // The socket tells of an error that an earlier request met.
        if sent.is_err() && self.tell_failures(index) {
            sent = send(self);
        }
        let why = sent.err().and_then(|error| error.raw_os_error());
        if let Some(libc::ENETUNREACH | libc::EHOSTUNREACH) = why
            && let Some(header) = message.first_chunk()
        {
            let failure = Failure::no_route(to, destinations.gateway(to.ip()));
            let client = SocketAddr::new(self.pings[index].client.0, 0);
            self.fail(&failure, client, Sent::Echo(*header));
        }
    }

    /// Tells a client which of its requests have met an error; `false` if none has.
    fn tell_failures(&self, index: usize) -> bool {
        let Ping { client, socket, .. } = &self.pings[index];
        let (mut header, mut any) = ([0; HEADER], false);
        while let Some(failure) = datagram::failure(socket, &mut header) {
            header[4..6].copy_from_slice(&client.1);
            self.fail(&failure, SocketAddr::new(client.0, 0), Sent::Echo(header));
            any = true;
        }
        any
    }

    fn ping(&mut self, poll: &Poll, client: Client) -> io::Result<usize> {
        if let Some(&index) = self.clients.get(&client) {
            return Ok(index);
        }
        if self.pings.len() >= LIMIT
            && let Some((index, _)) = self.pings.iter().min_by_key(|(_, ping)| ping.used)
        {
            self.remove(index);
        }
        let (domain, protocol) = match client.0 {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(domain, kind, Some(protocol)).and_then(not_last)?;
        let _ = match client.0 {
            IpAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true),
            IpAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true),
        };
        let index = self.pings.insert(Ping {
            client,
            socket,
            used: Instant::now(),
        });
        if let Err(error) = poll.read(&self.pings[index].socket, Token::Ping(index)) {
            self.pings.remove(index);
            return Err(error);
        }
        self.clients.insert(client, index);
        Ok(index)
    }

    /// Sends answers to a client; `true` if there may be more.
    pub(crate) fn on_reply(&mut self, index: usize) -> bool {
        for _ in 0..TURN {
            let Some(ping) = self.pings.get_mut(index) else {
                return false;
            };
            let received = match datagram::receive(&ping.socket, &mut self.buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return false,
                Err(_) => {
                    self.tell_failures(index);
                    continue;
                }
            };
            ping.used = Instant::now();
            let message = &mut self.buffer[..received.length];
            if message.len() < 8 {
                continue;
            }
            message[4..6].copy_from_slice(&ping.client.1);
            let family = usize::from(received.from.is_ipv6());
            if let Some(inside) = self.inside.get(family) {
                reply(inside, ping.client.0, received.from.ip(), message);
            }
        }
        true
    }

    /// Tells a client that what it sent cannot be delivered.
    pub(crate) fn fail(&self, failure: &Failure, client: SocketAddr, sent: Sent) {
        let family = usize::from(client.is_ipv6());
        if let Some(message) = unreachable::message(failure, client, sent)
            && let Some(inside) = self.inside.get(family)
        {
            let to = SocketAddr::new(client.ip(), 0);
            // One that is lost is as one that the network has lost.
            let _ = datagram::send(inside, &message, None, to, Some(failure.from));
        }
    }

    fn remove(&mut self, index: usize) {
        let ping = self.pings.remove(index);
        self.clients.remove(&ping.client);
    }

    /// Ends the sockets that nobody uses.
    pub(crate) fn expire(&mut self, now: Instant) {
        let idle = |ping: &Ping| now.duration_since(ping.used) >= IDLE;
        let pings = self.pings.iter();
        let old: Vec<_> = pings
            .filter(|(_, p)| idle(p))
            .map(|(index, _)| index)
            .collect();
        for index in old {
            self.remove(index);
        }
    }
}

/// The echo request in a packet of a raw socket: its destination and its message. Of IPv4 the
/// packet has its header; of IPv6 the kernel says where it was sent.
pub(crate) fn request(packet: &mut [u8], to: Option<IpAddr>) -> Option<(IpAddr, &mut [u8])> {
    let (to, message, kind) = match to {
        Some(to) => (to, packet, REQUEST_V6),
        None => {
            let header = usize::from(packet.first()? & 15) * 4;
            if packet[0] >> 4 != 4 || header < 20 {
                return None;
            }
            let to: [u8; 4] = *packet.get(16..)?.first_chunk()?;
            (IpAddr::from(to), packet.get_mut(header..)?, REQUEST_V4)
        }
    };
    (message.len() >= 8 && message[0] == kind).then_some((to, message))
}

/// Sends an echo reply to a client, from the address that it asked.
fn reply(socket: &OwnedFd, client: IpAddr, from: IpAddr, message: &mut [u8]) {
    // Over IPv6 the kernel completes the checksum (RFC 3542, section 3.1).
    if from.is_ipv4() {
        message[2..4].fill(0);
        let sum = checksum(message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let _ = datagram::send(
        socket,
        message,
        None,
        SocketAddr::new(client, 0),
        Some(from),
    );
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let mut sum: u32 = words
        .map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |&low| u32::from(low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_from_the_rest() {
        let mut v4 = vec![0x45; 20];
        v4[16..20].copy_from_slice(&[1, 2, 3, 4]);
        v4.extend([8, 0, 0, 0, 0, 1, 0, 1]);
        let (to, message) = request(&mut v4.clone(), None)
            .map(|(t, m)| (t, m.len()))
            .unwrap();
        assert_eq!((to, message), ("1.2.3.4".parse().unwrap(), 8));
        for cut in 0..v4.len() {
            assert!(request(&mut v4[..cut].to_vec(), None).is_none());
        }
    }

    #[test]
    fn checksums() {
        assert_eq!(checksum(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(checksum(&[1]), !0x0100);
    }
}
