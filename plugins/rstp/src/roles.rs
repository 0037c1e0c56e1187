//! From a port's role to its state: port role transitions (17.29) and port state transition
//! (17.30).
//!
//! A root port forwards as soon as no port that was the root port lately does. A designated port
//! forwards as soon as its neighbour agrees. A neighbour agrees when its own designated ports are
//! in sync: they discard, or their neighbours have agreed. So a wave of handshakes goes from the
//! root outwards, and no port needs to wait for a time.

use crate::information::{Info, MIGRATE_TIME, Port};
use crate::transmit::Version;

/// What a port does with data frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortState {
    /// It drops them.
    Discarding,
    /// It learns their sources, and drops them.
    Learning,
    /// It learns their sources, and forwards them.
    Forwarding,
}

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It is not in use.
    Disabled,
    /// It leads to the root.
    Root,
    /// It leads away from the root.
    Designated,
    /// It would lead to the root if the root port did not.
    Alternate,
    /// Another port of this bridge leads to the same network.
    Backup,
}

/// What the other ports of the bridge are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Others {
    /// All have the role that they shall have, and all but the root port are in sync.
    pub(crate) are_synced: bool,
    /// None was the root port lately.
    pub(crate) are_rerooted: bool,
}

/// What a step of the machine is to the bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RoleStep {
    /// All ports are to be in sync (`setSyncTree`).
    pub(crate) sync: bool,
    /// No other port may forward as the root port any more (`setReRootTree`).
    pub(crate) reroot: bool,
    pub(crate) has_moved: bool,
}

impl Port {
    /// The time in discarding, and then in learning, without a handshake (17.20.5).
    pub(crate) fn forward_delay(&self) -> u32 {
        match self.migration.version() {
            Version::Rstp => self.designated_times.hello.ticks(),
            Version::Stp => self.designated_times.forward_delay.ticks(),
        }
    }

    /// Whether it does not keep another port waiting (17.20.3).
    pub(crate) fn is_in_sync(&self) -> bool {
        self.role == self.selected_role && !self.update && (self.synced || self.role == Role::Root)
    }

    /// Runs the role's machine once.
    pub(crate) fn step_role(&mut self, others: Others) -> RoleStep {
        let mut step = RoleStep::default();
        let before = self.snapshot();
        if self.role != self.selected_role {
            self.role = self.selected_role;
            if !matches!(self.role, Role::Root | Role::Designated) {
                self.state = PortState::Discarding;
            }
        }
        match self.role {
            Role::Disabled => {
                self.rest(self.designated_times.max_age.ticks());
            }
            Role::Alternate | Role::Backup => {
                self.rest(self.forward_delay());
                if self.role == Role::Backup {
                    self.timers.recent_backup = 2 * self.designated_times.hello.ticks();
                }
                self.answer(others, &mut step);
            }
            Role::Root => self.step_root(others, &mut step),
            Role::Designated => self.step_designated(),
        }
        step.has_moved = before != self.snapshot() || step.sync || step.reroot;
        step
    }

    /// What the machine changes that another step, or another port, depends on.
    fn snapshot(&self) -> (Role, PortState, [bool; 9]) {
        let flags = [
            self.agree,
            self.agreed,
            self.proposed,
            self.proposing,
            self.sync,
            self.synced,
            self.reroot,
            self.timers.dispute > 0,
            self.timers.recent_root > 0,
        ];
        (self.role, self.state, flags)
    }

    /// A port that discards is in sync, and waits for nothing.
    fn rest(&mut self, delay: u32) {
        self.timers.forward = delay;
        self.timers.recent_root = 0;
        self.synced = true;
        (self.sync, self.reroot) = (false, false);
    }

    /// Answers a neighbour's proposal, as soon as all other ports are in sync.
    fn answer(&mut self, others: Others, step: &mut RoleStep) {
        if self.proposed && !self.agree {
            step.sync = true;
            self.proposed = false;
        }
        if others.are_synced && !step.sync && !self.agree || self.proposed && self.agree {
            (self.proposed, self.sync) = (false, false);
            self.agree = true;
            self.outbox.is_due = true;
        }
    }

    fn step_root(&mut self, others: Others, step: &mut RoleStep) {
        self.timers.recent_root = self.designated_times.forward_delay.ticks();
        self.answer(others, step);
        if self.state != PortState::Forwarding && !self.reroot {
            step.reroot = true;
        }
        let is_rerooted = others.are_rerooted
            && self.timers.recent_backup == 0
            && self.migration.version() == Version::Rstp;
        if (self.timers.forward == 0 || is_rerooted) && self.state != PortState::Forwarding {
            self.advance();
        }
        if self.state == PortState::Forwarding {
            self.reroot = false;
        }
    }

    fn step_designated(&mut self) {
        let forwards = self.state == PortState::Forwarding;
        if !forwards && !self.agreed && !self.proposing && !self.is_edge {
            self.proposing = true;
            self.timers.edge = match self.settings.is_point_to_point {
                true => MIGRATE_TIME,
                false => self.designated_times.max_age.ticks(),
            };
            self.outbox.is_due = true;
        }
        let discards = self.state == PortState::Discarding;
        let is_safe = discards || self.agreed || self.is_edge;
        if is_safe && !self.synced || self.sync && self.synced {
            self.timers.recent_root = 0;
            self.synced = true;
            self.sync = false;
        }
        if self.timers.recent_root == 0 {
            self.reroot = false;
        }
        let must_stop = self.sync && !self.synced || self.reroot || self.timers.dispute > 0;
        if must_stop && !self.is_edge {
            if !discards {
                self.state = PortState::Discarding;
                self.timers.forward = self.forward_delay();
            }
            return;
        }
        let may_go = self.timers.forward == 0 || self.agreed || self.is_edge;
        if may_go && !self.sync && !forwards {
            self.advance();
        }
    }

    /// To the next state.
    fn advance(&mut self) {
        match self.state {
            PortState::Discarding => {
                self.state = PortState::Learning;
                self.timers.forward = self.forward_delay();
            }
            PortState::Learning | PortState::Forwarding => {
                self.state = PortState::Forwarding;
                self.timers.forward = 0;
                if self.role == Role::Designated {
                    self.agreed = self.migration.version() == Version::Rstp;
                }
            }
        }
    }

    /// An edge port is one behind which no bridge answers a proposal (17.25, bridge detection).
    pub(crate) fn detect_edge(&mut self) {
        let is_silent = self.timers.edge == 0 && self.proposing;
        if self.settings.auto_edge && is_silent && self.migration.version() == Version::Rstp {
            self.is_edge = true;
        }
    }

    /// Whether the information is to be taken from the bridge.
    pub(crate) fn must_take_over(&self) -> bool {
        self.update && self.info != Info::Disabled
    }
}
