//! The directories on the search path, and the plugins in them. Each plugin that would be used is
//! loaded in a child process of its own.

use std::io;

use super::Finding;
use crate::error::Result;
use crate::plugins::probe::{Found, Probe};
use crate::plugins::search::{Directory, PluginFile};
use crate::sys::trusted_path::Trusted;

/// The version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The plugins that come with vdens, and have its version; by the schemes in their files' names.
const STOCK: [&str; 17] = [
    "cmd",
    "dgram",
    "hub",
    "libvdeplug",
    "nat",
    "netem",
    "null",
    "ptp",
    "seqpacket",
    "stream",
    "switch",
    "tap",
    "udp",
    "vde",
    "vhost_user",
    "vlan",
    "vxlan",
];

/// Examines the directories.
pub(super) fn directories(survey: &[Directory]) -> Vec<Finding> {
    survey.iter().map(directory).collect()
}

fn directory(dir: &Directory) -> Finding {
    let check = format!("plugin directory {}", dir.path.display());
    let plugins = match &dir.plugins {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::note(check, "it does not exist");
        }
        plugins => plugins,
    };
    if let Err(error) = Trusted::directory(&dir.path) {
        let message = format!("plugins in it are refused: {}", error.message);
        return Finding::wrong(check, message).remedy(error.hint);
    }
    match plugins {
        Ok(plugins) => Finding::ok(check, format!("plugins in it: {}", plugins.len())),
        Err(error) => Finding::wrong(check, format!("cannot be read: {error}"))
            .remedy(format!("chmod a+rx {}", dir.path.display())),
    }
}

/// The examination of all plugins, under way.
pub(super) struct Examination<'a>(Vec<(&'a PluginFile, Option<Probe>)>);

/// Starts to load all plugins that are used.
pub(super) fn start(survey: &[Directory]) -> Result<Examination<'_>> {
    let plugins = survey.iter().flat_map(|dir| dir.plugins.iter().flatten());
    let probed = plugins.map(|plugin| {
        let is_used = plugin.shadowed_by.is_none();
        let probe = is_used.then(|| Probe::start(&plugin.path, &plugin.scheme));
        Ok((plugin, probe.transpose()?))
    });
    probed.collect::<Result<_>>().map(Examination)
}

impl Examination<'_> {
    /// The findings.
    pub(super) fn finish(self) -> Vec<Finding> {
        if self.0.is_empty() {
            let remedy = "put the libvdens_*.so into /usr/local/lib/vdens/plugins";
            return vec![Finding::wrong("plugins", "there are none").remedy(remedy)];
        }
        let (used, shadowed): (Vec<_>, _) =
            self.0.into_iter().partition(|(_, probe)| probe.is_some());
        let all = used.into_iter().chain(shadowed);
        all.map(|(plugin, probe)| finding(plugin, probe)).collect()
    }
}

fn finding(plugin: &PluginFile, probe: Option<Probe>) -> Finding {
    let check = format!("plugin {}", plugin.scheme);
    let file = plugin.path.display();
    match (probe.map(Probe::finish), &plugin.shadowed_by) {
        (Some(Found::Plugin { version, .. }), _)
            if STOCK.contains(&&*plugin.scheme) && version != VERSION =>
        {
            let message = format!("{file} is of version {version}, and vdens of {VERSION}");
            Finding::note(check, message).remedy("install both from one package, or build both")
        }
        (Some(Found::Plugin { version, .. }), _) => {
            Finding::ok(check, format!("{version}, {file}"))
        }
        (Some(Found::Refused { why, hint, .. }), _) => Finding::wrong(check, why).remedy(hint),
        (None, first) => {
            let first = first.as_deref().unwrap_or(&plugin.path).display();
            Finding::note(check, format!("{file} is not used, {first} is"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each has a page.
    #[test]
    fn the_stock_plugins_are_all_there() {
        let pages = std::fs::read_dir("../docs/schemes").unwrap().flatten();
        let names = pages.map(|page| page.file_name().into_string().unwrap());
        let mut schemes: Vec<_> = names.map(|name| name.replace('-', "_")).collect();
        schemes.sort();
        let stock = STOCK.map(|scheme| format!("{scheme}.md"));
        assert_eq!(schemes, stock);
    }
}
