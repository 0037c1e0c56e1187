//! `vdens-tap`: an unmodified QEMU, started by an ordinary user, plugged into VNLs by a tap.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vdens_tests::{Lab, PATIENCE, Session, need, stretched, wait_until};

use crate::status::status;
use crate::vm::{QEMU, await_boot, qemu, start};

/// How long a copy of 64 MiB may take.
const COPY: Duration = Duration::from_secs(120);

/// QEMU's back end for a VNL.
pub(crate) fn netdev(lab: &Lab, vnl: &str) -> String {
    let helper = lab.bin().join("vdens-tap");
    format!("tap,helper={} {vnl}", helper.display())
}

/// What `vdectl status` says of the taps of machines.
fn taps(lab: &Lab) -> Vec<Value> {
    let status = status(lab);
    let processes = status["processes"].as_array().cloned();
    let mut processes = processes.unwrap_or_default();
    processes.retain(|process| process["program"] == "vdens-tap");
    processes
}

/// Whether a process of `vdens-tap` is there.
fn is_running(lab: &Lab) -> bool {
    lab.is_running(&lab.bin().join("vdens-tap").display().to_string())
}

fn has_no_carrier(session: &Session<'_>) -> bool {
    session.ok("ip link show vde0").contains("NO-CARRIER")
}

/// Kills a process by its id in the status.
#[track_caller]
fn kill_process(pid: &Value) {
    let raw = pid.as_i64().and_then(|pid| pid.try_into().ok());
    let raw = raw.unwrap_or_else(|| panic!("no process: {pid}"));
    assert_eq!(kill(Pid::from_raw(raw), Signal::SIGKILL), Ok(()));
}

/// Copies 64 MiB of random bytes both ways between a session and a guest, and compares the sums.
pub(crate) fn copy_both_ways(ours: &Session<'_>, guest: &Session<'_>, addresses: [&str; 2]) {
    let limit = stretched(COPY);
    let sum = |said: (i32, String)| {
        assert_eq!(said.0, 0, "{}", said.1);
        // A serial line has the shell's prompts, too.
        let mut words = said.1.split_whitespace();
        let sum = words.find(|word| word.len() == 32).map(str::to_owned);
        sum.unwrap_or_else(|| panic!("no sum: {}", said.1))
    };
    let [our_address, guest_address] = addresses;
    // The guest's nc ends when the other end does not send any more.
    ours.start("socat -u TCP4-LISTEN:5000,reuseaddr,shut-none STDOUT | md5sum");
    let sent = guest.run_within(
        limit,
        &format!(
            "head -c 64M /dev/urandom >/f; md5sum </f
            until nc {our_address} 5000 </f 2>/dev/null; do sleep 0.1; done"
        ),
    );
    assert_eq!(
        sum(sent),
        sum(ours.finish(limit)),
        "what the guest has sent"
    );
    guest.start("nc -l -p 5001 </dev/null | md5sum");
    let sent = ours.run_within(
        limit,
        &format!(
            "f=$(mktemp -p \"$HOME\"); head -c 64M /dev/urandom >$f; md5sum <$f
            socat -u FILE:$f TCP4:{guest_address}:5001,retry=200,interval=0.05; rm -f $f"
        ),
    );
    assert_eq!(
        sum(sent),
        sum(guest.finish(limit)),
        "what the guest has received"
    );
}

