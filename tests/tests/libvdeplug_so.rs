//! Our libvdeplug.so.2 in programs that were linked to VDE's: a test program (libvdeplug.c), and
//! Debian's own.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Cmd, Lab, PATIENCE, Proc, User, becomes_true, children, need, wait_until};

use crate::packages;
use crate::vm::{QEMU, await_boot, start};

/// How a helper's command line starts.
const HELPER: &str = "vde_plug --program-fd=";

/// The directory in which the dynamic linker finds our library.
fn library(lab: &Lab) -> String {
    let directory = lab.bin().join("libvdeplug");
    if !directory.exists() {
        fs::create_dir(&directory).unwrap();
        symlink("../libvdeplug.so", directory.join("libvdeplug.so.2")).unwrap();
    }
    directory.display().to_string()
}

/// The test program, compiled with our header.
fn test_program(lab: &Lab) -> PathBuf {
    let program = lab.bin().join("uses_libvdeplug");
    if !program.exists() {
        let sources = env!("CARGO_MANIFEST_DIR");
        let header = format!("{sources}/../host/libvdeplug/include");
        let source = format!("{sources}/tests/libvdeplug.c");
        let output = program.display().to_string();
        let bin = lab.bin().display().to_string();
        let words = ["-Wall", "-Wextra", "-Werror", "-pthread", "-I", &header];
        lab.command("gcc", words)
            .args(["-o", &output, &source, "-L", &bin, "-lvdeplug"])
            .by(User::root())
            .ok();
    }
    program
}

/// A test of the test program's.
fn program<'lab>(lab: &'lab Lab, words: &[&str]) -> Cmd<'lab> {
    with_ours(lab, lab.command(test_program(lab), words))
}

/// A command that uses our library.
fn with_ours<'lab>(lab: &'lab Lab, command: Cmd<'lab>) -> Cmd<'lab> {
    command.env("LD_LIBRARY_PATH", library(lab))
}

/// The two ends of a pair of UDP sockets, which never use the panel.
fn udp(port: u16) -> [String; 2] {
    let end = |ours, theirs| format!("udp://127.0.0.1:{ours}->127.0.0.1:{theirs}");
    [end(port, port + 1), end(port + 1, port)]
}

/// What a library exports, and its name for the dynamic linker.
fn exports(lab: &Lab, library: &str) -> (BTreeSet<String>, String) {
    let table = lab
        .command(
            "nm",
            ["-D", "--defined-only", "--with-symbol-versions", library],
        )
        .ok();
    let symbol = |line: &str| line.split_once(' ').map(|(_, symbol)| symbol.to_owned());
    let dynamic = lab.command("readelf", ["-d", library]).ok();
    let soname = dynamic
        .lines()
        .find(|line| line.contains("SONAME"))
        .unwrap();
    let soname = soname.split_once('[').unwrap().1.to_owned();
    (table.lines().filter_map(symbol).collect(), soname)
}

#[test]
fn the_symbols_are_those_of_vdes_library() {
    need!("nm", "abidiff", "libvdeplug_hub");
    let lab = Lab::new();
    let ours = format!("{}/libvdeplug.so.2", library(&lab));
    let theirs = lab.sh("ls /usr/lib/*/libvdeplug.so.2").ok();
    let theirs = theirs.trim();
    // It fails if anything was removed or changed.
    lab.command("abidiff", ["--no-added-syms", theirs, &ours])
        .ok();
    let (ours, our_name) = exports(&lab, &ours);
    let (theirs, their_name) = exports(&lab, theirs);
    assert_eq!(our_name, their_name);
    assert!(theirs.len() > 10, "{theirs:?}");
    let added: Vec<_> = ours.difference(&theirs).collect();
    assert_eq!(added, ["D vdens_libvdeplug"]);
    assert!(ours.is_superset(&theirs), "{theirs:?}");
}

#[test]
fn every_function() {
    need!("gcc");
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "p");
    program(&lab, &["functions", &cable, &cable]).ok();
    let [a, b] = udp(17_310);
    program(&lab, &["functions", &a, &b]).ok();
}

#[test]
fn wrong_arguments_are_errors() {
    need!("gcc");
    let lab = Lab::new();
    program(&lab, &["wrong", &lab.vnl("ptp", "p")]).ok();
    program(&lab, &["stray"]).ok();
}

