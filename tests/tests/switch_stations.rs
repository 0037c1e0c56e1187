//! Stations on a switch that end, are replaced, or move to another port: frames reach the new one
//! at once.

use vdens_tests::{Lab, Session};

/// Starts a session on the switch: its interface has the MAC address `02::<station>` and the
/// address `10.0.0.<host>`.
fn station<'lab>(lab: &'lab Lab, options: &[&str], host: u8, station: u8) -> Session<'lab> {
    let session = lab.vdens(options).args([&lab.vnl("vde", "sw"), "sh"]);
    let session = session.session();
    session.ok(&format!(
        "ip link set vde0 address {} up; ip addr add 10.0.0.{host}/24 dev vde0",
        mac(station)
    ));
    session
}

fn mac(station: u8) -> String {
    format!("02:00:00:00:00:{station:02x}")
}

/// Pings once, without what the kernel remembers of neighbours. One packet must be enough; its
/// answer may be late on a busy machine.
#[track_caller]
fn ping_at_once(from: &Session<'_>, host: u8) {
    let script = format!("ip neigh flush dev vde0; ping -c 1 -W 10 10.0.0.{host}");
    let (status, text) = from.run(&script);
    let neighbours = from.run("ip neigh").1;
    assert_eq!(status, 0, "{text}{neighbours}");
}

/// A program that the command has left in the namespace keeps that alive, and answers ARP requests
/// as long as the interface has carrier.
#[test]
fn an_ended_session_leaves_the_switch_though_its_namespace_lives() {
    for options in [&[][..], &["--no-panel"]] {
        let lab = Lab::new();
        let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
        lab.wait_for("sw/ctl");
        let witness = station(&lab, options, 3, 3);
        for number in 10..14 {
            let session = station(&lab, options, 1, number);
            ping_at_once(&witness, 1);
            session.ok("sleep 1000 >/dev/null 2>&1 &");
            assert_eq!(session.exit(0).code(), Some(0));
            let (status, text) = witness.run("ip neigh flush dev vde0; ping -c 1 -W 1 10.0.0.1");
            assert_ne!(status, 0, "the ended session {number} answers: {text}");
        }
        let next = station(&lab, options, 1, 20);
        ping_at_once(&witness, 1);
        let neighbour = witness.ok("ip neigh show 10.0.0.1");
        assert!(neighbour.contains(&mac(20)), "{neighbour}");
        ping_at_once(&next, 3);
        for (pid, line) in lab.processes() {
            if line.starts_with("sleep 1000") {
                lab.command("kill", [pid.to_string()]).ok();
            }
        }
    }
}

#[test]
fn a_new_session_with_the_same_address_is_reached_at_once() {
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let witness = station(&lab, &[], 3, 3);
    for number in 10..30 {
        let session = station(&lab, &[], 1, number);
        ping_at_once(&witness, 1);
        let neighbour = witness.ok("ip neigh show 10.0.0.1");
        assert!(neighbour.contains(&mac(number)), "{number}: {neighbour}");
        assert_eq!(session.exit(0).code(), Some(0));
    }
}

#[test]
fn a_station_that_moves_to_another_port_is_reached_at_once() {
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let witnesses = [
        station(&lab, &[], 3, 3),
        station(&lab, &["--no-panel"], 4, 4),
    ];
    let ports = [
        station(&lab, &[], 11, 11),
        station(&lab, &["--no-panel"], 12, 12),
        station(&lab, &[], 13, 13),
    ];
    // From each port to each other one: through the kernel's bridge, and through the switch.
    for (old, new) in [(0, 2), (2, 0), (0, 1), (1, 2), (2, 1), (1, 0)] {
        let [old, new] = [old, new].map(|port| &ports[port]);
        let leave = format!(
            "ip addr del 10.0.0.1/24 dev vde0; ip link set vde0 address {}",
            mac(50)
        );
        let join = format!(
            "ip link set vde0 address {}; ip addr add 10.0.0.1/24 dev vde0",
            mac(1)
        );
        old.ok(&join);
        ping_at_once(old, 3);
        witnesses
            .iter()
            .for_each(|witness| ping_at_once(witness, 1));
        old.ok(&leave);
        new.ok(&join);
        // The first frame of the station at its new port is a broadcast.
        ping_at_once(new, 4);
        witnesses
            .iter()
            .for_each(|witness| ping_at_once(witness, 1));
        new.ok(&leave);
    }
}
