//! What a plugin's failure costs: its link, for a while, and nothing else.
//!
//! `test_faulty://FILE` (tests/plugins/faulty) fails as its file says.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, Session, need, stretched, wait_until};

use crate::status::{link, status};

/// How long until a plugin that hangs is found out, and its link is back.
const MENDING: Duration = Duration::from_secs(120);

const PLACES: [&str; 3] = ["open", "recv", "send"];

fn has_carrier(session: &Session<'_>, interface: &str) -> bool {
    let link = session.ok(&format!("ip link show {interface}"));
    !link.contains("NO-CARRIER")
}

/// A session with three faulty links, one for each place to fail in, and one that is sound; and a
/// peer of that.
fn session<'lab>(lab: &'lab Lab, prefix: &str, options: &str) -> (Session<'lab>, Session<'lab>) {
    let sound = lab.vnl("ptp", "p");
    let peer = lab.vdens(["--addr", "10.0.3.2/24", &sound, "sh"]).session();
    let links = PLACES.map(|place| {
        lab.write(place, "");
        lab.vnl("test_faulty", place)
    });
    let addresses: String = (0..4)
        .map(|n| format!(" --addr {n}:10.0.{n}.1/24"))
        .collect();
    let vnls = format!("{} {sound}", links.join(" "));
    let start = format!("{prefix} exec vdens {options} --multi{addresses} {vnls} -- sh");
    (lab.sh(&start).session(), peer)
}

/// Makes the links fail, then good again.
fn fail(how: &str, prefix: &str, options: &str) {
    need!("ping");
    let lab = Lab::new();
    let (session, peer) = session(&lab, prefix, options);
    let shell = session.ok("echo $$");
    for (n, _) in PLACES.iter().enumerate() {
        wait_until("carrier", MENDING, || {
            has_carrier(&session, &format!("vde{n}"))
        });
    }
    session.ping("10.0.3.2");
    // Something to send, all the time.
    session.ok(
        "(while :; do ping -c 1 -W 1 10.0.2.9; sleep 0.1; done) >/dev/null 2>&1 & echo $! >pinging",
    );
    lab.expect("pinging");
    for (n, place) in PLACES.iter().enumerate() {
        lab.write(place, format!("{place} {how}"));
        wait_until(&format!("{place} {how}: no carrier"), MENDING, || {
            !has_carrier(&session, &format!("vde{n}"))
        });
        peer.ok("ping -c 1 -W 10 10.0.3.1");
    }
    for place in PLACES {
        lab.write(place, "");
    }
    for (n, place) in PLACES.iter().enumerate() {
        // For good: not only between two failures.
        let mut since = None;
        wait_until(
            &format!("{place} {how}: carrier"),
            MENDING,
            || match has_carrier(&session, &format!("vde{n}")) {
                true => {
                    let since: &mut Instant = since.get_or_insert_with(Instant::now);
                    since.elapsed() > Duration::from_millis(1500)
                }
                false => {
                    since = None;
                    false
                }
            },
        );
    }
    session.ok("kill $(cat pinging)");
    assert_eq!(session.ok("echo $$"), shell, "the command is another one");
    session.ok("ip -o addr show vde2 | grep 10.0.2.1/24");
    peer.ok("ping -c 1 -W 10 10.0.3.1");
    assert_eq!(session.exit(7).code(), Some(7));
}

#[test]
fn a_panic() {
    fail("panic", "", "");
}

#[test]
fn an_abort() {
    fail("abort", "", "");
}

#[test]
fn a_segmentation_fault_without_the_panel() {
    fail("segfault", "", "--no-panel");
}

#[test]
fn a_loop_without_end() {
    fail("loop", "", "--no-panel");
}

#[test]
fn a_sleep_without_end() {
    fail("sleep", "", "");
}

#[test]
fn memory_without_end() {
    fail("allocate", "ulimit -v 500000;", "");
}

#[test]
fn a_broken_link() {
    fail("error", "", "");
}

#[test]
fn at_the_start_it_is_told_in_one_line() {
    let lab = Lab::new();
    let vnl = lab.vnl("test_faulty", "mood");
    for (how, words) in [
        ("panic", "panicked in open"),
        ("abort", "SIGABRT"),
        ("segfault", "SIGSEGV"),
        ("error", "told to break"),
    ] {
        lab.write("mood", format!("open {how}"));
        let output = lab.vdens(["-q", &vnl, "true"]).run();
        let last = output.stderr.lines().last().unwrap_or_default();
        assert_eq!(output.code(), Some(125), "{output:?}");
        assert!(
            last.starts_with("vdens: ") && last.contains(words),
            "{output:?}"
        );
    }
    // A panic ends nothing but the opening of the plug's end.
    lab.write("mood", "open panic");
    let output = lab.vde_plug([&vnl, "null://"]).run();
    assert_eq!(output.code(), Some(1), "{output:?}");
    assert!(output.stderr.contains("panicked in open"), "{output:?}");
}

