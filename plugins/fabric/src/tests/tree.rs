//! The spanning tree.

use std::os::unix::net::UnixDatagram;

use vdens_plugin_kit::VnetHeader;
use vdens_rstp::{Bpdu, RstRole};
use vdens_switch_control::{
    Change, PAGE, PortChange, PortSelection, Request, StpChange, StpReport, StpState,
};

use super::*;

/// The BPDUs among frames, and the other frames.
fn sort(frames: Vec<Vec<u8>>) -> (Vec<Bpdu>, Vec<Vec<u8>>) {
    let is_one = |frame: &Vec<u8>| Bpdu::decode(frame).is_ok();
    let (bpdus, others) = frames.into_iter().partition::<Vec<_>, _>(is_one);
    let bpdus = bpdus.iter().filter_map(|frame| Bpdu::decode(frame).ok());
    (bpdus.collect(), others)
}

impl Client {
    /// All that has come.
    fn received(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.recv()).collect()
    }
}

impl Bench {
    fn stp(&mut self) -> StpReport {
        self.request(Request::Stp { from: 0 }).stp.unwrap()
    }

    fn states(&mut self) -> Vec<(u32, StpState)> {
        let ports = self.stp().ports;
        ports.iter().map(|port| (port.port, port.state)).collect()
    }

    /// Carries frames between clients of two switches until they have nothing more to say.
    fn cable(&mut self, other: &mut Bench, ends: &mut [(Client, Client)]) -> usize {
        let mut carried = 0;
        for _ in 0..50 {
            for (mine, theirs) in &mut *ends {
                for frame in mine.received() {
                    theirs.send(&frame);
                    carried += 1;
                }
                for frame in theirs.received() {
                    mine.send(&frame);
                    carried += 1;
                }
            }
            self.run();
            other.run();
        }
        carried
    }
}

#[test]
fn bpdus_end_at_a_switch_with_a_tree_and_pass_one_without() {
    let mut bench = Bench::new("");
    let (one, two) = (bench.plug(), bench.plug());
    let bpdu = Bpdu::Tcn.encode([2; 6]);
    one.send(&bpdu);
    bench.run();
    assert_eq!(two.received(), [bpdu.to_vec()]);
    assert_eq!(bench.host.drain(..).len(), 1);
    assert_eq!(bench.change(&[Change::Stp(StpChange::Enabled(true))]), 0);
    bench.run();
    let (bpdus, others) = sort(two.received());
    assert!(others.is_empty() && !bpdus.is_empty());
    one.send(&bpdu);
    bench.run();
    let is_tcn = |frames: Vec<Vec<u8>>| frames.contains(&bpdu.to_vec());
    assert!(!is_tcn(two.received()) && !is_tcn(bench.host.clone()));
    // Those for the host wait for the timer.
    while bench.host.is_empty() {
        thread::sleep(Duration::from_millis(1));
        bench.run();
    }
    let (bpdus, _) = sort(std::mem::take(&mut bench.host));
    let is_designated =
        |bpdu: &Bpdu| matches!(bpdu, Bpdu::Rst { flags, .. } if flags.role == RstRole::Designated);
    assert!(bpdus.iter().all(is_designated) && !bpdus.is_empty());
    let forwarding = [0, 1, 2].map(|port| (port, StpState::Forwarding));
    assert_eq!(bench.states(), forwarding);
    // Data passes: these are edge ports, all but the one that had a BPDU.
    two.send(&frame(BROADCAST, 2, 60));
    bench.run();
    assert!(sort(one.received()).1.contains(&frame(BROADCAST, 2, 60)));
    assert_eq!(bench.change(&[Change::Stp(StpChange::Enabled(false))]), 0);
    one.send(&bpdu);
    bench.run();
    assert!(is_tcn(two.received()));
}

