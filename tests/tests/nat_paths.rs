//! What `nat://` makes of the way outside: hops, path MTU, a far side that does not read.

use vdens_tests::{Lab, PATIENCE, need, wait_until};

use crate::nat_internet::{Internet, proxy, usage};

/// A packet that goes on outside is a new one, so the destination answers at the first hop.
#[test]
fn traceroute_shows_one_hop() {
    need!("root", "python3", "traceroute", "tracepath");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let session = net.session(&["--auto", "nat://"]);
    for address in ["198.51.100.1", "2001:db8::1"] {
        for way in ["", "-I", "-T -p 80"] {
            let said = session.ok(&format!("traceroute -n -q 1 -w 60 {way} {address}"));
            let hops: Vec<_> = said.lines().skip(1).map(str::trim).collect();
            assert_eq!(hops.len(), 1, "{said}");
            assert!(hops[0].starts_with(&format!("1  {address} ")), "{said}");
        }
        let said = session.ok(&format!("tracepath -n {address}"));
        assert!(said.contains("pmtu 1500 hops 1 "), "{said}");
    }
    assert_eq!(session.exit(0).code(), Some(0));
}

/// Sends what is longer than the way takes, and prints what comes of it.
const LONG: &str = r#"
import errno, socket, sys, threading
address = sys.argv[1]
family = socket.AF_INET6 if ":" in address else socket.AF_INET
level, discover, known = (0, 10, 14) if family == socket.AF_INET else (41, 23, 24)
s = socket.create_connection((address, 7))
sent, got = bytes(range(256)) * (1 << 14), b""
def send(): s.sendall(sent); s.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
while data := s.recv(1 << 20): got += data
print("tcp:", "same" if got == sent + b"end" else len(got))
for name, size, mode in (("short", 1400, 1), ("long", 20000, 1), ("whole", 1400, 2)):
    u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(0.5)
    u.setsockopt(level, discover, mode)     # 1: as long as needed; 2: never in fragments
    u.connect((address, 9000))
    said = None
    for _ in range(120):                    # one is lost for each that learns the path MTU
        try:
            u.send(bytes(size)); said = u.recv(100).decode(); break
        except TimeoutError:
            pass
        except OSError as e:
            said = errno.errorcode[e.errno]
            if mode == 2: break
    print(name + ":", said, "mtu", u.getsockopt(level, known))
"#;

/// Answers datagrams with their length.
const LENGTHS: &str = r#"
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(("::", 9000))
print("ready", flush=True)
while True:
    data, a = s.recvfrom(65536); s.sendto(b"%d" % len(data), a)
"#;

