//! Packets for the tests, with checksums computed word by word.

use std::iter;

use fastrand::Rng;

use crate::VnetHeader;

/// A payload of random bytes.
pub(super) fn payload(random: &mut Rng, len: usize) -> Vec<u8> {
    iter::repeat_with(|| random.u8(..)).take(len).collect()
}

/// What the packets of a connection have in common, and what the next one has.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) is_v6: bool,
    /// VLAN tags, four bytes each.
    pub(super) tags: Vec<u8>,
    /// IPv4 options, or IPv6 extension headers that TCP or UDP follows, the first one's type in
    /// front.
    pub(super) ip_options: Vec<u8>,
    pub(super) is_udp: bool,
    pub(super) tcp_options: Vec<u8>,
    /// Type of service or traffic class.
    pub(super) tos: u8,
    pub(super) identification: u16,
    pub(super) port: u16,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    pub(super) window: u16,
}

impl Connection {
    pub(super) fn tcp(is_v6: bool) -> Self {
        Self {
            is_v6,
            tags: Vec::new(),
            ip_options: Vec::new(),
            is_udp: false,
            tcp_options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            tos: 2,
            identification: 0xfffe,
            port: 5201,
            sequence: 0xffff_f000,
            acknowledgement: 77,
            window: 501,
        }
    }

    pub(super) fn udp(is_v6: bool) -> Self {
        Self {
            is_udp: true,
            ..Self::tcp(is_v6)
        }
    }

    fn ip(&self) -> usize {
        14 + self.tags.len()
    }

    pub(super) fn transport(&self) -> usize {
        let options = match self.is_v6 {
            true => 40 + self.ip_options.len().saturating_sub(1),
            false => 20 + self.ip_options.len(),
        };
        self.ip() + options
    }

    pub(super) fn headers(&self) -> usize {
        let transport = match self.is_udp {
            true => 8,
            false => 20 + self.tcp_options.len(),
        };
        self.transport() + transport
    }

    /// The next packet, complete, with these TCP flags.
    pub(super) fn packet(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.unfinished(flags, payload);
        let at = self.transport();
        let place = at + if self.is_udp { 6 } else { 16 };
        let sum = !checksum(&[&frame[at..]]);
        let finished = match (!sum, self.is_udp) {
            (0, true) => 0xffff,
            (sum, _) => sum,
        };
        frame[place..place + 2].copy_from_slice(&finished.to_be_bytes());
        frame
    }

    /// The next packet with the pseudo-header's sum in its checksum's place.
    pub(super) fn unfinished(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        let protocol = if self.is_udp { 17 } else { 6 };
        let mut transport = Vec::new();
        transport.extend(self.port.to_be_bytes());
        transport.extend([0x9c, 0x40]);
        if self.is_udp {
            transport.extend((8 + payload.len() as u16).to_be_bytes());
            transport.extend([0; 2]);
        } else {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(self.acknowledgement.to_be_bytes());
            let words = (20 + self.tcp_options.len()) / 4;
            transport.extend([(words as u8) << 4, flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0; 4]);
            transport.extend(&self.tcp_options);
        }
        transport.extend(payload);
        let transport_len = transport.len() as u16;
        let (addresses, ip) = match self.is_v6 {
            true => self.ipv6(protocol, transport_len),
            false => self.ipv4(protocol, transport_len),
        };
        let len = u32::from(transport_len).to_be_bytes();
        let pseudo = !checksum(&[&addresses, &[0, protocol], &len]);
        let place = if self.is_udp { 6 } else { 16 };
        transport[place..place + 2].copy_from_slice(&pseudo.to_be_bytes());
        let ethertype: [u8; 2] = if self.is_v6 { [0x86, 0xdd] } else { [8, 0] };
        [
            &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..],
            &self.tags,
            &ethertype,
            &ip,
            &transport,
        ]
        .concat()
    }

    fn ipv4(&self, protocol: u8, transport_len: u16) -> (Vec<u8>, Vec<u8>) {
        let addresses = vec![10, 0, 0, 1, 10, 0, 0, 2];
        let header = 20 + self.ip_options.len();
        let mut ip = vec![0x40 | (header / 4) as u8, self.tos];
        ip.extend((header as u16 + transport_len).to_be_bytes());
        ip.extend(self.identification.to_be_bytes());
        ip.extend([0x40, 0, 64, protocol, 0, 0]);
        ip.extend(&addresses);
        ip.extend(&self.ip_options);
        let sum = checksum(&[&ip]).to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
        (addresses, ip)
    }

    fn ipv6(&self, protocol: u8, transport_len: u16) -> (Vec<u8>, Vec<u8>) {
        let addresses: Vec<u8> = (0..32).map(|n| 0xfd ^ n).collect();
        let (next, extensions) = match self.ip_options.split_first() {
            Some((first, extensions)) => (*first, extensions),
            None => (protocol, &[][..]),
        };
        let mut ip = vec![0x60 | self.tos >> 4, self.tos << 4, 0x12, 0x34];
        ip.extend((extensions.len() as u16 + transport_len).to_be_bytes());
        ip.extend([next, 64]);
        ip.extend(&addresses);
        ip.extend(extensions);
        (addresses, ip)
    }

    /// The packets that `payload` is cut into; `flags` are the last one's. The connection goes on
    /// behind them.
    pub(super) fn packets(&mut self, flags: u8, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
        let count = payload.len().div_ceil(size);
        let mut frames = Vec::new();
        for (n, piece) in payload.chunks(size).enumerate() {
            let mut flags = flags;
            if n > 0 {
                flags &= !0x80;
            }
            if n + 1 < count {
                flags &= !0x09;
            }
            frames.push(self.packet(flags, piece));
            self.identification = self.identification.wrapping_add(1);
            self.sequence = self.sequence.wrapping_add(piece.len() as u32);
        }
        frames
    }

    /// The virtio header of a super-frame of this connection, as a kernel makes it.
    pub(super) fn header(&self, size: u16) -> VnetHeader {
        VnetHeader {
            flags: 1,
            gso_type: match (self.is_udp, self.is_v6) {
                (true, _) => 5,
                (false, true) => 4,
                (false, false) => 1,
            },
            hdr_len: self.headers() as u16,
            gso_size: size,
            csum_start: self.transport() as u16,
            csum_offset: if self.is_udp { 6 } else { 16 },
        }
    }
}

/// RFC 1071, section 4.1, over parts of even length but for the last.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u64 = words
        .map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
