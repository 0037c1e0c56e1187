//! `stream://` and `dgram://`: between sessions, with QEMU itself and with passt.

use std::io;
use std::net::TcpListener;

use nix::sys::signal::Signal;
use vdens_tests::{Lab, PATIENCE, Session, need, stretched, wait_until};

use crate::nat_internet::Internet;
use crate::vm::guest_on;

/// Whether the interface, which is up, of a session or a guest has a carrier.
fn carrier(session: &Session<'_>, interface: &str) -> bool {
    !session
        .ok(&format!("ip link show {interface}"))
        .contains("NO-CARRIER")
}

#[track_caller]
fn wait_for_carrier(session: &Session<'_>, interface: &str, up: bool) {
    let what = format!("carrier {up} of {interface}");
    wait_until(&what, PATIENCE, || carrier(session, interface) == up);
}

/// A TCP port that nobody has; the system does not give it to others for a while.
fn port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The VNLs of both ends at a port.
fn ends_at(host: &str) -> io::Result<[String; 2]> {
    let vnl = format!("stream://{host}:{}", port()?);
    Ok([vnl.clone(), format!("{vnl}/connect")])
}

/// The checksum in the output of sha256sum, which a guest's prompt may precede.
fn checksum(output: &str) -> &str {
    let mut words = output.split_whitespace();
    words.find(|word| word.len() == 64).unwrap_or(output)
}

/// Sends a file of random bytes from a session to a guest at the address, and compares what
/// arrives with what was sent. A guest has a busybox and no more.
fn send_to_guest(ours: &Session<'_>, guest: &Session<'_>, address: &str, mebibytes: u32) {
    let limit = stretched(PATIENCE);
    guest.start("nc -l -p 5000 | sha256sum");
    let (status, sent) = ours.run_within(
        limit,
        &format!(
            "f=$(mktemp -p \"$HOME\") && head -c {mebibytes}M /dev/urandom >$f && sha256sum <$f &&
             socat -u FILE:$f TCP4:{address}:5000,retry=100,interval=0.1; s=$?; rm -f $f; (exit $s)"
        ),
    );
    assert_eq!(status, 0, "sending to {address}: {sent}");
    let (_, received) = guest.finish(limit);
    assert_eq!(
        checksum(&sent),
        checksum(&received),
        "what arrived at {address}"
    );
}

/// The other way: from the guest to a session at the address.
fn send_from_guest(guest: &Session<'_>, ours: &Session<'_>, address: &str, mebibytes: u32) {
    let limit = stretched(PATIENCE);
    ours.start("socat -u TCP4-LISTEN:5000,reuseaddr STDOUT | sha256sum");
    let (status, sent) = guest.run_within(
        limit,
        &format!(
            "dd if=/dev/urandom of=/f bs=1M count={mebibytes} 2>/dev/null && sha256sum </f &&
             until nc {address} 5000 </f; do sleep 0.1; done; rm /f"
        ),
    );
    assert_eq!(status, 0, "sending to {address}: {sent}");
    let (_, received) = ours.finish(limit);
    assert_eq!(
        checksum(&sent),
        checksum(&received),
        "what arrived at {address}"
    );
}

#[test]
fn ours_through_every_kind_of_socket() {
    need!("socat");
    let lab = Lab::new();
    let unix = lab.vnl("stream", "s");
    for [listen, connect] in [
        [unix.clone(), format!("{unix}[connect]")],
        ends_at("").unwrap(),
        ends_at("[::1]").unwrap(),
        ends_at("localhost").unwrap(),
    ] {
        let a = lab
            .vdens(["--addr", "10.0.0.1/24", &listen, "sh"])
            .session();
        assert!(!carrier(&a, "vde0"));
        let b = lab
            .vdens(["--addr", "10.0.0.2/24", &connect, "sh"])
            .session();
        wait_for_carrier(&a, "vde0", true);
        a.ping("10.0.0.2");
        a.send_file(&b, "10.0.0.2", 32);
        b.send_file(&a, "10.0.0.1", 32);
        for (mtu, payload) in [(9000, 8972), (65_000, 64_972)] {
            for session in [&a, &b] {
                session.ok(&format!("ip link set vde0 mtu {mtu}"));
            }
            a.ok(&format!("ping -c 2 -W 20 -M do -s {payload} 10.0.0.2"));
        }
        a.send_file(&b, "10.0.0.2", 32);
        assert_eq!(b.exit(0).code(), Some(0));
        wait_for_carrier(&a, "vde0", false);
        assert_eq!(a.exit(0).code(), Some(0));
    }
}