#[test]
fn a_smaller_mtu_outside_is_found() {
    need!("root", "python3", "ping");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let thin = lab.further_netns("t");
    net.far
        .sh(&format!(
            "ip link add thin0 mtu 1300 type veth peer name thin1 mtu 1300 netns {}
            ip addr add 192.0.3.1/24 dev thin0
            ip addr add 2001:db8:3::1/64 dev thin0 nodad
            ip link set thin0 up",
            thin.name()
        ))
        .ok();
    thin.sh("ip link set lo up
        ip addr add 192.0.3.2/24 dev thin1
        ip addr add 2001:db8:3::2/64 dev thin1 nodad
        ip link set thin1 up
        ip route add default via 192.0.3.1
        ip route add default via 2001:db8:3::1")
        .ok();
    let echoes = net.serve_in(&thin);
    let lengths = lab.write("lengths.py", LENGTHS);
    let lengths = thin.sh(&format!("exec python3 {lengths}")).spawn();
    wait_until("the servers listen", PATIENCE, || {
        [&echoes, &lengths].map(|server| server.stdout().contains("ready")) == [true; 2]
    });
    let script = lab.write("long.py", LONG);
    let session = net.session(&["--auto", "nat://"]);
    let (_, said) = session.run("ping -n -c 2 -W 60 -M do -s 1400 192.0.3.2");
    let says = "From 192.0.2.1 icmp_seq=1 Frag needed and DF set (mtu = 1300)";
    assert!(said.contains(says), "{said}");
    for address in ["192.0.3.2", "2001:db8:3::2"] {
        let said = session.ok(&format!("python3 {script} {address}"));
        let expected = "tcp: same\nshort: 1400 mtu 1300\nlong: 20000 mtu 1300\n\
                        whole: EMSGSIZE mtu 1300";
        assert_eq!(said.trim(), expected, "{address}");
    }
    assert_eq!(session.exit(0).code(), Some(0));
}

/// Moves 96 MiB from a sender to a receiver, which reads when a file appears. The sender says how
/// much it could send when it had to wait for a second.
const STALL: &str = r#"
import hashlib, os, select, socket, sys, time
role, go, address = sys.argv[1:]
if address == "listen":
    listener = socket.create_server(("198.51.100.1", 84)); print("ready", flush=True)
    s, _ = listener.accept()
else:
    s = socket.create_connection((address, 84))
digest, total = hashlib.blake2b(), 0
if role == "receive":
    while not os.path.exists(go): time.sleep(0.05)
    while data := s.recv(1 << 20): digest.update(data); total += len(data)
else:
    s.setblocking(False); has_waited = False
    block = os.urandom(1 << 20)
    for n in range(96):
        rest = n.to_bytes(8, "big") + block[8:]
        digest.update(rest)
        while rest:
            if not select.select([], [s], [], 1)[1] and not has_waited:
                print("waits after", total, flush=True); has_waited = True
            try: count = s.send(rest)
            except BlockingIOError: continue
            rest = rest[count:]; total += count
    s.shutdown(socket.SHUT_WR)
print("moved", total, digest.hexdigest(), flush=True)
"#;

/// What the proxy and the kernels hold of a stream is bounded, and nothing of it is lost.
#[test]
fn a_receiver_that_does_not_read_stops_the_sender() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let script = lab.write("stall.py", STALL);
    let session = net.session(&["--auto", "nat://"]);
    session.ok(&net.who("198.51.100.1"));
    let before = usage(proxy(&lab)).unwrap();
    for [outside, inside] in [["receive", "send"], ["send", "receive"]] {
        let go = format!("go-{inside}");
        let run = format!("python3 {script} {{}} {}", lab.path(&go));
        let run = |role, address| run.replace("{}", role) + " " + address;
        let far = net
            .far
            .sh(&format!("exec {}", run(outside, "listen")))
            .spawn();
        wait_until("the far side listens", PATIENCE, || {
            far.stdout().contains("ready")
        });
        session.start(&run(inside, "198.51.100.1"));
        let mut taken = 0;
        wait_until("the sender waits", PATIENCE, || {
            let said = session.proc().stdout() + &far.stdout();
            let line = said
                .lines()
                .find_map(|line| line.strip_prefix("waits after "));
            taken = line.map_or(0, |number| number.parse().unwrap());
            taken > 0
        });
        // The four sockets on the way, and a pipe.
        assert!(taken < 64 << 20, "{inside}: {taken}");
        let now = usage(proxy(&lab)).unwrap();
        assert!(now.memory < before.memory + 4096, "{before:?} {now:?}");
        lab.write(&go, "");
        let (status, near) = session.finish(PATIENCE);
        let far = far.wait(PATIENCE);
        assert_eq!((status, far.code()), (0, Some(0)), "{near} {far:?}");
        let moved = |said: &str| {
            let mut lines = said.lines().map(str::to_owned);
            lines.find(|line| line.starts_with("moved 100663296 "))
        };
        assert!(moved(&near).is_some(), "{near}");
        assert_eq!(moved(&near), moved(&far.stdout));
    }
    assert_eq!(session.exit(0).code(), Some(0));
}
