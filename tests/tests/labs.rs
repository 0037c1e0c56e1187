//! Labs from files: up, down, status, exec, apply, test.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, User, becomes_true, need, wait_until};

/// A running lab of a file. Dropping it ends it.
struct Up<'a> {
    kit: &'a Lab,
    name: String,
    file: String,
}

impl<'a> Up<'a> {
    /// Writes a lab file and starts the lab.
    #[track_caller]
    fn new(kit: &'a Lab, name: &str, text: &str) -> Self {
        let file = kit.write(&format!("{name}.toml"), text);
        kit.vdectl(["lab", "up", &file]).ok();
        let name = name.to_owned();
        Self { kit, name, file }
    }

    /// What a shell command in a node prints; it must succeed.
    #[track_caller]
    fn ok(&self, node: &str, script: &str) -> String {
        let node = format!("{}/{node}", self.name);
        self.kit
            .vdectl(["lab", "exec", &node, "sh", "-ec", script])
            .ok()
    }

    #[track_caller]
    fn ping(&self, node: &str, address: &str) {
        self.ok(node, &format!("ping -nc 1 -W 5 {address}"));
    }

    /// Waits until a way to the outside is there: its far end may be ready after the lab.
    #[track_caller]
    fn reaches(&self, node: &str, address: &str) {
        let ping = format!("ping -nc 1 -W 1 {address}");
        let node = format!("{}/{node}", self.name);
        wait_until(&ping, PATIENCE, || {
            let ping = ["lab", "exec", &node, "sh", "-c", &ping];
            self.kit.vdectl(ping).run().code() == Some(0)
        });
    }

    /// Changes the file, and applies that; what `apply` prints.
    #[track_caller]
    fn apply(&self, text: &str) -> String {
        self.kit.write(&format!("{}.toml", self.name), text);
        self.kit.vdectl(["lab", "apply", &self.file]).ok()
    }

    /// The supervisor's process.
    #[track_caller]
    fn supervisor(&self) -> i32 {
        let status = self.kit.vdectl(["lab", "status", &self.name]).ok();
        let (_, rest) = status
            .split_once("process ")
            .unwrap_or_else(|| panic!("{status}"));
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or_else(|_| panic!("{status}"))
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        let down = self.kit.vdectl(["lab", "down", &self.name]).run();
        if !std::thread::panicking() {
            assert_eq!(down.code(), Some(0), "{down:?}");
        }
    }
}

/// Two routers, and two hosts at a switch.
const SMALL: &str = r#"
[nodes.r1]
sysctl = { "net.ipv4.ip_forward" = 1 }
exec = ["ip route add 10.2.0.0/24 via 10.0.0.2"]
[nodes.r2]
sysctl = { "net.ipv4.ip_forward" = 1 }
exec = ["ip route add 10.1.0.0/24 via 10.0.0.1", "ip addr add 10.2.0.1/24 dev lo"]
[nodes.h]
count = 2
exec = ["ip route add default via 10.1.0.1"]
[[links]]
ends = ["r1:eth0=10.0.0.1/24", "r2:eth0=10.0.0.2/24"]
[[switches]]
name = "lan"
ports = ["r1:eth1=10.1.0.1/24", "h1:eth0=10.1.0.2/24", "h2:eth0=10.1.0.3/24"]
[[tests]]
node = "h1"
run = "ping -nc 1 -W 2 10.2.0.1"
within = "20s"
"#;

#[test]
fn a_lab_runs_and_leaves_nothing() {
    let kit = Lab::new();
    let lab = Up::new(&kit, "small", SMALL);
    // Through the switch, and over both routers, as soon as `up` returns.
    lab.ping("h1", "10.1.0.3");
    lab.ping("h2", "10.2.0.1");
    // A node has its own host name, processes, /run and loopback.
    let inside = lab.ok(
        "h2",
        "hostname; echo $(ps -e -o comm=); ls /run; ping -nc 1 127.0.0.1",
    );
    assert!(inside.starts_with("h2\n"), "{inside}");
    let processes = inside.lines().nth(1).unwrap();
    assert_eq!(processes, "vdectl sh ps", "{inside}");
    let status = kit.vdectl(["lab", "status"]).ok();
    for words in [
        "lab small, running",
        "node h1",
        "eth0 10.1.0.2/24",
        "switch lan",
    ] {
        assert!(status.contains(words), "{words}: {status}");
    }
    assert!(status.contains("link r1:eth0 – r2:eth0\n"), "{status}");
    let json = kit.vdectl(["lab", "status", "small", "--json"]).ok();
    assert!(json.contains("\"10.1.0.2/24\""), "{json}");
    // Its name is taken, and the file is refused before anything is made.
    kit.vdectl(["lab", "up", &lab.file])
        .refused(&["small", "in use"]);
    assert!(
        kit.vdectl(["status"]).ok().contains("lab"),
        "vdectl status knows it"
    );
}

