//! Labs from files: up, down, status, exec, apply, test.

use std::collections::BTreeSet;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Cmd, Lab, PATIENCE, User, need, stretched, wait_until};

/// A running lab of a file. Dropping it ends it.
pub(crate) struct Up<'a> {
    kit: &'a Lab,
    pub(crate) name: String,
    pub(crate) file: String,
}

impl<'a> Up<'a> {
    /// Writes a lab file and starts the lab.
    #[track_caller]
    pub(crate) fn new(kit: &'a Lab, name: &str, text: &str) -> Self {
        Self::started(kit, name, text, |up| up)
    }

    /// The same with a change to the command that starts it.
    #[track_caller]
    pub(crate) fn started(
        kit: &'a Lab,
        name: &str,
        text: &str,
        change: impl FnOnce(Cmd<'a>) -> Cmd<'a>,
    ) -> Self {
        let file = kit.write(&format!("{name}.toml"), text);
        change(kit.vdectl(["lab", "up", &file])).ok();
        let name = name.to_owned();
        Self { kit, name, file }
    }

    /// What a shell command in a node prints; it must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, node: &str, script: &str) -> String {
        let node = format!("{}/{node}", self.name);
        self.kit
            .vdectl(["lab", "exec", &node, "sh", "-ec", script])
            .ok()
    }

    #[track_caller]
    pub(crate) fn ping(&self, node: &str, address: &str) {
        self.ok(node, &format!("ping -nc 1 -W 5 {address}"));
    }

    /// Waits until a way to the outside is there: its far end may be ready after the lab.
    #[track_caller]
    pub(crate) fn reaches(&self, node: &str, address: &str) {
        let ping = format!("ping -nc 1 -W 1 {address}");
        wait_until(&ping, PATIENCE, || self.is_ok(node, &ping));
    }

    /// Changes the file, and applies that; what `apply` prints.
    #[track_caller]
    pub(crate) fn apply(&self, text: &str) -> String {
        self.kit.write(&format!("{}.toml", self.name), text);
        self.kit.vdectl(["lab", "apply", &self.file]).ok()
    }

    /// Whether a shell command in a node succeeds.
    pub(crate) fn is_ok(&self, node: &str, script: &str) -> bool {
        let node = format!("{}/{node}", self.name);
        let exec = ["lab", "exec", &node, "sh", "-ec", script];
        self.kit.vdectl(exec).run().code() == Some(0)
    }

    /// The line of `vdectl lab status` that has these words.
    #[track_caller]
    pub(crate) fn line(&self, words: &str) -> String {
        let status = self.kit.vdectl(["lab", "status", &self.name]).ok();
        let line = status.lines().find(|line| line.contains(words));
        line.unwrap_or_else(|| panic!("{words}: {status}"))
            .to_owned()
    }

    /// The process that moves the frames of a link.
    #[track_caller]
    pub(crate) fn worker(&self, link: &str) -> i32 {
        let line = self.line(link);
        let pid = line
            .rsplit_once("process ")
            .and_then(|(_, pid)| pid.parse().ok());
        pid.unwrap_or_else(|| panic!("{line}"))
    }

