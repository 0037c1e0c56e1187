//! The group `machines`: virtual machines, beside root's tap and bridge, Debian's VDE and passt.
//!
//! Theory of operation. Each row boots Debian's QEMU as an ordinary user, with the guest of
//! tests/guest.sh that has iperf3, and plugs its card in its own [`Way`]. The other end is a
//! namespace, a second guest, or the server of [`internet`]. iperf3 in the guest measures TCP:
//! "out" is what the guest sends, "in" what it gets. Round trips are timed from the namespace, and
//! the guest's kernel answers. Without KVM the guest itself takes most of the processor time, with
//! every contender alike.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use vdens_tests::{Cmd, GUEST, Session};

use crate::Result;
use crate::bench::Bench;
use crate::internet::{SERVER, Uplink, internet};
use crate::lab::{Lab, Maker, Node, PATIENCE, Who, address, installed, is_root};
use crate::network::wait_for_port;
use crate::process::{Proc, Procs, wait_for};
use crate::results::{Better, Group, Measure, Row};
use crate::traffic::{IPERF, rtt};

/// The group's name.
pub(crate) const ID: &str = "machines";
/// What a guest sends and gets.
pub(crate) const TCP: [&str; 2] = ["machine-out", "machine-in"];
/// Round trips of an idle link.
pub(crate) const RTT: &str = "machine-rtt";

/// How long a guest may take to boot, without KVM and on a busy machine.
const BOOT: Duration = Duration::from_secs(90);

/// How a guest is plugged in, and what its other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Root's tap on root's bridge: a namespace, or another guest.
    Root {
        pair: bool,
    },
    /// As [`Way::Root`] with a namespace, without offloads, as `-netdev vde` is.
    RootPlain,
    /// `vdens-tap` on a cable to a namespace.
    Tap,
    /// `vdens-tap` on our switch with another guest.
    TapPair,
    VhostUser,
    Stream,
    /// `-netdev vde` on a cable: whose library and whose vdens.
    Vde(Maker, Maker),
    /// passt by a stream.
    Passt,
    /// `vde_plug stream://… nat://`
    NatStream,
    /// `vdens-tap nat://`
    NatTap,
}

/// Names, titles, rivals and ways.
const CONTENDERS: &[(&str, &str, Option<&str>, Way)] = &[
    (
        ROOT,
        "root's tap and bridge",
        None,
        Way::Root { pair: false },
    ),
    ("ours-tap", "ours, `vdens-tap`", Some(DEBIAN), Way::Tap),
    (
        "ours-vhost-user",
        "ours, `vhost-user://`",
        Some(DEBIAN),
        Way::VhostUser,
    ),
    (
        "ours-stream",
        "ours, `stream://`",
        Some(DEBIAN),
        Way::Stream,
    ),
    (
        "root-plain",
        "root's tap and bridge, without offloads",
        None,
        Way::RootPlain,
    ),
    (
        "ours-library",
        "`-netdev vde`, our library, our vdens",
        Some(MIXED),
        Way::Vde(Maker::Ours, Maker::Ours),
    ),
    (
        MIXED,
        "`-netdev vde`, Debian's library, our vdens",
        Some(DEBIAN),
        Way::Vde(Maker::Debian, Maker::Ours),
    ),
    (
        DEBIAN,
        "`-netdev vde`, Debian's library and vdens",
        None,
        Way::Vde(Maker::Debian, Maker::Debian),
    ),
    (
        ROOT_PAIR,
        "two guests: root's taps and bridge",
        None,
        Way::Root { pair: true },
    ),
    (
        "ours-pair",
        "two guests: ours, `vdens-tap` on our switch",
        Some(ROOT_PAIR),
        Way::TapPair,
    ),
    (PASST, "the Internet: passt", None, Way::Passt),
    (
        "ours-nat-stream",
        "the Internet: ours, `stream://` to `nat://`",
        Some(PASST),
        Way::NatStream,
    ),
    (
        "ours-nat-tap",
        "the Internet: ours, `vdens-tap nat://`",
        Some(PASST),
        Way::NatTap,
    ),
];

const ROOT: &str = "root";
const ROOT_PAIR: &str = "root-pair";
const DEBIAN: &str = "debian";
const MIXED: &str = "mixed-vde";
const PASST: &str = "passt";

