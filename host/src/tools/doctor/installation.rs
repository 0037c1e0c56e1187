//! Whether a shell starts the programs of this installation, and whether AppArmor lets them work.
//!
//! VDE has programs of the names `vdens` and `vde_plug`, and vdens may be installed twice, so a
//! directory that comes first in `PATH` can hide the one that is meant.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::Finding;
use crate::cli::commands;
use crate::cli::mistakes::is_executable;
use crate::sys::user_namespace::{apparmor_remedy, apparmor_restricts};

const PATH: &str = "PATH";
const APPARMOR: &str = "AppArmor";

/// Examines both.
pub(super) fn all() -> Vec<Finding> {
    let mut findings = match env::current_exe().ok().as_deref().and_then(Path::parent) {
        Some(own) => in_path(own, &env::var_os("PATH").unwrap_or_default()),
        None => Vec::new(),
    };
    findings.extend(apparmor());
    findings
}

/// Looks the programs up as a shell does. `own` is the directory of this installation.
fn in_path(own: &Path, path: &std::ffi::OsStr) -> Vec<Finding> {
    let first = format!("export PATH={}:\"$PATH\"", own.display());
    let mut missing = Vec::new();
    let mut findings = Vec::new();
    for command in commands() {
        let name = command.get_name();
        let files = env::split_paths(path).map(|dir| dir.join(name));
        let found: Vec<PathBuf> = files.filter(|file| is_executable(file)).collect();
        let ours = own.join(name);
        let is_ours = |file: &&PathBuf| same(file, &ours);
        let other = found.iter().find(|file| !is_ours(file));
        match (found.first(), other) {
            (None, _) => missing.push(name.to_owned()),
            (Some(used), _) if !is_ours(&used) => {
                let whose = match is_installation(used) {
                    true => "another installation of vdens",
                    false => "another program, such as VDE's",
                };
                let message = format!(
                    "{name} is {}, {whose}, and not {}",
                    used.display(),
                    ours.display()
                );
                findings.push(Finding::note(PATH, message).remedy(&first));
            }
            (Some(used), Some(other)) if is_installation(other) => {
                let (used, other) = (used.display(), other.display());
                let message = format!("{name} is {used}; there is another installation, {other}");
                let remedy = "remove one of them, unless you want both";
                findings.push(Finding::note(PATH, message).remedy(remedy));
            }
            _ => {}
        }
    }
    if !missing.is_empty() {
        let message = format!("{} is in none of its directories", missing.join(", "));
        findings.push(Finding::note(PATH, message).remedy(first));
    }
    if findings.is_empty() {
        let message = format!("the programs are those in {}", own.display());
        findings.push(Finding::ok(PATH, message));
    }
    findings
}

/// Whether two paths lead to one file.
fn same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    real(one).is_some() && real(one) == real(other)
}

/// Whether a program is one of ours: VDE has no vdectl. One that is only a link leads to another
/// directory.
fn is_installation(program: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let program = real(program);
    let vdectl = real(&program.with_file_name("vdectl"));
    is_executable(&vdectl) && vdectl.parent() == program.parent()
}

/// Whether AppArmor has a profile for this program, where it restricts those without (Ubuntu 23.10
/// and later). It does not restrict root.
fn apparmor() -> Option<Finding> {
    if !apparmor_restricts() || geteuid().is_root() {
        return None;
    }
    // apparmor(7), "Process confinement": `NAME (MODE)`, or `unconfined`.
    let label = fs::read_to_string("/proc/self/attr/apparmor/current").unwrap_or_default();
    Some(match label.trim() {
        "" | "unconfined" => Finding::wrong(
            APPARMOR,
            "it forbids user namespaces to programs without a profile, and none is loaded for vdens",
        )
        .remedy(apparmor_remedy()),
        label => Finding::ok(APPARMOR, format!("the profile {label} applies to this program")),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn program(dir: &Path, name: &str) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join(name), "#!/bin/sh\n").unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The findings with these directories in PATH; `a` is this installation.
    #[track_caller]
    fn finds(dirs: &[&str], verdict: Verdict, words: &[&str]) -> Vec<Finding> {
        let top = tempfile::tempdir().unwrap();
        for name in ["vdens", "vde_plug", "vde_switch", "vdens-tap", "vdectl"] {
            program(&top.path().join("a"), name);
            program(&top.path().join("b"), name);
        }
        program(&top.path().join("vde"), "vdens");
        fs::create_dir(top.path().join("link")).unwrap();
        for name in ["vdens", "vde_plug", "vde_switch", "vdens-tap", "vdectl"] {
            let target = top.path().join("a").join(name);
            std::os::unix::fs::symlink(target, top.path().join("link").join(name)).unwrap();
        }
        // As where a package leaves VDE its names.
        let vdectl = top.path().join("a/vdectl");
        std::os::unix::fs::symlink(vdectl, top.path().join("vde/vdectl")).unwrap();
        let path = env::join_paths(dirs.iter().map(|dir| top.path().join(dir))).unwrap();
        let findings = in_path(&top.path().join("a"), &path);
        for finding in &findings {
            assert_eq!(finding.verdict, verdict, "{findings:?}");
        }
        for word in words {
            let text = format!("{findings:?}");
            assert!(text.contains(word), "{word}: {text}");
        }
        findings
    }

    #[test]
    fn the_programs_in_path_are_of_this_installation() {
        assert_eq!(finds(&["a", "vde"], Verdict::Ok, &["/a"]).len(), 1);
        finds(&["link", "a"], Verdict::Ok, &[]);
        let findings = finds(
            &["vde", "a"],
            Verdict::Note,
            &["/vde/vdens", "VDE's", "export PATH="],
        );
        assert_eq!(findings.len(), 1);
        let findings = finds(
            &["b", "a"],
            Verdict::Note,
            &["/b/vdectl", "another installation"],
        );
        assert_eq!(findings.len(), 5);
        finds(
            &["a", "b"],
            Verdict::Note,
            &["vdens is ", "/b/vdens", "remove one"],
        );
        let findings = finds(
            &["nowhere"],
            Verdict::Note,
            &["vdens, vde_plug, vde_switch, vdens-tap, vdectl"],
        );
        assert_eq!(findings.len(), 1);
    }
}
