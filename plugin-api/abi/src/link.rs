//! An open link: an opaque pointer, and a table of functions on it.

use abi_stable::StableAbi;
use abi_stable::std_types::{RResult, RString};

/// Values of [`ErrorV1::code`].
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

/// Why a function failed.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct ErrorV1 {
    /// One of [`error_code`].
    pub code: u32,
    /// The operating system's error number, 0 for none.
    pub errno: i32,
    /// What failed, on what, and why. UTF-8, one line, no full stop.
    pub message: RString,
    /// What the user can do about it, in the same form; empty for nothing.
    pub hint: RString,
}

/// The result of a function that can fail.
pub type Outcome<T> = RResult<T, ErrorV1>;

/// A link's descriptors. They stay the link's own; the caller only polls them.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct FdsV1 {
    /// The descriptor that is readable when `recv` has something to do.
    pub recv: i32,
    /// The descriptor that is writable when `send` can continue. It may be the same.
    pub send: i32,
}

/// Bits of [`StateV1::flags`].
pub mod link_flag {
    /// The far end is there.
    pub const CARRIER: u32 = 1;
    /// The link serves others beside this host, as a switch does, so it must never be made to wait.
    pub const SHARED: u32 = 2;
    /// The kernel carries the frames; none go through the link.
    pub const PLUGGED: u32 = 4;
    /// The link may ask for the interface to be plugged on the panel.
    pub const WANTS_PANEL: u32 = 8;
}

/// A link's state.
#[repr(C)]
#[derive(Clone, Copy, Debug, StableAbi)]
pub struct StateV1 {
    /// Bits of [`link_flag`].
    pub flags: u32,
    /// What may be left undone in the frames for `send`: bits of `TUN_F_*` (`linux/if_tun.h`).
    pub offloads: u32,
}

/// The functions of a link. The first argument is the pointer of the [`LinkV1`].
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = LinkCallsV1Ref)))]
pub struct LinkCallsV1 {
    /// Returns the descriptors to poll. The host asks before every wait.
    pub fds: unsafe extern "C" fn(*const ()) -> FdsV1,
    /// Receives the frames that are waiting, as many as fit into the batch.
    pub recv: unsafe extern "C" fn(*mut (), *mut crate::RawBatch) -> Outcome<()>,
    /// Sends the frames of the batch from the number given on, and returns how many it took.
    pub send: unsafe extern "C" fn(*mut (), *mut crate::RawBatch, u32) -> Outcome<u32>,
    /// Tells the link the state of the host's other side, at the start and after each change.
    pub other_side: unsafe extern "C" fn(*mut (), StateV1),
    /// Returns the link's state. The host asks after every call.
    pub state: unsafe extern "C" fn(*const ()) -> StateV1,
    /// Returns a report for the user as a JSON object, which may grow: `vdens_plugin_kit::Status`.
    pub status: unsafe extern "C" fn(*const ()) -> RString,
    /// Closes the link and frees what the pointer points to.
    #[sabi(last_prefix_field)]
    pub close: unsafe extern "C" fn(*mut ()),
}

/// An open link, owned. Dropping it closes it.
#[repr(C)]
#[derive(StableAbi)]
pub struct LinkV1 {
    link: *mut (),
    calls: LinkCallsV1Ref,
}

// SAFETY: per the contract of `new` the functions may be called on any thread.
unsafe impl Send for LinkV1 {}

impl LinkV1 {
    /// A link that the functions of `calls` serve.
    ///
    /// # Safety
    /// Each function of `calls` may be called with `link` on any thread, by one thread at a time,
    /// until `close` has been called.
    pub unsafe fn new(link: *mut (), calls: LinkCallsV1Ref) -> Self {
        Self { link, calls }
    }

    /// The pointer to pass to the functions of [`LinkV1::calls`]; valid until this value is
    /// dropped.
    pub fn pointer(&self) -> *mut () {
        self.link
    }

    /// The link's functions.
    pub fn calls(&self) -> LinkCallsV1Ref {
        self.calls
    }
}

impl Drop for LinkV1 {
    fn drop(&mut self) {
        // SAFETY: per the contract of `new`; the pointer is not used after this.
        unsafe { (self.calls.close())(self.link) }
    }
}

#[cfg(test)]
impl LinkV1 {
    /// The offsets of the fields, which are private.
    pub(crate) const OFFSETS: [usize; 2] = [
        std::mem::offset_of!(Self, link),
        std::mem::offset_of!(Self, calls),
    ];
}
