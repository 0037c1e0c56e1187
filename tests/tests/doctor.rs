//! `vdectl doctor`: it finds nothing wrong here, and on a machine that lacks something it names
//! that and the command that mends it. Where the command can be run here it is run, and must mend
//! it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use vdens_tests::{Cmd, Lab, User, need, stretched};

/// What `vdectl doctor --json` said, and its exit status.
struct Findings {
    works: bool,
    findings: Vec<Value>,
}

impl Findings {
    /// Runs a command that ends in `vdectl doctor --json`, and checks what must be true of all
    /// findings.
    #[track_caller]
    fn of(doctor: Cmd<'_>) -> Self {
        let output = doctor.run();
        assert_eq!(output.stderr, "", "{output:#?}");
        let report: Value = serde_json::from_str(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:#?}"));
        let findings = report["findings"].as_array().cloned().unwrap_or_default();
        let wrong = findings.iter().any(|finding| finding["verdict"] == "wrong");
        assert_eq!(report["works"], !wrong, "{output:#?}");
        assert_eq!(output.code(), Some(i32::from(wrong)), "{output:#?}");
        Self {
            works: !wrong,
            findings,
        }
    }

    /// The findings of a check.
    fn about(&self, check: &str) -> Vec<&Value> {
        let mut findings = self.findings.iter();
        findings
            .by_ref()
            .filter(|finding| finding["check"] == check)
            .collect()
    }

    /// The remedy of the finding that has this verdict about `check`, and all of `words` in its
    /// message.
    #[track_caller]
    fn remedy(&self, verdict: &str, check: &str, words: &[&str]) -> &str {
        let says = |finding: &&Value| {
            let message = finding["message"].as_str().unwrap_or_default();
            finding["verdict"] == verdict && words.iter().all(|word| message.contains(word))
        };
        match self.about(check).into_iter().find(says) {
            Some(finding) => finding["remedy"].as_str().unwrap_or_default(),
            None => panic!(
                "no '{verdict}' about {check} with {words:?}: {:#?}",
                self.findings
            ),
        }
    }
}

#[track_caller]
fn doctor(lab: &Lab) -> Findings {
    Findings::of(lab.vdectl(["doctor", "--json"]))
}

/// Everything that is not fine here but for what this machine lacks by itself.
#[track_caller]
fn is_fine(findings: &Findings) {
    assert!(findings.works, "{:#?}", findings.findings);
    for check in [
        "namespaces",
        "/dev/net/tun",
        "taps",
        "super-frames",
        "mount namespace",
        "panel",
        "runtime directory",
        "configuration",
        "plugin null",
        "plugin ptp",
        "plugin switch",
        "plugin tap",
        "plugin vde",
        "limit of descriptors",
        "limit of processes",
    ] {
        let about = findings.about(check);
        assert!(
            about.len() == 1 && about[0]["verdict"] == "ok",
            "{check}: {about:#?}"
        );
    }
    for check in [
        "bridges that drop tags",
        "VLAN-aware bridges",
        "VXLAN interfaces",
        "net.core.wmem_max",
    ] {
        assert_eq!(findings.about(check).len(), 1, "{check}");
    }
}

#[test]
fn nothing_is_wrong_here() {
    let lab = Lab::new();
    is_fine(&doctor(&lab));
    let text = lab.vdectl(["doctor"]).ok();
    for line in text.lines() {
        let verdict = line.split_whitespace().next();
        assert!(matches!(verdict, Some("ok" | "note")), "{text}");
    }
    assert!(text.contains("ok     /dev/net/tun: "), "{text}");
}

#[test]
fn nothing_is_wrong_for_root() {
    need!("root");
    let lab = Lab::new();
    let run = lab.mkdir("run");
    std::os::unix::fs::chown(&run, Some(0), Some(0)).unwrap();
    fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).unwrap();
    let doctor = lab.vdectl(["doctor", "--json"]).by(User::root());
    is_fine(&Findings::of(doctor.env("XDG_RUNTIME_DIR", run)));
}

#[test]
fn it_takes_no_command() {
    let lab = Lab::new();
    lab.vdectl(["doctor", "null://", "true"])
        .refused(&["null://"]);
    lab.vdens(["--json", "null://", "true"])
        .refused(&["--json"]);
    lab.vdectl(["doctor", "--plugin-dir", "relative"])
        .refused(&["relative", "absolute"]);
}

