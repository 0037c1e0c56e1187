//! `nat://` and `--auto`: the Internet for a namespace and for a whole network, against an
//! "Internet" of the test's own.
//!
//! ```text
//! [namespace] == nat:// == [host's network] --veth-- [the Internet: servers]
//!                           192.0.2.2                  192.0.2.1, 198.51.100.1
//!                           2001:db8::2                2001:db8::1
//! ```

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, Netns, Proc, need, wait_until};

/// The programs that the Internet is made of.
const SERVERS: &str = r#"
import asyncio, resource, socket, sys, threading, time, struct
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

def tcp(port, serve, backlog=4096):
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        s = socket.socket(family)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind((address, port)); s.listen(backlog)
        def loop(s=s):
            while True:
                c, a = s.accept()
                threading.Thread(target=serve, args=(c, a), daemon=True).start()
        threading.Thread(target=loop, daemon=True).start()

async def echo(reader, writer):
    try:
        while data := await reader.read(1 << 20):
            writer.write(data); await writer.drain()
        writer.write(b"end"); await writer.drain()      # only after the other half was closed
    except OSError:
        pass
    writer.close()

def echoes():                                           # thousands at once, so no threads
    async def main():
        for address in ("0.0.0.0", "::"):
            await asyncio.start_server(echo, address, 7, backlog=4096)
        await asyncio.Event().wait()
    asyncio.run(main())

def whoami(c, a):
    while c.recv(100): pass
    c.sendall(("you are %s" % a[0]).encode()); c.close()

def resets(c, a):
    c.recv(1)
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)); c.close()

def keeps(c, a):
    c.sendall(b"k"); c.recv(1); c.close()

threading.Thread(target=echoes, daemon=True).start()
tcp(80, whoami); tcp(81, resets); tcp(82, keeps)
for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
    def udp(family=family, address=address):
        s = socket.socket(family, socket.SOCK_DGRAM); s.bind((address, 7))
        while True:
            data, a = s.recvfrom(65536); s.sendto(data, a)
    threading.Thread(target=udp, daemon=True).start()
print("ready", flush=True)
time.sleep(100000)
"#;

/// The host's network and the Internet behind it.
struct Internet<'lab> {
    host: Netns<'lab>,
    far: Netns<'lab>,
    _servers: Vec<Proc<'lab>>,
}

impl<'lab> Internet<'lab> {
    fn new(lab: &'lab Lab) -> Self {
        let host = lab.netns();
        let far = lab.further_netns("i");
        host.sh(&format!(
            "ip link set lo up
            ip link add up0 type veth peer name down0 netns {}
            ip addr add 192.0.2.2/24 dev up0
            ip addr add 2001:db8::2/64 dev up0 nodad
            ip link set up0 up
            echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range",
            far.name()
        ))
        .ok();
        far.sh("ip link set lo up
            ip addr add 192.0.2.1/24 dev down0
            ip addr add 2001:db8::1/64 dev down0 nodad
            ip addr add 198.51.100.1/32 dev lo
            ip route add unreachable 203.0.113.0/24
            echo 1 >/proc/sys/net/ipv4/ip_forward
            echo 0 >/proc/sys/net/ipv4/icmp_ratelimit
            echo 0 >/proc/sys/net/ipv6/icmp/ratelimit
            ip link set down0 up")
            .ok();
        host.sh("ip route add default via 192.0.2.1; ip route add default via 2001:db8::1")
            .ok();
        let script = lab.write("servers.py", SERVERS);
        let servers = far.sh(&format!("exec python3 {script}")).spawn();
        wait_until("the servers listen", vdens_tests::PATIENCE, || {
            servers.stdout().contains("ready")
        });
        Self {
            host,
            far,
            _servers: vec![servers],
        }
    }
}

/// Asks a TCP server: sends `$3`, ends its half, prints all that comes.
const ASK: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30)
s.sendall(sys.argv[3].encode()); s.shutdown(socket.SHUT_WR)
out = b""
while data := s.recv(65536):
    out += data
print(out.decode())
"#;

