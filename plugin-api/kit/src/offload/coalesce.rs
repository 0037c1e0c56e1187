//! Joins consecutive segments of a TCP connection into super-frames, which the kernel at the other
//! end handles as one packet. Linux does the same in its receive path (GRO).
//!
//! A [`Plan`] is made for a batch of complete frames. It links frames that belong together into
//! chains, and leaves all others alone. The output is in the order of the chains' first frames.
//!
//! Frames belong together if cutting the super-frame gives the same frames back:
//!
//! * all headers are equal, except for what [`super::segment`] changes;
//! * the payloads follow each other without a gap, and all but the last have one size;
//! * every checksum is right.
//!
//! IPv4 options, IPv6 extension headers, fragments, and all but plain data (SYN, RST, URG, no
//! payload) stay alone. There is one exception, because the numbers have no meaning there (RFC
//! 6864): packets that must not be fragmented may also have one identification.
//!
//! The order within a connection is kept. A frame is only linked to the one whose payload it
//! continues, and any other frame of the connection ends the chain.

use crate::{BATCH_FRAMES, Frame, Offloads, RxBatch, TxBatch, VnetHeader};

use super::checksum::Sum;
use super::packet::{
    ACK, CWR, FIN, IPV4_HEADER, IPV6_HEADER, PSH, Packet, RST, SYN, TCP, TCP_CHECKSUM, TCP_FLAGS,
    URG, Version, put, read_u16, read_u32,
};
use super::{ECN, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM};

/// The longest IP packet, in bytes.
const MAX_PACKET: usize = 65_535;

/// The bit of an IPv4 header's bytes 6 and 7 that forbids fragments.
const DONT_FRAGMENT: u16 = 0x4000;

/// The chains of a batch. A frame is named by its number in the batch.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// The chain that starts with each frame, if any.
    chains: [Option<Chain<'a>>; BATCH_FRAMES],
    /// The next frame in the chain of each frame; 0 for none, because the first is behind no other.
    next: [u8; BATCH_FRAMES],
    /// One bit a frame: whether it is behind another in a chain.
    followers: u32,
}

impl<'a> Plan<'a> {
    /// Looks at the frames of a batch whose numbers are wanted, all of which must be complete, for
    /// a sink that takes `offloads`.
    pub(super) fn new(
        frames: &'a TxBatch<'_>,
        offloads: Offloads,
        is_wanted: impl Fn(usize) -> bool,
    ) -> Self {
        let mut plan = Self {
            chains: [None; BATCH_FRAMES],
            next: [0; BATCH_FRAMES],
            followers: 0,
        };
        // One bit a chain: whether more frames may follow.
        let mut open = 0_u32;
        if !offloads.contains(Offloads::CSUM) {
            return plan;
        }
        for number in (0..frames.len().min(BATCH_FRAMES)).filter(|number| is_wanted(*number)) {
            let packet = frames
                .frame(number)
                .map(Frame::bytes)
                .and_then(Packet::parse);
            let Some(packet) = packet.filter(|packet| packet.protocol == TCP) else {
                continue;
            };
            if let Some((at, chain)) = plan.find(open, &packet) {
                let last = usize::from(chain.last);
                let is_strung = chain.append(&packet, number);
                if !is_strung || chain.is_ended_by(&packet) {
                    open &= !(1 << at);
                }
                if is_strung {
                    plan.next[last] = number as u8;
                    plan.followers |= 1 << number;
                    continue;
                }
            }
            if can_start(&packet, offloads) {
                plan.chains[number] = Some(Chain::new(packet, number));
                open |= 1 << number;
            }
        }
        plan
    }

    /// Whether there is nothing to join.
    pub(super) fn is_trivial(&self) -> bool {
        self.followers == 0
    }

    /// Writes what comes out for frame `number` of those that the plan was made for: the frame, the
    /// super-frame that starts with it, or nothing if it is behind another.
    pub(super) fn write(&self, frames: &TxBatch<'_>, number: usize, out: &mut RxBatch<'_>) {
        if self.followers >> number & 1 != 0 {
            return;
        }
        let chain = self.chains[number].filter(|chain| chain.count > 1);
        let written = match (chain, frames.frame(number)) {
            (Some(chain), _) => self.write_chain(&chain, number, frames, out),
            (None, Some(frame)) => out.push_offloaded(frame.header(), frame.bytes()),
            (None, None) => false,
        };
        if !written {
            out.count_dropped(1);
        }
    }

