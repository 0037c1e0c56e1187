//! IP packets as this file reads and writes them: written without a look at the code that is
//! fuzzed, the slow way.

use super::pick;
use fastrand::Rng;

/// Flags of TCP (RFC 9293, section 3.1).
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;
pub(crate) const CWR: u8 = 0x80;

/// The one's complement sum of 16-bit words (RFC 1071, section 4.1), folded.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    let mut is_high = true;
    for byte in parts.iter().copied().flatten() {
        sum += u32::from(*byte) << if is_high { 8 } else { 0 };
        is_high = !is_high;
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A TCP or UDP packet that is not a fragment, seen in a frame. Offsets are bytes from the frame's
/// start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) frame: &'a [u8],
    pub(crate) is_v6: bool,
    pub(crate) is_tcp: bool,
    /// Whether there are IPv4 options or IPv6 extension headers.
    pub(crate) has_options: bool,
    pub(crate) ip: usize,
    pub(crate) transport: usize,
    pub(crate) payload: usize,
    pub(crate) end: usize,
}

fn number(frame: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(*frame.get(at)?) << 8 | usize::from(*frame.get(at + 1)?))
}

impl<'a> Seen<'a> {
    /// Reads a frame.
    pub(crate) fn read(frame: &'a [u8]) -> Option<Self> {
        let mut ip = 14;
        for _ in 0..2 {
            if matches!(number(frame, ip - 2)?, 0x8100 | 0x88a8) {
                ip += 4;
            }
        }
        let (is_v6, protocol, transport, end) = match number(frame, ip - 2)? {
            0x0800 => {
                let words = frame.get(ip).filter(|byte| **byte >> 4 == 4)? & 15;
                let is_fragment = number(frame, ip + 6)? & 0x3fff != 0;
                let (transport, end) = (ip + usize::from(words) * 4, ip + number(frame, ip + 2)?);
                if words < 5 || is_fragment {
                    return None;
                }
                (false, *frame.get(ip + 9)?, transport, end)
            }
            0x86dd => {
                frame.get(ip).filter(|byte| **byte >> 4 == 6)?;
                let end = ip + 40 + number(frame, ip + 4)?;
                let (mut next, mut at) = (*frame.get(ip + 6)?, ip + 40);
                for _ in 0..4 {
                    if matches!(next, 0 | 43 | 60) {
                        next = *frame.get(at)?;
                        at += 8 + 8 * usize::from(*frame.get(at + 1)?);
                    }
                }
                (true, next, at, end)
            }
            _ => return None,
        };
        let (is_tcp, header) = match protocol {
            6 => (true, usize::from(*frame.get(transport + 12)? >> 4) * 4),
            17 => (false, 8),
            _ => return None,
        };
        let payload = transport + header;
        let is_whole = payload <= end && end <= frame.len() && (!is_tcp || header >= 20);
        is_whole.then_some(Self {
            frame,
            is_v6,
            is_tcp,
            has_options: transport - ip != if is_v6 { 40 } else { 20 },
            ip,
            transport,
            payload,
            end,
        })
    }

    pub(crate) fn payload(&self) -> &'a [u8] {
        &self.frame[self.payload..self.end]
    }

    /// Where TCP's or UDP's checksum stands.
    pub(crate) fn checksum_place(&self) -> usize {
        self.transport + if self.is_tcp { 16 } else { 6 }
    }

    pub(crate) fn flags(&self) -> u8 {
        self.frame[self.transport + 13]
    }

    pub(crate) fn sequence(&self) -> u32 {
        let at = self.transport + 4;
        self.frame[at..at + 4]
            .iter()
            .fold(0, |number, byte| number << 8 | u32::from(*byte))
    }

    fn addresses(&self) -> &'a [u8] {
        match self.is_v6 {
            true => &self.frame[self.ip + 8..self.ip + 40],
            false => &self.frame[self.ip + 12..self.ip + 20],
        }
    }

    /// The sum of the pseudo-header.
    pub(crate) fn pseudo_header(&self) -> u16 {
        let len = ((self.end - self.transport) as u32).to_be_bytes();
        sum(&[
            self.addresses(),
            &[0, if self.is_tcp { 6 } else { 17 }],
            &len,
        ])
    }

    /// Whether an IPv4 header's checksum is right; IPv6 has none.
    pub(crate) fn is_ip_right(&self) -> bool {
        self.is_v6 || sum(&[&self.frame[self.ip..self.transport]]) == 0xffff
    }

    /// Whether TCP's or UDP's checksum is right; it must be there.
    pub(crate) fn is_transport_right(&self) -> bool {
        let pseudo = self.pseudo_header().to_be_bytes();
        let place = self.checksum_place();
        let is_there = self.is_tcp || self.frame[place..place + 2] != [0, 0];
        is_there && sum(&[&pseudo, &self.frame[self.transport..self.end]]) == 0xffff
    }

    /// Addresses and ports: what is in order among itself.
    pub(crate) fn flow(&self) -> Vec<u8> {
        [
            self.addresses(),
            &self.frame[self.transport..self.transport + 4],
        ]
        .concat()
    }
}

/// What the packets of a flow have in common, and what the next one has.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    is_v6: bool,
    is_tcp: bool,
    tags: &'static [u8],
    /// IPv4 options, or IPv6 extension headers; the first one's number in front.
    ip_options: &'static [u8],
    tcp_options: &'static [u8],
    host: u8,
    pub(crate) identification: u16,
    /// Whether the identification is always the same.
    pub(crate) is_constant: bool,
    pub(crate) sequence: u32,
    pub(crate) flags: u8,
    window: u16,
}

