//! IPv6: router advertisements (RFC 4861, RFC 8106), and DHCPv6 ([`super::dhcp6`]) where they say
//! that it has more.
//!
//! The kernel makes addresses and routes from advertisements by itself. Here the router is asked
//! for one at once, name servers and search domains are read from it, and DHCPv6 is asked for
//! addresses (the flag M) or for other configuration (the flag O).

use std::mem;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, Ipv6MembershipRequest, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6,
    recv, sendto, setsockopt, socket, sockopt,
};

use super::dhcp6::{Dhcp6, Lease};
use super::{Names, Repeat};
use crate::error::{Result, system};
use crate::sys::netlink::{Mac, Netlink};

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
    /// DHCPv6's answer.
    Dhcp(Names),
    Done,
}

/// The client of one interface.
pub(super) struct Ipv6 {
    icmp: OwnedFd,
    dhcp: Dhcp6,
    interface: u32,
    mac: Mac,
    phase: Phase,
    repeat: Repeat,
    /// What the advertisement leaves to DHCPv6.
    more: More,
    /// What DHCPv6 has leased, and when.
    lease: Option<(Lease, Instant)>,
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
    pub(super) fn open(name: &str, mac: Mac, now: Instant) -> Result<Option<Self>> {
        let interface = if_nametoindex(name).map_err(system(format_args!("find {name}")))?;
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let icmp = SockProtocol::IcmpV6;
            let icmp = socket(AddressFamily::Inet6, SockType::Raw, flags, icmp)?;
            setsockopt(&icmp, sockopt::BindToDevice, &name.into())?;
            // Solicitations with fewer hops left are ignored (RFC 4861, section 6.1.1).
            setsockopt(&icmp, sockopt::Ipv6MulticastHops, &255)?;
            let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
            let group = Ipv6MembershipRequest::new(all_nodes);
            // Every node is a member of this group anyway.
            let _ = setsockopt(&icmp, sockopt::Ipv6AddMembership, &group);
            Ok(icmp)
        };
        let icmp = match open() {
            Err(Errno::EAFNOSUPPORT) => return Ok(None),
            made => made.map_err(system(format_args!("open an ICMPv6 socket on {name}")))?,
        };
        Ok(Some(Self {
            icmp,
            dhcp: Dhcp6::open(name, interface, mac, now)?,
            interface,
            mac,
            phase: Phase::Advertisement,
            repeat: Repeat::new(now),
            more: More::Nothing,
            lease: None,
        }))
    }

    pub(super) fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.icmp.as_fd(), self.dhcp.fd()]
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// Repeats the question at once.
    pub(super) fn ask_again(&mut self, now: Instant) {
        self.repeat = Repeat::new(now);
        self.dhcp.ask_again(now);
    }

    /// The client of DHCPv6, its lease and since when it has that, if it leases an address.
    pub(super) fn leased(self) -> Option<(Dhcp6, Lease, Instant)> {
        let (lease, since) = self.lease?;
        Some((self.dhcp, lease, since))
    }

    /// What has not been answered, for a person.
    pub(super) fn silence(&self) -> &'static str {
        match self.phase {
            Phase::Advertisement => "no IPv6 router advertises itself",
            Phase::Address(_) => "the IPv6 router's advertisement gives no address",
            Phase::Dhcp(_) => "the IPv6 router refers to DHCPv6, where no server answers",
            Phase::Done => "IPv6 is configured",
        }
    }

    /// When [`Ipv6::advance`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Advertisement | Phase::Address(_) => Some(self.repeat.next),
            Phase::Dhcp(_) => self.dhcp.due(),
            Phase::Done => None,
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
                self.phase = Phase::Address(told.names);
                if !told.autonomous {
                    return self.after_address(netlink, interface, now);
                }
            }
        }
        match self.phase {
            Phase::Address(_) if has_address(interface) => {
                return self.after_address(netlink, interface, now);
            }
            Phase::Address(_) => self.repeat.next = now + LOOK,
            Phase::Advertisement if self.repeat.is_due(now) => self.solicit()?,
            Phase::Dhcp(_) => return self.ask_dhcp(netlink, interface, now),
            Phase::Advertisement | Phase::Done => {}
        }
        Ok(None)
    }

    /// Goes on when the kernel has made its addresses.
    fn after_address(
        &mut self,
        netlink: &Netlink,
        interface: &str,
        now: Instant,
    ) -> Result<Option<Names>> {
        let Phase::Address(names) = mem::replace(&mut self.phase, Phase::Done) else {
            return Ok(None);
        };
        match self.more {
            More::Nothing => return Ok(Some(names)),
            More::Other => self.dhcp.ask_for_information(now),
            More::Addresses => self.dhcp.ask_for_address(now),
        }
        self.phase = Phase::Dhcp(names);
        self.ask_dhcp(netlink, interface, now)
    }

    /// Asks DHCPv6, and takes its answer.
    fn ask_dhcp(
        &mut self,
        netlink: &Netlink,
        interface: &str,
        now: Instant,
    ) -> Result<Option<Names>> {
        let Some(told) = self.dhcp.advance(now)? else {
            return Ok(None);
        };
        if let Some(lease) = told.lease {
            netlink.add_address(interface, IpNet::V6(lease.address))?;
            self.lease = Some((lease, now));
        }
        let Phase::Dhcp(mut names) = mem::replace(&mut self.phase, Phase::Done) else {
            return Ok(None);
        };
        names.add(&told.names);
        Ok(Some(names))
    }

    fn solicit(&self) -> Result<()> {
        // The kernel completes the checksum (RFC 3542, section 3.1). Option 1 is this end's
        // Ethernet address.
        let mut bytes = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0, 1, 1];
        bytes.extend(self.mac);
        let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
        let to = SockaddrIn6::from(SocketAddrV6::new(routers, 0, 0, self.interface));
        match sendto(self.icmp.as_raw_fd(), &bytes, &to, MsgFlags::empty()) {
            Ok(_) => Ok(()),
            Err(errno) if may_pass(errno) => Ok(()),
            Err(errno) => Err(system("ask for IPv6 configuration")(errno)),
        }
    }
}

/// Whether a question that met an error is to be repeated: there is no carrier or no link-local
/// address yet, or a queue is full.
pub(super) fn may_pass(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENETDOWN
            | Errno::ENOBUFS
            | Errno::EAGAIN
            | Errno::ENETUNREACH
            | Errno::EADDRNOTAVAIL
            | Errno::EHOSTUNREACH
    )
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

/// See [`super::names_in`].
pub(super) fn names_in(bytes: &[u8]) -> Option<Names> {
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
