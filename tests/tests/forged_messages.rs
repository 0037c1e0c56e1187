//! Forged messages: nobody can have a victim's interface plugged where it does not belong, or
//! unplugged.
//!
//! The attacker knows more than one could: the test tells it the panel's number and the names of
//! the places there, which it reads as root.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::fd::RawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::ChildStdin;

use vdens_tests::{Lab, PATIENCE, Proc, Session, User, need, wait_until};

/// What vdens -v says of a link on the panel.
const CARRIED: &str = "frames go through the kernel";

/// The victim's panel, seen by root.
struct Panel<'lab> {
    lab: &'lab Lab,
    net: String,
}

impl<'lab> Panel<'lab> {
    /// The panel that a session of the lab's user holds.
    fn of(lab: &'lab Lab, session: &Session<'_>) -> Self {
        let pid = session.proc().pid();
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let net = descriptors.flatten().map(|entry| entry.path()).find(|fd| {
            let target = fs::read_link(fd).unwrap_or_default();
            let number = fd.file_name().and_then(|name| name.to_str()?.parse().ok());
            target.to_string_lossy().starts_with("net:") && number.is_some_and(|fd: RawFd| fd > 2)
        });
        let net = net.unwrap().display().to_string();
        Self { lab, net }
    }

    /// The number that the ends of vdens know it by.
    fn id(&self) -> String {
        fs::metadata(PathBuf::from(&self.net))
            .unwrap()
            .ino()
            .to_string()
    }

    /// The places whose interfaces begin with a letter: `p` for ports, `h` for hubs.
    fn places(&self, letter: char) -> Vec<String> {
        let net = format!("--net={}", self.net);
        let show = self.lab.command("nsenter", [&net, "ip", "-o", "link"]);
        let text = show.by(User::root()).ok();
        let names = text.lines().filter_map(|line| {
            let name = line
                .split([' ', ':', '@'])
                .find(|word| word.starts_with(letter) && word.len() > 3)?;
            Some(name[1..].to_owned())
        });
        names.collect()
    }
}

/// Starts the attacker and waits until it is at work.
fn attack<'lab>(lab: &'lab Lab, by: User, words: &[&str]) -> (Proc<'lab>, ChildStdin) {
    let program = lab.write("impostor.py", include_str!("forged_messages.py"));
    let command = lab.command("python3", [&program]).args(words).by(by);
    let (attacker, stdin) = command.spawn_piped();
    wait_until("the attacker is at work", PATIENCE, || {
        attacker.stdout().contains("forged") || !attacker.is_running()
    });
    assert!(attacker.is_running(), "{}", attacker.stderr());
    (attacker, stdin)
}

fn is_answered(session: &Session<'_>, address: &str) -> bool {
    session.run(&format!("ping -c 3 -i 0.3 -W 1 {address}")).0 == 0
}

/// A session with an address on a network.
fn member<'lab>(lab: &'lab Lab, options: &[&str], address: &str, vnl: &str) -> Session<'lab> {
    let vdens = lab.vdens(["-v"]).args(options);
    vdens.args(["--addr", address, vnl, "sh"]).session()
}

#[test]
fn a_forged_place_joins_no_networks() {
    need!("root", "python3");
    let lab = Lab::new();
    // Others may come to the cable, and to no more.
    fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let c = member(&lab, &[], "10.0.0.3/24", &lab.vnl("ptp", "cd"));
    let d = member(&lab, &[], "10.0.0.4/24", &lab.vnl("ptp", "cd"));
    d.ping("10.0.0.3");
    wait_until("C and D are on the panel", PATIENCE, || {
        c.proc().stderr().contains(CARRIED) && d.proc().stderr().contains(CARRIED)
    });
    let panel = Panel::of(&lab, &c);
    let places = panel.places('p');
    assert_eq!(places.len(), 2, "{places:?}");
    // Another user on a cable open to all, and one who got at the far end of the user's own, a
    // guest say.
    for by in [User::other(), lab.user().clone()] {
        for place in &places {
            let name = format!("b{}", by.uid);
            let b = member(
                &lab,
                &[],
                "10.0.0.2/24",
                &lab.vnl("ptp", &format!("{name}[mode=777]")),
            );
            b.ok(":");
            let words = ["cable", &lab.path(&name), &panel.id(), place];
            let (attacker, stdin) = attack(&lab, by.clone(), &words);
            for there in ["10.0.0.3", "10.0.0.4"] {
                assert!(!is_answered(&b, there), "{} reaches {there}", by.name);
            }
            assert!(!b.proc().stderr().contains("panic"));
            drop(stdin);
            attacker.wait(PATIENCE);
            assert!(is_answered(&d, "10.0.0.3"), "C and D keep their cable");
            b.exit(0);
        }
    }
}

