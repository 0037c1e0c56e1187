//! The fault matrix: what a link depends on is terminated, killed or stopped for 3 s, while the
//! link idles and while it carries a connection, with the panel and without. The session stays,
//! its carrier tells the truth, and traffic comes back.
//!
//! [`MATRIX`] has a row for each target. All cells of a row run at the same time, each in a lab of
//! its own. Tests of many faults of a kind follow.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests fail as tests do"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vdens_tests::{
    Cmd, Lab, Netns, PATIENCE, Proc, Session, User, becomes_true, need, stretched, wait_until,
};

use crate::status::{link, status};

/// How soon the carrier follows the far end, at most.
const SOON: Duration = Duration::from_secs(1);

/// How often the kernel asks for a neighbour's address (mcast_solicit in arp(7)): what it asked in
/// vain it asks again after that.
const ASKING: Duration = Duration::from_secs(1);

/// How soon a connection moves again: it tries at growing intervals.
const RETRANSMISSION: Duration = Duration::from_secs(12);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Worker,
    PanelHolder,
    Switch,
    LegacySwitch,
    Peer,
    Tap,
}

use Target::{LegacySwitch, PanelHolder, Peer, Switch, Tap, Worker};

/// What a target gets, and what it costs the session under test.
#[derive(Clone, Copy, Debug)]
struct Row {
    target: Target,
    signals: &'static [Signal],
    /// Whether the end of the target costs the session its carrier until a successor is there. A
    /// target that is stopped may or may not cost it.
    costs_carrier: bool,
    /// Whether a connection survives the end of the target, for 5 s where it needs a successor.
    keeps_connection: bool,
}

const ALL: &[Signal] = &[Signal::SIGTERM, Signal::SIGKILL, Signal::SIGSTOP];

#[rustfmt::skip]
const MATRIX: [Row; 6] = [
    // Another worker takes over.
    Row { target: Worker, signals: ALL, costs_carrier: true, keeps_connection: true },
    // Another session, which made the panel.
    Row { target: PanelHolder, signals: ALL, costs_carrier: false, keeps_connection: true },
    // Our switch and Debian's.
    Row { target: Switch, signals: ALL, costs_carrier: true, keeps_connection: true },
    Row { target: LegacySwitch, signals: ALL, costs_carrier: true, keeps_connection: true },
    // The session at the other end of the cable. Its end of the connection ends with it.
    Row { target: Peer, signals: ALL, costs_carrier: true, keeps_connection: false },
    // The tap that the session is plugged into: no process, but deleted and made again.
    Row { target: Tap, signals: &[Signal::SIGKILL], costs_carrier: true, keeps_connection: true },
];

/// A row with one signal, in one state of the link.
#[derive(Clone, Copy, Debug)]
struct Cell {
    row: Row,
    signal: Signal,
    /// Whether a connection is open meanwhile.
    tcp: bool,
    panel: bool,
}

/// Runs all cells of a target, at the same time.
fn check(target: Target, panel: bool) {
    let row = MATRIX.into_iter().find(|row| row.target == target).unwrap();
    thread::scope(|scope| {
        for &signal in row.signals {
            for tcp in [false, true] {
                let cell = Cell {
                    row,
                    signal,
                    tcp,
                    panel,
                };
                let name = format!("{:?}, {signal}, tcp: {tcp}", row.target);
                let run = thread::Builder::new().name(name);
                run.spawn_scoped(scope, move || cell.run()).unwrap();
            }
        }
    });
}

