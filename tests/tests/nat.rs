//! `nat://` and `--auto`: the Internet for a namespace.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use vdens_tests::{Lab, PATIENCE, need, wait_until};

use crate::nat_internet::{Internet, proxy};

#[test]
fn one_word_is_enough() {
    need!("root", "python3", "curl", "dnsmasq");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let session = lab
        .vdens(["--auto", "nat://dns=192.0.2.1", "sh"])
        .inside(&net.host)
        .session();
    assert_eq!(
        session
            .ok("ip -o -4 addr show vde0 | awk '{print $4}'")
            .trim(),
        "10.0.2.15/24"
    );
    assert!(
        session
            .ok("cat /etc/resolv.conf")
            .contains("nameserver 10.0.2.3")
    );
    for url in [
        "http://server.test:8000/page",
        "http://server6.test:8000/page",
        "http://198.51.100.1:8000/page",
    ] {
        assert_eq!(session.ok(&format!("curl -sS {url}")), "the page", "{url}");
    }
    // A question that the resolver asks by TCP.
    assert_eq!(
        session.ok("python3 -c 'import socket; s=socket.create_connection((\"10.0.2.3\",53)); print(s.getpeername()[1])'").trim(),
        "53"
    );
    for address in [
        "198.51.100.1",
        "2001:db8::1",
        "10.0.2.2",
        "fd76:6465:6e73::2",
    ] {
        session.ping(address);
    }
    for (address, seen) in [
        ("198.51.100.1", "192.0.2.2"),
        ("2001:db8::1", "2001:db8::2"),
    ] {
        let said = session.ok(&net.who(address));
        assert_eq!(said.trim(), format!("you are {seen}"));
    }
    assert_eq!(session.exit(0).code(), Some(0));
}

#[test]
fn the_far_sides_answers_arrive_as_they_are() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let session = lab
        .vdens(["--auto", "nat://", "sh"])
        .inside(&net.host)
        .session();
    let try_it = lab.write(
        "try.py",
        r#"
import errno, socket, sys
for address, port in (("198.51.100.1", 9), ("2001:db8::1", 9), ("203.0.113.5", 9), ("127.0.0.1", 9)):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    s.settimeout(30)
    try:
        s.connect((address, port)); print(address, "connected")
    except OSError as e:
        print(address, errno.errorcode.get(e.errno, str(e)))
# A connection whose other half is closed goes on.
s = socket.create_connection(("198.51.100.1", 7)); s.sendall(b"hello"); s.shutdown(socket.SHUT_WR)
out = b""
while data := s.recv(100): out += data
print("half", out.decode())
s = socket.create_connection(("198.51.100.1", 81)); s.sendall(b"x")
try:
    print("reset", s.recv(100))
except OSError as e:
    print("reset", errno.errorcode[e.errno])
# A reset of the client's reaches the server.
for family, address in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(30); s.connect((address, 7))
    s.send(b"datagram"); print("udp", s.recv(100).decode())
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(30); s.connect((address, 9))
    try:
        s.send(b"datagram"); print("udp", s.recv(100).decode())
    except OSError as e:
        print("udp", errno.errorcode[e.errno])
"#,
    );
    let said = session.ok(&format!("python3 {try_it}"));
    let expected = "198.51.100.1 ECONNREFUSED
2001:db8::1 ECONNREFUSED
203.0.113.5 EHOSTUNREACH
127.0.0.1 ECONNREFUSED
half helloend
reset ECONNRESET
udp datagram
udp ECONNREFUSED
udp datagram
udp ECONNREFUSED";
    assert_eq!(said.trim(), expected);
    // What the host itself sees there.
    let host = lab.command("python3", [&try_it]).inside(&net.host).ok();
    assert_eq!(host.trim(), expected);
    assert_eq!(session.exit(0).code(), Some(0));
}

