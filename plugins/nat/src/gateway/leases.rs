//! DHCP for IPv4 (RFC 2131): which client has which address.
//!
//! A client keeps its address while the gateway runs, longer than its lease lasts; when there is no
//! address left, the one that was silent for longest gives its own up. The codec is dhcproto's;
//! here is no I/O.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::Name;
use dhcproto::v4::{DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode};
use ipnet::Ipv4Net;

use crate::wire::LEASES;

/// How long a lease lasts, in seconds.
const LEASE: u32 = 86_400;

/// How long an address that was offered is kept for the client that has not asked for it yet.
const OFFER: Duration = Duration::from_secs(60);

/// The class of clients that understand [`CABLE`] (RFC 2132, section 9.13): vdens with `--auto`.
const CLASS: &[u8] = b"vdens";

/// What such a client is told of a cable (RFC 2132, section 8.4): information 1, five bytes.
const CABLE: &[u8] = b"\x01\x05cable";

/// The bytes of an Ethernet address.
const ADDRESS: u8 = 6;

/// The most clients.
const CLIENTS: usize = 4096;

/// What every client is told.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub net: Ipv4Net,
    pub server: Ipv4Addr,
    pub first: Ipv4Addr,
    pub dns: Ipv4Addr,
    /// In bytes.
    pub mtu: Option<u16>,
    /// Whether the link is a cable to one client.
    pub is_cable: bool,
    /// Search domains, the first of which is the client's own.
    pub search: Vec<Name>,
}

struct Lease {
    address: Ipv4Addr,
    /// The client's Ethernet address.
    mac: Vec<u8>,
    used: Instant,
    bound: bool,
}

/// The leases, by client: its identifier, or its Ethernet address.
pub(crate) struct Leases {
    offer: Offer,
    clients: HashMap<Vec<u8>, Lease>,
    /// Whether there are other leases than [`Leases::changes`] has told.
    is_new: bool,
}

impl Leases {
    pub(crate) fn new(offer: Offer) -> Self {
        Self {
            offer,
            clients: HashMap::new(),
            is_new: false,
        }
    }

    /// Who has which address, for a person, if that has changed since the last call.
    pub(crate) fn changes(&mut self) -> Option<Vec<String>> {
        if !std::mem::take(&mut self.is_new) {
            return None;
        }
        let mut bound: Vec<_> = self.clients.values().filter(|lease| lease.bound).collect();
        bound.sort_by_key(|lease| lease.address);
        let text = |lease: &&Lease| {
            let mac: Vec<_> = lease.mac.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{} {}", lease.address, mac.join(":"))
        };
        Some(bound.iter().take(LEASES).map(text).collect())
    }

    /// The answer to a client's message, if it gets one.
    pub(crate) fn answer(&mut self, message: &Message, now: Instant) -> Option<Message> {
        if message.opcode() != Opcode::BootRequest || !message.giaddr().is_unspecified() {
            return None;
        }
        // Only an address of the right length may be read: the message says how long it is, which
        // may be longer than the field.
        if message.hlen() != ADDRESS {
            return None;
        }
        let client = match message.opts().get(OptionCode::ClientIdentifier) {
            Some(DhcpOption::ClientIdentifier(id)) => id.clone(),
            _ => message.chaddr().to_vec(),
        };
        let kind = match message.opts().get(OptionCode::MessageType) {
            Some(DhcpOption::MessageType(kind)) => *kind,
            // BOOTP, RFC 951.
            None => return None,
            _ => return None,
        };
        let requested = match message.opts().get(OptionCode::RequestedIpAddress) {
            Some(DhcpOption::RequestedIpAddress(address)) => Some(*address),
            _ => None,
        };
        match kind {
            MessageType::Discover => {
                let address = self.find(&client, requested, now)?;
                Some(self.reply(message, MessageType::Offer, Some(address)))
            }
            MessageType::Request => {
                if let Some(DhcpOption::ServerIdentifier(server)) =
                    message.opts().get(OptionCode::ServerIdentifier)
                    && *server != self.offer.server
                {
                    return None;
                }
                let wanted = requested.unwrap_or(message.ciaddr());
                if self.find(&client, Some(wanted), now) != Some(wanted) {
                    return Some(self.reply(message, MessageType::Nak, None));
                }
                if let Some(lease) = self.clients.get_mut(&client) {
                    self.is_new |= !lease.bound;
                    lease.bound = true;
                    lease.mac = message.chaddr().to_vec();
                }
                Some(self.reply(message, MessageType::Ack, Some(wanted)))
            }
            MessageType::Inform => Some(self.reply(message, MessageType::Ack, None)),
            MessageType::Release | MessageType::Decline => {
                self.is_new |= self.clients.remove(&client).is_some();
                None
            }
            _ => None,
        }
    }

