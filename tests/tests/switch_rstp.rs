//! Switches in a spanning tree, and loops without one.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vdens_tests::{Lab, PATIENCE, Proc, Session, family, name, need, stretched, wait_until};

use crate::status::status;

/// A switch with keys.
fn switch<'lab>(lab: &'lab Lab, name: &str, keys: &str) -> Proc<'lab> {
    let vnl = lab.vnl("switch", &format!("{name}[{keys}]"));
    let switch = lab.vde_plug(["null://", &vnl]).spawn();
    lab.wait_for(&format!("{name}/ctl"));
    switch
}

/// A cable between two switches.
fn cable<'lab>(lab: &'lab Lab, a: &str, b: &str) -> Proc<'lab> {
    lab.vde_plug([lab.vnl("vde", a), lab.vnl("vde", b)]).spawn()
}

/// A session on a switch, with this address.
fn member<'lab>(lab: &'lab Lab, switch: &str, number: u8) -> Session<'lab> {
    let session = lab.vdens([&lab.vnl("vde", switch), "sh"]).session();
    session.address("vde0", &format!("10.0.0.{number}/24"));
    session
}

/// What the status says of the tree at each of some switches.
fn trees(lab: &Lab, switches: &[&Proc<'_>]) -> Vec<String> {
    let status = status(lab);
    let processes = status["processes"].as_array().cloned().unwrap_or_default();
    let tree = |switch: &&Proc<'_>| {
        let of_pid = |process: &&serde_json::Value| process["pid"] == switch.pid();
        let process = processes.iter().find(of_pid);
        let text = process.map(ToString::to_string).unwrap_or_default();
        let from = text.find("\"spanning tree\":\"").map(|at| at + 17);
        let tree = from.map(|from| text[from..].split('"').next().unwrap_or_default());
        tree.unwrap_or_default().to_owned()
    };
    switches.iter().map(tree).collect()
}

