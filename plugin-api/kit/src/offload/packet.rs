//! The places of the headers of an IP packet in an Ethernet frame.
//!
//! Nothing is copied. A [`Packet`] is a frame's bytes and a few offsets into them, each checked
//! against the frame's end. Up to two VLAN tags (IEEE 802.1Q) may be in front of the IP header. The
//! parser skips those IPv6 extension headers (RFC 8200, section 4) that may be in every segment of
//! a cut packet: hop-by-hop options, routing and destination options. It accepts no other, and no
//! fragment.

use super::checksum::Sum;

/// Protocol number of TCP.
pub(super) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(super) const UDP: u8 = 17;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Customer and service tags.
const ETHERTYPE_VLAN: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION: u8 = 60;
/// The most extension headers that are skipped.
const MAX_EXTENSIONS: usize = 4;

/// Bytes of an IPv4 header without options.
pub(super) const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header.
pub(super) const IPV6_HEADER: usize = 40;
/// Bytes of a TCP header without options.
pub(super) const TCP_HEADER: usize = 20;
/// Bytes of a UDP header.
pub(super) const UDP_HEADER: usize = 8;

/// Bytes from the start of a TCP header to its checksum.
pub(super) const TCP_CHECKSUM: usize = 16;
/// Bytes from the start of a UDP header to its checksum.
pub(super) const UDP_CHECKSUM: usize = 6;

/// Bytes from the start of a TCP header to its flags.
pub(super) const TCP_FLAGS: usize = 13;
// The flags (RFC 9293, section 3.1).
pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const ACK: u8 = 0x10;
pub(super) const URG: u8 = 0x20;
pub(super) const CWR: u8 = 0x80;

/// The version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

/// A frame with an unfragmented TCP or UDP packet. Offsets are bytes from the frame's start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    /// The frame up to the packet's end, without the padding that may follow.
    pub(super) bytes: &'a [u8],
    pub(super) version: Version,
    /// [`TCP`] or [`UDP`].
    pub(super) protocol: u8,
    /// Where the IP header starts.
    pub(super) ip: usize,
    /// Where the TCP or UDP header starts.
    pub(super) transport: usize,
    /// Where the payload starts.
    pub(super) payload: usize,
}

impl<'a> Packet<'a> {
    /// Finds the headers in a frame; `None` if it can be neither cut nor joined.
    pub(super) fn parse(frame: &'a [u8]) -> Option<Self> {
        let (ethertype, ip) = skip_tags(frame)?;
        let (version, protocol, transport, end) = match ethertype {
            ETHERTYPE_IPV4 => {
                let (protocol, transport, end) = parse_ipv4(frame, ip)?;
                (Version::V4, protocol, transport, end)
            }
            ETHERTYPE_IPV6 => {
                let (protocol, transport, end) = parse_ipv6(frame, ip)?;
                (Version::V6, protocol, transport, end)
            }
            _ => return None,
        };
        let bytes = frame.get(..end)?;
        let header = match protocol {
            TCP => usize::from(bytes.get(transport + 12)? >> 4) * 4,
            UDP => UDP_HEADER,
            _ => return None,
        };
        let payload = transport + header;
        let is_whole = payload <= end && (protocol == UDP || header >= TCP_HEADER);
        is_whole.then_some(Self {
            bytes,
            version,
            protocol,
            ip,
            transport,
            payload,
        })
    }

    /// Bytes of payload.
    pub(super) fn payload_len(&self) -> usize {
        self.bytes.len() - self.payload
    }

    /// The IP header and its extensions.
    pub(super) fn ip_header(&self) -> &'a [u8] {
        &self.bytes[self.ip..self.transport]
    }

    /// Source and destination address.
    pub(super) fn addresses(&self) -> &'a [u8] {
        match self.version {
            Version::V4 => &self.bytes[self.ip + 12..self.ip + 20],
            Version::V6 => &self.bytes[self.ip + 8..self.ip + 40],
        }
    }

    /// The TCP or UDP header and what follows it.
    pub(super) fn transport(&self) -> &'a [u8] {
        &self.bytes[self.transport..]
    }

    /// The flags of a TCP packet.
    pub(super) fn flags(&self) -> u8 {
        self.bytes[self.transport + TCP_FLAGS]
    }

    /// The sum of the pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1) but for the
    /// length.
    pub(super) fn pseudo_header(&self) -> Sum {
        Sum::default()
            .bytes(self.addresses())
            .number(u16::from(self.protocol))
    }
}

/// The ethertype behind up to two VLAN tags, and where what it announces starts.
fn skip_tags(frame: &[u8]) -> Option<([u8; 2], usize)> {
    let mut at = 12;
    for _ in 0..2 {
        let ethertype = frame.get(at..)?.first_chunk()?;
        if !ETHERTYPE_VLAN.contains(ethertype) {
            break;
        }
        at += 4;
    }
    Some((*frame.get(at..)?.first_chunk()?, at + 2))
}

/// Protocol, start of its header and end of the packet (RFC 791).
fn parse_ipv4(frame: &[u8], ip: usize) -> Option<(u8, usize, usize)> {
    let header: &[u8; IPV4_HEADER] = frame.get(ip..)?.first_chunk()?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let more_or_offset = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let is_sound = header[0] >> 4 == 4
        && header_len >= IPV4_HEADER
        && more_or_offset == 0
        && total >= header_len
        && ip + total <= frame.len();
    is_sound.then_some((header[9], ip + header_len, ip + total))
}

/// Protocol behind the extension headers, start of its header and end of the packet (RFC 8200).
fn parse_ipv6(frame: &[u8], ip: usize) -> Option<(u8, usize, usize)> {
    let header: &[u8; IPV6_HEADER] = frame.get(ip..)?.first_chunk()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let mut at = ip + IPV6_HEADER;
    let end = at + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let packet = frame.get(..end)?;
    let mut next = header[6];
    for _ in 0..MAX_EXTENSIONS {
        if !matches!(next, HOP_BY_HOP | ROUTING | DESTINATION) {
            break;
        }
        let extension: &[u8; 8] = packet.get(at..)?.first_chunk()?;
        next = extension[0];
        at += (usize::from(extension[1]) + 1) * 8;
    }
    (at <= end).then_some((next, at, end))
}

/// Writes a number that is in network byte order already.
pub(super) fn put(bytes: &mut [u8], at: usize, value: [u8; 2]) {
    bytes[at..at + 2].copy_from_slice(&value);
}

/// A number in network byte order.
pub(super) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// A number in network byte order.
pub(super) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
