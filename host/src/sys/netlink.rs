//! Configures interfaces over rtnetlink (RFC 3549, rtnetlink(7)): state, MTU, MAC address,
//! addresses and default routes. For the panel it also makes, plugs and lists virtual interfaces.
//!
//! A [`Netlink`] sends one blocking request at a time, and the kernel acknowledges each. A socket
//! acts on the network namespace in which it was opened, whichever namespace its user is in.
//! Therefore interfaces are named in the requests, and never looked up with a call of the C
//! library, which would search the caller's namespace.
//!
//! Each request has a number, which its replies carry (netlink(7), `nlmsg_seq`). Messages with
//! another number are skipped, for example the rest of a dump that failed.

mod batch;
mod monitor;
mod view;
mod vlans;

use std::cell::Cell;
use std::io;
use std::iter;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind,
    InfoVeth, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::sys::socket::{
    self, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, setsockopt,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

pub(crate) use batch::{Batch, VethEnd};
pub(crate) use monitor::LinkMonitor;
pub(crate) use view::InterfaceStatus;
pub(crate) use vlans::VlanSet;

use crate::error::{Error, ErrorKind, Result, system};

/// An Ethernet address, in transmission order.
pub(crate) type Mac = [u8; 6];

/// The MTU of all interfaces on the panel, in bytes: it never limits what a member's own interface
/// sends.
pub(crate) const PANEL_MTU: u32 = 65_535;

/// The length of the kernel's longest TCP super-frame, in bytes (GSO_MAX_SIZE in
/// linux/netdevice.h).
const MAX_GSO_SIZE: u32 = 8 * 65_535;

/// The most addresses that a bridge learns: as many as a switch's own table holds (`CAPACITY` in
/// plugins/fabric/src/fdb.rs). They take 16 MB, which the kernel accounts to no process.
const MAX_LEARNED: u32 = 131_072;

/// The UDP port of VXLAN (RFC 7348, section 8).
const VXLAN_PORT: u16 = 4789;

/// The group of the interfaces that are about to be deleted together.
const DOOMED: u32 = 1;

/// The group of the bridges whose ports drop frames of VLANs, and of these ports. All others are in
/// group 0.
pub(crate) const UNTAGGED: u32 = 2;

/// The longest datagram that the kernel sends, in bytes (netlink_recvmsg in
/// net/netlink/af_netlink.c).
const LONGEST_DATAGRAM: usize = 32 << 10;
/// How long to wait for a reply. The kernel replies before the call that sends a request returns,
/// so nothing is waited for unless another process reads from the same socket.
const REPLY_LIMIT: Duration = Duration::from_secs(10);

/// A connection to the network configuration of one network namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    /// The number of the last request.
    sequence: Cell<u32>,
}

impl From<OwnedFd> for Netlink {
    /// Uses the socket of a [`Netlink`] that another process opened.
    fn from(socket: OwnedFd) -> Self {
        let sequence = Cell::new(0);
        Self { socket, sequence }
    }
}

