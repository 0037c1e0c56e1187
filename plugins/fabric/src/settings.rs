//! What is set of the switch and its ports: what the VNL says at first, and requests later.
//!
//! Settings are plain data. They know no clients: what is set of a port number is there before a
//! client has the port, and stays when it goes. [`Settings::changed`] makes a new value for a list
//! of changes, so that all or none are made. What the changes mean for clients that are there
//! follows from the two values.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;
use vdens_switch_control::{
    Access, Change, Failure, LOCAL_PORT, MAX_VLAN, Mac, PortChange, StormLimit, StpChange, StpTimes,
};

use vdens_plugin_kit::Error;

use crate::Kind;
use crate::config::Config;

/// The highest port number at first: what the requests of VDE's clients can name.
const NUM_PORTS: u32 = 0xff_ffff;

/// How many static stations there may be.
const MAX_STATIONS: usize = 4096;

/// What is set of the switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) kind: Kind,
    /// The highest number that a port may have.
    pub(crate) num_ports: u32,
    /// Seconds after which a station that sent nothing is forgotten. In a hub it has no effect.
    pub(crate) expiry: u32,
    pub(crate) storm: StormLimit,
    pub(crate) has_stp: bool,
    pub(crate) priority: u16,
    /// The times of the spanning tree, if this is its root.
    pub(crate) times: StpTimes,
    /// The VLANs, and who may choose them.
    pub(crate) vlans: BTreeMap<u16, Option<Access>>,
    /// The ports for which something is set, by number.
    pub(crate) ports: BTreeMap<u32, PortSettings>,
    /// The port of each static station, by VLAN and address.
    pub(crate) stations: BTreeMap<(u16, Mac), u32>,
}

/// What is set of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortSettings {
    /// The VLAN of untagged frames, 0 for those of no VLAN; `None` keeps them out.
    pub(crate) untagged: Option<u16>,
    pub(crate) tagged: BTreeSet<u16>,
    /// Whether a client that asks for no number may get it.
    pub(crate) allocatable: bool,
    pub(crate) user: Option<u32>,
    pub(crate) group: Option<u32>,
    /// The only address that may send from it.
    pub(crate) lock: Option<Mac>,
    /// The port that gets a copy of its frames.
    pub(crate) mirror: Option<u32>,
    pub(crate) storm: Option<StormLimit>,
    pub(crate) edge: bool,
    pub(crate) auto_edge: bool,
    /// Whether a BPDU disables it.
    pub(crate) guard: bool,
    pub(crate) cost: u32,
    pub(crate) priority: u8,
}

impl Default for PortSettings {
    fn default() -> Self {
        let of_tree = vdens_rstp::PortSettings::default();
        Self {
            untagged: Some(0),
            tagged: BTreeSet::new(),
            allocatable: true,
            user: None,
            group: None,
            lock: None,
            mirror: None,
            storm: None,
            edge: of_tree.admin_edge,
            auto_edge: of_tree.auto_edge,
            guard: of_tree.guard,
            cost: of_tree.cost,
            priority: of_tree.priority,
        }
    }
}

impl PortSettings {
    /// What the spanning tree's machines are to know.
    pub(crate) fn of_tree(&self) -> vdens_rstp::PortSettings {
        vdens_rstp::PortSettings {
            admin_edge: self.edge,
            auto_edge: self.auto_edge,
            guard: self.guard,
            cost: self.cost,
            priority: self.priority,
            ..vdens_rstp::PortSettings::default()
        }
    }

    /// Whether the port is in no VLAN.
    pub(crate) fn has_no_vlan(&self) -> bool {
        self.untagged == Some(0) && self.tagged.is_empty()
    }
}

impl Settings {
    /// What the VNL says.
    ///
    /// # Errors
    /// It cannot be set.
    pub(crate) fn of(config: &Config) -> Result<Self, Error> {
        let mut changes = Vec::new();
        for vlan in &config.vlans {
            changes.push(Change::CreateVlan(*vlan));
            changes.push(Change::OfferVlan(*vlan, Some(Access { mode: None })));
        }
        let own = config.untagged.iter().chain(&config.trunk);
        let own: BTreeSet<u16> = own.copied().collect();
        let unknown = own.difference(&config.vlans);
        changes.extend(unknown.map(|vlan| Change::CreateVlan(*vlan)));
        let port = |change| Change::Port(LOCAL_PORT, change);
        let untagged = config.untagged.map(|vlan| PortChange::Untagged(Some(vlan)));
        let tagged = config.trunk.iter().copied().map(PortChange::AddTagged);
        changes.extend(untagged.into_iter().chain(tagged).map(port));
        changes.push(Change::Stp(StpChange::Enabled(config.stp)));
        let of_tree = [
            config.priority.map(StpChange::Priority),
            config.hello.map(StpChange::Hello),
            config.max_age.map(StpChange::MaxAge),
            config.forward_delay.map(StpChange::ForwardDelay),
        ];
        changes.extend(of_tree.into_iter().flatten().map(Change::Stp));
        let settings = Self::new(config.kind, config.expiry, config.storm).changed(&changes);
        settings.map_err(|failure| Error::usage(failure.message))
    }

