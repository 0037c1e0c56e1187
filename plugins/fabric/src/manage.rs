//! Requests to show and to change the switch ([`vdens_switch_control`]).
//!
//! Requests come from the switch's own user only: nobody else can reach their socket. They are
//! served between batches of frames, one at a time. Changes are checked before any is made.

use std::os::unix::process::parent_id;
use std::process;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use vdens_plugin_kit::control::ControlSocket;
use vdens_switch_control::{
    Answer, Change, Failure, General, Kind, LOCAL_PORT, Mac, PAGE, Page, PortChange, PortReport,
    PortSelection, Request, StationReport, Traffic, VlanReport, Way,
};

use crate::control::Peer;
use crate::forwarding::Fabric;
use crate::frame::Station;
use crate::port::{BridgeKey, LOCAL, Port, PortId};
use crate::settings::{Settings, failure, no_port};
use crate::status::on_panel;
use crate::switch::{CAPACITY, Switch, admits};

/// After how many VLANs of ports, or ports of VLANs, a list goes on in the next answer: whole, it
/// fits into a datagram.
const MEMBERS: usize = 8192;

impl Switch {
    /// Serves the requests that wait.
    pub(crate) fn serve_requests(&mut self, now: Instant) {
        while let Some((request, asker)) =
            self.requests.as_ref().and_then(ControlSocket::next_request)
        {
            let answer = self.answer(request, now);
            if let Some(requests) = &self.requests {
                requests.answer(&asker, &answer);
            }
        }
    }

    /// The answer to a request, which is fulfilled.
    pub(crate) fn answer(&mut self, request: Request, now: Instant) -> Answer {
        let mut answer = Answer::default();
        match request {
            Request::Show => answer.switch = Some(self.general(now)),
            Request::Ports { from, selection } => {
                answer.ports = Some(ports(&self.fabric, from, selection));
            }
            Request::Vlans { from } => answer.vlans = Some(vlans(&self.fabric, from)),
            Request::Stations { from, mac, vlan } => {
                let is_wanted = |station: &Station| {
                    mac.is_none_or(|mac| mac.0 == station.mac())
                        && vlan.is_none_or(|vlan| vlan == station.vlan())
                };
                answer.stations = Some(stations(&self.fabric, from, is_wanted, now));
            }
            Request::Stp { from } => answer.stp = Some(self.stp_report(from, now)),
            Request::Events { from } => answer.events = Some(self.events.page(from)),
            Request::Change(changes) => match self.change(&changes, now) {
                Ok(created) => answer.created = created,
                Err(failure) => answer.error = Some(failure),
            },
        }
        answer
    }

    fn general(&self, now: Instant) -> General {
        let Fabric { settings, fdb, .. } = &self.fabric;
        General {
            directory: self.directory.path().display().to_string(),
            mode: self.directory.mode(),
            processes: [process::id(), parent_id()],
            uptime: now.saturating_duration_since(self.started).as_secs(),
            mac: self.mac,
            kind: settings.kind,
            num_ports: settings.num_ports,
            used_ports: self.fabric.ports.iter().count() as u32,
            vlans: settings.vlans.len() as u32,
            expiry: settings.expiry,
            stations: fdb.len() as u64,
            capacity: CAPACITY as u64,
            storm: settings.storm,
            stp: settings.has_stp,
            priority: settings.priority,
            times: settings.times,
            panel: on_panel(&self.fabric).into(),
        }
    }

    /// Makes the changes, all or none. Returns the number of a port that was made.
    fn change(&mut self, changes: &[Change], now: Instant) -> Result<Option<u32>, Failure> {
        let mut created = None;
        let mut resolved = Vec::with_capacity(changes.len());
        for change in changes {
            let mut change = change.clone();
            if change == Change::CreateAnyPort {
                let is_new = |number| {
                    !self.fabric.settings.ports.contains_key(&number)
                        && !resolved.contains(&Change::CreatePort(number))
                };
                let number = self.free_number(|number, _| is_new(number));
                let number = number.ok_or_else(no_free_port)?;
                created = Some(number);
                change = Change::CreatePort(number);
            }
            resolved.push(change);
        }
        let settings = self.fabric.settings.changed(&resolved)?;
        for change in &resolved {
            check(&self.fabric, &settings, change)?;
        }
        if settings.vlans != self.fabric.settings.vlans {
            let doors = self.doors.change(&self.directory, &self.epoll, &settings);
            doors.map_err(|error| failure(Errno::from_raw(error.errno), error.to_string()))?;
        }
        let before = std::mem::replace(&mut self.fabric.settings, settings);
        self.adapt(&before, now);
        for change in &resolved {
            self.perform(change, now);
        }
        Ok(created)
    }

