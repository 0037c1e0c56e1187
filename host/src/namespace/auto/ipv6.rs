//! IPv6: router advertisements (RFC 4861, RFC 8106), and DHCPv6 (RFC 8415) where they say that it
//! has more.
//!
//! The kernel makes addresses and routes from advertisements by itself. Here the router is asked
//! for one at once, name servers and search domains are read from it, and DHCPv6 is asked for
//! addresses (the flag M) or for other configuration (the flag O).

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use dhcproto::v6::{DhcpOption, IANA, Message, MessageType, ORO, OptionCode};
use dhcproto::{Decodable, Encodable};
use ipnet::{IpNet, Ipv6Net};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, Ipv6MembershipRequest, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6,
    bind, recv, sendto, setsockopt, socket, sockopt,
};

use super::{Names, Repeat};
use crate::error::{Error, Result, system};
use crate::sys::netlink::{Mac, Netlink};

const CLIENT: u16 = 546;
const SERVER: u16 = 547;

const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;

/// The longest message that is read, in bytes.
const LONGEST: usize = 4096;

/// How often it is looked whether the kernel has made an address from an advertisement.
const LOOK: Duration = Duration::from_millis(5);

/// What is waited for.
enum Phase {
    Advertisement,
    /// The kernel's address.
    Address(Names),
    /// DHCPv6's answer to a question of this kind.
    Dhcp(MessageType, Names),
    Done,
}

/// The client of one interface.
pub(super) struct Ipv6 {
    icmp: OwnedFd,
    dhcp: OwnedFd,
    interface: u32,
    mac: Mac,
    transaction: [u8; 3],
    phase: Phase,
    repeat: Repeat,
    /// What the advertisement leaves to DHCPv6.
    more: More,
    /// The server that offered an address, and its offer.
    offer: Option<(DhcpOption, DhcpOption)>,
    /// The names, when all is configured.
    finished: Option<Names>,
}

/// What DHCPv6 has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum More {
    #[default]
    Nothing,
    /// Other configuration: name servers.
    Other,
    /// Addresses as well.
    Addresses,
}

/// What an advertisement says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Advertisement {
    more: More,
    /// Whether clients make themselves an address.
    autonomous: bool,
    names: Names,
}

impl Ipv6 {
    /// Opens the sockets; `None` if the kernel has no IPv6.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn open(interface: &str, mac: Mac, now: Instant) -> Result<Option<Self>> {
        let index = if_nametoindex(interface).map_err(system(format_args!("find {interface}")))?;
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let icmp = SockProtocol::IcmpV6;
            let icmp = socket(AddressFamily::Inet6, SockType::Raw, flags, icmp)?;
            setsockopt(&icmp, sockopt::BindToDevice, &interface.into())?;
            // Solicitations with fewer hops left are ignored (RFC 4861, section 6.1.1).
            setsockopt(&icmp, sockopt::Ipv6MulticastHops, &255)?;
            let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            let group = Ipv6MembershipRequest::new(all_nodes);
            // Every node is a member of this group anyway.
            let _ = setsockopt(&icmp, sockopt::Ipv6AddMembership, &group);
            let dhcp = socket(AddressFamily::Inet6, SockType::Datagram, flags, None)?;
            setsockopt(&dhcp, sockopt::Ipv6V6Only, &true)?;
            setsockopt(&dhcp, sockopt::ReuseAddr, &true)?;
            setsockopt(&dhcp, sockopt::BindToDevice, &interface.into())?;
            bind(dhcp.as_raw_fd(), &address(Ipv6Addr::UNSPECIFIED, CLIENT, 0))?;
            Ok((icmp, dhcp))
        };
        let (icmp, dhcp) = match open() {
            Err(Errno::EAFNOSUPPORT) => return Ok(None),
            made => made.map_err(system(format_args!("open IPv6 sockets on {interface}")))?,
        };
        let random = getrandom::u32()
            .map_err(|error| Error::io("get a random number", &std::io::Error::from(error)))?;
        let [a, b, c, _] = random.to_ne_bytes();
        Ok(Some(Self {
            icmp,
            dhcp,
            interface: index,
            mac,
            transaction: [a, b, c],
            phase: Phase::Advertisement,
            repeat: Repeat::new(now),
            more: More::Nothing,
            offer: None,
            finished: None,
        }))
    }

    pub(super) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.icmp.as_fd(), self.dhcp.as_fd()]
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Repeats the question at once.
    pub(super) fn ask_again(&mut self, now: Instant) {
        self.repeat = Repeat::new(now);
    }

    /// What has not been answered, for a person.
    pub(super) fn silence(&self) -> &'static str {
        match self.phase {
            Phase::Advertisement => "no IPv6 router advertises itself",
            Phase::Address(_) => "the IPv6 router's advertisement gives no address",
            Phase::Dhcp(..) => "the IPv6 router refers to DHCPv6, where no server answers",
            Phase::Done => "IPv6 is configured",
        }
    }

    /// When [`Ipv6::advance`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Done => None,
            _ => Some(self.repeat.next),
        }
    }
}

