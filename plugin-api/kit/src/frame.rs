//! A frame in a batch, and the virtio network header in front of it.

use vdens_plugin_c::{MIN_FRAME, VNET_HEADER_LEN};

/// The longest frame a legacy peer may send, in bytes (libvdeplug's 9216 + 14 + 4).
pub const MAX_LEGACY_FRAME: usize = 9234;

/// The largest MTU whose frames a legacy peer may send, in bytes.
pub const MAX_LEGACY_MTU: u32 = 9216;

/// The virtio network header (struct virtio_net_hdr of the virtio specification 1.2, section 5.1.6,
/// and of `linux/virtio_net.h`): the work on a frame that is left to its receiver. Fields are in
/// host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// Bit 0: the checksum is incomplete; bit 1: checksums are known to be right.
    pub flags: u8,
    /// 0: no segmentation; 1: TCP over IPv4; 4: TCP over IPv6; 5: UDP; plus 0x80 with ECN.
    pub gso_type: u8,
    /// Bytes of headers in front of the payload that is cut.
    pub hdr_len: u16,
    /// Bytes of payload per segment.
    pub gso_size: u16,
    /// The first byte that the checksum covers, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum is, in bytes from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// The header as a tap with `IFF_VNET_HDR` takes it.
    pub fn to_bytes(self) -> [u8; VNET_HEADER_LEN] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        let fields = [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
        ];
        for (place, field) in bytes[2..].chunks_exact_mut(2).zip(fields) {
            place.copy_from_slice(&field.to_ne_bytes());
        }
        bytes
    }

    /// The header in the first [`VNET_HEADER_LEN`] bytes, `None` if there are fewer.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; VNET_HEADER_LEN] = bytes.first_chunk()?;
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Some(Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
        })
    }

    /// The header for the same frame after `bytes` were put in front of it, or removed if negative.
    #[must_use]
    pub fn shifted(mut self, bytes: i16) -> Self {
        if self.flags & 1 != 0 {
            self.csum_start = self.csum_start.saturating_add_signed(bytes);
        }
        if self.gso_type != 0 {
            self.hdr_len = self.hdr_len.saturating_add_signed(bytes);
        }
        self
    }

    /// Whether the frame is complete, and no super-frame.
    pub fn is_plain(self) -> bool {
        self.flags & 1 == 0 && self.gso_type == 0
    }
}

/// A frame in a batch.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The virtio header, then at least [`MIN_FRAME`] bytes.
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame in an entry of a batch: virtio header and frame. `None` if it is too short for
    /// both.
    pub(crate) fn from_entry(bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() >= VNET_HEADER_LEN + MIN_FRAME).then_some(Self { bytes })
    }

    /// The Ethernet frame, without preamble and checksum; at least [`MIN_FRAME`] bytes.
    pub fn bytes(self) -> &'a [u8] {
        &self.bytes[VNET_HEADER_LEN..]
    }

    /// The virtio header in front of the frame.
    pub fn header(self) -> VnetHeader {
        VnetHeader::from_bytes(self.bytes).unwrap_or_default()
    }

    /// Virtio header and frame in one piece, as a tap with `IFF_VNET_HDR` takes them.
    pub fn with_header(self) -> &'a [u8] {
        self.bytes
    }

    /// The frame as a datagram between two ends of ours, in two parts. A complete frame of a length
    /// that a legacy peer takes is itself. Any other is `prefix` and [`Frame::with_header`].
    pub fn wrapped(self, prefix: &'a [u8]) -> [&'a [u8]; 2] {
        match self.header().is_plain() && self.bytes().len() <= MAX_LEGACY_FRAME {
            true => [&[], self.bytes()],
            false => [prefix, self.with_header()],
        }
    }
}
