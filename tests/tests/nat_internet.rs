//! The "Internet" that the tests of `nat://` have: servers in a network namespace behind a veth
//! pair. Nothing leaves the machine.
//!
//! ```text
//! [namespace] == nat:// == [host's network] --veth-- [the Internet: servers]
//!                           192.0.2.2                  192.0.2.1, 198.51.100.1
//!                           2001:db8::2                2001:db8::1
//! ```
//!
//! | Name | Addresses |
//! |---|---|
//! | server.test | 198.51.100.1 and 2001:db8::1 |
//! | server4.test, server6.test | either |
//! | long.test | more text than a datagram holds |
//! | 203.0.113.0/24, 2001:db8:bad::/48 | answered as unreachable |
//! | 198.18.0.0/24, 2001:db8:dead::/48 | never answered |

use std::fs;

use vdens_tests::{Lab, Netns, PATIENCE, Proc, Session, wait_until};

/// The servers: 7 echoes, 80 tells who asks, 81 resets, 83 accepts late if it was told so by UDP,
/// 8000 serves the files below `www`.
pub(crate) const SERVERS: &str = r#"
import asyncio, functools, http.server, resource, socket, struct, sys, threading, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

def listen(family, address, port):
    s = socket.socket(family)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((address, port)); s.listen(4096)
    return s

def tcp(port, serve):
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        def loop(s=listen(family, address, port)):
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

def late(family, address):                              # told so, it accepts nobody for 1.5 s
    u = socket.socket(family, socket.SOCK_DGRAM); u.bind((address, 83))
    t = listen(family, address, 83); t.listen(0); t.settimeout(0.2)
    while True:
        data, a = u.recvfrom(100)
        full = [socket.socket(family) for _ in range(3)]
        for s in full:
            s.setblocking(False); s.connect_ex((address, 83))
        time.sleep(0.1); u.sendto(b"wait", a); time.sleep(1.4)
        for s in full: s.close()
        end = time.time() + 10
        while time.time() < end:
            try:
                c, a = t.accept(); c.settimeout(5)
                if c.recv(100): c.sendall(b"late"); end = 0
                c.close()
            except OSError:
                pass

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *a): pass

files = functools.partial(Quiet, directory=sys.argv[1])
tcp(8000, lambda c, a: (files(c, a, None), c.close()))
threading.Thread(target=echoes, daemon=True).start()
tcp(80, whoami); tcp(81, resets)
for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
    s = socket.socket(family, socket.SOCK_DGRAM)
    try:
        s.bind((address, 7))
    except OSError:
        continue                                        # somewhere else than in the Internet
    def udp(s=s):
        while True:
            data, a = s.recvfrom(65536); s.sendto(data, a)
    threading.Thread(target=udp, daemon=True).start()
    if address != "192.0.2.1":
        threading.Thread(target=late, args=(family, address), daemon=True).start()
print("ready", flush=True)
time.sleep(100000)
"#;

/// The configuration of the Internet's name server.
fn names() -> String {
    let texts = (0..40).map(|n| format!("txt-record=long.test,{n}-{}\n", "x".repeat(100)));
    "user=root
no-resolv
no-hosts
log-facility=-
bind-interfaces
listen-address=192.0.2.1,198.51.100.1,2001:db8::1
local=/test/
address=/server.test/198.51.100.1
address=/server.test/2001:db8::1
address=/server4.test/198.51.100.1
address=/server6.test/2001:db8::1
"
    .to_owned()
        + &texts.collect::<String>()
}

/// Asks a TCP server: sends the third word, ends its half, prints all that comes.
const ASK: &str = r#"
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30)
s.sendall(sys.argv[3].encode()); s.shutdown(socket.SHUT_WR)
out = b""
while data := s.recv(65536):
    out += data
print(out.decode())
"#;