    /// The address of a client, which gets the one that it wants if it is free.
    fn find(&mut self, client: &[u8], wanted: Option<Ipv4Addr>, now: Instant) -> Option<Ipv4Addr> {
        if let Some(lease) = self.clients.get_mut(client) {
            lease.used = now;
            return Some(lease.address);
        }
        self.clients
            .retain(|_, l| l.bound || now.duration_since(l.used) < OFFER);
        let taken: HashSet<_> = self.clients.values().map(|lease| lease.address).collect();
        let wanted = wanted.filter(|a| self.is_for_clients(*a) && !taken.contains(a));
        let last = self.offer.net.broadcast();
        let mut range = (self.offer.first.to_bits()..last.to_bits()).map(Ipv4Addr::from_bits);
        let free = || {
            range
                .by_ref()
                .take(CLIENTS)
                .find(|address| !taken.contains(address))
        };
        let address = match wanted.or_else(free) {
            Some(address) if self.clients.len() < CLIENTS => address,
            _ => {
                let oldest = self.clients.iter().min_by_key(|(_, lease)| lease.used);
                let (client, address) = oldest.map(|(client, l)| (client.clone(), l.address))?;
                self.clients.remove(&client);
                self.is_new = true;
                address
            }
        };
        self.clients.insert(
            client.to_vec(),
            Lease {
                address,
                mac: Vec::new(),
                used: now,
                bound: false,
            },
        );
        Some(address)
    }