    /// Does what follows from the difference between settings.
    fn adapt(&mut self, before: &Settings, now: Instant) {
        self.fabric.set_limits();
        self.fabric.apply(before, now);
        let Settings { kind, expiry, .. } = self.fabric.settings;
        if (kind, expiry) != (before.kind, before.expiry) {
            // The bridges would go on to remember.
            self.drop_bridges("the switch remembers stations differently now");
        }
        self.close_excluded(before);
        if self.fabric.settings.has_stp {
            // The kernel would forward between VLANs' ports without asking the tree.
            self.drop_bridge(BridgeKey::Filter, "there is a spanning tree now");
        }
        self.adapt_tree(before, now);
        self.rearrange();
    }

    /// Closes the ports of clients that might have them before, and may not now.
    fn close_excluded(&mut self, before: &Settings) {
        let Fabric {
            settings, ports, ..
        } = &mut self.fabric;
        for (_, port) in ports.iter_mut() {
            let may_have = |settings: &Settings| {
                let peer = Peer::of(&port.control);
                let is_admitted = peer.is_ok_and(|p| admits(&settings.port(port.number), p));
                let offer = |vlan: &u16| settings.vlans.get(vlan).is_some_and(Option::is_some);
                is_admitted && port.chosen.as_ref().is_none_or(offer)
            };
            if may_have(before) && !may_have(settings) {
                port.close("its client may not have it any more");
            }
        }
    }

    /// Does what is no setting.
    fn perform(&mut self, change: &Change, now: Instant) {
        if let Change::Port(number, PortChange::Guard(_)) = change {
            return self.release_guard(*number);
        }
        let Fabric {
            settings,
            fdb,
            ports,
            local,
            traffic,
            ..
        } = &mut self.fabric;
        match change {
            Change::Disconnect(number) => {
                for (_, port) in ports.iter_mut().filter(|(_, port)| port.number == *number) {
                    port.close("the switch's owner has closed it");
                }
            }
            Change::RemoveStation { vlan, mac } => {
                fdb.remove(Station::new(&mac.0, *vlan));
            }
            Change::FlushStations => {
                let expiry = memory_of(settings.kind, settings.expiry);
                fdb.set_expiry(Duration::ZERO, now);
                fdb.set_expiry(expiry, now);
            }
            Change::ResetCounters(number) => {
                let is_meant = |port: &Port| number.is_none_or(|number| number == port.number);
                for (_, port) in ports.iter_mut().filter(|(_, port)| is_meant(port)) {
                    port.counters = Default::default();
                }
                if number.is_none_or(|number| number == LOCAL_PORT) {
                    local.counters = Default::default();
                }
                if number.is_none() {
                    traffic.fill(Traffic::default());
                }
            }
            _ => {}
        }
    }
}

/// How long a switch or hub remembers stations.
pub(crate) fn memory_of(kind: Kind, expiry: u32) -> Duration {
    match kind {
        Kind::Switch => Duration::from_secs(u64::from(expiry)),
        Kind::Hub => Duration::ZERO,
    }
}

/// Checks a change against the clients and stations that are there.
fn check(fabric: &Fabric, settings: &Settings, change: &Change) -> Result<(), Failure> {
    let is_used = |number: u32| fabric.ports.has_number(number);
    match change {
        Change::Disconnect(number) if !is_used(*number) => Err(no_port(*number)),
        Change::RemovePort(number) if is_used(*number) => {
            let message = format!("port {number} has a client");
            Err(failure(Errno::EADDRINUSE, message))
        }
        Change::RemoveStation { vlan, mac } if !fabric.fdb.knows(Station::new(&mac.0, *vlan)) => {
            let message = format!("there is no station {mac} on VLAN {vlan}");
            Err(failure(Errno::ENXIO, message))
        }
        Change::RemoveVlan(vlan) => {
            let mut clients = fabric.ports.iter().map(|(_, port)| port);
            match clients.find(|port| port.chosen == Some(*vlan)) {
                Some(Port { number, .. }) => {
                    let message = format!("the client of port {number} has chosen VLAN {vlan}");
                    Err(failure(Errno::EADDRINUSE, message))
                }
                None => Ok(()),
            }
        }
        Change::ResetCounters(Some(number))
            if *number != LOCAL_PORT
                && !is_used(*number)
                && !settings.ports.contains_key(number) =>
        {
            Err(no_port(*number))
        }
        _ => Ok(()),
    }
}

/// No number is free for a port.
fn no_free_port() -> Failure {
    failure(Errno::ENOSPC, "there is no free port".into())
}

fn ports(fabric: &Fabric, from: u32, selection: PortSelection) -> Page<PortReport, u32> {
    let set = fabric.settings.ports.keys().copied();
    let set = set.filter(|_| selection == PortSelection::All);
    let used = fabric.ports.iter().map(|(_, port)| port.number);
    let mut numbers: Vec<u32> = set.chain(used).filter(|number| *number >= from).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut page = Page::default();
    let mut members = 0;
    for number in &numbers {
        if page.items.len() == PAGE || members > MEMBERS {
            page.from = Some(*number);
            break;
        }
        let of_number = |(_, port): &(PortId, &Port)| port.number == *number;
        let client = fabric.ports.iter().find(of_number).map(|(_, port)| port);
        let report = port_report(fabric, *number, client);
        members += report.tagged.len();
        page.items.push(report);
    }
    page
}

