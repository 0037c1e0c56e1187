//! Files that are no plugin for this vdens: each is refused in one line that says why, when it is
//! used, listed and checked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vdens_tests::{Lab, User, need, target};

/// A library made of C, in the place of a plugin for `x`.
fn compiled(lab: &Lab, source: &str, options: &[&str]) -> PathBuf {
    let plugin = lab.drop_in().join("libvdens_x.so");
    let file = lab.write("x.c", source);
    lab.command("gcc", ["-shared", "-fPIC", "-o"])
        .args([plugin.as_os_str(), file.as_ref()])
        .args(options)
        .ok();
    plugin
}

/// Every program that loads the plugin for `scheme` reports `words`, in one line.
#[track_caller]
fn is_refused(lab: &Lab, scheme: &str, words: &[&str]) {
    let vnl = format!("{scheme}://");
    lab.vdens([&vnl, "true"]).refused(words);
    lab.vde_plug(["null://", &vnl]).refused(words);
    is_reported(lab, scheme, words);
}

/// The listing and the checks say `words`, in one line, and go on.
#[track_caller]
fn is_reported(lab: &Lab, scheme: &str, words: &[&str]) {
    let listing = lab.vdectl(["plugin", "list"]).ok();
    let mark = format!("  {scheme} ");
    let line = listing.lines().find(|line| line.starts_with(&mark));
    let line = line.unwrap_or_else(|| panic!("{scheme}: {listing}"));
    // The file's name is the directory's line there.
    let says = |line: &str| {
        let said = words.iter().filter(|word| !word.starts_with("libvdens_"));
        said.clone().all(|word| line.contains(word))
    };
    assert!(line.contains("refused: ") && says(line), "{line}");
    assert!(listing.contains("\n  null "), "{listing}");
    let output = lab.vdectl(["plugin", "check", scheme]).run();
    assert_eq!(output.code(), Some(1), "{output:#?}");
    let failed = output
        .stdout
        .lines()
        .find(|line| line.starts_with("FAILED"));
    assert!(failed.is_some_and(says), "{words:?}: {output:#?}");
}

#[test]
fn what_is_no_library() {
    let lab = Lab::new();
    let plugin = lab.drop_in().join("libvdens_x.so");
    fs::write(&plugin, "not a library".repeat(9)).unwrap();
    is_refused(&lab, "x", &["libvdens_x.so", "invalid ELF header"]);
    fs::write(&plugin, "").unwrap();
    is_refused(&lab, "x", &["libvdens_x.so", "too short"]);
}

#[test]
fn a_library_without_root_module() {
    need!("gcc");
    let lab = Lab::new();
    compiled(&lab, "int nothing;", &[]);
    is_refused(&lab, "x", &["libvdens_x.so", "no vdens plugin"]);
    compiled(&lab, "const unsigned vdens_plugin_abi = 1;", &[]);
    is_refused(
        &lab,
        "x",
        &[
            "libvdens_x.so",
            "has no symbol vdens_plugin_v1 or vdens_plugin_c1",
        ],
    );
    let header = "const unsigned vdens_plugin_abi = 1; const char vdens_plugin_v1[4096];";
    compiled(&lab, header, &[]);
    is_refused(&lab, "x", &["libvdens_x.so", "incompatible abi_stable"]);
}

#[test]
fn another_layout() {
    let lab = Lab::new();
    lab.drop_plugin(&target().join("liblayout.so"), "x");
    let words = [
        "libvdens_x.so",
        "another revision of ABI 1",
        "build it again",
    ];
    is_refused(&lab, "x", &words);
    // The long report is for those who ask.
    let output = lab.vdens(["-vv", "x://", "true"]).run();
    assert!(output.stderr.contains("ModuleV1"), "{output:#?}");
}

#[test]
fn another_scheme() {
    let lab = Lab::new();
    lab.drop_plugin(&lab.bin().join("libvdens_ptp.so"), "x");
    let words = [
        "libvdens_x.so",
        "'ptp', not 'x'",
        "rename it to libvdens_ptp.so",
    ];
    is_refused(&lab, "x", &words);
}

