//! The configuration files, and the directory in which this user's processes find each other.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::{Finding, Verdict};
use crate::config::{Config, absolute_variable, read_usual, usual_places};
use crate::error::Error;
use crate::runtime::{self, is_private};

const RUNTIME: &str = "runtime directory";
const CONFIGURATION: &str = "configuration";

/// What is written to see whether there is room, in bytes: a page.
const SAMPLE: [u8; 4096] = [0; 4096];

/// Reads the configuration; what cannot be read counts as empty.
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
            "there is none, all settings are the defaults",
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

/// Looks at the runtime directory.
pub(super) fn runtime_dir() -> Vec<Finding> {
    let dir = runtime::base();
    let mut findings = Vec::new();
    if let Some(named) = absolute_variable("XDG_RUNTIME_DIR").filter(|named| !is_private(named)) {
        let message = format!(
            "XDG_RUNTIME_DIR is {}, {}, so {} serves",
            named.display(),
            fault(&named),
            dir.display()
        );
        findings.push(Finding::note(RUNTIME, message).remedy(remedy(&named)));
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
            let message = format!("{} is there, {}", dir.display(), fault(dir));
            return Err(Error::usage(message).hint(remedy(dir)));
        }
        // It is made when there is something to be put there.
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

/// Writes to a file without a name (O_TMPFILE), so that nothing is left. A file system that cannot do that is
/// given the benefit of the doubt.
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

/// Why a directory is not private.
fn fault(dir: &Path) -> &'static str {
    match fs::symlink_metadata(dir) {
        Err(_) => "which is not there",
        Ok(meta) if !meta.is_dir() => "which is no directory",
        Ok(meta) if meta.uid() != geteuid().as_raw() => "which belongs to another user",
        Ok(_) => "which others can enter",
    }
}

/// How a directory becomes private.
fn remedy(dir: &Path) -> String {
    let name = dir.display();
    match fs::symlink_metadata(dir) {
        Err(_) => format!("sudo install -d -m 0700 -o {} {name}", geteuid()),
        Ok(meta) if meta.is_dir() && meta.uid() == geteuid().as_raw() => {
            format!("chmod 0700 {name}")
        }
        Ok(_) => format!("sudo rm -r {name}, or set XDG_RUNTIME_DIR to a directory of your own"),
    }
}
