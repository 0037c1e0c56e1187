//! Virtual machines as nodes of a lab.

use std::time::Duration;

use vdens_tests::{GUEST, Lab, Session, need, stretched, wait_until};

/// A router between two machines: one on a cable, which `both` impairs, and one on a switch.
fn lab_file(both: &str) -> String {
    format!(
        "[nodes.r]\nsysctl = {{ \"net.ipv4.ip_forward\" = 1 }}\n\
         [nodes.vm]\ncount = 2\n\
         [nodes.vm.qemu]\nkernel = \"{GUEST}/vmlinuz\"\ninitrd = \"{GUEST}/initrd.gz\"\n\
         append = \"console=ttyS0 quiet panic=-1 no_timer_check\"\nmemory = \"256M\"\n\
         [[links]]\nends = [\"r:eth0=10.1.0.1/24\", \"vm1:eth0\"]\n{both}\
         [[switches]]\nname = \"lan\"\nports = [\"r:eth1=10.2.0.1/24\", \"vm2:eth0\"]\n\
         [[tests]]\nnode = \"r\"\nrun = \"ping -c 1 -W 1 10.1.0.2\"\n\
         [[tests]]\nnode = \"r\"\nrun = \"ping -c 1 -W 1 10.2.0.2\"\n"
    )
}

/// Waits until the machine of a console has booted.
fn await_boot(console: &Session<'_>) {
    let boots = || console.proc().stdout().contains("guest ready") || !console.proc().is_running();
    wait_until("the guest boots", stretched(Duration::from_secs(90)), boots);
    assert!(console.proc().is_running(), "{}", console.proc().stderr());
}

#[test]
fn machines_are_nodes() {
    need!("guest", "qemu-system-x86_64");
    let kit = Lab::new();
    let file = kit.write("m.toml", lab_file(""));
    kit.vdectl(["lab", "up", &file]).ok();
    // What a machine says before its console is open is lost.
    let consoles = ["m/vm1", "m/vm2"].map(|machine| kit.vdectl(["enter", machine]).session());
    for (console, net) in consoles.iter().zip(1..) {
        await_boot(console);
        console.address("eth0", &format!("10.{net}.0.2/24"));
        console.ok(&format!("ip route add default via 10.{net}.0.1"));
    }
    let said = kit.vdectl(["lab", "test", "m"]).ok();
    assert!(said.contains("\nok 2 - "), "{said}");
    consoles[0].ping("10.2.0.2");
    // The card has the address that follows from the names, and keeps it.
    let card = consoles[0].ok("cat /sys/class/net/eth0/address");
    let status = kit.vdectl(["lab", "status", "m", "--json"]).ok();
    assert!(status.contains("ifname=eth0.vm"), "{status}");
    assert!(!status.contains(card.trim()), "{card} in {status}");

    // The cable is impaired, and made anew for that. The machine runs on.
    let qemu = "pgrep -x qemu-system-x86";
    let before = kit.vdectl(["exec", "m/vm1", "sh", "-c", qemu]).ok();
    kit.write("m.toml", lab_file("both = { delay = \"50ms\" }\n"));
    kit.vdectl(["lab", "apply", &file]).ok();
    consoles[0].ping("10.1.0.1");
    let said = consoles[0].ok("ping -c 2 10.1.0.1");
    let (_, times) = said.split_once("min/avg/max = ").unwrap_or_default();
    let least = times.split('/').next().and_then(|least| least.parse().ok());
    assert!(least >= Some(100.0_f64), "{said}");
    let after = kit.vdectl(["exec", "m/vm1", "sh", "-c", qemu]).ok();
    assert_eq!(before, after);

    // A console has one user at a time, and is free when that leaves.
    let [first, _second] = consoles;
    drop(first);
    let again = kit.vdectl(["lab", "enter", "vm1"]).session();
    again.ok("cat /sys/class/net/eth0/carrier");
    drop(again);
    kit.vdectl(["lab", "down", "m"]).ok();
}

#[test]
fn a_machine_that_cannot_start_is_an_error() {
    let kit = Lab::new();
    for (qemu, said) in [
        ("image = \"none.img\"", "cannot read none.img"),
        (
            "program = \"qemu-of-nobody\"",
            "qemu-of-nobody is not installed",
        ),
    ] {
        let file = kit.write("m.toml", format!("[nodes.vm]\nqemu = {{ {qemu} }}\n"));
        kit.vdectl(["lab", "up", &file]).refused(&["node vm", said]);
    }
}