#[test]
fn a_version_that_is_not_spoken() {
    need!("gcc");
    let lab = Lab::new();
    let newer = "const unsigned vdens_plugin_abi = 2; const char vdens_plugin_v2[64];";
    compiled(&lab, newer, &[]);
    let words = [
        "libvdens_x.so",
        "ABI version 2",
        "this vdens speaks version 1",
    ];
    is_refused(&lab, "x", &words);
}

/// A plugin that speaks version 2 and 1 is used with 1.
#[test]
fn a_newer_plugin_that_still_speaks_version_1() {
    need!("gcc");
    let lab = Lab::new();
    let drop_in = lab.drop_in();
    fs::copy(
        lab.bin().join("libvdens_null.so"),
        drop_in.join("libreal.so"),
    )
    .unwrap();
    let newer = "const unsigned vdens_plugin_abi = 2; const char vdens_plugin_v2[64];";
    let directory = format!("-L{}", drop_in.display());
    let link = ["-l:libreal.so", "-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN"];
    let options: Vec<&str> = [&[&*directory, "-Wl,--no-as-needed"][..], &link].concat();
    let plugin = compiled(&lab, newer, &options);
    fs::rename(plugin, drop_in.join("libvdens_null.so")).unwrap();
    let listing = lab.vdectl(["plugin", "list"]).ok();
    let used = listing.lines().find(|line| line.starts_with("  null "));
    assert!(
        used.is_some_and(|line| line.contains("ABI 1 (v1, c1)")),
        "{listing}"
    );
    lab.vdens(["-v", "null://", "true"]).ok();
}

#[test]
fn crashes_while_it_is_loaded() {
    need!("gcc");
    let lab = Lab::new();
    let at_load = |body: &str| {
        let source = format!(
            "#include <stdlib.h>\n#include <unistd.h>\n__attribute__((constructor)) void f(void) {{ {body} }}"
        );
        compiled(&lab, &source, &[]);
    };
    at_load("abort();");
    is_reported(&lab, "x", &["crashes while it is loaded (SIGABRT)"]);
    // vdens itself ends in good order.
    let output = lab.vdens(["x://", "true"]).run();
    assert_eq!(output.code(), Some(125), "{output:#?}");
    at_load("*(volatile int *)0 = 0;");
    is_reported(&lab, "x", &["crashes while it is loaded (SIGSEGV)"]);
    at_load("_exit(7);");
    is_reported(
        &lab,
        "x",
        &["ends the process while it is loaded (status 7)"],
    );
    at_load("for (;;) pause();");
    is_reported(&lab, "x", &["does not load within 5 s"]);
}

#[test]
fn panics_while_it_is_loaded() {
    let lab = Lab::new();
    let plugin = lab.drop_plugin(&target().join("libbroken.so"), "broken");
    let listing = || lab.vdectl(["plugin", "list"]);
    assert!(listing().ok().contains("another link with a fault [nests]"));
    let output = listing().env("VDENS_BROKEN", "panic").run();
    assert!(
        output
            .stdout
            .contains("crashes while it is loaded (SIGABRT)")
    );
    assert!(
        output
            .stderr
            .contains("the library panics while it is loaded")
    );
    fs::remove_file(plugin).unwrap();
}

#[test]
fn a_library_that_it_needs_is_missing() {
    need!("gcc");
    let lab = Lab::new();
    let needed = lab.path("libneeded.so");
    let source = lab.write("needed.c", "int needed(void) { return 1; }");
    lab.command("gcc", ["-shared", "-fPIC", "-o", &needed, &source])
        .ok();
    let directory = format!("-L{}", lab.dir().display());
    let uses = "int needed(void); int f(void) { return needed(); }";
    compiled(&lab, uses, &[&directory, "-lneeded"]);
    fs::remove_file(needed).unwrap();
    // The linker's own words.
    let words = ["libneeded.so: cannot open shared object file"];
    is_refused(&lab, "x", &words);
    // A symbol that no library has.
    compiled(&lab, uses, &[]);
    is_refused(&lab, "x", &["undefined symbol: needed"]);
}

