//! Opening VNLs through plugins, for the host and for plugins that nest other VNLs.
//!
//! An [`Opener`] belongs to one link and lives as long as the process. It provides the host's
//! services to the plugin. A plugin is loaded when its scheme is first opened, and only once. A
//! scheme without a plugin is opened through libvdeplug, unless the configuration forbids it.
//!
//! A nested link gets services without a panel address. Otherwise the interface could be plugged
//! into the nested link's peer, and the kernel would forward frames past the outer link. Each level
//! has services of its own, and those of the innermost level open nothing. So no plugin can nest
//! more than [`MAX_NESTING`] links.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use vdens_plugin_kit::HostServices;
use vdens_plugin_kit::adapters::LoadedPlugin;
use vdens_plugin_kit::tap::Tap;
use vdens_plugin_kit::vnl::{MAX_NESTING, Vnl, too_deep};
use vdens_plugin_kit::vnl_file::PLAIN_SCHEMES;
use vdens_plugin_kit::{
    Bridge, BridgePort, Capabilities, HostPort, Link, Manifest, OpenOptions, PanelAddress,
    PortVlans, VlanBridge,
};

use crate::error::{Error, ErrorKind, Result};
use crate::ipc::{BridgeVlans, Order};
use crate::panel::{self, Executed, PanelClient, no_successor};
use crate::plugins::loader::{self, Loaded};
use crate::plugins::search::SearchPath;
use crate::worker::{NEARBY, Nearby};

/// The scheme whose plugin opens C plugins of libvdeplug.
const BRIDGE: &str = "libvdeplug";

/// Where the plugins for schemes are.
#[derive(Clone, Debug)]
pub struct InstalledPlugins {
    path: SearchPath,
    /// Whether a scheme without a plugin is opened through libvdeplug.
    libvdeplug: bool,
    /// Whether processes are confined to what their plugins need.
    is_confined: bool,
}

impl InstalledPlugins {
    /// The plugins on the path, and with `libvdeplug` its C plugins for other schemes. With
    /// `is_confined`, processes are confined to what their plugins need.
    pub(crate) fn new(path: SearchPath, libvdeplug: bool, is_confined: bool) -> Self {
        Self {
            path,
            libvdeplug,
            is_confined,
        }
    }

    /// The same plugins, not confined.
    #[must_use]
    pub(crate) fn without_sandbox(self) -> Self {
        Self {
            is_confined: false,
            ..self
        }
    }

    /// Whether processes are confined to what their plugins need.
    pub(crate) fn is_confined(&self) -> bool {
        self.is_confined
    }

    /// Where plugins are looked for.
    pub(crate) fn directories(&self) -> impl Iterator<Item = PathBuf> {
        self.path.directories()
    }

    /// Checks that a scheme can be tried.
    ///
    /// # Errors
    /// As for [`SearchPath::find`].
    pub(crate) fn check(&self, scheme: &str) -> Result<()> {
        match self.falls_back(scheme) {
            true => Ok(()),
            false => self.path.find(scheme).map(drop),
        }
    }

    /// Whether libvdeplug serves a scheme, for lack of a plugin. It never serves a plain scheme,
    /// which must not load other code.
    fn falls_back(&self, scheme: &str) -> bool {
        self.libvdeplug && !PLAIN_SCHEMES.contains(&scheme) && !self.has(scheme) && self.has(BRIDGE)
    }

    /// What the links of a scheme's plugin can do; `None` if there is no plugin, or none that can
    /// be loaded.
    pub(crate) fn capabilities(&self, scheme: &str) -> Option<Capabilities> {
        let file = self.path.locate(scheme)?;
        let loaded = loader::inspect(&file, scheme).ok()?;
        Some(loaded.plugin.manifest().capabilities)
    }

    /// Whether a scheme has a plugin of its own.
    pub(crate) fn has(&self, scheme: &str) -> bool {
        self.path.locate(scheme).is_some()
    }
}

/// Native plugins only, confined.
impl From<SearchPath> for InstalledPlugins {
    fn from(path: SearchPath) -> Self {
        Self::new(path, false, true)
    }
}

