//! The report on a link, for `vdectl status`.

use vdens_plugin_kit::Link;
use vdens_plugin_kit::vnl::Vnl;

use super::tier;
use crate::ipc::status::{Counters, PluginReport, Report};
use crate::plugins::host_services::Opener;

impl Report {
    /// The report of the link `far`, whose frames go to and come from `near`.
    pub(crate) fn new(near: &dyn Link, far: &dyn Link, received: Counters, sent: Counters) -> Self {
        let status = far.status();
        let tier = tier::tier(near, far, &status);
        Self {
            carrier: far.state().carrier,
            tier,
            reason: tier::reason(tier, &status).to_owned(),
            peer: status.peer,
            received,
            sent,
            sandbox: String::new(),
            plugin: None,
            switch: status.switch,
            extra: status.extra,
        }
    }

    /// Adds the plugin that opened `vnl`, if it is one that a plugin has opened.
    #[must_use]
    pub(crate) fn with_plugin(mut self, opener: Opener, vnl: &str) -> Self {
        let scheme = Vnl::parse(vnl).ok().map(|vnl| vnl.scheme);
        let plugin = scheme.and_then(|scheme| opener.plugin(scheme));
        self.plugin = plugin.map(|(manifest, file)| PluginReport {
            scheme: manifest.scheme,
            version: manifest.version,
            file: file.display().to_string(),
        });
        self
    }
}
