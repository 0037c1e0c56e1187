//! The format of capture files, pcapng (draft-ietf-opsawg-pcapng): blocks as bytes.
//!
//! # Theory of operation
//!
//! A file is blocks: a section header, a description of each interface, a block for each packet,
//! and statistics of each interface at the end. A block has its length at both ends and is padded
//! to four bytes, as its options are. Options are a code, a length and a value.
//!
//! All functions append one whole block, in little endian. So a file that ends behind any block is
//! readable.
//!
//! There are crates for this format. The one that is kept up, pcap-file, had its last release in
//! 2023. It takes a vector of options for each packet, and writes each block twice to find its
//! length, which costs a capture the processor time that its network needs.

/// Ethernet (LINKTYPE_ETHERNET).
const ETHERNET: u16 = 1;

/// The unit of times, as an exponent of ten: nanoseconds.
const RESOLUTION: u8 = 9;

/// The kinds of blocks.
mod kind {
    pub(super) const SECTION_HEADER: u32 = 0x0a0d_0d0a;
    pub(super) const INTERFACE_DESCRIPTION: u32 = 1;
    pub(super) const INTERFACE_STATISTICS: u32 = 5;
    pub(super) const ENHANCED_PACKET: u32 = 6;
}

/// The codes of options, by the kind of block.
mod code {
    pub(super) const END: u16 = 0;

    pub(super) const SECTION_OS: u16 = 3;
    pub(super) const SECTION_PROGRAM: u16 = 4;

    pub(super) const INTERFACE_NAME: u16 = 2;
    pub(super) const INTERFACE_MAC: u16 = 6;
    pub(super) const INTERFACE_RESOLUTION: u16 = 9;
    pub(super) const INTERFACE_FILTER: u16 = 11;

    pub(super) const PACKET_FLAGS: u16 = 2;

    pub(super) const STATISTICS_START: u16 = 2;
    pub(super) const STATISTICS_END: u16 = 3;
    pub(super) const STATISTICS_RECEIVED: u16 = 4;
    pub(super) const STATISTICS_DROPPED_BY_SYSTEM: u16 = 7;
    pub(super) const STATISTICS_DELIVERED: u16 = 8;
}

/// An interface whose packets are in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    pub name: String,
    pub mac: Option<[u8; 6]>,
    /// The most bytes of a packet that are kept.
    pub snaplen: u32,
    /// The filter's expression; empty for none.
    pub filter: String,
}

/// Which way a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Inbound = 1,
    Outbound = 2,
}

/// Whom a packet was addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reception {
    Unknown = 0,
    Unicast = 1,
    Multicast = 2,
    Broadcast = 3,
    /// Somebody else.
    Promiscuous = 4,
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    /// The number of its interface, from 0 in the order of the descriptions.
    pub interface: u32,
    /// When it was seen, in nanoseconds since 1970.
    pub time: u64,
    /// Its bytes, in parts that follow each other.
    pub parts: &'a [&'a [u8]],
    /// How long it was, in bytes.
    pub length: u32,
    pub direction: Direction,
    pub reception: Reception,
}

/// What became of an interface's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Statistics {
    /// When the capture began and ended, in nanoseconds since 1970.
    pub times: (u64, u64),
    /// Packets that the filter let pass.
    pub received: u64,
    /// Those of them for which there was no room.
    pub dropped: u64,
}

/// Appends a section header.
pub(crate) fn section_header(out: &mut Vec<u8>, program: &str, os: &str) {
    block(out, kind::SECTION_HEADER, |out| {
        // The magic that tells the order of bytes, the version 1.0, and a length that is unknown.
        out.extend(0x1a2b_3c4d_u32.to_le_bytes());
        out.extend(1_u16.to_le_bytes());
        out.extend(0_u16.to_le_bytes());
        out.extend(u64::MAX.to_le_bytes());
        option(out, code::SECTION_OS, os.as_bytes());
        option(out, code::SECTION_PROGRAM, program.as_bytes());
        option(out, code::END, &[]);
    });
}

/// Appends the description of an interface.
pub(crate) fn interface_description(out: &mut Vec<u8>, interface: &Interface) {
    block(out, kind::INTERFACE_DESCRIPTION, |out| {
        out.extend(ETHERNET.to_le_bytes());
        out.extend([0; 2]);
        out.extend(interface.snaplen.to_le_bytes());
        option(out, code::INTERFACE_NAME, interface.name.as_bytes());
        if let Some(mac) = interface.mac {
            option(out, code::INTERFACE_MAC, &mac);
        }
        option(out, code::INTERFACE_RESOLUTION, &[RESOLUTION]);
        if !interface.filter.is_empty() {
            // Zero: what follows is an expression, as libpcap has them.
            let filter = [&[0], interface.filter.as_bytes()].concat();
            option(out, code::INTERFACE_FILTER, &filter);
        }
        option(out, code::END, &[]);
    });
}

/// Appends a packet.
pub(crate) fn packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    block(out, kind::ENHANCED_PACKET, |out| {
        out.extend(packet.interface.to_le_bytes());
        time(out, packet.time);
        let captured: usize = packet.parts.iter().map(|part| part.len()).sum();
        out.extend((captured as u32).to_le_bytes());
        out.extend(packet.length.to_le_bytes());
        packet
            .parts
            .iter()
            .for_each(|part| out.extend_from_slice(part));
        pad(out, captured);
        let flags = packet.direction as u32 | (packet.reception as u32) << 2;
        option(out, code::PACKET_FLAGS, &flags.to_le_bytes());
        option(out, code::END, &[]);
    });
}

