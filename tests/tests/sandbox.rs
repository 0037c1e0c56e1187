//! The sandbox: a plugin that tries to leave it cannot, and the log names each call. The tests of
//! the schemes show that those stay within theirs.
//!
//! Each attempt is also made without the sandbox, where it is allowed. So a test cannot pass
//! because the attempt itself is wrong.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;

use serde_json::Value;
use vdens_tests::{Lab, PATIENCE, Session, skip, target, wait_until};

use crate::status::{link, status};

/// Attempts that an ordinary user's process succeeds in if nothing confines it.
const ALLOWED: [&str; 10] = [
    "read ~/public",
    "read ~/.ssh",
    "list ~",
    "write own file",
    "write ~/public",
    "make a file",
    "fork",
    "fork and exec",
    "TCP",
    "kill",
];

/// Attempts on files, which Landlock refuses.
const FILES: [&str; 7] = [
    "read ~/.ssh",
    "list ~",
    "write own file",
    "write ~/public",
    "make a file",
    "parent's memory",
    "parent's environment",
];

/// Attempts that are named for what they are after, and the call of theirs that the log names.
const NAMED: [(&str, &str); 5] = [
    ("fork", "clone"),
    ("fork and exec", "clone"),
    ("TCP", "socket"),
    ("UDP", "socket"),
    ("UNIX", "socket"),
];

/// A lab with the plugin `escape`, what it is after, and the VNL.
fn lab() -> (Lab, TcpListener, String) {
    let lab = Lab::new();
    lab.drop_plugin(&target().join("libescape.so"), "escape");
    let script = "mkdir ~/.ssh ~/public && echo key > ~/.ssh/id && echo all > ~/public/file";
    lab.sh(script).ok();
    lab.expect("escaped");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let vnl = format!("escape://{}", listener.local_addr().unwrap().port());
    (lab, listener, vnl)
}

/// What `vdectl status` says of the first link of a process.
fn told(lab: &Lab, pid: i32) -> Value {
    link(&status(lab), pid.cast_unsigned(), 0)
}

/// The attempts that a link has made, and their outcomes.
fn attempts(link: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(link["extra"].clone()).unwrap()
}

fn has_landlock() -> bool {
    let has = vdens_sandbox::landlock_version().is_some();
    if !has {
        skip("this kernel has no Landlock: attempts on files were not tried");
    }
    has
}

/// No attempt has succeeded, and the log names the calls.
fn is_confined(outcomes: &BTreeMap<String, String>, log: &str, is_plug: bool) {
    assert!(outcomes.len() > 25, "{outcomes:?}");
    let has_landlock = has_landlock();
    for (attempt, outcome) in outcomes {
        let name = attempt.as_str();
        let is_file = FILES.contains(&name);
        match name {
            "read ~/public" => assert_eq!(outcome, "ok"),
            _ if is_file && !has_landlock => {}
            // A process that needs to write nothing opens files to read them only.
            _ if is_file => assert!(
                ["EACCES", "EPERM"].contains(&outcome.as_str()),
                "{attempt}: {outcomes:?}"
            ),
            // A plug has a socket for its status.
            "UNIX" if is_plug => assert_eq!(outcome, "ENOENT"),
            _ => assert_eq!(outcome, "EPERM", "{attempt}: {outcomes:?}"),
        }
        let is_call = !is_file && name != "read ~/public";
        let named = NAMED.into_iter().find(|(attempt, _)| *attempt == name);
        let call = named.map_or(name, |(_, call)| call);
        let line = format!("its sandbox refuses the system call {call};");
        assert_eq!(log.matches(&line).count(), usize::from(is_call), "{log}");
    }
    for line in log.lines() {
        assert!(
            line.starts_with("[WARN] ") && line.contains("escape://"),
            "{line}"
        );
    }
}

#[test]
fn a_worker_cannot_leave_it() {
    let (lab, _listener, vnl) = lab();
    let session = lab.vdens(["--no-panel", &vnl, "sh"]).session();
    session.ok(":");
    let told = told(&lab, session.proc().pid());
    assert!(
        told["sandbox"].as_str().unwrap().starts_with("confined"),
        "{told}"
    );
    is_confined(&attempts(&told), &session.proc().stderr(), false);
    assert_eq!(
        fs::read_to_string(lab.home().join("public/file")).unwrap(),
        "all\n"
    );
    // It has no more descriptors than it needs, and gains no rights.
    let worker = told["worker"].as_i64().unwrap();
    let process = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    for (key, value) in [
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("CapEff", "0000000000000000"),
    ] {
        let line = process.lines().find(|line| line.starts_with(key)).unwrap();
        assert_eq!(line.split_whitespace().nth(1), Some(value), "{line}");
    }
}

/// Whether no program that a process starts gains rights.
fn gains_no_rights(pid: i64) -> bool {
    let process = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    process.contains("NoNewPrivs:\t1\n")
}