/// Opens VNLs for one link.
#[derive(Clone, Copy)]
pub(crate) struct Opener(&'static Services);

/// The host's services. Leaked, because a plugin may use them as long as the process lives.
struct Services {
    library: &'static Library,
    port: HostPort,
    panel: Option<PanelClient>,
    /// The descriptor that the link's previous worker stored.
    kept: Mutex<Option<OwnedFd>>,
    /// How many links this one is nested in.
    level: usize,
    /// The services of a link nested in this one. `None` at the innermost level.
    nested: Option<&'static Services>,
    /// These again, for a plugin whose links stand in for nested ones: they have the panel address.
    stand_in: Option<&'static Services>,
}

/// Where plugins are found, and the loaded ones.
struct Library {
    plugins: InstalledPlugins,
    loaded: Mutex<HashMap<String, (Loaded, PathBuf)>>,
    /// What [`NEARBY`] opens.
    nearby: Option<Nearby>,
}

/// What the supervisor has for one worker.
#[derive(Debug, Default)]
pub(crate) struct Own {
    /// The descriptor that the link's previous worker stored.
    pub(crate) stored: Option<OwnedFd>,
    /// The tap that [`NEARBY`] opens.
    pub(crate) nearby: Option<Nearby>,
}

impl Opener {
    /// An opener for one link. `port` is the host's side of the link. `panel` sends orders to the
    /// process that executes them on the panel.
    pub(crate) fn new(
        plugins: InstalledPlugins,
        port: HostPort,
        panel: Option<PanelClient>,
        own: Own,
    ) -> Self {
        let library = Box::leak(Box::new(Library {
            plugins,
            loaded: Mutex::default(),
            nearby: own.nearby,
        }));
        let mut nested: Option<&'static Services> = None;
        for level in (1..=MAX_NESTING).rev() {
            nested = Some(Box::leak(Box::new(Services {
                library,
                port: HostPort {
                    panel_address: None,
                    ..port.clone()
                },
                panel,
                kept: Mutex::default(),
                level,
                nested,
                stand_in: None,
            })));
        }
        let outermost = |level, nested| Services {
            library,
            port: port.clone(),
            panel,
            kept: Mutex::default(),
            level,
            nested,
            stand_in: None,
        };
        let inner: &'static Services =
            Box::leak(Box::new(outermost(1, nested.and_then(|n| n.nested))));
        let stand_in: &'static Services = Box::leak(Box::new(outermost(0, Some(inner))));
        Self(Box::leak(Box::new(Services {
            kept: Mutex::new(own.stored),
            stand_in: Some(stand_in),
            ..outermost(0, nested)
        })))
    }

    /// Opens a VNL.
    ///
    /// # Errors
    /// There is no plugin for the scheme, the plugin is refused, or it cannot open the VNL.
    pub(crate) fn open(self, vnl: &str, options: &OpenOptions) -> Result<Box<dyn Link>> {
        let scheme = Vnl::parse(vnl)?.scheme;
        let library = self.0.library;
        if let Some(nearby) = library.nearby.as_ref().filter(|_| vnl == NEARBY) {
            return nearby.open();
        }
        match library.get(scheme) {
            Err(none) if library.plugins.falls_back(scheme) => {
                let bridge = library.get(BRIDGE)?;
                let link = bridge.open(vnl, options, self.0);
                let is_misspelt = library.plugins.path.similar(scheme).is_some();
                link.map_err(|error| neither(none, error, is_misspelt))
            }
            plugin => {
                let plugin = plugin?;
                let stands_in = plugin
                    .manifest()
                    .capabilities
                    .contains(Capabilities::STANDS_IN);
                let services = self.0.stand_in.filter(|_| stands_in).unwrap_or(self.0);
                plugin.open(vnl, options, services)
            }
        }
    }

    /// What the plugin for a scheme says of itself, and its file, if it has been loaded.
    pub(crate) fn plugin(self, scheme: &str) -> Option<(Manifest, PathBuf)> {
        let loaded = self
            .0
            .library
            .loaded
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (loaded, file) = loaded.get(scheme).or_else(|| loaded.get(BRIDGE))?;
        Some((loaded.plugin.manifest(), file.clone()))
    }

    /// What the links of a scheme need, in the plugin's words; `None` if it does not say. Loads the
    /// plugin.
    ///
    /// # Errors
    /// There is no plugin for the scheme, or it is refused.
    pub(crate) fn needs(self, scheme: &str) -> Result<Option<&'static str>> {
        let library = self.0.library;
        let scheme = match library.plugins.falls_back(scheme) {
            true => BRIDGE,
            false => scheme,
        };
        library.load(scheme).map(|loaded| loaded.needs)
    }
}

impl Library {
    fn get(&self, scheme: &str) -> Result<LoadedPlugin> {
        self.load(scheme).map(|loaded| loaded.plugin)
    }

    fn load(&self, scheme: &str) -> Result<Loaded> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((plugin, _)) = loaded.get(scheme) {
            return Ok(plugin.clone());
        }
        let file = self.plugins.path.find(scheme)?;
        let plugin = loader::load(&file, scheme)?;
        loaded.insert(scheme.to_owned(), (plugin.clone(), file));
        Ok(plugin)
    }
}

impl Services {
    fn order(&self, order: Order) -> Result<Executed> {
        self.panel.ok_or_else(no_panel)?.execute(order)
    }

