//! VLANs of a switch: whom frames reach, on the panel and in user space, with our clients and
//! Debian's; and what its owner can see and set of ports.

use std::collections::BTreeSet;
use std::fs;
use std::rc::Rc;

use serde_json::{Value, json};
use vdens_tests::{GUEST, Lab, PATIENCE, Proc, Session, User, becomes_true, need, wait_until};

use crate::vm;

/// The addresses that a switch remembers at most.
const CAPACITY: u64 = 131_072;

/// A switch with an argument like `sw[key=value]`.
fn switch<'lab>(lab: &'lab Lab, keys: &str) -> Proc<'lab> {
    lab.write("ask.py", include_str!("switch_vlan.py"));
    let vnl = lab.vnl("switch", &format!("sw{keys}"));
    let switch = lab.vde_plug(["null://", &vnl]).spawn();
    lab.wait_for("sw/ctl");
    switch
}

/// Asks the switch.
#[track_caller]
fn ask(lab: &Lab, request: &Value) -> Value {
    let (script, sw) = (lab.path("ask.py"), lab.path("sw"));
    let asked = lab.command("python3", [&script, &sw, &request.to_string()]);
    let answer = asked.ok();
    serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

/// Makes changes, which must be possible.
#[track_caller]
fn change(lab: &Lab, changes: &Value) {
    let answer = ask(lab, &json!({ "change": changes }));
    assert_eq!(answer["error"], Value::Null, "{changes}");
}

fn untagged(port: u32, vlan: u16) -> Value {
    json!({ "port": [port, { "untagged": vlan }] })
}

/// A port with the VLANs 10 and 20, both tagged.
fn trunk(port: u32) -> [Value; 3] {
    [
        json!({ "untagged": null }),
        json!({ "add-tagged": 10 }),
        json!({ "add-tagged": 20 }),
    ]
    .map(|change| json!({ "port": [port, change] }))
}

/// What the switch says of its ports with clients, by number.
#[track_caller]
fn ports(lab: &Lab) -> Vec<Value> {
    let request = json!({ "ports": { "from": 0, "selection": "used" } });
    let answer = ask(lab, &request);
    answer["ports"]["items"]
        .as_array()
        .cloned()
        .unwrap_or_default()
}

#[track_caller]
fn port(lab: &Lab, number: u32) -> Value {
    let all = ports(lab);
    let found = all.iter().find(|port| port["number"] == number);
    found.unwrap_or_else(|| panic!("no port {number}")).clone()
}

fn is_on_panel(lab: &Lab, number: u32) -> bool {
    let is = |port: &Value| port["number"] == number && port["is_on_panel"] == true;
    ports(lab).iter().any(is)
}

/// A namespace of ours at a port.
fn member<'lab>(lab: &'lab Lab, options: &[&str], keys: &str, number: u8) -> Session<'lab> {
    let vnl = lab.vnl("vde", &format!("sw[{keys}]"));
    let vdens = lab.vdens(options).args([vnl.as_str(), "sh"]);
    let session = vdens.session();
    session.address("vde0", &format!("10.0.0.{number}/24"));
    session
}

/// What a port is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Access(u16),
    Trunk,
}

impl Role {
    /// What others with this role see of what a sender with another broadcasts, with its tag.
    fn sees(self, sender: Role, name: &str) -> Vec<String> {
        let vlans: &[(u16, u16)] = match sender {
            Role::Access(10) => &[(0, 10)],
            Role::Access(_) => &[(0, 20)],
            Role::Trunk => &[(10, 10), (20, 20)],
        };
        let seen = vlans.iter().filter_map(|(text, vlan)| match self {
            Role::Access(own) if own == *vlan => Some(format!("{name}/{text} 0")),
            Role::Access(_) => None,
            Role::Trunk => Some(format!("{name}/{text} {vlan}")),
        });
        seen.collect()
    }

    /// The name of a host of some kind with this role.
    fn name(self, kind: &str) -> String {
        match self {
            Self::Access(vlan) => format!("{kind}-{vlan}"),
            Self::Trunk => format!("{kind}-trunk"),
        }
    }
}

/// A host on the switch that sends frames and notes those that it sees.
struct Host<'lab> {
    name: String,
    session: Rc<Session<'lab>>,
    /// The program, and its interface.
    wire: String,
    log: String,
}

