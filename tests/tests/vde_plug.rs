//! The command line of vde_plug.

use std::time::Duration;

use nix::sys::signal::Signal;
use vdens_tests::{Lab, PATIENCE, User, need, stretched, wait_until};

/// Ends a daemon by its pid file, which it takes along.
#[track_caller]
fn end(lab: &Lab, pidfile: &str) {
    let kill = format!(
        "pid=$(cat {pidfile}); kill $pid; while kill -0 $pid; do sleep 0.05; done 2>/dev/null"
    );
    lab.sh(&kill).ok();
    assert!(!lab.dir().join(pidfile).exists());
}

#[test]
fn a_cable_between_two_switches() {
    let lab = Lab::new();
    let switches =
        ["sw1", "sw2"].map(|name| lab.vde_plug(["null://", &lab.vnl("switch", name)]).spawn());
    lab.wait_for("sw1/ctl");
    lab.wait_for("sw2/ctl");
    let cable = lab
        .vde_plug([lab.vnl("vde", "sw1"), lab.vnl("vde", "sw2")])
        .spawn();
    let a = lab
        .vdens(["--addr", "10.0.0.1/24", &lab.vnl("vde", "sw1"), "sh"])
        .session();
    let b = lab
        .vdens(["--addr", "10.0.0.2/24", &lab.vnl("vde", "sw2"), "sh"])
        .session();
    a.ping("10.0.0.2");
    drop(cable);
    assert_ne!(b.run("ping -c 1 -W 1 10.0.0.1").0, 0);
    drop(switches);
}

#[test]
fn as_a_daemon() {
    let lab = Lab::new();
    // When the command returns, both ends are open: no waiting here.
    lab.vde_plug(["-d", "-p", "pid", "null://", "switch://sw"])
        .ok();
    assert!(lab.dir().join("sw/ctl").exists());
    let a = lab
        .vdens(["--addr", "10.0.0.1/24", &lab.vnl("vde", "sw"), "sh"])
        .session();
    let b = lab
        .vdens(["--addr", "10.0.0.2/24", &lab.vnl("vde", "sw"), "sh"])
        .session();
    a.ping("10.0.0.2");
    drop((a, b));
    end(&lab, "pid");
}

#[test]
fn as_a_daemon_with_the_long_options() {
    let lab = Lab::new();
    let (pid, vnl) = (lab.path("pid"), lab.vnl("switch", "sw"));
    lab.vde_plug(["--daemon", "--pidfile", &pid, "null://", &vnl])
        .ok();
    end(&lab, "pid");
}

#[test]
fn a_daemon_that_fails_says_so() {
    let lab = Lab::new();
    lab.vde_plug(["-d", "-p", "pid", "null://", &lab.vnl("vde", "nosuch")])
        .refused(&["/nosuch"]);
    lab.vde_plug(["-d", "-p", "/nowhere/pid", "null://", "null://"])
        .refused(&["/nowhere/pid"]);
}

