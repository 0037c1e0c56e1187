//! Configuring interfaces over rtnetlink (RFC 3549, rtnetlink(7)): up, MTU, MAC, addresses, default routes.
//!
//! One blocking request at a time, each acknowledged by the kernel. It acts on the network namespace of
//! the calling process.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::net::if_::if_nametoindex;

use crate::error::{Error, Result, system};

/// An Ethernet address, in transmission order.
pub type Mac = [u8; 6];

/// A connection to the kernel's network configuration.
pub struct Netlink(Socket);

impl Netlink {
    /// Opens a connection, for the calling process's network namespace.
    ///
    /// # Errors
    /// The kernel does not let it.
    pub fn open() -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(Self(socket))
        };
        open().map_err(|error| Error::io("open a netlink socket", &error))
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses.
    pub fn set_up(&self, interface: &str) -> Result<()> {
        let mut message = link(interface)?;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.set_link(message, || format!("set {interface} up"))
    }

    /// Sets an interface's MTU, in bytes.
    ///
    /// # Errors
    /// As for [`Netlink::set_up`].
    pub fn set_mtu(&self, interface: &str, mtu: u32) -> Result<()> {
        let mut message = link(interface)?;
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.set_link(message, || format!("set the MTU of {interface} to {mtu}"))
    }

    /// Sets an interface's Ethernet address.
    ///
    /// # Errors
    /// As for [`Netlink::set_up`].
    pub fn set_mac(&self, interface: &str, mac: Mac) -> Result<()> {
        let mut message = link(interface)?;
        message
            .attributes
            .push(LinkAttribute::Address(mac.to_vec()));
        self.set_link(message, || format!("set the address of {interface}"))
    }

    /// Gives an interface an address and its network's route. An IPv6 address is usable at once: it is not
    /// checked for duplicates.
    ///
    /// # Errors
    /// As for [`Netlink::set_up`].
    pub fn add_address(&self, interface: &str, address: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.scope = AddressScope::Universe;
        message.header.index = index(interface)?;
        message
            .attributes
            .push(AddressAttribute::Address(address.addr()));
        message
            .attributes
            .push(AddressAttribute::Local(address.addr()));
        match address {
            IpNet::V4(net) if net.prefix_len() < 31 => {
                message
                    .attributes
                    .push(AddressAttribute::Broadcast(net.broadcast()));
            }
            IpNet::V4(_) => {}
            IpNet::V6(_) => {
                message
                    .attributes
                    .push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        self.request(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
            || format!("give {interface} the address {address}"),
        )
    }

    /// Makes `gateway` the default router of its address family.
    ///
    /// # Errors
    /// No interface reaches it, or the kernel refuses.
    pub fn add_default_route(&self, gateway: IpAddr) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message
            .attributes
            .push(RouteAttribute::Gateway(RouteAddress::from(gateway)));
        self.request(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_EXCL,
            || format!("route through {gateway}"),
        )
        .map_err(|error| match error.errno {
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL => {
                error.hint("give an interface an address in the gateway's network with --addr")
            }
            _ => error,
        })
    }

    fn set_link(&self, message: LinkMessage, action: impl FnOnce() -> String) -> Result<()> {
        self.request(RouteNetlinkMessage::SetLink(message), 0, action)
    }

    /// Sends one request and waits for its acknowledgement.
    fn request(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        action: impl FnOnce() -> String,
    ) -> Result<()> {
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.exchange(&bytes)
            .map_err(|error| Error::io(action(), &error))
    }

    fn exchange(&self, request: &[u8]) -> io::Result<()> {
        self.0.send(request, 0)?;
        let (reply, _) = self.0.recv_from_full()?;
        let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match reply.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
            _ => Ok(()),
        }
    }
}

fn index(interface: &str) -> Result<u32> {
    if_nametoindex(interface).map_err(system(format_args!("find the interface {interface}")))
}

fn link(interface: &str) -> Result<LinkMessage> {
    let mut message = LinkMessage::default();
    message.header.index = index(interface)?;
    Ok(message)
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
