//! Bridges that are joined by virtual wires, in virtual time.

mod net;

use std::time::Duration;

use crate::roles::{PortState, Role};
use crate::settings::{PortSettings, Settings};
use crate::{
    Action, Bpdu, Bridge, BridgeId, Cause, PortId, Received, RstFlags, RstRole, Time, Times, Vector,
};
use net::{Net, mac};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// A port as between two switches: no edge until it is found to be one.
fn trunk() -> PortSettings {
    PortSettings {
        admin_edge: false,
        ..PortSettings::default()
    }
}

/// Three bridges, each joined to both others; the first is the root, and the second comes before
/// the third.
fn triangle(settings: &PortSettings) -> Net {
    let mut net = Net::new(3);
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        net.join(a, b, settings);
    }
    net
}

fn role(net: &Net, bridge: usize, port: u16) -> Role {
    net.bridges[bridge].port(port).unwrap().role
}

#[test]
fn the_smallest_identifier_is_the_root() {
    let mut net = triangle(&trunk());
    net.run(10 * S);
    net.check_tree().unwrap();
    for bridge in &net.bridges {
        assert_eq!(bridge.root().root, BridgeId::new(0x8000, mac(0)));
    }
    assert_eq!(net.bridges[0].root().port, None);
    assert_eq!(net.bridges[1].root().cost, 20_000);
    // The ports are numbered in the order in which the wires come.
    assert_eq!(role(&net, 1, 1), Role::Designated);
    assert_eq!(role(&net, 2, 0), Role::Alternate);
    assert_eq!(role(&net, 2, 1), Role::Root);

    let better = Settings {
        priority: 4096,
        ..Settings::new(mac(2))
    };
    net.set(2, better);
    net.run(10 * S);
    net.check_tree().unwrap();
    assert_eq!(net.bridges[0].root().root, BridgeId::new(4096, mac(2)));
    assert_eq!(role(&net, 1, 0), Role::Alternate);
}

#[test]
fn the_cheaper_way_wins() {
    let mut net = triangle(&trunk());
    net.run(10 * S);
    let cheap = PortSettings {
        cost: 2000,
        ..trunk()
    };
    // From the third bridge over the second: 2,000 + 2,000 is less than 20,000.
    for (bridge, port) in [(1, 0), (2, 0)] {
        net.bridges[bridge].set_port(port, cheap.clone()).unwrap();
        net.perform(bridge);
    }
    net.run(S);
    net.check_tree().unwrap();
    assert_eq!(net.bridges[2].root().cost, 4000);
    assert_eq!(role(&net, 2, 0), Role::Root);
    assert_eq!(role(&net, 2, 1), Role::Alternate);
}

#[test]
fn a_loop_heals_in_milliseconds_when_a_link_is_cut() {
    for settings in [trunk(), PortSettings::default()] {
        let mut net = triangle(&settings);
        net.run(10 * S);
        // Between the root and the third bridge.
        net.cut(2);
        net.run(20 * MS);
        net.check_tree().unwrap();
        assert_eq!(role(&net, 2, 0), Role::Root);
        // And back, and the other one.
        net.mend(2);
        net.run(S);
        net.check_tree().unwrap();
        net.cut(0);
        net.run(20 * MS);
        net.check_tree().unwrap();
    }
}

#[test]
fn a_new_link_forwards_after_a_handshake() {
    let mut net = Net::new(2);
    net.join(0, 1, &trunk());
    net.run(20 * MS);
    net.check_tree().unwrap();
    for bridge in [0, 1] {
        let port = net.bridges[bridge].port(0).unwrap();
        assert_eq!(port.state, PortState::Forwarding);
        assert!(!port.is_edge);
    }
}

