//! Plugins of libvdeplug: Debian's own, and a faulty one (evil.c).

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use vdens_tests::{Cmd, Lab, PATIENCE, Session, User, becomes_true, need, wait_until};

/// What slirp gives its only client without being asked.
const SLIRP: [&str; 4] = ["--addr", "10.0.2.15/24", "--gateway", "10.0.2.2"];

/// Two namespaces that must reach each other.
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

/// Whether an interface of the session has carrier.
fn carrier(session: &Session<'_>, interface: &str) -> bool {
    !session
        .ok(&format!("ip link show {interface}"))
        .contains("NO-CARRIER")
}

#[test]
fn slirp_configures_by_dhcp_and_reaches_the_hosts_loopback() {
    need!("libvdeplug_slirp", "busybox", "socat");
    let lab = Lab::new();
    // What is served to whoever connects on the host's loopback.
    let page = "x".repeat(3_000_000);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let served = page.clone();
    std::thread::spawn(move || {
        for client in server.incoming().flatten() {
            let _ = (&client).write_all(served.as_bytes());
        }
    });
    let script = lab.write(
        "udhcpc.sh",
        "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev $interface\nip route add default via $router\necho dns $dns\n",
    );
    lab.command("chmod", ["+x", &script]).ok();
    for vnl in ["slirp://", "libvdeplug://slirp://"] {
        let session = lab.vdens(["--up", vnl, "sh"]).session();
        let said = session.ok(&format!("busybox udhcpc -i vde0 -n -q -s {script}"));
        assert!(said.contains("dns 10.0.2.3"), "{said}");
        assert!(session.ok("ip addr show vde0").contains("10.0.2.15/24"));
        session.ping("10.0.2.2");
        let got = session.ok(&format!("socat -u TCP:10.0.2.2:{port} - | wc -c"));
        assert_eq!(got.trim(), page.len().to_string());
        assert_eq!(session.exit(6).code(), Some(6));
    }
}

#[test]
fn slirp_resolves_names() {
    need!("root", "libvdeplug_slirp", "python3");
    let lab = Lab::new();
    let host = lab.netns();
    host.sh("ip link set lo up").ok();
    // A name server that knows one answer.
    let server = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('127.0.0.1', 53))