#[test]
fn a_loop_of_two_switches_is_cut() {
    let mut root = Bench::new("[stp/priority=4096]");
    let mut other = Bench::new("[stp]");
    let mut ends = [(root.plug(), other.plug()), (root.plug(), other.plug())];
    root.cable(&mut other, &mut ends);
    let report = other.stp();
    assert_eq!(report.root.0, 4096);
    assert_eq!((report.root_port, report.root_cost), (Some(1), 20_000));
    let forwards = [(0, StpState::Forwarding), (1, StpState::Forwarding)];
    assert_eq!(other.states()[..2], forwards);
    assert_eq!(other.states()[2], (2, StpState::Discarding));
    assert!(!report.ports[1].edge && report.ports[0].edge);

    // A frame comes once, and does not circulate.
    root.send(&frame(BROADCAST, 9, 60));
    let carried = root.cable(&mut other, &mut ends);
    assert_eq!(sort(std::mem::take(&mut other.host)).1.len(), 1);
    assert!(carried < 100, "{carried}");

    // The cable that is in use goes, and the other takes over at once.
    drop(std::mem::replace(&mut ends[0], (root.plug(), other.plug())));
    root.cable(&mut other, &mut ends);
    root.send(&frame(BROADCAST, 9, 60));
    root.cable(&mut other, &mut ends);
    assert_eq!(sort(std::mem::take(&mut other.host)).1.len(), 1);
    assert!(other.stp().root_port.is_some());
}

#[test]
fn settings_of_ports_reach_the_tree() {
    let mut bench = Bench::new("[stp]");
    let _client = bench.plug();
    let changes = [
        Change::Port(1, PortChange::Cost(77)),
        Change::Port(1, PortChange::Edge(false)),
        Change::Port(0, PortChange::Cost(5)),
        Change::Port(0, PortChange::Priority(16)),
        Change::Stp(StpChange::Priority(0)),
    ];
    assert_eq!(bench.change(&changes), 0);
    let report = bench.stp();
    assert_eq!((report.ports[0].cost, report.ports[1].cost), (5, 77));
    assert_eq!(
        (report.ports[0].priority, report.ports[1].priority),
        (16, 128)
    );
    assert!(report.ports[0].edge && !report.ports[1].edge);
    assert_eq!(report.ports[1].state, StpState::Discarding);
    assert_eq!((report.bridge.0, report.root.0), (0, 0));
}

#[test]
fn an_idle_client_gets_bpdus_before_what_waits() {
    let mut bench = Bench::new("[stp/storm=off]");
    let client = bench.plug();
    client.received();
    // More than its socket takes.
    for _ in 0..600 {
        bench.send(&frame(BROADCAST, 9, 1000));
    }
    bench.run();
    assert_eq!(bench.change(&[Change::Stp(StpChange::Priority(0))]), 0);
    let mut all = Vec::new();
    for _ in 0..600 {
        all.extend(client.received());
        bench.run();
    }
    let at = all.iter().position(|frame| Bpdu::decode(frame).is_ok());
    assert!(at.is_some_and(|at| at < 500), "{at:?} of {}", all.len());
    assert_eq!(all.len(), 601);
}

/// All frames that have come out of a bridge's tap.
fn from_tap(bridge: &UnixDatagram) -> Vec<Vec<u8>> {
    let mut bytes = [0; 10_000];
    let mut frames = Vec::new();
    while let Ok(length) = bridge.recv(&mut bytes) {
        frames.push(bytes[VNET_HEADER_LEN..length].to_vec());
    }
    frames
}

/// Sends a frame to the switch from a bridge on the panel.
fn into_tap(bridge: &UnixDatagram, frame: &[u8]) {
    let header = VnetHeader::default().to_bytes();
    let frame = [&header[..], frame].concat();
    assert_eq!(bridge.send(&frame).unwrap(), frame.len());
}

impl Bench {
    /// A client of ours whose interface is on the bridge.
    fn plug_on_panel(&mut self) -> Client {
        let client = self.try_plug_as(0, OURS).unwrap();
        let (mut negotiation, _) = meet(&client);
        assert!(negotiation.peer_panel_address().is_some());
        announce(&client, &mut negotiation, Body::Plugged);
        self.run();
        client
    }