    /// What is set at first of a switch that remembers stations for `expiry` seconds.
    pub(crate) fn new(kind: Kind, expiry: u32, storm: StormLimit) -> Self {
        let of_tree = vdens_rstp::Settings::new(Mac::default().0);
        Self {
            kind,
            num_ports: NUM_PORTS,
            expiry,
            storm,
            has_stp: false,
            priority: of_tree.priority,
            times: StpTimes {
                hello: of_tree.hello,
                max_age: of_tree.max_age,
                forward_delay: of_tree.forward_delay,
            },
            vlans: BTreeMap::new(),
            ports: BTreeMap::new(),
            stations: BTreeMap::new(),
        }
    }

    /// What the machines of the spanning tree are to know of a switch with this address.
    pub(crate) fn of_tree(&self, mac: Mac) -> vdens_rstp::Settings {
        vdens_rstp::Settings {
            priority: self.priority,
            hello: self.times.hello,
            max_age: self.times.max_age,
            forward_delay: self.times.forward_delay,
            ..vdens_rstp::Settings::new(mac.0)
        }
    }

    /// What is set of a port.
    pub(crate) fn port(&self, number: u32) -> PortSettings {
        self.ports.get(&number).cloned().unwrap_or_default()
    }

    /// The frames that a port may flood in a second.
    pub(crate) fn storm_limit(&self, number: u32) -> StormLimit {
        let own = self.ports.get(&number).and_then(|port| port.storm);
        own.unwrap_or(self.storm)
    }

    /// The settings after these changes. Changes of something else are left out: they concern
    /// clients, stations and counters.
    ///
    /// # Errors
    /// One of the changes cannot be made.
    pub(crate) fn changed(&self, changes: &[Change]) -> Result<Self, Failure> {
        let mut settings = self.clone();
        for change in changes {
            settings.change(change)?;
        }
        // The times must go together when all are set.
        let of_tree = settings.of_tree(Mac::default());
        of_tree.check().map_err(|error| invalid(&error))?;
        Ok(settings)
    }

    fn change(&mut self, change: &Change) -> Result<(), Failure> {
        match change {
            Change::Hub(is_hub) => {
                self.kind = if *is_hub { Kind::Hub } else { Kind::Switch };
            }
            Change::NumPorts(number) => {
                if !(1..=NUM_PORTS).contains(number) {
                    return Err(out_of_range("the number of ports", 1, NUM_PORTS));
                }
                self.num_ports = *number;
            }
            Change::Expiry(0) => return Err(out_of_range("the time", 1, u32::MAX)),
            Change::Expiry(seconds) => self.expiry = *seconds,
            Change::CreatePort(number) => {
                self.check_number(*number)?;
                if self.ports.contains_key(number) {
                    return Err(failure(Errno::EEXIST, format!("there is a port {number}")));
                }
                self.ports.insert(*number, PortSettings::default());
            }
            Change::RemovePort(number) => {
                if self.ports.remove(number).is_none() {
                    return Err(no_port(*number));
                }
            }
            Change::Port(number, change) => {
                if *number != LOCAL_PORT {
                    self.check_number(*number)?;
                }
                self.change_port(*number, change)?;
            }
            Change::CreateVlan(vlan) => {
                check_vlan(*vlan)?;
                if self.vlans.contains_key(vlan) {
                    return Err(failure(Errno::EEXIST, format!("there is a VLAN {vlan}")));
                }
                self.vlans.insert(*vlan, None);
            }
            Change::RemoveVlan(vlan) => {
                self.check_known(*vlan)?;
                let is_in = |port: &PortSettings| {
                    port.untagged == Some(*vlan) || port.tagged.contains(vlan)
                };
                if let Some((number, _)) = self.ports.iter().find(|(_, port)| is_in(port)) {
                    let message = format!("port {number} is in VLAN {vlan}");
                    return Err(failure(Errno::EADDRINUSE, message));
                }
                self.vlans.remove(vlan);
                self.stations.retain(|(of, _), _| of != vlan);
            }
            Change::OfferVlan(vlan, access) => {
                self.check_known(*vlan)?;
                self.vlans.insert(*vlan, access.clone());
            }
            Change::Storm(limit) => {
                check_storm(*limit)?;
                self.storm = *limit;
            }
            Change::Stp(StpChange::Enabled(has_stp)) => self.has_stp = *has_stp,
            Change::Stp(StpChange::Priority(priority)) => self.priority = *priority,
            Change::Stp(StpChange::Hello(seconds)) => self.times.hello = *seconds,
            Change::Stp(StpChange::MaxAge(seconds)) => self.times.max_age = *seconds,
            Change::Stp(StpChange::ForwardDelay(seconds)) => self.times.forward_delay = *seconds,
            Change::AddStation { vlan, mac, port } => self.add_station(*vlan, *mac, *port)?,
            Change::RemoveStation { vlan, mac } => {
                self.stations.remove(&(*vlan, *mac));
            }
            Change::CreateAnyPort
            | Change::Disconnect(_)
            | Change::FlushStations
            | Change::ResetCounters(_) => {}
        }
        Ok(())
    }

