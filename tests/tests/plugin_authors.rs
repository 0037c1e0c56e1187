//! Third parties: from nothing to a working transport, and plugins that were built otherwise than
//! the host.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdens_tests::{
    Lab, PATIENCE, SECOND_RUSTC, User, build, children, copy_programs, need, target, wait_until,
};

use crate::{c_door, docs};

/// How long a build of a plugin and all that it needs may take on a busy machine.
const BUILD: Duration = Duration::from_secs(900);

/// Where Cargo has its profiles.
fn profiles() -> PathBuf {
    target().with_file_name("")
}

/// Where what the second compiler builds stays for the next time.
fn second() -> PathBuf {
    target().with_file_name("e2e-second")
}

/// Both ends of a link of `vnl` are as they should be, and two namespaces talk through it. The
/// programs' names end in `suffix`.
#[track_caller]
pub(crate) fn works(lab: &Lab, suffix: &str, scheme: &str, vnl: &str) {
    let program = |name: &str| lab.bin().join(format!("{name}{suffix}"));
    let vdens = |words: &[&str]| lab.command(program("vdens"), words);
    let check = lab.command(program("vdectl"), ["plugin", "check", scheme, vnl]);
    let output = check.spawn().wait(Duration::from_secs(120));
    assert_eq!(output.code(), Some(0), "{output:#?}");
    let first = vdens(&["--addr", "10.0.0.1/24", vnl, "sleep", "60"]).spawn();
    let second = vdens(&["--addr", "10.0.0.2/24", vnl, "ping", "-c", "1", "-w", "50"]);
    let output = second.args(["10.0.0.1"]).run();
    assert!(output.status.success(), "{output:#?} {}", first.stderr());
}

/// The tutorial's commands, one by one, as a user types them in an empty directory.
#[test]
fn the_tutorial_leads_to_a_ping() {
    need!("ping", "gcc", "unshare", "setpriv");
    let lab = Lab::new();
    lab.expect("mycable");
    let blocks = docs::blocks(docs::TUTORIAL);
    let blocks = blocks.iter().filter(|block| block.language == "sh");
    let script: Vec<&str> = blocks.map(|block| &*block.text).collect();
    assert!(script.len() >= 5, "{script:?}");
    // The short form for those who read nothing else.
    let readme = docs::blocks("README.md").into_iter();
    let mut short = readme.filter(|block| block.text.starts_with("$ vdectl plugin new"));
    let short = short.next().unwrap().text;
    for line in short.lines() {
        let command = line.trim_start_matches("$ ");
        assert!(
            script.concat().lines().any(|line| line == command),
            "{command}"
        );
    }
    let end = "trap 'kill $(pgrep -P $$) 2>/dev/null || :; wait' EXIT";
    let script = lab.sh(&format!("{end}\n{}", script.join("\n")));
    let output = script.with_rust(&lab).spawn().wait(BUILD);
    assert!(output.status.success(), "{output:#?}");
    let built = output.stderr.split("Finished").next().unwrap();
    assert!(built.matches("Compiling").count() <= 15, "{built}");
    let said: Vec<_> = output.stdout.split_whitespace().collect();
    let said = said.join(" ");
    for words in [
        "mycable has a transport for mycable://",
        "ok batches",
        "0 failed",
        "it_passes_the_conformance_checks ... ok",
        "mycable 0.1.0 ABI 1 (c1) a cable of UDP datagrams",
        "bytes from 10.0.0.1",
    ] {
        assert!(said.contains(words), "{words}: {output:#?}");
    }
    // An author meets the kit, and nothing of what it is made of.
    let source = |name: &str| fs::read_to_string(lab.dir().join("mycable").join(name)).unwrap();
    for name in [
        "src/lib.rs",
        "tests/end_to_end.rs",
        "Cargo.toml",
        "README.md",
    ] {
        for word in ["abi_stable", "unsafe", "template", "workspace ="] {
            assert!(!source(name).contains(word), "{name}: {word}");
        }
    }
    let code = source("src/lib.rs");
    let code = code.lines().map(str::trim);
    let code = code.filter(|line| !line.is_empty() && !line.starts_with("//"));
    assert!(code.count() < 60);
    assert!(source("Cargo.toml").contains("\n[workspace]\n"));
}

