//! `--wait`: the order in which things are started does not matter.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, Session, need, stretched, wait_until};

fn has_carrier(session: &Session<'_>) -> bool {
    !session.ok("ip link show vde0").contains("NO-CARRIER")
}

/// A namespace on a switch that is still to come.
fn early<'lab>(lab: &'lab Lab, address: &str) -> Session<'lab> {
    let vnl = lab.vnl("vde", "sw");
    let session = lab
        .vdens(["--wait", "--addr", address, &vnl, "sh"])
        .session();
    session.ok("ip -o addr show vde0 | grep 10.0.0.");
    assert!(!has_carrier(&session));
    session
}

#[test]
fn for_our_switch() {
    let lab = Lab::new();
    let (a, b) = (early(&lab, "10.0.0.1/24"), early(&lab, "10.0.0.2/24"));
    let said = a.proc().stderr();
    assert!(said.contains("waiting for it"), "{said}");
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    wait_until("carrier", PATIENCE, || has_carrier(&a) && has_carrier(&b));
    a.ok("ping -c 1 -W 10 10.0.0.2");
    let status = lab.vdectl(["status"]).ok();
    assert_eq!(status.matches("vde://").count(), 2, "{status}");
    assert_eq!(status.matches("up, kernel").count(), 2, "{status}");
    drop((a, b, switch));
}

#[test]
fn for_a_group_of_ports_that_is_not_there() {
    let lab = Lab::new();
    let vnl = format!("{}[staff]", lab.vnl("vde", "sw"));
    let session = lab
        .vdens(["--wait", "--addr", "10.0.0.1/24", &vnl, "sh"])
        .session();
    assert!(!has_carrier(&session));
    // Long enough for it to try again.
    sleep(Duration::from_millis(800));
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    wait_until("carrier", PATIENCE, || has_carrier(&session));
    let said = session.proc().stderr();
    assert_eq!(
        said.matches("no group of ports 'staff'").count(),
        1,
        "{said}"
    );
    drop((session, switch));
}

#[test]
fn for_debians_switch() {
    need!("vde_switch");
    for options in [&[][..], &["--no-panel"]] {
        let lab = Lab::new();
        let vnl = lab.vnl("vde", "sw");
        let start = |address: &str| {
            let command = lab.vdens(["--wait", "--addr", address]).args(options);
            command.args([&vnl, "sh"]).session()
        };
        let (a, b) = (start("10.0.0.1/24"), start("10.0.0.2/24"));
        assert!(!has_carrier(&a) && !has_carrier(&b));
        let (switch, _stdin) = lab
            .debian("vde_switch", ["-s", &lab.path("sw")])
            .spawn_piped();
        wait_until("carrier", PATIENCE, || has_carrier(&a) && has_carrier(&b));
        a.ping("10.0.0.2");
        drop((a, b));
        switch.terminate();
        lab.expect("sw");
    }
}

#[test]
fn for_a_tap() {
    need!("root");
    let lab = Lab::new();
    let host = lab.netns();
    let session = lab
        .vdens(["--wait", "--addr", "10.0.0.2/24", "tap://tap0", "sh"])
        .inside(&host)
        .session();
    assert!(!has_carrier(&session));
    let user = &lab.user().name;
    host.sh(&format!(
        "ip tuntap add dev tap0 mode tap user {user}; ip addr add 10.0.0.1/24 dev tap0; ip link set tap0 up"
    ))
    .ok();
    wait_until("carrier", PATIENCE, || has_carrier(&session));
    session.ping("10.0.0.1");
}

