//! Foreign peers: Debian's vdens, vde_plug and vde_switch, in both roles and both starting orders.

use std::process::ChildStdin;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Cmd, Lab, PATIENCE, Proc, Session, need, wait_until};

/// Two namespaces, started in this order, that must reach each other.
#[track_caller]
fn connect<'lab>(first: Cmd<'lab>, second: Cmd<'lab>) -> (Session<'lab>, Session<'lab>) {
    let a = first.session();
    a.address("vde0", "10.0.0.1/24");
    let b = second.session();
    b.address("vde0", "10.0.0.2/24");
    a.ping("10.0.0.2");
    b.ping("10.0.0.1");
    (a, b)
}

/// Debian's vde_switch, which ends with its standard input.
fn vde_switch(lab: &Lab) -> (Proc<'_>, ChildStdin) {
    let switch = lab
        .debian("vde_switch", ["-s", &lab.path("sw")])
        .spawn_piped();
    lab.wait_for("sw/ctl");
    switch
}

#[test]
fn cable_ours_first() {
    need!("vdens", "socat");
    let lab = Lab::new();
    let args = [&lab.vnl("ptp", "p"), "sh"];
    let (a, b) = connect(lab.vdens(args), lab.debian("vdens", args));
    a.send_file(&b, "10.0.0.2", 8);
    b.send_file(&a, "10.0.0.1", 8);
}

#[test]
fn cable_debians_first() {
    need!("vdens", "socat");
    let lab = Lab::new();
    let args = [&lab.vnl("ptp", "p"), "sh"];
    let (a, b) = connect(lab.debian("vdens", args), lab.vdens(args));
    a.send_file(&b, "10.0.0.2", 8);
    b.send_file(&a, "10.0.0.1", 8);
}

#[test]
fn cable_with_jumbo_frames() {
    need!("vdens");
    let lab = Lab::new();
    let args = [&lab.vnl("ptp", "p"), "sh"];
    let (a, b) = connect(lab.vdens(args), lab.debian("vdens", args));
    // 9216 bytes of payload is the most that libvdeplug takes; Linux allows a tap no more than it
    // asks for.
    for (mtu, payload) in [(9000, 8972), (9216, 9188)] {
        for session in [&a, &b] {
            session.ok(&format!("ip link set vde0 mtu {mtu}"));
        }
        a.ok(&format!("ping -c 2 -W 20 -M do -s {payload} 10.0.0.2"));
        b.ok(&format!("ping -c 2 -W 20 -M do -s {payload} 10.0.0.1"));
    }
}

#[test]
fn cable_survives_its_far_end() {
    need!("vdens");
    let lab = Lab::new();
    let args = [&lab.vnl("ptp", "p"), "sh"];
    let (ours, theirs) = connect(lab.vdens(args), lab.debian("vdens", args));
    drop(theirs);
    let theirs = lab.debian("vdens", args).session();
    theirs.address("vde0", "10.0.0.2/24");
    theirs.ping("10.0.0.1");
    ours.ping("10.0.0.2");
}

#[test]
fn ours_on_debians_vde_switch() {
    need!("vde_switch", "socat");
    let lab = Lab::new();
    let _switch = vde_switch(&lab);
    let args = [&lab.vnl("vde", "sw"), "sh"];
    let (a, b) = connect(lab.vdens(args), lab.vdens(args));
    a.send_file(&b, "10.0.0.2", 8);
}

#[test]
fn a_mixture_on_debians_vde_switch() {
    need!("vde_switch", "vdens");
    let lab = Lab::new();
    let _switch = vde_switch(&lab);
    let args = [&lab.vnl("vde", "sw"), "sh"];
    connect(lab.vdens(args), lab.debian("vdens", args));
}

#[test]
fn ours_on_debians_vde_plug_switch() {
    need!("vde_plug", "socat");
    let lab = Lab::new();
    let switch = ["null://", &lab.vnl("switch", "sw")];
    let _switch = lab.debian("vde_plug", switch).spawn();
    lab.wait_for("sw/ctl");
    // Debian's leaves its directory when it is terminated.
    lab.expect("sw");
    let args = [&lab.vnl("vde", "sw"), "sh"];
    let (a, b) = connect(lab.vdens(args), lab.debian("vdens", args));
    a.send_file(&b, "10.0.0.2", 8);
}

#[test]
fn debians_on_our_switch() {
    need!("vdens", "socat");
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let args = [&lab.vnl("vde", "sw"), "sh"];
    let (a, b) = connect(lab.debian("vdens", args), lab.debian("vdens", args));
    a.send_file(&b, "10.0.0.2", 8);
    let ours = lab.vdens(args).session();
    ours.address("vde0", "10.0.0.3/24");
    ours.ping("10.0.0.1");
    ours.send_file(&a, "10.0.0.1", 8);
}

#[test]
fn debians_vde_plug_from_our_switch_to_our_cable() {
    need!("vde_plug", "socat");
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let (cable, switch) = (lab.vnl("ptp", "p"), lab.vnl("vde", "sw"));
    let _plug = lab.debian("vde_plug", [&switch, &cable]).spawn();
    lab.wait_for("p");
    // Debian's leaves its socket when it is terminated.
    lab.expect("p");
    let (a, b) = connect(lab.vdens([&switch, "sh"]), lab.vdens([&cable, "sh"]));
    a.send_file(&b, "10.0.0.2", 8);
}

