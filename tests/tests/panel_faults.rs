//! What a session's commands and other processes of its user may do to the panel: no session hangs,
//! and a deleted interface is noticed.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use vdens_tests::{Lab, PATIENCE, Proc, Session, User, need, wait_until};

use crate::status::{link, status};

/// Where the registry of the panel's holders is.
fn registry_of(lab: &Lab) -> PathBuf {
    let namespace = |kind| fs::metadata(format!("/proc/self/ns/{kind}")).unwrap().ino();
    let base = lab.dir().with_file_name("run").join("vdens");
    base.join(format!("{}-{}", namespace("user"), namespace("pid")))
}

/// The registry, made before any session needs it.
fn registry(lab: &Lab) -> PathBuf {
    let dir = registry_of(lab);
    for dir in [dir.parent().unwrap(), &dir] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).unwrap();
        lab.give(dir);
    }
    dir
}

/// The process's start time in clock ticks, as a holder's file has it.
fn start_time(pid: i32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    fields.split_whitespace().nth(19).unwrap().to_owned()
}

/// A Python script of the user's, when it has printed that it is ready.
fn script<'lab>(lab: &'lab Lab, text: &str) -> Proc<'lab> {
    let proc = lab.command("python3", ["-c", text]).spawn();
    wait_until("the script", PATIENCE, || proc.stdout().contains("ready"));
    proc
}

fn write(lab: &Lab, path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    lab.give(path);
}

fn mkfifo(lab: &Lab, path: &Path) {
    lab.command("mkfifo", [path]).ok();
}

/// A new session starts, and another one is ended by SIGTERM.
#[track_caller]
fn sessions_start_and_end(lab: &Lab) {
    let session = lab.vdens([&lab.vnl("ptp", "p"), "sh"]).session();
    session.ok(":");
    drop(session);
    let vdens = lab.vdens([&lab.vnl("ptp", "p"), "sleep", "1000"]).spawn();
    wait_until("the command", PATIENCE, || lab.is_running("sleep 1000"));
    assert_eq!(vdens.terminate().code(), Some(128 + 15));
}

/// What root sees on the panel, which the session holds.
pub(crate) fn on_panel(lab: &Lab, holder: &Session<'_>, script: &str) -> String {
    let pid = holder.proc().pid();
    let entry = fs::read_to_string(registry_of(lab).join(pid.to_string())).unwrap();
    let net = entry.split_whitespace().nth(2).unwrap();
    let inside = format!("nsenter --net=/proc/{pid}/fd/{net} {script}");
    lab.sh(&inside).by(User::root()).ok()
}

/// Holds the reading end of the FIFO `f` as descriptors 10 and 11. Opening it again to read would
/// wait for a writer.
const READER: &str = "
import os, time
fifo = os.open('f', os.O_RDONLY | os.O_NONBLOCK)
os.dup2(fifo, 10), os.dup2(fifo, 11)
print('ready', flush=True)
time.sleep(1000)
";

#[test]
fn a_holder_that_names_a_fifo_stops_nobody() {
    need!("python3");
    let lab = Lab::new();
    let dir = registry(&lab);
    mkfifo(&lab, &lab.dir().join("f"));
    lab.expect("f");
    let reader = script(&lab, READER);
    let file = dir.join(reader.pid().to_string());
    write(
        &lab,
        &file,
        &format!("{} 10 11\n", start_time(reader.pid())),
    );
    sessions_start_and_end(&lab);
    reader.terminate();
    // The next session finds that it is gone.
    lab.vdens([&lab.vnl("ptp", "p"), "true"]).ok();
}

#[test]
fn a_fifo_or_an_endless_file_among_the_holders_stops_nobody() {
    need!("python3");
    let lab = Lab::new();
    let dir = registry(&lab);
    let sleeper = script(
        &lab,
        "import time; print('ready', flush=True); time.sleep(1000)",
    );
    mkfifo(&lab, &dir.join("1"));
    mkfifo(&lab, &dir.join(sleeper.pid().to_string()));
    std::os::unix::fs::symlink("/dev/zero", dir.join("2")).unwrap();
    write(&lab, &dir.join("3"), "");
    let endless = fs::OpenOptions::new().write(true).open(dir.join("3"));
    endless.unwrap().set_len(1 << 40).unwrap();
    sessions_start_and_end(&lab);
    assert!(!dir.exists(), "what is no holder's file is removed");
    drop(sleeper);
}

