//! Transports come from shared objects that are found, trusted and loaded while vdens starts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use vdens_tests::Lab;

/// Takes the bridge to libvdeplug away, which may stand in for a plugin that is missing.
#[track_caller]
fn without_bridge(lab: &Lab) {
    let removed = fs::remove_file(lab.bin().join("libvdens_libvdeplug.so"));
    assert!(removed.is_ok(), "{removed:?}");
}

/// Takes the plugin of a scheme away from beside the programs; where it is now.
#[track_caller]
fn take_away(lab: &Lab, scheme: &str) -> PathBuf {
    let name = format!("libvdens_{scheme}.so");
    let away = lab.home().join(&name);
    let moved = fs::rename(lab.bin().join(&name), &away);
    assert!(moved.is_ok(), "{name}: {moved:?}");
    away
}

#[track_caller]
fn runs(lab: &Lab, options: &[&str]) {
    lab.vdens(options).args(["null://", "true"]).ok();
}

#[test]
fn a_missing_plugin_is_reported_with_the_places_searched() {
    let lab = Lab::new();
    without_bridge(&lab);
    let vnl = lab.vnl("ptp", "p");
    lab.vdens([&vnl, "true"]).ok();
    let away = take_away(&lab, "ptp");
    let places = [lab.bin(), lab.home().join(".local/share/vdens/plugins")];
    let places = places.map(|place| place.display().to_string());
    let words = [
        "ptp",
        "libvdens_ptp.so",
        &places[0],
        &places[1],
        "/usr/local/lib/vdens/plugins",
        "/usr/lib/vdens/plugins",
    ];
    lab.vdens([&vnl, "true"]).refused(&words);
    lab.vde_plug([&vnl, "null://"]).refused(&words);
    // The others still work, and so does this one as soon as it is back.
    runs(&lab, &[]);
    fs::rename(away, lab.bin().join("libvdens_ptp.so")).unwrap();
    lab.vdens([&vnl, "true"]).ok();
}

#[test]
fn plugins_are_found_in_every_place() {
    let lab = Lab::new();
    without_bridge(&lab);
    let away = take_away(&lab, "null");
    let place = lab.mkdir("plugins");
    let plugin = Path::new(&place).join("libvdens_null.so");
    fs::copy(&away, &plugin).unwrap();
    lab.give(&plugin);
    runs(&lab, &["--plugin-dir", &place]);
    let with = |name: &str, value: &str| lab.vdens(["null://", "true"]).env(name, value);
    with("VDENS_PLUGIN_PATH", &place).ok();
    with("VDENS_PLUGIN_PATH", &format!("/nowhere:{place}")).ok();
    let config = lab.write("vdens.toml", format!("[plugins]\npath = [\"{place}\"]\n"));
    runs(&lab, &["--config", &config]);
    // The user's own drop-in directory.
    let data = lab.mkdir("data");
    lab.sh(&format!(
        "mkdir -p {data}/vdens; mv {place} {data}/vdens/plugins"
    ))
    .ok();
    with("XDG_DATA_HOME", &data).ok();
    // A library directory beside that of the programs.
    lab.vdens(["null://", "true"])
        .refused(&["libvdens_null.so"]);
}

#[test]
fn never_from_the_current_directory() {
    let lab = Lab::new();
    without_bridge(&lab);
    let away = take_away(&lab, "null");
    fs::copy(away, lab.path("libvdens_null.so")).unwrap();
    lab.expect("libvdens_null.so");
    lab.vdens(["null://", "true"])
        .refused(&["libvdens_null.so"]);
    lab.vdens(["--plugin-dir", ".", "null://", "true"])
        .refused(&["absolute"]);
}

#[test]
fn a_plugin_that_others_can_change_is_refused() {
    let lab = Lab::new();
    let plugin = lab.bin().join("libvdens_null.so");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&plugin, 0o666);
    lab.vdens(["null://", "true"])
        .refused(&["libvdens_null.so", "writ"]);
    mode(&plugin, 0o755);
    mode(&lab.bin(), 0o777);
    lab.vdens(["null://", "true"])
        .refused(&["libvdens_null.so", "writ"]);
    mode(&lab.bin(), 0o755);
    runs(&lab, &[]);
}

#[test]
fn something_else_by_the_name_of_a_plugin_is_refused() {
    let lab = Lab::new();
    without_bridge(&lab);
    let plugin = lab.bin().join("libvdens_null.so");
    let refused = || {
        let output = lab
            .vdens(["null://", "true"])
            .refused(&["libvdens_null.so"]);
        assert!(output.stderr.len() < 1000, "{}", output.stderr);
    };
    fs::write(&plugin, "").unwrap();
    refused();
    fs::write(&plugin, "not a shared object").unwrap();
    refused();
    // A shared object, but no plugin.
    let libraries = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = libraries
        .split_whitespace()
        .find(|word| word.ends_with("/libc.so.6"));
    fs::copy(libc.unwrap(), &plugin).unwrap();
    refused();
    // Another scheme's plugin under this name.
    fs::copy(lab.bin().join("libvdens_ptp.so"), &plugin).unwrap();
    refused();
    fs::remove_file(&plugin).unwrap();
    fs::create_dir(&plugin).unwrap();
    refused();
    // No other scheme is harmed.
    lab.vdens([&lab.vnl("ptp", "p"), "true"]).ok();
}
