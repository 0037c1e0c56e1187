//! What a `nat://` VNL asks for: its keys as data, which the plugin parses and hands to the proxy,
//! and the proxy to the gateway.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use serde::{Deserialize, Serialize};
use vdens_plugin_kit::vnl::{Keys, Spec};
use vdens_plugin_kit::{Error, ErrorKind, Result, log};

use crate::forward::{self, Forward, Protocol, Wish};
use crate::resolv::Resolv;

pub(crate) const KEYS: Keys = Keys::new(&[
    "bind", "dns", "host", "ipv4", "ipv6", "mtu", "net", "net6", "tcp", "udp",
]);

/// The network inside, unless `net` says otherwise: what slirp's users know.
const NET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24);

/// The IPv6 network inside, unless `net6` says otherwise: unique local addresses (RFC 4193), whose
/// global identifier spells "vdens".
const NET6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd76, 0x6465, 0x6e73, 0, 0, 0, 0, 0), 64);

/// The shortest MTU of IPv4 and of IPv6 (RFC 791, RFC 8200, section 5), in bytes.
const LEAST_MTU4: u32 = 68;
const LEAST_MTU6: u32 = 1280;

/// The longest MTU that is offered, in bytes: what the panel carries, as a multiple of eight.
const MOST_MTU: u32 = 65_520;

// Stations of either network.
const GATEWAY: u32 = 2;
const DNS: u32 = 3;
const FIRST_CLIENT: u32 = 15;

/// The longest prefix of an IPv4 network that has room for them.
const LONGEST_PREFIX4: u8 = 27;

/// The prefix that hosts make IPv6 addresses of by themselves (RFC 4862, RFC 2464, section 4).
const PREFIX6: u8 = 64;

/// A gateway and the network behind it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The IPv4 network inside.
    pub net: Option<Ipv4Net>,
    /// The IPv6 network inside.
    pub net6: Option<Ipv6Net>,
    /// The name servers to ask instead of the host's.
    pub dns: Vec<IpAddr>,
    /// The domains to search, as the host has them.
    pub search: Vec<String>,
    /// The address inside that stands for the host's loopback, if one does.
    pub host: Option<IpAddr>,
    /// The MTU of the gateway's interface, which is offered to clients, in bytes.
    pub mtu: Option<u32>,
    /// The address outside to connect from.
    pub bind: Option<IpAddr>,
    /// Whether the link is a cable on the panel to one namespace, and no network.
    pub is_cable: bool,
    /// Whether the host has a default route of IPv6.
    pub is_router6: bool,
    /// Ports outside that lead inside.
    pub forwards: Vec<Forward>,
    /// The protocols whose ports follow what listens inside, and the addresses to listen on.
    pub follow: Vec<(Protocol, IpAddr)>,
}

impl Settings {
    /// Reads the keys of a VNL.
    ///
    /// # Errors
    /// A value is none of its kind, or the VNL has what the scheme does not know.
    pub(crate) fn parse(argument: &str) -> Result<Self> {
        // There is no address before the first key.
        let spec = Spec::address_grammar(&format!("/{argument}"), &KEYS)?;
        spec.no_nested()?;
        let yes = |key: &str| -> Result<bool> {
            match spec.get(key) {
                None | Some("yes") => Ok(true),
                Some("no") => Ok(false),
                Some(other) => Err(bad(key, other, "yes or no")),
            }
        };
        let mut settings = Self {
            net: if yes("ipv4")? {
                Some(value(&spec, "net", "'10.0.2.0/24'")?.unwrap_or(NET))
            } else {
                None
            },
            net6: if yes("ipv6")? {
                Some(value(&spec, "net6", "'fd00:1::/64'")?.unwrap_or(NET6))
            } else {
                None
            },
            dns: Vec::new(),
            search: Resolv::read().search,
            host: value(&spec, "host", "10.0.2.2")?,
            mtu: value(&spec, "mtu", "1500")?,
            bind: value(&spec, "bind", "192.0.2.1")?,
            is_cable: false,
            is_router6: has_default_route6(),
            forwards: Vec::new(),
            follow: Vec::new(),
        };
        settings.check_networks()?;
        let least = match settings.net6 {
            Some(_) => LEAST_MTU6,
            None => LEAST_MTU4,
        };
        if let Some(mtu) = settings.mtu
            && !(least..=MOST_MTU).contains(&mtu)
        {
            let message = format!("mtu={mtu} is not from {least} to {MOST_MTU}");
            return Err(Error::usage(message).hint("for example mtu=1500"));
        }
        if let Some(servers) = spec.get("dns") {
            for server in servers.split(',') {
                let parsed = server
                    .parse()
                    .map_err(|_| bad("dns", server, "192.0.2.53"))?;
                settings.dns.push(parsed);
            }
        }
        let first = settings.first_client().unwrap_or(Ipv4Addr::UNSPECIFIED);
        for (protocol, key) in [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")] {
            for text in spec.get(key).into_iter().flat_map(|text| text.split(',')) {
                let wish = forward::parse(protocol, text, first).map_err(|message| {
                    Error::usage(message).hint(format!("for example {key}=8080:80"))
                })?;
                match wish {
                    Wish::Ports(forwards) => settings.add(&forwards)?,
                    Wish::Auto(listen) => settings.follow.push((protocol, listen)),
                }
            }
        }
        Ok(settings)
    }

