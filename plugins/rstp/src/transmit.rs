//! When a port transmits which BPDU (17.26, port transmit), and which protocol its neighbour
//! speaks (17.24, port protocol migration).

use crate::bpdu::{Bpdu, RstFlags, RstRole};
use crate::information::{MIGRATE_TIME, Port};
use crate::roles::{PortState, Role};

/// A protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// That of 1998.
    Stp,
    Rstp,
}

/// The machine of port protocol migration. For [`MIGRATE_TIME`] after a change it believes no
/// BPDU, since the neighbour may have sent it before it heard of the change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Migration {
    version: Version,
    /// Seconds until the next change (`mdelayWhile`).
    delay: u32,
}

impl Default for Migration {
    fn default() -> Self {
        Self {
            version: Version::Rstp,
            delay: MIGRATE_TIME,
        }
    }
}

impl Migration {
    /// What the port transmits.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// The neighbour speaks this version.
    pub(crate) fn hear(&mut self, version: Version) {
        if self.delay == 0 && version != self.version {
            *self = Self {
                version,
                delay: MIGRATE_TIME,
            };
        }
    }

    pub(crate) fn tick(&mut self) {
        self.delay = self.delay.saturating_sub(1);
    }
}

/// What a port has to transmit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outbox {
    /// There is something to tell (`newInfo`).
    pub(crate) is_due: bool,
    /// BPDUs sent, less one for each second (`txCount`).
    sent: u32,
    /// Seconds until the next BPDU that tells nothing new (`helloWhen`).
    hello: u32,
}

impl Outbox {
    /// The port is in use from now on.
    pub(crate) fn start(&mut self) {
        self.is_due = true;
        self.hello = 0;
    }

    pub(crate) fn tick(&mut self) {
        self.sent = self.sent.saturating_sub(1);
        self.hello = self.hello.saturating_sub(1);
    }
}

impl Port {
    /// The BPDU that the port transmits now, if it has one and may.
    pub(crate) fn transmit(&mut self, hold_count: u8) -> Option<Bpdu> {
        if !self.is_enabled() {
            return None;
        }
        if self.outbox.hello == 0 {
            self.outbox.hello = self.designated_times.hello.ticks();
            self.outbox.is_due |= match self.role {
                Role::Designated => true,
                Role::Root => self.topology.telling > 0,
                _ => false,
            };
        }
        if !self.outbox.is_due || self.outbox.sent >= u32::from(hold_count) {
            return None;
        }
        let bpdu = self.bpdu()?;
        self.outbox.is_due = false;
        self.outbox.sent += 1;
        self.topology.acknowledge = false;
        self.counters.sent += 1;
        Some(bpdu)
    }

    fn bpdu(&self) -> Option<Bpdu> {
        let (vector, times) = (self.designated, self.designated_times);
        let topology_change = self.topology.telling > 0;
        match (self.migration.version(), self.role) {
            (Version::Rstp, role) => Some(Bpdu::Rst {
                flags: RstFlags {
                    topology_change,
                    proposal: self.proposing,
                    role: match role {
                        Role::Root => RstRole::Root,
                        Role::Designated => RstRole::Designated,
                        Role::Alternate | Role::Backup => RstRole::Alternate,
                        Role::Disabled => return None,
                    },
                    learning: self.state != PortState::Discarding,
                    forwarding: self.state == PortState::Forwarding,
                    agreement: self.agree,
                },
                vector,
                times,
            }),
            (Version::Stp, Role::Root) => Some(Bpdu::Tcn),
            (Version::Stp, Role::Designated) => Some(Bpdu::Config {
                topology_change,
                acknowledgment: self.topology.acknowledge,
                vector,
                times,
            }),
            (Version::Stp, _) => None,
        }
    }
}
