//! What a port knows of the network behind it: the port information machine (17.27), with what a
//! received BPDU means (17.21.8).

use crate::bpdu::{Bpdu, RstFlags, RstRole};
use crate::id::{PortId, PortNumber, Time, Times, Vector};
use crate::roles::{PortState, Role};
use crate::settings::PortSettings;
use crate::topology::{Heard, Topology};
use crate::transmit::{Migration, Outbox, Version};

/// Seconds in which a neighbour may turn out to speak the older protocol, or to be no bridge
/// (`MigrateTime`).
pub(crate) const MIGRATE_TIME: u32 = 3;

/// The most BPDUs that are handled of a port in a second. A neighbour may send ten. What one sends
/// that floods must not take the bridge's time.
const MAX_RECEIVED: u32 = 64;

/// Where a port's information comes from (`infoIs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Info {
    /// The port is not in use.
    Disabled,
    /// Its neighbour's is too old, and the port's role is to be selected anew.
    Aged,
    /// The bridge's own: the port's network has no better way to the root.
    Mine,
    /// From a BPDU, for so many more seconds (`rcvdInfoWhile`).
    Received { left: u32 },
}

/// What a BPDU is to the port that receives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Superior,
    Repeated,
    Inferior,
    NotDesignated,
    Other,
}

/// BPDUs of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Received and valid.
    pub received: u64,
    /// Sent.
    pub sent: u64,
    /// Received and not valid.
    pub malformed: u64,
    /// Not read: the neighbour sent too many.
    pub flooded: u64,
}

/// A port as users see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStatus {
    /// Its identifier.
    pub id: PortId,
    /// Its role.
    pub role: Role,
    /// Its state.
    pub state: PortState,
    /// Whether it is an edge port now.
    pub is_edge: bool,
    /// Whether its guard has disabled it.
    pub is_guarded: bool,
    /// Whether it speaks the spanning tree protocol of 1998.
    pub is_legacy: bool,
    /// What its path costs.
    pub cost: u32,
    /// What is known of the port's network: the designated bridge and port, and their root.
    pub vector: Vector,
    /// BPDUs.
    pub counters: Counters,
}

/// The timers that count down to 0, in seconds (17.17).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timers {
    /// Until the port counts as an edge port (`edgeDelayWhile`).
    pub(crate) edge: u32,
    /// While the neighbour has shown that it does not hear this port (`disputed`).
    pub(crate) dispute: u32,
    /// Until it learns or forwards without a handshake (`fdWhile`).
    pub(crate) forward: u32,
    /// While it was a backup port lately (`rbWhile`).
    pub(crate) recent_backup: u32,
    /// While it was the root port lately (`rrWhile`).
    pub(crate) recent_root: u32,
}

/// A port: the variables of 17.19.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) number: PortNumber,
    pub(crate) settings: PortSettings,
    pub(crate) has_link: bool,
    pub(crate) is_guarded: bool,
    pub(crate) info: Info,
    /// What counts for the port's network (`portPriority`, `portTimes`).
    pub(crate) vector: Vector,
    pub(crate) times: Times,
    /// What the bridge offers to it (`designatedPriority`, `designatedTimes`).
    pub(crate) designated: Vector,
    pub(crate) designated_times: Times,
    pub(crate) reselect: bool,
    pub(crate) update: bool,
    pub(crate) selected_role: Role,
    pub(crate) role: Role,
    pub(crate) state: PortState,
    /// The neighbour may forward, for all this bridge knows (`agree`).
    pub(crate) agree: bool,
    /// This port may forward, for all the neighbour knows (`agreed`).
    pub(crate) agreed: bool,
    pub(crate) proposed: bool,
    pub(crate) proposing: bool,
    pub(crate) sync: bool,
    pub(crate) synced: bool,
    pub(crate) reroot: bool,
    pub(crate) is_edge: bool,
    pub(crate) timers: Timers,
    pub(crate) migration: Migration,
    pub(crate) topology: Topology,
    pub(crate) outbox: Outbox,
    received_lately: u32,
    pub(crate) counters: Counters,
}

