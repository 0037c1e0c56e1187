//! Parts of `nat://` that are killed.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, children, name, need, stretched, wait_until};

use crate::nat_internet::{Internet, proxy};

/// The first child of a process whose program has a name.
fn child(of: i32, program: &str) -> Option<i32> {
    children(of)
        .into_iter()
        .find(|&pid| name(pid).as_deref() == Some(program))
}

/// How many processes and directories there are of gateways, in a lab with one session.
fn parts(lab: &Lab) -> (usize, usize) {
    let processes = lab.processes();
    let of_us = |line: &str| line.contains("vdens") && !line.contains("python3");
    let processes = processes.iter().filter(|(_, line)| of_us(line)).count();
    let entries = fs::read_dir(lab.aside("run"))
        .into_iter()
        .flatten()
        .flatten();
    let directories = entries
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("vdens-nat-")
        })
        .count();
    (processes, directories)
}

#[test]
fn whatever_is_killed_comes_back() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    for options in [&["--auto"][..], &["--no-panel", "--auto"]] {
        let session = lab
            .vdens(options)
            .args(["nat://", "sh"])
            .inside(&net.host)
            .session();
        let works = || {
            ["198.51.100.1", "2001:db8::1"]
                .iter()
                .all(|address| session.run(&net.who(address)).1.contains("you are"))
        };
        wait_until("both families work", PATIENCE, works);
        let before = parts(&lab);
        let outside = || child(proxy(&lab), "vdens");
        let victims: [(&str, &dyn Fn() -> Option<i32>); 5] = [
            ("proxy", &|| Some(proxy(&lab))),
            ("gateway's session", &outside),
            ("gateway's worker", &|| child(outside()?, "vdens")),
            ("gateway", &|| child(outside()?, "vdens-nat")),
            ("worker", &|| child(session.proc().pid(), "vdens")),
        ];
        for (what, find) in victims {
            let pid = find().unwrap_or_else(|| panic!("no {what}: {:?}", lab.processes()));
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            wait_until(
                &format!("connections work without the {what}"),
                PATIENCE,
                works,
            );
            assert_eq!(session.ok("cat /sys/class/net/vde0/carrier").trim(), "1");
            // One of each, and nothing of the one before.
            wait_until(&format!("what the {what} had is gone"), PATIENCE, || {
                parts(&lab) == before
            });
        }
        assert_eq!(session.exit(0).code(), Some(0));
    }
}

/// What nobody was left to remove, the next link removes.
#[test]
fn a_link_that_is_killed_with_its_proxy_leaves_nothing() {
    need!("root");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let session = lab
        .vdens(["--auto", "nat://", "sleep", "1000"])
        .inside(&net.host)
        .spawn();
    wait_until("the command runs", PATIENCE, || {
        lab.is_running("sleep 1000")
    });
    let victims = [
        session.pid(),
        child(session.pid(), "vdens").expect("a worker"),
        proxy(&lab),
    ];
    // Together: none that is left sees another one's end and cleans up.
    let stop = |signal| victims.map(|pid| kill(Pid::from_raw(pid), signal).unwrap());
    stop(Signal::SIGSTOP);
    stop(Signal::SIGKILL);
    session.wait(PATIENCE);
    let other = || {
        let vdens = lab.vdens(["nat://", "true"]);
        vdens.inside(&net.host).ok();
    };
    wait_until("nothing is left", PATIENCE, || {
        other();
        parts(&lab) == (0, 0)
    });
}

#[test]
fn a_hundred_starts_and_kills_leave_nothing() {
    need!("root");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    for round in 0..20 {
        let sessions: Vec<_> = (0..5)
            .map(|_| {
                // The command ends by itself: whoever kills vdens has to end it.
                lab.vdens(["--auto", "nat://", "sleep", "1"])
                    .inside(&net.host)
                    .spawn()
            })
            .collect();
        for (number, session) in sessions.iter().enumerate() {
            // From before there is a worker until all of it runs.
            let moment = Duration::from_millis(fastrand::u64(0..25) + 5 * round);
            sleep(moment);
            if number % 2 == 0 || session.is_running() {
                session.signal(Signal::SIGKILL);
            }
        }
    }
    // Whoever comes next removes the files of those that were killed.
    let next = || lab.vdens(["null://", "true"]).inside(&net.host).ok();
    wait_until(
        "nothing is left",
        stretched(Duration::from_secs(30)),
        || {
            next();
            parts(&lab) == (0, 0)
        },
    );
}