    /// The supervisor's process.
    #[track_caller]
    pub(crate) fn supervisor(&self) -> i32 {
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
    // A shell in a node reads what is typed.
    let shell = kit.vdectl(["lab", "enter", "h1"]).session();
    assert_eq!(shell.ok("hostname"), "h1\n");
    shell.exit(3);
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
    let json = kit
        .vdectl([
            "lab",
            "exec",
            "--json",
            "r",
            "sh",
            "-c",
            "echo 'a\"b'; exit 3",
        ])
        .run();
    assert_eq!(
        (json.code(), &*json.stdout),
        (
            Some(3),
            "{\"node\":\"r\",\"stream\":\"output\",\"line\":\"a\\\"b\"}\n{\"node\":\"r\",\"status\":3}\n"
        )
    );
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
    text.push_str("[[switches]]\nname = \"out\"\nports = [\"r2:out\"]\nuplink = \"nat://\"\n");
    // A session holds the panel, where nothing may be left, either.
    let holder = kit.vdens([&kit.vnl("ptp", "p"), "sh"]).session();
    holder.ok("true");
    let before = kit.processes().len();
    let on_panel = || -> BTreeSet<String> {
        if !User::is_root() {
            return BTreeSet::new();
        }
        let links = super::panel_faults::on_panel(&kit, &holder, "ip -brief link");
        let names = links
            .lines()
            .filter_map(|line| line.split([' ', '@']).next());
        // Bridges without ports are removed later, a few at once.
        let is_port = |name: &&str| !name.starts_with(['b', 'c', 'h']);
        names.filter(is_port).map(str::to_owned).collect()
    };
    let interfaces = on_panel();
    let lab = Up::new(&kit, "killed", &text);
    lab.ping("r1", "10.7.0.2");
    let pid = lab.supervisor();
    std::mem::forget(lab);
    assert!(kit.is_running("sleep 1000"));
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_until("everything to end", PATIENCE, || {
        kit.processes().len() == before
    });
    wait_until("its interfaces to go", PATIENCE, || {
        on_panel() == interfaces
    });
    holder.exit(0);
    // Its name is free, and its sockets do no harm.
    let lab = Up::new(&kit, "killed", &text);
    lab.ping("h1", "10.2.0.1");
}

/// What is in the runtime directory, and the processes with their descriptors.
fn everything(kit: &Lab) -> (BTreeSet<PathBuf>, BTreeSet<(i32, usize)>) {
    let mut paths = BTreeSet::new();
    let mut left = vec![kit.aside("run")];
    while let Some(path) = left.pop() {
        let below = std::fs::read_dir(&path).into_iter().flatten().flatten();
        left.extend(below.map(|entry| entry.path()));
        paths.insert(path);
    }
    let processes = kit.processes().into_iter().map(|(pid, _)| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"));
        (pid, fds.map_or(0, Iterator::count))
    });
    (paths, processes.collect())
}

#[test]
fn fifty_labs_one_after_the_other_leak_nothing() {
    let kit = Lab::new();
    let text = "[nodes.a]\n[nodes.b]\n[[links]]\nends = [\"a:e=10.0.0.1/24\", \"b:e=10.0.0.2/24\"]\n\
                [[links]]\nends = [\"a:d\", \"b:d\"]\nboth = {}\n\
                [[switches]]\nname = \"s\"\nports = [\"a:f=10.1.0.1/24\", \"b:f=10.1.0.2/24\"]\n";
    let file = kit.write("again.toml", text);
    // One lab keeps the panel, so that what leaks there would stay.
    let keeper = Up::new(&kit, "keeper", "[nodes.k]\n");
    let again = || {
        kit.vdectl(["lab", "up", &file]).ok();
        kit.vdectl(["lab", "down", "again"]).ok();
    };
    again();
    let before = everything(&kit);
    (1..50).for_each(|_| again());
    // The last supervisor may still be ending.
    wait_until("all to be as before", PATIENCE, || {
        everything(&kit) == before
    });
    assert_eq!(keeper.ok("k", "ls /sys/class/net"), "lo\n");
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
    let json = kit.vdectl(["lab", "apply", "--json", &lab.file]).ok();
    assert_eq!(json, "[]\n");
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
    let mac = || lab.ok("a", "cat /sys/class/net/e/address");
    let before = mac();
    let slow = text("10.0.0.7/24", "both = { delay = \"30ms\" }\n");
    lab.apply(&slow);
    assert!(rtt(&lab) >= 60.0);
    // The interface is another one, with the same Ethernet address.
    assert_eq!(mac(), before);
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

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
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
    let lines = kit.vdectl(["lab", "test", "--json", "tested"]).run();
    assert_eq!(lines.code(), Some(1));
    let results: Vec<serde_json::Value> = lines.stdout.lines().map(json).collect();
    let passed: Vec<_> = results.iter().map(|result| result["ok"].clone()).collect();
    assert_eq!(passed, [true, false, true], "{results:?}");
    assert_eq!(results[1]["message"], "exit status 3, not 0");
    drop(lab);

    let said = json(&kit.vdectl(["lab", "up", "--json", &file]).ok());
    assert_eq!(said[0]["name"], "tested", "{said}");
    kit.vdectl(["lab", "down", "tested"]).ok();
}

