//! Programs that want to be root, in sessions whose user appears as root: with `--map-auto`, where
//! they change users, and with `--root`, where there is one user.

use serde_json::Value;
use vdens_tests::{Lab, PATIENCE, need, wait_until};

/// A detached session of this name in which the user is root, with one interface.
#[track_caller]
fn start(lab: &Lab, option: &str, name: &str, address: &str, vnl: &str) {
    lab.vdens(["-d", option, "--name", name, "--addr", address, vnl])
        .ok();
}

/// Runs a script in a session, which must succeed.
#[track_caller]
fn run(lab: &Lab, name: &str, script: &str) -> String {
    lab.vdectl(["exec", name, "sh", "-ec", script]).ok()
}

#[test]
fn root_has_all_ids_with_map_auto_and_one_with_root() {
    need!("newuidmap");
    let lab = Lab::new();
    let change = "id -u; touch /run/file /etc/file; stat -c %u /run/file;
        setpriv --reuid 33 --regid 33 --clear-groups id -u";
    start(&lab, "--map-auto", "a", "10.0.0.1/24", "null://");
    assert_eq!(run(&lab, "a", change), "0\n0\n33\n");
    // Its link is a tap: the panel's members have one id.
    let status: Value = serde_json::from_str(&lab.vdectl(["status", "--json"]).ok()).unwrap();
    assert_eq!(
        status["processes"][0]["links"][0]["state"], "up",
        "{status:#}"
    );
    lab.vdectl(["stop", "a"]).ok();

    start(&lab, "--root", "a", "10.0.0.1/24", "null://");
    let refused = lab.vdectl(["exec", "a", "sh", "-ec", change]).run();
    assert_eq!(refused.stdout, "0\n0\n", "{refused:#?}");
    // The machine's own files are as they were.
    assert!(!std::path::Path::new("/run/file").exists());
    assert!(!std::path::Path::new("/etc/file").exists());
    lab.vdectl(["stop", "a"]).ok();
}

#[test]
fn a_root_session_is_on_the_panel() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    start(&lab, "--root", "a", "10.0.0.1/24", &vnl);
    start(&lab, "--root", "b", "10.0.0.2/24", &vnl);
    lab.vdectl(["wait", "a", "--link-up"]).ok();
    run(&lab, "a", "ping -c 1 -W 5 10.0.0.2");
    assert!(lab.vdectl(["status"]).ok().contains("up, kernel"));
    lab.vdectl(["stop", "--all"]).ok();
}

#[test]
fn ospfd_and_bgpd_learn_routes_as_their_own_user() {
    need!("newuidmap", "/usr/lib/frr/zebra");
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    for (own, other) in [(1, 2), (2, 1)] {
        let name = format!("r{own}");
        start(&lab, "--map-auto", &name, &format!("10.0.0.{own}/24"), &vnl);
        let ospf = format!(
            "interface vde0\n ip ospf hello-interval 1\n ip ospf dead-interval 3\n \
             ip ospf network point-to-point\nrouter ospf\n network 10.0.0.0/24 area 0\n \
             network 192.0.2.{own}/32 area 0\n"
        );
        let bgp = format!(
            "router bgp 6500{own}\n bgp router-id 10.0.0.{own}\n no bgp ebgp-requires-policy\n \
             timers bgp 1 3\n neighbor 10.0.0.{other} remote-as 6500{other}\n \
             neighbor 10.0.0.{other} timers connect 1\n address-family ipv4 unicast\n  \
             network 198.51.100.{own}/32\n"
        );
        run(
            &lab,
            &name,
            &format!(
                "ip addr add 192.0.2.{own}/32 dev lo; ip addr add 198.51.100.{own}/32 dev lo
                 mkdir /run/frr; cd /run/frr; echo 'hostname {name}' >zebra.conf
                 printf '{ospf}' >ospfd.conf; printf '{bgp}' >bgpd.conf; chown -R frr:frr .
                 for d in zebra ospfd bgpd; do
                   /usr/lib/frr/$d -d -f $PWD/$d.conf -i $PWD/$d.pid -z $PWD/api --vty_socket $PWD
                 done >/dev/null 2>&1"
            ),
        );
    }
    let routes = || run(&lab, "r1", "ip route");
    for route in ["192.0.2.2", "198.51.100.2"] {
        wait_until(route, 3 * PATIENCE, || routes().contains(route));
    }
    let users = run(&lab, "r1", "ps -o user= -C zebra,ospfd,bgpd");
    assert_eq!(users, "frr\n".repeat(3));
    lab.vdectl(["stop", "--all"]).ok();
}

