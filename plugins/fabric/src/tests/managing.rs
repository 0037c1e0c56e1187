//! Requests to the switch.

use nix::errno::Errno;
use vdens_switch_control::{
    Answer, Change, PAGE, PortChange, PortSelection, Request, StationReport,
};

use super::*;

impl Bench {
    pub(super) fn request(&mut self, request: Request) -> Answer {
        let answer = self.switch.answer(request, Instant::now());
        // What serves a request settles what it has changed.
        self.switch.recv(&mut Batch::new().rx()).unwrap();
        answer
    }

    /// Makes changes. Returns the errno of a failure, 0 if there is none.
    pub(super) fn change(&mut self, changes: &[Change]) -> i32 {
        let answer = self.request(Request::Change(changes.to_vec()));
        answer.error.map_or(0, |failure| failure.errno)
    }

    pub(super) fn ports(&mut self, selection: PortSelection) -> Vec<u32> {
        let request = Request::Ports { from: 0, selection };
        let page = self.request(request).ports.unwrap();
        page.items.iter().map(|port| port.number).collect()
    }

    pub(super) fn all_stations(&mut self) -> Vec<StationReport> {
        let mut all = Vec::new();
        let mut from = Default::default();
        loop {
            let page = self.request(Request::Stations {
                from,
                mac: None,
                vlan: None,
            });
            let page = page.stations.unwrap();
            all.extend(page.items);
            match page.from {
                Some(next) => from = next,
                None => return all,
            }
        }
    }
}

#[test]
fn ports_are_made_removed_and_closed() {
    let mut bench = Bench::new("");
    let client = bench.plug();
    assert_eq!(bench.ports(PortSelection::Used), [1]);
    let created = bench.request(Request::Change(vec![
        Change::CreateAnyPort,
        Change::CreateAnyPort,
    ]));
    assert_eq!(created.created, Some(3));
    assert_eq!(bench.ports(PortSelection::All), [1, 2, 3]);
    assert_eq!(bench.change(&[Change::RemovePort(2)]), 0);
    assert_eq!(bench.change(&[Change::RemovePort(2)]), Errno::ENXIO as i32);
    assert_eq!(bench.change(&[Change::CreatePort(3)]), Errno::EEXIST as i32);
    assert_eq!(bench.change(&[Change::Disconnect(3)]), Errno::ENXIO as i32);
    assert_eq!(
        bench.change(&[Change::Disconnect(1), Change::RemovePort(3)]),
        0
    );
    assert!(bench.ports(PortSelection::All).is_empty());
    drop(client);
    let events = bench.request(Request::Events { from: 0 }).events.unwrap();
    let categories: Vec<_> = events.items.iter().map(|e| e.category.as_str()).collect();
    assert_eq!(categories, ["port/+", "port/-"]);
}

#[test]
fn a_client_gets_what_its_owner_lets_it_have() {
    let mut bench = Bench::new("");
    let changes = [
        Change::NumPorts(3),
        Change::Port(1, PortChange::Allocatable(false)),
    ];
    assert_eq!(bench.change(&changes), 0);
    let _second = bench.plug();
    let _first = bench.try_plug(1).unwrap();
    assert_eq!(bench.ports(PortSelection::Used), [1, 2]);
    assert!(bench.try_plug(4).is_none());
    let _third = bench.plug();
    assert!(bench.try_plug(0).is_none());
}

#[test]
fn a_switch_becomes_a_hub_and_back() {
    let mut bench = Bench::new("");
    let (a, b, c) = (bench.plug(), bench.plug(), bench.plug());
    let learn = |bench: &mut Bench| {
        b.send(&frame(1, 2, 60));
        bench.run();
        a.send(&frame(2, 1, 60));
        bench.run();
        let got = c.drain();
        let _ = (a.drain(), b.drain());
        bench.host.clear();
        got
    };
    assert_eq!(learn(&mut bench), 1, "station 1 is not known yet");
    assert_eq!(learn(&mut bench), 0);
    assert_eq!(bench.change(&[Change::Hub(true)]), 0);
    assert_eq!(learn(&mut bench), 2);
    assert!(bench.all_stations().is_empty());
    assert_eq!(bench.change(&[Change::Hub(false)]), 0);
    assert_eq!(learn(&mut bench), 1);
    assert_eq!(learn(&mut bench), 0);
    assert_eq!(bench.change(&[Change::FlushStations]), 0);
    assert!(bench.all_stations().is_empty());
}

#[test]
fn stations_come_in_parts() {
    let mut bench = Bench::new("");
    let client = bench.plug();
    let count = 3 * PAGE as u32 + 7;
    for number in 0..count {
        let [a, b, c, d] = number.to_be_bytes();
        let mut bytes = frame(BROADCAST, 1, 60);
        bytes[6..12].copy_from_slice(&[2, 9, a, b, c, d]);
        client.send(&bytes);
        if number % 8 == 7 {
            bench.run();
        }
    }
    bench.run();
    let all = bench.all_stations();
    assert_eq!(all.len() as u32, count);
    assert!(all.is_sorted_by_key(|station| station.mac));
    assert!(all.iter().all(|station| station.port == Some(1)));
    let one = Change::RemoveStation {
        vlan: 0,
        mac: all[0].mac,
    };
    assert_eq!(bench.change(std::slice::from_ref(&one)), 0);
    assert_eq!(bench.change(&[one]), Errno::ENXIO as i32);
    assert_eq!(bench.all_stations().len() as u32, count - 1);
}

#[test]
fn lists_fit_into_datagrams() {
    let mut bench = Bench::new("");
    let vlans = 1..=4094;
    let mut changes: Vec<_> = vlans.clone().map(Change::CreateVlan).collect();
    let all = |port| {
        vlans
            .clone()
            .map(move |vlan| Change::Port(port, PortChange::AddTagged(vlan)))
    };
    changes.extend((1..=200).flat_map(all));
    assert_eq!(bench.change(&changes), 0);
    let fits = |answer: &Answer| serde_json::to_vec(answer).unwrap().len() < 200_000;
    let (mut from, mut ports) = (Some(0), 0);
    while let Some(next) = from {
        let selection = PortSelection::All;
        let answer = bench.request(Request::Ports {
            from: next,
            selection,
        });
        assert!(fits(&answer));
        let page = answer.ports.unwrap();
        assert!(page.items.iter().all(|port| port.tagged.len() == 4094));
        (from, ports) = (page.from, ports + page.items.len());
    }
    assert_eq!(ports, 200);
    let (mut from, mut known) = (Some(0), 0);
    while let Some(next) = from {
        let answer = bench.request(Request::Vlans { from: next });
        assert!(fits(&answer));
        let page = answer.vlans.unwrap();
        (from, known) = (page.from, known + page.items.len());
    }
    assert_eq!(known, 4095);
}