    fn change_port(&mut self, number: u32, change: &PortChange) -> Result<(), Failure> {
        match change {
            PortChange::Untagged(Some(vlan)) | PortChange::AddTagged(vlan) if *vlan != 0 => {
                self.check_known(*vlan)?;
            }
            PortChange::AddTagged(_) => {
                let message = "frames of no VLAN have no tag".to_owned();
                return Err(failure(Errno::EINVAL, message));
            }
            PortChange::Mirror(Some(to)) if *to == number => {
                let message = format!("port {number} cannot have a copy of its own frames");
                return Err(failure(Errno::EINVAL, message));
            }
            PortChange::Storm(Some(limit)) => check_storm(*limit)?,
            _ => {}
        }
        let port = self.ports.entry(number).or_default();
        match change {
            PortChange::Untagged(vlan) => port.untagged = *vlan,
            PortChange::AddTagged(vlan) => {
                port.tagged.insert(*vlan);
            }
            PortChange::RemoveTagged(vlan) => {
                if !port.tagged.remove(vlan) {
                    let message = format!("VLAN {vlan} is not tagged on port {number}");
                    return Err(failure(Errno::ENXIO, message));
                }
            }
            PortChange::Allocatable(may) => port.allocatable = *may,
            PortChange::User(user) => port.user = *user,
            PortChange::Group(group) => port.group = *group,
            PortChange::Lock(mac) => port.lock = *mac,
            PortChange::Mirror(to) => port.mirror = *to,
            PortChange::Storm(limit) => port.storm = *limit,
            PortChange::Edge(edge) => port.edge = *edge,
            PortChange::AutoEdge(edge) => port.auto_edge = *edge,
            PortChange::Guard(guard) => port.guard = *guard,
            PortChange::Cost(cost) => port.cost = *cost,
            PortChange::Priority(priority) => port.priority = *priority,
        }
        port.of_tree().check().map_err(|error| invalid(&error))
    }

    fn add_station(&mut self, vlan: u16, mac: Mac, port: u32) -> Result<(), Failure> {
        if vlan != 0 {
            self.check_known(vlan)?;
        }
        if port != LOCAL_PORT {
            self.check_number(port)?;
        }
        if mac.0[0] & 1 != 0 {
            let message = format!("{mac} is the address of a group");
            return Err(failure(Errno::EINVAL, message));
        }
        if self.stations.len() >= MAX_STATIONS && !self.stations.contains_key(&(vlan, mac)) {
            let message = format!("there are {MAX_STATIONS} static stations already");
            return Err(failure(Errno::ENOSPC, message));
        }
        self.stations.insert((vlan, mac), port);
        Ok(())
    }

    /// Checks that clients may have a port of this number.
    fn check_number(&self, number: u32) -> Result<(), Failure> {
        match (1..=self.num_ports).contains(&number) {
            true => Ok(()),
            false => Err(out_of_range("a port's number", 1, self.num_ports)),
        }
    }

    fn check_known(&self, vlan: u16) -> Result<(), Failure> {
        check_vlan(vlan)?;
        match self.vlans.contains_key(&vlan) {
            true => Ok(()),
            false => Err(failure(Errno::ENXIO, format!("there is no VLAN {vlan}"))),
        }
    }
}

fn check_vlan(vlan: u16) -> Result<(), Failure> {
    match (1..=MAX_VLAN).contains(&vlan) {
        true => Ok(()),
        false => Err(out_of_range("a VLAN", 1, u32::from(MAX_VLAN))),
    }
}

fn check_storm(limit: StormLimit) -> Result<(), Failure> {
    match limit {
        StormLimit::Frames(0) => Err(out_of_range("a limit of frames", 1, u32::MAX)),
        _ => Ok(()),
    }
}

/// A setting of the spanning tree is not allowed.
fn invalid(error: &vdens_rstp::SettingsError) -> Failure {
    failure(Errno::EINVAL, error.to_string())
}

/// A failure, with the errno that VDE's console has for it.
pub(crate) fn failure(errno: Errno, message: String) -> Failure {
    Failure {
        errno: errno as i32,
        message,
    }
}