#[test]
fn a_command_runs_in_many_nodes_at_once() {
    let kit = Lab::new();
    let lab = Up::new(&kit, "many", "[nodes.h]\ncount = 12\n[nodes.r]\n");
    let said = kit
        .vdectl(["lab", "exec", "h*", "sh", "-c", "hostname; echo oh >&2"])
        .run();
    assert_eq!(said.code(), Some(0));
    let mut lines: Vec<_> = said.stdout.lines().collect();
    lines.sort_unstable();
    let mut expected: Vec<_> = (1..=12).map(|n| format!("h{n}: h{n}")).collect();
    expected.sort_unstable();
    assert_eq!(lines, expected);
    assert_eq!(said.stderr.lines().count(), 12);
    // The worst status counts.
    let script = "[ $(hostname) != h7 ] || exit 7";
    let worst = kit.vdectl(["lab", "exec", "h*", "sh", "-c", script]).run();
    assert_eq!(worst.code(), Some(7));
    let one = kit.vdectl(["lab", "exec", "r", "sh", "-c", "exit 3"]).run();
    assert_eq!(one.code(), Some(3));
    kit.vdectl(["lab", "exec", "nobody", "true"])
        .refused(&["no running lab has a node 'nobody'"]);
    drop(lab);
    kit.vdectl(["lab", "exec", "r", "true"])
        .refused(&["no running lab"]);
    kit.vdectl(["lab", "down"]).refused(&["no lab is running"]);
    kit.vdectl(["lab", "down", "many"])
        .refused(&["no lab 'many' is running"]);
}

#[test]
fn a_failing_command_stops_the_start_and_leaves_nothing() {
    let kit = Lab::new();
    let file = kit.write(
        "bad.toml",
        "[nodes.a]\nservices = [\"sleep 1000\"]\n[nodes.b]\nafter = [\"a\"]\nexec = [\"echo one\", \"echo two; \
         ip route add 10.9.9.0/24 via 10.8.8.8\"]\n",
    );
    let words = [
        "node b",
        "ip route add",
        "exit status 2",
        "two; Error: Nexthop",
    ];
    kit.vdectl(["lab", "up", &file]).refused(&words);
    assert!(!kit.is_running("sleep 1000"));
    assert_eq!(kit.processes(), []);
    // A sysctl that does not exist.
    let file = kit.write(
        "sysctl.toml",
        "[nodes.a]\nsysctl = { \"net.ipv4.nosuch\" = 1 }\n",
    );
    kit.vdectl(["lab", "up", &file])
        .refused(&["net.ipv4.nosuch"]);
    assert_eq!(kit.vdectl(["lab", "status"]).run().stdout, "");
}

#[test]
fn a_killed_supervisor_takes_everything_along() {
    let kit = Lab::new();
    let mut text = SMALL.replace("[nodes.h]", "[nodes.h]\nservices = [\"sleep 1000\"]");
    text.push_str("[[links]]\nends = [\"r1:wan=10.7.0.1/24\", \"r2:wan=10.7.0.2/24\"]\nboth = { delay = \"1ms\" }\n");
    let lab = Up::new(&kit, "killed", &text);
    lab.ping("r1", "10.7.0.2");
    let pid = lab.supervisor();
    std::mem::forget(lab);
    assert!(kit.is_running("sleep 1000"));
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_until("everything to end", PATIENCE, || kit.processes().is_empty());
    // Its name is free, and its sockets do no harm.
    let lab = Up::new(&kit, "killed", &text);
    lab.ping("h1", "10.2.0.1");
}

#[test]
fn repeated_labs_leak_nothing() {
    let kit = Lab::new();
    let text = "[nodes.a]\n[nodes.b]\n[[links]]\nends = [\"a:e=10.0.0.1/24\", \"b:e=10.0.0.2/24\"]\n\
                [[switches]]\nname = \"s\"\nports = [\"a:f=10.1.0.1/24\", \"b:f=10.1.0.2/24\"]\n";
    let file = kit.write("again.toml", text);
    // One lab keeps the panel, so that what leaks there would stay.
    let keeper = Up::new(&kit, "keeper", "[nodes.k]\n");
    for _ in 0..12 {
        kit.vdectl(["lab", "up", &file]).ok();
        kit.vdectl(["lab", "down", "again"]).ok();
    }
    let pid = keeper.supervisor();
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    assert!(files < 40, "{files} files are open");
}

