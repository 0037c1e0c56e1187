//! Installations: by host/packaging/install, and by the Debian packages in a bare Debian
//! (tests/debian.sh), where an ordinary user runs README's scripts.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use vdens_tests::{Lab, PROGRAMS, installed, need, skip, target};

use crate::docs::blocks;
use crate::plugin_authors;

/// How long a script of packaging may take, for `timeout`: a tree of Debian's is downloaded once.
const SECONDS: &str = "900";

/// The exit status of tests/debian.sh without a tree.
const NO_TREE: i32 = 75;

fn repository() -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).unwrap()
}

/// A program of the repository.
fn script(name: &str) -> Command {
    let mut command = Command::new("timeout");
    command.arg(SECONDS).arg(repository().join(name));
    // Where this test was built.
    command.env("CARGO_TARGET_DIR", target().parent().unwrap());
    command
}

fn profile() -> String {
    let profile = target();
    profile.file_name().unwrap().to_str().unwrap().to_owned()
}

#[track_caller]
fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
    text(&output)
}

/// All that a command wrote.
fn text(output: &Output) -> String {
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out));
    format!("{}\n{stdout}\n{stderr}", output.status)
}

/// Installs this build into a directory; its `lib/vdens` there.
pub(crate) fn install_into(directory: &Path) -> PathBuf {
    let mut install = script("host/packaging/install");
    install.arg(format!("DESTDIR={}", directory.display()));
    succeed_with(install.args(["PREFIX=/usr".to_owned(), format!("PROFILE={}", profile())]));
    directory.join("usr/lib/vdens")
}

#[track_caller]
fn succeed_with(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
}

/// The Debian packages of this build.
static PACKAGES: LazyLock<PathBuf> = LazyLock::new(|| {
    let packages = target().join("packages");
    let _ = fs::remove_dir_all(&packages);
    let mut deb = script("host/packaging/deb");
    deb.args(["--no-build", "--profile", &profile(), "--output"]);
    // What a test unpacks at once need not be small.
    deb.env("DPKG_DEB_COMPRESSOR_TYPE", "gzip");
    deb.env("DPKG_DEB_COMPRESSOR_LEVEL", "1");
    succeed_with(deb.arg(&packages));
    packages
});

/// The files in a directory of packages.
fn packages() -> Vec<PathBuf> {
    let files = fs::read_dir(&*PACKAGES).unwrap().flatten();
    files.map(|file| file.path()).collect()
}

/// The paths below a directory, which is left out of their names.
fn tree(directory: &Path) -> Vec<String> {
    let mut found = Command::new("find");
    let found = found
        .arg(directory)
        .args(["-mindepth", "1", "-printf", "%P\n"]);
    let found = String::from_utf8(found.output().unwrap().stdout).unwrap();
    let mut found: Vec<String> = found.lines().map(str::to_owned).collect();
    found.sort();
    found
}