#[test]
fn with_a_limit_the_command_waits_too() {
    let lab = Lab::new();
    let vnl = lab.vnl("vde", "sw");
    let start = Instant::now();
    lab.vdens(["--wait=1", &vnl, "true"])
        .refused(&["no switch directory"]);
    assert!(
        (Duration::from_secs(1)..stretched(Duration::from_secs(8))).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    let waiting = lab
        .vdens(["--wait=20", &vnl, "sh", "-c"])
        .args(["ip link show vde0; exit 3"])
        .spawn();
    sleep(Duration::from_millis(400));
    assert_eq!(waiting.stdout(), "");
    let status = lab.vdectl(["status"]).ok();
    assert!(
        status.contains("no carrier: there is no switch directory"),
        "{status}"
    );
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    let output = waiting.wait(PATIENCE);
    assert_eq!(output.code(), Some(3), "{output:?}");
    assert!(!output.stdout.contains("NO-CARRIER"), "{output:?}");
    switch.terminate();
}

/// Fault: the process that prepares the command is stopped.
#[test]
fn not_for_ever_for_the_interfaces() {
    let lab = Lab::new();
    let vdens = lab.vdens(["--wait=60", &lab.vnl("vde", "sw"), "true"]);
    let vdens = vdens.spawn();
    let pid = vdens.pid();
    let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let in_namespace = || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let children: Vec<i32> = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect();
        // Beside a worker: a child alone may be a helper that is making the panel.
        let mut children = children.iter().filter(|_| children.len() > 1).copied();
        children.find(|child| network(*child).is_some_and(|other| Some(other) != network(pid)))
    };
    // A helper ends soon; the process that prepares the command is the one that stays.
    let stays = || {
        let child = in_namespace()?;
        let says_so = || (in_namespace() == Some(child)).then(|| sleep(Duration::from_millis(100)));
        (0..10).try_for_each(|_| says_so())?;
        Some(child)
    };
    let mut child = None;
    wait_until("the namespace", PATIENCE, || {
        child = stays();
        child.is_some()
    });
    kill(Pid::from_raw(child.unwrap()), Signal::SIGSTOP).unwrap();
    // Now its link opens, and the session waits for the stopped process.
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    let output = vdens.wait(Duration::from_secs(30) + PATIENCE);
    assert_eq!(output.code(), Some(125), "{output:?}");
    let complaint = "the interfaces were not made within 30s";
    assert!(output.stderr.contains(complaint), "{output:?}");
    switch.terminate();
}

#[test]
fn not_for_what_makes_no_sense() {
    let lab = Lab::new();
    let bad = format!("{}[bad=1]", lab.vnl("vde", "sw"));
    for vnl in ["nosuch:///x", "ptp://", &bad] {
        let start = Instant::now();
        let output = lab.vdens(["--wait", vnl, "true"]).run();
        assert_eq!(output.code(), Some(125), "{vnl}: {output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{vnl}: {output:?}");
        let output = lab.vde_plug(["--wait", vnl, "null://"]).run();
        assert_eq!(output.code(), Some(1), "{vnl}: {output:?}");
        assert!(start.elapsed() < stretched(Duration::from_secs(5)));
    }
    lab.vdens(["--wait=soon", "null://"]).refused(&["seconds"]);
}

#[test]
fn without_it_the_error_tells_of_it() {
    let lab = Lab::new();
    let vnl = lab.vnl("vde", "sw");
    lab.vdens([&vnl, "true"])
        .refused(&["no switch directory", "vde_plug null://", "--wait"]);
    lab.vdens(["tap://vt-nosuch", "true"])
        .refused(&["vt-nosuch", "--wait"]);
    lab.vde_plug([&vnl, "null://"]).refused(&["--wait"]);
}

#[test]
fn a_plug_waits_for_both_its_ends_and_for_their_return() {
    let lab = Lab::new();
    let vnls = [lab.vnl("vde", "sw1"), lab.vnl("vde", "sw2")];
    lab.vde_plug(["--wait", "-d", "-p", "pid"]).args(&vnls).ok();
    let start = |name: &str| lab.vde_plug(["null://", &lab.vnl("switch", name)]).spawn();
    let (first, second) = (start("sw1"), start("sw2"));
    lab.wait_for("sw1/ctl");
    lab.wait_for("sw2/ctl");
    let a = lab
        .vdens(["--addr", "10.0.0.1/24", &vnls[0], "sh"])
        .session();
    let b = lab
        .vdens(["--addr", "10.0.0.2/24", &vnls[1], "sh"])
        .session();
    a.ping("10.0.0.2");
    // A switch that was started again has its plug back.
    second.terminate();
    let second = start("sw2");
    a.ping("10.0.0.2");
    drop((a, b));
    first.terminate();
    second.terminate();
    lab.sh("pid=$(cat pid); kill $pid; while kill -0 $pid; do sleep 0.05; done 2>/dev/null")
        .ok();
    assert!(!lab.dir().join("pid").exists());
}
