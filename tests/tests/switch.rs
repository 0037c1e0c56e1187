//! Namespaces on a switch made by `vde_plug null:// switch://…`.

use vdens_tests::{Lab, PATIENCE, Proc, Session, need, wait_until};

use crate::short_super_frames::is_idle;

fn switch<'lab>(lab: &'lab Lab) -> Proc<'lab> {
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    switch
}

fn member<'lab>(lab: &'lab Lab, number: u8) -> Session<'lab> {
    let session = lab.vdens([&lab.vnl("vde", "sw"), "sh"]).session();
    session.address("vde0", &format!("10.0.0.{number}/24"));
    session.address("vde0", &format!("fd00::{number}/64"));
    session
}

/// Bytes that an interface received.
fn received(session: &Session<'_>) -> u64 {
    let text = session.ok(
        "cat /sys/class/net/vde0/statistics/rx_bytes 2>/dev/null || \
         awk '$1 == \"vde0:\" { print $2 }' /proc/net/dev",
    );
    // /sys shows the network namespace it was mounted in, /proc the reader's.
    let text = if text.trim().is_empty() {
        "0"
    } else {
        text.trim()
    };
    text.parse()
        .unwrap_or_else(|_| panic!("no number: {text:?}"))
}

#[test]
fn two_namespaces_and_a_large_file() {
    need!("socat");
    let lab = Lab::new();
    let _switch = switch(&lab);
    let (a, b) = (member(&lab, 1), member(&lab, 2));
    a.ping("10.0.0.2");
    b.ping("10.0.0.1");
    a.ping("fd00::2");
    a.send_file(&b, "10.0.0.2", 64);
    b.send_file(&a, "fd00::1", 64);
    assert_eq!(a.exit(0).code(), Some(0));
    assert_eq!(b.exit(0).code(), Some(0));
}

#[test]
fn frames_go_only_where_they_belong() {
    need!("socat");
    let lab = Lab::new();
    let _switch = switch(&lab);
    let (a, b, c) = (member(&lab, 1), member(&lab, 2), member(&lab, 3));
    a.ping("10.0.0.2");
    a.ping("10.0.0.3");
    let before = received(&c);
    a.send_file(&b, "10.0.0.2", 4);
    let overheard = received(&c) - before;
    assert!(overheard < 100_000, "the third port saw {overheard} bytes");
}

#[test]
fn broadcasts_go_everywhere() {
    let lab = Lab::new();
    let _switch = switch(&lab);
    let (a, b, c) = (member(&lab, 1), member(&lab, 2), member(&lab, 3));
    for member in [&b, &c] {
        member.ok("echo 0 >/proc/sys/net/ipv4/icmp_echo_ignore_broadcasts");
    }
    a.ping("10.0.0.2");
    let text = a.run("ping -b -c 3 -W 2 10.0.0.255").1;
    assert!(
        text.contains("from 10.0.0.2") && text.contains("from 10.0.0.3"),
        "{text}"
    );
}

#[test]
fn a_switch_within_vdens() {
    let lab = Lab::new();
    let a = lab.vdens([&lab.vnl("switch", "sw"), "sh"]).session();
    a.address("vde0", "10.0.0.1/24");
    a.ok("ip addr add fd00::1/64 dev vde0 nodad");
    lab.wait_for("sw/ctl");
    let (b, c) = (member(&lab, 2), member(&lab, 3));
    b.ping("10.0.0.1");
    c.ping("10.0.0.2");
    assert_eq!(a.exit(0).code(), Some(0));
}

