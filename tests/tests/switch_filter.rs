//! A switch on a kernel whose bridges filter VLANs: inside a virtual machine that has one.

use std::collections::BTreeSet;

use serde_json::Value;
use vdens_tests::{Lab, PATIENCE, Session, becomes_true, need, wait_until};

use crate::in_guest::{boot, ok};

/// What a port is in: its VLAN without a tag, and those with one.
#[derive(Clone, Copy)]
struct Port {
    untagged: Option<u16>,
    tagged: &'static [u16],
    keys: &'static str,
}

const fn access(vlan: u16, keys: &'static str) -> Port {
    Port {
        untagged: Some(vlan),
        tagged: &[],
        keys,
    }
}

const fn trunk(tagged: &'static [u16], keys: &'static str) -> Port {
    Port {
        untagged: None,
        tagged,
        keys,
    }
}

impl Port {
    /// The VLAN of a frame that comes in with a tag, or with none (0).
    fn entering(&self, tag: u16) -> Option<u16> {
        match tag {
            0 => self.untagged,
            _ => self.tagged.contains(&tag).then_some(tag),
        }
    }

    /// Whether a frame with this tag is treated alike on all ways. At a port with tags a kernel's
    /// bridge takes the VLAN that has none there with its tag, too.
    fn is_alike(&self, tag: u16) -> bool {
        self.untagged != Some(tag) || self.tagged.is_empty()
    }

    /// The tag of a frame of a VLAN that leaves.
    fn leaving(&self, vlan: u16) -> Option<u16> {
        match self.untagged == Some(vlan) {
            true => Some(0),
            false => self.tagged.contains(&vlan).then_some(vlan),
        }
    }
}

const PANEL: &str = "";
const USER_SPACE: &str = "--no-panel";

/// The ports at first, from number 1 on.
const PORTS: [Port; 6] = [
    access(10, PANEL),
    access(20, PANEL),
    trunk(&[10, 20], PANEL),
    access(10, USER_SPACE),
    access(20, USER_SPACE),
    trunk(&[10, 20], USER_SPACE),
];

/// Sets VLANs of ports.
fn set(guest: &Session<'_>, words: &str) {
    ok(guest, &format!("vdectl switch set /tmp/sw {words}"));
}

/// Which ways the frames of the ports take, in the order of their numbers.
fn ways(guest: &Session<'_>) -> Vec<String> {
    let text = ok(guest, "vdectl switch show --json /tmp/sw ports");
    let json = text.find(['{', '[']).zip(text.rfind(['}', ']']));
    let ports: Value = json
        .and_then(|(start, end)| serde_json::from_str(&text[start..=end]).ok())
        .unwrap_or_else(|| panic!("no JSON: {text}"));
    let ports = ports[0]["ports"].as_array().into_iter().flatten();
    let clients = ports.filter(|port| port["number"] != 0);
    let ways = clients.map(|port| port["way"].as_str().unwrap_or_default().to_owned());
    ways.collect()
}

/// Each member broadcasts a frame without a tag, and one with each tag; checks who sees what. The
/// frames of a `round` differ from those of others.
#[track_caller]
fn check_broadcasts(guest: &Session<'_>, ports: &[Port], round: u16) {
    const TAGS: [u16; 4] = [0, 10, 20, 30];
    for sender in 1..=ports.len() {
        let from = &ports[sender - 1];
        let frames = TAGS.iter().filter(|tag| from.is_alike(**tag)).map(|tag| {
            let interface = match tag {
                0 => "vde0".to_owned(),
                _ => format!("vde0.{tag}"),
            };
            format!("arping -q -D -c 1 -w 1 -I {interface} 10.{round}.{sender}.{tag} & ")
        });
        let frames: String = frames.collect();
        ok(
            guest,
            &format!("vdectl exec m{sender} sh -c '{frames} wait'"),
        );
    }
    for (number, port) in ports.iter().enumerate() {
        let mut expected = BTreeSet::new();
        for (sender, from) in ports
            .iter()
            .enumerate()
            .filter(|(sender, _)| *sender != number)
        {
            for tag in TAGS.iter().filter(|tag| from.is_alike(**tag)) {
                let seen = from.entering(*tag).and_then(|vlan| port.leaving(vlan));
                expected.extend(seen.map(|seen| (sender + 1, *tag, seen)));
            }
        }
        let mut seen = BTreeSet::new();
        becomes_true(PATIENCE, || {
            seen = seen_by(guest, number + 1, round);
            seen == expected
        });
        assert_eq!(seen, expected, "round {round}, port {}", number + 1);
    }
}

/// What a member has seen of a round: who sent it, with what tag, and the tag that it came with.
fn seen_by(guest: &Session<'_>, number: usize, round: u16) -> BTreeSet<(usize, u16, u16)> {
    let log = ok(guest, &format!("cat /tmp/m{number}.log"));
    let lines = log.lines().filter_map(|line| {
        let (_, words) = line.split_once(&format!("who-has 10.{round}."))?;
        let end = words.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (sender, sent) = words[..end].split_once('.')?;
        let tag = line
            .split_once("vlan ")
            .and_then(|(_, rest)| rest.split_once(','));
        let tag = tag.map_or(Ok(0), |(tag, _)| tag.parse());
        Some((sender.parse().ok()?, sent.parse().ok()?, tag.ok()?))
    });
    lines.collect()
}

