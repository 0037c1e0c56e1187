//! VLANs, locks, mirrors and static stations.

use std::time::Instant;

use nix::errno::Errno;
use vdens_plugin_kit::{Batch, MAX_LEGACY_FRAME, VnetHeader};
use vdens_switch_control::{
    Access, Change, MAX_VLAN, Mac, PortChange, PortReport, PortSelection, Request, Traffic,
    VlanReport, Way,
};

use super::mixtures::{TAKES_ALL, TSO, bridged, payload, segments, tcp, unfinished, wrapped};
use super::*;
use crate::port::BridgeKey;

fn untagged(port: u32, vlan: u16) -> Change {
    Change::Port(port, PortChange::Untagged(Some(vlan)))
}

fn trunk(port: u32, vlan: u16) -> Change {
    Change::Port(port, PortChange::AddTagged(vlan))
}

/// A frame with a tag put in.
fn with_tag(bytes: &[u8], vlan: u16) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    [&bytes[..12], &[0x81, 0, high, low], &bytes[12..]].concat()
}

impl Bench {
    /// A switch whose ports 1 and 2 are in VLAN 10, 3 in VLAN 20, 4 is a trunk of both, and 5 is in
    /// VLAN 10 with VLAN 20 tagged.
    fn with_vlans() -> (Self, [Client; 5]) {
        let mut bench = Self::new("");
        let changes = [
            Change::CreateVlan(10),
            Change::CreateVlan(20),
            untagged(1, 10),
            untagged(2, 10),
            untagged(3, 20),
            Change::Port(4, PortChange::Untagged(None)),
            trunk(4, 10),
            trunk(4, 20),
            untagged(5, 10),
            trunk(5, 20),
        ];
        assert_eq!(bench.change(&changes), 0);
        let clients = std::array::from_fn(|_| bench.plug());
        (bench, clients)
    }

    fn port(&mut self, number: u32) -> PortReport {
        let request = Request::Ports {
            from: number,
            selection: PortSelection::All,
        };
        let page = self.request(request).ports.unwrap();
        page.items.into_iter().find(|p| p.number == number).unwrap()
    }

    fn vlan(&mut self, vlan: u16) -> VlanReport {
        let page = self.request(Request::Vlans { from: vlan }).vlans.unwrap();
        page.items.into_iter().find(|v| v.vlan == vlan).unwrap()
    }

    fn dropped(&mut self, port: u32, cause: &str) -> u64 {
        let dropped = self.port(port).dropped;
        dropped.get(cause).copied().unwrap_or(0)
    }
}

/// What each client has received.
fn received(clients: &[Client]) -> Vec<Vec<Vec<u8>>> {
    clients.iter().map(Client::all).collect()
}

#[test]
fn a_frame_reaches_its_vlan_only_and_in_each_ports_form() {
    let (mut bench, clients) = Bench::with_vlans();
    let plain = frame(BROADCAST, 1, 60);
    let none: Vec<Vec<u8>> = Vec::new();
    clients[0].send(&plain);
    bench.run();
    let (ten, twenty) = (with_tag(&plain, 10), with_tag(&plain, 20));
    let one = |bytes: &Vec<u8>| vec![bytes.clone()];
    assert_eq!(
        received(&clients),
        [
            none.clone(),
            one(&plain),
            none.clone(),
            one(&ten),
            one(&plain)
        ]
    );
    // From the trunk in VLAN 20, with a priority, which stays where there is a tag.
    clients[3].send(&with_tag(&plain, 0x6000 | 20));
    bench.run();
    let kept = with_tag(&plain, 0x6000 | 20);
    assert_eq!(
        received(&clients),
        [
            none.clone(),
            none.clone(),
            one(&plain),
            none.clone(),
            one(&kept)
        ]
    );
    // A port of both kinds; and a tag for the wrong VLANs, for its own untagged VLAN, and none.
    clients[4].send(&twenty);
    clients[4].send(&plain);
    for wrong in [with_tag(&plain, 30), ten.clone()] {
        clients[4].send(&wrong);
        clients[0].send(&wrong);
    }
    clients[3].send(&plain);
    bench.run();
    assert_eq!(
        received(&clients),
        [
            one(&plain),
            one(&plain),
            one(&plain),
            vec![twenty, ten],
            none
        ]
    );
    assert_eq!(
        [1, 4, 5].map(|port| bench.dropped(port, "vlan")),
        [2, 1, 2],
        "what a port is not in"
    );
    assert!(bench.host.is_empty(), "the own side is in no VLAN");
}

