//! What a gateway of `nat://` serves, and what `--auto` makes of it.

use vdens_tests::{Lab, Netns, PATIENCE, need, wait_until};

use crate::nat_internet::gateway;

/// The host's network of a test: a loopback interface alone.
fn host(lab: &Lab) -> Netns<'_> {
    let host = lab.netns();
    host.sh("ip link set lo up").ok();
    host
}

/// Serves at a TCP port and at the UDP port of the same number: says who asks.
const SERVICE: &str = r#"
import socket, sys, threading
address, port = sys.argv[1], int(sys.argv[2])
t = socket.socket(); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
t.bind((address, port)); t.listen(100)
u = socket.socket(type=socket.SOCK_DGRAM); u.bind((address, port))
def datagrams():
    while True:
        data, a = u.recvfrom(100); u.sendto(a[0].encode(), a)
threading.Thread(target=datagrams, daemon=True).start()
while True:
    c, a = t.accept(); c.sendall(a[0].encode()); c.close()
"#;

/// Asks a service by TCP or UDP, and says what it says, or the error.
const ASK: &str = r#"
import errno, socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
s = socket.socket(type=kind); s.settimeout(5)
try:
    s.connect((sys.argv[2], int(sys.argv[3])))
    if sys.argv[1] == "udp": s.send(b"x")
    print(s.recv(100).decode())
except TimeoutError:
    print("silence")
except OSError as e:
    print(errno.errorcode[e.errno])
"#;

/// Asks a service from a network.
fn ask(netns: &Netns<'_>, script: &str, what: &str) -> String {
    let said = netns.sh(&format!("python3 {script} {what}")).ok();
    said.trim().to_owned()
}

#[test]
fn auto_follows_what_listens() {
    need!("root", "python3");
    let lab = Lab::new();
    let host = host(&lab);
    let (service, script) = (lab.write("service.py", SERVICE), lab.write("ask.py", ASK));
    let taken = host
        .sh(&format!("exec python3 {service} 127.0.0.1 8001"))
        .spawn();
    let session = lab
        .vdens(["--auto", "nat://tcp=auto/udp=auto", "sh"])
        .inside(&host)
        .session();
    let asked = |what: &str| ask(&host, &script, what);
    assert_eq!(asked("tcp 127.0.0.1 8000"), "ECONNREFUSED");
    let start = |address: &str, port: u16| {
        session
            .ok(&format!(
                "python3 {service} {address} {port} >/dev/null 2>&1 & echo $!"
            ))
            .trim()
            .to_owned()
    };
    let services = [
        start("0.0.0.0", 8000),
        start("10.0.2.15", 8002),
        start("127.0.0.1", 8003),
        start("0.0.0.0", 8001),
        start("0.0.0.0", 80),
    ];
    for port in [8000, 8002] {
        for protocol in ["tcp", "udp"] {
            wait_until("the service is forwarded", PATIENCE, || {
                asked(&format!("{protocol} 127.0.0.1 {port}")) == "10.0.2.2"
            });
        }
    }
    let complains = |words: &[&str]| {
        wait_until("what cannot be forwarded is reported", PATIENCE, || {
            let said = session.proc().stderr();
            let mut lines = said.lines();
            lines.any(|line| words.iter().all(|word| line.contains(word)))
        });
    };
    complains(&["tcp=auto", "127.0.0.1:80 ", "1024"]);
    complains(&["tcp=auto", "127.0.0.1:8001 ", "in use"]);
    assert_eq!(asked("tcp 127.0.0.1 8003"), "ECONNREFUSED");
    let said = session.proc().stderr();
    let lines = said.lines().filter(|line| line.contains("127.0.0.1:80 "));
    assert_eq!(lines.count(), 2, "once for each protocol: {said}");
    // What was taken is forwarded when it is free, and what has ended is not.
    taken.terminate();
    wait_until("the port is forwarded", PATIENCE, || {
        asked("tcp 127.0.0.1 8001") == "10.0.2.2"
    });
    session.ok(&format!("kill {}", services[0]));
    wait_until("the port is closed", PATIENCE, || {
        asked("tcp 127.0.0.1 8000") == "ECONNREFUSED"
    });
    // It ends and begins at run time.
    let list = |lab: &Lab| lab.vdectl(["forward", "list"]).ok();
    assert!(list(&lab).contains("tcp 127.0.0.1: auto"), "{}", list(&lab));
    assert!(list(&lab).contains("tcp 127.0.0.1:8002 -> 10.0.2.15:8002"));
    lab.vdectl(["forward", "remove", "tcp=auto"]).ok();
    assert_eq!(asked("tcp 127.0.0.1 8002"), "ECONNREFUSED");
    assert_eq!(asked("udp 127.0.0.1 8002"), "10.0.2.2");
    lab.vdectl(["forward", "add", "tcp=auto"]).ok();
    wait_until("the port is forwarded", PATIENCE, || {
        asked("tcp 127.0.0.1 8002") == "10.0.2.2"
    });
    session.ok(&format!("kill {}", services[1..].join(" ")));
    assert_eq!(session.exit(0).code(), Some(0));
}

