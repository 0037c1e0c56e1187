//! Many requests at once: they are sent in a few large datagrams, and the kernel acknowledges only
//! the last one of each. So the links of a hundred namespaces are made in milliseconds.
//!
//! The kernel executes the requests of a datagram in order, and goes on after one that fails. It
//! reports each failure with the number of its request.
//!
//! Interfaces are named by their indices, which the caller chooses when it makes them: then nothing
//! has to be asked between two requests.

use std::iter;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

use super::{LONGEST_DATAGRAM, Mac, Netlink, family, kind, named, serialize, with};
use crate::error::{Error, Result, system};

/// The longest datagram that is sent, in bytes. The default send buffer of a socket holds several.
const CHUNK: usize = 32 << 10;

/// One end of a pair of virtual Ethernet interfaces.
#[derive(Debug)]
pub(crate) struct VethEnd<'a> {
    /// Its name, unique in its namespace.
    pub name: &'a str,
    /// Its index, unique in its namespace, and not that of the other end ([`port_index`]).
    ///
    /// [`port_index`]: crate::panel::port_index
    pub index: u32,
    /// The network namespace that it is made in.
    pub namespace: BorrowedFd<'a>,
    /// Its Ethernet address, if not the kernel's choice.
    pub mac: Option<Mac>,
    /// Its MTU, if not the kernel's choice.
    pub mtu: Option<u32>,
}

/// Requests to be sent together.
#[derive(Debug, Default)]
pub(crate) struct Batch(Vec<Request>);

#[derive(Debug)]
struct Request {
    message: RouteNetlinkMessage,
    flags: u16,
    /// What it does, for an error.
    action: String,
}

impl Batch {
    /// Makes a pair of interfaces, of which the first is up: the kernel cannot set the second up
    /// before the pair is complete (`veth_open` in drivers/net/veth.c). With a bridge, named by its
    /// index, the first end is a port of it.
    pub(crate) fn add_veth(&mut self, near: &VethEnd<'_>, far: &VethEnd<'_>, bridge: Option<u32>) {
        let peer = InfoVeth::Peer(end(far));
        let mut message = end(near);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        message
            .attributes
            .push(kind(InfoKind::Veth, InfoData::Veth(peer)));
        let controller = bridge.map(LinkAttribute::Controller);
        message.attributes.extend(controller);
        let action = format!("make the interfaces {} and {}", near.name, far.name);
        self.push(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
            action,
        );
    }

    /// Makes the port of a bridge forward all frames but pause frames.
    pub(crate) fn open_bridge_port(&mut self, port: u32, name: &str) {
        let options = vec![InfoBridgePort::GroupFwdMask(0xfffd)];
        let options = LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(options)),
        ]);
        let message = with(numbered(port), [options]);
        let action = format!("set up the switch port {name}");
        self.push(RouteNetlinkMessage::NewLink(message), 0, action);
    }

    /// Sets an interface up.
    pub(crate) fn set_up(&mut self, interface: u32, name: &str) {
        let mut message = numbered(interface);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        let message = RouteNetlinkMessage::SetLink(message);
        self.push(message, 0, format!("set {name} up"));
    }

    /// Deletes an interface.
    pub(crate) fn delete(&mut self, interface: u32, name: &str) {
        let message = RouteNetlinkMessage::DelLink(numbered(interface));
        self.push(message, 0, format!("delete {name}"));
    }

    /// Adds an address, unless the interface has it, and the route to its network. An IPv6 address
    /// is usable at once.
    pub(crate) fn add_address(&mut self, interface: u32, name: &str, address: IpNet) {
        let mut message = address_of(interface, address);
        message
            .attributes
            .push(AddressAttribute::Address(address.addr()));
        message.attributes.extend(match address {
            IpNet::V4(net) if net.prefix_len() >= 31 => None,
            IpNet::V4(net) => Some(AddressAttribute::Broadcast(net.broadcast())),
            IpNet::V6(_) => Some(AddressAttribute::Flags(AddressFlags::Nodad)),
        });
        self.push(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            format!("give {name} the address {address}"),
        );
    }

    /// Removes an address.
    pub(crate) fn remove_address(&mut self, interface: u32, name: &str, address: IpNet) {
        let message = RouteNetlinkMessage::DelAddress(address_of(interface, address));
        self.push(
            message,
            0,
            format!("take the address {address} from {name}"),
        );
    }

    /// Adds a route that [`Netlink::routes`] has found, over the interface with this index.
    pub(crate) fn add_route(&mut self, mut route: RouteMessage, interface: u32, name: &str) {
        route.attributes.retain(|attribute| {
            matches!(
                attribute,
                RouteAttribute::Destination(_)
                    | RouteAttribute::Gateway(_)
                    | RouteAttribute::Metrics(_)
                    | RouteAttribute::PrefSource(_)
                    | RouteAttribute::Priority(_)
                    | RouteAttribute::Table(_)
                    | RouteAttribute::Via(_)
            )
        });
        route.header.flags = RouteFlags::empty();
        route.attributes.push(RouteAttribute::Oif(interface));
        self.push(
            RouteNetlinkMessage::NewRoute(route),
            NLM_F_CREATE | NLM_F_REPLACE,
            format!("restore the routes over {name}"),
        );
    }

    fn push(&mut self, message: RouteNetlinkMessage, flags: u16, action: String) {
        self.0.push(Request {
            message,
            flags,
            action,
        });
    }
}

