//! The adapters on both sides of ABI 1.
//!
//! The ABI has two doors, of which a plugin opens one or both: [`Door::C1`], plain C types, from
//! the crate `vdens-plugin-c`, and [`Door::V1`], types of `abi_stable`, from the crate
//! `vdens-plugin-api`. A plugin has the second door, and a host can use it, with the feature
//! `abi-stable`. Both doors lead to the same traits:
//!
//! | module | |
//! |---|---|
//! | `export` | the author's code, called without a panic: what the functions of both doors do |
//! | `import` | `Remote`: a link at the other side of the boundary is a [`Link`] again |
//! | `c1`, `v1` | the types of a door, in both directions |
//!
//! The caller checks what `recv` leaves in a batch: it drops and counts entries that are no frames.
//! A nested link crosses the boundary twice, from its plugin to the host and from the host to the
//! plugin that nests it, so it costs two more calls per batch.

mod c1;
mod export;
mod import;
#[cfg(test)]
#[cfg(feature = "abi-stable")]
mod tests;
#[cfg(feature = "abi-stable")]
mod v1;

use std::fmt;

use crate::{HostServices, Link, Manifest, OpenOptions, Result};

#[doc(hidden)]
pub use c1::{CPlugin, PanelCalls, c_string, plugin, take_panel};
#[cfg(feature = "abi-stable")]
#[doc(hidden)]
pub use v1::{LibHeader, header};
#[doc(hidden)]
pub use vdens_plugin_c::{PANEL_SYMBOL, VERSION};

/// A door of ABI 1: the types by which host and plugin call each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Types of abi_stable, which compares the layouts of all of them.
    V1,
    /// Plain C types. Each table begins with its size.
    C1,
}

impl Door {
    /// The doors that a host of this build can use, the one that it prefers first.
    pub const ALL: &'static [Self] = &[
        #[cfg(feature = "abi-stable")]
        Self::V1,
        Self::C1,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::C1 => "c1",
        }
    }

    /// The symbol that a plugin with this door exports.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::V1 => "vdens_plugin_v1",
            Self::C1 => vdens_plugin_c::C1_SYMBOL,
        }
    }
}

/// A loaded plugin, seen from the host.
#[derive(Clone, Copy)]
pub struct LoadedPlugin(Module);

/// The root of a plugin, by door.
#[derive(Clone, Copy)]
enum Module {
    #[cfg(feature = "abi-stable")]
    V1(v1::Module),
    C1(c1::Module),
}

/// Why the host cannot use a shared object as a plugin.
#[derive(Debug)]
pub enum BindError {
    /// The layout of the interface differs.
    Layout {
        /// The plugin-api version that the plugin was built with.
        plugin: String,
        /// abi_stable's report, long.
        report: String,
    },
    /// abi_stable itself is another version.
    AbiStable(String),
    /// The plugin's constructor failed.
    Constructor(String),
    /// The plugin's table of door c1 is malformed.
    Table(String),
    /// The door is not built into this program.
    Closed(Door),
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Layout { plugin, .. } => write!(
                f,
                "it was built for another revision of ABI {VERSION} \
                 (plugin-api {plugin}, vdens has {VERSION}.0.0)"
            ),
            Self::AbiStable(_) => f.write_str("it was built with an incompatible abi_stable"),
            Self::Constructor(why) => write!(f, "it does not initialise: {why}"),
            Self::Table(why) => write!(f, "its {} is malformed: {why}", Door::C1.symbol()),
            Self::Closed(door) => write!(f, "this program cannot use door {}", door.name()),
        }
    }
}

impl std::error::Error for BindError {}

impl LoadedPlugin {
    /// Binds what is at the symbol of a door.
    ///
    /// # Safety
    /// `symbol` is the address of that symbol in a library that is never unloaded.
    ///
    /// # Errors
    /// What is there is not of ABI 1, or the plugin does not initialise.
    pub unsafe fn bind(door: Door, symbol: *const ()) -> Result<Self, BindError> {
        let module = match door {
            #[cfg(feature = "abi-stable")]
            // SAFETY: per this function's contract.
            Door::V1 => Module::V1(unsafe { v1::bind(symbol) }?),
            #[cfg(not(feature = "abi-stable"))]
            Door::V1 => return Err(BindError::Closed(door)),
            // SAFETY: per this function's contract.
            Door::C1 => Module::C1(unsafe { c1::bind(symbol) }?),
        };
        Ok(Self(module))
    }

    /// Offers the host's bridges that know VLANs ([`HostServices::vlan_bridge`]) to the plugin, by
    /// either door.
    ///
    /// # Safety
    /// `symbol` is the address of the plugin's symbol `vdens_plugin_panel`.
    pub unsafe fn offer_panel(&self, symbol: *const ()) {
        // SAFETY: per this function's contract; a plugin that is bound is never unloaded.
        unsafe { c1::panel::offer(symbol) }
    }

    /// The plugin's description of itself.
    pub fn manifest(&self) -> Manifest {
        match &self.0 {
            #[cfg(feature = "abi-stable")]
            Module::V1(module) => v1::manifest_of(*module),
            Module::C1(module) => module.manifest(),
        }
    }

    /// Opens a link through the plugin.
    ///
    /// # Errors
    /// The plugin reports an error.
    pub fn open(
        &self,
        vnl: &str,
        options: &OpenOptions,
        services: &'static dyn HostServices,
    ) -> Result<Box<dyn Link>> {
        match &self.0 {
            #[cfg(feature = "abi-stable")]
            Module::V1(module) => v1::open_with(*module, vnl, options, services),
            Module::C1(module) => module.open(vnl, options, services),
        }
    }
}

impl fmt::Debug for LoadedPlugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LoadedPlugin")
            .field(&self.manifest())
            .finish()
    }
}