#[test]
fn sshd_gives_a_terminal() {
    need!("newuidmap", "/usr/sbin/sshd");
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    start(&lab, "--map-auto", "server", "10.0.0.1/24", &vnl);
    lab.vdens(["-d", "--name", "client", "--addr", "10.0.0.2/24", &vnl])
        .ok();
    let key = lab.path("key");
    for file in ["key", "key.pub", "known"] {
        lab.expect(file);
    }
    lab.command("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", &key])
        .ok();
    let user = &lab.user().name;
    run(
        &lab,
        "server",
        &format!(
            "mkdir /run/sshd; cp {key} /run/key; cp {key}.pub /run/authorized; chmod 644 /run/authorized
             /usr/sbin/sshd -o HostKey=/run/key -o PidFile=none -o StrictModes=no -o UsePAM=no \
               -o AuthorizedKeysFile=/run/authorized -E /run/sshd.log"
        ),
    );
    lab.vdectl(["wait", "client", "--link-up"]).ok();
    let output = lab
        .vdectl([
            "exec",
            "client",
            "ssh",
            "-tt",
            "-i",
            &key,
            "-o",
            "BatchMode=yes",
        ])
        .args(["-o", "StrictHostKeyChecking=no", "-o"])
        .args([format!("UserKnownHostsFile={}", lab.path("known"))])
        .args([format!("{user}@10.0.0.1")])
        .args(["tty; id -un; exit 7"])
        .run();
    assert_eq!(
        output.code(),
        Some(7),
        "{output:#?}{}",
        run(&lab, "server", "cat /run/sshd.log")
    );
    assert!(output.stdout.contains("/dev/pts/"), "{output:#?}");
    assert!(output.stdout.contains(user.as_str()), "{output:#?}");
    lab.vdectl(["stop", "--all"]).ok();
}