impl Flow {
    /// A flow of any kind; `plain` keeps to those whose packets can be put together.
    pub(crate) fn any(random: &mut Rng, plain: bool) -> Self {
        let is_v6 = random.usize(..2) == 0;
        let is_tcp = plain || random.usize(..3) != 0;
        let has_options = !plain && random.usize(..6) == 0;
        let ip_options: &[u8] = match (has_options, is_v6) {
            (false, _) => &[],
            (true, false) => &[7, 7, 4, 0, 0, 0, 0, 0],
            // Destination options; the number of what follows is filled in.
            (true, true) => &[60, 0, 0, 1, 4, 0, 0, 0, 0],
        };
        Self {
            is_v6,
            is_tcp,
            tags: *pick(
                random,
                &[
                    &[][..],
                    &[],
                    &[],
                    &[0x81, 0, 0x20, 5],
                    &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 5],
                ],
            ),
            ip_options,
            tcp_options: *pick(random, &[&[][..], &[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]]),
            host: *pick(random, &[1, 2]),
            identification: *pick(random, &[0, 0x1234, 0xfffe]),
            is_constant: random.usize(..4) == 0,
            sequence: *pick(random, &[0, 77, 0xffff_fff0]),
            flags: ACK,
            window: *pick(random, &[0, 501]),
        }
    }

    /// Appends the next packet; the checksum of TCP or UDP is complete, or the pseudo-header's sum.
    pub(crate) fn append(&mut self, payload: &[u8], is_complete: bool, frame: &mut Vec<u8>) {
        let start = frame.len();
        frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        frame.extend(self.tags);
        let protocol = if self.is_tcp { 6 } else { 17 };
        let transport_header = if self.is_tcp {
            20 + self.tcp_options.len()
        } else {
            8
        };
        let transport_len = transport_header + payload.len();
        let ip = frame.len() - start + 2;
        match self.is_v6 {
            true => {
                let (next, extensions) = self
                    .ip_options
                    .split_first()
                    .map_or((protocol, &[][..]), |(n, e)| (*n, e));
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(((extensions.len() + transport_len) as u16).to_be_bytes());
                frame.extend([next, 64]);
                frame.extend((0..31).map(|byte| 0xfd ^ byte));
                frame.push(self.host);
                frame.extend(extensions);
                if !extensions.is_empty() {
                    frame[start + ip + 40] = protocol;
                }
            }
            false => {
                let header = 20 + self.ip_options.len();
                frame.extend([0x08, 0, 0x40 | (header / 4) as u8, 0]);
                frame.extend(((header + transport_len) as u16).to_be_bytes());
                frame.extend(self.identification.to_be_bytes());
                frame.extend([
                    if self.is_constant { 0x40 } else { 0 },
                    0,
                    64,
                    protocol,
                    0,
                    0,
                ]);
                frame.extend([10, 0, 0, 1, 10, 0, 0, self.host]);
                frame.extend(self.ip_options);
                let checksum = !sum(&[&frame[start + ip..]]);
                frame[start + ip + 10..start + ip + 12].copy_from_slice(&checksum.to_be_bytes());
            }
        }
        let transport = frame.len() - start;
        frame.extend([0x14, 0x51, 0x9c, 0x40]);
        if self.is_tcp {
            frame.extend(self.sequence.to_be_bytes());
            frame.extend(77_u32.to_be_bytes());
            frame.extend([(transport_header as u8 / 4) << 4, self.flags]);
            frame.extend(self.window.to_be_bytes());
            frame.extend([0; 4]);
            frame.extend(self.tcp_options);
        } else {
            frame.extend((transport_len as u16).to_be_bytes());
            frame.extend([0; 2]);
        }
        frame.extend(payload);
        let place = start + transport + if self.is_tcp { 16 } else { 6 };
        let Some(seen) = Seen::read(&frame[start..]) else {
            return;
        };
        let pseudo = seen.pseudo_header().to_be_bytes();
        let field = match is_complete {
            false => pseudo,
            true => match !sum(&[&pseudo, &frame[start + transport..]]) {
                0 => [0xff; 2],
                checksum => checksum.to_be_bytes(),
            },
        };
        frame[place..place + 2].copy_from_slice(&field);
        self.sequence = self.sequence.wrapping_add(payload.len() as u32);
        if !self.is_constant {
            self.identification = self.identification.wrapping_add(1);
        }
    }

    /// The virtio header of a super-frame of the flow: the type, and the offsets of transport and
    /// payload.
    pub(crate) fn gso_type(&self) -> u8 {
        match (self.is_tcp, self.is_v6) {
            (true, false) => 1,
            (true, true) => 4,
            (false, _) => 5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_rfc() {
        // The example of RFC 1071, section 3.
        assert_eq!(
            sum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]),
            0xddf2
        );
        assert_eq!(
            sum(&[&[0x00], &[0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6], &[0xf7]]),
            0xddf2
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let mut random = Rng::with_seed(1);
        for _ in 0..1000 {
            let mut flow = Flow::any(&mut random, false);
            let mut frame = Vec::new();
            flow.append(b"payload", true, &mut frame);
            let seen = Seen::read(&frame).unwrap();
            assert_eq!(seen.payload(), b"payload");
            assert!(seen.is_ip_right() && seen.is_transport_right(), "{flow:?}");
            let at = seen.payload;
            frame[at] ^= 1;
            assert!(!Seen::read(&frame).unwrap().is_transport_right());
        }
    }
}