/// An installation works where it is, replaces the one before it, and is removed without a trace.
#[test]
fn installed_and_uninstalled() {
    let lab = Lab::new();
    let prefix = lab.aside("prefix");
    fs::create_dir_all(prefix.join("share/man")).unwrap();
    fs::write(prefix.join("share/other"), "").unwrap();
    let own_mode = fs::Permissions::from_mode(0o751);
    fs::set_permissions(prefix.join("share"), own_mode.clone()).unwrap();
    let before = tree(&prefix);
    let argument = format!("PREFIX={}", prefix.display());
    let install = || {
        let mut install = script("host/packaging/install");
        install.args([argument.clone(), format!("PROFILE={}", profile())]);
        install
    };
    let uninstall = || {
        let mut uninstall = script("host/packaging/uninstall");
        uninstall.arg(&argument);
        uninstall
    };

    // What fails changes nothing.
    for wrong in [["PROFILE=none"], ["PREFIX=relative"], ["--nonsense"]] {
        let output = install().args(wrong).output().unwrap();
        let said = text(&output);
        assert!(
            !output.status.success() && said.contains("host/packaging/install: "),
            "{said}"
        );
    }
    let output = uninstall().output().unwrap();
    assert!(text(&output).contains("there is no"), "{}", text(&output));
    assert_eq!(tree(&prefix), before);

    succeed(install());
    let now = fs::metadata(prefix.join("share")).unwrap().permissions();
    assert_eq!(now.mode() & 0o777, own_mode.mode());
    for program in PROGRAMS {
        let version = lab
            .command(prefix.join("bin").join(program), ["--version"])
            .ok();
        assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    }
    // Where PATH finds the programs, man finds their pages.
    if installed("man") {
        let path = format!("{}:/usr/bin", prefix.join("lib/vdens/bin").display());
        let found = lab.command("man", ["-w", "vdens"]).env("PATH", path).ok();
        assert!(found.starts_with(prefix.to_str().unwrap()), "{found}");
        assert!(prefix.join("share/man/man7/vdens-vnl.7.gz").exists());
    }
    // Its plugins are its own, and nat:// finds its program.
    let ours = prefix.join("lib/vdens/plugins");
    let vdens = prefix.join("bin/vdens");
    let list = lab
        .command(prefix.join("bin/vdectl"), ["plugin", "list"])
        .ok();
    let listed = format!("{}\n  cmd ", ours.display());
    assert!(list.contains(&listed), "{list}");
    lab.command(&vdens, ["ptp://cable", "true"]).ok();
    lab.command(&vdens, ["--auto", "nat://", "true"]).ok();

    // A program may run meanwhile. A file that this version lacks goes, another's plugin stays.
    let running = lab.command(&vdens, ["null://", "sleep", "60"]).spawn();
    let old = prefix.join("lib/vdens/plugins/libvdens_old.so");
    fs::write(&old, "").unwrap();
    let manifest = prefix.join("lib/vdens/manifest");
    let list = fs::read_to_string(&manifest).unwrap() + &format!("{}\n", old.display());
    fs::write(&manifest, list).unwrap();
    let theirs = ours.join("libvdens_theirs.so");
    fs::write(&theirs, "").unwrap();
    succeed(install());
    assert!(!old.exists() && theirs.exists());
    lab.command(&vdens, ["null://", "true"]).ok();
    drop(running);

    succeed(uninstall());
    fs::remove_file(theirs).unwrap();
    let left = ["lib", "lib/vdens", "lib/vdens/plugins"].map(str::to_owned);
    let mut expected = [before, left.to_vec()].concat();
    expected.sort();
    assert_eq!(tree(&prefix), expected);
}

/// Without the tree of sources, of a package's files: the paths in them are those it is used at.
#[test]
fn an_installation_for_a_package() {
    let lab = Lab::new();
    let root = lab.aside("root");
    let library = install_into(&root);
    for file in tree(&root) {
        let path = root.join(&file);
        let is_text = path.is_file() && fs::read_to_string(&path).is_ok();
        let text = if is_text {
            fs::read_to_string(&path).unwrap()
        } else {
            String::new()
        };
        let page = file.contains("share/doc");
        let names_itself = text.contains(root.to_str().unwrap());
        let is_unfilled = text.contains('@') && text.contains("@LIBRARY@");
        assert!(page || !names_itself && !is_unfilled, "{file}");
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        assert!(path.is_symlink() || mode & 0o022 == 0, "{file}: {mode:o}");
    }
    assert!(!library.join("manifest").exists());
    for program in PROGRAMS {
        let link = fs::read_link(root.join("usr/bin").join(program)).unwrap();
        assert_eq!(link, Path::new("../lib/vdens/bin").join(program));
    }
}

/// The units are ones that systemd accepts, and one with a mistake is not.
#[test]
fn units_are_valid() {
    need!("systemd-analyze");
    let lab = Lab::new();
    let root = lab.aside("root");
    let library = install_into(&root);
    let units = lab.mkdir("units");
    let runtime = lab.mkdir("runtime");
    let verify = |name: &str| {
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["--user", "verify", "--man=no", "--recursive-errors=yes"]);
        analyze.arg(Path::new(&units).join(name));
        let output = analyze.env("XDG_RUNTIME_DIR", &runtime).output().unwrap();
        (
            output.status.success() && output.stderr.is_empty(),
            text(&output),
        )
    };
    let directory = root.join("usr/lib/systemd/user");
    let names: Vec<String> = tree(&directory);
    assert_eq!(
        names,
        [
            "vdens-lab@.service",
            "vdens-switch@.service",
            "vdens-uplink@.service"
        ]
    );
    for name in &names {
        let unit = fs::read_to_string(directory.join(name)).unwrap();
        // The program that a unit starts must be there.
        let unit = unit.replace("/usr/lib/vdens", library.to_str().unwrap());
        fs::write(Path::new(&units).join(name), unit).unwrap();
    }
    for name in &names {
        let (is_valid, said) = verify(&name.replace('@', "@lan"));
        assert!(is_valid, "{name}: {said}");
        let file = Path::new(&units).join(name);
        let unit = fs::read_to_string(&file).unwrap();
        fs::write(&file, unit.replace("ExecStart=", "ExecStart=/nowhere")).unwrap();
        let (is_valid, said) = verify(&name.replace('@', "@lan"));
        assert!(!is_valid, "{name}: {said}");
        fs::write(&file, unit).unwrap();
    }
}

