//! ABI 1 as constants: sizes, alignments, offsets, symbols and numbers on a 64-bit machine.
//!
//! abi_stable compares a plugin's types with those of this crate, so it cannot notice that this
//! crate has changed. These tests can. If one fails, mend the types: no constant here ever changes.

use std::mem::{align_of, offset_of, size_of};

use abi_stable::prefix_type::WithMetadata;
use abi_stable::std_types::{RStr, RString};

use crate::*;

/// Compares a type's size, its alignment, and the offset of each field with what is written.
macro_rules! layout {
    ($($type:ty: $size:literal, $align:literal, { $($field:ident: $offset:literal),* })+) => {$(
        let name = stringify!($type);
        assert_eq!((size_of::<$type>(), align_of::<$type>()), ($size, $align), "{name}");
        $(assert_eq!(offset_of!($type, $field), $offset, "{name}.{}", stringify!($field));)*
    )+};
}

#[test]
fn the_types_are_laid_out_as_they_were_frozen() {
    layout! {
        RawSlot: 8, 4, { offset: 0, len: 4 }
        RawBatch: 40, 8, {
            arena: 0, arena_len: 8, used: 12, slots: 16, slot_capacity: 24, len: 28, dropped: 32
        }
        FdsV1: 8, 4, { recv: 0, send: 4 }
        StateV1: 8, 4, { flags: 0, offloads: 4 }
        ErrorV1: 72, 8, { code: 0, errno: 4, message: 8, hint: 40 }
        LinkCallsV1: 56, 8, {
            fds: 0, recv: 8, send: 16, other_side: 24, state: 32, status: 40, close: 48
        }
        LinkV1: 16, 8, {}
        PortV1: 80, 8, { interface: 0, mtu: 32, panel: 40, place: 48 }
        HubV1: 80, 8, { panel: 0, place: 8, tap: 40, name: 48 }
        HostCallsV1: 72, 8, {
            log: 0, log_level: 8, open: 16, port: 24, plug: 32, attach: 40, hub: 48, keep: 56, kept: 64
        }
        HostV1: 16, 8, {}
        RequestV1: 128, 8, { vnl: 0, description: 32, group: 64, port: 96, mode: 104, host: 112 }
        ManifestV1: 104, 8, { scheme: 0, description: 32, version: 64, capabilities: 96 }
        ModuleV1: 16, 8, { manifest: 0, open: 8 }
    }
    assert_eq!((LinkV1::OFFSETS, HostV1::OFFSETS), ([0, 8], [0, 8]));
}

/// The types of abi_stable that cross the boundary. A table of functions is behind two words.
#[test]
fn the_types_of_abi_stable_are_laid_out_as_they_were_frozen() {
    layout! {
        RStr<'_>: 16, 8, {}
        RString: 32, 8, {}
        Outcome<()>: 80, 8, {}
        Outcome<u32>: 80, 8, {}
        Outcome<LinkV1>: 80, 8, {}
        Outcome<HubV1>: 88, 8, {}
        LinkCallsV1Ref: 8, 8, {}
        HostCallsV1Ref: 8, 8, {}
        ModuleV1Ref: 8, 8, {}
        WithMetadata<LinkCallsV1>: 72, 8, { value: 16 }
        WithMetadata<HostCallsV1>: 88, 8, { value: 16 }
        WithMetadata<ModuleV1>: 32, 8, { value: 16 }
        RootModuleResult: 40, 8, {}
        LibHeader: 152, 8, {}
    }
}

#[test]
fn the_numbers_are_as_they_were_frozen() {
    assert_eq!(
        (ABI_SYMBOL, V1_SYMBOL),
        ("vdens_plugin_abi", "vdens_plugin_v1")
    );
    assert_eq!((VERSION, CRATE_VERSION), (1, "1.0.0"));
    assert_eq!((BATCH_FRAMES, VNET_HEADER_LEN), (32, 10));
    assert_eq!((MIN_FRAME, MAX_FRAME), (14, 65_558));
    let errors = {
        use error_code::*;
        [
            OTHER,
            USAGE,
            NOT_FOUND,
            PERMISSION,
            BUSY,
            CLOSED,
            UNSUPPORTED,
            PROTOCOL,
            PANIC,
        ]
    };
    assert_eq!(errors, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    let flags = {
        use link_flag::*;
        [CARRIER, SHARED, PLUGGED, WANTS_PANEL]
    };
    assert_eq!(flags, [1, 2, 4, 8]);
    let capabilities = {
        use capability::*;
        [NESTS, SUPER_FRAMES, PANEL, SHARED, ONE_END]
    };
    assert_eq!(capabilities, [1, 2, 4, 8, 16]);
}
