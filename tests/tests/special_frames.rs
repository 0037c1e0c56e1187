//! Control frames (BPDU, pause, LACP, LLDP) and long frames, up to the longest that an interface
//! can send, through each transport, with and without the panel: which pass, which are dropped and
//! counted, that none is changed, and that the link continues to work.

use std::net::UdpSocket;

use vdens_tests::{Cmd, Lab, PATIENCE, Session, need, wait_until};

use crate::status::{link, status};

/// The MTU of a tap at most; frames have 14 bytes more.
const LONGEST: &str = "65521";
/// A bridge does not forward these (IEEE 802.3, annex 31B), and the kernel's has no setting for it.
const PAUSES: [&str; 3] = ["pause", "unpause", "priority-pause"];

/// Sends all frames from one session to the other. Returns the names of those that do not arrive,
/// without those that the sender's interface refuses.
#[track_caller]
fn missing(lab: &Lab, from: &Session<'_>, to: &Session<'_>) -> Vec<String> {
    let script = lab.write("frames.py", include_str!("special_frames.py"));
    from.ok("rm -f $HOME/ready");
    to.start(&format!("python3 {script} receive vde0 | tee $HOME/ready"));
    wait_until("the receiver", PATIENCE, || {
        from.ok("cat $HOME/ready 2>/dev/null || :")
            .contains("ready")
    });
    let refused = from.ok(&format!("python3 {script} send vde0"));
    let (status, said) = to.finish(2 * PATIENCE);
    assert_eq!(status, 0, "{said}");
    assert!(said.ends_with("\nchanged:\n"), "{said}");
    let arrived = said.lines().find_map(|line| line.strip_prefix("arrived:"));
    let arrived: Vec<&str> = arrived.unwrap_or_default().split(' ').collect();
    let all = [
        "bpdu",
        "rstp",
        "pvst",
        "pause",
        "unpause",
        "priority-pause",
        "pause-to-one",
        "lacp",
        "lldp",
    ];
    let long = [
        "60", "1514", "1518", "9014", "9230", "9231", "9234", "9235", "20014", "65014", "65535",
    ];
    let all = all.iter().map(ToString::to_string);
    let all = all.chain(long.iter().map(|long| format!("long-{long}")));
    all.chain(["tagged-9234".to_owned()])
        .filter(|name| {
            !arrived.contains(&&**name) && !refused.contains(&format!("not sent: {name} "))
        })
        .collect()
}

/// The number of frames that a session's link dropped on the way out.
fn dropped(lab: &Lab, session: &Session<'_>) -> u64 {
    let link = link(&status(lab), session.proc().pid().cast_unsigned(), 0);
    let dropped = link["sent"]["dropped"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    dropped.values().filter_map(serde_json::Value::as_u64).sum()
}

/// Two sessions that ping each other.
fn connected<'lab>(
    first: Cmd<'lab>,
    second: Cmd<'lab>,
    [left, right]: [&str; 2],
) -> [Session<'lab>; 2] {
    let start = |vdens: Cmd<'lab>, mtu: &str, address: &str, vnl: &str| {
        let options = ["-v", "--mtu", mtu, "--addr", address, vnl, "sh"];
        let session = vdens.args(options).session();
        session.ok(":");
        session
    };
    let a = start(first, LONGEST, "10.0.0.1/24", left);
    let b = start(second, LONGEST, "10.0.0.2/24", right);
    a.ping("10.0.0.2");
    [a, b]
}

