//! Mistakes that people make: each gets the answer that helps. What is legal is never refused for
//! looking like one.

use std::fs;
use std::path::Path;
use std::time::Duration;

use vdens_tests::{Lab, PATIENCE, becomes_true, need, wait_until};

#[test]
fn a_command_without_a_network() {
    need!("ping");
    let lab = Lab::new();
    lab.vdens(["ping", "10.0.0.1"])
        .refused(&["'ping' is taken for a network", "vdens no ping"]);
    lab.vdens(["sh"]).refused(&["vdens no sh"]);
    lab.vdens(["-m", &lab.vnl("ptp", "a"), &lab.vnl("ptp", "b"), "true"])
        .refused(&["'true'", "put -- before the command"]);
    lab.vde_plug(["null://", "ping"])
        .refused(&["'ping' is taken for a network", "= ping"]);
    lab.vdens(["/bin/sh"]).refused(&["vdens no /bin/sh"]);
}

/// What vdectl does was asked of another program.
#[test]
fn a_task_of_vdectl() {
    let lab = Lab::new();
    for (word, meant) in [
        ("status", "vdectl status"),
        ("doctor", "vdectl doctor"),
        ("plugin", "vdectl plugin"),
        ("forward", "vdectl forward"),
        ("--status", "vdectl status"),
        ("--doctor", "vdectl doctor"),
        ("--list-plugins", "vdectl plugin list"),
        ("--check-plugin", "vdectl plugin check"),
        ("--new-plugin", "vdectl plugin new"),
    ] {
        let meant = [&*format!("did you mean {meant}?")];
        lab.vdens([word]).refused(&meant);
        if word.starts_with('-') {
            lab.vdens(["no", word]).refused(&meant);
        }
        lab.vde_plug(["null://", word]).refused(&meant);
    }
    lab.vdectl(["--list-plugins"])
        .refused(&["did you mean vdectl plugin list?"]);
    lab.vdectl(["stats"]).refused(&["did you mean status?"]);
    lab.vdectl(["plugin", "chek"])
        .refused(&["did you mean check?"]);
    lab.vdectl([""; 0])
        .refused(&["[subcommands: status, ", "doctor, graph, ", "lab, "]);
}

/// A switch may have the name of a command, and of a VNL without its slashes.
#[test]
fn a_switch_named_like_a_command() {
    let lab = Lab::new();
    for name in ["ping", "ptp:x"] {
        let switch = lab
            .vde_plug(["null://", &format!("switch://{name}")])
            .spawn();
        lab.wait_for(&format!("{name}/ctl"));
        assert_eq!(lab.vdens([name, "echo", "hello"]).ok(), "hello\n");
        assert_eq!(
            lab.vdens(["-m", name, "--", "echo", "hello"]).ok(),
            "hello\n"
        );
        switch.terminate();
        // One that is yet to come can be waited for.
        let output = lab.vdens(["--wait", name, "echo", "hello"]).run();
        assert_eq!(output.stdout, "hello\n", "{output:?}");
        assert!(
            output.stderr.contains("is taken for a network"),
            "{output:?}"
        );
    }
}

#[test]
fn options_behind_the_vnl() {
    let lab = Lab::new();
    lab.vdens(["null://", "--addr", "10.0.0.1/24"])
        .refused(&["'--addr'", "options come before the first VNL"]);
    lab.vdens(["-m", "null://", "--up"])
        .refused(&["'--up'", "options come before"]);
    lab.vde_plug(["null://", "-d"])
        .refused(&["'-d'", "options come before"]);
    assert_eq!(lab.vdens(["no", "--", "echo", "a"]).ok(), "a\n");
    assert_eq!(
        lab.vdens(["null://", "--", "echo", "--", "a"]).ok(),
        "-- a\n"
    );
}

#[test]
fn a_misspelt_option() {
    let lab = Lab::new();
    lab.vdens(["--satus"])
        .refused(&["'--satus'", "did you mean vdectl status?"]);
    lab.vdens(["--sysad"])
        .refused(&["'--sysad'", "did you mean --sysadm?"]);
    lab.vdens(["--nonsense", "null://"])
        .refused(&["no option '--nonsense'", "vdens --help"]);
    lab.vde_plug(["--groop", "x", "null://"])
        .refused(&["'--groop'", "did you mean --group?"]);
}

