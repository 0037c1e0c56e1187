//! The bridges on the panel, one for each VLAN.
//!
//! # Theory of operation
//!
//! A port that is in one VLAN only, without tags, may be on that VLAN's bridge
//! ([`crate::forwarding::Fabric::panel_vlan`]). The bridge is made when the first such client
//! comes; its tap is a port of the fabric. So ports on the bridge and in user space are one VLAN.
//! The bridges of two VLANs have no port in common, so no frame gets from one to the other but
//! through the fabric, which lets none.
//!
//! A client whose port has to leave its bridge, or could be on another, loses its port and comes
//! again. The host's interface is moved, or served here.

use std::time::Instant;

use nix::sys::epoll::EpollFlags;
use vdens_plugin_kit::{Bridge, Error, Link, PanelAddress, Result, RxBatch, log};
use vdens_switch_control::LOCAL_PORT;

use crate::forwarding::PanelBridge;
use crate::manage::memory_of;
use crate::port::{LOCAL, Offer, PortId};
use crate::storm::Meter;
use crate::switch::{Source, Switch, TAKES_ALL};

impl Switch {
    /// Serves the tap of a VLAN's bridge.
    pub(crate) fn serve_bridge(&mut self, vlan: u16, host: &mut RxBatch<'_>, now: Instant) {
        let Some(bridge) = self.fabric.bridges.get_mut(&vlan) else {
            return;
        };
        self.ingress.clear();
        match bridge.bridge.tap.recv(&mut self.ingress.rx()) {
            Ok(()) => {
                let frames = self.ingress.tx(0);
                let id = PortId::bridge(vlan);
                let refused = self.fabric.forward(id, &frames, Some(host), now);
                if refused.storm > 0 {
                    self.note_storm("the panel", now);
                    // The kernel knows no limit. User space keeps this one.
                    self.drop_bridge(vlan, "there is a storm on the panel");
                }
            }
            Err(error) => {
                log::warn!("the bridge on the panel is lost: {error}");
                self.drop_bridge(vlan, "the bridge on the panel is lost");
            }
        }
    }

    /// The panel address of a VLAN's bridge, if there can be one. The bridge is made when it is
    /// first asked for.
    pub(crate) fn bridge(&mut self, vlan: u16) -> Option<PanelAddress> {
        if !self.is_calm() {
            return None;
        }
        if !self.fabric.bridges.contains_key(&vlan) {
            let settings = &self.fabric.settings;
            let made = self
                .host
                .bridge(memory_of(settings.kind, settings.expiry))
                .and_then(|bridge| self.join_bridge(vlan, bridge));
            match made {
                Ok(()) if vlan == 0 => {}
                Ok(()) => log::debug!("VLAN {vlan} has a bridge on the panel"),
                Err(error) => log::debug!("no bridge on the panel: {error}"),
            }
        }
        let bridge = self.fabric.bridges.get(&vlan)?;
        Some(bridge.bridge.panel_address.clone())
    }

    /// Joins a bridge, and takes all offloads from there.
    pub(crate) fn join_bridge(&mut self, vlan: u16, mut bridge: Bridge) -> Result<()> {
        let tree = &mut self.fabric.tree;
        if tree.as_mut().is_some_and(|tree| !tree.add_bridge(vlan)) {
            return Err(Error::closed("the spanning tree has 4095 ports"));
        }
        bridge.tap.other_side(TAKES_ALL);
        let event = Source::Bridge(vlan).event(EpollFlags::EPOLLIN);
        if let Err(errno) = self.epoll.add(&bridge.tap, event) {
            tree.as_mut().map(|tree| tree.remove(PortId::bridge(vlan)));
            return Err(Error::io("watch the bridge on the panel", &errno.into()));
        }
        let meter = Meter::new(self.fabric.settings.storm);
        let bridge = PanelBridge { bridge, meter };
        self.fabric.bridges.insert(vlan, bridge);
        Ok(())
    }

    /// Whether interfaces may come to the panel: there is no storm, nor had it a BPDU lately.
    pub(crate) fn is_calm(&self) -> bool {
        self.storm.is_none() && self.guarded.is_none()
    }

