//! Door c1 of vdens: every type of ABI 1 that crosses the boundary between the host and a plugin,
//! as C has it.
//!
//! `include/vdens-plugin.h` is the same in C and describes each member. A plugin author in Rust
//! uses the crate `vdens-plugin-kit`, which turns this ABI into a safe trait. This crate is for the
//! kit itself, and for a host. It is frozen: no item here changes, or a plugin that was built
//! earlier no longer loads. docs/abi.md states the rules for versions.
//!
//! # Tables
//!
//! A [`Table`] begins with its size, so it can grow at its end. A reader copies it with
//! [`Table::read`]. In the copy, what the writer does not have is null.

use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;

#[cfg(all(test, target_pointer_width = "64"))]
mod layout;

/// The ABI version of this crate, and the crate's major version.
pub const VERSION: u32 = 1;

/// The symbol of a `u32`: the newest ABI version that the plugin knows.
pub const ABI_SYMBOL: &str = "vdens_plugin_abi";

/// The symbol of the [`Plugin`].
pub const C1_SYMBOL: &str = "vdens_plugin_c1";

/// The symbol of a [`TakePanel`], which may be left out.
pub const PANEL_SYMBOL: &str = "vdens_plugin_panel";

/// The most frames in a batch that vdens makes.
pub const BATCH_FRAMES: usize = 32;

/// Bytes of the virtio network header in front of each frame.
pub const VNET_HEADER_LEN: usize = 10;

/// The shortest frame, in bytes: an Ethernet header.
pub const MIN_FRAME: usize = 14;

/// The longest frame, in bytes: a 64 KiB packet behind an Ethernet header with two VLAN tags.
pub const MAX_FRAME: usize = 65_536 + 14 + 8;

/// Values of [`Error::code`].
pub mod error_code {
    /// None of the others; also what a receiver takes an unknown code for.
    pub const OTHER: u32 = 0;
    /// The VNL or an option is malformed.
    pub const USAGE: u32 = 1;
    /// The thing named does not exist.
    pub const NOT_FOUND: u32 = 2;
    /// The caller may not use the thing named.
    pub const PERMISSION: u32 = 3;
    /// The thing named is in use.
    pub const BUSY: u32 = 4;
    /// The far end is gone, and the link does not recover by itself.
    pub const CLOSED: u32 = 5;
    /// This machine, kernel or peer cannot do it.
    pub const UNSUPPORTED: u32 = 6;
    /// The far end violated the protocol.
    pub const PROTOCOL: u32 = 7;
    /// The plugin panicked.
    pub const PANIC: u32 = 8;
}

/// Bits of [`State::flags`].
pub mod link_flag {
    /// The far end is there.
    pub const CARRIER: u32 = 1;
    /// The link serves others beside this host, so it must never be made to wait.
    pub const SHARED: u32 = 2;
    /// The kernel carries the frames; none go through the link.
    pub const PLUGGED: u32 = 4;
    /// The link may ask for the interface to be plugged on the panel.
    pub const WANTS_PANEL: u32 = 8;
}

/// `struct vdens_error`: why a function failed. The caller owns it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Error {
    /// One of [`error_code`].
    pub code: u32,
    /// The operating system's error number, 0 for none.
    pub errnum: i32,
    /// What failed, on what, and why.
    pub message: [c_char; 2048],
    /// What the user can do about it; empty for nothing.
    pub hint: [c_char; 1024],
}

/// `struct vdens_slot`: where an entry lies in the arena.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Bytes from the arena's start to the virtio header.
    pub offset: u32,
    /// Bytes of virtio header and frame together.
    pub len: u32,
}

/// `struct vdens_batch`: a batch of frames, lent for one call.
#[repr(C)]
#[derive(Debug)]
pub struct Batch {
    /// The first byte of the arena.
    pub arena: *mut u8,
    /// Bytes of the arena, all initialised.
    pub arena_len: u32,
    /// Bytes of the arena in use, from its start.
    pub used: u32,
    /// The first slot.
    pub slots: *mut Slot,
    /// Number of slots, all initialised.
    pub slot_capacity: u32,
    /// Number of slots in use.
    pub len: u32,
    /// Frames that links have lost since the host last read and reset the number.
    pub dropped: u64,
}

/// `struct vdens_fds`: a link's descriptors, for polling only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fds {
    /// Readable when `recv` has something to do.
    pub recv: i32,
    /// Writable when `send` can continue.
    pub send: i32,
}

/// `struct vdens_state`: the state of a link.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Bits of [`link_flag`].
    pub flags: u32,
    /// What may be left undone in the frames for `send`: bits of `TUN_F_*`.
    pub offloads: u32,
}

