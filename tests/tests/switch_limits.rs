//! What other users' clients can take from a switch: a number of ports each, and a share of the
//! memory for queues.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::ChildStdin;

use serde_json::Value;
use vdens_tests::{Cmd, Lab, PATIENCE, Proc, Session, User, becomes_true, need, wait_until};

use crate::status::{link, status};

/// A switch that everybody may use, with further keys, and room for many ports.
fn start<'lab>(lab: &'lab Lab, scheme: &str, keys: &str) -> Proc<'lab> {
    let vnl = lab.vnl(scheme, &format!("sw[mode=0666{keys}]"));
    let script = format!("ulimit -n 4096; exec vde_plug null:// '{vnl}'");
    let switch = lab.sh(&script).spawn();
    lab.wait_for("sw/ctl");
    switch
}

/// The hostile client.
fn client<'lab>(lab: &'lab Lab, words: &str) -> Cmd<'lab> {
    let program = lab.write("hostile.py", include_str!("hostile_clients.py"));
    let (what, numbers) = words.split_once(' ').unwrap();
    let directory = lab.path("sw");
    lab.sh(&format!(
        "exec python3 {program} {what} {directory} {numbers}"
    ))
}

/// The hostile client as another user, in a directory of its own that the switch can reach.
fn foreign_client<'lab>(lab: &'lab Lab, words: &str) -> Cmd<'lab> {
    let directory = lab.path("theirs");
    if fs::create_dir(&directory).is_ok() {
        let other = User::other();
        chown(&directory, Some(other.uid), Some(other.gid)).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o711)).unwrap();
        lab.expect("theirs");
    }
    client(lab, words)
        .by(User::other())
        .env("PORTS_IN", directory)
}

/// Starts a client and waits until it has done its harm; it holds what it has until its input is
/// dropped.
#[track_caller]
fn harm<'lab>(client: Cmd<'lab>) -> (Proc<'lab>, ChildStdin) {
    let (client, stdin) = client.spawn_piped();
    let is_done = || client.stdout().contains("done\n") || !client.is_running();
    assert!(
        becomes_true(PATIENCE * 2, is_done) && client.is_running(),
        "{}",
        client.stderr()
    );
    (client, stdin)
}

/// How many ports a client has said that it has.
fn opened(client: &Proc<'_>) -> usize {
    let said = client.stdout();
    said.lines().next().unwrap().parse().unwrap()
}

fn resident_kib(process: &Proc<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let text = line.unwrap().trim().trim_end_matches(" kB");
    text.parse().unwrap()
}

fn member<'lab>(lab: &'lab Lab, number: u8) -> Session<'lab> {
    // On the panel the switch's process would not pass its frames on.
    let address = format!("10.0.0.{number}/24");
    let vnl = lab.vnl("vde", "sw");
    let args = ["--no-panel", "--addr", &address, &vnl, "sh"];
    lab.vdens(args).session()
}

/// The status of the switch's ports.
fn ports(lab: &Lab, switch: &Proc<'_>) -> Vec<Value> {
    let told = status(lab);
    let ports = &link(&told, switch.pid().cast_unsigned(), 1)["switch"]["ports"];
    ports.as_array().cloned().unwrap_or_default()
}

#[test]
fn another_user_gets_so_many_ports_and_no_more() {
    need!("root", "python3");
    let lab = Lab::new();
    for (scheme, keys, granted) in [("switch", "/userports=3", 3), ("hub", "", 64)] {
        let switch = start(&lab, scheme, keys);
        let (foreign, stdin) = harm(foreign_client(&lab, "ports 100"));
        assert_eq!(opened(&foreign), granted, "{scheme}{keys}");
        let uid = User::other().uid;
        let refusal = format!("user {uid}: it has {granted} ports, as many as");
        let log = switch.stderr();
        assert!(log.contains(&refusal), "{log}");
        // The limit is each user's own, and not for the switch's.
        let (own, own_stdin) = harm(client(&lab, "ports 100"));
        assert_eq!(opened(&own), 100);
        // A client that has left may come again.
        drop((stdin, own_stdin));
        foreign.wait(PATIENCE);
        own.wait(PATIENCE);
        wait_until("all ports are closed", PATIENCE, || {
            ports(&lab, &switch).is_empty()
        });
        let (again, stdin) = harm(foreign_client(&lab, "ports 100"));
        assert_eq!(opened(&again), granted, "{scheme}{keys}");
        drop(stdin);
        again.wait(PATIENCE);
        switch.terminate();
    }
}

#[test]
fn all_queues_share_one_bound_and_those_who_read_are_served() {
    need!("root", "python3", "socat");
    let lab = Lab::new();
    let switch = start(&lab, "switch", "/userports=400/memory=8");
    let (a, b) = (member(&lab, 1), member(&lab, 2));
    a.ping("10.0.0.2");
    let before = resident_kib(&switch);
    // Half a gibibyte, if they were all kept.
    let (client, stdin) = harm(foreign_client(&lab, "deaf 400 150"));
    assert_eq!(opened(&client), 400);
    let is_foreign = |port: &Value| port["client"]["uid"] == User::other().uid;
    wait_until("all frames are switched", PATIENCE, || {
        let ports = ports(&lab, &switch);
        ports.iter().any(|port| port["received"] == 150)
    });
    let grown = resident_kib(&switch).saturating_sub(before);
    assert!(grown < 32 << 10, "the switch has grown by {grown} KiB");
    // Clients that read lose nothing.
    let text = a.ok("ping -q -c 100 -i 0.01 -W 30 10.0.0.2");
    assert!(text.contains(" 0% packet loss"), "{text}");
    let ports = ports(&lab, &switch);
    let dropped = |port: &&Value| port["dropped"]["queue_full"].as_u64() > Some(0);
    let losers = ports.iter().filter(dropped);
    assert!(losers.clone().count() >= 399, "{ports:#?}");
    assert!(losers.into_iter().all(is_foreign), "{ports:#?}");
    a.send_file(&b, "10.0.0.2", 16);
    drop(stdin);
    client.wait(PATIENCE);
    let text = a.ok("ping -q -c 10 -i 0.01 -W 30 10.0.0.2");
    assert!(text.contains(" 0% packet loss"), "{text}");
}

#[test]
fn limits_that_make_no_sense() {
    let lab = Lab::new();
    for keys in ["userports=0", "userports=x", "memory=0", "memory=-1"] {
        let vnl = lab.vnl("switch", &format!("sw[{keys}]"));
        let key = keys.split('=').next().unwrap();
        lab.vde_plug(["null://", &vnl]).refused(&[key]);
    }
}
