//! The panel: the kernel carries frames between one user's namespaces, and no other user reaches
//! them.

use std::fs;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use vdens_tests::{Lab, PATIENCE, Proc, Session, User, need, skip, target, wait_until};

use crate::status::{link, status};

const CARRIED: &str = "frames go through the kernel";

/// Two of our namespaces on a cable, 10.0.0.1 and 10.0.0.2.
fn pair<'lab>(lab: &'lab Lab, options: &[&str]) -> (Session<'lab>, Session<'lab>) {
    let vnl = lab.vnl("ptp", "p");
    let start = |address: &str| {
        lab.vdens(["-v"])
            .args(options)
            .args(["--addr", address, &vnl, "sh"])
            .session()
    };
    let first = start("10.0.0.1/24");
    first.ok(":");
    (first, start("10.0.0.2/24"))
}

fn is_carried(session: &Session<'_>) -> bool {
    session.proc().stderr().contains(CARRIED)
}

fn registry(lab: &Lab) -> PathBuf {
    lab.dir().with_file_name("run").join("vdens")
}

/// The entries of the holders' registry: process ids.
fn holders(lab: &Lab) -> Vec<String> {
    let dirs = fs::read_dir(registry(lab)).into_iter().flatten().flatten();
    let is_status = |dir: &fs::DirEntry| dir.file_name().to_string_lossy().starts_with("status");
    let dirs = dirs.filter(|dir| !is_status(dir));
    let files = dirs.flat_map(|dir| fs::read_dir(dir.path()).into_iter().flatten().flatten());
    let names = files.filter_map(|file| file.file_name().into_string().ok());
    names.filter(|name| name != "lock").collect()
}

#[test]
fn two_of_a_users_namespaces_are_plugged_together() {
    need!("socat");
    let lab = Lab::new();
    let (a, b) = pair(&lab, &[]);
    b.ping("10.0.0.1");
    wait_until("the kernel carries the frames", PATIENCE, || {
        is_carried(&a) && is_carried(&b)
    });
    a.send_file(&b, "10.0.0.2", 64);
    for session in [&a, &b] {
        session.ok("ip link set vde0 mtu 9000");
    }
    a.ok("ping -c 2 -W 20 -M do -s 8972 10.0.0.2");
    b.exit(0);
    wait_until("no carrier without a peer", PATIENCE, || {
        a.ok("ip link show vde0").contains("NO-CARRIER")
    });
}

#[test]
fn without_the_panel_frames_go_through_user_space() {
    need!("socat");
    for options in [["--no-panel"].as_slice(), &["--config", "panel.toml"]] {
        let lab = Lab::new();
        let config = lab.write("panel.toml", "[defaults]\npanel = false\n");
        let options: Vec<&str> = options
            .iter()
            .map(|word| {
                if *word == "panel.toml" {
                    &config
                } else {
                    *word
                }
            })
            .collect();
        let (a, b) = pair(&lab, &options);
        b.ping("10.0.0.1");
        a.send_file(&b, "10.0.0.2", 8);
        assert!(!is_carried(&a) && !is_carried(&b));
        assert_eq!(holders(&lab).len(), 0);
    }
}

#[test]
fn a_transport_of_a_few_lines_gets_the_panel_and_super_frames() {
    need!("socat");
    let lab = Lab::new();
    lab.drop_plugin(&target().join("libpackets.so"), "packets");
    let vnl = lab.vnl("packets", "p");
    for (options, how) in [
        (&["-v"][..], CARRIED),
        (&["-v", "--no-panel"], "frames go as super-frames"),
    ] {
        let start = |address: &str| {
            let vdens = lab.vdens(options).args(["--addr", address, &vnl, "sh"]);
            vdens.session()
        };
        let a = start("10.0.0.1/24");
        a.ok(":");
        let b = start("10.0.0.2/24");
        b.ping("10.0.0.1");
        wait_until(how, PATIENCE, || {
            [&a, &b].iter().all(|end| end.proc().stderr().contains(how))
        });
        a.send_file(&b, "10.0.0.2", 8);
        b.exit(0);
        wait_until("no carrier without a peer", PATIENCE, || {
            a.ok("ip link show vde0").contains("NO-CARRIER")
        });
        start("10.0.0.2/24").ping("10.0.0.1");
        a.exit(0);
        assert!(!lab.dir().join("p").exists());
    }
}