    fn make_bridge(&self, expiry: Duration, vlans: BridgeVlans) -> Result<Bridge> {
        let place = panel::new_place()?;
        let ageing = match expiry {
            Duration::ZERO => 0,
            some => u32::try_from(some.as_secs()).map_or(u32::MAX, |seconds| seconds.max(1)),
        };
        let done = self.order(Order::Bridge {
            bridge: place.clone(),
            ageing,
            vlans,
        })?;
        let tap = done.tap.ok_or_else(|| Error::closed("a tap was lost"))?;
        Ok(Bridge {
            tap: Tap::from_fd(tap, format!("x{place}")),
            panel_address: PanelAddress {
                panel: done.panel,
                place,
            },
        })
    }
}

impl HostServices for Services {
    fn open(&'static self, vnl: &str) -> Result<Box<dyn Link>> {
        let nested = self.nested.ok_or_else(|| too_deep(vnl))?;
        Opener(nested).open(vnl, &OpenOptions::default())
    }

    fn port(&self) -> HostPort {
        self.port.clone()
    }

    fn plug(&self, peer: &str) -> Result<()> {
        let panel_address = self.port.panel_address.as_ref().ok_or_else(no_panel)?;
        panel::check_place(peer)?;
        if peer == panel_address.place {
            return Err(Error::usage("an interface cannot be plugged into itself"));
        }
        let order = Order::Plug {
            port: panel_address.place.clone(),
            peer: peer.to_owned(),
        };
        self.order(order).map(drop)
    }

    fn attach(&self, bridge: &PanelAddress) -> Result<()> {
        let panel_address = self.port.panel_address.as_ref().ok_or_else(no_panel)?;
        if bridge.panel != panel_address.panel {
            let message = "the bridge is on another panel";
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        panel::check_place(&bridge.place)?;
        let order = Order::Attach {
            port: panel_address.place.clone(),
            bridge: bridge.place.clone(),
        };
        self.order(order).map(drop)
    }

    fn bridge(&self, expiry: Duration) -> Result<Bridge> {
        self.make_bridge(expiry, BridgeVlans::Ignored)
    }

    fn vlan_bridge(&self, expiry: Duration, kind: VlanBridge) -> Result<Bridge> {
        let vlans = match kind {
            VlanBridge::Filtering => BridgeVlans::Filtered,
            VlanBridge::Untagged => BridgeVlans::Dropped,
        };
        self.make_bridge(expiry, vlans)
    }

    fn set_vlans(
        &self,
        bridge: &PanelAddress,
        port: BridgePort<'_>,
        vlans: &PortVlans,
    ) -> Result<()> {
        panel::check_place(&bridge.place)?;
        let port = match port {
            BridgePort::Tap => None,
            BridgePort::Interface(place) => {
                panel::check_place(place)?;
                Some(place.to_owned())
            }
        };
        let order = Order::SetVlans {
            bridge: bridge.place.clone(),
            port,
            untagged: vlans.untagged,
            tagged: vlans.tagged.iter().copied().collect(),
        };
        self.order(order).map(drop)
    }

    fn store_fd(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        // One descriptor can be stored, and it is the outermost link's.
        match (self.panel, self.level) {
            (Some(orders), 0) => orders.store_fd(fd),
            _ => Err(no_successor()),
        }
    }

    fn take_fd(&self) -> Option<OwnedFd> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.take()
    }
}

/// The error if neither vdens nor libvdeplug has a plugin, else libvdeplug's. For a misspelt scheme
/// `none` already suggests the right one.
fn neither(none: Error, error: Error, is_misspelt: bool) -> Error {
    match Errno::from_raw(error.errno) {
        Errno::EPROTONOSUPPORT if is_misspelt => none,
        Errno::EPROTONOSUPPORT => Error {
            message: format!("{}; {}", none.message, error.message),
            hint: format!("{}, or {}", none.hint, error.hint),
            kind: ErrorKind::Unsupported,
            ..none
        },
        _ => error,
    }
}

fn no_panel() -> Error {
    Error::new(ErrorKind::Unsupported, "there is no panel to plug into")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_links_get_no_panel_address_however_deep() {
        let panel_address = PanelAddress {
            panel: 7,
            place: "x".into(),
        };
        let port = HostPort {
            interface: "vde0".into(),
            mtu: 1500,
            panel_address: Some(panel_address.clone()),
        };
        let plugins = SearchPath::system().into();
        let opener = Opener::new(plugins, port.clone(), None, Own::default());
        assert_eq!(opener.0.port(), port);
        let nested = std::iter::successors(opener.0.nested, |services| services.nested);
        let mut levels = 0;
        for services in nested {
            levels += 1;
            let port = services.port();
            assert_eq!(
                (&*port.interface, port.mtu, port.panel_address),
                ("vde0", 1500, None)
            );
            assert!(services.plug("y").is_err() && services.attach(&panel_address).is_err());
            let may_open = services.nested.is_some();
            let error = services.open("nosuch://").err().unwrap();
            assert_eq!(error.message.contains("nested"), !may_open, "{error}");
        }
        assert_eq!(levels, MAX_NESTING);
    }
}
