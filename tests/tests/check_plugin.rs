//! `vdectl plugin check`: the stock plugins pass it, and each fault is found where it is.

use std::time::Duration;

use serde_json::Value;
use vdens_tests::{Lab, Output, becomes_true, need, target};

/// How long a report may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

fn check(lab: &Lab, words: &[&str]) -> Output {
    let command = lab.vdectl(["plugin", "check"]).args(words);
    command.spawn().wait(LIMIT)
}

/// The plugin must pass, with exactly these checks skipped.
#[track_caller]
fn passes(lab: &Lab, words: &[&str], skipped: &[&str]) {
    let output = check(lab, words);
    assert_eq!(output.code(), Some(0), "{output:#?}");
    assert_eq!(lines(&output, "skipped"), skipped, "{output:#?}");
    assert!(output.stdout.contains(", 0 failed, "), "{output:#?}");
}

/// The names of the checks with this verdict.
fn lines(output: &Output, verdict: &str) -> Vec<String> {
    let lines = output.stdout.lines();
    let lines = lines.filter_map(|line| line.strip_prefix(verdict)?.strip_prefix(' '));
    let names = lines.filter_map(|line| line.trim().split("  ").next());
    names.map(str::to_owned).collect()
}

const ONE_END: [&str; 4] = ["frames", "batches", "wake-up", "hang-up"];

#[test]
fn links_with_one_end_pass() {
    let lab = Lab::new();
    passes(&lab, &["null", "null://"], &ONE_END);
    passes(&lab, &["switch", &lab.vnl("switch", "sw")], &ONE_END);
    passes(&lab, &["hub", &lab.vnl("hub", "hub")], &ONE_END);
}

#[test]
fn both_generations_of_ptp_pass() {
    let lab = Lab::new();
    passes(&lab, &["ptp", &lab.vnl("ptp", "a")], &[]);
    passes(&lab, &["ptp", &lab.vnl("ptp", "b[seqpacket]")], &[]);
}

#[test]
fn the_cables_to_virtual_machines_pass() {
    let lab = Lab::new();
    let path = lab.vnl("stream", "s");
    passes(&lab, &["stream", &path, &format!("{path}[connect]")], &[]);
    let port = "stream://[::1]:24011";
    passes(&lab, &["stream", port, &format!("{port}/connect")], &[]);
    let [there, back] = [("a", "b"), ("b", "a")]
        .map(|(own, far)| format!("{}->{}", lab.vnl("dgram", own), lab.path(far)));
    passes(&lab, &["dgram", &there, &back], &[]);
}

#[test]
fn a_port_of_a_switch_passes() {
    let lab = Lab::new();
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    // The switch stays when a port is closed, so the others keep their carrier.
    passes(&lab, &["vde", &lab.vnl("vde", "sw")], &["hang-up"]);
    let port = |n| lab.vnl("vde", &format!("sw[{n}]"));
    passes(&lab, &["vde", &port(3), &port(4)], &["hang-up"]);
    switch.terminate();
}

#[test]
fn the_template_passes() {
    let lab = Lab::new();
    let plugin = lab.drop_plugin(&target().join("libtemplate.so"), "template");
    passes(&lab, &["template", "template://31200"], &["hang-up"]);
    let file = plugin.to_str().unwrap();
    let output = check(&lab, &[file]);
    assert_eq!(output.code(), Some(0), "{output:#?}");
    assert!(output.stdout.contains("no VNL was given"), "{output:#?}");
    // One more would be a third end.
    let refused = lab.vdectl(["plugin", "check", file, "template://1", "template://1"]);
    refused.args(["template://1"]).refused(&["two ends"]);
    let refused = lab.vdectl(["plugin", "check", file, "null://"]);
    refused.refused(&["null://", "template"]);
    lab.vdectl(["plugin", "check", "nosuch"])
        .refused(&["libvdens_nosuch.so"]);
    lab.vdectl(["plugin", "check", "/nowhere/x.so"])
        .refused(&["/nowhere/x.so"]);
}

/// A fault of the plugin tests/plugins/broken fails the check of that name, with these words. What
/// other checks say of it is not waited for.
#[track_caller]
fn finds(lab: &Lab, fault: &str, check: &str, words: &str) {
    let vnl = format!("broken://{fault}{{{}}}", lab.vnl("ptp", fault));
    // What a check that is interrupted leaves.
    lab.expect(fault);
    lab.expect(&format!("{fault}+"));
    let report = lab.vdectl(["plugin", "check", "broken", &vnl]).spawn();
    let found = becomes_true(LIMIT, || {
        let said = report.stdout();
        let failed = said.lines().filter_map(|line| line.strip_prefix("FAILED"));
        let found = failed
            .clone()
            .any(|line| line.trim().starts_with(check) && line.contains(words));
        assert!(found || !said.contains(" skipped\n"), "{fault}: {said}");
        found
    });
    assert!(found, "{fault}: {}", report.stdout());
    // Whatever it is, the plugin loads, and malformed VNLs are refused.
    assert!(report.stdout().contains("ok       odd VNLs"), "{fault}");
}

fn lab_with_broken_plugin() -> Lab {
    let lab = Lab::new();
    lab.drop_plugin(&target().join("libbroken.so"), "broken");
    lab
}