/// Appends the statistics of an interface.
pub(crate) fn statistics(out: &mut Vec<u8>, interface: u32, statistics: &Statistics) {
    let Statistics {
        times: (start, end),
        received,
        dropped,
    } = *statistics;
    block(out, kind::INTERFACE_STATISTICS, |out| {
        out.extend(interface.to_le_bytes());
        time(out, end);
        for (code, at) in [(code::STATISTICS_START, start), (code::STATISTICS_END, end)] {
            let mut value = Vec::with_capacity(8);
            time(&mut value, at);
            option(out, code, &value);
        }
        for (code, count) in [
            (code::STATISTICS_RECEIVED, received),
            (code::STATISTICS_DROPPED_BY_SYSTEM, dropped),
            (code::STATISTICS_DELIVERED, received.saturating_sub(dropped)),
        ] {
            option(out, code, &count.to_le_bytes());
        }
        option(out, code::END, &[]);
    });
}

/// How much of the start of `bytes` is whole blocks.
pub(crate) fn whole_blocks(bytes: &[u8]) -> usize {
    let mut whole = 0;
    while let Some(length) = bytes.get(whole + 4..whole + 8) {
        let length = length
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | usize::from(*byte));
        if length == 0 || whole + length > bytes.len() {
            break;
        }
        whole += length;
    }
    whole
}

/// Appends a block: its kind, its length, its body, and its length again.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let length = (out.len() + 4 - start) as u32;
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    out.extend(length.to_le_bytes());
}

/// Appends an option. A value that is too long for one is cut.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(u16::MAX.into())];
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    out.extend(value);
    pad(out, value.len());
}

/// Appends a time: its upper half first.
fn time(out: &mut Vec<u8>, time: u64) {
    out.extend(((time >> 32) as u32).to_le_bytes());
    out.extend((time as u32).to_le_bytes());
}

/// Pads what is `length` bytes long to four.
fn pad(out: &mut Vec<u8>, length: usize) {
    out.extend(&[0; 3][..length.next_multiple_of(4) - length]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = vec![0xee; 3];
        write(&mut bytes);
        bytes.split_off(3)
    }

    #[test]
    fn a_section_header_as_the_draft_has_it() {
        let bytes = written(|out| section_header(out, "vdectl", "Linux"));
        let expected = [
            &[0x0a, 0x0d, 0x0d, 0x0a, 56, 0, 0, 0][..],
            &[0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0],
            &[0xff; 8],
            &[3, 0, 5, 0],
            b"Linux\0\0\0",
            &[4, 0, 6, 0],
            b"vdectl\0\0",
            &[0, 0, 0, 0],
            &[56, 0, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn an_interface_has_its_name_nanoseconds_and_its_filter() {
        let interface = Interface {
            name: "r1:eth0".into(),
            mac: Some([2, 0, 0, 0, 0, 7]),
            snaplen: 96,
            filter: "icmp".into(),
        };
        let bytes = written(|out| interface_description(out, &interface));
        let expected = [
            &[1, 0, 0, 0, 68, 0, 0, 0, 1, 0, 0, 0, 96, 0, 0, 0, 2, 0, 7, 0][..],
            b"r1:eth0\0",
            &[6, 0, 6, 0, 2, 0, 0, 0, 0, 7, 0, 0],
            &[9, 0, 1, 0, 9, 0, 0, 0],
            &[11, 0, 5, 0, 0],
            b"icmp\0\0\0",
            &[0, 0, 0, 0, 68, 0, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn a_packet_is_padded_and_has_its_time_and_direction() {
        let bytes = written(|out| {
            let packet = Packet {
                interface: 3,
                time: 0x0001_0203_0405_0607,
                parts: &[b"ab", b"", b"cde"],
                length: 9000,
                direction: Direction::Outbound,
                reception: Reception::Multicast,
            };
            super::packet(out, &packet);
        });
        let expected = [
            &[6, 0, 0, 0, 52, 0, 0, 0, 3, 0, 0, 0, 3, 2, 1, 0, 7, 6, 5, 4][..],
            &[5, 0, 0, 0, 40, 35, 0, 0],
            b"abcde\0\0\0",
            &[2, 0, 4, 0, 10, 0, 0, 0, 0, 0, 0, 0, 52, 0, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
    }

    #[test]
    fn whole_blocks_end_where_one_is_cut() {
        let mut bytes = written(|out| section_header(out, "vdectl", "Linux"));
        let header = bytes.len();
        statistics(&mut bytes, 0, &Statistics::default());
        let all = bytes.len();
        for (length, whole) in [(0, 0), (7, 0), (header - 1, 0), (header, header)] {
            assert_eq!(whole_blocks(&bytes[..length]), whole);
        }
        assert_eq!(whole_blocks(&bytes[..all - 1]), header);
        assert_eq!(whole_blocks(&bytes), all);
        assert_eq!(whole_blocks(&[0; 20]), 0);
    }

    #[test]
    fn lengths_that_fit_no_option_are_cut() {
        let interface = Interface {
            filter: "x".repeat(70_000),
            ..Interface::default()
        };
        let bytes = written(|out| interface_description(out, &interface));
        assert_eq!(whole_blocks(&bytes), bytes.len());
    }
}