    /// Whether a client that describes itself so is offered the bridge.
    fn offers_panel(&mut self, description: &str) -> bool {
        let client = self.try_plug_as(0, description).unwrap();
        let (negotiation, _) = meet(&client);
        negotiation.peer_panel_address().is_some()
    }

    fn texts(&mut self) -> Vec<String> {
        let events = self.request(Request::Events { from: 0 }).events.unwrap();
        events.items.into_iter().map(|event| event.text).collect()
    }
}

#[test]
fn the_panel_is_an_edge_of_the_tree() {
    let mut bench = Bench::new("[stp]");
    let bridge = bench.plug_bridge();
    let (bpdus, _) = sort(from_tap(&bridge));
    assert_eq!(bpdus.len(), 1, "the panel hears of the tree at once");
    let other = bench.plug();
    let client = bench.plug_on_panel();
    assert_eq!(
        sort(from_tap(&bridge)).0.len(),
        1,
        "so does who comes there"
    );
    client.received();
    let forwarding = [0, 1, 2].map(|port| (port, StpState::Forwarding));
    assert_eq!(bench.states(), forwarding);
    assert!(bench.stp().ports.iter().all(|port| port.edge));
    into_tap(&bridge, &frame(BROADCAST, 1, 60));
    bench.run();
    assert!(sort(other.received()).1.contains(&frame(BROADCAST, 1, 60)));
    other.send(&frame(1, 2, 60));
    bench.run();
    assert_eq!(sort(from_tap(&bridge)).1, [frame(1, 2, 60)]);
    assert_eq!(client.received(), [[0; 0]; 0], "it is no port of its own");
}

#[test]
fn a_bpdu_from_the_panel_moves_all_to_user_space_and_back_who_sends_none() {
    let mut bench = Bench::new("[stp]");
    let bridge = bench.plug_bridge();
    let _clients = [bench.plug_on_panel(), bench.plug_on_panel()];
    into_tap(&bridge, &Bpdu::Tcn.encode([2; 6]));
    bench.run();
    assert!(bench.switch.fabric().bridges.is_empty());
    assert_eq!(bench.states(), [(0, StpState::Forwarding)]);
    let given_up = "the panel had a BPDU and is given up for 36 s";
    assert!(bench.texts().iter().any(|text| text == given_up));
    // They come again, and are not offered the panel. One of them leads to a bridge.
    let [edge, other] = [(); 2].map(|()| bench.try_plug_as(0, OURS).unwrap());
    assert!(meet(&edge).0.peer_panel_address().is_none());
    other.send(&Bpdu::Tcn.encode([2; 6]));
    bench.run();
    let state = |edge| (StpState::Forwarding, edge);
    let ports = bench.stp().ports;
    assert_eq!(
        ports
            .iter()
            .map(|port| (port.state, port.edge))
            .collect::<Vec<_>>()[..2],
        [state(true); 2]
    );
    assert!(!ports[2].edge);
    bench
        .switch
        .tick_tree(Instant::now() + Duration::from_secs(35));
    bench.switch.recv(&mut Batch::new().rx()).unwrap();
    assert_eq!(
        bench.states().len(),
        3,
        "there may still be a bridge behind either"
    );
    bench
        .switch
        .tick_tree(Instant::now() + Duration::from_secs(37));
    bench.switch.recv(&mut Batch::new().rx()).unwrap();
    let left: Vec<u32> = bench.states().iter().map(|(port, _)| *port).collect();
    assert_eq!(left, [0, 2], "the first comes again");
}

#[test]
fn the_panel_is_for_edges_only() {
    let mut bench = Bench::new("[stp]");
    let bridge = bench.plug_bridge();
    let plug = "a plug vdens=04026532345:1";
    assert!(bench.offers_panel(OURS) && !bench.offers_panel(plug));
    let _client = bench.plug_on_panel();
    from_tap(&bridge);
    let number = bench.states().last().unwrap().0;
    let no_edge = Change::Port(number, PortChange::Edge(false));
    assert_eq!(bench.change(&[no_edge]), 0);
    bench.run();
    assert_eq!(bench.states().len(), 1, "its port is closed");
    let again = bench.try_plug_as(number, OURS).unwrap();
    assert!(meet(&again).0.peer_panel_address().is_none());
    assert!(!bench.switch.fabric().bridges.is_empty());
}

