//! What the gateway serves in its own namespace: addresses and routes for clients (DHCP for IPv4,
//! router advertisements and stateless DHCPv6 for IPv6).
//!
//! One socket each, none of which blocks. A client that has no address yet is answered by
//! broadcast.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use dhcproto::{Decodable, Encodable, Name, v4, v6};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

use super::advertisement::{Advertisement, SOLICITATION};
use super::leases::{Leases, Offer};
use super::sockets::set_option;
use crate::settings::Settings;

pub(crate) const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCP6_SERVER: u16 = 547;

/// All nodes of a link (RFC 4291, section 2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All routers of a link.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// All DHCPv6 servers and relays of a link (RFC 8415, section 7.1).
const ALL_DHCP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// How many messages of one socket are answered before others have their turn.
const TURN: usize = 64;

/// The longest message that is read, in bytes.
const LONGEST: usize = 2048;

/// The services.
pub(crate) struct Services {
    v4: Option<(Socket, Leases)>,
    v6: Option<V6>,
}

struct V6 {
    advertisements: Socket,
    dhcp: Socket,
    advertisement: Advertisement,
    interface: u32,
}

impl Services {
    /// Opens the sockets of what the settings ask for.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn open(settings: &Settings, interface: &str, is_router6: bool) -> io::Result<Self> {
        Ok(Self {
            v4: open_v4(settings, interface)?,
            v6: open_v6(settings, interface, is_router6)?,
        })
    }

    /// The descriptors to wait for.
    pub(crate) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let v4 = self.v4.iter().map(|(socket, _)| socket.as_fd());
        let v6 = self
            .v6
            .iter()
            .flat_map(|v6| [v6.advertisements.as_fd(), v6.dhcp.as_fd()]);
        v4.chain(v6).collect()
    }

    /// Answers what has come.
    pub(crate) fn serve(&mut self) {
        let mut buffer = [0; LONGEST];
        if let Some((socket, leases)) = &mut self.v4 {
            for _ in 0..TURN {
                let Some((bytes, _)) = receive(socket, &mut buffer) else {
                    break;
                };
                let Ok(message) = v4::Message::from_bytes(bytes) else {
                    continue;
                };
                let Some(reply) = leases.answer(&message, Instant::now()) else {
                    continue;
                };
                let known = message.ciaddr();
                let to = if known.is_unspecified() {
                    Ipv4Addr::BROADCAST
                } else {
                    known
                };
                if let Ok(bytes) = reply.to_vec() {
                    let to = SocketAddr::from((to, DHCP_CLIENT));
                    // A reply that is lost is asked for again.
                    let _ = socket.send_to(&bytes, &to.into());
                }
            }
        }
        if let Some(v6) = &self.v6 {
            let mut solicited = false;
            for _ in 0..TURN {
                let Some((bytes, _)) = receive(&v6.advertisements, &mut buffer) else {
                    break;
                };
                solicited |= bytes.first() == Some(&SOLICITATION);
            }
            if solicited {
                self.advertise();
            }
            for _ in 0..TURN {
                let Some((bytes, from)) = receive(&v6.dhcp, &mut buffer) else {
                    break;
                };
                if let Some(reply) = answer6(bytes, &v6.advertisement) {
                    let _ = v6.dhcp.send_to(&reply, &from.into());
                }
            }
        }
    }

    /// Who has which address, if that has changed since the last call.
    pub(crate) fn new_leases(&mut self) -> Option<Vec<String>> {
        let (_, leases) = self.v4.as_mut()?;
        leases.changes()
    }

    /// Advertises the gateway to everyone.
    pub(crate) fn advertise(&self) {
        if let Some(v6) = &self.v6 {
            let to = SocketAddrV6::new(ALL_NODES, 0, 0, v6.interface);
            let _ = v6
                .advertisements
                .send_to(&v6.advertisement.bytes(), &SocketAddr::from(to).into());
        }
    }
}

fn receive<'a>(socket: &Socket, buffer: &'a mut [u8; LONGEST]) -> Option<(&'a [u8], SocketAddr)> {
    use std::os::fd::AsRawFd;
    let fd = socket.as_raw_fd();
    let (length, from) =
        nix::sys::socket::recvfrom::<nix::sys::socket::SockaddrStorage>(fd, buffer).ok()?;
    let from = from?;
    let v4 = from
        .as_sockaddr_in()
        .map(|a| SocketAddr::from((a.ip(), a.port())));
    let v6 = || {
        let a = from.as_sockaddr_in6()?;
        Some(SocketAddrV6::new(a.ip(), a.port(), 0, a.scope_id()).into())
    };
    Some((&buffer[..length], v4.or_else(v6)?))
}

