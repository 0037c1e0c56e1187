//! The bridges on the panel.
//!
//! # Theory of operation
//!
//! Where the host can make a bridge that filters VLANs, all ports that are in VLANs may be on one
//! such bridge, whatever their tags: the switch tells the kernel which port is in which VLANs, when
//! the port has come and whenever that changes. Elsewhere each VLAN has a bridge of its own, for
//! ports that are in this VLAN only, without tags; so have those in none, and those of a switch
//! without VLANs ([`Fabric::panel_bridge`]). The bridges of two VLANs have no port in common, so no
//! frame gets from one to the other but through the fabric, which lets none. While the switch has
//! VLANs, they drop frames whose tag names one, as the fabric does at such a port. While it has
//! none, tags mean nothing.
//!
//! A bridge is made when the first client comes that may be on it. Its tap is a port of the fabric:
//! that of the filtering bridge is in all VLANs, with tags. So ports on a bridge and in user space
//! are one network.
//!
//! A client whose port has to leave its bridge, or could be on another, loses its port and comes
//! again. The host's interface is moved, or served here. A client whose VLANs the kernel does not
//! take is told to leave the bridge, and is served here.

use std::time::Instant;

use nix::sys::epoll::EpollFlags;
use vdens_plugin_kit::{
    Bridge, BridgePort, Error, Link, PanelAddress, PortVlans, Result, RxBatch, VlanBridge, log,
};
use vdens_switch_control::LOCAL_PORT;

use crate::forwarding::{Fabric, PanelBridge};
use crate::manage::memory_of;
use crate::port::{BridgeKey, ClientKind, LOCAL, Offer, Port, PortId};
use crate::settings::PortSettings;
use crate::storm::Meter;
use crate::switch::{Source, Switch, TAKES_ALL};

impl Switch {
    /// Serves the tap of a bridge.
    pub(crate) fn serve_bridge(&mut self, key: BridgeKey, host: &mut RxBatch<'_>, now: Instant) {
        let Some(bridge) = self.fabric.bridges.get_mut(&key) else {
            return;
        };
        self.ingress.clear();
        match bridge.bridge.tap.recv(&mut self.ingress.rx()) {
            Ok(()) => {
                let frames = self.ingress.tx(0);
                let id = PortId::bridge(key);
                let refused = self.fabric.forward(id, &frames, Some(host), now);
                if refused.storm > 0 {
                    self.note_storm("the panel", now);
                    // The kernel knows no limit. User space keeps this one.
                    self.drop_bridge(key, "there is a storm on the panel");
                }
            }
            Err(error) => {
                log::warn!("the bridge on the panel is lost: {error}");
                self.drop_bridge(key, "the bridge on the panel is lost");
            }
        }
    }

    /// What a client is told of the panel, and the address of the bridge that it may plug into.
    /// `find` says on which it may be.
    pub(crate) fn offer(
        &mut self,
        find: impl Fn(&Fabric) -> Option<BridgeKey>,
    ) -> (Offer, Option<PanelAddress>) {
        while let Some(key) = find(&self.fabric) {
            match self.bridge(key) {
                Some(address) => return (Offer::Bridge(key), Some(address)),
                None if !self.is_calm() => break,
                // There is no panel.
                None if find(&self.fabric) == Some(key) => return (Offer::None, None),
                None => {}
            }
        }
        (Offer::Later, None)
    }

    /// The panel address of a bridge, if there can be one. It is made when it is first asked for.
    fn bridge(&mut self, key: BridgeKey) -> Option<PanelAddress> {
        if !self.is_calm() {
            return None;
        }
        if !self.fabric.bridges.contains_key(&key) {
            let made = self.make_bridge(key);
            match (made.and_then(|bridge| self.join_bridge(key, bridge)), key) {
                (Ok(()), BridgeKey::Vlan(0)) => {}
                (Ok(()), BridgeKey::Vlan(vlan)) => {
                    log::debug!("VLAN {vlan} has a bridge on the panel");
                }
                (Ok(()), BridgeKey::Filter) => log::debug!("the kernel filters VLANs on the panel"),
                (Err(error), BridgeKey::Vlan(_)) => log::debug!("no bridge on the panel: {error}"),
                (Err(error), BridgeKey::Filter) => {
                    self.fabric.can_filter = false;
                    log::debug!("the kernel does not filter VLANs on the panel: {error}");
                }
            }
        }
        let bridge = self.fabric.bridges.get(&key)?;
        Some(bridge.bridge.panel_address.clone())
    }

