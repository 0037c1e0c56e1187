//! `vhost-user://` with Debian's QEMU as the front end.
//!
//! QEMU 7.2 crashes without KVM when a vhost-user card uses MSI-X, so the guests' have no vectors.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::Signal;
use vdens_tests::{Lab, PATIENCE, Session, need, stretched, wait_until};

use crate::fault_matrix::worker;
use crate::vm::{await_boot, start};

/// Boots a guest whose card has a chardev with these options and so many queues.
fn guest<'lab>(lab: &'lab Lab, chardev: &str, queues: usize) -> Session<'lab> {
    let chardev = format!("socket,id=c,path={},{chardev}", lab.path("vm.sock"));
    let netdev = format!("vhost-user,chardev=c,id=n,queues={queues}");
    let mq = if queues > 1 { ",mq=on" } else { "" };
    let card = format!("virtio-net-pci,romfile=,netdev=n,vectors=0{mq}");
    let guest = start(lab, &[])
        .args(["-object", "memory-backend-memfd,id=m,size=256M,share=on"])
        .args(["-numa", "node,memdev=m", "-smp", &queues.to_string()])
        .args(["-chardev", &chardev, "-netdev", &netdev, "-device", &card])
        .session();
    await_boot(&guest);
    guest.address("eth0", "10.0.0.2/24");
    guest
}

/// Waits until an interface shows its carrier, or that there is none.
#[track_caller]
fn carrier(session: &Session<'_>, interface: &str, is_up: bool) {
    wait_until(&format!("{interface}: carrier {is_up}"), PATIENCE, || {
        let text = session.ok(&format!("ip link show {interface}"));
        text.contains("NO-CARRIER") != is_up
    });
}

/// Sends 64 MiB to the guest and back, and compares their checksums.
#[track_caller]
fn there_and_back(ours: &Session<'_>, guest: &Session<'_>) {
    let limit = stretched(Duration::from_secs(120));
    // The guest's shell has a prompt.
    let sum = |text: &str| {
        let mut words = text.split_whitespace();
        words.find(|word| word.len() == 32).unwrap_or("").to_owned()
    };
    let file = ours.ok("f=$(mktemp -p \"$HOME\") && head -c 64M /dev/urandom >$f && echo $f");
    let file = file.trim();
    let sent = sum(&ours.ok(&format!("md5sum {file}")));

    guest.start("nc -l -p 5000 >/f; md5sum /f");
    let socat = format!("socat -u FILE:{file} TCP4:10.0.0.2:5000,retry=200,interval=0.05");
    let (status, text) = ours.run_within(limit, &socat);
    assert_eq!(status, 0, "{text}");
    assert_eq!(
        sum(&guest.finish(limit).1),
        sent,
        "what arrived in the guest"
    );

    ours.start("socat -u TCP4-LISTEN:5001,reuseaddr STDOUT | md5sum");
    wait_until("the namespace listens", PATIENCE, || {
        guest.run_within(limit, "nc 10.0.0.1 5001 </f").0 == 0
    });
    assert_eq!(sum(&ours.finish(limit).1), sent, "what came back");
    ours.ok(&format!("rm {file}"));
    guest.ok("rm /f");
}

#[test]
fn a_guest_on_a_namespace() {
    need!("guest", "qemu-system-x86_64", "socat");
    let lab = Lab::new();
    let vnl = lab.vnl("vhost-user", "vm.sock");
    let ours = lab.vdens(["-v", &vnl, "sh"]).session();
    ours.address("vde0", "10.0.0.1/24");
    carrier(&ours, "vde0", false);
    let mode = lab.dir().join("vm.sock").metadata().unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let machine = guest(&lab, "reconnect=1", 1);
    carrier(&ours, "vde0", true);
    carrier(&machine, "eth0", true);
    ours.ping("10.0.0.2");
    machine.ping("10.0.0.1");
    let status = lab.vdectl(["status"]).ok();
    assert!(status.contains("super-frames"), "{status}");
    there_and_back(&ours, &machine);

    let worker = nix::unistd::Pid::from_raw(worker(&lab, &ours));
    nix::sys::signal::kill(worker, Signal::SIGKILL).unwrap();
    machine.ping("10.0.0.1");
    carrier(&machine, "eth0", true);

    let boots = |machine: &Session<'_>| machine.proc().stdout().matches("guest ready").count();
    machine.start("reboot -f");
    wait_until(
        "the guest reboots",
        stretched(Duration::from_secs(90)),
        || boots(&machine) == 2,
    );
    // The script before is at no end.
    machine.address("eth0", "10.0.0.2/24");
    ours.ping("10.0.0.2");

    assert_eq!(ours.exit(0).code(), Some(0));
    carrier(&machine, "eth0", false);
    assert!(!lab.dir().join("vm.sock").exists());
    let ours = lab.vdens([&vnl, "sh"]).session();
    ours.address("vde0", "10.0.0.1/24");
    machine.ping("10.0.0.1");
    carrier(&machine, "eth0", true);

    machine.proc().signal(Signal::SIGKILL);
    drop(machine);
    carrier(&ours, "vde0", false);
    let machine = guest(&lab, "reconnect=1", 1);
    ours.ping("10.0.0.2");
    there_and_back(&ours, &machine);
}

