//! `nat://` and `--auto`: the Internet for a namespace.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use vdens_tests::{Lab, PATIENCE, need, stretched, wait_until};

use crate::nat_internet::{Internet, proxy, usage};

#[test]
fn one_word_is_enough() {
    need!("root", "python3", "curl", "dnsmasq");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let session = net.session(&["--auto", "nat://dns=192.0.2.1"]);
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

/// The link has carrier only when the gateway answers: a packet that is sent at once, and not
/// repeated, is answered.
#[test]
fn the_first_packet_is_answered() {
    need!("root", "python3", "ping");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let datagram = lab.write(
        "datagram.py",
        "import socket\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(60)\n\
         s.sendto(b'x', ('198.51.100.1', 7)); s.recv(9)\n",
    );
    for first in [
        "ping -nc 1 -W 60 198.51.100.1",
        &format!("python3 {datagram}"),
        &net.who("198.51.100.1"),
    ] {
        for panel in ["--up", "--no-panel"] {
            let options = [panel, "--addr=10.0.2.50/24", "--gateway=10.0.2.2"];
            let session = lab.vdens(options).args(["nat://", "sh", "-c", first]);
            session.inside(&net.host).ok();
        }
    }
}

/// Tries what servers may do, and prints what a client sees of it: a line each.
const TRY: &str = r#"
import errno, socket, threading, time
V4, V6 = socket.AF_INET, socket.AF_INET6
said = {}

def attempt(name, family, kind, address, port, use, synchronize=6):
    s = socket.socket(family, kind); s.settimeout(60)
    try:
        if kind == socket.SOCK_STREAM:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, synchronize)
        else:                                           # IP_RECVERR: all errors are told
            s.setsockopt(*((0, 11, 1) if family == V4 else (41, 25, 1)))
        s.connect((address, port)); what = use(s)
    except OSError as e:
        what = errno.errorcode.get(e.errno, str(e))
    said[name] = what

def connected(s): return "connected"
def half(s):
    s.sendall(b"hello"); s.shutdown(socket.SHUT_WR)
    out = b""
    while data := s.recv(100): out += data
    return out.decode()
def insist(s):                                          # routers do not answer each datagram
    s.settimeout(0.5)
    for _ in range(60):
        try: return speak(s)
        except TimeoutError: pass
def speak(s):
    s.send(b"hello")
    return s.recv(100).decode()

def late(name, family, address):
    u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(60); u.connect((address, 83))
    u.send(b"x"); u.recv(100)
    began = time.monotonic()
    attempt(name, family, socket.SOCK_STREAM, address, 83, speak)
    said[name] += " at once" if time.monotonic() - began < 0.9 else " after a while"

def gives_up(name, family, address):
    s = socket.socket(family); s.settimeout(0.5)
    try:
        s.connect((address, 80)); said[name] = "connected"
    except TimeoutError as e:
        said[name] = str(e)

T, U = socket.SOCK_STREAM, socket.SOCK_DGRAM
jobs = []
def job(function, *arguments):
    jobs.append(threading.Thread(target=function, args=arguments)); jobs[-1].start()
for v, family, address, unreachable, silent, here in (
    ("4", V4, "198.51.100.1", "203.0.113.5", "198.18.0.5", "127.0.0.1"),
    ("6", V6, "2001:db8::1", "2001:db8:bad::5", "2001:db8:dead::5", "::1"),
):
    job(attempt, v + " refused", family, T, address, 9, connected)
    job(attempt, v + " unreachable", family, T, unreachable, 9, connected)
    job(attempt, v + " local", family, T, here, 9, connected)
    job(attempt, v + " half-closed", family, T, address, 7, half)
    job(attempt, v + " reset", family, T, address, 81, speak)
    job(attempt, v + " silent", family, T, silent, 80, connected, 1)
    job(gives_up, v + " impatient", family, silent)
    job(late, v + " late", family, address)
    job(attempt, v + " udp", family, U, address, 7, speak)
    job(attempt, v + " udp refused", family, U, address, 9, speak)
    job(attempt, v + " udp unreachable", family, U, unreachable, 9, insist)
for j in jobs: j.join()
for name in sorted(said): print(name + ":", said[name])
"#;

#[test]
fn the_far_sides_answers_arrive_as_they_are() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let script = lab.write("try.py", TRY);
    let on_the_host = lab.command("python3", [&script]).inside(&net.host).ok();
    let expected = "4 half-closed: helloend