/// A user's service manager runs a switch, an uplink and a lab by the units.
#[test]
fn units_work() {
    need!("root", "/usr/lib/systemd/systemd", "systemctl");
    let lab = Lab::new();
    let root = lab.aside("root");
    let library = install_into(&root);
    let units = root.join("usr/lib/systemd/user");
    for unit in fs::read_dir(&units).unwrap().flatten() {
        let text = fs::read_to_string(unit.path()).unwrap();
        let text = text.replace("/usr/lib/vdens", library.to_str().unwrap());
        fs::write(unit.path(), text).unwrap();
    }
    let place = lab.mkdir("place");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/packages_units.sh");
    let mut command = Command::new("unshare");
    command.args(["--mount", "timeout", "240", "bash", "-e", script]);
    command.env("LIBRARY", &library).env("UNITS", &units);
    command.env("PLACE", place).env("ID", lab.id());
    command
        .env("RUN_AS", &lab.user().name)
        .env("VDENS_LAB", lab.id());
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(
        output.status.success() && said.contains("units: done"),
        "{said}"
    );
}

/// lintian knows Debian's rules.
#[test]
fn packages_without_faults() {
    need!("lintian", "dpkg-shlibdeps");
    let mut lintian = Command::new("timeout");
    lintian.args([
        SECONDS,
        "lintian",
        "--allow-root",
        "--fail-on",
        "error,warning",
    ]);
    succeed_with(lintian.args(packages()));
}

/// Building the same again gives the same bytes.
#[test]
fn packages_are_reproducible() {
    need!("dpkg-shlibdeps");
    let lab = Lab::new();
    let again = lab.mkdir("again");
    let mut deb = script("host/packaging/deb");
    deb.args(["--no-build", "--profile", &profile(), "--output", &again]);
    deb.env("DPKG_DEB_COMPRESSOR_TYPE", "gzip");
    succeed_with(deb.env("DPKG_DEB_COMPRESSOR_LEVEL", "1"));
    for package in packages() {
        let other = Path::new(&again).join(package.file_name().unwrap());
        assert!(
            fs::read(&package).unwrap() == fs::read(other).unwrap(),
            "{package:?}"
        );
    }
}

/// Arch's packages have the files of Debian's.
#[test]
fn an_arch_package_has_the_same_files() {
    let lab = Lab::new();
    let image = lab.aside("image");
    let recipe = repository().join("host/packaging/arch/PKGBUILD");
    for package in ["vdens-rs", "vdens-rs-names"] {
        let mut make = Command::new("bash");
        make.arg("-ec")
            .arg(format!(". {}; package_{package}", recipe.display()));
        make.env("startdir", recipe.parent().unwrap());
        make.env("pkgdir", &image).env("PROFILE", profile());
        make.env("CARGO_TARGET_DIR", target().parent().unwrap());
        succeed_with(&mut make);
    }
    let whole = lab.aside("whole");
    install_into(&whole);
    let is_program = |path: &String| !path.contains("/share/");
    let files = |tree: Vec<String>| tree.into_iter().filter(is_program).collect::<Vec<_>>();
    assert_eq!(files(tree(&image)), files(tree(&whole)));
}