#[test]
fn one_end_without_the_panel_is_served_through_user_space() {
    need!("socat");
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let a = lab
        .vdens(["-v", "--addr", "10.0.0.1/24", &vnl, "sh"])
        .session();
    let b = lab
        .vdens(["-v", "--no-panel", "--addr", "10.0.0.2/24", &vnl, "sh"])
        .session();
    b.ping("10.0.0.1");
    a.send_file(&b, "10.0.0.2", 8);
    b.send_file(&a, "10.0.0.1", 8);
    assert!(!is_carried(&a) && !is_carried(&b));
}

#[test]
fn addresses_survive_re_plugging() {
    need!("vdens");
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let a = lab
        .vdens(["-v", "--addr", "10.0.0.1/24", &vnl, "sh"])
        .session();
    let link = a.ok("cat /sys/class/net/vde0/address; ip -o link show vde0 | grep -o ether.*");
    for round in 0..2 {
        let legacy = lab.debian("vdens", [&vnl, "sh"]).session();
        legacy.address("vde0", "10.0.0.2/24");
        legacy.ping("10.0.0.1");
        legacy.exit(0);
        let ours = lab.vdens(["--addr", "10.0.0.3/24", &vnl, "sh"]).session();
        ours.ping("10.0.0.1");
        wait_until("carried by the kernel", PATIENCE, || {
            a.proc().stderr().matches(CARRIED).count() > round
        });
        ours.exit(0);
    }
    let after = a.ok("cat /sys/class/net/vde0/address; ip -o link show vde0 | grep -o ether.*");
    assert_eq!(link, after);
}

#[test]
fn the_panel_survives_its_holders() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let start = |address: &str| lab.vdens(["-v", "--addr", address, &vnl, "sh"]).session();
    let maker = lab.vdens([&lab.vnl("ptp", "other"), "sh"]).session();
    let (a, b) = (start("10.0.0.1/24"), start("10.0.0.2/24"));
    b.ping("10.0.0.1");
    maker.proc().signal(Signal::SIGKILL);
    a.ping("10.0.0.2");
    b.proc().signal(Signal::SIGKILL);
    wait_until("no carrier without a peer", PATIENCE, || {
        a.ok("ip link show vde0").contains("NO-CARRIER")
    });
    let c = start("10.0.0.3/24");
    c.ping("10.0.0.1");
    assert!(is_carried(&c), "{}", c.proc().stderr());
    assert_eq!(holders(&lab).len(), 2, "the dead are forgotten");
    // The killed left their socket at most; the next comer reclaims it.
    lab.expect("p+");
    lab.expect("other");
}

#[test]
fn fifty_at_once_find_one_panel() {
    let lab = Lab::new();
    let start = |n: usize| {
        let vnl = lab.vnl("ptp", &format!("p{}", n / 2));
        let address = format!("10.0.{}.{}/24", n / 2, n % 2 + 1);
        lab.vdens(["-v", "--addr", &address, &vnl, "sh"])
    };
    // All are started before any is waited for.
    let sessions: Vec<Session<'_>> = (0..50).map(|n| start(n).session()).collect();
    for (n, session) in sessions.iter().enumerate() {
        let peer = format!("10.0.{}.{}", n / 2, 2 - n % 2);
        let ping = format!("until ping -c 1 -W 1 {peer}; do sleep 0.2; done");
        session.start(&format!("timeout 100 sh -c '{ping}'"));
    }
    for session in &sessions {
        let (status, text) = session.finish(PATIENCE * 2);
        assert_eq!(status, 0, "{text}");
        wait_until("carried by the kernel", PATIENCE, || is_carried(session));
    }
    assert_eq!(holders(&lab).len(), 50);
}

#[test]
fn a_worker_that_dies_on_a_legacy_switch_is_replaced() {
    need!("vde_switch", "vdens");
    let lab = Lab::new();
    let ours = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let a = on_the_switch(&lab, "10.0.0.1/24");
    wait_until("carried by the kernel", PATIENCE, || is_carried(&a));
    ours.terminate();
    let (legacy, _stdin) = lab
        .debian("vde_switch", ["-s", &lab.path("sw")])
        .spawn_piped();
    lab.wait_for("sw/ctl");
    let b = lab.debian("vdens", [&lab.vnl("vde", "sw"), "sh"]).session();
    b.address("vde0", "10.0.0.2/24");
    a.ping("10.0.0.2");
    let shell = a.ok("echo $$");
    let children = lab.sh(&format!("pgrep -P {}", a.proc().pid())).ok();
    let workers = children
        .split_whitespace()
        .filter(|pid| *pid != shell.trim());
    let killed = workers.map(|worker| lab.command("kill", ["-9", worker]).ok());
    assert_eq!(killed.count(), 1);
    b.ping("10.0.0.1");
    drop((a, b));
    legacy.terminate();
    lab.expect("sw");
}