/// What must be reached: the row, the row that it is compared with, the measure, and the bar.
pub(crate) fn bars() -> impl Iterator<Item = (&'static str, &'static str, &'static str, Better, f64)>
{
    let rates = [
        ("ours-tap", ROOT, 0.95),
        ("ours-vhost-user", ROOT, 0.95),
        ("ours-vhost-user", DEBIAN, 2.2),
        ("ours-pair", ROOT_PAIR, 0.95),
        ("ours-library", MIXED, 1.3),
    ];
    let both = move |(row, other, bar)| TCP.map(|key| (row, other, key, Better::More, bar));
    let nat = [("ours-nat-tap", PASST, TCP[0], Better::More, 1.5)];
    let rtt = ("ours-library", MIXED, RTT, Better::Less, 0.7);
    rates.into_iter().flat_map(both).chain([rtt]).chain(nat)
}

/// The group's rows and measures.
pub(crate) fn group(lab: &Lab) -> Group {
    let row = |(id, title, rival, way): &(&'static str, &str, Option<&'static str>, Way)| Row {
        id,
        title: (*title).to_owned(),
        rival: *rival,
        missing: way.missing(lab),
    };
    let rate = |key, title| Measure::new(key, title, "Gbit/s", Better::More);
    Group {
        id: ID,
        title: "Virtual machines",
        reference: Some((ROOT, "root's")),
        rivals: "others'",
        rows: CONTENDERS.iter().map(row).collect(),
        measures: vec![
            rate(TCP[0], "TCP out of the guest"),
            rate(TCP[1], "TCP into the guest"),
            Measure::new(RTT, "Round trip, idle, median", "µs", Better::Less),
        ],
    }
}

/// The names of what is run.
pub(crate) fn probes() -> Vec<String> {
    TCP.into_iter().chain([RTT]).map(str::to_owned).collect()
}

/// Measures a row.
pub(crate) fn visit(bench: &mut Bench<'_>, row: &str, probes: &[String]) {
    let (lab, seconds, millis) = (bench.lab, bench.plan.seconds, bench.plan.millis());
    let found = CONTENDERS.iter().find(|(id, ..)| *id == row);
    let Some((_, _, _, way)) = found else { return };
    let Some(machine) = bench.set_up(ID, row, || way.open(lab)) else {
        return;
    };
    for probe in probes {
        bench.measure(ID, row, probe, || {
            let value = match probe.as_str() {
                RTT => machine.rtt(lab, millis)?,
                out => Some(machine.tcp(lab, seconds, out != TCP[0])?),
            };
            Ok(value
                .map(|value| (probe.clone(), value))
                .into_iter()
                .collect())
        });
    }
    bench.set_up(ID, row, || machine.check());
}

impl Way {
    /// Why this machine cannot do it.
    fn missing(self, lab: &Lab) -> Option<String> {
        let mut needs = vec!["qemu-system-x86_64", "iperf3"];
        match self {
            Self::Root { .. } | Self::RootPlain if !is_root() => {
                return Some("it needs root".to_owned());
            }
            Self::Passt | Self::NatStream | Self::NatTap if !is_root() => {
                return Some("needs root, to make the Internet".to_owned());
            }
            Self::Passt => needs.push("passt"),
            Self::Vde(_, Maker::Debian) => needs.push("vdens"),
            _ => {}
        }
        let ours = match self {
            Self::Tap | Self::TapPair | Self::NatTap => Some("vdens-tap"),
            Self::VhostUser => Some("libvdens_vhost_user.so"),
            Self::Stream | Self::NatStream => Some("libvdens_stream.so"),
            Self::Vde(Maker::Ours, _) => Some("libvdeplug.so"),
            _ => None,
        };
        if let Some(file) = ours.filter(|file| !lab.program(Maker::Ours, file).exists()) {
            return Some(format!("these programs have no {file}"));
        }
        if !Path::new(GUEST).join("initrd-iperf3.gz").exists() {
            return Some(format!(
                "no virtual machine in {GUEST}: run tests/setup.sh as root"
            ));
        }
        let missing = needs.into_iter().find(|program| !installed(program));
        missing.map(|program| format!("{program} is not installed"))
    }

    /// Boots the guest, and waits until it reaches its other end.
    fn open(self, lab: &Lab) -> Result<Machine<'_>> {
        let mut machine = Machine {
            guests: Vec::new(),
            far: None,
            address: address(0),
            programs: Procs::default(),
            internet: None,
        };
        let place = lab.unique(ID);
        match self {
            Self::Root { pair } => machine.on_roots_bridge(lab, pair, "")?,
            Self::RootPlain => machine.on_roots_bridge(lab, false, ",vnet_hdr=off")?,
            Self::Tap => machine.on_a_cable(lab, "ptp", &tap("ptp", &place), &place)?,
            Self::Stream => {
                let netdev = format!("stream,id=n,addr.type=unix,addr.path={place}");
                machine.on_a_cable(lab, "stream", &netdev, &place)?;
            }
            Self::VhostUser => {
                machine.on_a_cable(lab, "vhost-user", "vhost-user,id=n,chardev=c", &place)?;
            }
            Self::Vde(library, vdens) => {
                let netdev = format!("vde,id=n,sock=ptp://{place}");
                let directory = (library == Maker::Ours)
                    .then(|| our_library(lab))
                    .transpose()?;
                machine.far_namespace(lab, vdens, &format!("ptp://{place}"))?;
                let qemu = qemu(0, &netdev);
                let command = lab.command(Who::First, Path::new(QEMU), qemu);
                machine.boot(match directory {
                    Some(directory) => command.env("LD_LIBRARY_PATH", directory),
                    None => command,
                })?;
            }
            Self::TapPair => {
                let plug = lab.program(Maker::Ours, "vde_plug");
                let words = ["null://".to_owned(), format!("switch://{place}")];
                machine.start(lab.command(Who::First, &plug, words));
                machine.wait_for(&format!("{place}/ctl"))?;
                machine.address = address(2);
                for number in 0..2 {
                    let words = with_helper(lab, qemu(number, &tap("vde", &place)));
                    machine.boot(lab.command(Who::First, Path::new(QEMU), words))?;
                }
            }
            Self::Passt | Self::NatStream | Self::NatTap => {
                machine.on_the_internet(lab, self, &place)?
            }
        }
        // The server's namespace lets nobody's ICMP out, and iperf3 tries more than once.
        if machine.internet.is_none() {
            machine.guests[0].ping(&machine.address);
        }
        Ok(machine)
    }
}

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Where [`with_helper`] puts the program's path.
const HELPER: &str = "vdens-tap ";

