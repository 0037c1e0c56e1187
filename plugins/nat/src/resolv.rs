//! The host's resolv.conf(5): the name servers to ask and the domains to search.
//!
//! Where systemd-resolved serves a stub at 127.0.0.53, the servers that it asks itself are added
//! behind the stub. They serve where the stub does not: in a network namespace without it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::time::SystemTime;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What systemd-resolved asks, as a resolv.conf(5) (systemd-resolved.service(8)).
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// The stub of systemd-resolved.
const STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));

/// The port of name servers.
const PORT: u16 = 53;

/// The longest list of search domains, in bytes as options have it: what fits one of DHCP's.
const SEARCH: usize = 240;

/// What the files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolv {
    /// The name servers, in the order in which they are asked.
    pub servers: Vec<SocketAddr>,
    /// The domains in which short names are looked for.
    pub search: Vec<String>,
}

impl Resolv {
    /// Reads the host's files. One that is missing says nothing.
    pub(crate) fn read() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::combine(&read(RESOLV_CONF), || read(RESOLVED))
    }

    fn combine(text: &str, resolved: impl FnOnce() -> String) -> Self {
        let mut found = Self::parse(text);
        if found.servers.iter().any(|server| server.ip() == STUB) {
            for server in Self::parse(&resolved()).servers {
                if !found.servers.contains(&server) {
                    found.servers.push(server);
                }
            }
        }
        found
    }

    fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => found.servers.extend(words.next().and_then(server)),
                // The last line of the two counts.
                Some("search" | "domain") => {
                    let domains = words
                        .map(|word| word.trim_end_matches('.'))
                        .filter(|word| is_domain(word));
                    let mut left = SEARCH;
                    found.search = domains
                        .map_while(|domain| {
                            left = left.checked_sub(domain.len() + 2)?;
                            Some(domain.to_owned())
                        })
                        .collect();
                }
                _ => {}
            }
        }
        found
    }
}

/// When the files were last changed.
pub(crate) fn changed() -> [Option<SystemTime>; 2] {
    [RESOLV_CONF, RESOLVED].map(|path| fs::metadata(path).and_then(|file| file.modified()).ok())
}

/// A name server's address. A scope, as in `fe80::1%eth0`, names an interface.
fn server(word: &str) -> Option<SocketAddr> {
    let (address, scope) = word.split_once('%').unwrap_or((word, ""));
    match address.parse().ok()? {
        IpAddr::V6(ip) if !scope.is_empty() => {
            let index = nix::net::if_::if_nametoindex(scope).unwrap_or(0);
            Some(SocketAddrV6::new(ip, PORT, 0, index).into())
        }
        ip => Some(SocketAddr::new(ip, PORT)),
    }
}

/// Whether a word is a domain name in ASCII (RFC 1035, section 2.3.4: labels of at most 63 bytes,
/// 253 in all).
fn is_domain(word: &str) -> bool {
    let is_valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let mut labels = word.split('.');
    word.len() <= 253
        && labels.all(|label| (1..=63).contains(&label.len()) && label.bytes().all(is_valid))
}

/// Domain names one behind the other, as options for search lists have them (RFC 1035, section
/// 3.1): each label behind its length, and a zero at the end of each name.
pub(crate) fn wire_format(domains: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for domain in domains {
        for label in domain.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(text: &str, resolved: &str) -> Vec<String> {
        let found = Resolv::combine(text, || resolved.to_owned());
        found.servers.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_of_a_resolv_conf() {
        let text = "# x\nsearch a\nnameserver 192.0.2.1\nnameserver\t::1\nnameserver x\n";
        assert_eq!(
            servers(text, "nameserver 192.0.2.9"),
            ["192.0.2.1:53", "[::1]:53"]
        );
        assert_eq!(servers("", ""), [""; 0]);
    }

    #[test]
    fn behind_the_stub_are_its_servers() {
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\n";
        let real = "nameserver 192.0.2.1\nnameserver 127.0.0.53\n";
        assert_eq!(servers(stub, real), ["127.0.0.53:53", "192.0.2.1:53"]);
        assert_eq!(servers(stub, ""), ["127.0.0.53:53"]);
    }

    #[test]
    fn the_last_search_list_counts() {
        let long = "x".repeat(64);
        let text = format!("domain old.test\nsearch lab.test. a_b.test .. {long} ä .\n");
        assert_eq!(Resolv::parse(&text).search, ["lab.test", "a_b.test"]);
        assert_eq!(Resolv::parse("domain one.test").search, ["one.test"]);
        assert_eq!(
            wire_format(&["lab.test".into(), "x".into()]),
            b"\x03lab\x04test\0\x01x\0"
        );
    }
}