#[track_caller]
fn wait_for_trees(lab: &Lab, switches: &[&Proc<'_>], limit: Duration, wanted: &[&str]) {
    wait_until(&format!("{wanted:?}"), limit, || {
        let trees = trees(lab, switches);
        trees
            .iter()
            .zip(wanted)
            .all(|(tree, words)| tree.contains(words))
    });
}

/// Three switches, each joined to both others. The first is the root.
fn triangle(lab: &Lab) -> ([Proc<'_>; 3], [Proc<'_>; 3]) {
    let switches = [
        ("a", "stp/priority=0"),
        ("b", "stp/priority=4096"),
        ("c", "stp"),
    ]
    .map(|(name, keys)| switch(lab, name, keys));
    let cables = [("a", "b"), ("b", "c"), ("a", "c")].map(|(a, b)| cable(lab, a, b));
    let [a, b, c] = &switches;
    let wanted = ["the root", "cost 20000", "not forwarding: port"];
    wait_for_trees(lab, &[a, b, c], PATIENCE, &wanted);
    (switches, cables)
}

#[test]
fn a_loop_of_three_switches_heals_when_a_cable_is_cut() {
    let lab = Lab::new();
    let ([a, b, c], [ab, bc, ac]) = triangle(&lab);
    let (near, far) = (member(&lab, "a", 1), member(&lab, "c", 2));
    near.ping("10.0.0.2");
    near.start("ping -q -i 0.01 -w 4 10.0.0.2");
    std::thread::sleep(Duration::from_secs(1));
    ac.terminate();
    let (_, text) = near.finish(PATIENCE);
    let number = |words: &str| -> u32 {
        let before = text.split(words).next().unwrap_or_default();
        let number = before.rsplit([' ', '\n']).next().unwrap_or_default();
        number.parse().unwrap_or_else(|_| panic!("{text}"))
    };
    let lost = number(" packets transmitted") - number(" received");
    println!("without a way for some {lost}0 ms");
    assert!(lost < 100, "{text}");
    let wanted = ["the root", "cost 20000", "cost 40000"];
    wait_for_trees(&lab, &[&a, &b, &c], PATIENCE, &wanted);
    drop((near, far, ab, bc));
}

#[test]
fn thirty_changes_of_the_topology_lose_no_connection() {
    need!("iperf3");
    let lab = Lab::new();
    let ([_a, _b, c], [_ab, _bc, mut ac]) = triangle(&lab);
    let (near, far) = (member(&lab, "a", 1), member(&lab, "c", 2));
    // It serves one client, and so one connection.
    far.start("iperf3 -s -1 -F got");
    near.start("until iperf3 -c 10.0.0.2 -b 20M -t 3600 || [ -e enough ]; do sleep 0.1; done");
    let got = || std::fs::metadata(lab.path("got")).map_or(0, |file| file.len());
    wait_until("the first bytes", PATIENCE, || got() > 0);
    for _ in 0..15 {
        ac.terminate();
        let before = got();
        wait_until("bytes by the other way", PATIENCE, || {
            got() > before + 100_000
        });
        ac = cable(&lab, "a", "c");
        wait_for_trees(&lab, &[&c], PATIENCE, &["not forwarding: port"]);
        let before = got();
        wait_until("bytes by the first way", PATIENCE, || {
            got() > before + 100_000
        });
    }
    // Cables that come and go leave the namespaces on the panel.
    assert_eq!(on_panel(&lab, "c").len(), 1);
    assert!(!c.stderr().contains("leads to a bridge"), "{}", c.stderr());
    lab.write("enough", "");
    let clients = family(near.proc().pid());
    for pid in clients
        .into_iter()
        .filter(|pid| name(*pid).as_deref() == Some("iperf3"))
    {
        kill(Pid::from_raw(pid), Signal::SIGINT).ok();
    }
    near.finish(PATIENCE);
    far.finish(PATIENCE);
    lab.expect("got");
}

/// A namespace whose bridge joins two switches, which are joined by a cable as well.
fn linux_bridge<'lab>(lab: &'lab Lab, keys: &str) -> Session<'lab> {
    let vnls = [lab.vnl("vde", "a"), lab.vnl("vde", "b")];
    let session = lab.vdens(["-m", &vnls[0], &vnls[1], "--", "sh"]).session();
    session.ok(&format!(
        "ip link add br0 type bridge stp_state 1 {keys} && \
         ip link set vde0 master br0 && ip link set vde1 master br0 && \
         ip link set vde0 up && ip link set vde1 up && ip link set br0 up"
    ));
    session
}

