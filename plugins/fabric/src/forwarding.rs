//! From one port's batch of frames to the other ports.
//!
//! # Theory of operation
//!
//! A frame for a station whose port is known goes to that port only, and nowhere if it came from
//! there. Any other frame goes to all ports but its own. On a switch with VLANs both hold within
//! the frame's VLAN. The decisions are made for a whole batch first (`ingress`, then
//! [`Fabric::decide`]), as one [`Wanted`] of its frames per port, and then executed with one system
//! call per port and form. The local port and the clients' take no part while their interfaces are
//! on a bridge.
//!
//! Frames may be super-frames, or have incomplete checksums. The bridges and clients of ours get
//! them as they came, or joined if they came from a legacy client. All others get complete frames.
//! So all frames for a port have one form and keep their order, and the work is done once for all
//! ports. A batch that is cut may need several rounds, with one system call per port in each.
//! With VLANs there are frames with tags and without, and each kind has its rounds; the frames of
//! one VLAN are of one kind at a port. Frames are copied only to change them, for a congested port,
//! and for the host. The bridge of a VLAN on the panel gets its frames without tags; the one that
//! filters VLANs gets those of all VLANs, with tags.
//!
//! A port that is mirrored to another adds its frames to that one's, each kind as it is at the
//! mirrored port. So that port gets a frame once in each form, and never one that it has sent.

use std::collections::BTreeMap;
use std::time::Instant;

use vdens_plugin_kit::fdb::{Fdb, Station as _};
use vdens_plugin_kit::offload::{Changed, Progress};
use vdens_plugin_kit::{Bridge, Offloads, RxBatch, TxBatch};
use vdens_rstp::PortState;
use vdens_switch_control::{Kind, LOCAL_PORT, Traffic};

use crate::frame::Station;
use crate::ingress::Ingress;
use crate::memory::Memory;
use crate::port::{BridgeKey, Counters, LOCAL, Port, PortId, Refused, Rules, Selection};
use crate::ports::Ports;
use crate::settings::Settings;
use crate::storm::Meter;
use crate::tree::Tree;
use crate::vlan::{Form, Membership, Reformed, Wanted, have_form};

/// The host's side of the link.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) rules: Rules,
    pub(crate) counters: Counters,
    /// What it floods.
    meter: Meter,
    /// What it does with frames, as the spanning tree says.
    state: PortState,
    /// The bridge that the host's interface is on.
    pub(crate) plugged: Option<BridgeKey>,
    /// What it was in when it came there, or the kernel's filter was last told.
    pub(crate) filtered: Option<Membership>,
    /// Whether the host takes super-frames with all offloads.
    pub(crate) takes_super_frames: bool,
    /// Frames of the batch that came in that are for the host.
    wanted: Wanted,
}

impl Local {
    /// Whether no frame reaches the host: the kernel has not taken its VLANs.
    pub(crate) fn is_unfiltered(&self) -> bool {
        self.plugged.is_some() && self.filtered.is_none()
    }

    /// Whether frames pass to the host here.
    fn takes_frames(&self) -> bool {
        self.plugged.is_none() && self.state == PortState::Forwarding
    }
}

/// A bridge on the panel, whose tap is a port.
#[derive(Debug)]
pub(crate) struct PanelBridge {
    pub(crate) bridge: Bridge,
    /// What comes in and goes out by its tap.
    pub(crate) rules: Rules,
    /// What it floods.
    pub(crate) meter: Meter,
    /// Whether its ports drop frames whose tag names a VLAN they are not in.
    pub(crate) drops_tagged: bool,
}

