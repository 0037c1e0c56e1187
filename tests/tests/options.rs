//! The command line of vdens: the original's, and what it adds.

use vdens_tests::{Lab, PROGRAMS, Session, User, becomes_true, need, stretched, wait_until};

fn links(session: &Session<'_>) -> String {
    session.ok("ip -o addr; ip -o link; ip route; ip -6 route")
}

#[test]
fn interfaces_start_down_and_unaddressed() {
    let lab = Lab::new();
    let links = lab
        .vdens(["-m", "null://", "null://", "--", "ip", "-o", "link"])
        .ok();
    assert_eq!(links.lines().count(), 3, "{links}");
    assert!(!links.contains("UP"), "{links}");
    let addresses = lab.vdens(["null://", "ip", "-o", "addr"]).ok();
    assert_eq!(addresses, "");
}

#[test]
fn up() {
    let lab = Lab::new();
    let session = lab
        .vdens(["--up", "-m", "null://", "null://", "--", "sh"])
        .session();
    for name in ["lo", "vde0", "vde1"] {
        let link = session.ok(&format!("ip -o link show {name}"));
        assert!(link.contains("UP"), "{link}");
    }
    session.ping("127.0.0.1");
}

#[test]
fn addresses_and_gateway() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let a = lab
        .vdens(["--addr", "10.0.0.1/24", "--addr", "fd00::1/64", &vnl, "sh"])
        .session();
    let gateway = ["--addr", "10.0.0.2/24", "--gateway", "10.0.0.1", &vnl, "sh"];
    let b = lab.vdens(gateway).session();
    a.ping("10.0.0.2");
    let route = b.ok("ip route show default");
    assert!(
        route.starts_with("default via 10.0.0.1 dev vde0"),
        "{route}"
    );
    assert!(links(&a).contains("inet6 fd00::1/64"), "{}", links(&a));
    // lo is up as well.
    a.ping("127.0.0.1");
}

#[test]
fn addresses_of_several_interfaces() {
    let lab = Lab::new();
    let options = [
        "--addr",
        "10.0.0.1/24",
        "--addr",
        "1:10.0.1.1/24",
        "--addr",
        "1:fd00::1/64",
    ];
    let vdens = lab
        .vdens(options)
        .args(["--multi", "null://", "null://", "--", "sh"]);
    let session = vdens.session();
    assert!(
        session
            .ok("ip -o addr show vde0")
            .contains("inet 10.0.0.1/24")
    );
    let second = session.ok("ip -o addr show vde1");
    assert!(
        second.contains("inet 10.0.1.1/24") && second.contains("inet6 fd00::1/64"),
        "{second}"
    );
}

#[test]
fn mtu_and_mac() {
    let lab = Lab::new();
    let options = ["--mtu", "9000", "--mac", "02:00:00:00:00:2a"];
    let link = lab
        .vdens(options)
        .args(["null://", "ip", "link", "show", "vde0"])
        .ok();
    assert!(
        link.contains("mtu 9000") && link.contains("02:00:00:00:00:2a"),
        "{link}"
    );
}

#[test]
fn the_interfaces_prefix() {
    let lab = Lab::new();
    for option in ["-i", "--iface"] {
        let links = lab
            .vdens([
                option, "eth", "-m", "null://", "null://", "--", "ip", "-o", "link",
            ])
            .ok();
        assert!(
            links.contains(": eth0:") && links.contains(": eth1:"),
            "{links}"
        );
    }
}

#[test]
fn no_interface() {
    let lab = Lab::new();
    for vnl in ["no", "-", ""] {
        assert_eq!(
            lab.vdens([vnl, "ip", "-o", "link"]).ok().lines().count(),
            1,
            "{vnl:?}"
        );
    }
}

#[test]
fn the_hostname() {
    let lab = Lab::new();
    let outside = lab.command("hostname", [] as [&str; 0]).ok();
    assert_eq!(lab.vdens(["-H", "inner", "no", "hostname"]).ok(), "inner\n");
    assert_eq!(
        lab.vdens(["--hostname", "inner", "null://", "hostname"])
            .ok(),
        "inner\n"
    );
    assert_eq!(lab.command("hostname", [] as [&str; 0]).ok(), outside);
}

