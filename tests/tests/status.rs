//! `vdectl status`: what is running, as its user sees it.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use vdens_tests::{Lab, PATIENCE, User, need, stretched, wait_until};

/// What `vdectl status --json` says.
#[track_caller]
pub(crate) fn status(lab: &Lab) -> Value {
    let text = lab.vdectl(["status", "--json"]).ok();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What it says of a process.
pub(crate) fn process(status: &Value, pid: u32) -> Value {
    let processes = status["processes"].as_array().cloned().unwrap_or_default();
    let mut processes = processes.into_iter();
    let found = processes.find(|process| process["pid"] == pid);
    found.unwrap_or(Value::Null)
}

/// What it says of a link of a process.
pub(crate) fn link(status: &Value, pid: u32, number: usize) -> Value {
    process(status, pid)["links"][number].clone()
}

#[test]
fn nothing_is_running() {
    let lab = Lab::new();
    assert_eq!(lab.vdectl(["status"]).ok(), "");
    assert_eq!(status(&lab)["processes"], Value::Array(Vec::new()));
    lab.vdectl(["status", "null://"]).refused(&["null://"]);
    lab.vdens(["--json", "null://"]).refused(&["--json"]);
}

#[test]
fn a_cable_on_the_panel_and_one_to_a_legacy_peer() {
    need!("vdens");
    let lab = Lab::new();
    let (ours, legacy) = (lab.vnl("ptp", "p"), lab.vnl("ptp", "q"));
    let _debian = lab.debian("vdens", [&legacy, "sh"]).session();
    lab.wait_for("q");
    let b = lab.vdens(["--addr", "10.0.0.2/24", &ours, "sh"]).session();
    b.ok(":");
    let a = lab
        .vdens([
            "-v",
            "--multi",
            "--addr",
            "0:10.0.0.1/24",
            &ours,
            &legacy,
            "--",
        ])
        .args(["sh", "-i"])
        .session();
    a.ping("10.0.0.2");
    let [pid, peer] = [&a, &b].map(|session| session.proc().pid().cast_unsigned());
    let told = status(&lab);
    let process = process(&told, pid);
    assert_eq!(process["program"], "vdens", "{told:#}");
    assert_eq!(process["command"], serde_json::json!(["sh", "-i"]));
    assert_eq!(process["directory"], lab.dir().display().to_string());
    let kernel = link(&told, pid, 0);
    for (key, value) in [
        ("interface", Value::from("vde0")),
        ("vnl", Value::from(ours.as_str())),
        ("state", Value::from("up")),
        ("tier", Value::from("kernel")),
        ("restarts", Value::from(0)),
    ] {
        assert_eq!(kernel[key], value, "{kernel:#}");
    }
    assert_eq!(kernel["peer"]["uid"], lab.user().uid, "{kernel:#}");
    assert_eq!(kernel["peer"]["pid"], peer, "{kernel:#}");
    let plugin = lab.bin().join("libvdens_ptp.so").display().to_string();
    assert_eq!(kernel["plugin"]["file"], plugin);
    // The kernel carries them, and the interface knows.
    let received = &kernel["interface_traffic"]["received"];
    assert!(received["frames"].as_u64() >= Some(1), "{kernel:#}");

    let segmented = link(&told, pid, 1);
    assert_eq!(segmented["state"], "up", "{segmented:#}");
    assert_eq!(segmented["tier"], "segmented", "{segmented:#}");
    assert_eq!(segmented["reason"], "the peer is a legacy one");

    let text = lab.vdectl(["status"]).ok();
    for line in [
        format!("vdens {pid}, for "),
        format!("  vde0 {ours}: up, kernel\n"),
        format!("  vde1 {legacy}: up, segmented: the peer is a legacy one\n"),
        format!(
            "      peer: vdens, process {peer}, user {}\n",
            lab.user().uid
        ),
        format!("served by {plugin} "),
    ] {
        assert!(text.contains(&line), "{line}: {text}");
    }
    // The log has said so too.
    for line in [
        "vde0: frames go through the kernel (panel)\n",
        "vde1: frames are segmented here: the peer is a legacy one\n",
    ] {
        wait_until(line, PATIENCE, || a.proc().stderr().contains(line));
    }
    b.exit(0);
    wait_until("the far end is gone", PATIENCE, || {
        link(&status(&lab), pid, 0)["state"] == "no carrier"
    });
}

#[test]
fn frames_and_bytes_through_user_space_are_counted() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let start = |address: &str| {
        lab.vdens(["-v", "--no-panel", "--addr", address, &vnl, "sh"])
            .session()
    };
    let (a, b) = (start("10.0.0.1/24"), start("10.0.0.2/24"));
    a.ping("10.0.0.2");
    let pid = a.proc().pid().cast_unsigned();
    let count = |way: &str, what: &str| link(&status(&lab), pid, 0)[way][what].as_u64().unwrap();
    let before = [count("sent", "frames"), count("sent", "bytes")];
    b.ok("ping -c 20 -i 0.05 -s 1000 10.0.0.1");
    let [frames, bytes] = [count("sent", "frames"), count("sent", "bytes")];
    let [frames, bytes] = [frames - before[0], bytes - before[1]];
    // Neighbour discovery may come in between.
    assert!((20..40).contains(&frames), "{frames}");
    assert!((20 * 1042..30_000).contains(&bytes), "{bytes}");
    let link = link(&status(&lab), pid, 0);
    assert_eq!(link["tier"], "super-frames", "{link:#}");
    assert_eq!(link["reason"], "this end is not on the panel");
    let line = "vde0: frames go as super-frames: this end is not on the panel\n";
    wait_until("the log says so", PATIENCE, || {
        a.proc().stderr().contains(line)
    });
    // Without a far end frames are dropped and counted. Without carrier the kernel sends none.
    assert_eq!(link["sent"]["dropped"]["queue_full"], 0, "{link:#}");
}