#[test]
fn errors_have_the_numbers_of_vdes_library() {
    need!("gcc", "libvdeplug_hub");
    let lab = Lab::new();
    let vnls = [
        "open",
        "null://",
        "nosuch://",
        "vde:///nonexistent",
        "/nonexistent",
        "NULL",
        "",
    ];
    let ours = program(&lab, &vnls).run();
    let theirs = lab.command(test_program(&lab), vnls).ok();
    assert_eq!(ours.stdout, theirs);
    assert_eq!(ours.stderr, "");
    // With the variable, the helper says what is wrong, and what to do.
    let told = program(&lab, &["open", "vde:///nonexistent"]).env("VDENS_LIBVDEPLUG_LOG", "error");
    let told = told.run().stderr;
    assert!(told.contains("no switch directory /nonexistent"), "{told}");
    assert!(told.contains("ENOENT"), "{told}");
}

#[test]
fn two_threads_with_two_connections_each() {
    need!("gcc");
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "p");
    let [a, b] = udp(17_312);
    program(&lab, &["threads", &cable, &cable, &a, &b]).ok();
}

#[test]
fn a_child_goes_on_with_a_connection() {
    need!("gcc");
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "p");
    program(&lab, &["fork", &cable, &cable]).ok();
    let [a, b] = udp(17_314);
    program(&lab, &["fork", &a, &b]).ok();
}

#[test]
fn a_program_never_meets_its_helpers() {
    need!("gcc");
    let lab = Lab::new();
    program(&lab, &["children", &lab.vnl("ptp", "p")]).ok();
}

/// The helper of the only program.
fn helper(lab: &Lab) -> i32 {
    let mut found = None;
    wait_until("the helper runs", PATIENCE, || {
        let processes = lab.processes().into_iter();
        // Its panel service has the same words.
        let is_helper =
            |pid: &i32, words: &str| words.contains(HELPER) && !children(*pid).is_empty();
        let mut helpers = processes.filter(|(pid, words)| is_helper(pid, words));
        found = helpers.next().map(|(pid, _)| pid);
        found.is_some()
    });
    found.unwrap()
}

fn is_open(program: &Proc<'_>) {
    wait_until("it is open", PATIENCE, || program.stdout().contains("open"));
}

#[test]
fn nothing_is_left_of_a_program_that_is_killed() {
    need!("gcc");
    let lab = Lab::new();
    let [udp, _] = udp(17_316);
    for vnl in [&lab.vnl("ptp", "p"), &lab.vnl("switch", "sw"), &udp] {
        let held = program(&lab, &["hold", vnl]).spawn();
        is_open(&held);
        helper(&lab);
        held.signal(Signal::SIGKILL);
        held.ends_within(PATIENCE);
        let gone = || !lab.is_running(HELPER);
        wait_until("the helper ends", PATIENCE, gone);
    }
}

#[test]
fn a_program_is_told_that_its_helper_was_killed() {
    need!("gcc");
    let lab = Lab::new();
    let [udp, _] = udp(17_318);
    for vnl in [&lab.vnl("ptp", "p"), &udp] {
        let held = program(&lab, &["hold", vnl]).spawn();
        is_open(&held);
        kill(Pid::from_raw(helper(&lab)), Signal::SIGKILL).unwrap();
        let output = held.wait(PATIENCE);
        assert_eq!(
            (output.code(), &*output.stdout),
            (Some(0), "open\nover\n"),
            "{output:?}"
        );
    }
    // The next process removes what they have left.
    lab.vdens([&lab.vnl("ptp", "p"), "true"]).ok();
}

/// A helper is listed, and keeps its link when the switch behind it is started anew.
#[test]
fn a_helper_is_listed_and_plugs_in_again() {
    need!("gcc");
    let lab = Lab::new();
    let switch = || {
        let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
        lab.wait_for("sw/ctl");
        switch
    };
    let first = switch();
    let held = program(&lab, &["hold", &lab.vnl("vde", "sw")]).spawn();
    is_open(&held);
    let process = format!("uses_libvdeplug ({})", held.pid());
    let listed = || lab.vdectl(["status"]).ok().contains(&process);
    assert!(
        becomes_true(PATIENCE, listed),
        "{}",
        lab.vdectl(["status"]).ok()
    );
    first.terminate();
    let _second = switch();
    let is_back = || lab.vdectl(["status"]).ok().contains("port 1: a test");
    assert!(
        becomes_true(PATIENCE, is_back),
        "{}",
        lab.vdectl(["status"]).ok()
    );
    assert!(held.is_running());
}