#[test]
fn auto_is_for_one_namespace() {
    need!("root");
    let lab = Lab::new();
    let switch = lab.vnl("switch", "sw");
    lab.vde_plug(["nat://tcp=auto", &switch]).refused(&[
        "tcp=auto",
        "one namespace",
        "name the ports",
    ]);
}

/// Shows a file at /etc/resolv.conf.
fn with_resolv_conf(path: &str) -> String {
    format!("mount --bind {path} /etc/resolv.conf")
}

#[test]
fn names_are_those_of_the_host() {
    need!("root", "dnsmasq", "dig");
    let lab = Lab::new();
    let host = host(&lab);
    // The first server is not there, by UDP and by TCP; the second one is systemd-resolved's stub.
    host.sh("ip addr add 192.0.2.1/32 dev lo; ip addr add 192.0.2.2/32 dev lo")
        .ok();
    let serve = |address: &str, answer: &str| {
        host.sh(&format!(
            "exec dnsmasq --keep-in-foreground --no-resolv --no-hosts --conf-file=/dev/null \
            --user=root --pid-file --bind-interfaces --listen-address={address} \
            --except-interface=lo --address=/server.test/{answer} 2>&1"
        ))
    };
    let dnsmasq = serve("192.0.2.2", "198.51.100.2").spawn();
    let resolv = lab.write(
        "resolv",
        "domain old.test\nsearch lab.test x.test\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n",
    );
    let session = lab
        .vdens(["--auto", "nat://", "sh"])
        .on_changed_machine(&with_resolv_conf(&resolv))
        .inside(&host)
        .session();
    let inside = session.ok("cat /etc/resolv.conf");
    assert!(inside.contains("search lab.test x.test\n"), "{inside}");
    assert!(inside.contains("nameserver 10.0.2.3\n"), "{inside}");
    let ask = |how: &str| session.run(&format!("dig +short {how} @10.0.2.3 server.test"));
    assert_eq!(ask("").1.trim(), "198.51.100.2");
    assert_eq!(ask("+tcp").1.trim(), "198.51.100.2");
    // A change is noticed.
    let other = serve("192.0.2.1", "198.51.100.1").spawn();
    std::fs::write(&resolv, "nameserver 192.0.2.1\n").unwrap();
    wait_until("the other server is asked", PATIENCE, || {
        ask("").1.trim() == "198.51.100.1"
    });
    assert_eq!(ask("+tcp").1.trim(), "198.51.100.1");
    assert_eq!(session.exit(0).code(), Some(0));
    drop((dnsmasq, other));
}

#[test]
fn without_name_servers_a_network_starts() {
    need!("root");
    let lab = Lab::new();
    let host = host(&lab);
    let empty = lab.write("resolv", "");
    let output = lab
        .vdens(["--auto", "nat://", "ip", "-4", "route"])
        .on_changed_machine(&with_resolv_conf(&empty))
        .inside(&host)
        .run();
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert!(output.stdout.contains("default via 10.0.2.2"), "{output:?}");
    assert!(
        output.stderr.contains("names no name server") && output.stderr.contains("dns="),
        "{output:?}"
    );
}