    /// That no two clients have an address, and each is one for clients.
    ///
    /// # Errors
    /// It is not so.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut seen = HashSet::new();
        let mut addresses = self.clients.values().map(|lease| lease.address);
        match addresses.find(|a| !self.is_for_clients(*a) || !seen.insert(*a)) {
            None => Ok(()),
            Some(address) => Err(format!("{address} is leased twice, or to nobody")),
        }
    }

    fn is_for_clients(&self, address: Ipv4Addr) -> bool {
        let Offer {
            net, server, dns, ..
        } = &self.offer;
        net.contains(&address)
            && ![net.network(), net.broadcast(), *server, *dns].contains(&address)
    }

    fn reply(&self, request: &Message, kind: MessageType, address: Option<Ipv4Addr>) -> Message {
        let mut reply = Message::default();
        reply
            .set_opcode(Opcode::BootReply)
            .set_htype(HType::Eth)
            .set_xid(request.xid());
        reply
            .set_chaddr(request.chaddr())
            .set_flags(Flags::default().set_broadcast());
        reply.set_ciaddr(request.ciaddr());
        let Offer {
            net,
            server,
            dns,
            mtu,
            is_cable,
            search,
            ..
        } = &self.offer;
        let options = reply.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(*server));
        if kind == MessageType::Nak {
            return reply;
        }
        options.insert(DhcpOption::SubnetMask(net.netmask()));
        options.insert(DhcpOption::BroadcastAddr(net.broadcast()));
        options.insert(DhcpOption::Router(vec![*server]));
        options.insert(DhcpOption::DomainNameServer(vec![*dns]));
        if let Some(mtu) = mtu {
            options.insert(DhcpOption::InterfaceMtu(*mtu));
        }
        let class = request.opts().get(OptionCode::ClassIdentifier);
        if *is_cable
            && let Some(DhcpOption::ClassIdentifier(class)) = class
            && class == CLASS
        {
            options.insert(DhcpOption::VendorExtensions(CABLE.to_vec()));
        }
        if let Some(first) = search.first() {
            let domain = first.to_string().trim_end_matches('.').to_owned();
            options.insert(DhcpOption::DomainName(domain));
            // RFC 3397.
            options.insert(DhcpOption::DomainSearch(search.clone()));
        }
        if let Some(address) = address {
            options.insert(DhcpOption::AddressLeaseTime(LEASE));
            reply.set_yiaddr(address).set_siaddr(*server);
        }
        reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhcproto::{Decodable, Encodable};

    fn leases(net: &str) -> Leases {
        let net: Ipv4Net = net.parse().unwrap();
        let station = |n| Ipv4Addr::from_bits(net.network().to_bits() + n);
        Leases::new(Offer {
            net,
            server: station(2),
            first: station(15),
            dns: station(3),
            mtu: Some(9000),
            is_cable: true,
            search: vec!["lab.test.".parse().unwrap(), "x.test.".parse().unwrap()],
        })
    }

    fn message(kind: MessageType, client: u8, wanted: Option<Ipv4Addr>) -> Message {
        let mut message = Message::default();
        message
            .set_opcode(Opcode::BootRequest)
            .set_chaddr(&[2, 0, 0, 0, 0, client]);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        if let Some(wanted) = wanted {
            message
                .opts_mut()
                .insert(DhcpOption::RequestedIpAddress(wanted));
        }
        message
    }

    fn kind(message: &Message) -> MessageType {
        match message.opts().get(OptionCode::MessageType) {
            Some(DhcpOption::MessageType(kind)) => *kind,
            _ => panic!("no kind"),
        }
    }

    #[test]
    fn a_client_keeps_its_address() {
        let mut leases = leases("10.0.2.0/24");
        let now = Instant::now();
        let offer = leases
            .answer(&message(MessageType::Discover, 1, None), now)
            .unwrap();
        assert_eq!(
            (kind(&offer), offer.yiaddr()),
            (MessageType::Offer, [10, 0, 2, 15].into())
        );
        let request = message(MessageType::Request, 1, Some(offer.yiaddr()));
        assert_eq!(
            kind(&leases.answer(&request, now).unwrap()),
            MessageType::Ack
        );
        assert_eq!(
            leases.changes(),
            Some(vec!["10.0.2.15 02:00:00:00:00:01".to_owned()])
        );
        assert_eq!(leases.changes(), None);
        let later = now + Duration::from_secs(100_000);
        let other = leases
            .answer(&message(MessageType::Discover, 2, None), later)
            .unwrap();
        assert_eq!(other.yiaddr(), Ipv4Addr::from([10, 0, 2, 16]));
        let again = leases
            .answer(&message(MessageType::Discover, 1, None), later)
            .unwrap();
        assert_eq!(again.yiaddr(), offer.yiaddr());
    }

    #[test]
    fn a_client_is_told_of_its_network() {
        let mut leases = leases("10.0.2.0/24");
        let discover = message(MessageType::Discover, 1, None);
        let offer = leases.answer(&discover, Instant::now()).unwrap();
        let offer = Message::from_bytes(&offer.to_vec().unwrap()).unwrap();
        let option = |code| offer.opts().get(code).cloned();
        assert_eq!(
            option(OptionCode::DomainName),
            Some(DhcpOption::DomainName("lab.test".into()))
        );
        let Some(DhcpOption::DomainSearch(search)) = option(OptionCode::DomainSearch) else {
            panic!("no search domains");
        };
        let search: Vec<_> = search.iter().map(ToString::to_string).collect();
        assert_eq!(search, ["lab.test.", "x.test."]);
        assert_eq!(
            option(OptionCode::InterfaceMtu),
            Some(DhcpOption::InterfaceMtu(9000))
        );
    }

    #[test]
    fn what_is_not_free_is_refused() {
        let mut leases = leases("10.0.2.0/24");
        let now = Instant::now();
        for wanted in [[10, 0, 2, 2], [10, 0, 2, 3], [10, 0, 2, 255], [10, 0, 3, 9]] {
            let request = message(MessageType::Request, 9, Some(wanted.into()));
            assert_eq!(
                kind(&leases.answer(&request, now).unwrap()),
                MessageType::Nak
            );
        }
    }

    #[test]
    fn more_clients_than_addresses() {
        let mut leases = leases("10.0.2.0/27");
        let now = Instant::now();
        let mut last = None;
        for client in 0..200 {
            let now = now + Duration::from_millis(client.into());
            let discover = message(MessageType::Discover, client, None);
            last = leases.answer(&discover, now).map(|offer| offer.yiaddr());
            assert!(last.is_some());
        }
        assert!(leases.clients.len() <= 16);
        assert!(last.is_some());
    }
}