#[test]
fn what_is_set_of_ports_leaves_the_panel_guarded() {
    let mut bench = Bench::new("[stp]");
    let bridge = bench.plug_bridge();
    let _client = bench.plug_on_panel();
    assert_eq!(bench.change(&[Change::Port(0, PortChange::Cost(5))]), 0);
    into_tap(&bridge, &Bpdu::Tcn.encode([2; 6]));
    bench.run();
    assert!(bench.switch.fabric().bridges.is_empty());
}

#[test]
fn a_guarded_port_is_disabled_by_a_bpdu_until_it_is_set_again() {
    let mut bench = Bench::new("[stp]");
    let (client, other) = (bench.plug(), bench.plug());
    let guard = [Change::Port(1, PortChange::Guard(true))];
    assert_eq!(bench.change(&guard), 0);
    other.received();
    client.send(&frame(BROADCAST, 1, 60));
    bench.run();
    assert_eq!(sort(other.received()).1.len(), 1);
    client.send(&Bpdu::Tcn.encode([2; 6]));
    bench.run();
    client.send(&frame(BROADCAST, 1, 60));
    bench.run();
    assert_eq!(sort(other.received()).1.len(), 0);
    let port = bench.stp().ports[1].clone();
    assert!(port.guarded && port.state == StpState::Discarding);
    let disabled = "port 1 had a BPDU and is disabled";
    assert!(bench.texts().iter().any(|text| text == disabled));
    let selection = PortSelection::Used;
    let ports = bench.request(Request::Ports { from: 1, selection }).ports;
    assert_eq!(ports.unwrap().items[0].dropped["stp"], 1);
    assert_eq!(bench.change(&guard), 0);
    bench.run();
    let is_used = |bench: &mut Bench| {
        let port = bench.stp().ports[1].clone();
        !port.guarded && port.state == StpState::Forwarding
    };
    assert!(is_used(&mut bench));
    client.send(&Bpdu::Tcn.encode([2; 6]));
    bench.run();
    assert!(!is_used(&mut bench));
    drop(client);
    bench.run();
    let _again = bench.try_plug(1).unwrap();
    assert!(is_used(&mut bench));
}

#[test]
fn a_long_list_of_ports_comes_in_parts() {
    let mut bench = Bench::new("[stp]");
    let clients: Vec<Client> = (0..PAGE + 9).map(|_| bench.plug()).collect();
    let first = bench.stp();
    let numbers: Vec<u32> = first.ports.iter().map(|port| port.port).collect();
    assert_eq!(numbers, (0..PAGE as u32).collect::<Vec<_>>());
    let from = first.from.unwrap();
    let rest = bench.request(Request::Stp { from }).stp.unwrap();
    assert_eq!((rest.ports.len(), rest.from), (10, None));
    drop(clients);
}

#[test]
fn a_tree_begins_and_ends_with_interfaces_on_the_panel() {
    let mut bench = Bench::new("");
    let bridge = bench.plug_bridge();
    let _client = bench.plug_on_panel();
    let plug = bench.try_plug_as(0, "a plug vdens=01:1").unwrap();
    assert!(meet(&plug).0.peer_panel_address().is_some());
    assert_eq!(bench.change(&[Change::Stp(StpChange::Enabled(true))]), 0);
    bench.run();
    assert_eq!(sort(from_tap(&bridge)).0.len(), 1);
    let left = [0, 1].map(|port| (port, StpState::Forwarding));
    assert_eq!(bench.states(), left, "the plug comes again, in user space");
    assert_eq!(bench.change(&[Change::Stp(StpChange::Enabled(false))]), 0);
    into_tap(&bridge, &Bpdu::Tcn.encode([2; 6]));
    bench.run();
    assert!(
        !bench.switch.fabric().bridges.is_empty(),
        "it is a frame as any"
    );
}