#[test]
fn a_lab_that_was_started_for_tests_ends_with_them() {
    let kit = Lab::new();
    let text = "[nodes.a]\nservices = [\"sleep 1000\"]\n\
                [[tests]]\nnode = \"a\"\nrun = \"false\"\nwithin = \"10m\"\n";
    let file = kit.write("endless.toml", text);
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let test = kit.vdectl(["lab", "test", &file]).spawn();
        wait_until("the lab", PATIENCE, || kit.is_running("sleep 1000"));
        test.signal(signal);
        test.wait(PATIENCE);
        wait_until("the end of the lab", PATIENCE, || {
            kit.processes().is_empty()
        });
    }
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

/// A cable, an impaired link, and a switch.
const THREE_KINDS: &str = r#"
[nodes.a]
exec = ["ip route add 10.9.0.0/24 via 10.0.0.2", "ip addr add fd00:1::1/64 dev eth0 nodad"]
[nodes.b]
exec = ["ip addr add fd00:1::2/64 dev eth0 nodad"]
[nodes.h]
[[links]]
ends = ["a:eth0=10.0.0.1/24", "b:eth0=10.0.0.2/24"]
[[links]]
ends = ["a:wan=10.1.0.1/24", "b:wan=10.1.0.2/24"]
both = { seed = 1 }
[[switches]]
name = "lan"
ports = ["a:lan=10.2.0.1/24", "h:eth0=10.2.0.2/24"]
"#;

#[test]
fn impairments_are_set_at_either_end_and_last() {
    let kit = Lab::new();
    let lab = Up::new(&kit, "set", THREE_KINDS);
    let rtt = || {
        let said = lab.ok("a", "ping -nqc 2 -i 0.2 10.1.0.2");
        let (_, times) = said.split_once("= ").expect("times");
        times.split('/').next().unwrap().parse::<f64>().unwrap()
    };
    let worker = lab.worker("link a:wan – b:wan");
    assert!(rtt() < 60.0);
    // What one end sends, the other receives.
    let set = |words: &[&str]| kit.vdectl(["link", "set"]).args(words);
    set(&["b:wan", "tx.delay=60ms"]).ok();
    let shown = kit.vdectl(["link", "show", "set/a:wan"]).ok();
    assert!(
        shown.starts_with("set/a:wan  up rx.delay=60ms seed=1\n  network   b:wan\n"),
        "{shown}"
    );
    let shown = kit.vdectl(["link", "show", "b:wan"]).ok();
    assert!(
        shown.starts_with("set/b:wan  up seed=1 tx.delay=60ms\n"),
        "{shown}"
    );
    assert!(
        lab.line("link a:wan – b:wan")
            .contains(", seed=1/rx.delay=60ms, ")
    );
    let seen = rtt();
    assert!(
        (60.0..110.0 + stretched(std::time::Duration::from_millis(50)).as_secs_f64() * 1e3)
            .contains(&seen),
        "{seen}"
    );
    // The worker went on, and the next one has what was set.
    assert_eq!(lab.worker("link a:wan – b:wan"), worker);
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    wait_until("another worker", PATIENCE, || {
        lab.is_ok("a", "ping -nc 1 -W 1 10.1.0.2")
    });
    assert!(rtt() >= 60.0);
    // The file decides again.
    assert_eq!(lab.apply(THREE_KINDS), "* link a:wan – b:wan: seed=1\n");
    assert!(rtt() < 60.0);
    set(&["b:eth0", "delay=1ms"]).refused(&["the link a:eth0 – b:eth0", "both = {}"]);
    set(&["b:wan", "delai=1ms"]).refused(&["cannot change b:wan", "unknown key 'delai'"]);
    set(&["b:nothing", "delay=1ms"]).refused(&["b:nothing", "is no link of a lab"]);
    set(&["b", "delay=1ms"]).refused(&["more than one link", "set/b:eth0, set/b:wan"]);
    // A list shows each link once.
    let list = kit.vdectl(["link", "show"]).ok();
    let links: Vec<_> = list.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(links.len(), 4, "{list}");
}

