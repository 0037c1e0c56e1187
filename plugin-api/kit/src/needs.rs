//! What [`crate::export_plugin!`] makes of the words in `needs`.

use crate::Capabilities;

/// The capability of a plugin that says what it needs.
pub const fn confined(_needs: &str) -> Capabilities {
    Capabilities::CONFINED
}

/// The bytes of a text, which has as many.
pub const fn bytes<const N: usize>(text: &str) -> [u8; N] {
    let (text, mut bytes, mut at) = (text.as_bytes(), [0; N], 0);
    while at < N {
        bytes[at] = text[at];
        at += 1;
    }
    bytes
}
