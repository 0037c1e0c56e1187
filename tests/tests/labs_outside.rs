//! What labs lead to: networks outside, programs of others, the Internet; and what runs in nodes.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{Lab, PATIENCE, need, wait_until};

use super::labs::Up;

#[test]
fn links_lead_outside() {
    let kit = Lab::new();
    let cable = kit.vnl("ptp", "cable");
    let switch = kit.vnl("switch", "sw");
    let text = format!(
        r#"
[nodes.a]
[nodes.b]
[nodes.c]
[[links]]
ends = ["a:eth0=10.0.0.1/24", "{cable}"]
[[links]]
ends = ["b:eth0=10.1.0.1/24", "{}"]
both = {{ delay = "5ms" }}
[[switches]]
name = "lan"
ports = ["c:eth0=10.2.0.1/24"]
uplink = "{}"
"#,
        kit.vnl("vde", "sw"),
        kit.vnl("ptp", "up"),
    );
    let _switch = kit.vde_plug(["null://", &switch]).spawn();
    kit.wait_for("sw/ctl");
    let peer = |address: &str, vnl: &str| kit.vdens(["--addr", address, vnl, "sh"]).session();
    let a = peer("10.0.0.2/24", &cable);
    let b = peer("10.1.0.2/24", &kit.vnl("vde", "sw"));
    let c = peer("10.2.0.2/24", &kit.vnl("ptp", "up"));
    let lab = Up::new(&kit, "outside", &text);
    lab.ping("a", "10.0.0.2");
    lab.ping("b", "10.1.0.2");
    lab.ping("c", "10.2.0.2");
    // A worker that is killed is replaced.
    kill(Pid::from_raw(lab.worker("link b:eth0")), Signal::SIGKILL).unwrap();
    lab.reaches("b", "10.1.0.2");
    for session in [a, b, c] {
        session.exit(0);
    }
    // A link that cannot be opened stops the start.
    let file = kit.write(
        "bad.toml",
        "[nodes.a]\n[[links]]\nends = [\"a:e\", \"vde:///nowhere/sw\"]\n",
    );
    kit.vdectl(["lab", "up", &file])
        .refused(&["a:e", "/nowhere/sw"]);
}

/// `up` returns when the way is there, and so commands of nodes can use it.
#[test]
fn a_switch_leads_to_the_internet() {
    let kit = Lab::new();
    let text = r#"
[nodes.h]
exec = ["ping -nc 1 -W 60 10.0.2.2"]
[[switches]]
name = "lan"
ports = ["h:eth0=10.0.2.10/24"]
uplink = "nat://"
"#;
    let lab = Up::new(&kit, "natted", text);
    lab.ping("h", "10.0.2.2");
}

