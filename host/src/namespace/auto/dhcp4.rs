//! The client of DHCP for IPv4 (RFC 2131): discover, request, and extend the lease in time
//! ([`super::renew`]).
//!
//! The socket is bound to its interface, so it works before the interface has an address. The
//! server is asked to answer by broadcast, and understood if it does not ([`super::early`]).

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Encodable};
use ipnet::{IpNet, Ipv4Net};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, bind, recv, sendto, setsockopt,
    socket, sockopt,
};

use super::early::Early;
use super::{Names, Repeat};
use crate::error::{Error, ErrorKind, Result, system};
use crate::sys::netlink::{Mac, Netlink};

const SERVER: u16 = 67;
pub(super) const CLIENT: u16 = 68;

/// What this client is (RFC 2132, section 9.13), so that a gateway of `nat://` says [`CABLE`].
const CLASS: &[u8] = b"vdens";

/// What such a gateway says of a link that is a cable between this namespace and its own.
const CABLE: &[u8] = b"\x01\x05cable";

/// The longest message that is read, in bytes.
const LONGEST: usize = 4096;

/// The shortest pause between two requests to extend a lease (RFC 2131, section 4.4.5), unless the
/// lease is too short for that.
const EXTEND: Duration = Duration::from_secs(60);

/// A lease that never ends, in seconds (RFC 2131, section 3.3; RFC 8415, section 7.7).
const FOR_EVER: u32 = u32::MAX;

/// When a lease is to be extended and when it ends, from its begin on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    /// T1: by the server that gave it.
    pub renew: Duration,
    /// T2: by any server.
    pub rebind: Duration,
    pub end: Duration,
}

/// What a server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub address: Ipv4Net,
    server: Ipv4Addr,
    /// `None`: it never ends.
    pub times: Option<Times>,
    router: Option<Ipv4Addr>,
    mtu: Option<u16>,
    /// Whether the link is a cable to a gateway of `nat://`, on the panel.
    pub is_cable: bool,
    pub names: Names,
}

impl Times {
    /// The times of a lease that ends after `end` seconds, with those that the server has told for
    /// T1 and T2, else half and seven eighths through it. `None`: it never ends.
    pub(super) fn new(renew: Option<u32>, rebind: Option<u32>, end: u32) -> Option<Self> {
        if end == FOR_EVER {
            return None;
        }
        let seconds = |time: u32| Duration::from_secs(time.into());
        // A lease of no time at all would be asked for without a pause.
        let end = seconds(end.max(2));
        let usual = Self {
            renew: end / 2,
            rebind: end * 7 / 8,
            end,
        };
        let told = Self {
            renew: renew.map_or(usual.renew, seconds),
            rebind: rebind.map_or(usual.rebind, seconds),
            end,
        };
        let can_be = told.renew < told.rebind && told.rebind < end && !told.renew.is_zero();
        Some(if can_be { told } else { usual })
    }
}

impl Lease {
    /// Configures the interface.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn apply(&self, netlink: &Netlink, interface: &str) -> Result<()> {
        if let Some(mtu) = self.mtu {
            netlink.set_mtu(interface, mtu.into())?;
        }
        netlink.add_address(interface, IpNet::V4(self.address))?;
        match self
            .router
            .map(|router| netlink.add_default_route(router.into()))
        {
            // Another interface was given one already.
            Some(Err(error)) if error.errno != libc::EEXIST => Err(error),
            _ => Ok(()),
        }
    }
}

/// What is waited for.
enum Phase {
    Offer,
    /// The answer to a request for the address that a server offered.
    Acknowledgement {
        address: Ipv4Addr,
        server: Ipv4Addr,
    },
    /// The answer to a request to extend a lease, from one server or from any.
    Extension {
        address: Ipv4Addr,
        server: Option<Ipv4Addr>,
    },
    /// A server has refused to extend the lease.
    Refused,
    Done,
}