#[test]
fn two_labs_and_sessions_are_side_by_side() {
    let kit = Lab::new();
    let text = |net: u8| {
        format!(
            "[nodes.h]\ncount = 2\n[[links]]\nends = [\"h1:eth0=10.{net}.0.1/24\", \"h2:eth0=10.{net}.0.2/24\"]\n"
        )
    };
    let one = Up::new(&kit, "one", &text(1));
    let two = Up::new(&kit, "two", &text(2));
    let cable = kit.vnl("ptp", "p");
    let end = |address| kit.vdens(["--addr", address, &cable, "sh"]).session();
    let (session, other) = (end("10.3.0.1/24"), end("10.3.0.2/24"));
    one.ping("h1", "10.1.0.2");
    two.ping("h1", "10.2.0.2");
    session.ping("10.3.0.2");
    kit.vdectl(["lab", "exec", "h1", "true"])
        .refused(&["one, two", "one/h1"]);
    kit.vdectl(["lab", "down"])
        .refused(&["several labs", "one, two"]);
    drop(one);
    two.ping("h2", "10.2.0.1");
    session.ping("10.3.0.2");
    drop(other);
}

#[test]
fn two_users_have_labs_of_the_same_name() {
    need!("root");
    let Some(second) = User::named("vdens-test2") else {
        return vdens_tests::skip("there is no second user");
    };
    let kit = Lab::new();
    let text =
        "[nodes.a]\n[nodes.b]\n[[links]]\nends = [\"a:e=10.0.0.1/24\", \"b:e=10.0.0.2/24\"]\n";
    let lab = Up::new(&kit, "same", text);
    let runtime = kit.aside("run2");
    std::fs::create_dir(&runtime).unwrap();
    std::os::unix::fs::chown(&runtime, Some(second.uid), Some(second.gid)).unwrap();
    std::fs::set_permissions(
        &runtime,
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    let theirs = |args: &[&str]| {
        kit.vdectl(args)
            .env("XDG_RUNTIME_DIR", &runtime)
            .by(second.clone())
            .ok()
    };
    theirs(&["lab", "up", &lab.file]);
    theirs(&["lab", "exec", "same/a", "ping", "-nc", "1", "10.0.0.2"]);
    lab.ping("a", "10.0.0.2");
    theirs(&["lab", "down", "same"]);
    lab.ping("b", "10.0.0.1");
}

#[test]
fn a_changed_file_is_applied_while_connections_go_on() {
    let kit = Lab::new();
    let lab = Up::new(&kit, "live", SMALL);
    // A connection over the link that stays.
    let server = kit
        .vdectl(["lab", "exec", "live/r2", "python3", "-c", ECHO])
        .spawn();
    let (client, mut input) = kit
        .vdectl(["lab", "exec", "live/h1", "python3", "-c", TALK])
        .spawn_piped();
    wait_until("the connection", PATIENCE, || {
        client.stdout().contains("0 back")
    });
    let ping = kit
        .vdectl([
            "lab", "exec", "live/h1", "ping", "-nqc", "150", "-i", "0.02", "10.2.0.1",
        ])
        .spawn();
    let changed = SMALL
        .replace("count = 2", "count = 1")
        .replace(", \"h2:eth0=10.1.0.3/24\"", "")
        + r#"
[nodes.x]
services = ["sleep 4321"]
exec = ["ip route add default via 10.6.0.1"]
[[links]]
ends = ["r1:eth2=10.6.0.1/24", "x:eth0=10.6.0.2/24"]
"#;
    let told = lab.apply(&changed);
    for line in [
        "- node h2",
        "- link h2:eth0 – lan",
        "+ node x",
        "+ link r1:eth2 – x:eth0",
    ] {
        assert!(told.lines().any(|told| told == line), "{line}: {told}");
    }
    assert!(!told.contains("r2"), "{told}");
    lab.ping("x", "10.1.0.2");
    wait_until("the service", PATIENCE, || kit.is_running("sleep 4321"));
    kit.vdectl(["lab", "exec", "live/h2", "true"])
        .refused(&["no running lab has a node"]);
    // The connection lives, and no ping was lost.
    std::io::Write::write_all(&mut input, b"\n").unwrap();
    wait_until("an answer", PATIENCE, || client.stdout().contains("1 back"));
    drop(input);
    assert_eq!(client.wait(PATIENCE).code(), Some(0));
    let pinged = ping.wait(PATIENCE);
    assert!(
        pinged.stdout.contains(" 0% packet loss"),
        "{}",
        pinged.stdout
    );
    // The same file again changes nothing.
    assert_eq!(lab.apply(&changed), "");
    // What fails is said; the lab goes on, and the corrected file does the rest.
    let broken = changed.replace(
        "[nodes.x]\n",
        "[nodes.x]\nsysctl = { \"net.ipv4.nosuch\" = 1 }\n",
    );
    kit.write("live.toml", &broken);
    kit.vdectl(["lab", "apply", &lab.file])
        .refused(&["net.ipv4.nosuch"]);
    lab.ping("h1", "10.2.0.1");
    lab.apply(&changed.replace("sleep 4321", "sleep 4322"));
    wait_until("the other service", PATIENCE, || {
        kit.is_running("sleep 4322") && !kit.is_running("sleep 4321")
    });
    drop(server);
}

/// Sends each line back.
const ECHO: &str = "
import socket
s = socket.create_server(('10.2.0.1', 7), reuse_port=True)
c, _ = s.accept()
while data := c.recv(100): c.sendall(data)
";

/// Sends a number for each line of its standard input, and one at first.
const TALK: &str = "
import socket, sys, time
for _ in range(500):
    try:
        s = socket.create_connection(('10.2.0.1', 7), 5)
        break
    except ConnectionRefusedError: time.sleep(0.02)
n = 0
while True:
    s.sendall(b'%d' % n)
    print(s.recv(100).decode(), 'back', flush=True)
    n += 1
    if not sys.stdin.readline(): break
";

#[test]
fn addresses_and_impairments_change_live() {
    let kit = Lab::new();
    let text = |address: &str, rest: &str| {
        format!(
            "[nodes.a]\nexec = [\"ip route add 10.5.0.0/24 via 10.0.0.2\"]\n[nodes.b]\n\
             [[links]]\nends = [\"a:e=10.0.0.1/24\", \"b:e={address}\"]\n{rest}"
        )
    };
    let plain = text("10.0.0.2/24", "");
    let lab = Up::new(&kit, "impaired", &plain);
    lab.ping("a", "10.0.0.2");
    let told = lab.apply(&text("10.0.0.7/24", ""));
    assert_eq!(
        told,
        "- address b:e 10.0.0.2/24\n+ address b:e 10.0.0.7/24\n"
    );
    lab.ping("a", "10.0.0.7");
    let rtt = |lab: &Up<'_>| {
        let said = lab.ok("a", "ping -nqc 2 -i 0.3 10.0.0.7");
        let (_, times) = said.split_once("= ").expect("times");
        times.split('/').next().unwrap().parse::<f64>().unwrap()
    };
    let slow = text("10.0.0.7/24", "both = { delay = \"30ms\" }\n");
    lab.apply(&slow);
    assert!(rtt(&lab) >= 60.0);
    let status = kit.vdectl(["lab", "status", "impaired"]).ok();
    assert!(
        status.contains("link a:e – b:e, delay=30ms, process "),
        "{status}"
    );
    // The routes over the interface are there again.
    assert!(lab.ok("a", "ip route").contains("10.5.0.0/24 via 10.0.0.2"));
    lab.apply(&text("10.0.0.7/24", ""));
    assert!(rtt(&lab) < 60.0);
}