/// What a port of the Linux bridge is doing.
fn linux_state(session: &Session<'_>, port: &str) -> String {
    let text = session.ok(&format!("ip -d link show {port}"));
    let after = text.split(" state ").last().unwrap_or_default();
    after.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn a_linux_bridge_is_the_root() {
    need!("bridge");
    let lab = Lab::new();
    let (a, b) = (switch(&lab, "a", "stp"), switch(&lab, "b", "stp"));
    let _cable = cable(&lab, "a", "b");
    let times = "priority 0 forward_delay 400 hello_time 100 max_age 600";
    let bridge = linux_bridge(&lab, times);
    wait_until(
        "the Linux bridge as the root",
        stretched(PATIENCE * 3),
        || {
            let trees = trees(&lab, &[&a, &b]);
            let is_at_root =
                |tree: &String| tree.contains("root 0000.") && tree.contains("cost 20000");
            trees.iter().all(is_at_root)
                && trees
                    .iter()
                    .filter(|tree| tree.contains("not forwarding"))
                    .count()
                    == 1
                && ["vde0", "vde1"].map(|port| linux_state(&bridge, port)) == ["forwarding"; 2]
        },
    );
    bridge.ok("ip addr add 10.0.0.3/24 dev br0");
    let (one, two) = (member(&lab, "a", 1), member(&lab, "b", 2));
    one.ping("10.0.0.2");
    two.ping("10.0.0.3");
}

#[test]
fn a_linux_bridge_follows_our_root() {
    need!("bridge");
    let lab = Lab::new();
    let (a, b) = (
        switch(&lab, "a", "stp/priority=0"),
        switch(&lab, "b", "stp"),
    );
    let _cable = cable(&lab, "a", "b");
    let bridge = linux_bridge(&lab, "forward_delay 400");
    wait_for_trees(&lab, &[&a, &b], PATIENCE, &["the root", "cost 20000"]);
    // The Linux bridge offers b a way that costs more than the cable.
    wait_until(
        "b's port as the one that blocks",
        stretched(PATIENCE * 3),
        || {
            trees(&lab, &[&b])[0].contains("not forwarding: port")
                && ["vde0", "vde1"].map(|port| linux_state(&bridge, port)) == ["forwarding"; 2]
        },
    );
    bridge.ok("ip addr add 10.0.0.3/24 dev br0");
    let (one, two) = (member(&lab, "a", 1), member(&lab, "b", 2));
    one.ping("10.0.0.3");
    two.ping("10.0.0.3");
}

/// What a switch says of its ports.
fn ports(lab: &Lab, switch: &str) -> Vec<Value> {
    let asked = lab.vdectl(["switch", "show", "--json", switch, "ports"]);
    let said: Value = serde_json::from_str(&asked.ok()).unwrap_or_default();
    said[0]["ports"].as_array().cloned().unwrap_or_default()
}

/// The numbers of a switch's ports that are on the panel.
fn on_panel(lab: &Lab, switch: &str) -> Vec<u64> {
    let ports = ports(lab, switch).into_iter();
    let ports = ports.filter(|port| port["is_on_panel"] == true);
    ports.filter_map(|port| port["number"].as_u64()).collect()
}

#[track_caller]
fn wait_for_panel(lab: &Lab, switch: &str, limit: Duration, wanted: &[u64]) {
    wait_until(&format!("{wanted:?} on the panel"), limit, || {
        on_panel(lab, switch) == wanted
    });
}

/// A namespace that bridges two ports of switch `a`, without a spanning tree of its own.
fn short_circuit(lab: &Lab) -> Session<'_> {
    let vnls = [lab.vnl("vde", "a[3]"), lab.vnl("vde", "a[4]")];
    let session = lab.vdens(["-m", &vnls[0], &vnls[1], "--", "sh"]).session();
    wait_for_panel(lab, "a", PATIENCE, &[1, 2, 3, 4]);
    session.ok(
        "ip link add br0 type bridge && ip link set vde0 master br0 && \
         ip link set vde1 master br0 && ip addr add 10.0.0.3/24 dev br0 && \
         ip link set vde0 up && ip link set vde1 up && ip link set br0 up",
    );
    session
}

#[test]
fn namespaces_are_on_the_panel_and_in_the_tree() {
    let lab = Lab::new();
    let _switch = switch(&lab, "a", "stp");
    let [one, two] = [1, 2].map(|number| member(&lab, &format!("a[{number}]"), number));
    let vnl = lab.vnl("vde", "a");
    let three = lab.vdens(["--no-panel", &vnl, "sh"]).session();
    three.address("vde0", "10.0.0.3/24");
    wait_for_panel(&lab, "a", PATIENCE, &[1, 2]);
    one.ping("10.0.0.2");
    one.ping("10.0.0.3");
    two.ping("10.0.0.3");
    let tree = lab.vdectl(["switch", "show", "--json", "a", "stp"]).ok();
    let tree: Value = serde_json::from_str(&tree).unwrap();
    let ports = tree[0]["stp"]["ports"].as_array().unwrap();
    let forwards = |port: &&Value| port["state"] == "forwarding" && port["edge"] == true;
    assert_eq!(ports.iter().filter(forwards).count(), 4, "{tree:#}");
}

/// The keys of a tree with the shortest times.
const QUICK: &str = "stp/hello=1/maxage=6/fdelay=4";