/// The ports, and the stations behind them.
#[derive(Debug)]
pub(crate) struct Fabric {
    pub(crate) settings: Settings,
    pub(crate) ports: Ports,
    /// The memory of all their queues.
    pub(crate) memory: Memory,
    pub(crate) fdb: Fdb<Station, PortId>,
    pub(crate) local: Local,
    /// The spanning tree, if the switch takes part in one.
    pub(crate) tree: Option<Tree>,
    /// The bridges on the panel.
    pub(crate) bridges: BTreeMap<BridgeKey, PanelBridge>,
    /// Whether one that filters VLANs can be made, as far as is known.
    pub(crate) can_filter: bool,
    /// Frames of each VLAN, as far as there are VLANs.
    pub(crate) traffic: Vec<Traffic>,
    /// Whether any port is mirrored.
    pub(crate) has_mirrors: bool,
    /// Ports with frames wanted.
    chosen: Vec<PortId>,
    /// The batch at hand: what came in, with other tags, and with other offloads. The latter two
    /// are made when they are first needed.
    ingress: Ingress,
    reformed: Option<Box<Reformed>>,
    changed: Option<Box<Changed>>,
    /// Ports that took less than they were given since [`Fabric::drain_congested`].
    congested: Vec<PortId>,
}

/// Frames on their way, all in one form.
struct Round<'a, 'b> {
    source: PortId,
    frames: &'a TxBatch<'b>,
    /// The number of each frame in the batch that came in; `None` if this is that batch.
    origins: Option<&'a [u8]>,
    /// Those with offloads left to be done.
    unfinished: Selection,
    local: Selection,
    /// For the bridges on the panel that take this form.
    bridged: Selection,
    form: Form,
}

impl<'a, 'b> Round<'a, 'b> {
    /// The frames of a selection from the batch that came in.
    fn among(&self, selection: Selection) -> Selection {
        self.origins
            .map_or(selection, |origins| selection.among(origins))
    }

    /// All its frames as they are.
    fn whole(&self) -> Part<'a, 'b> {
        Part {
            frames: self.frames,
            changed: None,
            origins: self.origins,
            form: self.form,
        }
    }

    /// Some of its frames with other offloads. `origins` has their numbers in the round.
    fn part<'c, 'd>(&self, frames: &'c TxBatch<'d>, origins: &'c [u8]) -> Part<'c, 'd>
    where
        'a: 'c,
    {
        Part {
            frames,
            changed: Some(origins),
            origins: self.origins,
            form: self.form,
        }
    }
}

/// Frames of a round as they are sent.
struct Part<'a, 'b> {
    frames: &'a TxBatch<'b>,
    /// The number of each frame in the round; `None` if these are the frames of the round.
    changed: Option<&'a [u8]>,
    /// [`Round::origins`].
    origins: Option<&'a [u8]>,
    form: Form,
}

impl Part<'_, '_> {
    /// The VLAN of a frame.
    fn vlan(&self, ingress: &Ingress, index: usize) -> u16 {
        let origin = |origins: Option<&[u8]>, index: usize| match origins {
            Some(origins) => origins.get(index).copied().map_or(0, usize::from),
            None => index,
        };
        ingress.vlans[origin(self.origins, origin(self.changed, index))]
    }

    /// Counts frames that have left by a port.
    fn count_out(&self, frames: Selection, ingress: &Ingress, traffic: &mut [Traffic]) {
        for index in frames.indices() {
            let traffic = traffic.get_mut(usize::from(self.vlan(ingress, index)));
            if let (Some(traffic), Some(frame)) = (traffic, self.frames.frame(index)) {
                traffic.count_out(std::iter::once(frame.bytes().len()));
            }
        }
    }
}

impl Fabric {
    pub(crate) fn new(settings: Settings, fdb: Fdb<Station, PortId>, memory: Memory) -> Self {
        Self {
            local: Local {
                rules: Rules::access(0),
                counters: Counters::default(),
                meter: Meter::new(settings.storm_limit(LOCAL_PORT)),
                state: PortState::Forwarding,
                plugged: None,
                filtered: None,
                takes_super_frames: false,
                wanted: Wanted::default(),
            },
            settings,
            tree: None,
            ports: Ports::default(),
            memory,
            fdb,
            bridges: BTreeMap::new(),
            can_filter: true,
            traffic: vec![Traffic::default()],
            has_mirrors: false,
            chosen: Vec::new(),
            ingress: Ingress::default(),
            reformed: None,
            changed: None,
            congested: Vec::new(),
        }
    }