#[test]
fn dnsmasq_serves_dhclient_with_an_address_and_a_name_server() {
    need!("newuidmap", "dnsmasq", "dhclient");
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    start(&lab, "--map-auto", "server", "10.0.0.1/24", &vnl);
    // It changes to a user of its own.
    run(
        &lab,
        "server",
        "dnsmasq --conf-file=/dev/null --pid-file=/run/dnsmasq.pid --dhcp-leasefile=/run/leases \
           --dhcp-range=10.0.0.10,10.0.0.10 --interface=vde0 --bind-interfaces --no-ping \
           --address=/inside.test/192.0.2.7 --no-resolv --no-hosts </dev/null >/dev/null 2>&1",
    );
    lab.vdens(["-d", "--map-auto", "--name", "client", "--up", &vnl])
        .ok();
    lab.vdectl(["wait", "client", "--link-up"]).ok();
    let said = run(
        &lab,
        "client",
        "dhclient -1 -pf /run/dhclient.pid -lf /run/leases vde0 >/run/log 2>&1 </dev/null || cat /run/log
         ip -br addr show vde0; cat /etc/resolv.conf; getent ahostsv4 inside.test",
    );
    for part in ["10.0.0.10/24", "nameserver 10.0.0.1", "192.0.2.7"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    lab.vdectl(["stop", "--all"]).ok();
}

#[test]
fn keepalived_takes_an_address() {
    need!("keepalived");
    let lab = Lab::new();
    start(&lab, "--root", "a", "10.0.0.1/24", "null://");
    run(
        &lab,
        "a",
        "printf 'global_defs {\n vrrp_version 3\n}\nvrrp_instance a {\n interface vde0\n \
           virtual_router_id 5\n advert_int 0.1\n virtual_ipaddress {\n  10.0.0.99/24\n }\n}\n' \
           >/run/conf
         keepalived -f /run/conf -p /run/pid -r /run/vrrp >/dev/null 2>&1 </dev/null",
    );
    wait_until("the virtual address", PATIENCE, || {
        run(&lab, "a", "ip -br addr show vde0").contains("10.0.0.99/24")
    });
    lab.vdectl(["stop", "a"]).ok();
}

#[test]
fn iptables_legacy_ip_netns_and_bwrap_work_as_root() {
    need!("iptables-legacy", "bwrap");
    let lab = Lab::new();
    start(&lab, "--root", "a", "10.0.0.1/24", "null://");
    run(
        &lab,
        "a",
        "iptables-legacy -t nat -A POSTROUTING -j MASQUERADE",
    );
    assert!(run(&lab, "a", "iptables-legacy -t nat -S").contains("-j MASQUERADE"));
    let links = run(
        &lab,
        "a",
        "ip netns add n; ip netns exec n ip -br link; ip netns del n",
    );
    assert!(
        links.starts_with("lo ") && !links.contains("vde0"),
        "{links}"
    );
    let inside = run(&lab, "a", "bwrap --dev-bind / / ip -br addr show vde0");
    assert!(inside.contains("10.0.0.1/24"), "{inside}");
    lab.vdectl(["stop", "a"]).ok();
}

/// A container in the session's network. The locks of root's podman are in /dev/shm. The machine's
/// cgroups are hidden, because crun(1) refuses those of two versions at once, which the container
/// does not use.
#[test]
fn podman_runs_a_container_in_the_sessions_network() {
    need!("newuidmap", "podman", "crun", "busybox");
    let lab = Lab::new();
    start(&lab, "--map-auto", "a", "10.0.0.1/24", "null://");
    let (root, storage) = (lab.path("root"), lab.path("storage"));
    run(
        &lab,
        "a",
        &format!(
            "mkdir -p {root}/bin {root}/dev {root}/etc {root}/proc {root}/run {root}/sys {root}/tmp
             cp $(command -v busybox) {root}/bin
             mount -t tmpfs none /dev/shm; mount -t tmpfs none /sys/fs/cgroup"
        ),
    );
    let podman = format!(
        "podman --root {storage} --runroot /run/podman --cgroup-manager cgroupfs \
             --events-backend file run --rm --cgroups disabled --network host \
             --rootfs {root} /bin/busybox ip addr show vde0; rm -rf {storage} {root}"
    );
    let inside = run(&lab, "a", &podman);
    assert!(inside.contains("10.0.0.1/24"), "{inside}");
    lab.vdectl(["stop", "a"]).ok();
}

#[test]
fn nsenter_and_bwrap_join_an_ordinary_session() {
    need!("nsenter", "bwrap", "setpriv");
    let lab = Lab::new();
    lab.vdens(["-d", "--name", "a", "--addr", "10.0.0.1/24", "null://"])
        .ok();
    let joined = lab
        .sh("nsenter -t $(vdectl pid a) -U --preserve-credentials -n ip -br addr show vde0")
        .ok();
    assert!(joined.contains("10.0.0.1/24"), "{joined}");
    // bwrap refuses to start with capabilities, so it must lose them.
    let dropped = ["setpriv", "--ambient-caps=-all", "--inh-caps=-all"];
    let bwrap = [
        "bwrap",
        "--dev-bind",
        "/",
        "/",
        "ip",
        "-br",
        "addr",
        "show",
        "vde0",
    ];
    let inside = lab.vdectl(["exec", "a"]).args(dropped).args(bwrap).ok();
    assert!(inside.contains("10.0.0.1/24"), "{inside}");
    lab.vdectl(["stop", "a"]).ok();
}
