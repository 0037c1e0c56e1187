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
    // A port that is taken, and one that is reserved.
    lab.vdens(["nat://tcp=0.0.0.0:8080:81", "true"])
        .inside(&net.host)
        .refused(&["cannot forward tcp 0.0.0.0:8080", "in use"]);
    lab.vdens(["nat://tcp=81", "true"])
        .inside(&net.host)
        .refused(&["cannot forward tcp 127.0.0.1:81", "1024"]);
    inside.terminate();
}

/// Serves in a namespace: 80 and the UDP ports tell who asks, and 81 echoes.
const SERVICE: &str = r#"
import socket, threading, time
def tcp(port, serve):
    t = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1000)
    def loop():
        while True:
            c, a = t.accept(); threading.Thread(target=serve, args=(c, a), daemon=True).start()
    threading.Thread(target=loop, daemon=True).start()
def plain(a): return a[0].removeprefix("::ffff:")
def who(c, a): c.sendall(plain(a).encode()); c.shutdown(socket.SHUT_WR); c.recv(1); c.close()
def echo(c, a):
    while data := c.recv(65536): c.sendall(data)
    c.close()
def udp(family, address, port):
    u = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6: u.setsockopt(41, 78, 1)   # IPV6_FREEBIND
    u.bind((address, port))                 # one address: a socket of all answers from any of them
    while True:
        data, a = u.recvfrom(100); u.sendto(("%d %s" % (port, a[0])).encode(), a)
for port in (53, 6000, 6001, 6002):
    for listen in ((socket.AF_INET, "0.0.0.0", port), (socket.AF_INET6, "fd76:6465:6e73::20", port)):
        threading.Thread(target=udp, args=listen, daemon=True).start()
tcp(80, who); tcp(81, echo)
print("serving", flush=True)
time.sleep(100000)
"#;

/// Asks over UDP.
const ASK_UDP: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(30); s.connect((sys.argv[1], int(sys.argv[2])))
s.send(b"x"); print(s.recv(100).decode())
"#;

#[test]
fn forwards_of_both_families_ranges_and_stations() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let vnl = "nat://tcp=0.0.0.0:8080:10.0.2.20:80,[::]:8080:[fd76:6465:6e73::20]:80,8081:10.0.2.20:80\
        /udp=[::]:5353:[fd76:6465:6e73::20]:53,0.0.0.0:5000-5002:10.0.2.20:6000-6002";
    let switch = lab.vnl("switch", "sw");
    let plug = lab.vde_plug([vnl, &switch]).inside(&net.host).spawn();
    lab.wait_for("sw/ctl");
    let service = lab.write("service.py", SERVICE);
    let station = lab
        .vdens(["--addr", "10.0.2.20/24", "--gateway", "10.0.2.2"])
        .args(["--addr", "fd76:6465:6e73::20/64"])
        .args(["--gateway", "fd76:6465:6e73::2", &lab.vnl("vde", "sw")])
        .args(["python3", &service])
        .inside(&net.host)
        .spawn();
    wait_until("the station serves", PATIENCE, || {
        station.stdout().contains("serving")
    });
    let udp = lab.write("udp.py", ASK_UDP);
    let tcp = |from: &Netns<'_>, address: &str, port: u16| {
        let script = format!("python3 {} {address} {port} ''", net.ask);
        from.sh(&script).run().stdout.trim().to_owned()
    };
    // The station's address is usable when nobody else turns out to have it.
    wait_until("a forward leads there by IPv6", PATIENCE, || {
        tcp(&net.far, "2001:db8::2", 8080) == "2001:db8::1"
    });
    assert_eq!(tcp(&net.far, "192.0.2.2", 8080), "192.0.2.1");
    assert_eq!(tcp(&net.host, "127.0.0.1", 8081), "10.0.2.2");
    assert_eq!(tcp(&net.host, "::1", 8080), "fd76:6465:6e73::2");
    let udp = |from: &Netns<'_>, address: &str, port: u16| {
        let said = from.sh(&format!("python3 {udp} {address} {port}")).ok();
        said.trim().to_owned()
    };
    assert_eq!(udp(&net.far, "2001:db8::2", 5353), "53 2001:db8::1");
    for number in 0..3 {
        let seen = udp(&net.far, "192.0.2.2", 5000 + number);
        assert_eq!(seen, format!("{} 192.0.2.1", 6000 + number));
    }
    drop(station);
    plug.terminate();
}

#[test]
fn a_thousand_changes_lose_no_connection() {
    need!("root", "python3");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let service = lab.write("service.py", SERVICE);
    let inside = lab
        .vdens(["--auto", "nat://tcp=8081:81", "python3", &service])
        .inside(&net.host)
        .spawn();
    wait_until("the service listens", PATIENCE, || {
        inside.stdout().contains("serving")
    });
    let load = lab.write(
        "load.py",
        r#"
import os, socket
def connect(): return socket.create_connection(("127.0.0.1", 8081), timeout=60)
def exchange(s, data):
    s.sendall(data)
    got = b""
    while len(got) < len(data):
        more = s.recv(65536); assert more, "the connection ended"
        got += more
    assert got == data
steady = connect()
exchange(steady, b"x"); print("connected", flush=True)
rounds = 0
while not os.path.exists("enough"):
    exchange(steady, os.urandom(50000))
    fresh = connect(); exchange(fresh, os.urandom(1000)); fresh.close()
    rounds += 1
assert rounds > 10, rounds
print("nothing lost")
"#,
    );
    let load = lab.command("python3", [&load]).inside(&net.host).spawn();
    wait_until("the load is on", PATIENCE, || {
        load.stdout().contains("connected")
    });
    lab.expect("enough");
    lab.sh(
        "ports=$(seq -f tcp=%g:80 9001 9025; seq -f udp=%g:53 9001 9025)
        for round in 1 2 3 4 5 6 7 8 9 10; do
            vdectl forward add $ports
            vdectl forward remove $ports
        done
        : >enough",
    )
    .inside(&net.host)
    .ok();
    let output = load.wait(PATIENCE);
    assert!(output.stdout.contains("nothing lost"), "{output:?}");
    let forwards = lab.vdectl(["forward", "list"]).inside(&net.host).ok();
    assert_eq!(forwards.matches(" -> ").count(), 1, "{forwards}");
    inside.terminate();
}
