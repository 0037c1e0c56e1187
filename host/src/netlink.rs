//! Configuring interfaces over rtnetlink (RFC 3549, rtnetlink(7)): up, MTU, MAC, addresses, default routes;
//! and for the panel making, plugging and listing virtual ones.
//!
//! One blocking request at a time, each acknowledged by the kernel. It acts on the network namespace of
//! the calling process.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
    InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::net::if_::if_nametoindex;

use crate::error::{Error, Result, system};

/// An Ethernet address, in transmission order.
pub type Mac = [u8; 6];

/// The MTU of everything on the panel, in bytes: whatever a member's own interface takes gets through.
const PANEL_MTU: u32 = 65_535;

/// The longest frame of a TCP stream that the kernel can have, in bytes (GSO_MAX_SIZE in linux/netdevice.h).
const MAX_GSO_SIZE: u32 = 8 * 65_535;

/// The most addresses that a bridge learns: as many as a switch's own table holds (`CAPACITY` in
/// plugins/fabric/src/fdb.rs). They take 16 MB, which the kernel accounts to nobody.
const MAX_LEARNED: u32 = 131_072;

/// The UDP port of VXLAN (RFC 7348, section 8).
const VXLAN_PORT: u16 = 4789;

/// The group of the interfaces that are to be deleted together; the others are in group 0.
const DOOMED: u32 = 1;

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

    /// Makes TCP over IPv4 send frames as long as the kernel can have them on an interface (BIG TCP); before
    /// Linux 6.3 it has no effect.
    ///
    /// # Errors
    /// As for [`Netlink::set_up`], or the interface cannot, as a tap cannot.
    pub fn set_big_tcp(&self, interface: &str) -> Result<()> {
        let mut message = link(interface)?;
        message
            .attributes
            .push(LinkAttribute::GsoIpv4MaxSize(MAX_GSO_SIZE));
        self.set_link(message, || format!("make {interface} take longer frames"))
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

    /// Sets an interface down.
    ///
    /// # Errors
    /// As for [`Netlink::set_up`].
    pub fn set_down(&self, interface: &str) -> Result<()> {
        let mut message = link(interface)?;
        message.header.change_mask = LinkFlags::Up;
        self.set_link(message, || format!("set {interface} down"))
    }

    /// Makes an interface a port of a bridge, from which nothing is kept but pause frames, or of none.
    ///
    /// # Errors
    /// There is no such interface or bridge, or the kernel refuses.
    pub fn set_bridge(&self, interface: &str, bridge: Option<&str>) -> Result<()> {
        let controller = bridge.map_or(Ok(0), index)?;
        let mut message = link(interface)?;
        message
            .attributes
            .push(LinkAttribute::Controller(controller));
        let action = || match bridge {
            Some(bridge) => format!("make {interface} a port of {bridge}"),
            None => format!("take {interface} off its bridge"),
        };
        self.set_link(message, action)?;
        if bridge.is_none() {
            return Ok(());
        }
        // LACP too, which the mask of a whole bridge cannot have; pause frames neither can.
        let options = vec![InfoBridgePort::GroupFwdMask(0xfffd)];
        let mut message = link(interface)?;
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(options)),
        ]));
        self.request(RouteNetlinkMessage::NewLink(message), 0, action)
    }

    /// Makes a transparent bridge: no spanning tree, no delay, no multicast snooping, not through iptables unless
    /// its network namespace says otherwise, of the largest MTU. Addresses are forgotten after `ageing` seconds,
    /// or never learned if that is 0, so that all frames are flooded. It learns `MAX_LEARNED`
    /// addresses at most and floods frames to others. One that exists is left as it is.
    ///
    /// # Errors
    /// The kernel has no bridges, or refuses.
    pub fn add_bridge(&self, name: &str, ageing: u32) -> Result<()> {
        // The kernel counts in USER_HZ, hundredths of a second.
        let options = vec![
            InfoBridge::StpState(BridgeStpState::Disabled),
            InfoBridge::ForwardDelay(0),
            InfoBridge::MulticastSnooping(false),
            InfoBridge::NfCallIpTables(false),
            InfoBridge::NfCallIp6Tables(false),
            InfoBridge::NfCallArpTables(false),
            InfoBridge::AgeingTime(ageing.saturating_mul(100)),
            // Linux before 6.7 ignores the attribute and learns without limit.
            InfoBridge::FdbMaxLearned(MAX_LEARNED),
        ];
        let mut message = named(name);
        message.attributes.push(LinkAttribute::Mtu(PANEL_MTU));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(options)),
        ]));
        match self.add_link(message, || format!("make the bridge {name}")) {
            Err(error) if error.errno == libc::EEXIST => Ok(()),
            made => made,
        }
    }

    /// Makes a bridge keep VLANs apart.
    ///
    /// # Errors
    /// The kernel's bridges cannot, or there is no such bridge.
    pub fn set_vlan_filtering(&self, bridge: &str) -> Result<()> {
        let mut message = link(bridge)?;
        let options = vec![InfoBridge::VlanFiltering(true)];
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(options)),
        ]));
        let request = RouteNetlinkMessage::NewLink(message);
        self.request(request, 0, || format!("filter VLANs on {bridge}"))
    }

    /// Makes a VXLAN interface (RFC 7348) of the network `vni`.
    ///
    /// # Errors
    /// The kernel has no VXLAN, the name is taken, or it refuses.
    pub fn add_vxlan(&self, name: &str, vni: u32) -> Result<()> {
        let mut message = named(name);
        let options = vec![InfoVxlan::Id(vni), InfoVxlan::Port(VXLAN_PORT)];
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(options)),
        ]));
        self.add_link(message, || format!("make the VXLAN interface {name}"))
    }

    /// Makes a pair of virtual Ethernet interfaces: `name` here, of the number `index`, which passes on whatever comes,
    /// and `peer` in another network namespace.
    ///
    /// # Errors
    /// The kernel has no veth, a name is taken, or it refuses.
    pub fn add_veth(
        &self,
        name: &str,
        index: u32,
        peer: &str,
        namespace: BorrowedFd<'_>,
    ) -> Result<()> {
        let mut far = named(peer);
        far.attributes
            .push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        let mut message = named(name);
        message.header.index = index;
        message.attributes.push(LinkAttribute::Mtu(PANEL_MTU));
        message
            .attributes
            .push(LinkAttribute::GsoIpv4MaxSize(MAX_GSO_SIZE));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]));
        self.add_link(message, || format!("make the interface {peer}"))
    }

    /// Deletes an interface; one that is not there is fine.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete(&self, interface: &str) -> Result<()> {
        let Ok(message) = link(interface) else {
            return Ok(());
        };
        present(self.request(RouteNetlinkMessage::DelLink(message), 0, || {
            format!("delete {interface}")
        }))
    }

    /// Deletes interfaces together: the kernel waits for those that still look at them once for
    /// all, for tens of milliseconds, instead of once for each. Those that are not there are fine.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete_all<'a>(&self, links: impl Iterator<Item = &'a LinkView>) -> Result<()> {
        let group = |index| {
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes.push(LinkAttribute::Group(DOOMED));
            message
        };
        let mut names = Vec::new();
        for LinkView { index, name, .. } in links {
            names.push(name.as_str());
            present(self.set_link(group(*index), || format!("delete {name}")))?;
        }
        if names.is_empty() {
            return Ok(());
        }
        let message = RouteNetlinkMessage::DelLink(group(0));
        present(self.request(message, 0, || format!("delete {}", names.join(", "))))
    }

    /// All interfaces of the namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn links(&self) -> Result<Vec<LinkView>> {
        let failed = |error: io::Error| Error::io("list interfaces", &error);
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.0
            .send(&serialize(message, NLM_F_REQUEST | NLM_F_DUMP), 0)
            .map_err(failed)?;
        let mut links = Vec::new();
        loop {
            let (bytes, _) = self.0.recv_from_full().map_err(failed)?;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
                let length = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(length.max(1)..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(links),
                    NetlinkPayload::Error(error) => return Err(failed(error.to_io())),
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                        links.push(LinkView::new(&link));
                    }
                    _ => {}
                }
            }
        }
    }

    fn add_link(&self, message: LinkMessage, action: impl FnOnce() -> String) -> Result<()> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        self.request(RouteNetlinkMessage::NewLink(message), flags, action)
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
        self.exchange(&serialize(message, NLM_F_REQUEST | NLM_F_ACK | flags))
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

/// What is seen of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkView {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The number of the bridge that it is a port of.
    pub bridge: Option<u32>,
}

impl LinkView {
    fn new(link: &LinkMessage) -> Self {
        let mut view = Self {
            index: link.header.index,
            ..Self::default()
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => view.name.clone_from(name),
                LinkAttribute::Controller(index) => view.bridge = Some(*index),
                _ => {}
            }
        }
        view
    }
}

fn serialize(message: RouteNetlinkMessage, flags: u16) -> Vec<u8> {
    let mut packet = NetlinkMessage::from(message);
    packet.header.flags = flags;
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}

/// What was done to an interface, unless that is gone, which is fine.
fn present(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.errno == libc::ENODEV => Ok(()),
        outcome => outcome,
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

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
