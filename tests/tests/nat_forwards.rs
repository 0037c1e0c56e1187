//! Forwards: ports of the host that lead inside.

use vdens_tests::{Lab, Netns, PATIENCE, need, wait_until};

use crate::nat_internet::Internet;

#[test]
fn forwards_show_the_client() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let vnl = "nat://tcp=0.0.0.0:8080:80,127.0.0.1:8081:80/udp=0.0.0.0:5353:53";
    let service = lab.write(
        "service.py",
        r#"
import socket, threading
t = socket.socket(); t.bind(("0.0.0.0", 80)); t.listen(100)
u = socket.socket(type=socket.SOCK_DGRAM); u.bind(("0.0.0.0", 53))
def datagrams():
    while True:
        data, a = u.recvfrom(100); u.sendto(a[0].encode(), a)
threading.Thread(target=datagrams, daemon=True).start()
while True:
    c, a = t.accept(); c.sendall(a[0].encode()); c.close()
"#,
    );
    let udp = lab.write(
        "udp.py",
        r#"
import socket, sys
s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(30); s.connect((sys.argv[1], int(sys.argv[2])))
s.send(b"x"); print(s.recv(100).decode())
"#,
    );
    let inside = lab
        .vdens(["--auto", vnl, "python3", &service])
        .inside(&net.host)
        .spawn();
    let tcp = |netns: &Netns<'_>, address: &str, port: u16| {
        netns
            .sh(&format!("python3 {} {address} {port} ''", net.ask))
            .run()
    };
    wait_until("the service answers", PATIENCE, || {
        tcp(&net.far, "192.0.2.2", 8080).code() == Some(0)
    });
    assert_eq!(tcp(&net.far, "192.0.2.2", 8080).stdout.trim(), "192.0.2.1");
    assert_eq!(tcp(&net.host, "127.0.0.1", 8081).stdout.trim(), "10.0.2.2");
    assert_ne!(
        tcp(&net.far, "192.0.2.2", 8081).code(),
        Some(0),
        "it listens on loopback only"
    );
    let said =
        |netns: &Netns<'_>, address: &str| netns.sh(&format!("python3 {udp} {address} 5353")).ok();
    assert_eq!(said(&net.far, "192.0.2.2").trim(), "192.0.2.1");
    assert_eq!(said(&net.host, "127.0.0.1").trim(), "10.0.2.2");
    // A port that is taken, one that is reserved, and nonsense.
    lab.vdens(["nat://tcp=0.0.0.0:8080:81", "true"])
        .inside(&net.host)
        .refused(&["cannot forward tcp 0.0.0.0:8080", "in use"]);
    lab.vdens(["nat://tcp=81", "true"])
        .inside(&net.host)
        .refused(&["cannot forward tcp 127.0.0.1:81", "1024"]);
    lab.vdens(["nat://tcp=x:80", "true"])
        .refused(&["'x:80' is no forward", "tcp=8080:80"]);
    lab.vdens(["nat://shoe=3", "true"])
        .refused(&["unknown key 'shoe'"]);
    inside.terminate();
}
