//! Wrong VNLs, and hosts that lack something.

use vdens_tests::{Lab, PATIENCE, need, wait_until};

use crate::nat_internet::Internet;

#[test]
fn what_is_wrong_in_a_vnl_is_said() {
    let lab = Lab::new();
    for (vnl, words) in [
        ("nat://shoe=3", &["unknown key 'shoe'", "valid keys"][..]),
        ("nat://net='10.9.0.0'", &["net=10.9.0.0", "10.0.2.0/24"]),
        (
            "nat://net='10.9.0.0/33'",
            &["net=10.9.0.0/33", "10.0.2.0/24"],
        ),
        ("nat://net6='fd00::/129'", &["net6=fd00::/129", "/64"]),
        ("nat://ipv4=maybe", &["ipv4=maybe", "yes or no"]),
        ("nat://net='10.9.0.0/30'", &["net=10.9.0.0/30", "a /27"]),
        ("nat://net='10.9.0.0/28'", &["net=10.9.0.0/28", "a /27"]),
        ("nat://net6='fd00::/120'", &["net6=fd00::/120", "not a /64"]),
        ("nat://net6='fd00::/127'", &["net6=fd00::/127", "not a /64"]),
        (
            "nat://ipv4=no/ipv6=no",
            &["ipv4=no and ipv6=no", "leave out one of them"],
        ),
        (
            "nat://net='127.0.0.0/24'",
            &["127.0.0.0/8 of lo", "cannot be reached", "net="],
        ),
        ("nat://bind=9.9.9.9", &["bind=9.9.9.9", "ip addr"]),
        ("nat://dns=x", &["dns=x", "dns=192.0.2.53"]),
        ("nat://host=x", &["host=x", "host=10.0.2.2"]),
        ("nat://bind=x", &["bind=x", "192.0.2.1"]),
        ("nat://mtu=x", &["mtu=x", "mtu=1500"]),
        ("nat://tcp=x:80", &["'x:80' is no forward", "tcp=8080:80"]),
        ("nat://tcp=8080-8090:80-81", &["different lengths"]),
        ("nat://udp=0", &["'0' is no forward", "udp=8080:80"]),
        (
            "nat://tcp=8080,8080",
            &[
                "cannot forward tcp 127.0.0.1:8080",
                "the VNL also has",
                "once",
            ],
        ),
        (
            "nat://udp=5000-5009,0.0.0.0:5005:53",
            &[
                "cannot forward udp 0.0.0.0:5005",
                "the VNL also has udp 127.0.0.1:5005",
            ],
        ),
    ] {
        lab.vdens([vnl, "true"]).refused(words);
    }
}

/// A network inside that has the host's own addresses hides the host's: of one that the user names
/// it is an error, of the default, as of a session in a session, a warning.
#[test]
fn a_network_of_the_hosts_own() {
    need!("root", "python3", "dnsmasq", "curl");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    for (vnl, words) in [
        (
            "nat://net='192.0.2.0/25'",
            &["192.0.2.0/24 of up0", "net="][..],
        ),
        ("nat://net='192.0.0.0/16'", &["192.0.2.0/24 of up0", "net="]),
        (
            "nat://net6='2001:db8::/64'",
            &["2001:db8::/64 of up0", "net6="],
        ),
    ] {
        lab.vdens([vnl, "true"]).inside(&net.host).refused(words);
    }
    let vdens = lab.bin().join("vdens");
    let session = net.session(&["--auto", "nat://dns=192.0.2.1"]);
    let (status, said) = session.run(&format!(
        "{} --auto nat:// curl -sS http://server.test:8000/page 2>&1",
        vdens.display()
    ));
    assert_eq!(status, 0, "{said}");
    for words in ["10.0.2.0/24 of vde0", "fd76:6465:6e73::/64 of vde0"] {
        assert!(said.contains(words), "{said}");
    }
    assert!(said.ends_with("the page"), "{said}");
    assert_eq!(session.exit(0).code(), Some(0));
}

/// A host without a way out by IPv6: clients have addresses among themselves, and no default route,
/// so programs do not try.
#[test]
fn a_host_without_ipv6() {
    need!("root", "python3", "dnsmasq", "curl");
    let lab = Lab::new();
    let net = Internet::without_ipv6(&lab);
    let session = net.session(&["--auto", "nat://dns=192.0.2.1"]);
    assert_eq!(session.ok("ip -6 route show default").trim(), "");
    assert!(session.ok("ip -6 route").contains("fd76:6465:6e73::/64"));
    let page = session.ok("curl -sS http://server.test:8000/page");
    assert_eq!(page, "the page");
    let (status, said) = session.run("curl -sS http://server6.test:8000/page");
    assert_ne!(status, 0, "{said}");
    assert_eq!(session.exit(0).code(), Some(0));
}

/// The host's name servers are read when they are needed, and a host need not have any.
#[test]
fn a_host_without_name_servers() {
    need!("root", "python3", "dnsmasq", "curl");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let resolv = lab.write("resolv.conf", "");
    let session = lab
        .vdens(["--auto", "nat://", "sh"])
        .on_changed_machine(&format!("mount --bind {resolv} /etc/resolv.conf"))
        .inside(&net.host)
        .session();
    let by_address = "curl -sS http://198.51.100.1:8000/page";
    let by_name = "curl -sS -m 30 http://server4.test:8000/page";
    assert_eq!(session.ok(by_address), "the page");
    let (status, said) = session.run(by_name);
    assert_eq!(
        status, 6,
        "curl's status for a name that is not found: {said}"
    );
    std::fs::write(&resolv, "nameserver 192.0.2.1\n").unwrap();
    wait_until("the new name server is asked", PATIENCE, || {
        session.run(by_name).1 == "the page"
    });
    assert_eq!(session.exit(0).code(), Some(0));
    // An empty directory in place of /etc has no such file at all.
    let none = lab
        .vdens(["--auto", "nat://", "sh"])
        .on_changed_machine(
            "cp -r /etc/passwd /etc/group .; mount -t tmpfs none /etc; mv passwd group /etc",
        )
        .inside(&net.host)
        .session();
    assert_eq!(none.ok(by_address), "the page");
    assert_eq!(none.run(by_name).0, 6);
    assert_eq!(none.exit(0).code(), Some(0));
}
