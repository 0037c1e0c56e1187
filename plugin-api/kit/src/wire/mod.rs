//! Codecs of the legacy wire protocols: bytes in, values out, no sockets.

pub mod control;
pub mod hello;
pub mod vdestream;
