//! The client of DHCPv6 (RFC 8415): it asks for an address, or for other configuration only, and
//! extends a lease in time ([`super::renew`]).

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use dhcproto::v6::{DhcpOption, IANA, Message, MessageType, ORO, OptionCode};
use dhcproto::{Decodable, Encodable};
use ipnet::Ipv6Net;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn6, bind, recv, sendto, setsockopt,
    socket, sockopt,
};

use super::dhcp4::Times;
use super::{Names, Repeat};
use crate::error::{Error, Result, system};
use crate::sys::netlink::Mac;

const CLIENT: u16 = 546;
const SERVER: u16 = 547;

/// All DHCPv6 servers and relays of a link (RFC 8415, section 7.1).
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// The longest message that is read, in bytes.
const LONGEST: usize = 4096;

/// The shortest pause between two requests to extend a lease (RFC 8415, section 7.6), unless the
/// lease is too short for that.
const EXTEND: Duration = Duration::from_secs(10);

/// A leased address, or the offer of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub address: Ipv6Net,
    /// `None`: it never ends.
    pub times: Option<Times>,
    /// The identifier of the server that gave it.
    server: DhcpOption,
    /// What the server sent, which is sent back to extend the lease.
    association: DhcpOption,
}

/// What a server told.
pub(super) struct Told {
    /// The lease, if one was asked for.
    pub lease: Option<Lease>,
    pub names: Names,
}

/// What is waited for.
enum Phase {
    /// Other configuration than an address.
    Information,
    Offer,
    /// The answer to a request for what a server offered.
    Lease(Lease),
    /// The answer to a request to extend a lease, by the server that gave it or by all.
    Extension(Lease, Whom),
    /// A server has refused to extend the lease.
    Refused,
    Done,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whom {
    Giver,
    All,
}

/// The client of one interface.
pub(super) struct Dhcp6 {
    socket: OwnedFd,
    name: String,
    interface: u32,
    mac: Mac,
    transaction: u32,
    phase: Phase,
    repeat: Repeat,
}

impl Dhcp6 {
    /// Opens the socket, and asks nothing yet. `interface` is the index of the interface `name`.
    ///
    /// # Errors
    /// The kernel refuses. `EAFNOSUPPORT`: it has no IPv6.
    pub(super) fn open(name: &str, interface: u32, mac: Mac, now: Instant) -> Result<Self> {
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Inet6, SockType::Datagram, flags, None)?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            setsockopt(&socket, sockopt::BindToDevice, &name.into())?;
            let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, CLIENT, 0, 0);
            bind(socket.as_raw_fd(), &SockaddrIn6::from(any))?;
            Ok(socket)
        };
        let random = getrandom::u32()
            .map_err(|error| Error::io("get a random number", &std::io::Error::from(error)))?;
        Ok(Self {
            socket: open().map_err(system(format_args!("open a DHCPv6 socket on {name}")))?,
            name: name.to_owned(),
            interface,
            mac,
            transaction: random,
            phase: Phase::Done,
            repeat: Repeat::new(now),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether a server has refused to extend the lease.
    pub(super) fn was_refused(&self) -> bool {
        matches!(self.phase, Phase::Refused)
    }

    /// Asks for other configuration than an address.
    pub(super) fn ask_for_information(&mut self, now: Instant) {
        self.begin(Phase::Information, Repeat::new(now));
    }

    /// Looks for a server that leases an address.
    pub(super) fn ask_for_address(&mut self, now: Instant) {
        self.begin(Phase::Offer, Repeat::new(now));
    }

    /// Asks to extend a lease: the server that gave it, or all.
    pub(super) fn extend(&mut self, lease: &Lease, all: bool, pause: Duration, now: Instant) {
        let whom = if all { Whom::All } else { Whom::Giver };
        let repeat = Repeat::rarely(now, EXTEND, pause);
        self.begin(Phase::Extension(lease.clone(), whom), repeat);
    }

    fn begin(&mut self, phase: Phase, repeat: Repeat) {
        self.transaction = self.transaction.wrapping_add(1);
        self.phase = phase;
        self.repeat = repeat;
    }

    /// Repeats the question at once.
    pub(super) fn ask_again(&mut self, now: Instant) {
        self.repeat = Repeat::new(now);
    }

    /// When [`Dhcp6::advance`] has something to say.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Refused | Phase::Done => None,
            _ => Some(self.repeat.next),
        }
    }

    /// Reads what has come, and asks what is to be asked; what a server has told when it has.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn advance(&mut self, now: Instant) -> Result<Option<Told>> {
        let mut buffer = [0; LONGEST];
        while let Ok(length) = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            if let Ok(message) = Message::from_bytes(&buffer[..length])
                && let Some(told) = self.receive(&message, now)
            {
                return Ok(Some(told));
            }
        }
        if self.due().is_some() && self.repeat.is_due(now) {
            self.ask()?;
        }
        Ok(None)
    }

    /// Takes a server's message.
    fn receive(&mut self, message: &Message, now: Instant) -> Option<Told> {
        let options = message.opts();
        if message.xid() != self.xid() || options.get(OptionCode::ServerId).is_none() {
            return None;
        }
        let lease = match (&self.phase, message.msg_type()) {
            (Phase::Offer, MessageType::Advertise) => {
                let offer = leased(message)?;
                self.begin(Phase::Lease(offer), Repeat::new(now));
                return None;
            }
            (Phase::Information, MessageType::Reply) => None,
            (Phase::Lease(_), MessageType::Reply) => Some(leased(message)?),
            (Phase::Extension(old, _), MessageType::Reply) => {
                let extended = leased(message).filter(|new| new.address == old.address);
                if extended.is_none() {
                    self.phase = Phase::Refused;
                }
                Some(extended?)
            }
            _ => return None,
        };
        self.phase = Phase::Done;
        let names = names(message, &self.name);
        Some(Told { lease, names })
    }

    fn ask(&self) -> Result<()> {
        let Some(message) = self.question() else {
            return Ok(());
        };
        let bytes = message
            .to_vec()
            .map_err(|error| Error::usage(error.to_string()))?;
        let to = SockaddrIn6::from(SocketAddrV6::new(SERVERS, SERVER, 0, self.interface));
        match sendto(self.socket.as_raw_fd(), &bytes, &to, MsgFlags::empty()) {
            Ok(_) => Ok(()),
            Err(errno) if super::ipv6::may_pass(errno) => Ok(()),
            Err(errno) => Err(system("ask for IPv6 configuration by DHCPv6")(errno)),
        }
    }

    fn question(&self) -> Option<Message> {
        let (kind, lease) = match &self.phase {
            Phase::Information => (MessageType::InformationRequest, None),
            Phase::Offer => (MessageType::Solicit, None),
            Phase::Lease(offer) => (MessageType::Request, Some(offer)),
            Phase::Extension(lease, Whom::Giver) => (MessageType::Renew, Some(lease)),
            Phase::Extension(lease, Whom::All) => (MessageType::Rebind, Some(lease)),
            Phase::Refused | Phase::Done => return None,
        };
        let mut message = Message::new_with_id(kind, self.xid());
        let options = message.opts_mut();
        // A DUID of the link-layer address (RFC 8415, section 11.4): Ethernet.
        let mut id = vec![0, 3, 0, 1];
        id.extend(self.mac);
        options.insert(DhcpOption::ClientId(id));
        options.insert(DhcpOption::ElapsedTime(0));
        let wanted = vec![OptionCode::DomainNameServers, OptionCode::DomainSearchList];
        options.insert(DhcpOption::ORO(ORO { opts: wanted }));
        if kind == MessageType::Solicit {
            options.insert(DhcpOption::IANA(IANA {
                id: 1,
                t1: 0,
                t2: 0,
                opts: Default::default(),
            }));
        }
        if let Some(lease) = lease {
            options.insert(lease.association.clone());
            if kind != MessageType::Rebind {
                options.insert(lease.server.clone());
            }
        }
        Some(message)
    }

    fn xid(&self) -> [u8; 3] {
        let [_, a, b, c] = self.transaction.to_be_bytes();
        [a, b, c]
    }
}

