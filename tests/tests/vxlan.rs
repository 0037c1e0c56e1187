//! `vxlan://` with the kernel's own VXLAN device, with itself and with Debian's.
//!
//! The machines that the network spans are namespaces of the user's on a cable or a switch; there a
//! kernel's device can be made, and a second vdens started.

use vdens_tests::{Lab, Session, need};

/// What fits through a cable with an MTU of 1500 (50 bytes of headers; 70 with IPv6).
const MTU: &str = "1430";

/// A machine with a kernel's VXLAN device, number 42, at 10.0.0.1; its address in the VXLAN is
/// 192.168.0.1.
fn kernel<'lab>(lab: &'lab Lab, link: &str, options: &str) -> Session<'lab> {
    let args = [
        "--addr",
        "10.0.0.1/24",
        "--addr",
        "fd00:1::1/64",
        link,
        "sh",
    ];
    let session = lab.vdens(args).session();
    // Packets between namespaces never meet a network card, so nothing would complete the inner
    // checksums.
    session.ok(&format!(
        "ip link add vx0 mtu {MTU} type vxlan id 42 dstport 4789 {options} dev vde0 && ethtool -K vx0 tx off"
    ));
    session.address("vx0", "192.168.0.1/24");
    session.address("vx0", "fd00::1/64");
    session
}

/// A namespace on a VXLAN, on a machine of that number, which is in its addresses.
fn member<'lab>(
    lab: &'lab Lab,
    number: u8,
    link: &str,
    program: &str,
    vxlan: &str,
) -> Session<'lab> {
    let outer = [
        format!("10.0.0.{number}/24"),
        format!("fd00:1::{number}/64"),
    ];
    let session = lab
        .vdens(["--addr", &outer[0], "--addr", &outer[1]])
        .args([link, program, vxlan, "sh"])
        .session();
    session.ok(&format!("ip link set vde0 mtu {MTU}"));
    session.address("vde0", &format!("192.168.0.{number}/24"));
    session.address("vde0", &format!("fd00::{number}/64"));
    session
}

#[test]
fn a_kernels_device_as_the_peer() {
    need!("ethtool", "socat");
    for (options, vxlan) in [
        ("local 10.0.0.1 remote 10.0.0.2", "vxlan://10.0.0.1/vni=42"),
        (
            "local fd00:1::1 remote fd00:1::2",
            "vxlan://[fd00:1::1]/vni=42",
        ),
    ] {
        let lab = Lab::new();
        let link = lab.vnl("ptp", "p");
        let kernel = kernel(&lab, &link, options);
        let ours = member(&lab, 2, &link, "vdens", vxlan);
        ours.ping("192.168.0.1");
        kernel.ping("fd00::2");
        ours.send_file(&kernel, "192.168.0.1", 16);
        kernel.send_file(&ours, "fd00::2", 16);
    }
}

#[test]
fn a_kernels_device_in_a_group() {
    need!("ethtool", "socat");
    for (group, vxlan) in [
        ("239.1.1.1", "vxlan://239.1.1.1/vni=42/if=vde0"),
        ("ff15::42", "vxlan://ff15::42/vni=42/if=vde0"),
    ] {
        let lab = Lab::new();
        let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
        lab.wait_for("sw/ctl");
        let link = lab.vnl("vde", "sw");
        let kernel = kernel(&lab, &link, &format!("group {group}"));
        let two = member(&lab, 2, &link, "vdens", vxlan);
        let three = member(&lab, 3, &link, "vdens", vxlan);
        two.ping("192.168.0.1");
        kernel.ping("fd00::2");
        two.ping("192.168.0.3");
        three.ping("192.168.0.1");
        let frames = || -> u64 {
            let script = "awk '$1 == \"vde0:\" { print $2 }' /proc/net/dev";
            three.ok(script).trim().parse().unwrap()
        };
        let before = frames();
        two.send_file(&kernel, "192.168.0.1", 8);
        kernel.send_file(&two, "fd00::2", 8);
        let overheard = frames() - before;
        assert!(overheard < 100_000, "the third saw {overheard} bytes");
        two.send_file(&three, "192.168.0.3", 8);
    }
}

#[test]
fn two_on_one_machine() {
    need!("socat");
    let lab = Lab::new();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    drop(socket);
    let vnl = |far: u8, near: u8, vni: u8| {
        format!("vxlan://127.0.0.{far}/local=127.0.0.{near}/port={port}/vni={vni}")
    };
    let member = |vnl: String, number: u8| {
        let session = lab.vdens([&vnl, "sh"]).session();
        session.address("vde0", &format!("192.168.0.{number}/24"));
        session
    };
    let a = member(vnl(2, 1, 7), 1);
    // Another network, by its number.
    let stranger = member(vnl(1, 2, 8), 2);
    assert_ne!(stranger.run("ping -c 3 -i 0.2 -W 1 192.168.0.1").0, 0);
    let link = stranger.ok("ip link show vde0");
    assert!(!link.contains("NO-CARRIER"), "{link}");
    drop(stranger);
    a.ok("ip neigh flush dev vde0");
    let b = member(vnl(1, 2, 7), 2);
    a.ping("192.168.0.2");
    a.send_file(&b, "192.168.0.2", 32);
    b.send_file(&a, "192.168.0.1", 32);
    for session in [&a, &b] {
        session.ok("ip link set vde0 mtu 9000");
    }
    a.ok("ping -c 2 -W 20 -M do -s 8972 192.168.0.2");
}

#[test]
fn debians() {
    need!("vdens");
    let lab = Lab::new();
    let link = lab.vnl("ptp", "p");
    let vxlan = "vxlan://239.1.1.1/vni=42/if=vde0";
    let ours = member(&lab, 1, &link, "vdens", vxlan);
    let theirs = member(&lab, 2, &link, "/usr/bin/vdens", vxlan);
    // libvdeplug 4.0.1 never learns an address (it receives with a msg_namelen of 0), and what it
    // then sends to one station alone is lost. Frames to a group of stations leave, so to it our
    // station is one.
    theirs.ok("ip link set vde0 address 02:00:00:00:00:02");
    theirs.ok("ip neigh replace 192.168.0.1 lladdr 33:33:00:00:00:01 dev vde0");
    ours.ok("ip neigh replace 192.168.0.2 lladdr 02:00:00:00:00:02 dev vde0");
    theirs.ping("192.168.0.1");
    theirs.ok("ping -c 5 -i 0.2 -W 20 -s 1380 192.168.0.1");
}

#[test]
fn what_cannot_be_opened_is_refused_with_the_reason() {
    let lab = Lab::new();
    for (vnl, words) in [
        (
            "vxlan://239.0.0.1/vni=16777216",
            "network identifiers 0 to 16777215",
        ),
        ("vxlan://239.0.0.1/vnid=3", "valid keys: port, vni"),
        (
            "vxlan://239.0.0.1/if=nosuch",
            "cannot find the interface 'nosuch'",
        ),
        ("vxlan://127.0.0.1/local=192.0.2.1", "local= must be"),
        ("vxlan://no.such.host.invalid", "no.such.host.invalid"),
    ] {
        lab.vdens([vnl, "true"]).refused(&[words]);
    }
    // In a namespace without a route nothing leads to the group.
    let output = lab.vdens(["no", "vdens", "vxlan://", "true"]).run();
    assert_eq!(output.code(), Some(125), "{output:?}");
    assert!(output.stderr.contains("if=NAME"), "{output:?}");
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let vnl = format!("vxlan://127.0.0.2/local=127.0.0.1/port={port}");
    lab.vdens([&vnl, "true"]).refused(&["port=NUMBER"]);
}