#[test]
fn links_of_every_kind_are_taken_down_and_up() {
    let kit = Lab::new();
    let lab = Up::new(&kit, "pulled", THREE_KINDS);
    let events = kit.vdectl(["lab", "events", "pulled"]).spawn();
    wait_until("the first event", PATIENCE, || {
        events.stdout().contains("running")
    });
    let carrier = |node: &str, name: &str| {
        let flags = lab.ok(node, &format!("ip link show {name}"));
        flags.contains("LOWER_UP")
    };
    let link = |what: &str, name: &str| kit.vdectl(["link", what, name]).ok();
    for (down, up, [(a, at_a), (b, at_b)], address) in [
        (
            "a:eth0",
            "b:eth0",
            [("a", "eth0"), ("b", "eth0")],
            "10.0.0.2",
        ),
        (
            "b:wan",
            "pulled/a:wan",
            [("a", "wan"), ("b", "wan")],
            "10.1.0.2",
        ),
        (
            "h:eth0",
            "h:eth0",
            [("h", "eth0"), ("h", "eth0")],
            "10.2.0.2",
        ),
    ] {
        lab.ping("a", address);
        link("down", down);
        wait_until("no carrier", PATIENCE, || {
            !carrier(a, at_a) && !carrier(b, at_b)
        });
        assert!(!lab.is_ok("a", &format!("ping -nc 1 -W 0.2 {address}")));
        let place = format!("link {a}:{at_a} – ");
        assert!(lab.line(&place).contains(", down"), "{}", lab.line(&place));
        link("down", down);
        link("up", up);
        wait_until("carrier", PATIENCE, || carrier(a, at_a) && carrier(b, at_b));
        lab.reaches("a", address);
        assert!(!lab.line(&place).contains("down"));
    }
    // The interface that was down has its addresses and its routes again.
    lab.ping("a", "fd00:1::2");
    assert!(lab.ok("a", "ip route").contains("10.9.0.0/24 via 10.0.0.2"));
    // A worker that is killed meanwhile does not bring the link up.
    link("down", "a:wan");
    kill(Pid::from_raw(lab.worker("link a:wan")), Signal::SIGKILL).unwrap();
    wait_until("another worker", PATIENCE, || {
        kit.vdectl(["link", "show", "a:wan"])
            .ok()
            .contains("down seed=1\n")
    });
    wait_until("no carrier", PATIENCE, || {
        !carrier("a", "wan") && !carrier("b", "wan")
    });
    link("up", "a:wan");
    lab.reaches("a", "10.1.0.2");
    drop(lab);
    let told = events.wait(PATIENCE).stdout;
    for event in [
        r#""event":"link-down","link":"a:eth0 – b:eth0"}"#,
        r#""event":"carrier","interface":"b:eth0","carrier":false}"#,
        r#""event":"carrier","interface":"b:eth0","carrier":true}"#,
        r#""event":"link-up","link":"h:eth0 – lan"}"#,
        r#""event":"ending"}"#,
    ] {
        assert!(told.contains(event), "{event}: {told}");
    }
}