print('ready', flush=True)
while True:
    q, who = s.recvfrom(512)
    a = q[-4:-2] == b'\\0\\1'
    head = q[:2] + b'\\x81\\x80\\0\\1' + (b'\\0\\1' if a else b'\\0\\0') + b'\\0\\0\\0\\0'
    s.sendto(head + q[12:] + (b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4' + bytes([192, 0, 2, 77]) if a else b''), who)
";
    let server = lab
        .command("python3", ["-c", server])
        .by(User::root())
        .inside(&host)
        .spawn();
    wait_until("the name server runs", PATIENCE, || {
        server.stdout().contains("ready")
    });
    // The host's resolv.conf is what slirp's own name server asks.
    let conf = lab.write("resolv.conf", "nameserver 127.0.0.1\n");
    let found = lab
        .vdens(["-R", "10.0.2.3"])
        .args(SLIRP)
        .args(["slirp://", "getent", "ahostsv4", "www.example.net"])
        .on_changed_machine(&format!("mount --bind {conf} /etc/resolv.conf"))
        .inside(&host)
        .ok();
    assert!(found.contains("192.0.2.77"), "{found}");
}

#[test]
fn slirp_behind_a_switch() {
    need!("libvdeplug_slirp");
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let plug = lab.vde_plug(["slirp://", &lab.vnl("vde", "sw")]).spawn();
    let session = lab
        .vdens(SLIRP)
        .args([&lab.vnl("vde", "sw"), "sh"])
        .session();
    session.ping("10.0.2.2");
    assert_eq!(plug.terminate().code(), Some(128 + 15));
}

#[test]
fn a_hub_and_who_plugs_in() {
    need!("libvdeplug_hub", "vdens");
    let lab = Lab::new();
    let hub = format!("libvdeplug://{}", lab.vnl("hub", "hub"));
    let inside = lab.vdens([&hub, "sh"]);
    let (inside, member) = connect(inside, {
        lab.expect("hub");
        lab.debian(
            "sh",
            [
                "-c",
                "while ! [ -S hub/ctl ]; do sleep 0.05; done; exec /usr/bin/vdens vde://hub sh",
            ],
        )
    });
    let ours = lab.vdens([&lab.vnl("vde", "hub"), "sh"]).session();
    ours.address("vde0", "10.0.0.3/24");
    ours.ping("10.0.0.1");
    ours.ping("10.0.0.2");
    drop((ours, member));
    // What the plugin made it also removes, though it is a signal that ends the session.
    inside.proc().signal(Signal::SIGTERM);
    let gone = || !PathBuf::from(lab.path("hub")).exists();
    assert!(becomes_true(PATIENCE, gone), "the hub's directory is left");
}

#[test]
fn a_plug_that_is_terminated_closes_its_connection() {
    need!("libvdeplug_hub");
    let lab = Lab::new();
    let hub = format!("libvdeplug://{}", lab.vnl("hub", "hub"));
    let plug = lab.vde_plug(["-p", "pid", "null://", &hub]).spawn();
    lab.wait_for("pid");
    assert!(PathBuf::from(lab.path("hub/ctl")).exists());
    assert_eq!(plug.terminate().code(), Some(128 + 15));
}

#[test]
fn udp() {
    need!("root", "libvdeplug_udp", "vdens", "socat");
    let lab = Lab::new();
    let host = lab.netns();
    host.sh("ip link set lo up").ok();
    let ours = lab.vdens(["libvdeplug://udp://127.0.0.1:5001->127.0.0.1:5002", "sh"]);
    let theirs = lab.debian("vdens", ["udp://127.0.0.1:5002->127.0.0.1:5001", "sh"]);
    let (ours, theirs) = connect(ours.inside(&host), theirs.inside(&host));
    ours.send_file(&theirs, "10.0.0.2", 8);
    theirs.send_file(&ours, "10.0.0.1", 8);
    // A peer that is not there, and empty datagrams, cost nothing.
    drop(theirs);
    ours.run("ping -c 3 -i 0.2 -W 1 10.0.0.2");
    host.sh(
        "for i in 1 2 3; do printf '' | socat -u -t0 - UDP-SENDTO:127.0.0.1:5001,shut-null; done",
    )
    .ok();
    let theirs = lab.debian("vdens", ["udp://127.0.0.1:5002->127.0.0.1:5001", "sh"]);
    let theirs = theirs.inside(&host).session();
    theirs.address("vde0", "10.0.0.2/24");
    theirs.ping("10.0.0.1");
    assert_eq!(ours.proc().stderr(), "");
}

#[test]
fn vxlan() {
    need!("root", "libvdeplug_vxlan");
    let (lab, other) = (Lab::new(), Lab::new());
    let (host, kernel) = (lab.netns(), other.netns());
    host.sh(&format!(
        "ip link add veth0 type veth peer name veth1 netns {}
         ip addr add 192.0.2.1/24 dev veth0; ip link set veth0 up; ip route add 239.0.0.0/8 dev veth0",
        kernel.name()
    ))
    .ok();
    kernel
        .sh("ip addr add 192.0.2.2/24 dev veth1; ip link set veth1 up
             ip link add vx type vxlan id 1 group 239.0.0.1 dev veth1 dstport 4789
             ip addr add 10.0.0.2/24 dev vx; ip link set vx up")
        .ok();
    let session = lab
        .vdens(["libvdeplug://vxlan://239.0.0.1", "sh"])
        .inside(&host)
        .session();
    session.address("vde0", "10.0.0.1/24");
    // The C plugin of Debian 12 floods, and receives, but what it sends to one station alone gets
    // nowhere: not in Debian's own vdens either. So a question and its answer are all that can be
    // asked for.
    let resolved = || {
        session.run("ping -c 1 -W 1 10.0.0.2");
        session.ok("ip neigh show 10.0.0.2").contains("lladdr")
    };
    wait_until("the kernel's end answers", PATIENCE, resolved);
}

#[test]
fn a_command() {
    need!("libvdeplug_cmd", "socat");
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "p");
    let command = format!("libvdeplug://cmd://vde_plug {cable}");
    let (a, b) = connect(lab.vdens([&cable, "sh"]), lab.vdens([&command, "sh"]));
    a.send_file(&b, "10.0.0.2", 4);
    drop(b);
    // The command is started with the signals that it would have from a shell, and its end is the
    // link's.
    let status = lab.path("status");
    let command = format!("libvdeplug://cmd://cp /proc/self/status {status}");
    let plug = lab.vde_plug(["null://", &command]).spawn();
    let told = || plug.stderr().contains("gone");
    assert!(becomes_true(PATIENCE, told), "{}", plug.stderr());
    plug.terminate();
    lab.expect("status");
    let status = fs::read_to_string(status).unwrap();
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    };
    assert_eq!(mask("SigBlk:"), 0, "{status}");
    assert_eq!(
        mask("SigIgn:") >> (Signal::SIGPIPE as i32 - 1) & 1,
        0,
        "{status}"
    );
}

