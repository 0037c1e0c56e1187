//! What the settings mean for the ports that are there.
//!
//! What is set of a port number becomes the [`Rules`] by which frames are forwarded, once for each
//! change. A client that has chosen a VLAN by the socket that it came through has it as long as its
//! port, in place of the untagged VLAN that is set.

use std::time::{Duration, Instant};

use vdens_switch_control::{LOCAL_PORT, Traffic};

use crate::forwarding::Fabric;
use crate::frame::Station;
use crate::manage::memory_of;
use crate::port::{BridgeKey, ClientKind, LOCAL, NOWHERE, Port, PortId, Rules};
use crate::settings::{PortSettings, Settings};
use crate::vlan::Membership;

impl Fabric {
    /// What is set of a port number, with the VLAN that its client has chosen.
    pub(crate) fn port_settings(&self, number: u32) -> PortSettings {
        let client = self.ports.iter().find(|(_, port)| port.number == number);
        self.settings_with(number, client.and_then(|(_, port)| port.chosen))
    }

    /// What is set of a port number for a client that has chosen this VLAN.
    pub(crate) fn settings_with(&self, number: u32, chosen: Option<u16>) -> PortSettings {
        let set = self.settings.port(number);
        PortSettings {
            untagged: chosen.or(set.untagged),
            ..set
        }
    }

    /// The rules for frames of a port.
    pub(crate) fn rules_of(&self, set: &PortSettings) -> Rules {
        Rules {
            membership: match self.has_vlans() {
                true => Membership::new(set),
                false => Membership::access(0),
            },
            lock: set.lock,
            mirror: set.mirror,
        }
    }

    /// Adds a client's port.
    pub(crate) fn add_port(&mut self, mut port: Port) -> PortId {
        let number = port.number;
        port.rules = self.rules_of(&self.settings_with(number, port.chosen));
        port.meter.set_limit(self.settings.storm_limit(number));
        let id = self.ports.insert(port);
        self.pin_stations(number);
        id
    }

    /// Forwards by the settings as they are now, which were `before`.
    pub(crate) fn apply(&mut self, before: &Settings, now: Instant) {
        let Settings { kind, expiry, .. } = self.settings;
        let had_vlans = !before.vlans.is_empty();
        if had_vlans != self.has_vlans() {
            // The VLAN of a frame is another now.
            self.fdb.set_expiry(Duration::ZERO, now);
            self.fdb.set_expiry(memory_of(kind, expiry), now);
        } else if (kind, expiry) != (before.kind, before.expiry) {
            self.fdb.set_expiry(memory_of(kind, expiry), now);
        }
        let highest = self.settings.vlans.keys().next_back().copied();
        let count = usize::from(highest.unwrap_or(0)) + 1;
        self.traffic.resize(count, Traffic::default());
        for vlan in before.vlans.keys() {
            if !self.settings.vlans.contains_key(vlan)
                && let Some(traffic) = self.traffic.get_mut(usize::from(*vlan))
            {
                *traffic = Traffic::default();
            }
        }
        let mut set = self.settings.ports.values();
        self.has_mirrors = set.any(|port| port.mirror.is_some());
        self.local.rules = self.rules_of(&self.settings.port(LOCAL_PORT));
        let rules: Vec<(PortId, Option<u16>, Rules)> = self
            .ports
            .iter()
            .map(|(id, port)| {
                let vlans = |settings: &Settings| {
                    let set = settings.port(port.number);
                    (set.untagged, set.tagged)
                };
                // What the owner sets counts more than what the client has chosen.
                let is_same = vlans(before) == vlans(&self.settings);
                let chosen = port.chosen.filter(|_| is_same);
                let set = self.settings_with(port.number, chosen);
                (id, chosen, self.rules_of(&set))
            })
            .collect();
        for (id, chosen, rules) in rules {
            let Some(port) = self.ports.get_mut(id) else {
                continue;
            };
            port.chosen = chosen;
            if port.rules.membership != rules.membership {
                self.fdb.forget(id);
            }
            port.rules = rules;
        }
        for (vlan, mac) in before.stations.keys() {
            if !self.settings.stations.contains_key(&(*vlan, *mac)) {
                self.fdb.remove(Station::new(&mac.0, *vlan));
            }
        }
        if self.settings.stations != before.stations {
            let mut numbers: Vec<u32> = self.settings.stations.values().copied().collect();
            numbers.sort_unstable();
            numbers.dedup();
            numbers
                .into_iter()
                .for_each(|number| self.pin_stations(number));
        }
    }