#[test]
fn a_machine_on_a_cable() {
    need!("guest", "qemu-system-x86_64", "socat");
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let ours = lab.vdens(["--addr", "10.0.0.1/24", &vnl, "sh"]).session();
    let netdev = netdev(&lab, &vnl);
    let guest = start(&lab, std::slice::from_ref(&netdev)).session();
    await_boot(&guest);
    guest.address("eth0", "10.0.0.2/24");
    ours.ping("10.0.0.2");
    guest.ping("10.0.0.1");

    let listed = taps(&lab);
    assert_eq!(listed.len(), 1, "{listed:?}");
    let link = &listed[0]["links"][0];
    assert_eq!(
        (&link["state"], &link["tier"], &link["vnl"]),
        (&"up".into(), &"kernel".into(), &vnl.clone().into()),
        "{link}"
    );
    let machine = guest.proc().pid();
    assert_eq!(listed[0]["command"][1], machine.to_string(), "{listed:?}");
    assert!(
        link["interface_traffic"]["sent"]["frames"].as_u64() > Some(0),
        "{link}"
    );
    copy_both_ways(&ours, &guest, ["10.0.0.1", "10.0.0.2"]);

    // A worker that is killed is replaced.
    kill_process(&link["worker"]);
    wait_until("another worker serves the tap", PATIENCE, || {
        taps(&lab)[0]["links"][0]["restarts"] == 1 && taps(&lab)[0]["links"][0]["state"] == "up"
    });
    ours.ping("10.0.0.2");

    // The guest starts again.
    guest.start("reboot -f");
    let boots = || guest.proc().stdout().matches("guest ready").count() == 2;
    wait_until(
        "the guest boots again",
        stretched(Duration::from_secs(90)),
        boots,
    );
    guest.address("eth0", "10.0.0.2/24");
    ours.ping("10.0.0.2");

    // The machine is killed: nothing of it is left, and the session sees it.
    guest.proc().signal(Signal::SIGKILL);
    wait_until("the tap's supervisor has ended", PATIENCE, || {
        !is_running(&lab) && taps(&lab).is_empty()
    });
    wait_until("vde0 has no carrier", PATIENCE, || has_no_carrier(&ours));

    // The session is killed and started again: the next machine finds it.
    let guest = start(&lab, std::slice::from_ref(&netdev)).session();
    ours.proc().signal(Signal::SIGKILL);
    let ours = lab.vdens(["--addr", "10.0.0.1/24", &vnl, "sh"]).session();
    await_boot(&guest);
    guest.address("eth0", "10.0.0.2/24");
    ours.ping("10.0.0.2");
    // Its supervisor is killed: the machine has no link any more, and runs on.
    kill_process(&taps(&lab)[0]["pid"]);
    wait_until("vde0 has no carrier", PATIENCE, || has_no_carrier(&ours));
    guest.ok("cat /sys/class/net/eth0/address");
    wait_until("no process of vdens-tap is left", PATIENCE, || {
        !is_running(&lab)
    });
}

/// Three transports that the kernel does not carry, and three cards of one machine.
#[test]
fn a_machine_on_what_workers_carry() {
    need!("guest", "qemu-system-x86_64", "vde_switch");
    let lab = Lab::new();
    let ptp = lab.vnl("ptp", "p");
    let switch = lab.path("sw");
    let _switch = lab.debian("vde_switch", ["-s", &switch]).spawn_piped();
    lab.wait_for("sw/ctl");
    // Below those that the kernel chooses for other programs.
    let mut free = (20_000..32_000).filter(|port| UdpSocket::bind(("127.0.0.1", *port)).is_ok());
    let [near, far] = [0, 1].map(|_| free.next().unwrap());
    let udp = |near, far| format!("udp://127.0.0.1:{near}->127.0.0.1:{far}");
    let switch = format!("vde://{switch}");
    let session = |address: &str, vnl: &str| {
        let session = lab.vdens(["--addr", address, vnl, "sh"]).session();
        session.ok(":");
        session
    };
    let sessions = [
        session("10.0.0.1/24", &ptp),
        session("10.0.1.1/24", &switch),
        session("10.0.2.1/24", &udp(near, far)),
    ];
    let monitor = lab.path("monitor");
    let netdevs = [
        netdev(&lab, &format!("--no-panel {ptp}")),
        netdev(&lab, &switch),
        // The helper's command line goes through a shell.
        netdev(&lab, &format!("'{}'", udp(far, near))),
    ];
    let monitored = format!("unix:{monitor},server,nowait");
    let guest = start(&lab, &netdevs);
    let guest = guest.args(["-monitor", &monitored]).session();
    await_boot(&guest);
    for (card, session) in sessions.iter().enumerate() {
        guest.address(&format!("eth{card}"), &format!("10.0.{card}.2/24"));
        session.ping(&format!("10.0.{card}.2"));
        guest.ping(&format!("10.0.{card}.1"));
    }
    copy_both_ways(&sessions[0], &guest, ["10.0.0.1", "10.0.0.2"]);
    let tiers = |tap: &Value| tap["links"][0]["tier"] == "kernel";
    assert!(!taps(&lab).iter().any(tiers), "{:?}", taps(&lab));

    // A back end that QEMU deletes is gone, the others stay.
    assert_eq!(taps(&lab).len(), 3);
    let names: BTreeSet<String> = taps(&lab)
        .iter()
        .map(|tap| tap["links"][0]["interface"].to_string())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    // It is one machine.
    let graph = lab.vdectl(["graph", "--format", "text"]).ok();
    let machines = graph
        .lines()
        .filter(|line| line.starts_with("qemu-system-x86"));
    assert_eq!(machines.count(), 1, "{graph}");
    lab.sh(&format!("echo netdev_del n1 | socat - UNIX:{monitor}"))
        .ok();
    wait_until("the tap is gone", PATIENCE, || taps(&lab).len() == 2);
    sessions[2].ping("10.0.2.2");
    // Stopped as a service is, the machine leaves nothing.
    guest.proc().signal(Signal::SIGTERM);
    wait_until("all taps are gone", PATIENCE, || !is_running(&lab));
}

