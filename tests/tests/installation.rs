//! How the programs are installed and started. With raised rights they refuse to run. In a sandbox
//! they run, or name what it lacks.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vdens_tests::{Cmd, Lab, PROGRAMS, User, copy_programs, need, stretched};

/// A copy of one of our programs beside the plugins, with an owner and a mode.
fn installed(lab: &Lab, program: &str, owner: &User, mode: u32) -> PathBuf {
    let file = lab.bin().join(format!("{program}-{mode:o}"));
    copy_programs(&[lab.bin().join(program)], &file);
    chown(&file, Some(owner.uid), Some(owner.gid)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    file
}

/// A program that would run with more rights than its caller's loads no plugin, executes no
/// command, and reads and writes no file for it.
#[track_caller]
fn gives_nothing(lab: &Lab, program: &str, file: &PathBuf, words: &[&str]) {
    let taken = lab.aside("taken");
    let own = lab.write("own", "secret");
    let log = taken.display().to_string();
    let plugins = lab.drop_in();
    lab.drop_plugin(&lab.bin().join("libvdens_null.so"), "x");
    let attacks: &[&[&str]] = match program {
        "vdens" => &[
            &["null://", "true"],
            &["--log-file", &log, "null://", "true"],
            &["--config", &own, "null://", "true"],
            &["cmd://id -u >&2", "true"],
            &["--version"],
            &["--help"],
            &["--nonsense"],
            &[],
        ],
        "vdectl" => &[
            &["status"],
            &["doctor"],
            &["--log-file", &log, "status"],
            &["--config", &own, "status"],
            &["plugin", "list"],
            &["plugin", "check", "x"],
            &["plugin", "new", &log],
            &["--version"],
            &[],
        ],
        _ => &[
            &["null://", "null://"],
            &["--log-file", &log, "null://", "null://"],
            &["-p", &log, "null://", "null://"],
            &["null://", "=", "sh", "-c", "id -u >&2"],
            &["-c", "vde_plug null://"],
            &["--version"],
            &[],
        ],
    };
    for attack in attacks {
        let command = lab
            .command(file, *attack)
            .env("VDENS_PLUGIN_PATH", &plugins);
        command.refused(&[&["more rights than the caller"], words].concat());
    }
    assert!(!taken.exists());
}

#[test]
fn a_setuid_program_refuses_to_run() {
    need!("root", "setpriv");
    let lab = Lab::new();
    let user = lab.user();
    let setuid = ["uid 0", "needs no setuid bit", "chmod u-s"];
    for program in PROGRAMS {
        let root = installed(&lab, program, &User::root(), 0o4755);
        gives_nothing(&lab, program, &root, &setuid);
        let group = installed(&lab, program, &User::root(), 0o2755);
        gives_nothing(
            &lab,
            program,
            &group,
            &["gid 0", "needs no setgid bit", "chmod g-s"],
        );
        // A bit that raises nothing is accepted: the owner's own, and one that the kernel ignores.
        lab.command(&root, ["--version"]).by(User::root()).ok();
        lab.command("setpriv", ["--no-new-privs", "--"])
            .args([&*root, "--version".as_ref()])
            .ok();
        let own = installed(&lab, program, user, 0o4755);
        lab.command(&own, ["--version"]).ok();
        // The same for the rights of an ordinary user.
        let other = installed(&lab, program, &User::other(), 0o4755);
        let words = [&*format!("uid {} for uid {}", User::other().uid, user.uid)];
        gives_nothing(&lab, program, &other, &words);
    }
    // A setuid wrapper that keeps its rights is as bad as the bit itself.
    let python = lab.aside("python");
    copy_programs(&["/usr/bin/python3"], &python);
    fs::set_permissions(&python, fs::Permissions::from_mode(0o4755)).unwrap();
    let vdens = lab.bin().join("vdens").display().to_string();
    let script = format!("import os; os.execv('{vdens}', ['vdens', '--version'])");
    lab.command(&python, ["-c", &script])
        .refused(&["uid 0", "more rights"]);
}

#[test]
fn a_program_with_file_capabilities_refuses_to_run() {
    need!("root", "setcap", "setpriv");
    let lab = Lab::new();
    for program in PROGRAMS {
        let file = installed(&lab, program, &User::root(), 0o755);
        lab.command(&file, ["--version"]).ok();
        for capabilities in ["cap_net_admin+ep", "cap_net_admin,cap_sys_admin+p"] {
            lab.command("setcap", [capabilities.as_ref(), &*file])
                .by(User::root())
                .ok();
            gives_nothing(&lab, program, &file, &["needs neither", "setcap -r"]);
        }
        lab.command("setcap", ["-r".as_ref(), &*file])
            .by(User::root())
            .ok();
        lab.command(&file, ["--version"]).ok();
    }
    // Ambient capabilities are the caller's own.
    let (uid, gid) = (lab.user().uid.to_string(), lab.user().gid.to_string());
    let words = ["--reuid", &uid, "--regid", &gid, "--clear-groups"];
    let given = lab.command("setpriv", words);
    let given = given.args(["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin"]);
    let vdens = lab.bin().join("vdens");
    given
        .args(["--".as_ref(), vdens.as_os_str()])
        .args(["null://", "true"])
        .by(User::root())
        .ok();
}

/// vdens in a sandbox of bubblewrap's with namespaces of its own; `words` are its other options.
fn sandboxed<'lab>(lab: &'lab Lab, words: &[&str], vdens: &[&str]) -> Cmd<'lab> {
    let program = lab.bin().join("vdens").display().to_string();
    let bwrap = lab.command("bwrap", ["--unshare-all", "--die-with-parent"]);
    bwrap.args(words).args(["--", &program]).args(vdens)
}

