//! The configuration files, and the runtime directory, where the user's processes find each other.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::{Finding, Verdict};
use crate::cli::config::{Config, read_usual, usual_places};
use crate::error::Error;
use crate::sys::environment::absolute_variable;
use crate::sys::runtime::{self, is_private};

const RUNTIME: &str = "runtime directory";
const CONFIGURATION: &str = "configuration";

/// What is written to find out whether there is room: a page.
const SAMPLE: [u8; 4096] = [0; 4096];

/// Reads the configuration. A file that cannot be read counts as empty.
pub(super) fn configuration(named: Option<&Path>) -> (Config, Vec<Finding>) {
    let files: Vec<PathBuf> = match named {
        Some(file) => vec![file.to_owned()],
        None => usual_places()
            .filter(|file| file.symlink_metadata().is_ok())
            .collect(),
    };
    let mut findings: Vec<Finding> = files
        .iter()
        .map(|file| match read(file, named) {
            Ok(_) => Finding::ok(CONFIGURATION, file.display().to_string()),
            Err(error) => Finding::failed(Verdict::Wrong, CONFIGURATION, error)
                .remedy(format!("${{EDITOR:-vi}} {}", file.display())),
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(
            CONFIGURATION,
            "there is none, so all settings are the defaults",
        ));
    }
    (Config::load(named).unwrap_or_default(), findings)
}

/// Reads one of the files as a session would.
fn read(file: &Path, named: Option<&Path>) -> Result<Config, Error> {
    match named {
        Some(_) => Config::load(Some(file)),
        None => Config::parse(&read_usual(file)?.unwrap_or_default(), file),
    }
}

/// Examines the runtime directory.
pub(super) fn runtime_dir() -> Vec<Finding> {
    let dir = runtime::base();
    let mut findings = Vec::new();
    if let Some(named) = absolute_variable("XDG_RUNTIME_DIR").filter(|named| !is_private(named)) {
        let (fault, remedy) = fault(&named);
        let message = format!(
            "XDG_RUNTIME_DIR is {}, {fault}, so {} serves",
            named.display(),
            dir.display()
        );
        findings.push(Finding::note(RUNTIME, message).remedy(remedy));
    }
    findings.push(match check_place(&dir) {
        Ok(()) => Finding::ok(RUNTIME, dir.display().to_string()),
        Err(error) => Finding::failed(Verdict::Wrong, RUNTIME, error),
    });
    findings
}

fn check_place(dir: &Path) -> Result<(), Error> {
    let place = match dir.symlink_metadata() {
        Ok(_) if is_private(dir) => dir,
        Ok(_) => {
            let (fault, remedy) = fault(dir);
            let message = format!("{} is there, {fault}", dir.display());
            return Err(Error::usage(message).hint(remedy));
        }
        // A session makes the directory.
        Err(_) => dir.parent().unwrap_or(dir),
    };
    write_sample(place).map_err(|error| {
        let failure = Error::path("write in", place, &error);
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                failure.hint(format!("make room: df {}", place.display()))
            }
            io::ErrorKind::PermissionDenied => {
                failure.hint(format!("chmod u+rwx {}", place.display()))
            }
            _ => failure,
        }
    })
}

/// Writes to a file without a name (O_TMPFILE), so that nothing is left. A file system without
/// such files passes.
fn write_sample(dir: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE);
    match options.open(dir) {
        Ok(mut file) => file.write_all(&SAMPLE),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Why a directory is not private, and how it becomes that.
fn fault(dir: &Path) -> (String, String) {
    match fs::symlink_metadata(dir) {
        Err(_) => (
            "which is not there".into(),
            format!("sudo install -d -m 0700 -o {} {}", geteuid(), dir.display()),
        ),
        Ok(meta) => (
            runtime::fault(&meta).unwrap_or_default(),
            runtime::remedy(dir, &meta),
        ),
    }
}
