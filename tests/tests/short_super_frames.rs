//! Datagrams that look like a super-frame and are too short for one: the next frames pass, no
//! process is kept busy, and the status counts what was dropped.

use std::time::Duration;

use vdens_tests::{Lab, PATIENCE, Proc, Session, need, wait_until};

use crate::hostile_clients::ticks;
use crate::status::{link, status};

/// How many datagrams are too short for header and frame behind a super-frame's prefix.
const SHORT: u64 = 24;

/// What the programs below send: the prefix of a version of the messages, followed by too few
/// zeros.
const WRAPPING: &str = r#"
import socket, struct, sys, time
def prefix(version, kind): return bytes.fromhex('0180c2000003027664656e7388b5') + b'VDEN' + bytes([version, kind])
short = [prefix(version, 5) + bytes(n) for version in (1, 2) for n in range(24)]
"#;

/// Sends all of them, as frames of the interface.
const FROM_INSIDE: &str = r"
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('vde0', 0))
for frame in short: s.send(frame)
";

/// Is the peer at a cable of the dgram generation.
const DGRAM: &str = r"
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1] + '+')
s.connect(sys.argv[1])
";

/// Is the peer at a cable of the seqpacket generation.
const SEQPACKET: &str = r"
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
s.recv(1)
";

/// Answers the cable's hello as one of ours, so that super-frames are taken from it; sends all of
/// the datagrams and waits.
const STRAIGHT: &str = r"
hello = s.recv(10000)
if hello.startswith(prefix(2, 1)):
    cable, theirs = hello[20:36], hello[44:52]
    s.send(prefix(2, 1) + cable + theirs + struct.pack('>QIQB', 0x666, 1, 0, 0))
for datagram in short: s.send(datagram)
print('done', flush=True)
time.sleep(1000)
";

fn member<'lab>(lab: &'lab Lab, number: u8, vnl: &str) -> Session<'lab> {
    let address = format!("10.0.0.{number}/24");
    lab.vdens(["--no-panel", "--addr", &address, vnl, "sh"])
        .session()
}

/// A process that goes round in its poll loop has all of a processor, as far as there is one for
/// it: far more than it needs for being asked something now and then.
#[track_caller]
pub(crate) fn is_idle(process: &Proc<'_>) {
    // The next ones may be another's, so two quiet seconds are enough.
    wait_until("the process is idle", PATIENCE, || {
        let before = ticks(process);
        std::thread::sleep(Duration::from_secs(2));
        ticks(process) - before < 20
    });
}

/// Waits until the status of the process's first link counts so many malformed frames.
#[track_caller]
fn counts_malformed(lab: &Lab, process: &Proc<'_>, number: u64) {
    let pid = process.pid().cast_unsigned();
    let count = || link(&status(lab), pid, 0)["received"]["dropped"]["malformed"].clone();
    wait_until("they are counted", PATIENCE, || count() == number);
}

/// The example of issue 9: by one raw frame of an unprivileged command.
#[test]
fn from_inside_a_namespace_across_a_plug() {
    need!("python3");
    let lab = Lab::new();
    let (here, there) = (lab.vnl("ptp", "here"), lab.vnl("ptp", "there"));
    let plug = lab.vde_plug([&here, "=", "vde_plug", &there]).spawn();
    let (a, b) = (member(&lab, 1, &here), member(&lab, 2, &there));
    a.ping("10.0.0.2");
    let script = lab.write("short.py", [WRAPPING, FROM_INSIDE].concat());
    for (from, to, address) in [(&a, &b, "10.0.0.2"), (&b, &a, "10.0.0.1")] {
        from.ok(&format!("python3 {script}"));
        from.ping(address);
        to.ok("true");
    }
    is_idle(&plug);
    is_idle(a.proc());
}

/// The same, between two cables that one process holds.
#[test]
fn from_inside_a_namespace_across_two_cables() {
    need!("python3");
    let lab = Lab::new();
    let (here, there) = (lab.vnl("ptp", "here"), lab.vnl("ptp", "there"));
    let plug = lab.vde_plug([&here, &there]).spawn();
    let (a, b) = (member(&lab, 1, &here), member(&lab, 2, &there));
    a.ping("10.0.0.2");
    let script = lab.write("short.py", [WRAPPING, FROM_INSIDE].concat());
    a.ok(&format!("python3 {script}"));
    a.ping("10.0.0.2");
    b.ok(&format!("python3 {script}"));
    b.ping("10.0.0.1");
    is_idle(&plug);
}

#[test]
fn straight_to_a_cables_socket() {
    need!("python3");
    for (keys, program) in [("", DGRAM), ("[seqpacket]", SEQPACKET)] {
        let lab = Lab::new();
        let (here, there) = (lab.vnl("ptp", "here") + keys, lab.vnl("ptp", "there"));
        let plug = lab.vde_plug([&here, &there]).spawn();
        lab.wait_for("here");
        let b = member(&lab, 2, &there);
        let script = lab.write("short.py", [WRAPPING, program, STRAIGHT].concat());
        let peer = lab.command("python3", [&script, &lab.path("here")]).spawn();
        wait_until("they are sent", PATIENCE, || peer.stdout() == "done\n");
        counts_malformed(&lab, &plug, SHORT);
        is_idle(&plug);
        drop(peer);
        // A peer that was killed leaves its socket.
        lab.sh("rm -f here+").ok();
        let a = member(&lab, 1, &here);
        a.ping("10.0.0.2");
        b.ping("10.0.0.1");
    }
}
