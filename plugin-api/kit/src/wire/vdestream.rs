//! vdestream: the stream of VDE's programs, on standard input and output for example. Lengths have
//! two bytes, and a length of 0 is padding. The [codec](super::framing) is that of all streams.

use super::framing::Framing;
use crate::MAX_LEGACY_FRAME;

/// The framing.
#[derive(Clone, Copy, Debug)]
pub struct Vdestream;

impl Framing for Vdestream {
    const NAME: &'static str = "vdestream";
    const HEADER_LEN: usize = 2;
    const MAX_FRAME: usize = MAX_LEGACY_FRAME;
    const IS_PADDED: bool = true;
}