#[test]
fn impairments_are_applied_under_iperf3_and_ping() {
    need!("iperf3");
    let kit = Lab::new();
    let text = |delay: &str| {
        format!(
            "[nodes.a]\n[nodes.b]\nservices = [\"exec iperf3 -s -1\"]\n\
             [[links]]\nends = [\"a:e=10.0.0.1/24\", \"b:e=10.0.0.2/24\"]\n\
             [[links]]\nends = [\"a:w=10.1.0.1/24\", \"b:w=10.1.0.2/24\"]\nboth = {{ delay = \"{delay}\" }}\n"
        )
    };
    let lab = Up::new(&kit, "busy", &text("1ms"));
    let worker = lab.worker("link a:w");
    wait_until("iperf3 listens", PATIENCE, || {
        lab.is_ok("b", "ss -Hltn sport = :5201 | grep -q .")
    });
    let in_a = |words: &[&str]| kit.vdectl(["lab", "exec", "a"]).args(words).spawn();
    let stream = in_a(&[
        "iperf3", "-c", "10.1.0.2", "-t", "4", "-i", "0.5", "-b", "50M", "-J",
    ]);
    let pings = ["10.0.0.2", "10.1.0.2"]
        .map(|to| in_a(&["ping", "-nqc", "150", "-i", "0.02", "-W", "5", to]));
    wait_until("the stream", PATIENCE, || {
        lab.is_ok("a", "ss -Htn state established dst 10.1.0.2 | grep -q 5201")
    });
    let told = lab.apply(&text("5ms"));
    assert_eq!(told, "* link a:w – b:w: delay=5ms\n");
    let more =
        text("3ms") + "[nodes.c]\n[[links]]\nends = [\"b:c=10.2.0.1/24\", \"c:e=10.2.0.2/24\"]\n";
    let told = lab.apply(&more);
    assert!(
        told.contains("+ node c\n") && told.contains("delay=3ms"),
        "{told}"
    );
    assert_eq!(lab.worker("link a:w"), worker);
    lab.ping("b", "10.2.0.2");
    for ping in pings {
        let pinged = ping.wait(PATIENCE);
        assert!(
            pinged.stdout.contains(" 0% packet loss"),
            "{}",
            pinged.stdout
        );
    }
    let stream = stream.wait(PATIENCE);
    let report: serde_json::Value = serde_json::from_str(&stream.stdout).unwrap();
    assert_eq!(stream.code(), Some(0), "{report:#}");
    let moved = report["end"]["sum_received"]["bytes"].as_u64();
    assert!(moved.is_some_and(|bytes| bytes > 1 << 20), "{report:#}");
}

#[test]
fn an_interrupted_change_does_the_lab_no_harm() {
    let kit = Lab::new();
    let lab = Up::new(&kit, "patient", "[nodes.a]\n");
    kit.write(
        "patient.toml",
        "[nodes.a]\nexec = [\"sleep 1.2\"]\n[nodes.b]\n",
    );
    let apply = kit.vdectl(["lab", "apply", &lab.file]).spawn();
    wait_until("the change", PATIENCE, || kit.is_running("sleep 1.2"));
    // Meanwhile nothing else is changed.
    kit.vdectl(["lab", "apply", &lab.file])
        .refused(&["patient", "is changing already"]);
    apply.signal(Signal::SIGKILL);
    apply.wait(PATIENCE);
    wait_until("the end of the change", PATIENCE, || {
        lab.line("lab patient").contains("running")
    });
    assert_eq!(lab.ok("b", "hostname"), "b\n");
}

#[test]
fn a_node_and_a_session_of_one_name_are_told_apart() {
    let kit = Lab::new();
    let _lab = Up::new(&kit, "named", "[nodes.r1]\n[nodes.r2]\n");
    kit.vdens(["-d", "--name", "r1", "null://"]).ok();
    kit.vdectl(["exec", "r1", "true"]).refused(&[
        "'r1' is a session",
        "node of the lab 'named'",
        "named/r1",
    ]);
    assert_eq!(kit.vdectl(["exec", "named/r1", "hostname"]).ok(), "r1\n");
    assert_eq!(kit.vdectl(["exec", "r2", "hostname"]).ok(), "r2\n");
    kit.vdectl(["stop", "--all"]).ok();
}