#[test]
fn sessions_are_not_disturbed() {
    need!("ping");
    let lab = Lab::new();
    let cable = lab.vnl("ptp", "cable");
    let one = lab.vdens(["--addr", "10.0.0.1/24", &cable, "sh"]).session();
    let two = lab.vdens(["--addr", "10.0.0.2/24", &cable, "sh"]).session();
    let ping = "ping -q -c 1 -w 50 10.0.0.1";
    two.ok(ping);
    let registry = "ls -R $XDG_RUNTIME_DIR; cat $XDG_RUNTIME_DIR/vdens/[0-9]*/[0-9]*";
    let before = lab.sh(registry).ok();
    is_fine(&doctor(&lab));
    assert_eq!(lab.sh(registry).ok(), before);
    two.ok(ping);
    one.ok("true");
}

#[test]
fn no_tun_device() {
    let lab = Lab::new();
    for (machine, words, command) in [
        (
            "mount -t tmpfs none /dev/net",
            "No such file",
            "sudo modprobe tun",
        ),
        (
            "mount --bind /etc/shadow /dev/net/tun",
            "ermission denied",
            "sudo chmod 0666 /dev/net/tun",
        ),
    ] {
        let doctor = lab.vdectl(["doctor", "--json"]).on_changed_machine(machine);
        let findings = Findings::of(doctor);
        let remedy = findings.remedy("wrong", "/dev/net/tun", &["/dev/net/tun", words]);
        assert!(remedy.contains(command), "{remedy}");
        // The rest was looked at all the same.
        findings.remedy("ok", "namespaces", &[]);
        findings.remedy("ok", "panel", &[]);
        findings.remedy("ok", "plugin ptp", &[]);
    }
}

/// A command where an ordinary user may have so many user namespaces.
fn limited<'lab>(lab: &'lab Lab, limit: u32, command: &str) -> Cmd<'lab> {
    let script = format!("echo {limit} >/proc/sys/user/max_user_namespaces; exec {command}");
    lab.command("unshare", ["-Ur", "sh", "-ec", &script])
}

#[test]
fn no_user_namespaces() {
    let lab = Lab::new();
    let findings = Findings::of(limited(&lab, 0, "vdectl doctor --json"));
    let remedy = findings.remedy("wrong", "namespaces", &["namespace"]);
    assert!(
        remedy.contains("sudo sysctl user.max_user_namespaces=10000"),
        "{remedy}"
    );
    findings.remedy("ok", "/dev/net/tun", &[]);
    // And so it is.
    limited(&lab, 0, "vdens null:// true").refused(&["user.max_user_namespaces"]);
}

#[test]
fn user_namespaces_for_a_session_and_none_for_the_panel() {
    let lab = Lab::new();
    let findings = Findings::of(limited(&lab, 1, "vdectl doctor --json"));
    assert!(findings.works, "{:#?}", findings.findings);
    findings.remedy("ok", "namespaces", &[]);
    findings.remedy("ok", "taps", &[]);
    let remedy = findings.remedy("note", "panel", &["namespace"]);
    assert!(remedy.contains("user.max_user_namespaces"), "{remedy}");
    // And so it is.
    for (vdens, reasons) in [("vdens -v", 1), ("vdens -v --no-panel", 0), ("vdens -q", 0)] {
        let command = format!("{vdens} --addr 10.0.0.1/24 null:// ip -o addr show vde0");
        let output = limited(&lab, 1, &command).run();
        assert_eq!(output.code(), Some(0), "{output:#?}");
        assert!(output.stdout.contains("10.0.0.1/24"), "{output:#?}");
        let told = output
            .stderr
            .matches("no panel, frames go through user space")
            .count();
        assert_eq!(told, reasons, "{output:#?}");
    }
}

#[test]
fn a_filter_forbids_namespaces() {
    need!("python3");
    let lab = Lab::new();
    // A seccomp filter that answers unshare(2) with EPERM, as containers' do, or with death.
    let filter = |action: &str| {
        format!(
            "import ctypes, os, struct, sys\n\
             libc = ctypes.CDLL(None, use_errno=True)\n\
             unshare = {{'x86_64': 272, 'aarch64': 97}}[os.uname().machine]\n\
             code = [(0x20, 0, 0, 0), (0x15, 0, 1, unshare), (6, 0, 0, {action}), (6, 0, 0, 0x7fff0000)]\n\
             code = b''.join(struct.pack('HBBI', *line) for line in code)\n\
             buffer = ctypes.create_string_buffer(code)\n\
             program = struct.pack('HxxxxxxP', 4, ctypes.addressof(buffer))\n\
             assert libc.prctl(38, 1, 0, 0, 0) == 0\n\
             assert libc.prctl(22, 2, program) == 0\n\
             os.execv(sys.argv[1], sys.argv[1:])\n"
        )
    };
    for (action, words, advice) in [
        ("0x00050001", "not permitted", "seccomp"),
        ("0x80000000", "died", "seccomp"),
    ] {
        let vdectl = lab.bin().join("vdectl").display().to_string();
        let args = ["-c", &filter(action), &vdectl, "doctor", "--json"];
        let findings = Findings::of(lab.command("python3", args));
        let remedy = findings.remedy("wrong", "namespaces", &[words]);
        assert!(remedy.contains(advice), "{remedy}");
        findings.remedy("ok", "plugin ptp", &[]);
    }
}