fn open_v4(settings: &Settings, interface: &str) -> io::Result<Option<(Socket, Leases)>> {
    let Some(leases) = leases(settings) else {
        return Ok(None);
    };
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), None)?;
    socket.set_broadcast(true)?;
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, DHCP_SERVER)).into())?;
    Ok(Some((socket, leases)))
}

/// No leases yet, of the network of IPv4 if there is one.
pub(crate) fn leases(settings: &Settings) -> Option<Leases> {
    let (Some(net), Some(server), Some(first), Some(dns)) = (
        settings.net,
        settings.gateway4(),
        settings.first_client(),
        settings.dns4(),
    ) else {
        return None;
    };
    let mtu = settings.mtu.and_then(|mtu| u16::try_from(mtu).ok());
    let offer = Offer {
        net,
        server,
        first,
        dns,
        mtu,
        is_cable: settings.is_cable,
        search: names(&settings.search),
    };
    Some(Leases::new(offer))
}

fn open_v6(settings: &Settings, interface: &str, is_router: bool) -> io::Result<Option<V6>> {
    let (Some(net), Some(dns)) = (settings.net6, settings.dns6()) else {
        return Ok(None);
    };
    let index = if_nametoindex(interface)?;
    let kind = Type::RAW.nonblocking().cloexec();
    let advertisements = Socket::new(Domain::IPV6, kind, Some(Protocol::ICMPV6))?;
    // Advertisements with fewer hops left are ignored (RFC 4861, section 6.1.2).
    advertisements.set_multicast_hops_v6(255)?;
    advertisements.set_unicast_hops_v6(255)?;
    advertisements.set_multicast_loop_v6(false)?;
    advertisements.set_multicast_if_v6(index)?;
    advertisements.join_multicast_v6(&ALL_ROUTERS, index)?;
    // ICMP6_FILTER (1) of IPPROTO_ICMPV6 (58): a mask of the types that are not received.
    let mut mask = [0xff; 32];
    mask[usize::from(SOLICITATION / 32) * 4] &= !(1 << (SOLICITATION % 32));
    set_option(&advertisements, 58, 1, &mask)?;
    let dhcp = Socket::new(Domain::IPV6, Type::DGRAM.nonblocking().cloexec(), None)?;
    dhcp.set_only_v6(true)?;
    dhcp.set_reuse_address(true)?;
    dhcp.bind_device(Some(interface.as_bytes()))?;
    dhcp.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, DHCP6_SERVER)).into())?;
    dhcp.join_multicast_v6(&ALL_DHCP6, index)?;
    let mac = mac(interface)?;
    let advertisement = Advertisement {
        net,
        dns,
        mtu: settings.mtu,
        mac,
        is_router,
        search: settings.search.clone(),
    };
    Ok(Some(V6 {
        advertisements,
        dhcp,
        advertisement,
        interface: index,
    }))
}

/// The answer to a DHCPv6 information request (RFC 8415, section 18.3.6): addresses are not leased.
pub(crate) fn answer6(bytes: &[u8], advertisement: &Advertisement) -> Option<Vec<u8>> {
    let request = v6::Message::from_bytes(bytes).ok()?;
    if request.msg_type() != v6::MessageType::InformationRequest {
        return None;
    }
    let mut reply = v6::Message::new_with_id(v6::MessageType::Reply, request.xid());
    let options = reply.opts_mut();
    // A DUID of the link-layer address (section 11.4): Ethernet.
    let mut id = vec![0, 3, 0, 1];
    id.extend(advertisement.mac);
    options.insert(v6::DhcpOption::ServerId(id));
    if let Some(client) = request.opts().get(v6::OptionCode::ClientId) {
        options.insert(client.clone());
    }
    options.insert(v6::DhcpOption::DomainNameServers(vec![advertisement.dns]));
    let search = names(&advertisement.search);
    if !search.is_empty() {
        options.insert(v6::DhcpOption::DomainSearchList(search));
    }
    reply.to_vec().ok()
}

/// Domains as names that end at the root.
fn names(domains: &[String]) -> Vec<Name> {
    let names = domains.iter().map(|domain| format!("{domain}.").parse());
    names.filter_map(Result::ok).collect()
}

/// The Ethernet address of an interface.
fn mac(interface: &str) -> io::Result<[u8; 6]> {
    for address in nix::ifaddrs::getifaddrs()? {
        let link = address
            .address
            .as_ref()
            .and_then(|a| a.as_link_addr())
            .and_then(|a| a.addr());
        if address.interface_name == interface
            && let Some(mac) = link
        {
            return Ok(mac);
        }
    }
    Err(io::Error::other(format!(
        "{interface} has no Ethernet address"
    )))
}
