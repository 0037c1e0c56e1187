//! The kit for authors of transports: the contract with vdens in safe Rust, and helpers.
//!
//! A transport is a shared library, `libvdens_SCHEME.so`, that opens Virtual Network Locators
//! (VNLs) of one scheme. Its author writes an `open` function that returns a [`Link`], and calls
//! [`export_plugin!`]. `vdectl plugin new DIR` writes a complete crate to start from, and `vdectl
//! plugin check` tests the result. docs/plugin-author.md leads from nothing to a ping, and lists
//! what a link promises.
//!
//! # The contract
//!
//! | item | what it is for |
//! |---|---|
//! | [`export_plugin!`] | makes the crate a plugin, with its [`Capabilities`] |
//! | [`OpenRequest`], [`OpenOptions`] | what to open; [`vnl`] parses the VNL |
//! | [`Link`] | the open link, and its [`State`]: carrier and [`Offloads`] |
//! | [`RxBatch`], [`TxBatch`], [`Frame`] | up to 32 frames per call, without a copy |
//! | [`Host`] | its services: the [port](HostPort), nested VNLs, the panel |
//! | [`Error`], [`mod@log`], [`Status`] | what the user sees |
//!
//! # Helpers
//!
//! | module | what it is for |
//! |---|---|
//! | [`bound_socket`] | a Unix socket at a path: claimed, probed, reclaimed, removed |
//! | [`udp`], [`stream`], [`tap`] | frames in UDP datagrams, on byte streams, on a tap |
//! | [`far_end`] | the panel and super-frames for sockets of datagrams |
//! | [`negotiation`] | the messages by which two ends of ours agree on these |
//! | [`fdb`] | a forwarding database: the place of each station |
//! | [`offload`] | cuts, completes and joins frames for sinks that differ from their source |
//! | [`wire`] | the codecs of the protocols that existing peers use |
//! | [`trust`], [`user`] | whether another user can have made a file, or may be at the far end |
//! | [`vnl_file`] | the meaning of a path, and the default switch |
//! | [`AlwaysReady`] | the descriptor of a link that holds frames |
//! | [`send_datagrams`] | many datagrams per system call |
//!
//! # Example
//!
//! A loop sends each frame back to the interface that sent it. Its manifest has `crate-type =
//! ["cdylib"]`, and the library's name is `vdens_loop`. A test needs no host: it opens a link as
//! the host would, and calls it.
//!
//! ```
//! use std::os::fd::{AsFd, BorrowedFd};
//! use std::os::unix::net::UnixDatagram;
//! use vdens_plugin_kit::vnl::{Keys, Spec};
//! use vdens_plugin_kit::{
//!     Batch, Error, Host, Link, OpenOptions, OpenRequest, Result, RxBatch, TxBatch, export_plugin,
//! };
//!
//! /// What is sent into one socket comes out of the other.
//! struct Loop(UnixDatagram, UnixDatagram);
//!
//! impl Link for Loop {
//!     fn fd(&self) -> BorrowedFd<'_> {
//!         self.1.as_fd()
//!     }
//!
//!     fn send_fd(&self) -> BorrowedFd<'_> {
//!         self.0.as_fd()
//!     }
//!
//!     fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
//!         let received = batch.receive_datagrams(&self.1, 9234);
//!         received.map(drop).map_err(|e| Error::io("receive", &e))
//!     }
//!
//!     fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
//!         let sent = batch.send_datagrams(&self.0, 0);
//!         sent.map_err(|e| Error::io("send", &e))
//!     }
//! }
//!
//! fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
//!     let spec = Spec::path_grammar(request.argument(), &Keys::new(&[]))?;
//!     spec.no_nested()?;
//!     if !spec.target_str()?.is_empty() {
//!         return Err(Error::usage("a loop has no name").hint("write loop://"));
//!     }
//!     let (near, far) = UnixDatagram::pair().map_err(|e| Error::io("make sockets", &e))?;
//!     Ok(Box::new(Loop(near, far)))
//! }
//!
//! export_plugin! {
//!     scheme: "loop",
//!     description: "sends every frame back",
//!     open: open,
//! }
//!
//! let request = |vnl| OpenRequest {
//!     vnl,
//!     options: OpenOptions::default(),
//!     host: Host::without_services(),
//! };
//! let mut link = open(&request("loop://"))?;
//! let mut batch = Batch::new();
//! batch.rx().push(&[7; 60]);
//! assert_eq!(link.send(&mut batch.tx(0))?, 1);
//! batch.clear();
//! link.recv(&mut batch.rx())?;
//! assert_eq!(batch.tx(0).frame(0).unwrap().bytes(), [7; 60]);
//!
//! let refused = open(&request("loop://name")).err().unwrap();
//! assert_eq!(refused.to_string(), "a loop has no name; write loop://");
//! # Ok::<(), Error>(())
//! ```
//!
//! # A datagram transport
//!
//! A transport whose frames are datagrams on a connected socket needs no link of its own. A
//! [`DatagramLink`] moves the frames, and [negotiates](negotiation) with the far end. A far end
//! that does the same is plugged in on the panel, or gets super-frames. Any other gets plain
//! frames.
//!
//! ```
//! use std::os::unix::net::UnixDatagram;
//! use vdens_plugin_kit::wire::hello::Cable;
//! use vdens_plugin_kit::{Batch, DatagramLink, Error, Host, Link, Offloads, State};
//!
//! let (near, far) = UnixDatagram::pair().map_err(|e| Error::io("make sockets", &e))?;
//! // What both ends know, and no other cable has: of a socket at a path, its device and inode.
//! let cable = Cable { device: 8, inode: 4711 };
//! let [mut near, mut far] = [near, far].map(|socket| {
//!     // The far end's user is not known, so it is not plugged in.
//!     DatagramLink::new(socket, cable, None, Host::without_services())
//! });
//!
//! // The host announces the state of its side, and calls a link whose descriptor is readable.
//! let host = State::UP.with_offloads(Offloads::ALL);
//! near.other_side(host);
//! far.other_side(host);
//! let mut batch = Batch::new();
//! for _ in 0..3 {
//!     near.recv(&mut batch.rx())?;
//!     far.recv(&mut batch.rx())?;
//! }
//! assert!(batch.is_empty(), "the messages are no frames");
//! assert_eq!(near.state().offloads, Offloads::ALL, "the far end takes super-frames");
//! # Ok::<(), Error>(())
//! ```
//!
//! # Doors
//!
//! The stable ABI has two [doors](adapters::Door), and [`adapters`] translates between them and
//! this crate. Authors meet neither. A plugin exports the door of plain C types. With the feature
//! `abi-stable` it also exports the one of `abi_stable`'s types, which costs 35 crates more in each
//! build.