fn port_report(fabric: &Fabric, number: u32, client: Option<&Port>) -> PortReport {
    let set = fabric.port_settings(number);
    let report = PortReport {
        number,
        untagged: set.untagged,
        tagged: set.tagged.iter().copied().collect(),
        allocatable: set.allocatable,
        user: set.user,
        group: set.group,
        lock: set.lock,
        mirror: set.mirror,
        storm: set.storm,
        edge: set.edge,
        auto_edge: set.auto_edge,
        guard: set.guard,
        cost: set.cost,
        priority: set.priority,
        ..PortReport::default()
    };
    if number == LOCAL_PORT {
        return PortReport {
            is_on_panel: fabric.local.plugged.is_some(),
            way: way_over(fabric.local.plugged),
            traffic: fabric.local.counters.traffic,
            dropped: fabric.local.counters.losses(),
            ..report
        };
    }
    let Some(port) = client else {
        return report;
    };
    let credentials = getsockopt(&port.control, sockopt::PeerCredentials).ok();
    PortReport {
        client: Some(port.description().to_owned()),
        uid: credentials.map(|peer| peer.uid()),
        pid: credentials.and_then(|peer| u32::try_from(peer.pid()).ok()),
        is_on_panel: port.far_end.is_plugged(),
        way: way_over(port.bridge()),
        traffic: port.counters.traffic,
        dropped: port.counters.losses(),
        ..report
    }
}

/// The way over a bridge on the panel, or over none.
fn way_over(bridge: Option<BridgeKey>) -> Way {
    match bridge {
        Some(BridgeKey::Filter) => Way::Filter,
        Some(BridgeKey::Vlan(_)) => Way::Bridge,
        None => Way::UserSpace,
    }
}

fn vlans(fabric: &Fabric, from: u16) -> Page<VlanReport, u16> {
    let settings = &fabric.settings;
    let used = fabric.ports.iter().map(|(_, port)| port.number);
    let mut numbers: Vec<u32> = settings.ports.keys().copied().chain(used).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let ports: Vec<_> = numbers
        .iter()
        .map(|n| (*n, fabric.port_settings(*n)))
        .collect();
    let known = settings.vlans.keys().copied();
    let mut page = Page::default();
    let mut members = 0;
    for vlan in std::iter::once(0).chain(known).filter(|vlan| *vlan >= from) {
        if page.items.len() == PAGE || members > MEMBERS {
            page.from = Some(vlan);
            break;
        }
        let untagged = ports.iter().filter(|(_, port)| port.untagged == Some(vlan));
        let tagged = ports.iter().filter(|(_, port)| port.tagged.contains(&vlan));
        let report = VlanReport {
            vlan,
            is_offered: settings.vlans.get(&vlan).is_some_and(Option::is_some),
            untagged: untagged.map(|(number, _)| *number).collect(),
            tagged: tagged.map(|(number, _)| *number).collect(),
            traffic: fabric
                .traffic
                .get(usize::from(vlan))
                .copied()
                .unwrap_or_default(),
        };
        members += report.untagged.len() + report.tagged.len();
        page.items.push(report);
    }
    page
}

fn stations(
    fabric: &Fabric,
    from: (u16, Mac),
    is_wanted: impl Fn(&Station) -> bool,
    now: Instant,
) -> Page<StationReport, (u16, Mac)> {
    let key = |station: &Station| (station.vlan(), Mac(station.mac()));
    let known = fabric.fdb.stations(now);
    let known = known.filter(|(station, ..)| is_wanted(station) && key(station) >= from);
    let mut known: Vec<_> = known.collect();
    if known.len() > PAGE {
        // There may be a hundred thousand, and a list of them all has hundreds of pages.
        known.select_nth_unstable_by_key(PAGE, |(station, ..)| key(station));
        known.truncate(PAGE + 1);
    }
    known.sort_unstable_by_key(|(station, ..)| key(station));
    let port_of = |place: PortId| match place {
        LOCAL => Some(LOCAL_PORT),
        id => fabric.ports.get(id).map(|port| port.number),
    };
    let report = |(station, place, age): &(Station, PortId, Duration)| {
        let (vlan, mac) = key(station);
        let pinned = fabric.settings.stations.get(&(vlan, mac)).copied();
        StationReport {
            vlan,
            mac,
            port: pinned.or_else(|| port_of(*place)),
            age: pinned.is_none().then_some(age.as_secs()),
        }
    };
    Page {
        items: known.iter().take(PAGE).map(report).collect(),
        from: known.get(PAGE).map(|(station, ..)| key(station)),
    }
}
