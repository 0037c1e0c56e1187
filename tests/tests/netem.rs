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
