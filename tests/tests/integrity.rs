//! What is sent is what arrives, on every tier of the data plane and between all that one switch can mix.
//!
//! A pair exchanges two files at once, one over IPv4 and one over IPv6, in either direction, at an MTU of 1500 and of 9000 bytes; then
//! numbered raw frames, untagged and VLAN-tagged. Alongside there is UDP in both directions: datagrams of 1 to 8,000 bytes
//! whose contents are checked, and iperf3's. No kernel may have seen a wrong checksum. The files have as many MiB as the
//! environment variable `VDENS_TEST_MIB` says, or 8.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use vdens_tests::{Cmd, Lab, Netns, PATIENCE, Session, User, need, wait_until};

use crate::status::{link, status};

/// One end of a pair.
struct Member<'lab> {
    kind: &'static str,
    session: Session<'lab>,
    interface: &'static str,
    number: usize,
}

/// A lab's file and program.
struct Traffic {
    file: String,
    checksum: String,
    program: String,
    limit: Duration,
}

impl Traffic {
    fn new(lab: &Lab) -> Self {
        let mebibytes = std::env::var("VDENS_TEST_MIB").map_or(8, |text| text.parse().unwrap());
        let file = lab.path("file");
        lab.expect("file");
        let script = format!("head -c {mebibytes}M /dev/urandom >{file}; sha256sum <{file}");
        Self {
            checksum: lab.sh(&script).ok().trim().to_owned(),
            file,
            program: lab.write("traffic.py", include_str!("integrity.py")),
            limit: Duration::from_secs(60 + mebibytes),
        }
    }

    /// Sends the file from each member to the other.
    fn files(&self, a: &Member<'_>, b: &Member<'_>, families: [u8; 2]) {
        let send = |from: &Member<'_>, to: &Member<'_>, [receiving, sending]: [u8; 2]| {
            from.session.start(&format!(
                "socat -u -b 262144 TCP{receiving}-LISTEN:5000,reuseaddr STDOUT | sha256sum & r=$!
                 socat -u -b 262144 FILE:{} TCP{sending}:{}:5000,retry=200,interval=0.05
                 wait $r",
                self.file,
                to.host(sending),
            ));
        };
        send(a, b, families);
        send(b, a, [families[1], families[0]]);
        for member in [a, b] {
            let (_, received) = member.session.finish(self.limit);
            assert_eq!(received.trim(), self.checksum, "{}", member.kind);
        }
    }

    /// Exchanges raw frames.
    fn frames(&self, a: &Member<'_>, b: &Member<'_>, mtu: u32) {
        let program = &self.program;
        let (near, far) = (a.interface, b.interface);
        let show = format!("ip -o link show {far} | sed 's/.*ether \\([^ ]*\\) .*/\\1/'");
        let mac = b.session.ok(&show);
        let mac = mac.trim();
        b.session
            .ok(&format!("python3 {program} echo {far} >/dev/null & e=$!"));
        let (status, text) = a.session.run_within(
            self.limit,
            &format!("python3 {program} frames {near} {mac} {mtu}"),
        );
        b.session.ok("kill $e; wait $e");
        assert_eq!(status, 0, "{} to {}, MTU {mtu}: {text}", a.kind, b.kind);
    }