/// The machine listens, and this side connects.
#[test]
fn a_guest_with_two_queues_on_a_switch() {
    need!("guest", "qemu-system-x86_64", "socat");
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let vnls = [
        lab.vnl("vhost_user", "vm.sock[client/queues=2]"),
        lab.vnl("vde", "sw"),
    ];
    let plug = || lab.vde_plug(["--wait", &vnls[0], &vnls[1]]).spawn();
    let ours = lab.vdens([&vnls[1], "sh"]).session();
    ours.address("vde0", "10.0.0.1/24");
    let first = plug();
    let machine = guest(&lab, "server=on,wait=off", 2);
    carrier(&machine, "eth0", true);
    machine.ping("10.0.0.1");
    machine.ok("test -d /sys/class/net/eth0/queues/tx-1");
    there_and_back(&ours, &machine);

    first.signal(Signal::SIGKILL);
    drop(first);
    carrier(&machine, "eth0", false);
    let _plug = plug();
    carrier(&machine, "eth0", true);
    machine.ping("10.0.0.1");

    machine.proc().signal(Signal::SIGKILL);
    drop(machine);
    let machine = guest(&lab, "server=on,wait=off", 2);
    machine.ping("10.0.0.1");
    ours.ping("10.0.0.2");
}

#[test]
fn a_front_end_that_makes_no_sense_is_disconnected() {
    let lab = Lab::new();
    let ours = lab
        .vdens([&lab.vnl("vhost-user", "vm.sock"), "sh"])
        .session();
    lab.wait_for("vm.sock");
    let connect = || {
        let socket = UnixStream::connect(lab.path("vm.sock")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let logs = |words: &str| {
        wait_until(words, PATIENCE, || ours.proc().stderr().contains(words));
    };
    let request =
        |code: u32, flags: u32, length: u32| [code, flags, length].map(u32::to_ne_bytes).concat();
    for (bytes, words) in [
        (request(1, 0, 0), "a message has the flags 0x0"),
        (request(99, 1, 0), "request 99 is not known"),
        (request(5, 1, u32::MAX), "request 5 has 4294967295 bytes"),
        (request(2, 1, 0), "a message is too short"),
    ] {
        let mut socket = connect();
        socket.write_all(&bytes).unwrap();
        assert_eq!(socket.read(&mut [0; 64]).unwrap(), 0, "{words}");
        logs(words);
    }
    // Half a request stops nothing, and a second front end is refused meanwhile.
    let mut first = connect();
    first.write_all(&request(1, 1, 0)[..5]).unwrap();
    assert_eq!(connect().read(&mut [0; 64]).unwrap(), 0);
    logs("a second machine is refused");
    first.write_all(&request(1, 1, 0)[5..]).unwrap();
    assert_eq!(first.read(&mut [0; 64]).unwrap(), 20);
    // This one never reads again.
    while first.write_all(&request(1, 1, 0)).is_ok() {}
    logs("it does not read the answers");
    ours.ok("ip link show vde0");
    assert_eq!(ours.exit(0).code(), Some(0));
}

#[test]
fn bad_input_is_refused() {
    let lab = Lab::new();
    let refused = |keys: &str, words: &[&str]| {
        lab.vdens([&lab.vnl("vhost-user", keys), "true"])
            .refused(words);
    };
    refused("vm.sock[queues=0]", &["queues=0", "1 to 4"]);
    refused("vm.sock[queues=5]", &["queues=5", "1 to 4"]);
    refused("vm.sock[queues=x]", &["bad value 'x'"]);
    refused(
        "vm.sock[client]",
        &["no machine listens there", "server=on"],
    );
    refused("nowhere/vm.sock", &["nowhere", "make the directory"]);
    lab.write("file", "precious");
    refused("file", &["file is there and is not a socket"]);
    let first = lab
        .vdens([&lab.vnl("vhost-user", "vm.sock"), "sh"])
        .session();
    lab.wait_for("vm.sock");
    refused("vm.sock", &["another process does"]);
    assert_eq!(first.exit(0).code(), Some(0));
}
