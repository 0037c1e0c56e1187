//! Sessions with names: started, found, entered and stopped.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use vdens_tests::{Lab, PATIENCE, User, need, stretched, wait_until};

/// What `vdectl ls --json` says of the only session.
#[track_caller]
fn only(lab: &Lab) -> Value {
    let text = lab.vdectl(["ls", "--json"]).ok();
    let value = serde_json::from_str(&text);
    let value: Value = value.unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(value.as_array().map(Vec::len), Some(1), "{text}");
    value[0].clone()
}

/// A detached session of this name, with no link.
#[track_caller]
fn start(lab: &Lab, name: &str) {
    lab.vdens(["-d", "--name", name, "no"]).ok();
}

#[test]
fn a_detached_session_lives_until_it_is_stopped() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let started = lab
        .vdens([
            "-d",
            "--name",
            "r1",
            "-H",
            "router",
            "--addr",
            "10.0.0.1/24",
        ])
        .args([&vnl])
        .run();
    // It holds no pipe of the caller's open, and says nothing.
    assert_eq!(
        (started.code(), &*started.stdout),
        (Some(0), ""),
        "{started:#?}"
    );
    let session = only(&lab);
    assert_eq!(session["name"], "r1");
    assert_eq!(session["hostname"], "router");
    assert_eq!(session["command"], serde_json::json!([]));
    let interface = &session["interfaces"][0];
    assert_eq!(interface["name"], "vde0");
    let addresses = interface["addresses"].as_array().unwrap();
    assert!(addresses.contains(&"10.0.0.1/24".into()), "{session:#}");
    let table = lab.vdectl(["ls"]).ok();
    assert!(table.contains("10.0.0.1/24"), "{table}");
    let status = lab.vdectl(["status"]).ok();
    assert!(status.starts_with("r1: vdens "), "{status}");

    let said = lab
        .vdectl(["exec", "r1", "sh", "-c", "hostname; ip -br addr; echo $$"])
        .ok();
    assert!(said.starts_with("router\n"), "{said}");
    assert!(said.contains("10.0.0.1/24"), "{said}");
    let pid = lab.vdectl(["pid", "r1"]).ok();
    assert_eq!(pid.trim(), session["command_pid"].to_string());
    // An address that is added later is shown, too.
    lab.vdectl([
        "exec",
        "r1",
        "ip",
        "addr",
        "add",
        "10.9.9.9/32",
        "dev",
        "vde0",
    ])
    .ok();
    assert!(lab.vdectl(["ls"]).ok().contains("10.9.9.9/32"));

    lab.vdectl(["stop", "r1"]).ok();
    assert_eq!(lab.vdectl(["ls", "--json"]).ok().trim(), "[]");
    lab.vdectl(["exec", "r1", "true"])
        .refused(&["'r1'", "vdectl ls"]);
    wait_until("the cable's path is gone", PATIENCE, || {
        !std::path::Path::new(&lab.path("p")).exists()
    });
}

#[test]
fn a_command_in_a_session_has_its_namespaces_and_capabilities() {
    let lab = Lab::new();
    for options in [&[][..], &["--pid"], &["-s"], &["-s", "--pid"], &["--root"]] {
        let session = lab
            .vdens(["--name", "a", "-H", "inside", "-R", "192.0.2.53"])
            .args(options)
            .args(["null://", "sh"])
            .session();
        let script = "hostname; cat /etc/resolv.conf; grep ^Cap /proc/self/status; id -u; id -g;
            for n in user net uts mnt pid; do readlink /proc/self/ns/$n; done; pwd";
        let inside = session.ok(script);
        let joined = lab.vdectl(["exec", "a", "sh", "-c", script]).ok();
        assert_eq!(inside.trim(), joined.trim(), "{options:?}");
        assert!(inside.contains("nameserver 192.0.2.53"), "{inside}");
        session.exit(0);
    }
}

#[test]
fn a_command_in_a_session_returns_its_status() {
    let lab = Lab::new();
    for options in [&[][..], &["--pid"]] {
        let session = lab
            .vdens(["--name", "a"])
            .args(options)
            .args(["no", "sh"])
            .session();
        session.ok("true");
        let status = |words: &[&str]| lab.vdectl(["exec", "a"]).args(words).run().code();
        assert_eq!(status(&["true"]), Some(0));
        assert_eq!(status(&["sh", "-c", "exit 7"]), Some(7));
        let killed = status(&["sh", "-c", "kill -9 $$"]);
        // A process that becomes the command is killed by the signal itself.
        assert!([None, Some(137)].contains(&killed), "{killed:?}");
        let missing = lab.vdectl(["exec", "a", "no-such-command"]).run();
        assert_eq!(missing.code(), Some(127), "{missing:#?}");
        assert!(missing.stderr.contains("no-such-command"), "{missing:#?}");
        let refused = lab.vdectl(["exec", "a", "/etc/passwd"]).run();
        assert_eq!(refused.code(), Some(126), "{refused:#?}");
        session.exit(0);
    }
}