/// `struct vdens_link_calls`: the functions of a link. `other_side`, `state` and `status` may be
/// null.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LinkCalls {
    /// The size of this table.
    pub struct_size: usize,
    /// Returns the descriptors to poll.
    pub fds: Option<unsafe extern "C" fn(*const c_void) -> Fds>,
    /// Receives frames: 0 or -1.
    pub recv: Option<unsafe extern "C" fn(*mut c_void, *mut Batch, *mut Error) -> c_int>,
    /// Sends frames: how many it took, or -1.
    pub send: Option<unsafe extern "C" fn(*mut c_void, *mut Batch, u32, *mut Error) -> i32>,
    /// Announces the state of the host's other side.
    pub other_side: Option<unsafe extern "C" fn(*mut c_void, State)>,
    /// Returns the link's state.
    pub state: Option<unsafe extern "C" fn(*const c_void) -> State>,
    /// Writes the report as `snprintf` does.
    pub status: Option<unsafe extern "C" fn(*const c_void, *mut c_char, usize) -> usize>,
    /// Closes the link.
    pub close: Option<unsafe extern "C" fn(*mut c_void)>,
}

/// `struct vdens_link`: an open link. Its holder closes it once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The first argument of its functions.
    pub link: *mut c_void,
    /// Its functions.
    pub calls: *const LinkCalls,
}

/// `struct vdens_port`: the host's side of the link.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// The interface's MTU at the start, in bytes; 0 if there is no interface.
    pub mtu: u32,
    /// The panel that the interface can be plugged on; 0 for none.
    pub panel: u64,
    /// The interface's place on that panel.
    pub place: [c_char; 32],
    /// The interface's name; empty if there is no interface.
    pub interface: [c_char; 16],
}

/// `struct vdens_hub`: a bridge on the panel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Hub {
    /// The descriptor of a tap that is a port of the bridge. It belongs to the receiver.
    pub tap: i32,
    /// The panel.
    pub panel: u64,
    /// The bridge's place on that panel.
    pub place: [c_char; 32],
    /// The tap's name.
    pub name: [c_char; 16],
}

/// `struct vdens_host_calls`: what a plugin can ask of the host.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostCalls {
    /// The size of this table.
    pub struct_size: usize,
    /// Logs a record: level (1 error to 5 trace), target, message of one line.
    pub log: Option<unsafe extern "C" fn(u32, *const c_char, *const c_char)>,
    /// Returns the highest level that the host shows; 0 for none.
    pub log_level: Option<unsafe extern "C" fn() -> u32>,
    /// Opens another VNL.
    pub open:
        Option<unsafe extern "C" fn(*const c_void, *const c_char, *mut Link, *mut Error) -> c_int>,
    /// Describes the host's side of the link.
    pub port: Option<unsafe extern "C" fn(*const c_void, *mut Port)>,
    /// Plugs the interface into a cable with another place on its panel.
    pub plug: Option<unsafe extern "C" fn(*const c_void, *const c_char, *mut Error) -> c_int>,
    /// Plugs the interface into a bridge: the panel, and the bridge's place on it.
    pub attach:
        Option<unsafe extern "C" fn(*const c_void, u64, *const c_char, *mut Error) -> c_int>,
    /// Makes a bridge that forgets a silent station after so many milliseconds; 0: it learns none.
    pub hub: Option<unsafe extern "C" fn(*const c_void, u64, *mut Hub, *mut Error) -> c_int>,
    /// Stores a copy of a descriptor for the next process that serves the link; negative: none.
    pub keep: Option<unsafe extern "C" fn(*const c_void, c_int, *mut Error) -> c_int>,
    /// Returns the descriptor that the last process stored, which the caller then owns, or -1.
    pub kept: Option<unsafe extern "C" fn(*const c_void) -> c_int>,
}

/// Kinds of bridges that know VLANs.
pub mod vlan_bridge {
    /// It filters VLANs.
    pub const FILTERING: u32 = 1;
    /// Its ports drop frames whose outermost tag names a VLAN.
    pub const UNTAGGED: u32 = 2;
}

/// `struct vdens_port_vlans`: the VLANs that a port is in.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortVlans {
    /// The VLAN whose frames have no tag at the port; 0 for none.
    pub untagged: u16,
    /// Those whose frames have one: VLAN `n` is bit `n % 8` of byte `n / 8`.
    pub tagged: [u8; 512],
}