#[test]
fn each_vlan_has_its_own_stations() {
    let (mut bench, clients) = Bench::with_vlans();
    clients[1].send(&frame(BROADCAST, 7, 60));
    clients[2].send(&frame(BROADCAST, 7, 60));
    bench.run();
    let _ = received(&clients);
    let stations = bench.all_stations();
    let places: Vec<_> = stations.iter().map(|s| (s.vlan, s.port)).collect();
    assert_eq!(places, [(10, Some(2)), (20, Some(3))]);
    let private = frame(7, 8, 60);
    clients[0].send(&private);
    clients[3].send(&with_tag(&private, 20));
    bench.run();
    let counts: Vec<_> = received(&clients).iter().map(Vec::len).collect();
    assert_eq!(counts, [0, 1, 1, 0, 0]);
    // A port that is moved takes no station along, and is reached no more.
    assert_eq!(bench.change(&[untagged(2, 20)]), 0);
    clients[0].send(&private);
    bench.run();
    let counts: Vec<_> = received(&clients).iter().map(Vec::len).collect();
    assert_eq!(counts, [0, 0, 0, 1, 1]);
}

#[test]
fn a_hub_floods_within_the_vlan() {
    let (mut bench, clients) = Bench::with_vlans();
    assert_eq!(bench.change(&[Change::Hub(true)]), 0);
    clients[1].send(&frame(BROADCAST, 7, 60));
    bench.run();
    let _ = received(&clients);
    clients[0].send(&frame(7, 8, 60));
    bench.run();
    let counts: Vec<_> = received(&clients).iter().map(Vec::len).collect();
    assert_eq!(counts, [0, 1, 0, 1, 1]);
}

#[test]
fn without_vlans_tags_pass_as_they_are() {
    let (mut bench, clients) = Bench::with_vlans();
    let changes: Vec<Change> = (1..=5)
        .flat_map(|port| [untagged(port, 0)])
        .chain([trunk(4, 10), trunk(5, 20)])
        .chain([
            Change::Port(4, PortChange::RemoveTagged(10)),
            Change::Port(4, PortChange::RemoveTagged(20)),
            Change::Port(5, PortChange::RemoveTagged(20)),
            Change::RemoveVlan(10),
            Change::RemoveVlan(20),
        ])
        .collect();
    assert_eq!(bench.change(&changes), 0);
    for bytes in [tagged(BROADCAST, 1, 30), frame(BROADCAST, 1, 60)] {
        clients[0].send(&bytes);
        bench.run();
        for other in &clients[1..] {
            assert_eq!(other.all(), std::slice::from_ref(&bytes));
        }
    }
}

#[test]
fn super_frames_keep_their_offloads_with_and_without_tags() {
    let mut bench = Bench::new("");
    bench.switch.other_side(TAKES_ALL);
    let changes = [
        Change::CreateVlan(10),
        untagged(1, 10),
        trunk(2, 10),
        untagged(3, 10),
        trunk(4, 10),
        untagged(0, 10),
    ];
    assert_eq!(bench.change(&changes), 0);
    let (access, ours) = (bench.plug_ours(), bench.plug_ours());
    let (legacy, legacy_trunk) = (bench.plug(), bench.plug());
    let bridge = bench.plug_bridge_of(10);
    let payload = payload(60_000);
    let whole = unfinished(tcp(BROADCAST, 1, 0, &payload));
    let tagged = with_tag(&whole, 10);
    let cut = segments(BROADCAST, 1, &payload);
    let cut_tagged: Vec<_> = cut.iter().map(|bytes| with_tag(bytes, 10)).collect();
    access.send(&wrapped(TSO, &whole));
    bench.run();
    assert!(ours.all() == [wrapped(TSO.shifted(4), &tagged)]);
    assert!(legacy.all() == cut && legacy_trunk.all() == cut_tagged);
    assert!(bench.host == [whole.clone()] && bridged(&bridge) == [(TSO, whole.clone())]);
    // And back, from the trunk.
    bench.host.clear();
    ours.send(&wrapped(TSO.shifted(4), &tagged));
    bench.run();
    assert!(access.all() == [wrapped(TSO, &whole)]);
    assert!(legacy.all() == cut && legacy_trunk.all() == cut_tagged);
    assert!(bench.host == [whole.clone()] && bridged(&bridge) == [(TSO, whole)]);
    // What a legacy trunk sends is put together within its VLAN.
    bench.host.clear();
    for bytes in &cut_tagged[..8] {
        legacy_trunk.send(bytes);
    }
    bench.run();
    assert_eq!(access.all().len(), 1);
    assert_eq!((legacy.all().len(), bench.host.len()), (8, 8));
}

