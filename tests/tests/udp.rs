//! `udp://`: a cable through an IP network, here the machine's loopback.

use std::io;
use std::net::UdpSocket;

use vdens_tests::{Cmd, Lab, Session, need};

/// Two ports that nobody has; the system does not give them to others for a while.
fn ports() -> io::Result<[u16; 2]> {
    let (a, b) = (UdpSocket::bind("[::]:0")?, UdpSocket::bind("[::]:0")?);
    Ok([a.local_addr()?.port(), b.local_addr()?.port()])
}

/// The VNLs of both ends of a cable between two ports of this machine.
fn vnls(host: &str) -> io::Result<[String; 2]> {
    let [a, b] = ports()?;
    Ok([
        format!("udp://{host}:{a}->{host}:{b}"),
        format!("udp://{b}->{host}:{a}"),
    ])
}

fn connect<'lab>(first: Cmd<'lab>, second: Cmd<'lab>) -> [Session<'lab>; 2] {
    let a = first.session();
    a.address("vde0", "10.0.0.1/24");
    a.address("vde0", "fd00::1/64");
    let b = second.session();
    b.address("vde0", "10.0.0.2/24");
    b.address("vde0", "fd00::2/64");
    a.ping("10.0.0.2");
    [a, b]
}

#[test]
fn ours_through_both_versions_of_ip_and_by_name() {
    need!("socat");
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let lab = Lab::new();
        let [left, right] = vnls(host).unwrap();
        let [a, b] = connect(lab.vdens([&left, "sh"]), lab.vdens([&right, "sh"]));
        a.send_file(&b, "10.0.0.2", 32);
        b.send_file(&a, "fd00::1", 32);
        // Beyond what Ethernet carries, and beyond what libvdeplug does.
        for (mtu, payload) in [(9000, 8972), (65_000, 64_972)] {
            for session in [&a, &b] {
                session.ok(&format!("ip link set vde0 mtu {mtu}"));
            }
            a.ok(&format!("ping -c 2 -W 20 -M do -s {payload} 10.0.0.2"));
        }
        a.send_file(&b, "fd00::2", 8);
    }
}

#[test]
fn ours_with_debians() {
    need!("vdens", "socat");
    for debian_first in [true, false] {
        let lab = Lab::new();
        let [left, right] = vnls("127.0.0.1").unwrap();
        let (left, right) = ([&left, "sh"], [&right, "sh"]);
        let [a, b] = match debian_first {
            true => connect(lab.debian("vdens", left), lab.vdens(right)),
            false => connect(lab.vdens(left), lab.debian("vdens", right)),
        };
        a.send_file(&b, "10.0.0.2", 8);
        b.send_file(&a, "fd00::1", 8);
        for session in [&a, &b] {
            session.ok("ip link set vde0 mtu 9000");
        }
        a.ok("ping -c 2 -W 20 -M do -s 8972 10.0.0.2");
    }
}

#[test]
fn the_far_end_may_come_and_go() {
    let lab = Lab::new();
    let [left, right] = vnls("127.0.0.1").unwrap();
    let a = lab.vdens([&left, "sh"]).session();
    a.address("vde0", "10.0.0.1/24");
    // Every one of these is answered with "port unreachable".
    assert_ne!(a.run("ping -c 3 -i 0.2 -W 1 10.0.0.2").0, 0);
    let link = a.ok("ip link show vde0");
    assert!(!link.contains("NO-CARRIER"), "{link}");
    let b = lab.vdens([&right, "sh"]).session();
    b.address("vde0", "10.0.0.2/24");
    a.ping("10.0.0.2");
    drop(b);
    assert_ne!(a.run("ping -c 2 -i 0.2 -W 1 10.0.0.2").0, 0);
    let b = lab.vdens([&right, "sh"]).session();
    b.address("vde0", "10.0.0.2/24");
    // The new one has another Ethernet address.
    a.ok("ip neigh flush dev vde0");
    a.ping("10.0.0.2");
}

#[test]
fn what_cannot_be_opened_is_refused_with_the_reason() {
    let lab = Lab::new();
    for (vnl, words) in [
        ("udp://2000", "no '->'"),
        ("udp://2000->localhost:x", "'x' is no port"),
        ("udp://2000->::1:3", "in brackets"),
        ("udp://2000->no.such.host.invalid:3", "no.such.host.invalid"),
        ("udp://192.0.2.1:2000->127.0.0.1:3", "192.0.2.1:2000"),
        ("udp://1->127.0.0.1:3", "1024"),
    ] {
        // Ports below 1024 may be free for all, or the tests' user root.
        if vnl.starts_with("udp://1-")
            && UdpSocket::bind("127.0.0.1:1").is_ok()
            && !vdens_tests::User::is_root()
        {
            continue;
        }
        lab.vdens([vnl, "true"]).refused(&[words]);
    }
    let [port, _] = ports().unwrap();
    let taken = UdpSocket::bind(("0.0.0.0", port)).unwrap();
    let vnl = format!("udp://{port}->127.0.0.1:9");
    lab.vdens([&vnl, "true"]).refused(&["another program"]);
    drop(taken);
    lab.vdens([&vnl, "true"]).ok();
}