    /// Whether the switch has VLANs.
    pub(crate) fn has_vlans(&self) -> bool {
        !self.settings.vlans.is_empty()
    }

    /// Forwards a batch that port `source` received. Frames for the local port go into `host`, and
    /// are counted as dropped there if they do not fit. Returns the frames that went nowhere.
    pub(crate) fn forward(
        &mut self,
        source: PortId,
        batch: &TxBatch<'_>,
        mut host: Option<&mut RxBatch<'_>>,
        now: Instant,
    ) -> Refused {
        let has_vlans = self.has_vlans();
        if let Some(tree) = &mut self.tree {
            tree.hear(source, batch);
        }
        self.ingress.state = self.tree.as_ref().map(|_| self.state(source));
        let bridge = source.bridge_key().and_then(|key| self.bridges.get(&key));
        match (source, self.ports.get(source), bridge) {
            (LOCAL, ..) => self.ingress.fill(batch, &self.local.rules, has_vlans),
            (_, Some(port), _) => self.ingress.fill(batch, &port.rules, has_vlans),
            (_, None, Some(bridge)) => self.ingress.fill(batch, &bridge.rules, has_vlans),
            _ => return Refused::default(),
        }
        let bridged = self.decide(source, batch, now);
        if self.has_mirrors {
            self.mirror(source);
        }
        for form in Form::ALL {
            self.forward_form(source, batch, form, bridged.of(form), host.as_deref_mut());
        }
        for id in self.chosen.drain(..) {
            if let Some(port) = self.ports.get_mut(id) {
                port.wanted = Wanted::default();
            }
        }
        self.local.wanted = Wanted::default();
        std::mem::take(&mut self.ingress.refused)
    }

    /// The meter of what a port floods.
    fn meter(&mut self, source: PortId) -> &mut Meter {
        let key = source.bridge_key();
        let bridge = key.and_then(|key| self.bridges.get_mut(&key));
        match (self.ports.get_mut(source), bridge) {
            (Some(port), _) => &mut port.meter,
            (None, Some(bridge)) => &mut bridge.meter,
            (None, None) => &mut self.local.meter,
        }
    }

    /// To be called when limits may have changed.
    pub(crate) fn set_limits(&mut self) {
        let Self {
            settings,
            ports,
            local,
            bridges,
            ..
        } = self;
        for (_, port) in ports.iter_mut() {
            port.meter.set_limit(settings.storm_limit(port.number));
        }
        local.meter.set_limit(settings.storm_limit(LOCAL_PORT));
        for bridge in bridges.values_mut() {
            bridge.meter.set_limit(settings.storm);
        }
    }

