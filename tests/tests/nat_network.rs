//! A whole network behind one gateway, and `--auto` on networks of others.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, Session, need, wait_until};

use crate::nat_internet::Internet;
use crate::vm;

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

/// How a DHCP client's script configures what it has learned, and where it writes the name servers.
fn dhcp_script(servers: &str) -> String {
    format!(
        "#!/bin/sh
        case \"$1$reason\" in bound|BOUND)
            ip addr add ${{ip:-$new_ip_address}}/24 dev $interface
            ip route add default via ${{router:-$new_routers}}
            for server in ${{dns:-$new_domain_name_servers}}; do echo nameserver $server; done >{servers}
        esac
        "
    )
}

/// A DHCP client's address, its name server's answers, and the Internet by both families.
#[track_caller]
fn check(client: &Session<'_>, interface: &str) {
    let addresses = client.ok(&format!("ip addr show dev {interface}"));
    assert!(addresses.contains("inet 10.0.2."), "{addresses}");
    let said = client.ok("nslookup server.test");
    assert!(said.contains("198.51.100.1"), "{said}");
    for address in ["server.test", "198.51.100.1", "[2001:db8::1]"] {
        let get = format!("busybox wget -qO- http://{address}:8000/page");
        // An IPv6 address is usable when nobody else turns out to have it.
        wait_until(&get, PATIENCE, || client.run(&get).1.ends_with("the page"));
    }
}

#[test]
fn foreign_machines_ask_by_dhcp() {
    need!(
        "root",
        "python3",
        "dnsmasq",
        "guest",
        "qemu-system-x86_64",
        "vdens",
        "dhclient",
        "busybox"
    );
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let switch = lab.vnl("switch", "sw");
    let plug = lab
        .vde_plug(["nat://dns=192.0.2.1", &switch])
        .inside(&net.host)
        .spawn();
    lab.wait_for("sw/ctl");
    let vnl = lab.vnl("vde", "sw");
    let guest = vm::guest(&lab, &vnl);
    guest.ok(&format!(
        "mkdir -p /etc; cat >/script <<'END'\n{}\nEND\nchmod +x /script",
        dhcp_script("/etc/resolv.conf")
    ));
    guest.ok("ip link set eth0 up; udhcpc -i eth0 -n -q -t 30 -T 1 -s /script");
    check(&guest, "eth0");

    let home = lab.home().display().to_string();
    let script = lab.write("script", dhcp_script(&format!("{home}/resolv.conf")));
    let debians = lab
        .debian("vdens", ["-R", "10.0.2.3", &vnl, "sh"])
        .session();
    debians.ok(&format!(
        "chmod +x {script}; ip link set vde0 up
        dhclient -d -1 -4 -sf {script} -lf {home}/leases -pf {home}/pid vde0 &
        until cmp -s {home}/resolv.conf /etc/resolv.conf; do kill -0 $! || exit; sleep 0.1; done
        kill $!; wait $! || :"
    ));
    check(&debians, "vde0");
    drop((guest, debians));
    plug.terminate();
}
