//! `vdens` at a terminal, without any network, as the tutorial begins.

use vdens_tests::{Lab, PATIENCE, Tmux, need, wait_until};

/// The capability sets of a process, by name.
fn capabilities(terminal: &Tmux<'_>) -> Vec<(String, String)> {
    let (text, _) = terminal.ask("grep ^Cap /proc/self/status");
    text.lines()
        .filter_map(|line| line.split_once(":\t").or_else(|| line.split_once(':')))
        .filter(|(name, _)| name.starts_with("Cap") && !name.ends_with("Bnd"))
        .map(|(name, mask)| (name.to_owned(), mask.trim().to_owned()))
        .collect()
}

fn all_four(mask: &str) -> Vec<(String, String)> {
    ["CapInh", "CapPrm", "CapEff", "CapAmb"]
        .map(|name| (name.to_owned(), mask.to_owned()))
        .to_vec()
}

/// The uid and gid of a shell.
fn ids(terminal: &Tmux<'_>) -> String {
    terminal.ask("echo $(id -u):$(id -g):$(id -un)").0
}

#[test]
fn a_namespace_of_ones_own() {
    need!("tmux");
    let lab = Lab::new();
    let terminal = lab.tmux();
    let (ids_outside, network_outside) =
        (ids(&terminal), terminal.ask("readlink /proc/self/ns/net"));

    terminal.type_line("vdens");
    let links = terminal.ask("ip -br link").0;
    let links: Vec<_> = links.lines().filter(|line| !line.contains('$')).collect();
    assert_eq!(links.len(), 1, "{links:?}");
    assert!(
        links[0].starts_with("lo ") && links[0].contains(" DOWN "),
        "{links:?}"
    );
    assert_ne!(terminal.ask("ping -c 1 -W 1 127.0.0.1").1, 0);
    assert_eq!(terminal.ask("ip link set lo up").1, 0);
    assert_eq!(terminal.ask("ping -c 1 -W 1 127.0.0.1").1, 0);
    assert_eq!(terminal.ask("ping -c 1 -W 1 ::1").1, 0);
    assert_eq!(capabilities(&terminal), all_four("0000000000003c00"));
    assert_eq!(ids(&terminal), ids_outside);

    // The terminal's keys belong to what runs in the namespace: vdens must survive them.
    terminal.type_line("sleep 1000");
    terminal.press("C-c");
    assert_eq!(terminal.ask("ping -c 1 -W 1 127.0.0.1").1, 0);

    terminal.type_line("exit 3");
    assert_eq!(terminal.ask("(exit $?)").1, 3);
    assert_eq!(terminal.ask("readlink /proc/self/ns/net"), network_outside);
}

#[test]
fn more_power_with_sysadm() {
    need!("tmux");
    let lab = Lab::new();
    let terminal = lab.tmux();
    let ids_outside = ids(&terminal);
    terminal.type_line("vdens -s");
    assert_eq!(capabilities(&terminal), all_four("0000000000203c00"));
    assert_eq!(ids(&terminal), ids_outside);
    assert_eq!(terminal.ask("mount -t tmpfs none /mnt").1, 0);
    terminal.type_line("exit");
    assert_eq!(terminal.ask("mountpoint -q /mnt").1, 32);
}

#[test]
fn job_control() {
    need!("tmux");
    let lab = Lab::new();
    let terminal = lab.tmux();
    terminal.type_line("set -m; vdens null:// sh -m");
    terminal.type_line("sleep 1000");
    wait_until("the command runs", PATIENCE, || {
        lab.is_running("sleep 1000")
    });
    terminal.press("C-z");
    assert!(terminal.ask("jobs").0.contains("sleep 1000"));
    assert_eq!(terminal.ask("ip link show vde0").1, 0);
    terminal.type_line("fg");
    wait_until("the command goes on", PATIENCE, || {
        lab.is_running("sleep 1000")
    });
    terminal.press("C-c");
    terminal.type_line("exit");
    assert_ne!(terminal.ask("ip link show vde0").1, 0);
}
