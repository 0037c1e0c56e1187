//! The directories that plugins are looked for in, and the plugins: each that would be used is loaded, in a child of its own.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::error::Result;
use crate::plugins::probe::{Found, Probe};
use crate::plugins::search::SearchPath;
use crate::sys::trusted_path::Trusted;

/// A plugin's file.
struct Plugin {
    scheme: String,
    file: PathBuf,
}

/// The examination of all plugins, under way.
pub(super) struct Plugins {
    loading: Vec<(Plugin, Probe)>,
    /// Those that are not used, and the file that is used instead.
    hidden: Vec<(Plugin, PathBuf)>,
}

/// Looks at the directories.
pub(super) fn directories(path: &SearchPath) -> Vec<Finding> {
    path.dirs().iter().map(|dir| directory(dir)).collect()
}

fn directory(dir: &Path) -> Finding {
    let check = format!("plugin directory {}", dir.display());
    if dir.symlink_metadata().is_err() {
        return Finding::note(check, "it is not there");
    }
    if let Err(error) = Trusted::directory(dir) {
        let message = format!("plugins in it are refused: {}", error.message);
        return Finding::wrong(check, message).remedy(error.hint);
    }
    match fs::read_dir(dir) {
        Ok(_) => Finding::ok(check, format!("plugins in it: {}", plugins_in(dir).len())),
        Err(error) => Finding::wrong(check, format!("cannot be read: {error}"))
            .remedy(format!("chmod a+rx {}", dir.display())),
    }
}

/// Starts loading the plugins.
pub(super) fn start(path: &SearchPath) -> Result<Plugins> {
    let mut plugins = Plugins {
        loading: Vec::new(),
        hidden: Vec::new(),
    };
    let mut used: HashMap<String, PathBuf> = HashMap::new();
    for plugin in path.dirs().iter().flat_map(|dir| plugins_in(dir)) {
        if let Some(first) = used.get(&plugin.scheme) {
            plugins.hidden.push((plugin, first.clone()));
            continue;
        }
        used.insert(plugin.scheme.clone(), plugin.file.clone());
        let probe = Probe::start(&plugin.file, &plugin.scheme)?;
        plugins.loading.push((plugin, probe));
    }
    Ok(plugins)
}

impl Plugins {
    /// What was found.
    pub(super) fn finish(self) -> Vec<Finding> {
        if self.loading.is_empty() {
            let remedy = "put the libvdens_*.so into /usr/local/lib/vdens/plugins";
            return vec![Finding::wrong("plugins", "there are none").remedy(remedy)];
        }
        let loaded = self
            .loading
            .into_iter()
            .map(|(plugin, probe)| match probe.finish() {
                Found::Plugin { version, .. } => {
                    let file = plugin.file.display();
                    Finding::ok(plugin.check(), format!("{version}, {file}"))
                }
                Found::Refused { why, hint, .. } => {
                    Finding::wrong(plugin.check(), why).remedy(hint)
                }
            });
        let mut findings: Vec<Finding> = loaded.collect();
        findings.extend(self.hidden.iter().map(|(plugin, first)| {
            let message = format!(
                "{} is not used, {} is",
                plugin.file.display(),
                first.display()
            );
            Finding::note(plugin.check(), message)
        }));
        findings
    }
}

impl Plugin {
    fn check(&self) -> String {
        format!("plugin {}", self.scheme)
    }
}

/// The plugins in a directory, in the order of their schemes.
fn plugins_in(dir: &Path) -> Vec<Plugin> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let plugin = |name: &str| {
        let scheme = name.strip_prefix("libvdens_")?.strip_suffix(".so")?;
        let file = dir.join(name);
        file.is_file().then(|| Plugin {
            scheme: scheme.to_owned(),
            file,
        })
    };
    let mut plugins: Vec<Plugin> = entries
        .filter_map(|entry| plugin(entry.file_name().to_str()?))
        .collect();
    plugins.sort_by(|a, b| a.scheme.cmp(&b.scheme));
    plugins
}