impl Cell {
    fn run(self) {
        let lab = Lab::new();
        let mut bench = Bench::new(&lab, self);
        bench.session.ping("10.0.0.2");
        // The shell is to stay the one it is.
        let shell = bench.session.ok("echo $$");
        let connection = self.has_connection().then(|| bench.connect());
        let changes = bench.carrier_changes();

        let since = bench.strike();
        let left = |limit: Duration| limit.saturating_sub(since.elapsed());
        wait_until(&format!("{self:?}: carrier"), left(stretched(SOON)), || {
            bench.has_carrier()
        });
        wait_until(
            &format!("{self:?}: traffic"),
            left(stretched(SOON + ASKING)),
            || bench.session.run("ping -c 1 -W 0.5 10.0.0.2").0 == 0,
        );
        match (self.row.costs_carrier, self.signal) {
            (false, _) => assert_eq!(bench.carrier_changes(), changes, "{self:?}"),
            (true, Signal::SIGSTOP) => {}
            (true, _) => wait_until(
                &format!("{self:?}: carrier gone and back"),
                stretched(SOON),
                || bench.carrier_changes() >= changes + 2,
            ),
        }
        if let Some(connection) = connection {
            bench.finish(connection);
        }
        assert_eq!(bench.session.ok("echo $$"), shell, "{self:?}");
        bench
            .session
            .ok("ip -o addr show vde0 | grep -w 10.0.0.1/24");
        assert_eq!(bench.session.exit(7).code(), Some(7), "{self:?}");
    }

    fn has_connection(self) -> bool {
        self.tcp && (self.row.keeps_connection || self.signal == Signal::SIGSTOP)
    }

    fn vdens(self, lab: &Lab) -> Cmd<'_> {
        match self.panel {
            true => lab.vdens(["-q"]),
            false => lab.vdens(["--no-panel", "-q"]),
        }
    }

    /// For how long something is gone.
    fn outage(self) -> Duration {
        match self.tcp {
            true => Duration::from_secs(5),
            false => SOON,
        }
    }
}

/// The end that the session under test talks to.
enum Far<'lab> {
    Session(Session<'lab>),
    Host(Netns<'lab>),
}

/// A session and everything it depends on.
struct Bench<'lab> {
    lab: &'lab Lab,
    cell: Cell,
    session: Session<'lab>,
    far: Option<Far<'lab>>,
    /// A session that made the panel, or a switch; its standard input ends Debian's.
    other: Option<(Proc<'lab>, std::process::ChildStdin)>,
}

/// A connection that is open: its receiver, if that is a process of the test's own.
struct Connection<'lab>(Option<Proc<'lab>>);

impl<'lab> Bench<'lab> {
    fn new(lab: &'lab Lab, cell: Cell) -> Self {
        let other = match cell.row.target {
            PanelHolder => {
                let holder = lab.vdens([&lab.vnl("ptp", "other"), "sleep", "1000"]);
                let holder = holder.spawn_piped();
                lab.wait_for("other");
                Some(holder)
            }
            Switch | LegacySwitch => Some(start_switch(lab, cell.row.target)),
            Worker | Peer | Tap => None,
        };
        let start = |address| cell.vdens(lab).args(["--addr", address]);
        let (session, far) = match cell.row.target {
            Tap => {
                let host = lab.netns();
                make_tap(lab, &host);
                let session = start("10.0.0.1/24").args(["tap://tap0", "sh"]);
                (session.inside(&host).session(), Far::Host(host))
            }
            target => {
                let vnl = match target {
                    Switch | LegacySwitch => lab.vnl("vde", "sw"),
                    _ => lab.vnl("ptp", "p"),
                };
                let far = start("10.0.0.2/24").args([&vnl, "sh"]).session();
                far.ok(":");
                let session = start("10.0.0.1/24").args([&vnl, "sh"]).session();
                (session, Far::Session(far))
            }
        };
        Self {
            lab,
            cell,
            session,
            far: Some(far),
            other,
        }
    }

