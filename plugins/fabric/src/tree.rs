//! The switch in a spanning tree: the state machines of [`vdens_rstp`], and the ports that they
//! speak of.
//!
//! # Theory of operation
//!
//! BPDUs that come in go to the machines and are never forwarded. What the machines want done is
//! done before the next frame is looked at. The host's port and the clients' take part alike.
//!
//! A bridge on the panel is one port of the tree, in place of all that are plugged into it. The
//! kernel forwards between these without asking, and passes BPDUs on. So they must be edges of the
//! network, and the bridge is an edge port with a guard: it forwards at once, and a BPDU by its tap
//! means that there is another bridge behind one of them, or a loop that has returned the switch's
//! own BPDU. Then the bridge is given up. Its clients come again in user space, where each is a
//! port of its own. Who leads to a bridge is found out there, within the time in which any bridge
//! sends a BPDU. After that the others go back to the panel.
//!
//! The machines number ports up to 4095. A port has its own number there if it can.

mod report;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use vdens_plugin_kit::{Batch, RxBatch, TxBatch, log};
use vdens_rstp::{Action, Bridge, Cause, FRAME_LEN, GROUP_ADDRESS, PortNumber, PortState};
use vdens_switch_control::LOCAL_PORT;

use crate::forwarding::Fabric;
use crate::port::{BridgeKey, LOCAL, PortId};
use crate::settings;
use crate::switch::{Switch, watch_for_room};

/// The highest number that the machines have for a port.
const MAX_NUMBER: PortNumber = 4095;

/// The tree, seen from the switch.
#[derive(Debug)]
pub(crate) struct Tree {
    bridge: Bridge,
    /// When the machines' time began.
    start: Instant,
    ports: BTreeMap<PortNumber, PortId>,
    /// The same the other way round.
    numbers: HashMap<PortId, PortNumber>,
    /// A frame of the switch's own, on its way out.
    own: Batch,
    /// Frames for the host that wait for it to read.
    for_host: Vec<[u8; FRAME_LEN]>,
}

/// Whether a frame is for bridges only.
pub(crate) fn is_for_bridges(frame: &[u8]) -> bool {
    frame.starts_with(&GROUP_ADDRESS)
}

impl Tree {
    /// `None` if the settings are not allowed, which they are.
    fn new(settings: vdens_rstp::Settings, now: Instant) -> Option<Self> {
        Some(Self {
            bridge: Bridge::new(settings, Duration::ZERO).ok()?,
            start: now,
            ports: BTreeMap::new(),
            numbers: HashMap::new(),
            own: Batch::new(),
            for_host: Vec::new(),
        })
    }

    /// Adds a port. It discards until the machines say otherwise.
    pub(crate) fn add(&mut self, id: PortId, number: u32, set: &settings::PortSettings) {
        if !self.insert(id, PortNumber::try_from(number).ok(), set.of_tree()) {
            log::warn!("port {number} forwards nothing: the spanning tree has 4095 ports");
        }
    }

    /// Adds a bridge on the panel; `false` if there are too many ports.
    pub(crate) fn add_bridge(&mut self, key: BridgeKey) -> bool {
        let settings = vdens_rstp::PortSettings {
            guard: true,
            ..vdens_rstp::PortSettings::default()
        };
        self.insert(PortId::bridge(key), None, settings)
    }

    fn insert(
        &mut self,
        id: PortId,
        wanted: Option<PortNumber>,
        settings: vdens_rstp::PortSettings,
    ) -> bool {
        let is_free = |number: &PortNumber| !self.ports.contains_key(number);
        let wanted = wanted.filter(|number| *number <= MAX_NUMBER && is_free(number));
        let number = wanted.or_else(|| (1..=MAX_NUMBER).rev().find(is_free));
        let Some(number) = number.filter(|n| self.bridge.add_port(*n, settings).is_ok()) else {
            return false;
        };
        self.ports.insert(number, id);
        self.numbers.insert(id, number);
        true
    }

    /// Removes a port; `false` if it was not there.
    pub(crate) fn remove(&mut self, id: PortId) -> bool {
        let number = self.numbers.remove(&id);
        if let Some(number) = number {
            self.bridge.remove_port(number);
            self.ports.remove(&number);
        }
        number.is_some()
    }

    /// A port's interface is on this bridge now. Whatever is behind it hears of the
    /// tree there at once.
    pub(crate) fn move_to_bridge(&mut self, id: PortId, key: BridgeKey) {
        self.remove(id);
        if let Some(number) = self.numbers.get(&PortId::bridge(key)) {
            self.bridge.announce(*number);
        }
    }

