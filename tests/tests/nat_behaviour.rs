//! `nat://` as its keys say, its UDP, and what it does at its limits.

use vdens_tests::{Lab, PATIENCE, need, wait_until};

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