/// Debian's programs, which know nothing of vdens.
#[test]
fn debians_vdens_and_vde_plug() {
    need!("vdens");
    let lab = Lab::new();
    let [cable, other] = ["p", "q"].map(|name| lab.vnl("ptp", name));
    let [near, far] = udp(17_320);
    let ours = lab.vdens(["--addr", "10.0.0.1/24", &cable, "sh"]).session();
    let theirs = with_ours(&lab, lab.debian("vdens", [&cable, "sh"])).session();
    theirs.address("vde0", "10.0.0.2/24");
    theirs.ping("10.0.0.1");
    ours.send_file(&theirs, "10.0.0.2", 8);
    theirs.send_file(&ours, "10.0.0.1", 8);
    drop(theirs);
    // Two plugs behind each other.
    let _plug = with_ours(&lab, lab.debian("vde_plug", [&cable, &near])).spawn();
    let _second = with_ours(&lab, lab.debian("vde_plug", [&far, &other])).spawn();
    let end = lab.vdens(["--addr", "10.0.0.3/24", &other, "sh"]).session();
    end.ping("10.0.0.1");
    ours.send_file(&end, "10.0.0.3", 8);
}

/// The bridge to C plugins goes on to the system's library when it finds ours.
#[test]
fn our_bridge_does_not_load_our_library() {
    need!("gcc", "libvdeplug_hub", "libvdeplug_agno", "vdens");
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let key = lab.write("key", "00112233445566778899aabbccddeeff");
    let vnl = format!("agno://{key}{{{}}}", lab.vnl("vde", "sw"));
    let ours = with_ours(&lab, lab.vdens(["--addr", "10.0.0.1/24", &vnl, "sh"])).session();
    let theirs = with_ours(&lab, lab.debian("vdens", [&vnl, "sh"])).session();
    theirs.address("vde0", "10.0.0.2/24");
    theirs.ping("10.0.0.1");
    drop((ours, theirs));
    // Where there is no other, it says so.
    let system = lab.sh("dirname /usr/lib/*/libvdeplug.so.2").ok();
    let system = system.trim();
    let without = format!(
        "mount -t tmpfs none /mnt; mkdir /mnt/old /mnt/lib; mount --bind {system} /mnt/old
         ln -s /mnt/old/* /mnt/lib; rm /mnt/lib/libvdeplug.so*; mount --bind /mnt/lib {system}"
    );
    let alone = with_ours(&lab, lab.vdens(["libvdeplug://hub://x", "true"]));
    alone
        .on_changed_machine(&without)
        .refused(&["vdens's own", "libvdeplug2"]);
}

/// As host/packaging installs it.
#[test]
fn an_installed_library_with_pkg_config() {
    need!("gcc", "pkg-config");
    let lab = Lab::new();
    let prefix = lab.aside("prefix");
    let directory = packages::install_into(&prefix);
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/libvdeplug.c");
    let program = prefix.join("program").display().to_string();
    let compile = format!("gcc -o {program} {source} $(pkg-config --cflags --libs vdeplug)");
    let compile = lab.sh(&compile).env("PKG_CONFIG_PATH", &directory);
    compile.by(User::root()).ok();
    let cable = lab.vnl("ptp", "p");
    let run = lab.command(program, ["functions", &cable, &cable]);
    run.env("LD_LIBRARY_PATH", &directory).ok();
}

/// Debian's QEMU with a card for each scheme, and a namespace behind each.
#[test]
fn debians_qemu_on_every_scheme() {
    need!("guest", QEMU);
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let [udp, udp_far] = udp(17_322);
    let vlan = format!("vlan://5{{{}}}", lab.vnl("vde", "sw"));
    let vxlan = |own, peer| format!("vxlan://127.0.0.{peer}/local=127.0.0.{own}/port=17324");
    let same = |vnl: String| (vnl.clone(), vnl);
    // What QEMU opens, and what the namespace opens.
    let pairs = [
        same(lab.vnl("ptp", "p")),
        same(lab.vnl("vde", "sw")),
        (lab.vnl("switch", "own"), lab.vnl("vde", "own")),
        (lab.vnl("hub", "hub"), lab.vnl("vde", "hub")),
        (udp, udp_far),
        (vxlan(1, 2), vxlan(2, 1)),
        same(vlan),
    ];
    let schemes = pairs.iter().map(|(vnl, _)| format!("vde,sock={vnl}"));
    let netdevs: Vec<_> = schemes.chain(["vde,sock=nat://".to_owned()]).collect();
    let guest = with_ours(&lab, start(&lab, &netdevs))
        .args(["-no-reboot"])
        .session();
    await_boot(&guest);
    for (card, (_, vnl)) in pairs.iter().enumerate() {
        let address = format!("10.7.{card}.1");
        let namespace = lab
            .vdens(["--addr", &format!("{address}/24"), vnl, "sh"])
            .session();
        guest.address(&format!("eth{card}"), &format!("10.7.{card}.2/24"));
        guest.ping(&address);
        namespace.ping(&format!("10.7.{card}.2"));
    }
    // The router of nat:// answers pings.
    guest.address(&format!("eth{}", pairs.len()), "10.0.2.15/24");
    guest.ping("10.0.2.2");
}
