//! Codecs of the legacy wire protocols: bytes in, values out, no sockets.

pub mod control;
pub mod framing;
pub mod hello;
pub mod qemu_stream;
pub mod vdestream;