impl<'lab> Host<'lab> {
    /// Starts to note what an interface sees, where the program is.
    #[track_caller]
    fn new(session: Rc<Session<'lab>>, place: &str, interface: &str, name: &str) -> Self {
        let (wire, log) = (
            format!("{place}/wire {interface}"),
            format!("{place}/{name}"),
        );
        session.ok(&format!(
            "ip link set {interface} up; {wire} sniff >{log} 2>&1 &"
        ));
        let name = name.to_owned();
        let host = Self {
            name,
            session,
            wire,
            log,
        };
        wait_until("the sniffer", PATIENCE, || {
            host.everything().contains("ready")
        });
        host
    }

    fn everything(&self) -> BTreeSet<String> {
        let (_, text) = self.session.run(&format!("cat {}", self.log));
        let lines = text.lines().filter(|line| !line.is_empty());
        lines.map(str::to_owned).collect()
    }

    /// The frames that it has seen, each with its tag.
    #[track_caller]
    fn seen(&self) -> BTreeSet<String> {
        let mut lines = self.everything();
        assert!(lines.remove("ready"), "{lines:?}");
        lines
    }

    #[track_caller]
    fn send(&self, name: &str) {
        self.session.ok(&format!("{} send {name}", self.wire));
    }
}

/// The program that hosts send and see frames with, in the lab's directory.
fn wire(lab: &Lab) {
    lab.expect("wire");
    let source = lab.write("wire.c", include_str!("wire.c"));
    let words = ["-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-o"];
    let gcc = lab.command("gcc", words);
    gcc.args([lab.path("wire"), source]).ok();
}

/// A virtual machine with a card for each of these ports, and that program in its root.
fn guest_with_wire<'lab>(lab: &'lab Lab, ports: &[&str]) -> Session<'lab> {
    let (directory, initrd) = (lab.dir(), lab.path("initrd"));
    lab.expect("initrd");
    let further = format!(
        "cd {}; {{ cat {GUEST}/initrd.gz; echo wire | cpio -o -H newc --quiet | gzip -1; }} >initrd",
        directory.display()
    );
    lab.sh(&further).ok();
    let card = |port| format!("vde,sock={}", lab.vnl("vde", &format!("sw[{port}]")));
    let netdevs: Vec<String> = ports.iter().map(card).collect();
    // The last initial ram disk counts.
    let machine = vm::start(lab, &netdevs).args(["-initrd", &initrd, "-no-reboot"]);
    machine.session()
}

/// Each kind of member in each role sends frames without a tag and with each tag, and everybody
/// notes what arrives.
#[test]
fn every_member_reaches_whom_it_should_and_nobody_else() {
    need!("guest", "qemu-system-x86_64", "gcc", "vdens", "python3");
    let lab = Lab::new();
    wire(&lab);
    let _switch = switch(&lab, "[vlans=10,20]");
    let roles = [Role::Access(10), Role::Access(20), Role::Trunk];
    let kinds = ["guest", "panel", "also-on-panel", "user-space", "debian"];
    let of_kind = |kind: usize| (1 + 3 * kind as u32..).zip(roles);
    for (number, role) in (0..kinds.len()).flat_map(of_kind) {
        match role {
            Role::Access(vlan) => change(&lab, &json!([untagged(number, vlan)])),
            Role::Trunk => change(&lab, &json!(trunk(number))),
        }
    }
    // The guest boots while the others come. Its first card is where it chooses to be.
    let guest = Rc::new(guest_with_wire(&lab, &["vlan10", "2", "3"]));
    let directory = lab.dir().display().to_string();
    let mut hosts = Vec::new();
    for (index, kind) in kinds.iter().enumerate().skip(1) {
        for (number, role) in of_kind(index) {
            let vnl = lab.vnl("vde", &format!("sw[{number}]"));
            let command = match *kind {
                "panel" | "also-on-panel" => lab.vdens([vnl.as_str(), "sh"]),
                "user-space" => lab.vdens(["--no-panel", &vnl, "sh"]),
                _ => lab.debian("vdens", [vnl.as_str(), "sh"]),
            };
            let session = Rc::new(command.session());
            let name = role.name(kind);
            lab.expect(&name);
            hosts.push((role, Host::new(session, &directory, "vde0", &name)));
        }
    }
    vm::await_boot(&guest);
    guest.ok("PS1= PS2=");
    for (card, role) in roles.into_iter().enumerate() {
        let (interface, name) = (format!("eth{card}"), role.name("guest"));
        hosts.push((role, Host::new(guest.clone(), "", &interface, &name)));
    }
    for number in 1..=12 {
        let on_panel = [4, 5, 7, 8].contains(&number);
        wait_until("the way of the frames", PATIENCE, || {
            is_on_panel(&lab, number) == on_panel
        });
    }
    // When the frames of the last round have arrived, those of earlier ones have, too.
    for round in 0..3 {
        for (_, host) in &hosts {
            host.send(&format!("{round}-{}", host.name));
        }
    }
    for (role, receiver) in &hosts {
        let others = || hosts.iter().filter(|(_, host)| host.name != receiver.name);
        let expected = |rounds: std::ops::Range<u32>| -> BTreeSet<String> {
            let of = |round: u32, (sender, host): &(Role, Host<'_>)| {
                role.sees(*sender, &format!("{round}-{}", host.name))
            };
            let all = rounds.flat_map(|round| others().flat_map(move |other| of(round, other)));
            all.collect()
        };
        let last = expected(2..3);
        let is_there = becomes_true(PATIENCE, || last.is_subset(&receiver.seen()));
        let got = receiver.seen();
        assert!(is_there, "{} misses frames: {got:?}", receiver.name);
        assert_eq!(got, expected(0..3), "{}", receiver.name);
    }
    drop((hosts, guest));
    lab.expect("sw");
}