impl Ipv6 {
    /// Reads what has come, and asks what is to be asked; the names when all is configured.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn advance(
        &mut self,
        netlink: &Netlink,
        interface: &str,
        now: Instant,
    ) -> Result<Option<Names>> {
        let mut buffer = [0; LONGEST];
        while let Ok(length) = recv(self.icmp.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            if let Phase::Advertisement = self.phase
                && let Some(told) = Advertisement::parse(&buffer[..length], interface)
            {
                self.more = told.more;
                self.repeat = Repeat::new(now);
                self.phase = match told.autonomous {
                    true => Phase::Address(told.names),
                    false => self.after_address(told.names),
                };
            }
        }
        if let Phase::Address(names) = &self.phase
            && has_address(interface)
        {
            let names = names.clone();
            self.repeat = Repeat::new(now);
            self.phase = self.after_address(names);
        }
        while let Ok(length) = recv(self.dhcp.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            if let Ok(message) = Message::from_bytes(&buffer[..length])
                && let Some(address) = self.receive(&message, interface, now)
            {
                netlink.add_address(interface, IpNet::V6(address))?;
            }
        }
        match &mut self.phase {
            Phase::Done => {}
            Phase::Address(_) => self.repeat.next = now + LOOK,
            Phase::Advertisement | Phase::Dhcp(..) if self.repeat.is_due(now) => self.ask()?,
            Phase::Advertisement | Phase::Dhcp(..) => {}
        }
        Ok(self.finished.take())
    }

    /// What comes when the kernel has made its addresses.
    fn after_address(&mut self, names: Names) -> Phase {
        match self.more {
            More::Nothing => self.finish(names),
            More::Other => Phase::Dhcp(MessageType::InformationRequest, names),
            More::Addresses => Phase::Dhcp(MessageType::Solicit, names),
        }
    }

    fn finish(&mut self, names: Names) -> Phase {
        self.finished = Some(names);
        Phase::Done
    }

    /// Takes a DHCPv6 server's message; an address if it leases one.
    fn receive(&mut self, message: &Message, interface: &str, now: Instant) -> Option<Ipv6Net> {
        let Phase::Dhcp(asked, names) = &self.phase else {
            return None;
        };
        let options = message.opts();
        if message.xid() != self.transaction || options.get(OptionCode::ServerId).is_none() {
            return None;
        }
        let mut names = names.clone();
        match (asked, message.msg_type()) {
            (MessageType::Solicit, MessageType::Advertise) => {
                let offer = options
                    .get(OptionCode::ServerId)
                    .zip(options.get(OptionCode::IANA));
                let (server, association) = offer?;
                leased(association)?;
                self.offer = Some((server.clone(), association.clone()));
                self.repeat = Repeat::new(now);
                self.phase = Phase::Dhcp(MessageType::Request, names);
                None
            }
            (MessageType::InformationRequest | MessageType::Request, MessageType::Reply) => {
                let address = match asked {
                    MessageType::Request => Some(leased(options.get(OptionCode::IANA)?)?),
                    _ => None,
                };
                let mut told = Names::default();
                if let Some(DhcpOption::DomainNameServers(servers)) =
                    options.get(OptionCode::DomainNameServers)
                {
                    for server in servers {
                        told.add_server(IpAddr::V6(*server), interface);
                    }
                }
                if let Some(DhcpOption::DomainSearchList(domains)) =
                    options.get(OptionCode::DomainSearchList)
                {
                    domains
                        .iter()
                        .for_each(|domain| told.add_domain(&domain.to_string()));
                }
                names.add(&told);
                self.phase = self.finish(names);
                address
            }
            _ => None,
        }
    }

    fn ask(&self) -> Result<()> {
        let (socket, bytes, to) = match &self.phase {
            Phase::Advertisement => {
                // The kernel completes the checksum (RFC 3542, section 3.1). Option 1 is this
                // end's Ethernet address.
                let mut bytes = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0, 1, 1];
                bytes.extend(self.mac);
                let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
                (&self.icmp, bytes, address(routers, 0, self.interface))
            }
            Phase::Dhcp(kind, _) => {
                let servers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
                (
                    &self.dhcp,
                    self.question(*kind)?,
                    address(servers, SERVER, self.interface),
                )
            }
            Phase::Address(_) | Phase::Done => return Ok(()),
        };
        match sendto(socket.as_raw_fd(), &bytes, &to, MsgFlags::empty()) {
            Ok(_) => Ok(()),
            // No carrier or no link-local address yet, or a full queue: the question is repeated.
            Err(
                Errno::ENETDOWN
                | Errno::ENOBUFS
                | Errno::EAGAIN
                | Errno::ENETUNREACH
                | Errno::EADDRNOTAVAIL
                | Errno::EHOSTUNREACH,
            ) => Ok(()),
            Err(errno) => Err(system("ask for IPv6 configuration")(errno)),
        }
    }

    fn question(&self, kind: MessageType) -> Result<Vec<u8>> {
        let mut message = Message::new_with_id(kind, self.transaction);
        let options = message.opts_mut();
        // A DUID of the link-layer address (RFC 8415, section 11.4): Ethernet.
        let mut id = vec![0, 3, 0, 1];
        id.extend(self.mac);
        options.insert(DhcpOption::ClientId(id));
        options.insert(DhcpOption::ElapsedTime(0));
        let wanted = vec![OptionCode::DomainNameServers, OptionCode::DomainSearchList];
        options.insert(DhcpOption::ORO(ORO { opts: wanted }));
        match (kind, &self.offer) {
            (MessageType::Solicit, _) => {
                let association = IANA {
                    id: 1,
                    t1: 0,
                    t2: 0,
                    opts: Default::default(),
                };
                options.insert(DhcpOption::IANA(association));
            }
            (MessageType::Request, Some((server, association))) => {
                options.insert(server.clone());
                options.insert(association.clone());
            }
            _ => {}
        }
        message
            .to_vec()
            .map_err(|error| Error::usage(error.to_string()))
    }
}