#[test]
fn user_namespaces_restricted_by_apparmor() {
    const SYSCTL: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
    if !fs::read_to_string(SYSCTL).is_ok_and(|value| value.trim() == "1") {
        vdens_tests::skip("AppArmor does not restrict user namespaces on this machine");
        return;
    }
    let lab = Lab::new();
    let findings = doctor(&lab);
    let remedy = findings.remedy("wrong", "namespaces", &[]);
    assert!(
        remedy.contains("sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        "{remedy}"
    );
}

/// A machine whose AppArmor restricts user namespaces, as far as it can be seen from settings.
const RESTRICTED: &str = "
    cp -r /proc/sys/kernel/*cap* /proc/sys/kernel/os* /proc/sys/kernel/overflow* /run/ 2>/dev/null || :
    mount -t tmpfs none /proc/sys/kernel
    echo 1 >/proc/sys/kernel/apparmor_restrict_unprivileged_userns";

#[test]
fn the_profile_of_a_package_is_not_loaded() {
    need!("root");
    let lab = Lab::new();
    // As host/packaging/install has it.
    let library = lab.aside("lib");
    let script = format!(
        "mkdir -p {0}/bin; cp {1}/* {0}/bin; touch {0}/apparmor; chmod -R a+rX {0}",
        library.display(),
        lab.bin().display()
    );
    lab.sh(&script).by(User::root()).ok();
    let vdectl = library.join("bin/vdectl");
    let doctor = lab.command(&vdectl, ["doctor", "--json"]);
    let findings = Findings::of(doctor.on_changed_machine(RESTRICTED));
    let remedy = findings.remedy("wrong", "AppArmor", &["without a profile"]);
    assert_eq!(remedy, format!("sudo {}/apparmor load", library.display()));
    let doctor = lab.vdectl(["doctor", "--json"]);
    let findings = Findings::of(doctor.on_changed_machine(RESTRICTED));
    let remedy = findings.remedy("wrong", "AppArmor", &["without a profile"]);
    assert!(remedy.contains("sudo sysctl kernel.apparmor"), "{remedy}");
}

#[test]
fn two_installations() {
    let lab = Lab::new();
    findings_of_path(&lab, &[], "ok", &["the programs are those in"]);
    let other = lab.mkdir("other");
    let fake = lab.write("other/vdens", "#!/bin/sh\n");
    lab.sh(&format!("chmod 755 {fake}")).ok();
    let words = [&*fake, "VDE's", &lab.bin().display().to_string()];
    let remedy = findings_of_path(&lab, &[&other], "note", &words);
    // The remedy mends it.
    let script = format!("PATH={other}:$PATH; {remedy}; vdectl doctor --json");
    let findings = Findings::of(lab.sh(&script));
    findings.remedy("ok", "PATH", &[]);
    // A second one of ours.
    let vdectl = lab.write("other/vdectl", "#!/bin/sh\n");
    lab.sh(&format!("chmod 755 {vdectl}")).ok();
    findings_of_path(
        &lab,
        &[&other],
        "note",
        &[&fake, "another installation of vdens"],
    );
}

/// The remedy of the finding about PATH, when these directories come first in it.
#[track_caller]
fn findings_of_path(lab: &Lab, first: &[&str], verdict: &str, words: &[&str]) -> String {
    let vdectl = lab.bin().join("vdectl");
    let dirs: String = first.iter().map(|dir| format!("{dir}:")).collect();
    let script = format!("PATH={dirs}$PATH {} doctor --json", vdectl.display());
    let findings = Findings::of(lab.sh(&script));
    findings.remedy(verdict, "PATH", words).to_owned()
}

#[test]
fn a_plugin_of_another_version() {
    let lab = Lab::new();
    let plugin = lab.drop_plugin(&lab.bin().join("libvdens_null.so"), "null");
    let ours = env!("CARGO_PKG_VERSION").as_bytes();
    let other = b"9.9.9";
    let mut bytes = fs::read(&plugin).unwrap();
    let places: Vec<usize> = (0..bytes.len() - ours.len())
        .filter(|at| bytes[*at..].starts_with(ours))
        .collect();
    for at in places {
        bytes[at..at + other.len()].copy_from_slice(other);
    }
    fs::write(&plugin, bytes).unwrap();
    let findings = doctor(&lab);
    let words = [
        &*plugin.display().to_string(),
        "9.9.9",
        env!("CARGO_PKG_VERSION"),
    ];
    let remedy = findings.remedy("note", "plugin null", &words);
    assert!(remedy.contains("one package"), "{remedy}");
    assert!(findings.works);
}

#[test]
fn a_plugin_directory_that_others_can_write() {
    let lab = Lab::new();
    let dir = lab.mkdir("plugins");
    fs::copy(
        lab.bin().join("libvdens_null.so"),
        format!("{dir}/libvdens_null.so"),
    )
    .unwrap();
    lab.give(Path::new(&format!("{dir}/libvdens_null.so")));
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    let doctor = || Findings::of(lab.vdectl(["--plugin-dir", &dir, "doctor", "--json"]));
    let findings = doctor();
    let check = format!("plugin directory {dir}");
    let remedy = findings.remedy("wrong", &check, &["can be written by others"]);
    // Which is why vdens cannot use what is in it.
    findings.remedy("wrong", "plugin null", &["refused"]);
    lab.vdens(["--plugin-dir", &dir, "null://", "true"])
        .refused(&["can be written by others"]);
    lab.sh(remedy).ok();
    let findings = doctor();
    assert!(findings.works);
    findings.remedy("ok", &check, &["plugins in it: 1"]);
    findings.remedy("ok", "plugin null", &[&dir]);
    findings.remedy(
        "note",
        "plugin null",
        &["is not used", &lab.bin().display().to_string()],
    );
}

/// Makes a shared library of C code by the name of a plugin, and returns what is said of it.
#[track_caller]
fn library(lab: &Lab, scheme: &str, code: &str) -> (Findings, Duration) {
    let dir = lab.mkdir(&format!("{scheme}-plugins"));
    let source = lab.write(&format!("{scheme}.c"), code);
    let file = format!("{dir}/libvdens_{scheme}.so");
    lab.command("gcc", ["-shared", "-fPIC", "-o", &file, &source])
        .ok();
    let start = Instant::now();
    let findings = Findings::of(lab.vdectl(["--plugin-dir", &dir, "doctor", "--json"]));
    (findings, start.elapsed())
}

#[test]
fn plugins_that_cannot_be_loaded() {
    need!("gcc");
    let lab = Lab::new();
    let dir = lab.mkdir("plugins");
    fs::write(format!("{dir}/libvdens_text.so"), "not a library").unwrap();
    fs::set_permissions(
        format!("{dir}/libvdens_text.so"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    lab.give(Path::new(&format!("{dir}/libvdens_text.so")));
    // Loading ignores this name, and so does the doctor.
    fs::write(format!("{dir}/libvdens_Ignored.so"), "not a library").unwrap();
    let findings = Findings::of(lab.vdectl(["--plugin-dir", &dir, "doctor", "--json"]));
    let remedy = findings.remedy("wrong", "plugin text", &["libvdens_text.so", "refused"]);
    assert!(remedy.contains("build"), "{remedy}");
    let all = format!("{:?}", findings.findings);
    assert!(!all.contains("Ignored"), "{all}");

    let (findings, _) = library(&lab, "other", "int x;");
    findings.remedy("wrong", "plugin other", &["no vdens plugin"]);
    // The others are what they are.
    findings.remedy("ok", "plugin null", &[]);

    let crash = "__attribute__((constructor)) static void f(void) { *(volatile int *)0 = 1; }";
    let (findings, _) = library(&lab, "crash", crash);
    let remedy = findings.remedy("wrong", "plugin crash", &["libvdens_crash.so", "SIGSEGV"]);
    lab.sh(remedy).ok();
    assert!(doctor(&lab).works);

    let exit =
        "#include <unistd.h>\n__attribute__((constructor)) static void f(void) { _exit(0); }";
    let (findings, _) = library(&lab, "exit", exit);
    findings.remedy(
        "wrong",
        "plugin exit",
        &["libvdens_exit.so", "ends the process"],
    );
}

#[test]
fn a_plugin_that_hangs() {
    need!("gcc");
    let lab = Lab::new();
    // And leaves a process behind, which the lab's end would find.
    let hang = "#include <unistd.h>\n__attribute__((constructor)) static void f(void) { fork(); for (;;) pause(); }";
    let (findings, took) = library(&lab, "hang", hang);
    findings.remedy(
        "wrong",
        "plugin hang",
        &["libvdens_hang.so", "does not load within"],
    );
    findings.remedy("ok", "plugin null", &[]);
    findings.remedy("ok", "panel", &[]);
    assert!(took < stretched(Duration::from_secs(5)), "{took:?}");
}

#[test]
fn no_plugins() {
    let lab = Lab::new();
    for file in fs::read_dir(lab.bin()).unwrap().flatten() {
        if file.file_name().to_string_lossy().starts_with("libvdens_") {
            fs::remove_file(file.path()).unwrap();
        }
    }
    let findings = doctor(&lab);
    let remedy = findings.remedy("wrong", "plugins", &["none"]);
    assert!(remedy.contains("/usr/local/lib/vdens/plugins"), "{remedy}");
}

#[test]
fn the_runtime_directory() {
    let lab = Lab::new();
    let run = lab.mkdir("run");
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
    let doctor = || {
        lab.vdectl(["doctor", "--json"])
            .env("XDG_RUNTIME_DIR", &run)
    };
    // Another one serves, so nothing is wrong.
    let findings = Findings::of(doctor());
    assert!(findings.works);
    let fallback = format!("/tmp/vdens-{}", lab.user().uid);
    let words = [&*run, "others can enter", &fallback];
    let remedy = findings.remedy("note", "runtime directory", &words);
    findings.remedy("ok", "runtime directory", &[&fallback]);
    lab.sh(remedy).ok();
    let findings = Findings::of(doctor());
    assert_eq!(findings.about("runtime directory").len(), 1);
    findings.remedy("ok", "runtime directory", &[&run]);

    let full = format!(
        "mount -t tmpfs -o size=16k,mode=0700 none {run}; head -c 99999 /dev/zero >{run}/x 2>/dev/null || :"
    );
    let findings = Findings::of(doctor().on_changed_machine(&full));
    let remedy = findings.remedy("wrong", "runtime directory", &[&run, "No space left"]);
    assert!(remedy.contains("df "), "{remedy}");

    fs::create_dir(format!("{run}/vdens")).unwrap();
    fs::set_permissions(format!("{run}/vdens"), fs::Permissions::from_mode(0o755)).unwrap();
    lab.give(Path::new(&format!("{run}/vdens")));
    let findings = Findings::of(doctor());
    let remedy = findings.remedy(
        "wrong",
        "runtime directory",
        &["vdens is there", "others can enter"],
    );
    lab.sh(remedy).ok();
    assert!(Findings::of(doctor()).works);
}

#[test]
fn a_bad_configuration() {
    let lab = Lab::new();
    let file = lab.write("vdens.toml", "[defaults]\nup = true\ncolour = 1\n");
    let findings = Findings::of(lab.vdectl(["--config", &file, "doctor", "--json"]));
    let remedy = findings.remedy(
        "wrong",
        "configuration",
        &[&file, "line 3, column 1", "colour"],
    );
    assert!(remedy.contains(&file), "{remedy}");
    // The rest was looked at all the same.
    findings.remedy("ok", "plugin null", &[]);
    lab.write("vdens.toml", "[defaults]\nup = true\n");
    let findings = Findings::of(lab.vdectl(["--config", &file, "doctor", "--json"]));
    findings.remedy("ok", "configuration", &[&file]);
    // The user's own.
    let own = "mkdir -p ~/.config/vdens; echo '[nothing' >~/.config/vdens/vdens.toml";
    lab.sh(own).ok();
    let findings = doctor(&lab);
    findings.remedy(
        "wrong",
        "configuration",
        &["/.config/vdens/vdens.toml, line 1"],
    );
}

#[test]
fn small_limits() {
    let lab = Lab::new();
    let vdectl = lab.bin().join("vdectl").display().to_string();
    let findings = Findings::of(lab.sh(&format!("ulimit -n 100; exec {vdectl} doctor --json")));
    let remedy = findings.remedy("note", "limit of descriptors", &["100"]);
    assert_eq!(remedy, "ulimit -n 1024");
    assert!(findings.works);
}