/// The bill of materials is JSON, and lists crates as Cargo.lock has them: all that the programs
/// depend on, and none that only their build or the tests need.
#[test]
fn a_bill_of_materials_lists_the_crates() {
    let lab = Lab::new();
    let root = lab.aside("root");
    install_into(&root);
    let text = fs::read(root.join("usr/share/doc/vdens-rs/sbom.cdx.json")).unwrap();
    let bill: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(bill["bomFormat"], "CycloneDX");
    let vdens = &bill["metadata"]["component"];
    assert_eq!(vdens["version"], env!("CARGO_PKG_VERSION"));

    let parse = |file: &str| -> toml::Table {
        let text = fs::read_to_string(repository().join(file)).unwrap();
        text.parse().unwrap()
    };
    let lock = parse("Cargo.lock");
    let lock = lock["package"].as_array().unwrap();
    let mut listed = Vec::new();
    for component in bill["components"].as_array().unwrap() {
        let field = |name: &str| component[name].as_str().unwrap();
        let locked = lock.iter().find(|one| {
            let is = |key: &str| one[key].as_str() == Some(field(key));
            is("name") && is("version")
        });
        let locked = locked.unwrap_or_else(|| panic!("not in Cargo.lock: {component}"));
        let checksum = component["hashes"][0]["content"].as_str();
        assert_eq!(locked["checksum"].as_str(), checksum, "{component}");
        let licence = component["licenses"][0]["expression"].as_str().unwrap();
        assert!(!licence.is_empty() && !licence.contains('/'), "{component}");
        listed.push(field("name"));
    }
    let host = parse("host/Cargo.toml");
    for name in host["dependencies"].as_table().unwrap().keys() {
        let is_there = name.starts_with("vdens") || listed.contains(&&**name);
        assert!(is_there, "{name} is missing");
    }
    for name in ["clap_mangen", "libfuzzer-sys", "serde_derive"] {
        assert!(!listed.contains(&name), "{name}");
    }
}

/// cargo-deny finds nothing against host/packaging/deny.toml. It looks for known vulnerabilities
/// only where somebody has fetched their list.
#[test]
fn cargo_deny_finds_nothing() {
    let deny = || {
        let mut deny = Command::new(env!("CARGO"));
        deny.current_dir(repository()).arg("deny");
        deny
    };
    let version = deny().arg("--version").output().unwrap();
    if !version.status.success() {
        return skip("cargo-deny is not installed");
    }
    let mut check = deny();
    check.args([
        "--offline",
        "--locked",
        "--config",
        "host/packaging/deny.toml",
    ]);
    succeed_with(check.args(["check", "licenses", "bans", "sources"]));
}

/// The licence of each crate in the programs is one that host/packaging/deny.toml allows.
#[test]
fn licences_are_allowed() {
    let rules = repository().join("host/packaging/deny.toml");
    let rules: toml::Table = fs::read_to_string(rules).unwrap().parse().unwrap();
    let words = |value: &toml::Value| {
        let words = value.as_array().unwrap().iter();
        words
            .map(|word| word.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let allowed = words(&rules["licenses"]["allow"]);
    let exceptions = rules["licenses"]["exceptions"].as_array().unwrap();
    let is_excepted = |name: &str, licence: &str| {
        let mut exceptions = exceptions.iter();
        exceptions.any(|one| {
            one["crate"].as_str() == Some(name)
                && words(&one["allow"]).contains(&licence.to_owned())
        })
    };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "tree",
        "--offline",
        "--locked",
        "--workspace",
        "--prefix",
        "none",
    ]);
    cargo.args(["--edges", "normal,build", "--format", "{p}|{l}|"]);
    let output = cargo.current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let list = String::from_utf8(output.stdout).unwrap();
    let mut number = 0;
    for line in list.lines().filter(|line| !line.is_empty()) {
        let mut parts = line.split('|');
        let name = parts.next().unwrap().split(' ').next().unwrap();
        let licence = parts.next().unwrap().replace('/', " OR ");
        let all = |one: &str| {
            let mut parts = one
                .split(" AND ")
                .map(|part| part.trim_matches(['(', ')', ' ']));
            parts.all(|part| allowed.iter().any(|word| word == part) || is_excepted(name, part))
        };
        // An AND binds more closely than an OR that is not in brackets.
        let any = |part: &str| part.trim_matches(['(', ')']).split(" OR ").any(all);
        let is_allowed = match licence.contains(") AND ") {
            true => licence.split(" AND ").all(any),
            false => licence.split(" OR ").any(all),
        };
        assert!(is_allowed, "{name}: {licence}");
        number += 1;
    }
    assert!(number > 50, "only {number} crates found");
}