#[test]
fn names_are_unique_and_errors_are_clear() {
    let lab = Lab::new();
    start(&lab, "r1");
    let holder = only(&lab)["pid"].to_string();
    lab.vdens(["-d", "--name", "r1", "no"]).refused(&[
        "the name 'r1' is in use",
        &holder,
        "vdectl ls",
    ]);
    lab.vdens(["--name", "r1", "no", "true"])
        .refused(&["'r1' is in use"]);
    // The process's id works in place of the name.
    lab.vdectl(["exec", &holder, "true"]).ok();
    for bad in ["", "1", "a b", "-x", "a/b"] {
        lab.vdens([&format!("--name={bad}"), "no", "true"])
            .refused(&["name"]);
    }
    lab.vdens(["-d", "no"]).refused(&["--name"]);
    lab.vdectl(["exec", "r1:vde0", "true"])
        .refused(&["interface"]);
    lab.vdectl(["exec", "r2", "true"])
        .refused(&["'r2'", "vdectl ls"]);
    lab.vdectl(["exec", "lab/r2", "true"])
        .refused(&["lab 'lab'"]);
    lab.vdectl(["exec", "4000000", "true"])
        .refused(&["4000000", "vdectl ls"]);
    lab.vdectl(["stop", "r2"]).refused(&["'r2'"]);
    lab.vdectl(["stop", "r1"]).ok();
    lab.vdectl(["stop", "--all"]).ok();
    // The name is free again.
    start(&lab, "r1");
    lab.vdectl(["stop", "--all"]).ok();
    assert_eq!(lab.vdectl(["ls", "--json"]).ok().trim(), "[]");
}

#[test]
fn a_name_dies_with_its_session() {
    let lab = Lab::new();
    start(&lab, "r1");
    let session = only(&lab);
    let [supervisor, first] = ["pid", "command_pid"].map(|key| session[key].as_i64().unwrap());
    lab.command("kill", ["-9", &supervisor.to_string()]).ok();
    wait_until("the session is gone", PATIENCE, || {
        !std::path::Path::new(&format!("/proc/{first}")).exists()
    });
    lab.vdectl(["exec", "r1", "true"]).refused(&["'r1'"]);
    start(&lab, "r1");
    lab.vdectl(["stop", "r1"]).ok();
}

#[test]
fn another_users_session_is_not_found_and_cannot_be_joined() {
    need!("root");
    let lab = Lab::new();
    start(&lab, "r1");
    let pid = only(&lab)["pid"].to_string();
    let other = || User::other();
    lab.vdectl(["exec", "r1", "true"])
        .by(other())
        .refused(&["'r1'"]);
    lab.vdectl(["stop", &pid]).by(other()).refused(&[&pid]);
    lab.vdectl(["stop", "r1"]).ok();
}

#[test]
fn what_a_session_starts_ends_with_it() {
    let lab = Lab::new();
    let session = lab.vdens(["--pid", "--name", "a", "no", "sh"]).session();
    let numbers = session.ok("sleep 4711 >/dev/null & (sleep 4712 >/dev/null &) ; ps -e | wc -l");
    // It sees itself and what runs beside it, and nothing of the machine.
    assert!(numbers.trim().parse::<u32>().unwrap() < 10, "{numbers}");
    for sleeper in ["sleep 4711", "sleep 4712"] {
        assert!(lab.is_running(sleeper));
    }
    assert_eq!(session.exit(3).code(), Some(3));
    // However soon the command ends, its status is the session's.
    for _ in 0..20 {
        assert_eq!(
            lab.vdens(["--pid", "no", "sh", "-c", "exit 5"])
                .run()
                .code(),
            Some(5)
        );
    }
    for sleeper in ["sleep 4711", "sleep 4712"] {
        assert!(!lab.is_running(sleeper), "{sleeper}");
    }
}

#[test]
fn stop_sends_term_and_then_kill() {
    let lab = Lab::new();
    for options in [&["-d"][..], &["--pid"], &[]] {
        let log = lab.path("log");
        let script = format!(
            "trap 'echo term >> {log}' TERM; echo ready >> {log}; while :; do sleep 0.05; done"
        );
        lab.expect("log");
        let name = ["--name", "a", "no"];
        let command = lab.vdens(options).args(name).args(["sh", "-c", &script]);
        let proc = command.spawn();
        let reads = |what: &str| {
            let text = std::fs::read_to_string(lab.path("log")).unwrap_or_default();
            text.contains(what)
        };
        wait_until("it is ready", PATIENCE, || reads("ready"));
        lab.vdectl(["wait", "a"]).ok();
        lab.vdectl(["stop", "a"]).ok();
        assert!(reads("term"), "{options:?}");
        assert!(!lab.is_running("sleep 0.05"), "{options:?}");
        proc.wait(PATIENCE);
        std::fs::remove_file(&log).unwrap();
    }
}

