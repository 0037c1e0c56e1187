//! The tutorial's NAT router: a namespace with a cable on one side and the host's tap on the other.

use vdens_tests::{Lab, need, wait_until};

#[test]
fn a_namespace_behind_a_nat_router() {
    need!("root", "iptables", "tcpdump");
    let lab = Lab::new();
    let host = lab.netns();
    let user = &lab.user().name;
    let tap = format!("ip tuntap add dev tap0 mode tap user {user}");
    host.sh(&format!(
        "{tap}; ip addr add 10.0.0.254/24 dev tap0; ip link set tap0 up"
    ))
    .ok();
    let seen = host.sh("exec tcpdump -i tap0 -n -l ip 2>&1").spawn();
    wait_until("tcpdump listens", vdens_tests::PATIENCE, || {
        seen.stdout().contains("listening")
    });

    let cable = lab.vnl("ptp", "p");
    let router = lab
        .vdens(["--multi", &cable, "tap://tap0", "--", "sh"])
        .inside(&host)
        .session();
    router.address("vde0", "192.168.1.1/24");
    router.address("vde1", "10.0.0.1/24");
    router.ok("echo 1 >/proc/sys/net/ipv4/ip_forward");
    router.ok("iptables -t nat -A POSTROUTING -o vde1 -j MASQUERADE");
    router.ping("10.0.0.254");

    let inner = lab.vdens([&cable, "sh"]).session();
    inner.address("vde0", "192.168.1.2/24");
    inner.ok("ip route add default via 192.168.1.1");
    inner.ping("192.168.1.1");
    inner.ping("10.0.0.254");

    wait_until("tcpdump saw it", vdens_tests::PATIENCE, || {
        seen.stdout().contains("10.0.0.1 > 10.0.0.254")
    });
    assert!(!seen.stdout().contains("192.168.1."), "{}", seen.stdout());
    assert_eq!(inner.exit(0).code(), Some(0));
    assert_eq!(router.exit(0).code(), Some(0));
    // The tap was there before and stays, free for the next.
    host.sh("ip link show tap0").ok();
    let again = lab.vdens(["tap://tap0", "true"]).inside(&host).run();
    assert_eq!(again.code(), Some(0), "{again:?}");
}

#[test]
fn without_masquerade_the_host_sees_the_inner_address() {
    // Proves that the test above can fail: the tap does show addresses that nobody translates.
    need!("root", "tcpdump");
    let lab = Lab::new();
    let host = lab.netns();
    let user = &lab.user().name;
    host.sh(&format!(
        "ip tuntap add dev tap0 mode tap user {user}; ip link set tap0 up"
    ))
    .ok();
    let seen = host.sh("exec tcpdump -i tap0 -n -l ip 2>&1").spawn();
    wait_until("tcpdump listens", vdens_tests::PATIENCE, || {
        seen.stdout().contains("listening")
    });
    let inner = lab.vdens(["tap://tap0", "sh"]).inside(&host).session();
    inner.address("vde0", "192.168.1.2/24");
    inner.ok("ip neigh add 192.168.1.9 lladdr 02:00:00:00:00:02 dev vde0");
    wait_until("tcpdump saw it", vdens_tests::PATIENCE, || {
        inner.run("ping -c 1 -W 1 192.168.1.9");
        seen.stdout().contains("192.168.1.2 > 192.168.1.9")
    });
}
