//! Door c1 as constants: sizes, alignments, offsets, symbols and numbers on a 64-bit machine.
//!
//! If a test here fails, mend the types: no constant ever changes. `tests/tests/c_door.rs` compares
//! the header with the same types.

use std::mem::{align_of, offset_of, size_of};

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
        Error: 3080, 4, { code: 0, errnum: 4, message: 8, hint: 2056 }
        Slot: 8, 4, { offset: 0, len: 4 }
        Batch: 40, 8, {
            arena: 0, arena_len: 8, used: 12, slots: 16, slot_capacity: 24, len: 28, dropped: 32
        }
        Fds: 8, 4, { recv: 0, send: 4 }
        State: 8, 4, { flags: 0, offloads: 4 }
        LinkCalls: 64, 8, {
            struct_size: 0, fds: 8, recv: 16, send: 24, other_side: 32, state: 40, status: 48,
            close: 56
        }
        Link: 16, 8, { link: 0, calls: 8 }
        Port: 64, 8, { mtu: 0, panel: 8, place: 16, interface: 48 }
        Hub: 64, 8, { tap: 0, panel: 8, place: 16, name: 48 }
        HostCalls: 80, 8, {
            struct_size: 0, log: 8, log_level: 16, open: 24, port: 32, plug: 40, attach: 48,
            hub: 56, keep: 64, kept: 72
        }
        PortVlans: 514, 2, { untagged: 0, tagged: 2 }
        PanelCalls: 24, 8, { struct_size: 0, vlan_bridge: 8, set_vlans: 16 }
        Host: 16, 8, { services: 0, calls: 8 }
        Request: 64, 8, {
            struct_size: 0, vnl: 8, description: 16, group: 24, port: 32, mode: 40, host: 48
        }
        Plugin: 48, 8, {
            struct_size: 0, scheme: 8, description: 16, version: 24, capabilities: 32, open: 40
        }
    }
}

#[test]
fn the_numbers_are_as_they_were_frozen() {
    assert_eq!(
        (ABI_SYMBOL, C1_SYMBOL, PANEL_SYMBOL, VERSION),
        (
            "vdens_plugin_abi",
            "vdens_plugin_c1",
            "vdens_plugin_panel",
            1
        )
    );
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
    assert_eq!([vlan_bridge::FILTERING, vlan_bridge::UNTAGGED], [1, 2]);
}

#[test]
fn a_table_is_read_as_far_as_it_goes() {
    unsafe extern "C" fn close(_: *mut std::ffi::c_void) {}
    // Longer than any table here.
    let mut table = [0_usize; 20];
    let mut read = |size| {
        table[0] = size;
        table[7] = close as *const () as usize;
        // SAFETY: the array is longer than its size says, and has a function where one must be.
        unsafe { LinkCalls::read(table.as_ptr().cast()) }
    };
    for size in [64, 65, 160] {
        assert!(read(size).unwrap().close.is_some(), "{size}");
    }
    for size in [8, 56, 63] {
        assert!(read(size).unwrap().close.is_none(), "{size}");
    }
    for size in [0, 7, usize::MAX, 65_537] {
        let why = read(size).unwrap_err();
        let words = format!("the struct_size of struct vdens_link_calls is {size}");
        assert_eq!(why, words);
    }
    // SAFETY: the pointers are null and misaligned.
    let [null, odd] =
        [std::ptr::null(), std::ptr::without_provenance(9)].map(|p| unsafe { Request::read(p) });
    assert!(null.unwrap_err().contains("null") && odd.unwrap_err().contains("misaligned"));
}
