//! `netem://KEYS{VNL}`: what the impairments do to real traffic.

use std::time::Duration;

use vdens_tests::{Lab, PATIENCE, Session, need, stretched, wait_until};

/// Two ends of a cable: A's frames are impaired by `keys`, and nothing else is on the wire.
fn cable<'lab>(lab: &'lab Lab, name: &str, keys: &str) -> (Session<'lab>, Session<'lab>) {
    let wire = lab.vnl("ptp", name);
    let impaired = format!("netem://{keys}{{{wire}}}");
    let start = |vnl: &str, number: u8| {
        let session = lab.vdens([vnl, "sh"]).session();
        session.ok("echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6");
        session.ok(&format!(
            "ip link set vde0 address 02:00:00:00:00:0{number}"
        ));
        session.address("vde0", &format!("10.0.0.{number}/24"));
        let other = 3 - number;
        session.ok(&format!(
            "ip neigh add 10.0.0.{other} lladdr 02:00:00:00:00:0{other} dev vde0"
        ));
        session
    };
    (start(&impaired, 1), start(&wire, 2))
}

/// Waits until a session's interface has carrier.
fn carrier(session: &Session<'_>) {
    wait_until("carrier", PATIENCE, || {
        session.ok("ip link show vde0").contains("LOWER_UP")
    });
}

/// Receives numbered datagrams until one says "end", and prints the others.
const RECEIVE: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
s.bind(('10.0.0.2', 5000))
open(sys.argv[1], 'w')
while (text := s.recv(100).decode()) != 'end': print(text, end=' ')
"#;

/// Sends so many numbered datagrams, one each millisecond, and "end" until nobody listens.
const SEND: &str = r#"
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(('10.0.0.2', 5000))
for number in range(int(sys.argv[1])):
    s.send(str(number).encode())
    time.sleep(0.001)
time.sleep(1)
try:
    while True:
        s.send(b'end')
        time.sleep(0.05)
except ConnectionRefusedError: pass
"#;

/// Sends `count` datagrams from A to B and returns the numbers of those that came, in order.
fn received(lab: &Lab, name: &str, keys: &str, count: u32) -> Vec<u32> {
    let (a, b) = cable(lab, name, keys);
    let receive = lab.write("receive.py", RECEIVE);
    let send = lab.write("send.py", SEND);
    let ready = format!("{name}-ready");
    lab.expect(&ready);
    carrier(&a);
    b.start(&format!("python3 {receive} {}", lab.path(&ready)));
    lab.wait_for(&ready);
    let limit = stretched(Duration::from_secs(60));
    let (status, output) = a.run_within(limit, &format!("python3 {send} {count}"));
    assert_eq!(status, 0, "{output}");
    let (status, output) = b.finish(limit);
    assert_eq!(status, 0, "{output}");
    let words = output.split_whitespace();
    let numbers: Result<_, std::num::ParseIntError> = words.map(str::parse).collect();
    numbers.unwrap_or_else(|error| panic!("{error}: {output}"))
}

#[test]
fn a_delay_is_that_long_in_its_direction() {
    let lab = Lab::new();
    for (keys, milliseconds) in [
        ("delay=100ms", 200.0),
        ("tx.delay=100ms", 100.0),
        ("rx.delay=100ms/tx.delay=50ms", 150.0),
    ] {
        let (a, _b) = cable(&lab, &format!("{milliseconds}"), keys);
        carrier(&a);
        let pings = a.ok("ping -c 3 -i 0.3 -w 60 10.0.0.2");
        let times: Vec<f64> = pings
            .lines()
            .filter_map(|line| {
                line.split_once("time=")?
                    .1
                    .strip_suffix(" ms")?
                    .parse()
                    .ok()
            })
            .collect();
        assert_eq!(times.len(), 3, "{pings}");
        let shortest = times.into_iter().fold(f64::MAX, f64::min);
        // Never less; more only on a busy machine.
        let limit = stretched(Duration::from_millis(50)).as_secs_f64() * 1e3;
        assert!(
            (milliseconds..milliseconds + limit).contains(&shortest),
            "{keys}: {pings}"
        );
    }
}

#[test]
fn the_same_seed_loses_the_same_datagrams() {
    need!("python3");
    let lab = Lab::new();
    let first = received(&lab, "first", "loss=10%/seed=7", 500);
    assert!((400..490).contains(&first.len()), "{}", first.len());
    let delayed = "loss=10%/seed=7/delay=20ms/jitter=5ms/ordered";
    assert_eq!(received(&lab, "second", delayed, 500), first);
    assert_ne!(received(&lab, "third", "loss=10%/seed=8", 500), first);
    // In the other direction nothing is lost.
    let all: Vec<u32> = (0..500).collect();
    assert_eq!(received(&lab, "fourth", "rx.loss=10%/seed=7", 500), all);
}