#[test]
fn a_far_end_that_is_missing_is_named_and_seen_when_it_comes_and_goes() {
    let kit = Lab::new();
    let vnl = kit.vnl("ptp", "up");
    let text = format!(
        "[nodes.h]\n[[switches]]\nname = \"lan\"\nports = [\"h:eth0=10.0.0.1/24\"]\nuplink = \"{vnl}\"\n"
    );
    let file = kit.write("lonely.toml", text);
    let up = kit.vdectl(["lab", "up", &file]).run();
    assert_eq!(up.code(), Some(0), "{up:?}");
    let warning = format!("link lan – {vnl}: no carrier yet");
    assert!(up.stderr.contains(&warning), "{}", up.stderr);
    let status = || kit.vdectl(["lab", "status", "lonely"]).ok();
    let link = format!("link lan – {vnl}");
    let line = |text: &str| {
        text.lines()
            .find(|line| line.contains(&link))
            .unwrap()
            .to_owned()
    };
    assert!(line(&status()).contains("NO-CARRIER"), "{}", status());
    let events = kit.vdectl(["lab", "events"]).spawn();
    wait_until("the first event", PATIENCE, || {
        events.stdout().contains("running")
    });
    let peer = kit.vdens(["--addr", "10.0.0.2/24", &vnl, "sh"]).session();
    let told = |carrier: bool| {
        let event = format!(r#""interface":"lan – {vnl}","carrier":{carrier}}}"#);
        wait_until(&event, PATIENCE, || events.stdout().contains(&event));
    };
    told(true);
    peer.ping("10.0.0.1");
    assert!(!line(&status()).contains("NO-CARRIER"), "{}", status());
    peer.exit(0);
    told(false);
    kit.vdectl(["lab", "down"]).ok();
    events.wait(PATIENCE);
}

#[test]
fn long_frames_pass_an_uplink() {
    let kit = Lab::new();
    let vnl = kit.vnl("ptp", "up");
    let peer = kit
        .vdens(["--mtu", "9000", "--addr", "10.0.0.2/24", &vnl, "sh"])
        .session();
    let text = format!(
        "[nodes.h]\n[[switches]]\nname = \"lan\"\nmtu = 9000\n\
         ports = [\"h:eth0=10.0.0.1/24\"]\nuplink = \"{vnl}\"\n"
    );
    let lab = Up::new(&kit, "jumbo", &text);
    lab.ok("h", "ping -nc 1 -W 5 -M do -s 8000 10.0.0.2");
    peer.ok("ping -nc 1 -W 5 -M do -s 8000 10.0.0.1");
    peer.exit(0);
}

#[test]
fn links_lead_to_debians_programs() {
    need!("vdens", "vde_switch");
    let kit = Lab::new();
    let switch = kit
        .debian("vde_switch", ["-s", &kit.path("sw")])
        .spawn_piped();
    kit.wait_for("sw/ctl");
    let (port, cable) = (kit.vnl("vde", "sw"), kit.vnl("ptp", "p"));
    let far = kit.debian("vdens", [&port, "sh"]).session();
    far.address("vde0", "10.0.0.2/24");
    let near = kit.debian("vdens", [&cable, "sh"]).session();
    near.address("vde0", "10.1.0.2/24");
    let text = format!(
        "[nodes.a]\n[[links]]\nends = [\"a:eth0=10.0.0.1/24\", \"{port}\"]\n\
         [[links]]\nends = [\"a:eth1=10.1.0.1/24\", \"{cable}\"]\n"
    );
    let lab = Up::new(&kit, "debian", &text);
    for (peer, their, our) in [
        (&far, "10.0.0.2", "10.0.0.1"),
        (&near, "10.1.0.2", "10.1.0.1"),
    ] {
        lab.ping("a", their);
        peer.ping(our);
    }
    drop(lab);
    drop((far, near));
    drop(switch);
}

#[test]
fn a_link_leads_to_a_virtual_machine() {
    need!("guest", "qemu-system-x86_64");
    let kit = Lab::new();
    let vnl = kit.vnl("ptp", "p");
    let guest = super::vm::guest(&kit, &vnl);
    guest.address("eth0", "10.0.0.2/24");
    let text = format!(
        "[nodes.a]\n[nodes.b]\n[[switches]]\nname = \"lan\"\n\
         ports = [\"a:eth0=10.0.0.1/24\", \"b:eth0=10.0.0.3/24\", \"{vnl}\"]\n"
    );
    let lab = Up::new(&kit, "machine", &text);
    lab.ping("a", "10.0.0.2");
    guest.ping("10.0.0.3");
}

#[test]
fn a_link_leads_to_a_tap() {
    need!("root");
    let kit = Lab::new();
    let host = kit.netns();
    let user = &kit.user().name;
    host.sh(&format!(
        "ip tuntap add dev tap0 mode tap user {user}; ip addr add 10.0.0.254/24 dev tap0; \
         ip link set tap0 up"
    ))
    .ok();
    let text = "[nodes.a]\n[[links]]\nends = [\"a:eth0=10.0.0.1/24\", \"tap://tap0\"]\n";
    let lab = Up::started(&kit, "tapped", text, |up| up.inside(&host));
    lab.ping("a", "10.0.0.254");
    host.sh("ping -nc 1 -W 5 10.0.0.1").ok();
}

#[test]
fn what_runs_in_nodes() {
    need!("dnsmasq", "tcpdump", "python3");
    let kit = Lab::new();
    let text = r#"
[nodes.server]
services = [
    "exec dnsmasq -k -C /dev/null -p 0 -i eth0 --dhcp-range=10.0.0.10,10.0.0.20 --dhcp-leasefile=/run/leases -x /run/dnsmasq.pid --user= --group=",
    "exec python3 -m http.server 80",
]
[nodes.client]
[[links]]
ends = ["server:eth0=10.0.0.1/24", "client:eth0=10.0.0.2/24"]
[[tests]]
node = "client"
run = "python3 -c 'import urllib.request as u; u.urlopen(\"http://10.0.0.1/\")'"
within = "30s"
[[tests]]
node = "client"
run = "timeout 5 tcpdump -nc 1 -i eth0 icmp & sleep 0.5; ping -nc 3 -i 0.3 10.0.0.1; wait %1"
within = "30s"
"#;
    let lab = Up::new(&kit, "services", text);
    passes(&kit, "services");
    let status = kit.vdectl(["lab", "status", "services"]).ok();
    assert!(!status.contains("ended with status"), "{status}");
    drop(lab);
    assert!(!Path::new("/run/leases").exists());
}

/// Runs the tests of a lab, which all pass.
#[track_caller]
fn passes(kit: &Lab, lab: &str) {
    let test = kit.vdectl(["lab", "test", lab]).spawn();
    let said = test.wait(4 * PATIENCE);
    assert_eq!(said.code(), Some(0), "{said:#?}");
}

#[test]
fn a_node_gives_addresses_and_another_takes_one() {
    need!("dnsmasq", "dhclient");
    let kit = Lab::new();
    let text = r#"
[nodes.server]
root = true
services = [
    "exec dnsmasq -k -C /dev/null -p 0 -i eth0 --dhcp-range=10.0.0.10,10.0.0.20 --leasefile-ro --pid-file= --user=root --group=",
]
[nodes.client]
root = true
after = ["server"]
exec = [
    """
printf '#!/bin/sh\n[ -z "$new_ip_address" ] || ip address replace "$new_ip_address/24" dev eth0\n' > /run/script
chmod +x /run/script
echo 'timeout 60;' > /run/dhclient.conf
dhclient -1 -4 -sf /run/script -cf /run/dhclient.conf -lf /run/leases -pf /run/pid eth0
""",
]
[[links]]
ends = ["server:eth0=10.0.0.1/24", "client:eth0"]
"#;
    let lab = Up::new(&kit, "dhcp", text);
    assert!(
        lab.ok("client", "ip -4 address show dev eth0")
            .contains(" 10.0.0.1")
    );
    lab.ping("client", "10.0.0.1");
}

#[test]
fn nodes_serve_the_web_and_logins() {
    need!(
        "newuidmap",
        "/usr/sbin/nginx",
        "/usr/sbin/sshd",
        "ssh",
        "curl"
    );
    let kit = Lab::new();
    let key = kit.path("key");
    for file in ["key", "key.pub", "known"] {
        kit.expect(file);
    }
    kit.command("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", &key])
        .ok();
    let user = &kit.user().name;
    let text = format!(
        r#"
[nodes.server]
map_auto = true
exec = ["""
mkdir /run/sshd
cp {key} /run/key
cp {key}.pub /run/authorized
chmod 644 /run/authorized
cat > /run/nginx.conf <<'CONF'
daemon off;
pid /run/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path /run/a; proxy_temp_path /run/b; fastcgi_temp_path /run/c;
    uwsgi_temp_path /run/d; scgi_temp_path /run/e;
    server {{ listen 10.0.0.1:80; location / {{ return 200 'served by nginx'; }} }}
}}
CONF
"""]
services = [
    "exec nginx -e stderr -c /run/nginx.conf",
    "exec /usr/sbin/sshd -D -e -o HostKey=/run/key -o PidFile=none -o StrictModes=no -o UsePAM=no -o AuthorizedKeysFile=/run/authorized",
]
[nodes.client]
[[links]]
ends = ["server:eth0=10.0.0.1/24", "client:eth0=10.0.0.2/24"]
[[tests]]
node = "client"
run = "curl -s --max-time 5 http://10.0.0.1/ | grep 'served by nginx'"
within = "1m"
[[tests]]
node = "client"
run = "ssh -i {key} -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile={known} {user}@10.0.0.1 id -un | grep -x {user}"
within = "1m"
"#,
        known = kit.path("known"),
    );
    let lab = Up::new(&kit, "servers", &text);
    passes(&kit, "servers");
    // nginx's worker and sshd's children are no longer root.
    let users = lab.ok("server", "ps -o user= -C nginx");
    assert!(
        users.contains("root") && users.contains("nobody"),
        "{users}"
    );
}

/// Brings an example up, and runs its tests.
#[track_caller]
fn example_passes(file: &str) {
    let kit = Lab::new();
    let page = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/labs")
        .join(file);
    let text = fs::read(page).unwrap_or_else(|error| panic!("{file}: {error}"));
    passes(&kit, &kit.write(file, text));
}

#[test]
fn the_example_of_a_home_network_works() {
    need!("nft");
    example_passes("edge.toml");
}

#[test]
fn the_example_of_twenty_hosts_works() {
    need!("dnsmasq", "dhclient", "dig");
    example_passes("lan.toml");
}

#[test]
fn the_example_of_a_triangle_of_routers_works() {
    need!("newuidmap", "/usr/lib/frr/ospfd");
    example_passes("ospf.toml");
}