#[test]
fn a_switch_and_its_clients() {
    need!("vdens");
    let lab = Lab::new();
    let plug = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let vnl = lab.vnl("vde", "sw");
    let kernel = lab.vdens(["--addr", "10.0.0.1/24", &vnl, "sh"]).session();
    kernel.ok(":");
    let process = lab
        .vdens(["--no-panel", "--addr", "10.0.0.2/24"])
        .args(["--mac", "02:00:00:00:00:02", &vnl, "sh"])
        .session();
    process.ok(":");
    let legacy = lab.debian("vdens", [&vnl, "sh"]).session();
    legacy.address("vde0", "10.0.0.3/24");
    process.ping("10.0.0.1");
    legacy.ping("10.0.0.2");
    let pid = plug.pid().cast_unsigned();
    let told = status(&lab);
    let ports = &link(&told, pid, 1)["switch"]["ports"];
    assert_eq!(ports.as_array().map(Vec::len), Some(3), "{ports:#}");
    for port in ports.as_array().unwrap() {
        assert_eq!(port["client"]["uid"], lab.user().uid, "{port:#}");
    }
    assert_eq!(ports[0]["tier"], "kernel", "{ports:#}");
    assert_ne!(ports[1]["tier"], "kernel", "{ports:#}");
    assert_eq!(ports[2]["tier"], "segmented", "{ports:#}");
    assert!(ports[1]["received"].as_u64() >= Some(2), "{ports:#}");
    let fdb = &link(&told, pid, 1)["switch"]["fdb"];
    let mut stations = fdb.as_array().unwrap().iter();
    let station = stations.find(|station| station["mac"] == "02:00:00:00:00:02");
    let station = station.unwrap_or_else(|| panic!("{fdb:#}"));
    assert_eq!(station["port"], "2", "{fdb:#}");
    assert_eq!(station["vlan"], 0);
    assert!(station["age"].as_u64() < Some(60));
    let text = lab.vdectl(["status"]).ok();
    for line in [
        format!("vde_plug {pid}, for "),
        "      port 1: ".into(),
        "      station 02:00:00:00:00:02: port 2, ".into(),
    ] {
        assert!(text.contains(&line), "{line}: {text}");
    }
    drop((kernel, process, legacy));
    plug.terminate();
    lab.expect("sw");
}