#[test]
fn nested_in_agno() {
    need!("libvdeplug_agno", "vdens");
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let key = lab.write("key", "00112233445566778899aabbccddeeff");
    let vnl = format!("agno://{key}{{{}}}", lab.vnl("vde", "sw"));
    let (ours, _theirs) = connect(lab.vdens([&vnl, "sh"]), lab.debian("vdens", [&vnl, "sh"]));
    // Who has no key understands nothing.
    let outsider = lab.vdens([&lab.vnl("vde", "sw"), "sh"]).session();
    outsider.address("vde0", "10.0.0.3/24");
    let (status, said) = outsider.run("ping -c 2 -W 1 10.0.0.1");
    assert_ne!(status, 0, "{said}");
    ours.ping("10.0.0.2");
}

#[test]
fn a_switch_that_goes_and_returns() {
    need!("vde_switch");
    let lab = Lab::new();
    let switch = || {
        let switch = lab
            .debian("vde_switch", ["-s", &lab.path("sw")])
            .spawn_piped();
        lab.wait_for("sw/ctl");
        switch
    };
    let first = switch();
    let session = lab
        .vdens([
            "--addr",
            "10.0.0.1/24",
            &format!("libvdeplug://{}", lab.vnl("vde", "sw")),
            "sh",
        ])
        .session();
    assert!(carrier(&session, "vde0"));
    drop(first);
    wait_until("no carrier", PATIENCE, || !carrier(&session, "vde0"));
    let _second = switch();
    wait_until("carrier again", PATIENCE, || carrier(&session, "vde0"));
    let other = lab
        .vdens(["--addr", "10.0.0.2/24", &lab.vnl("vde", "sw"), "sh"])
        .session();
    other.ping("10.0.0.1");
}

/// Compiles evil.c, and a session of which vde0 is on it and vde1 on a cable to another namespace.
fn evil(lab: &Lab) -> (Session<'_>, Session<'_>) {
    let plugins = lab.mkdir("plugins");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/evil.c");
    let library = format!("{plugins}/libvdeplug_evil.so");
    lab.command(
        "gcc",
        [
            "-Wall", "-Werror", "-shared", "-fPIC", "-o", &library, source,
        ],
    )
    .by(User::root())
    .ok();
    let cable = lab.vnl("ptp", "p");
    let session = lab
        .vdens([
            "-m",
            "--addr",
            "0:10.7.0.1/24",
            "--addr",
            "1:10.0.0.1/24",
            "evil://",
            &cable,
            "--",
            "sh",
        ])
        .env("VDEPLUGIN_PATH", &plugins)
        .session();
    let other = lab.vdens(["--addr", "10.0.0.2/24", &cable, "sh"]).session();
    session.ping("10.0.0.2");
    assert!(sends_back(&session), "evil:// does not work");
    (session, other)
}