/// Their bits are in <linux/capability.h>: CAP_NET_BIND_SERVICE to CAP_NET_RAW are 10 to 13,
/// CAP_SYS_ADMIN is 21 and CAP_SETFCAP 31.
#[test]
fn the_commands_capabilities_are_the_documented_ones() {
    need!("root");
    let lab = Lab::new();
    let network = 0xf << 10;
    for (user, options, expected) in [
        (lab.user(), "-u", network),
        (lab.user(), "-s", network | 1 << 21),
        (&User::root(), "-u", network | 1 << 31),
        (&User::root(), "-s", network | 1 << 21 | 1 << 31),
    ] {
        let words = [options, "no", "grep", "^Cap", "/proc/self/status"];
        let text = lab.vdens(words).by(user.clone()).ok();
        for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let line = format!("{name}:\t{expected:016x}\n");
            assert!(
                text.contains(&line),
                "{} {options}: {line}: {text}",
                user.name
            );
        }
    }
    // A namespace within, which the kernel gives all of them to start with.
    let inner = lab.bin().join("vdens").display().to_string();
    let words = ["no", &inner, "--up", "no", "ping", "-c", "1", "127.0.0.1"];
    lab.vdens(words).by(User::root()).ok();
}

#[test]
fn options_behind_the_vnl_belong_to_the_command() {
    let lab = Lab::new();
    assert_eq!(
        lab.vdens(["null://", "echo", "-i", "-m", "--help"]).ok(),
        "-i -m --help\n"
    );
    assert_eq!(
        lab.vdens(["-m", "null://", "--", "echo", "-i", "--", "-h"])
            .ok(),
        "-i -- -h\n"
    );
}

#[test]
fn accepted_for_the_originals_sake() {
    let lab = Lab::new();
    for option in ["-c", "--clone", "-u", "--unshare"] {
        assert_eq!(
            lab.vdens([option, "null://", "echo", "hello"]).ok(),
            "hello\n"
        );
    }
}

#[test]
fn help_and_version() {
    let lab = Lab::new();
    for option in ["-h", "--help"] {
        for help in [lab.vdens([option]).ok(), lab.vde_plug([option]).ok()] {
            assert!(help.contains("VNL"), "{help}");
        }
    }
    for option in [
        "--multi",
        "--iface",
        "--resolvconf",
        "--resolvaddr",
        "--hostname",
        "--sysadm",
        "--addr",
    ] {
        assert!(lab.vdens(["--help"]).ok().contains(option), "{option}");
    }
    for program in PROGRAMS {
        let run = |option| lab.command(lab.bin().join(program), [option]);
        let version = run("--version").ok();
        let mut lines = version.lines();
        assert_eq!(
            lines.next(),
            Some(&*format!("{program} {}", env!("CARGO_PKG_VERSION")))
        );
        let doors = lines.next_back().unwrap_or_default();
        assert_eq!(doors, "plugin ABI 1 (v1, c1)");
        // A commit is known in a release's build only.
        assert!(lines.all(|line| line.starts_with("commit ")), "{version}");
        let short = run("-V").ok();
        assert_eq!(
            short.lines().collect::<Vec<_>>(),
            [version.lines().next().unwrap()]
        );
        let help = run("--help").env("COLUMNS", "80").ok();
        let lines = help.lines().count();
        assert!(lines <= 40, "{program}: {lines} lines\n{help}");
    }
}

#[test]
fn the_environment_tells_where_one_is() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let text = lab
        .vdens(["-m", "null://", &vnl, "--", "printenv", "VDENS"])
        .ok();
    for word in ["vde0", "null://", "vde1", &vnl] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn the_shell_is_the_users() {
    let lab = Lab::new();
    lab.expect("shell");
    let shell = lab.write("shell", "#!/bin/sh\necho my shell\nexit 6\n");
    lab.command("chmod", ["755", &shell]).ok();
    let output = lab.vdens(["null://"]).env("SHELL", &shell).run();
    assert_eq!((output.code(), &*output.stdout), (Some(6), "my shell\n"));
}