    fn make_bridge(&self, key: BridgeKey) -> Result<Bridge> {
        let settings = &self.fabric.settings;
        let memory = memory_of(settings.kind, settings.expiry);
        match key {
            BridgeKey::Filter => {
                let bridge = self.host.vlan_bridge(memory, VlanBridge::Filtering)?;
                let vlans = vlans_of(&self.fabric.settings_on_filter());
                let address = &bridge.panel_address;
                self.host.set_vlans(address, BridgePort::Tap, &vlans)?;
                Ok(bridge)
            }
            BridgeKey::Vlan(_) if self.fabric.has_vlans() => {
                self.host.vlan_bridge(memory, VlanBridge::Untagged)
            }
            BridgeKey::Vlan(_) => self.host.bridge(memory),
        }
    }

    /// Joins a bridge, and takes all offloads from there.
    pub(crate) fn join_bridge(&mut self, key: BridgeKey, mut bridge: Bridge) -> Result<()> {
        let tree = &mut self.fabric.tree;
        if tree.as_mut().is_some_and(|tree| !tree.add_bridge(key)) {
            return Err(Error::closed("the spanning tree has 4095 ports"));
        }
        bridge.tap.other_side(TAKES_ALL);
        let event = Source::Bridge(key).event(EpollFlags::EPOLLIN);
        if let Err(errno) = self.epoll.add(&bridge.tap, event) {
            tree.as_mut().map(|tree| tree.remove(PortId::bridge(key)));
            return Err(Error::io("watch the bridge on the panel", &errno.into()));
        }
        let bridge = PanelBridge {
            bridge,
            rules: self.fabric.rules_on(key),
            meter: Meter::new(self.fabric.settings.storm),
            drops_tagged: self.fabric.has_vlans(),
        };
        self.fabric.bridges.insert(key, bridge);
        Ok(())
    }

    /// Whether interfaces may come to the panel: there is no storm, nor had it a BPDU lately.
    pub(crate) fn is_calm(&self) -> bool {
        self.storm.is_none() && self.guarded.is_none()
    }

    /// Gives up a bridge, for this reason. The clients that were offered it come again, and the
    /// host's interface is served here.
    pub(crate) fn drop_bridge(&mut self, key: BridgeKey, why: &str) {
        if let Some(PanelBridge { bridge, .. }) = self.fabric.bridges.remove(&key) {
            // Closing it is enough, unless another process has it open.
            let _ = self.epoll.delete(&bridge.tap);
        }
        self.fabric.fdb.forget(PortId::bridge(key));
        if let Some(tree) = &mut self.fabric.tree {
            tree.remove(PortId::bridge(key));
        }
        if self.fabric.local.plugged == Some(key) {
            self.unplug_host();
        }
        for (_, port) in self.fabric.ports.iter_mut() {
            if port.offer == Offer::Bridge(key) {
                port.close(why);
            }
        }
    }

    /// Gives up all bridges, for this reason.
    pub(crate) fn drop_bridges(&mut self, why: &str) {
        let keys: Vec<BridgeKey> = self.fabric.bridges.keys().copied().collect();
        keys.into_iter().for_each(|key| self.drop_bridge(key, why));
    }

    /// What the host's port is.
    fn host_kind(&self) -> ClientKind {
        ClientKind {
            is_plug: self.host.port().interface.is_empty(),
            tells_place: true,
        }
    }

