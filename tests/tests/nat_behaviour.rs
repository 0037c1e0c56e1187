//! `nat://` as its keys say, its UDP, and what it does at its limits.

use serde_json::Value;
use vdens_tests::{Lab, PATIENCE, User, need, wait_until};

use crate::nat_internet::Internet;

#[test]
fn keys_choose_networks_families_and_the_hosts_address() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    net.host.sh("ip addr add 192.0.2.3/24 dev up0").ok();
    let (v4, v6) = ("198.51.100.1", "2001:db8::1");
    for (keys, addresses, without, seen) in [
        (
            "net='10.9.0.0/24'/net6='fd00:9::/64'/bind=192.0.2.3",
            &["10.9.0.15/24", "fd00:9:"][..],
            "10.0.2.",
            [Some("192.0.2.3"), Some("2001:db8::2")],
        ),
        (
            "ipv4=no",
            &["fd76:6465:6e73:"],
            "10.0.2.",
            [None, Some("2001:db8::2")],
        ),
        (
            "ipv6=no",
            &["10.0.2.15/24"],
            "fd76:",
            [Some("192.0.2.2"), None],
        ),
    ] {
        let session = net.session(&["--auto", &format!("nat://{keys}")]);
        let has = session.ok("ip -o addr show vde0");
        assert!(addresses.iter().all(|a| has.contains(a)), "{keys}: {has}");
        assert!(!has.contains(without), "{keys}: {has}");
        for (server, seen) in [v4, v6].iter().zip(seen) {
            let (status, said) = session.run(&net.who(server));
            match seen {
                Some(seen) => assert_eq!(said.trim(), format!("you are {seen}"), "{keys}"),
                None => assert_ne!(status, 0, "{keys} {server}: {said}"),
            }
        }
        assert_eq!(session.exit(0).code(), Some(0));
    }
}

#[test]
fn name_servers_that_are_given_win() {
    need!("root");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let file = lab.write("resolv", "nameserver 192.0.2.53\n");
    for (options, server) in [
        (&["-r", file.as_str()][..], "192.0.2.53"),
        (&["-R", "192.0.2.54"], "192.0.2.54"),
    ] {
        let session = net.session(&[options, &["--auto", "nat://"]].concat());
        let servers = session.ok("grep nameserver /etc/resolv.conf");
        assert_eq!(servers.trim(), format!("nameserver {server}"));
        assert_eq!(session.exit(0).code(), Some(0));
    }
}

/// RFC 4787, REQ-1 and REQ-8: whatever a client sends to, it leaves from one port; and who knows
/// that port reaches the client.
#[test]
fn udp_is_independent_of_the_endpoint() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let far = lab.write(
        "far.py",
        r#"
import socket
def bound(*at):
    u = socket.socket(type=socket.SOCK_DGRAM); u.bind(at); return u
known = [bound(address, 9000) for address in ("192.0.2.1", "198.51.100.1")]
print("ready", flush=True)
seen = [u.recvfrom(100)[1] for u in known]
bound("192.0.2.1", 9001).sendto(b"from a stranger", seen[0])
print(seen[0] == seen[1], flush=True)
"#,
    );
    let near = lab.write(
        "near.py",
        r#"
import socket
u = socket.socket(type=socket.SOCK_DGRAM); u.settimeout(60)
for address in ("192.0.2.1", "198.51.100.1"): u.sendto(b"x", (address, 9000))
data, a = u.recvfrom(100); print(data.decode(), *a)
"#,
    );
    let far = net.far.sh(&format!("exec python3 {far}")).spawn();
    wait_until("the servers wait", PATIENCE, || {
        far.stdout().contains("ready")
    });
    let session = net.session(&["--auto", "nat://"]);
    let said = session.ok(&format!("python3 {near}"));
    assert_eq!(said.trim(), "from a stranger 192.0.2.1 9001");
    assert_eq!(far.wait(PATIENCE).stdout, "ready\nTrue\n");
    assert_eq!(session.exit(0).code(), Some(0));
}

/// Beyond the limit of descriptors, a connection is refused at once and the user is told; when
/// others have ended, there is room again.
#[test]
fn connections_over_the_limit_are_refused() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let script = lab.write(
        "limit.py",
        r#"
import socket
def connect(): return socket.create_connection(("198.51.100.1", 7), timeout=60)
for attempt in range(2):
    kept = []
    try:
        while len(kept) < 400: kept.append(connect())
    except ConnectionRefusedError:
        print("refused", "early" if len(kept) < 100 else "in time")
    kept[0].sendall(b"x"); assert kept[0].recv(1) == b"x"
    for s in kept:
        s.shutdown(socket.SHUT_WR)
        while s.recv(100): pass
        s.close()
"#,
    );
    let vdens = lab.sh("ulimit -n 700; exec vdens --auto nat:// sh");
    let session = vdens.inside(&net.host).session();
    let said = session.ok(&format!("python3 {script}"));
    assert_eq!(said, "refused in time\nrefused in time\n");
    wait_until("the user is told", PATIENCE, || {
        let said = session.proc().stderr();
        said.contains("connections were refused") && said.contains("ulimit -n")
    });
    assert_eq!(session.exit(0).code(), Some(0));
}