#[test]
fn an_edge_port_forwards_at_once_and_loses_that_with_a_bpdu() {
    let mut net = Net::new(2);
    net.add(0, 7, &PortSettings::default());
    let status = net.bridges[0].port(7).unwrap();
    assert!(status.is_edge && status.state == PortState::Forwarding);
    assert_eq!(net.bridges[0].root().changes, 0, "no topology change");
    // Two cables at once: a loop, whose ports are edge ports at first.
    net.join(0, 1, &PortSettings::default());
    net.join(0, 1, &PortSettings::default());
    net.run(10 * MS);
    net.check_tree().unwrap();
    for (bridge, port) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        assert!(!net.bridges[bridge].port(port).unwrap().is_edge);
    }
    assert!(net.bridges[0].port(7).unwrap().is_edge);
}

#[test]
fn a_port_without_a_bridge_becomes_an_edge_port_in_three_seconds() {
    let mut net = Net::new(1);
    net.add(0, 1, &trunk());
    let never = PortSettings {
        auto_edge: false,
        ..trunk()
    };
    net.add(0, 2, &never);
    net.run(2 * S);
    assert_eq!(net.state((0, 1)), PortState::Discarding);
    net.run(2 * S);
    assert_eq!(net.state((0, 1)), PortState::Forwarding);
    assert_eq!(net.state((0, 2)), PortState::Discarding);
    net.run(40 * S);
    assert_eq!(net.state((0, 2)), PortState::Forwarding, "by time");
}

#[test]
fn a_silent_neighbour_is_forgotten_after_three_hellos() {
    let mut net = triangle(&trunk());
    net.run(10 * S);
    // The link loses all frames and stays up.
    net.mute(2);
    net.run(4 * S);
    assert_eq!(role(&net, 2, 0), Role::Alternate);
    net.run(3 * S);
    assert_eq!(role(&net, 2, 0), Role::Root);
    assert_eq!(net.state((2, 0)), PortState::Forwarding);
}

#[test]
fn a_dead_root_is_replaced() {
    let mut net = triangle(&trunk());
    net.run(10 * S);
    net.cut(0);
    net.cut(2);
    net.run(S);
    net.check_tree().unwrap();
    let second = BridgeId::new(0x8000, mac(1));
    assert_eq!(net.bridges[2].root().root, second);
}

#[test]
fn topology_changes_flush_stations() {
    let mut net = triangle(&trunk());
    net.add(0, 9, &PortSettings::default());
    net.run(10 * S);
    net.flushed.clear();
    net.logged.clear();
    net.run(10 * S);
    assert!(net.flushed.is_empty(), "nothing happens");
    net.cut(2);
    net.run(S);
    // Both ends of the wire, and the way to the third bridge that led over the first. An edge
    // port keeps its stations.
    net.flushed.sort_unstable();
    assert_eq!(net.flushed, [(0, 1), (1, 0), (2, 1)]);
    let cause = |bridge| net.logged.iter().find(|(at, _)| *at == bridge);
    assert_eq!(cause(2), Some(&(2, Cause::Detected)));
    assert_eq!(cause(0), Some(&(0, Cause::Notified)));
    let changes = net.bridges[0].root().changes;
    net.run(20 * S);
    assert_eq!(net.bridges[0].root().changes, changes, "counted once");
}

/// What a bridge of the older protocol sends as the root.
fn old_config(priority: u16) -> Bpdu {
    let root = BridgeId::new(priority, mac(99));
    Bpdu::Config {
        topology_change: false,
        acknowledgment: false,
        vector: Vector {
            root,
            cost: 0,
            bridge: root,
            port: PortId::new(128, 1),
        },
        times: Times {
            message_age: Time(0),
            max_age: Time::from_secs(20),
            hello: Time::from_secs(2),
            forward_delay: Time::from_secs(15),
        },
    }
}

/// The BPDUs that the bridge's port has sent since the last call.
fn sent(net: &mut Net, bridge: usize, port: u16) -> Vec<Bpdu> {
    let sent = std::mem::take(&mut net.sent);
    let of_port = sent.into_iter().filter(|(end, _)| *end == (bridge, port));
    of_port
        .map(|(_, frame)| Bpdu::decode(&frame).unwrap())
        .collect()
}