#[test]
fn frames_of_two_vlans_are_not_put_together() {
    let mut bench = Bench::new("");
    let changes = [
        Change::CreateVlan(10),
        Change::CreateVlan(20),
        trunk(1, 10),
        trunk(1, 20),
        untagged(2, 10),
        untagged(3, 20),
    ];
    assert_eq!(bench.change(&changes), 0);
    let legacy = bench.plug();
    let (ten, twenty) = (bench.plug_ours(), bench.plug_ours());
    let cut = segments(BROADCAST, 1, &payload(8000));
    for (n, bytes) in cut.iter().enumerate() {
        legacy.send(&with_tag(bytes, [10, 20][n % 2]));
    }
    bench.run();
    let part = |of: usize| cut.iter().skip(of).step_by(2).cloned().collect::<Vec<_>>();
    assert_eq!(ten.all(), part(0));
    assert_eq!(twenty.all(), part(1));
}

#[test]
fn a_frame_that_is_too_long_with_a_tag_is_dropped_and_counted() {
    let (mut bench, clients) = Bench::with_vlans();
    for longer in [0, 1] {
        clients[0].send(&frame(BROADCAST, 1, MAX_LEGACY_FRAME - 4 + longer));
    }
    bench.run();
    let counts: Vec<_> = received(&clients).iter().map(Vec::len).collect();
    assert_eq!(counts, [0, 2, 0, 1, 2]);
    assert_eq!(bench.dropped(1, "tag_length"), 1);
}

#[test]
fn bridges_are_each_in_their_vlan() {
    let (mut bench, clients) = Bench::with_vlans();
    let (ten, twenty) = (bench.plug_bridge_of(10), bench.plug_bridge_of(20));
    let plain = frame(BROADCAST, 1, 60);
    clients[0].send(&plain);
    bench.run();
    assert_eq!(bridged(&ten), [(VnetHeader::default(), plain.clone())]);
    assert!(bridged(&twenty).is_empty());
    let _ = received(&clients);
    let from_bridge = [&VnetHeader::default().to_bytes()[..], &plain].concat();
    twenty.send(&from_bridge).unwrap();
    let leak = [&VnetHeader::default().to_bytes()[..], &with_tag(&plain, 10)].concat();
    twenty.send(&leak).unwrap();
    bench.run();
    let counts: Vec<_> = received(&clients).iter().map(Vec::len).collect();
    assert_eq!(counts, [0, 0, 1, 1, 1]);
    assert!(bridged(&ten).is_empty());
    assert_eq!(bench.vlan(20).traffic.in_frames, 1);
}

