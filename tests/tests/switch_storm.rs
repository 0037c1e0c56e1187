//! A loop of cables between two switches, without a spanning tree: the machine stays usable, on the
//! panel and off it, and all is well again once a cable is pulled.

use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use vdens_tests::{Lab, PATIENCE, Proc, Session, becomes_true, wait_until};

/// How many frames a second each of a switch's three ports may flood: few enough for a loop in user
/// space on a busy machine to be a storm.
const LIMIT: u64 = 50;

/// How many frames a session has received.
fn received(session: &Session<'_>) -> u64 {
    let links = session.ok("ip -j -s link show vde0");
    let links: Value = serde_json::from_str(&links).unwrap_or_default();
    let count = &links[0]["stats64"]["rx"]["packets"];
    count.as_u64().unwrap_or_else(|| panic!("{links:#}"))
}

fn switch<'lab>(lab: &'lab Lab, name: &str) -> Proc<'lab> {
    let vnl = lab.vnl("switch", &format!("{name}[storm={LIMIT}]"));
    let switch = lab.vde_plug(["-v", "null://", &vnl]).spawn();
    let ctl = lab.path(&format!("{name}/ctl"));
    wait_until("the switch", PATIENCE, || UnixStream::connect(&ctl).is_ok());
    switch
}

fn survives_a_loop(options: &[&str]) {
    let lab = Lab::new();
    let switches = [switch(&lab, "a"), switch(&lab, "b")];
    let (a, b) = (lab.vnl("vde", "a"), lab.vnl("vde", "b"));
    let cable = || {
        let args = options.iter().copied().chain([a.as_str(), b.as_str()]);
        lab.vde_plug(args.collect::<Vec<_>>()).spawn()
    };
    let (first, second) = (cable(), cable());
    let session = |vnl: &str, address: &str| {
        let session = lab.vdens(options).args([vnl, "sh"]).session();
        session.address("vde0", address);
        session
    };
    let (near, far) = (session(&a, "10.0.0.1/24"), session(&b, "10.0.0.2/24"));
    // Broadcasts go round and round. A switch notices, and keeps the others' traffic low.
    let has_noticed = |switch: &Proc<'_>| switch.stderr().contains("do cables make a loop?");
    let storm = becomes_true(PATIENCE, || {
        near.run("ping -c 1 -W 1 -b 10.0.0.255");
        switches.iter().any(has_noticed)
    });
    assert!(storm, "{} {}", switches[0].stderr(), switches[1].stderr());
    // It takes a moment until all have left the panel.
    let mut rate = 0.0;
    let is_limited = becomes_true(PATIENCE, || {
        let (start, before) = (Instant::now(), received(&near));
        sleep(Duration::from_secs(1));
        rate = (received(&near) - before) as f64 / start.elapsed().as_secs_f64();
        rate < (4 * LIMIT) as f64
    });
    assert!(is_limited, "{rate} frames a second go round");

    assert_eq!(second.terminate().code(), Some(128 + 15));
    near.ping("10.0.0.2");
    let is_calm = |switch: &Proc<'_>| {
        let log = switch.stderr();
        log.matches("the storm is over").count() == log.matches("do cables make a loop?").count()
    };
    wait_until("calm", PATIENCE, || switches.iter().all(is_calm));
    near.ping("10.0.0.2");
    near.exit(0);
    far.exit(0);
    assert_eq!(first.terminate().code(), Some(128 + 15));
    assert!(switches.iter().all(Proc::is_running));
}

#[test]
fn a_loop_on_the_panel_leaves_the_machine_usable() {
    survives_a_loop(&[]);
}

#[test]
fn a_loop_in_user_space_leaves_the_machine_usable() {
    survives_a_loop(&["--no-panel"]);
}