#[test]
fn a_scaffold_overwrites_nothing_and_says_what_is_wrong() {
    let lab = Lab::new();
    let full = lab.mkdir("full");
    let precious = lab.write("full/README.md", "precious");
    let new = |words: &[&str]| lab.vdectl(["plugin", "new"]).args(words);
    new(&[&full]).refused(&["full", "not empty"]);
    assert_eq!(fs::read_to_string(precious).unwrap(), "precious");
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
    for bad in ["my-cable", "/", "Cable", "a b"] {
        new(&[bad]).refused(&["can be no scheme", "a-z"]);
    }
    new(&["x", "--api", "/nowhere"]).refused(&["--api /nowhere", "plugin-api"]);
    new(&["/nowhere/x"]).refused(&["cannot make /nowhere/x: "]);
    lab.vdectl(["plugin", "list", "--api", "1.0"])
        .refused(&["--api"]);
    // A version, into a directory that is there and empty.
    lab.mkdir("cable2");
    let said = new(&["cable2", "--api", "1.2"]).ok();
    assert!(said.contains("vdens-plugin-kit = \"1.2\""), "{said}");
    let manifest = fs::read_to_string(lab.path("cable2/Cargo.toml")).unwrap();
    assert!(
        manifest.contains("\nvdens-plugin-kit = \"1.2\"\n"),
        "{manifest}"
    );
    // A scheme that is served already is worth a word.
    lab.expect("ptp");
    let output = new(&["ptp", "--api", "1.2"]).run();
    assert!(
        output.status.success() && output.stderr.contains("libvdens_ptp.so"),
        "{output:#?}"
    );
}

/// A file in the user's directory for plugins is all it takes.
#[test]
fn a_plugin_is_dropped_in() {
    need!("ping");
    let lab = Lab::new();
    lab.vdens(["template://31300", "true"])
        .refused(&["libvdens_template.so"]);
    lab.drop_plugin(&target().join("libtemplate.so"), "template");
    works(&lab, "", "template", "template://31300");
}

#[test]
fn a_plugin_of_another_toolchain_works() {
    need!("ping");
    let lab = Lab::new();
    let target = second();
    let crates = ["-p", "vdens-plugin-template", "-p", "vdens-plugin-ptp"];
    build(Some(SECOND_RUSTC), "Cargo.toml", &target, &crates);
    for (scheme, library, vnl) in [
        ("template", "libtemplate.so", "template://31310"),
        ("ptp", "libvdens_ptp.so", &*lab.vnl("ptp", "p")),
    ] {
        let plugin = target.join("debug").join(library);
        lab.drop_plugin(&plugin, scheme);
        works(&lab, "", scheme, vnl);
    }
}

/// A debug plugin in a host with optimizations, and the reverse.
#[test]
fn a_plugin_of_another_profile_works() {
    need!("gcc", "g++", "ping");
    let lab = Lab::new();
    let (other, options): (_, &[&str]) = match target().ends_with("debug") {
        true => ("checks", &["--profile", "checks"]),
        false => ("debug", &[]),
    };
    let crates = ["-p", "vdens", "-p", "vdens-plugin-template"];
    let root = profiles();
    build(None, "Cargo.toml", &root, &[&crates, options].concat());
    let built = |profile: &str, name: &str| root.join(profile).join(name);
    // Its plugin in this host.
    lab.drop_plugin(&built(other, "libtemplate.so"), "template");
    works(&lab, "", "template", "template://31320");
    // This plugin in its host.
    lab.drop_plugin(&target().join("libtemplate.so"), "template");
    for program in ["vdens", "vdectl"] {
        let copy = lab.bin().join(format!("{program}-of-another-profile"));
        copy_programs(&[built(other, program)], &copy);
    }
    works(&lab, "-of-another-profile", "template", "template://31330");
    // By the door of C alone, and from C.
    without_v1(&lab.drop_in().join("libvdens_template.so"));
    works(&lab, "-of-another-profile", "template", "template://31330");
    c_door::compile_template(&lab);
    works(&lab, "-of-another-profile", "template", "template://31330");
    // From C++, and by either door as it was frozen.
    let nested = |scheme: &str| {
        let vnl = format!("{scheme}://{{{}}}", lab.vnl("ptp", "p"));
        works(&lab, "-of-another-profile", scheme, &vnl);
    };
    c_door::compile_example(&lab);
    nested("count");
    c_door::compile_frozen(&lab);
    nested("frozen");
    build(None, "tests/frozen-v1/Cargo.toml", &root, &[]);
    lab.drop_plugin(&root.join("debug/libfrozen.so"), "frozen");
    nested("frozen");
}

/// Takes the door v1 from a plugin's file.
pub(crate) fn without_v1(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let symbol = b"vdens_plugin_v1";
    let at = bytes.windows(symbol.len()).position(|part| part == symbol);
    bytes[at.unwrap()] = b'x';
    fs::write(file, bytes).unwrap();
}