#[test]
fn one_word_is_enough() {
    need!("root", "python3", "curl", "dnsmasq");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let names = net
        .far
        .sh(
            "exec dnsmasq --keep-in-foreground --no-resolv --no-hosts --conf-file=/dev/null \
            --user=root --pid-file --bind-interfaces --listen-address=192.0.2.1 \
            --address=/server.test/198.51.100.1 --address=/server6.test/2001:db8::1 2>&1",
        )
        .spawn();
    let http = net
        .far
        .sh(&format!(
            "cd {}; exec python3 -u -m http.server --bind :: 8000 2>&1",
            lab.mkdir("www")
        ))
        .spawn();
    lab.write("www/page", "the page");
    wait_until("the web server listens", vdens_tests::PATIENCE, || {
        http.stdout().contains("Serving")
    });
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
    let script = lab.write("ask.py", ASK);
    assert_eq!(
        session
            .ok(&format!("python3 {script} 198.51.100.1 80 x"))
            .trim(),
        "you are 192.0.2.2"
    );
    assert_eq!(
        session
            .ok(&format!("python3 {script} 2001:db8::1 80 x"))
            .trim(),
        "you are 2001:db8::2"
    );
    assert_eq!(session.exit(0).code(), Some(0));
    drop((names, http));
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
    wait_until("all connections are closed", vdens_tests::PATIENCE, || {
        descriptors() < before + 200
    });
    assert_eq!(session.exit(0).code(), Some(0));
}

/// The process id of the lab's proxy.
fn proxy(lab: &Lab) -> i32 {
    let processes = lab.processes();
    let found = processes
        .iter()
        .find(|(_, line)| line.contains("vdens-nat proxy "));
    found
        .map(|(pid, _)| *pid)
        .unwrap_or_else(|| panic!("no proxy runs: {processes:?}"))
}

#[test]
fn the_hosts_loopback_is_closed_unless_opened() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let servers = lab.write(
        "servers2.py",
        SERVERS
            .replace("\"0.0.0.0\"", "\"127.0.0.1\"")
            .replace("\"::\"", "\"::1\""),
    );
    let local = net.host.sh(&format!("exec python3 {servers} 2>&1")).spawn();
    wait_until("it listens", vdens_tests::PATIENCE, || {
        net.host.sh("ss -lnt").ok().contains("127.0.0.1:80")
    });
    let script = lab.write("ask.py", ASK);
    let closed = lab
        .vdens(["--auto", "nat://", "sh"])
        .inside(&net.host)
        .session();
    for address in [
        "10.0.2.2",
        "10.0.2.3",
        "127.0.0.1",
        "fd76:6465:6e73::2",
        "::ffff:127.0.0.1",
    ] {
        let (status, said) = closed.run(&format!("python3 {script} {address} 80 x"));
        assert_ne!(status, 0, "{address}: {said}");
    }
    assert_eq!(closed.exit(0).code(), Some(0));
    let open = lab
        .vdens(["--auto", "nat://host=10.0.2.2", "sh"])
        .inside(&net.host)
        .session();
    assert_eq!(
        open.ok(&format!("python3 {script} 10.0.2.2 80 x")).trim(),
        "you are 127.0.0.1"
    );
    assert_eq!(open.exit(0).code(), Some(0));
    drop(local);
}

#[test]
fn forwards_show_the_client() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let vnl = "nat://tcp=0.0.0.0:8080:80,127.0.0.1:8081:80/udp=0.0.0.0:5353:53";
    let service = lab.write(
        "service.py",
        r#"
import socket, threading
t = socket.socket(); t.bind(("0.0.0.0", 80)); t.listen(100)
u = socket.socket(type=socket.SOCK_DGRAM); u.bind(("0.0.0.0", 53))
def datagrams():
    while True:
        data, a = u.recvfrom(100); u.sendto(a[0].encode(), a)
threading.Thread(target=datagrams, daemon=True).start()
while True:
    c, a = t.accept(); c.sendall(a[0].encode()); c.close()
"#,
    );
    let ask = lab.write("ask.py", ASK);
    let udp = lab.write(
        "udp.py",
        r#"
import socket, sys
s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(30); s.connect((sys.argv[1], int(sys.argv[2])))
s.send(b"x"); print(s.recv(100).decode())
"#,
    );
    let inside = lab
        .vdens(["--auto", vnl, "python3", &service])
        .inside(&net.host)
        .spawn();
    let tcp = |netns: &Netns<'_>, address: &str, port: u16| {
        netns
            .sh(&format!("python3 {ask} {address} {port} ''"))
            .run()
    };
    wait_until("the service answers", vdens_tests::PATIENCE, || {
        tcp(&net.far, "192.0.2.2", 8080).code() == Some(0)
    });
    assert_eq!(tcp(&net.far, "192.0.2.2", 8080).stdout.trim(), "192.0.2.1");
    assert_eq!(tcp(&net.host, "127.0.0.1", 8081).stdout.trim(), "10.0.2.2");
    assert_ne!(
        tcp(&net.far, "192.0.2.2", 8081).code(),
        Some(0),
        "it listens on loopback only"
    );
    let said =
        |netns: &Netns<'_>, address: &str| netns.sh(&format!("python3 {udp} {address} 5353")).ok();
    assert_eq!(said(&net.far, "192.0.2.2").trim(), "192.0.2.1");
    assert_eq!(said(&net.host, "127.0.0.1").trim(), "10.0.2.2");
    // A port that is taken, one that is reserved, and nonsense.
    lab.vdens(["nat://tcp=0.0.0.0:8080:81", "true"])
        .inside(&net.host)
        .refused(&["cannot forward tcp 0.0.0.0:8080", "in use"]);
    lab.vdens(["nat://tcp=81", "true"])
        .inside(&net.host)
        .refused(&["cannot forward tcp 127.0.0.1:81", "1024"]);
    lab.vdens(["nat://tcp=x:80", "true"])
        .refused(&["'x:80' is no forward", "tcp=8080:80"]);
    lab.vdens(["nat://shoe=3", "true"])
        .refused(&["unknown key 'shoe'"]);
    inside.terminate();
}