#[test]
fn a_plug_cannot_leave_it() {
    let (lab, _listener, vnl) = lab();
    lab.mkdir("pids");
    for options in [&["--no-panel"][..], &[]] {
        let plug = lab
            .vde_plug(options)
            .args(["-p", "pids/pid", &vnl, "null://"])
            .spawn();
        lab.wait_for("pids/pid");
        let told = told(&lab, plug.pid());
        is_confined(&attempts(&told), &plug.stderr(), true);
        assert_eq!(plug.terminate().code(), Some(128 + 15));
        assert!(!lab.dir().join("pids/pid").exists());
    }
}

#[test]
fn nested_links_cannot_leave_it() {
    let (lab, _listener, vnl) = lab();
    let vnl = format!("vlan://5{{{vnl}}}");
    let session = lab.vdens(["--no-panel", &vnl, "sh"]).session();
    session.ok(":");
    let log = session.proc().stderr();
    assert!(log.contains("refuses the system call ptrace"), "{log}");
    assert!(!lab.dir().join("escaped").exists() || !has_landlock());
}

/// A session that is not confined, and why its status says so.
#[track_caller]
fn is_open(lab: &Lab, session: &Session<'_>, why: &str) -> Value {
    session.ok(":");
    let told = told(lab, session.proc().pid());
    assert_eq!(told["sandbox"], format!("not confined: {why}"));
    told
}

#[test]
fn without_it_the_attempts_succeed() {
    let (lab, _listener, vnl) = lab();
    let option = lab.vdens(["--no-panel", "--no-sandbox", &vnl, "sh"]);
    let config = lab.write("config", "[plugins]\nsandbox = false\n");
    let key = lab.vdens(["--no-panel", "--config", &config, &vnl, "sh"]);
    for command in [option, key] {
        let session = command.session();
        let told = is_open(&lab, &session, "the sandbox is switched off");
        let outcomes = attempts(&told);
        for attempt in ALLOWED {
            assert_eq!(outcomes[attempt], "ok", "{attempt}: {outcomes:?}");
        }
        assert_eq!(session.proc().stderr(), "");
    }
}

#[test]
fn what_does_not_say_what_it_needs_gains_no_rights() {
    let lab = Lab::new();
    let vnl = lab.vnl("test_faulty", "mood");
    let why = "the plugin for test_faulty:// does not say what it needs";
    let off = "the sandbox is switched off";
    for (option, why) in [("--no-panel", why), ("--no-sandbox", off)] {
        let session = lab.vdens([option, &vnl, "sh"]).session();
        let worker = is_open(&lab, &session, why)["worker"].as_i64().unwrap();
        assert_eq!(gains_no_rights(worker), option != "--no-sandbox");
    }
    // Whatever one end says, the other may do anything.
    let plug = lab.vde_plug(["-p", "pid", "null://", &vnl]).spawn();
    lab.wait_for("pid");
    assert_eq!(
        told(&lab, plug.pid())["sandbox"],
        format!("not confined: {why}")
    );
    assert!(gains_no_rights(plug.pid().into()));
}

#[test]
fn a_command_of_the_users_may_gain_rights() {
    let lab = Lab::new();
    let anything = "a plugin says that its links may do anything";
    let faulty = lab.vnl("test_faulty", "mood");
    for (vnl, why) in [
        ("cmd://cat", anything),
        ("vlan://5{cmd://cat}", anything),
        ("=cat", "it runs a command"),
    ] {
        let session = lab.vdens(["--no-panel", vnl, "sh"]).session();
        let worker = is_open(&lab, &session, why)["worker"].as_i64().unwrap();
        assert!(!gains_no_rights(worker), "{vnl}");
    }
    // Whatever the other end does not say.
    let plug = lab.vde_plug(["-p", "pid", &faulty, "cmd://cat"]).spawn();
    lab.wait_for("pid");
    assert!(!gains_no_rights(plug.pid().into()));
}

#[test]
fn a_directory_that_was_replaced_can_be_used() {
    let lab = Lab::new();
    lab.mkdir("a");
    let vnl = lab.vnl("ptp", "a/cable");
    let start = |address: &str| {
        let vdens = lab.vdens(["--no-panel", "--addr", address, &vnl, "sh"]);
        vdens.session()
    };
    let (a, b) = (start("10.0.0.1/24"), start("10.0.0.2/24"));
    a.ping("10.0.0.2");
    drop(b);
    lab.sh("rm -r a && mkdir a").ok();
    let b = start("10.0.0.2/24");
    wait_until("the ends meet", PATIENCE, || {
        b.run("ping -c 1 -W 1 10.0.0.1").0 == 0
    });
    let log = a.proc().stderr();
    assert!(
        log.contains("the directory of its socket was replaced"),
        "{log}"
    );
    // The permissions are not the reason.
    assert!(!log.contains("you need write permission"), "{log}");
    drop((a, b));
}
