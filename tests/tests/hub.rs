//! `hub://`: each client receives the frames of all others, on the panel and in user space.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use vdens_tests::{Lab, PATIENCE, Proc, Session, User, becomes_true, need, stretched, wait_until};

/// A switch or hub in the directory `sw`.
fn start<'lab>(lab: &'lab Lab, scheme: &str) -> Proc<'lab> {
    let plug = lab.vde_plug(["null://", &lab.vnl(scheme, "sw")]).spawn();
    lab.wait_for("sw/ctl");
    plug
}

/// The log line of a session on the panel.
const CARRIED: &str = "frames go through the kernel (panel)";

/// Two members on the panel, one in user space and Debian's, with the addresses 10.0.0.1 to
/// 10.0.0.4.
fn members(lab: &Lab) -> [Session<'_>; 4] {
    let vnl = lab.vnl("vde", "sw");
    let args = [&vnl, "sh"];
    // Debian's vdens may leave its socket.
    lab.expect("sw");
    let members = [
        lab.vdens(["-v"]).args(args).session(),
        lab.vdens(["-v"]).args(args).session(),
        lab.vdens(["--no-panel"]).args(args).session(),
        lab.debian("vdens", args).session(),
    ];
    for (member, number) in members.iter().zip(1..) {
        member.address("vde0", &format!("10.0.0.{number}/24"));
    }
    for member in &members[..2] {
        let is_carried = || member.proc().stderr().contains(CARRIED);
        wait_until("carried by the kernel", PATIENCE, is_carried);
    }
    members
}

/// How long to listen.
const HEARING: Duration = Duration::from_secs(3);

/// Has one station ping another while a third listens, not promiscuously. Returns tcpdump's output:
/// two pings and their answers, or what came within `time`.
#[track_caller]
fn overheard(
    listener: &Session<'_>,
    from: &Session<'_>,
    [source, destination]: [&str; 2],
    time: Duration,
) -> String {
    // Everybody knows where both are.
    from.ping(destination);
    listener.start(&format!(
        "timeout {} tcpdump -p -l -n -i vde0 -c 4 icmp and host {source} and host {destination}",
        time.as_secs_f64()
    ));
    from.ok(&format!(
        "ping -i 0.2 {destination} >$HOME/pings 2>&1 & p=$!"
    ));
    let (_, heard) = listener.finish(time + PATIENCE);
    let text = from.ok("kill -INT $p; wait $p; cat $HOME/pings");
    assert!(text.contains("bytes from"), "{text}");
    assert!(heard.contains("listening on vde0"), "{heard}");
    heard
}

#[test]
fn everybody_reaches_everybody_and_files_arrive() {
    need!("vdens", "socat");
    let lab = Lab::new();
    let _hub = start(&lab, "hub");
    let members = members(&lab);
    for (from, sender) in members.iter().enumerate() {
        for (to, receiver) in members.iter().enumerate().filter(|(to, _)| *to != from) {
            let address = format!("10.0.0.{}", to + 1);
            sender.ping(&address);
            sender.send_file(receiver, &address, 4);
        }
    }
}

#[test]
fn on_a_hub_everybody_hears_what_is_for_others() {
    need!("vdens", "tcpdump");
    let lab = Lab::new();
    let _hub = start(&lab, "hub");
    let members = members(&lab);
    for (listener, from, to) in [
        (0, 2, 3),
        (0, 1, 2),
        (1, 0, 3),
        (2, 0, 1),
        (2, 1, 3),
        (3, 0, 1),
        (3, 2, 1),
    ] {
        let [source, destination] = [from, to].map(|at| format!("10.0.0.{}", at + 1));
        let way = [source.as_str(), &destination];
        let heard = overheard(&members[listener], &members[from], way, stretched(HEARING));
        for words in [
            format!("{source} > {destination}: ICMP echo request"),
            format!("{destination} > {source}: ICMP echo reply"),
        ] {
            let shown = format!("10.0.0.{} has not heard {words}", listener + 1);
            assert!(heard.contains(&words), "{shown}: {heard}");
        }
    }
}

#[test]
fn on_a_switch_nobody_does() {
    need!("vdens", "tcpdump");
    let lab = Lab::new();
    let _switch = start(&lab, "switch");
    let members = members(&lab);
    for (listener, from, to) in [(0, 2, 3), (0, 1, 2), (2, 0, 1), (3, 0, 1)] {
        let [source, destination] = [from, to].map(|at| format!("10.0.0.{}", at + 1));
        let way = [source.as_str(), &destination];
        let heard = overheard(&members[listener], &members[from], way, HEARING);
        assert!(heard.contains("\n0 packets captured"), "{heard}");
    }
}