/// The crates that authors use.
const CRATES: [&str; 3] = ["vdens-plugin-c", "vdens-plugin-api", "vdens-plugin-kit"];

/// These crates as they would be published, by their names and versions: Cargo builds them from
/// what it would upload, and needs nothing of this workspace.
static PUBLISHED: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = target().with_file_name("e2e-package");
    let names = CRATES.iter().flat_map(|name| ["-p", name]);
    let options = ["--locked", "--offline", "--allow-dirty"];
    vdens_tests::cargo(
        "package",
        &target,
        &names.chain(options).collect::<Vec<_>>(),
    );
    target.join("package")
});

/// A crate's name and version.
fn published(name: &str) -> String {
    format!("{name}-{}", vdens_plugin_kit::VERSION)
}

#[test]
fn the_crates_for_authors_can_be_published() {
    for name in CRATES {
        let manifest = PUBLISHED.join(published(name)).join("Cargo.toml");
        let text = fs::read_to_string(manifest).unwrap();
        for line in [
            "license = \"MIT OR Apache-2.0\"",
            "readme = \"README.md\"",
            "rust-version = \"1.85\"",
        ] {
            assert!(text.contains(line), "{name}: {line}: {text}");
        }
        assert!(
            !text.contains("path = \"/") && !text.contains("publish = false"),
            "{text}"
        );
    }
}

/// A plugin that `vdectl`, an installed one, writes without a source tree, built of the published
/// crates. They come from files in the place of the registry. The crate's directory is that of the
/// scheme's name in the lab; the result is the plugin's file.
pub(crate) fn plugin_of_published_crates(lab: &Lab, vdectl: &Path, scheme: &str) -> PathBuf {
    let (directory, crates) = (lab.dir().join(scheme), lab.mkdir("crates"));
    lab.expect(scheme);
    // Without a source tree it writes this version, as tests/packages.sh sees.
    let api = ["--api", vdens_plugin_kit::VERSION];
    let new = lab.command(vdectl, ["plugin", "new", scheme]).args(api);
    new.ok();
    let manifest = fs::read_to_string(directory.join("Cargo.toml")).unwrap();
    assert!(!manifest.contains("path ="), "{manifest}");
    let mut build =
        format!("cd {crates}; for file in *.crate; do tar -xf $file; done; cd ../{scheme}\n");
    build += "cargo build --quiet --release";
    for name in CRATES {
        let file = format!("{}.crate", published(name));
        fs::copy(PUBLISHED.join(&file), Path::new(&crates).join(&file)).unwrap();
        let unpacked = Path::new(&crates).join(published(name));
        build += &format!(
            " --config 'patch.crates-io.{name}.path = \"{}\"'",
            unpacked.display()
        );
    }
    let output = lab.sh(&build).with_rust(lab).spawn().wait(BUILD);
    assert!(output.status.success(), "{output:#?}");
    let file = format!("libvdens_{scheme}.so");
    directory.join("target/release").join(file)
}