/// The client of one interface.
pub(super) struct Dhcp4 {
    socket: OwnedFd,
    /// Where answers are read until there is a lease.
    early: Option<Early>,
    interface: String,
    mac: Mac,
    /// Whether the user has chosen the MTU, so that the server's is not taken.
    keep_mtu: bool,
    transaction: u32,
    phase: Phase,
    repeat: Repeat,
}

impl Dhcp4 {
    /// Opens the socket.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn open(interface: &str, mac: Mac, keep_mtu: bool, now: Instant) -> Result<Self> {
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
            setsockopt(&socket, sockopt::Broadcast, &true)?;
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            setsockopt(&socket, sockopt::BindToDevice, &interface.into())?;
            bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, CLIENT))?;
            Ok(socket)
        };
        let socket = open().map_err(system(format_args!("open a DHCP socket on {interface}")))?;
        let random = getrandom::u32()
            .map_err(|error| Error::io("get a random number", &std::io::Error::from(error)))?;
        Ok(Self {
            socket,
            early: open_early(interface),
            interface: interface.to_owned(),
            mac,
            keep_mtu,
            transaction: random,
            phase: Phase::Offer,
            repeat: Repeat::new(now),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        let early = self.early.as_ref().map(AsFd::as_fd);
        early.unwrap_or(self.socket.as_fd())
    }

    /// Whether there is a lease.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Whether a server has refused to extend the lease.
    pub(super) fn was_refused(&self) -> bool {
        matches!(self.phase, Phase::Refused)
    }

    /// Asks to extend a lease: the server that gave it, or all.
    pub(super) fn extend(&mut self, lease: &Lease, all: bool, pause: Duration, now: Instant) {
        self.transaction = self.transaction.wrapping_add(1);
        self.phase = Phase::Extension {
            address: lease.address.addr(),
            server: (!all).then_some(lease.server),
        };
        self.repeat = Repeat::rarely(now, EXTEND, pause);
    }

    /// Looks for a server anew.
    pub(super) fn start_over(&mut self, now: Instant) {
        self.early = open_early(&self.interface);
        self.transaction = self.transaction.wrapping_add(1);
        self.phase = Phase::Offer;
        self.repeat = Repeat::new(now);
    }

    /// What has not been answered, for a person.
    pub(super) fn silence(&self) -> String {
        match &self.phase {
            Phase::Acknowledgement { address, server } => format!(
                "the DHCP server {server} has offered {address} but does not acknowledge it"
            ),
            _ => "no DHCP server answers".to_owned(),
        }
    }

    /// Repeats the question at once.
    pub(super) fn ask_again(&mut self, now: Instant) {
        self.repeat = Repeat::new(now);
    }

    /// When [`Dhcp4::advance`] has something to say.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.is_done() && !self.was_refused()).then_some(self.repeat.next)
    }

    /// Reads what has come, and asks what is to be asked; the lease when it is there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn advance(&mut self, now: Instant) -> Result<Option<Lease>> {
        let mut buffer = [0; LONGEST];
        while let Ok(length) = self.read(&mut buffer) {
            let Ok(message) = Message::from_bytes(&buffer[length]) else {
                continue;
            };
            if let Some(lease) = self.receive(&message, now) {
                return Ok(Some(lease));
            }
        }
        if !self.is_done() && self.repeat.is_due(now) {
            self.ask()?;
        }
        Ok(None)
    }

    /// Reads what has come next, and returns where in `buffer` the message is.
    ///
    /// # Errors
    /// EAGAIN: there is nothing.
    fn read(&self, buffer: &mut [u8]) -> nix::Result<Range<usize>> {
        match &self.early {
            Some(early) => early.read(buffer),
            None => Ok(0..recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty())?),
        }
    }

    /// Takes a server's message.
    fn receive(&mut self, message: &Message, now: Instant) -> Option<Lease> {
        if message.xid() != self.transaction || !is_for(message, self.mac) {
            return None;
        }
        let options = message.opts();
        let Some(DhcpOption::MessageType(kind)) = options.get(OptionCode::MessageType) else {
            return None;
        };
        let Some(DhcpOption::ServerIdentifier(from)) = options.get(OptionCode::ServerIdentifier)
        else {
            return None;
        };
        match (&self.phase, kind) {
            (Phase::Offer, MessageType::Offer) => {
                let address = message.yiaddr();
                self.phase = Phase::Acknowledgement {
                    address,
                    server: *from,
                };
                self.repeat = Repeat::new(now);
                None
            }
            (Phase::Acknowledgement { server, .. }, MessageType::Nak) if server == from => {
                self.phase = Phase::Offer;
                self.repeat = Repeat::new(now + super::FIRST);
                None
            }
            (Phase::Acknowledgement { server, address }, MessageType::Ack)
                if server == from && *address == message.yiaddr() =>
            {
                self.take(message)
            }
            (Phase::Extension { address, .. }, MessageType::Ack)
                if *address == message.yiaddr() =>
            {
                self.take(message)
            }
            (Phase::Extension { .. }, MessageType::Nak) => {
                self.phase = Phase::Refused;
                None
            }
            _ => None,
        }
    }

    /// Takes an acknowledgement.
    fn take(&mut self, message: &Message) -> Option<Lease> {
        let mut lease = lease(message)?;
        lease.mtu = lease.mtu.filter(|_| !self.keep_mtu);
        self.phase = Phase::Done;
        self.early = None;
        Some(lease)
    }

    fn ask(&self) -> Result<()> {
        let mut message = Message::default();
        message.set_xid(self.transaction).set_chaddr(&self.mac);
        match &self.phase {
            // It has an address, so it can be answered there.
            Phase::Extension { address, .. } => drop(message.set_ciaddr(*address)),
            _ => drop(message.set_flags(Flags::default().set_broadcast())),
        }
        let options = message.opts_mut();
        match &self.phase {
            Phase::Offer => drop(options.insert(DhcpOption::MessageType(MessageType::Discover))),
            Phase::Acknowledgement { address, server } => {
                options.insert(DhcpOption::MessageType(MessageType::Request));
                options.insert(DhcpOption::RequestedIpAddress(*address));
                options.insert(DhcpOption::ServerIdentifier(*server));
            }
            Phase::Extension { .. } => {
                options.insert(DhcpOption::MessageType(MessageType::Request));
            }
            Phase::Refused | Phase::Done => return Ok(()),
        }
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::DomainName,
            OptionCode::DomainSearch,
            OptionCode::InterfaceMtu,
            OptionCode::VendorExtensions,
        ]));
        options.insert(DhcpOption::ClassIdentifier(CLASS.to_vec()));
        let bytes = message
            .to_vec()
            .map_err(|error| Error::new(ErrorKind::Other, error.to_string()))?;
        let to = match &self.phase {
            Phase::Extension {
                server: Some(server),
                ..
            } => *server,
            _ => Ipv4Addr::BROADCAST,
        };
        let to = SockaddrIn::from(SocketAddrV4::new(to, SERVER));
        match sendto(self.socket.as_raw_fd(), &bytes, &to, MsgFlags::empty()) {
            Ok(_) => Ok(()),
            // No carrier yet, or a full queue: the question is repeated.
            Err(Errno::ENETDOWN | Errno::ENOBUFS | Errno::EAGAIN | Errno::ENETUNREACH) => Ok(()),
            Err(errno) => Err(system("ask for an address by DHCP")(errno)),
        }
    }
}