impl Netlink {
    /// Sends the requests, and waits until all are executed.
    ///
    /// # Errors
    /// The first failure. The requests behind it were executed all the same.
    pub(crate) fn perform(&self, batch: Batch) -> Result<()> {
        let mut failure = None;
        let mut chunk = Chunk::after(self.sequence.get());
        for request in batch.0 {
            if chunk.bytes.len() >= CHUNK {
                let next = Chunk::after(chunk.last());
                failure = failure.or(self.exchange_chunk(std::mem::replace(&mut chunk, next))?);
            }
            chunk.add(request);
        }
        if !chunk.actions.is_empty() {
            failure = failure.or(self.exchange_chunk(chunk)?);
        }
        failure.map_or(Ok(()), Err)
    }

    /// Sends a datagram and waits for the answer to its last request. Returns the first failure.
    fn exchange_chunk(&self, mut chunk: Chunk) -> Result<Option<Error>> {
        let cannot = || system("change interfaces");
        let (first, last) = (chunk.first, chunk.last());
        self.sequence.set(last);
        let bytes = chunk.acknowledged();
        send(self.socket.as_raw_fd(), bytes, MsgFlags::empty()).map_err(cannot())?;
        let mut failure = None;
        let mut buffer = vec![0; LONGEST_DATAGRAM];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty());
            for (number, errno) in outcomes(&buffer[..length.map_err(cannot())?]) {
                let place = number.wrapping_sub(first);
                let action = chunk.actions.get_mut(place as usize);
                if let Some(action) = action.filter(|_| errno != 0 && failure.is_none()) {
                    let errno = Errno::from_raw(errno);
                    failure = Some(system(std::mem::take(action))(errno));
                }
                if number == last {
                    return Ok(failure);
                }
            }
        }
    }
}

/// The requests of one datagram.
struct Chunk {
    bytes: Vec<u8>,
    /// Where the last request starts.
    last_start: usize,
    /// The number of the first request.
    first: u32,
    /// What each request does.
    actions: Vec<String>,
}

impl Chunk {
    /// An empty one, whose first request comes after the one with that number.
    fn after(number: u32) -> Self {
        Self {
            bytes: Vec::new(),
            last_start: 0,
            first: number.wrapping_add(1),
            actions: Vec::new(),
        }
    }

    fn add(&mut self, request: Request) {
        let number = self.first.wrapping_add(self.actions.len() as u32);
        self.last_start = self.bytes.len();
        let flags = NLM_F_REQUEST | request.flags;
        self.bytes.extend(serialize(request.message, flags, number));
        // Messages are aligned (NLMSG_ALIGN).
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.actions.push(request.action);
    }

