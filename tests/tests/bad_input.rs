//! Bad input: one line that names the thing and the remedy, a status, and no trace. That there is
//! no trace is checked at the end of each lab.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use vdens_tests::{Lab, User, need};

/// Both programs refuse the VNL, and vdens does so also as one of several.
#[track_caller]
fn check_vnl(lab: &Lab, vnl: &str, words: &[&str]) {
    lab.vdens([vnl, "touch", "started"]).refused(words);
    lab.vdens(["-m", "null://", vnl, "--", "touch", "started"])
        .refused(words);
    lab.vde_plug([vnl, "null://"]).refused(words);
    lab.vde_plug(["null://", vnl]).refused(words);
}

#[test]
fn unknown_scheme() {
    let lab = Lab::new();
    check_vnl(&lab, "nosuch:///tmp/x", &["nosuch", "libvdens_nosuch.so"]);
    check_vnl(&lab, "No-Such:///tmp/x", &["No-Such"]);
    check_vnl(&lab, "://x", &["://x"]);
}

#[test]
fn unknown_keys() {
    let lab = Lab::new();
    check_vnl(
        &lab,
        &lab.vnl("ptp", "p[colour=red]"),
        &["colour", "seqpacket"],
    );
    check_vnl(
        &lab,
        &lab.vnl("switch", "sw[colour=red]"),
        &["colour", "mode"],
    );
    check_vnl(&lab, &lab.vnl("vde", "sw[colour=red]"), &["colour", "port"]);
    check_vnl(&lab, "null://[colour]", &["colour"]);
    check_vnl(&lab, "tap://tap0[colour]", &["colour"]);
    // A prefix of a key is not the key.
    check_vnl(&lab, &lab.vnl("switch", "sw[mod=0600]"), &["mod", "mode"]);
}

#[test]
fn bad_values() {
    let lab = Lab::new();
    check_vnl(&lab, &lab.vnl("switch", "sw[mode=rwx]"), &["mode", "rwx"]);
    check_vnl(
        &lab,
        &lab.vnl("switch", "sw[grp=nosuchgroup]"),
        &["nosuchgroup"],
    );
}

#[test]
fn unterminated() {
    let lab = Lab::new();
    check_vnl(&lab, &lab.vnl("ptp", "'p"), &["quote"]);
    check_vnl(&lab, &lab.vnl("ptp", "\"p"), &["quote"]);
    check_vnl(&lab, &lab.vnl("ptp", "p[seqpacket"), &["["]);
    check_vnl(&lab, &lab.vnl("switch", "sw{null://"), &["{"]);
}

#[test]
fn too_long_for_a_socket() {
    let lab = Lab::new();
    let long = "x".repeat(120);
    for scheme in ["ptp", "vde", "switch", "hub"] {
        check_vnl(&lab, &lab.vnl(scheme, &long), &["xxx", "long"]);
    }
}

#[test]
fn no_such_switch() {
    let lab = Lab::new();
    check_vnl(&lab, &lab.vnl("vde", "nosuch"), &["/nosuch", "switch"]);
    check_vnl(&lab, &lab.path("nosuch"), &["/nosuch"]);
    // A directory that is no switch, and a switch that is no more.
    lab.mkdir("empty");
    check_vnl(&lab, &lab.vnl("vde", "empty"), &["/empty"]);
    let script = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])";
    let dead = lab.mkdir("dead");
    lab.command("python3", ["-c", script, &format!("{dead}/ctl")])
        .ok();
    check_vnl(&lab, &lab.vnl("vde", "dead"), &["/dead"]);
}

#[test]
fn no_permission() {
    need!("root");
    let lab = Lab::new();
    for (name, mode) in [("closed", 0o700), ("readable", 0o755)] {
        let path = lab.mkdir(name);
        std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let (inner, place) = (format!("{name}/x"), format!("/{name}"));
        for scheme in ["ptp", "switch"] {
            check_vnl(&lab, &lab.vnl(scheme, &inner), &[&place, "ermission"]);
        }
    }
}

#[test]
fn another_users_switch() {
    need!("root");
    let lab = Lab::new();
    let others = lab.mkdir("others");
    let other = User::other();
    std::os::unix::fs::chown(&others, Some(other.uid), Some(other.gid)).unwrap();
    let vnl = lab.vnl("switch", "others/sw");
    let _switch = lab.vde_plug(["null://", &vnl]).by(other).spawn();
    lab.wait_for("others/sw/ctl");
    check_vnl(
        &lab,
        &lab.vnl("vde", "others/sw"),
        &["others/sw", "ermission"],
    );
}

#[test]
fn another_users_tap() {
    need!("root");
    let lab = Lab::new();
    let host = lab.netns();
    let other = User::other().name;
    host.sh(&format!("ip tuntap add dev tap0 mode tap user {other}"))
        .ok();
    lab.vdens(["tap://tap0", "true"])
        .inside(&host)
        .refused(&["tap0", "another user"]);
    lab.vde_plug(["tap://tap0", "null://"])
        .inside(&host)
        .refused(&["tap0"]);
    // Neither one that is not there, which only root could make.
    lab.vdens(["tap://tap1", "true"])
        .inside(&host)
        .refused(&["tap1", "ip tuntap add"]);
    host.sh("! ip link show tap1").ok();
}

