//! Hostile clients of a switch: whatever they do, two namespaces keep pinging each other through
//! it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail as tests do"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::ChildStdin;
use std::time::{Duration, Instant};

use serde_json::Value;
use vdens_tests::{Lab, PATIENCE, Proc, Session, User, becomes_true, need, stretched, wait_until};

use crate::status::{link, status};

/// A switch, and two namespaces that ping each other through it from beginning to end.
struct Scene<'lab> {
    lab: &'lab Lab,
    a: Session<'lab>,
    b: Session<'lab>,
    switch: Proc<'lab>,
    start: Instant,
}

impl<'lab> Scene<'lab> {
    fn new(lab: &'lab Lab) -> Self {
        let switch = lab.vde_plug(["-v", "null://", &lab.vnl("switch", "sw")]);
        Self::with(lab, switch.spawn())
    }

    fn with(lab: &'lab Lab, switch: Proc<'lab>) -> Self {
        lab.wait_for("sw/ctl");
        let member = |number: u8| {
            let (mac, address) = (
                format!("02:00:00:00:00:0{number}"),
                format!("10.0.0.{number}/24"),
            );
            // On the panel their frames would not pass here.
            let options = ["--no-panel", "--mac", &mac, "--addr", &address];
            let vnl = lab.vnl("vde", "sw");
            lab.vdens(options).args([&vnl, "sh"]).session()
        };
        let (a, b) = (member(1), member(2));
        a.ping("10.0.0.2");
        a.ok("ping -q -i 0.02 -W 2 10.0.0.2 >$HOME/pings & p=$!");
        Self {
            lab,
            a,
            b,
            switch,
            start: Instant::now(),
        }
    }

    /// Starts a client and waits until it has done its harm. It holds what it has until its input
    /// is dropped.
    fn harm(&self, what: &str) -> (Proc<'lab>, ChildStdin) {
        let program = self
            .lab
            .write("hostile.py", include_str!("hostile_clients.py"));
        let directory = self.lab.path("sw");
        let command = self.lab.command("python3", [&program, what, &directory]);
        let (client, stdin) = command.spawn_piped();
        let is_done = || client.stdout().contains("done\n") || !client.is_running();
        assert!(
            becomes_true(PATIENCE * 2, is_done) && client.is_running(),
            "{what}: {}",
            client.stderr()
        );
        (client, stdin)
    }

    fn switch_status(&self) -> Value {
        let pid = self.switch.pid().cast_unsigned();
        link(&status(self.lab), pid, 1)["switch"].clone()
    }

    /// The port of a client.
    fn port(&self, client: &Proc<'_>) -> Value {
        let pid = client.pid();
        let status = self.switch_status();
        let mut ports = status["ports"].as_array().unwrap().iter();
        let found = ports.find(|port| port["client"]["pid"] == pid);
        found.unwrap_or_else(|| panic!("{status:#}")).clone()
    }

    /// Another client plugs in and reaches the others.
    fn serves_another(&self) {
        let vnl = self.lab.vnl("vde", "sw");
        let args = ["--no-panel", "--addr", "10.0.0.3/24", &vnl, "ping"];
        let ping = self.lab.vdens(args);
        ping.args(["-c", "1", "-w", "50", "10.0.0.2"]).ok();
    }

    /// No ping may have been lost, but for `percent` of them.
    #[track_caller]
    fn end(self, percent: f64) {
        let text = self.a.ok("kill -INT $p; wait $p; cat $HOME/pings");
        let count = |name: &str| -> f64 {
            let mut words = text.split([',', '\n']).map(str::trim);
            let number = words.find_map(|words| words.strip_suffix(name));
            number
                .and_then(|number| number.trim().parse().ok())
                .expect("ping's summary")
        };
        let (sent, received) = (count("packets transmitted"), count("received"));
        // Those of the longest round trip, every 20 ms, may have been on their way.
        let longest = text
            .rsplit('/')
            .nth(1)
            .and_then(|time| time.parse::<f64>().ok());
        let on_their_way = 1.0 + longest.expect("the round trips' summary") / 20.0;
        assert!(
            sent - received <= on_their_way + sent * percent / 100.0,
            "{text}"
        );
        drop((self.a, self.b));
        assert!(self.switch.is_running(), "{}", self.switch.stderr());
        let output = self.switch.terminate();
        assert!(!output.stderr.contains("panic"), "{output:?}");
    }
}

/// Clock ticks of processor time that a process has used.
pub(crate) fn ticks(process: &Proc<'_>) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn descriptors(process: &Proc<'_>) -> usize {
    fs::read_dir(format!("/proc/{}/fd", process.pid()))
        .unwrap()
        .count()
}

