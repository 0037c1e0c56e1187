//! A session leaves nothing behind, however it ends. What a killed process had to leave does not
//! block its successor.

use nix::sys::signal::Signal;
use vdens_tests::{Lab, PATIENCE, Session, becomes_true, wait_until};

#[test]
fn terminated() {
    let lab = Lab::new();
    for vnl in [
        lab.vnl("ptp", "p"),
        lab.vnl("switch", "sw"),
        lab.vnl("hub", "hub"),
        "null://".into(),
        "no".into(),
    ] {
        let vdens = lab.vdens([&vnl, "sleep", "1000"]).spawn();
        wait_until("the command", PATIENCE, || lab.is_running("sleep 1000"));
        assert_eq!(vdens.terminate().code(), Some(128 + 15), "{vnl}");
    }
}

#[test]
fn a_killed_vdens_takes_everything_along() {
    let lab = Lab::new();
    let vnls = [lab.vnl("ptp", "p"), lab.vnl("switch", "sw")];
    let vdens = lab
        .vdens(["-m"])
        .args(&vnls)
        .args(["--", "sleep", "1000"])
        .spawn();
    lab.wait_for("p");
    lab.wait_for("sw/ctl");
    vdens.signal(Signal::SIGKILL);
    vdens.wait(PATIENCE);
    let ended = becomes_true(PATIENCE, || !lab.is_running("sleep 1000"));
    assert!(ended, "the command goes on");
    // Sockets may be left, but they block no successor, who cleans up.
    let again = lab.vdens(["-m"]).args(&vnls).args(["--", "true"]).run();
    assert_eq!(again.code(), Some(0), "{again:?}");
}

#[test]
fn a_killed_switch_is_replaced() {
    let lab = Lab::new();
    let vnl = lab.vnl("switch", "sw");
    let first = lab.vde_plug(["null://", &vnl]).spawn();
    lab.wait_for("sw/ctl");
    // One that lives is not replaced.
    lab.vde_plug(["null://", &vnl]).refused(&["/sw"]);
    assert!(lab.dir().join("sw/ctl").exists());

    let a = lab
        .vdens(["--addr", "10.0.0.1/24", &lab.vnl("vde", "sw"), "sh"])
        .session();
    let b = lab
        .vdens(["--addr", "10.0.0.2/24", &lab.vnl("vde", "sw"), "sh"])
        .session();
    a.ping("10.0.0.2");
    first.signal(Signal::SIGKILL);
    first.wait(PATIENCE);
    let carrier = || !a.ok("ip link show vde0").contains("NO-CARRIER");
    wait_until("the loss of the switch shows", PATIENCE, || !carrier());

    let _second = lab.vde_plug(["null://", &vnl]).spawn();
    wait_until("the link comes back", PATIENCE, carrier);
    a.ping("10.0.0.2");
    b.ping("10.0.0.1");
}

/// Sends a signal to the workers of a session.
fn signal_workers(lab: &Lab, session: &Session<'_>, signal: &str) {
    // The supervisor's children are the shell's side and the worker; the shell is where we are.
    let supervisor = session.proc().pid();
    let children = lab.sh(&format!("pgrep -P {supervisor}")).ok();
    let shell = session.ok("echo $$ $PPID");
    let workers: Vec<_> = children
        .split_whitespace()
        .filter(|pid| !shell.split_whitespace().any(|own| own == *pid))
        .collect();
    assert!(!workers.is_empty(), "no worker among {children}");
    for worker in workers {
        lab.command("kill", [signal, worker]).ok();
    }
}

/// Whether the worker was killed and not replaced yet, or hangs and is killed at the end.
#[test]
fn a_dead_workers_socket_goes_with_the_session() {
    let lab = Lab::new();
    for signal in ["-KILL", "-STOP"] {
        let session = lab.vdens([&lab.vnl("ptp", "p"), "sh"]).session();
        session.ok(":");
        lab.wait_for("p");
        signal_workers(&lab, &session, signal);
        session.exit(0);
        assert!(!lab.dir().join("p").exists(), "{signal}");
    }
}

#[test]
fn a_dead_worker_is_replaced() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let a = lab.vdens(["--addr", "10.0.0.1/24", &vnl, "sh"]).session();
    let b = lab.vdens(["--addr", "10.0.0.2/24", &vnl, "sh"]).session();
    a.ping("10.0.0.2");
    signal_workers(&lab, &a, "-KILL");
    a.ping("10.0.0.2");
    b.ping("10.0.0.1");
    assert!(a.ok("ip -o addr show vde0").contains("10.0.0.1/24"));
}

#[test]
fn a_cable_left_by_a_killed_vdens_works_again() {
    let lab = Lab::new();
    for vnl in [lab.vnl("ptp", "p"), lab.vnl("ptp", "q[seqpacket]")] {
        let killed = lab.vdens([&vnl, "sleep", "1000"]).spawn();
        lab.wait_for(if vnl.contains('[') { "q" } else { "p" });
        killed.signal(Signal::SIGKILL);
        killed.wait(PATIENCE);
        let a = lab.vdens(["--addr", "10.0.0.1/24", &vnl, "sh"]).session();
        let b = lab.vdens(["--addr", "10.0.0.2/24", &vnl, "sh"]).session();
        a.ping("10.0.0.2");
        b.ping("10.0.0.1");
    }
}

#[test]
fn the_default_switch() {
    // The one place outside a lab. Other labs may see it for a moment, and wait for its end.
    let lab = Lab::new();
    let directory = format!("/tmp/vdenode_{}", lab.user().name);
    let plug = lab.vde_plug(["null://", "switch://"]).spawn();
    let control = format!("{directory}/ctl");
    wait_until(&control, PATIENCE, || {
        std::fs::exists(&control).unwrap_or(false)
    });
    lab.vdens([&directory, "true"]).ok();
    plug.terminate();
    assert!(!std::fs::exists(&directory).unwrap());
}
