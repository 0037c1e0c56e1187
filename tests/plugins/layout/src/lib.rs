//! A plugin whose root has another layout than that of ABI 1. A host must refuse it.

#![expect(dead_code, reason = "no host calls a refused plugin")]

use abi_stable::StableAbi;
use abi_stable::library::{CheckTypeLayout, LibHeader, RootModule, RootModuleResult};
use abi_stable::package_version_strings;
use abi_stable::prefix_type::{PrefixRefTrait, PrefixTypeTrait};
use abi_stable::sabi_types::VersionStrings;

/// Nearly the root of ABI 1.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = ModuleV1Ref)))]
#[sabi(missing_field(panic))]
struct ModuleV1 {
    manifest: extern "C" fn() -> u64,
    #[sabi(last_prefix_field)]
    open: extern "C" fn(u64) -> u64,
}

impl RootModule for ModuleV1Ref {
    abi_stable::declare_root_module_statics! {ModuleV1Ref}
    const BASE_NAME: &'static str = "vdens";
    const NAME: &'static str = "vdens plugin";
    const VERSION_STRINGS: VersionStrings = package_version_strings!();
}

extern "C" fn manifest() -> u64 {
    0
}

extern "C" fn open(request: u64) -> u64 {
    request
}

extern "C" fn module() -> RootModuleResult {
    let module = ModuleV1 { manifest, open }.leak_into_prefix();
    // SAFETY: `HEADER` declares the module to be a ModuleV1Ref.
    RootModuleResult::ROk(unsafe { module.to_prefix_ref().cast() })
}

#[unsafe(export_name = "vdens_plugin_abi")]
static ABI: u32 = 1;

#[unsafe(export_name = "vdens_plugin_v1")]
static HEADER: LibHeader =
    // SAFETY: `module` returns a ModuleV1Ref, the type declared here.
    unsafe { LibHeader::from_constructor::<ModuleV1Ref>(module, CheckTypeLayout::Yes) };