/// A host with that program, and with an address.
fn host_on_panel<'lab>(lab: &'lab Lab, keys: &str, number: u8) -> Host<'lab> {
    let (directory, name) = (lab.dir().display().to_string(), format!("host{number}"));
    lab.expect(&name);
    let session = Rc::new(member(lab, &[], keys, number));
    Host::new(session, &directory, "vde0", &name)
}

/// A bridge on the panel takes the tags that user space takes: those that name no VLAN.
#[test]
fn tags_that_name_no_vlan_pass_on_the_panel_as_in_user_space() {
    need!("gcc", "python3");
    let lab = Lab::new();
    wire(&lab);
    let _switch = switch(&lab, "[vlans=10]");
    let sender = host_on_panel(&lab, "vlan=10", 1);
    let on_panel = host_on_panel(&lab, "vlan=10", 2);
    let directory = lab.dir().display().to_string();
    lab.expect("user-space");
    let session = Rc::new(member(&lab, &["--no-panel"], "vlan=10", 3));
    let in_user_space = Host::new(session, &directory, "vde0", "user-space");
    sender.session.ping("10.0.0.2");
    sender.session.ping("10.0.0.3");
    let is_served = |port: &&Value| port["is_on_panel"] == false;
    assert_eq!(ports(&lab).iter().filter(is_served).count(), 1);
    sender.session.ok(&format!("{} tags", sender.wire));
    let expected = ["none 0", "priority 0", "provider 20", "provider-vlan 20"];
    for host in [&on_panel, &in_user_space] {
        becomes_true(PATIENCE, || host.seen().contains("none 0"));
        assert_eq!(
            host.seen(),
            expected.map(str::to_owned).into(),
            "{}",
            host.name
        );
    }
}

/// Where there are VLANs, the ports without one are a network of its own, without tags.
#[test]
fn tags_pass_on_the_panel_while_there_are_no_vlans() {
    need!("gcc", "python3");
    let lab = Lab::new();
    wire(&lab);
    let _switch = switch(&lab, "");
    let (a, b) = (host_on_panel(&lab, "1", 1), host_on_panel(&lab, "2", 2));
    for (round, (changes, vlans)) in [
        (json!([]), &[0, 10, 20, 30][..]),
        (json!([{ "create-vlan": 10 }]), &[0]),
        (json!([{ "remove-vlan": 10 }]), &[0, 10, 20, 30]),
    ]
    .into_iter()
    .enumerate()
    {
        change(&lab, &changes);
        a.session.ping("10.0.0.2");
        wait_until("both on the panel", PATIENCE, || {
            is_on_panel(&lab, 1) && is_on_panel(&lab, 2)
        });
        a.session.ping("10.0.0.2");
        a.send(&format!("{round}"));
        a.send(&format!("{round}-last"));
        let last = format!("{round}-last/0 0");
        wait_until("the last frame", PATIENCE, || b.seen().contains(&last));
        let mut got = b.seen();
        got.retain(|frame| frame.starts_with(&format!("{round}/")));
        let tag = |vlan: &u16| format!("{round}/{vlan} {vlan}");
        assert_eq!(got, vlans.iter().map(tag).collect(), "after {changes}");
    }
}