#[test]
fn a_lock_that_is_a_fifo_costs_the_panel_only() {
    let lab = Lab::new();
    let dir = registry(&lab);
    mkfifo(&lab, &dir.join("lock"));
    sessions_start_and_end(&lab);
    let session = lab.vdens(["-v", &lab.vnl("ptp", "p"), "sh"]).session();
    session.ok(":");
    wait_until("the reason", PATIENCE, || {
        session.proc().stderr().contains("no panel")
    });
    drop(session);
    fs::remove_dir_all(dir.parent().unwrap()).unwrap();
}

/// Holds the registry's lock.
const LOCKER: &str = "
import fcntl, sys, time
lock = open(sys.argv[1], 'w')
fcntl.flock(lock, fcntl.LOCK_EX)
print('ready', flush=True)
time.sleep(1000)
";

#[test]
fn who_waits_for_the_lock_serves_sigterm() {
    need!("python3");
    let lab = Lab::new();
    let lock = registry(&lab).join("lock");
    write(&lab, &lock, "");
    let locker = lab.command("python3", ["-c", LOCKER]).args([&lock]).spawn();
    wait_until("the lock", PATIENCE, || locker.stdout().contains("ready"));
    let vdens = lab.vdens([&lab.vnl("ptp", "p"), "true"]).spawn();
    let pid = vdens.pid();
    wait_until("signals are read", PATIENCE, || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigBlk:\t"));
        u64::from_str_radix(mask.unwrap(), 16).unwrap() & 1 << 14 != 0
    });
    // Without the signal it would go on waiting for as long as ten seconds.
    assert_eq!(vdens.terminate().code(), Some(128 + 15));
    locker.terminate();
    lab.vdens([&lab.vnl("ptp", "p"), "true"]).ok();
}

/// Sends a frame from each of 200,000 stations to one.
const FLOOD: &str = "
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('vde0', 0))
there = bytes.fromhex(sys.argv[1].replace(':', ''))
for n in range(200000):
    try: s.send(there + b'\\x02\\x00' + n.to_bytes(4, 'big') + b'\\x88\\xb6' + bytes(46))
    except BlockingIOError: pass
";

#[test]
fn a_flood_of_addresses_does_not_fill_the_kernel() {
    need!("root", "linux 6.7", "python3", "bridge");
    let lab = Lab::new();
    let flood = lab.write("flood.py", FLOOD);
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let vnl = lab.vnl("vde", "sw");
    let a = lab.vdens(["--addr", "10.0.0.1/24", &vnl, "sh"]).session();
    let b = lab.vdens(["--addr", "10.0.0.2/24", &vnl, "sh"]).session();
    a.ping("10.0.0.2");
    let there = b.ok("ip -br link show vde0 | awk '{ print $3 }'");
    let (status, text) = a.run_within(
        Duration::from_secs(120),
        &format!("python3 {flood} {}", there.trim()),
    );
    assert_eq!(status, 0, "{text}");
    let known = on_panel(&lab, &a, "bridge fdb show").lines().count();
    // All that fit were learned, and no more; a bridge's own addresses are beside those.
    assert!((131_000..132_000).contains(&known), "{known}");
    b.ping("10.0.0.1");
    let c = lab.vdens(["--addr", "10.0.0.3/24", &vnl, "sh"]).session();
    c.ping("10.0.0.1");
    c.ping("10.0.0.2");
}

/// How `vdectl status` says that a session's link is served.
fn service(lab: &Lab, session: &Session<'_>, number: usize) -> String {
    let link = link(&status(lab), session.proc().pid().unsigned_abs(), number);
    link["service"].as_str().unwrap_or_default().to_owned()
}

/// The link of a session is closed, and the session at its other end has no carrier.
#[track_caller]
fn is_closed(lab: &Lab, session: &Session<'_>, number: usize, other: &Session<'_>) {
    wait_until("the link is closed", PATIENCE, || {
        service(lab, session, number) == "closed"
    });
    wait_until("the other end has no carrier", PATIENCE, || {
        other.ok("ip link show vde0").contains("NO-CARRIER")
    });
}