#[test]
fn a_plugin_that_never_opens_its_link_is_not_waited_for_for_ever() {
    let lab = Lab::new();
    let vnl = lab.vnl("test_faulty", "mood");
    lab.write("mood", "open sleep");
    let start = Instant::now();
    lab.vdens(["--multi", "null://", &vnl, "--", "true"])
        .refused(&["vde1", "within 10s"]);
    assert!(start.elapsed() < stretched(Duration::from_secs(15)));
}

#[test]
fn a_plug_outlives_its_plugins_panic() {
    let lab = Lab::new();
    let mood = lab.write("mood", "");
    let vnl = lab.vnl("test_faulty", "mood");
    let plug = lab.vde_plug([&vnl, &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let pid = plug.pid().cast_unsigned();
    let a = lab
        .vdens([
            "--no-panel",
            "--addr",
            "10.0.0.1/24",
            &lab.vnl("vde", "sw"),
            "sh",
        ])
        .session();
    let b = lab
        .vdens([
            "--no-panel",
            "--addr",
            "10.0.0.2/24",
            &lab.vnl("vde", "sw"),
            "sh",
        ])
        .session();
    for how in ["panic", "error"] {
        fs::write(&mood, format!("recv {how}")).unwrap();
        wait_until("the end is down", MENDING, || {
            link(&status(&lab), pid, 0)["state"] == "no carrier"
        });
        // The switch at its other end goes on.
        a.ping("10.0.0.2");
        fs::write(&mood, "").unwrap();
        wait_until("the end is up again", MENDING, || {
            link(&status(&lab), pid, 0)["state"] == "up"
        });
    }
    drop((a, b));
    assert_eq!(plug.terminate().code(), Some(128 + 15));
}

#[test]
fn a_plug_outlives_its_panel_service() {
    let lab = Lab::new();
    let plug = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let mut processes = lab.processes().into_iter();
    let service = processes.find(|(pid, _)| *pid != plug.pid());
    let (service, _) = service.expect("it has a service");
    signal(service.cast_unsigned(), Signal::SIGKILL);
    wait_until("it is collected", MENDING, || lab.processes().len() == 1);
    let start = |address: &str| {
        let vnl = lab.vnl("vde", "sw");
        lab.vdens(["--addr", address, &vnl, "sh"]).session()
    };
    let (a, b) = (start("10.0.0.1/24"), start("10.0.0.2/24"));
    a.ping("10.0.0.2");
    let text = lab.vdectl(["status"]).ok();
    assert!(!text.contains("kernel"), "{text}");
    drop((a, b));
    assert_eq!(plug.terminate().code(), Some(128 + 15));
}

#[test]
fn a_signal_ends_a_plug_whose_plugin_hangs() {
    let lab = Lab::new();
    let mood = lab.write("mood", "");
    let vnl = lab.vnl("test_faulty", "mood");
    for (how, signalled) in [
        ("recv sleep", Signal::SIGTERM),
        ("recv loop", Signal::SIGINT),
        ("open sleep", Signal::SIGTERM),
        ("open loop", Signal::SIGHUP),
    ] {
        fs::write(&mood, if how.starts_with("open") { how } else { "" }).unwrap();
        let plug = lab.vde_plug(["-p", "pid", &vnl, "null://"]).spawn();
        if how.starts_with("recv") {
            lab.wait_for("pid");
            fs::write(&mood, how).unwrap();
        }
        std::thread::sleep(Duration::from_millis(500));
        plug.signal(signalled);
        let output = plug.wait(stretched(Duration::from_secs(4)));
        let code = Some(128 + signalled as i32);
        assert_eq!(output.code(), code, "{how}: {output:?}");
        assert!(
            output.stderr.contains("a plugin hangs"),
            "{how}: {output:?}"
        );
        assert!(!lab.dir().join("pid").exists(), "{how}");
        assert_eq!(status(&lab)["processes"], serde_json::json!([]), "{how}");
    }
    // The directory of its socket for that goes with the next one's.
    lab.vdens(["null://", "true"]).ok();
}

#[test]
fn a_daemon_that_is_not_open_yet_goes_with_its_command() {
    let lab = Lab::new();
    lab.write("mood", "open sleep");
    let vnl = lab.vnl("test_faulty", "mood");
    let command = lab.vde_plug(["-d", &vnl, "null://"]).spawn();
    let processes = || lab.processes().len();
    wait_until("the daemon", MENDING, || processes() > 1);
    std::thread::sleep(Duration::from_millis(500));
    command.signal(Signal::SIGINT);
    command.wait(stretched(Duration::from_secs(4)));
    wait_until("the end of the daemon", MENDING, || processes() == 0);
}

#[test]
fn a_status_that_cannot_be_told_costs_the_status_only() {
    let lab = Lab::new();
    lab.write("mood", "");
    let session = lab.vdens([&lab.vnl("test_faulty", "mood"), "sh"]).session();
    session.ok(":");
    let pid = session.proc().pid().cast_unsigned();
    let told = || link(&status(&lab), pid, 0);
    assert_eq!(told()["reason"], "it is told to be good");
    let worker = told()["worker"].clone();
    lab.write("mood", "status panic");
    assert_eq!(told()["state"], "up");
    assert_eq!(told()["worker"], worker);
    // One that is never told makes the worker hang.
    lab.write("mood", "status sleep");
    assert_eq!(told()["state"], "silent");
    lab.write("mood", "");
    wait_until("another worker", MENDING, || {
        told()["state"] == "up" && told()["worker"] != worker
    });
}

/// The worker of a session's only link.
fn worker(lab: &Lab, session: &Session<'_>) -> u32 {
    let pid = session.proc().pid().cast_unsigned();
    let worker = link(&status(lab), pid, 0)["worker"].as_u64();
    worker.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0)
}

fn signal(process: u32, signal: Signal) {
    let sent = kill(Pid::from_raw(process.cast_signed()), signal);
    assert_eq!(sent, Ok(()), "{process}");
}

#[test]
fn a_worker_that_is_stopped_is_replaced_after_a_while() {
    for options in [&[][..], &["--no-panel"]] {
        let lab = Lab::new();
        let vnl = lab.vnl("ptp", "p");
        let start = |address: &str| {
            let command = lab.vdens(options);
            command.args(["--addr", address, &vnl, "sh"]).session()
        };
        let a = start("10.0.0.1/24");
        let b = start("10.0.0.2/24");
        b.ping("10.0.0.1");
        let stopped = worker(&lab, &a);
        // For three seconds it does not matter.
        signal(stopped, Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(3));
        signal(stopped, Signal::SIGCONT);
        b.ping("10.0.0.1");
        assert_eq!(worker(&lab, &a), stopped, "{options:?}");
        assert_eq!(a.proc().stderr(), "", "{options:?}");

        a.ok("ip monitor link dev vde0 >links 2>/dev/null & echo $! >monitor");
        lab.expect("links");
        lab.expect("monitor");
        signal(stopped, Signal::SIGSTOP);
        let pid = a.proc().pid().cast_unsigned();
        assert_eq!(
            link(&status(&lab), pid, 0)["state"],
            "silent",
            "{options:?}"
        );
        wait_until("another worker", MENDING, || {
            !matches!(worker(&lab, &a), 0) && worker(&lab, &a) != stopped
        });
        assert!(!std::path::Path::new(&format!("/proc/{stopped}")).exists());
        wait_until("it answers again", MENDING, || {
            b.run("ping -c 1 -W 1 10.0.0.1").0 == 0
        });
        // It is away too briefly for the flag NO-CARRIER, which the kernel takes its time for.
        let is_down = |line: &str| line.contains("vde0") && !line.contains("LOWER_UP");
        wait_until("the monitor tells that it was down", PATIENCE, || {
            a.ok("cat links").lines().any(is_down)
        });
        a.ok("kill $(cat monitor)");
        let link = link(&status(&lab), pid, 0);
        assert_eq!(link["restarts"], 1, "{link}");
        assert!(link["last_end"].to_string().contains("SIGKILL"), "{link}");
    }
}

#[test]
fn who_was_killed_can_be_replaced_at_once() {
    for options in ["", "[seqpacket]"] {
        let lab = Lab::new();
        let vnl = format!("{}{options}", lab.vnl("ptp", "p"));
        let start = |address: &str| {
            let session = lab.vdens(["-q", "--addr", address, &vnl, "sh"]).session();
            session.ok(":");
            session
        };
        let mut ends = ["10.0.0.1/24", "10.0.0.2/24"].map(|address| (address, start(address)));
        for turn in 0..8 {
            let (address, end) = &mut ends[turn % 2];
            let worker = worker(&lab, end);
            // However long its worker takes to notice.
            let late = (turn >= 4).then(|| {
                signal(worker, Signal::SIGSTOP);
                lab.sh(&format!("sleep 0.2; kill -CONT {worker}")).spawn()
            });
            end.proc().signal(Signal::SIGKILL);
            *end = start(address);
            if let Some(late) = late {
                assert_eq!(late.wait(PATIENCE).code(), Some(0));
            }
        }
        let [(_, one), (_, other)] = &ends;
        one.ping("10.0.0.2");
        other.ping("10.0.0.1");
        // A third end is one too many all the same.
        lab.vdens([&vnl, "true"]).refused(&["two ends already"]);
    }
}