    /// Whether a port leads to a bridge, or has done so.
    pub(crate) fn has_heard(&self, id: PortId) -> bool {
        let port = self.numbers.get(&id).and_then(|n| self.bridge.port(*n));
        port.is_some_and(|port| port.counters.received > 0)
    }

    /// The time within which any bridge sends a BPDU. One that has taken another for the root is
    /// silent until its port forwards, after twice the forward delay, and notifies the root then.
    fn time_to_speak(&self) -> Duration {
        let times = self.bridge.root().times;
        let seconds = 2 * times.forward_delay.round() + 3 * times.hello.round();
        Duration::from_secs(u64::from(seconds))
    }

    /// Takes the BPDUs of a batch that has come in.
    pub(crate) fn hear(&mut self, id: PortId, batch: &TxBatch<'_>) {
        let Some(number) = self.numbers.get(&id) else {
            return;
        };
        for frame in batch.frames().filter(|frame| is_for_bridges(frame.bytes())) {
            self.bridge.receive(*number, frame.bytes());
        }
    }

    /// The other end of the host's link has carrier, or none.
    fn set_host_carrier(&mut self, has_carrier: bool) {
        if let Some(number) = self.numbers.get(&LOCAL) {
            self.bridge.set_link(*number, has_carrier);
        }
    }

    pub(crate) fn next_deadline(&self) -> Instant {
        match self.for_host.is_empty() {
            true => self.start + self.bridge.next_deadline(),
            false => self.start,
        }
    }

    /// Gives the host the frames that wait for it.
    pub(crate) fn give(&mut self, host: &mut RxBatch<'_>) {
        for frame in self.for_host.drain(..) {
            if !host.push(&frame) {
                host.count_dropped(1);
            }
        }
    }
}

impl Switch {
    /// Starts the tree or ends it, or changes what is set of it. `before` is what was set.
    pub(crate) fn adapt_tree(&mut self, before: &settings::Settings, now: Instant) {
        let set = &self.fabric.settings;
        if set.has_stp != before.has_stp {
            match set.has_stp {
                true => self.start_tree(now),
                false => self.end_tree(),
            }
            return;
        }
        let Some(tree) = &mut self.fabric.tree else {
            return;
        };
        let of_bridge = set.of_tree(self.mac);
        if tree.bridge.settings() != &of_bridge
            && let Err(error) = tree.bridge.set(of_bridge)
        {
            log::error!("the spanning tree stays as it was: {error}");
        }
        let client = |id| Some(self.fabric.ports.get(id)?.number);
        for (id, number) in &tree.numbers {
            let port = match *id {
                LOCAL => Some(LOCAL_PORT),
                id => client(id),
            };
            // Nothing can be set of a bridge on the panel.
            let Some(port) = port else {
                continue;
            };
            let wanted = set.port(port).of_tree();
            if tree.bridge.port_settings(*number) != Some(&wanted)
                && let Err(error) = tree.bridge.set_port(*number, wanted)
            {
                log::error!("port {port} stays as it was: {error}");
            }
        }
    }

    /// Uses a port again that its guard has disabled.
    pub(crate) fn release_guard(&mut self, port: u32) {
        let id = match port {
            LOCAL_PORT => Some(LOCAL),
            port => self.fabric.ports.of_number(port).map(|(id, _)| id),
        };
        let Some(tree) = &mut self.fabric.tree else {
            return;
        };
        if let Some(number) = id.and_then(|id| tree.numbers.get(&id)) {
            tree.bridge.release_guard(*number);
        }
    }

    /// Begins to take part in the tree.
    pub(crate) fn start_tree(&mut self, now: Instant) {
        let Some(mut tree) = Tree::new(self.fabric.settings.of_tree(self.mac), now) else {
            return;
        };
        let keys = self.fabric.bridges.keys().copied();
        let left_out: Vec<BridgeKey> = keys.filter(|key| !tree.add_bridge(*key)).collect();
        for key in left_out {
            self.drop_bridge(key, "the spanning tree has 4095 ports");
        }
        self.fabric.tree = Some(tree);
        let ports = self.fabric.ports.iter();
        let served = ports.filter(|(_, port)| !port.far_end.is_plugged());
        let served: Vec<(PortId, u32)> = served.map(|(id, port)| (id, port.number)).collect();
        if self.fabric.local.plugged.is_none() {
            self.join_tree(LOCAL, LOCAL_PORT);
        }
        for (id, number) in served {
            self.join_tree(id, number);
        }
        self.events.push("fstp/status", "fstp 1".into());
    }

    fn end_tree(&mut self) {
        self.fabric.tree = None;
        self.guarded = None;
        self.fabric.set_state(LOCAL, PortState::Forwarding);
        for (_, port) in self.fabric.ports.iter_mut() {
            port.state = PortState::Forwarding;
        }
        self.events.push("fstp/status", "fstp 0".into());
    }

