//! From one port's batch of frames to the other ports.
//!
//! # Theory of operation
//!
//! A frame for a station whose port is known goes to that port only, and nowhere if it came from
//! there. Any other frame goes to all ports but its own. The decisions are made for a whole batch
//! first, as one [`Selection`] of its frames per port, and then executed with one system call per
//! port. The local port and the clients' take no part while their interfaces are on the bridge.
//!
//! Frames may be super-frames, or have incomplete checksums. The bridge and clients of ours get
//! them as they came, or joined if they came from a legacy client. All others get complete frames.
//! So all frames for a port have one form and keep their order, and the work is done once for all
//! ports. A batch that is cut may need several rounds, with one system call per port in each.
//! Frames are copied only to change their form, for a congested port, and for the host.
//!
//! A frame is not forwarded if its header is invalid. Nor is it if it would be cut into longer
//! pieces than legacy clients take, or into so many that one client could keep the switch from
//! serving others. Messages between ends of ours are not forwarded either, so no client can send
//! one in the switch's name.

use std::time::Instant;

use vdens_plugin_kit::fdb::{Fdb, Station as _};
use vdens_plugin_kit::offload::{Changed, Progress, examine};
use vdens_plugin_kit::wire::hello::is_message;
use vdens_plugin_kit::{Bridge, Frame, MAX_LEGACY_FRAME, Offloads, RxBatch, TxBatch};
use vdens_switch_control::{Kind, LOCAL_PORT};

use crate::frame::{Addresses, Station};
use crate::memory::Memory;
use crate::port::{BRIDGE, LOCAL, Port, PortId, Selection};
use crate::settings::Settings;
use crate::storm::Meter;

/// The most segments that a frame is cut into: enough for 64 KiB and any sensible segment size.
const MAX_SEGMENTS: usize = 2048;

/// How many frames of a batch went nowhere, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// They are invalid.
    pub(crate) malformed: u64,
    /// The port has flooded as many as it may.
    pub(crate) storm: u64,
}

/// Where the frames of a batch go, apart from the clients' ports.
#[derive(Debug, Default)]
struct Decision {
    local: Selection,
    bridged: Selection,
    /// Frames with offloads left to be done.
    unfinished: Selection,
    lost: Lost,
}

/// The ports that clients have, by id. The local port and the bridge have ids of their own.
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

    pub(crate) fn get(&self, id: PortId) -> Option<&Port> {
        self.0.get(id.0 as usize)?.as_ref()
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

    /// Removes the ports that are closing; their queues give `memory` back.
    pub(crate) fn take_closing(
        &mut self,
        memory: &mut Memory,
    ) -> impl Iterator<Item = (PortId, Port)> {
        let ports = self.0.iter_mut().enumerate();
        ports.filter_map(|(index, slot)| {
            let mut port = slot.take_if(|port| port.closing.is_some())?;
            port.cut(0, memory);
            Some((PortId(index as u32), port))
        })
    }

    /// How many ports a user's clients have.
    pub(crate) fn of_user(&self, user: u32) -> usize {
        let ports = self.0.iter().flatten();
        ports.filter(|port| port.queue.user() == user).count()
    }

    /// Cuts the queues that have more than their share of the memory. They keep half of their
    /// share, so that they are not cut again for each frame.
    fn cut(&mut self, memory: &mut Memory) {
        for port in self.0.iter_mut().flatten() {
            let share = memory.share(port.queue.user());
            if port.queue.held() > share {
                port.cut(share / 2, memory);
            }
        }
    }

    /// Whether a client has the port number.
    pub(crate) fn has_number(&self, number: u32) -> bool {
        self.0.iter().flatten().any(|port| port.number == number)
    }
}

/// The ports, and the stations behind them.
#[derive(Debug)]
pub(crate) struct Fabric {
    pub(crate) settings: Settings,
    pub(crate) ports: Ports,
    /// The memory of all their queues.
    pub(crate) memory: Memory,
    pub(crate) fdb: Fdb<Station, PortId>,
    pub(crate) bridge: Option<Bridge>,
    /// Whether the host's interface is on the bridge.
    pub(crate) host_is_plugged: bool,
    /// Whether the host takes super-frames with all offloads.
    pub(crate) host_takes_super_frames: bool,
    local_meter: Meter,
    bridge_meter: Meter,
    /// Ports with frames selected.
    chosen: Vec<PortId>,
    /// The batch at hand in another form.
    changed: Changed,
    /// Ports that took less than they were given since [`Fabric::drain_congested`].
    congested: Vec<PortId>,
}

