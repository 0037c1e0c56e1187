//! A virtual machine at the other end of the cable: Debian's QEMU, with Debian's libvdeplug or with
//! its own UDP.

use std::net::UdpSocket;
use std::time::Duration;

use vdens_tests::{Cmd, GUEST, Lab, Session, need, stretched, wait_until};

/// Boots the guest with its network card on a VNL; a root shell on its serial line.
pub(crate) fn guest<'lab>(lab: &'lab Lab, vnl: &str) -> Session<'lab> {
    guest_on(lab, &[format!("vde,sock={vnl}")])
}

/// As [`guest`], with a card for each of QEMU's network backends, which have no ids.
pub(crate) fn guest_on<'lab>(lab: &'lab Lab, netdevs: &[String]) -> Session<'lab> {
    let guest = start(lab, netdevs).args(["-no-reboot"]).session();
    await_boot(&guest);
    guest
}

/// A guest with a card for each of QEMU's network backends, which have no ids: `eth0`, `eth1` and
/// so on. Its serial line is the process's.
pub(crate) fn start<'lab>(lab: &'lab Lab, netdevs: &[String]) -> Cmd<'lab> {
    lab.command(QEMU, qemu(netdevs))
}

/// The program of a virtual machine.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// Its arguments for a guest as [`start`] has it.
pub(crate) fn qemu(netdevs: &[String]) -> Vec<String> {
    let cards = netdevs.iter().enumerate().flat_map(|(number, netdev)| {
        let device = format!("virtio-net-pci,romfile=,netdev=n{number}");
        let netdev = format!("{netdev},id=n{number}");
        ["-netdev".to_owned(), netdev, "-device".to_owned(), device]
    });
    let mut words = machine(&format!("{GUEST}/initrd.gz"), 256);
    words.extend(cards);
    words
}

/// Its arguments for a guest without cards, with an initial ram disk and some MiB of memory.
pub(crate) fn machine(initrd: &str, memory: u32) -> Vec<String> {
    let kernel = format!("{GUEST}/vmlinuz");
    let machine = format!(
        "-machine q35,accel=tcg -cpu max -m {memory} -display none -monitor none -serial stdio"
    );
    // On a busy machine the guest finds that its timer does not work, and panics.
    let append = "console=ttyS0 quiet panic=-1 no_timer_check";
    let system = ["-kernel", &kernel, "-initrd", initrd, "-append", append];
    machine
        .split(' ')
        .chain(system)
        .map(str::to_owned)
        .collect()
}

/// Waits until a guest has booted.
#[track_caller]
pub(crate) fn await_boot(guest: &Session<'_>) {
    let boots = || guest.proc().stdout().contains("guest ready") || !guest.proc().is_running();
    wait_until("the guest boots", stretched(Duration::from_secs(90)), boots);
    assert!(guest.proc().is_running(), "{}", guest.proc().stderr());
}

#[test]
fn a_cable_to_a_virtual_machine() {
    need!("guest", "qemu-system-x86_64");
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let ours = lab.vdens([&vnl, "sh"]).session();
    ours.address("vde0", "10.0.0.1/24");
    let guest = guest(&lab, &vnl);
    guest.address("eth0", "10.0.0.2/24");
    ours.ping("10.0.0.2");
    guest.ping("10.0.0.1");
    assert_eq!(ours.exit(0).code(), Some(0));
}

#[test]
fn the_virtual_machine_comes_first() {
    need!("guest", "qemu-system-x86_64");
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let guest = guest(&lab, &vnl);
    guest.address("eth0", "10.0.0.2/24");
    let ours = lab.vdens([&vnl, "sh"]).session();
    ours.address("vde0", "10.0.0.1/24");
    ours.ping("10.0.0.2");
    guest.ping("10.0.0.1");
}

#[test]
fn a_virtual_machine_on_our_switch() {
    need!("guest", "qemu-system-x86_64");
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let vnl = lab.vnl("vde", "sw");
    let guest = guest(&lab, &vnl);
    guest.address("eth0", "10.0.0.2/24");
    let ours = lab.vdens([&vnl, "sh"]).session();
    ours.address("vde0", "10.0.0.1/24");
    ours.ping("10.0.0.2");
    guest.ping("10.0.0.1");
}

/// QEMU's own UDP backends put a frame into each datagram, as `udp://` does.
#[test]
fn a_virtual_machine_on_udp() {
    need!("guest", "qemu-system-x86_64");
    for dgram in [true, false] {
        let lab = Lab::new();
        // Below those that the kernel chooses for other programs.
        let mut ports =
            (20_000..32_000).filter(|port| UdpSocket::bind(("127.0.0.1", *port)).is_ok());
        let [ours, theirs] = [0, 1].map(|_| ports.next().unwrap());
        let netdev = match dgram {
            true => format!(
                "dgram,local.type=inet,local.host=127.0.0.1,local.port={theirs},\
                 remote.type=inet,remote.host=127.0.0.1,remote.port={ours}"
            ),
            false => format!("socket,udp=127.0.0.1:{ours},localaddr=127.0.0.1:{theirs}"),
        };
        let vnl = format!("udp://127.0.0.1:{ours}->127.0.0.1:{theirs}");
        let ours = lab.vdens([&vnl, "sh"]).session();
        ours.address("vde0", "10.0.0.1/24");
        let guest = guest_on(&lab, &[netdev]);
        guest.address("eth0", "10.0.0.2/24");
        ours.ping("10.0.0.2");
        guest.ping("10.0.0.1");
    }
}
