//! What a switch reads of a frame: its source and destination.
//!
//! A station is a MAC address on a VLAN: the same address on two VLANs is two stations. The VLAN is
//! that of an IEEE 802.1Q tag. Frames without one, and priority-tagged ones (VLAN id 0), are on
//! VLAN 0.

use vdens_plugin_kit::{MIN_FRAME, fdb};

/// The protocol identifier of a tag.
pub(crate) const TPID_8021Q: [u8; 2] = [0x81, 0x00];
const VLAN_BITS: u32 = 12;
/// The group bit: the lowest of the first byte.
const MULTICAST: u64 = 1 << 40;

/// A MAC address on a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Station(u64);

impl Station {
    pub(crate) fn new(mac: &[u8; 6], vlan: u16) -> Self {
        let mac = mac.iter().fold(0, |mac, byte| mac << 8 | u64::from(*byte));
        Self(mac << VLAN_BITS | u64::from(vlan))
    }

    /// The MAC address.
    pub(crate) fn mac(self) -> [u8; 6] {
        let [_, _, mac @ ..] = (self.0 >> VLAN_BITS).to_be_bytes();
        mac
    }

    /// The VLAN id, 0 for none.
    pub(crate) fn vlan(self) -> u16 {
        (self.0 & ((1 << VLAN_BITS) - 1)) as u16
    }

    /// The same address on another VLAN.
    fn on(self, vlan: u16) -> Self {
        Self(self.0 >> VLAN_BITS << VLAN_BITS | u64::from(vlan))
    }
}

impl fdb::Station for Station {
    fn is_group(&self) -> bool {
        (self.0 >> VLAN_BITS) & MULTICAST != 0
    }
}

/// Both ends of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) destination: Station,
    pub(crate) source: Station,
}

impl Addresses {
    /// Reads a frame's header, `None` if it is too short to have one.
    pub(crate) fn of(frame: &[u8]) -> Option<Self> {
        let header: &[u8; MIN_FRAME] = frame.first_chunk()?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *header;
        let vlan = tag_of(frame).map_or(0, |tag| tag & 0x0fff);
        Some(Self {
            destination: Station::new(&[d0, d1, d2, d3, d4, d5], vlan),
            source: Station::new(&[s0, s1, s2, s3, s4, s5], vlan),
        })
    }

    /// The same on another VLAN.
    pub(crate) fn on(self, vlan: u16) -> Self {
        Self {
            destination: self.destination.on(vlan),
            source: self.source.on(vlan),
        }
    }
}

/// The priority and VLAN of a frame's outermost tag, if it has one.
pub(crate) fn tag_of(frame: &[u8]) -> Option<u16> {
    match frame.get(MIN_FRAME - 2..MIN_FRAME + 2)? {
        [a, b, high, low] if [*a, *b] == TPID_8021Q => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdens_plugin_kit::fdb::Station as _;

    fn tagged(tci: u16) -> Vec<u8> {
        let mut frame = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x81\0".to_vec();
        frame.extend(tci.to_be_bytes());
        frame.extend(b"\x08\0payload");
        frame
    }

    #[test]
    fn every_vlan_is_its_own() {
        let mut seen = std::collections::HashSet::new();
        for vlan in 0..4096 {
            let addresses = Addresses::of(&tagged(0xf000 | vlan)).unwrap();
            assert!(seen.insert(addresses.source), "VLAN {vlan} aliases");
            assert_eq!(addresses.source.vlan(), vlan);
            assert_eq!(addresses.source.mac(), [2, 0, 0, 0, 0, 2]);
        }
    }

    #[test]
    fn untagged_is_vlan_0() {
        let mut frame = tagged(0xe000);
        let priority = Addresses::of(&frame).unwrap();
        frame.drain(12..16);
        assert_eq!(Addresses::of(&frame).unwrap(), priority);
        // An 802.1ad tag is not looked into.
        let mut service = tagged(7);
        service[12..14].copy_from_slice(&[0x88, 0xa8]);
        assert_eq!(Addresses::of(&service).unwrap(), priority);
    }

    #[test]
    fn short_frames() {
        let frame = tagged(5);
        for len in 0..14 {
            assert_eq!(Addresses::of(&frame[..len]), None);
        }
        for len in 14..16 {
            assert!(Addresses::of(&frame[..len]).is_some());
        }
    }

    /// Any bytes at all: read here field by field, and the same whatever follows the header.
    #[test]
    fn any_frame() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut tagged = 0;
        for _ in 0..1_000_000 {
            let mut frame = [0; 24];
            random.fill(&mut frame);
            let mut frame = frame.to_vec();
            match random.usize(..4) {
                0 => frame[12..14].copy_from_slice(&[0x81, 0]),
                1 => frame[12..14].copy_from_slice(&[0x81, random.u8(..)]),
                _ => {}
            }
            frame.truncate(random.usize(..25));
            let Some(addresses) = Addresses::of(&frame) else {
                assert!(frame.len() < MIN_FRAME);
                continue;
            };
            assert!(frame.len() >= MIN_FRAME);
            let is_tagged = frame.len() >= 16 && frame[12] == 0x81 && frame[13] == 0;
            let vlan = match is_tagged {
                true => u64::from(frame[14] % 16) * 256 + u64::from(frame[15]),
                false => 0,
            };
            tagged += u32::from(is_tagged);
            for (station, at) in [(addresses.destination, 0), (addresses.source, 6)] {
                let mac = frame[at..at + 6]
                    .iter()
                    .fold(0, |mac, byte| mac * 256 + u64::from(*byte));
                assert_eq!(station.0, mac * 4096 + vlan, "{frame:?}");
                assert_eq!(station.is_group(), frame[at] % 2 == 1, "{frame:?}");
            }
            frame.truncate(16);
            assert_eq!(Addresses::of(&frame), Some(addresses));
        }
        assert!(tagged > 50_000, "{tagged}");
    }

    #[test]
    fn multicast() {
        let station = |first| Station::new(&[first, 0xff, 0xff, 0xff, 0xff, 0xff], 0xfff);
        assert!(station(0xff).is_group());
        assert!(station(0x01).is_group());
        assert!(station(0x33).is_group());
        assert!(!station(0x02).is_group());
        assert!(!station(0xfe).is_group());
    }
}