#[test]
fn a_linux_bridge_on_the_panel_is_found() {
    need!("bridge");
    let lab = Lab::new();
    let a = switch(&lab, "a", QUICK);
    let [one, two] = [1, 2].map(|number| member(&lab, &format!("a[{number}]"), number));
    let bridge = lab.vdens([&lab.vnl("vde", "a[3]"), "sh"]).session();
    wait_for_panel(&lab, "a", PATIENCE, &[1, 2, 3]);
    bridge.ok(
        "ip link add br0 type bridge stp_state 1 priority 0 forward_delay 400 hello_time 100 && \
         ip link set vde0 master br0 && ip addr add 10.0.0.3/24 dev br0 && \
         ip link set vde0 up && ip link set br0 up",
    );
    wait_for_panel(&lab, "a", stretched(PATIENCE), &[]);
    one.ping("10.0.0.2");
    let wanted = ["root 0000."];
    wait_for_trees(&lab, &[&a], stretched(PATIENCE), &wanted);
    wait_for_panel(&lab, "a", stretched(PATIENCE), &[1, 2]);
    wait_until("a way to the Linux bridge", stretched(PATIENCE), || {
        linux_state(&bridge, "vde0") == "forwarding"
    });
    one.ping("10.0.0.3");
    two.ping("10.0.0.3");
}

#[test]
fn a_loop_through_a_namespace_on_the_panel_heals() {
    need!("bridge");
    let lab = Lab::new();
    let a = switch(&lab, "a", QUICK);
    let [one, two] = [1, 2].map(|number| member(&lab, &format!("a[{number}]"), number));
    let loop_maker = short_circuit(&lab);
    wait_until("user space", PATIENCE, || {
        one.run("ping -b -c 1 -W 1 10.0.0.255");
        on_panel(&lab, "a").is_empty()
    });
    // The tree has one of the namespace's ports stand by, and there is no storm.
    wait_for_trees(&lab, &[&a], stretched(PATIENCE), &["not forwarding: port"]);
    one.ping("10.0.0.2");
    two.ping("10.0.0.3");
    let storms = || -> u64 {
        let ports = ports(&lab, "a");
        let dropped = ports.iter().map(|port| &port["dropped"]["storm"]);
        dropped.filter_map(Value::as_u64).sum()
    };
    let before = storms();
    one.run("ping -b -c 3 -W 1 10.0.0.255");
    assert_eq!(storms(), before);
    // Those that make no loop go back.
    wait_for_panel(&lab, "a", stretched(PATIENCE), &[1, 2]);
    one.ping("10.0.0.2");
    one.ping("10.0.0.3");
    assert_eq!(loop_maker.exit(0).code(), Some(0));
}

/// The processor time of a process and its children, in seconds.
fn processor_time(pid: i32) -> f64 {
    let of_one = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit(") ").next().unwrap_or_default();
        let ticks = fields.split(' ').skip(11).take(2);
        ticks
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum::<f64>()
            / 100.0
    };
    family(pid).iter().map(of_one).sum()
}

/// Two cables between two switches without a tree, whose frames pass in user space.
#[test]
fn a_loop_in_user_space_is_bounded_by_the_storm_guard() {
    let lab = Lab::new();
    let vnls = ["a", "b"].map(|name| lab.vnl("switch", &format!("{name}[storm=2000]")));
    let [one, two] = [1, 2].map(|number: usize| {
        let session = lab.vdens(["--no-panel", &vnls[number - 1], "sh"]).session();
        session.address("vde0", &format!("10.0.0.{number}/24"));
        session
    });
    let cables = [cable(&lab, "a", "b"), cable(&lab, "a", "b")];
    let storms = || status(&lab).to_string().matches("\"storm\":").count();
    wait_until("a storm", PATIENCE, || {
        one.run("ping -b -c 1 -W 1 10.0.0.255");
        storms() > 0
    });
    // Some of the pings pass, if not all.
    one.ok("ping -c 1 -i 0.2 -w 50 10.0.0.2");
    let start = (Instant::now(), processor_time(one.proc().pid()));
    one.run("ping -b -c 3 -W 1 10.0.0.255");
    std::thread::sleep(Duration::from_secs(1));
    let used = processor_time(one.proc().pid()) - start.1;
    let share = used / start.0.elapsed().as_secs_f64();
    println!("the switch takes {share:.2} of a processor");
    assert!(share < 0.9, "{share}");
    drop(cables);
    assert_eq!(one.exit(0).code(), Some(0));
    assert_eq!(two.exit(0).code(), Some(0));
}
