//! `vdectl plugin list`: every plugin file on the search path, and what it is or why it is refused.
//!
//! The first file of a scheme is the one that is used, even if it is refused; the others are shadowed by it.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vdens_plugin_kit::Capabilities;

use crate::error::{Error, Result};
use crate::output::Text;
use crate::plugins::probe::{Found, Probe};
use crate::plugins::search::{self, SearchPath};

/// A plugin file.
#[derive(Debug, Serialize)]
struct Entry {
    scheme: String,
    path: String,
    /// The file that is used in its place.
    shadowed_by: Option<String>,
    #[serde(flatten)]
    found: Found,
    /// The names of its capability bits.
    capability_names: Vec<&'static str>,
}

/// A directory of the search path.
#[derive(Debug, Serialize)]
struct Directory {
    path: String,
    #[serde(skip)]
    exists: bool,
    /// Why there is nothing to be seen in it.
    unread: Option<String>,
    plugins: Vec<Entry>,
}

/// Prints the listing.
///
/// # Errors
/// A child cannot be started, or standard output takes nothing.
pub fn run(path: &SearchPath, json: bool) -> Result<()> {
    let mut first: HashMap<String, String> = HashMap::new();
    let dirs = path.dirs().iter();
    let dirs = dirs.map(|dir| directory(dir, &mut first));
    let dirs = dirs.collect::<Result<Vec<_>>>()?;
    let text = match json {
        true => Text::json(&dirs)?,
        false => render(&dirs),
    };
    text.print()
}

/// Looks at all plugins in a directory. `first` has the file that is used for each scheme so far.
fn directory(dir: &Path, first: &mut HashMap<String, String>) -> Result<Directory> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut unread = None;
    match fs::read_dir(dir) {
        Ok(entries) => files.extend(entries.flatten().map(|entry| entry.path())),
        Err(error) => unread = Some(Error::path("read", dir, &error).message),
    }
    files.sort();
    let mut plugins = Vec::new();
    for file in files.into_iter().filter(|file| file.is_file()) {
        let Some(scheme) = search::scheme_of(&file).map(str::to_owned) else {
            continue;
        };
        let found = Probe::start(&file, &scheme)?.finish();
        let capability_names = match found {
            Found::Plugin { capabilities, .. } => Capabilities(capabilities).names().collect(),
            Found::Refused { .. } => Vec::new(),
        };
        let path = file.display().to_string();
        let shadowed_by = first.get(&scheme).cloned();
        first.entry(scheme.clone()).or_insert_with(|| path.clone());
        plugins.push(Entry {
            scheme,
            path,
            shadowed_by,
            found,
            capability_names,
        });
    }
    Ok(Directory {
        path: dir.display().to_string(),
        exists: dir.exists(),
        unread,
        plugins,
    })
}

fn render(dirs: &[Directory]) -> Text {
    let mut text = Text::default();
    let width = dirs.iter().flat_map(|dir| &dir.plugins);
    let width = width.map(|entry| entry.scheme.len()).max().unwrap_or(0);
    for dir in dirs {
        let remark = match (&dir.unread, dir.plugins.is_empty()) {
            (Some(_), _) if !dir.exists => ": is not there",
            (Some(why), _) => &format!(": {why}"),
            (None, true) => ": no plugins",
            (None, false) => "",
        };
        text.line(format_args!("{}{remark}", dir.path));
        for entry in &dir.plugins {
            text.line(format_args!(
                "  {:width$}  {}",
                entry.scheme,
                describe(entry)
            ));
        }
    }
    text
}

fn describe(entry: &Entry) -> String {
    let mut line = match &entry.found {
        Found::Plugin {
            description,
            version,
            abi,
            ..
        } => format!("{version}  ABI {abi}  {description}"),
        Found::Refused { why, hint, .. } => {
            let why = why
                .split_once("is refused: ")
                .map_or(&**why, |(_, why)| why);
            match &**hint {
                "" => format!("refused: {why}"),
                hint => format!("refused: {why}; {hint}"),
            }
        }
    };
    if !entry.capability_names.is_empty() {
        // Writing to a string cannot fail.
        let _ = write!(line, " [{}]", entry.capability_names.join(", "));
    }
    if let Some(other) = &entry.shadowed_by {
        let _ = write!(line, " (not used: {other} comes first)");
    }
    line
}