    /// Tells the forwarding database where the static stations of a port number are: nowhere, while
    /// no client has it.
    pub(crate) fn pin_stations(&mut self, number: u32) {
        let place = match number {
            LOCAL_PORT => LOCAL,
            _ => self.ports.of_number(number).map_or(NOWHERE, |(id, _)| id),
        };
        let stations = self.settings.stations.iter();
        for ((vlan, mac), _) in stations.filter(|(_, port)| **port == number) {
            self.fdb.pin(Station::new(&mac.0, *vlan), place);
        }
    }

    /// The bridge on the panel that a port may be on, with these settings of its own; `None` if its
    /// frames have to pass through the switch. On a bridge no frame is checked or copied, and every
    /// port forwards. So with a spanning tree only edge ports without a guard may be there, and no
    /// plug, which may be the cable to another switch.
    pub(crate) fn panel_bridge(
        &self,
        number: u32,
        set: &PortSettings,
        kind: ClientKind,
    ) -> Option<BridgeKey> {
        let is_edge = set.edge && !set.guard && !kind.is_plug;
        let is_simple = (is_edge || !self.settings.has_stp)
            && set.lock.is_none()
            && set.mirror.is_none()
            && set.storm.is_none();
        let gets_copies = || {
            let mut others = self.settings.ports.values();
            others.any(|other| other.mirror == Some(number))
        };
        // The bridge would learn of a static station that it is elsewhere.
        let is_in = |vlan| set.untagged == Some(vlan) || set.tagged.contains(&vlan);
        let is_pinned = |(on, _)| is_in(on) || !self.has_vlans();
        let has_static = || self.settings.stations.keys().copied().any(is_pinned);
        let key = match self.has_vlans() {
            true => self.bridge_of_vlans(set, kind.tells_place)?,
            false => BridgeKey::Vlan(0),
        };
        (is_simple && !gets_copies() && !has_static()).then_some(key)
    }

    /// The bridge for what a port is in. The kernel's filter would forward between ports without
    /// asking a spanning tree, and its tap is a port of all VLANs: so where there is a tree, each
    /// VLAN has a bridge of its own.
    fn bridge_of_vlans(&self, set: &PortSettings, tells_place: bool) -> Option<BridgeKey> {
        let can_filter = self.can_filter && tells_place && !self.settings.has_stp;
        match (set.untagged, set.tagged.is_empty()) {
            (None, true) => None,
            (Some(0), true) => Some(BridgeKey::Vlan(0)),
            // The kernel knows no VLAN 0.
            (Some(0), false) => None,
            _ if can_filter => Some(BridgeKey::Filter),
            (Some(vlan), true) => Some(BridgeKey::Vlan(vlan)),
            (_, false) => None,
        }
    }

    /// The same of a port that is there, whose client has chosen this VLAN.
    pub(crate) fn panel_bridge_of(
        &self,
        id: PortId,
        number: u32,
        chosen: Option<u16>,
        kind: ClientKind,
    ) -> Option<BridgeKey> {
        let leads_to_bridge = self.tree.as_ref().is_some_and(|tree| tree.has_heard(id));
        let key = self.panel_bridge(number, &self.settings_with(number, chosen), kind);
        key.filter(|_| !leads_to_bridge)
    }

    /// What comes in and goes out by the tap of a bridge on the panel.
    pub(crate) fn rules_on(&self, key: BridgeKey) -> Rules {
        match key {
            BridgeKey::Vlan(vlan) => Rules::access(vlan),
            BridgeKey::Filter => self.rules_of(&self.settings_on_filter()),
        }
    }

    /// What the tap of the bridge that filters VLANs is in: all of them.
    pub(crate) fn settings_on_filter(&self) -> PortSettings {
        PortSettings {
            untagged: None,
            tagged: self.settings.vlans.keys().copied().collect(),
            ..PortSettings::default()
        }
    }
}