#[test]
fn an_mtu_is_offered() {
    need!("root", "python3");
    let lab = Lab::new();
    let host = host(&lab);
    let (service, script) = (lab.write("service.py", SERVICE), lab.write("ask.py", ASK));
    let server = host
        .sh(&format!("exec python3 {service} 127.0.0.1 8000"))
        .spawn();
    let mtu = "cat /sys/class/net/vde0/mtu";
    for (options, vnl, expected) in [
        (["--up"].as_slice(), "nat://host=10.0.2.2/mtu=9000", "9000"),
        (&["--up"], "nat://host=10.0.2.2/mtu=1280/ipv4=yes", "1280"),
        // What the user says of the interface holds.
        (&["--mtu", "1400"], "nat://host=10.0.2.2/mtu=9000", "1400"),
    ] {
        let session = lab
            .vdens(options.iter().chain(&["--auto", vnl, "sh"]))
            .inside(&host)
            .session();
        assert_eq!(session.ok(mtu).trim(), expected, "{vnl}");
        let asked = session.ok(&format!("python3 {script} tcp 10.0.2.2 8000"));
        assert_eq!(asked.trim(), "127.0.0.1");
        assert_eq!(session.exit(0).code(), Some(0));
    }
    for mtu in ["0", "1000", "65521", "70000"] {
        lab.vdens([format!("nat://mtu={mtu}").as_str(), "true"])
            .refused(&["mtu=", "1280 to 65520"]);
    }
    server.terminate();
}

/// Prints the congestion control, and how long TCP's frames over IPv4 may be on vde0: 0 where the
/// kernel does not say. iproute2 shows that from version 6.3 on only.
const TCP: &str = r#"
import socket, struct
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
s.send(struct.pack("=IHHIIBxHiII", 32, 18, 1, 1, 0, 0, 0, socket.if_nametoindex("vde0"), 0, 0))
data, at, longest = s.recv(65536), 32, 0
while at < len(data):
    length, kind = struct.unpack_from("=HH", data, at)
    if kind == 63: longest, = struct.unpack_from("=I", data, at + 4)     # IFLA_GSO_IPV4_MAX_SIZE
    at += length + 3 & ~3
print(open("/proc/sys/net/ipv4/tcp_congestion_control").read().strip(), longest)
"#;

/// A cable to a gateway is short: TCP needs no congestion control there, and sends long frames both
/// ways.
#[test]
fn tcp_is_adapted_to_a_cable() {
    need!("root", "python3");
    let lab = Lab::new();
    let host = host(&lab);
    let script = lab.write("tcp.py", TCP);
    let settings = |words: &[&str]| {
        let said = lab.vdens(words).args(["python3", &script]);
        said.inside(&host).ok().trim().to_owned()
    };
    let usual = settings(&["null://"]);
    let switch = lab.vnl("switch", "sw");
    let plug = lab.vde_plug(["nat://", &switch]).inside(&host).spawn();
    lab.wait_for("sw/ctl");
    let vde = lab.vnl("vde", "sw");
    let longest = match usual.ends_with(" 0") {
        true => "0",
        false => "524280",
    };
    for (words, expected) in [
        (&["--auto", "nat://"][..], &format!("reno {longest}")),
        (&["--no-panel", "--auto", "nat://"], &usual),
        (&["--auto", &vde], &usual),
    ] {
        assert_eq!(&settings(words), expected, "{words:?}");
    }
    plug.terminate();
    let session = lab
        .vdens(["--auto", "nat://", "sh"])
        .inside(&host)
        .session();
    session.ok("true");
    let gateway = gateway(&lab);
    let inside = host.sh(&format!("nsenter -t {gateway} -n python3 {script}"));
    assert_eq!(inside.ok().trim(), format!("reno {longest}"));
    assert_eq!(session.exit(0).code(), Some(0));
}

#[test]
fn leases_are_extended_and_end() {
    need!("busybox");
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "p");
    let server = lab
        .vdens(["--addr", "192.168.7.1/24", &cable, "sh"])
        .session();
    let leases = lab.write("leases", "");
    let conf = lab.write(
        "udhcpd.conf",
        format!(
            "start 192.168.7.50\nend 192.168.7.50\ninterface vde0\nlease_file {leases}\n\
            pidfile /dev/null\noption subnet 255.255.255.0\noption router 192.168.7.1\noption lease 10\n"
        ),
    );
    let serve = || {
        let started = format!("busybox udhcpd -f {conf} >/dev/null 2>&1 & echo $!");
        server.ok(&started).trim().to_owned()
    };
    let first = serve();
    let client = lab.vdens(["--auto=60", "-v", &cable, "sh"]).session();
    let has_address = || {
        client
            .ok("ip -4 addr show vde0")
            .contains("192.168.7.50/24")
    };
    assert!(has_address());
    wait_until("the lease is extended twice", PATIENCE, || {
        assert!(has_address());
        client.proc().stderr().matches("is extended").count() >= 2
    });
    server.ok(&format!("kill {first}"));
    wait_until("the lease ends", PATIENCE, || !has_address());
    let said = client.proc().stderr();
    assert!(
        said.contains("vde0: lost the address 192.168.7.50/24"),
        "{said}"
    );
    let second = serve();
    wait_until("there is an address again", PATIENCE, has_address);
    client.ping("192.168.7.1");
    assert_eq!(client.exit(0).code(), Some(0));
    server.ok(&format!("kill {second}"));
    assert_eq!(server.exit(0).code(), Some(0));
}