#[test]
fn unreadable() {
    need!("root");
    let lab = Lab::new();
    let plugin = lab.drop_plugin(&lab.bin().join("libvdens_null.so"), "x");
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o000)).unwrap();
    is_refused(&lab, "x", &["libvdens_x.so", "Permission denied"]);
}

#[test]
fn others_may_write_it() {
    let lab = Lab::new();
    let plugin = lab.drop_plugin(&lab.bin().join("libvdens_null.so"), "x");
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o666)).unwrap();
    let words = ["libvdens_x.so", "can be written by others", "chmod go-w"];
    is_refused(&lab, "x", &words);
}

#[test]
fn somebody_else_owns_it() {
    need!("root");
    let lab = Lab::new();
    let plugin = lab.drop_plugin(&lab.bin().join("libvdens_null.so"), "x");
    let other = User::other();
    std::os::unix::fs::chown(&plugin, Some(other.uid), Some(other.gid)).unwrap();
    is_refused(&lab, "x", &["libvdens_x.so", "belongs to another user"]);
}

#[test]
fn made_for_another_architecture() {
    let lab = Lab::new();
    let plugin = lab.drop_plugin(&lab.bin().join("libvdens_null.so"), "x");
    let words = ["libvdens_x.so", "built for another architecture"];
    patch(&plugin, 18, &[0xf3, 0]);
    is_refused(&lab, "x", &words);
    // Of 32 bits.
    lab.drop_plugin(&lab.bin().join("libvdens_null.so"), "x");
    patch(&plugin, 4, &[1]);
    is_refused(&lab, "x", &words);
}

/// Changes bytes of a file: e_machine is at 18, the class at 4.
#[track_caller]
fn patch(file: &Path, at: usize, bytes: &[u8]) {
    let patched = fs::read(file).and_then(|mut contents| {
        contents[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(file, contents)
    });
    assert!(patched.is_ok(), "{}: {patched:?}", file.display());
}

#[test]
fn the_listing_says_what_shadows_what() {
    let lab = Lab::new();
    let first = lab.drop_plugin(&lab.bin().join("libvdens_null.so"), "null");
    let listing = lab.vdectl(["plugin", "list"]).ok();
    let shadowed = format!("(not used: {} comes first)", first.display());
    let lines: Vec<_> = listing
        .lines()
        .filter(|l| l.starts_with("  null "))
        .collect();
    assert_eq!(lines.len(), 2, "{listing}");
    assert!(
        !lines[0].contains("not used") && lines[1].ends_with(&shadowed),
        "{listing}"
    );
    assert!(lines[0].contains("[one-end, confined]"), "{listing}");
    // What is refused is in the way all the same.
    fs::write(&first, "no library").unwrap();
    let listing = lab.vdectl(["plugin", "list"]).ok();
    let lines: Vec<_> = listing
        .lines()
        .filter(|l| l.starts_with("  null "))
        .collect();
    assert!(
        lines[0].contains("refused: ") && lines[1].ends_with(&shadowed),
        "{listing}"
    );
}

#[test]
fn the_listing_is_there_for_programs() {
    need!("python3");
    let lab = Lab::new();
    let first = lab.drop_plugin(&lab.bin().join("libvdens_null.so"), "null");
    fs::write(lab.drop_in().join("libvdens_x.so"), "no library").unwrap();
    let json = lab.write("list.json", lab.vdectl(["plugin", "list", "--json"]).ok());
    let script = "import json, sys
dirs = json.load(open(sys.argv[1]))
for d in dirs:
    for p in d['plugins']:
        assert p['path'].startswith(d['path']), p
        what = 'refused ' + p['refused']['stage'] if 'refused' in p else 'ABI %d (%s)' % (p['plugin']['abi'], ','.join(p['plugin']['doors']))
        print(p['scheme'], what, p['shadowed_by'] or '-', ','.join(p['capability_names']))";
    let said = lab.command("python3", ["-c", script, &json]).ok();
    let shadowed = format!("null ABI 1 (v1,c1) {} one-end,confined", first.display());
    for line in [
        "null ABI 1 (v1,c1) - one-end,confined",
        "x refused library - ",
        &shadowed,
        "ptp ABI 1 (v1,c1) - super-frames,panel,confined",
    ] {
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
}
