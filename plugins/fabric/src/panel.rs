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
        if self.storm.is_some() {
            return None;
        }
        if !self.fabric.bridges.contains_key(&vlan) {
            let settings = &self.fabric.settings;
            let made = self
                .host
                .bridge(memory_of(settings.kind, settings.expiry))
                .and_then(|bridge| self.watch_bridge(vlan, bridge));
            match made {
                Ok(bridge) => {
                    if vlan != 0 {
                        log::debug!("VLAN {vlan} has a bridge on the panel");
                    }
                    let meter = Meter::new(settings.storm);
                    let bridge = PanelBridge { bridge, meter };
                    self.fabric.bridges.insert(vlan, bridge);
                }
                Err(error) => log::debug!("no bridge on the panel: {error}"),
            }
        }
        let bridge = self.fabric.bridges.get(&vlan)?;
        Some(bridge.bridge.panel_address.clone())
    }

    /// Joins a bridge, and takes all offloads from there.
    pub(crate) fn watch_bridge(&self, vlan: u16, mut bridge: Bridge) -> Result<Bridge> {
        bridge.tap.other_side(TAKES_ALL);
        let event = Source::Bridge(vlan).event(EpollFlags::EPOLLIN);
        let watched = self.epoll.add(&bridge.tap, event);
        watched.map_err(|errno| Error::io("watch the bridge on the panel", &errno.into()))?;
        Ok(bridge)
    }

    /// Gives up a VLAN's bridge, for this reason. The clients that were offered it come again, and
    /// the host's interface is served here.
    fn drop_bridge(&mut self, vlan: u16, why: &str) {
        if let Some(PanelBridge { bridge, .. }) = self.fabric.bridges.remove(&vlan) {
            // Closing it is enough, unless another process has it open.
            let _ = self.epoll.delete(&bridge.tap);
        }
        self.fabric.fdb.forget(PortId::bridge(vlan));
        let local = &mut self.fabric.local;
        local.plugged = local.plugged.filter(|plugged| *plugged != vlan);
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
        let fabric = &self.fabric;
        let vlan = fabric.panel_vlan(LOCAL_PORT, &fabric.settings.port(LOCAL_PORT));
        let vlan = vlan.filter(|_| port.panel_address.is_some());
        let Some((vlan, bridge)) = vlan.and_then(|vlan| Some((vlan, self.bridge(vlan)?))) else {
            return;
        };
        match self.host.attach(&bridge) {
            Ok(()) => {
                self.fabric.local.plugged = Some(vlan);
                self.fabric.fdb.forget(LOCAL);
                log::debug!("{}: the kernel carries the frames", port.interface);
            }
            Err(error) => log::debug!("not plugged: {error}"),
        }
    }

    /// Moves ports to the bridges that they may be on now, and off those that they may not be on.
    pub(crate) fn rearrange(&mut self) {
        let fabric = &self.fabric;
        let is_wrong = |number: u32, chosen: Option<u16>, offer: Offer| {
            let vlan = fabric.panel_vlan(number, &fabric.settings_with(number, chosen));
            match offer {
                Offer::None => false,
                Offer::Bridge(own) => vlan != Some(own),
                // During a storm none comes to the panel.
                Offer::Later => vlan.is_some() && self.storm.is_none(),
            }
        };
        let wrong: Vec<PortId> = fabric
            .ports
            .iter()
            .filter(|(_, port)| is_wrong(port.number, port.chosen, port.offer))
            .map(|(id, _)| id)
            .collect();
        let own = fabric.local.plugged.map_or(Offer::Later, Offer::Bridge);
        let has_wrong_host = is_wrong(LOCAL_PORT, None, own);
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
            self.fabric.local.plugged = None;
            if was_plugged || self.wants_plug {
                self.plug_host();
            }
        }
    }
}