/// There is no such port.
pub(crate) fn no_port(number: u32) -> Failure {
    failure(Errno::ENXIO, format!("there is no port {number}"))
}

fn out_of_range(what: &str, first: u32, last: u32) -> Failure {
    let message = format!("{what} is from {first} to {last}");
    failure(Errno::EINVAL, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new(Kind::Switch, 120, StormLimit::Off)
    }

    #[test]
    fn all_changes_are_made_or_none() {
        let before = settings();
        let good = [
            Change::CreateVlan(10),
            Change::Port(3, PortChange::Untagged(Some(10))),
        ];
        let after = before.changed(&good).unwrap();
        assert!(before.vlans.is_empty());
        assert_eq!(after.port(3).untagged, Some(10));
        assert_eq!(after.port(4), PortSettings::default());
        let bad = [Change::CreateVlan(20), Change::CreateVlan(10)];
        assert_eq!(after.changed(&bad).unwrap_err().errno, Errno::EEXIST as i32);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let some = settings().changed(&[Change::CreateVlan(10)]).unwrap();
        let in_use = [
            Change::Port(1, PortChange::AddTagged(10)),
            Change::RemoveVlan(10),
        ];
        for (bad, errno) in [
            (vec![Change::CreateVlan(0)], Errno::EINVAL),
            (vec![Change::CreateVlan(4095)], Errno::EINVAL),
            (vec![Change::RemoveVlan(11)], Errno::ENXIO),
            (in_use.to_vec(), Errno::EADDRINUSE),
            (
                vec![Change::Port(1, PortChange::Untagged(Some(11)))],
                Errno::ENXIO,
            ),
            (
                vec![Change::Port(1, PortChange::AddTagged(0))],
                Errno::EINVAL,
            ),
            (
                vec![Change::Port(1, PortChange::RemoveTagged(10))],
                Errno::ENXIO,
            ),
            (
                vec![Change::Port(1, PortChange::Mirror(Some(1)))],
                Errno::EINVAL,
            ),
            (vec![Change::Port(1, PortChange::Cost(0))], Errno::EINVAL),
            (vec![Change::CreatePort(0)], Errno::EINVAL),
            (
                vec![Change::NumPorts(2), Change::CreatePort(3)],
                Errno::EINVAL,
            ),
            (
                vec![Change::CreatePort(3), Change::CreatePort(3)],
                Errno::EEXIST,
            ),
            (vec![Change::RemovePort(3)], Errno::ENXIO),
            (vec![Change::Storm(StormLimit::Frames(0))], Errno::EINVAL),
            (vec![Change::Stp(StpChange::Priority(1))], Errno::EINVAL),
            (vec![Change::Stp(StpChange::Hello(0))], Errno::EINVAL),
            (vec![Change::Stp(StpChange::MaxAge(40))], Errno::EINVAL),
            (
                vec![Change::Port(1, PortChange::Priority(8))],
                Errno::EINVAL,
            ),
            (vec![Change::Expiry(0)], Errno::EINVAL),
            (vec![static_station(11, 2)], Errno::ENXIO),
            (vec![static_station(10, 3)], Errno::EINVAL),
        ] {
            assert_eq!(
                some.changed(&bad).unwrap_err().errno,
                errno as i32,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn the_times_of_the_tree_are_checked_together() {
        let short = [
            StpChange::ForwardDelay(4),
            StpChange::MaxAge(6),
            StpChange::Hello(1),
        ];
        let changes = short.map(Change::Stp);
        let times = settings().changed(&changes).unwrap().times;
        assert_eq!((times.hello, times.max_age, times.forward_delay), (1, 6, 4));
        let error = settings().changed(&changes[..1]).unwrap_err();
        assert!(error.message.contains("2*(forward delay-1)"), "{error:?}");
    }

    fn static_station(vlan: u16, first: u8) -> Change {
        Change::AddStation {
            vlan,
            mac: Mac([first, 0, 0, 0, 0, 1]),
            port: 1,
        }
    }

    #[test]
    fn a_vlan_takes_its_stations_along() {
        let changes = [
            Change::CreateVlan(10),
            static_station(10, 2),
            static_station(0, 2),
        ];
        let some = settings().changed(&changes).unwrap();
        assert_eq!(some.stations.len(), 2);
        let some = some.changed(&[Change::RemoveVlan(10)]).unwrap();
        assert_eq!(some.stations.len(), 1);
    }

    #[test]
    fn the_own_side_is_a_port() {
        let changes = [
            Change::CreateVlan(10),
            Change::Port(LOCAL_PORT, PortChange::Untagged(Some(10))),
        ];
        let some = settings().changed(&changes).unwrap();
        assert_eq!(some.port(LOCAL_PORT).untagged, Some(10));
    }
}
