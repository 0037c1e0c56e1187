//! What a gateway of `nat://` serves, and what `--auto` makes of it.

use vdens_tests::{Lab, Netns, PATIENCE, need, wait_until};

/// The host's network of a test: a loopback interface alone.
fn host(lab: &Lab) -> Netns<'_> {
    let host = lab.netns();
    host.sh("ip link set lo up").ok();
    host
}

/// Serves at a TCP port and at the UDP port of the same number: says who asks.
const SERVICE: &str = r#"
import socket, sys, threading
address, port = sys.argv[1], int(sys.argv[2])
t = socket.socket(); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
t.bind((address, port)); t.listen(100)
u = socket.socket(type=socket.SOCK_DGRAM); u.bind((address, port))
def datagrams():
    while True:
        data, a = u.recvfrom(100); u.sendto(a[0].encode(), a)
threading.Thread(target=datagrams, daemon=True).start()
while True:
    c, a = t.accept(); c.sendall(a[0].encode()); c.close()
"#;

/// Asks a service by TCP or UDP, and says what it says, or the error.
const ASK: &str = r#"
import errno, socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
s = socket.socket(type=kind); s.settimeout(5)
try:
    s.connect((sys.argv[2], int(sys.argv[3])))
    if sys.argv[1] == "udp": s.send(b"x")
    print(s.recv(100).decode())
except TimeoutError:
    print("silence")
except OSError as e:
    print(errno.errorcode[e.errno])
"#;

/// Asks a service from a network.
fn ask(netns: &Netns<'_>, script: &str, what: &str) -> String {
    let said = netns.sh(&format!("python3 {script} {what}")).ok();
    said.trim().to_owned()
}

#[test]
fn auto_follows_what_listens() {
    need!("root", "python3");
    let lab = Lab::new();
    let host = host(&lab);
    let (service, script) = (lab.write("service.py", SERVICE), lab.write("ask.py", ASK));
    let taken = host
        .sh(&format!("exec python3 {service} 127.0.0.1 8001"))
        .spawn();
    let session = lab
        .vdens(["--auto", "nat://tcp=auto/udp=auto", "sh"])
        .inside(&host)
        .session();
    let asked = |what: &str| ask(&host, &script, what);
    assert_eq!(asked("tcp 127.0.0.1 8000"), "ECONNREFUSED");
    let start = |address: &str, port: u16| {
        session
            .ok(&format!(
                "python3 {service} {address} {port} >/dev/null 2>&1 & echo $!"
            ))
            .trim()
            .to_owned()
    };
    let services = [
        start("0.0.0.0", 8000),
        start("10.0.2.15", 8002),
        start("127.0.0.1", 8003),
        start("0.0.0.0", 8001),
        start("0.0.0.0", 80),
    ];
    for port in [8000, 8002] {
        for protocol in ["tcp", "udp"] {
            wait_until("the service is forwarded", PATIENCE, || {
                asked(&format!("{protocol} 127.0.0.1 {port}")) == "10.0.2.2"
            });
        }
    }
    let complains = |words: &[&str]| {
        wait_until("what cannot be forwarded is reported", PATIENCE, || {
            let said = session.proc().stderr();
            let mut lines = said.lines();
            lines.any(|line| words.iter().all(|word| line.contains(word)))
        });
    };
    complains(&["tcp=auto", "127.0.0.1:80 ", "1024"]);
    complains(&["tcp=auto", "127.0.0.1:8001 ", "in use"]);
    assert_eq!(asked("tcp 127.0.0.1 8003"), "ECONNREFUSED");
    let said = session.proc().stderr();
    let lines = said.lines().filter(|line| line.contains("127.0.0.1:80 "));
    assert_eq!(lines.count(), 2, "once for each protocol: {said}");
    // What was taken is forwarded when it is free, and what has ended is not.
    taken.terminate();
    wait_until("the port is forwarded", PATIENCE, || {
        asked("tcp 127.0.0.1 8001") == "10.0.2.2"
    });
    session.ok(&format!("kill {}", services[0]));
    wait_until("the port is closed", PATIENCE, || {
        asked("tcp 127.0.0.1 8000") == "ECONNREFUSED"
    });
    // It ends and begins at run time.
    let list = |lab: &Lab| lab.vdectl(["forward", "list"]).ok();
    assert!(list(&lab).contains("tcp 127.0.0.1: auto"), "{}", list(&lab));
    assert!(list(&lab).contains("tcp 127.0.0.1:8002 -> 10.0.2.15:8002"));
    lab.vdectl(["forward", "remove", "tcp=auto"]).ok();
    assert_eq!(asked("tcp 127.0.0.1 8002"), "ECONNREFUSED");
    assert_eq!(asked("udp 127.0.0.1 8002"), "10.0.2.2");
    lab.vdectl(["forward", "add", "tcp=auto"]).ok();
    wait_until("the port is forwarded", PATIENCE, || {
        asked("tcp 127.0.0.1 8002") == "10.0.2.2"
    });
    session.ok(&format!("kill {}", services[1..].join(" ")));
    assert_eq!(session.exit(0).code(), Some(0));
}

#[test]
fn auto_is_for_one_namespace() {
    need!("root");
    let lab = Lab::new();
    let switch = lab.vnl("switch", "sw");
    lab.vde_plug(["nat://tcp=auto", &switch]).refused(&[
        "tcp=auto",
        "one namespace",
        "name the ports",
    ]);
}