    /// Opens a connection with numbers on it, twenty a second.
    fn connect(&self) -> Connection<'lab> {
        let lab = self.lab;
        lab.expect("got");
        let receive = "socat -u TCP4-LISTEN:5000,reuseaddr CREATE:got";
        let receiver = match &self.far {
            Some(Far::Host(host)) => Some(host.sh(receive).spawn()),
            Some(Far::Session(far)) => {
                far.ok(&format!("{receive} >/dev/null 2>&1 &"));
                None
            }
            None => None,
        };
        self.session.ok(
            "(i=1; while [ ! -e stop ]; do echo $i; i=$((i + 1)); sleep 0.05; done |
              socat -u STDIN TCP4:10.0.0.2:5000,retry=100,interval=0.05) >/dev/null 2>&1 &",
        );
        wait_until("the connection", PATIENCE, || self.received().len() > 20);
        Connection(receiver)
    }

    /// What has arrived.
    fn received(&self) -> String {
        fs::read_to_string(self.lab.path("got")).unwrap_or_default()
    }

    /// The connection moves, and all numbers have come, in order.
    fn finish(&self, connection: Connection<'_>) {
        let cell = self.cell;
        let before = self.received().len();
        wait_until(
            &format!("{cell:?}: the connection moves"),
            stretched(RETRANSMISSION),
            || self.received().len() > before,
        );
        self.lab.write("stop", "");
        // The far end has no more of them than were sent.
        let over = || !self.lab.is_running("socat");
        wait_until(&format!("{cell:?}: the connection ends"), PATIENCE, over);
        let received = self.received();
        let count = received.lines().count();
        let wanted: String = (1..=count).map(|number| format!("{number}\n")).collect();
        assert!(received == wanted, "{cell:?}: {received}");
        if let Some(receiver) = connection.0 {
            receiver.wait(PATIENCE);
        }
    }

    /// How often the interface has gained or lost its carrier.
    fn carrier_changes(&self) -> u64 {
        let text = self.session.ok("ip -j -s -s link show vde0");
        let links: Value = serde_json::from_str(&text).unwrap();
        let changes = links[0]["stats64"]["tx"]["carrier_changes"].as_u64();
        changes.unwrap_or_else(|| panic!("{links}"))
    }

    fn has_carrier(&self) -> bool {
        let link = self.session.ok("ip link show vde0");
        !link.contains("NO-CARRIER")
    }

    fn lost_carrier(&self) {
        let what = format!("{:?}: no carrier", self.cell);
        wait_until(&what, stretched(SOON), || !self.has_carrier());
    }

    /// Sends the target its signal, and starts its successor; when all is there again.
    fn strike(&mut self) -> Instant {
        let (lab, cell) = (self.lab, self.cell);
        let pid = |session: &Session<'_>| session.proc().pid();
        let worker = |session: &Session<'_>| worker(lab, session);
        let hit: Vec<i32> = match (cell.row.target, &self.far) {
            (Worker, _) => vec![worker(&self.session)],
            (Peer, Some(Far::Session(far))) if cell.signal == Signal::SIGSTOP => {
                vec![pid(far), worker(far)]
            }
            (Peer, Some(Far::Session(far))) => vec![pid(far)],
            (PanelHolder | Switch | LegacySwitch, _) => {
                self.other.iter().map(|(other, _)| other.pid()).collect()
            }
            _ => Vec::new(),
        };
        for pid in &hit {
            kill(Pid::from_raw(*pid), cell.signal).unwrap();
        }
        if cell.signal == Signal::SIGSTOP {
            thread::sleep(Duration::from_secs(3));
            for pid in hit {
                kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
            }
            return Instant::now();
        }
        match cell.row.target {
            Worker => {}
            PanelHolder => {
                self.other.take().unwrap().0.wait(PATIENCE);
                // One that is killed leaves its socket to the next.
                lab.vdens([&lab.vnl("ptp", "other"), "true"]).ok();
            }
            Switch | LegacySwitch => {
                self.other.take().unwrap().0.wait(PATIENCE);
                self.lost_carrier();
                thread::sleep(cell.outage());
                self.other = Some(start_switch(lab, cell.row.target));
            }
            Peer => {
                self.far = None;
                self.lost_carrier();
                thread::sleep(cell.outage());
                let vnl = lab.vnl("ptp", "p");
                let far = cell.vdens(lab).args(["--addr", "10.0.0.2/24", &vnl, "sh"]);
                let far = far.session();
                far.ok(":");
                self.far = Some(Far::Session(far));
            }
            Tap => {
                let Some(Far::Host(host)) = &self.far else {
                    panic!("no host")
                };
                host.sh("ip link del tap0").ok();
                self.lost_carrier();
                thread::sleep(cell.outage());
                make_tap(lab, host);
            }
        }
        Instant::now()
    }
}