impl Fabric {
    pub(crate) fn new(settings: Settings, fdb: Fdb<Station, PortId>, memory: Memory) -> Self {
        Self {
            local_meter: Meter::new(settings.storm_limit(LOCAL_PORT)),
            bridge_meter: Meter::new(settings.storm),
            settings,
            ports: Ports::default(),
            memory,
            fdb,
            bridge: None,
            host_is_plugged: false,
            host_takes_super_frames: false,
            chosen: Vec::new(),
            changed: Changed::default(),
            congested: Vec::new(),
        }
    }

    /// Forwards a batch that port `source` received. Frames for the local port go into `host`, and
    /// are counted as dropped there if they do not fit. Returns how many frames went nowhere.
    pub(crate) fn forward(
        &mut self,
        source: PortId,
        batch: &TxBatch<'_>,
        host: Option<&mut RxBatch<'_>>,
        now: Instant,
    ) -> Lost {
        let decision = self.decide(source, batch, now);
        self.pass_on(source, batch, decision.bridged);
        match host {
            // The host's pump joins frames itself.
            Some(host) if self.host_takes_super_frames => {
                give(host, batch, decision.local);
                self.complete(batch, &decision, None);
            }
            host => self.complete(batch, &decision, host),
        }
        for id in self.chosen.drain(..) {
            if let Some(port) = self.ports.get_mut(id) {
                port.selected = Selection::default();
            }
        }
        decision.lost
    }

    /// The meter of what a port floods.
    fn meter(&mut self, source: PortId) -> &mut Meter {
        match self.ports.get_mut(source) {
            Some(port) => &mut port.meter,
            None if source == LOCAL => &mut self.local_meter,
            None => &mut self.bridge_meter,
        }
    }

    /// To be called when limits may have changed.
    pub(crate) fn set_limits(&mut self) {
        let Self {
            settings, ports, ..
        } = self;
        for (_, port) in ports.iter_mut() {
            port.meter.set_limit(settings.storm_limit(port.number));
        }
        self.local_meter.set_limit(settings.storm_limit(LOCAL_PORT));
        self.bridge_meter.set_limit(settings.storm);
    }

    /// Selects the frames for each port, and learns where they came from.
    fn decide(&mut self, source: PortId, batch: &TxBatch<'_>, now: Instant) -> Decision {
        let is_hub = self.settings.kind == Kind::Hub;
        let mut meter = *self.meter(source);
        let mut flooded = Selection::default();
        let mut decision = Decision::default();
        for index in 0..batch.len() {
            let frame = batch.frame(index).filter(|frame| is_sound(*frame));
            let Some(frame) = frame else {
                decision.lost.malformed += 1;
                continue;
            };
            let Some(addresses) = Addresses::of(frame.bytes()) else {
                continue;
            };
            if is_message(frame.bytes()) {
                continue;
            }
            if !frame.header().is_plain() {
                decision.unfinished.insert(index);
            }
            self.fdb.learn(addresses.source, source, now);
            match self.fdb.lookup(addresses.destination, now) {
                Some(port) if port == source => {}
                Some(LOCAL) => decision.local.insert(index),
                Some(BRIDGE) => decision.bridged.insert(index),
                Some(id) => {
                    if let Some(port) = self.ports.get_mut(id) {
                        choose(&mut self.chosen, id, port);
                        port.selected.insert(index);
                    }
                }
                None if is_hub && !addresses.destination.is_group() => flooded.insert(index),
                None if meter.admits(now) => flooded.insert(index),
                None => decision.lost.storm += 1,
            }
        }
        *self.meter(source) = meter;
        if !flooded.is_empty() {
            decision.local = decision.local.union(flooded);
            decision.bridged = decision.bridged.union(flooded);
            let others =
                |(id, port): &(PortId, &mut Port)| *id != source && !port.far_end.is_plugged();
            for (id, port) in self.ports.iter_mut().filter(others) {
                choose(&mut self.chosen, id, port);
                port.selected = port.selected.union(flooded);
            }
        }
        if source == LOCAL || self.host_is_plugged {
            decision.local = Selection::default();
        }
        if source == BRIDGE || self.bridge.is_none() {
            decision.bridged = Selection::default();
        }
        decision
    }

