//! The directories that plugins are looked for in, and the plugins: each that would be used is loaded, in a child of its own.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::prctl::set_dumpable;

use super::child::{Child, Ending};
use super::{Finding, Verdict};
use crate::error::Result;
use crate::loader::{self, SearchPath};

/// A plugin's file.
struct Plugin {
    scheme: String,
    file: PathBuf,
}

/// The examination of all plugins, under way.
pub(super) struct Plugins {
    loading: Vec<(Plugin, Child)>,
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
    if let Err((why, remedy)) = loader::check_owner(dir) {
        return Finding::wrong(check, format!("plugins in it are refused: {why}")).remedy(remedy);
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
        let child = load(&plugin)?;
        plugins.loading.push((plugin, child));
    }
    Ok(plugins)
}

impl Plugins {
    /// What was found.
    pub(super) fn finish(self, deadline: Instant) -> Vec<Finding> {
        if self.loading.is_empty() {
            let remedy = "put the libvdens_*.so into /usr/local/lib/vdens/plugins";
            return vec![Finding::wrong("plugins", "there are none").remedy(remedy)];
        }
        let loaded = self.loading.into_iter().map(|(plugin, child)| {
            let (findings, ending) = child.finish(deadline);
            let name = plugin.file.display();
            let amiss = |what| Finding::wrong(plugin.check(), what).remedy(format!("rm {name}"));
            match (findings.into_iter().next(), ending) {
                (Some(finding), _) => finding,
                (None, Ending::Died(how)) => {
                    amiss(format!("{name} ends the process that loads it: {how}"))
                }
                (None, Ending::Late) => amiss(format!("loading {name} comes to no end")),
                (None, Ending::Done) => amiss(format!("{name} ends the process that loads it")),
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

/// Starts a child that loads a plugin and reports one finding.
fn load(plugin: &Plugin) -> Result<Child> {
    let Plugin { file, scheme } = plugin;
    Child::start(|reporter| {
        // If it crashes, nobody wants the core file.
        let _ = set_dumpable(false);
        reporter.add(&match loader::load(file, scheme) {
            Ok(loaded) => {
                let version = loaded.manifest().version;
                Finding::ok(plugin.check(), format!("{version}, {}", file.display()))
            }
            Err(error) => Finding::failed(Verdict::Wrong, plugin.check(), error),
        });
    })
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