/// Advertises a router that refers to DHCPv6, and leases an address there for four seconds. Answers
/// the messages that a file names, with a refusal if it says so, and prints those that come.
const LEASES6: &str = r#"
import socket, struct, sys, threading
index = socket.if_nametoindex("vde0")
group = lambda address: socket.inet_pton(socket.AF_INET6, address) + struct.pack("@I", index)
icmp = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)
icmp.setsockopt(41, socket.IPV6_MULTICAST_HOPS, 255)
icmp.setsockopt(41, socket.IPV6_MULTICAST_IF, index)
icmp.setsockopt(41, socket.IPV6_JOIN_GROUP, group("ff02::2"))
def advertise():
    while True:
        if icmp.recv(1000)[0] == 133:
            icmp.sendto(bytes([134, 0, 0, 0, 64, 0x80]) + bytes(10), ("ff02::1", 0, 0, index))
threading.Thread(target=advertise, daemon=True).start()
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.bind(("::", 547))
u.setsockopt(41, socket.IPV6_JOIN_GROUP, group("ff02::1:2"))
option = lambda code, data: struct.pack("!HH", code, len(data)) + data
names = {1: "solicit", 3: "request", 5: "renew", 6: "rebind"}
while True:
    data, a = u.recvfrom(2000)
    kind = names[data[0]]; print(kind, flush=True)
    said = open(sys.argv[1]).read().split()
    if kind not in said: continue
    valid = 0 if "refuse" in said and kind == "renew" else 4
    at, client = 4, b""
    while at < len(data):
        code, length = struct.unpack("!HH", data[at:at + 4])
        if code == 1: client = data[at:at + 4 + length]
        at += 4 + length
    lease = option(5, socket.inet_pton(socket.AF_INET6, "fd00:7::50") + struct.pack("!II", valid, valid))
    reply = bytes([2 if kind == "solicit" else 7]) + data[1:4] + client + option(2, b"\0\3\0\1server")
    u.sendto(reply + option(3, struct.pack("!III", 1, 1, 2) + lease), a)
"#;

#[test]
fn leases_of_ipv6_are_extended_and_end() {
    need!("python3");
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "p");
    let script = lab.write("leases6.py", LEASES6);
    let answers = lab.write("answers", "solicit request renew rebind");
    let server = lab
        .vdens([
            "--addr",
            "fd00:7::1/64",
            &cable,
            "python3",
            &script,
            &answers,
        ])
        .spawn();
    let client = lab.vdens(["--auto=60", "-v", &cable, "sh"]).session();
    let has_address = || client.ok("ip -6 addr show vde0").contains("fd00:7::50/128");
    assert!(has_address());
    let asked = |kind: &str| server.stdout().lines().filter(|line| *line == kind).count();
    let extended = || client.proc().stderr().matches("is extended").count();
    wait_until("the lease is extended twice", PATIENCE, || extended() >= 2);
    assert!(has_address());
    // Another server extends it.
    std::fs::write(&answers, "solicit request rebind").unwrap();
    let before = asked("rebind");
    wait_until("all servers are asked", PATIENCE, || {
        asked("rebind") > before
    });
    std::fs::write(&answers, "").unwrap();
    wait_until("the lease ends", PATIENCE, || !has_address());
    let lost = "vde0: lost the address fd00:7::50/128";
    assert!(client.proc().stderr().contains(lost));
    std::fs::write(&answers, "solicit request renew refuse").unwrap();
    wait_until(
        "there is an address again, until that is refused",
        PATIENCE,
        || {
            let said = client.proc().stderr();
            said.contains("has the address fd00:7::50/128 now")
                && said.contains("refuses to extend")
        },
    );
    std::fs::write(&answers, "solicit request renew rebind").unwrap();
    wait_until("there is an address again", PATIENCE, has_address);
    assert_eq!(client.exit(0).code(), Some(0));
    server.terminate();
}