4 impatient: timed out
4 late: late after a while
4 local: ECONNREFUSED
4 refused: ECONNREFUSED
4 reset: ECONNRESET
4 silent: ETIMEDOUT
4 udp: hello
4 udp refused: ECONNREFUSED
4 udp unreachable: EHOSTUNREACH
4 unreachable: EHOSTUNREACH";
    // Of IPv6, a route that is said to be unreachable means the network.
    let other = expected.replace("4 ", "6 ").replace("EHOST", "ENET");
    let expected = format!("{expected}\n{other}");
    assert_eq!(on_the_host.trim(), expected, "on the host");
    for options in [&["--auto"][..], &["--no-panel", "--auto"]] {
        let session = lab
            .vdens(options)
            .args(["nat://", "sh"])
            .inside(&net.host)
            .session();
        let said = session.ok(&format!("python3 {script}"));
        assert_eq!(said.trim(), expected, "{options:?}");
        assert_eq!(session.exit(0).code(), Some(0));
    }
}

/// Errors that pings meet outside come back, from who sent them.
#[test]
fn errors_of_pings_come_back() {
    need!("root", "python3", "ping");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let session = net.session(&["--auto", "nat://"]);
    let unreachable = "Destination Host Unreachable";
    for (address, from, says) in [
        ("203.0.113.5", "192.0.2.1", unreachable),
        (
            "2001:db8:bad::5",
            "2001:db8::1",
            "Destination unreachable: No route",
        ),
    ] {
        let (_, said) = session.run(&format!("ping -n -c 2 -W 30 {address}"));
        assert!(
            said.contains(&format!("From {from} icmp_seq=2 {says}")),
            "{said}"
        );
    }
    net.host.sh("ip route del default").ok();
    let (_, said) = session.run("ping -n -c 1 -W 30 198.51.100.1");
    let says = "From 10.0.2.2 icmp_seq=1 Destination Net Unreachable";
    assert!(said.contains(says), "{said}");
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
        let session = net.session(&[option, "--auto", "nat://"]);
        let (status, said) = session.run_within(Duration::from_secs(600), &run);
        assert_eq!((status, said.trim()), (0, "same"), "{option} {address}");
        assert_eq!(session.exit(0).code(), Some(0));
    }
}

/// Opens ten thousand connections, or as many as the limit of descriptors allows, uses them, and
/// closes them when it is told to; again, so that what is lost each time shows.
const MANY: &str = r#"
import os, resource, socket, sys, time
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
# A connection takes two of the proxy's descriptors.
at_once = min(10000, hard // 2 - 500)
rounds = max(2, -(-10000 // at_once))
def wait(word, round):
    while not os.path.exists("%s/%s%d" % (sys.argv[1], word, round + 1)): time.sleep(0.05)
def connect(round, deadline):
    while True:
        try:
            return socket.create_connection(("198.51.100.1", 7), timeout=60)
        except ConnectionRefusedError:
            # Connections of the round before may be open still, and the limit is reached.
            assert round > 0 and time.time() < deadline
            time.sleep(0.05)
for round in range(rounds):
    deadline = time.time() + 60
    all = [connect(round, deadline) for _ in range(at_once)]
    for i, s in enumerate(all):
        s.sendall(b"%d" % i)
    for i, s in enumerate(all):
        assert s.recv(100) == b"%d" % i, i
    print("round", round + 1, "of", rounds, "has", at_once, flush=True)
    wait("close", round)
    for s in all: s.close()
    wait("closed", round)
"#;

#[test]
fn ten_thousand_connections() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let session = net.session(&["--auto", "nat://"]);
    session.ok("true");
    let proxy = proxy(&lab);
    let usage = || usage(proxy).unwrap();
    let before = usage();
    let (script, told) = (lab.write("many.py", MANY), lab.mkdir("told"));
    session.start(&format!("python3 {script} {told}"));
    let patience = stretched(Duration::from_secs(300));
    let (mut round, mut rounds) = (1, 2);
    let mut after = Vec::new();
    while round <= rounds {
        let mut at_once = 0;
        wait_until("the connections are open", patience, || {
            let said = session.proc().stdout();
            let begin = format!("round {round} of ");
            let line = said.lines().find_map(|line| line.strip_prefix(&begin));
            let numbers = line.and_then(|line| line.split_once(" has "));
            let Some((of, has)) = numbers else {
                assert!(!said.contains("Error"), "{said}");
                return false;
            };
            (rounds, at_once) = (of.parse().unwrap(), has.parse().unwrap());
            true
        });
        let open = usage();
        assert!(open.descriptors > 2 * at_once, "{open:?}");
        // Four KiB each, and what a pipe and a buffer for all take.
        let most = 4 * at_once as u64 + 4096;
        assert!(open.memory < before.memory + most, "{before:?} {open:?}");
        lab.write(&format!("told/close{round}"), "");
        wait_until("all connections are closed", PATIENCE, || {
            usage().descriptors < before.descriptors + 200
        });
        lab.write(&format!("told/closed{round}"), "");
        after.push(usage());
        round += 1;
    }
    assert_eq!(session.finish(PATIENCE).0, 0);
    // The tables have their size after the first round.
    let memory = after.iter().map(|usage| usage.memory);
    assert!(
        memory.max() < Some(after[0].memory + 2048),
        "{before:?} {after:?}"
    );
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