#[test]
fn nobody_gets_at_it() {
    need!("root");
    let lab = Lab::new();
    let (a, b) = pair(&lab, &[]);
    b.ping("10.0.0.1");
    let supervisor = a.proc().pid();
    let held = |n: usize| {
        let holder = &holders(&lab)[0];
        let dirs = fs::read_dir(registry(&lab)).unwrap().flatten();
        let mut entries = dirs.filter_map(|dir| fs::read_to_string(dir.path().join(holder)).ok());
        let entry = entries.next().unwrap();
        let fd: u32 = entry.split_whitespace().nth(n).unwrap().parse().unwrap();
        format!("/proc/{holder}/fd/{fd}")
    };
    let (user, net) = (held(1), held(2));
    // A member, with all the capabilities it has.
    let (status, text) = b.run(&format!("nsenter --net={net} ip link"));
    assert_ne!(status, 0, "{text}");
    let (status, text) = b.run(&format!("nsenter --user={user} --net={net} true"));
    assert_ne!(status, 0, "{text}");
    // A member and its sibling.
    let sibling = format!("nsenter -t {supervisor} -U -n --preserve-credentials true");
    let child = a.ok("echo $$");
    let child = child.trim();
    let (status, text) = b.run(&format!("nsenter -t {child} -n ip link"));
    assert_ne!(status, 0, "{text}");
    // Another user.
    for script in [sibling, format!("nsenter --user={user} --net={net} true")] {
        let output = lab.sh(&script).by(User::other()).run();
        assert_ne!(output.code(), Some(0), "{output:?}");
    }
    b.ping("10.0.0.1");
}

/// A namespace on the switch in the directory `sw`.
fn on_the_switch<'lab>(lab: &'lab Lab, address: &str) -> Session<'lab> {
    let vnl = lab.vnl("vde", "sw");
    let session = lab.vdens(["-v", "--addr", address, &vnl, "sh"]).session();
    session.ok(":");
    session
}

#[test]
fn our_switch_serves_its_users_namespaces_by_the_kernel_and_others_too() {
    need!("vdens", "socat");
    let lab = Lab::new();
    let vnl = lab.vnl("switch", "sw");
    let switch = lab.vde_plug(["null://", &vnl]).spawn();
    lab.wait_for("sw/ctl");
    let a = on_the_switch(&lab, "10.0.0.1/24");
    let b = on_the_switch(&lab, "10.0.0.2/24");
    b.ok("ping -c 1 -W 20 10.0.0.1");
    assert!(is_carried(&a) && is_carried(&b), "{}", a.proc().stderr());
    a.send_file(&b, "10.0.0.2", 64);
    let legacy = lab.debian("vdens", [&lab.vnl("vde", "sw"), "sh"]).session();
    legacy.address("vde0", "10.0.0.3/24");
    let user_space = lab
        .vdens([
            "--no-panel",
            "--addr",
            "10.0.0.4/24",
            &lab.vnl("vde", "sw"),
            "sh",
        ])
        .session();
    for session in [&legacy, &user_space] {
        session.ping("10.0.0.1");
        session.ping("10.0.0.2");
        session.send_file(&a, "10.0.0.1", 8);
        b.send_file(
            session,
            if std::ptr::eq(session, &legacy) {
                "10.0.0.3"
            } else {
                "10.0.0.4"
            },
            8,
        );
    }
    legacy.ping("10.0.0.4");

    switch.signal(Signal::SIGKILL);
    wait_until("no carrier without a switch", PATIENCE, || {
        a.ok("ip link show vde0").contains("NO-CARRIER")
    });
    // Reaped: what a process has left is removed when its number is nobody's.
    drop(switch);
    let switch = lab.vde_plug(["null://", &vnl]).spawn();
    a.ping("10.0.0.2");
    wait_until("carried again", PATIENCE, || {
        a.proc().stderr().matches(CARRIED).count() == 2
    });
    // Debian's vdens does not notice that its switch has gone, and leaves its socket there.
    drop((a, b, legacy, user_space));
    switch.terminate();
    lab.expect("sw");
}