#[test]
fn a_plugin_without_fault_passes_though_it_nests() {
    let lab = lab_with_broken_plugin();
    let vnl = format!("broken://none{{{}}}", lab.vnl("ptp", "none"));
    passes(&lab, &["broken", &vnl], &[]);
}

#[test]
fn faults_of_the_traffic_are_found() {
    let lab = lab_with_broken_plugin();
    finds(&lab, "loses", "frames", "did not arrive");
    finds(&lab, "reorders", "batches", "after one that was sent later");
    finds(&lab, "repeats", "frames", "more than once");
    finds(&lab, "changes", "frames", "arrived changed");
    finds(&lab, "swallows", "frames", "did not arrive");
}

#[test]
fn faults_of_readiness_are_found() {
    let lab = lab_with_broken_plugin();
    finds(&lab, "busy", "idle", "again and again");
    finds(&lab, "deaf", "wake-up", "did not become readable");
    finds(
        &lab,
        "spins",
        "full queue",
        "although send_fd() is writable",
    );
    finds(
        &lab,
        "blocks",
        "full queue",
        "send() did not return within 5 s",
    );
    finds(&lab, "silent", "open", "has no carrier");
}

#[test]
fn faults_of_the_code_are_found() {
    let lab = lab_with_broken_plugin();
    finds(
        &lab,
        "panics",
        "frames",
        "panicked in receive: a frame has come",
    );
    finds(&lab, "aborts", "frames", "crashed (SIGABRT)");
    finds(&lab, "leaks", "descriptors", "such as /dev/null");
    let vnl = format!("broken://leaks{{{}}}", lab.vnl("ptp", "p"));
    let output = check(&lab, &["broken", &vnl]);
    assert_eq!(output.code(), Some(1), "{output:#?}");
    assert!(
        output.stdout.ends_with("16 ok, 1 failed, 0 skipped\n"),
        "{output:#?}"
    );
    finds(&lab, "inherits", "descriptors", "not close-on-exec");
}

/// A plugin that damages its process or leaves another one behind fails the check that finds it.
/// The report continues, and the end of the lab finds no process.
#[test]
fn plugins_that_turn_on_their_host() {
    let lab = lab_with_broken_plugin();
    let own = "descriptors of the host";
    finds(&lab, "exits", "frames", "ended the process (status 0)");
    finds(&lab, "closes", "open", own);
    finds(&lab, "floods", "frames", own);
    finds(
        &lab,
        "stubborn",
        "frames",
        "send() did not return within 5 s",
    );
    finds(&lab, "nowhere", "idle", "again and again");
    // The host takes a count that is larger than the batch for the whole batch.
    let vnl = |fault: &str| format!("broken://{fault}{{{}}}", lab.vnl("ptp", fault));
    passes(&lab, &["broken", &vnl("boasts")], &[]);
    // Run to its end: an interrupted report does not kill what the plugin has left so far.
    let output = check(&lab, &["broken", &vnl("lingers")]);
    let failed = lines(&output, "FAILED");
    assert!(
        failed.contains(&"open".to_owned()) && failed.len() == 10,
        "{output:#?}"
    );
    assert!(
        output
            .stdout
            .contains("is still running after the links were closed")
    );
    assert!(
        lines(&output, "ok").contains(&"odd VNLs".to_owned()),
        "{output:#?}"
    );
}

/// A process that is left by loading a plugin is killed, too, by a listing as well as by a check.
#[test]
fn a_library_that_leaves_a_process_as_it_is_loaded() {
    need!("gcc");
    let lab = Lab::new();
    let source = lab.write(
        "x.c",
        "#include <unistd.h>
        __attribute__((constructor)) static void f(void) {
            if (fork() == 0) { setsid(); if (fork() == 0) { execlp(\"sleep\", \"sleep\", \"1000\", NULL); } _exit(0); }
        }",
    );
    let file = lab.drop_in().join("libvdens_x.so");
    let gcc = lab.command("gcc", ["-shared", "-fPIC", "-o"]);
    gcc.args([file.as_os_str(), source.as_ref()]).ok();
    lab.vdectl(["plugin", "list"]).ok();
    assert!(!lab.is_running("sleep"), "{:?}", lab.processes());
    assert_eq!(check(&lab, &["x"]).code(), Some(1));
    assert!(!lab.is_running("sleep"), "{:?}", lab.processes());
}

/// As JSON the report has the same lines, and nothing else is printed.
#[test]
fn the_report_is_json_too() {
    let lab = lab_with_broken_plugin();
    let vnl = format!("broken://panics{{{}}}", lab.vnl("ptp", "p"));
    let output = check(&lab, &["--json", "broken", &vnl]);
    assert_eq!(output.code(), Some(1), "{output:#?}");
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(report["scheme"], "broken");
    let checks = report["checks"].as_array().unwrap();
    let verdicts = |verdict: &str| -> Vec<_> {
        let with_it = checks.iter().filter(|check| check["verdict"] == verdict);
        with_it.collect()
    };
    for verdict in ["ok", "failed", "skipped"] {
        assert_eq!(report[verdict], verdicts(verdict).len(), "{report:#}");
    }
    let failed = verdicts("failed");
    assert!(
        failed.iter().any(|check| check["check"] == "frames"),
        "{report:#}"
    );
    for check in failed {
        assert_ne!(check["remedy"], "", "{check:#}");
    }
}