impl From<Netlink> for OwnedFd {
    fn from(netlink: Netlink) -> Self {
        netlink.socket
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Netlink {
    /// Opens a connection for the calling process's network namespace.
    ///
    /// # Errors
    /// There are no descriptors left, or a security module forbids it.
    pub(crate) fn open() -> Result<Self> {
        let (family, kind) = (socket::AddressFamily::Netlink, SockType::Raw);
        let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute);
        let open = || {
            let socket = socket::socket(family, kind, flags, protocol)?;
            // Connected to the kernel, it receives from no other process.
            connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            let limit = TimeVal::seconds(REPLY_LIMIT.as_secs() as i64);
            setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
            Ok(socket.into())
        };
        open().map_err(system("open a netlink socket"))
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses.
    pub(crate) fn set_up(&self, interface: &str) -> Result<()> {
        self.set_link(up(interface), || format!("set {interface} up"))
    }

    /// Sets an interface's MTU, in bytes.
    ///
    /// # Errors
    /// As for [`Netlink::set_up`].
    pub(crate) fn set_mtu(&self, interface: &str, mtu: u32) -> Result<()> {
        let message = with(named(interface), [LinkAttribute::Mtu(mtu)]);
        self.set_link(message, || format!("set the MTU of {interface} to {mtu}"))
    }

    /// Makes TCP over IPv4 send the longest super-frames of the kernel on an interface (BIG TCP).
    /// Before Linux 6.3 it has no effect.
    ///
    /// # Errors
    /// As for [`Netlink::set_up`], or the interface does not support it; a tap does not.
    pub(crate) fn set_big_tcp(&self, interface: &str) -> Result<()> {
        let size = LinkAttribute::GsoIpv4MaxSize(MAX_GSO_SIZE);
        let message = with(named(interface), [size]);
        self.set_link(message, || {
            format!("make {interface} take longer super-frames")
        })
    }

    /// Sets an interface's Ethernet address.
    ///
    /// # Errors
    /// As for [`Netlink::set_up`].
    pub(crate) fn set_mac(&self, interface: &str, mac: Mac) -> Result<()> {
        let message = with(named(interface), [LinkAttribute::Address(mac.to_vec())]);
        self.set_link(message, || format!("set the address of {interface}"))
    }

    /// Adds an address and the route to its network. An IPv6 address is usable at once, because the
    /// kernel is told not to check for duplicates.
    ///
    /// # Errors
    /// As for [`Netlink::set_up`].
    pub(crate) fn add_address(&self, interface: &str, address: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.scope = AddressScope::Universe;
        message.header.index = self.index(interface)?;
        let own = address.addr();
        let (own, local) = (AddressAttribute::Address(own), AddressAttribute::Local(own));
        message.attributes.extend([own, local]);
        message.attributes.extend(match address {
            IpNet::V4(net) if net.prefix_len() >= 31 => None,
            IpNet::V4(net) => Some(AddressAttribute::Broadcast(net.broadcast())),
            IpNet::V6(_) => Some(AddressAttribute::Flags(AddressFlags::Nodad)),
        });
        self.request(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
            || format!("give {interface} the address {address}"),
        )
    }

    /// Removes an address.
    ///
    /// # Errors
    /// As for [`Netlink::set_up`].
    pub(crate) fn remove_address(&self, interface: &str, address: IpNet) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = self.index(interface)?;
        message
            .attributes
            .push(AddressAttribute::Local(address.addr()));
        self.request(RouteNetlinkMessage::DelAddress(message), 0, || {
            format!("take the address {address} from {interface}")
        })
    }

    /// Makes `gateway` the default router of its address family.
    ///
    /// # Errors
    /// No interface is in the gateway's network, or the kernel refuses.
    pub(crate) fn add_default_route(&self, gateway: IpAddr) -> Result<()> {
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
    pub(crate) fn set_down(&self, interface: &str) -> Result<()> {
        let mut message = named(interface);
        message.header.change_mask = LinkFlags::Up;
        self.set_link(message, || format!("set {interface} down"))
    }

    /// Makes an interface a port of a bridge, or of no bridge. The port forwards all frames but
    /// pause frames, which no setting makes a bridge forward. It is in the group [`UNTAGGED`] if
    /// its bridge is.
    ///
    /// # Errors
    /// There is no such interface or bridge, or the kernel refuses.
    pub(crate) fn set_bridge(&self, interface: &str, bridge: Option<&str>) -> Result<()> {
        let controller = bridge.map(|bridge| self.link(bridge)).transpose()?;
        let LinkView { index, group, .. } = controller.unwrap_or_default();
        let attributes = [
            LinkAttribute::Controller(index),
            LinkAttribute::Group(if group == UNTAGGED { UNTAGGED } else { 0 }),
        ];
        let message = with(named(interface), attributes);
        let action = || match bridge {
            Some(bridge) => format!("make {interface} a port of {bridge}"),
            None => format!("take {interface} off its bridge"),
        };
        self.set_link(message, action)?;
        if bridge.is_none() {
            return Ok(());
        }
        // With LACP frames, which only the mask of a port can have, not the mask of a bridge.
        let options = vec![InfoBridgePort::GroupFwdMask(0xfffd)];
        let options = LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(options)),
        ]);
        let message = with(named(interface), [options]);
        self.request(RouteNetlinkMessage::NewLink(message), 0, action)
    }

    /// Makes a transparent bridge and sets it up. It has no spanning tree, no forwarding delay, no
    /// multicast snooping, and the largest MTU. It does not pass frames through iptables unless its
    /// network namespace says otherwise. It forgets addresses after `ageing` seconds. If that is 0
    /// it learns none, and floods all frames. It learns `MAX_LEARNED` addresses at most and floods
    /// frames to others. A bridge that exists is left as it is.
    ///
    /// # Errors
    /// The kernel has no bridges, or refuses.
    pub(crate) fn add_bridge(&self, name: &str, ageing: u32) -> Result<()> {
        match self.add_switch(name, 0, ageing) {
            Err(error) if error.errno == libc::EEXIST => Ok(()),
            made => made,
        }
    }

    /// As [`Netlink::add_bridge`], with the given index, or with the kernel's choice for 0.
    ///
    /// # Errors
    /// As for that, or the bridge exists.
    pub(crate) fn add_switch(&self, name: &str, index: u32, ageing: u32) -> Result<()> {
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
        let bridge = kind(InfoKind::Bridge, InfoData::Bridge(options));
        let mut message = with(up(name), [LinkAttribute::Mtu(PANEL_MTU), bridge]);
        message.header.index = index;
        self.add_link(message, || format!("make the bridge {name}"))
    }

    /// Makes a bridge filter VLANs. A port that comes later is in none.
    ///
    /// # Errors
    /// The kernel's bridges do not support it, or there is no such bridge.
    pub(crate) fn set_vlan_filtering(&self, bridge: &str) -> Result<()> {
        let options = vec![
            InfoBridge::VlanFiltering(true),
            InfoBridge::VlanDefaultPvid(0),
        ];
        let options = InfoData::Bridge(options);
        let message = with(named(bridge), [kind(InfoKind::Bridge, options)]);
        let request = RouteNetlinkMessage::NewLink(message);
        let filtered = self.request(request, 0, || format!("filter VLANs on {bridge}"));
        filtered.map_err(|error| match error.errno {
            libc::EOPNOTSUPP => Error {
                kind: ErrorKind::Unsupported,
                message: "the kernel's bridges cannot filter VLANs".into(),
                ..error
            },
            _ => error,
        })
    }

    /// Puts an interface in a group.
    ///
    /// # Errors
    /// As for [`Netlink::set_up`].
    pub(crate) fn set_group(&self, interface: &str, group: u32) -> Result<()> {
        let message = with(named(interface), [LinkAttribute::Group(group)]);
        self.set_link(message, || format!("put {interface} in the group {group}"))
    }

    /// Makes a VXLAN interface (RFC 7348) for the network `vni`.
    ///
    /// # Errors
    /// The kernel has no VXLAN, the name is taken, or the kernel refuses.
    pub(crate) fn add_vxlan(&self, name: &str, vni: u32) -> Result<()> {
        let options = vec![InfoVxlan::Id(vni), InfoVxlan::Port(VXLAN_PORT)];
        let vxlan = kind(InfoKind::Vxlan, InfoData::Vxlan(options));
        let message = with(named(name), [vxlan]);
        self.add_link(message, || format!("make the VXLAN interface {name}"))
    }

    /// Makes a pair of virtual Ethernet interfaces: `name` here, with the given index and the
    /// largest MTU, and `peer` in another network namespace.
    ///
    /// # Errors
    /// The kernel has no veth, a name is taken, or the kernel refuses.
    pub(crate) fn add_veth(
        &self,
        name: &str,
        index: u32,
        peer: &str,
        namespace: BorrowedFd<'_>,
    ) -> Result<()> {
        // The kernel would make a queue, with files in sysfs, for each processor. Without a
        // queueing discipline they are of no use.
        let one_queue = [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];
        let place = LinkAttribute::NetNsFd(namespace.as_raw_fd());
        let far = with(with(named(peer), one_queue.clone()), [place]);
        let mut message = with(named(name), one_queue);
        message.header.index = index;
        message.attributes.extend([
            LinkAttribute::Mtu(PANEL_MTU),
            LinkAttribute::GsoIpv4MaxSize(MAX_GSO_SIZE),
            kind(InfoKind::Veth, InfoData::Veth(InfoVeth::Peer(far))),
        ]);
        self.add_link(message, || format!("make the interface {peer}"))
    }

    /// Deletes an interface, if it exists.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn delete(&self, interface: &str) -> Result<()> {
        let message = RouteNetlinkMessage::DelLink(named(interface));
        if_present(self.request(message, 0, || format!("delete {interface}")))
    }

    /// Deletes interfaces together, as far as they exist. The kernel waits tens of milliseconds for
    /// the readers of deleted interfaces; together, it waits only once.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn delete_all<'a>(&self, links: impl Iterator<Item = &'a LinkView>) -> Result<()> {
        let group = |index| {
            let mut message = with(LinkMessage::default(), [LinkAttribute::Group(DOOMED)]);
            message.header.index = index;
            message
        };
        let mut names = Vec::new();
        for LinkView { index, name, .. } in links {
            names.push(name.as_str());
            if_present(self.set_link(group(*index), || format!("delete {name}")))?;
        }
        if names.is_empty() {
            return Ok(());
        }
        let message = RouteNetlinkMessage::DelLink(group(0));
        if_present(self.request(message, 0, || format!("delete {}", names.join(", "))))
    }

    /// All interfaces of the namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn links(&self) -> Result<Vec<LinkView>> {
        self.get_links(LinkMessage::default(), NLM_F_DUMP)
            .map_err(|error| Error::io("list interfaces", &error))
    }

    /// The index of an interface.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses.
    pub(crate) fn index(&self, interface: &str) -> Result<u32> {
        self.link(interface).map(|link| link.index)
    }

    fn link(&self, interface: &str) -> Result<LinkView> {
        let links = self.get_links(named(interface), NLM_F_ACK);
        let links = links.and_then(|links| links.into_iter().next().ok_or(Errno::ENODEV.into()));
        links.map_err(|error| Error::io(format_args!("find the interface {interface}"), &error))
    }

    fn get_links(&self, message: LinkMessage, flags: u16) -> io::Result<Vec<LinkView>> {
        let without = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        let message = with(message, [without]);
        let mut links = Vec::new();
        let take = |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                links.push(LinkView::new(&link));
            }
        };
        self.exchange(RouteNetlinkMessage::GetLink(message), flags, take)?;
        Ok(links)
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
        self.exchange(message, NLM_F_ACK | flags, drop)
            .map_err(|error| Error::io(action(), &error))
    }

    /// Sends a request, passes the messages of the reply to `take`, and waits for the end of the
    /// reply: an acknowledgement, an error, or the end of a dump.
    fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let request = serialize(message, NLM_F_REQUEST | flags, sequence);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut buffer = vec![0; LONGEST_DATAGRAM];
        loop {
            let received = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty());
            let length = received.map_err(|errno| match errno {
                Errno::EAGAIN => io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no reply within {} s", REPLY_LIMIT.as_secs()),
                ),
                _ => errno.into(),
            })?;
            for payload in replies(&buffer[..length], sequence) {
                match payload? {
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::InnerMessage(message) => take(message),
                    _ => {}
                }
            }
        }
    }
}

