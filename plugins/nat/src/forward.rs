//! Forwards as people write them: `[LISTEN:]PORT[-LAST][:[STATION:]PORT[-LAST]]`.
//!
//! Without an address the proxy listens on 127.0.0.1, without a station the first client of the
//! network is meant, and without a second port the same one. An IPv6 address is in brackets.
//!
//! `[LISTEN:]auto` instead follows what listens inside.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The most ports in one range.
const RANGE: u16 = 1000;

/// Written instead of ports.
const AUTO: &str = "auto";

/// What a forward carries.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// The protocol's key in a VNL.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What is to be forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// These ports.
    Ports(Vec<Forward>),
    /// Each port at which something listens inside, on an address outside.
    Auto(IpAddr),
}

/// A port outside that leads to one inside.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Forward {
    pub protocol: Protocol,
    /// Where the proxy listens.
    pub listen: SocketAddr,
    /// The station inside and its port.
    pub to: SocketAddr,
}

impl Forward {
    /// Whether the two cannot be at the same time: one listens where the other one does.
    pub(crate) fn collides(&self, other: &Self) -> bool {
        let (one, two) = (self.listen.ip(), other.listen.ip());
        let is_same_port = self.listen.port() == other.listen.port();
        self.protocol == other.protocol
            && is_same_port
            && one.is_ipv4() == two.is_ipv4()
            && (one == two || one.is_unspecified() || two.is_unspecified())
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = self.protocol.key();
        write!(f, "{protocol} {} -> {}", self.listen, self.to)
    }
}

/// Reads one forward, a range of them, or `auto`.
///
/// # Errors
/// What is wrong, for a person.
pub(crate) fn parse(
    protocol: Protocol,
    text: &str,
    first_client: Ipv4Addr,
) -> Result<Wish, String> {
    let bad = || format!("'{}' is no forward", text.escape_debug());
    let (listen, rest) = address(text).map_or((None, text), |(ip, rest)| (Some(ip), rest));
    let listen = listen.unwrap_or(Ipv4Addr::LOCALHOST.into());
    if rest == AUTO {
        return Ok(Wish::Auto(listen));
    }
    let (ports, rest) = rest
        .split_once(':')
        .map_or((rest, None), |(p, rest)| (p, Some(rest)));
    let ports = range(ports).ok_or_else(bad)?;
    let (station, inner) = match rest {
        None => (None, ports),
        Some(rest) => {
            let (station, inner) = address(rest).map_or((None, rest), |(ip, r)| (Some(ip), r));
            (station, range(inner).ok_or_else(bad)?)
        }
    };
    if ports.1 - ports.0 != inner.1 - inner.0 {
        return Err(format!("{}: the two ranges have different lengths", bad()));
    }
    if ports.1 - ports.0 >= RANGE {
        return Err(format!("{}: a range has at most {RANGE} ports", bad()));
    }
    let station = station.unwrap_or(first_client.into());
    let each = (ports.0..=ports.1).zip(inner.0..=inner.1);
    let forwards = each.map(|(from, to)| Forward {
        protocol,
        listen: SocketAddr::new(listen, from),
        to: SocketAddr::new(station, to),
    });
    Ok(Wish::Ports(forwards.collect()))
}

/// An address and a colon at the start of `text`, and what is behind them.
fn address(text: &str) -> Option<(IpAddr, &str)> {
    if let Some(text) = text.strip_prefix('[') {
        let (ip, rest) = text.split_once("]:")?;
        return Some((ip.parse().ok()?, rest));
    }
    let (ip, rest) = text.split_once(':')?;
    Some((ip.parse::<Ipv4Addr>().ok()?.into(), rest))
}

/// A port, or the first and the last of several.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first > 0 && first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(protocol: Protocol, text: &str) -> Result<Vec<Forward>, String> {
        match parse(protocol, text, [10, 0, 2, 15].into())? {
            Wish::Ports(forwards) => Ok(forwards),
            Wish::Auto(_) => Err("auto".into()),
        }
    }

    fn one(text: &str) -> Result<(String, String), String> {
        let forwards = ports(Protocol::Tcp, text)?;
        Ok((forwards[0].listen.to_string(), forwards[0].to.to_string()))
    }

    #[test]
    fn forwards_of_all_forms() {
        for (text, listen, to) in [
            ("80", "127.0.0.1:80", "10.0.2.15:80"),
            ("8080:80", "127.0.0.1:8080", "10.0.2.15:80"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080", "10.0.2.15:80"),
            ("8080:10.0.2.20:80", "127.0.0.1:8080", "10.0.2.20:80"),
            ("[::1]:8080:[fd00::1]:80", "[::1]:8080", "[fd00::1]:80"),
        ] {
            assert_eq!(one(text), Ok((listen.into(), to.into())), "{text}");
        }
        let range = ports(Protocol::Udp, "5000-5002:6000-6002").unwrap();
        assert_eq!(
            (range.len(), range[2].to),
            (3, "10.0.2.15:6002".parse().unwrap())
        );
    }

    #[test]
    fn auto_has_an_address_to_listen_on() {
        for (text, listen) in [
            ("auto", "127.0.0.1"),
            ("0.0.0.0:auto", "0.0.0.0"),
            ("[::1]:auto", "::1"),
        ] {
            let wish = parse(Protocol::Tcp, text, [10, 0, 2, 15].into());
            assert_eq!(wish, Ok(Wish::Auto(listen.parse().unwrap())), "{text}");
        }
    }

    #[test]
    fn two_that_listen_at_one_place_collide() {
        for (one, other, collide) in [
            ("8080:80", "8080:81", true),
            ("8080", "8081", false),
            ("8080", "0.0.0.0:8080:80", true),
            ("192.0.2.1:8080:80", "0.0.0.0:8080:80", true),
            ("192.0.2.1:8080:80", "8080:80", false),
            ("8080:80", "[::]:8080:80", false),
        ] {
            let [tcp, other_tcp] = [one, other].map(|text| ports(Protocol::Tcp, text).unwrap()[0]);
            assert_eq!(tcp.collides(&other_tcp), collide, "{one} {other}");
            assert_eq!(other_tcp.collides(&tcp), collide, "{other} {one}");
            let udp = ports(Protocol::Udp, other).unwrap()[0];
            assert!(!tcp.collides(&udp), "{one} {other}");
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "", "x", "0", "70000", "80:", ":80", "2-1", "1-5:1-4", "1-2000", "1:2:3", "[::1:80",
            "auto:80", "80:auto",
        ] {
            assert!(one(text).is_err(), "{text}");
        }
    }
}