/// Sends bytes through TCP from one member to another, and counts what arrives.
fn check_stream(guest: &Session<'_>, from: u8, to: u8) {
    // At the end of its input, BusyBox's nc closes one direction, and its peer ends.
    let receive = "rm -f /tmp/count; sleep 300 | nc -l -p 5000 | wc -c >/tmp/count &";
    ok(guest, &format!("vdectl exec m{to} sh -c '{receive}'"));
    let send = format!("head -c 3000000 /dev/zero | nc 10.0.0.{to} 5000");
    let send = format!("until {send}; do sleep 0.1; done");
    ok(guest, &format!("vdectl exec m{from} sh -c '{send}'"));
    let mut count = String::new();
    becomes_true(PATIENCE, || {
        count = ok(guest, "cat /tmp/count").trim().to_owned();
        !count.is_empty()
    });
    assert_eq!(count, "3000000", "bytes from port {from} to port {to}");
}

#[test]
fn a_kernel_that_filters_vlans_carries_trunks_and_access_ports() {
    need!("guest", "qemu-system-x86_64", "tcpdump", "cpio", "strip");
    let lab = Lab::new();
    let guest = boot(&lab);
    ok(
        &guest,
        "vdens -d -vv --log-file /tmp/log --name m0 --addr 10.0.0.9/24 \
         'switch:///tmp/sw[vlans=10,20/vlan=10]'",
    );
    let trunks =
        "port 3 untagged none tagged 10 tagged 20 port 6 untagged none tagged 10 tagged 20";
    let accesses = "port 1 untagged 10 port 2 untagged 20 port 4 untagged 10 port 5 untagged 20";
    set(&guest, &format!("{trunks} {accesses}"));
    for (index, port) in PORTS.iter().enumerate() {
        let (number, keys) = (index + 1, port.keys);
        let untagged = match port.tagged {
            [] => format!("--addr 10.0.0.{number}/24"),
            _ => String::new(),
        };
        let links = [10, 20, 30].map(|tag| {
            let link = format!("link vde0 name vde0.{tag} type vlan id {tag}");
            format!("ip link add {link} && ip link set vde0.{tag} up && ")
        });
        ok(
            &guest,
            &format!(
                "vdens -d --name m{number} --up {untagged} {keys} 'vde:///tmp/sw[{number}]' && \
             vdectl wait m{number} --link-up && vdectl exec m{number} sh -c '{} \
             tcpdump -lnne -Q in -i vde0 arp or vlan >/tmp/m{number}.log 2>/tmp/m{number}.err &'",
                links.concat()
            ),
        );
    }
    let ready = "grep -l listening /tmp/m?.err | wc -l";
    wait_until("the sniffers", PATIENCE, || ok(&guest, ready).trim() == "6");
    let of_filter = [["filter"; 3], ["user-space"; 3]].concat();
    assert_eq!(ways(&guest), of_filter);
    let status = ok(&guest, "vdectl status");
    assert!(status.contains("the kernel's VLAN filter"), "{status}");
    check_broadcasts(&guest, &PORTS, 1);

    // VLANs change, and nobody is plugged anew.
    let changes = "vlan 30 create port 0 untagged 20 port 1 untagged 20 port 4 untagged 30 \
                   port 3 not-tagged 10 untagged 10 tagged 30";
    set(&guest, changes);
    let mut ports = PORTS;
    ports[0] = access(20, PANEL);
    ports[2] = Port {
        untagged: Some(10),
        ..trunk(&[20, 30], PANEL)
    };
    ports[3] = access(30, USER_SPACE);
    check_broadcasts(&guest, &ports, 2);
    assert_eq!(ways(&guest), of_filter);
    assert!(!ok(&guest, "cat /tmp/log").contains(" closed, "));
    ok(&guest, "vdectl exec m3 ip addr add 10.0.0.3/24 dev vde0.20");
    for (from, to) in [(1, 2), (1, 3), (1, 5), (5, 3), (0, 2), (5, 9)] {
        ok(
            &guest,
            &format!("vdectl exec m{from} ping -c 1 -w 20 10.0.0.{to}"),
        );
    }
    check_stream(&guest, 3, 5);
    check_stream(&guest, 5, 3);

    // A spanning tree looks into user space.
    set(&guest, "stp on");
    let expected = [
        "bridge",
        "bridge",
        "user-space",
        "user-space",
        "user-space",
        "user-space",
    ];
    let is_so = || ways(&guest) == expected;
    wait_until("the bridges of VLANs", PATIENCE, is_so);
    let status = ok(&guest, "vdectl status");
    assert!(status.contains("one bridge for each VLAN"), "{status}");
    for (from, to) in [(1, 2), (1, 3), (5, 1), (0, 2), (5, 9)] {
        ok(
            &guest,
            &format!("vdectl exec m{from} ping -c 1 -w 30 10.0.0.{to}"),
        );
    }
    set(&guest, "stp off");
    wait_until("the filter again", PATIENCE, || ways(&guest) == of_filter);
    check_broadcasts(&guest, &ports, 3);
}