/// The worker of a session's only link.
#[track_caller]
pub(crate) fn worker(lab: &Lab, session: &Session<'_>) -> i32 {
    let pid = session.proc().pid().cast_unsigned();
    let mut worker = None;
    becomes_true(PATIENCE, || {
        let link = link(&status(lab), pid, 0);
        worker = link["worker"].as_i64().filter(|_| link["state"] == "up");
        worker.is_some()
    });
    let worker = worker.and_then(|worker| i32::try_from(worker).ok());
    worker.expect("the link has a worker")
}

fn make_tap(lab: &Lab, host: &Netns<'_>) {
    let user = &lab.user().name;
    host.sh(&format!(
        "ip tuntap add dev tap0 mode tap user {user}
         ip addr add 10.0.0.2/24 dev tap0; ip link set tap0 up"
    ))
    .ok();
}

fn start_switch(lab: &Lab, target: Target) -> (Proc<'_>, std::process::ChildStdin) {
    let switch = match target {
        LegacySwitch => {
            lab.expect("sw");
            lab.debian("vde_switch", ["-s", &lab.path("sw")])
        }
        _ => lab.vde_plug(["null://", &lab.vnl("switch", "sw")]),
    };
    let switch = switch.spawn_piped();
    wait_for_switch(lab);
    switch
}

/// A switch that was killed has left its socket, so a socket is not enough.
fn wait_for_switch(lab: &Lab) {
    let control = lab.path("sw/ctl");
    wait_until("the switch", PATIENCE, || {
        std::os::unix::net::UnixStream::connect(&control).is_ok()
    });
}

/// Tests of the matrix: target, whether on the panel, and what the machine needs.
macro_rules! tests {
    ($(fn $test:ident() = $target:ident, $panel:literal $(, $need:literal)*;)*) => {$(
        #[test]
        fn $test() {
            need!("ping", "socat" $(, $need)*);
            check($target, $panel);
        }
    )*};
}

tests! {
    fn worker_on_the_panel() = Worker, true;
    fn worker_without_the_panel() = Worker, false;
    fn another_session_that_holds_the_panel() = PanelHolder, true;
    fn another_session_that_holds_the_panel_which_this_one_does_not_use() = PanelHolder, false;
    fn switch_on_the_panel() = Switch, true;
    fn switch_without_the_panel() = Switch, false;
    fn debians_switch_on_the_panel() = LegacySwitch, true, "vde_switch";
    fn debians_switch_without_the_panel() = LegacySwitch, false, "vde_switch";
    fn peer_on_the_panel() = Peer, true;
    fn peer_without_the_panel() = Peer, false;
    fn tap_on_the_panel() = Tap, true, "root";
    fn tap_without_the_panel() = Tap, false, "root";
}

/// What a session and its lab hold, and must not hold more of afterwards.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    processes: usize,
    paths: BTreeSet<String>,
    interfaces: usize,
    /// The first letters of the interfaces on the panel, which only root can look at; and, behind
    /// a `-`, of those that are on a bridge.
    on_panel: Vec<String>,
}

