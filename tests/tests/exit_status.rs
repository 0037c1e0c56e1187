//! The exit status of `vdens` is its command's, whatever the network.

use std::time::Duration;

use nix::sys::signal::Signal;
use vdens_tests::{Lab, Proc, need, stretched, wait_until};

fn switch<'lab>(lab: &'lab Lab) -> Proc<'lab> {
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    switch
}

/// The statuses that a command can end with, behind `vdens OPTIONS VNL`.
#[track_caller]
fn check_statuses(lab: &Lab, args: &[&str]) {
    let code = |command: &[&str]| lab.vdens(args).args(command).run().code();
    assert_eq!(code(&["sh", "-c", "exit 7"]), Some(7), "{args:?}");
    assert_eq!(code(&["true"]), Some(0), "{args:?}");
    assert_eq!(code(&["sh", "-c", "kill -9 $$"]), Some(128 + 9), "{args:?}");
    assert_eq!(
        code(&["sh", "-c", "kill -TERM $$"]),
        Some(128 + 15),
        "{args:?}"
    );
    assert_eq!(code(&["/no/such/command"]), Some(127), "{args:?}");
    assert_eq!(code(&["no-such-command"]), Some(127), "{args:?}");
    assert_eq!(code(&["/etc/passwd"]), Some(126), "{args:?}");
}

#[test]
fn no_network() {
    let lab = Lab::new();
    check_statuses(&lab, &["no"]);
    check_statuses(&lab, &["-"]);
    check_statuses(&lab, &[""]);
}

#[test]
fn null() {
    let lab = Lab::new();
    check_statuses(&lab, &["null://"]);
}

#[test]
fn ptp() {
    let lab = Lab::new();
    check_statuses(&lab, &[&lab.vnl("ptp", "p")]);
}

#[test]
fn ptp_seqpacket() {
    let lab = Lab::new();
    check_statuses(&lab, &[&lab.vnl("ptp", "p[seqpacket]")]);
}

#[test]
fn vde() {
    let lab = Lab::new();
    let _switch = switch(&lab);
    check_statuses(&lab, &[&lab.vnl("vde", "sw")]);
    // A plain path is the same.
    check_statuses(&lab, &[&lab.path("sw")]);
}

#[test]
fn own_switch() {
    let lab = Lab::new();
    check_statuses(&lab, &[&lab.vnl("switch", "sw")]);
}

#[test]
fn tap() {
    need!("root");
    let lab = Lab::new();
    let host = lab.netns();
    let user = &lab.user().name;
    host.sh(&format!("ip tuntap add dev tap0 mode tap user {user}"))
        .ok();
    for (command, status) in [("exit 7", 7), ("kill -9 $$", 137), ("exec /no/such", 127)] {
        let output = lab
            .vdens(["tap://tap0", "sh", "-c", command])
            .inside(&host)
            .run();
        assert_eq!(output.code(), Some(status), "{output:?}");
    }
    let output = lab.vdens(["tap://tap0", "/no/such"]).inside(&host).run();
    assert_eq!(output.code(), Some(127), "{output:?}");
}

#[test]
fn several() {
    let lab = Lab::new();
    check_statuses(&lab, &["--multi", "null://", &lab.vnl("ptp", "p"), "--"]);
}

#[test]
fn a_stream_to_a_command() {
    let lab = Lab::new();
    check_statuses(&lab, &["=vde_plug null://"]);
}

#[test]
fn what_cannot_be_run_is_named() {
    let lab = Lab::new();
    let output = lab.vdens(["null://", "no-such-command"]).run();
    assert_eq!(output.code(), Some(127));
    assert!(output.stderr.starts_with("vdens: "), "{output:?}");
    assert!(output.stderr.contains("no-such-command"), "{output:?}");
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
}

#[test]
fn terminating_vdens_terminates_the_command() {
    let lab = Lab::new();
    let script = "trap 'echo told; exit 9' TERM; echo ready; sleep 1000 & wait";
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let name = signal.as_str().trim_start_matches("SIG");
        let script = script.replace("TERM", name);
        // The signal does not reach the shell's own child, which would be left.
        let script = script.replace("exit 9", "kill $!; exit 9");
        let vdens = lab
            .vdens([&lab.vnl("ptp", "p"), "sh", "-c", &script])
            .spawn();
        wait_until("the command runs", vdens_tests::PATIENCE, || {
            vdens.stdout().contains("ready")
        });
        vdens.signal(signal);
        let output = vdens.wait(stretched(Duration::from_secs(5)));
        assert!(output.stdout.contains("told"), "{output:?}");
        assert_eq!(output.code(), Some(9), "{output:?}");
    }
}

#[test]
fn children_that_others_ignored_or_left_are_no_matter() {
    let lab = Lab::new();
    let ignored = lab.sh("trap '' CHLD; exec vdens no -- sh -c 'exit 3'");
    assert_eq!(ignored.run().code(), Some(3));
    // The shell's child becomes one of vdens, which reaps it when it ends.
    let left = lab.sh("sleep 0.1 & exec vdens no -- sh -c 'sleep 1; ps --ppid $PPID -o comm='");
    assert_eq!(left.ok(), "sh\n");
}

#[test]
fn the_command_gets_no_descriptors() {
    let lab = Lab::new();
    let list = ["ls", "/proc/self/fd"];
    // Those of whoever runs the tests may be among them.
    let outside = lab.command(list[0], &list[1..]).ok();
    let vnls = ["null://", &lab.vnl("ptp", "p"), "--"];
    assert_eq!(lab.vdens(["-m"]).args(vnls).args(list).ok(), outside);
}