/// Sends a frame of each kind and prints those that arrive: what a bridge keeps to itself by the
/// standard (IEEE 802.1D, table 7-10) but for pause frames, and what is no IP packet although it
/// says so, which a bridge's packet filter takes out.
const PASS: &str = r#"
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(('vde0', 0))
group = lambda last: bytes.fromhex('0180c20000') + bytes([last])
frames = {b'\x88\xb6' + group(last): 'group %x' % last for last in range(16) if last != 1}
for kind, name in ((b'\x08\x00', 'IPv4'), (b'\x86\xdd', 'IPv6'), (b'\x08\x06', 'ARP')):
    frames[kind + b'\xff' * 6] = 'no ' + name
if sys.argv[1] == 'send':
    for what in frames:
        s.send(what[2:] + bytes.fromhex('020000000009') + what[:2] + bytes(46))
else:
    print('ready', flush=True)
    end = time.time() + 10
    while frames and (left := end - time.time()) > 0:
        s.settimeout(left)
        try: frame = s.recv(2000)
        except TimeoutError: break
        if frame[6:12] == bytes.fromhex('020000000009'): frames.pop(frame[12:14] + frame[:6], None)
    print('missing:', *frames.values())
"#;

#[test]
fn a_cable_keeps_no_frame_to_itself() {
    need!("python3");
    let lab = Lab::new();
    let pass = lab.write("pass.py", PASS);
    let (a, b) = pair(&lab, &[]);
    b.ping("10.0.0.1");
    assert!(is_carried(&b));
    b.ok(&format!("python3 {pass} receive >$HOME/seen & p=$!"));
    wait_until("the receiver", PATIENCE, || {
        b.run("cat $HOME/seen").1.contains("ready")
    });
    a.ok(&format!("python3 {pass} send"));
    assert_eq!(b.ok("wait $p; cat $HOME/seen"), "ready\nmissing:\n");
}

/// The length of the longest TCP frame that arrives on an interface within a while.
const LONGEST: &str = r#"
import socket, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x800))
s.bind(('vde0', 0x800))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
print('ready', flush=True)
s.settimeout(60)
longest, end = len(s.recv(1 << 20)), time.time() + 10
s.settimeout(2)
try:
    while time.time() < end: longest = max(longest, len(s.recv(1 << 20)))
except TimeoutError: pass
print(longest)
"#;

#[test]
fn frames_are_as_long_as_asked_for() {
    need!("python3", "socat");
    if !has_big_tcp() {
        skip("Linux before 6.3 has no BIG TCP for IPv4");
        return;
    }
    for (options, expected) in [
        ([].as_slice(), 60_000..66_000),
        (&["--big-tcp"], 66_000..600_000),
    ] {
        let lab = Lab::new();
        let longest = lab.write("longest.py", LONGEST);
        let (a, b) = pair(&lab, options);
        b.ping("10.0.0.1");
        b.ok(&format!("python3 {longest} >$HOME/longest & p=$!"));
        wait_until("the receiver", PATIENCE, || {
            b.run("cat $HOME/longest").1.contains("ready")
        });
        a.send_file(&b, "10.0.0.2", 64);
        let seen = b.ok("wait $p; tail -n 1 $HOME/longest");
        let seen: usize = seen.trim().parse().unwrap();
        assert!(expected.contains(&seen), "{options:?}: {seen}");
    }
}

#[test]
fn longer_frames_are_cut_for_who_cannot_take_them() {
    need!("socat");
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let vnl = lab.vnl("vde", "sw");
    let start = |address: &str, options: &[&str]| {
        let vdens = lab.vdens(options);
        vdens.args(["--addr", address, &vnl, "sh"]).session()
    };
    let a = start("10.0.0.1/24", &["--big-tcp"]);
    let b = start("10.0.0.2/24", &["--big-tcp"]);
    let c = start("10.0.0.3/24", &["--no-panel", "--big-tcp"]);
    for there in ["10.0.0.2", "10.0.0.3"] {
        a.ping(there);
    }
    a.send_file(&b, "10.0.0.2", 32);
    a.send_file(&c, "10.0.0.3", 32);
    c.send_file(&a, "10.0.0.1", 32);
}

/// Whether the kernel is Linux 6.3 or later.
fn has_big_tcp() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let version = (numbers.next(), numbers.next());
    matches!(version, (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (6, 3))
}

