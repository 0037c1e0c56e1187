//! `nat://` among processes that hang and clients that mean harm.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, User, need, wait_until};

use crate::nat_internet::{Internet, gateway, proxy, usage};

#[test]
fn a_part_that_is_stopped_is_replaced() {
    need!("root", "python3");
    for (name, find) in [("proxy", proxy as fn(&Lab) -> i32), ("gateway", gateway)] {
        let lab = Lab::new();
        let net = Internet::new(&lab);
        let ask = net.who("198.51.100.1");
        let session = net.session(&["--auto", "nat://"]);
        assert_eq!(session.ok(&ask).trim(), "you are 192.0.2.2");
        let pid = find(&lab);
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        wait_until("the stopped process is gone", PATIENCE, || {
            kill(Pid::from_raw(pid), None).is_err()
        });
        wait_until("connections work again", PATIENCE, || {
            session.run(&ask).1.trim() == "you are 192.0.2.2"
        });
        let said = session.proc().stderr();
        let line = format!("the {name} of nat:// does not answer");
        assert!(said.contains(&line), "{said}");
        assert_eq!(session.exit(0).code(), Some(0));
    }
}

/// The end of a process that is stopped is not waited for, and nothing of it stays.
#[test]
fn stopped_parts_end_with_the_session() {
    need!("root", "python3");
    for find in [proxy, gateway] {
        let lab = Lab::new();
        let net = Internet::new(&lab);
        let session = net.session(&["--auto", "nat://"]);
        session.ok(&net.who("198.51.100.1"));
        kill(Pid::from_raw(find(&lab)), Signal::SIGSTOP).unwrap();
        assert_eq!(session.exit(0).code(), Some(0));
        wait_until("no process is left", PATIENCE, || {
            lab.processes()
                .iter()
                .all(|(_, line)| !line.contains("vdens"))
        });
    }
}

/// Everything that a client inside can send, as fast as it can: raw frames to the gateway's
/// Ethernet address, from made-up sources.
const FLOOD: &str = r#"
import os, random, socket, struct, subprocess, sys
random.seed(1)
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); s.bind(("vde0", 0))
def mac(address):
    line = subprocess.run(["ip", "neigh", "show", address, "dev", "vde0"], capture_output=True, text=True).stdout.split()
    return bytes.fromhex(line[line.index("lladdr") + 1].replace(":", ""))
gateway = mac("10.0.2.2"); own = s.getsockname()[4]
def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
def v4(source, to, protocol, payload, flags=0, ihl=5, length=None):
    length = length if length is not None else 20 + len(payload)
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | ihl, 0, length, random.getrandbits(16), flags, 64, protocol, 0, source, to)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload
def v6(source, to, following, payload):
    return struct.pack("!IHBB16s16s", 6 << 28, len(payload), following, 255, source, to) + payload
def with_sum(source, to, protocol, payload, at):
    pseudo = source + to + struct.pack("!IBBBB", len(payload), 0, 0, 0, protocol) if len(source) == 16 else source + to + struct.pack("!BBH", 0, protocol, len(payload))
    return payload[:at] + struct.pack("!H", checksum(pseudo + payload) or 0xffff) + payload[at + 2:]
def station(): return bytes([10, 0, 2, random.randrange(20, 250)])
def send(packet, kind=0x0800, to=gateway):
    try: s.send(to + own + struct.pack("!H", kind) + packet)
    except OSError: pass
live, dead = socket.inet_aton("198.51.100.1"), lambda: bytes([198, 18, 0, random.randrange(1, 255)])
def syn(to, port):
    a = station()
    tcp = struct.pack("!HHIIBBHHH", random.randrange(1024, 65536), port, random.getrandbits(32), 0, 0x50, 2, 65535, 0, 0)
    send(v4(a, to, 6, with_sum(a, to, 6, tcp, 16)))
def udp(a, to, source, port, data):
    return v4(a, to, 17, with_sum(a, to, 17, struct.pack("!HHHH", source, port, 8 + len(data), 0) + data, 6))
def half_open():
    for _ in range(20000): syn(dead(), 80)
def spoofed():
    for _ in range(5000): syn(live, 7)
