//! The stream of QEMU's network backends `stream` and `socket` (`net/stream.c`), which passt,
//! gvproxy and libkrun have too. Lengths have four bytes. The [codec](super::framing) is that of
//! all streams.

use super::framing::Framing;
use crate::MAX_FRAME;

/// The framing. QEMU's own limit is 69,632 bytes, more than an interface can send.
#[derive(Clone, Copy, Debug)]
pub struct QemuStream;

impl Framing for QemuStream {
    const NAME: &'static str = "QEMU stream";
    const HEADER_LEN: usize = 4;
    const MAX_FRAME: usize = MAX_FRAME;
    const IS_PADDED: bool = false;
}