/// QEMU's back end with our helper on a VNL.
fn tap(scheme: &str, place: &str) -> String {
    format!("tap,id=n,helper={HELPER}{scheme}://{place}")
}

/// The arguments with the helper's whole path.
fn with_helper(lab: &Lab, words: Vec<String>) -> Vec<String> {
    let path = format!("{} ", lab.program(Maker::Ours, "vdens-tap").display());
    let words = words.into_iter();
    words.map(|word| word.replace(HELPER, &path)).collect()
}

/// QEMU's arguments for the guest with a number, whose card is on a back end of the name `n`.
fn qemu(number: usize, netdev: &str) -> Vec<String> {
    let words = format!(
        "-machine q35,accel=tcg -cpu max -m 256 -no-reboot -display none -monitor none -serial stdio \
         -kernel {GUEST}/vmlinuz -initrd {GUEST}/initrd-iperf3.gz"
    );
    // QEMU 7.2 crashes without KVM when a card of vhost-user uses MSI-X.
    let vectors = if netdev.starts_with("vhost-user") {
        ",vectors=0"
    } else {
        ""
    };
    let card = format!("virtio-net-pci,romfile=,netdev=n,mac=52:54:00:00:00:0{number}{vectors}");
    let more = [
        "-append",
        "console=ttyS0 quiet panic=-1 no_timer_check",
        "-device",
        &card,
    ];
    let words = words
        .split_whitespace()
        .chain(more)
        .chain(["-netdev", netdev]);
    words.map(str::to_owned).collect()
}

/// The directory in which the dynamic linker finds our library.
fn our_library(lab: &Lab) -> Result<String> {
    let directory = lab.program(Maker::Ours, "libvdeplug");
    if !directory.exists() {
        fs::create_dir(&directory)?;
        symlink("../libvdeplug.so", directory.join("libvdeplug.so.2"))?;
    }
    Ok(directory.display().to_string())
}

