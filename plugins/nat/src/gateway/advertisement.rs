//! Router advertisements (RFC 4861, section 4.2): what makes clients of IPv6 give themselves
//! addresses and routes. Here is no I/O.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use crate::resolv::wire_format;

/// The type of router solicitations.
pub(crate) const SOLICITATION: u8 = 133;
const ADVERTISEMENT: u8 = 134;

/// How long what is advertised holds, in seconds.
const LIFETIME: u32 = 1800;

/// How long a prefix holds, in seconds.
const PREFIX_LIFETIME: u32 = 86_400;

/// What is advertised.
#[derive(Clone, Debug)]
pub(crate) struct Advertisement {
    pub net: Ipv6Net,
    pub dns: Ipv6Addr,
    /// In bytes.
    pub mtu: Option<u32>,
    /// The gateway's Ethernet address.
    pub mac: [u8; 6],
    /// Whether the gateway leads anywhere: the host has a default route.
    pub is_router: bool,
    /// The domains to search.
    pub search: Vec<String>,
}

impl Advertisement {
    /// The ICMPv6 message, whose checksum the kernel completes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![ADVERTISEMENT, 0, 0, 0];
        // The hop limit; other configuration comes by DHCPv6.
        bytes.extend([64, 0x40]);
        let lifetime = if self.is_router { LIFETIME as u16 } else { 0 };
        bytes.extend(lifetime.to_be_bytes());
        // Reachable time and retransmission timer: the client's own.
        bytes.extend([0; 8]);
        // Source link-layer address.
        bytes.extend([1, 1]);
        bytes.extend(self.mac);
        if let Some(mtu) = self.mtu {
            bytes.extend([5, 1, 0, 0]);
            bytes.extend(mtu.to_be_bytes());
        }
        // Prefix information, on-link and for addresses.
        bytes.extend([3, 4, self.net.prefix_len(), 0xc0]);
        bytes.extend(PREFIX_LIFETIME.to_be_bytes());
        bytes.extend(PREFIX_LIFETIME.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.net.network().octets());
        // Recursive name servers (RFC 8106).
        bytes.extend([25, 3, 0, 0]);
        bytes.extend(LIFETIME.to_be_bytes());
        bytes.extend(self.dns.octets());
        if !self.search.is_empty() {
            // A DNS search list (RFC 8106, section 5.2), padded to eight bytes.
            let mut domains = wire_format(&self.search);
            domains.resize(domains.len().next_multiple_of(8), 0);
            bytes.extend([31, 1 + (domains.len() / 8) as u8, 0, 0]);
            bytes.extend(LIFETIME.to_be_bytes());
            bytes.extend(domains);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_whole() {
        let advertisement = Advertisement {
            net: "fd00::/64".parse().unwrap(),
            dns: "fd00::3".parse().unwrap(),
            mtu: Some(1500),
            mac: [2, 0, 0, 0, 0, 1],
            is_router: false,
            search: vec!["lab.test".into()],
        };
        let bytes = advertisement.bytes();
        assert_eq!(bytes[0], 134);
        assert_eq!(bytes[6..8], [0, 0]);
        let mut at = 16;
        let mut kinds = Vec::new();
        while at < bytes.len() {
            kinds.push(bytes[at]);
            at += usize::from(bytes[at + 1]) * 8;
        }
        assert_eq!((at, &kinds[..]), (bytes.len(), &[1, 5, 3, 25, 31][..]));
    }
}