#[test]
fn a_signal_between_the_ends_leaves_nothing_behind() {
    let lab = Lab::new();
    // The first end is open, the second is waited for.
    let nobody = lab.vnl("vde", "nobody");
    for (path, vnl) in [
        ("sw/ctl", lab.vnl("switch", "sw")),
        ("p", lab.vnl("ptp", "p")),
    ] {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            let plug = lab.vde_plug(["--wait=60", &vnl, &nobody]).spawn();
            lab.wait_for(path);
            plug.signal(signal);
            let output = plug.wait(stretched(Duration::from_secs(2)));
            assert_eq!(output.code(), Some(128 + signal as i32), "{output:?}");
            assert_eq!(output.stderr, "");
            let left: Vec<_> = std::fs::read_dir(lab.dir()).unwrap().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

#[test]
fn mode_and_group() {
    need!("root");
    let lab = Lab::new();
    // The client's own socket is unlinked once it is connected, so what shows is the switch's.
    let group = &lab.user().name;
    let vnl = format!("{}[mode=0660/grp={group}]", lab.vnl("switch", "sw"));
    let _switch = lab.vde_plug(["null://", &vnl]).spawn();
    lab.wait_for("sw/ctl");
    let mode = lab
        .command("stat", ["-c", "%a %G", &lab.path("sw/ctl")])
        .ok();
    assert_eq!(mode, format!("660 {group}\n"));
    let options = [
        "-m", "0660", "-g", group, "--mod2", "0600", "--group2", group, "-D", "a plug",
    ];
    let plug = lab
        .vde_plug(options)
        .args([&lab.vnl("vde", "sw"), "null://"])
        .spawn();
    let description = || lab.vdectl(["status", "--json"]).ok().contains("a plug");
    wait_until("the switch has the plug", PATIENCE, description);
    assert_eq!(plug.stderr(), "");
    drop(plug);
    let bad = lab.vde_plug(["-g", "nosuchgroup", &lab.vnl("vde", "sw"), "null://"]);
    bad.refused(&["nosuchgroup"]);
}

#[test]
fn a_pid_file_overwrites_nothing_else() {
    need!("root");
    let lab = Lab::new();
    let plug = |path: &str, by: &User| {
        let words = ["-d", "-p", path, "null://", "null://"];
        lab.vde_plug(words).by(by.clone())
    };
    let file = lab.write("file", "precious\n");
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    lab.sh("ln -s file link; ln -s new dangling; mkfifo fifo; echo 1 >old; ln old hard")
        .ok();
    for name in ["link", "dangling", "fifo", "old", "hard"] {
        lab.expect(name);
    }
    for (name, why) in [
        ("file", "its content is not a process id"),
        ("link", "link"),
        ("dangling", "link"),
        ("fifo", "fifo"),
        ("hard", "another name"),
        ("/dev/null", "not a regular file"),
    ] {
        plug(name, lab.user()).refused(&[name, why]);
    }
    assert_eq!(read(&file), "precious\n");
    assert_eq!(read(&lab.path("old")), "1\n");
    assert!(!lab.dir().join("new").exists());
    // Root's pid file, in a directory whose owner put something there first.
    lab.sh("rm hard").ok();
    let owner = format!("user {} (uid {})", lab.user().name, lab.user().uid);
    plug("old", &User::root()).refused(&["old", &owner]);
    plug("link", &User::root()).refused(&["link"]);
    assert_eq!(read(&lab.path("old")), "1\n");
    // What an earlier one left is overwritten.
    plug("old", lab.user()).ok();
    end(&lab, "old");
}

#[test]
fn a_stream_on_standard_input_and_output() {
    need!("python3");
    let lab = Lab::new();
    // Frames put into a stream at one end of a cable come out of the stream at its other end: the
    // shortest one, one with a length of more than a byte, and the longest.
    let script = "
import os, subprocess, sys
plug = lambda: subprocess.Popen(['vde_plug', sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
a = plug()
while not os.path.exists('p'): pass
b = plug()
import time; time.sleep(0.5)
for size in (14, 300, 9230):
    frame = b'\\xff' * 6 + b'\\x02\\0\\0\\0\\0\\1' + b'\\x88\\xb5' + os.urandom(size - 14)
    stream = size.to_bytes(2, 'big') + frame
    for sender, receiver in ((a, b), (b, a)):
        for byte in stream[:3]: sender.stdin.write(bytes([byte])); sender.stdin.flush(); time.sleep(0.02)
        sender.stdin.write(stream[3:]); sender.stdin.flush()
        assert receiver.stdout.read(len(stream)) == stream, size
for end in (a, b): end.stdin.close()
for end in (a, b): assert end.wait(5) == 0, 'the end of the stream is a good end'
";
    lab.command("python3", ["-c", script, &lab.vnl("ptp", "p")])
        .ok();
}

#[test]
fn help_succeeds() {
    let lab = Lab::new();
    let help = lab.vde_plug(["-h"]).ok();
    for option in [
        "--daemon",
        "--pidfile",
        "--group",
        "--mod",
        "--port",
        "--descr",
    ] {
        assert!(help.contains(option), "{option}: {help}");
    }
}