#[test]
fn migration_to_the_older_protocol_and_back() {
    let mut net = Net::new(2);
    net.add(0, 3, &trunk());
    let is_rst = |bpdu: &Bpdu| matches!(bpdu, Bpdu::Rst { .. });
    for _ in 0..6 {
        net.hear((0, 3), &old_config(0xf000));
        net.run(2 * S);
    }
    sent(&mut net, 0, 3);
    net.run(4 * S);
    let configs = sent(&mut net, 0, 3);
    assert!(configs.len() >= 2 && !configs.iter().any(is_rst));
    assert!(net.bridges[0].port(3).unwrap().is_legacy);
    // An inferior bridge does not dispute: both wait for their time.
    assert_eq!(role(&net, 0, 3), Role::Designated);
    net.run(40 * S);
    assert_eq!(net.state((0, 3)), PortState::Forwarding);

    // The neighbour is now one that speaks the newer protocol.
    let foreign = {
        let mut other = Bridge::new(Settings::new(mac(50)), Duration::ZERO).unwrap();
        other.add_port(1, trunk()).unwrap();
        let actions = other.take_actions();
        let frame = actions.into_iter().find_map(|action| match action {
            Action::Transmit { frame, .. } => Some(frame),
            _ => None,
        });
        Bpdu::decode(&frame.unwrap()).unwrap()
    };
    sent(&mut net, 0, 3);
    net.hear((0, 3), &foreign);
    assert!(!net.bridges[0].port(3).unwrap().is_legacy);
    net.run(3 * S);
    assert!(sent(&mut net, 0, 3).iter().all(is_rst));
}

#[test]
fn an_older_root_is_followed_and_notified_of_changes() {
    let mut net = Net::new(2);
    net.join(0, 1, &trunk());
    net.add(0, 3, &trunk());
    for _ in 0..20 {
        net.hear((0, 3), &old_config(0));
        net.run(2 * S);
    }
    assert_eq!(role(&net, 0, 3), Role::Root);
    assert_eq!(net.state((0, 3)), PortState::Forwarding);
    assert_eq!(net.bridges[1].root().root, BridgeId::new(0, mac(99)));
    net.run(2 * S);
    sent(&mut net, 0, 3);
    net.cut(0);
    net.hear((0, 3), &old_config(0));
    net.mend(0);
    net.run(3 * S);
    assert!(sent(&mut net, 0, 3).contains(&Bpdu::Tcn));
    let Bpdu::Config { vector, times, .. } = old_config(0) else {
        unreachable!()
    };
    // Once it is acknowledged there is no more to say.
    net.hear(
        (0, 3),
        &Bpdu::Config {
            topology_change: true,
            acknowledgment: true,
            vector,
            times,
        },
    );
    net.run(4 * S);
    assert_eq!(sent(&mut net, 0, 3), []);
}

#[test]
fn a_notification_is_acknowledged() {
    let mut net = Net::new(1);
    net.add(0, 3, &trunk());
    for _ in 0..20 {
        net.hear((0, 3), &old_config(0xf000));
        net.run(2 * S);
    }
    sent(&mut net, 0, 3);
    net.hear((0, 3), &Bpdu::Tcn);
    net.run(3 * S);
    let is_ack = |bpdu: &Bpdu| {
        let wanted = (true, true);
        matches!(bpdu, Bpdu::Config { topology_change, acknowledgment, .. }
            if (*topology_change, *acknowledgment) == wanted)
    };
    assert_eq!(sent(&mut net, 0, 3).iter().filter(|b| is_ack(b)).count(), 1);
}