/// `struct vdens_panel_calls`: what a plugin can ask of the host for bridges that know VLANs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PanelCalls {
    /// The size of this table.
    pub struct_size: usize,
    /// As [`HostCalls::hub`], of one of the kinds of [`vlan_bridge`].
    pub vlan_bridge:
        Option<unsafe extern "C" fn(*const c_void, u64, u32, *mut Hub, *mut Error) -> c_int>,
    /// Sets the VLANs of a bridge's port: the panel, the places of the bridge and of the port, or
    /// null for the bridge's tap.
    pub set_vlans: Option<
        unsafe extern "C" fn(
            *const c_void,
            u64,
            *const c_char,
            *const c_char,
            *const PortVlans,
            *mut Error,
        ) -> c_int,
    >,
}

/// The function that stands at [`PANEL_SYMBOL`].
pub type TakePanel = unsafe extern "C" fn(*const PanelCalls);

/// `struct vdens_host`: the host, valid for the life of the process.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// The first argument of most of its functions.
    pub services: *const c_void,
    /// Its functions.
    pub calls: *const HostCalls,
}

/// `struct vdens_request`: what is to be opened, lent for the call of `open`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The size of this table.
    pub struct_size: usize,
    /// The whole VNL, `scheme://argument`.
    pub vnl: *const c_char,
    /// What the far end may show for this link; may be empty.
    pub description: *const c_char,
    /// The group of the sockets that the link makes; empty for none.
    pub group: *const c_char,
    /// The port of a switch to plug into; -1 for any.
    pub port: i64,
    /// The permission bits of the sockets that the link makes; -1 for none.
    pub mode: i64,
    /// The host's services.
    pub host: Host,
}

/// The function that opens a link.
pub type Open = unsafe extern "C" fn(*const Request, *mut Link, *mut Error) -> c_int;

/// `struct vdens_plugin`: what stands at [`C1_SYMBOL`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Plugin {
    /// The size of this table.
    pub struct_size: usize,
    /// The scheme that it serves.
    pub scheme: *const c_char,
    /// One line for the user.
    pub description: *const c_char,
    /// The plugin's own version.
    pub version: *const c_char,
    /// Bits of the capabilities.
    pub capabilities: u64,
    /// Opens a link.
    pub open: Option<Open>,
}

// SAFETY: it and what it points to are never written.
unsafe impl Sync for Plugin {}

/// No table is longer. A larger size is not a size.
const LONGEST_TABLE: usize = 64 << 10;

/// A table that begins with its size, for which all zeros is a value.
///
/// # Safety
/// The type is `repr(C)`, its first field is the size as a `usize`, and the others are pointers,
/// functions that may be null, or numbers.
pub unsafe trait Table: Copy {
    /// Its name in C.
    const NAME: &'static str;

    /// A copy of a table that the other side of the boundary made.
    ///
    /// # Errors
    /// The pointer or the size is not that of a table: a message that names the table.
    ///
    /// # Safety
    /// A pointer that is neither null nor misaligned points to as many bytes as the table says.
    unsafe fn read(table: *const Self) -> Result<Self, String> {
        let name = Self::NAME;
        if table.is_null() {
            return Err(format!("there is no {name}: the pointer is null"));
        }
        if !table.is_aligned() {
            return Err(format!("{name} is at a misaligned address"));
        }
        // SAFETY: per this trait's contract the first field is a usize, and per this function's
        // contract it is there.
        let size = unsafe { table.cast::<usize>().read() };
        if !(size_of::<usize>()..=LONGEST_TABLE).contains(&size) {
            return Err(format!("the struct_size of {name} is {size}"));
        }
        let mut copy = MaybeUninit::<Self>::zeroed();
        // A field that is cut off is not there.
        let known = size.min(size_of::<Self>()) / align_of::<Self>() * align_of::<Self>();
        // SAFETY: `table` has `size` bytes, `copy` as many as its type, and both are apart. All
        // zeros is a value of each field, and so is what the writer of the table wrote.
        unsafe {
            let to = copy.as_mut_ptr().cast::<u8>();
            table.cast::<u8>().copy_to_nonoverlapping(to, known);
            Ok(copy.assume_init())
        }
    }
}

// SAFETY: repr(C); a size, pointers, a number, a function that may be null.
unsafe impl Table for Plugin {
    const NAME: &'static str = "struct vdens_plugin";
}

// SAFETY: repr(C); a size, pointers, numbers.
unsafe impl Table for Request {
    const NAME: &'static str = "struct vdens_request";
}

// SAFETY: repr(C); a size and functions that may be null.
unsafe impl Table for LinkCalls {
    const NAME: &'static str = "struct vdens_link_calls";
}

// SAFETY: repr(C); a size and functions that may be null.
unsafe impl Table for HostCalls {
    const NAME: &'static str = "struct vdens_host_calls";
}

// SAFETY: repr(C); a size and functions that may be null.
unsafe impl Table for PanelCalls {
    const NAME: &'static str = "struct vdens_panel_calls";
}
