//! What is sent is what arrives, on every tier of the data plane and between all kinds of members
//! that one switch can have.
//!
//! A pair exchanges two files at once, one over IPv4 and one over IPv6, in either direction, at an
//! MTU of 1500 and of 9000 bytes; then numbered raw frames, untagged and VLAN-tagged. Alongside
//! there is UDP in both directions: datagrams of 1 to 8,000 bytes whose contents are checked, and
//! iperf3's. No kernel may have seen a wrong checksum. The files have as many MiB as the
//! environment variable `VDENS_TEST_MIB` says, or 8.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::Duration;

use vdens_tests::{Cmd, Lab, Netns, PATIENCE, Session, User, need, stretched, wait_until};

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
            limit: stretched(Duration::from_secs(60 + mebibytes)),
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
    fn new(kind: &'static str, number: usize, interface: &'static str, command: Cmd<'lab>) -> Self {
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

/// What members are plugged into.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Medium {
    Cable,
    /// Debian's vde_switch.
    VdeSwitch,
    /// Our switch: the interface of a session, which is the first member, with these options.
    Switch(&'static [&'static str]),
    /// A tap of the host's; the host is a member.
    Tap,
}

/// Whose a member is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ours,
    NoPanel,
    Debians,
    OtherUsers,
    SwitchsOwn,
    Host,
}

/// Members, and which of them exchange traffic.
struct Case {
    medium: Medium,
    members: &'static [Kind],
    /// The tiers of some members, by their place.
    tiers: &'static [(usize, &'static str)],
    pairs: &'static [(usize, usize)],
    mtus: &'static [u32],
    /// Whether tagged frames pass.
    tagged: bool,
}

use Kind::{Debians, Host, NoPanel, OtherUsers, Ours, SwitchsOwn};

/// The switch's own interface, and two members of each kind.
const OF_EACH: &[Kind] = &[
    SwitchsOwn, Ours, NoPanel, Debians, OtherUsers, Ours, NoPanel, Debians, OtherUsers,
];

/// Both ends of a cable, or of a tap.
const PAIR: Case = Case {
    medium: Medium::Cable,
    members: &[Ours, Ours],
    tiers: &[],
    pairs: &[(0, 1)],
    mtus: &[1500, 9000],
    tagged: true,
};

/// The cases, a test for each, and what they need of the machine.
macro_rules! cases {
    ($(fn $test:ident() = [$($need:literal),*], $case:expr;)*) => {$(
        #[test]
        fn $test() {
            need!("socat", "python3", "iperf3" $(, $need)*);
            run(&$case);
        }
    )*};
}

cases! {
    fn cable_on_the_panel() = [], Case { tiers: &[(0, "kernel")], ..PAIR };
    fn cable_with_super_frames() = [], Case {
        members: &[NoPanel, NoPanel],
        tiers: &[(0, "super-frames")],
        ..PAIR
    };
    fn cable_to_debian() = ["vdens"], Case {
        members: &[Ours, Debians],
        tiers: &[(0, "segmented")],
        ..PAIR
    };
    fn cable_between_two_users() = ["root"], Case {
        members: &[Ours, OtherUsers],
        tiers: &[(0, "super-frames")],
        ..PAIR
    };
    // It takes frames of up to 1518 bytes, and drops those of VLANs that it was not told of.
    fn on_debians_vde_switch() = ["vdens", "vde_switch"], Case {
        medium: Medium::VdeSwitch,
        members: &[Ours, Ours, Debians],
        pairs: &[(0, 1), (0, 2)],
        mtus: &[1500],
        tagged: false,
        ..PAIR
    };
    // Each kind with its own and with each other.
    fn on_our_switch() = ["root", "vdens"], Case {
        medium: Medium::Switch(&[]),
        members: OF_EACH,
        tiers: &[(1, "kernel"), (2, "super-frames")],
        pairs: &[
            (0, 2), (0, 3), (0, 4), (1, 5), (1, 2), (1, 3), (1, 4), (2, 6), (2, 3), (2, 4), (3, 7),
            (3, 4), (4, 8),
        ],
        ..PAIR
    };
    fn on_our_switch_without_the_panel() = ["root", "vdens"], Case {
        medium: Medium::Switch(&["--no-panel"]),
        members: OF_EACH,
        tiers: &[(1, "super-frames"), (2, "super-frames")],
        pairs: &[(0, 2), (0, 3), (0, 4)],
        ..PAIR
    };
    fn to_the_host_through_a_tap() = ["root"], Case {
        medium: Medium::Tap,
        members: &[Ours, Host],
        ..PAIR
    };
}

/// Runs a case.
fn run(case: &Case) {
    let lab = Lab::new();
    let traffic = Traffic::new(&lab);
    // A directory that every user may use. Debian's programs may leave sockets in it.
    let meet = lab.mkdir("meet");
    fs::set_permissions(meet, fs::Permissions::from_mode(0o777)).unwrap();
    let host = (case.medium == Medium::Tap).then(|| tap(&lab));
    let _switch = (case.medium == Medium::VdeSwitch).then(|| {
        let switch = lab.debian("vde_switch", ["-s", &lab.path("meet/sw")]);
        let switch = switch.spawn_piped();
        lab.wait_for("meet/sw/ctl");
        switch
    });
    let vnl = match case.medium {
        Medium::Cable if case.members.contains(&OtherUsers) => lab.vnl("ptp", "meet/p[mode=0777]"),
        Medium::Cable => lab.vnl("ptp", "meet/p"),
        Medium::VdeSwitch | Medium::Switch(_) => lab.vnl("vde", "meet/sw"),
        Medium::Tap => "tap://tap0".to_owned(),
    };
    let args = [&vnl, "sh"];
    let mut members = Vec::new();
    for (kind, number) in case.members.iter().zip(1..) {
        let (name, command) = match kind {
            Ours => ("ours", lab.vdens(args)),
            NoPanel => (
                "ours without the panel",
                lab.vdens(["--no-panel"]).args(args),
            ),
            Debians => ("Debian's", lab.debian("vdens", args)),
            OtherUsers => ("another user's", by_other(&lab, lab.vdens(args))),
            SwitchsOwn => {
                let Medium::Switch(options) = case.medium else {
                    panic!("this medium has no interface of its own");
                };
                let switch = lab.vnl("switch", "meet/sw[mode=0777]");
                ("the switch's own", lab.vdens(options).args([&switch, "sh"]))
            }
            Host => ("the host", lab.sh("exec sh").by(User::root())),
        };
        let command = match &host {
            Some(host) => command.inside(host),
            None => command,
        };
        let interface = if *kind == Host { "tap0" } else { "vde0" };
        members.push(Member::new(name, number, interface, command));
        if *kind == SwitchsOwn {
            lab.wait_for("meet/sw/ctl");
        }
    }
    for (at, tier) in case.tiers {
        wait_until(tier, PATIENCE, || members[*at].tier(&lab) == *tier);
    }
    for (a, b) in case.pairs {
        traffic.exchange(&members[*a], &members[*b], case.mtus, case.tagged);
    }
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

/// While the tap is used, frames carry virtio headers. Afterwards it is as it was, and a program
/// that does not know these headers can open it.
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
    // IFF_TAP and IFF_NO_PI alone; the host asks for 10.0.0.1, and the first bytes must be an
    // Ethernet header.
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
