//! Cuts super-frames into segments, and completes checksums, as virtio headers ask for.
//!
//! A [`Cut`] is a super-frame that was checked. It writes any of its segments to a place that the
//! caller provides, so the caller can stop and go on anywhere. A segment is the super-frame's
//! headers, changed as a network card would change them, and a part of its payload:
//!
//! * The lengths are the segment's, an IPv4 identification counts up, and checksums are complete.
//! * TCP: sequence numbers count up, FIN and PSH are on the last segment only, and CWR on the first
//!   only (RFC 3168, section 6.1.2).
//! * All else is repeated, with options, extension headers and VLAN tags.
//!
//! The headers are found by parsing the frame, because Linux fills the virtio header's `hdr_len`
//! with other numbers. Its other fields must agree with the parsed frame. A super-frame may come
//! from anybody, so one that does not agree gives no segments.

use crate::{MIN_FRAME, VnetHeader};

use super::checksum::Sum;
use super::packet::{
    CWR, FIN, IPV6_HEADER, PSH, Packet, TCP, TCP_CHECKSUM, TCP_FLAGS, UDP, UDP_CHECKSUM, Version,
    put, read_u16, read_u32,
};
use super::{GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, NEEDS_CSUM, TCPV4_ECN, TCPV6_ECN};

/// A sound super-frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut<'a> {
    packet: Packet<'a>,
    /// Bytes of payload in every segment but the last.
    size: usize,
    /// The pseudo-header's sum but for the length.
    pseudo_header: Sum,
}

impl<'a> Cut<'a> {
    /// Looks at a frame whose header asks for segments. `None` if the two do not agree.
    pub(super) fn new(header: VnetHeader, frame: &'a [u8]) -> Option<Self> {
        let packet = Packet::parse(frame)?;
        let expected = match header.gso_type {
            GSO_TCPV4 | TCPV4_ECN => packet.version == Version::V4 && packet.protocol == TCP,
            GSO_TCPV6 | TCPV6_ECN => packet.version == Version::V6 && packet.protocol == TCP,
            GSO_UDP => packet.protocol == UDP,
            _ => false,
        };
        if !expected || header.gso_size == 0 || packet.payload_len() == 0 {
            return None;
        }
        Some(Self {
            pseudo_header: pseudo_header(header, &packet)?,
            packet,
            size: usize::from(header.gso_size),
        })
    }

    /// How many segments there are, at least one.
    pub(super) fn count(&self) -> usize {
        self.packet.payload_len().div_ceil(self.size)
    }

    /// Bytes of the longest segment.
    pub(super) fn longest(&self) -> usize {
        self.packet.payload + self.size.min(self.packet.payload_len())
    }

    /// Writes segment number `index` to the start of `room`, which has [`Cut::longest`] bytes, and
    /// returns its length; 0 if there is no such segment.
    pub(super) fn write(&self, index: usize, room: &mut [u8]) -> usize {
        let Packet { ip, transport, .. } = self.packet;
        let headers = self.packet.payload;
        let start = headers + index * self.size;
        let end = (start + self.size).min(self.packet.bytes.len());
        if start >= end {
            return 0;
        }
        let len = headers + end - start;
        let segment = &mut room[..len];
        segment[..headers].copy_from_slice(&self.packet.bytes[..headers]);
        segment[headers..].copy_from_slice(&self.packet.bytes[start..end]);
        match self.packet.version {
            Version::V4 => finish_ipv4(&mut segment[ip..], transport - ip, index),
            Version::V6 => finish_ipv6(&mut segment[ip..]),
        }
        let is_last = end == self.packet.bytes.len();
        let transport_len = (len - transport) as u16;
        let sum = self.pseudo_header.number(transport_len).partial();
        let segment = &mut segment[transport..];
        if self.packet.protocol == TCP {
            let sequence = read_u32(segment, 4).wrapping_add((index * self.size) as u32);
            segment[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !is_last {
                segment[TCP_FLAGS] &= !(FIN | PSH);
            }
            if index > 0 {
                segment[TCP_FLAGS] &= !CWR;
            }
            put(segment, TCP_CHECKSUM, sum);
            let checksum = Sum::default().bytes(segment).checksum();
            put(segment, TCP_CHECKSUM, checksum);
        } else {
            put(segment, 4, transport_len.to_be_bytes());
            put(segment, UDP_CHECKSUM, sum);
            let checksum = Sum::default().bytes(segment).checksum_not_zero();
            put(segment, UDP_CHECKSUM, checksum);
        }
        len
    }
}

/// The pseudo-header's sum but for the length: the one left in the checksum's place, which knows
/// the final destination of a routing header, or if none was left that of the addresses. `None` if
/// the header points elsewhere.
fn pseudo_header(header: VnetHeader, packet: &Packet<'_>) -> Option<Sum> {
    if header.flags & NEEDS_CSUM == 0 {
        return Some(packet.pseudo_header());
    }
    let place = match packet.protocol {
        TCP => TCP_CHECKSUM,
        _ => UDP_CHECKSUM,
    };
    if (
        usize::from(header.csum_start),
        usize::from(header.csum_offset),
    ) != (packet.transport, place)
    {
        return None;
    }
    let left = read_u16(packet.bytes, packet.transport + place);
    let transport_len = (packet.bytes.len() - packet.transport) as u16;
    Some(Sum::default().number(left).without(transport_len))
}

/// Gives segment number `index`, which starts with its IPv4 header, that header's final values.
fn finish_ipv4(packet: &mut [u8], header: usize, index: usize) {
    let total = packet.len() as u16;
    let identification = read_u16(packet, 4).wrapping_add(index as u16);
    put(packet, 2, total.to_be_bytes());
    put(packet, 4, identification.to_be_bytes());
    put(packet, 10, [0; 2]);
    let checksum = Sum::default().bytes(&packet[..header]).checksum();
    put(packet, 10, checksum);
}

/// Gives a segment, which starts with its IPv6 header, that header's final values.
fn finish_ipv6(packet: &mut [u8]) {
    let payload = (packet.len() - IPV6_HEADER) as u16;
    put(packet, 4, payload.to_be_bytes());
}

/// Whether a frame has a place for the checksum that `header` speaks of.
pub(super) fn has_checksum(header: VnetHeader, frame: &[u8]) -> bool {
    let start = usize::from(header.csum_start);
    let place = start + usize::from(header.csum_offset);
    start >= MIN_FRAME && place + 2 <= frame.len()
}

/// Completes the checksum that `header` speaks of in `frame`. `false` if there is no place for one.
pub(super) fn complete_checksum(header: VnetHeader, frame: &mut [u8]) -> bool {
    debug_assert!(header.gso_type == GSO_NONE);
    if !has_checksum(header, frame) {
        return false;
    }
    let start = usize::from(header.csum_start);
    // Zero would mean to UDP that there is none, and means the same as all ones to everybody else.
    let checksum = Sum::default().bytes(&frame[start..]).checksum_not_zero();
    put(frame, start + usize::from(header.csum_offset), checksum);
    true
}