/// Exactly the frames `lost` are lost, and the sender counts them if `is_counted`. The link
/// continues to work.
#[track_caller]
fn loses(lab: &Lab, [a, b]: &[Session<'_>; 2], lost: &[&str], is_counted: bool) {
    let before = dropped(lab, a);
    assert_eq!(missing(lab, a, b), lost);
    if is_counted {
        let now = dropped(lab, a);
        assert!(
            now >= before + lost.len() as u64,
            "{before}, {now}: {lost:?}"
        );
    }
    goes_on([a, b]);
}

/// The link has not broken and not stopped.
#[track_caller]
fn goes_on(ends: [&Session<'_>; 2]) {
    ends[0].ok("ping -c 2 -W 20 10.0.0.2");
    for end in ends {
        assert!(end.ok("ip link show vde0").contains("LOWER_UP"));
        let log = end.proc().stderr();
        for word in ["panick", "is ended", "opened again", "ended with"] {
            assert!(!log.contains(word), "{log}");
        }
    }
}

fn is_carried(session: &Session<'_>) -> bool {
    session.proc().stderr().contains("go through the kernel")
}

#[test]
fn through_a_cable() {
    need!("python3");
    for options in [[].as_slice(), &["--no-panel"]] {
        let lab = Lab::new();
        let vnl = lab.vnl("ptp", "p");
        let ends = connected(lab.vdens(options), lab.vdens(options), [&vnl, &vnl]);
        if options.is_empty() {
            wait_until("they are on the panel", PATIENCE, || is_carried(&ends[0]));
        }
        // Two ends of ours exchange longer frames than a legacy end accepts, as they do
        // super-frames.
        let lost: &[&str] = if options.is_empty() { &PAUSES } else { &[] };
        loses(&lab, &ends, lost, !options.is_empty());
        // Longer than the MTU of the other end. A veth pair drops such frames; a tap accepts them.
        ends[1].ok("ip link set vde0 mtu 1500");
        ends[0].ok("ip link set vde0 mtu 9000");
        let lost = missing(&lab, &ends[0], &ends[1]);
        let expected: &[&str] = if options.is_empty() {
            &[PAUSES.as_slice(), &["long-9014"]].concat()
        } else {
            &[]
        };
        assert_eq!(lost, expected);
        goes_on([&ends[0], &ends[1]]);
    }
}

#[test]
fn through_our_switch_and_hub() {
    need!("python3");
    for scheme in ["switch", "hub"] {
        let lab = Lab::new();
        // One for each way, so that neither has stations of the other to remember.
        let plugs = ["panel", "user"].map(|name| {
            let plug = lab.vde_plug(["null://", &lab.vnl(scheme, name)]).spawn();
            lab.wait_for(&format!("{name}/ctl"));
            plug
        });
        let vnl = lab.vnl("vde", "panel");
        let vnls = [&*vnl, &vnl];
        let ends = connected(lab.vdens([""; 0]), lab.vdens([""; 0]), vnls);
        for end in &ends {
            wait_until("carried by the kernel", PATIENCE, || is_carried(end));
        }
        loses(&lab, &ends, &PAUSES, false);
        drop(ends);
        // A switch may have legacy clients, which accept 9234 bytes at most.
        let vnl = lab.vnl("vde", "user");
        let vnls = [&*vnl, &vnl];
        let ends = connected(lab.vdens(["--no-panel"]), lab.vdens(["--no-panel"]), vnls);
        let lost = ["long-9235", "long-20014", "long-65014", "long-65535"];
        loses(&lab, &ends, &lost, true);
        drop(ends);
        for plug in plugs {
            assert!(plug.is_running());
            plug.terminate();
        }
    }
}

#[test]
fn through_udp() {
    need!("python3");
    let lab = Lab::new();
    let port = || UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let (left, right) = (
        port().map(|p| p.port()).unwrap_or(0),
        port().map(|p| p.port()).unwrap_or(0),
    );
    let vnls = [
        format!("udp://127.0.0.1:{left}->127.0.0.1:{right}"),
        format!("udp://{right}->127.0.0.1:{left}"),
    ];
    let ends = connected(lab.vdens([""; 0]), lab.vdens([""; 0]), [&vnls[0], &vnls[1]]);
    // A datagram has 65,507 bytes at most (RFC 768, RFC 791).
    loses(&lab, &ends, &["long-65535"], true);
}

#[test]
fn through_vxlan() {
    need!("python3");
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "p");
    // The machines that the VXLAN spans are namespaces on a cable.
    let machine = |address: &str| {
        let vdens = lab.vdens(["--addr", address, &cable]);
        vdens.args([lab.bin().join("vdens")])
    };
    let vnls = ["vxlan://192.168.0.2/vni=42", "vxlan://192.168.0.1/vni=42"];
    let ends = connected(machine("192.168.0.1/24"), machine("192.168.0.2/24"), vnls);
    assert_eq!(missing(&lab, &ends[0], &ends[1]), ["long-65535"]);
    goes_on([&ends[0], &ends[1]]);
}