/// The package vdens-rs unpacked into the lab.
fn unpacked(lab: &Lab) -> PathBuf {
    let root = lab.aside("package");
    let packages = packages().into_iter();
    let mut packages = packages.filter(|file| !file.to_str().unwrap().contains("names"));
    let mut unpack = Command::new("dpkg-deb");
    succeed_with(unpack.arg("-x").arg(packages.next().unwrap()).arg(&root));
    root
}

/// A crate that the package's vdectl writes, `mycrate`, and the plugin that was built of it.
static CRATE: LazyLock<PathBuf> = LazyLock::new(|| {
    let lab = Lab::new();
    let vdectl = unpacked(&lab).join("usr/lib/vdens/bin/vdectl");
    let plugin = plugin_authors::plugin_of_published_crates(&lab, &vdectl, "mycrate");
    let kept = target().join("packages-crate");
    let _ = fs::remove_dir_all(&kept);
    fs::create_dir_all(&kept).unwrap();
    fs::copy(plugin, kept.join("libvdens_mycrate.so")).unwrap();
    let source = lab.dir().join("mycrate");
    fs::remove_file(source.join("Cargo.lock")).unwrap();
    fs::remove_dir_all(source.join("target")).unwrap();
    succeed_with(
        Command::new("cp")
            .arg("-r")
            .args([source, kept.join("mycrate")]),
    );
    kept
});

/// A plugin in C that the package's vdectl writes, compiled with the package's header; its file.
fn c_plugin(lab: &Lab) -> PathBuf {
    let root = unpacked(lab);
    lab.expect("mycable");
    let program = root.join("usr/lib/vdens/bin/vdectl");
    let words = ["plugin", "new", "--language", "c", "mycable"];
    lab.command(program, words).ok();
    // The header that is beside it stands for the installed one.
    let build = "cd mycable; rm vdens-plugin.h; cc -std=c11 -Wall -Wextra -Werror -O2 -fPIC -shared \
                 $(pkg-config --cflags vdens-plugin) -o libvdens_mycable.so mycable.c";
    lab.sh(build)
        .env("PKG_CONFIG_PATH", root.join("usr/share/pkgconfig"))
        .env("PKG_CONFIG_SYSROOT_DIR", &root)
        .ok();
    lab.dir().join("mycable/libvdens_mycable.so")
}

/// Installed in a bare Debian beside Debian's own and in their place, used by an ordinary user as
/// README shows, purged without a trace.
fn in_debian(suite: &str) {
    let lab = Lab::new();
    let files = lab.aside("files");
    let readme = files.join("readme");
    fs::create_dir_all(&readme).unwrap();
    for package in packages() {
        fs::copy(&package, files.join(package.file_name().unwrap())).unwrap();
    }
    let plugin = c_plugin(&lab);
    fs::copy(plugin, files.join("libvdens_mycable.so")).unwrap();
    succeed_with(
        Command::new("cp")
            .arg("-r")
            .arg(CRATE.join("."))
            .arg(&files),
    );
    let scripts = blocks("README.md");
    let scripts = scripts.iter().filter(|block| block.language == "sh");
    for (number, block) in scripts.enumerate() {
        fs::write(readme.join(format!("{number:02}.sh")), &block.text).unwrap();
    }
    let inside = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/packages.sh");
    fs::copy(inside, files.join("script")).unwrap();
    let mut debian = script("tests/debian.sh");
    let output = debian.arg(suite).arg(&files).output().unwrap();
    let said = text(&output);
    if output.status.code() == Some(NO_TREE) {
        return skip(&format!("no tree of Debian {suite}: {said}"));
    }
    assert!(
        output.status.success() && said.contains("== done"),
        "{suite}: {said}"
    );
    if suite == "bookworm" {
        skip("AppArmor of Debian 12 cannot parse the profile; Debian 13's does");
    }
}

#[test]
fn in_debian_12() {
    need!("root", "debootstrap", "dpkg-shlibdeps", "gcc", "pkg-config");
    in_debian("bookworm");
}

#[test]
fn in_debian_13() {
    need!("root", "debootstrap", "dpkg-shlibdeps", "gcc", "pkg-config");
    in_debian("trixie");
}