#[test]
fn our_vde_plug_from_debians_switch_to_debians_cable() {
    need!("vde_switch", "vdens");
    let lab = Lab::new();
    let _switch = vde_switch(&lab);
    let (cable, switch) = (lab.vnl("ptp", "p"), lab.vnl("vde", "sw"));
    let _plug = lab.vde_plug([&switch, &cable]).spawn();
    lab.wait_for("p");
    connect(
        lab.debian("vdens", [&switch, "sh"]),
        lab.debian("vdens", [&cable, "sh"]),
    );
}

#[test]
fn ours_finds_debians_vde_switch_again() {
    need!("vde_switch");
    let lab = Lab::new();
    let switch = vde_switch(&lab);
    let args = [&lab.vnl("vde", "sw"), "sh"];
    let (a, b) = connect(lab.vdens(args), lab.vdens(args));
    drop(switch);
    assert_ne!(a.run("ping -c 1 -W 1 10.0.0.2").0, 0);
    let _switch = vde_switch(&lab);
    a.ping("10.0.0.2");
    b.ping("10.0.0.1");
}

#[test]
fn a_port_of_debians_vde_switch() {
    need!("vde_switch");
    let lab = Lab::new();
    let _switch = vde_switch(&lab);
    let port = [&lab.vnl("vde", "sw[5]"), "sh"];
    connect(lab.vdens(port), lab.vdens([&lab.vnl("vde", "sw"), "sh"]));
}

/// A stream between two plugs: `LEFT A = RIGHT B`, with a namespace of ours beyond each cable.
#[track_caller]
fn check_stream(left: &str, right: &str) {
    let lab = Lab::new();
    let (a, b) = (lab.vnl("ptp", "a"), lab.vnl("ptp", "b"));
    let stream = lab.command(left, [&a, "=", right, &b]).spawn();
    lab.wait_for("a");
    lab.wait_for("b");
    if left.starts_with("/usr/bin") {
        lab.expect("a");
    }
    if right.starts_with("/usr/bin") {
        lab.expect("b");
    }
    let args = |vnl| [vnl, "sh"];
    let (here, there) = connect(lab.vdens(args(&a)), lab.vdens(args(&b)));
    here.send_file(&there, "10.0.0.2", 4);
    there.send_file(&here, "10.0.0.1", 4);
    for session in [&here, &there] {
        session.ok("ip link set vde0 mtu 9000");
    }
    here.ok("ping -c 2 -W 20 -M do -s 8972 10.0.0.2");
    drop((here, there));
    drop(stream);
}

#[test]
fn stream_ours_ours() {
    need!("socat");
    check_stream("vde_plug", "vde_plug");
}

#[test]
fn stream_ours_debians() {
    need!("socat", "vde_plug");
    check_stream("vde_plug", "/usr/bin/vde_plug");
}

#[test]
fn stream_debians_ours() {
    need!("socat", "vde_plug");
    check_stream("/usr/bin/vde_plug", "vde_plug");
}

#[test]
fn a_stream_into_a_namespace() {
    need!("vde_plug");
    for plug in ["vde_plug", "/usr/bin/vde_plug"] {
        let lab = Lab::new();
        let vnl = lab.vnl("ptp", "p");
        if plug.starts_with('/') {
            lab.expect("p");
        }
        let stream = format!("={plug} {vnl}");
        connect(lab.vdens([&stream, "sh"]), lab.vdens([&vnl, "sh"]));
    }
}

/// VDE's wirefilter between two plugs delays what passes, here by 300 ms each way.
#[test]
fn a_wirefilter_between_two_plugs() {
    need!("wirefilter", "dpipe");
    let lab = Lab::new();
    let (a, b) = (lab.vnl("ptp", "a"), lab.vnl("ptp", "b"));
    let filter = ["wirefilter", "-d", "300"];
    let wire = lab
        .command("dpipe", ["vde_plug", &a, "="])
        .args(filter)
        .args(["=", "vde_plug", &b])
        .spawn();
    lab.wait_for("a");
    lab.wait_for("b");
    let (here, there) = connect(lab.vdens([&*a, "sh"]), lab.vdens([&*b, "sh"]));
    let text = here.ok("ping -c 1 -w 20 10.0.0.2");
    let time = text
        .split_once("time=")
        .and_then(|(_, rest)| rest.split(' ').next());
    let time: f64 = time.and_then(|time| time.parse().ok()).expect("a time");
    assert!(time >= 500.0, "{text}");
    drop((here, there));
    // The plugs first, so that they remove their sockets; wirefilter goes on without them.
    for name in ["vde_plug ", "wirefilter "] {
        let processes = lab.processes();
        for (pid, _) in processes.iter().filter(|(_, line)| line.starts_with(name)) {
            // It may have ended with the others.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGTERM);
        }
        wait_until("the end of the wire", PATIENCE, || !lab.is_running(name));
    }
    drop(wire);
}
