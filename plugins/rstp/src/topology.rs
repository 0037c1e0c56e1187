//! Topology changes (17.31): a port that begins to forward tells all other bridges, which forget
//! the stations behind their other ports.

use crate::bridge::Cause;
use crate::information::Port;
use crate::roles::{PortState, Role};
use crate::transmit::Version;

/// What BPDUs have said of changes and is still to be handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// The topology has changed (`rcvdTc`).
    pub(crate) change: bool,
    /// A bridge of the older protocol notifies its root of a change (`rcvdTcn`).
    pub(crate) notification: bool,
    /// The notification of this bridge has arrived (`rcvdTcAck`).
    pub(crate) acknowledgment: bool,
}

impl Heard {
    pub(crate) fn add(&mut self, more: Self) {
        self.change |= more.change;
        self.notification |= more.notification;
        self.acknowledgment |= more.acknowledgment;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The port neither learns nor is in the tree.
    #[default]
    Inactive,
    /// It learns, or has learned; a change would begin when it forwards.
    Learning,
    /// It is in the tree: changes are propagated.
    Active,
}

/// The state of a port's machine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Topology {
    stage: Stage,
    pub(crate) heard: Heard,
    /// Another port has heard of a change (`tcProp`).
    pub(crate) propagate: bool,
    /// A notification is to be acknowledged (`tcAck`).
    pub(crate) acknowledge: bool,
    /// Seconds for which BPDUs tell of a change (`tcWhile`).
    pub(crate) telling: u32,
}

impl Topology {
    pub(crate) fn tick(&mut self) {
        self.telling = self.telling.saturating_sub(1);
    }
}

/// What a step of the machine is to the bridge.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TopologyStep {
    /// Stations behind this port are to be forgotten.
    pub(crate) flush: bool,
    /// All other ports are to propagate a change.
    pub(crate) propagate: Option<Cause>,
    pub(crate) has_moved: bool,
}

impl Port {
    /// Starts to tell of a change (`newTcWhile`).
    fn tell(&mut self) {
        if self.topology.telling > 0 {
            return;
        }
        let times = &self.designated_times;
        self.topology.telling = match self.migration.version() {
            Version::Rstp => {
                self.outbox.is_due = true;
                times.hello.ticks() + 1
            }
            Version::Stp => times.max_age.ticks() + times.forward_delay.ticks(),
        };
    }

    /// Runs the topology change machine until it waits.
    pub(crate) fn step_topology(&mut self) -> TopologyStep {
        let mut step = TopologyStep::default();
        let before = self.topology.stage;
        let is_in_tree = matches!(self.role, Role::Root | Role::Designated);
        let Topology {
            stage,
            heard,
            propagate,
            ..
        } = &mut self.topology;
        if *stage == Stage::Inactive && self.state != PortState::Discarding {
            *stage = Stage::Learning;
        }
        if *stage == Stage::Active && (!is_in_tree || self.is_edge) {
            *stage = Stage::Learning;
        }
        if *stage != Stage::Active {
            (*heard, *propagate) = (Heard::default(), false);
        }
        match *stage {
            Stage::Learning
                if is_in_tree && self.state == PortState::Forwarding && !self.is_edge =>
            {
                self.topology.stage = Stage::Active;
                self.tell();
                self.outbox.is_due = true;
                step.propagate = Some(Cause::Detected);
            }
            Stage::Learning if !is_in_tree && self.state == PortState::Discarding => {
                let topology = &mut self.topology;
                topology.stage = Stage::Inactive;
                (topology.telling, topology.acknowledge) = (0, false);
                step.flush = true;
            }
            Stage::Active => self.hear(&mut step),
            _ => {}
        }
        step.has_moved |= before != self.topology.stage;
        step
    }

    /// Handles what an active port has heard.
    fn hear(&mut self, step: &mut TopologyStep) {
        let heard = std::mem::take(&mut self.topology.heard);
        if heard.notification {
            self.tell();
            self.topology.acknowledge |= self.role == Role::Designated;
        }
        if heard.notification || heard.change {
            step.propagate = Some(Cause::Notified);
        }
        if heard.acknowledgment {
            self.topology.telling = 0;
        }
        if std::mem::take(&mut self.topology.propagate) {
            self.tell();
            step.flush = true;
        }
        step.has_moved = heard != Heard::default() || step.flush;
    }
}
