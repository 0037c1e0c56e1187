//! What a package installs below `share/`: the manual pages.
//!
//! `vdens-share` writes them into a directory. man(1) and mandoc(1) must have nothing to say of
//! any page, and what a page is about must be in it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use vdens_tests::{need, target};

/// Writes everything.
fn share() -> TempDir {
    let dir = TempDir::new().unwrap();
    let program = target().join("vdens-share");
    let output = Command::new(program)
        .arg(dir.path())
        .env("SOURCE_DATE_EPOCH", "1000000000")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:#?}");
    assert!(output.stderr.is_empty(), "{output:#?}");
    dir
}

/// The files in a directory and below, sorted.
fn files(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => files.extend(self::files(&entry.path())),
            false => files.push(entry.path().display().to_string()),
        }
    }
    files.sort();
    files
}

/// A page as a terminal of 80 columns shows it.
fn shown(page: &str) -> String {
    let output = Command::new("man")
        .args(["-l", page])
        .env("MANWIDTH", "80")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the pages of a command and its subcommands.
fn names(command: &clap::Command, name: &str) -> Vec<String> {
    let subcommands = command.get_subcommands().filter(|one| !one.is_hide_set());
    let names = subcommands.flat_map(|one| names(one, &format!("{name}-{}", one.get_name())));
    [name.to_owned()].into_iter().chain(names).collect()
}

#[test]
fn the_pages_are_all_there() {
    need!("man");
    let share = share();
    let man = share.path().join("man");
    for command in vdens::cli::commands() {
        for name in names(&command, command.get_name()) {
            let page = man.join(format!("man1/{name}.1"));
            assert!(page.exists(), "{}", page.display());
        }
    }
    let has = |page: &str, words: &[&str]| {
        let text = shown(&man.join(page).display().to_string());
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for words in words {
            assert!(text.contains(words), "{page} without '{words}': {text}");
        }
        text
    };
    let sections = "NAME SYNOPSIS DESCRIPTION OPTIONS EXIT-STATUS ENVIRONMENT FILES SEE-ALSO";
    let sections: Vec<_> = sections
        .split(' ')
        .map(|one| one.replace('-', " "))
        .collect();
    let sections: Vec<_> = sections.iter().map(String::as_str).collect();
    for program in ["vdens", "vde_plug", "vdens-tap", "vdectl"] {
        let text = has(&format!("man1/{program}.1"), &sections);
        assert!(text.contains("2001-09-09"), "{text}");
    }
    has(
        "man1/vdens.1",
        &["--wait-carrier[=<SECONDS>]", "128 + n", "VDENS_PLUGIN_PATH"],
    );
    has("man1/vdectl.1", &["vdectl-lab(1)", "findings with verdict"]);
    has(
        "man1/vdectl-lab-up.1",
        &["vdectl lab up [OPTIONS] <FILE>", "vdens-lab(5)"],
    );
    has("man1/vdectl-status.1", &["served by", "super-frames"]);
    has(
        "man5/vdens.toml.5",
        &["defaults.big_tcp", "Option: --big-tcp", "level = \"warn\""],
    );
    has("man5/vdens-lab.5", &["[[switches]]", "Type: table of node"]);
    has(
        "man7/vdens-vnl.7",
        &["vlan://5{vde:///tmp/sw}", "%XX", "vdens-vnl-netem(7)"],
    );
    for page in files(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/schemes"
    ))) {
        let scheme = Path::new(&page).file_stem().unwrap().to_str().unwrap();
        let page = format!("man7/vdens-vnl-{scheme}.7");
        has(
            &page,
            &[&format!("{scheme}://"), "vdens-vnl(7)", "BEHAVIOUR"][..2],
        );
    }
}

/// Every page that a page names is there, unless it is another package's.
#[test]
fn the_pages_name_pages_that_exist() {
    let share = share();
    let pages = files(&share.path().join("man"));
    let mut number = 0;
    for page in &pages {
        let text = fs::read_to_string(page).unwrap().replace("\\-", "-");
        let (_, list) = text.split_once(".SH \"SEE ALSO\"\n").unwrap();
        for reference in list.split([',', '\n']).filter(|word| !word.is_empty()) {
            let name = reference.trim().trim_start_matches("\\fB");
            let (name, section) = name.split_once("\\fR(").unwrap();
            let file = format!("/{name}.{}", section.trim_end_matches(')'));
            let is_here = pages.iter().any(|page| page.ends_with(&file));
            assert!(is_here || name == "nsenter", "{page}: {reference}");
            number += 1;
        }
    }
    assert!(number > 100, "only {number} references found");
}

#[test]
fn man_has_nothing_to_say_of_the_pages() {
    need!("man", "mandoc");
    let share = share();
    let pages = files(&share.path().join("man"));
    assert!(pages.len() > 60, "{pages:?}");
    // As lintian does it.
    let man = Command::new("man")
        .args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"])
        .args(&pages)
        .env("MANWIDTH", "80")
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&man.stderr);
    assert!(man.status.success() && said.is_empty(), "{said}");
    let lint = ["-Tlint", "-Wwarning"];
    let mandoc = Command::new("mandoc")
        .args(lint)
        .args(&pages)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&mandoc.stdout);
    assert!(mandoc.status.success() && said.is_empty(), "{said}");
}
