//! The configuration file.

use std::fs;
use std::path::Path;

use vdens_tests::{Lab, User, need};

/// The documented example.
fn example() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vdens.toml");
    fs::read_to_string(path).unwrap_or_else(|error| panic!("docs/vdens.toml: {error}"))
}

/// The example with its settings in force, not commented out: lines `#key = …` and `#[table]`.
fn uncommented() -> String {
    let is_setting = |line: &str| {
        let key = line.split('=').next().unwrap_or_default().trim();
        line.contains('=')
            && !key.is_empty()
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let uncomment = |line: &str| match line.strip_prefix('#').map(str::trim) {
        Some(text) if is_setting(text) || text.starts_with('[') => text.to_owned(),
        _ => line.to_owned(),
    };
    example()
        .lines()
        .map(|line| uncomment(line) + "\n")
        .collect()
}

#[test]
fn the_documented_example_loads() {
    let lab = Lab::new();
    let file = lab.write("vdens.toml", example());
    lab.vdens(["--config", &file, "null://", "true"]).ok();
    lab.vde_plug(["--config", &file, "-h"]).ok();
}

#[test]
fn the_documented_settings_all_exist() {
    let lab = Lab::new();
    let text = uncommented();
    for key in ["path", "level", "file", "iface", "resolvaddr", "vnl", "up"] {
        let found = text
            .lines()
            .any(|line| line.split('=').next().unwrap().trim() == key);
        assert!(found, "docs/vdens.toml does not show {key}:\n{text}");
    }
    let file = lab.write("vdens.toml", text);
    // It may name files and networks that are not here; but no key of it may be unknown.
    let output = lab.vdens(["--config", &file, "no", "true"]).run();
    assert!(!output.stderr.contains("unknown"), "{output:?}");
    assert!(!output.stderr.contains("line "), "{output:?}");
}

#[test]
fn defaults() {
    let lab = Lab::new();
    let log = lab.path("log");
    lab.expect("log");
    let config = lab.write(
        "vdens.toml",
        format!(
            "[log]\nlevel = \"debug\"\nfile = \"{log}\"\n\n[defaults]\niface = \"eth\"\nup = true\n\
             resolvaddr = \"192.0.2.1\"\nvnl = \"null://\"\n"
        ),
    );
    let session = lab.vdens(["--config", &config, "vde://"]).session();
    let links = session.ok("ip -o link");
    assert!(links.contains(": eth0:"), "{links}");
    assert!(links.lines().all(|line| line.contains("UP")), "{links}");
    assert!(
        session
            .ok("cat /etc/resolv.conf")
            .contains("nameserver 192.0.2.1")
    );
    session.exit(0);
    assert!(!fs::read_to_string(&log).unwrap().is_empty());
    // The command line wins.
    let options = ["--config", &config, "-i", "net", "no"];
    assert!(
        !lab.vdens(options)
            .args(["ip", "-o", "link"])
            .ok()
            .contains("eth0")
    );
}

#[test]
fn the_users_own_file() {
    let lab = Lab::new();
    let write = "mkdir -p ~/.config/vdens; printf '[defaults]\\niface = \"lan\"\\n' >~/.config/vdens/vdens.toml";
    lab.sh(write).ok();
    assert!(
        lab.vdens(["null://", "ip", "-o", "link"])
            .ok()
            .contains(": lan0:")
    );
    let elsewhere = lab.mkdir("config");
    lab.sh(&format!("mkdir {elsewhere}/vdens; printf '[defaults]\\niface = \"wan\"\\n' >{elsewhere}/vdens/vdens.toml"))
        .ok();
    let vdens = lab
        .vdens(["null://", "ip", "-o", "link"])
        .env("XDG_CONFIG_HOME", elsewhere);
    assert!(vdens.ok().contains(": wan0:"));
}

#[test]
fn a_file_of_another_user_is_not_read() {
    need!("root");
    let lab = Lab::new();
    lab.sh("mkdir -p ~/.config/vdens; echo 'defaults.vnl = \"cmd://touch ran\"' >~/.config/vdens/vdens.toml")
        .ok();
    let owner = format!("user {} (uid {})", lab.user().name, lab.user().uid);
    let doctor = |user: User| lab.vdectl(["doctor"]).by(user).run().stdout;
    for user in [User::other(), User::root()] {
        let output = lab.vdens(["null://", "true"]).by(user.clone()).run();
        assert_eq!(output.code(), Some(0), "{output:?}");
        assert!(output.stderr.contains(&owner), "{output:?}");
        assert!(doctor(user.clone()).contains(&owner));
        let plug = lab.vde_plug([] as [&str; 0]).by(user).run();
        assert!(plug.stderr.contains(&owner), "{plug:?}");
    }
    lab.sh("chmod 666 ~/.config/vdens/vdens.toml").ok();
    let output = lab.vdens(["null://", "true"]).run();
    assert!(output.stderr.contains("written by others"), "{output:?}");
    assert!(!lab.dir().join("ran").exists());
}