impl Holdings {
    fn of(lab: &Lab, session: &Session<'_>) -> Self {
        let pid = session.proc().pid();
        let descriptors: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        let is_network = |path: &&std::path::PathBuf| {
            let target = fs::read_link(path).unwrap_or_default();
            target.to_string_lossy().starts_with("net:")
        };
        let on_panel = descriptors.iter().filter(is_network).map(|panel| {
            let panel = format!("--net={}", panel.display());
            let links = lab.command("nsenter", [&panel, "ip", "-o", "link"]);
            links.by(User::root()).ok()
        });
        let shown = |line: &str| {
            let name = line.split_whitespace().nth(1).unwrap_or_default();
            let place = if line.contains(" master ") { "-" } else { "" };
            format!("{place}{}", &name[..1])
        };
        let mut on_panel: Vec<_> = match User::is_root() {
            true => on_panel
                .flat_map(|links| links.lines().map(shown).collect::<Vec<_>>())
                .collect(),
            false => Vec::new(),
        };
        on_panel.sort();
        Self {
            descriptors: descriptors.len(),
            processes: lab.processes().len(),
            paths: paths(&lab.dir()),
            interfaces: session.ok("ip -o link").lines().count(),
            on_panel,
        }
    }
}

/// The files in a directory, less what has a number of its own each time.
fn paths(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.collect()
}

/// Compares what there is before something is done and after, when it has settled.
#[track_caller]
fn holds_no_more(lab: &Lab, session: &Session<'_>, work: impl FnOnce()) {
    session.ping("10.0.0.2");
    let before = Holdings::of(lab, session);
    work();
    session.ping("10.0.0.2");
    let mut after = Holdings::of(lab, session);
    becomes_true(PATIENCE / 2, || {
        after = Holdings::of(lab, session);
        after == before
    });
    assert_eq!(before, after);
}

/// A worker's successors come ever later, so the hundred are shared by twenty sessions.
#[test]
fn a_hundred_workers() {
    need!("ping");
    let lab = Lab::new();
    let starts = |vnl: &str, address: &str| {
        let session = lab.vdens(["-q", "--addr", address, vnl, "sh"]).session();
        session.ok(":");
        session
    };
    let sessions: Vec<_> = (0..10)
        .map(|number| {
            let vnl = lab.vnl("ptp", &format!("p{number}"));
            [starts(&vnl, "10.0.0.1/24"), starts(&vnl, "10.0.0.2/24")]
        })
        .collect();
    let [first, _] = &sessions[0];
    holds_no_more(&lab, first, || {
        for _ in 0..5 {
            for session in sessions.iter().flatten() {
                kill(Pid::from_raw(worker(&lab, session)), Signal::SIGKILL).unwrap();
            }
        }
        for [session, _] in &sessions {
            session.ping("10.0.0.2");
        }
    });
}

#[test]
fn a_hundred_peers() {
    need!("ping");
    for options in [&["-q"][..], &["-q", "--no-panel"]] {
        let lab = Lab::new();
        let vnl = lab.vnl("ptp", "p");
        let start = |address: &str| {
            let peer = lab.vdens(options).args(["--addr", address, &vnl, "sh"]);
            let peer = peer.session();
            peer.ok(":");
            peer
        };
        let session = start("10.0.0.1/24");
        let mut peer = start("10.0.0.2/24");
        holds_no_more(&lab, &session, || {
            for _ in 0..50 {
                let worker = worker(&lab, &peer);
                peer.proc().signal(Signal::SIGKILL);
                // Its worker is the other end until it has ended too, a moment later.
                wait_until("the worker ends", PATIENCE, || {
                    !lab.processes().iter().any(|(pid, _)| *pid == worker)
                });
                peer = start("10.0.0.2/24");
            }
        });
    }
}