#[test]
fn a_whole_network_behind_one_gateway() {
    need!("root", "python3", "busybox");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let switch = lab.vnl("switch", "sw");
    let plug = lab.vde_plug(["nat://", &switch]).inside(&net.host).spawn();
    lab.wait_for("sw/ctl");
    let script = lab.write("ask.py", ASK);
    let ask = format!("python3 {script} 198.51.100.1 80 x");
    let sessions: Vec<_> = (0..3)
        .map(|_| {
            lab.vdens(["--auto=60", &lab.vnl("vde", "sw"), "sh"])
                .inside(&net.host)
                .session()
        })
        .collect();
    let mut addresses: Vec<_> = sessions
        .iter()
        .map(|session| {
            assert_eq!(session.ok(&ask).trim(), "you are 192.0.2.2");
            session.ok("ip -o -4 addr show vde0 | awk '{print $4}'")
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    for session in sessions {
        assert_eq!(session.exit(0).code(), Some(0));
    }
    plug.terminate();
}

#[test]
fn auto_on_a_network_of_dnsmasq() {
    need!("python3", "dnsmasq");
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "p");
    let server = lab
        .vdens([
            "--addr",
            "192.168.7.1/24",
            "--addr",
            "fd00:7::1/64",
            &cable,
            "sh",
        ])
        .session();
    let leases = lab.path("leases");
    lab.expect("leases");
    server.start(&format!(
        "exec dnsmasq --keep-in-foreground --no-resolv --no-hosts --conf-file=/dev/null --user= --pid-file \
        --bind-interfaces --interface=vde0 --dhcp-leasefile={leases} --domain=lab.test \
        --dhcp-range=192.168.7.50,192.168.7.60,1h --dhcp-range=fd00:7::,ra-stateless,64 --enable-ra"
    ));
    let client = lab.vdens(["--auto=60", &cable, "sh"]).session();
    let addresses = client.ok("ip -o addr show vde0 | awk '{print $4}'");
    assert!(
        addresses.contains("192.168.7.5") || addresses.contains("192.168.7.6"),
        "{addresses}"
    );
    assert!(addresses.contains("fd00:7:"), "{addresses}");
    let resolv = client.ok("cat /etc/resolv.conf");
    assert!(
        resolv.contains("nameserver 192.168.7.1") && resolv.contains("search lab.test"),
        "{resolv}"
    );
    assert!(client.ok("ip route").contains("default via 192.168.7.1"));
    client.ping("192.168.7.1");
    assert_eq!(client.exit(0).code(), Some(0));
    kill(Pid::from_raw(server.proc().pid()), Signal::SIGTERM).unwrap();
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

#[test]
fn whatever_is_killed_comes_back() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let script = lab.write("ask.py", ASK);
    let ask = format!("python3 {script} 198.51.100.1 80 x");
    let session = lab
        .vdens(["--auto", "nat://", "sh"])
        .inside(&net.host)
        .session();
    assert_eq!(session.ok(&ask).trim(), "you are 192.0.2.2");
    for victim in ["vdens-nat proxy ", "vdens-nat gateway "] {
        let processes = lab.processes();
        let (pid, _) = processes
            .iter()
            .find(|(_, line)| line.contains(victim) && !line.contains("vdens -q"))
            .unwrap();
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
        wait_until("connections work again", vdens_tests::PATIENCE, || {
            session.run(&ask).1.trim() == "you are 192.0.2.2"
        });
    }
    let worker = vdens_tests::children(session.proc().pid());
    for pid in worker {
        let is_worker = vdens_tests::name(pid).is_some_and(|name| name.starts_with("vdens"));
        if is_worker {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
    }
    wait_until("connections work again", vdens_tests::PATIENCE, || {
        session.run(&ask).1.trim() == "you are 192.0.2.2"
    });
    assert_eq!(session.exit(0).code(), Some(0));
}