    /// Sends their frames to the ports that take super-frames, and `bridged` to the bridge.
    fn pass_on(&mut self, source: PortId, batch: &TxBatch<'_>, bridged: Selection) {
        let wanted = self.selected(true).union(bridged);
        if wanted.is_empty() {
            return;
        }
        let is_legacy = |port: &mut Port| !port.far_end.negotiates();
        let is_changed = self.ports.get_mut(source).is_some_and(is_legacy)
            && self
                .changed
                .coalesce(batch, Offloads::ALL, |index| wanted.contains(index));
        let mut outlet = Outlet {
            takes_super_frames: true,
            chosen: &self.chosen,
            ports: &mut self.ports,
            memory: &mut self.memory,
            congested: &mut self.congested,
        };
        let bridge = self.bridge.as_ref();
        match is_changed {
            true => {
                let (frames, origins) = self.changed.tx();
                outlet.send(&frames, |selection| selection.among(origins));
                send_to_bridge(bridge, &frames, bridged.among(origins));
            }
            false => {
                outlet.send(batch, |selection| selection);
                send_to_bridge(bridge, batch, bridged);
            }
        }
    }

    /// Sends their frames to the ports that take complete frames only, and to the host if it is
    /// given.
    fn complete(
        &mut self,
        batch: &TxBatch<'_>,
        decision: &Decision,
        mut host: Option<&mut RxBatch<'_>>,
    ) {
        let local = host
            .as_ref()
            .map_or(Selection::default(), |_| decision.local);
        let wanted = self.selected(false).union(local);
        let mut outlet = Outlet {
            takes_super_frames: false,
            chosen: &self.chosen,
            ports: &mut self.ports,
            memory: &mut self.memory,
            congested: &mut self.congested,
        };
        if !wanted.intersects(decision.unfinished) {
            outlet.send(batch, |selection| selection);
            if let Some(host) = host {
                give(host, batch, local);
            }
            return;
        }
        let mut at = Progress::default();
        loop {
            self.changed
                .resolve(batch, &mut at, Offloads::NONE, |index| {
                    wanted.contains(index)
                });
            if self.changed.is_empty() {
                return;
            }
            let (frames, origins) = self.changed.tx();
            outlet.send(&frames, |selection| selection.among(origins));
            if let Some(host) = &mut host {
                give(host, &frames, local.among(origins));
            }
        }
    }

    /// All frames selected for the ports that take super-frames, or for those that do not.
    fn selected(&mut self, takes_super_frames: bool) -> Selection {
        let mut all = Selection::default();
        for id in &self.chosen {
            if let Some(port) = self.ports.get_mut(*id)
                && port.takes_super_frames() == takes_super_frames
            {
                all = all.union(port.selected);
            }
        }
        all
    }

    /// Calls `each` for the ports that have become congested since the last call.
    pub(crate) fn drain_congested(&mut self, mut each: impl FnMut(PortId, &mut Port)) {
        for id in self.congested.drain(..) {
            if let Some(port) = self.ports.get_mut(id) {
                each(id, port);
            }
        }
    }
}

/// The chosen ports that get frames in the same form.
struct Outlet<'a> {
    takes_super_frames: bool,
    chosen: &'a [PortId],
    ports: &'a mut Ports,
    memory: &'a mut Memory,
    congested: &'a mut Vec<PortId>,
}

impl Outlet<'_> {
    /// Sends each port what `among` the frames is selected for it.
    fn send(&mut self, frames: &TxBatch<'_>, among: impl Fn(Selection) -> Selection) {
        for id in self.chosen {
            let port = self.ports.get_mut(*id);
            let Some(port) =
                port.filter(|port| port.takes_super_frames() == self.takes_super_frames)
            else {
                continue;
            };
            let selection = among(port.selected);
            if selection.is_empty() {
                continue;
            }
            let was_congested = port.is_congested();
            port.send(frames, selection, self.memory);
            if port.is_congested() && !was_congested {
                self.congested.push(*id);
            }
            if self.memory.is_overdrawn() {
                self.ports.cut(self.memory);
            }
        }
    }
}

/// Notes that a port is to have frames selected.
fn choose(chosen: &mut Vec<PortId>, id: PortId, port: &Port) {
    if port.selected.is_empty() {
        chosen.push(id);
    }
}

/// Whether a frame can be forwarded at all.
fn is_sound(frame: Frame<'_>) -> bool {
    examine(frame).is_some_and(|segments| {
        segments.count <= MAX_SEGMENTS && segments.longest <= MAX_LEGACY_FRAME
    })
}

/// Puts the selected frames into the host's batch.
fn give(host: &mut RxBatch<'_>, frames: &TxBatch<'_>, selection: Selection) {
    for frame in selection.of(frames) {
        if !host.push_offloaded(frame.header(), frame.bytes()) {
            host.count_dropped(1);
        }
    }
}

/// Writes the selected frames to the bridge.
fn send_to_bridge(bridge: Option<&Bridge>, frames: &TxBatch<'_>, selection: Selection) {
    for frame in selection.of(frames) {
        if let Some(bridge) = bridge {
            // If the tap has failed for good, reading it says so.
            let _ = bridge.tap.write(frame);
        }
    }
}
