//! The addresses of one link or switch: each is given out once.
//!
//! # Theory of operation
//!
//! An interface claims an address, or the next free one of a network ([`Claim`]). The written
//! addresses are claimed first, so that counting skips them wherever they stand. Counting starts at
//! the address given; if its host part is zero, it is the network, and its first host is meant.
//!
//! When all have addresses, [`Segment::check`] finds networks that differ by mistake.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::error::{Error, Result};

/// What an interface wants of the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// This one.
    Fixed(IpNet),
    /// The first that is free, from this one on.
    From(IpNet),
}

impl Claim {
    /// Reads an address with its prefix length. It is where counting starts if several interfaces
    /// have it (`is_shared`).
    ///
    /// # Errors
    /// It is no address with a prefix length, or none that an interface can have.
    pub(super) fn parse(text: &str, is_shared: bool) -> Result<Self> {
        let net = parse(text)?;
        match is_shared || is_network(&net) {
            true => Ok(Self::From(net)),
            false => Ok(Self::Fixed(net)),
        }
    }
}

/// The addresses in use on one link or switch.
#[derive(Debug, Default)]
pub(super) struct Segment {
    /// The interface that has an address, `r1:eth0`.
    taken: HashMap<IpAddr, String>,
    /// Where counting goes on, by where it started.
    next: HashMap<IpNet, u128>,
    /// In order, so that a network is followed by those within it.
    networks: BTreeMap<IpNet, Network>,
}

/// A network on a link or switch.
#[derive(Debug)]
struct Network {
    /// The first address that was given, and the interface that has it.
    first: (IpNet, String),
    /// Whether a second interface is in the network.
    is_shared: bool,
}

impl Segment {
    /// Gives an address to an interface.
    ///
    /// # Errors
    /// An interface has it already.
    pub(super) fn take(&mut self, net: IpNet, interface: &str) -> Result<()> {
        if let Some(owner) = self.taken.get(&net.addr()) {
            let message = match owner == interface {
                true => format!("{interface} has the address {} twice", net.addr()),
                false => format!("the address {} is {owner}'s already", net.addr()),
            };
            return Err(Error::usage(message)
                .hint("give each interface of a link or switch an address of its own"));
        }
        self.taken.insert(net.addr(), interface.to_owned());
        let network = self.networks.entry(net.trunc()).or_insert_with(|| Network {
            first: (net, interface.to_owned()),
            is_shared: false,
        });
        network.is_shared |= network.first.1 != interface;
        Ok(())
    }

    /// Gives the first free address to an interface, from `start` on.
    ///
    /// # Errors
    /// The network has none left.
    pub(super) fn take_next(&mut self, start: IpNet, interface: &str) -> Result<IpNet> {
        let last = bits(start.broadcast()) - u128::from(has_broadcast(&start));
        let first = bits(start.addr()) + u128::from(is_network(&start));
        let mut at = self.next.get(&start).copied().unwrap_or(first);
        while at <= last && is_host(with_bits(start, at)) {
            let address = with_bits(start, at);
            // It does not overflow: the last addresses of IPv6 are no host's.
            at += 1;
            if !self.taken.contains_key(&address) {
                let net = IpNet::new_assert(address, start.prefix_len());
                self.next.insert(start, at);
                return self.take(net, interface).map(|()| net);
            }
        }
        let message = format!("{start} has no address left for {interface}");
        Err(Error::usage(message).hint("take a network with a shorter prefix, or start lower"))
    }

    /// Refuses a network within another, and for a link (`is_link`) two ends that have networks of
    /// one family and share none. The error comes with the interface at fault.
    pub(super) fn check(&self, is_link: bool) -> std::result::Result<(), (&str, Error)> {
        let networks = || self.networks.iter().filter(|(net, _)| !is_single(net));
        for ((outer, around), (inner, network)) in networks().zip(networks().skip(1)) {
            if outer.contains(inner) {
                let ((wide, owner), (narrow, interface)) = (&around.first, &network.first);
                let message = format!(
                    "{narrow} of {interface} and {wide} of {owner} have different prefix lengths \
                     in one network"
                );
                let hint = format!("write one of the two, such as /{}", outer.prefix_len());
                return Err((interface, Error::usage(message).hint(hint)));
            }
        }
        for is_ipv4 in [true, false] {
            let of_family = || networks().filter(|(net, _)| net.addr().is_ipv4() == is_ipv4);
            let Some((net, near)) = of_family().next().filter(|_| is_link) else {
                continue;
            };
            let far = of_family().find(|(_, far)| far.first.1 != near.first.1);
            if let Some((_, far)) = far.filter(|_| !of_family().any(|(_, net)| net.is_shared)) {
                let (address, interface) = &far.first;
                let message = format!(
                    "{address} of {interface} is not in {net}, where {} is",
                    near.first.1
                );
                let hint = "give the two ends of a link addresses of one network";
                return Err((interface, Error::usage(message).hint(hint)));
            }
        }
        Ok(())
    }
}