    /// Plugs the host's port into a bridge, if that is possible: its interface from the start, and
    /// the port of a plug while the kernel carries the frames of the plug's other end.
    pub(crate) fn plug_host(&mut self) {
        let (port, kind) = (self.host.port(), self.host_kind());
        let Some(own) = port.panel_address else {
            return;
        };
        let find = |fabric: &Fabric| fabric.panel_bridge_of(LOCAL, LOCAL_PORT, None, kind);
        let (Offer::Bridge(key), Some(bridge)) = self.offer(find) else {
            return;
        };
        if let Err(error) = self.host.attach(&bridge) {
            return log::debug!("not plugged: {error}");
        }
        let set = self.fabric.settings.port(LOCAL_PORT);
        let filtered = match key {
            BridgeKey::Vlan(_) => Ok(()),
            BridgeKey::Filter => self.set_vlans(&own.place, &set),
        };
        let local = &mut self.fabric.local;
        local.plugged = Some(key);
        local.filtered = filtered.is_ok().then(|| local.rules.membership.clone());
        self.fabric.fdb.forget(LOCAL);
        if let Some(tree) = &mut self.fabric.tree {
            tree.move_to_bridge(LOCAL, key);
        }
        match filtered {
            Ok(()) => log::debug!("{}: the kernel carries the frames", port.interface),
            Err(error) => log::warn!("{} leaves the panel: {error}", port.interface),
        }
    }

    /// Serves the host's port here if the kernel has not taken its VLANs. The host must have seen
    /// it plugged before: only then it notices the change.
    pub(crate) fn unplug_unfiltered_host(&mut self) {
        if self.fabric.local.is_unfiltered() {
            self.unplug_host();
        }
    }

    /// The host's port is served here from now on.
    pub(crate) fn unplug_host(&mut self) {
        if self.fabric.local.plugged.take().is_some() {
            self.join_tree(LOCAL, LOCAL_PORT);
        }
    }

    /// A client's interface is on the bridge that it was offered.
    pub(crate) fn came_to_bridge(&mut self, id: PortId, key: BridgeKey) {
        if let Some(tree) = &mut self.fabric.tree {
            tree.move_to_bridge(id, key);
        }
        if key == BridgeKey::Filter {
            self.filter_port(id);
        }
    }

    /// Tells the kernel in which VLANs a client's interface is. Without that no frame passes there.
    fn filter_port(&mut self, id: PortId) {
        let Some(port) = self.fabric.ports.get(id) else {
            return;
        };
        let place = port.far_end.place().unwrap_or_default();
        // Nobody changes the VLANs of another.
        let is_other = |(other, port): (PortId, &Port)| {
            other != id && port.bridge().is_some() && port.far_end.place() == Some(place)
        };
        let own = self.host.port().panel_address;
        let is_unclear = place.is_empty()
            || own.is_some_and(|own| own.place == place)
            || self.fabric.ports.iter().any(is_other);
        let set = self.fabric.settings_with(port.number, port.chosen);
        let done = match is_unclear {
            true => Err(Error::usage("it does not tell where on the panel it is")),
            false => self.set_vlans(place, &set),
        };
        let Some(port) = self.fabric.ports.get_mut(id) else {
            return;
        };
        match done {
            Ok(()) => port.filtered = Some(port.rules.membership.clone()),
            Err(error) => {
                let Port {
                    number,
                    far_end,
                    data,
                    ..
                } = port;
                log::debug!("port {number} leaves the panel: {error}");
                far_end.decline(&*data);
                port.offer = Offer::None;
            }
        }
    }

    /// Puts an interface on the filtering bridge into the VLANs of a port.
    fn set_vlans(&self, place: &str, set: &PortSettings) -> Result<()> {
        let bridge = self.fabric.bridges.get(&BridgeKey::Filter);
        let bridge = bridge.ok_or_else(|| Error::closed("the bridge is gone"))?;
        let port = BridgePort::Interface(place);
        self.host
            .set_vlans(&bridge.bridge.panel_address, port, &vlans_of(set))
    }

