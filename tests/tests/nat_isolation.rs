//! What a network behind `nat://` must not reach.

use vdens_tests::{Lab, PATIENCE, need, wait_until};

use crate::nat_internet::{Internet, SERVERS};

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
    let closed = lab
        .vdens(["--auto", "nat://", "sh"])
        .inside(&net.host)
        .session();
    for address in [
        "10.0.2.2",
        "10.0.2.3",
        "127.0.0.1",
        "fd76:6465:6e73::2",
        "::ffff:127.0.0.1",
    ] {
        let (status, said) = closed.run(&net.who(address));
        assert_ne!(status, 0, "{address}: {said}");
    }
    assert_eq!(closed.exit(0).code(), Some(0));
    let open = lab
        .vdens(["--auto", "nat://host=10.0.2.2", "sh"])
        .inside(&net.host)
        .session();
    assert_eq!(open.ok(&net.who("10.0.2.2")).trim(), "you are 127.0.0.1");
    assert_eq!(open.exit(0).code(), Some(0));
    drop(local);
}