/// vdens runs in a sandbox, with and without the panel, and so does another vdens inside its
/// namespace.
#[test]
fn in_a_sandbox() {
    need!("bwrap");
    let lab = Lab::new();
    let home = lab.home().display().to_string();
    let home = home.trim_end_matches("/home");
    let root = [
        "--ro-bind",
        "/",
        "/",
        "--dev",
        "/dev",
        "--proc",
        "/proc",
        "--bind",
        home,
        home,
    ];
    let tun = [&root[..], &["--dev-bind", "/dev/net/tun", "/dev/net/tun"]].concat();
    let vnl = lab.vnl("ptp", "p");
    let script = format!(
        "vdens --addr 10.0.0.1/24 {vnl} sleep 30 & p=$!
         vdens --addr 10.0.0.2/24 {vnl} sh -ec 'ping -c 1 -w 50 10.0.0.1; vdens null:// true'
         kill $p; wait $p || :"
    );
    for options in [[].as_slice(), &["--no-panel"], &["-s"]] {
        let words = [options, &["null://", "sh", "-ec", &script]].concat();
        let output = sandboxed(&lab, &tun, &words).run();
        assert!(output.status.success(), "{options:?}: {output:#?}");
    }
    // An interface on the panel needs no /dev/net/tun. For a tap, the error says what the sandbox
    // lacks.
    sandboxed(&lab, &root, &["ptp://p", "true"]).ok();
    let off = ["--no-panel", "null://", "true"];
    sandboxed(&lab, &root, &off).refused(&["/dev/net/tun", "in a container, pass"]);
    let none = [&tun[..], &["--unshare-user", "--disable-userns"]].concat();
    sandboxed(&lab, &none, &off).refused(&["max_user_namespaces"]);
    let read_only = [&tun[..], &["--ro-bind", "/proc", "/proc"]].concat();
    sandboxed(&lab, &read_only, &off).refused(&["Read-only", "mount a /proc of its own"]);
    let as_root = [&tun[..], &["--uid", "0", "--gid", "0"]].concat();
    sandboxed(&lab, &as_root, &off).refused(&["uid_map", "CAP_SETFCAP"]);
    let allowed = [&as_root[..], &["--cap-add", "CAP_SETFCAP"]].concat();
    sandboxed(&lab, &allowed, &off).ok();
}

/// Without a runtime directory there is no panel. vdens says so in its log and starts at once. (It
/// waits for the lock in that directory for ten seconds.)
#[test]
fn in_a_sandbox_without_a_place_for_sockets() {
    need!("bwrap");
    let lab = Lab::new();
    let bin = lab.bin().display().to_string();
    let devices = "--proc /proc --dev /dev --dev-bind /dev/net/tun /dev/net/tun";
    let system = "--ro-bind /usr /usr --symlink usr/lib /lib --symlink usr/lib64 /lib64 --symlink usr/bin /bin";
    for (sandbox, place, why) in [
        ("--ro-bind / /", &*bin, "Read-only file system"),
        (
            &format!("{system} --ro-bind {bin} /opt"),
            "/opt",
            "No such file or directory",
        ),
    ] {
        let start = Instant::now();
        let bwrap = lab.command("bwrap", ["--unshare-all", "--die-with-parent"]);
        let bwrap = bwrap.args(sandbox.split(' ')).args(devices.split(' '));
        let bwrap = bwrap.args(["--", &format!("{place}/vdens"), "-v", "null://", "true"]);
        let elsewhere = bwrap
            .env("XDG_RUNTIME_DIR", "/nowhere")
            .env("HOME", "/nowhere");
        let output = elsewhere.run();
        assert!(output.status.success(), "{sandbox}: {output:#?}");
        let lines = output.stderr.lines();
        let told = lines.filter(|line| line.contains("no panel") && line.contains(why));
        assert_eq!(told.count(), 1, "{sandbox}: {output:#?}");
        assert!(
            start.elapsed() < stretched(Duration::from_secs(9)),
            "{output:#?}"
        );
    }
}