    /// Writes the super-frame of the chain that starts with frame `number`. `false` if there is no
    /// room.
    fn write_chain(
        &self,
        chain: &Chain<'_>,
        number: usize,
        frames: &TxBatch<'_>,
        out: &mut RxBatch<'_>,
    ) -> bool {
        let header = chain.header().to_bytes();
        let written = out.fill_with_header(chain.len, |room| {
            let (front, room) = room.split_at_mut(header.len());
            front.copy_from_slice(&header);
            let mut len = chain.head.bytes.len();
            room[..len].copy_from_slice(chain.head.bytes);
            let mut at = number;
            let mut flags = 0;
            while self.next[at] != 0 {
                at = usize::from(self.next[at]);
                let frame = frames.frame(at).map(Frame::bytes);
                let packet = frame.and_then(Packet::parse).ok_or(())?;
                let payload = &packet.bytes[packet.payload..];
                room[len..len + payload.len()].copy_from_slice(payload);
                len += payload.len();
                flags = packet.flags();
            }
            chain.finish(&mut room[..len], flags);
            Ok::<_, ()>(header.len() + len)
        });
        written == Ok(true)
    }

    /// The open chain of a packet's connection, and its number.
    fn find(&mut self, open: u32, packet: &Packet<'_>) -> Option<(usize, &mut Chain<'a>)> {
        self.chains
            .iter_mut()
            .enumerate()
            .filter(|(at, _)| open >> at & 1 != 0)
            .filter_map(|(at, chain)| Some((at, chain.as_mut()?)))
            .find(|(_, chain)| same_connection(&chain.head, packet))
    }
}

/// Consecutive frames of one connection.
#[derive(Clone, Copy, Debug)]
struct Chain<'a> {
    head: Packet<'a>,
    /// The last frame's number.
    last: u8,
    /// Frames in the chain.
    count: u8,
    /// Bytes of the super-frame.
    len: usize,
    /// Whether the first frame's checksums are known to be right.
    is_checked: bool,
    /// Whether every packet has the first one's identification.
    is_constant: bool,
}

impl<'a> Chain<'a> {
    fn new(head: Packet<'a>, number: usize) -> Self {
        Self {
            head,
            last: number as u8,
            count: 1,
            len: head.bytes.len(),
            is_checked: false,
            is_constant: false,
        }
    }

    /// Bytes of payload in every frame but the last.
    fn size(&self) -> usize {
        self.head.payload_len()
    }

    /// Whether no more frames may follow a packet that was strung behind the others.
    fn is_ended_by(&self, packet: &Packet<'_>) -> bool {
        packet.payload_len() < self.size() || packet.flags() & (FIN | PSH) != 0
    }

    /// Strings a packet of the same connection behind the others, if it belongs there.
    fn append(&mut self, packet: &Packet<'_>, number: usize) -> bool {
        let len = self.len + packet.payload_len();
        let sequence =
            read_u32(self.head.transport(), 4).wrapping_add((self.len - self.head.payload) as u32);
        let identified = match self.head.version {
            Version::V4 => self.follows(packet),
            Version::V6 => Some(false),
        };
        let Some(is_constant) = identified else {
            return false;
        };
        let belongs = is_data(packet)
            && packet.payload_len() <= self.size()
            && len - self.head.ip <= MAX_PACKET
            && read_u32(packet.transport(), 4) == sequence
            && same_headers(&self.head, packet)
            && (self.is_checked || is_right(&self.head));
        if !belongs {
            return false;
        }
        self.is_checked = true;
        if !is_right(packet) {
            return false;
        }
        self.len = len;
        self.count += 1;
        self.last = number as u8;
        self.is_constant = is_constant;
        true
    }

    /// Whether a packet's IPv4 identification is the next one, and if so whether all are the same.
    fn follows(&self, packet: &Packet<'_>) -> Option<bool> {
        let [first, this] = [&self.head, packet].map(|packet| read_u16(packet.ip_header(), 4));
        let may_be_constant = read_u16(packet.ip_header(), 6) & DONT_FRAGMENT != 0
            && (self.is_constant || self.count == 1);
        if this == first && may_be_constant {
            return Some(true);
        }
        (!self.is_constant && this == first.wrapping_add(u16::from(self.count))).then_some(false)
    }

