//! Several links for one namespace.

use vdens_tests::{Lab, need};

#[test]
fn eight_links_in_order_each_on_its_own_network() {
    let lab = Lab::new();
    let vnls: Vec<_> = (0..8).map(|n| lab.vnl("ptp", &format!("p{n}"))).collect();
    let here = lab
        .vdens(["--multi"])
        .args(&vnls)
        .args(["--", "sh"])
        .session();
    // The far end has them in the opposite order, so a mix-up shows.
    let there = lab
        .vdens(["-m"])
        .args(vnls.iter().rev())
        .args(["--", "sh"])
        .session();
    for n in 0..8 {
        here.address(&format!("vde{n}"), &format!("10.0.{n}.1/24"));
        there.address(&format!("vde{}", 7 - n), &format!("10.0.{n}.2/24"));
    }
    for n in 0..8 {
        here.ping(&format!("10.0.{n}.2"));
    }
    let names = here.ok("ip -br link | cut -d' ' -f1");
    assert_eq!(
        // One end of a pair is printed with the number of the other, as `vde0@if7`.
        names
            .split_whitespace()
            .filter_map(|name| name.split('@').next())
            .collect::<Vec<_>>(),
        [
            "lo", "vde0", "vde1", "vde2", "vde3", "vde4", "vde5", "vde6", "vde7"
        ]
    );
    assert_eq!(here.exit(5).code(), Some(5));
    assert_eq!(there.exit(6).code(), Some(6));
}

#[test]
fn as_many_links_as_one_can_have() {
    let lab = Lab::new();
    let links = |count| {
        let vdens = lab.vdens(["-m"]).args(vec!["null://"; count]);
        vdens.args(["--", "sh", "-c", "ip -o link | wc -l"])
    };
    assert_eq!(links(252).ok(), "253\n");
    links(253).refused(&["253", "252"]);
}

#[test]
fn a_mixture_of_schemes() {
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let (ptp, vde) = (lab.vnl("ptp", "p"), lab.vnl("vde", "sw"));
    let own = lab.vnl("switch", "own");
    let middle = lab
        .vdens(["-m", &ptp, "null://", &vde, &own, "--", "sh"])
        .session();
    lab.wait_for("own/ctl");
    let at_cable = lab.vdens([&ptp, "sh"]).session();
    let at_switch = lab.vdens([&vde, "sh"]).session();
    let at_own = lab.vdens([&lab.vnl("vde", "own"), "sh"]).session();
    for (n, far) in [(0, &at_cable), (2, &at_switch), (3, &at_own)] {
        middle.address(&format!("vde{n}"), &format!("10.0.{n}.1/24"));
        far.address("vde0", &format!("10.0.{n}.2/24"));
        far.ping(&format!("10.0.{n}.1"));
    }
    // null:// has no far end, and no frames of other links leak into it.
    middle.address("vde1", "10.0.1.1/24");
    assert_ne!(middle.run("ping -c 1 -W 1 10.0.1.2").0, 0);
    // The networks are separate: no address of another one is found on this one.
    at_cable.ok("ip route add 10.0.2.0/24 dev vde0");
    middle.ok("echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore");
    assert_ne!(at_cable.run("ping -c 1 -W 1 10.0.2.1").0, 0);
}

#[test]
fn without_a_command_it_is_the_shell() {
    let lab = Lab::new();
    let shell = lab.vdens(["-m", "null://", "null://"]).session();
    assert_eq!(shell.ok("ip -br link | wc -l").trim(), "3");
    assert_eq!(shell.exit(4).code(), Some(4));
}

#[test]
fn one_busy_link_does_not_stall_another() {
    need!("python3");
    let lab = Lab::new();
    // The peer of the first cable exists and never reads: its queue stays full.
    let script = "import socket, sys, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind(sys.argv[1]); time.sleep(1000)";
    let _deaf = lab
        .command("python3", ["-c", script, &lab.path("deaf")])
        .spawn();
    lab.wait_for("deaf");
    lab.expect("deaf");
    let (deaf, good) = (lab.vnl("ptp", "deaf"), lab.vnl("ptp", "p"));
    let a = lab.vdens(["-m", &deaf, &good, "--", "sh"]).session();
    let b = lab.vdens([&good, "sh"]).session();
    a.address("vde0", "10.0.0.1/24");
    a.address("vde1", "10.0.1.1/24");
    b.address("vde0", "10.0.1.2/24");
    a.ok("ip neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev vde0");
    a.run("ping -q -f -c 500 -w 1 -W 1 10.0.0.2");
    a.ping("10.0.1.2");
    let text = a.ok("ping -q -c 20 -i 0.05 -W 30 10.0.1.2");
    assert!(text.contains(" 0% packet loss"), "{text}");
}
