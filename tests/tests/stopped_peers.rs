//! A peer that is stopped delays no other: neither another link of the same namespace, nor another
//! pair on the same switch.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vdens_tests::{Cmd, Lab, PATIENCE, Session, becomes_true, children, name, need, wait_until};

use crate::status::{link, status};

/// A session whose network is stopped, with all that belongs to it, until this is dropped.
struct Stopped(Vec<Pid>);

impl Stopped {
    fn new(session: &Session<'_>) -> Self {
        // The supervisor first: it would see to a worker that does not answer.
        let pids: Vec<Pid> = family(session).into_iter().map(Pid::from_raw).collect();
        for pid in &pids {
            kill(*pid, Signal::SIGSTOP).unwrap();
        }
        Self(pids)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            kill(*pid, Signal::SIGCONT).unwrap();
        }
    }
}

/// A session's process, and its workers, which lead groups of their own. Its command goes on:
/// Debian's vdens takes a child that stops for one that has ended, and closes its link.
fn family(session: &Session<'_>) -> Vec<i32> {
    let pid = session.proc().pid();
    let workers = children(pid).into_iter();
    let workers = workers.filter(|child| name(*child) == name(pid));
    [pid].into_iter().chain(workers).collect()
}

/// In user space, so that there is something to get stuck.
fn member<'lab>(command: Cmd<'lab>, addresses: &[(&str, &str)]) -> Session<'lab> {
    let session = command.session();
    for (interface, address) in addresses {
        session.address(interface, address);
    }
    session
}

/// Keeps sending to a peer that takes no frames, so that its queue is full from then on.
fn press(session: &Session<'_>, address: &str) {
    session.ok(&format!(
        "socat -u OPEN:/dev/zero UDP-SENDTO:{address}:9 >/dev/null 2>&1 & z=$!; sleep 0.5; kill $z; wait $z
         ping -q -i 0.01 {address} >/dev/null 2>&1 & p=$!"
    ));
}

/// Pings at a steady pace: a busy machine loses some, a pair that waits for others all.
#[track_caller]
fn check_pings(lab: &Lab, from: &Session<'_>, to: &str) {
    let (_, text) = from.run(&format!("ping -q -c 100 -i 0.01 -W 10 {to}"));
    let status = || lab.vdectl(["status"]).ok();
    let received = text
        .split(", ")
        .find_map(|part| part.strip_suffix(" received"));
    let received: u32 = received.and_then(|number| number.parse().ok()).unwrap_or(0);
    assert!(received >= 80, "{text}{}", status());
}

#[test]
fn a_link_whose_peer_is_stopped() {
    need!("socat");
    let lab = Lab::new();
    let [bad, good] = ["bad", "good"].map(|name| lab.vnl("ptp", name));
    let a = member(
        lab.vdens(["--no-panel", "--multi", &bad, &good, "--", "sh"]),
        &[("vde0", "10.0.0.1/24"), ("vde1", "10.0.1.1/24")],
    );
    let end =
        |vnl: &str, address| member(lab.vdens(["--no-panel", vnl, "sh"]), &[("vde0", address)]);
    let (b, c) = (end(&bad, "10.0.0.2/24"), end(&good, "10.0.1.2/24"));
    a.ping("10.0.0.2");
    a.ping("10.0.1.2");
    // A neighbour that does not answer is otherwise sent nothing for long.
    let show = b.ok("ip -o link show vde0 | sed 's/.*ether \\([^ ]*\\) .*/\\1/'");
    a.ok(&format!(
        "ip neigh replace 10.0.0.2 lladdr {} dev vde0",
        show.trim()
    ));
    let stopped = Stopped::new(&b);
    press(&a, "10.0.0.2");
    assert_ne!(
        a.run("ping -c 1 -W 1 10.0.0.2").0,
        0,
        "the peer is not stopped"
    );
    check_pings(&lab, &a, "10.0.1.2");
    check_pings(&lab, &c, "10.0.1.1");
    a.send_file(&c, "10.0.1.2", 32);
    c.send_file(&a, "10.0.1.1", 32);
    a.ok("kill $p; wait $p; true");
    drop(stopped);
    a.ping("10.0.0.2");
}

/// What the switch has dropped for the client, because its queue was full.
fn dropped(lab: &Lab, switch: u32, client: &Session<'_>) -> u64 {
    let status = status(lab);
    let ports = link(&status, switch, 1)["switch"]["ports"].clone();
    let family = family(client);
    let is_clients = |port: &&Value| {
        let pid = port["client"]["pid"].as_i64();
        pid.is_some_and(|pid| family.contains(&i32::try_from(pid).unwrap()))
    };
    let ports = ports.as_array().unwrap();
    let port = ports.iter().find(is_clients);
    let port = port.unwrap_or_else(|| panic!("{ports:#?}"));
    port["dropped"]["queue_full"].as_u64().unwrap_or_default()
}

#[test]
fn clients_of_a_switch_that_are_stopped() {
    need!("socat", "vdens");
    let lab = Lab::new();
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let vnl = lab.vnl("vde", "sw");
    let ours = |address| member(lab.vdens(["--no-panel", &vnl, "sh"]), &[("vde0", address)]);
    let (a, b) = (ours("10.0.0.1/24"), ours("10.0.0.2/24"));
    let own = ours("10.0.0.3/24");
    let debians = member(
        lab.debian("vdens", [&vnl, "sh"]),
        &[("vde0", "10.0.0.4/24")],
    );
    for address in ["10.0.0.3", "10.0.0.4"] {
        a.ping(address);
        a.ok(&format!(
            "ip neigh replace {address} lladdr $(ip neigh show {address} dev vde0 | sed 's/.*lladdr \\([^ ]*\\) .*/\\1/') dev vde0"
        ));
    }
    a.ping("10.0.0.2");
    let pid = switch.pid().cast_unsigned();
    let stuck = [(&own, "10.0.0.3"), (&debians, "10.0.0.4")];
    let counts = || stuck.map(|(session, _)| dropped(&lab, pid, session));
    let counted = counts();
    let stopped = stuck.map(|(session, _)| Stopped::new(session));
    for (_, address) in stuck {
        press(&a, address);
        a.ok("q=\"$q $p\"");
    }
    wait_until("drops are counted", PATIENCE, || {
        counts()
            .iter()
            .zip(counted)
            .all(|(now, before)| *now > before)
    });
    check_pings(&lab, &a, "10.0.0.2");
    check_pings(&lab, &b, "10.0.0.1");
    a.send_file(&b, "10.0.0.2", 32);
    b.send_file(&a, "10.0.0.1", 32);
    a.ok("kill $q; wait $q; true");
    drop(stopped);
    for (_, address) in stuck {
        let answered = becomes_true(PATIENCE, || {
            a.run(&format!("ping -c 1 -W 1 {address}")).0 == 0
        });
        assert!(answered, "{address}: {}", lab.vdectl(["status"]).ok());
    }
    // Debian's may leave its socket.
    drop((own, debians));
    lab.expect("sw");
}