    /// Notes for each port the frames for it, and learns where they came from. Returns those for
    /// the bridges, in the form that these take.
    fn decide(&mut self, source: PortId, batch: &TxBatch<'_>, now: Instant) -> Wanted {
        let is_hub = self.settings.kind == Kind::Hub;
        let mut meter = *self.meter(source);
        let Self {
            ingress,
            fdb,
            local,
            ports,
            bridges,
            chosen,
            traffic,
            ..
        } = self;
        let mut bridged = Wanted::default();
        let from = source.bridge_key();
        // Mostly the frames of a batch are on one VLAN.
        let mut flooded: Vec<(u16, Selection)> = Vec::new();
        for (index, addresses) in &ingress.entered {
            let vlan = ingress.vlans[*index];
            let mut this = Selection::default();
            this.insert(*index);
            if let Some(traffic) = traffic.get_mut(usize::from(vlan)) {
                let length = batch.frame(*index).map(|frame| frame.bytes().len());
                traffic.count_in(length.into_iter());
            }
            fdb.learn(addresses.source, source, now);
            if ingress.state == Some(PortState::Learning) {
                ingress.refused.stp += 1;
                continue;
            }
            match fdb.lookup(addresses.destination, now) {
                Some(port) if port == source => {}
                Some(LOCAL) => {
                    if let Some(form) = local.rules.membership.leaving(vlan) {
                        local.wanted.add(form, this);
                    }
                }
                Some(id) => match (id.bridge_key(), ports.get_mut(id)) {
                    (Some(key), _) => bridged.add(form_on(key), this),
                    (None, Some(port)) => want(chosen, id, port, vlan, this),
                    (None, None) => {}
                },
                None if (is_hub && !addresses.destination.is_group()) || meter.admits(now) => {
                    match flooded.iter_mut().find(|(known, _)| *known == vlan) {
                        Some((_, frames)) => *frames = frames.union(this),
                        None => flooded.push((vlan, this)),
                    }
                }
                None => ingress.refused.storm += 1,
            }
        }
        for (vlan, frames) in flooded {
            if let Some(form) = local.rules.membership.leaving(vlan) {
                local.wanted.add(form, frames);
            }
            for key in [BridgeKey::Vlan(vlan), BridgeKey::Filter] {
                let bridge = bridges.get(&key).filter(|_| from != Some(key));
                let form = bridge.and_then(|bridge| bridge.rules.membership.leaving(vlan));
                if let Some(form) = form {
                    bridged.add(form, frames);
                }
            }
            for (id, port) in ports.iter_mut() {
                if id != source && !port.far_end.is_plugged() {
                    want(chosen, id, port, vlan, frames);
                }
            }
        }
        if source == LOCAL || !local.takes_frames() {
            local.wanted = Wanted::default();
        }
        *self.meter(source) = meter;
        bridged
    }

    /// What a port does with frames. On the panel there is none that does not forward.
    fn state(&self, id: PortId) -> PortState {
        let port = self.ports.get(id);
        match id {
            LOCAL => self.local.state,
            _ => port.map_or(PortState::Forwarding, |port| port.state),
        }
    }

    /// Changes what a port does with frames.
    pub(crate) fn set_state(&mut self, id: PortId, state: PortState) {
        if id == LOCAL {
            self.local.state = state;
        } else if let Some(port) = self.ports.get_mut(id) {
            port.state = state;
        }
    }

    /// Adds the frames of mirrored ports to those of the ports that get copies.
    fn mirror(&mut self, source: PortId) {
        let mut copies: Vec<(u32, Wanted)> = Vec::new();
        let mut copy = |rules: &Rules, wanted: Wanted| {
            copies.extend(rules.mirror.map(|to| (to, wanted)));
        };
        match self.ports.get(source) {
            Some(port) => copy(&port.rules, self.ingress.forms),
            None if source == LOCAL => copy(&self.local.rules, self.ingress.forms),
            None => {}
        }
        copy(&self.local.rules, self.local.wanted);
        for id in &self.chosen {
            if let Some(port) = self.ports.get(*id) {
                copy(&port.rules, port.wanted);
            }
        }
        for (number, wanted) in copies {
            for form in Form::ALL {
                let frames = wanted.of(form);
                if number == LOCAL_PORT && source != LOCAL && self.local.takes_frames() {
                    self.local.wanted.add(form, frames);
                } else if let Some((id, port)) = self.ports.of_number(number)
                    && id != source
                {
                    want_as(&mut self.chosen, id, port, form, frames);
                }
            }
        }
    }