#[test]
fn the_bridge_that_filters_vlans_has_them_all_with_tags() {
    let (mut bench, clients) = Bench::with_vlans();
    let (filter, twenty) = (
        bench.plug_bridge_as(BridgeKey::Filter),
        bench.plug_bridge_of(20),
    );
    let plain = frame(BROADCAST, 1, 60);
    let header = VnetHeader::default();
    clients[0].send(&plain);
    bench.run();
    assert_eq!(bridged(&filter), [(header, with_tag(&plain, 10))]);
    assert!(bridged(&twenty).is_empty());
    let _ = received(&clients);
    for bytes in [plain.clone(), with_tag(&plain, 30), with_tag(&plain, 20)] {
        let from_bridge = [&header.to_bytes()[..], &bytes].concat();
        filter.send(&from_bridge).unwrap();
    }
    bench.run();
    let counts: Vec<_> = received(&clients).iter().map(Vec::len).collect();
    assert_eq!(counts, [0, 0, 1, 1, 1]);
    assert_eq!(bridged(&twenty), [(header, plain.clone())]);
    assert!(bridged(&filter).is_empty(), "it has forwarded it");
    // It is a station's place as any other.
    clients[2].send(&frame(1, 3, 60));
    bench.run();
    assert_eq!(bridged(&filter), [(header, with_tag(&frame(1, 3, 60), 20))]);
    assert!(received(&clients).iter().all(Vec::is_empty));
    // The host here takes no VLANs. Then each has a bridge of its own.
    assert_eq!(bench.change(&[Change::CreateVlan(30)]), 0);
    let fabric = bench.switch.fabric();
    assert!(!fabric.can_filter && !fabric.bridges.contains_key(&BridgeKey::Filter));
}

#[test]
fn a_client_whose_vlans_the_kernel_does_not_take_is_served() {
    let (mut bench, clients) = Bench::with_vlans();
    let _filter = bench.plug_bridge_as(BridgeKey::Filter);
    assert_eq!(bench.change(&[untagged(6, 10), untagged(7, 10)]), 0);
    let old = bench.try_plug_as(6, OURS).unwrap();
    let (negotiation, _) = meet(&old);
    assert!(
        negotiation.peer_panel_address().is_none(),
        "one that does not tell its place is not offered the bridge"
    );
    let ours = bench.try_plug_as(7, "ours vdens=+1:1").unwrap();
    let own = PanelAddress {
        panel: 1,
        place: "port".into(),
    };
    let (mut negotiation, _) = meet_with(&ours, Some(own));
    assert!(negotiation.peer_panel_address().is_some());
    announce(&ours, &mut negotiation, Body::Plugged);
    bench.run();
    let said = ours.recv().unwrap();
    assert_eq!(
        negotiation.receive(&said),
        Received::Message(Some(Event::Declined))
    );
    clients[0].send(&frame(BROADCAST, 1, 60));
    bench.run();
    assert_eq!(ours.all().len(), 1);
    assert_eq!(bench.port(7).way, Way::UserSpace);
}

/// A frame from station number `n` to itself: it teaches the switch, and goes nowhere.
fn to_itself(mut bytes: Vec<u8>, n: u32) -> Vec<u8> {
    let mac = [&[2, 1], &n.to_be_bytes()[..]].concat();
    bytes[..6].copy_from_slice(&mac);
    bytes[6..12].copy_from_slice(&mac);
    bytes
}

#[test]
fn a_full_database_leaks_nothing() {
    let (mut bench, clients) = Bench::with_vlans();
    let now = Instant::now();
    let mut batch = Batch::new();
    let mut next = 0_u32;
    while bench.stations() < crate::switch::CAPACITY {
        batch.clear();
        for _ in 0..32 {
            let bytes = to_itself(frame(7, 1, 60), next);
            batch.rx().push(&bytes);
            next += 1;
        }
        let source = bench.switch.fabric().ports.of_number(1).unwrap().0;
        bench
            .switch
            .fabric()
            .forward(source, &batch.tx(0), None, now);
    }
    assert_eq!(bench.stations(), crate::switch::CAPACITY);
    for station in [8, 9] {
        clients[1].send(&frame(station, 10, 60));
        clients[2].send(&with_tag(&frame(station, 11, 60), 10));
        clients[2].send(&frame(station, 11, 60));
    }
    bench.run();
    let ten = with_tag(&frame(8, 10, 60), 10);
    let all = received(&clients);
    let counts: Vec<_> = all.iter().map(Vec::len).collect();
    assert_eq!(counts, [2, 0, 0, 4, 4]);
    assert!(all[3].contains(&ten));
}