#[test]
fn the_dead_are_forgotten_and_the_stopped_are_named() {
    let lab = Lab::new();
    let [killed, stopped, sound] =
        [0, 1, 2].map(|_| lab.vdens(["null://", "sleep", "1000"]).spawn());
    let all = || status(&lab)["processes"].as_array().map(Vec::len);
    wait_until("all three are listed", PATIENCE, || all() == Some(3));
    killed.signal(Signal::SIGKILL);
    let killed_pid = killed.pid().cast_unsigned();
    killed.wait(PATIENCE);
    stopped.signal(Signal::SIGSTOP);
    let start = Instant::now();
    let told = status(&lab);
    assert!(
        start.elapsed() < stretched(Duration::from_secs(3)),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(process(&told, killed_pid), Value::Null);
    let silent = process(&told, stopped.pid().cast_unsigned());
    assert!(
        silent["error"].to_string().contains("does not answer"),
        "{told:#}"
    );
    let sound = process(&told, sound.pid().cast_unsigned());
    assert_eq!(sound["command"][0], "sleep", "{told:#}");
    let text = lab.vdectl(["status"]).ok();
    assert!(text.contains("does not answer within 1 s"), "{text}");
    stopped.signal(Signal::SIGCONT);
}

#[test]
fn another_user_sees_nothing() {
    need!("root");
    let lab = Lab::new();
    let a = lab.vdens(["null://", "sh"]).session();
    a.ok(":");
    assert_eq!(lab.vdectl(["status"]).by(User::other()).ok(), "");
    // Even one who gets at the socket is not answered: root is let in by the directory, not by the
    // process.
    let run = lab.dir().with_file_name("run").join("vdens");
    let find = format!("find {} -path '*status-*' -type s", run.display());
    let socket = lab.sh(&find).ok();
    let socket = socket.trim();
    assert_ne!(socket, "");
    let ask = format!(
        "import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.settimeout(5); \
         s.connect('{socket}'); print(s.recv(10))"
    );
    let said = lab.command("python3", ["-c", &ask]);
    assert_eq!(
        said.by(User::root()).ok(),
        "b''\n",
        "root is told something"
    );
    assert_eq!(lab.command("python3", ["-c", &ask]).ok(), "b'\"file\"'\n");
    let mode = lab.command("stat", ["-c", "%a", socket]).ok();
    assert_eq!(mode, "600\n");
}

#[test]
fn a_session_does_without_a_runtime_directory() {
    need!("root");
    let lab = Lab::new();
    let run = lab.dir().with_file_name("run");
    let make = format!(
        "mkdir -p {0} && mount -t tmpfs -o ro,mode=700 none {0}",
        run.display()
    );
    let output = lab
        .vdens(["-v", "--no-panel", "null://", "true"])
        .on_changed_machine(&make)
        .run();
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert!(
        output.stderr.contains("vdectl status will not see this"),
        "{output:?}"
    );
}

#[test]
fn many_are_listed_quickly() {
    let lab = Lab::new();
    let many: Vec<_> = (0..60)
        .map(|_| lab.vdens(["no", "sleep", "1000"]).spawn())
        .collect();
    let all = || status(&lab)["processes"].as_array().map(Vec::len);
    wait_until("all are listed", PATIENCE, || all() == Some(many.len()));
    let start = Instant::now();
    lab.vdectl(["status"]).ok();
    assert!(
        start.elapsed() < stretched(Duration::from_secs(2)),
        "{:?}",
        start.elapsed()
    );
    // All get the signal before the test waits for any.
    for process in &many {
        process.signal(Signal::SIGTERM);
    }
}

/// A session answers while it makes its interfaces, and goes on making them.
#[test]
fn questions_do_not_disturb_a_start() {
    let lab = Lab::new();
    let asking = lab
        .sh("while :; do vdectl status --json >status.json; done")
        .spawn();
    for n in 0..10 {
        let cable = lab.vnl("ptp", &format!("cable{n}"));
        let words = ["--addr", "10.0.0.1/24", "--addr", "fd00::1/64", &cable];
        lab.vdens(words).args(["true"]).ok();
    }
    drop(asking);
    lab.expect("status.json");
}