/// A guest that reaches its other end.
struct Machine<'lab> {
    /// A shell in each guest.
    guests: Vec<Session<'lab>>,
    /// The other end, unless that is the second guest.
    far: Option<Node>,
    /// The other end's address.
    address: String,
    /// What else was started.
    programs: Procs<'lab>,
    /// What the server belongs to.
    internet: Option<Uplink<'lab>>,
}

impl<'lab> Machine<'lab> {
    fn start(&mut self, command: Cmd<'lab>) -> &Proc<'lab> {
        self.programs.0.push(Proc::spawn(command));
        &self.programs.0[self.programs.0.len() - 1]
    }

    /// Waits for a path, or the end of the program that is to make it.
    fn wait_for(&self, path: &str) -> Result<()> {
        wait_for(path, PATIENCE, || {
            let is_there = Path::new(path).symlink_metadata().is_ok();
            (is_there || self.check().is_err()).then_some(())
        })?;
        self.check()
    }

    /// Boots a guest, and gives it the address of its number.
    fn boot(&mut self, command: Cmd<'lab>) -> Result<()> {
        let guest = command.session();
        wait_for("the guest", BOOT, || {
            let is_ready = guest.proc().stdout().contains("guest ready");
            (is_ready || !guest.proc().is_running()).then_some(())
        })?;
        if !guest.proc().is_running() {
            return Err(guest.proc().stderr().into());
        }
        let number = self.guests.len() + 1;
        let own = address(number);
        guest.ok(&format!(
            "ip link set lo up; ip addr add {own}/16 dev eth0; ip link set eth0 up"
        ));
        self.guests.push(guest);
        Ok(())
    }

    /// A namespace of a vdens as the other end.
    fn far_namespace(&mut self, lab: &'lab Lab, maker: Maker, vnl: &str) -> Result<()> {
        let vdens = lab.program(maker, "vdens");
        let proc = self.start(lab.command(Who::First, &vdens, [vnl, "sleep", "86400"]));
        let node = lab.node_of(proc, Who::First, 0)?;
        lab.sh(
            &node,
            &format!(
                "ip addr add {}/16 dev vde0; ip link set vde0 up",
                node.address
            ),
        )?;
        self.far = Some(node);
        Ok(())
    }

    fn on_a_cable(
        &mut self,
        lab: &'lab Lab,
        scheme: &str,
        netdev: &str,
        place: &str,
    ) -> Result<()> {
        self.far_namespace(lab, Maker::Ours, &format!("{scheme}://{place}"))?;
        self.wait_for(place)?;
        let mut words = with_helper(lab, qemu(0, netdev));
        if scheme == "vhost-user" {
            let memory = format!(
                "-object memory-backend-memfd,id=m,size=256M,share=on -numa node,memdev=m \
                 -chardev socket,id=c,path={place}"
            );
            // A chardev comes before the back end that names it.
            let memory = memory.split_whitespace().map(str::to_owned);
            words = memory.chain(words).collect();
        }
        self.boot(lab.command(Who::First, Path::new(QEMU), words))
    }

    /// A bridge in a namespace of root's, with a namespace or another guest on it. QEMU's back end
    /// gets further keys.
    fn on_roots_bridge(&mut self, lab: &'lab Lab, pair: bool, keys: &str) -> Result<()> {
        let (holder, host) = lab.bare_node(0)?;
        self.programs.0.push(holder);
        let user = lab.user();
        lab.sh(&host, "ip link add br0 type bridge; ip link set br0 up")?;
        let guests = if pair { 2 } else { 1 };
        for number in 0..guests {
            let tap = format!("vb{number}");
            lab.sh(
                &host,
                &format!(
                    "ip tuntap add dev {tap} mode tap user {user}
                     ip link set {tap} master br0 up"
                ),
            )?;
        }
        if !pair {
            let (holder, far) = lab.bare_node(0)?;
            self.programs.0.push(holder);
            let pid = far.pid;
            lab.sh(
                &host,
                &format!(
                    "ip link add p0 type veth peer name vde0 netns {pid}
                     ip link set p0 master br0 up"
                ),
            )?;
            lab.sh(
                &far,
                &format!(
                    "ip addr add {}/16 dev vde0; ip link set vde0 up",
                    far.address
                ),
            )?;
            self.far = Some(far);
        }
        if pair {
            self.address = address(2);
        }
        for number in 0..guests {
            let netdev = format!("tap,id=n,ifname=vb{number},script=no,downscript=no{keys}");
            let words = qemu(number, &netdev);
            self.boot(lab.inside(&host, Who::First, Path::new(QEMU), words))?;
        }
        Ok(())
    }

    /// The server of the Internet as the other end.
    fn on_the_internet(&mut self, lab: &'lab Lab, way: Way, place: &str) -> Result<()> {
        let internet = internet(lab)?;
        let host = internet.host.clone();
        let stream = format!("stream,id=n,addr.type=unix,addr.path={place}");
        let netdev = match way {
            Way::Passt => {
                let words = ["-f", "-s", place];
                self.start(lab.inside(&host, Who::First, Path::new("/usr/bin/passt"), words));
                self.wait_for(place)?;
                stream
            }
            Way::NatStream => {
                let plug = lab.program(Maker::Ours, "vde_plug");
                let words = [format!("stream://{place}"), "nat://".to_owned()];
                self.start(lab.inside(&host, Who::First, &plug, words));
                self.wait_for(place)?;
                stream
            }
            _ => tap("nat", ""),
        };
        let words = with_helper(lab, qemu(0, &netdev));
        self.boot(lab.inside(&host, Who::First, Path::new(QEMU), words))?;
        let guest = &self.guests[0];
        guest.ok(
            "printf '#!/bin/sh\\n[ $1 = bound ] || exit 0\\nip addr flush dev eth0\\n\
             ip addr add $ip/$mask dev eth0; ip route add default via $router\\n' >/s
             chmod +x /s; udhcpc -i eth0 -n -q -t 30 -T 1 -s /s",
        );
        self.far = Some(internet.server.clone());
        self.address = SERVER.to_owned();
        self.internet = Some(internet);
        Ok(())
    }

    /// TCP from the first guest, or to it, in Gbit/s.
    fn tcp(&self, lab: &Lab, seconds: u64, is_in: bool) -> Result<f64> {
        let serve = format!("-s -1 -p {IPERF}");
        let far = self.far.as_ref().map(|far| {
            let iperf = Path::new("/usr/bin/iperf3");
            Proc::spawn(lab.inside(far, Who::Caller, iperf, serve.split(' ')))
        });
        match &far {
            Some(server) => wait_for_port(server, "tcp", IPERF)?,
            None => self.guests[1].start(&format!("iperf3 {serve} >/dev/null 2>&1")),
        }
        let (address, reverse) = (&self.address, if is_in { "-R" } else { "" });
        // A guest's server may need a moment. iperf3 with -J always says that it succeeded.
        let run = format!(
            "for try in 1 2 3 4 5 6 7 8 9; do
                 iperf3 -J -c {address} -p {IPERF} -t {seconds} {reverse} >/tmp/report
                 grep -q '\"sum_received\"' /tmp/report && break
                 sleep 0.3
             done; cat /tmp/report"
        );
        let limit = Duration::from_secs(seconds) + PATIENCE;
        let (_, text) = self.guests[0].run_within(limit, &run);
        if far.is_none() {
            self.guests[1].finish(PATIENCE);
        }
        // A prompt may come before it.
        let start = text.find('{').unwrap_or(text.len());
        let report: Value = serde_json::from_str(&text[start..])
            .map_err(|_| format!("iperf3 said nothing that could be read: {text}"))?;
        let rate = report["end"]["sum_received"]["bits_per_second"].as_f64();
        let rate = rate.ok_or_else(|| format!("iperf3: {}", report["error"]))?;
        Ok(rate / 1e9)
    }

    /// The median of round trips from a namespace to the guest, in µs; `None` if the other end is
    /// none that reaches it.
    fn rtt(&self, lab: &Lab, millis: u64) -> Result<Option<f64>> {
        let Some(far) = self.far.as_ref().filter(|_| self.address != SERVER) else {
            return Ok(None);
        };
        let guest = Node {
            address: address(1),
            ..far.clone()
        };
        let (median, _) = rtt(lab, far, &guest, millis, 1000)?;
        Ok(Some(median))
    }

    /// An error if anything has ended.
    fn check(&self) -> Result<()> {
        self.programs.0.iter().try_for_each(Proc::check)
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        for guest in &self.guests {
            guest.start("poweroff -f");
        }
    }
}