impl Advertisement {
    /// Reads an ICMPv6 message; `None` if it is no router advertisement. What is malformed ends the
    /// options.
    fn parse(bytes: &[u8], interface: &str) -> Option<Self> {
        if bytes.first() != Some(&ADVERTISEMENT) {
            return None;
        }
        let flags = *bytes.get(5)?;
        let mut told = Self {
            more: match flags {
                _ if flags & 0x80 != 0 => More::Addresses,
                _ if flags & 0x40 != 0 => More::Other,
                _ => More::Nothing,
            },
            ..Self::default()
        };
        let mut options = bytes.get(16..)?;
        while let [kind, length, ..] = *options {
            let length = usize::from(length) * 8;
            let Some(option) = options.get(2..length) else {
                break;
            };
            match kind {
                // Prefix information: the flag A.
                3 => told.autonomous |= option.get(1).is_some_and(|flags| flags & 0x40 != 0),
                // Recursive name servers: reserved, lifetime, addresses.
                25 => {
                    let servers = option.get(6..).unwrap_or(&[]).as_chunks::<16>().0;
                    for server in servers {
                        told.names.add_server(IpAddr::from(*server), interface);
                    }
                }
                // Search domains: reserved, lifetime, names.
                31 => {
                    let domains = domains(option.get(6..).unwrap_or(&[]));
                    domains
                        .iter()
                        .for_each(|domain| told.names.add_domain(domain));
                }
                _ => {}
            }
            options = options.get(length..).unwrap_or(&[]);
        }
        Some(told)
    }
}

