//! The gateway's parsers, for [`crate::fuzz`].

use super::advertisement::Advertisement;
use super::leases::Leases;
use super::queue::{self, Held};
use super::services;
use crate::settings::Settings;

/// The connections in a datagram of the queue, and the one whose first packet this is.
pub(crate) fn held(bytes: &[u8]) -> Vec<Held> {
    let packets = queue::packets(bytes).into_iter();
    let one = queue::ends(bytes).map(|(from, to)| Held {
        packet: 0,
        from,
        to,
    });
    packets.filter_map(|(_, held)| held).chain(one).collect()
}

/// No leases yet.
pub(crate) fn leases(settings: &Settings) -> Option<Leases> {
    services::leases(settings)
}

/// Answers a client's DHCPv6 message.
pub(crate) fn answer6(bytes: &[u8], settings: &Settings) -> Option<Vec<u8>> {
    let advertisement = Advertisement {
        net: settings.net6?,
        dns: settings.dns6()?,
        mtu: None,
        mac: [2; 6],
        is_router: true,
        search: settings.search.clone(),
    };
    services::answer6(bytes, &advertisement)
}