/// A plug between two networks, and a namespace on each: 10.0.0.1 and 10.0.0.2.
fn on_a_plug<'lab>(lab: &'lab Lab, far: [&str; 2]) -> (Proc<'lab>, Session<'lab>, Session<'lab>) {
    let far_socket = if far[0] == "switch" { "far/ctl" } else { "far" };
    let [near, far, member] = [("ptp", "cable"), (far[0], "far"), (far[1], "far")]
        .map(|(scheme, path)| lab.vnl(scheme, path));
    let plug = lab.vde_plug(["-v", &near, &far]).spawn();
    wait_until("the plug is there", PATIENCE, || {
        ["cable", far_socket]
            .iter()
            .all(|it| lab.dir().join(it).exists())
    });
    let start = |vnl: &str, address| lab.vdens(["-v", "--addr", address, vnl, "sh"]).session();
    let (a, b) = (start(&near, "10.0.0.1/24"), start(&member, "10.0.0.2/24"));
    b.ping("10.0.0.1");
    (plug, a, b)
}

/// Waits until a plug says so often that the kernel carries an end's frames.
fn wait_for_the_kernel(plug: &Proc<'_>, times: usize) {
    wait_until("the kernel carries the frames", PATIENCE, || {
        plug.stderr().matches(CARRIED).count() >= times
    });
}

#[test]
fn the_kernel_carries_frames_through_a_plug() {
    need!("socat");
    for far in [["switch", "vde"], ["ptp", "ptp"]] {
        let lab = Lab::new();
        let (plug, a, b) = on_a_plug(&lab, far);
        wait_for_the_kernel(&plug, 2);
        wait_until("both members say so", PATIENCE, || {
            is_carried(&a) && is_carried(&b)
        });
        // Frames that the plug itself has moved.
        let moved = || {
            let status = lab.vdectl(["status"]).ok();
            let plug = status
                .split("\n\n")
                .find(|part| part.starts_with("vde_plug"));
            let lines = plug
                .unwrap()
                .lines()
                .filter(|line| line.contains(" frames, "));
            let words = lines.flat_map(|line| {
                let line = line.split_once("received ").unwrap().1;
                [line, line.split_once("sent ").unwrap().1]
            });
            words
                .map(|count| count.split(' ').next().unwrap().parse::<u64>().unwrap())
                .sum::<u64>()
        };
        a.ping("10.0.0.2");
        let before = moved();
        a.send_file(&b, "10.0.0.2", 64);
        b.send_file(&a, "10.0.0.1", 64);
        // These are two thousand super-frames; the plug sees an ARP request at the most.
        assert!(moved() - before < 100, "{before} and then {}", moved());
        plug.terminate();
        wait_until("no carrier without the plug", PATIENCE, || {
            a.ok("ip link show vde0").contains("NO-CARRIER")
        });
    }
}

#[test]
fn an_end_of_a_plug_without_the_panel_is_served_through_user_space() {
    need!("socat", "vdens");
    for far in [["switch", "vde"], ["ptp", "ptp"]] {
        let lab = Lab::new();
        let (plug, a, b) = on_a_plug(&lab, far);
        wait_for_the_kernel(&plug, 2);
        // On the cable comes one without the panel, then Debian's, then one of ours.
        b.ok("ip neigh flush all");
        drop(a);
        let near = lab.vnl("ptp", "cable");
        let options = ["--no-panel", "--addr", "10.0.0.3/24", &near, "sh"];
        let user_space = lab.vdens(options).session();
        user_space.ping("10.0.0.2");
        user_space.send_file(&b, "10.0.0.2", 8);
        b.send_file(&user_space, "10.0.0.3", 8);
        user_space.exit(0);
        // Debian's gives up if the plug still has the peer before it.
        let pid = plug.pid().cast_unsigned();
        wait_until("the end is free", PATIENCE, || {
            link(&status(&lab), pid, 0)["state"] != "up"
        });
        let legacy = lab.debian("vdens", [&near, "sh"]).session();
        legacy.address("vde0", "10.0.0.4/24");
        legacy.ping("10.0.0.2");
        legacy.send_file(&b, "10.0.0.2", 2);
        drop(legacy);
        let carried = plug.stderr().matches(CARRIED).count();
        let again = lab.vdens(["-v", "--addr", "10.0.0.5/24", &near, "sh"]);
        let again = again.session();
        b.ping("10.0.0.5");
        wait_for_the_kernel(&plug, carried + 1);
        again.send_file(&b, "10.0.0.2", 64);
        drop((again, b));
        plug.terminate();
    }
}