impl Port {
    /// A port that is not in use yet. `own` is what its bridge offers as a root.
    pub(crate) fn new(
        number: PortNumber,
        settings: PortSettings,
        own: Vector,
        times: Times,
    ) -> Self {
        Self {
            number,
            has_link: false,
            is_guarded: false,
            info: Info::Disabled,
            vector: own,
            times,
            designated: own,
            designated_times: times,
            reselect: true,
            update: false,
            selected_role: Role::Disabled,
            role: Role::Disabled,
            state: PortState::Discarding,
            agree: false,
            agreed: false,
            proposed: false,
            proposing: false,
            sync: true,
            synced: false,
            reroot: true,
            is_edge: settings.admin_edge,
            timers: Timers {
                forward: times.max_age.ticks(),
                ..Timers::default()
            },
            migration: Migration::default(),
            topology: Topology::default(),
            outbox: Outbox::default(),
            received_lately: 0,
            counters: Counters::default(),
            settings,
        }
    }

    pub(crate) fn id(&self) -> PortId {
        PortId::new(self.settings.priority, self.number)
    }

    /// Whether the port is in use (`portEnabled`).
    pub(crate) fn is_enabled(&self) -> bool {
        self.info != Info::Disabled
    }

    /// Starts to use the port or stops it, as its link, its settings and its guard want it.
    pub(crate) fn follow_link(&mut self) {
        let wanted = self.has_link && self.settings.is_enabled && !self.is_guarded;
        if wanted == self.is_enabled() {
            return;
        }
        self.reselect = true;
        if wanted {
            self.is_edge = self.settings.admin_edge;
            self.timers.edge = MIGRATE_TIME;
            self.migration = Migration::default();
            self.outbox.start();
            self.info = Info::Aged;
        } else {
            self.info = Info::Disabled;
            (self.proposing, self.proposed) = (false, false);
            (self.agree, self.agreed) = (false, false);
        }
    }

    /// Counts a BPDU that was received; `false` if there were too many.
    pub(crate) fn admit(&mut self) -> bool {
        self.received_lately += 1;
        let is_admitted = self.received_lately <= MAX_RECEIVED;
        self.counters.flooded += u64::from(!is_admitted);
        is_admitted
    }

    /// Handles a valid BPDU of a port in use.
    pub(crate) fn receive(&mut self, bpdu: &Bpdu) {
        self.counters.received += 1;
        self.is_edge = false;
        self.timers.edge = MIGRATE_TIME;
        match *bpdu {
            Bpdu::Tcn => {
                self.migration.hear(Version::Stp);
                self.topology.heard.notification = true;
            }
            Bpdu::Config {
                topology_change,
                acknowledgment,
                vector,
                times,
            } => {
                self.migration.hear(Version::Stp);
                let heard = Heard {
                    change: topology_change,
                    acknowledgment,
                    notification: false,
                };
                self.handle(None, heard, vector, times);
            }
            Bpdu::Rst {
                flags,
                vector,
                times,
            } => {
                self.migration.hear(Version::Rstp);
                let heard = Heard {
                    change: flags.topology_change,
                    ..Heard::default()
                };
                self.handle(Some(flags), heard, vector, times);
            }
        }
    }