#[test]
fn tests_of_a_lab_run() {
    let kit = Lab::new();
    // The lab is started and ended with it.
    let file = kit.write("tested.toml", SMALL);
    let said = kit.vdectl(["lab", "test", &file]).ok();
    assert!(said.starts_with("TAP version 14\n1..1\nok 1 - "), "{said}");
    kit.vdectl(["lab", "down", "tested"]).refused(&["no lab"]);
    let failing = format!(
        "{SMALL}\n[[tests]]\nname = \"no way\"\nnode = \"h2\"\nrun = \"echo lost; exit 3\"\n\
         [[tests]]\nname = \"as expected\"\nnode = \"h2\"\nrun = \"exit 3\"\nexpect = 3\n"
    );
    let lab = Up::new(&kit, "tested", &failing);
    let said = kit.vdectl(["lab", "test", "tested"]).run();
    assert_eq!(said.code(), Some(1));
    for line in [
        "not ok 2 - no way",
        "  message: 'exit status 3, not 0'",
        "    lost",
    ] {
        assert!(
            said.stdout.lines().any(|said| said == line),
            "{line}: {}",
            said.stdout
        );
    }
    assert!(
        said.stdout.contains("ok 3 - as expected"),
        "{}",
        said.stdout
    );
    let xml = kit
        .vdectl(["lab", "test", "--format", "junit", "tested"])
        .run();
    assert_eq!(xml.code(), Some(1));
    assert!(
        xml.stdout.contains("tests=\"3\" failures=\"1\""),
        "{}",
        xml.stdout
    );
    drop(lab);
}