#[test]
fn a_hub_within_vdens_hears_its_members() {
    need!("tcpdump");
    let lab = Lab::new();
    let vnl = lab.vnl("hub", "sw");
    for options in [&[][..], &["--no-panel"]] {
        let hub = lab.vdens(options).args([&vnl, "sh"]).session();
        lab.wait_for("sw/ctl");
        hub.address("vde0", "10.0.0.1/24");
        let member = |address| {
            let session = lab.vdens([&lab.vnl("vde", "sw"), "sh"]).session();
            session.address("vde0", address);
            session
        };
        let (a, b) = (member("10.0.0.2/24"), member("10.0.0.3/24"));
        b.ping("10.0.0.1");
        let heard = overheard(&hub, &a, ["10.0.0.2", "10.0.0.3"], stretched(HEARING));
        let words = "10.0.0.3 > 10.0.0.2: ICMP echo reply";
        assert!(heard.contains(words), "{options:?}: {heard}");
        assert_eq!(hub.exit(4).code(), Some(4));
    }
}

#[test]
fn mode_and_group_decide_who_plugs_in() {
    need!("root");
    let lab = Lab::new();
    // A place that another user can get to.
    let meet = lab.mkdir("meet");
    lab.command("chmod", ["0755", &meet]).ok();
    let group = &lab.user().name;
    let plug_in = || {
        lab.vdens([&lab.vnl("vde", "meet/hub"), "true"])
            .by(User::other())
    };
    for (keys, shown, is_open) in [
        (format!("mode=0660/grp={group}"), "2710 660", false),
        ("mode=0666/dirmode=2755".to_owned(), "2755 666", true),
    ] {
        let vnl = lab.vnl("hub", &format!("meet/hub[{keys}]"));
        let hub = lab.vde_plug(["null://", &vnl]).spawn();
        lab.wait_for("meet/hub/ctl");
        let places = ["meet/hub", "meet/hub/ctl"].map(|name| lab.path(name));
        let modes = lab.command("stat", ["-c", "%a %G"]).args(&places).ok();
        let (directory, socket) = shown.split_once(' ').unwrap();
        assert_eq!(modes, format!("{directory} {group}\n{socket} {group}\n"));
        match is_open {
            true => drop(plug_in().ok()),
            false => drop(plug_in().refused(&["meet/hub", "ermission"])),
        }
        assert_eq!(hub.terminate().code(), Some(128 + 15));
        assert!(!Path::new(&places[0]).exists(), "{} is left", places[0]);
    }
}

#[test]
fn one_that_was_killed_is_replaced_and_its_members_return() {
    let lab = Lab::new();
    let first = start(&lab, "hub");
    lab.vde_plug(["null://", &lab.vnl("hub", "sw")])
        .refused(&["a switch or hub is already running in", "/sw"]);
    let member = |address| {
        let vnl = lab.vnl("vde", "sw");
        lab.vdens(["--addr", address, &vnl, "sh"]).session()
    };
    let (a, b) = (member("10.0.0.1/24"), member("10.0.0.2/24"));
    a.ping("10.0.0.2");
    first.signal(Signal::SIGKILL);
    first.wait(PATIENCE);
    let is_down = || a.ok("ip link show vde0").contains("NO-CARRIER");
    assert!(becomes_true(PATIENCE, is_down), "it still has carrier");
    let second = start(&lab, "hub");
    b.ping("10.0.0.1");
    second.terminate();
}

#[test]
fn the_plugin_of_vdens_comes_before_libvdeplugs() {
    need!("libvdeplug_hub");
    let lab = Lab::new();
    let vnl = lab.vnl("hub", "sw");
    let log = || {
        let output = lab.vdens(["-v", &vnl, "true"]).run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        output.stderr
    };
    let said = log();
    assert!(said.contains("libvdens_hub.so"), "{said}");
    assert!(!said.contains("libvdeplug"), "{said}");
    fs::remove_file(lab.bin().join("libvdens_hub.so")).unwrap();
    let said = log();
    assert!(said.contains("libvdens_libvdeplug.so"), "{said}");
}