/// Reads an address with its prefix length.
fn parse(text: &str) -> Result<IpNet> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
    let Ok(address) = address.parse::<IpAddr>() else {
        let message = format!("'{}' is no IP address", address.escape_debug());
        return Err(Error::usage(message).hint("write one with its prefix length, as 10.0.0.1/24"));
    };
    let (family, longest, example) = match address {
        IpAddr::V4(_) => ("IPv4", 32, 24),
        IpAddr::V6(_) => ("IPv6", 128, 64),
    };
    let wrong = |message| {
        Err(Error::usage(message).hint(format!(
            "write one from 1 to {longest}: {address}/{example}"
        )))
    };
    if prefix.is_empty() {
        return wrong(format!("the address {address} has no prefix length"));
    }
    let net = match prefix.parse().map(|prefix| IpNet::new(address, prefix)) {
        Ok(Ok(net)) if net.prefix_len() > 0 => net,
        Ok(_) => return wrong(format!("{family} has no prefix length /{prefix}")),
        Err(_) => {
            let prefix = prefix.escape_debug();
            return wrong(format!("'/{prefix}' is no prefix length"));
        }
    };
    if !is_host(address) {
        return Err(Error::usage(format!(
            "{address} is no address that an interface can have"
        ))
        .hint("take one of a private network, such as 10.0.0.1/24 or fd00::1/64"));
    }
    if has_broadcast(&net) && address == net.broadcast() {
        let network = net.trunc();
        return Err(
            Error::usage(format!("{address} is the broadcast address of {network}"))
                .hint("take one of the addresses before"),
        );
    }
    Ok(net)
}

/// Whether an interface can have an address.
fn is_host(address: IpAddr) -> bool {
    let is_reserved = match address {
        // 0.0.0.0/8 and the limited broadcast address (RFC 1122, 3.2.1.3).
        IpAddr::V4(address) => address.octets()[0] == 0 || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unspecified(),
    };
    !is_reserved && !address.is_multicast() && !address.is_loopback()
}

/// Whether the host part is zero, so that the address is the network's.
fn is_network(net: &IpNet) -> bool {
    // The two addresses of the longest prefixes but one are both hosts' (RFC 3021, RFC 6164).
    net.addr() == net.network() && net.prefix_len() + 1 < net.max_prefix_len()
}

fn has_broadcast(net: &IpNet) -> bool {
    net.addr().is_ipv4() && net.prefix_len() + 1 < net.max_prefix_len()
}