/// The packet socket. Without one, answers to everybody are understood.
fn open_early(interface: &str) -> Option<Early> {
    let early = Early::open(interface);
    early
        .map_err(|errno| log::info!("{interface}: cannot open a packet socket: {errno}"))
        .ok()
}

/// Whether a message is for the client with this address. Only an address of the right length may
/// be read: the message says how long it is, which may be longer than the field.
fn is_for(message: &Message, mac: Mac) -> bool {
    usize::from(message.hlen()) == mac.len() && message.chaddr() == mac
}

/// What an acknowledgement gives; `None` if it gives no address that can be used.
fn lease(message: &Message) -> Option<Lease> {
    let options = message.opts();
    let prefix = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => ipnet::ipv4_mask_to_prefix(*mask).ok()?,
        _ => 32,
    };
    let address = Ipv4Net::new(message.yiaddr(), prefix).ok()?;
    if address.addr().is_unspecified() {
        return None;
    }
    let server = match options.get(OptionCode::ServerIdentifier) {
        Some(DhcpOption::ServerIdentifier(server)) => *server,
        _ => return None,
    };
    let router = match options.get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers.first().copied(),
        _ => None,
    };
    let mut names = Names::default();
    if let Some(DhcpOption::DomainNameServer(servers)) = options.get(OptionCode::DomainNameServer) {
        servers
            .iter()
            .for_each(|server| names.add_server(IpAddr::V4(*server), ""));
    }
    if let Some(DhcpOption::DomainSearch(domains)) = options.get(OptionCode::DomainSearch) {
        domains
            .iter()
            .for_each(|domain| names.add_domain(&domain.to_string()));
    } else if let Some(DhcpOption::DomainName(domain)) = options.get(OptionCode::DomainName) {
        names.add_domain(domain);
    }
    let mtu = match options.get(OptionCode::InterfaceMtu) {
        Some(DhcpOption::InterfaceMtu(mtu)) if *mtu >= 68 => Some(*mtu),
        _ => None,
    };
    let is_cable = match options.get(OptionCode::VendorExtensions) {
        Some(DhcpOption::VendorExtensions(said)) => said == CABLE,
        _ => false,
    };
    Some(Lease {
        address,
        is_cable,
        server,
        times: times(message),
        router,
        mtu,
        names,
    })
}

