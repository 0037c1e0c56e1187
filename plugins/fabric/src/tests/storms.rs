//! The storm guard.

use vdens_plugin_kit::VnetHeader;

use super::*;

/// Sends `count` frames, and returns how many reached `receiver`.
fn flood(
    bench: &mut Bench,
    sender: &Client,
    receiver: &Client,
    bytes: &[u8],
    count: usize,
) -> usize {
    let mut got = 0;
    for number in 0..count {
        sender.send(bytes);
        if number % 8 == 7 || number + 1 == count {
            bench.run();
            got += receiver.drain();
            sender.drain();
        }
    }
    got
}

#[test]
fn what_a_port_floods_is_limited_and_what_is_known_is_not() {
    // The limit makes a burst of one frame, and the test is not over within ten seconds.
    let mut bench = Bench::new("[storm=1]");
    let (a, b) = (bench.plug(), bench.plug());
    let hello = frame(BROADCAST, 2, 60);
    assert_eq!(flood(&mut bench, &b, &a, &hello, 1), 1);
    let unicast = frame(2, 1, 60);
    assert_eq!(flood(&mut bench, &a, &b, &unicast, 100), 100);
    let unknown = frame(9, 1, 60);
    let got = flood(&mut bench, &a, &b, &unknown, 100);
    assert!((1..50).contains(&got), "{got}");
    let (_, port) = bench.switch.fabric().ports.iter_mut().next().unwrap();
    assert_eq!(port.counters.refused.storm, 100 - got as u64);
}

#[test]
fn there_may_be_no_limit() {
    let mut bench = Bench::new("[storm=off]");
    let (a, b) = (bench.plug(), bench.plug());
    let hello = frame(BROADCAST, 1, 60);
    assert_eq!(flood(&mut bench, &a, &b, &hello, 30_000), 30_000);
}

#[test]
fn of_a_hub_only_broadcast_and_multicast_are_limited() {
    let mut bench = Bench::of(Kind::Hub, "[storm=1]");
    let (a, b) = (bench.plug(), bench.plug());
    let unicast = frame(2, 1, 60);
    assert_eq!(flood(&mut bench, &a, &b, &unicast, 100), 100);
    let got = flood(&mut bench, &a, &b, &frame(BROADCAST, 1, 60), 100);
    assert!((1..50).contains(&got), "{got}");
}

#[test]
fn a_storm_on_the_panel_takes_the_panel_away_until_it_is_over() {
    let mut bench = Bench::new("[storm=1]");
    let bridge = bench.plug_bridge();
    let client = bench.try_plug_as(0, OURS).unwrap();
    let (mut negotiation, _) = meet(&client);
    announce(&client, &mut negotiation, Body::Plugged);
    bench.run();
    // This one may have plugged in, too, and not come to say so yet.
    let slow = bench.try_plug_as(0, OURS).unwrap();
    let hello = frame(BROADCAST, 1, 60);
    let plain = [&VnetHeader::default().to_bytes()[..], &hello].concat();
    for _ in 0..100 {
        // The switch closes its end as soon as it sees the storm.
        if bridge.send(&plain).is_err() {
            break;
        }
        bench.run();
    }
    assert!(bench.switch.fabric().bridges.is_empty());
    assert_eq!(
        bench.switch.fabric().ports.iter_mut().count(),
        0,
        "it comes again"
    );
    drop(slow);
    let again = bench.try_plug_as(0, OURS).unwrap();
    let (negotiation, _) = meet(&again);
    assert!(negotiation.peer_panel_address().is_none());
    bench.switch.calm_down();
    bench.switch.recv(&mut Batch::new().rx()).unwrap();
    assert_eq!(
        bench.switch.fabric().ports.iter_mut().count(),
        0,
        "it comes again"
    );
}
