//! What a network behind `nat://` must not reach.

use vdens_tests::{Lab, PATIENCE, need, wait_until};

use crate::nat_internet::{Internet, SERVERS, gateway};

#[test]
fn the_hosts_loopback_is_closed_unless_opened() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let servers = lab.write(
        "servers2.py",
        SERVERS
            .replace("\"0.0.0.0\"", "\"127.0.0.1\"")
            .replace("\"::\"", "\"::1\""),
    );
    let local = net
        .host
        .sh(&format!("exec python3 {servers} {} 2>&1", net.www))
        .spawn();
    wait_until("it listens", PATIENCE, || {
        net.host.sh("ss -lnt").ok().contains("127.0.0.1:80")
    });
    let closed = net.session(&["--auto", "nat://"]);
    for address in [
        "10.0.2.2",
        "10.0.2.3",
        "127.0.0.1",
        "fd76:6465:6e73::2",
        "fd76:6465:6e73::3",
        "::1",
        "::ffff:127.0.0.1",
    ] {
        let (status, said) = closed.run(&net.who(address));
        assert_ne!(status, 0, "{address}: {said}");
    }
    assert_eq!(closed.exit(0).code(), Some(0));
    let open = net.session(&["--auto", "nat://host=10.0.2.2"]);
    assert_eq!(open.ok(&net.who("10.0.2.2")).trim(), "you are 127.0.0.1");
    assert_eq!(open.exit(0).code(), Some(0));
    drop(local);
}

/// The proxy is asked through a socket in a directory that is closed to others, and the gateway's
/// own sockets are for the kernel: no port leads to either.
#[test]
fn no_port_leads_to_the_gateway_or_the_proxy() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let session = net.session(&["--auto", "nat://"]);
    session.ok("true");
    let listening = net.host.sh("ss -Hlntu").ok();
    assert_eq!(listening.trim(), "", "the proxy listens on the host");

    let gateway = gateway(&lab);
    let listening = net
        .host
        .sh(&format!("nsenter -t {gateway} -n ss -Hlnt"))
        .ok();
    let ports: Vec<_> = listening
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.rsplit_once(':'))
        .map(|(_, port)| port.to_owned())
        .collect();
    assert!(!ports.is_empty(), "{listening}");
    let script = lab.write(
        "ports.py",
        r#"
import socket, sys
for address in ("10.0.2.2", "10.0.2.3", "fd76:6465:6e73::2", "fd76:6465:6e73::3"):
    for port in [int(p) for p in sys.argv[1:]] + list(range(1, 53)) + list(range(54, 500)):
        s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET); s.settimeout(30)
        try:
            s.connect((address, port)); print("open:", address, port)
        except ConnectionRefusedError:
            pass
        s.close()
"#,
    );
    let said = session.ok(&format!("python3 {script} {}", ports.join(" ")));
    assert_eq!(said, "");
    assert_eq!(session.exit(0).code(), Some(0));
}