/// The messages of a datagram that reply to the request with the number `sequence`. Others are not
/// decoded.
fn replies(
    datagram: &[u8],
    sequence: u32,
) -> impl Iterator<Item = io::Result<NetlinkPayload<RouteNetlinkMessage>>> {
    let mut rest = datagram;
    let messages = iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let message = rest;
        let header = match NetlinkBuffer::new_checked(message) {
            Ok(header) => header,
            Err(error) => {
                rest = &[];
                return Some(Err(undecodable(error)));
            }
        };
        // Messages are aligned (NLMSG_ALIGN); the length is at least the header's.
        let length = (header.length() as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        Some(Ok((header.sequence_number(), message)))
    });
    messages.filter_map(move |message| match message {
        Ok((number, _)) if number != sequence => None,
        Ok((_, message)) => {
            let decoded = NetlinkMessage::deserialize(message);
            Some(decoded.map(|reply| reply.payload).map_err(undecodable))
        }
        Err(error) => Some(Err(error)),
    })
}

fn undecodable(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The part of an interface's description that the panel needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LinkView {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The index of the bridge that it is a port of.
    pub bridge: Option<u32>,
    /// Its group.
    pub group: u32,
    /// Whether it is up and frames can pass: it has carrier, and the kernel has taken note of it.
    pub is_running: bool,
}

