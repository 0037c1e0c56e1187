//! The root of a plugin, and the symbols by which a host finds it.

use abi_stable::StableAbi;
use abi_stable::library::{CheckTypeLayout, RootModule};
use abi_stable::package_version_strings;
use abi_stable::prefix_type::{PrefixRefTrait, PrefixTypeTrait};
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::RString;

pub use abi_stable::library::{LibHeader, RootModuleResult};

use crate::{HostV1, LinkV1, Outcome};

/// The ABI version of this crate, and the crate's major version.
pub const VERSION: u32 = 1;

/// This crate's version, which abi_stable compares.
pub const CRATE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The symbol of a `u32`: the newest ABI version that the plugin speaks.
pub const ABI_SYMBOL: &str = "vdens_plugin_abi";

/// The symbol of the [`LibHeader`] of ABI 1.
pub const V1_SYMBOL: &str = "vdens_plugin_v1";

/// What is to be opened.
#[repr(C)]
#[derive(StableAbi)]
pub struct RequestV1 {
    /// The whole VNL, `scheme://argument`.
    pub vnl: RString,
    /// What the far end may show for this link; empty for nothing.
    pub description: RString,
    /// The group of the sockets that the link makes; empty for none.
    pub group: RString,
    /// The port of a switch to plug into; -1 for any.
    pub port: i64,
    /// The permission bits of the sockets that the link makes; -1 for none.
    pub mode: i64,
    /// The host's services.
    pub host: HostV1,
}

/// Bits of [`ManifestV1::capabilities`].
pub mod capability {
    /// Its VNLs have another VNL in braces.
    pub const NESTS: u64 = 1;
    /// Its links may take super-frames.
    pub const SUPER_FRAMES: u64 = 2;
    /// The kernel may carry its frames.
    pub const PANEL: u64 = 4;
    /// Its links serve others beside this host.
    pub const SHARED: u64 = 8;
    /// Its far end is no link of its own: what goes into one link does not come out of another.
    pub const ONE_END: u64 = 16;
}

/// What a plugin says of itself.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct ManifestV1 {
    /// The scheme that it serves, of `[a-z0-9_]`; the file's name is `libvdens_SCHEME.so`.
    pub scheme: RString,
    /// One line for the user.
    pub description: RString,
    /// The plugin's own version.
    pub version: RString,
    /// Bits of [`capability`].
    pub capabilities: u64,
}

/// The root of a plugin.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = ModuleV1Ref)))]
pub struct ModuleV1 {
    /// Returns the manifest.
    pub manifest: extern "C" fn() -> ManifestV1,
    /// Opens a link.
    #[sabi(last_prefix_field)]
    pub open: extern "C" fn(&RequestV1) -> Outcome<LinkV1>,
}

impl RootModule for ModuleV1Ref {
    abi_stable::declare_root_module_statics! {ModuleV1Ref}
    const BASE_NAME: &'static str = "vdens";
    const NAME: &'static str = "vdens plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

impl ModuleV1 {
    /// The module as the constructor in the library header returns it.
    pub fn into_root(self) -> RootModuleResult {
        // SAFETY: `header` declares the root to be a ModuleV1Ref, as this is.
        RootModuleResult::ROk(unsafe { self.leak_into_prefix().to_prefix_ref().cast() })
    }
}

/// The library header to export as [`V1_SYMBOL`].
///
/// # Safety
/// `root` returns what [`ModuleV1::into_root`] made.
pub const unsafe fn header(root: extern "C" fn() -> RootModuleResult) -> LibHeader {
    // SAFETY: per this function's contract `root` returns the type declared here.
    unsafe { LibHeader::from_constructor::<ModuleV1Ref>(root, CheckTypeLayout::Yes) }
}