/// The host's network and the Internet behind it.
pub(crate) struct Internet<'lab> {
    lab: &'lab Lab,
    /// The network that vdens is started in.
    pub(crate) host: Netns<'lab>,
    /// The Internet.
    pub(crate) far: Netns<'lab>,
    /// The directory of the web server.
    pub(crate) www: String,
    /// The script that asks a TCP server: address, port, what to say.
    pub(crate) ask: String,
    _servers: [Proc<'lab>; 2],
}

impl<'lab> Internet<'lab> {
    /// An Internet of both families.
    pub(crate) fn new(lab: &'lab Lab) -> Self {
        let net = Self::without_ipv6(lab);
        net.host.sh("ip route add default via 2001:db8::1").ok();
        net
    }

    /// An Internet to which the host has no route by IPv6.
    pub(crate) fn without_ipv6(lab: &'lab Lab) -> Self {
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
            ip route add unreachable 2001:db8:bad::/48
            ip route add blackhole 198.18.0.0/24
            ip route add blackhole 2001:db8:dead::/48
            echo 1 >/proc/sys/net/ipv4/ip_forward
            echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
            echo 0 >/proc/sys/net/ipv4/icmp_ratelimit
            echo 0 >/proc/sys/net/ipv6/icmp/ratelimit
            ip link set down0 up")
            .ok();
        host.sh("ip route add default via 192.0.2.1").ok();
        let www = lab.mkdir("www");
        lab.write("www/page", "the page");
        let script = lab.write("servers.py", SERVERS);
        let servers = far.sh(&format!("exec python3 {script} {www}")).spawn();
        let names = lab.write("dnsmasq.conf", names());
        let names = far
            .sh(&format!(
                "exec dnsmasq --keep-in-foreground --pid-file --conf-file={names}"
            ))
            .spawn();
        wait_until("the servers listen", PATIENCE, || {
            servers.stdout().contains("ready") && names.stderr().contains("started")
        });
        Self {
            lab,
            host,
            far,
            www,
            ask: lab.write("ask.py", ASK),
            _servers: [servers, names],
        }
    }

    /// The servers in a further network.
    pub(crate) fn serve_in(&self, netns: &Netns<'lab>) -> Proc<'lab> {
        let script = self.lab.path("servers.py");
        netns
            .sh(&format!("exec python3 {script} {}", self.www))
            .spawn()
    }

    /// A shell that vdens runs in the host's network, with these options and VNL.
    pub(crate) fn session(&self, words: &[&str]) -> Session<'lab> {
        let command = self.lab.vdens(words).args(["sh"]);
        command.inside(&self.host).session()
    }

    /// The command that asks the server at an address who asks.
    pub(crate) fn who(&self, address: &str) -> String {
        format!("python3 {} {address} 80 x", self.ask)
    }
}

/// The process id of the lab's proxy.
pub(crate) fn proxy(lab: &Lab) -> i32 {
    let processes = lab.processes();
    let found = processes
        .iter()
        .find(|(_, line)| line.contains("vdens-nat proxy "));
    found
        .map(|(pid, _)| *pid)
        .unwrap_or_else(|| panic!("no proxy runs: {processes:?}"))
}

/// The process id of the gateway: the command of the session that is the gateway's.
pub(crate) fn gateway(lab: &Lab) -> i32 {
    let processes = lab.processes();
    let is_gateway = |line: &str| line.contains("vdens-nat gateway ") && !line.contains("vdens -q");
    let found = processes.iter().find(|(_, line)| is_gateway(line));
    found
        .map(|(pid, _)| *pid)
        .unwrap_or_else(|| panic!("no gateway runs: {processes:?}"))
}

/// What a process uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) descriptors: usize,
    /// In KiB.
    pub(crate) memory: u64,
    /// Its processor time in clock ticks.
    pub(crate) ticks: u64,
}

/// What a process uses; `None` if it has ended.
pub(crate) fn usage(pid: i32) -> Option<Usage> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut lines = status.lines();
    let memory = lines.find_map(|line| line.strip_prefix("VmRSS:"))?;
    let memory = memory.trim().trim_end_matches(" kB").parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Usage {
        descriptors,
        memory,
        ticks,
    })
}