#[test]
fn frames_from_the_network_are_no_messages_of_a_port_s_owner() {
    need!("python3");
    let lab = Lab::new();
    let program = lab.write("impostor.py", include_str!("forged_messages.py"));
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let sw = lab.vnl("vde", "sw");
    let port = 20_000 + lab.dir().metadata().unwrap().ino() % 10_000 * 2;
    let (near, far) = (port, port + 1);
    let udp = |own: u64, other: u64| format!("udp://127.0.0.1:{own}->127.0.0.1:{other}");
    let _plug = lab.vde_plug([&udp(near, far), &sw]).spawn();
    let x = member(&lab, &[], "10.0.0.1/24", &udp(far, near));
    let own = member(&lab, &["--no-panel"], "10.0.0.2/24", &sw);
    let y = member(&lab, &[], "10.0.0.3/24", &sw);
    for there in ["10.0.0.1", "10.0.0.2"] {
        y.ping(there);
    }
    for session in [&x, &own, &y] {
        session.ok(&format!("python3 {program} frames vde0"));
    }
    for (from, there) in [
        (&y, "10.0.0.1"),
        (&y, "10.0.0.2"),
        (&x, "10.0.0.2"),
        (&own, "10.0.0.3"),
    ] {
        assert!(is_answered(from, there), "{there} after forged messages");
    }
}

#[test]
fn a_client_of_a_legacy_switch_cannot_pose_as_the_switch() {
    need!("root", "python3", "vde_switch");
    let lab = Lab::new();
    // The victim's own switch, whose hub the attacker offers, with somebody on it.
    let _own = lab.vde_plug(["null://", &lab.vnl("switch", "own")]).spawn();
    lab.wait_for("own/ctl");
    let inside = member(&lab, &[], "10.0.0.9/24", &lab.vnl("vde", "own"));
    wait_until("it is on the panel", PATIENCE, || {
        inside.proc().stderr().contains(CARRIED)
    });
    let panel = Panel::of(&lab, &inside);
    let hub = panel.places('h').pop().unwrap();
    let legacy = ["-s", &lab.path("legacy"), "-m", "0666"];
    let (_legacy, _stdin) = lab.debian("vde_switch", legacy).spawn_piped();
    lab.wait_for("legacy/ctl");
    let words = ["switch", &lab.path("legacy"), &panel.id(), &hub];
    let (_attacker, _stdin) = attack(&lab, lab.user().clone(), &words);
    for _ in 0..5 {
        let victim = member(&lab, &[], "10.0.0.1/24", &lab.vnl("vde", "legacy"));
        assert!(!is_answered(&victim, "10.0.0.9"), "it is on another switch");
        assert!(!victim.proc().stderr().contains(CARRIED));
        victim.exit(0);
    }
}

/// Attack: another user is first at the path beside the victim's, or at the path itself, with a
/// socket that is open to all, and reads what the victim sends.
const EAVESDROPPER: &str = r#"
import os, socket, sys
path, kind = sys.argv[1:]
end = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET if kind == "seqpacket" else socket.SOCK_DGRAM)
end.bind(path)
os.chmod(path, 0o777)
if kind == "seqpacket": end.listen()
print("forged", flush=True)
try:
    if kind == "seqpacket":
        end = end.accept()[0]
        end.send(b"\0")
    while frame := end.recv(10000): print("frame", frame[12:14].hex(), flush=True)
finally:
    os.unlink(path)
"#;

#[test]
fn another_user_at_the_far_end_is_sent_nothing_unless_this_end_is_open() {
    need!("root", "python3");
    for (beside, kind) in [("+", "dgram"), ("", "dgram"), ("", "seqpacket")] {
        let lab = Lab::new();
        fs::set_permissions(lab.dir(), fs::Permissions::from_mode(0o777)).unwrap();
        let program = lab.write("eavesdropper.py", EAVESDROPPER);
        let path = lab.path("p") + beside;
        let command = lab.command("python3", [&program, &path, kind]);
        let eavesdropper = command.by(User::other()).spawn();
        wait_until("the eavesdropper", PATIENCE, || {
            eavesdropper.stdout().contains("forged")
        });
        let words = ["cannot join the far end at", &User::other().name];
        let vnl = lab.vnl("ptp", "p");
        if kind == "seqpacket" {
            lab.vdens([&vnl, "true"]).refused(&words);
        } else {
            let victim = member(&lab, &[], "10.0.0.1/24", &vnl);
            assert!(!is_answered(&victim, "10.0.0.2"));
            let log = victim.proc().stderr();
            assert!(words.iter().all(|word| log.contains(word)), "{log}");
        }
        let seen = eavesdropper.stdout();
        assert!(!seen.contains("frame"), "{seen}");
        drop(eavesdropper);
        lab.sh(&format!("rm -f {path}")).by(User::root()).ok();
    }
}
