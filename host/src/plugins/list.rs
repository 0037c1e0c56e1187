//! `vdectl plugin list`: every plugin file on the search path, and what it is or why it is refused.
//!
//! The first file of a scheme is used, even if it is refused. It shadows the others.

use std::fmt::Write as _;
use std::io;

use serde::Serialize;
use vdens_plugin_kit::Capabilities;

use crate::error::{Error, Result};
use crate::output::Text;
use crate::plugins::probe::{Found, Probe};
use crate::plugins::search::{self, SearchPath};

/// A plugin file.
#[derive(Debug, Serialize)]
struct ListedPlugin {
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
    /// Why it cannot be read.
    unread: Option<String>,
    plugins: Vec<ListedPlugin>,
}

/// Prints the listing.
///
/// # Errors
/// A child process cannot be started, or standard output cannot be written.
pub fn run(path: &SearchPath, json: bool) -> Result<()> {
    let dirs = path.survey().into_iter().map(directory);
    let dirs = dirs.collect::<Result<Vec<_>>>()?;
    let text = match json {
        true => Text::json(&dirs)?,
        false => render(&dirs),
    };
    text.print()
}

fn directory(dir: search::Directory) -> Result<Directory> {
    let (plugins, unread) = match dir.plugins {
        Ok(plugins) => (plugins, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    Ok(Directory {
        path: dir.path.display().to_string(),
        exists: unread.as_ref().map(io::Error::kind) != Some(io::ErrorKind::NotFound),
        unread: unread.map(|error| Error::path("read", &dir.path, &error).message),
        plugins: plugins.into_iter().map(entry).collect::<Result<_>>()?,
    })
}

fn entry(plugin: search::PluginFile) -> Result<ListedPlugin> {
    let found = Probe::start(&plugin.path, &plugin.scheme)?.finish();
    let capability_names = match found {
        Found::Plugin { capabilities, .. } => Capabilities(capabilities).names().collect(),
        Found::Refused { .. } => Vec::new(),
    };
    Ok(ListedPlugin {
        scheme: plugin.scheme,
        path: plugin.path.display().to_string(),
        shadowed_by: plugin.shadowed_by.map(|path| path.display().to_string()),
        found,
        capability_names,
    })
}

fn render(dirs: &[Directory]) -> Text {
    let mut text = Text::default();
    let width = dirs.iter().flat_map(|dir| &dir.plugins);
    let width = width.map(|entry| entry.scheme.len()).max().unwrap_or(0);
    for dir in dirs {
        let remark = match (&dir.unread, dir.plugins.is_empty()) {
            (Some(_), _) if !dir.exists => ": does not exist",
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

fn describe(entry: &ListedPlugin) -> String {
    let mut line = match &entry.found {
        Found::Plugin {
            description,
            version,
            abi,
            doors,
            ..
        } => format!("{version}  ABI {abi} ({})  {description}", doors.join(", ")),
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