impl LinkView {
    fn new(link: &LinkMessage) -> Self {
        let mut view = Self {
            index: link.header.index,
            is_running: link
                .header
                .flags
                .contains(LinkFlags::Running | LinkFlags::LowerUp),
            ..Self::default()
        };
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => view.name.clone_from(name),
                LinkAttribute::Controller(index) => view.bridge = Some(*index),
                LinkAttribute::Group(group) => view.group = *group,
                _ => {}
            }
        }
        view
    }
}

fn serialize(
    payload: impl Into<NetlinkPayload<RouteNetlinkMessage>>,
    flags: u16,
    sequence: u32,
) -> Vec<u8> {
    let mut packet = NetlinkMessage::new(NetlinkHeader::default(), payload.into());
    packet.header.flags = flags;
    packet.header.sequence_number = sequence;
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}

/// The outcome of a change to an interface. It is no error if the interface does not exist.
fn if_present(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.errno == libc::ENODEV => Ok(()),
        outcome => outcome,
    }
}

/// The interface `name`, up.
fn up(name: &str) -> LinkMessage {
    let mut message = named(name);
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message
}

fn named(name: &str) -> LinkMessage {
    with(
        LinkMessage::default(),
        [LinkAttribute::IfName(name.to_owned())],
    )
}

