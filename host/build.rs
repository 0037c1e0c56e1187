//! Tells the programs the commit that they are built from, if it is known.
//!
//! That is `VDENS_COMMIT`, which packages set; or what `cargo package` noted; or git's, when a
//! release is built in the repository. Other builds have none, so that a commit rebuilds nothing.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=VDENS_COMMIT");
    let given = env::var("VDENS_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty());
    if let Some(commit) = given.or_else(packaged).or_else(checked_out) {
        println!("cargo:rustc-env=VDENS_COMMIT={commit}");
    }
}

/// The commit in the file that `cargo package` adds.
fn packaged() -> Option<String> {
    let text = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, rest) = text.split_once("\"sha1\": \"")?;
    rest.split('"').next().map(str::to_owned)
}

/// The commit of this repository. A tarball may be unpacked inside another one.
fn checked_out() -> Option<String> {
    let is_release = |dir: String| {
        Path::new(&dir)
            .components()
            .any(|c| c.as_os_str() == "release")
    };
    env::var("OUT_DIR")
        .ok()
        .filter(|dir| is_release(dir.clone()))?;
    let top = fs::canonicalize("..").ok()?;
    if Path::new(&git(&["rev-parse", "--show-toplevel"])?) != top {
        return None;
    }
    // This file grows with each change of HEAD.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo:rerun-if-changed={log}");
    }
    git(&["rev-parse", "HEAD"])
}

fn git(words: &[&str]) -> Option<String> {
    let output = Command::new("git").args(words).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