#[test]
fn counters_count_the_frames_and_nothing_else() {
    let (mut bench, clients) = Bench::with_vlans();
    clients[0].send(&frame(BROADCAST, 1, 100));
    clients[3].send(&with_tag(&frame(BROADCAST, 4, 100), 20));
    bench.run();
    let ten = bench.vlan(10);
    assert_eq!((ten.untagged, ten.tagged), (vec![1, 2, 5], vec![4]));
    let of = |traffic: Traffic| {
        let Traffic {
            in_frames,
            in_bytes,
            out_frames,
            out_bytes,
        } = traffic;
        [in_frames, in_bytes, out_frames, out_bytes]
    };
    assert_eq!(of(ten.traffic), [1, 100, 3, 304]);
    assert_eq!(of(bench.vlan(20).traffic), [1, 104, 2, 204]);
    assert_eq!(of(bench.port(4).traffic), [1, 104, 1, 104]);
    assert_eq!(of(bench.port(5).traffic), [0, 0, 2, 204]);
    assert_eq!(bench.change(&[Change::ResetCounters(None)]), 0);
    assert_eq!(of(bench.vlan(10).traffic), [0; 4]);
    assert_eq!(of(bench.port(5).traffic), [0; 4]);
}

#[test]
fn what_waits_in_a_queue_counts_without_its_wrapping() {
    let mut bench = Bench::new("");
    let (sender, ours) = (bench.plug_ours(), bench.plug_ours());
    let whole = unfinished(tcp(BROADCAST, 1, 0, &payload(60_000)));
    let count = 30;
    for _ in 0..count {
        sender.send(&wrapped(TSO, &whole));
        bench.run();
    }
    let mut got = ours.all().len();
    while got < count {
        bench.run();
        got += ours.all().len();
    }
    let traffic = bench.port(2).traffic;
    assert_eq!(traffic.out_frames, count as u64);
    assert_eq!(traffic.out_bytes, (count * whole.len()) as u64);
}

#[test]
fn a_locked_port_is_for_one_station() {
    let mut bench = Bench::new("");
    let (a, b) = (bench.plug(), bench.plug());
    let lock = Change::Port(1, PortChange::Lock(Some(Mac(mac(1)))));
    assert_eq!(bench.change(&[lock]), 0);
    a.send(&frame(BROADCAST, 1, 60));
    a.send(&frame(BROADCAST, 2, 60));
    bench.run();
    assert_eq!((b.drain(), bench.dropped(1, "locked")), (1, 1));
    assert_eq!(bench.all_stations().len(), 1, "the other is not learned");
    assert_eq!(bench.change(&[Change::Port(1, PortChange::Lock(None))]), 0);
    a.send(&frame(BROADCAST, 2, 60));
    bench.run();
    assert_eq!(b.drain(), 1);
}

#[test]
fn a_mirror_shows_what_enters_and_leaves() {
    let (mut bench, clients) = Bench::with_vlans();
    let watcher = bench.plug();
    let mirror = |port, to| Change::Port(port, PortChange::Mirror(to));
    assert_eq!(bench.change(&[mirror(4, Some(6)), untagged(6, 20)]), 0);
    // Leaves by the trunk; enters there; neither.
    clients[0].send(&frame(BROADCAST, 1, 60));
    let private = with_tag(&frame(1, 4, 60), 10);
    clients[3].send(&private);
    clients[1].send(&frame(1, 2, 60));
    bench.run();
    let seen = [with_tag(&frame(BROADCAST, 1, 60), 10), private];
    assert_eq!(watcher.all(), seen);
    // The watcher's own frames do not come back.
    watcher.send(&frame(BROADCAST, 6, 60));
    bench.run();
    assert_eq!(watcher.drain(), 0);
    assert_eq!(clients[3].all().len(), 2);
    assert_eq!(bench.change(&[mirror(4, None)]), 0);
    clients[0].send(&frame(BROADCAST, 1, 60));
    bench.run();
    assert_eq!(watcher.drain(), 0);
    // The own side can watch, and be watched.
    let _ = received(&clients);
    assert_eq!(bench.change(&[mirror(1, Some(0)), mirror(0, Some(6))]), 0);
    bench.host.clear();
    clients[0].send(&frame(4, 1, 60));
    bench.run();
    assert_eq!((bench.host.len(), watcher.drain()), (1, 0));
}