    /// What the super-frame's virtio header is.
    fn header(&self) -> VnetHeader {
        let head = &self.head;
        let ecn = match head.flags() & CWR {
            0 => 0,
            _ => ECN,
        };
        VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: gso_type(head.version) | ecn,
            hdr_len: head.payload as u16,
            gso_size: self.size() as u16,
            csum_start: head.transport as u16,
            csum_offset: TCP_CHECKSUM as u16,
        }
    }

    /// Gives the headers in front of the whole payload their final values; `flags` are the last
    /// frame's.
    fn finish(&self, frame: &mut [u8], flags: u8) {
        let Packet { ip, transport, .. } = self.head;
        let (headers, rest) = frame.split_at_mut(transport);
        let header = &mut headers[ip..];
        let transport_len = rest.len() as u16;
        match self.head.version {
            Version::V4 => {
                put(
                    header,
                    2,
                    (IPV4_HEADER as u16 + transport_len).to_be_bytes(),
                );
                put(header, 10, [0; 2]);
                let checksum = Sum::default().bytes(header).checksum();
                put(header, 10, checksum);
            }
            Version::V6 => put(header, 4, transport_len.to_be_bytes()),
        }
        rest[TCP_FLAGS] |= flags & (FIN | PSH);
        let pseudo_header = self.head.pseudo_header().number(transport_len);
        put(rest, TCP_CHECKSUM, pseudo_header.partial());
    }
}

fn gso_type(version: Version) -> u8 {
    match version {
        Version::V4 => GSO_TCPV4,
        Version::V6 => GSO_TCPV6,
    }
}

/// Whether a TCP packet is plain data behind plain headers.
fn is_data(packet: &Packet<'_>) -> bool {
    let ip_header = match packet.version {
        Version::V4 => IPV4_HEADER,
        Version::V6 => IPV6_HEADER,
    };
    packet.transport - packet.ip == ip_header
        && packet.payload_len() > 0
        && packet.flags() & (ACK | SYN | RST | URG) == ACK
}

/// Whether more frames may be strung behind a TCP packet for a sink that takes `offloads`.
fn can_start(packet: &Packet<'_>, offloads: Offloads) -> bool {
    let wanted = match packet.version {
        Version::V4 => Offloads::TSO4,
        Version::V6 => Offloads::TSO6,
    };
    is_data(packet)
        && packet.flags() & (FIN | PSH) == 0
        && offloads.contains(wanted)
        && (packet.flags() & CWR == 0 || offloads.contains(Offloads::TSO_ECN))
}

/// Whether addresses and ports are the same.
fn same_connection(a: &Packet<'_>, b: &Packet<'_>) -> bool {
    a.version == b.version
        && a.transport()[..4] == b.transport()[..4]
        && a.addresses() == b.addresses()
}

/// Whether two packets of a connection have the same headers, but for what differs from segment to
/// segment.
fn same_headers(head: &Packet<'_>, packet: &Packet<'_>) -> bool {
    let ([ip_a, ip_b], [a, b]) = (
        [head.ip_header(), packet.ip_header()],
        [head.transport(), packet.transport()],
    );
    let same_ip = match head.version {
        // Version, header length and type of service; flags, time to live and protocol.
        Version::V4 => ip_a[..2] == ip_b[..2] && ip_a[6..10] == ip_b[6..10],
        // Version, traffic class and flow label; next header and hop limit.
        Version::V6 => ip_a[..4] == ip_b[..4] && ip_a[6..8] == ip_b[6..8],
    };
    let flags = (a[TCP_FLAGS] ^ b[TCP_FLAGS]) & !(FIN | PSH | CWR);
    let header = head.payload - head.transport;
    same_ip
        && head.bytes[..head.ip] == packet.bytes[..packet.ip]
        // Acknowledgement and header length.
        && a[8..13] == b[8..13]
        && flags == 0
        && b[TCP_FLAGS] & CWR == 0
        // Window; urgent pointer and options.
        && a[14..16] == b[14..16]
        && a[18..header] == b[18..header]
}

/// Whether a TCP packet's checksums are right.
fn is_right(packet: &Packet<'_>) -> bool {
    let transport = packet.transport();
    let ip_is_right =
        packet.version == Version::V6 || Sum::default().bytes(packet.ip_header()).is_right();
    ip_is_right
        && packet
            .pseudo_header()
            .number(transport.len() as u16)
            .bytes(transport)
            .is_right()
}
