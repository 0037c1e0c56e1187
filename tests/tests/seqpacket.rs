//! `seqpacket://`: a socket that the program which starts vdens hands down.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, Session, need, wait_until};

use crate::fault_matrix::worker;

/// Starts a command with one end of a pair of sockets, and becomes another with the other end. In
/// both, `FD` stands for the descriptor.
const PAIR: &str = r#"
import os, socket, subprocess, sys
ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
words = [[w.replace("FD", str(end.fileno())) for w in line.split()]
         for end, line in zip(ends, sys.argv[1:])]
subprocess.Popen(words[0], pass_fds=[ends[0].fileno()], stdin=subprocess.DEVNULL)
ends[0].close()
ends[1].set_inheritable(True)
os.execvp(words[1][0], words[1])
"#;

fn has_carrier(session: &Session<'_>) -> bool {
    !session.ok("ip link show vde0").contains("NO-CARRIER")
}

/// A session whose far end is a plug to a cable.
fn session<'lab>(lab: &'lab Lab, plug: &str, cable: &str) -> Session<'lab> {
    let plug = format!("{plug} seqpacket://FD {cable}");
    let vdens = "vdens --addr 10.0.0.1/24 seqpacket://FD sh";
    lab.command("python3", ["-c", PAIR, &plug, vdens]).session()
}

#[test]
fn frames_pass_until_the_far_end_is_gone() {
    need!("python3", "socat", "vde_plug");
    for plug in ["vde_plug", "/usr/bin/vde_plug"] {
        let lab = Lab::new();
        let cable = lab.vnl("ptp", "p");
        lab.expect("p");
        lab.expect("p+");
        let ours = session(&lab, plug, &cable);
        let other = lab.vdens(["--addr", "10.0.0.2/24", &cable, "sh"]).session();
        ours.ping("10.0.0.2");
        ours.send_file(&other, "10.0.0.2", 8);
        other.send_file(&ours, "10.0.0.1", 8);

        // The worker's successor goes on with the descriptor.
        kill(Pid::from_raw(worker(&lab, &ours)), Signal::SIGKILL).unwrap();
        ours.ping("10.0.0.2");

        let processes = lab.processes();
        let is_plug = |line: &str| line.starts_with(&format!("{plug} seqpacket"));
        let (pid, _) = processes.iter().find(|(_, line)| is_plug(line)).unwrap();
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
        wait_until("no carrier", PATIENCE, || !has_carrier(&ours));
        assert!(
            ours.proc().stderr().contains("is gone"),
            "{}",
            ours.proc().stderr()
        );
        assert_eq!(ours.exit(7).code(), Some(7));
    }
}

#[test]
fn what_was_not_handed_down_is_refused() {
    let lab = Lab::new();
    for (vnl, words) in [
        ("seqpacket://77", "no descriptor 77 was handed down"),
        ("seqpacket://0", "no socket of packets"),
        ("seqpacket://x", "'x' is no number"),
    ] {
        lab.vdens([vnl, "true"]).refused(&[words]);
    }
    // Those of vdens itself are none of the user's.
    for number in 3..40 {
        let vnl = format!("seqpacket://{number}");
        lab.vdens([&vnl, "true"]).refused(&["socketpair(2)"]);
    }
}
