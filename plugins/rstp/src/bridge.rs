//! The bridge: its interface, the order in which its machines run, and the selection of its ports'
//! roles (17.28).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bpdu::{Bpdu, FRAME_LEN, Malformed};
use crate::id::{BridgeId, PortId, PortNumber, Times, Vector};
use crate::information::{Info, Port, PortStatus};
use crate::roles::{Others, PortState, Role};
use crate::settings::{PortSettings, Settings, SettingsError};

/// Ticks are a second apart.
const TICK: Duration = Duration::from_secs(1);

/// The most rounds of all machines for one event. They come to rest after less than ten.
const MAX_ROUNDS: usize = 50;

/// The largest number of a port.
const MAX_PORT: PortNumber = 4095;

/// Why stations are forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A port of this bridge began to forward.
    Detected,
    /// Another bridge says so.
    Notified,
}

/// What the owner of a bridge is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this frame from this port, whatever the port's state.
    Transmit {
        /// The port.
        port: PortNumber,
        /// The frame.
        frame: [u8; FRAME_LEN],
    },
    /// From now on the port handles data frames so.
    SetState {
        /// The port.
        port: PortNumber,
        /// What it does.
        state: PortState,
    },
    /// Forget the stations behind this port.
    Flush {
        /// The port.
        port: PortNumber,
    },
    /// The topology has changed: a line for the log.
    TopologyChange {
        /// The port that knows of it first.
        port: PortNumber,
        /// How it knows.
        cause: Cause,
    },
    /// A BPDU came in on a port that is guarded against them, and that is now disabled.
    Guarded {
        /// The port.
        port: PortNumber,
    },
}

/// What became of a frame for the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// It was handled.
    Handled,
    /// The port is not in use, or not known.
    NotInUse,
    /// The port had more than a neighbour may send.
    TooMany,
    /// It is no valid BPDU.
    Malformed(Malformed),
}

/// The root of the tree as a bridge knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootStatus {
    /// The root bridge.
    pub root: BridgeId,
    /// The cost of the way to it.
    pub cost: u32,
    /// The port that leads to it, if this bridge is not the root.
    pub port: Option<PortNumber>,
    /// The times that it sets.
    pub times: Times,
    /// Topology changes since the bridge began.
    pub changes: u64,
    /// When the last one was.
    pub last_change: Option<Duration>,
}

/// A bridge of the rapid spanning tree protocol.
#[derive(Debug)]
pub struct Bridge {
    settings: Settings,
    ports: BTreeMap<PortNumber, Port>,
    /// The best way to the root (`rootPriority`), and the times that count.
    root: Vector,
    root_times: Times,
    root_port: Option<PortNumber>,
    now: Duration,
    next_tick: Duration,
    changes: u64,
    last_change: Option<Duration>,
    actions: Vec<Action>,
}

impl Bridge {
    /// A bridge without ports. `now` is the time since any moment that its owner likes.
    ///
    /// # Errors
    /// The settings are not allowed.
    pub fn new(settings: Settings, now: Duration) -> Result<Self, SettingsError> {
        settings.check()?;
        let root = offer(&settings);
        Ok(Self {
            root_times: settings.times(),
            settings,
            ports: BTreeMap::new(),
            root,
            root_port: None,
            now,
            next_tick: now + TICK,
            changes: 0,
            last_change: None,
            actions: Vec::new(),
        })
    }

    /// The bridge's identifier.
    #[must_use]
    pub fn id(&self) -> BridgeId {
        BridgeId::new(self.settings.priority, self.settings.mac)
    }

    /// The settings of the bridge.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes the settings of the bridge.
    ///
    /// # Errors
    /// They are not allowed. Nothing has changed then.
    pub fn set(&mut self, settings: Settings) -> Result<(), SettingsError> {
        settings.check()?;
        self.settings = settings;
        for port in self.ports.values_mut() {
            port.reselect = true;
        }
        self.settle();
        Ok(())
    }

    /// Adds a port whose link is up, or replaces the one with this number. It discards until an
    /// action says otherwise.
    ///
    /// # Errors
    /// The settings are not allowed, or the number is above 4095.
    pub fn add_port(
        &mut self,
        number: PortNumber,
        settings: PortSettings,
    ) -> Result<(), SettingsError> {
        settings.check()?;
        if number > MAX_PORT {
            return Err(SettingsError::PortNumber);
        }
        self.remove_port(number);
        let offer = offer(&self.settings);
        let mut port = Port::new(number, settings, offer, self.settings.times());
        port.has_link = true;
        port.follow_link();
        self.ports.insert(number, port);
        self.settle();
        Ok(())
    }

