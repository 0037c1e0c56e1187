//! Where a destination that a client inside names really is, and what it must not reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::settings::Settings;

/// The port of name servers.
const DNS: u16 = 53;

/// Where to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// An address outside.
    Outside(SocketAddr),
    /// The host's name servers.
    Names,
    /// Nowhere: the gateway has no such service.
    Nowhere,
}

/// The rules, from the settings.
pub(crate) struct Destinations {
    gateways: Vec<IpAddr>,
    names: Vec<IpAddr>,
    host: Option<IpAddr>,
}

impl Destinations {
    pub(crate) fn new(settings: &Settings) -> Self {
        let v4 = settings.gateway4().map(IpAddr::from);
        let v6 = settings.gateway6().map(IpAddr::from);
        let names4 = settings.dns4().map(IpAddr::from);
        let names6 = settings.dns6().map(IpAddr::from);
        Self {
            gateways: [v4, v6].into_iter().flatten().collect(),
            names: [names4, names6].into_iter().flatten().collect(),
            host: settings.host,
        }
    }

    /// Where `to` leads.
    pub(crate) fn find(&self, to: SocketAddr) -> Destination {
        let address = to.ip();
        if self.names.contains(&address) && to.port() == DNS {
            return Destination::Names;
        }
        if self.host == Some(address) {
            return Destination::Outside(SocketAddr::new(loopback(address), to.port()));
        }
        if self.is_own(address) || !is_outside(address) {
            return Destination::Nowhere;
        }
        Destination::Outside(to)
    }

    /// The gateway's address of the family of another one.
    pub(crate) fn gateway(&self, of: IpAddr) -> IpAddr {
        let same = |ip: &&IpAddr| ip.is_ipv4() == of.is_ipv4();
        self.gateways.iter().find(same).copied().unwrap_or(of)
    }

    /// Whether an address is the gateway's own, so that the gateway answers echo requests to it.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.gateways.contains(&address)
            || self.names.contains(&address)
            || self.host == Some(address)
    }
}

/// This machine's loopback address of the family of another address.
pub(crate) fn loopback(of: IpAddr) -> IpAddr {
    match of {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Whether an address can be outside: none that stands for this machine's loopback, in whatever
/// way it is written, no group, none of one link only.
fn is_outside(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let this_network = v4.octets()[0] == 0;
            !(v4.is_loopback() || this_network || v4.is_multicast() || v4.is_broadcast())
        }
        IpAddr::V6(v6) => {
            // ::/96 has the IPv4-compatible addresses, long out of use (RFC 4291, section 2.5.5.1).
            let compatible = v6.segments()[..6] == [0; 6];
            !(v6.is_multicast() || v6.is_unicast_link_local() || compatible)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(settings: &str, to: &str) -> Destination {
        let settings = Settings::parse(settings).unwrap();
        Destinations::new(&settings).find(to.parse().unwrap())
    }

    #[test]
    fn the_hosts_loopback_is_reached_only_where_it_is_opened() {
        for to in [
            "127.0.0.1:80",
            "127.1.2.3:80",
            "0.0.0.0:80",
            "[::1]:80",
            "[::]:80",
            "[::ffff:127.0.0.1]:80",
            "[::127.0.0.1]:80",
            "10.0.2.2:80",
            "10.0.2.3:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "[fe80::1]:80",
        ] {
            assert_eq!(find("", to), Destination::Nowhere, "{to}");
        }
        let open = Destination::Outside("127.0.0.1:80".parse().unwrap());
        assert_eq!(find("host=10.0.2.2", "10.0.2.2:80"), open);
    }

    #[test]
    fn names_are_asked_for_at_an_address_of_their_own() {
        assert_eq!(find("", "10.0.2.3:53"), Destination::Names);
        assert_eq!(find("", "[fd76:6465:6e73::3]:53"), Destination::Names);
        let outside = "192.0.2.7:53";
        assert_eq!(
            find("", outside),
            Destination::Outside(outside.parse().unwrap())
        );
    }
}