#[test]
fn a_misspelt_scheme() {
    let lab = Lab::new();
    let bin = lab.bin().display().to_string();
    for output in [
        lab.vdens(["pt://x", "true"])
            .refused(&["'pt'", "did you mean ptp://?"]),
        lab.vde_plug(["pt://x", "null://"])
            .refused(&["did you mean ptp://?"]),
    ] {
        assert!(!output.stderr.contains(&bin), "{output:?}");
    }
    let verbose = lab.vdens(["-v", "pt://x", "true"]).run();
    assert!(verbose.stderr.contains(&bin), "{verbose:?}");
    // One that is like none.
    lab.vdens(["nosuch://x", "true"])
        .refused(&["libvdens_nosuch.so", &bin]);
}

#[test]
fn a_vnl_without_its_slashes_or_its_path() {
    let lab = Lab::new();
    lab.vdens(["ptp:/tmp/x", "true"])
        .refused(&["did you mean ptp:///tmp/x?"]);
    lab.vde_plug(["null://", "ptp:x"])
        .refused(&["did you mean ptp://x?"]);
    lab.vdens(["ptp://", "true"])
        .refused(&["no path", "for example ptp:///tmp/cable"]);
}

#[test]
fn waiting_is_advised_where_it_helps() {
    need!("root");
    let lab = Lab::new();
    lab.vdens([&lab.vnl("vde", "nosuch"), "true"])
        .refused(&["--wait"]);
    let closed = lab.mkdir("closed");
    std::os::unix::fs::chown(&closed, Some(0), Some(0)).unwrap();
    for vnl in [lab.vnl("ptp", "closed/x"), "vlan://5{nosuch://}".to_owned()] {
        let output = lab.vdens([&vnl, "true"]).refused(&[]);
        assert!(!output.stderr.contains("--wait"), "{output:?}");
    }
}

#[test]
fn numbers_of_interfaces() {
    let lab = Lab::new();
    lab.vdens(["--addr", "1:10.0.0.1/24", "null://", "true"])
        .refused(&["the only interface is number 0"]);
    let two = ["--addr", "2:10.0.0.1/24", "-m", "null://", "null://"];
    lab.vdens(two).refused(&["their numbers are 0 to 1"]);
    let addresses = ["--addr", "10.0.0.1/24", "--addr", "10.0.1.1/24"];
    let several = ["-m", "null://", "null://", "--", "true"];
    let output = lab.vdens(addresses).args(several).run();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.contains("1:10.0.1.1/24"), "{output:?}");
    // One interface may have several, and so may one of several, of both families.
    let output = lab.vdens(addresses).args(["null://", "true"]).run();
    assert_eq!(output.stderr, "");
    let both = ["--addr", "10.0.0.1/24", "--addr", "fd00::1/64"];
    assert_eq!(lab.vdens(both).args(several).run().stderr, "");
}

#[test]
fn a_bad_host_name() {
    let lab = Lab::new();
    let long = "a".repeat(64);
    let too_long = format!("{}.{}", "a".repeat(32), "b".repeat(32));
    for name in [
        "a/b c", "", "a..b", "-a", "a-", "a_b", "ä", &*long, &*too_long,
    ] {
        lab.vdens(["-H", name, "no", "true"])
            .refused(&["is no host name"]);
    }
    let name = format!("{}.{}", "a".repeat(32), "b".repeat(31));
    for name in ["x", "inner.example", "3com", &*name] {
        assert_eq!(
            lab.vdens(["-H", name, "no", "hostname"]).ok(),
            format!("{name}\n")
        );
    }
}

#[test]
fn a_cable_to_itself() {
    let lab = Lab::new();
    lab.vde_plug(["ptp://x", &lab.vnl("ptp", "x")])
        .refused(&["both ends are the cable", "name two networks"]);
}

#[test]
fn an_mtu_that_the_link_does_not_carry() {
    let lab = Lab::new();
    let limit = "give --mtu 9216";
    let vnl = lab.vnl("ptp", "p");
    let start = |options: &[&str], mtu: &str, vnl: &str| {
        let vdens = lab.vdens(options).args(["--mtu", mtu, vnl, "sh"]);
        vdens.session()
    };
    let warned = start(&[], "20000", "=cat");
    wait_until("the warning", PATIENCE, || {
        warned.proc().stderr().contains(limit)
    });
    let fits = start(&[], "9216", "=cat");
    // The two ends of a cable carry more, through the kernel and through user space.
    for options in [&["--up"][..], &["--up", "--no-panel"]] {
        let (a, b) = (start(options, "20000", &vnl), start(options, "20000", &vnl));
        a.ok("ip addr add 10.0.0.1/24 dev vde0");
        b.ok("ip addr add 10.0.0.2/24 dev vde0");
        a.ping("10.0.0.2");
        a.ok("ping -c 1 -w 50 -M do -s 19000 10.0.0.2");
        for session in [&a, &b] {
            let said = session.proc().stderr();
            assert!(!said.contains(limit), "{options:?}: {said}");
        }
    }
    assert_eq!(fits.proc().stderr(), "");
}