/// When a lease is to be extended.
fn times(message: &Message) -> Option<Times> {
    let options = message.opts();
    let Some(&DhcpOption::AddressLeaseTime(end)) = options.get(OptionCode::AddressLeaseTime) else {
        return None;
    };
    let renew = match options.get(OptionCode::Renewal) {
        Some(&DhcpOption::Renewal(seconds)) => Some(seconds),
        _ => None,
    };
    let rebind = match options.get(OptionCode::Rebinding) {
        Some(&DhcpOption::Rebinding(seconds)) => Some(seconds),
        _ => None,
    };
    Times::new(renew, rebind, end)
}

/// See [`super::names_in`].
pub(super) fn names_in(bytes: &[u8]) -> Option<Names> {
    let message = Message::from_bytes(bytes).ok()?;
    is_for(&message, Mac::default());
    Some(lease(&message)?.names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledgement(options: &[DhcpOption]) -> Message {
        let mut message = Message::default();
        message.set_yiaddr([10, 0, 2, 15]);
        let server = DhcpOption::ServerIdentifier([10, 0, 2, 2].into());
        for option in options.iter().chain([&server]) {
            message.opts_mut().insert(option.clone());
        }
        message
    }

    fn seconds(options: &[DhcpOption]) -> Option<[u64; 3]> {
        let times = lease(&acknowledgement(options)).unwrap().times?;
        Some([times.renew, times.rebind, times.end].map(|time| time.as_secs()))
    }

    #[test]
    fn when_a_lease_is_extended() {
        use DhcpOption::{AddressLeaseTime, Rebinding, Renewal};
        assert_eq!(seconds(&[]), None);
        assert_eq!(seconds(&[AddressLeaseTime(u32::MAX)]), None);
        assert_eq!(seconds(&[AddressLeaseTime(80)]), Some([40, 70, 80]));
        let told = [AddressLeaseTime(80), Renewal(10), Rebinding(20)];
        assert_eq!(seconds(&told), Some([10, 20, 80]));
        // What cannot be is not believed.
        let told = [AddressLeaseTime(80), Renewal(90), Rebinding(20)];
        assert_eq!(seconds(&told), Some([40, 70, 80]));
        assert_eq!(seconds(&[AddressLeaseTime(0)]), Some([1, 1, 2]));
    }
}