    /// Adds forwards, each of which has a port of its own.
    fn add(&mut self, forwards: &[Forward]) -> Result<()> {
        for forward in forwards {
            if let Some(other) = self.forwards.iter().find(|other| forward.collides(other)) {
                let message = format!("cannot forward {forward}: the VNL also has {other}");
                return Err(Error::usage(message).hint("give each port of the host once"));
            }
            self.forwards.push(*forward);
        }
        Ok(())
    }

    /// Checks that there is a network inside, and that stations fit in it.
    fn check_networks(&self) -> Result<()> {
        let (message, hint) = match (self.net, self.net6) {
            (None, None) => (
                "ipv4=no and ipv6=no leave no network".to_owned(),
                "leave out one of them",
            ),
            (Some(net), _) if net.prefix_len() > LONGEST_PREFIX4 => (
                format!("net={net} has no room for the gateway, the name server and clients"),
                "take a /27 or larger, for example net='10.0.2.0/24'",
            ),
            (_, Some(net6)) if net6.prefix_len() != PREFIX6 => (
                format!("net6={net6} is not a /64, so clients cannot make addresses of it"),
                "for example net6='fd00:1::/64'",
            ),
            _ => return Ok(()),
        };
        Err(Error::usage(message).hint(hint))
    }

    /// Checks the settings against the addresses of this machine. A default network may be one of
    /// the machine's own, with a warning: a gateway in the network of another one serves all else.
    ///
    /// # Errors
    /// `bind` is not an address of this machine, or a network that the VNL names is one of its own.
    pub(crate) fn check_machine(&self) -> Result<()> {
        if let Some(bind) = self.bind {
            UdpSocket::bind((bind, 0)).map_err(|error| {
                let message = format!("cannot connect from bind={bind}: {error}");
                Error::new(ErrorKind::Other, message)
                    .hint("ip addr shows the addresses of this machine")
            })?;
        }
        let directly = directly_connected();
        for (example, net) in [
            ("net='10.9.0.0/24'", self.net.map(IpNet::from)),
            ("net6='fd00:1::/64'", self.net6.map(IpNet::from)),
        ] {
            let Some(net) = net else { continue };
            let overlaps = |other: &IpNet| net.contains(other) || other.contains(&net);
            let Some((interface, other)) = directly.iter().find(|(_, other)| overlaps(other))
            else {
                continue;
            };
            let message = format!(
                "the network inside, {net}, hides {other} of {interface}, which cannot be reached \
                 from inside"
            );
            let hint = format!("take another one, for example {example}");
            if net == IpNet::from(NET) || net == IpNet::from(NET6) {
                log::warn!("nat://: {message}; {hint}");
            } else {
                return Err(Error::new(ErrorKind::Other, message).hint(hint));
            }
        }
        Ok(())
    }

    /// The networks inside.
    pub(crate) fn nets(&self) -> Vec<ipnet::IpNet> {
        let (v4, v6) = (self.net.map(Into::into), self.net6.map(Into::into));
        [v4, v6].into_iter().flatten().collect()
    }

    /// The gateway's own addresses.
    pub(crate) fn gateways(&self) -> Vec<ipnet::IpNet> {
        let v4 = self
            .net
            .map(|net| (station4(net, GATEWAY).into(), net.prefix_len()));
        let v6 = self
            .net6
            .map(|net| (station6(net, GATEWAY).into(), net.prefix_len()));
        let both = [v4, v6].into_iter().flatten();
        both.filter_map(|(address, length): (IpAddr, u8)| ipnet::IpNet::new(address, length).ok())
            .collect()
    }