/// While two transfers take all that they can get, each of a thousand connections has its turn.
#[test]
fn bulk_starves_nobody() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let script = lab.write(
        "beside.py",
        r#"
import resource, socket, threading
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
def connect(): return socket.create_connection(("198.51.100.1", 7), timeout=60)
small = [connect() for _ in range(1000)]
enough, moved = threading.Event(), [0, 0]
def send(s):
    block = bytes(1 << 20)
    while not enough.is_set(): s.sendall(block)
    s.shutdown(socket.SHUT_WR)
def receive(s, n):
    while data := s.recv(1 << 20): moved[n] += len(data)
threads = []
for n in range(2):
    s = connect()
    threads += [threading.Thread(target=send, args=(s,)), threading.Thread(target=receive, args=(s, n))]
for t in threads: t.start()
before = list(moved)
for s in small:
    s.sendall(b"x"); assert s.recv(1) == b"x"
assert all(after > b for after, b in zip(moved, before)), (before, moved)
enough.set()
for t in threads: t.join()
print("all served")
"#,
    );
    let session = net.session(&["--auto", "nat://"]);
    let (status, said) = session.run_within(PATIENCE, &format!("python3 {script}"));
    assert_eq!((status, said.trim()), (0, "all served"));
    assert_eq!(session.exit(0).code(), Some(0));
}

/// What was dropped is counted by its cause.
#[test]
fn drops_are_shown_by_cause() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let script = lab.write(
        "drops.py",
        r#"
import socket, sys
DGRAM, STREAM = socket.SOCK_DGRAM, socket.SOCK_STREAM
def send(count, address, port):
    for _ in range(count):
        with socket.socket(socket.AF_INET, DGRAM) as s: s.sendto(b"x", (address, port))
def datagrams(): send(3, "10.0.2.2", 9)                 # the host's loopback, which is closed
def names(): send(2, "10.0.2.3", 53)                    # too short to be questions
def mappings(): send(800, "198.51.100.1", 7)
def half_open():
    for n in range(200):
        s = socket.socket(socket.AF_INET, STREAM); s.setblocking(False)
        s.connect_ex(("198.18.0.5", n + 1)); kept.append(s)
def connections():
    try:
        while True: kept.append(socket.create_connection(("198.51.100.1", 7), timeout=60))
    except ConnectionRefusedError: pass
kept = []
globals()[sys.argv[1]]()
"#,
    );
    let vdens = lab.sh("ulimit -n 700; exec vdens --auto nat:// sh");
    let session = vdens.inside(&net.host).session();
    session.ok("true");
    for (step, cause, expected) in [
        ("datagrams", "datagrams", 3..4),
        ("names", "names without an answer", 2..3),
        ("half_open", "half-open connections", 50..200),
        ("connections", "connections over the limit", 1..100),
        ("mappings", "UDP mappings evicted", 50..800),
    ] {
        let cause = format!("dropped: {cause}");
        assert_eq!(told(&lab, &cause), None, "{cause}");
        session.ok(&format!("python3 {script} {step}"));
        wait_until(&cause, PATIENCE, || {
            told(&lab, &cause).is_some_and(|count| expected.contains(&count))
        });
    }
    assert_eq!(session.exit(0).code(), Some(0));
}

/// A number that `vdectl status --json` has of the link `nat://`.
fn told(lab: &Lab, name: &str) -> Option<u64> {
    let json = lab.vdectl(["status", "--json"]).ok();
    let status: Value = serde_json::from_str(&json).ok()?;
    let processes = status["processes"].as_array()?.iter();
    let mut links = processes.filter_map(|process| process["links"].as_array());
    let link = links.find_map(|links| links.iter().find(|link| link["vnl"] == "nat://"))?;
    link["extra"][name].as_str()?.parse().ok()
}

/// A kernel that lacks nft_queue and xt_NFQUEUE: what the gateway asks of it by these names is not
/// there.
const WITHOUT_QUEUES: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/socket.h>
ssize_t send(int fd, const void *data, size_t length, int flags) {
    ssize_t (*next)(int, const void *, size_t, int) = dlsym(RTLD_NEXT, "send");
    static char copy[1 << 16];
    if (length > sizeof copy) return next(fd, data, length, flags);
    memcpy(copy, data, length);
    const char *names[] = {"queue", "NFQUEUE"};
    for (int n = 0; n < 2; n++) {
        char *found = memmem(copy, length, names[n], strlen(names[n]) + 1);
        if (found) *found = 'x';
    }
    return next(fd, copy, length, flags);
}
"#;

#[test]
fn without_queues_connections_are_accepted_first() {
    need!("root", "python3", "gcc");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let source = lab.write("no_queue.c", WITHOUT_QUEUES);
    let library = lab.mkdir("lib") + "/no_queue.so";
    let words = ["-Wall", "-Werror", "-shared", "-fPIC", "-o"];
    let gcc = lab.command("gcc", words).args([&library, &source]);
    gcc.by(User::root()).ok();
    let script = lab.write(
        "refused.py",
        r#"
import socket
for address in ("198.51.100.1", "203.0.113.5", "2001:db8::1", "2001:db8:bad::5"):
    try:                                                # with a queue, it would be refused
        print(socket.create_connection((address, 9), timeout=60).recv(1))
    except ConnectionResetError: print("reset")
"#,
    );
    let vdens = lab.sh(&format!("LD_PRELOAD={library} exec vdens --auto nat:// sh"));
    let session = vdens.inside(&net.host).session();
    for (address, seen) in [
        ("198.51.100.1", "192.0.2.2"),
        ("2001:db8::1", "2001:db8::2"),
    ] {
        let said = session.ok(&net.who(address));
        assert_eq!(said.trim(), format!("you are {seen}"));
    }
    let warned = session.proc().stderr();
    assert!(
        warned.contains("the kernel has neither nft_queue nor xt_NFQUEUE")
            && warned.contains("connections are accepted before the far side has answered"),
        "{warned}"
    );
    let said = session.ok(&format!("python3 {script}"));
    assert_eq!(said, "reset\n".repeat(4));
    assert_eq!(session.exit(0).code(), Some(0));
}