/// Executes a command for which the kernel has no netfilter: a seccomp filter answers
/// `socket(AF_NETLINK, …, NETLINK_NETFILTER)` as such a kernel does, with EPROTONOSUPPORT.
const WITHOUT_NETFILTER: &str = r#"
import ctypes, os, struct, sys
op = lambda code, k, t=0, f=0: struct.pack("HBBI", code, t, f, k)
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
program = b"".join([
    op(LOAD, 0), op(EQUAL, 41, 0, 5),       # socket(2) of x86_64
    op(LOAD, 16), op(EQUAL, 16, 0, 3),      # AF_NETLINK
    op(LOAD, 32), op(EQUAL, 12, 0, 1),      # NETLINK_NETFILTER
    op(RETURN, 0x00050000 | 93), op(RETURN, 0x7fff0000)])
code = ctypes.create_string_buffer(program, len(program))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0      # PR_SET_NO_NEW_PRIVS
filter = Program(len(program) // 8, ctypes.addressof(code))
assert libc.prctl(22, 2, ctypes.byref(filter)) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn without_netfilter_slirp_serves() {
    need!("root", "python3", "libvdeplug_slirp");
    let lab = Lab::new();
    let host = host(&lab);
    let filter = lab.write("filter.py", WITHOUT_NETFILTER);
    let run = |program: &str, args: &[&str]| {
        let program = lab.bin().join(program).display().to_string();
        let words = [filter.as_str(), program.as_str()].into_iter();
        lab.command("python3", words.chain(args.iter().copied()))
            .inside(&host)
            .run()
    };
    let output = run(
        "vdens",
        &["--auto=60", "nat://", "ip", "-4", "addr", "show", "vde0"],
    );
    assert_eq!(output.code(), Some(0), "{output:?}");
    assert!(output.stdout.contains(" 10.0.2.15/24 "), "{output:?}");
    assert!(
        output.stderr.contains("the kernel has no nfnetlink")
            && output
                .stderr
                .contains("libvdeplug://slirp:// serves instead"),
        "{output:?}"
    );
    let doctor = run("vdectl", &["doctor"]).stdout;
    let line = doctor.lines().find(|line| line.contains(" nat://: "));
    let line = line.unwrap_or_else(|| panic!("no line about nat://: {doctor}"));
    assert!(
        line.starts_with("note ") && line.contains("slirp serves instead"),
        "{line}"
    );
}

#[test]
fn doctor_knows_what_nat_needs() {
    need!("root");
    let lab = Lab::new();
    let host = host(&lab);
    let pings = |range: &str| {
        host.sh(&format!(
            "echo {range} >/proc/sys/net/ipv4/ping_group_range"
        ))
        .ok();
        let doctor = lab.vdectl(["doctor"]).inside(&host).run().stdout;
        assert!(
            doctor.contains("ok     nat://: the kernel can divert"),
            "{doctor}"
        );
        let line = doctor.lines().find(|line| line.contains(" ping sockets: "));
        line.map(str::to_owned)
            .unwrap_or_else(|| panic!("no line about pings: {doctor}"))
    };
    assert!(pings("0 2147483647").starts_with("ok "));
    let refused = pings("1 0");
    assert!(
        refused.starts_with("note ") && refused.contains("sudo sysctl net.ipv4.ping_group_range="),
        "{refused}"
    );
}

#[test]
fn status_shows_flows_and_leases() {
    need!("root", "python3");
    let lab = Lab::new();
    let host = host(&lab);
    let session = lab
        .vdens(["--auto", "nat://tcp=8080:80", "sh"])
        .inside(&host)
        .session();
    let mac = session.ok("cat /sys/class/net/vde0/address");
    let lease = format!("10.0.2.15 {}", mac.trim());
    wait_until("the lease is shown", PATIENCE, || {
        lab.vdectl(["status"]).ok().contains(&lease)
    });
    let text = lab.vdectl(["status"]).ok();
    let json = lab.vdectl(["status", "--json"]).ok();
    for what in [
        "connections",
        "UDP mappings",
        "pings",
        "bytes in",
        "bytes out",
        "forwards",
        "leases",
    ] {
        assert!(
            text.contains(what) && json.contains(what),
            "{what}: {text}\n{json}"
        );
    }
    assert_eq!(session.exit(0).code(), Some(0));
}
