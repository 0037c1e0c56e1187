//! The batch of frames: an arena of bytes, and slots that say where in it each frame lies.
//!
//! The caller allocates both and lends them for one call of `recv` or `send`. Each slot describes
//! one entry: [`VNET_HEADER_LEN`] bytes of virtio network header, and an Ethernet frame of
//! [`MIN_FRAME`] to [`MAX_FRAME`] bytes without preamble and checksum. The header is that of the
//! virtio specification 1.2, section 5.1.6 (struct virtio_net_hdr), in host byte order. It is all
//! zero for a complete frame, and says otherwise what is left to be done: a checksum, or
//! segmentation.

use abi_stable::StableAbi;

/// The most frames in a batch that vdens makes.
pub const BATCH_FRAMES: usize = 32;

/// Bytes of the virtio network header in front of each frame.
pub const VNET_HEADER_LEN: usize = 10;

/// The shortest frame, in bytes: an Ethernet header.
pub const MIN_FRAME: usize = 14;

/// The longest frame, in bytes: a 64 KiB packet behind an Ethernet header with two VLAN tags.
pub const MAX_FRAME: usize = 65_536 + 14 + 8;

/// Where an entry lies in the arena.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, StableAbi)]
pub struct RawSlot {
    /// Bytes from the arena's start to the virtio header.
    pub offset: u32,
    /// Bytes of virtio header and frame together.
    pub len: u32,
}

/// A batch as it crosses the boundary.
///
/// `recv` writes entries from `arena + used` on, describes them in the slots from number `len` on,
/// and raises `used` and `len`. `send` reads the slots from its argument `start` on, and changes
/// none.
#[repr(C)]
#[derive(Debug, StableAbi)]
pub struct RawBatch {
    /// The first byte of the arena.
    pub arena: *mut u8,
    /// Bytes of the arena, all initialised.
    pub arena_len: u32,
    /// Bytes of the arena in use, from its start.
    pub used: u32,
    /// The first slot.
    pub slots: *mut RawSlot,
    /// Number of slots, all initialised.
    pub slot_capacity: u32,
    /// Number of slots in use.
    pub len: u32,
    /// Frames that links have lost since the host last read and reset the number; a link adds to
    /// it.
    pub dropped: u64,
}