#[test]
fn a_test_waits_until_the_lab_is_ready() {
    let kit = Lab::new();
    let text = r#"
[nodes.a]
services = ["sleep 0.7; ip addr add 10.5.0.1/32 dev lo"]
[[tests]]
node = "a"
run = "ip addr show lo | grep -q 10.5.0.1"
within = "30s"
"#;
    let file = kit.write("slow.toml", text);
    let said = kit.vdectl(["lab", "test", &file]).ok();
    assert!(said.contains("\nok 1 - "), "{said}");
}

#[test]
fn links_lead_outside() {
    let kit = Lab::new();
    let cable = kit.vnl("ptp", "cable");
    let switch = kit.vnl("switch", "sw");
    let text = format!(
        r#"
[nodes.a]
[nodes.b]
[nodes.c]
[[links]]
ends = ["a:eth0=10.0.0.1/24", "{cable}"]
[[links]]
ends = ["b:eth0=10.1.0.1/24", "{}"]
both = {{ delay = "5ms" }}
[[switches]]
name = "lan"
ports = ["c:eth0=10.2.0.1/24"]
uplink = "{}"
"#,
        kit.vnl("vde", "sw"),
        kit.vnl("ptp", "up"),
    );
    let _switch = kit.vde_plug(["null://", &switch]).spawn();
    kit.wait_for("sw/ctl");
    let lab = Up::new(&kit, "outside", &text);
    let peer = |address: &str, vnl: &str| kit.vdens(["--addr", address, vnl, "sh"]).session();
    let a = peer("10.0.0.2/24", &cable);
    let b = peer("10.1.0.2/24", &kit.vnl("vde", "sw"));
    let c = peer("10.2.0.2/24", &kit.vnl("ptp", "up"));
    lab.ping("a", "10.0.0.2");
    lab.ping("b", "10.1.0.2");
    lab.reaches("c", "10.2.0.2");
    // A worker that is killed is replaced.
    let status = kit.vdectl(["lab", "status"]).ok();
    let link = status
        .lines()
        .find(|line| line.contains("link b:eth0"))
        .unwrap();
    let (_, pid) = link.rsplit_once("process ").unwrap();
    kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    let again = || {
        kit.vdectl([
            "lab", "exec", "b", "ping", "-nc", "1", "-W", "1", "10.1.0.2",
        ])
        .run()
    };
    assert!(becomes_true(PATIENCE, || again().code() == Some(0)));
    for session in [a, b, c] {
        session.exit(0);
    }
    // A link that cannot be opened stops the start.
    let file = kit.write(
        "bad.toml",
        "[nodes.a]\n[[links]]\nends = [\"a:e\", \"vde:///nowhere/sw\"]\n",
    );
    kit.vdectl(["lab", "up", &file])
        .refused(&["a:e", "/nowhere/sw"]);
}

#[test]
fn a_switch_leads_to_the_internet() {
    let kit = Lab::new();
    let text = r#"
[nodes.h]
[[switches]]
name = "lan"
ports = ["h:eth0=10.0.2.10/24"]
uplink = "nat://"
"#;
    let lab = Up::new(&kit, "natted", text);
    lab.reaches("h", "10.0.2.2");
}

#[test]
fn what_runs_in_nodes() {
    need!("dnsmasq", "tcpdump", "python3");
    let kit = Lab::new();
    let text = r#"
[nodes.server]
services = [
    "exec dnsmasq -k -C /dev/null -p 0 -i eth0 --dhcp-range=10.0.0.10,10.0.0.20 --dhcp-leasefile=/run/leases -x /run/dnsmasq.pid --user= --group=",
    "exec python3 -m http.server 80",
]
[nodes.client]
[[links]]
ends = ["server:eth0=10.0.0.1/24", "client:eth0=10.0.0.2/24"]
[[tests]]
node = "client"
run = "python3 -c 'import urllib.request as u; u.urlopen(\"http://10.0.0.1/\")'"
within = "30s"
[[tests]]
node = "client"
run = "timeout 5 tcpdump -nc 1 -i eth0 icmp & sleep 0.5; ping -nc 3 -i 0.3 10.0.0.1; wait %1"
within = "30s"
"#;
    let lab = Up::new(&kit, "services", text);
    kit.vdectl(["lab", "test", "services"]).ok();
    let status = kit.vdectl(["lab", "status", "services"]).ok();
    assert!(!status.contains("ended with status"), "{status}");
    drop(lab);
    assert!(!Path::new("/run/leases").exists());
}