    /// Removes a port.
    pub fn remove_port(&mut self, number: PortNumber) {
        self.set_link(number, false);
        self.ports.remove(&number);
    }

    /// A port's link goes up or down.
    pub fn set_link(&mut self, number: PortNumber, is_up: bool) {
        if let Some(port) = self.ports.get_mut(&number) {
            port.has_link = is_up;
            port.is_guarded &= is_up;
            port.follow_link();
            self.settle();
        }
    }

    /// Uses a port again that its guard has disabled.
    pub fn release_guard(&mut self, number: PortNumber) {
        if let Some(port) = self.ports.get_mut(&number) {
            port.is_guarded = false;
            port.follow_link();
            self.settle();
        }
    }

    /// There may be somebody new behind a port: it sends a BPDU as soon as it may.
    pub fn announce(&mut self, number: PortNumber) {
        if let Some(port) = self.ports.get_mut(&number) {
            port.outbox.is_due = true;
            self.settle();
        }
    }

    /// The settings of a port.
    #[must_use]
    pub fn port_settings(&self, number: PortNumber) -> Option<&PortSettings> {
        Some(&self.ports.get(&number)?.settings)
    }

    /// Changes the settings of a port. If it becomes an edge port or ceases to be one, or if its
    /// guard changes, it starts anew.
    ///
    /// # Errors
    /// They are not allowed. Nothing has changed then.
    pub fn set_port(
        &mut self,
        number: PortNumber,
        settings: PortSettings,
    ) -> Result<(), SettingsError> {
        settings.check()?;
        let Some(port) = self.ports.get_mut(&number) else {
            return Ok(());
        };
        let starts_anew = (port.settings.admin_edge, port.settings.guard)
            != (settings.admin_edge, settings.guard);
        let has_link = port.has_link;
        port.settings = settings;
        port.reselect = true;
        if starts_anew {
            self.set_link(number, false);
        }
        self.set_link(number, has_link);
        Ok(())
    }

    /// A frame for [`GROUP_ADDRESS`](crate::GROUP_ADDRESS) has come in on a port.
    pub fn receive(&mut self, number: PortNumber, frame: &[u8]) -> Received {
        let Some(port) = self.ports.get_mut(&number).filter(|port| port.is_enabled()) else {
            return Received::NotInUse;
        };
        if !port.admit() {
            return Received::TooMany;
        }
        let bpdu = match Bpdu::decode(frame) {
            Ok(bpdu) => bpdu,
            Err(malformed) => {
                port.counters.malformed += 1;
                return Received::Malformed(malformed);
            }
        };
        if port.settings.guard {
            port.counters.received += 1;
            port.is_guarded = true;
            port.follow_link();
            self.actions.push(Action::Guarded { port: number });
        } else {
            port.receive(&bpdu);
            port.age();
        }
        self.settle();
        Received::Handled
    }

    /// When [`tick`](Self::tick) is to be called next.
    #[must_use]
    pub fn next_deadline(&self) -> Duration {
        self.next_tick
    }