    /// The number of the last request.
    fn last(&self) -> u32 {
        self.first
            .wrapping_add(self.actions.len() as u32)
            .wrapping_sub(1)
    }

    /// The datagram, whose last request asks for an acknowledgement.
    fn acknowledged(&mut self) -> &[u8] {
        if let Some(flags) = self
            .bytes
            .get_mut(self.last_start + FLAGS..)
            .and_then(<[u8]>::first_chunk_mut)
        {
            *flags = (u16::from_ne_bytes(*flags) | NLM_F_ACK).to_ne_bytes();
        }
        &self.bytes
    }
}

/// Where the flags are in a message (`struct nlmsghdr`, netlink(7)): behind its length and type.
const FLAGS: usize = 6;

/// The acknowledgements and errors of a datagram: the number of the request and the error, which is
/// 0 for an acknowledgement. Other messages are skipped.
fn outcomes(datagram: &[u8]) -> impl Iterator<Item = (u32, i32)> {
    let mut rest = datagram;
    let word = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    let messages = iter::from_fn(move || {
        let message = rest;
        let length = (word(message, 0)? as usize).max(HEADER).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        Some(message)
    });
    messages.filter_map(move |message| {
        let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
        let (number, errno) = (word(message, 8)?, word(message, HEADER)?);
        (kind == NLMSG_ERROR).then_some((number, -errno.cast_signed()))
    })
}

/// The length of a message's header, in bytes.
const HEADER: usize = 16;

/// The type of an acknowledgement or error (linux/netlink.h).
const NLMSG_ERROR: u16 = 2;

/// The message for one end of a pair. It has one queue: without a queueing discipline more are of
/// no use, and the kernel makes files in sysfs for each.
fn end(end: &VethEnd<'_>) -> LinkMessage {
    let mut message = named(end.name);
    message.header.index = end.index;
    message.attributes.extend([
        LinkAttribute::NumTxQueues(1),
        LinkAttribute::NumRxQueues(1),
        LinkAttribute::NetNsFd(end.namespace.as_raw_fd()),
    ]);
    let mac = end.mac.map(|mac| LinkAttribute::Address(mac.to_vec()));
    message.attributes.extend(mac);
    message.attributes.extend(end.mtu.map(LinkAttribute::Mtu));
    message
}

/// The interface with an index.
fn numbered(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn address_of(interface: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.addr());
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = interface;
    message
        .attributes
        .push(AddressAttribute::Local(address.addr()));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(number: u32, errno: i32) -> Vec<u8> {
        let words = [36, 2, number, 0, (-errno).cast_unsigned(), 0, 0, 0, 0];
        let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
        bytes.collect()
    }

    #[test]
    fn outcomes_are_read_and_other_messages_skipped() {
        let other: Vec<u8> = [20_u32, 16, 7, 0, 1]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        let datagram = [error(1, libc::EEXIST), other, error(2, 0)].concat();
        let all: Vec<_> = outcomes(&datagram).collect();
        assert_eq!(all, [(1, libc::EEXIST), (2, 0)]);
        // What is cut or says that it has no length ends the datagram, and never loops.
        assert_eq!(outcomes(&datagram[..30]).count(), 1);
        assert_eq!(outcomes(&[0; 40]).count(), 0);
        assert_eq!(outcomes(&[]).count(), 0);
    }

    #[test]
    fn only_the_last_request_asks_for_an_answer() {
        let mut batch = Batch::default();
        batch.set_up(1, "lo");
        batch.delete(7, "x");
        let mut chunk = Chunk::after(u32::MAX);
        batch.0.into_iter().for_each(|request| chunk.add(request));
        assert_eq!((chunk.first, chunk.last()), (0, 1));
        let second = chunk.last_start;
        let bytes = chunk.acknowledged();
        let flags = |start: usize| u16::from_ne_bytes([bytes[start + 6], bytes[start + 7]]);
        assert_eq!(
            (flags(0) & NLM_F_ACK, flags(second) & NLM_F_ACK),
            (0, NLM_F_ACK)
        );
    }
}