    /// Starts UDP between two members.
    fn start_noise(&self, a: &Member<'_>, b: &Member<'_>) {
        for member in [a, b] {
            member.session.ok("iperf3 -s >/dev/null 2>&1 & s=$!
                 until ss -ltnH | grep -q :5201; do sleep 0.02; done");
        }
        let program = &self.program;
        for (from, to, load) in [(a, b, "-b 5M -l 8000"), (b, a, "-b 100K -l 16")] {
            let (number, v4, v6) = (from.number, to.address(4), to.address(6));
            from.session.ok(&format!(
                "iperf3 -c {v4} -u -t 1000 {load} >/dev/null 2>&1 & i=$!
                 python3 {program} udp {v4} {v6} >$HOME/udp{number} 2>&1 & u=$!"
            ));
        }
    }

    /// Ends it, which must have arrived as it was sent.
    fn end_noise(&self, a: &Member<'_>, b: &Member<'_>) {
        for member in [a, b] {
            let number = member.number;
            // Told to end politely, iperf3 may hang in its signal handler.
            member.session.ok("kill -9 $i $s; wait $i $s; true");
            let text = member.session.ok(&format!(
                "kill $u; wait $u; s=$?; cat $HOME/udp{number}; rm $HOME/udp{number}; (exit $s)"
            ));
            let came: u64 = text.trim().parse().unwrap_or_else(|_| panic!("{text}"));
            assert!(came > 0, "no datagram came to {}", member.kind);
        }
    }

    /// All of it.
    fn exchange(&self, a: &Member<'_>, b: &Member<'_>, mtus: &[u32], tagged: bool) {
        a.session.ping(&b.address(4));
        b.session.ping(&a.address(6));
        for (round, mtu) in mtus.iter().enumerate() {
            for member in [a, b] {
                let interface = member.interface;
                member
                    .session
                    .ok(&format!("ip link set {interface} mtu {mtu}"));
            }
            self.start_noise(a, b);
            let families = [4, 6];
            self.files(a, b, if round % 2 == 0 { families } else { [6, 4] });
            if mtus.len() == 1 {
                self.files(a, b, [6, 4]);
            }
            if tagged {
                self.frames(a, b, *mtu);
            }
            self.end_noise(a, b);
        }
        let errors = format!("python3 {} errors", self.program);
        for member in [a, b] {
            let count = member.session.ok(&errors);
            assert_eq!(count.trim(), "0", "wrong checksums seen by {}", member.kind);
        }
    }
}

impl<'lab> Member<'lab> {
    fn new(kind: &'static str, number: usize, command: Cmd<'lab>) -> Self {
        Self::at(kind, number, "vde0", command)
    }

    fn at(kind: &'static str, number: usize, interface: &'static str, command: Cmd<'lab>) -> Self {
        let session = command.session();
        let member = Self {
            kind,
            session,
            interface,
            number,
        };
        for (family, length) in [(4, 24), (6, 64)] {
            let address = format!("{}/{length}", member.address(family));
            member.session.address(interface, &address);
        }
        member
    }

    fn address(&self, family: u8) -> String {
        match family {
            4 => format!("10.0.0.{}", self.number),
            _ => format!("fd00::{}", self.number),
        }
    }

    /// The address as socat wants it.
    fn host(&self, family: u8) -> String {
        match family {
            4 => self.address(4),
            _ => format!("[{}]", self.address(6)),
        }
    }