def datagrams():
    for n in range(60000):
        send(udp(station(), bytes([198, 51, 100, 1 + n % 3]), 1024 + n, 1 + (n * 7919) % 60000, b"x" * (n % 40)))
def echoes():
    for n in range(20000):
        body = struct.pack("!BBHHH", 8, 0, 0, n & 0xffff, 1) + b"x" * (n % 60)
        send(v4(station(), live, 1, body[:2] + struct.pack("!H", checksum(body)) + body[4:]))
def dhcp():
    for n in range(5000):
        head = struct.pack("!BBBBIHHIIII6s", 1, 1, 6, 0, n, 0, 0, 0, 0, 0, 0, random.randbytes(6)) + b"\0" * 202
        data = head + b"\x63\x82\x53\x63\x35\x01" + bytes([random.choice((1, 3, 4, 7, 8, 99))]) + b"\xff"
        if n % 3 == 1: data = data[:random.randrange(len(data))]
        if n % 3 == 2: data = head + b"\x63\x82\x53\x63" + random.randbytes(random.randrange(300))
        packet = udp(b"\0\0\0\0", b"\xff" * 4, 68, 67, data)
        send(packet, to=b"\xff" * 6)
def names():
    for n in range(5000):
        send(udp(station(), bytes([10, 0, 2, 3]), 1024 + n, 53, random.randbytes(random.randrange(60))))
        send(udp(station(), bytes([10, 0, 2, 3]), 1024 + n, 53, struct.pack("!HHHHHH", n, 0x100, 1, 0, 0, 0) + b"\3abc\0\0\1\0\1"))
def neighbours():
    link = bytes.fromhex("fe80") + b"\0" * 6
    for n in range(5000):
        a = link + random.randbytes(8)
        to = socket.inet_pton(socket.AF_INET6, random.choice(("ff02::1", "ff02::2", "fd76:6465:6e73::2")))
        body = bytes([random.choice((133, 134, 135, 136, 128)), 0, 0, 0]) + random.randbytes(random.randrange(60))
        send(v6(a, to, 58, with_sum(a, to, 58, body, 2)), 0x86dd, b"\x33\x33\0\0\0\1" if n % 2 else gateway)
        data = bytes([random.choice((1, 3, 11, 77))]) + random.randbytes(random.randrange(80))
        body = struct.pack("!HHHH", 546, 547, 8 + len(data), 0) + data
        to = socket.inet_pton(socket.AF_INET6, "ff02::1:2")
        send(v6(a, to, 17, with_sum(a, to, 17, body, 6)), 0x86dd, b"\x33\x33\0\1\0\2")
def oddities():
    for n in range(5000):
        data = random.randbytes(random.randrange(100))
        send(v4(station(), live, random.choice((1, 6, 17, 41, 132)), data, flags=random.choice((0, 0x2000, 0x2001, 0x1fff, 0x4000))))
        send(v4(station(), live, random.choice((1, 6, 17)), data, ihl=random.randrange(16), length=random.randrange(200)))
        send(random.randbytes(random.randrange(20)), random.choice((0x0800, 0x86dd, 0x0806, 0x8100)))
for flood in (half_open, spoofed, datagrams, echoes, dhcp, names, neighbours, oddities):
    flood(); print(flood.__name__, flush=True)
"#;

