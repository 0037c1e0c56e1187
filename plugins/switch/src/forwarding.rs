//! From one port's batch of frames to the others.
//!
//! A frame for a station whose port is known goes there and nowhere else, not even back; any other goes
//! to all ports but its own. Decisions are made for a whole batch first, as one [`Selection`] of its
//! frames per port, and then carried out with one system call a port; frames are not copied unless a
//! port is congested or they are for the host. The local port and those of clients take no part while their
//! interfaces are on the hub.

use std::time::Instant;

use vdens_plugin_api::{Hub, MAX_LEGACY_FRAME, RxBatch, TxBatch};

use crate::fdb::Fdb;
use crate::frame::Addresses;
use crate::port::{HUB, LOCAL, Port, PortId, Selection};

/// The ports that clients have, by id. The local port and the hub have ids of their own.
#[derive(Debug, Default)]
pub(crate) struct Ports(Vec<Option<Port>>);

impl Ports {
    /// Adds a port.
    pub(crate) fn insert(&mut self, port: Port) -> PortId {
        let is_free = |(index, slot): &(usize, &mut Option<Port>)| *index > 0 && slot.is_none();
        if self.0.is_empty() {
            self.0.push(None);
        }
        let index = match self.0.iter_mut().enumerate().find(is_free) {
            Some((index, slot)) => {
                *slot = Some(port);
                index
            }
            None => {
                self.0.push(Some(port));
                self.0.len() - 1
            }
        };
        PortId(index as u32)
    }

    pub(crate) fn get_mut(&mut self, id: PortId) -> Option<&mut Port> {
        self.0.get_mut(id.0 as usize)?.as_mut()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (PortId, &mut Port)> {
        let ports = self.0.iter_mut().enumerate();
        ports.filter_map(|(index, slot)| Some((PortId(index as u32), slot.as_mut()?)))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PortId, &Port)> {
        let ports = self.0.iter().enumerate();
        ports.filter_map(|(index, slot)| Some((PortId(index as u32), slot.as_ref()?)))
    }

    /// Takes out the ports that are to be closed.
    pub(crate) fn take_ended(&mut self) -> impl Iterator<Item = (PortId, Port)> {
        let ports = self.0.iter_mut().enumerate();
        ports.filter_map(|(index, slot)| {
            let ended = slot.take_if(|port| port.end.is_some())?;
            Some((PortId(index as u32), ended))
        })
    }

    /// Whether a client has the port number.
    pub(crate) fn has_number(&self, number: u32) -> bool {
        self.0.iter().flatten().any(|port| port.number == number)
    }

    /// The lowest port number that is free.
    pub(crate) fn free_number(&self) -> u32 {
        let mut taken: Vec<u32> = self.0.iter().flatten().map(|port| port.number).collect();
        taken.sort_unstable();
        let gap = (1..).zip(&taken).find(|(wanted, taken)| wanted != *taken);
        gap.map_or(taken.len() as u32 + 1, |(number, _)| number)
    }
}

/// The ports, and what is known of the stations behind them.
#[derive(Debug)]
pub(crate) struct Fabric {
    pub(crate) ports: Ports,
    pub(crate) fdb: Fdb,
    pub(crate) hub: Option<Hub>,
    /// Whether the host's interface is on the hub.
    pub(crate) host_is_plugged: bool,
    /// Ports with frames selected, of which some may be there twice.
    chosen: Vec<PortId>,
    /// Ports that took less than they were given since [`Fabric::drain_congested`].
    congested: Vec<PortId>,
}

impl Fabric {
    pub(crate) fn new(fdb: Fdb) -> Self {
        Self {
            ports: Ports::default(),
            fdb,
            hub: None,
            host_is_plugged: false,
            chosen: Vec::new(),
            congested: Vec::new(),
        }
    }

    /// Forwards a batch that came in by `source`. Frames for the local port are put into `host`, and
    /// counted as dropped there if they do not fit. Returns how many frames were too long to forward.
    pub(crate) fn forward(
        &mut self,
        source: PortId,
        batch: &TxBatch<'_>,
        host: Option<&mut RxBatch<'_>>,
        now: Instant,
    ) -> u64 {
        let [mut flooded, mut local, mut bridged] = [Selection::default(); 3];
        let mut too_long = 0;
        for index in 0..batch.len() {
            let Some(frame) = batch.frame(index) else {
                continue;
            };
            if frame.bytes().len() > MAX_LEGACY_FRAME {
                too_long += 1;
                continue;
            }
            let Some(addresses) = Addresses::of(frame.bytes()) else {
                continue;
            };
            self.fdb.learn(addresses.source, source, now);
            match self.fdb.lookup(addresses.destination, now) {
                Some(port) if port == source => {}
                Some(LOCAL) => local.insert(index),
                Some(HUB) => bridged.insert(index),
                Some(port) => {
                    if let Some(port) = self.ports.get_mut(port) {
                        port.selected.insert(index);
                    }
                    self.chosen.push(port);
                }
                None => flooded.insert(index),
            }
        }
        if flooded.is_empty() {
            for id in self.chosen.drain(..) {
                if let Some(port) = self.ports.get_mut(id) {
                    deliver(id, port, Selection::default(), batch, &mut self.congested);
                }
            }
        } else {
            self.chosen.clear();
            local = local.union(flooded);
            bridged = bridged.union(flooded);
            let others = |(id, port): &(PortId, &mut Port)| *id != source && !port.is_plugged;
            for (id, port) in self.ports.iter_mut().filter(others) {
                deliver(id, port, flooded, batch, &mut self.congested);
            }
        }
        if let Some(hub) = self.hub.as_ref().filter(|_| source != HUB) {
            for frame in bridged.frames_of(batch) {
                // A tap that fails for good is found out when it is read.
                let _ = hub.tap.write(frame);
            }
        }
        if let Some(host) = host.filter(|_| source != LOCAL && !self.host_is_plugged) {
            for frame in local.of(batch) {
                if !host.push(frame) {
                    host.count_dropped(1);
                }
            }
        }
        too_long
    }

    /// Ports that are congested and may not be watched for room yet.
    pub(crate) fn drain_congested(&mut self, mut each: impl FnMut(PortId, &mut Port)) {
        for id in self.congested.drain(..) {
            if let Some(port) = self.ports.get_mut(id) {
                each(id, port);
            }
        }
    }
}

/// Gives a port the frames selected for it and the flooded ones, if there are any.
fn deliver(
    id: PortId,
    port: &mut Port,
    flooded: Selection,
    batch: &TxBatch<'_>,
    congested: &mut Vec<PortId>,
) {
    let selection = std::mem::take(&mut port.selected).union(flooded);
    if selection.is_empty() {
        return;
    }
    port.send(batch, selection);
    if port.is_congested() && !port.is_watched_for_room {
        congested.push(id);
    }
}
