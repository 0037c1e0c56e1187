//! ABI 1 of vdens: every type that crosses the boundary between the host and a plugin, and nothing
//! else.
//!
//! A plugin author uses the crate `vdens-plugin-kit`, which turns this ABI into a safe trait. This
//! crate is for the kit itself, for a host, and for a plugin that is written by hand, as
//! `tests/frozen-v1` is. ABI 1 is frozen: no item here changes, or a plugin that was built earlier
//! no longer loads. docs/abi.md states the rules for versions.
//!
//! # What a plugin exports
//!
//! | symbol | type | content |
//! |---|---|---|
//! | [`ABI_SYMBOL`] | `u32` | the newest ABI version that the plugin speaks |
//! | [`V1_SYMBOL`] | [`LibHeader`] | the header from which the host gets the [`ModuleV1`] |
//!
//! ```
//! # use vdens_plugin_api as abi;
//! # use abi::{ManifestV1, Outcome, LinkV1, RequestV1, ModuleV1, RootModuleResult, LibHeader};
//! extern "C" fn manifest() -> ManifestV1 {
//! #   unimplemented!()
//!     // …
//! }
//! extern "C" fn open(request: &RequestV1) -> Outcome<LinkV1> {
//! #   unimplemented!()
//!     // …
//! }
//! extern "C" fn root() -> RootModuleResult {
//!     ModuleV1 { manifest, open }.into_root()
//! }
//!
//! #[unsafe(export_name = "vdens_plugin_abi")]
//! static ABI: u32 = abi::VERSION;
//!
//! // SAFETY: `root` returns what `ModuleV1::into_root` made.
//! #[unsafe(export_name = "vdens_plugin_v1")]
//! static HEADER: LibHeader = unsafe { abi::header(root) };
//! ```
//!
//! # What happens then
//!
//! 1. The host compares the layout of [`ModuleV1`], and of all types in it, with its own, and
//!    refuses the plugin if they differ.
//! 2. It reads the [`ManifestV1`], and calls [`ModuleV1::open`] with a [`RequestV1`] for each link.
//! 3. It polls the link's descriptors ([`LinkCallsV1::fds`]), and calls [`LinkCallsV1::recv`] and
//!    [`LinkCallsV1::send`] with a [`RawBatch`] of up to [`BATCH_FRAMES`] frames.
//! 4. The plugin may call the host's services ([`HostCallsV1`]) at any time, from any thread.
//!
//! # Rules
//!
//! - A panic must not unwind into a caller on the other side of the boundary.
//! - No function blocks. Of one link, the host calls one function at a time, on any thread.
//! - A [`LinkV1`] belongs to its holder, who closes it once. A [`RawBatch`] is lent for the call.
//! - Strings are abi_stable's, which carry their own deallocator.
//! - A receiver ignores flag bits that it does not know, and treats an unknown error code as 0.

mod batch;
mod host;
#[cfg(all(test, target_pointer_width = "64"))]
mod layout;
mod link;
mod module;

pub use abi_stable;
pub use batch::{BATCH_FRAMES, MAX_FRAME, MIN_FRAME, RawBatch, RawSlot, VNET_HEADER_LEN};
pub use host::{HostCallsV1, HostCallsV1Ref, HostV1, HubV1, PortV1};
pub use link::{
    ErrorV1, FdsV1, LinkCallsV1, LinkCallsV1Ref, LinkV1, Outcome, StateV1, error_code, link_flag,
};
pub use module::{
    ABI_SYMBOL, CRATE_VERSION, LibHeader, ManifestV1, ModuleV1, ModuleV1Ref, RequestV1,
    RootModuleResult, V1_SYMBOL, VERSION, capability, header,
};
