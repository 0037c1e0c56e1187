//! What the interfaces of a namespace are like. Status reports have them as they are here.

use ipnet::IpNet;
use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, Stats64};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol};
use serde::{Deserialize, Serialize};

use super::Netlink;
use crate::error::{Error, Result};
use crate::sys::interface::{Count, Traffic};

/// An interface as it is now.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct InterfaceStatus {
    /// Its index in its namespace, which means nothing outside.
    #[serde(skip)]
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// Its Ethernet address, as text; empty if it has none.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is up and has carrier.
    pub carrier: bool,
    /// Its counters.
    pub traffic: Traffic,
}

impl Netlink {
    /// All interfaces of the namespace, with their addresses.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn interfaces(&self) -> Result<Vec<InterfaceStatus>> {
        let mut views: Vec<InterfaceStatus> = Vec::new();
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.exchange(request, NLM_F_DUMP, |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                views.push(view(&link));
            }
        })
        .map_err(|error| Error::io("list interfaces", &error))?;
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.exchange(request, NLM_F_DUMP, |message| {
            if let RouteNetlinkMessage::NewAddress(given) = message
                && let Some(view) = views.iter_mut().find(|v| v.index == given.header.index)
            {
                view.addresses.extend(address(&given));
            }
        })
        .map_err(|error| Error::io("list addresses", &error))?;
        Ok(views)
    }
}

impl Netlink {
    /// The routes over an interface that people have made. The kernel and the daemons make theirs
    /// again by themselves.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn routes(&self, interface: u32) -> Result<Vec<RouteMessage>> {
        let mut routes = Vec::new();
        let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        self.exchange(request, NLM_F_DUMP, |message| {
            if let RouteNetlinkMessage::NewRoute(route) = message
                && matches!(
                    route.header.protocol,
                    RouteProtocol::Boot | RouteProtocol::Static
                )
                && route.attributes.contains(&RouteAttribute::Oif(interface))
            {
                routes.push(route);
            }
        })
        .map_err(|error| Error::io("list routes", &error))?;
        Ok(routes)
    }
}

pub(super) fn view(link: &LinkMessage) -> InterfaceStatus {
    let flags = link.header.flags;
    let mut view = InterfaceStatus {
        index: link.header.index,
        carrier: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        ..InterfaceStatus::default()
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => view.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => view.mtu = *mtu,
            LinkAttribute::Address(mac) => {
                let bytes: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
                view.mac = bytes.join(":");
            }
            LinkAttribute::Stats64(counters) => view.traffic = traffic(counters),
            _ => {}
        }
    }
    view
}

fn traffic(counters: &Stats64) -> Traffic {
    Traffic {
        received: Count {
            frames: counters.rx_packets,
            bytes: counters.rx_bytes,
            dropped: counters.rx_dropped,
        },
        sent: Count {
            frames: counters.tx_packets,
            bytes: counters.tx_bytes,
            dropped: counters.tx_dropped,
        },
    }
}

/// An address. The local address is this end's where the interface has another at its far end
/// (`IFA_LOCAL`, linux/if_addr.h).
fn address(message: &AddressMessage) -> Option<IpNet> {
    let attributes = || message.attributes.iter();
    let local = attributes().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = attributes().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    IpNet::new(local.or(address)?, message.header.prefix_len).ok()
}
