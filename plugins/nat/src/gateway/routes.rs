//! The policy routing that delivers diverted packets to this machine, whatever their destination
//! (rtnetlink(7), Documentation/networking/tproxy.rst in the kernel).

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::rules::MARK_DIVERT;

/// The number of the routing table for diverted packets.
const TABLE: u8 = 100;

/// The number of the interface `lo`, in every network namespace.
const LOOPBACK: u32 = 1;

/// Delivers packets with the mark of diverted ones here.
///
/// # Errors
/// The kernel has no policy routing, or refuses.
pub(crate) fn install(ipv6: bool) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let families = [
        Some(AddressFamily::Inet),
        ipv6.then_some(AddressFamily::Inet6),
    ];
    for family in families.into_iter().flatten() {
        let mut rule = RuleMessage::default();
        rule.header.family = family;
        rule.header.table = TABLE;
        rule.header.action = RuleAction::ToTable;
        rule.attributes.push(RuleAttribute::FwMark(MARK_DIVERT));
        request(&socket, RouteNetlinkMessage::NewRule(rule))?;
        let mut route = RouteMessage::default();
        route.header.address_family = family;
        route.header.table = TABLE;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Host;
        route.header.kind = RouteType::Local;
        route.attributes.push(RouteAttribute::Oif(LOOPBACK));
        request(&socket, RouteNetlinkMessage::NewRoute(route))?;
    }
    Ok(())
}

fn request(socket: &Socket, message: RouteNetlinkMessage) -> io::Result<()> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (packet, _) = socket.recv_from_full()?;
    let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&packet)
        .map_err(|e| io::Error::other(e.to_string()))?;
    match reply.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(()),
    }
}