/// The neighbour's frames arrive and ours do not: without the dispute both ends would forward.
#[test]
fn a_one_way_link_does_not_loop() {
    let mut net = triangle(&trunk());
    net.run(10 * S);
    net.mute_towards(1, (2, 0));
    for _ in 0..20 {
        net.run(S);
        let both = [(1, 1), (2, 0)].map(|end| net.state(end));
        assert_ne!(both, [PortState::Forwarding; 2]);
    }
    net.unmute(1);
    net.run(10 * S);
    net.check_tree().unwrap();
}

/// A cable whose both ends are in one port.
#[test]
fn a_port_that_hears_itself_does_not_forward() {
    let mut net = Net::new(1);
    net.add(0, 3, &PortSettings::default());
    for _ in 0..60 {
        for bpdu in sent(&mut net, 0, 3) {
            net.hear((0, 3), &bpdu);
            assert_eq!(net.state((0, 3)), PortState::Discarding);
        }
        net.run(S);
    }
}

#[test]
fn two_ports_on_one_network_are_designated_and_backup() {
    let mut net = Net::new(1);
    net.add(0, 1, &trunk());
    net.add(0, 2, &trunk());
    for _ in 0..10 {
        for (from, to) in [(1, 2), (2, 1)] {
            for (end, frame) in net.sent.clone() {
                if end == (0, from) {
                    net.hear((0, to), &Bpdu::decode(&frame).unwrap());
                }
            }
        }
        net.sent.clear();
        net.run(S);
    }
    assert_eq!(role(&net, 0, 1), Role::Designated);
    assert_eq!(role(&net, 0, 2), Role::Backup);
    assert_eq!(net.state((0, 2)), PortState::Discarding);
}

#[test]
fn a_guard_disables_a_port_until_its_link_comes_again() {
    let mut net = Net::new(1);
    let guarded = PortSettings {
        guard: true,
        ..PortSettings::default()
    };
    net.add(0, 4, &guarded);
    assert_eq!(net.state((0, 4)), PortState::Forwarding);
    net.hear((0, 4), &old_config(0));
    assert_eq!(net.state((0, 4)), PortState::Discarding);
    assert!(net.bridges[0].port(4).unwrap().is_guarded);
    assert_eq!(role(&net, 0, 4), Role::Disabled);
    assert_eq!(net.bridges[0].root().port, None);
    net.run(60 * S);
    assert_eq!(net.state((0, 4)), PortState::Discarding);
    net.bridges[0].set_link(4, false);
    net.bridges[0].set_link(4, true);
    net.perform(0);
    assert_eq!(net.state((0, 4)), PortState::Forwarding);
}

/// A neighbour that sends as fast as it can, each time something else.
#[test]
fn a_neighbour_that_floods_makes_no_flood() {
    let mut bridge = Bridge::new(Settings::new(mac(5)), Duration::ZERO).unwrap();
    for number in 0..200 {
        bridge.add_port(number, trunk()).unwrap();
    }
    bridge.take_actions();
    let (mut transmitted, mut handled) = (0, 0);
    for n in 0..20_000_u64 {
        bridge.tick(Duration::from_micros(500) * n as u32);
        let priority = if n % 2 == 0 { 0 } else { 4096 };
        let frame = old_config(priority).encode(mac(99));
        handled += u32::from(bridge.receive(7, &frame) == Received::Handled);
        let of_one = |action: &Action| matches!(action, Action::Transmit { port: 11, .. });
        transmitted += bridge.take_actions().iter().filter(|a| of_one(a)).count();
    }
    // Ten seconds: six at once, and one more for each second.
    assert!((6..=17).contains(&transmitted), "{transmitted}");
    assert_eq!(handled, 64 * 10);
    assert_eq!(bridge.port(7).unwrap().counters.flooded, 20_000 - 64 * 10);
}

#[test]
fn two_hundred_ports_in_a_loop() {
    let mut net = Net::new(2);
    for _ in 0..200 {
        net.join(0, 1, &PortSettings::default());
    }
    net.run(20 * MS);
    net.check_tree().unwrap();
    net.cut(0);
    net.run(20 * MS);
    net.check_tree().unwrap();
}

