//! Opening VNLs through plugins, for the host and for plugins that nest other VNLs.
//!
//! An [`Opener`] belongs to one link and lives as long as the process: it is the host's services as the
//! plugin sees them. A plugin is loaded when its scheme is first opened, and only once.
//!
//! A nested link gets services of its own that have no ticket: were the interface plugged into the nested link's
//! peer, the kernel would carry the frames past the link around it.

use std::collections::HashMap;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vdens_plugin_api::abi::{HostServices, LoadedPlugin};
use vdens_plugin_api::tap::Tap;
use vdens_plugin_api::vnl::Vnl;
use vdens_plugin_api::{Hub, Link, OpenOptions, Port, Ticket};

use crate::control::Channel;
use crate::error::{Error, ErrorKind, Result};
use crate::loader::{self, SearchPath};
use crate::panel::{self, Done, Order};

/// Hubs that this process has made.
static HUBS: AtomicU32 = AtomicU32::new(0);

/// Opens VNLs for one link.
#[derive(Clone, Copy)]
pub struct Opener(&'static Services);

/// What plugins see. Leaked, because a plugin may use its host's services as long as the process lives.
struct Services {
    plugins: &'static Plugins,
    port: Port,
    panel: Option<&'static Channel>,
    /// Those of nested links; these themselves if `None`.
    nested: Option<&'static Services>,
}

/// Where plugins are found, and those that were.
struct Plugins {
    path: SearchPath,
    loaded: Mutex<HashMap<String, LoadedPlugin>>,
}

impl Opener {
    /// An opener that finds plugins on `path`; `port` is the host's side of the link, `panel` the way to
    /// somebody who carries out orders on the panel. One a link, for the life of the process.
    pub fn new(path: SearchPath, port: Port, panel: Option<&'static Channel>) -> Self {
        let plugins = Box::leak(Box::new(Plugins {
            path,
            loaded: Mutex::default(),
        }));
        let nested = Box::leak(Box::new(Services {
            plugins,
            port: Port {
                ticket: None,
                ..port.clone()
            },
            panel,
            nested: None,
        }));
        Self(Box::leak(Box::new(Services {
            plugins,
            port,
            panel,
            nested: Some(nested),
        })))
    }

    /// Opens a VNL.
    ///
    /// # Errors
    /// There is no plugin for its scheme, the plugin is refused, or what the plugin reports.
    pub fn open(self, vnl: &str, options: &OpenOptions) -> Result<Box<dyn Link>> {
        let plugin = self.0.plugins.get(Vnl::parse(vnl)?.scheme)?;
        plugin.open(vnl, options, self.0)
    }
}

impl Plugins {
    fn get(&self, scheme: &str) -> Result<LoadedPlugin> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plugin) = loaded.get(scheme) {
            return Ok(*plugin);
        }
        let plugin = loader::load(&self.path.find(scheme)?, scheme)?;
        loaded.insert(scheme.to_owned(), plugin);
        Ok(plugin)
    }
}

impl Services {
    fn order(&self, order: Order) -> Result<Done> {
        panel::ask(self.panel.ok_or_else(no_panel)?, order)
    }

    /// What a nested link is given.
    fn for_nested(&'static self) -> Opener {
        Opener(self.nested.unwrap_or(self))
    }
}

impl HostServices for Services {
    fn open(&'static self, vnl: &str) -> Result<Box<dyn Link>> {
        self.for_nested().open(vnl, &OpenOptions::default())
    }

    fn port(&self) -> Port {
        self.port.clone()
    }

    fn plug(&self, peer: &str) -> Result<()> {
        let ticket = self.port.ticket.as_ref().ok_or_else(no_panel)?;
        panel::check_place(peer)?;
        let order = Order::Plug(ticket.place.clone(), peer.to_owned());
        self.order(order).map(drop)
    }

    fn attach(&self, hub: &Ticket) -> Result<()> {
        let ticket = self.port.ticket.as_ref().ok_or_else(no_panel)?;
        if hub.panel != ticket.panel {
            let message = "the hub is on another panel";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        panel::check_place(&hub.place)?;
        let order = Order::Attach(ticket.place.clone(), hub.place.clone());
        self.order(order).map(drop)
    }

    fn hub(&self, expiry: Duration) -> Result<Hub> {
        let number = HUBS.fetch_add(1, Ordering::Relaxed);
        let place = format!("{}n{number}", process::id());
        let ageing = u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX);
        let done = self.order(Order::Hub(place.clone(), ageing.max(1)))?;
        let tap = done.tap.ok_or_else(|| Error::closed("a tap was lost"))?;
        Ok(Hub {
            tap: Tap::from_fd(tap, format!("x{place}")),
            ticket: Ticket {
                panel: done.panel,
                place,
            },
        })
    }
}

fn no_panel() -> Error {
    Error::new(ErrorKind::Unsupported, "there is no panel to plug into")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn nested_links_get_no_ticket_however_deep() {
        let ticket = Ticket {
            panel: 7,
            place: "x".into(),
        };
        let port = Port {
            interface: "vde0".into(),
            mtu: 1500,
            ticket: Some(ticket.clone()),
        };
        let path = SearchPath::new(&[], &Config::default()).unwrap();
        let opener = Opener::new(path, port.clone(), None);
        assert_eq!(opener.0.port(), port);
        let nested = opener.0.for_nested();
        for services in [nested.0, nested.0.for_nested().0] {
            let port = services.port();
            assert_eq!(
                (&*port.interface, port.mtu, port.ticket),
                ("vde0", 1500, None)
            );
            assert!(services.plug("y").is_err() && services.attach(&ticket).is_err());
        }
    }
}