#[test]
fn three_machines_and_two_namespaces_on_a_switch() {
    need!("guest", "qemu-system-x86_64");
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let vnl = lab.vnl("vde", "sw");
    let netdev = netdev(&lab, &vnl);
    let card = |n| format!("52:54:00:12:34:0{n}");
    let guests = [1, 2, 3].map(|n| {
        let machine = start(&lab, std::slice::from_ref(&netdev));
        let address = format!("virtio-net-pci.mac={}", card(n));
        machine.args(["-global", &address]).session()
    });
    let mut members: Vec<_> = [4, 5]
        .map(|n| {
            let address = format!("10.0.0.{n}/24");
            lab.vdens(["--addr", &address, &vnl, "sh"]).session()
        })
        .into();
    for (guest, n) in guests.into_iter().zip(1..) {
        await_boot(&guest);
        guest.address("eth0", &format!("10.0.0.{n}/24"));
        members.insert(n - 1, guest);
    }
    for (member, own) in members.iter().zip(1..) {
        for n in (1..=members.len()).filter(|n| *n != own) {
            member.ping(&format!("10.0.0.{n}"));
        }
    }
    let is_kernel = |tap: &Value| tap["links"][0]["tier"] == "kernel";
    assert!(taps(&lab).iter().all(is_kernel), "{:?}", taps(&lab));
}

/// A monitor that opens a tap by its name, in a session of its own.
#[test]
fn a_tap_with_a_name() {
    need!("guest", "qemu-system-x86_64", "socat");
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let ours = lab.vdens(["--addr", "10.0.0.1/24", &vnl, "sh"]).session();
    let netdevs = ["tap,ifname=vde0,script=no,downscript=no".to_owned()];
    let machine = lab.vdens(["--tap", &vnl, QEMU]);
    let guest = machine.args(qemu(&netdevs)).session();
    await_boot(&guest);
    guest.address("eth0", "10.0.0.2/24");
    ours.ping("10.0.0.2");
    guest.ping("10.0.0.1");
    copy_both_ways(&ours, &guest, ["10.0.0.1", "10.0.0.2"]);
    // Nobody but the guest and this end is on the cable.
    let neighbours = ours.ok("ping -c 2 -I vde0 ff02::1 2>/dev/null | grep -c 'icmp_seq=1'");
    assert_eq!(neighbours.trim(), "2", "with this end itself");
    drop(guest);

    // A user that is not root in the session may open it, and the monitor may start again.
    let opens = "ip tuntap add mode tap name other 2>&1; ip -d link show vde0";
    let said = lab.vdens(["--tap", "null://", "sh", "-c", opens]).ok();
    assert!(said.contains("tun type tap"), "{said}");
    assert!(said.contains("master vde0.br"), "{said}");
    let prefix = ["--tap", "-i", "abcdefghijk", "null://", "true"];
    lab.vdens(prefix)
        .refused(&["'abcdefghijk0.link' has 17 bytes", "-i"]);
    lab.vdens(["--tap", "--addr", "10.0.0.1/24", "null://", "true"])
        .refused(&["--tap", "--addr"]);
}

#[test]
fn what_is_wrong_is_said() {
    need!("qemu-system-x86_64");
    let lab = Lab::new();
    let by_hand = |words: &[&str], said: &[&str]| {
        let command = lab.command(lab.bin().join("vdens-tap"), words);
        let started = ["QEMU starts this program: -netdev tap,id=n,helper="];
        command.refused(&[&started, said].concat());
    };
    by_hand(&["null://"], &["there is no --fd"]);
    by_hand(&["null://", "--fd=3"], &["there is no --use-vnet"]);
    for fd in ["0", "-1", "77", "1000000"] {
        let said = format!("--fd={fd} is no socket");
        by_hand(&["null://", "--use-vnet", &format!("--fd={fd}")], &[&said]);
    }
    let qemu = |vnl: &str, said: &[&str]| {
        let netdev = format!("{},id=n", netdev(&lab, vnl));
        let machine = ["-machine", "none", "-display", "none", "-netdev", &netdev];
        let output = lab.command("qemu-system-x86_64", machine).run();
        assert_eq!(output.code(), Some(1), "{output:#?}");
        for words in said.iter().chain(&["bridge helper failed", "vdens-tap: "]) {
            assert!(output.stderr.contains(words), "no '{words}': {output:#?}");
        }
    };
    qemu("nonsense://x", &["nonsense://"]);
    qemu("vde:///nowhere", &["/nowhere"]);
    qemu("--nonsense", &["--nonsense"]);
    qemu("", &["default switch"]);
    assert!(!is_running(&lab));
    assert_eq!(taps(&lab), Vec::<Value>::new());
}