    /// The tier of its link.
    fn tier(&self, lab: &Lab) -> String {
        let pid = self.session.proc().pid().cast_unsigned();
        let link = link(&status(lab), pid, 0);
        link["tier"].as_str().unwrap_or_default().to_owned()
    }
}

/// A directory that everybody may use.
fn meeting_place(lab: &Lab, name: &str) {
    let path = lab.mkdir(name);
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}

/// The command of a user to whom nothing in the lab belongs, with directories of their own.
fn by_other<'lab>(lab: &'lab Lab, command: Cmd<'lab>) -> Cmd<'lab> {
    let other = User::other();
    let home = lab.path("other");
    if !fs::exists(&home).unwrap() {
        lab.mkdir("other");
        chown(&home, Some(other.uid), Some(other.gid)).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let command = command.env("HOME", &home).env("XDG_RUNTIME_DIR", &home);
    command.by(other)
}

/// A pair on a cable of ours, on the tier that it must be on.
#[track_caller]
fn check_cable(options: &[&str], tier: &str) {
    let lab = Lab::new();
    let traffic = Traffic::new(&lab);
    let command = || {
        let vnl = lab.vnl("ptp", "p");
        lab.vdens(options).args([&vnl, "sh"])
    };
    let [a, b] = [1, 2].map(|number| Member::new("ours", number, command()));
    wait_until(tier, PATIENCE, || a.tier(&lab) == tier);
    traffic.exchange(&a, &b, &[1500, 9000], true);
}

#[test]
fn cable_on_the_panel() {
    need!("socat", "python3", "iperf3");
    check_cable(&[], "kernel");
}

#[test]
fn cable_with_super_frames() {
    need!("socat", "python3", "iperf3");
    check_cable(&["--no-panel"], "super-frames");
}

#[test]
fn cable_to_debian() {
    need!("socat", "python3", "iperf3", "vdens");
    let lab = Lab::new();
    let traffic = Traffic::new(&lab);
    let args = [&lab.vnl("ptp", "p"), "sh"];
    let a = Member::new("ours", 1, lab.vdens(args));
    let b = Member::new("Debian's", 2, lab.debian("vdens", args));
    wait_until("segmented", PATIENCE, || a.tier(&lab) == "segmented");
    traffic.exchange(&a, &b, &[1500, 9000], true);
}

#[test]
fn cable_between_two_users() {
    need!("root", "socat", "python3", "iperf3");
    let lab = Lab::new();
    let traffic = Traffic::new(&lab);
    meeting_place(&lab, "meet");
    let args = [&lab.vnl("ptp", "meet/p[mode=0777]"), "sh"];
    let a = Member::new("one user's", 1, lab.vdens(args));
    let b = Member::new("another's", 2, by_other(&lab, lab.vdens(args)));
    wait_until("super-frames", PATIENCE, || a.tier(&lab) == "super-frames");
    traffic.exchange(&a, &b, &[1500, 9000], true);
}

#[test]
fn on_debians_vde_switch() {
    need!("socat", "python3", "iperf3", "vdens", "vde_switch");
    let lab = Lab::new();
    let traffic = Traffic::new(&lab);
    let switch = lab.debian("vde_switch", ["-s", &lab.path("sw")]);
    let _switch = switch.spawn_piped();
    lab.wait_for("sw/ctl");
    let args = [&lab.vnl("vde", "sw"), "sh"];
    let members = [
        Member::new("ours", 1, lab.vdens(args)),
        Member::new("another of ours", 2, lab.vdens(args)),
        Member::new("Debian's", 3, lab.debian("vdens", args)),
    ];
    // It takes frames of up to 1518 bytes, and drops those of VLANs that it was not told of.
    for (a, b) in [(0, 1), (0, 2)] {
        traffic.exchange(&members[a], &members[b], &[1500], false);
    }
}

/// Pairs of members of one of our switches: 0 is the switch's own, 1 to 4 are of one kind each, and 5 to 8 again.
#[track_caller]
fn check_switch(options: &[&str], tiers: [&str; 2], pairs: &[(usize, usize)]) {
    let lab = Lab::new();
    let traffic = Traffic::new(&lab);
    meeting_place(&lab, "meet");
    let switch = lab.vnl("switch", "meet/sw[mode=0777]");
    let host = lab.vdens(options).args([&switch, "sh"]);
    let vnl = lab.vnl("vde", "meet/sw");
    let args = [&vnl, "sh"];
    let mut members = vec![Member::new("the switch's own", 1, host)];
    lab.wait_for("meet/sw/ctl");
    let mut add = |kind, command| members.push(Member::new(kind, members.len() + 1, command));
    for _ in 0..2 {
        add("the panel's", lab.vdens(args));
        add("super-frames'", lab.vdens(["--no-panel"]).args(args));
        add("Debian's", lab.debian("vdens", args));
        add("another user's", by_other(&lab, lab.vdens(args)));
    }
    let found = || [1, 2].map(|at: usize| members[at].tier(&lab));
    wait_until(&format!("{tiers:?}"), PATIENCE, || found() == tiers);
    for (a, b) in pairs {
        traffic.exchange(&members[*a], &members[*b], &[1500, 9000], true);
    }
    // Debian's vdens may leave its socket.
    lab.expect("meet");
}

/// Each kind with its own and with each other.
#[test]
fn on_our_switch() {
    need!("root", "socat", "python3", "iperf3", "vdens");
    let pairs = [
        (0, 2),
        (0, 3),
        (0, 4),
        (1, 5),
        (1, 2),
        (1, 3),
        (1, 4),
        (2, 6),
        (2, 3),
        (2, 4),
        (3, 7),
        (3, 4),
        (4, 8),
    ];
    check_switch(&[], ["kernel", "super-frames"], &pairs);
}

/// The switch's own side in user space.
#[test]
fn on_our_switch_without_the_panel() {
    need!("root", "socat", "python3", "iperf3", "vdens");
    let pairs = [(0, 2), (0, 3), (0, 4)];
    check_switch(&["--no-panel"], ["super-frames", "super-frames"], &pairs);
}

/// A persistent tap of the user's, in a namespace that stands for the host.
fn tap<'lab>(lab: &'lab Lab) -> Netns<'lab> {
    let host = lab.netns();
    let user = &lab.user().name;
    host.sh(&format!(
        "ip tuntap add dev tap0 mode tap user {user}; ip link set tap0 up"
    ))
    .ok();
    host
}