/// Sends the evil plugin an order on vde0.
fn order(session: &Session<'_>, order: char) -> bool {
    let script = format!(
        "import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88b5))
s.bind((\"vde0\", 0x88b5))
s.settimeout(1)
s.send(bytes(12) + b\"\\x88\\xb5{order}\" + bytes(60))
s.recv(2000)"
    );
    session.run(&format!("python3 -c '{script}'")).0 == 0
}

/// Whether the evil plugin sends a harmless frame back.
fn sends_back(session: &Session<'_>) -> bool {
    becomes_true(PATIENCE, || order(session, '-'))
}

/// The session and its other link are as they were.
#[track_caller]
fn unharmed(session: &Session<'_>) {
    session.ok("ping -c 3 -i 0.2 -W 20 10.0.0.2");
    assert!(session.ok("ip addr show vde0").contains("10.7.0.1/24"));
}

#[test]
fn a_plugin_that_crashes_costs_its_link_only() {
    need!("gcc", "python3");
    let lab = Lab::new();
    let (session, _other) = evil(&lab);
    for (letter, word) in [('S', "SIGSEGV"), ('E', "called exit"), ('F', "I/O error")] {
        assert!(!order(&session, letter), "{letter} has no effect");
        let told = || session.proc().stderr().contains(word);
        assert!(becomes_true(PATIENCE, told), "{}", session.proc().stderr());
        unharmed(&session);
        assert!(sends_back(&session), "the link is not back after {letter}");
    }
    assert_eq!(session.exit(7).code(), Some(7));
}

#[test]
fn a_plugin_that_blocks_costs_its_link_only() {
    need!("gcc", "python3");
    let lab = Lab::new();
    let (session, _other) = evil(&lab);
    assert!(!order(&session, 'B'));
    // More than any queue on the way holds.
    session.run("ping -f -c 3000 -w 3 -s 1400 10.7.0.2 -I vde0");
    unharmed(&session);
    let output = session.exit(8);
    assert_eq!(output.code(), Some(8), "{output:?}");
    // The worker ends by itself: it is not the supervisor that loses patience with it.
    assert!(
        output.stderr.contains("its thread is abandoned"),
        "{output:?}"
    );
}

#[test]
fn a_plugin_that_does_not_open() {
    need!("gcc");
    let lab = Lab::new();
    drop(evil(&lab));
    let plugins = lab.path("plugins");
    lab.vde_plug(["null://", "evil://slow"])
        .env("VDEPLUGIN_PATH", &plugins)
        .refused(&["evil://slow", "10 s"]);
}

#[test]
fn the_error_says_who_was_asked() {
    need!("libvdeplug_hub");
    let lab = Lab::new();
    let bin = lab.bin().display().to_string();
    let both = [
        "libvdens_nosuch.so",
        &bin,
        "libvdeplug has no C plugin for 'nosuch'",
    ];
    for vnl in ["nosuch://x", "libvdeplug://nosuch://x"] {
        let words = if vnl.starts_with("lib") {
            &both[2..]
        } else {
            &both[..]
        };
        lab.vdens([vnl, "touch", "started"]).refused(words);
        lab.vde_plug([vnl, "null://"]).refused(words);
    }
    // A package that is known to have it is named.
    let lib = libraries().unwrap();
    let none = format!("mount -t tmpfs none {lib}/vdeplug");
    lab.vdens(["slirp://", "true"])
        .on_changed_machine(&none)
        .refused(&["libvdens_slirp.so", "libvdeplug-slirp"]);
    // A machine without libvdeplug.
    let without = format!(
        "mount -t tmpfs none /mnt; mkdir /mnt/old /mnt/lib; mount --bind {lib} /mnt/old
         ln -s /mnt/old/* /mnt/lib; rm /mnt/lib/libvdeplug.so*; mount --bind /mnt/lib {lib}"
    );
    lab.vdens(["slirp://", "true"])
        .on_changed_machine(&without)
        .refused(&[
            "libvdens_slirp.so",
            &bin,
            "libvdeplug is not installed",
            "libvdeplug2",
        ]);
    lab.vdens(["libvdeplug://slirp://", "true"])
        .on_changed_machine(&without)
        .refused(&["libvdeplug is not installed", "libvdeplug2"]);
    lab.vdens(["null://", "true"])
        .on_changed_machine(&without)
        .ok();
}

/// The directory that libvdeplug is in.
fn libraries() -> Option<String> {
    let entries = fs::read_dir("/usr/lib").ok()?.flatten();
    let mut directories = entries.map(|entry| entry.path());
    let found = directories.find(|path| path.join("libvdeplug.so.2").exists());
    Some(found?.display().to_string())
}

#[test]
fn the_fallback_can_be_switched_off() {
    need!("libvdeplug_hub");
    let lab = Lab::new();
    let file = lab.write("off.toml", "[plugins]\nlibvdeplug = \"off\"\n");
    let off = |vnl: &str| lab.vdens(["--config", &file, vnl, "true"]);
    let output = off("slirp://").refused(&["libvdens_slirp.so"]);
    assert!(!output.stderr.contains("libvdeplug"), "{output:?}");
    off("libvdeplug://null://").ok();
    // A missing plugin of vdens is reported as missing.
    let hub = lab.vnl("hub", "h");
    fs::remove_file(lab.bin().join("libvdens_hub.so")).unwrap();
    lab.vdens([&hub, "true"]).ok();
    off(&hub).refused(&["libvdens_hub.so"]);
    // But those schemes that may stand where no code of others is to be loaded load none.
    fs::remove_file(lab.bin().join("libvdens_ptp.so")).unwrap();
    let cable = lab.vnl("ptp", "p");
    lab.vdens([&cable, "true"]).refused(&["libvdens_ptp.so"]);
    lab.vdens([&format!("libvdeplug://{cable}"), "true"]).ok();
    // Neither is there a fallback without the bridge's own file.
    fs::remove_file(lab.bin().join("libvdens_libvdeplug.so")).unwrap();
    let output = lab
        .vdens(["slirp://", "true"])
        .refused(&["libvdens_slirp.so"]);
    assert!(!output.stderr.contains("libvdeplug"), "{output:?}");
}
