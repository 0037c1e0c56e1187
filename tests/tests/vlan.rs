//! `vlan://VID{…}`: the frames it sends and accepts, and the peers it reaches.

use std::time::Duration;

use vdens_tests::{Cmd, Lab, Proc, Session, need, skip, stretched, wait_until};

/// A station without a VLAN that sends one ARP request for 10.0.0.1, with the tags given in
/// hexadecimal, and prints of each answer the tag protocol and the tag (the kernel takes the
/// outermost one off: packet(7), PACKET_AUXDATA).
const ASK: &str = r#"
import socket, struct, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(('vde0', 0))
s.setsockopt(263, 8, 1)
mac = bytes.fromhex('020000000009')
arp = struct.pack('!HHBBH', 1, 0x800, 6, 4, 1) + mac + bytes([10, 0, 0, 9]) + bytes(6) + bytes([10, 0, 0, 1])
s.send(b'\xff' * 6 + mac + bytes.fromhex(sys.argv[1]) + b'\x08\x06' + arp + bytes(18))
end = time.time() + 1.5
while (left := end - time.time()) > 0:
    s.settimeout(left)
    try: frame, control, _, _ = s.recvmsg(2000, 100)
    except TimeoutError: break
    if frame[:6] != mac: continue
    status, _, _, _, _, tci, tpid = struct.unpack('IIIHHHH', control[0][2][:20])
    print('%04x%04x' % (tpid, tci) if status & 16 else 'untagged', frame[12:14].hex())
"#;

fn switch<'lab>(lab: &'lab Lab) -> Proc<'lab> {
    let switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    switch
}

/// A namespace with the addresses of that number.
fn member<'lab>(command: Cmd<'lab>, number: u8) -> Session<'lab> {
    let session = command.session();
    session.address("vde0", &format!("10.0.0.{number}/24"));
    session.address("vde0", &format!("fd00::{number}/64"));
    session
}

fn ours<'lab>(lab: &'lab Lab, number: u8, vnl: &str) -> Session<'lab> {
    member(lab.vdens([vnl, "sh"]), number)
}

#[test]
fn tags_on_the_wire() {
    need!("python3");
    let lab = Lab::new();
    let _switch = switch(&lab);
    let wire = lab.vnl("vde", "sw");
    let script = lab.write("ask.py", ASK);
    let raw = lab.vdens(["--up", &wire, "sh"]).session();
    for (vlan, answered) in [
        (
            "vlan://5",
            &[("81000005", "81000005 0806"), ("8100f005", "81000005 0806")][..],
        ),
        ("vlan://4094/priority=3", &[("81000ffe", "81006ffe 0806")]),
        ("vlan://5/qinq", &[("88a80005", "88a80005 0806")]),
        (
            "vlan://4{vlan://5/qinq",
            &[("88a8000581000004", "88a80005 8100")],
        ),
    ] {
        let end = if vlan.contains('{') { "}}" } else { "}" };
        let _station = ours(&lab, 1, &format!("{vlan}{{{wire}{end}"));
        let ask = |tags: &str| {
            raw.ok(&format!("python3 {script} '{tags}'"))
                .trim()
                .to_owned()
        };
        // Only when it answers at all does silence mean something.
        for (tags, answer) in answered {
            wait_until("an answer", stretched(Duration::from_secs(15)), || {
                !ask(tags).is_empty()
            });
            assert_eq!(ask(tags), *answer, "{vlan} asked with {tags}");
        }
        for tags in ["", "81000006", "81000405", "88a80006", "8100000681000005"] {
            assert_eq!(ask(tags), "", "{vlan} asked with '{tags}'");
        }
    }
}

#[test]
fn files_over_all_kinds_of_networks() {
    need!("socat", "vde_plug");
    let lab = Lab::new();
    let _switch = switch(&lab);
    // Debian's switch takes complete frames only. (vde_switch drops frames of VLANs that it was not
    // told of.)
    let legacy = ["null://", &lab.vnl("switch", "legacy")];
    let _legacy = lab.debian("vde_plug", legacy).spawn();
    lab.wait_for("legacy/ctl");
    lab.expect("legacy");
    for network in [
        lab.vnl("ptp", "p"),
        lab.vnl("vde", "sw"),
        lab.vnl("vde", "legacy"),
    ] {
        for vlan in ["vlan://5", "vlan://7{vlan://5/qinq"] {
            let end = if vlan.contains('{') { "}}" } else { "}" };
            let vnl = format!("{vlan}{{{network}{end}");
            let (a, b) = (ours(&lab, 1, &vnl), ours(&lab, 2, &vnl));
            a.ping("10.0.0.2");
            a.send_file(&b, "10.0.0.2", 8);
            b.send_file(&a, "fd00::1", 8);
        }
    }
}

#[test]
fn the_panel_does_not_lead_around_the_tag() {
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "p");
    let a = ours(&lab, 1, &format!("vlan://5{{{cable}}}"));
    for other in [cable.clone(), format!("vlan://6{{{cable}}}")] {
        let b = ours(&lab, 2, &other);
        wait_until(
            "the cable is plugged",
            stretched(Duration::from_secs(10)),
            || !a.ok("ip link show vde0").contains("NO-CARRIER"),
        );
        assert_ne!(b.run("ping -c 3 -i 0.2 -W 1 10.0.0.1").0, 0, "{other}");
    }
    let b = ours(&lab, 2, &format!("vlan://5{{{cable}}}"));
    a.ok("ip neigh flush dev vde0");
    a.ping("10.0.0.2");
    b.ping("fd00::1");
}

#[test]
fn its_carrier_is_the_nested_links() {
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "p");
    let vnl = format!("vlan://5{{{cable}}}");
    let a = lab.vdens(["--up", &vnl, "sh"]).session();
    let carrier = |up: bool| {
        wait_until(
            "the carrier follows",
            stretched(Duration::from_secs(10)),
            || a.ok("ip link show vde0").contains("NO-CARRIER") != up,
        );
    };
    carrier(false);
    let b = lab.vdens([&cable, "sh"]).session();
    carrier(true);
    drop(b);
    carrier(false);
}

#[test]
fn debians() {
    need!("vdens", "socat");
    let installed = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib",
    ]
    .iter()
    .any(|lib| {
        std::path::Path::new(lib)
            .join("vdeplug/libvdeplug_vlan.so")
            .exists()
    });
    if !installed {
        return skip("libvdeplug-vlan is not installed");
    }
    for vlan in ["vlan://5", "vlan://5/qinq"] {
        let lab = Lab::new();
        let _switch = switch(&lab);
        let vnl = format!("{vlan}{{{}}}", lab.vnl("vde", "sw"));
        let a = ours(&lab, 1, &vnl);
        let b = member(lab.debian("vdens", [&vnl, "sh"]), 2);
        a.ping("10.0.0.2");
        b.ping("fd00::1");
        a.send_file(&b, "10.0.0.2", 4);
        b.send_file(&a, "fd00::1", 4);
    }
}

#[test]
fn what_cannot_be_opened_is_refused_with_the_reason() {
    let lab = Lab::new();
    for (vnl, words) in [
        ("vlan://4095{null://}", "VLANs are 1 to 4094"),
        ("vlan://5", "vlan://VID{VNL}"),
        ("vlan://5{nosuch://}", "libvdens_nosuch.so"),
        ("vlan://5{vde:///no/such}", "/no/such"),
        ("vlan://5{vlan://5}", "vlan://VID{VNL}"),
    ] {
        lab.vdens([vnl, "true"]).refused(&[words]);
    }
}
