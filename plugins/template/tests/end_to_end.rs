//! The plugin, as it was built, tried out by `vdens --check-plugin`: both ends of a link, frames of every size.
//!
//! vdens is looked for beside the plugin, then on the PATH; the variable VDENS names another.

use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn it_passes_the_conformance_checks() {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap();
    let plugin = built.join("libvdens_template.so");
    let beside = built.with_file_name("vdens");
    let vdens = std::env::var_os("VDENS").map(PathBuf::from);
    let vdens = vdens.unwrap_or_else(|| match beside.exists() {
        true => beside,
        false => Path::new("vdens").to_owned(),
    });
    let status = Command::new(&vdens)
        .arg("--check-plugin")
        .args([plugin.as_os_str(), "template://40321".as_ref()])
        .status();
    let status = status.unwrap_or_else(|error| panic!("{}: {error}", vdens.display()));
    assert!(status.success(), "see the report above");
}