#[test]
fn nothing_is_running() {
    let lab = Lab::new();
    let output = lab.vdectl(["status"]).run();
    assert_eq!((output.code(), &*output.stdout), (Some(0), ""));
    assert!(
        output.stderr.contains("nothing of yours is running"),
        "{output:?}"
    );
    assert_eq!(lab.vdectl(["-q", "status"]).run().stderr, "");
    let json = lab.vdectl(["status", "--json"]).run();
    assert_eq!(json.stderr, "");
    assert!(json.stdout.contains("\"processes\""), "{json:?}");
    let nowhere = lab.path("nowhere");
    let lost = lab
        .vdectl(["status"])
        .env("XDG_RUNTIME_DIR", &nowhere)
        .run();
    assert!(
        lost.stderr.contains(&nowhere) && lost.stderr.contains("does not exist"),
        "{lost:?}"
    );
}

/// How often the command was started.
fn starts(lab: &Lab) -> usize {
    let text = fs::read_to_string(lab.dir().join("starts")).unwrap_or_default();
    text.lines().count()
}

#[test]
fn a_command_that_fails_is_not_hammered() {
    let lab = Lab::new();
    lab.expect("starts");
    let session = lab.vdens(["=echo x >>starts; exit 42", "sh"]).session();
    std::thread::sleep(Duration::from_secs(8));
    // After 0, ¼, ¾, 1¾, 3¾ and 7¾ s, each a little later.
    let count = starts(&lab);
    assert!((3..=6).contains(&count), "{count} starts in 8 s");
    let said = session.proc().stderr();
    assert!(said.contains("exit status: 42"), "{said}");
    assert!(!said.contains("is back"), "{said}");
}

#[test]
fn a_command_is_back_when_a_frame_comes() {
    let lab = Lab::new();
    for name in ["starts", "good"] {
        lab.expect(name);
    }
    let command = "=echo x >>starts; [ -e good ] || exit 1; exec cat";
    let session = lab
        .vdens(["--addr", "10.0.0.1/24", command, "sh"])
        .session();
    wait_until("the third start", PATIENCE, || starts(&lab) >= 3);
    assert!(!session.proc().stderr().contains("is back"));
    lab.write("good", "");
    let is_back = || {
        // What is sent comes back: cat is the far end.
        session.run("ping -c 1 -W 1 10.0.0.2");
        session.proc().stderr().contains("the link is back")
    };
    assert!(
        becomes_true(PATIENCE, is_back),
        "{}",
        session.proc().stderr()
    );
}

/// README has all `libvdens_*.so` installed, so no library but a stock plugin's has such a name.
#[test]
fn an_install_takes_stock_plugins_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dirs = ["plugins", "tests/plugins"].map(|dir| fs::read_dir(root.join(dir)).unwrap());
    for dir in dirs.into_iter().flatten() {
        let manifest = dir.unwrap().path().join("Cargo.toml");
        let text = fs::read_to_string(&manifest).unwrap();
        let Some((_, lib)) = text.split_once("[lib]\nname = \"vdens_") else {
            continue;
        };
        let scheme = lib.split('"').next().unwrap();
        // A file's name has '_' where a scheme has '-'.
        let page = root.join(format!("docs/schemes/{}.md", scheme.replace('_', "-")));
        let has_page = page.is_file() || lib.contains("crate-type = [\"rlib\"]");
        assert!(
            has_page,
            "{} builds libvdens_{scheme}.so",
            manifest.display()
        );
    }
}

#[test]
fn a_shell_says_where_it_is() {
    need!("tmux");
    let lab = Lab::new();
    let terminal = lab.tmux();
    let vnl = lab.vnl("ptp", "p");
    terminal.type_line(&format!("vdens -m {vnl} null://"));
    terminal.wait_for(&format!(
        "vde0 on {vnl}, vde1 on null://; type 'exit' to leave"
    ));
    terminal.type_line("exit");
    let (text, status) = terminal.ask("vdens no true");
    assert_eq!((&*text, status), ("", 0));
    terminal.type_line("vdens -q no");
    let (text, _) = terminal.ask("echo in''side");
    assert!(
        text.contains("inside") && !text.contains("type 'exit'"),
        "{text}"
    );
    terminal.type_line("exit");
    // Without a terminal there is nobody to tell.
    let (proc, stdin) = lab.vdens(["no"]).spawn_piped();
    drop(stdin);
    assert_eq!(proc.wait(PATIENCE).stderr, "");
}