/// The peer announces nothing, so it would not find out that the socket it is connected to is
/// another worker's.
#[test]
fn a_worker_whose_peer_is_a_silent_legacy_one() {
    need!("ping", "vdens");
    for ours_first in [true, false] {
        let lab = Lab::new();
        let vnl = lab.vnl("ptp", "p");
        let start_ours = || {
            let ours = lab.vdens(["-q", "--addr", "10.0.0.1/24", &vnl, "sh"]);
            ours.session()
        };
        let start_theirs = || {
            let theirs = lab.debian("vdens", [&vnl, "sh"]).session();
            theirs.ok("echo 1 > /proc/sys/net/ipv6/conf/vde0/disable_ipv6");
            theirs.ok("ip addr add 10.0.0.2/24 dev vde0 && ip link set vde0 up");
            theirs
        };
        let (ours, theirs) = match ours_first {
            true => {
                let ours = start_ours();
                ours.ok(":");
                (ours, start_theirs())
            }
            false => {
                let theirs = start_theirs();
                (start_ours(), theirs)
            }
        };
        ours.ping("10.0.0.2");
        let address = ours.ok("ip -br link show vde0 | awk '{ print $3 }'");
        let address = address.trim();
        theirs.ok(&format!(
            "ip neigh replace 10.0.0.1 lladdr {address} dev vde0"
        ));
        for _ in 0..3 {
            kill(Pid::from_raw(worker(&lab, &ours)), Signal::SIGKILL).unwrap();
            ours.ping("10.0.0.2");
        }
        drop((ours, theirs));
    }
}

/// The successor has another Ethernet address, for which a kernel asks only if it saw the carrier
/// go.
#[test]
fn a_peer_that_another_replaces_at_once() {
    need!("ping");
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    for options in [&["-q"][..], &["-q", "--no-panel"]] {
        let start = |address: &str| {
            let peer = lab.vdens(options).args(["--addr", address, &vnl, "sh"]);
            peer.session()
        };
        let session = start("10.0.0.1/24");
        let mut peer = start("10.0.0.2/24");
        for _ in 0..5 {
            session.ping("10.0.0.2");
            let worker = worker(&lab, &peer);
            peer.proc().signal(Signal::SIGKILL);
            wait_until("the worker ends", PATIENCE, || {
                !lab.processes().iter().any(|(pid, _)| *pid == worker)
            });
            peer = start("10.0.0.2/24");
            peer.ok(":");
            session.ok("ping -c 3 -i 0.5 -W 10 10.0.0.2");
        }
    }
}

/// Plugs that are killed leave neither their bridge on the panel nor their pair of ports.
#[test]
fn twenty_plugs_on_the_panel() {
    need!("ping");
    let lab = Lab::new();
    let (cable, switch) = (lab.vnl("ptp", "p"), lab.vnl("switch", "sw"));
    let start_plug = || {
        let plug = lab.vde_plug(["-q", &cable, &switch]).spawn();
        wait_for_switch(&lab);
        plug
    };
    let mut plug = Some(start_plug());
    let start =
        |vnl: &str, address: &str| lab.vdens(["-q", "--addr", address, vnl, "sh"]).session();
    let a = start(&cable, "10.0.0.1/24");
    let b = start(&lab.vnl("vde", "sw"), "10.0.0.2/24");
    b.ping("10.0.0.1");
    holds_no_more(&lab, &a, || {
        for _ in 0..20 {
            if let Some(killed) = plug.take() {
                killed.signal(Signal::SIGKILL);
                killed.wait(PATIENCE);
            }
            plug = Some(start_plug());
            a.ping("10.0.0.2");
        }
    });
    drop((a, b, plug));
}

#[test]
fn a_hundred_switches() {
    need!("ping");
    for options in [&["-q"][..], &["-q", "--no-panel"]] {
        let lab = Lab::new();
        let mut switch = Some(start_switch(&lab, Switch));
        let vnl = lab.vnl("vde", "sw");
        let start = |address: &str| {
            let member = lab.vdens(options).args(["--addr", address, &vnl, "sh"]);
            member.session()
        };
        let (a, b) = (start("10.0.0.1/24"), start("10.0.0.2/24"));
        b.ok(":");
        holds_no_more(&lab, &a, || {
            for _ in 0..50 {
                if let Some((killed, _)) = switch.take() {
                    killed.signal(Signal::SIGKILL);
                    killed.wait(PATIENCE);
                }
                switch = Some(start_switch(&lab, Switch));
                wait_until("carrier", PATIENCE, || {
                    !a.ok("ip link show vde0").contains("NO-CARRIER")
                });
            }
        });
        drop((a, b, switch));
    }
}