#[test]
fn duplicates_and_reordering_are_seen_as_such() {
    need!("python3");
    let lab = Lab::new();
    let twice = received(&lab, "twice", "duplicate=20%/seed=1", 300);
    assert!((330..390).contains(&twice.len()), "{}", twice.len());
    assert!(twice.is_sorted());
    let overtaken = received(&lab, "over", "delay=30ms/reorder=20%/seed=1", 300);
    assert_eq!(overtaken.len(), 300);
    assert!(!overtaken.is_sorted());
}

#[test]
fn tcp_repairs_whatever_is_done_to_it() {
    need!("socat");
    let lab = Lab::new();
    let bad = "loss=1%/duplicate=1%/corrupt=1%/delay=2ms/jitter=1ms/reorder=5%";
    for (name, keys) in [("late", "delay=5ms"), ("bad", bad)] {
        let (a, b) = cable(&lab, name, keys);
        a.send_file(&b, "10.0.0.2", 3);
        b.send_file(&a, "10.0.0.1", 3);
    }
}

#[test]
fn a_rate_is_not_exceeded() {
    need!("iperf3");
    let lab = Lab::new();
    for (name, keys) in [("slow", "rate=20mbit"), ("fast", "rate=1gbit")] {
        let (a, b) = cable(&lab, name, keys);
        carrier(&a);
        b.start("iperf3 -s -1");
        let limit = stretched(Duration::from_secs(60));
        let mut report = String::new();
        wait_until("the server listens", limit, || {
            let client = "iperf3 -c 10.0.0.2 -t 3 -f m";
            let (status, output) = a.run_within(limit, client);
            report = output;
            status == 0
        });
        assert_eq!(b.finish(limit).0, 0);
        let line = report.lines().find(|line| line.contains("receiver"));
        let words: Vec<_> = line.expect(&report).split_whitespace().collect();
        let unit = words.iter().position(|word| *word == "Mbits/sec");
        let seen: f64 = words[unit.expect(&report) - 1].parse().expect(&report);
        let most = if name == "slow" { 20.0 } else { 1000.0 };
        assert!(seen <= most, "{keys}: {report}");
        // A busy machine may not be able to fill a fast line.
        assert!(name != "slow" || seen > most / 2.0, "{keys}: {report}");
    }
}

#[test]
fn status_shows_what_became_of_the_frames() {
    let lab = Lab::new();
    let (a, _b) = cable(&lab, "cable", "tx.loss=100%/seed=42");
    carrier(&a);
    a.run("ping -c 1 -W 1 10.0.0.2");
    let status = lab.vdectl(["status"]).ok();
    assert!(status.contains("seed") && status.contains("42"), "{status}");
    assert!(status.contains("lost 1,"), "{status}");
}

#[test]
fn without_a_far_end_there_is_no_carrier() {
    let lab = Lab::new();
    let wire = lab.vnl("ptp", "alone");
    let vnl = format!("netem://delay=1ms{{{wire}}}");
    let alone = lab.vdens(["--up", &vnl, "sh"]).session();
    wait_until("no carrier", PATIENCE, || {
        alone.ok("ip link show vde0").contains("NO-CARRIER")
    });
    let _other = lab.vdens([&wire, "sh"]).session();
    carrier(&alone);
}

#[test]
fn bad_keys_are_refused() {
    let lab = Lab::new();
    for (vnl, words) in [
        ("netem://delay=50{null://}", "write a time"),
        ("netem://los=1%{null://}", "unknown key 'los'"),
        ("netem://delay=1ms", "names no network"),
        ("netem://loss=1%{nosuch://}", "nosuch"),
    ] {
        lab.vdens([vnl, "true"]).refused(&[words]);
    }
}

/// The time of the fastest of three pings, in milliseconds.
fn round_trip(session: &Session<'_>) -> f64 {
    let pings = session.ok("ping -c 3 -i 0.2 -w 60 10.0.0.2");
    let times = pings.split("time=").skip(1);
    let times = times.filter_map(|text| text.split(' ').next()?.parse().ok());
    times.fold(f64::MAX, f64::min)
}

