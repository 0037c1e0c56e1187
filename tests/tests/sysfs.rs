//! What /sys shows inside.

use std::fs;

use vdens_tests::{Lab, skip};

/// A fresh sysfs, as an ordinary user mounts it.
const FRESH: &str = "unshare -Urnm mount -t sysfs sysfs /sys";

/// Where vdens makes a mount namespace, the session's own interfaces, and the rest of /sys as it
/// is.
#[test]
fn sys_shows_the_sessions_interfaces() {
    let lab = Lab::new();
    if lab.sh(FRESH).run().code() != Some(0) {
        skip("the kernel allows no fresh sysfs here, as in many containers");
        return;
    }
    let file = lab.write("resolv", "nameserver 192.0.2.1\n");
    let rest = "ls -d /sys/*; ls /sys/fs/cgroup /sys/kernel";
    let outside = lab.sh(rest).ok();
    let no_panel = ["-s", "--no-panel"];
    let all = [&["-s"][..], &["-r", &file], &["-R", "192.0.2.1"], &no_panel];
    for options in all {
        let vnl = lab.vnl("ptp", "p");
        let session = lab.vdens(options).args(["-i", "own", &vnl, "sh"]).session();
        let names = session.ok("ls /sys/class/net");
        let is_interface = |name: &&str| *name != "bonding_masters";
        let names: Vec<_> = names.split_whitespace().filter(is_interface).collect();
        assert_eq!(names, ["lo", "own0"], "{options:?}");
        session.ok("ip link set own0 mtu 1400");
        assert_eq!(session.ok("cat /sys/class/net/own0/mtu").trim(), "1400");
        session.ok("cat /sys/class/net/own0/statistics/rx_bytes");
        assert_eq!(session.ok(rest).trim(), outside.trim(), "{options:?}");
    }
}

/// Elsewhere it shows the host's, and so it does where the kernel allows no fresh one.
#[test]
fn without_a_mount_namespace_sys_shows_the_hosts_interfaces() {
    let lab = Lab::new();
    let host: Vec<_> = fs::read_dir("/sys/class/net").unwrap().flatten().collect();
    let count = |options: &[&str]| {
        let script = "ls /sys/class/net | wc -l";
        let words = ["null://", "sh", "-c", script];
        let output = lab.vdens(options).args(words);
        let output = output
            .on_changed_machine("mount -t tmpfs none /sys/kernel")
            .ok();
        output.trim().parse::<usize>().unwrap()
    };
    for options in [&[][..], &["-s"]] {
        assert_eq!(count(options), host.len(), "{options:?}");
    }
}