#[test]
fn a_gibibyte_both_ways() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let script = lab.write(
        "bulk.py",
        r#"
import hashlib, os, socket, sys, threading
s = socket.create_connection((sys.argv[1], 7))
block = os.urandom(1 << 20); count = int(sys.argv[2])
sent, got = hashlib.blake2b(), hashlib.blake2b()
def send():
    for i in range(count):
        piece = i.to_bytes(8, "big") + block[8:]
        sent.update(piece); s.sendall(piece)
    s.shutdown(socket.SHUT_WR)
t = threading.Thread(target=send); t.start()
size, tail = 0, b""
while data := s.recv(1 << 20):
    size += len(data); data = tail + data
    tail = data[-3:]; got.update(data[:-3])
t.join()
assert tail == b"end", tail
assert size == (count << 20) + 3, size
assert sent.digest() == got.digest()
print("same")
"#,
    );
    for (option, address, mebibytes) in [
        ("--no-panel", "198.51.100.1", 256),
        ("--up", "198.51.100.1", 1024),
        ("--up", "2001:db8::1", 256),
    ] {
        let run = format!("python3 {script} {address} {mebibytes}");
        let session = lab
            .vdens([option, "--auto", "nat://", "sh"])
            .inside(&net.host)
            .session();
        let (status, said) = session.run_within(Duration::from_secs(600), &run);
        assert_eq!((status, said.trim()), (0, "same"), "{option} {address}");
        assert_eq!(session.exit(0).code(), Some(0));
    }
}

#[test]
fn ten_thousand_connections() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let session = lab
        .vdens(["--auto", "nat://", "sh"])
        .inside(&net.host)
        .session();
    session.ok("true");
    let proxy = proxy(&lab);
    let descriptors = || {
        std::fs::read_dir(format!("/proc/{proxy}/fd"))
            .unwrap()
            .count()
    };
    let before = descriptors();
    let script = lab.write(
        "many.py",
        r#"
import resource, socket, sys, time
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
# A connection takes two of the proxy's descriptors.
at_once = min(10000, hard // 2 - 500)
opened = 0
def connect(deadline):
    while True:
        try:
            return socket.create_connection(("198.51.100.1", 7), timeout=60)
        except ConnectionRefusedError:
            # Connections of the round before may be open still, and the limit is reached.
            assert opened and time.time() < deadline
            time.sleep(0.05)
while opened < 10000:
    deadline = time.time() + 60
    all = [connect(deadline) for _ in range(min(at_once, 10000 - opened))]
    for i, s in enumerate(all):
        s.sendall(b"%d" % i)
    for i, s in enumerate(all):
        assert s.recv(100) == b"%d" % i, i
    opened += len(all)
    for s in all: s.close()
print("open")
"#,
    );
    let (status, said) = session.run_within(Duration::from_secs(600), &format!("python3 {script}"));
    assert_eq!((status, said.trim()), (0, "open"));
    wait_until("all connections are closed", PATIENCE, || {
        descriptors() < before + 200
    });
    assert_eq!(session.exit(0).code(), Some(0));
}

#[test]
fn a_gateway_is_not_configured_by_the_user() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let directory = lab.home().join(".config/vdens");
    lab.command("mkdir", ["-p"]).args([&directory]).ok();
    let file = directory.join("vdens.toml");
    std::fs::write(&file, "[defaults]\nauto = true\n").unwrap();
    lab.give(&file);
    let said = lab
        .vdens(["nat://", "ip", "-o", "-4", "addr", "show", "vde0"])
        .inside(&net.host)
        .ok();
    assert!(said.contains("10.0.2.15/24"), "{said}");
}

#[test]
fn a_setuid_helper_refuses_to_run() {
    need!("root");
    let lab = Lab::new();
    let helper = lab.bin().join("vdens-nat");
    let mode = std::fs::Permissions::from_mode(0o4755);
    std::fs::set_permissions(&helper, mode).unwrap();
    lab.command(&helper, ["proxy", "{}"])
        .refused(&["more rights than its caller", "chmod ug-s"]);
}

#[test]
fn auto_says_when_nothing_answers() {
    let lab = Lab::new();
    lab.vdens(["--auto=0.3", "null://", "true"]).refused(&[
        "cannot configure vde0 by --auto",
        "DHCP",
        "--addr",
    ]);
}