/// What the crates for authors have promised is there and unchanged.
#[test]
fn the_public_interface_is_kept() {
    need!("python3");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/public-api");
    let mut compare = Command::new(script);
    let output = compare.env("CARGO_TARGET_DIR", profiles()).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains(" 0 broken"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A plugin on ABI 1 as it was frozen, built by two compilers: it loads, carries traffic, and uses
/// every service of its host but the panel.
#[test]
fn a_plugin_of_the_frozen_version_1_works() {
    need!("ping");
    for (rustc, target) in [(None, profiles()), (Some(SECOND_RUSTC), second())] {
        build(rustc, "tests/frozen-v1/Cargo.toml", &target, &[]);
        let lab = Lab::new();
        lab.drop_plugin(&target.join("debug/libfrozen.so"), "frozen");
        frozen_works(&lab);
    }
}

/// The plugin `frozen` in the lab carries traffic and uses its host.
#[track_caller]
pub(crate) fn frozen_works(lab: &Lab) {
    let vnl = format!("frozen://{{{}}}", lab.vnl("ptp", "p"));
    works(lab, "", "frozen", &vnl);
    // A worker's successor gets the descriptor that the worker stored.
    let session = lab.vdens(["-v", &vnl, "sh"]).session();
    session.ok(":");
    for child in children(session.proc().pid()) {
        let command = fs::read(format!("/proc/{child}/cmdline")).unwrap();
        if !command.starts_with(b"sh\0") {
            kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
        }
    }
    wait_until("another worker", PATIENCE, || {
        session
            .proc()
            .stderr()
            .contains("goes on where another stopped")
    });
    drop(session);
    // Its log and its errors reach the user.
    let vdens = lab.vdens(["-v", "--mtu", "1400", &vnl, "true"]).run();
    assert!(
        vdens.stderr.contains("frozen: vde0 has an MTU of 1400"),
        "{vdens:#?}"
    );
    lab.vdens(["frozen://", "true"])
        .refused(&["no VNL in braces", "write frozen://{VNL}"]);
    lab.vdens(["frozen://x]", "true"])
        .refused(&["no VNL in braces"]);
    lab.vdens(["frozen://{nosuch://}", "true"])
        .refused(&["libvdens_nosuch.so"]);
    // It has no limit of nested VNLs, but its host has.
    let nested = |levels: usize| {
        let (open, close) = ("frozen://{".repeat(levels), "}".repeat(levels));
        lab.vdens([&format!("{open}null://{close}"), "true"])
    };
    nested(8).ok();
    nested(9).refused(&["more than 8 VNLs are nested"]);
}

/// A host finds a plugin by these symbols, and needs no other.
#[test]
fn plugins_export_the_symbols_of_abi_1_alone() {
    need!("nm");
    let is_plugin = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("libvdens_") && name.ends_with(".so")
    };
    let files = fs::read_dir(target()).unwrap();
    let mut plugins: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    plugins.retain(is_plugin);
    assert!(plugins.len() > 10, "{plugins:?}");
    for plugin in plugins {
        let nm = Command::new("nm")
            .args(["-D", "--defined-only", "--format=just-symbols"])
            .arg(&plugin)
            .output()
            .unwrap();
        let symbols = String::from_utf8(nm.stdout).unwrap();
        // Not every plugin says what it needs.
        let symbols = symbols.replace("vdens_plugin_needs\n", "");
        assert_eq!(
            symbols, "vdens_plugin_abi\nvdens_plugin_c1\nvdens_plugin_panel\nvdens_plugin_v1\n",
            "{plugin:?}"
        );
    }
}

/// A hostile name is refused, and so is a place that another user controls. Existing files stay as
/// they are.
#[test]
fn a_scaffold_has_no_hostile_name() {
    need!("root");
    let lab = Lab::new();
    let new = |words: &[&OsStr]| lab.vdectl(["plugin", "new"]).args(words);
    let long = "a".repeat(52);
    let names: &[&[u8]] = &[
        b".",
        b"..",
        b"../..",
        b"x/..",
        b"a\"b",
        b"a'b",
        b"a\nb = 1",
        b"{}",
        b"{scheme}",
        b"x]",
        b"x.so",
        b"x/../X",
        b"\xff\xfe",
        b"\x1b[31mred",
        "\u{e9}".as_bytes(),
        long.as_bytes(),
    ];
    for name in names {
        new(&[OsStr::from_bytes(name)]).refused(&["can be no scheme"]);
    }
    let api = |version: &str| new(&["y".as_ref(), "--api".as_ref(), version.as_ref()]);
    for version in ["1\"\n[lib]", "1\n[lib]", "1', path = '/x", "1\u{1b}[31m"] {
        api(version).refused(&["--api", "nor is it a version"]);
    }
    // The place is taken.
    lab.write("file", "");
    lab.command("mkfifo", ["fifo"]).ok();
    symlink("/etc", lab.dir().join("link")).unwrap();
    symlink("nowhere", lab.dir().join("dangling")).unwrap();
    for (name, words) in [
        ("file", "File exists"),
        ("fifo", "File exists"),
        ("link", "belongs|not empty"),
        ("dangling", "File exists"),
    ] {
        let output = new(&[name.as_ref()]).refused(&[name]);
        assert!(
            words.split('|').any(|words| output.stderr.contains(words)),
            "{output:?}"
        );
        lab.expect(name);
    }
    // Another user who can write there could change what the author compiles.
    let theirs = lab.mkdir("theirs");
    chown(&theirs, Some(User::other().uid), None).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).unwrap();
    new(&["theirs".as_ref()]).refused(&["theirs", "belongs to another user", "does not exist"]);
    let open = lab.mkdir("open");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    new(&["open".as_ref()]).refused(&["open", "can be written by others", "does not exist"]);
    for empty in [theirs, open] {
        assert_eq!(fs::read_dir(empty).unwrap().count(), 0);
    }
    // Only the last name of a path becomes the scheme.
    lab.mkdir("deep");
    new(&["deep/../fn".as_ref()]).ok();
    lab.expect("fn");
    assert!(
        fs::read_to_string(lab.path("fn/src/lib.rs"))
            .unwrap()
            .contains("scheme: \"fn\"")
    );
}