#[test]
fn a_tap_in_use() {
    need!("root");
    let lab = Lab::new();
    let host = lab.netns();
    let user = &lab.user().name;
    host.sh(&format!("ip tuntap add dev tap0 mode tap user {user}"))
        .ok();
    let holder = lab.vdens(["tap://tap0", "sh"]).inside(&host).session();
    holder.ok("true");
    lab.vdens(["tap://tap0", "true"])
        .inside(&host)
        .refused(&["tap0"]);
}

#[test]
fn interface_names() {
    let lab = Lab::new();
    // 15 characters are the most; the number counts.
    let fits = "abcdefghijklmn";
    lab.vdens([
        "-i",
        fits,
        "null://",
        "ip",
        "link",
        "show",
        &format!("{fits}0"),
    ])
    .ok();
    let long = "abcdefghijklmno";
    lab.vdens(["-i", long, "null://", "true"])
        .refused(&[long, "15"]);
    let eleven = ["null://"; 11];
    lab.vdens(["-m", "-i", fits])
        .args(eleven)
        .args(["--", "true"])
        .refused(&[fits]);
    lab.vdens(["-i", "a/b", "null://", "true"])
        .refused(&["a/b"]);
}

#[test]
fn addresses_that_are_none() {
    let lab = Lab::new();
    lab.vdens(["-R", "not-an-ip", "null://", "true"])
        .refused(&["not-an-ip"]);
    lab.vdens(["-R", "192.0.2.1,192.0.2.300", "null://", "true"])
        .refused(&["192.0.2.300"]);
    let vdens = lab
        .vdens(["null://", "true"])
        .env("VDE_RESOLVADDR", "nonsense");
    vdens.refused(&["nonsense"]);
    lab.vdens(["-r", "/nowhere/resolv.conf", "null://", "true"])
        .refused(&["/nowhere/resolv.conf"]);
    lab.vdens(["--addr", "10.0.0.1/33", "null://", "true"])
        .refused(&["10.0.0.1/33"]);
    lab.vdens(["--addr", "3:10.0.0.1/24", "null://", "true"])
        .refused(&["3"]);
    lab.vdens(["--gateway", "nonsense", "null://", "true"])
        .refused(&["nonsense"]);
    lab.vdens(["--mac", "nonsense", "null://", "true"])
        .refused(&["nonsense"]);
}

#[test]
fn unknown_options() {
    let lab = Lab::new();
    lab.vdens(["--nosuch", "null://", "true"])
        .refused(&["--nosuch"]);
    lab.vde_plug(["--nosuch", "null://", "null://"])
        .refused(&["--nosuch"]);
}

#[test]
fn configuration() {
    let lab = Lab::new();
    let file = lab.write(
        "vdens.toml",
        "[plugins]\npath = []\n\n[log]\n  colour = true\n",
    );
    let words = [&*file, "colour", "line 5, column 3"];
    lab.vdens(["--config", &file, "null://", "true"])
        .refused(&words);
    let file = lab.write("broken.toml", "[log\n");
    lab.vdens(["--config", &file, "null://", "true"])
        .refused(&[&file, "line 1,"]);
    let file = lab.write("typed.toml", "[log]\nlevel = 7\n");
    lab.vdens(["--config", &file, "null://", "true"])
        .refused(&[&file, "line 2,"]);
    lab.vdens(["--config", "/nowhere.toml", "null://", "true"])
        .refused(&["/nowhere.toml"]);
}

#[test]
fn no_user_namespaces() {
    let lab = Lab::new();
    // The one is used up by the way back from the changed machine.
    let limit = "echo 1 >/proc/sys/user/max_user_namespaces";
    let vdens = lab.vdens(["null://", "true"]).on_changed_machine(limit);
    vdens.refused(&["user.max_user_namespaces"]);
    lab.vdens(["no", "true"])
        .on_changed_machine(limit)
        .refused(&["user.max_user_namespaces"]);
}

#[test]
fn user_namespaces_restricted_by_apparmor() {
    const SYSCTL: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    let restricted = fs::read_to_string(SYSCTL).is_ok_and(|value| value.trim() == "1");
    if !restricted {
        vdens_tests::skip("AppArmor does not restrict user namespaces on this machine");
        return;
    }
    let lab = Lab::new();
    lab.vdens(["no", "true"])
        .refused(&["kernel.apparmor_restrict_unprivileged_userns"]);
}

#[test]
fn no_tun_device() {
    let lab = Lab::new();
    let (missing, closed) = (
        "mount -t tmpfs none /dev/net",
        "mount --bind /etc/shadow /dev/net/tun",
    );
    for machine in [missing, closed] {
        let vdens = || lab.vdens(["null://", "true"]).on_changed_machine(machine);
        vdens().refused(&["/dev/net/tun"]);
        // Without a network none is needed.
        lab.vdens(["no", "true"]).on_changed_machine(machine).ok();
    }
}
