//! VNL files and default switches of other users: they are not used.

use vdens_tests::{Cmd, Lab, User, need};

/// A command on a machine with a `/tmp` and a `/run` of its own, of which `script` is run first, as
/// root. There `as_other` and `as_user` run a script as the second and as the ordinary user, `$ran`
/// is the file that no attack may make, and `$w` the lab's directory.
fn staged<'lab>(lab: &'lab Lab, by: &User, script: &str, words: &[&str]) -> Cmd<'lab> {
    let other = User::other();
    let become_user = |user: &User| {
        format!(
            "setpriv --reuid {} --regid {} --clear-groups --",
            user.uid, user.gid
        )
    };
    let script = format!(
        "mount --bind {top} /mnt
         mount -t tmpfs -o mode=1777 none /tmp
         mount -t tmpfs -o mode=755 none /run
         mkdir {top}
         mount --bind /mnt {top}
         export w={w} ran={w}/ran PATH
         cd $w
         as_other() {{ {other} sh -ec \"$1\"; }}
         as_user() {{ {user} sh -ec \"$1\"; }}
         {script}
         exec {by} \"$@\"",
        top = lab.aside("").display(),
        w = lab.dir().display(),
        other = become_user(&other),
        user = become_user(lab.user()),
        by = become_user(by),
    );
    lab.command("unshare", ["-m", "--", "sh", "-ec", &script, "sh"])
        .args(words)
        .by(User::root())
}

/// The command lines that use the default switch.
fn default_users(lab: &Lab) -> [Vec<String>; 3] {
    let program = |name: &str| lab.bin().join(name).display().to_string();
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    [
        words(&[&program("vdens"), "vde://", "true"]),
        words(&[&program("vde_plug")]),
        words(&[&program("vdens"), "vlan://1{vde://}", "true"]),
    ]
}

#[track_caller]
fn is_refused(lab: &Lab, by: &User, script: &str, words: &[&str], why: &[&str]) {
    staged(lab, by, script, words).refused(why);
    assert!(!lab.dir().join("ran").exists(), "{script}: {words:?}");
}

/// The second user as an error names it.
fn other() -> String {
    let other = User::other();
    format!("user {} (uid {})", other.name, other.uid)
}

#[test]
fn a_default_switch_of_another_user_is_not_used() {
    need!("root");
    let lab = Lab::new();
    let other = other();
    let cmd = "echo \"cmd://touch $ran; cat\" >/tmp/vde.ctl";
    for by in [lab.user(), &User::root()] {
        for words in default_users(&lab) {
            let words: Vec<_> = words.iter().map(String::as_str).collect();
            for (script, why) in [
                (
                    format!("as_other '{cmd}'"),
                    ["VNL file /tmp/vde.ctl", &other],
                ),
                (
                    "as_other 'echo null:// >/tmp/vde.ctl'".into(),
                    ["VNL file /tmp/vde.ctl", &other],
                ),
                (
                    "as_other 'mkdir /tmp/vde.ctl'".into(),
                    ["vde:///tmp/vde.ctl", &other],
                ),
                (
                    "as_other 'mkfifo -m 666 /tmp/vde.ctl'".into(),
                    ["switch /tmp/vde.ctl", &other],
                ),
                (
                    "echo null:// >/tmp/good; as_other 'ln -s good /tmp/vde.ctl'".into(),
                    ["link /tmp/vde.ctl", &other],
                ),
                (
                    "mkdir /tmp/good; as_other 'ln -s good /tmp/vde.ctl'".into(),
                    ["link /tmp/vde.ctl", &other],
                ),
                (
                    format!("{cmd}; chmod 666 /tmp/vde.ctl"),
                    ["written by others", "chmod go-w /tmp/vde.ctl"],
                ),
                (
                    "mkdir -m 777 /tmp/vde.ctl".into(),
                    ["written by others", "vde:///tmp/vde.ctl"],
                ),
            ] {
                is_refused(&lab, by, &script, &words, &why);
            }
        }
        // Every user can write to the home directory.
        let vdens = lab.bin().join("vdens").display().to_string();
        let words = ["env", "HOME=/tmp", &vdens, "vde://", "true"];
        let script = "as_other 'mkdir -p /tmp/.vdeplug/default'";
        is_refused(&lab, by, script, &words, &["/.vdeplug/default", &other]);
    }
}

#[test]
fn a_path_at_which_another_user_put_a_file_is_not_read() {
    need!("root");
    let lab = Lab::new();
    let other = other();
    let program = |name: &str| lab.bin().join(name).display().to_string();
    let (vdens, vde_plug) = (program("vdens"), program("vde_plug"));
    let cmd = "echo \"cmd://touch $ran; cat\" >/tmp/sw2";
    for by in [lab.user(), &User::root()] {
        for words in [
            &[&vdens, "vde:///tmp/sw2", "true"][..],
            &[&vdens, "/tmp/sw2", "true"],
            &[&vde_plug, "/tmp/sw2"],
            &[&vde_plug, "null://", "vde:///tmp/sw2"],
        ] {
            let foreign = ["VNL file /tmp/sw2", &other];
            is_refused(&lab, by, &format!("as_other '{cmd}'"), words, &foreign);
            // Another user can choose among the files that the victim trusts.
            let script = "echo null:// >/tmp/good; as_other 'ln -s good /tmp/sw2'";
            is_refused(&lab, by, script, words, &["link /tmp/sw2", &other]);
            let script = format!("{cmd}; chmod 666 /tmp/sw2");
            is_refused(&lab, by, &script, words, &["chmod go-w /tmp/sw2"]);
            let script = "as_other 'mkfifo -m 666 /tmp/sw2'";
            is_refused(&lab, by, script, words, &["/tmp/sw2 is not a switch"]);
        }
    }
    // One user's file is as good as root's to themselves only.
    let script = format!("as_user '{cmd}'");
    let words = [vdens.as_str(), "/tmp/sw2", "true"];
    let why = format!("user {} (uid {})", lab.user().name, lab.user().uid);
    is_refused(&lab, &User::root(), &script, &words, &[&why]);
}

#[test]
fn a_place_that_all_users_share_runs_no_command() {
    need!("root");
    let lab = Lab::new();
    for words in default_users(&lab) {
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        for (vnl, why) in [
            ("cmd://touch $ran", "'cmd'"),
            ("libvdeplug://cmd://touch $ran", "'libvdeplug'"),
            ("slirp://", "'slirp'"),
            ("vlan://1{cmd://touch $ran}", "'vlan'"),
            ("ptp:///tmp/p{cmd://touch $ran}", "a VNL within a VNL"),
        ] {
            for script in [
                format!("echo \"{vnl}\" >/run/vde.ctl"),
                format!("as_user 'echo \"{vnl}\" >/tmp/vde.ctl'"),
            ] {
                is_refused(
                    &lab,
                    lab.user(),
                    &script,
                    &words,
                    &["vde.ctl is refused", why],
                );
            }
        }
    }
}

#[test]
fn what_root_and_the_user_chose_is_used() {
    need!("root");
    let lab = Lab::new();
    let program = |name: &str| lab.bin().join(name).display().to_string();
    let (vdens, vde_plug) = (program("vdens"), program("vde_plug"));
    let label = |script: &str, vnl: &str| {
        let words = [&vdens, vnl, "sh", "-c", "echo $VDENS"];
        staged(&lab, lab.user(), script, &words).ok()
    };
    for (script, vnl, opened) in [
        ("echo null:// >/run/vde.ctl", "vde://", "null://"),
        ("echo null:// >/tmp/vde.ctl", "vde://", "null://"),
        ("as_user 'echo null:// >/tmp/vde.ctl'", "vde://", "null://"),
        (
            "as_user 'echo cmd://cat >/tmp/sw2'",
            "/tmp/sw2",
            "cmd://cat",
        ),
        // The usual mode where the umask is 002.
        (
            "as_user 'umask 002; echo cmd://cat >/tmp/sw2'",
            "/tmp/sw2",
            "cmd://cat",
        ),
        (
            "as_user 'echo cmd://cat >/tmp/f; ln -s f /tmp/sw2'",
            "/tmp/sw2",
            "cmd://cat",
        ),
        (
            "as_user 'mkdir ~/.vdeplug; echo cmd://cat >~/.vdeplug/default'",
            "vde://",
            "cmd://cat",
        ),
    ] {
        assert_eq!(label(script, vnl), format!("vde0={opened}\n"), "{script}");
    }
    lab.sh("rm -r ~/.vdeplug").ok();
    // A switch of another user's can be named, also by the user's own default.
    let run = |script: &str, vnl: &str| {
        let script = format!(
            "as_other '{vde_plug} -d -p /tmp/pid null:// \"switch:///tmp/vde.ctl[mode=666]\"'
             {script}
             as_user \"{vdens} {vnl} sh -c 'echo \\$VDENS' 2>&1\" || true
             as_other 'pid=$(cat /tmp/pid); kill $pid; while kill -0 $pid; do sleep 0.05; done' 2>/dev/null
             set -- true",
        );
        staged(&lab, lab.user(), &script, &[]).ok()
    };
    assert_eq!(run("", "vde:///tmp/vde.ctl"), "vde0=vde:///tmp/vde.ctl\n");
    let link = "as_user 'mkdir ~/.vdeplug; ln -s /tmp/vde.ctl ~/.vdeplug/default'";
    let default = lab.home().join(".vdeplug/default");
    let opened = format!("vde0=vde://{}\n", default.display());
    assert_eq!(run(link, "vde://"), opened);
    lab.sh("rm -r ~/.vdeplug").ok();
    let refused = run("", "vde://");
    assert!(refused.contains(&other()), "{refused}");
}

#[test]
fn libvdeplug_reads_no_files() {
    need!("root", "libvdeplug_hub");
    let lab = Lab::new();
    let vdens = lab.bin().join("vdens").display().to_string();
    let script = "as_other 'echo \"cmd://touch $ran\" >/tmp/sw2; cp /tmp/sw2 /tmp/vde.ctl'";
    let other = other();
    for (vnl, why) in [
        ("libvdeplug:///tmp/sw2", &*other),
        ("libvdeplug://", &other),
        ("libvdeplug://vde://", &other),
        ("libvdeplug://vlan://1{/tmp/sw2}", "in braces has no scheme"),
        ("agno:///tmp/key{/tmp/sw2}", "in braces has no scheme"),
    ] {
        is_refused(&lab, lab.user(), script, &[&vdens, vnl, "true"], &[why]);
    }
}