#[test]
fn impairments_change_while_the_link_runs() {
    let lab = Lab::new();
    let (a, _b) = cable(&lab, "cable", "seed=1");
    carrier(&a);
    let link = format!("{}:vde0", a.proc().pid());
    let set = |words: &[&str]| lab.vdectl(["link", "set", &link]).args(words);
    // Never less than the delay; more only on a busy machine.
    let least = stretched(Duration::from_millis(50)).as_secs_f64() * 1e3;
    assert!(round_trip(&a) < least);
    set(&["delay=100ms", "jitter=1ms", "ordered"]).ok();
    let seen = round_trip(&a);
    assert!((198.0..200.0 + least).contains(&seen), "{seen} ms");
    // A key for one direction goes before the other, and one for both takes its place.
    set(&["rx.delay=0s", "jitter=", "ordered="]).ok();
    let seen = round_trip(&a);
    assert!((100.0..100.0 + least).contains(&seen), "{seen} ms");
    set(&["loss=100%"]).ok();
    assert_ne!(a.run("ping -c 2 -i 0.2 -W 1 10.0.0.2").0, 0);
    let shown = lab.vdectl(["link", "show", &link]).ok();
    let keys = format!("{link}  up delay=100ms loss=100% rx.delay=0s seed=1");
    assert!(shown.starts_with(&keys), "{shown}");
    assert!(shown.contains("lost 2,"), "{shown}");
    let json = lab.vdectl(["link", "show", "--json"]).ok();
    assert!(json.contains(r#""loss": "100%""#), "{json}");
    let status = lab.vdectl(["status"]).ok();
    assert!(status.contains("delay=100ms"), "{status}");
    // Whatever is wrong, nothing is changed.
    for (words, why) in [
        (["delay=5ms", "delai=1ms"], "unknown key 'delai'"),
        (["delay=5ms", "loss=1"], "bad value '1' for key 'loss'"),
        (
            ["delay=5ms", "gap=2"],
            "'gap' has no meaning without 'reorder'",
        ),
    ] {
        set(&words).refused(&["cannot change", why]);
    }
    assert_eq!(lab.vdectl(["link", "show", &link]).ok(), shown);
    lab.vdectl(["link", "set", &link, "--replace"]).ok();
    assert!(round_trip(&a) < least);
}

#[test]
fn a_link_that_is_down_has_no_carrier_at_either_end() {
    let lab = Lab::new();
    let (a, b) = cable(&lab, "cable", "delay=1ms");
    carrier(&a);
    carrier(&b);
    let link = a.proc().pid().to_string();
    lab.vdectl(["link", "down", &link]).ok();
    for end in [&a, &b] {
        wait_until("no carrier", PATIENCE, || {
            end.ok("ip link show vde0").contains("NO-CARRIER")
        });
    }
    let shown = lab.vdectl(["link", "show"]).ok();
    assert!(shown.contains(":vde0  down delay=1ms"), "{shown}");
    lab.vdectl(["link", "up", &link]).ok();
    carrier(&a);
    carrier(&b);
    a.ping("10.0.0.2");
}

#[test]
fn a_slow_rate_that_was_set_by_mistake_delays_nothing_once_it_is_mended() {
    let lab = Lab::new();
    let (a, _b) = cable(&lab, "cable", "rate=1kbit");
    carrier(&a);
    // Eight seconds for each, one after the other.
    a.run("ping -c 5 -i 0.01 -s 1000 -w 1 10.0.0.2");
    let link = format!("{}:vde0", a.proc().pid());
    lab.vdectl(["link", "set", &link, "rate=1gbit"]).ok();
    a.ok("ping -c 1 -w 3 10.0.0.2");
}

#[test]
fn what_cannot_be_changed_is_said() {
    let lab = Lab::new();
    let plain = lab.vdens([&lab.vnl("ptp", "plain"), "sh"]).session();
    plain.ok("true");
    let link = format!("{}:vde0", plain.proc().pid());
    lab.vdectl(["link", "set", &link, "delay=1ms"]).refused(&[
        "has no link through netem://",
        "start it with netem://{VNL}",
    ]);
    assert_eq!(lab.vdectl(["link", "show"]).ok(), "");
    lab.vdectl(["link", "set", &link]).refused(&["KEY=VALUE"]);
    // Without an interface's name, one of several links is not meant.
    let (one, two) = (lab.vnl("ptp", "one"), lab.vnl("ptp", "two"));
    let [one, two] = [one, two].map(|vnl| format!("netem://delay=1ms{{netem://loss=1%{{{vnl}}}}}"));
    let both = lab.vdens(["--multi", &one, &two, "--", "sh"]).session();
    both.ok("true");
    let pid = both.proc().pid();
    lab.vdectl(["link", "down", &pid.to_string()])
        .refused(&["more than one link", &format!("{pid}:vde0, {pid}:vde1")]);
    // Of links within each other, the outermost is meant.
    let shown = lab.vdectl(["link", "show", &format!("{pid}:vde1")]).ok();
    assert!(
        shown.starts_with(&format!("{pid}:vde1  up delay=1ms\n")),
        "{shown}"
    );
}

#[test]
fn a_worker_that_is_killed_leaves_no_socket_behind() {
    let lab = Lab::new();
    let (a, b) = cable(&lab, "cable", "delay=1ms");
    carrier(&a);
    let sockets = || {
        let found = lab
            .sh("ls -d \"$XDG_RUNTIME_DIR\"/vdens-netem-*")
            .run()
            .stdout;
        found.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let before = sockets();
    assert_eq!(before.len(), 1, "{before:?}");
    let worker = before[0].rsplit('-').nth(1).unwrap();
    lab.sh(&format!("kill -9 {worker}")).ok();
    wait_until("the worker is replaced", PATIENCE, || {
        let now = sockets();
        now.len() == 1 && now != before
    });
    carrier(&b);
    a.ping("10.0.0.2");
    drop((a, b));
    assert!(sockets().is_empty());
}