#[test]
fn ours_through_datagrams() {
    need!("socat");
    let lab = Lab::new();
    let vnls = [("a", "b"), ("b", "a")]
        .map(|(own, far)| format!("{}->{}", lab.vnl("dgram", own), lab.path(far)));
    let start = |end: usize| {
        let address = format!("10.0.0.{}/24", end + 1);
        lab.vdens(["--addr", &address, &vnls[end], "sh"]).session()
    };
    let (a, mut b) = (start(0), start(1));
    a.ping("10.0.0.2");
    for session in [&a, &b] {
        session.ok("ip link set vde0 mtu 9000");
    }
    a.ok("ping -c 2 -W 20 -M do -s 8972 10.0.0.2");
    a.send_file(&b, "10.0.0.2", 32);
    b.send_file(&a, "10.0.0.1", 32);
    for _ in 0..2 {
        b.proc().signal(Signal::SIGKILL);
        wait_for_carrier(&a, "vde0", false);
        b = start(1);
        wait_for_carrier(&a, "vde0", true);
        a.ping("10.0.0.2");
    }
    assert_eq!(b.exit(0).code(), Some(0));
    lab.vdens([&vnls[0], "true"])
        .refused(&["another process has a socket"]);
    lab.vdens(["dgram://a->", "true"])
        .refused(&["a path is missing"]);
    lab.vdens(["dgram://a[vfkit]", "true"])
        .refused(&["OWN->FAR[vfkit]"]);
}

/// Each end is killed and started again; the other one stays.
#[test]
fn either_end_may_come_and_go() {
    let lab = Lab::new();
    let path = lab.vnl("stream", "s");
    lab.expect("s");
    let port = ends_at("").unwrap();
    for [listen, connect] in [[path.clone(), format!("{path}[connect]")], port] {
        let start = |number, vnl: &String| {
            let address = format!("10.0.0.{number}/24");
            lab.vdens(["--wait", "--addr", &address, vnl, "sh"])
                .session()
        };
        // The one that connects comes first, and waits.
        let mut b = start(2, &connect);
        assert!(!carrier(&b, "vde0"));
        let mut a = start(1, &listen);
        a.ping("10.0.0.2");
        for _ in 0..2 {
            a.proc().signal(Signal::SIGKILL);
            wait_for_carrier(&b, "vde0", false);
            a = start(1, &listen);
            wait_for_carrier(&b, "vde0", true);
            b.ping("10.0.0.1");
            b.proc().signal(Signal::SIGKILL);
            wait_for_carrier(&a, "vde0", false);
            b = start(2, &connect);
            a.ping("10.0.0.2");
        }
    }
}

/// Peers of a listening end that send what is no stream, or come second.
#[test]
fn wrong_peers_are_sent_away_and_the_right_one_is_served() {
    need!("socat");
    let lab = Lab::new();
    let vnl = lab.vnl("stream", "s");
    let log = lab.path("log");
    lab.expect("log");
    let ours = lab
        .vdens(["--log-file", &log, "--addr", "10.0.0.1/24", &vnl, "sh"])
        .session();
    lab.wait_for("s");
    let socket = lab.path("s");
    let logged = |words: &str| {
        wait_until(words, PATIENCE, || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains(words))
        });
    };
    for (bytes, words) in [
        (r"\0\0\0\0", "frame of 0 bytes"),
        (
            r"\377\377\377\377",
            "frame of 4294967295 bytes is too long, the limit is 65558",
        ),
        ("GET / HTTP/1.1", "frame of 1195725856 bytes is too long"),
    ] {
        lab.sh(&format!(
            "printf '{bytes}' | socat -t 20 - UNIX-CONNECT:{socket}"
        ))
        .ok();
        logged(words);
    }
    let flood = format!("head -c 20M /dev/urandom | socat -t 20 - UNIX-CONNECT:{socket} || :");
    for _ in 0..5 {
        lab.sh(&flood).ok();
    }
    let connect = format!("{vnl}[connect]");
    let peer = lab
        .vdens(["--addr", "10.0.0.2/24", &connect, "sh"])
        .session();
    peer.ping("10.0.0.1");
    lab.sh(&format!("socat -t 20 - UNIX-CONNECT:{socket}")).ok();
    logged("a second peer was refused: one is connected already");
    peer.ping("10.0.0.1");
    let status = lab.vdectl(["status"]).ok();
    assert!(status.contains(&vnl), "{status}");
    lab.vdens([&vnl, "true"])
        .refused(&["another process does", "[connect]"]);
    drop(peer);
    wait_for_carrier(&ours, "vde0", false);
}

#[test]
fn what_cannot_be_opened_is_refused_with_the_reason() {
    let lab = Lab::new();
    let (here, nowhere) = (lab.vnl("stream", "s"), port().unwrap());
    lab.write("file", "");
    for (vnl, words) in [
        (format!("{here}[connect]"), "start the far end first"),
        (
            format!("stream://:{nowhere}/connect"),
            "start the far end first",
        ),
        (lab.vnl("stream", "file"), "is not a socket"),
        (lab.vnl("stream", "no/s"), "make the directory"),
        ("stream://192.0.2.1:4000".to_owned(), "/connect"),
        ("stream://::1:4000".to_owned(), "in brackets"),
        ("stream://:0".to_owned(), "no port"),
        ("stream://".to_owned(), "stream://HOST:PORT"),
        (format!("{here}[connect/mode=0777]"), "'mode'"),
    ] {
        lab.vdens([&vnl, "true"]).refused(&[words]);
    }
}