    /// Forwards the frames that are wanted in a form, which they are given if they do not have it.
    fn forward_form(
        &mut self,
        source: PortId,
        batch: &TxBatch<'_>,
        form: Form,
        bridged: Selection,
        mut host: Option<&mut RxBatch<'_>>,
    ) {
        let local = self.local.wanted.of(form);
        let mut wanted = local.union(bridged);
        for id in &self.chosen {
            if let Some(port) = self.ports.get(*id) {
                wanted = wanted.union(port.wanted.of(form));
            }
        }
        if wanted.is_empty() {
            return;
        }
        let round = Round {
            source,
            frames: batch,
            origins: None,
            unfinished: self.ingress.unfinished,
            local,
            bridged,
            form,
        };
        if !self.has_vlans() || have_form(batch, wanted, form) {
            return self.deliver(form, &round, host);
        }
        let mut reformed = self.reformed.take().unwrap_or_default();
        let mut at = 0;
        while at < batch.len() {
            let vlans = &self.ingress.vlans;
            self.ingress.refused.reformed += reformed.fill(batch, &mut at, form, wanted, vlans);
            let (frames, origins) = reformed.tx();
            let round = Round {
                frames: &frames,
                origins: Some(origins),
                unfinished: round.unfinished.among(origins),
                local: local.among(origins),
                bridged: bridged.among(origins),
                ..round
            };
            self.deliver(form, &round, host.as_deref_mut());
        }
        self.reformed = Some(reformed);
    }

    /// Sends each port the frames of a round that it wants.
    fn deliver(&mut self, form: Form, round: &Round<'_, '_>, host: Option<&mut RxBatch<'_>>) {
        for id in &self.chosen {
            if let Some(port) = self.ports.get_mut(*id) {
                port.selected = round.among(port.wanted.of(form));
            }
        }
        let mut changed = self.changed.take().unwrap_or_default();
        self.pass_on(round, &mut changed);
        match host {
            // The host's pump joins frames itself.
            Some(host) if self.local.takes_super_frames => {
                self.give(host, &round.whole(), round.local);
                self.complete(round, &mut changed, None);
            }
            host => self.complete(round, &mut changed, host),
        }
        self.changed = Some(changed);
        for id in &self.chosen {
            if let Some(port) = self.ports.get_mut(*id) {
                port.selected = Selection::default();
            }
        }
    }

    /// Sends their frames to the ports that take super-frames, and to the bridges.
    fn pass_on(&mut self, round: &Round<'_, '_>, changed: &mut Changed) {
        let wanted = self.selected(true).union(round.bridged);
        if wanted.is_empty() {
            return;
        }
        let is_legacy = |port: &Port| !port.far_end.negotiates();
        let can_join = self.ports.get(round.source).is_some_and(is_legacy)
            && self.are_on_one_vlan(round, wanted);
        if can_join && changed.coalesce(round.frames, Offloads::ALL, |index| wanted.contains(index))
        {
            let (frames, origins) = changed.tx();
            let part = round.part(&frames, origins);
            self.send(true, &part);
            self.send_to_bridges(&part, round.bridged.among(origins));
        } else {
            self.send(true, &round.whole());
            self.send_to_bridges(&round.whole(), round.bridged);
        }
    }

    /// Sends their frames to the ports that take complete frames only, and to the host if it is
    /// given.
    fn complete(
        &mut self,
        round: &Round<'_, '_>,
        changed: &mut Changed,
        mut host: Option<&mut RxBatch<'_>>,
    ) {
        let local = host.as_ref().map_or(Selection::default(), |_| round.local);
        let wanted = self.selected(false).union(local);
        if !wanted.intersects(round.unfinished) {
            self.send(false, &round.whole());
            if let Some(host) = host {
                self.give(host, &round.whole(), local);
            }
            return;
        }
        let mut at = Progress::default();
        loop {
            changed.resolve(round.frames, &mut at, Offloads::NONE, |index| {
                wanted.contains(index)
            });
            if changed.is_empty() {
                return;
            }
            let (frames, origins) = changed.tx();
            let part = round.part(&frames, origins);
            self.send(false, &part);
            if let Some(host) = &mut host {
                self.give(host, &part, local.among(origins));
            }
        }
    }