#[test]
fn to_the_host_through_a_tap() {
    need!("root", "socat", "python3", "iperf3");
    let lab = Lab::new();
    let traffic = Traffic::new(&lab);
    let host = tap(&lab);
    let a = Member::new("ours", 1, lab.vdens(["tap://tap0", "sh"]).inside(&host));
    let shell = lab.command("sh", [] as [&str; 0]).by(User::root());
    let b = Member::at("the host", 2, "tap0", shell.inside(&host));
    traffic.exchange(&a, &b, &[1500, 9000], true);
}

/// While it is used, frames carry virtio headers; afterwards it is as it was, and a program that knows nothing of them can open it.
#[test]
fn a_tap_is_given_back_as_it_was() {
    need!("root", "ethtool", "python3");
    let lab = Lab::new();
    let host = tap(&lab);
    let look = || {
        let text = host.sh("ip -d link show tap0; ethtool -k tap0").ok();
        // What the last user asked for, and whoever opens it next asks for anew.
        text.replace("vnet_hdr on", "vnet_hdr off")
            .replace(" [requested on]", "")
    };
    let before = look();
    let mac = "02:00:00:00:00:0a";
    let command = ["--mac", mac, "--addr", "10.0.0.1/24", "tap://tap0", "sh"];
    let a = lab.vdens(command).inside(&host).session();
    a.ok(":");
    host.sh("ip addr add 10.0.0.2/24 dev tap0").ok();
    a.ping("10.0.0.2");
    let during = look();
    host.sh("ip -d link show tap0 | grep -q 'vnet_hdr on'").ok();
    assert!(during.contains("tcp-segmentation-offload: on"), "{during}");
    assert_eq!(a.exit(0).code(), Some(0));
    assert_eq!(look(), before);
    // IFF_TAP and IFF_NO_PI alone; the host asks for 10.0.0.1, and the first bytes must be an Ethernet header.
    let legacy = "import fcntl, os, select, struct, subprocess
tap = os.open('/dev/net/tun', os.O_RDWR)
fcntl.ioctl(tap, 0x400454ca, struct.pack('16sH22x', b'tap0', 0x1002))
print('open', flush=True)
while select.select([tap], [], [], 10)[0]:
    frame = os.read(tap, 20000)
    if frame[12:14] == b'\\x08\\x06':
        print(frame[:6].hex(), len(frame) >= 42)
        break";
    let legacy = lab.command("python3", ["-c", legacy]).inside(&host).spawn();
    wait_until("it is open", PATIENCE, || legacy.stdout().contains("open"));
    host.sh("ip neigh flush dev tap0; ping -c 3 -W 1 10.0.0.3 || true")
        .ok();
    let output = legacy.wait(PATIENCE);
    assert_eq!(output.stdout, "open\nffffffffffff True\n", "{output:?}");
    assert_eq!(look(), before);
}