#[test]
fn an_interface_deleted_inside_closes_its_link() {
    for options in [[].as_slice(), &["--no-panel"]] {
        let lab = Lab::new();
        let cables = [lab.vnl("ptp", "p"), lab.vnl("ptp", "q")];
        let start = |address: &str, vnl: &String| {
            let vdens = lab.vdens(options).args(["--addr", address, vnl, "sh"]);
            vdens.session()
        };
        let vdens = lab.vdens(["-m"]).args(options).args(&cables);
        let a = vdens.args(["--", "sh"]).session();
        a.address("vde0", "10.0.0.1/24");
        a.address("vde1", "10.0.1.1/24");
        let b = start("10.0.0.2/24", &cables[0]);
        let c = start("10.0.1.2/24", &cables[1]);
        a.ping("10.0.0.2");
        c.ping("10.0.1.1");
        a.ok("ip link del vde0");
        is_closed(&lab, &a, 0, &b);
        // The other link has nothing to do with that.
        assert_eq!(service(&lab, &a, 1), "served");
        c.ping("10.0.1.1");
        // The end of the cable is free for another.
        let d = start("10.0.0.3/24", &cables[0]);
        d.ping("10.0.0.2");
        assert_eq!(service(&lab, &a, 0), "closed");
        a.exit(0);
    }
}

#[test]
fn an_interface_of_a_switch_deleted_inside_leaves_its_port() {
    let lab = Lab::new();
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let vnl = lab.vnl("vde", "sw");
    let a = lab.vdens(["--addr", "10.0.0.1/24", &vnl, "sh"]).session();
    let b = lab.vdens(["--addr", "10.0.0.2/24", &vnl, "sh"]).session();
    let c = lab.vdens(["--no-panel", "--addr", "10.0.0.3/24", &vnl, "sh"]);
    let _c = c.session();
    for there in ["10.0.0.2", "10.0.0.3"] {
        a.ping(there);
    }
    a.ok("ip link del vde0");
    wait_until("the link is closed", PATIENCE, || {
        service(&lab, &a, 0) == "closed"
    });
    wait_until("the switch has two ports left", PATIENCE, || {
        let switch = link(&status(&lab), switch.pid().unsigned_abs(), 1);
        let ports = switch["switch"]["ports"].as_array().map(Vec::len);
        ports == Some(2)
    });
    b.ping("10.0.0.3");
}

#[test]
fn an_interface_renamed_or_moved_keeps_its_link_until_it_is_deleted() {
    need!("unshare", "nsenter");
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let a = lab.vdens(["--addr", "10.0.0.1/24", &vnl, "sh"]).session();
    let b = lab.vdens(["--addr", "10.0.0.2/24", &vnl, "sh"]).session();
    b.ping("10.0.0.1");
    let goes_on = || {
        // Longer than the supervisor takes to see that an interface is gone.
        sleep(Duration::from_secs(3));
        b.ping("10.0.0.1");
        assert_eq!(service(&lab, &a, 0), "served");
    };
    a.ok("ip link set vde0 down; ip link set vde0 name eth9; ip link set eth9 up");
    goes_on();
    a.ok(
        "unshare -Urn sleep 1000 & n=$!
          until [ $(readlink /proc/$n/ns/net) != $(readlink /proc/$$/ns/net) ]; do sleep 0.1; done",
    );
    a.ok("ip link set eth9 netns $n");
    a.ok("in='nsenter -t '$n' -U -n --preserve-credentials'
          $in ip addr add 10.0.0.1/24 dev eth9; $in ip link set eth9 up");
    goes_on();
    // With the namespace it is in an interface is deleted.
    a.ok("kill $n");
    is_closed(&lab, &a, 0, &b);
}

/// When both ends of a cable end together, as those of `nat://` do, its bridge stays on the panel.
/// Later ones remove it.
#[test]
fn unused_bridges_do_not_pile_up() {
    need!("root", "ip", "nsenter");
    let lab = Lab::new();
    let holder = lab.vdens([&lab.vnl("ptp", "p"), "sh"]).session();
    for _ in 0..40 {
        lab.vdens(["nat://", "true"]).ok();
    }
    let bridges = on_panel(&lab, &holder, "ip -o link show type bridge");
    assert!(bridges.lines().count() < 35, "{bridges}");
    assert_eq!(holder.exit(0).code(), Some(0));
}