#[test]
fn a_static_station_stays_at_its_port() {
    let mut bench = Bench::new("");
    let (a, b, c) = (bench.plug(), bench.plug(), bench.plug());
    let station = Change::AddStation {
        vlan: 0,
        mac: Mac(mac(9)),
        port: 2,
    };
    assert_eq!(bench.change(&[station]), 0);
    // Another sends in its name.
    c.send(&frame(1, 9, 60));
    bench.run();
    let _ = (a.drain(), b.drain());
    a.send(&frame(9, 1, 60));
    bench.run();
    assert_eq!((b.drain(), c.drain()), (1, 0));
    let known = bench.all_stations();
    assert_eq!((known[1].port, known[1].age), (Some(2), None));
    // It outlives the client, the flush and the time.
    drop(b);
    bench.run();
    assert_eq!(bench.change(&[Change::FlushStations]), 0);
    bench.host.clear();
    a.send(&frame(9, 1, 60));
    bench.run();
    assert_eq!((c.drain(), bench.host.len()), (0, 0), "it is nowhere");
    let b = bench.try_plug(2).unwrap();
    a.send(&frame(9, 1, 60));
    bench.run();
    assert_eq!((b.drain(), c.drain()), (1, 0));
    let remove = Change::RemoveStation {
        vlan: 0,
        mac: Mac(mac(9)),
    };
    assert_eq!(bench.change(std::slice::from_ref(&remove)), 0);
    assert_eq!(bench.change(&[remove]), Errno::ENXIO as i32);
    a.send(&frame(9, 1, 60));
    bench.run();
    assert_eq!((b.drain(), c.drain()), (1, 1));
}

#[test]
fn a_client_chooses_its_vlan_where_that_is_offered() {
    let mut bench = Bench::new("[vlans=10]");
    let other = bench.plug();
    let chooser = bench.try_plug_through("vlan10", 0, "test").unwrap();
    let report = bench.port(2);
    assert_eq!(report.untagged, Some(10));
    assert!(bench.vlan(10).is_offered);
    assert_eq!(bench.vlan(10).untagged, [2]);
    other.send(&frame(BROADCAST, 1, 60));
    bench.run();
    assert_eq!(chooser.drain(), 0);
    let second = bench.try_plug_through("vlan10", 7, "test").unwrap();
    chooser.send(&frame(BROADCAST, 2, 60));
    bench.run();
    assert_eq!((second.drain(), other.drain()), (1, 0));
    // A port that is in a VLAN is no port to choose one for.
    assert_eq!(bench.change(&[Change::CreateVlan(20), untagged(3, 20)]), 0);
    assert!(bench.try_plug_through("vlan10", 3, "test").is_none());
    let third = bench.try_plug_through("vlan10", 0, "test").unwrap();
    assert_eq!(bench.port(4).untagged, Some(10));
    // The owner moves a port; the other ones stay until the offer ends.
    assert_eq!(bench.change(&[untagged(4, 20)]), 0);
    assert_eq!(bench.port(4).untagged, Some(20));
    let busy = Errno::EADDRINUSE as i32;
    assert_eq!(bench.change(&[Change::RemoveVlan(10)]), busy);
    assert_eq!(bench.change(&[Change::OfferVlan(10, None)]), 0);
    assert!(!bench.path.join("vlan10").exists());
    assert_eq!(bench.ports(PortSelection::Used), [1, 4]);
    assert_eq!(bench.change(&[Change::RemoveVlan(10)]), 0);
    drop(third);
}