/// TCP with all offloads between ports that have the VLAN's frames with a tag and without one.
#[test]
fn files_between_access_ports_and_trunks() {
    need!("socat", "python3");
    let lab = Lab::new();
    let _switch = switch(&lab, "[vlans=10]");
    let changes = [
        untagged(1, 10),
        untagged(2, 10),
        json!({ "port": [3, { "add-tagged": 10 }] }),
    ];
    change(&lab, &json!(changes));
    let panel = member(&lab, &[], "1", 1);
    let user_space = member(&lab, &["--no-panel"], "2", 2);
    let vnl = format!("vlan://10{{{}}}", lab.vnl("vde", "sw[3]"));
    let tagged = lab.vdens([&vnl, "sh"]).session();
    tagged.address("vde0", "10.0.0.3/24");
    for (from, to, address) in [
        (&panel, &user_space, "10.0.0.2"),
        (&user_space, &tagged, "10.0.0.3"),
        (&tagged, &panel, "10.0.0.1"),
    ] {
        from.ping(address);
        from.send_file(to, address, 16);
    }
}

#[test]
fn a_client_chooses_a_vlan_that_is_offered() {
    need!("vdens", "python3");
    let lab = Lab::new();
    let _switch = switch(&lab, "[vlans=10,20]");
    let ours = member(&lab, &[], "vlan=10", 1);
    let _user_space = member(&lab, &["--no-panel"], "vlan=10/port=7", 2);
    let other = member(&lab, &[], "vlan=20", 3);
    let none = member(&lab, &["--no-panel"], "", 4);
    // Debian's names a group of ports, which has a socket of that name.
    let debian = lab.debian("vdens", [&lab.vnl("vde", "sw[vlan10]"), "sh"]);
    let debian = debian.session();
    debian.address("vde0", "10.0.0.5/24");
    for address in ["10.0.0.2", "10.0.0.5"] {
        ours.ping(address);
        for stranger in [&other, &none] {
            let pinged = stranger.run(&format!("ping -c 1 -W 1 {address}"));
            assert_ne!(pinged.0, 0, "{}", pinged.1);
        }
    }
    assert_eq!(port(&lab, 7)["untagged"], 10);
    let words = ["does not offer VLAN 30", "its owner offers"];
    lab.vdens([&lab.vnl("vde", "sw[vlan=30]"), "true"])
        .refused(&words);
    let gone = lab.vnl("vde", "none[vlan=30]");
    lab.vdens([&gone, "true"])
        .refused(&["there is no switch directory"]);
    if User::is_root() {
        another_user_chooses(&lab);
    }
    // Who has chosen a VLAN that is offered no more loses the port.
    change(&lab, &json!([{ "offer-vlan": [20, null] }]));
    wait_until("the port is closed", PATIENCE, || {
        !ports(&lab).iter().any(|port| port["untagged"] == 20)
    });
    drop(debian);
    lab.expect("sw");
}

/// Another user may choose the VLAN that is open to all, and no other.
fn another_user_chooses(lab: &Lab) {
    let open = json!([{ "offer-vlan": [20, { "mode": 0o666 }] }]);
    change(lab, &open);
    lab.command("chmod", ["2711", &lab.path("sw")]).ok();
    let stranger = User::other();
    let choose = |vlan: u16| {
        let vnl = lab.vnl("vde", &format!("sw[vlan={vlan}]"));
        let plug = lab.vde_plug([vnl.as_str(), "null://"]);
        plug.by(stranger.clone())
    };
    choose(10).refused(&["no permission to choose VLAN 10"]);
    let plug = choose(20).spawn();
    let of_stranger = || {
        let is_his = |port: &Value| port["uid"] == stranger.uid && port["untagged"] == 20;
        ports(lab).iter().find(|port| is_his(port)).cloned()
    };
    wait_until("the stranger's port", PATIENCE, || {
        assert!(plug.is_running(), "{}", plug.stderr());
        of_stranger().is_some()
    });
    // Each port can be kept for a user. The stranger gets another one.
    let number = of_stranger().map_or(Value::Null, |port| port["number"].clone());
    let owner = lab.user().uid;
    change(lab, &json!([{ "port": [number, { "user": owner }] }]));
    wait_until("another port", PATIENCE, || {
        of_stranger().is_some_and(|port| port["number"] != number)
    });
}