#[test]
fn a_process_that_was_stopped_does_not_forget_its_neighbours() {
    let mut net = Net::new(2);
    net.join(0, 1, &trunk());
    net.run(10 * S);
    let later = net.now + 100 * S;
    net.bridges[1].tick(later);
    assert_eq!(role(&net, 1, 0), Role::Root);
    assert_eq!(net.bridges[1].next_deadline(), later + S);
}

/// Whatever the links do, there is one tree and no loop again, mostly within a second. If bridges
/// lose their root, what others still say of it has to age first: a second for each bridge that it
/// passes, up to the maximum age.
#[test]
fn random_networks_become_trees() {
    let (mut all, mut slow) = (0, 0);
    for seed in 0..150 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut net = Net::new(10);
        let settings = |random: &mut fastrand::Rng| PortSettings {
            admin_edge: random.bool(),
            cost: *random.choice(&[2000, 20_000, 20_000]).unwrap_or(&1),
            ..PortSettings::default()
        };
        for bridge in 1..10 {
            let settings = settings(&mut random);
            net.join(bridge, random.usize(..bridge), &settings);
        }
        for _ in 0..random.usize(..12) {
            let (a, b) = (random.usize(..10), random.usize(..10));
            let settings = settings(&mut random);
            if a != b {
                net.join(a, b, &settings);
            }
        }
        for _ in 0..8 {
            for _ in 0..random.usize(1..4) {
                let wire = random.usize(..net.wires.len());
                match random.bool() {
                    true => net.cut(wire),
                    false => net.mend(wire),
                }
                net.run(MS * random.u32(0..3000));
            }
            let start = net.now;
            let mut last = Duration::ZERO;
            while net.now < start + 40 * S {
                if net.check_tree().is_err() {
                    last = net.now - start;
                }
                net.run(50 * MS);
            }
            all += 1;
            slow += u32::from(last > S);
            assert!(last < 30 * S, "seed {seed}: {last:?}");
        }
    }
    assert!(slow * 20 < all, "{slow} of {all}");
}

/// The root becomes a worse one. Then the agreement of a neighbour further on counts no more, and
/// the port to it discards before this bridge agrees.
#[test]
fn a_bridge_agrees_when_its_ports_are_in_sync() {
    let mut net = Net::new(2);
    net.join(0, 1, &trunk());
    net.add(0, 3, &trunk());
    let sender = BridgeId::new(0x1000, mac(98));
    let times = Times {
        message_age: Time(0),
        max_age: Time::from_secs(20),
        hello: Time::from_secs(2),
        forward_delay: Time::from_secs(15),
    };
    let proposal = |root| Bpdu::Rst {
        flags: RstFlags {
            topology_change: false,
            proposal: true,
            role: RstRole::Designated,
            learning: false,
            forwarding: false,
            agreement: false,
        },
        vector: Vector {
            root: BridgeId::new(root, mac(99)),
            cost: 20_000,
            bridge: sender,
            port: PortId::new(128, 1),
        },
        times,
    };
    net.hear((0, 3), &proposal(0));
    net.run(S);
    assert_eq!(net.state((0, 0)), PortState::Forwarding);
    sent(&mut net, 0, 3);
    net.hear((0, 3), &proposal(0x1000));
    assert_eq!(net.state((0, 0)), PortState::Discarding);
    let agrees = |bpdu: &Bpdu| matches!(bpdu, Bpdu::Rst { flags, .. } if flags.agreement);
    assert!(sent(&mut net, 0, 3).iter().any(agrees));
    // The neighbour further on agrees with that, too.
    net.run(10 * MS);
    assert_eq!(net.state((0, 0)), PortState::Forwarding);
}

