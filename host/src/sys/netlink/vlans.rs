//! VLANs of a bridge's ports (linux/if_bridge.h, net/bridge/br_netlink.c).
//!
//! The messages are those of bridge(8): the family is that of bridges, and each VLAN, or each end
//! of a range of VLANs, is an attribute.

use netlink_packet_route::link::{
    AfSpecBridge, BridgeVlanInfo, BridgeVlanInfoFlags, LinkAttribute, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use serde::{Deserialize, Serialize};

use super::Netlink;
use crate::error::{Error, ErrorKind, Result};

/// The largest number of a VLAN.
const LAST: u16 = 4094;

/// A set of VLANs: VLAN `n` is bit `n % 64` of number `n / 64`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VlanSet(Vec<u64>);

impl FromIterator<u16> for VlanSet {
    fn from_iter<T: IntoIterator<Item = u16>>(vlans: T) -> Self {
        let mut words = vec![0; 64];
        for vlan in vlans.into_iter().filter(|vlan| *vlan <= LAST) {
            words[usize::from(vlan) / 64] |= 1 << (vlan % 64);
        }
        Self(words)
    }
}

impl VlanSet {
    pub(crate) fn is_empty(&self) -> bool {
        (1..=LAST).all(|vlan| !self.contains(vlan))
    }

    fn contains(&self, vlan: u16) -> bool {
        let word = self.0.get(usize::from(vlan) / 64);
        word.is_some_and(|word| word >> (vlan % 64) & 1 != 0)
    }
}

impl Netlink {
    /// Puts a port of a bridge that filters VLANs in these VLANs, and takes it out of all others.
    /// In those that it stays in, no frame is lost meanwhile.
    ///
    /// # Errors
    /// It is no port of the bridge, there is no such bridge, or the kernel refuses.
    pub(crate) fn set_vlans(
        &self,
        port: &str,
        bridge: &str,
        untagged: Option<u16>,
        tagged: &VlanSet,
    ) -> Result<()> {
        let action = || format!("set the VLANs of {port}");
        let found = self.link(port)?;
        if found.bridge != Some(self.index(bridge)?) {
            let message = format!("cannot {}: it is no port of {bridge}", action());
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        let both = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        let untagged = untagged.filter(|vlan| (1..=LAST).contains(vlan));
        let mut wanted: Vec<_> = untagged.map(|vlan| entry(both, vlan)).into_iter().collect();
        wanted.extend(ranges(|vlan| {
            untagged != Some(vlan) && tagged.contains(vlan)
        }));
        if !wanted.is_empty() {
            let message = RouteNetlinkMessage::SetLink(port_vlans(found.index, wanted));
            self.request(message, 0, action)?;
        }
        // The kernel does not mind that the port is not in them.
        let others = ranges(|vlan| untagged != Some(vlan) && !tagged.contains(vlan));
        let message = RouteNetlinkMessage::DelLink(port_vlans(found.index, others.collect()));
        self.request(message, 0, action)
    }
}

fn port_vlans(index: u32, vlans: Vec<AfSpecBridge>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.interface_family = AddressFamily::Bridge;
    message.header.index = index;
    message.attributes.push(LinkAttribute::AfSpecBridge(vlans));
    message
}

fn entry(flags: BridgeVlanInfoFlags, vid: u16) -> AfSpecBridge {
    AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid })
}

/// The VLANs for which `is_in` holds. Two or more in a row are a range: its first and its last.
fn ranges(is_in: impl Fn(u16) -> bool) -> impl Iterator<Item = AfSpecBridge> {
    (1..=LAST).filter_map(move |vlan| {
        let starts = vlan == 1 || !is_in(vlan - 1);
        let ends = vlan == LAST || !is_in(vlan + 1);
        let flags = match (starts, ends) {
            (true, false) => BridgeVlanInfoFlags::RangeBegin,
            (false, true) => BridgeVlanInfoFlags::RangeEnd,
            (true, true) => BridgeVlanInfoFlags::empty(),
            (false, false) => return None,
        };
        is_in(vlan).then(|| entry(flags, vlan))
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};

    use super::super::serialize;
    use super::*;

    /// The message that iproute2 6.1 sends for an interface with the index 7, less its number, by
    /// what follows its header.
    fn of_iproute2(kind: u8, attributes: &[u8]) -> Vec<u8> {
        let length = 32 + attributes.len() as u8;
        let mut bytes = vec![length, 0, 0, 0, kind, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([7, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(attributes);
        bytes
    }

    fn ours(
        request: fn(LinkMessage) -> RouteNetlinkMessage,
        vlans: impl IntoIterator<Item = AfSpecBridge>,
    ) -> Vec<u8> {
        let message = request(port_vlans(7, vlans.into_iter().collect()));
        serialize(message, NLM_F_REQUEST | NLM_F_ACK, 0)
    }

    #[test]
    fn messages_are_those_of_iproute2() {
        let both = BridgeVlanInfoFlags::Pvid | BridgeVlanInfoFlags::Untagged;
        // bridge vlan add dev X vid 10 pvid untagged
        let untagged = [12, 0, 0x1a, 0, 8, 0, 2, 0, 6, 0, 10, 0];
        assert_eq!(
            ours(RouteNetlinkMessage::SetLink, [entry(both, 10)]),
            of_iproute2(0x13, &untagged)
        );
        // bridge vlan add dev X vid 20
        let tagged = [12, 0, 0x1a, 0, 8, 0, 2, 0, 0, 0, 20, 0];
        assert_eq!(
            ours(RouteNetlinkMessage::SetLink, ranges(|vlan| vlan == 20)),
            of_iproute2(0x13, &tagged)
        );
        // bridge vlan del dev X vid 1-9
        let range = [
            20, 0, 0x1a, 0, 8, 0, 2, 0, 8, 0, 1, 0, 8, 0, 2, 0, 16, 0, 9, 0,
        ];
        assert_eq!(
            ours(RouteNetlinkMessage::DelLink, ranges(|vlan| vlan < 10)),
            of_iproute2(0x11, &range)
        );
    }

    #[test]
    fn ranges_have_each_vlan_of_a_set_once() {
        let spelt = |vlans: &[u16]| {
            let set: VlanSet = vlans.iter().copied().collect();
            let spell = |entry| match entry {
                AfSpecBridge::VlanInfo(BridgeVlanInfo { flags, vid }) => (flags.bits(), vid),
                other => panic!("{other:?}"),
            };
            ranges(|vlan| set.contains(vlan))
                .map(spell)
                .collect::<Vec<_>>()
        };
        assert_eq!(spelt(&[]), []);
        assert_eq!(
            spelt(&[1, 2, 4, 63, 64, 65, 4094]),
            [(8, 1), (16, 2), (0, 4), (8, 63), (16, 65), (0, 4094)]
        );
        let all: Vec<u16> = (0..=u16::MAX).collect();
        assert_eq!(spelt(&all), [(8, 1), (16, 4094)]);
        // The longest message fits into an attribute, whose length has 16 bits.
        let other: Vec<u16> = (1..=4094).filter(|vlan| vlan % 2 == 0).collect();
        assert!(spelt(&other).len() * 8 < 65_000);
    }

    #[test]
    fn a_set_of_another_process_may_be_nonsense() {
        for text in ["[]", "[1]", "[18446744073709551615]"] {
            let set: VlanSet = serde_json::from_str(text).unwrap();
            assert!(!set.contains(4094), "{text}");
        }
        assert!(VlanSet::from_iter([4095]).is_empty() && VlanSet::default().is_empty());
    }
}
