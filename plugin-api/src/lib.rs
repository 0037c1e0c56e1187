//! The contract between vdens and its transports, and the kit to write one in safe Rust.
//!
//! A transport is a shared library, `libvdens_SCHEME.so`, that opens Virtual Network Locators of one
//! scheme. Its author writes an `open` function that returns a [`Link`], and calls [`export_plugin!`];
//! that macro's documentation has a complete example. Everything else is here to help:
//!
//! * [`OpenRequest`] says what is to be opened, [`vnl`] parses it, [`Host`] offers the host's services;
//! * [`RxBatch`] and [`TxBatch`] move the frames, 32 a call, without copying or allocating;
//! * [`Error`] carries what a person needs to know, [`mod@log`] records reach the host's log;
//! * [`stream`], [`tap`] and [`udp`] are links, or most of one, over what they are called after;
//! * [`wire`] has the codecs of the protocols that existing peers speak.
//!
//! The stable ABI itself is in [`abi`]; authors do not meet it.

pub mod abi;
mod batch;
mod datagram;
mod error;
mod link;
mod logging;
mod plugin;
mod ready;
pub mod stream;
pub mod tap;
pub mod udp;
pub mod vnl;
pub mod wire;

pub use batch::{
    BATCH_FRAMES, Batch, Frame, MAX_FRAME, MAX_LEGACY_FRAME, MIN_FRAME, RxBatch, Sift, TxBatch,
    VNET_HEADER_LEN, VnetHeader,
};
pub use datagram::send_datagrams;
pub use error::{Error, ErrorKind, Result};
pub use link::{Link, Offloads, State};
pub use log;
pub use plugin::{Host, Hub, Manifest, OpenOptions, OpenRequest, Plugin, Port, Ticket};
pub use ready::AlwaysReady;