    /// Tells the kernel what has changed of the VLANs of ports on the filtering bridge.
    fn refilter(&mut self) {
        let key = BridgeKey::Filter;
        let rules = self.fabric.rules_on(key);
        let vlans = vlans_of(&self.fabric.settings_on_filter());
        let Some(filter) = self.fabric.bridges.get_mut(&key) else {
            return;
        };
        if filter.rules != rules {
            let address = &filter.bridge.panel_address;
            let done = self.host.set_vlans(address, BridgePort::Tap, &vlans);
            filter.rules = rules;
            self.fabric.fdb.forget(PortId::bridge(key));
            if let Err(error) = done {
                log::warn!("the panel's bridge does not take the VLANs: {error}");
                self.fabric.can_filter = false;
                return self.drop_bridge(key, "each VLAN has a bridge of its own now");
            }
        }
        let is_stale = |port: &Port| {
            port.bridge() == Some(key) && port.filtered.as_ref() != Some(&port.rules.membership)
        };
        let ports = self.fabric.ports.iter();
        let stale = ports.filter(|(_, port)| port.closing.is_none() && is_stale(port));
        let stale: Vec<PortId> = stale.map(|(id, _)| id).collect();
        for id in stale {
            self.filter_port(id);
        }
        let local = &self.fabric.local;
        if local.plugged == Some(key) && local.filtered.as_ref() != Some(&local.rules.membership) {
            self.unplug_host();
            self.plug_host();
        }
    }

    /// Moves ports to the bridges that they may be on now, and off those that they may not be on.
    pub(crate) fn rearrange(&mut self) {
        let was_plugged = self.fabric.local.plugged.is_some();
        // It is there with VLANs and without.
        let key = BridgeKey::Vlan(0);
        let bridge = self.fabric.bridges.get(&key);
        if bridge.is_some_and(|bridge| bridge.drops_tagged != self.fabric.has_vlans()) {
            self.drop_bridge(key, "its frames take another way now");
        }
        let fabric = &self.fabric;
        let is_calm = self.is_calm();
        let is_wrong = |key: Option<BridgeKey>, offer: Offer| match offer {
            Offer::None => false,
            Offer::Bridge(own) => key != Some(own),
            Offer::Later => key.is_some() && is_calm,
        };
        let wrong: Vec<PortId> = fabric
            .ports
            .iter()
            .filter(|(id, port)| {
                let key = fabric.panel_bridge_of(*id, port.number, port.chosen, port.kind);
                is_wrong(key, port.offer)
            })
            .map(|(id, _)| id)
            .collect();
        let own = fabric.local.plugged.map_or(Offer::Later, Offer::Bridge);
        let key = fabric.panel_bridge_of(LOCAL, LOCAL_PORT, None, self.host_kind());
        let has_wrong_host = is_wrong(key, own);
        let is_unused = |key: &BridgeKey| match key {
            BridgeKey::Vlan(vlan) => *vlan != 0 && !fabric.settings.vlans.contains_key(vlan),
            BridgeKey::Filter => !fabric.has_vlans() || fabric.settings.has_stp,
        };
        let unused: Vec<BridgeKey> = fabric.bridges.keys().copied().filter(is_unused).collect();
        for id in wrong {
            if let Some(port) = self.fabric.ports.get_mut(id) {
                port.close("its frames take another way now");
            }
        }
        for key in unused {
            self.drop_bridge(key, "the VLAN is removed");
        }
        if self.is_used && has_wrong_host {
            self.unplug_host();
            if was_plugged || self.wants_plug {
                self.plug_host();
            }
        }
        self.refilter();
    }
}

/// The VLANs of a port, as the kernel is told.
fn vlans_of(set: &PortSettings) -> PortVlans {
    PortVlans {
        untagged: set.untagged.filter(|vlan| *vlan != 0),
        tagged: set.tagged.clone(),
    }
}
