//! Paths that another user created first, or can move: the session does without, and a warning
//! says so.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use vdens_tests::{Cmd, Lab, PATIENCE, User, need, wait_until};

/// A script on a machine of its own, whose /tmp has nothing but the lab in it and whose processes
/// are numbered from 1. There `other SCRIPT` is run by another user, and `user SCRIPT` by the
/// lab's, who has no `XDG_RUNTIME_DIR`.
fn machine<'lab>(lab: &'lab Lab, script: &str) -> Cmd<'lab> {
    let as_user = |user: &User| {
        let (uid, gid) = (user.uid, user.gid);
        format!(
            "env -u XDG_RUNTIME_DIR setpriv --reuid {uid} --regid {gid} --clear-groups -- sh -ec \"$1\""
        )
    };
    let script = format!(
        "mount -t tmpfs -o mode=1777 none /mnt
         mkdir /mnt/{id}
         mount --bind /tmp/{id} /mnt/{id}
         mount --rbind /mnt /tmp
         cd {}
         user() {{ {}; }}
         other() {{ {}; }}
         {script}",
        lab.dir().display(),
        as_user(lab.user()),
        as_user(&User::other()),
        id = lab.id(),
    );
    let words = [
        "-m",
        "-p",
        "-f",
        "--mount-proc",
        "--kill-child",
        "--",
        "sh",
        "-ec",
        &script,
    ];
    lab.command("unshare", words).by(User::root())
}

#[test]
fn another_user_was_first_at_the_runtime_directory() {
    need!("root");
    let lab = Lab::new();
    let place = format!("/tmp/vdens-{}", lab.user().uid);
    let uid = User::other().uid;
    for (squat, fault) in [
        ("mkdir", format!("belongs to another user (uid {uid})")),
        (
            "mkdir -m 0700",
            format!("belongs to another user (uid {uid})"),
        ),
        ("touch", "is not a directory".into()),
        ("mkfifo", "is not a directory".into()),
        ("ln -s /tmp", "is not a directory".into()),
    ] {
        let warning = format!("[WARN] cannot use the runtime directory {place}, which {fault}, so");
        for program in [
            "vdens null:// true",
            "vdens --no-panel no true",
            "vde_plug null:// null://",
            "vdectl status",
        ] {
            // A plug goes on until it is told to end.
            let script =
                format!("other '{squat} {place}'; user 'timeout 1 {program} || [ $? = 124 ]'");
            let output = machine(&lab, &script).run();
            assert_eq!(output.code(), Some(0), "{script}: {output:#?}");
            let mut lines = output.stderr.lines();
            let said = lines.next().unwrap_or_default();
            let cost = "frames between them go through user space";
            let remedy = "set XDG_RUNTIME_DIR";
            let is_it = said.starts_with(&warning) && said.contains(cost) && said.contains(remedy);
            // Without a directory to look into there is nothing to list.
            let rest = lines.find(|line| *line != "vdectl: nothing of yours is running");
            assert!(is_it && rest.is_none(), "{script}: {output:#?}");
        }
        // The remedy.
        let script = format!(
            "other '{squat} {place}'
             user 'mkdir -m 0700 own; XDG_RUNTIME_DIR=$PWD/own vdens -v null:// vdectl status; rmdir own'"
        );
        let output = machine(&lab, &script).run();
        assert_eq!(output.code(), Some(0), "{output:#?}");
        assert!(!output.stderr.contains("[WARN]"), "{output:#?}");
    }
}

#[test]
fn the_runtime_directory_of_the_login_is_found_without_the_variable() {
    need!("root");
    let lab = Lab::new();
    let uid = lab.user().uid;
    let script = format!(
        "mount -t tmpfs none /run
         mkdir -p /run/user; install -d -m 0700 -o {uid} /run/user/{uid}
         other 'mkdir /tmp/vdens-{uid}'
         user 'vdens -v null:// sh -c \"until vdectl status | grep vde0; do sleep 0.1; done\"'"
    );
    let output = machine(&lab, &script).run();
    assert_eq!(output.code(), Some(0), "{output:#?}");
    assert!(!output.stderr.contains("[WARN]"), "{output:#?}");
}

#[test]
fn another_user_was_first_at_every_name_for_a_resolv_conf() {
    need!("root");
    let lab = Lab::new();
    let script = "
        other 'cd /tmp; for n in $(seq 3000); do echo mine >.vdens-resolv.$n; done'
        before=$(ls -A /tmp)
        user 'vdens -R 192.0.2.1 null:// cat /etc/resolv.conf'
        [ \"$(ls -A /tmp)\" = \"$before\" ]";
    assert_eq!(machine(&lab, script).ok(), "nameserver 192.0.2.1\n");
}

/// Another user can write the directory above `XDG_RUNTIME_DIR`, and puts links in its place, to a
/// directory of the user's in which files have numbers for names, as mail has. What is moved away
/// is cleaned up all the same.
#[test]
fn the_runtime_directory_is_moved_away_while_it_is_used() {
    need!("root");
    let lab = Lab::new();
    let open = lab.mkdir("open");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let mail = lab.mkdir("mail");
    let run = format!("{open}/run");
    lab.sh(&format!("mkdir -m 0700 {run}")).ok();
    let vdens = lab
        .vdens(["-v", "null://", "sleep", "1000"])
        .env("XDG_RUNTIME_DIR", &run)
        .spawn();
    let pid = vdens.pid();
    let entries = || -> Vec<String> {
        let dirs = fs::read_dir(format!("{run}/vdens"))
            .into_iter()
            .flatten()
            .flatten();
        let dirs = dirs.filter(|dir| dir.path().join(pid.to_string()).exists());
        dirs.map(|dir| dir.file_name().into_string().unwrap())
            .collect()
    };
    // The socket for vdectl status, and the panel's registry.
    wait_until("both entries", PATIENCE, || entries().len() == 2);
    wait_until("the command", PATIENCE, || lab.is_running("sleep 1000"));
    let letter = format!("{mail}/{pid}");
    lab.sh(&format!("echo dear >{letter}")).ok();
    let mut script =
        format!("cd {open}; mv run moved; mkdir -p -m 0777 run run/vdens; cd run/vdens");
    for dir in entries() {
        script += &format!("; ln -s {mail} {dir}");
    }
    lab.sh(&script).by(User::other()).ok();
    vdens.terminate();
    assert_eq!(fs::read_to_string(&letter).ok().as_deref(), Some("dear\n"));
    assert!(!Path::new(&format!("{open}/moved/vdens")).exists());
}
