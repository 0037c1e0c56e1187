//! Lab files: TOML in, a [`Lab`] or faults with their places out.
//!
//! # Theory of operation
//!
//! [`types`] is the file as serde reads it, each value with its place ([`place`]). `expand` makes
//! the lab of it. It fills in expressions ([`template`]), checks single words ([`check`]), reads
//! ends ([`ends`]) and gives out addresses ([`addresses`]). Nothing here has an effect: the only
//! file that is opened is the lab file.
//!
//! [`schema`] is the JSON Schema of the same types. docs/lab-file.md is the reference for users.

mod addresses;
mod check;
mod ends;
mod expand;
mod place;
pub mod schema;
mod template;
mod types;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Serialize;

use self::expand::expand;
use self::place::{Fault, Faults, Located};
use crate::error::{Error, Result};
use crate::lab::model::Lab;
use crate::output::{Text, complain};
use crate::plugins::host_services::InstalledPlugins;

/// The longest lab file, in bytes.
const LONGEST: u64 = 1 << 20;

/// The exit status of `vdectl lab validate` when the file is wrong.
const EXIT_FAULTY: i32 = 1;

/// Reads a lab file. Each VNL's scheme must have a plugin.
///
/// # Errors
/// The file cannot be read, or it is wrong. As an [`Error`] that is the first fault.
pub(crate) fn read(path: &Path, plugins: &InstalledPlugins) -> Result<Lab, Faults> {
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    opened.map_err(|error| {
        Faults::unreadable(path, Error::path("read the lab file", path, &error))
    })?;
    if bytes.len() as u64 > LONGEST {
        let message = format!("the lab file {} is longer than 1 MiB", path.display());
        let error = Error::usage(message).hint("use count for what is alike");
        return Err(Faults::unreadable(path, error));
    }
    let text = match str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let fault = Error::usage("the file is not UTF-8 here").hint("save it as UTF-8");
            let fault = Fault::at(valid.len(), fault);
            return Err(Faults::new(path, &valid, vec![fault]));
        }
    };
    parse(path, text, &|scheme| plugins.check(scheme))
}

/// Reads the text of a lab file. `has_scheme` tells whether a VNL's scheme has a plugin.
///
/// # Errors
/// The file is wrong.
pub(crate) fn parse(
    path: &Path,
    text: &str,
    has_scheme: &dyn Fn(&str) -> Result<()>,
) -> Result<Lab, Faults> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let file = types::parse(text).map_err(|fault| vec![fault]);
    let lab = file.and_then(|file| expand(&file, &stem, has_scheme));
    lab.map_err(|faults| Faults::new(path, text, faults))
}

/// What `vdectl lab validate --json` prints.
#[derive(Serialize)]
struct Report<'a> {
    file: &'a Path,
    valid: bool,
    /// What is wrong; nothing if it is valid.
    faults: &'a [Located],
    /// The lab in full.
    #[serde(skip_serializing_if = "Option::is_none")]
    lab: Option<&'a Lab>,
}

/// `vdectl lab validate`: checks a lab file, and makes nothing. Returns the exit status.
///
/// # Errors
/// Standard output does not take the report.
pub fn validate(path: &Path, json: bool, plugins: &InstalledPlugins) -> Result<i32> {
    let outcome = read(path, plugins);
    let faults = outcome.as_ref().err().map_or(&[][..], Faults::located);
    if json {
        let report = Report {
            file: path,
            valid: faults.is_empty(),
            faults,
            lab: outcome.as_ref().ok(),
        };
        Text::json(&report)?.print()?;
    } else {
        match &outcome {
            Ok(lab) => Text::from_iter([summary(path, lab)]).print()?,
            Err(faults) => faults.lines().for_each(complain),
        }
    }
    Ok(if faults.is_empty() { 0 } else { EXIT_FAULTY })
}

/// What a lab consists of, in one line.
fn summary(path: &Path, lab: &Lab) -> String {
    let count = |number: usize, one: &str, several: &str| match number {
        0 => None,
        1 => Some(format!("1 {one}")),
        _ => Some(format!("{number} {several}")),
    };
    let parts = [
        count(lab.nodes.len(), "node", "nodes"),
        count(lab.links.len(), "link", "links"),
        count(lab.switches.len(), "switch", "switches"),
        count(lab.tests.len(), "test", "tests"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    let parts = if parts.is_empty() {
        "nothing in it".to_owned()
    } else {
        parts.join(", ")
    };
    format!("{}: lab {}: {parts}", path.display(), lab.name)
}