/// The message with more attributes.
fn with(
    mut message: LinkMessage,
    attributes: impl IntoIterator<Item = LinkAttribute>,
) -> LinkMessage {
    message.attributes.extend(attributes);
    message
}

/// The attribute that says of which kind an interface is, with the options of that kind.
fn kind(kind: InfoKind, options: InfoData) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(options)])
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;
    use std::thread;

    use netlink_packet_core::{DoneMessage, ErrorMessage};
    use nix::sys::socket::socketpair;

    use super::*;

    type Payload = NetlinkPayload<RouteNetlinkMessage>;
    /// Makes the datagrams of a reply from the request's number.
    type Answer = fn(u32) -> Vec<Vec<u8>>;

    fn encode(payload: Payload, sequence: u32) -> Vec<u8> {
        serialize(payload, 0, sequence)
    }

    fn error(errno: i32) -> Payload {
        let mut message = ErrorMessage::default();
        message.code = NonZeroI32::new(-errno);
        message.header = vec![0; 16];
        NetlinkPayload::Error(message)
    }

    fn done() -> Payload {
        NetlinkPayload::Done(DoneMessage::default())
    }

    fn interface(name: &str) -> Payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(named(name)))
    }

    /// A connection to a kernel that answers each request with the next one of `answers`.
    fn answered_by(answers: Vec<Answer>) -> Netlink {
        let kind = SockType::Datagram;
        let family = socket::AddressFamily::Unix;
        let (ours, kernel) = socketpair(family, kind, None, SockFlag::empty()).unwrap();
        thread::spawn(move || {
            let mut request = [0; 4096];
            for answer in answers {
                nix::unistd::read(&kernel, &mut request).unwrap();
                let number = NetlinkBuffer::new(&request[..]).sequence_number();
                for datagram in answer(number) {
                    nix::unistd::write(&kernel, &datagram).unwrap();
                }
            }
        });
        Netlink {
            socket: ours,
            sequence: Cell::new(u32::MAX - 1),
        }
    }

    fn request(netlink: &Netlink) -> io::Result<()> {
        let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
        netlink.exchange(message, NLM_F_ACK, drop)
    }

    #[test]
    fn a_reply_to_another_request_is_skipped() {
        let netlink = answered_by(vec![
            // An error and a success for others, in one datagram with our own and in others.
            |n| {
                let other = n.wrapping_sub(1);
                let both = [encode(error(libc::EPERM), other), encode(error(0), n)];
                vec![encode(error(libc::EBUSY), n ^ 1), both.concat()]
            },
            |n| vec![encode(error(0), n ^ 1), encode(error(libc::ENODEV), n)],
            // The number wraps around; no reply is lost by that.
            |n| vec![encode(done(), n ^ 1), encode(error(0), n)],
        ]);
        request(&netlink).unwrap();
        let failure = request(&netlink).unwrap_err();
        assert_eq!(failure.raw_os_error(), Some(libc::ENODEV));
        request(&netlink).unwrap();
    }

    #[test]
    fn the_rest_of_a_failed_dump_is_skipped() {
        let netlink = answered_by(vec![
            |n| {
                let first = [encode(interface("a"), n), encode(error(libc::ENOBUFS), n)].concat();
                vec![first, encode(interface("b"), n), encode(done(), n)]
            },
            |n| vec![[encode(interface("c"), n), encode(done(), n)].concat()],
        ]);
        assert_eq!(netlink.links().unwrap_err().errno, libc::ENOBUFS);
        let names: Vec<_> = netlink
            .links()
            .unwrap()
            .into_iter()
            .map(|l| l.name)
            .collect();
        assert_eq!(names, ["c"]);
    }

    #[test]
    fn a_malformed_message_is_an_error() {
        for datagram in [&[0; 8][..], &[0; 16], &[255; 20]] {
            let all: Vec<_> = replies(datagram, 0).collect();
            assert!(matches!(&all[..], [Err(_)]), "{all:?}");
        }
    }
}