#[test]
fn ports_change_their_vlan_while_they_are_used() {
    need!("python3");
    let lab = Lab::new();
    let _switch = switch(&lab, "[vlans=10,20]");
    change(
        &lab,
        &json!([untagged(1, 10), untagged(2, 20), untagged(3, 20)]),
    );
    let mover = member(&lab, &[], "1", 1);
    let others = [
        member(&lab, &[], "2", 2),
        member(&lab, &["--no-panel"], "3", 3),
    ];
    let reaches = |address: &str| mover.run(&format!("ping -c 1 -W 1 {address}")).0 == 0;
    for address in ["10.0.0.2", "10.0.0.3"] {
        assert!(!reaches(address), "{address}");
    }
    wait_until("all on the panel", PATIENCE, || {
        is_on_panel(&lab, 1) && is_on_panel(&lab, 2)
    });
    // It comes again, and is on the other bridge.
    change(&lab, &json!([untagged(1, 20)]));
    mover.ping("10.0.0.2");
    mover.ping("10.0.0.3");
    wait_until("the panel", PATIENCE, || is_on_panel(&lab, 1));
    // What the kernel cannot do for a port is done in user space, and the port goes back.
    let lock = |mac: Value| json!([{ "port": [1, { "lock": mac }] }]);
    change(&lab, &lock(json!("02:00:00:00:00:01")));
    wait_until("user space", PATIENCE, || {
        ports(&lab)
            .iter()
            .any(|port| port["number"] == 1 && port["is_on_panel"] == false)
    });
    wait_until("a locked port", PATIENCE, || {
        !reaches("10.0.0.2") && port(&lab, 1)["dropped"]["locked"].as_u64() > Some(0)
    });
    change(&lab, &lock(Value::Null));
    mover.ping("10.0.0.3");
    wait_until("the panel again", PATIENCE, || is_on_panel(&lab, 1));
    mover.ping("10.0.0.2");
    // No VLANs any more.
    let back = [untagged(1, 0), untagged(2, 0), untagged(3, 0)];
    change(&lab, &json!(back));
    change(&lab, &json!([{ "remove-vlan": 10 }, { "remove-vlan": 20 }]));
    mover.ping("10.0.0.2");
    mover.ping("10.0.0.3");
    drop(others);
}

/// A session's own interface is on the bridge of its VLAN, is moved to another, and back and forth
/// between the panel and user space.
#[test]
fn the_own_side_changes_its_vlan() {
    need!("python3");
    let lab = Lab::new();
    lab.write("ask.py", include_str!("switch_vlan.py"));
    let vnl = lab.vnl("switch", "sw[vlans=10,20/vlan=10]");
    let own = lab.vdens([&vnl, "sh"]).session();
    own.address("vde0", "10.0.0.1/24");
    lab.wait_for("sw/ctl");
    let ten = member(&lab, &[], "vlan=10", 2);
    let twenty = member(&lab, &[], "vlan=20", 3);
    let is_own_plugged = || {
        let request = json!({ "ports": { "from": 0, "selection": "all" } });
        ask(&lab, &request)["ports"]["items"][0]["is_on_panel"] == true
    };
    let reaches = |from: &Session<'_>| from.run("ping -c 1 -W 1 10.0.0.1").0 == 0;
    ten.ping("10.0.0.1");
    assert!(!reaches(&twenty) && is_own_plugged());
    change(&lab, &json!([untagged(0, 20)]));
    twenty.ping("10.0.0.1");
    assert!(!reaches(&ten) && is_own_plugged());
    change(&lab, &json!([{ "port": [0, { "add-tagged": 10 }] }]));
    twenty.ping("10.0.0.1");
    assert!(!reaches(&ten) && !is_own_plugged());
    change(&lab, &json!([{ "port": [0, { "remove-tagged": 10 }] }]));
    twenty.ping("10.0.0.1");
    assert!(is_own_plugged());
}

#[test]
fn a_full_table_of_stations_lets_nothing_through() {
    need!("python3", "gcc");
    let lab = Lab::new();
    wire(&lab);
    let _switch = switch(&lab, "[vlans=10,20]");
    change(
        &lab,
        &json!([
            untagged(1, 10),
            untagged(2, 10),
            untagged(3, 20),
            untagged(4, 20)
        ]),
    );
    let directory = lab.dir().display().to_string();
    let host = |options: &[&str], number: u8| {
        let session = Rc::new(member(&lab, options, &number.to_string(), number));
        let name = format!("host-{number}");
        lab.expect(&name);
        Host::new(session, &directory, "vde0", &name)
    };
    let (flooder, same) = (host(&["--no-panel"], 1), host(&["--no-panel"], 2));
    let others = [host(&[], 3), host(&["--no-panel"], 4)];
    wait_until("the table is full", 3 * PATIENCE, || {
        flooder.session.ok(&format!("{} fill", flooder.wire));
        ask(&lab, &json!("show"))["switch"]["stations"].as_u64() >= Some(CAPACITY)
    });
    for round in 0..3 {
        flooder.send(&format!("{round}"));
    }
    wait_until("the last frame", PATIENCE, || same.seen().contains("2/0 0"));
    // And within the other VLAN all is as it was.
    others[0].session.ping("10.0.0.4");
    for other in others {
        assert_eq!(other.seen(), BTreeSet::new(), "{}", other.name);
    }
}