    /// The other end of the host's link has carrier, or none.
    pub(crate) fn set_host_carrier(&mut self, has_carrier: bool) {
        self.has_host_carrier = has_carrier;
        if let Some(tree) = &mut self.fabric.tree {
            tree.set_host_carrier(has_carrier);
        }
    }

    /// Time has passed.
    pub(crate) fn tick_tree(&mut self, now: Instant) {
        if let Some(tree) = &mut self.fabric.tree {
            let time = now.saturating_duration_since(tree.start);
            tree.bridge.tick(time);
        }
        if self.guarded.is_some_and(|until| until <= now) {
            self.guarded = None;
            log::info!("interfaces that lead to no bridge go back to the panel");
            self.rearrange();
        }
    }

    /// A port is served here from now on.
    pub(crate) fn join_tree(&mut self, id: PortId, number: u32) {
        let Fabric { tree, settings, .. } = &mut self.fabric;
        if let Some(tree) = tree {
            tree.add(id, number, &settings.port(number));
            if id == LOCAL {
                tree.set_host_carrier(self.has_host_carrier);
            }
            self.fabric.set_state(id, PortState::Discarding);
        }
    }

    /// Does what the machines want done.
    pub(crate) fn follow_tree(&mut self) {
        while let Some(tree) = &mut self.fabric.tree {
            let actions = tree.bridge.take_actions();
            if actions.is_empty() {
                return;
            }
            for action in actions {
                self.follow(action);
            }
        }
    }

    fn follow(&mut self, action: Action) {
        match action {
            Action::Transmit { port, frame } => self.transmit(port, frame),
            Action::SetState { port, state } => self.set_state(port, state),
            Action::Flush { port } => {
                if let Some(id) = self.port_of(port) {
                    self.fabric.fdb.forget(id);
                }
            }
            Action::TopologyChange { port, cause } => {
                let how = match cause {
                    Cause::Detected => "forwards now",
                    Cause::Notified => "has heard of it",
                };
                log::debug!("the spanning tree has changed: port {port} {how}");
            }
            Action::Guarded { port } => self.trip(port),
        }
    }

    /// A guarded port has had a BPDU.
    fn trip(&mut self, number: PortNumber) {
        let Some(tree) = &self.fabric.tree else {
            return;
        };
        let label = tree.label(number, &self.fabric);
        let key = self.port_of(number).and_then(PortId::bridge_key);
        let Some(key) = key else {
            log::warn!("{label} is disabled: it has a guard, and had a BPDU");
            let text = format!("{label} had a BPDU and is disabled");
            return self.events.push("fstp/-", text);
        };
        let time = tree.time_to_speak();
        let seconds = time.as_secs();
        self.guarded = Some(Instant::now() + time);
        log::warn!(
            "an interface on {label} leads to a bridge or makes a loop; all there are served in \
             user space, the others for {seconds} s"
        );
        let text = format!("{label} had a BPDU and is given up for {seconds} s");
        self.events.push("fstp/-", text);
        self.drop_bridge(key, "there is a bridge or a loop on the panel");
    }

    fn port_of(&self, number: PortNumber) -> Option<PortId> {
        self.fabric.tree.as_ref()?.ports.get(&number).copied()
    }

    fn set_state(&mut self, number: PortNumber, state: PortState) {
        let (Some(id), Some(tree)) = (self.port_of(number), &self.fabric.tree) else {
            return;
        };
        let label = tree.label(number, &self.fabric);
        log::debug!("spanning tree: {label} is {state:?}");
        match state {
            PortState::Discarding => self.events.push("fstp/-", format!("{label} discards")),
            PortState::Learning => {}
            PortState::Forwarding => self.events.push("fstp/+", format!("{label} forwards")),
        }
        self.fabric.set_state(id, state);
    }

    fn transmit(&mut self, number: PortNumber, frame: [u8; FRAME_LEN]) {
        let Fabric {
            tree,
            ports,
            bridges,
            ..
        } = &mut self.fabric;
        let Some(tree) = tree else {
            return;
        };
        let id = match tree.ports.get(&number) {
            Some(&LOCAL) => return tree.for_host.push(frame),
            Some(id) => *id,
            None => return,
        };
        tree.own.clear();
        tree.own.rx().push(&frame);
        let own = tree.own.tx(0);
        let Some(frame) = own.frame(0) else {
            return;
        };
        let bridge = id.bridge_key().and_then(|key| bridges.get(&key));
        if let Some(port) = bridge {
            // If the tap has failed for good, reading it says so.
            let _ = port.bridge.tap.write(frame);
        } else if let Some(port) = ports.get_mut(id) {
            port.send_first(frame);
            watch_for_room(&self.epoll, id, port);
        }
    }
}
