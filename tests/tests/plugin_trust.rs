//! A plugin is code that runs as the user: what others can change, or can make its path lead to, is
//! not loaded.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use vdens_tests::{Lab, User, need};

/// A directory of the user's below the working directory, with a mode.
fn directory(lab: &Lab, name: &str, mode: u32) -> PathBuf {
    let path = lab.mkdir(name);
    lab.sh(&format!("chmod {mode:o} {path}")).ok();
    path.into()
}

/// Puts a plugin of the user's, for null://, into a directory.
fn plugin(lab: &Lab, dir: &Path) -> PathBuf {
    let plugin = dir.join("libvdens_null.so");
    let built = lab.bin().join("libvdens_null.so");
    lab.command("cp", [&built, &plugin]).ok();
    plugin
}

/// The plugin in `dir` is used.
#[track_caller]
fn is_loaded(lab: &Lab, dir: &Path) {
    let output = lab
        .vdens(["-v", "--plugin-dir"])
        .args([dir])
        .args(["null://", "true"])
        .run();
    assert_eq!(output.code(), Some(0), "{output:#?}");
    let served = format!("null:// is served by {}", dir.display());
    assert!(output.stderr.contains(&served), "{output:#?}");
}

/// Every program that would load the plugin in `dir` refuses it with `words`, in one line.
#[track_caller]
fn is_refused(lab: &Lab, dir: &Path, words: &[&str]) {
    let vdectl = |args: &[&str]| lab.vdectl(["--plugin-dir"]).args([dir]).args(args);
    let said = [&["libvdens_null.so is refused: "], words].concat();
    let vdens = lab.vdens(["--plugin-dir"]).args([dir]);
    vdens.args(["null://", "true"]).refused(&said);
    let plug = lab.vde_plug(["--plugin-dir"]).args([dir]);
    plug.args(["null://", "null://"]).refused(&said);
    for (task, mark) in [
        (["plugin", "list"].as_slice(), "  null "),
        (&["plugin", "check", "null"], "FAILED   trust"),
        (&["doctor"], "wrong  plugin null"),
    ] {
        let output = vdectl(task).run();
        let line = output.stdout.lines().find(|line| line.starts_with(mark));
        let line = line.unwrap_or_default();
        assert!(
            words.iter().all(|word| line.contains(word)),
            "{words:?}: {output:#?}"
        );
    }
}

#[test]
fn a_directory_of_the_users_in_a_sticky_one() {
    let lab = Lab::new();
    // The lab itself is in /tmp.
    let dir = directory(&lab, "own", 0o755);
    plugin(&lab, &dir);
    is_loaded(&lab, &dir);
    let sticky = directory(&lab, "sticky", 0o1777);
    let dir = directory(&lab, "sticky/own", 0o755);
    let file = plugin(&lab, &dir);
    is_loaded(&lab, &dir);
    // Others can put libraries beside one that is right in it.
    fs::rename(file, sticky.join("libvdens_null.so")).unwrap();
    let words = [
        &*format!("{} can be written by others", sticky.display()),
        "put it into",
    ];
    is_refused(&lab, &sticky, &words);
}

#[test]
fn a_link_in_a_directory_that_others_can_write() {
    let lab = Lab::new();
    let own = directory(&lab, "own", 0o755);
    let file = plugin(&lab, &own);
    let open = directory(&lab, "open", 0o777);
    symlink(&file, open.join("libvdens_null.so")).unwrap();
    let words = [&*format!(
        "{0} can be written by others; chmod go-w {0}",
        open.display()
    )];
    is_refused(&lab, &open, &words);
    lab.sh(&format!("chmod go-w {}", open.display())).ok();
    is_loaded(&lab, &open);
}

#[test]
fn a_link_that_another_user_made() {
    need!("root");
    let lab = Lab::new();
    let own = directory(&lab, "own", 0o755);
    let file = plugin(&lab, &own);
    let sticky = directory(&lab, "sticky", 0o1777);
    let link = sticky.join("own");
    let script = format!("ln -s {} {}", own.display(), link.display());
    lab.sh(&script).by(User::other()).ok();
    let uid = User::other().uid;
    let words = [&*format!(
        "{} belongs to another user (uid {uid})",
        link.display()
    )];
    is_refused(&lab, &link, &words);
    // Nor is a file that is linked to from a directory of the user's, and that others can replace.
    let theirs = sticky.join("theirs");
    lab.sh(&format!("mkdir -m 0777 {}", theirs.display()))
        .by(User::other())
        .ok();
    fs::rename(&file, theirs.join("x.so")).unwrap();
    symlink(theirs.join("x.so"), &file).unwrap();
    let words = [&*format!(
        "{} belongs to another user (uid {uid})",
        theirs.display()
    )];
    is_refused(&lab, &own, &words);
}

#[test]
fn a_directory_above_that_others_can_write() {
    let lab = Lab::new();
    let above = directory(&lab, "above", 0o755);
    directory(&lab, "above/between", 0o755);
    let dir = directory(&lab, "above/between/own", 0o755);
    plugin(&lab, &dir);
    is_loaded(&lab, &dir);
    fs::set_permissions(&above, fs::Permissions::from_mode(0o777)).unwrap();
    let words = [&*format!(
        "{0} can be written by others; chmod go-w {0}",
        above.display()
    )];
    is_refused(&lab, &dir, &words);
}

#[test]
fn a_directory_above_that_another_user_owns() {
    need!("root");
    let lab = Lab::new();
    let above = directory(&lab, "above", 0o755);
    let dir = directory(&lab, "above/own", 0o755);
    plugin(&lab, &dir);
    is_loaded(&lab, &dir);
    let other = User::other();
    chown(&above, Some(other.uid), Some(other.gid)).unwrap();
    let words = [&*format!(
        "{} belongs to another user (uid {})",
        above.display(),
        other.uid
    )];
    is_refused(&lab, &dir, &words);
}

/// Inside a namespace root is nobody, and so is the owner of the directories above the user's.
#[test]
fn inside_a_namespace() {
    let lab = Lab::new();
    let dir = directory(&lab, "own", 0o755);
    plugin(&lab, &dir);
    let vdens = lab.vdens(["null://", "vdens", "--plugin-dir"]);
    vdens.args([dir]).args(["null://", "true"]).ok();
}

/// What is wrong is the limit, whichever descriptor is the first to be one too many.
#[test]
fn too_few_descriptors_are_not_the_plugins_fault() {
    let lab = Lab::new();
    let vnl = lab.vnl("ptp", "p");
    let mut told = 0;
    for limit in 4..24 {
        for program in [
            "vdens null:// true",
            &format!("vdens {vnl} true"),
            &format!("vdens --no-panel {vnl} true"),
            "vde_plug null://",
        ] {
            let output = lab.sh(&format!("ulimit -n {limit}; {program}")).run();
            if output.code() == Some(0) {
                continue;
            }
            told += 1;
            let said = output.stderr.to_lowercase();
            let is_told = said.contains("too many open files") && said.contains("ulimit -n");
            let blames = ["refused", "blame", "--wait"]
                .iter()
                .any(|word| said.contains(word));
            assert!(is_told && !blames, "{limit} {program}: {output:#?}");
        }
    }
    assert!(told > 0);
}