    /// All addresses that the gateway's interface has: at which it is asked who has them.
    pub(crate) fn interface(&self) -> Vec<ipnet::IpNet> {
        let mut all = self.gateways();
        let names = [self.dns4().map(IpAddr::from), self.dns6().map(IpAddr::from)];
        for address in names.into_iter().chain([self.host]).flatten() {
            let known = all.iter().any(|net| net.addr() == address);
            let mut nets = all.iter().filter(|net| net.contains(&address));
            if let Some(net) = nets.next().filter(|_| !known)
                && let Ok(net) = ipnet::IpNet::new(address, net.prefix_len())
            {
                all.push(net);
            }
        }
        all
    }

    /// The address inside at which names are resolved.
    pub(crate) fn dns4(&self) -> Option<Ipv4Addr> {
        self.net.map(|net| station4(net, DNS))
    }

    /// As [`Settings::dns4`], of IPv6.
    pub(crate) fn dns6(&self) -> Option<Ipv6Addr> {
        self.net6.map(|net| station6(net, DNS))
    }

    /// The gateway's IPv4 address.
    pub(crate) fn gateway4(&self) -> Option<Ipv4Addr> {
        self.net.map(|net| station4(net, GATEWAY))
    }

    /// The gateway's IPv6 address.
    pub(crate) fn gateway6(&self) -> Option<Ipv6Addr> {
        self.net6.map(|net| station6(net, GATEWAY))
    }

    /// The Ethernet address of the gateway's interface. It is made of the network's address, so
    /// that a gateway that takes another one's place has the same: clients know the way to it.
    pub(crate) fn mac(&self) -> String {
        let [a, b, c, d] = match (self.gateway4(), self.gateway6()) {
            (Some(v4), _) => v4.octets(),
            (None, Some(v6)) => {
                let [_, _, _, _, a, b, c, d, ..] = v6.octets();
                [a, b, c, d]
            }
            (None, None) => [0; 4],
        };
        // The first octet says that it was assigned locally, to one station.
        format!("52:55:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }

    /// The first address that is leased to a client.
    pub(crate) fn first_client(&self) -> Option<Ipv4Addr> {
        self.net.map(|net| station4(net, FIRST_CLIENT))
    }
}

/// The networks that this machine's interfaces are in, with the interfaces' names.
fn directly_connected() -> Vec<(String, IpNet)> {
    let ip = |address: SockaddrStorage| -> Option<IpAddr> {
        let v4 = address.as_sockaddr_in().map(|at| IpAddr::from(at.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|at| at.ip().into()))
    };
    // Without a list, nothing can be said of it.
    let all = getifaddrs().into_iter().flatten();
    all.filter_map(|entry| {
        let (address, mask) = (ip(entry.address?)?, ip(entry.netmask?)?);
        let net = IpNet::with_netmask(address, mask).ok()?;
        Some((entry.interface_name, net.trunc()))
    })
    .collect()
}

/// Whether this machine has a default route of IPv6 (`/proc/net/ipv6_route`: destination, length of
/// its prefix, and at the end the interface, `lo` for what is unreachable).
fn has_default_route6() -> bool {
    let table = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    table.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let zero = "00000000000000000000000000000000";
        words.first() == Some(&zero) && words.get(1) == Some(&"00") && words.last() != Some(&"lo")
    })
}

fn station4(net: Ipv4Net, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(net.network().to_bits().wrapping_add(number))
}

fn station6(net: Ipv6Net, number: u32) -> Ipv6Addr {
    Ipv6Addr::from_bits(net.network().to_bits().wrapping_add(number.into()))
}

fn value<T: std::str::FromStr>(spec: &Spec, key: &str, example: &str) -> Result<Option<T>> {
    let text = spec.get(key);
    text.map(|text| text.parse().map_err(|_| bad(key, text, example)))
        .transpose()
}

fn bad(key: &str, value: &str, example: &str) -> Error {
    let message = format!("{key}={} is not understood", value.escape_debug());
    Error::usage(message).hint(format!("for example {key}={example}"))
}

/// What the proxy is given: the settings, and where it meets the other processes.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Task {
    pub settings: Settings,
    /// A directory of this gateway's own.
    pub directory: PathBuf,
    /// The program `vdens`, which makes the gateway's namespace.
    pub vdens: PathBuf,
    /// Whether the gateway may be on the panel.
    pub panel: bool,
    /// The processes that the gateway belongs to: the one that serves the link, and its parent.
    pub processes: Vec<u32>,
    /// Processes of which one is in the session's namespace; none where there is no session.
    pub inside: Vec<u32>,
}
