//! The switch in a spanning tree: the state machines of [`vdens_rstp`], and the ports that they
//! speak of.
//!
//! BPDUs that come in go to the machines and are never forwarded. What the machines want done is
//! done before the next frame is looked at. The host's port and the clients' take part alike. While
//! there is a tree no interface is on the panel: the kernel's bridge there would forward frames
//! that a port discards.
//!
//! The machines number ports up to 4095. A port has its own number there if it can.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use vdens_plugin_kit::{Batch, RxBatch, TxBatch, log};
use vdens_rstp::{
    Action, Bridge, Cause, FRAME_LEN, GROUP_ADDRESS, PortNumber, PortState, Role, Settings,
};
use vdens_switch_control::{LOCAL_PORT, Mac, StpPort, StpReport, StpRole, StpState};

use crate::forwarding::Fabric;
use crate::port::{LOCAL, PortId};
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

/// The most ports of an answer: whole, it fits into a datagram.
const REPORTED: usize = 1024;

/// Whether a frame is for bridges only.
pub(crate) fn is_for_bridges(frame: &[u8]) -> bool {
    frame.starts_with(&GROUP_ADDRESS)
}

impl Tree {
    /// `None` if the settings are not allowed, which they are.
    fn new(mac: Mac, priority: u16, now: Instant) -> Option<Self> {
        let settings = Settings {
            priority,
            ..Settings::new(mac.0)
        };
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
        let is_free = |number: &PortNumber| !self.ports.contains_key(number);
        let wanted = PortNumber::try_from(number).ok();
        let wanted = wanted.filter(|number| *number <= MAX_NUMBER && is_free(number));
        let Some(number) = wanted.or_else(|| (1..=MAX_NUMBER).rev().find(is_free)) else {
            return log::warn!("port {number} forwards nothing: the spanning tree has 4095 ports");
        };
        match self.bridge.add_port(number, port_settings(set)) {
            Ok(()) => {
                self.ports.insert(number, id);
                self.numbers.insert(id, number);
            }
            Err(error) => log::error!("port {number} forwards nothing: {error}"),
        }
    }