fn resident_kib(process: &Proc<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

/// What a hostile client does, and what must be true while it holds what it has.
struct Case {
    /// A function of hostile_clients.py.
    harm: &'static str,
    /// How many descriptors the switch may have; 0 is as many as there are.
    descriptors: u32,
    /// The share of the pings of others that may be lost, in percent.
    lost: f64,
    check: fn(&Scene<'_>, &Proc<'_>),
}

/// Runs a case. Afterwards the switch has closed what it opened for the client, and serves others.
fn run(case: &Case) {
    let lab = Lab::new();
    let limit = match case.descriptors {
        0 => String::new(),
        limit => format!("ulimit -n {limit}; "),
    };
    let vnl = lab.vnl("switch", "sw");
    let switch = lab.sh(&format!("{limit}exec vde_plug -v null:// {vnl}"));
    let scene = Scene::with(&lab, switch.spawn());
    let before = descriptors(&scene.switch);
    let (client, stdin) = scene.harm(case.harm);
    (case.check)(&scene, &client);
    drop(stdin);
    client.wait(PATIENCE);
    wait_until("all descriptors are closed again", PATIENCE, || {
        descriptors(&scene.switch) == before
    });
    scene.serves_another();
    scene.end(case.lost);
}

/// The cases, a test for each.
macro_rules! cases {
    ($(
        fn $test:ident() = $harm:literal, $descriptors:literal, $lost:literal, $check:ident;
    )*) => {$(
        #[test]
        fn $test() {
            need!("python3");
            run(&Case {
                harm: $harm,
                descriptors: $descriptors,
                lost: $lost,
                check: $check,
            });
        }
    )*};
}

cases! {
    fn nonsense_for_requests() = "nonsense", 0, 0.0, complaints_are_few;
    fn datagrams_that_are_no_frames() = "datagrams", 0, 0.0, each_is_counted;
    fn more_addresses_than_anybody_has() = "flood", 0, 2.0, the_table_is_bounded;
    fn two_hundred_ports() = "many", 0, 0.0, all_have_ports;
    fn out_of_descriptors() = "descriptors", 60, 0.0, who_is_in_stays_in;
    fn super_frames_that_make_no_sense() = "superframes", 0, 2.0, many_are_dropped;
}

fn complaints_are_few(scene: &Scene<'_>, _: &Proc<'_>) {
    for words in ["refused process", "more clients were refused"] {
        let is_logged = || scene.switch.stderr().contains(words);
        wait_until(words, PATIENCE, is_logged);
    }
    let log = scene.switch.stderr();
    // A line for each complaint would fill the disk.
    let lines = 20 + 6 * scene.start.elapsed().as_secs();
    assert!((log.lines().count() as u64) < lines, "{lines}: {log}");
}

fn each_is_counted(scene: &Scene<'_>, client: &Proc<'_>) {
    let port = scene.port(client);
    assert_eq!(port["dropped"]["malformed"], 7 * 50, "{port:#}");
    let fdb = scene.switch_status()["fdb"].to_string();
    assert!(
        fdb.contains("02:66:00:00:00:01"),
        "the frame was taken: {fdb}"
    );
}

fn the_table_is_bounded(scene: &Scene<'_>, client: &Proc<'_>) {
    let mut status = scene.switch_status();
    wait_until("the switch reports its stations", PATIENCE, || {
        status = scene.switch_status();
        status["fdb"].is_array()
    });
    // The bound that docs/schemes/switch.md names.
    let known = status["fdb"].as_array().map(Vec::len);
    assert_eq!(known, Some(131_072), "{}", client.stdout());
    let ports = status["ports"].as_array().unwrap();
    let mut ports_of_deaf = ports.iter();
    let deaf = ports_of_deaf.find(|port| port["client"]["description"] == "deaf");
    let dropped = deaf.and_then(|port| port["dropped"]["queue_full"].as_u64());
    assert!(dropped > Some(100_000), "{ports:#?}");
    let resident = resident_kib(&scene.switch);
    assert!(resident < 64 << 10, "{resident} KiB");
    let took = client.stdout();
    let took: f64 = took.split(' ').next().unwrap().parse().unwrap();
    let limit = stretched(Duration::from_secs(14)).as_secs_f64();
    assert!(took < limit, "the client was slow: {took} s of {limit}");
}

fn all_have_ports(scene: &Scene<'_>, _: &Proc<'_>) {
    let count = scene.switch_status()["ports"].as_array().map(Vec::len);
    assert_eq!(count, Some(202));
    scene.serves_another();
}

fn who_is_in_stays_in(scene: &Scene<'_>, client: &Proc<'_>) {
    let opened = client.stdout();
    let opened: u32 = opened.lines().next().unwrap().parse().unwrap();
    assert!((5..30).contains(&opened), "{opened} ports");
    let log = scene.switch.stderr();
    assert!(log.contains("Too many open files"), "{log}");
    let vnl = scene.lab.vnl("vde", "sw");
    scene.lab.vdens([&vnl, "true"]).refused(&["/sw"]);
    let before = ticks(&scene.switch);
    std::thread::sleep(Duration::from_secs(2));
    let used = ticks(&scene.switch) - before;
    assert!(used < 60, "{used} ticks in two seconds without descriptors");
}

fn many_are_dropped(scene: &Scene<'_>, client: &Proc<'_>) {
    let port = scene.port(client);
    let malformed = port["dropped"]["malformed"].as_u64();
    assert!(malformed > Some(1000), "{port:#}");
    assert!(port["received"].as_u64() > Some(1000), "{port:#}");
}

/// The switch could write where the client cannot; it must not lend itself to that.
#[test]
fn sockets_that_are_not_the_clients() {
    need!("root", "python3");
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let other = User::other();
    let theirs = lab.mkdir("theirs");
    chown(&theirs, Some(other.uid), Some(other.gid)).unwrap();
    let victim = "import os, socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind('theirs/s')
os.chmod('theirs/s', 0o777); print('here', flush=True); print('received', s.recv(100))";
    let victim = lab.command("python3", ["-c", victim]).by(other).spawn();
    wait_until("the victim", PATIENCE, || victim.stdout() == "here\n");
    let file = lab.write("file", "as it was");
    std::os::unix::fs::symlink(lab.path("theirs/s"), lab.path("link")).unwrap();
    let own = "import socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind('own'); time.sleep(1000)";
    let _own = lab.command("python3", ["-c", own]).spawn();
    lab.wait_for("own");
    std::os::unix::fs::symlink(lab.path("own"), lab.path("link-to-own")).unwrap();
    for name in ["link", "own", "link-to-own"] {
        lab.expect(name);
    }
    let own = lab.path("own");
    let paths = [
        lab.path("theirs/s"),
        lab.path("link"),
        lab.path("link-to-own"),
        lab.path("sw/ctl"),
        lab.path("nothing"),
        lab.path("theirs"),
        format!("/{}", "x".repeat(107)),
        "own".to_owned(),
        String::new(),
        "/dev/null".to_owned(),
        file.clone(),
        own.clone(),
    ];
    let program = lab.write("hostile.py", include_str!("hostile_clients.py"));
    let args = [program, "name".to_owned(), lab.path("sw")];
    let client = lab.command("python3", args).args(paths);
    let accepted = client.ok();
    assert_eq!(accepted, format!("[\"{own}\"]\ndone\n"));
    let log = scene.switch.stderr();
    for words in ["belongs to another user", "is not a socket"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "as it was");
    assert_eq!(victim.stdout(), "here\n", "the victim was sent something");
    scene.end(0.0);
}

#[test]
fn nothing_happens_and_nothing_is_done() {
    let lab = Lab::new();
    let scene = Scene::new(&lab);
    let idle = "kill $p; wait $p; true";
    scene.a.ok(idle);
    // At first the kernels look for neighbours.
    let is_idle = || {
        let before = ticks(&scene.switch);
        std::thread::sleep(Duration::from_secs(2));
        ticks(&scene.switch) - before <= 1
    };
    wait_until("two seconds without work", PATIENCE, is_idle);
}

/// Who may plug in is a matter of the control socket's mode and group, and the kernel's to say.
#[test]
fn access_follows_mode_and_group() {
    need!("root");
    let lab = Lab::new();
    fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let other = User::other();
    let home = lab.mkdir("other");
    chown(&home, Some(other.uid), Some(other.gid)).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let group = &lab.user().name;
    for (mode, in_group, is_let_in) in [
        ("0600", false, false),
        ("0600", true, false),
        ("0660", false, false),
        ("0660", true, true),
        ("0666", false, true),
    ] {
        let name = format!("sw[mode={mode}/group={group}]");
        let vnl = lab.vnl("switch", &name);
        let scene = Scene::with(&lab, lab.vde_plug(["-v", "null://", &vnl]).spawn());
        let groups = match in_group {
            true => format!("--groups={}", lab.user().gid),
            false => "--clear-groups".to_owned(),
        };
        let (uid, gid) = (other.uid, other.gid);
        let vdens = lab.bin().join("vdens");
        let vnl = lab.vnl("vde", "sw");
        let words = format!(
            "--reuid={uid} --regid={gid} {groups} -- {}",
            vdens.display()
        );
        let words = words.split(' ').chain(["--addr", "10.0.0.9/24"]);
        let ping = ["ping", "-c", "1", "-w", "50", "10.0.0.1"];
        let output = lab
            .command("setpriv", words)
            .args([&vnl])
            .args(ping)
            .env("HOME", &home)
            .env("XDG_RUNTIME_DIR", &home)
            .by(User::root())
            .run();
        let case = format!("mode {mode}, in the group: {in_group}: {output:?}");
        match is_let_in {
            true => assert_eq!(output.code(), Some(0), "{case}"),
            false => {
                assert_eq!(output.code(), Some(125), "{case}");
                assert!(output.stderr.contains("no permission"), "{case}");
            }
        }
        scene.end(0.0);
    }
}
