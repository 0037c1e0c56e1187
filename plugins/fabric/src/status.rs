//! What a user may want to know of the switch: its ports and its forwarding database.

use std::collections::HashMap;
use std::time::Instant;

use nix::sys::socket::{getsockopt, sockopt};
use vdens_plugin_kit::{
    MAX_LEGACY_MTU, Peer, PortStatus, StationStatus, Status, SwitchStatus, Tier,
};

use crate::forwarding::Fabric;
use crate::port::{BridgeKey, LOCAL, Port, PortId};

/// How VLANs are kept apart on the panel.
pub(crate) fn on_panel(fabric: &Fabric) -> &'static str {
    // The last key is that of the filter.
    match fabric.bridges.keys().next_back() {
        Some(BridgeKey::Filter) => "the kernel's VLAN filter",
        Some(BridgeKey::Vlan(1..)) => "one bridge for each VLAN",
        Some(BridgeKey::Vlan(0)) | None => "no VLAN",
    }
}

/// The status of the switch.
pub(crate) fn of(fabric: &Fabric, now: Instant) -> Status {
    let mut ports: Vec<PortStatus> = fabric.ports.iter().map(|(_, port)| of_port(port)).collect();
    ports.sort_unstable_by_key(|port| port.number);
    let names = fabric.ports.iter();
    let mut names: HashMap<PortId, String> = names
        .map(|(id, port)| (id, port.number.to_string()))
        .collect();
    names.insert(LOCAL, "local".into());
    let bridges = fabric.bridges.keys();
    names.extend(bridges.map(|key| (PortId::bridge(*key), "panel".into())));
    let stations = fabric.fdb.stations(now).map(|(station, port, age)| {
        let mac = station.mac().map(|byte| format!("{byte:02x}"));
        StationStatus {
            mac: mac.join(":"),
            vlan: station.vlan(),
            port: names.get(&port).cloned().unwrap_or_default(),
            age: age.as_secs(),
        }
    });
    let mut fdb: Vec<StationStatus> = stations.collect();
    fdb.sort_unstable();
    let refused = fabric.fdb.refused();
    let refused = (refused > 0).then_some(("frames of stations not learned", refused));
    let extra = refused.map(|(name, count)| (name.to_owned(), count.to_string()));
    let tree = fabric.tree.as_ref();
    let tree = tree.map(|tree| ("spanning tree".to_owned(), tree.summary(fabric)));
    let panel = fabric
        .has_vlans()
        .then(|| ("VLANs on the panel".to_owned(), on_panel(fabric).to_owned()));
    Status {
        switch: Some(SwitchStatus { ports, fdb }),
        max_mtu: Some(MAX_LEGACY_MTU),
        extra: extra.into_iter().chain(panel).chain(tree).collect(),
        ..Status::default()
    }
}

fn of_port(port: &Port) -> PortStatus {
    let credentials = getsockopt(&port.control, sockopt::PeerCredentials).ok();
    PortStatus {
        number: port.number,
        client: Peer {
            description: port.description().into(),
            uid: credentials.map(|peer| peer.uid()),
            pid: credentials.and_then(|peer| u32::try_from(peer.pid()).ok()),
        },
        tier: Some(
            match (port.far_end.is_plugged(), port.takes_super_frames()) {
                (true, _) => Tier::Kernel,
                (false, true) => Tier::SuperFrames,
                (false, false) => Tier::Segmented,
            },
        ),
        received: port.counters.traffic.in_frames,
        sent: port.counters.traffic.out_frames,
        dropped: port.counters.losses(),
    }
}