/// The version of this crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub mod adapters;
mod batch;
pub mod bound_socket;
#[cfg(feature = "control")]
pub mod control;
mod datagram;
mod error;
pub mod far_end;
pub mod fdb;
mod frame;
mod link;
mod logging;
pub mod negotiation;
pub mod offload;
mod plugin;
pub mod process;
mod ready;
mod status;
pub mod stream;
pub mod tap;
pub mod trust;
pub mod udp;
pub mod user;
mod vlans;
pub mod vnl;
pub mod vnl_file;
pub mod wire;

pub use batch::{Batch, FrameAction, RxBatch, TxBatch};
pub use datagram::send_datagrams;
pub use error::{Error, ErrorKind, Result};
pub use far_end::{DatagramLink, FarEnd};
pub use frame::{Frame, MAX_LEGACY_FRAME, MAX_LEGACY_MTU, VnetHeader};
pub use link::{Link, Offloads, State};
pub use log;
pub use plugin::{
    Bridge, Capabilities, Host, HostPort, HostServices, Manifest, OpenOptions, OpenRequest,
    PanelAddress, Plugin,
};
pub use ready::AlwaysReady;
pub use status::{Peer, PortStatus, StationStatus, Status, SwitchStatus, Tier};
pub use vdens_plugin_c::{BATCH_FRAMES, MAX_FRAME, MIN_FRAME, VNET_HEADER_LEN};
pub use vlans::{BridgePort, PortVlans, VlanBridge};