/// A handshake lets no port forward before those behind it are in sync. So networks that are joined
/// never have a loop, not even for a millisecond.
#[test]
fn links_that_come_up_never_make_a_loop() {
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut net = Net::new(8);
        for _ in 0..16 {
            let (a, b) = (random.usize(..8), random.usize(..8));
            if a != b {
                net.join(a, b, &trunk());
            }
            for _ in 0..random.usize(..40) {
                net.run(MS);
                assert!(!net.has_loop(), "seed {seed} at {:?}", net.now);
            }
        }
        net.run(30 * S);
        net.check_tree().unwrap();
    }
}

#[test]
fn settings_that_are_not_allowed_change_nothing() {
    let bad = Settings {
        priority: 1,
        ..Settings::new(mac(1))
    };
    assert!(Bridge::new(bad.clone(), Duration::ZERO).is_err());
    let mut bridge = Bridge::new(Settings::new(mac(1)), Duration::ZERO).unwrap();
    assert!(bridge.set(bad).is_err());
    assert_eq!(bridge.settings().priority, 32_768);
    assert!(bridge.add_port(4096, trunk()).is_err());
    assert_eq!(bridge.receive(3, &[]), Received::NotInUse);
}

/// Neighbours that say anything: the machines come to rest (as each test asserts), no port sends
/// more than it may, and a port that is silent is left alone.
#[test]
fn hostile_neighbours() {
    let mut random = fastrand::Rng::with_seed(1);
    let mut bridge = Bridge::new(Settings::new(mac(5)), Duration::ZERO).unwrap();
    for number in 0..8 {
        let settings = PortSettings {
            is_point_to_point: number % 3 != 0,
            ..PortSettings::default()
        };
        bridge.add_port(number, settings).unwrap();
    }
    let mut sent = [0_u32; 8];
    for n in 0..100_000_u32 {
        bridge.tick(n * 20 * MS);
        let id = |random: &mut fastrand::Rng| {
            let priority = *random.choice(&[0, 0x8000, 0x8000, 0xf000]).unwrap();
            BridgeId::new(priority, mac(random.u8(4..8)))
        };
        let time = |random: &mut fastrand::Rng| match random.u8(..8) {
            0 => Time(random.u16(..)),
            _ => Time::from_secs(random.u8(..21)),
        };
        let vector = Vector {
            root: id(&mut random),
            cost: *random.choice(&[0, 20_000, u32::MAX]).unwrap(),
            bridge: id(&mut random),
            port: PortId::new(128, random.u16(..8)),
        };
        let times = Times {
            message_age: time(&mut random),
            max_age: Time::from_secs(20),
            hello: time(&mut random),
            forward_delay: time(&mut random),
        };
        let mut frame = match random.u8(..8) {
            0 => Bpdu::Tcn.encode(mac(99)),
            kind => {
                let config = Bpdu::Config {
                    topology_change: random.bool(),
                    acknowledgment: random.bool(),
                    vector,
                    times,
                };
                let mut frame = config.encode(mac(99));
                if kind > 2 {
                    // An RST BPDU with any flags.
                    (frame[13], frame[19], frame[20]) = (39, 2, 2);
                    frame[21] = random.u8(..);
                }
                frame
            }
        };
        if random.u8(..50) == 0 {
            frame[random.usize(14..60)] = random.u8(..);
        }
        bridge.receive(random.u16(..7), &frame);
        if random.u8(..100) == 0 {
            bridge.set_link(random.u16(..7), random.bool());
        }
        for action in bridge.take_actions() {
            if let Action::Transmit { port, frame } = action {
                sent[usize::from(port)] += 1;
                assert!(Bpdu::decode(&frame).is_ok() || frame[20] == 0, "{frame:?}");
            }
        }
    }
    assert!(sent.iter().all(|sent| *sent <= 2006), "{sent:?}");
    assert!(bridge.port(7).unwrap().is_edge);
}
