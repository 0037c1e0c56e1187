//! A whole network behind one gateway, and `--auto` on networks of others.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, need};

use crate::nat_internet::Internet;

#[test]
fn a_whole_network_behind_one_gateway() {
    need!("root", "python3", "busybox");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let switch = lab.vnl("switch", "sw");
    let plug = lab.vde_plug(["nat://", &switch]).inside(&net.host).spawn();
    lab.wait_for("sw/ctl");
    let ask = net.who("198.51.100.1");
    let sessions: Vec<_> = (0..3)
        .map(|_| {
            lab.vdens(["--auto=60", &lab.vnl("vde", "sw"), "sh"])
                .inside(&net.host)
                .session()
        })
        .collect();
    let mut addresses: Vec<_> = sessions
        .iter()
        .map(|session| {
            assert_eq!(session.ok(&ask).trim(), "you are 192.0.2.2");
            session.ok("ip -o -4 addr show vde0 | awk '{print $4}'")
        })
        .collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 3, "{addresses:?}");
    for session in sessions {
        assert_eq!(session.exit(0).code(), Some(0));
    }
    plug.terminate();
}

#[test]
fn auto_on_a_network_of_dnsmasq() {
    need!("python3", "dnsmasq");
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "p");
    let server = lab
        .vdens([
            "--addr",
            "192.168.7.1/24",
            "--addr",
            "fd00:7::1/64",
            &cable,
            "sh",
        ])
        .session();
    let leases = lab.path("leases");
    lab.expect("leases");
    server.start(&format!(
        "exec dnsmasq --keep-in-foreground --no-resolv --no-hosts --conf-file=/dev/null --user= --pid-file \
        --bind-interfaces --interface=vde0 --dhcp-leasefile={leases} --domain=lab.test \
        --dhcp-range=192.168.7.50,192.168.7.60,1h --dhcp-range=fd00:7::,ra-stateless,64 --enable-ra"
    ));
    let client = lab.vdens(["--auto=60", &cable, "sh"]).session();
    let addresses = client.ok("ip -o addr show vde0 | awk '{print $4}'");
    assert!(
        addresses.contains("192.168.7.5") || addresses.contains("192.168.7.6"),
        "{addresses}"
    );
    assert!(addresses.contains("fd00:7:"), "{addresses}");
    let resolv = client.ok("cat /etc/resolv.conf");
    assert!(
        resolv.contains("nameserver 192.168.7.1") && resolv.contains("search lab.test"),
        "{resolv}"
    );
    assert!(client.ok("ip route").contains("default via 192.168.7.1"));
    client.ping("192.168.7.1");
    assert_eq!(client.exit(0).code(), Some(0));
    kill(Pid::from_raw(server.proc().pid()), Signal::SIGTERM).unwrap();
}
