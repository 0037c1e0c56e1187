//! Many sessions of one user beside each other: they start, they find each other, and they end
//! without a complaint.

use nix::sys::signal::Signal;
use vdens_tests::{Lab, PATIENCE, Proc, wait_until};

/// How many sessions there are.
const MANY: usize = 50;

/// How many sessions have started their command, which says so.
fn commands(sessions: &[Proc<'_>]) -> usize {
    let runs = |session: &&Proc<'_>| session.stdout().contains("runs");
    sessions.iter().filter(runs).count()
}

/// Ends all sessions at once, and checks that they end and what they log.
#[track_caller]
fn stop(sessions: Vec<Proc<'_>>) {
    for session in &sessions {
        session.signal(Signal::SIGTERM);
    }
    for session in sessions {
        let output = session.wait(4 * PATIENCE);
        assert_eq!(output.code(), Some(128 + 15), "{}", output.stderr);
        assert!(!output.stderr.contains("[ERROR]"), "{}", output.stderr);
    }
}

const COMMAND: [&str; 4] = ["--", "sh", "-c", "echo runs; exec sleep 1000"];

#[test]
fn many_on_a_switch_start_and_end_together() {
    let lab = Lab::new();
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let vnl = lab.vnl("vde", "sw");
    let start = |_| lab.vdens(["-m", &vnl]).args(COMMAND).spawn();
    let sessions: Vec<_> = (0..MANY).map(start).collect();
    wait_until("all commands", 4 * PATIENCE, || commands(&sessions) == MANY);
    let ends = [1, 2].map(|n| {
        let address = format!("10.0.0.{n}/24");
        lab.vdens(["--addr", &address, &vnl, "sh"]).session()
    });
    ends[0].ping("10.0.0.2");
    drop(ends);
    stop(sessions);
    let output = switch.terminate();
    assert!(!output.stderr.contains("[ERROR]"), "{}", output.stderr);
}

#[test]
fn a_chain_of_many_ends_without_an_error() {
    let lab = Lab::new();
    let start = |n: usize| {
        let ends = [n, n + 1].map(|n| lab.vnl("ptp", &format!("p{n}")));
        lab.vdens(["-m"]).args(ends).args(COMMAND).spawn()
    };
    let sessions: Vec<_> = (0..MANY).map(start).collect();
    wait_until("all commands", 4 * PATIENCE, || commands(&sessions) == MANY);
    stop(sessions);
}

#[test]
fn what_many_killed_sessions_leave_goes_with_the_last() {
    let lab = Lab::new();
    let lives = lab.vdens(["null://", "sleep", "1000"]).spawn();
    wait_until("the command", PATIENCE, || lab.is_running("sleep 1000"));
    let start = |_| lab.vdens(["-m", "null://"]).args(COMMAND).spawn();
    let sessions: Vec<_> = (0..MANY / 5).map(start).collect();
    wait_until("all commands", 4 * PATIENCE, || {
        commands(&sessions) == sessions.len()
    });
    for session in sessions {
        session.signal(Signal::SIGKILL);
        session.wait(PATIENCE);
    }
    assert_eq!(lives.terminate().code(), Some(128 + 15));
    // The lab's end checks that nothing is left in the runtime directory.
    let run = lab.dir().with_file_name("run");
    let left: Vec<_> = std::fs::read_dir(run).into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