#[test]
fn what_a_port_sends_and_gets_is_seen_at_its_mirror() {
    need!("tcpdump", "python3");
    let lab = Lab::new();
    let _switch = switch(&lab, "");
    let (a, b) = (member(&lab, &[], "1", 1), member(&lab, &[], "2", 2));
    let watcher = member(&lab, &[], "3", 3);
    a.ping("10.0.0.2");
    watcher.ping("10.0.0.1");
    change(&lab, &json!([{ "port": [1, { "mirror": 3 }] }]));
    wait_until("user space", PATIENCE, || {
        let served = ports(&lab);
        let is_served = |port: &&Value| port["is_on_panel"] == false;
        served.iter().filter(is_served).count() == 2 && served.len() == 3
    });
    a.ping("10.0.0.2");
    let dump = lab.write("dump", "");
    watcher.ok(&format!("tcpdump -i vde0 -n -U icmp >{dump} 2>&1 &"));
    wait_until("both directions", PATIENCE, || {
        a.ping("10.0.0.2");
        let text = fs::read_to_string(&dump).unwrap();
        text.contains("10.0.0.1 > 10.0.0.2: ICMP echo request")
            && text.contains("10.0.0.2 > 10.0.0.1: ICMP echo reply")
    });
    drop(b);
}

#[test]
fn a_static_station_is_where_its_owner_says() {
    need!("python3");
    let lab = Lab::new();
    let _switch = switch(&lab, "");
    let (a, b) = (
        member(&lab, &[], "1", 1),
        member(&lab, &["--no-panel"], "2", 2),
    );
    a.ping("10.0.0.2");
    let shown = b.ok("ip -br link show vde0");
    let mac = shown.split_whitespace().nth(2).unwrap().to_owned();
    let station = json!({ "vlan": 0, "mac": mac, "port": 7 });
    change(&lab, &json!([{ "add-station": station }]));
    // It is behind a port without a client, so nothing reaches it, whatever it sends.
    wait_until("a wrong place", PATIENCE, || {
        a.run("ping -c 1 -W 1 10.0.0.2").0 != 0
    });
    let search =
        json!({ "stations": { "from": [0, "00:00:00:00:00:00"], "mac": mac, "vlan": null } });
    let found = ask(&lab, &search)["stations"]["items"].clone();
    assert_eq!(
        found,
        json!([{ "vlan": 0, "mac": mac, "port": 7, "age": null }])
    );
    change(
        &lab,
        &json!([{ "remove-station": { "vlan": 0, "mac": mac } }]),
    );
    a.ping("10.0.0.2");
}

/// The frames of a VLAN are counted when they enter, and once for each port that they leave by.
#[test]
fn each_vlan_counts_its_frames() {
    need!("python3");
    let lab = Lab::new();
    let _switch = switch(&lab, "[vlans=10,20]");
    change(
        &lab,
        &json!([untagged(1, 10), untagged(2, 10), untagged(3, 20)]),
    );
    let a = member(&lab, &["--no-panel"], "1", 1);
    let _b = member(&lab, &["--no-panel"], "2", 2);
    let _c = member(&lab, &["--no-panel"], "3", 3);
    a.ping("10.0.0.2");
    let vlan = |number: u16| {
        let answer = ask(&lab, &json!({ "vlans": { "from": number } }));
        answer["vlans"]["items"][0].clone()
    };
    change(&lab, &json!([{ "reset-counters": null }]));
    a.ok("ping -c 5 -i 0.2 10.0.0.2");
    let ten = vlan(10);
    assert_eq!(
        (&ten["vlan"], &ten["untagged"]),
        (&json!(10), &json!([1, 2]))
    );
    let count = |name: &str| ten["traffic"][name].as_u64().unwrap();
    assert!(
        count("in_frames") >= 10 && count("out_frames") >= 10,
        "{ten}"
    );
    assert!(count("in_bytes") >= 10 * 98, "{ten}");
    assert_eq!(vlan(20)["traffic"]["out_frames"], 0);
}