    pub(crate) fn remove(&mut self, id: PortId) {
        if let Some(number) = self.numbers.remove(&id) {
            self.bridge.remove_port(number);
            self.ports.remove(&number);
        }
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

    /// The tree in a line: where its root is, and which ports do not forward.
    pub(crate) fn summary(&self, fabric: &Fabric) -> String {
        let root = self.bridge.root();
        let mut line = match root.port {
            None => "this switch is the root".to_owned(),
            Some(port) => {
                let port = self.label(port, fabric);
                format!("root {} by {port}, cost {}", root.root, root.cost)
            }
        };
        let states = self.ports.keys().filter_map(|number| {
            let state = self.bridge.port(*number)?.state;
            (state != PortState::Forwarding).then(|| self.label(*number, fabric))
        });
        let still: Vec<String> = states.collect();
        if !still.is_empty() {
            line += &format!("; not forwarding: {}", still.join(", "));
        }
        line
    }

    /// The number that users have for a port.
    fn number_for_users(&self, number: PortNumber, fabric: &Fabric) -> u32 {
        match self.ports.get(&number) {
            Some(&LOCAL) | None => LOCAL_PORT,
            Some(id) => fabric.ports.get(*id).map_or(LOCAL_PORT, |port| port.number),
        }
    }

    /// What users call a port.
    fn label(&self, number: PortNumber, fabric: &Fabric) -> String {
        match self.number_for_users(number, fabric) {
            LOCAL_PORT => "the local port".to_owned(),
            number => format!("port {number}"),
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

fn port_settings(set: &settings::PortSettings) -> vdens_rstp::PortSettings {
    vdens_rstp::PortSettings {
        admin_edge: set.edge,
        cost: set.cost,
        ..vdens_rstp::PortSettings::default()
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
        if set.priority != before.priority {
            let mut of_bridge = tree.bridge.settings().clone();
            of_bridge.priority = set.priority;
            if let Err(error) = tree.bridge.set(of_bridge) {
                log::error!("the priority stays as it was: {error}");
            }
        }
        for (number, id) in tree.ports.clone() {
            let port = match id {
                LOCAL => LOCAL_PORT,
                id => self
                    .fabric
                    .ports
                    .get(id)
                    .map_or(LOCAL_PORT, |port| port.number),
            };
            let wanted = port_settings(&set.port(port));
            if tree.bridge.port_settings(number) != Some(&wanted)
                && let Err(error) = tree.bridge.set_port(number, wanted)
            {
                log::error!("port {port} stays as it was: {error}");
            }
        }
        self.follow_tree();
    }

    /// Begins to take part in the tree.
    pub(crate) fn start_tree(&mut self, now: Instant) {
        self.drop_bridges("the switch is in a spanning tree now");
        self.fabric.set_state(LOCAL, PortState::Discarding);
        let set = &self.fabric.settings;
        let Some(mut tree) = Tree::new(self.mac, set.priority, now) else {
            return;
        };
        tree.add(LOCAL, LOCAL_PORT, &set.port(LOCAL_PORT));
        tree.set_host_carrier(self.has_host_carrier);
        for (id, port) in self.fabric.ports.iter_mut() {
            port.state = PortState::Discarding;
            tree.add(id, port.number, &set.port(port.number));
        }
        self.fabric.tree = Some(tree);
        self.events.push("fstp/status", "fstp 1".into());
        self.follow_tree();
    }

    fn end_tree(&mut self) {
        self.fabric.tree = None;
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
            self.follow_tree();
        }
    }

    /// Time has passed.
    pub(crate) fn tick_tree(&mut self, now: Instant) {
        if let Some(tree) = &mut self.fabric.tree {
            let time = now.saturating_duration_since(tree.start);
            tree.bridge.tick(time);
            self.follow_tree();
        }
    }

    /// A client has come.
    pub(crate) fn join_tree(&mut self, id: PortId, number: u32) {
        let Fabric { tree, settings, .. } = &mut self.fabric;
        if let Some(tree) = tree {
            tree.add(id, number, &settings.port(number));
            self.fabric.set_state(id, PortState::Discarding);
            self.follow_tree();
        }
    }

    /// Does what the machines want done.
    pub(crate) fn follow_tree(&mut self) {
        let Some(tree) = &mut self.fabric.tree else {
            return;
        };
        let actions = tree.bridge.take_actions();
        for action in actions {
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
                Action::Guarded { port } => log::warn!("port {port} is disabled: it had a BPDU"),
            }
        }
    }

    fn port_of(&self, number: PortNumber) -> Option<PortId> {
        self.fabric.tree.as_ref()?.ports.get(&number).copied()
    }

    fn set_state(&mut self, number: PortNumber, state: PortState) {
        log::debug!("spanning tree: port {number} is {state:?}");
        match state {
            PortState::Discarding => {
                self.events
                    .push("fstp/-", format!("port {number} discards"));
            }
            PortState::Learning => {}
            PortState::Forwarding => {
                self.events
                    .push("fstp/+", format!("port {number} forwards"));
            }
        }
        if let Some(id) = self.port_of(number) {
            self.fabric.set_state(id, state);
        }
    }

    fn transmit(&mut self, number: PortNumber, frame: [u8; FRAME_LEN]) {
        let Fabric { tree, ports, .. } = &mut self.fabric;
        let Some(tree) = tree else {
            return;
        };
        let id = match tree.ports.get(&number) {
            Some(&LOCAL) => return tree.for_host.push(frame),
            Some(id) => *id,
            None => return,
        };
        let Some(port) = ports.get_mut(id) else {
            return;
        };
        tree.own.clear();
        tree.own.rx().push(&frame);
        if let Some(frame) = tree.own.tx(0).frame(0) {
            port.send_first(frame);
            watch_for_room(&self.epoll, id, port);
        }
    }

    /// The state of the tree, for those who ask.
    pub(crate) fn stp_report(&self, now: Instant) -> StpReport {
        let bridge = (self.fabric.settings.priority, self.mac);
        let Some(tree) = &self.fabric.tree else {
            return StpReport {
                bridge,
                root: bridge,
                ..StpReport::default()
            };
        };
        let root = tree.bridge.root();
        let time = now.saturating_duration_since(tree.start);
        let of_port = |number: &PortNumber| {
            let port = tree.bridge.port(*number)?;
            Some(StpPort {
                port: tree.number_for_users(*number, &self.fabric),
                role: role(port.role),
                state: state(port.state),
                cost: port.cost,
                edge: port.is_edge,
            })
        };
        let ports = tree.ports.keys().filter_map(of_port);
        let mut ports: Vec<StpPort> = ports.take(REPORTED).collect();
        ports.sort_unstable_by_key(|port| port.port);
        StpReport {
            enabled: true,
            bridge,
            root: (root.root.priority(), Mac(root.root.mac())),
            root_cost: root.cost,
            root_port: root
                .port
                .map(|number| tree.number_for_users(number, &self.fabric)),
            changes: root.changes,
            since: time
                .saturating_sub(root.last_change.unwrap_or_default())
                .as_secs(),
            ports,
        }
    }
}

fn role(role: Role) -> StpRole {
    match role {
        Role::Root => StpRole::Root,
        Role::Designated => StpRole::Designated,
        Role::Alternate => StpRole::Alternate,
        Role::Backup => StpRole::Backup,
        Role::Disabled => StpRole::Disabled,
    }
}

fn state(state: PortState) -> StpState {
    match state {
        PortState::Discarding => StpState::Discarding,
        PortState::Learning => StpState::Learning,
        PortState::Forwarding => StpState::Forwarding,
    }
}