/// Every kind of member: on the panel, with super-frames, with single frames only, and the switch's
/// own interface.
#[test]
fn files_between_every_kind_of_member() {
    need!("vdens", "socat");
    let lab = Lab::new();
    let (sw, vde) = (lab.vnl("switch", "sw"), lab.vnl("vde", "sw"));
    let host = lab.vdens(["--no-panel", &sw, "sh"]).session();
    lab.wait_for("sw/ctl");
    let no_panel = || lab.vdens(["--no-panel", &vde, "sh"]).session();
    let members = [
        host,
        lab.vdens([&vde, "sh"]).session(),
        lab.vdens([&vde, "sh"]).session(),
        no_panel(),
        no_panel(),
        lab.debian("vdens", [&vde, "sh"]).session(),
        lab.debian("vdens", [&vde, "sh"]).session(),
    ];
    for (number, member) in members.iter().enumerate() {
        member.address("vde0", &format!("10.0.0.{number}1/24"));
        member.address("vde0", &format!("fd00::{number}1/64"));
    }
    for (to, receiver) in members.iter().enumerate() {
        for (from, sender) in members.iter().enumerate().filter(|(from, _)| *from != to) {
            let address = match (from + to) % 2 {
                0 => format!("10.0.0.{to}1"),
                _ => format!("fd00::{to}1"),
            };
            sender.send_file(receiver, &address, 4);
        }
    }
    // Debian's vdens ends with its switch, and may leave its socket.
    drop(members);
    lab.expect("sw");
}

/// Super-frames cross the switch whole: it receives far fewer frames than there are segments in the
/// file.
#[test]
fn super_frames_between_two_without_the_panel() {
    need!("socat");
    let lab = Lab::new();
    let vnl = lab.vnl("switch", "sw");
    let switch = lab.vde_plug(["-vv", "null://", &vnl]).spawn();
    lab.wait_for("sw/ctl");
    let start = |address: &str| {
        let vnl = lab.vnl("vde", "sw");
        let options = ["--no-panel", "--addr", address];
        lab.vdens(options).args([&vnl, "sh"]).session()
    };
    let (a, b) = (start("10.0.0.1/24"), start("10.0.0.2/24"));
    a.send_file(&b, "10.0.0.2", 64);
    drop((a, b));
    // What a port has seen is in the log when it closes.
    let received = || -> Vec<u64> {
        let log = switch.stderr();
        let counts = log.split("in_frames: ").skip(1);
        let number = |text: &str| text.split(',').next()?.parse().ok();
        counts.map(|text| number(text).unwrap()).collect()
    };
    wait_until("both ports closed", PATIENCE, || received().len() == 2);
    let frames: u64 = received().iter().sum();
    let segments = (64 << 20) / 1448;
    assert!((100..segments / 3).contains(&frames), "{frames} frames");
}

#[test]
fn a_numbered_port() {
    let lab = Lab::new();
    let _switch = switch(&lab);
    let a = lab.vdens([&lab.vnl("vde", "sw[7]"), "sh"]).session();
    a.address("vde0", "10.0.0.1/24");
    let b = lab.vdens([&lab.vnl("vde", "sw[port=9]"), "sh"]).session();
    b.address("vde0", "10.0.0.2/24");
    a.ping("10.0.0.2");
    // One port, one plug.
    lab.vdens([&lab.vnl("vde", "sw[7]"), "true"])
        .refused(&["/sw"]);
    a.ping("10.0.0.2");
}

#[test]
fn its_permissions_are_what_was_asked_for() {
    let lab = Lab::new();
    let vnl = lab.vnl("switch", "sw[mode=0660/dirmode=02750]");
    let _switch = lab.vde_plug(["null://", &vnl]).spawn();
    lab.wait_for("sw/ctl");
    let modes = lab
        .command("stat", ["-c", "%a", &lab.path("sw"), &lab.path("sw/ctl")])
        .ok();
    assert_eq!(modes, "2750\n660\n");
}

#[test]
fn connecting_and_leaving_does_no_harm() {
    need!("python3");
    let lab = Lab::new();
    let switch = switch(&lab);
    let script = "import socket, sys
for i in range(2000):
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.close()";
    lab.command("python3", ["-c", script, &lab.path("sw/ctl")])
        .ok();
    let (a, b) = (member(&lab, 1), member(&lab, 2));
    a.ping("10.0.0.2");
    let open = format!("/proc/{}/fd", switch.pid());
    let open = std::fs::read_dir(open).unwrap().count();
    assert!(open < 100, "{open} descriptors are open");
    drop((a, b));
    is_idle(&switch);
}