    /// Gives up a VLAN's bridge, for this reason. The clients that were offered it come again, and
    /// the host's interface is served here.
    pub(crate) fn drop_bridge(&mut self, vlan: u16, why: &str) {
        if let Some(PanelBridge { bridge, .. }) = self.fabric.bridges.remove(&vlan) {
            // Closing it is enough, unless another process has it open.
            let _ = self.epoll.delete(&bridge.tap);
        }
        self.fabric.fdb.forget(PortId::bridge(vlan));
        if let Some(tree) = &mut self.fabric.tree {
            tree.remove(PortId::bridge(vlan));
        }
        if self.fabric.local.plugged == Some(vlan) {
            self.unplug_host();
        }
        for (_, port) in self.fabric.ports.iter_mut() {
            if port.offer == Offer::Bridge(vlan) {
                port.close(why);
            }
        }
    }

    /// Gives up all bridges, for this reason.
    pub(crate) fn drop_bridges(&mut self, why: &str) {
        let vlans: Vec<u16> = self.fabric.bridges.keys().copied().collect();
        vlans
            .into_iter()
            .for_each(|vlan| self.drop_bridge(vlan, why));
    }

    /// Plugs the host's port into a bridge, if that is possible: its interface from the start, and
    /// the port of a plug while the kernel carries the frames of the plug's other end.
    pub(crate) fn plug_host(&mut self) {
        let port = self.host.port();
        let is_plug = port.interface.is_empty();
        let fabric = &self.fabric;
        let vlan = fabric.panel_vlan_of(LOCAL, LOCAL_PORT, None, is_plug);
        let vlan = vlan.filter(|_| port.panel_address.is_some());
        let Some((vlan, bridge)) = vlan.and_then(|vlan| Some((vlan, self.bridge(vlan)?))) else {
            return;
        };
        match self.host.attach(&bridge) {
            Ok(()) => {
                self.fabric.local.plugged = Some(vlan);
                self.fabric.fdb.forget(LOCAL);
                if let Some(tree) = &mut self.fabric.tree {
                    tree.move_to_bridge(LOCAL, vlan);
                }
                log::debug!("{}: the kernel carries the frames", port.interface);
            }
            Err(error) => log::debug!("not plugged: {error}"),
        }
    }

    /// The host's port is served here from now on.
    pub(crate) fn unplug_host(&mut self) {
        if self.fabric.local.plugged.take().is_some() {
            self.join_tree(LOCAL, LOCAL_PORT);
        }
    }

    /// Moves ports to the bridges that they may be on now, and off those that they may not be on.
    pub(crate) fn rearrange(&mut self) {
        let fabric = &self.fabric;
        let is_calm = self.is_calm();
        let is_wrong = |vlan: Option<u16>, offer: Offer| match offer {
            Offer::None => false,
            Offer::Bridge(own) => vlan != Some(own),
            Offer::Later => vlan.is_some() && is_calm,
        };
        let wrong: Vec<PortId> = fabric
            .ports
            .iter()
            .filter(|(id, port)| {
                let vlan = fabric.panel_vlan_of(*id, port.number, port.chosen, port.is_plug);
                is_wrong(vlan, port.offer)
            })
            .map(|(id, _)| id)
            .collect();
        let own = fabric.local.plugged.map_or(Offer::Later, Offer::Bridge);
        let is_plug = self.host.port().interface.is_empty();
        let vlan = fabric.panel_vlan_of(LOCAL, LOCAL_PORT, None, is_plug);
        let has_wrong_host = is_wrong(vlan, own);
        let unused = fabric.bridges.keys().copied();
        let is_unknown = |vlan: &u16| *vlan != 0 && !fabric.settings.vlans.contains_key(vlan);
        let unused: Vec<u16> = unused.filter(is_unknown).collect();
        for id in wrong {
            if let Some(port) = self.fabric.ports.get_mut(id) {
                port.close("its frames take another way now");
            }
        }
        for vlan in unused {
            self.drop_bridge(vlan, "the VLAN is removed");
        }
        let was_plugged = self.fabric.local.plugged.is_some();
        if self.is_used && has_wrong_host {
            self.unplug_host();
            if was_plugged || self.wants_plug {
                self.plug_host();
            }
        }
    }
}