#[test]
fn a_flood_from_inside_harms_nobody_else() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let ask = net.who("198.51.100.1");
    let switch = lab.vnl("switch", "sw");
    let plug = lab.vde_plug(["nat://", &switch]).inside(&net.host).spawn();
    lab.wait_for("sw/ctl");
    let [hostile, friendly] = [(); 2].map(|()| {
        let vnl = lab.vnl("vde", "sw");
        let vdens = lab.vdens(["--auto=60", &vnl, "sh"]);
        vdens.inside(&net.host).session()
    });
    assert_eq!(friendly.ok(&ask).trim(), "you are 192.0.2.2");
    hostile.ping("10.0.2.2");
    let parts = [proxy(&lab), gateway(&lab)];
    let before = parts.map(|pid| usage(pid).unwrap());
    let script = lab.write("flood.py", FLOOD);
    hostile.start(&format!("python3 {script}"));
    // While it lasts, the other client is served.
    let mut served = 0;
    while !hostile.proc().stdout().contains("oddities") {
        wait_until("a connection is served", PATIENCE, || {
            friendly.run(&ask).1.trim() == "you are 192.0.2.2"
        });
        served += 1;
    }
    let (status, said) = hostile.finish(PATIENCE);
    assert_eq!(status, 0, "{said}");
    assert!(served > 1, "{served}");
    assert_eq!(friendly.ok(&ask).trim(), "you are 192.0.2.2");
    assert_eq!([proxy(&lab), gateway(&lab)], parts, "nobody was replaced");
    for ((before, pid), most) in before.iter().zip(parts).zip([20_000, 64]) {
        let now = usage(pid).unwrap();
        assert!(now.descriptors < most, "{now:?}");
        assert!(now.memory < before.memory + 100_000, "{now:?} {before:?}");
    }
    wait_until("nobody is busy", PATIENCE, || {
        let before = parts.map(|pid| usage(pid).unwrap());
        sleep(Duration::from_secs(1));
        let after = parts.map(|pid| usage(pid).unwrap());
        before
            .iter()
            .zip(after)
            .all(|(b, a)| a.ticks - b.ticks < 20)
    });
    // One line for a cause, whatever the number.
    wait_until("the user is warned", PATIENCE, || {
        plug.stderr().contains("half-open")
    });
    let said = plug.stderr();
    assert!(said.lines().count() < 20, "{said}");
    for session in [hostile, friendly] {
        assert_eq!(session.exit(0).code(), Some(0));
    }
    plug.terminate();
}

#[test]
fn a_program_that_others_can_change_is_not_run() {
    need!("root");
    let lab = Lab::new();
    let program = lab.bin().join("vdens-nat");
    let refused = |words: &[&str]| lab.vdens(["nat://", "true"]).refused(words);
    fs::set_permissions(&program, Permissions::from_mode(0o777)).unwrap();
    refused(&[
        "cannot run",
        "vdens-nat",
        "can be written by others",
        "chmod go-w",
    ]);
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let other = User::other();
    chown(&program, Some(other.uid), Some(other.gid)).unwrap();
    refused(&[
        "cannot run",
        "vdens-nat",
        "it belongs to",
        "a copy of your own",
    ]);
    fs::remove_file(&program).unwrap();
    refused(&["needs the program", "vdens-nat", "install it"]);
}

#[test]
fn the_parts_have_no_more_rights_than_they_need() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    // A descriptor that a careless caller leaves open.
    let vdens = lab.sh("exec 9</etc/passwd; exec vdens --auto nat:// sh");
    let session = vdens.inside(&net.host).session();
    session.ok(&net.who("198.51.100.1"));
    let [proxy, gateway] = [proxy(&lab), gateway(&lab)];
    let status = |pid: i32, name: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    };
    let user_namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_eq!(status(proxy, "CapEff"), "0000000000000000");
    assert_eq!(status(proxy, "Seccomp"), "2", "it is filtered");
    // The gateway's are those of a session's command, which hold in its own namespaces only.
    assert_eq!(status(gateway, "CapEff"), "0000000000003c00");
    // One filter is that of the worker, which starts them. Before Linux 5.9 there is no number.
    for pid in [proxy, gateway] {
        let line = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        if line.contains("Seccomp_filters:") {
            let filters = status(pid, "Seccomp_filters").parse::<u32>();
            assert!(filters.unwrap() > 1, "it has filters of its own");
        }
    }
    assert_ne!(user_namespace(gateway), user_namespace(proxy));
    for pid in [proxy, gateway] {
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let number = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().parse::<i32>();
        for entry in open.filter(|entry| number(entry).is_ok_and(|number| number > 2)) {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let target = target.to_string_lossy();
            let is_own = ["socket:", "anon_inode:", "pipe:"];
            let is_own = is_own.iter().any(|kind| target.starts_with(kind));
            assert!(is_own || target.contains("/vdens-nat-"), "{target}");
        }
    }
    assert_eq!(session.exit(0).code(), Some(0));
}