    /// Time has passed. Whatever is due is done.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        if now < self.next_tick {
            return;
        }
        self.next_tick += TICK;
        if self.next_tick <= now {
            self.next_tick = now + TICK;
        }
        self.ports.values_mut().for_each(Port::tick);
        self.settle();
    }

    /// What is to be done, in this order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// The root as the bridge knows it.
    #[must_use]
    pub fn root(&self) -> RootStatus {
        RootStatus {
            root: self.root.root,
            cost: self.root.cost,
            port: self.root_port,
            times: self.root_times,
            changes: self.changes,
            last_change: self.last_change,
        }
    }

    /// A port as users see it.
    #[must_use]
    pub fn port(&self, number: PortNumber) -> Option<PortStatus> {
        self.ports.get(&number).map(Port::status)
    }

    /// Runs all machines until nothing changes any more, then transmits.
    fn settle(&mut self) {
        let has_settled = (0..MAX_ROUNDS).any(|_| !self.round());
        assert!(has_settled || !cfg!(test), "no rest: {self:#?}");
        let Self {
            settings,
            ports,
            actions,
            ..
        } = self;
        for port in ports.values_mut() {
            if let Some(bpdu) = port.transmit(settings.hold_count) {
                actions.push(Action::Transmit {
                    port: port.number,
                    frame: bpdu.encode(settings.mac),
                });
            }
        }
    }

    /// Runs each machine of each port once; `false` if nothing has changed.
    fn round(&mut self) -> bool {
        let mut has_moved = false;
        if self.ports.values().any(|port| port.reselect) {
            self.select_roles();
            has_moved = true;
        }
        // How many ports keep others waiting: without the one whose turn it is, these are others.
        let waiting = |port: &Port| u32::from(!port.is_in_sync());
        let rerooting = |port: &Port| u32::from(port.timers.recent_root > 0);
        let mut unsynced: u32 = self.ports.values().map(waiting).sum();
        let mut unrerooted: u32 = self.ports.values().map(rerooting).sum();
        let (mut sync, mut reroot) = (false, None);
        let mut changed = Vec::new();
        for (number, port) in &mut self.ports {
            unsynced -= waiting(port);
            unrerooted -= rerooting(port);
            if port.must_take_over() {
                port.take_over();
                has_moved = true;
            }
            port.detect_edge();
            let state = port.state;
            let step = port.step_role(Others {
                are_synced: unsynced == 0 && !sync,
                are_rerooted: unrerooted == 0,
            });
            sync |= step.sync;
            reroot = reroot.or(step.reroot.then_some(*number));
            has_moved |= step.has_moved;
            if port.state != state {
                let (port, state) = (*number, port.state);
                self.actions.push(Action::SetState { port, state });
            }
            let step = port.step_topology();
            has_moved |= step.has_moved;
            if step.flush {
                self.actions.push(Action::Flush { port: *number });
            }
            if let Some(cause) = step.propagate {
                changed.push((*number, cause));
            }
            unsynced += waiting(port);
            unrerooted += rerooting(port);
        }
        for (number, cause) in changed {
            self.count_change(number, cause);
            let others = self.ports.iter_mut().filter(|(other, _)| **other != number);
            others.for_each(|(_, port)| port.topology.propagate = true);
        }
        for port in self.ports.values_mut() {
            port.sync |= sync;
            port.reroot |= reroot.is_some();
        }
        has_moved
    }

    /// Counts a topology change, unless it is one of which more BPDUs have told.
    fn count_change(&mut self, port: PortNumber, cause: Cause) {
        let told = Duration::from_secs(u64::from(self.root_times.hello.ticks()) + 2);
        let last = self.last_change.replace(self.now);
        let is_told = last.is_some_and(|last| self.now.saturating_sub(last) <= told);
        if cause == Cause::Detected || !is_told {
            self.changes += 1;
            self.actions.push(Action::TopologyChange { port, cause });
        }
    }

    /// Selects the root port and all ports' roles (`updtRolesTree`).
    fn select_roles(&mut self) {
        let id = self.id();
        let ways = self.ports.values().filter_map(|port| {
            let is_way = matches!(port.info, Info::Received { .. })
                && port.vector.bridge.mac() != self.settings.mac;
            let cost = port.vector.cost.saturating_add(port.settings.cost);
            let vector = Vector {
                cost,
                ..port.vector
            };
            is_way.then_some((vector, port.id(), port.number))
        });
        let own = offer(&self.settings);
        let best = ways.min().filter(|(vector, ..)| *vector < own);
        (self.root, self.root_port) = match best {
            Some((vector, _, number)) => (vector, Some(number)),
            None => (own, None),
        };
        self.root_times = match self.root_port.and_then(|number| self.ports.get(&number)) {
            Some(port) => Times {
                message_age: port.times.message_age.older(),
                ..port.times
            },
            None => self.settings.times(),
        };
        for port in self.ports.values_mut() {
            port.reselect = false;
            port.designated = Vector {
                bridge: id,
                port: port.id(),
                ..self.root
            };
            port.designated_times = Times {
                hello: self.settings.times().hello,
                ..self.root_times
            };
            let offers = (port.designated, port.designated_times);
            (port.selected_role, port.update) = match port.info {
                Info::Disabled => (Role::Disabled, false),
                Info::Aged => (Role::Designated, true),
                Info::Mine => (Role::Designated, offers != (port.vector, port.times)),
                Info::Received { .. } if self.root_port == Some(port.number) => (Role::Root, false),
                Info::Received { .. } if port.designated < port.vector => (Role::Designated, true),
                Info::Received { .. } if port.vector.bridge.mac() == id.mac() => {
                    (Role::Backup, false)
                }
                Info::Received { .. } => (Role::Alternate, false),
            };
        }
    }
}

/// What a bridge offers as the root.
fn offer(settings: &Settings) -> Vector {
    let id = BridgeId::new(settings.priority, settings.mac);
    Vector {
        root: id,
        cost: 0,
        bridge: id,
        port: PortId(0),
    }
}
