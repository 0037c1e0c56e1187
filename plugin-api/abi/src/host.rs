//! The host's services for plugins: an opaque pointer, and a table of functions on it.

use abi_stable::StableAbi;
use abi_stable::std_types::{RStr, RString};

use crate::{LinkV1, Outcome};

/// The host side of a link.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct PortV1 {
    /// The interface's name in the namespace; empty if the other end is no interface.
    pub interface: RString,
    /// The interface's MTU at the start, in bytes; 0 if the other end is no interface.
    pub mtu: u32,
    /// The panel that the interface can be plugged on; 0 for none.
    pub panel: u64,
    /// The interface's place on that panel.
    pub place: RString,
}

/// A bridge on the panel.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct HubV1 {
    /// The panel.
    pub panel: u64,
    /// The bridge's place on that panel.
    pub place: RString,
    /// The descriptor of a tap that is a port of the bridge. It belongs to the receiver.
    pub tap: i32,
    /// The tap's name.
    pub name: RString,
}

/// What a plugin can ask of the host. The first argument is the pointer of the [`HostV1`].
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = HostCallsV1Ref)))]
pub struct HostCallsV1 {
    /// Logs a record: level (1 error, 2 warn, 3 info, 4 debug, 5 trace), target, message of one
    /// line.
    pub log: extern "C" fn(u32, RStr<'_>, RStr<'_>),
    /// Returns the highest level that the host shows; 0 for none.
    pub log_level: extern "C" fn() -> u32,
    /// Opens another VNL.
    pub open: unsafe extern "C" fn(*const (), RStr<'_>) -> Outcome<LinkV1>,
    /// Returns the host side of the link.
    pub port: unsafe extern "C" fn(*const ()) -> PortV1,
    /// Plugs the interface into a cable with another place on its panel.
    pub plug: unsafe extern "C" fn(*const (), RStr<'_>) -> Outcome<()>,
    /// Plugs the interface into a bridge: the panel, and the bridge's place on it.
    pub attach: unsafe extern "C" fn(*const (), u64, RStr<'_>) -> Outcome<()>,
    /// Makes a bridge that forgets a silent station after so many milliseconds; 0: it learns none.
    pub hub: unsafe extern "C" fn(*const (), u64) -> Outcome<HubV1>,
    /// Stores a copy of a descriptor for the next process that serves the link; negative: none.
    pub keep: unsafe extern "C" fn(*const (), i32) -> Outcome<()>,
    /// Returns the descriptor that the last process stored, which the caller then owns; negative:
    /// none.
    #[sabi(last_prefix_field)]
    pub kept: unsafe extern "C" fn(*const ()) -> i32,
}

/// The host, valid for the life of the process.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct HostV1 {
    services: *const (),
    calls: HostCallsV1Ref,
}

// SAFETY: per the contract of `new` the functions may be called on any thread.
unsafe impl Send for HostV1 {}
// SAFETY: as above.
unsafe impl Sync for HostV1 {}

impl HostV1 {
    /// A host that the functions of `calls` serve.
    ///
    /// # Safety
    /// Each function of `calls` may be called with `services` on any thread, by several threads at
    /// a time, for the life of the process.
    pub const unsafe fn new(services: *const (), calls: HostCallsV1Ref) -> Self {
        Self { services, calls }
    }

    /// The pointer to pass to the functions of [`HostV1::calls`].
    pub fn pointer(&self) -> *const () {
        self.services
    }

    /// The host's functions.
    pub fn calls(&self) -> HostCallsV1Ref {
        self.calls
    }
}

#[cfg(test)]
impl HostV1 {
    /// The offsets of the fields, which are private.
    pub(crate) const OFFSETS: [usize; 2] = [
        std::mem::offset_of!(Self, services),
        std::mem::offset_of!(Self, calls),
    ];
}
