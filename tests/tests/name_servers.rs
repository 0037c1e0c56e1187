//! `-R` and `-r`: name servers for the namespace alone.

use std::fs;

use vdens_tests::Lab;

const HOSTS_FILE: &str = "/etc/resolv.conf";

/// The name servers in a resolv.conf.
fn servers(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver "))
        .collect()
}

/// Runs vdens with arguments, and compares what a command inside sees with what is expected.
#[track_caller]
fn check(lab: &Lab, environment: &[(&str, &str)], options: &[&str], expected: &[&str]) {
    let outside = fs::read(HOSTS_FILE).ok();
    let mut command = lab.vdens(options).args(["null://", "cat", HOSTS_FILE]);
    for (name, value) in environment {
        command = command.env(name, value);
    }
    let inside = command.ok();
    assert_eq!(servers(&inside), expected, "{environment:?} {options:?}");
    assert_eq!(fs::read(HOSTS_FILE).ok(), outside, "the host's own file");
}

#[test]
fn addresses() {
    let lab = Lab::new();
    let two = ["80.80.80.80", "2001:db8::1"];
    check(&lab, &[], &["-R", "80.80.80.80,2001:db8::1"], &two);
    check(&lab, &[], &["--resolvaddr", "80.80.80.80"], &two[..1]);
    check(
        &lab,
        &[("VDE_RESOLVADDR", "80.80.80.80,2001:db8::1")],
        &[],
        &two,
    );
    check(
        &lab,
        &[("VDE_RESOLVADDR", "80.80.80.80")],
        &["-R", "2001:db8::1"],
        &two[1..],
    );
}

#[test]
fn a_file() {
    let lab = Lab::new();
    let file = lab.write("resolv", "nameserver 192.0.2.1\nsearch example.org\n");
    check(&lab, &[], &["-r", &file], &["192.0.2.1"]);
    check(&lab, &[], &["--resolvconf", &file], &["192.0.2.1"]);
    check(&lab, &[("VDE_RESOLVCONF", &file)], &[], &["192.0.2.1"]);
    // Addresses win over a file.
    check(&lab, &[], &["-r", &file, "-R", "192.0.2.2"], &["192.0.2.2"]);
    let relative = lab
        .vdens(["-r", "resolv", "null://", "cat", HOSTS_FILE])
        .ok();
    assert!(relative.contains("search example.org"), "{relative}");
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 2);
}

#[test]
fn without_a_network_too() {
    let lab = Lab::new();
    let text = lab.vdens(["-R", "192.0.2.1", "no", "cat", HOSTS_FILE]).ok();
    assert_eq!(servers(&text), ["192.0.2.1"]);
}

/// A machine whose /etc/resolv.conf is a symbolic link, or is missing.
#[track_caller]
fn check_machine(link: &str) {
    let lab = Lab::new();
    let etc = lab.mkdir("etc");
    let machine = format!(
        "cp /etc/passwd /etc/group /etc/nsswitch.conf {etc}/
         {link}
         mount --bind {etc} /etc"
    );
    let vdens = lab.vdens(["-R", "192.0.2.1", "null://", "cat", HOSTS_FILE]);
    let text = vdens.on_changed_machine(&machine).ok();
    assert_eq!(servers(&text), ["192.0.2.1"], "{link}");
    // What is outside is what it was.
    let left = fs::read_link(format!("{etc}/resolv.conf")).ok();
    let target = link.split_whitespace().nth(2).map(Into::into);
    assert_eq!(left, target, "{link}");
}

#[test]
fn where_the_hosts_file_is_a_dangling_link() {
    check_machine("ln -s /run/nowhere/stub-resolv.conf etc/resolv.conf");
}

#[test]
fn where_the_hosts_file_is_a_relative_link() {
    check_machine("ln -s ../usr/share/nowhere/resolv.conf etc/resolv.conf");
}

#[test]
fn where_the_hosts_file_is_missing() {
    check_machine(":");
}