#[test]
fn an_offer_has_its_own_mode() {
    use std::os::unix::fs::PermissionsExt;
    let mut bench = Bench::new("");
    let mode = |bench: &Bench| {
        let found = bench.path.join("vlan10").metadata().unwrap();
        found.permissions().mode() & 0o777
    };
    let offer = |mode| Change::OfferVlan(10, Some(Access { mode }));
    assert_eq!(bench.change(&[Change::CreateVlan(10), offer(None)]), 0);
    assert_eq!(mode(&bench), 0o600);
    assert_eq!(bench.change(&[offer(Some(0o666))]), 0);
    assert_eq!(mode(&bench), 0o666);
    let client = bench.try_plug_through("vlan10", 0, "test").unwrap();
    assert_eq!(bench.change(&[offer(None)]), 0);
    assert_eq!(mode(&bench), 0o600);
    assert_eq!(bench.port(1).untagged, Some(10), "its client stays");
    drop(client);
    bench.run();
    let _plain = bench.plug();
    assert_eq!(bench.port(1).untagged, Some(0));
}

#[test]
fn a_client_that_may_not_have_its_port_any_more_loses_it() {
    let mut bench = Bench::new("");
    let _client = bench.plug();
    let own = nix::unistd::getuid().as_raw();
    let user = |user| Change::Port(1, PortChange::User(user));
    assert_eq!(bench.change(&[user(Some(own)), user(Some(own + 1))]), 0);
    // The switch's own user may always.
    assert_eq!(bench.port(1).client.as_deref(), Some("test"));
}

#[test]
fn the_vnl_says_what_the_own_side_is() {
    let mut bench = Bench::new("[vlan=10/trunk=20,30/vlans=20]");
    let client = bench.plug();
    let offered: Vec<bool> = [10, 20, 30].map(|v| bench.vlan(v).is_offered).into();
    assert_eq!(offered, [false, true, false]);
    assert_eq!(bench.change(&[untagged(1, 30)]), 0);
    assert_eq!(bench.send(&tagged(BROADCAST, 1, 30)), 0);
    assert_eq!(bench.send(&tagged(BROADCAST, 1, 40)), 1, "not a member");
    assert_eq!(client.drain(), 1);
    client.send(&frame(BROADCAST, 2, 60));
    bench.run();
    assert_eq!(bench.host, [with_tag(&frame(BROADCAST, 2, 60), 30)]);
    let own = bench.port(0);
    assert_eq!((own.untagged, own.tagged), (Some(10), vec![20, 30]));
    assert_eq!((own.traffic.in_frames, own.traffic.out_frames), (2, 1));
}

/// 4094 VLANs, all of them on 200 ports, and 100,000 stations.
#[test]
fn bounds() {
    let mut bench = Bench::new("");
    let clients: Vec<Client> = (0..200).map(|_| bench.plug()).collect();
    let changes: Vec<Change> = (1..=MAX_VLAN).map(Change::CreateVlan).collect();
    assert_eq!(bench.change(&changes), 0);
    for port in [1, 2] {
        let all: Vec<Change> = (1..=MAX_VLAN).map(|vlan| trunk(port, vlan)).collect();
        assert_eq!(bench.change(&all), 0);
    }
    let access: Vec<Change> = (3..=200).map(|n| untagged(n, n as u16)).collect();
    assert_eq!(bench.change(&access), 0);
    let mut from = 0;
    let mut seen = 0;
    loop {
        let page = bench.request(Request::Vlans { from }).vlans.unwrap();
        let json = serde_json::to_vec(&page).unwrap();
        assert!(json.len() < 200_000, "{}", json.len());
        seen += page.items.len();
        match page.from {
            Some(next) => from = next,
            None => break,
        }
    }
    assert_eq!(seen, usize::from(MAX_VLAN) + 1);
    let now = Instant::now();
    let fabric = bench.switch.fabric();
    let source = fabric.ports.of_number(1).unwrap().0;
    let mut batch = Batch::new();
    for n in 0..100_000_u32 {
        let bytes = tagged(1, 1, (n % u32::from(MAX_VLAN)) as u16 + 1);
        batch.rx().push(&to_itself(bytes, n));
        if batch.len() == 32 {
            fabric.forward(source, &batch.tx(0), None, now);
            batch.clear();
        }
    }
    assert_eq!(bench.stations(), 100_000);
    clients[1].send(&tagged(BROADCAST, 1, 77));
    bench.run();
    let got: Vec<usize> = (1..=200).filter(|n| clients[n - 1].drain() > 0).collect();
    assert_eq!(got, [1, 77]);
}