    fn handle(&mut self, flags: Option<RstFlags>, heard: Heard, vector: Vector, times: Times) {
        let times = received(times);
        // Only a shared medium or a cable with both ends here brings a port its own BPDU.
        if (vector.bridge.mac(), vector.port) == (self.designated.bridge.mac(), self.id()) {
            return self.dispute(&times);
        }
        match self.meaning(flags, &vector, &times) {
            Meaning::Superior => {
                (self.agreed, self.proposing) = (false, false);
                self.timers.dispute = 0;
                self.proposed |= flags.is_some_and(|flags| flags.proposal);
                self.topology.heard.add(heard);
                let is_received = matches!(self.info, Info::Received { .. });
                self.agree &= is_received && vector <= self.vector;
                (self.vector, self.times) = (vector, times);
                self.refresh();
                self.reselect = true;
            }
            Meaning::Repeated => {
                self.proposed |= flags.is_some_and(|flags| flags.proposal);
                self.topology.heard.add(heard);
                self.refresh();
            }
            Meaning::Inferior => {
                if flags.is_some_and(|flags| flags.learning) {
                    self.dispute(&times);
                }
            }
            Meaning::NotDesignated => {
                self.agreed =
                    self.settings.is_point_to_point && flags.is_some_and(|flags| flags.agreement);
                if self.agreed {
                    (self.proposing, self.timers.dispute) = (false, 0);
                }
                self.topology.heard.add(heard);
            }
            Meaning::Other => {}
        }
    }

    fn meaning(&self, flags: Option<RstFlags>, vector: &Vector, times: &Times) -> Meaning {
        let role = flags.map_or(RstRole::Designated, |flags| flags.role);
        if role != RstRole::Designated {
            return match *vector >= self.vector {
                true => Meaning::NotDesignated,
                false => Meaning::Other,
            };
        }
        if vector == &self.vector && times == &self.times {
            return Meaning::Repeated;
        }
        match vector == &self.vector || vector.supersedes(&self.vector) {
            true => Meaning::Superior,
            false => Meaning::Inferior,
        }
    }

    /// Two ports of one network believe to be designated: this one must not forward
    /// (`recordDispute`), for as long as information with these times counts.
    fn dispute(&mut self, times: &Times) {
        self.agreed = false;
        self.timers.dispute = 3 * times.hello.ticks();
    }

    /// Starts the time for which what was received counts (`updtRcvdInfoWhile`).
    fn refresh(&mut self) {
        let is_young = self.times.message_age.older() <= self.times.max_age;
        let left = if is_young {
            3 * self.times.hello.ticks()
        } else {
            0
        };
        self.info = Info::Received { left };
    }

    /// Takes over what the bridge offers, as the role of a designated port wants it.
    pub(crate) fn take_over(&mut self) {
        (self.proposing, self.proposed) = (false, false);
        self.agreed &= self.info == Info::Mine && self.designated <= self.vector;
        self.synced &= self.agreed;
        (self.vector, self.times) = (self.designated, self.designated_times);
        self.update = false;
        self.info = Info::Mine;
        self.outbox.is_due = true;
    }

    /// A second has passed.
    pub(crate) fn tick(&mut self) {
        let Timers {
            edge,
            dispute,
            forward,
            recent_backup,
            recent_root,
        } = &mut self.timers;
        for timer in [edge, dispute, forward, recent_backup, recent_root] {
            *timer = timer.saturating_sub(1);
        }
        self.received_lately = 0;
        self.migration.tick();
        self.topology.tick();
        self.outbox.tick();
        if let Info::Received { left } = &mut self.info {
            *left = left.saturating_sub(1);
        }
        self.age();
    }

    /// Discards received information whose time has passed.
    pub(crate) fn age(&mut self) {
        if self.info == (Info::Received { left: 0 }) {
            self.info = Info::Aged;
            self.reselect = true;
        }
    }

    pub(crate) fn status(&self) -> PortStatus {
        PortStatus {
            id: self.id(),
            role: self.role,
            state: self.state,
            is_edge: self.is_edge,
            is_guarded: self.is_guarded,
            is_legacy: self.migration.version() == Version::Stp,
            cost: self.settings.cost,
            vector: self.vector,
            counters: self.counters,
        }
    }
}

/// Times of a BPDU as they are kept. The age is rounded: a Linux bridge's has a fraction that
/// changes with each BPDU. No one says hello more often than once a second.
fn received(times: Times) -> Times {
    let age = times.message_age.round().min(u32::from(u8::MAX));
    Times {
        message_age: Time::from_secs(age as u8),
        hello: times.hello.max(Time::from_secs(1)),
        ..times
    }
}