/// The domain names in a DNS search list (RFC 8106, section 5.2): labels with their lengths, an
/// empty one at the end of each name, padding after the last.
fn domains(mut bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut labels: Vec<String> = Vec::new();
    while let Some((&length, rest)) = bytes.split_first() {
        let Some((label, rest)) = rest.split_at_checked(length.into()) else {
            break;
        };
        bytes = rest;
        if length > 0 {
            labels.push(String::from_utf8_lossy(label).into_owned());
        } else if !labels.is_empty() {
            found.push(labels.join("."));
            labels.clear();
        }
    }
    found
}

/// The address in an identity association (RFC 8415, section 21.4).
fn leased(association: &DhcpOption) -> Option<Ipv6Net> {
    let DhcpOption::IANA(association) = association else {
        return None;
    };
    match association.opts.get(OptionCode::IAAddr) {
        Some(DhcpOption::IAAddr(lease)) => Ipv6Net::new(lease.addr, 128).ok(),
        _ => None,
    }
}

/// Whether the kernel has made an address that reaches further than the link.
fn has_address(interface: &str) -> bool {
    let Ok(addresses) = nix::ifaddrs::getifaddrs() else {
        return false;
    };
    addresses
        .filter(|a| a.interface_name == interface)
        .any(|a| {
            let v6 = a
                .address
                .as_ref()
                .and_then(|address| address.as_sockaddr_in6());
            v6.is_some_and(|v6| !v6.ip().is_unicast_link_local())
        })
}

fn address(ip: Ipv6Addr, port: u16, scope: u32) -> SockaddrIn6 {
    std::net::SocketAddrV6::new(ip, port, 0, scope).into()
}

/// See [`super::names_in`].
pub(super) fn names_in(bytes: &[u8]) -> Option<Names> {
    if let Ok(message) = Message::from_bytes(bytes) {
        message.opts().get(OptionCode::IANA).and_then(leased);
    }
    Some(Advertisement::parse(bytes, "vde0")?.names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advertisements() {
        let mut bytes = vec![134, 0, 0, 0, 64, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([3, 4, 64, 0xc0]);
        bytes.extend([0; 28]);
        bytes.extend([25, 3, 0, 0, 0, 0, 1, 0]);
        bytes.extend([7; 16]);
        bytes.extend([31, 2, 0, 0, 0, 0, 1, 0, 1, b'a', 1, b'b', 0, 0, 0, 0]);
        let told = Advertisement::parse(&bytes, "vde0").unwrap();
        assert_eq!((told.more, told.autonomous), (More::Other, true));
        assert_eq!(told.names.servers, ["707:707:707:707:707:707:707:707"]);
        assert_eq!(told.names.search, ["a.b"]);
        for cut in 0..bytes.len() {
            let _ = Advertisement::parse(&bytes[..cut], "vde0");
        }
        assert_eq!(Advertisement::parse(&[133; 16], "vde0"), None);
    }
}