/// Whether the network is one address, of which others may be reached by routes.
fn is_single(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address of the family of `like` that is `bits`.
fn with_bits(like: IpNet, bits: u128) -> IpAddr {
    match like {
        // An IPv4 network has no address of more bits.
        IpNet::V4(_) => Ipv4Addr::from_bits(bits as u32).into(),
        IpNet::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_fixed_or_where_counting_starts() {
        for (text, is_shared, claim) in [
            ("10.0.0.1/24", false, Claim::Fixed(net("10.0.0.1/24"))),
            ("10.0.0.1/24", true, Claim::From(net("10.0.0.1/24"))),
            ("10.0.0.0/24", false, Claim::From(net("10.0.0.0/24"))),
            ("10.0.0.0/31", false, Claim::Fixed(net("10.0.0.0/31"))),
            ("10.0.0.0/32", false, Claim::Fixed(net("10.0.0.0/32"))),
            ("fd00::/64", false, Claim::From(net("fd00::/64"))),
            ("fd00::/127", false, Claim::Fixed(net("fd00::/127"))),
            ("10.0.1.0/16", false, Claim::Fixed(net("10.0.1.0/16"))),
        ] {
            assert_eq!(Claim::parse(text, is_shared).unwrap(), claim, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_of_an_interface_is_refused() {
        for (text, words) in [
            ("", "'' is no IP address; write one with its prefix length"),
            ("10.0.0/24", "'10.0.0' is no IP address"),
            (
                "10.0.0.1",
                "the address 10.0.0.1 has no prefix length; write one from 1 to 32: 10.0.0.1/24",
            ),
            (
                "10.0.0.1/64",
                "IPv4 has no prefix length /64; write one from 1 to 32",
            ),
            (
                "fd00::1/129",
                "IPv6 has no prefix length /129; write one from 1 to 128: fd00::1/64",
            ),
            ("10.0.0.1/0", "IPv4 has no prefix length /0"),
            ("10.0.0.1/x", "'/x' is no prefix length"),
            (
                "10.0.0.255/24",
                "10.0.0.255 is the broadcast address of 10.0.0.0/24",
            ),
            (
                "224.0.0.1/24",
                "224.0.0.1 is no address that an interface can have",
            ),
            ("127.0.0.1/8", "no address that an interface can have"),
            ("0.0.0.0/8", "no address that an interface can have"),
            (
                "255.255.255.255/32",
                "no address that an interface can have",
            ),
            ("ff02::1/64", "no address that an interface can have"),
            ("::1/128", "no address that an interface can have"),
        ] {
            let error = Claim::parse(text, false).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn counting_skips_what_is_taken() {
        let mut segment = Segment::default();
        segment.take(net("10.0.0.2/29"), "r:e").unwrap();
        let start = net("10.0.0.0/29");
        let got: Vec<_> = (0..5)
            .map(|_| segment.take_next(start, "h:e").unwrap())
            .collect();
        assert_eq!(
            got,
            ["1", "3", "4", "5", "6"].map(|host| net(&format!("10.0.0.{host}/29")))
        );
        let error = segment.take_next(start, "h9:e").unwrap_err().to_string();
        assert!(
            error.starts_with("10.0.0.0/29 has no address left for h9:e"),
            "{error}"
        );
        assert_eq!(
            segment.take_next(net("fd00::ff/120"), "h:e").unwrap(),
            net("fd00::ff/120")
        );
        assert!(segment.take_next(net("fd00::ff/120"), "h:e").is_err());
        assert_eq!(
            segment.take_next(net("10.9.0.0/31"), "h:e").unwrap(),
            net("10.9.0.0/31")
        );
        assert_eq!(
            segment.take_next(net("10.9.0.0/31"), "h:e").unwrap(),
            net("10.9.0.1/31")
        );
        assert!(segment.take_next(net("10.9.0.0/31"), "h:e").is_err());
        // Beyond the unicast addresses.
        assert!(segment.take_next(net("223.255.255.255/1"), "h:e").is_ok());
        assert!(segment.take_next(net("223.255.255.255/1"), "h:e").is_err());
    }

    #[test]
    fn an_address_has_one_interface() {
        let mut segment = Segment::default();
        segment.take(net("10.0.0.1/24"), "a:e").unwrap();
        let error = |segment: &mut Segment, interface| {
            let outcome = segment.take(net("10.0.0.1/24"), interface);
            outcome.unwrap_err().to_string()
        };
        assert!(error(&mut segment, "b:e").starts_with("the address 10.0.0.1 is a:e's already"));
        assert!(error(&mut segment, "a:e").starts_with("a:e has the address 10.0.0.1 twice"));
    }

    #[test]
    fn networks_that_differ_by_mistake_are_found() {
        let fault = |is_link: bool, all: &[(&str, &str)]| {
            let mut segment = Segment::default();
            for (interface, address) in all {
                segment.take(net(address), interface).unwrap();
            }
            let outcome = segment.check(is_link);
            outcome
                .err()
                .map(|(interface, error)| format!("{interface}: {error}"))
        };
        for all in [
            &[][..],
            &[("a", "10.0.0.1/24")],
            &[("a", "10.0.0.1/24"), ("b", "10.0.0.2/24")],
            &[("a", "10.0.0.1/32"), ("b", "10.0.1.2/32")],
            &[("a", "10.0.0.1/24"), ("b", "fd00::1/64")],
            &[
                ("a", "10.0.0.1/24"),
                ("a", "10.1.0.1/24"),
                ("b", "10.1.0.2/24"),
            ],
            &[
                ("a", "10.0.0.1/24"),
                ("a", "10.0.0.9/32"),
                ("b", "10.0.0.2/24"),
            ],
        ] {
            assert_eq!(fault(true, all), None, "{all:?}");
        }
        let apart = [("a", "10.0.0.1/24"), ("b", "10.0.1.2/24")];
        let found = fault(true, &apart).unwrap();
        assert!(
            found.starts_with("b: 10.0.1.2/24 of b is not in 10.0.0.0/24, where a is"),
            "{found}"
        );
        assert_eq!(fault(false, &apart), None);
        let lengths = [
            ("a", "10.0.0.1/24"),
            ("c", "10.9.0.1/24"),
            ("b", "10.0.0.2/25"),
        ];
        let found = fault(false, &lengths).unwrap();
        let words = "b: 10.0.0.2/25 of b and 10.0.0.1/24 of a have different prefix lengths";
        assert!(found.starts_with(words), "{found}");
    }
}
