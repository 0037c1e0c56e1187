//! `vdectl plugin check` on the plugin, as it was built: both ends of a link, frames of all sizes.
//!
//! vdectl is looked for beside the plugin, then on the PATH; the variable VDECTL names another.

use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn it_passes_the_conformance_checks() {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().unwrap();
    let plugin = built.join("libvdens_template.so");
    let beside = built.with_file_name("vdectl");
    let vdectl = std::env::var_os("VDECTL").map(PathBuf::from);
    let vdectl = vdectl.unwrap_or_else(|| match beside.exists() {
        true => beside,
        false => Path::new("vdectl").to_owned(),
    });
    let status = Command::new(&vdectl)
        .args(["plugin", "check"])
        .args([plugin.as_os_str(), "template://4321".as_ref()])
        .status();
    let status = status.unwrap_or_else(|error| panic!("{}: {error}", vdectl.display()));
    assert!(status.success(), "see the report above");
}