#[test]
fn a_session_without_a_pid_namespace_is_stopped_with_its_background_jobs() {
    let lab = Lab::new();
    let session = lab.vdens(["--name", "a", "no", "sh"]).session();
    session.ok("sleep 4713 >/dev/null & setsid sh -c 'sleep 4714' >/dev/null &");
    wait_until("both run", PATIENCE, || {
        lab.is_running("sleep 4713") && lab.is_running("sleep 4714")
    });
    lab.vdectl(["stop", "a"]).ok();
    assert!(!lab.is_running("sleep 4713") && !lab.is_running("sleep 4714"));
}

#[test]
fn a_detached_session_that_cannot_start_says_why() {
    let lab = Lab::new();
    lab.vdens(["-d", "--name", "a", "ptp:///nonexistent/p"])
        .refused(&["/nonexistent"]);
    lab.vdens(["-d", "--name", "a", "no", "no-such-command"])
        .run();
    assert_eq!(lab.vdectl(["ls", "--json"]).ok().trim(), "[]");
}

#[test]
fn wait_waits_for_the_session_and_its_carrier() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    lab.vdectl(["wait", "a", "--timeout", "0.1"])
        .refused(&["'a'", "100ms"]);
    let waiting = lab.vdectl(["wait", "a", "--link-up"]).spawn();
    lab.vdens(["-d", "--name", "a", "--up", &vnl]).ok();
    lab.vdectl(["wait", "a"]).ok();
    lab.vdectl(["wait", "a", "--link-up", "--timeout", "0.1"])
        .refused(&["vde0", "carrier"]);
    assert!(waiting.is_running());
    lab.vdens(["-d", "--name", "b", "--up", &vnl]).ok();
    assert!(waiting.wait(PATIENCE).status.success());
    lab.vdectl(["stop", "a", "b"]).ok();
}

#[test]
fn a_command_may_wait_for_carrier() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    lab.vdens(["--wait-carrier=0.1", &vnl, "true"])
        .refused(&["vde0", "carrier", "100ms"]);
    // Both ends start together, and one ping is answered.
    for (options, round) in [(&[][..], 1), (&["--no-panel"], 2), (&["--pid"], 3)] {
        let start = |address: &str, command: &[&str]| {
            lab.vdens(["--wait-carrier", "--addr", address])
                .args(options)
                .args([&vnl])
                .args(command)
                .spawn()
        };
        let far = start("10.0.0.2/24", &["sleep", "60"]);
        let near = start("10.0.0.1/24", &["ping", "-c", "1", "-W", "2", "10.0.0.2"]);
        let output = near.wait(stretched(Duration::from_secs(30)));
        assert!(output.status.success(), "{round}: {output:#?}");
        far.signal(Signal::SIGTERM);
        far.wait(PATIENCE);
    }
}

#[test]
fn a_shell_in_a_session_has_the_terminal() {
    need!("tmux");
    let lab = Lab::new();
    start(&lab, "r1");
    let plain = lab.vdens(["--name", "r2", "no", "sh"]).session();
    plain.ok("true");
    let terminal = lab.tmux();
    let outside = terminal.ask("stty size; readlink /proc/self/ns/net").0;
    let size = outside.lines().next().unwrap().to_owned();
    for name in ["r1", "r2"] {
        // The script goes on reading from the terminal when the shell has ended.
        terminal.type_line(&format!(
            "sh -c 'vdectl enter {name}; read word; echo got $word'"
        ));
        let inside = terminal.ask("stty size; readlink /proc/self/ns/net").0;
        assert!(inside.contains(&size), "{inside}");
        assert_ne!(inside, outside);
        // Job control: a job is interrupted, stopped and continued, and the shell lives on.
        terminal.type_line("set -m");
        terminal.type_line("sleep 1000");
        wait_until("the job runs", PATIENCE, || lab.is_running("sleep 1000"));
        terminal.press("C-z");
        assert!(terminal.ask("jobs").0.contains("sleep 1000"));
        terminal.type_line("fg");
        wait_until("the job goes on", PATIENCE, || lab.is_running("sleep 1000"));
        terminal.press("C-c");
        assert_eq!(terminal.ask("true").1, 0);
        terminal.type_line("exit");
        terminal.type_line("back");
        wait_until("the script reads on", PATIENCE, || {
            terminal.screen().contains("got back")
        });
        assert_eq!(
            terminal.ask("stty size; readlink /proc/self/ns/net").0,
            outside
        );
        terminal.type_line("clear");
    }
    // A command is stopped together with vdectl, and continued.
    terminal.type_line("set -m");
    terminal.type_line("vdectl exec r1 sleep 1001");
    wait_until("it runs", PATIENCE, || lab.is_running("sleep 1001"));
    terminal.press("C-z");
    assert!(terminal.ask("jobs").0.contains("vdectl exec r1"));
    terminal.type_line("fg");
    wait_until("it goes on", PATIENCE, || lab.is_running("sleep 1001"));
    terminal.press("C-c");
    assert_eq!(terminal.ask("true").1, 0);
    wait_until("it is interrupted", PATIENCE, || {
        !lab.is_running("sleep 1001")
    });
    lab.vdectl(["stop", "r1"]).ok();
    plain.exit(0);
}
