//! A switch on a kernel whose bridges filter VLANs: inside a virtual machine that has one.

use vdens_tests::{Lab, need};

use crate::in_guest::{boot, ok};

#[test]
fn a_switch_in_a_guest() {
    need!("guest", "qemu-system-x86_64", "tcpdump", "cpio", "strip");
    let lab = Lab::new();
    let guest = boot(&lab);
    ok(&guest, "vde_plug -d null:// switch:///tmp/sw");
    let start = "vdens -d --name a --addr 10.0.0.1/24 vde:///tmp/sw";
    ok(&guest, start);
    let ping = "vdens -v --addr 10.0.0.2/24 vde:///tmp/sw ping -c 1 -W 20 10.0.0.1";
    let said = ok(&guest, ping);
    assert!(said.contains("frames go through the kernel"), "{said}");
}