/// The lease in a server's message (RFC 8415, section 21.4); `None` if there is none, or none that
/// has time left.
fn leased(message: &Message) -> Option<Lease> {
    let options = message.opts();
    let server = options.get(OptionCode::ServerId)?.clone();
    let option = options.get(OptionCode::IANA)?;
    let DhcpOption::IANA(association) = option else {
        return None;
    };
    let DhcpOption::IAAddr(given) = association.opts.get(OptionCode::IAAddr)? else {
        return None;
    };
    if given.valid_life == 0 {
        return None;
    }
    // The server leaves times to the client by writing 0.
    let told = |seconds: u32| (seconds > 0).then_some(seconds);
    Some(Lease {
        address: Ipv6Net::new(given.addr, 128).ok()?,
        times: Times::new(told(association.t1), told(association.t2), given.valid_life),
        server,
        association: option.clone(),
    })
}

/// What a server's message says of names.
fn names(message: &Message, interface: &str) -> Names {
    let (options, mut names) = (message.opts(), Names::default());
    if let Some(DhcpOption::DomainNameServers(servers)) = options.get(OptionCode::DomainNameServers)
    {
        for server in servers {
            names.add_server(IpAddr::V6(*server), interface);
        }
    }
    if let Some(DhcpOption::DomainSearchList(domains)) = options.get(OptionCode::DomainSearchList) {
        for domain in domains {
            names.add_domain(&domain.to_string());
        }
    }
    names
}

/// See [`super::names_in`].
pub(super) fn names_in(bytes: &[u8]) -> Option<Names> {
    let message = Message::from_bytes(bytes).ok()?;
    leased(&message);
    Some(names(&message, "vde0"))
}