/// One guest with a card for each way that QEMU has: it connects or listens, by path or port, or it
/// sends datagrams.
#[test]
fn a_virtual_machine_on_streams_and_datagrams() {
    need!("guest", "qemu-system-x86_64", "socat");
    let lab = Lab::new();
    let [ours_by_port, theirs_by_port] = [0, 1].map(|_| port().unwrap());
    let (by_path, theirs) = (lab.path("s"), lab.path("t"));
    let (datagrams, their_datagrams) = (lab.path("d"), lab.path("e"));
    let backends = [
        format!("stream,addr.type=unix,addr.path={by_path}"),
        format!("stream,server=on,addr.type=unix,addr.path={theirs}"),
        format!("stream,addr.type=inet,addr.host=127.0.0.1,addr.port={ours_by_port}"),
        format!("stream,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port={theirs_by_port}"),
        format!(
            "dgram,local.type=unix,local.path={their_datagrams},\
             remote.type=unix,remote.path={datagrams}"
        ),
    ];
    let vnls = [
        format!("stream://{by_path}"),
        format!("stream://{theirs}[connect]"),
        format!("stream://:{ours_by_port}"),
        format!("stream://:{theirs_by_port}/connect"),
        format!("dgram://{datagrams}->{their_datagrams}"),
    ];
    // QEMU leaves its sockets.
    lab.expect("t");
    lab.expect("e");
    // The cards whose peer QEMU 7.2 finds again: not those on which it connects.
    let lasting = [1, 3, 4];
    let start = || {
        let options = lab.vdens(["--wait", "--multi"]);
        let ours = options.args(&vnls).args(["--", "sh"]).session();
        for card in 0..backends.len() {
            ours.address(&format!("vde{card}"), &format!("10.0.{card}.1/24"));
        }
        ours
    };
    let boot = || {
        let guest = guest_on(&lab, &backends);
        for card in 0..backends.len() {
            guest.address(&format!("eth{card}"), &format!("10.0.{card}.2/24"));
        }
        guest
    };
    let ours = start();
    for card in 0..backends.len() {
        assert!(!carrier(&ours, &format!("vde{card}")));
    }
    let guest = boot();
    for card in 0..backends.len() {
        wait_for_carrier(&ours, &format!("vde{card}"), true);
        wait_for_carrier(&guest, &format!("eth{card}"), true);
        ours.ping(&format!("10.0.{card}.2"));
        guest.ping(&format!("10.0.{card}.1"));
        let mebibytes = if card == 0 { 64 } else { 2 };
        send_to_guest(&ours, &guest, &format!("10.0.{card}.2"), mebibytes);
        send_from_guest(&guest, &ours, &format!("10.0.{card}.1"), mebibytes);
    }

    ours.proc().signal(Signal::SIGKILL);
    drop(ours);
    println!(
        "XX {}",
        guest.ok("sleep 2; cat /sys/class/net/eth?/carrier")
    );
    let ours = start();
    for card in lasting {
        wait_for_carrier(&ours, &format!("vde{card}"), true);
        ours.ping(&format!("10.0.{card}.2"));
        guest.ping(&format!("10.0.{card}.1"));
    }

    guest.proc().signal(Signal::SIGKILL);
    for card in 0..backends.len() {
        wait_for_carrier(&ours, &format!("vde{card}"), false);
    }
    let guest = boot();
    for card in 0..backends.len() {
        wait_for_carrier(&ours, &format!("vde{card}"), true);
        ours.ping(&format!("10.0.{card}.2"));
        guest.ping(&format!("10.0.{card}.1"));
    }
    assert_eq!(ours.exit(0).code(), Some(0));
}

#[test]
fn the_internet_through_passt() {
    need!("root", "passt", "python3", "curl");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let socket = lab.path("passt");
    // It leaves its socket.
    lab.expect("passt");
    let passt = || {
        let passt = lab
            .command("passt", ["-f", "--no-map-gw", "-s", &socket])
            .inside(&net.host)
            .spawn();
        lab.wait_for("passt");
        passt
    };
    let first = passt();
    // passt answers at the address that it offers, which the interface does not have yet.
    let ours = net.session(&["--auto", &format!("stream://{socket}[connect]")]);
    let asks = || {
        ours.ping("198.51.100.1");
        ours.ping("2001:db8::1");
        for server in ["198.51.100.1", "[2001:db8::1]"] {
            let page = ours.ok(&format!("curl -sS -m 30 http://{server}:8000/page"));
            assert_eq!(page, "the page");
        }
    };
    asks();
    // passt serves the next client after the last one, so both may be started again.
    drop(first);
    wait_for_carrier(&ours, "vde0", false);
    let _second = passt();
    wait_for_carrier(&ours, "vde0", true);
    asks();
}