    /// Whether frames of a round are on one VLAN, so that they may be joined.
    fn are_on_one_vlan(&self, round: &Round<'_, '_>, frames: Selection) -> bool {
        let whole = round.whole();
        let mut vlans = frames
            .indices()
            .map(|index| whole.vlan(&self.ingress, index));
        let first = vlans.next();
        vlans.all(|vlan| Some(vlan) == first)
    }

    /// All frames of a round for the ports that take super-frames, or for those that do not.
    fn selected(&self, takes_super_frames: bool) -> Selection {
        let mut all = Selection::default();
        for id in &self.chosen {
            if let Some(port) = self.ports.get(*id)
                && port.takes_super_frames() == takes_super_frames
            {
                all = all.union(port.selected);
            }
        }
        all
    }

    /// Sends the ports that take super-frames, or those that do not, what is selected for each.
    fn send(&mut self, takes_super_frames: bool, part: &Part<'_, '_>) {
        for id in &self.chosen {
            let port = self.ports.get_mut(*id);
            let Some(port) = port.filter(|port| port.takes_super_frames() == takes_super_frames)
            else {
                continue;
            };
            let selection = match part.changed {
                Some(origins) => port.selected.among(origins),
                None => port.selected,
            };
            if selection.is_empty() {
                continue;
            }
            let was_congested = port.is_congested();
            let taken = port.send(part.frames, selection, &mut self.memory);
            if port.is_congested() && !was_congested {
                self.congested.push(*id);
            }
            if self.memory.is_overdrawn() {
                self.ports.cut(&mut self.memory);
            }
            part.count_out(taken, &self.ingress, &mut self.traffic);
        }
    }

    /// Puts the selected frames into the host's batch.
    fn give(&mut self, host: &mut RxBatch<'_>, part: &Part<'_, '_>, selection: Selection) {
        let mut taken = Selection::default();
        for index in selection.indices() {
            let frame = part.frames.frame(index);
            match frame.is_some_and(|frame| host.push_offloaded(frame.header(), frame.bytes())) {
                true => taken.insert(index),
                false => {
                    self.local.counters.dropped += 1;
                    host.count_dropped(1);
                }
            }
        }
        let lengths = taken.of(part.frames).map(|frame| frame.bytes().len());
        self.local.counters.traffic.count_out(lengths);
        part.count_out(taken, &self.ingress, &mut self.traffic);
    }

    /// Writes the selected frames to the bridges that take their form.
    fn send_to_bridges(&mut self, part: &Part<'_, '_>, selection: Selection) {
        for index in selection.indices() {
            let key = match part.form {
                Form::Untagged => BridgeKey::Vlan(part.vlan(&self.ingress, index)),
                Form::Tagged => BridgeKey::Filter,
            };
            let bridge = self.bridges.get(&key);
            if let (Some(port), Some(frame)) = (bridge, part.frames.frame(index)) {
                // If the tap has failed for good, reading it says so.
                let _ = port.bridge.tap.write(frame);
            }
        }
        part.count_out(selection, &self.ingress, &mut self.traffic);
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

/// The form of frames on a bridge.
fn form_on(key: BridgeKey) -> Form {
    match key {
        BridgeKey::Vlan(_) => Form::Untagged,
        BridgeKey::Filter => Form::Tagged,
    }
}

/// Notes that a port is to have frames of a VLAN, if it is in that.
fn want(chosen: &mut Vec<PortId>, id: PortId, port: &mut Port, vlan: u16, frames: Selection) {
    if let Some(form) = port.rules.membership.leaving(vlan) {
        want_as(chosen, id, port, form, frames);
    }
}

/// Notes that a port is to have frames in a form.
fn want_as(chosen: &mut Vec<PortId>, id: PortId, port: &mut Port, form: Form, frames: Selection) {
    if port.state != PortState::Forwarding {
        return;
    }
    if port.wanted.is_empty() && !frames.is_empty() {
        chosen.push(id);
    }
    port.wanted.add(form, frames);
}