#[test]
fn the_default_network() {
    let lab = Lab::new();
    let _switch = lab.vde_plug(["null://", &lab.vnl("switch", "sw")]).spawn();
    lab.wait_for("sw/ctl");
    let reach = |vnl: &str| {
        let a = lab.vdens(["--addr", "10.0.0.1/24", vnl, "sh"]).session();
        let b = lab
            .vdens(["--addr", "10.0.0.2/24", &lab.path("sw"), "sh"])
            .session();
        a.ping("10.0.0.2");
        b.ping("10.0.0.1");
    };
    lab.sh(&format!(
        "mkdir ~/.vde2; ln -s {} ~/.vde2/default.switch",
        lab.path("sw")
    ))
    .ok();
    reach("vde://");
    // The newer place comes first, and may be a file with a VNL in it.
    lab.sh("rm ~/.vde2/default.switch; ln -s /nowhere ~/.vde2/default.switch")
        .ok();
    lab.sh(&format!(
        "mkdir ~/.vdeplug; ln -s {} ~/.vdeplug/default",
        lab.path("sw")
    ))
    .ok();
    reach("vde://");
    let file = lab.write("network", format!("{}\n", lab.vnl("vde", "sw")));
    reach(&file);
}

#[test]
fn quoting_in_a_vnl() {
    let lab = Lab::new();
    let plain = lab.vnl("ptp", "a b[c]");
    let escaped = lab.vnl("ptp", "a%20b'[c]'");
    let a = lab
        .vdens(["--addr", "10.0.0.1/24", &escaped, "sh"])
        .session();
    let quoted = plain.replace("a b[c]", "'a b[c]'");
    let b = lab
        .vdens(["--addr", "10.0.0.2/24", &quoted, "sh"])
        .session();
    a.ping("10.0.0.2");
    b.ping("10.0.0.1");
    assert!(lab.dir().join("a b[c]").exists());
}

#[test]
fn the_log() {
    let lab = Lab::new();
    let log = lab.path("log");
    lab.expect("log");
    lab.vdens(["-vv", "--log-file", &log, "null://", "true"])
        .ok();
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.contains("null"), "{text}");
    // Without being asked vdens says nothing, with -v something.
    assert_eq!(lab.vdens(["null://", "true"]).run().stderr, "");
    assert_eq!(lab.vdens(["-q", "null://", "true"]).run().stderr, "");
    assert_ne!(lab.vdens(["-vv", "null://", "true"]).run().stderr, "");
}

#[test]
fn both_generations_of_the_cable() {
    let lab = Lab::new();
    for (first, second) in [
        ("p", "p"),
        ("p[seqpacket]", "p"),
        ("p[seqpacket]", "p[seqpacket]"),
    ] {
        let a = lab
            .vdens(["--addr", "10.0.0.1/24", &lab.vnl("ptp", first), "sh"])
            .session();
        lab.wait_for("p");
        let b = lab
            .vdens(["--addr", "10.0.0.2/24", &lab.vnl("ptp", second), "sh"])
            .session();
        a.ping("10.0.0.2");
        b.ping("10.0.0.1");
        // Either end may come back.
        drop(b);
        let b = lab
            .vdens(["--addr", "10.0.0.2/24", &lab.vnl("ptp", second), "sh"])
            .session();
        b.ping("10.0.0.1");
        drop(a);
        let a = lab
            .vdens(["--addr", "10.0.0.1/24", &lab.vnl("ptp", first), "sh"])
            .session();
        a.ping("10.0.0.2");
        b.ping("10.0.0.1");
    }
}

#[test]
fn carrier_follows_the_far_end() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p[seqpacket]");
    let a = lab.vdens(["--addr", "10.0.0.1/24", &vnl, "sh"]).session();
    let carrier = || !a.ok("ip link show vde0").contains("NO-CARRIER");
    let limit = stretched(std::time::Duration::from_secs(5));
    wait_until("no carrier without a far end", limit, || !carrier());
    let b = lab.vdens(["--addr", "10.0.0.2/24", &vnl, "sh"]).session();
    wait_until("carrier", limit, carrier);
    b.ping("10.0.0.1");
    drop(b);
    assert!(
        becomes_true(limit, || !carrier()),
        "carrier after the far end left"
    );
}
