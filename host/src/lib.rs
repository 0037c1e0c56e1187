//! The host of vdens: what its programs, `vdens`, `vde_plug` and `vdectl`, are made of.
//!
//! The modules follow the data. [`cli`] makes a plan of the command line and the configuration. The
//! supervisor ([`session`]), one single-threaded process, forks a [`namespace`] child, which makes
//! the interfaces and becomes the command, and one [`worker`] for each VNL. A worker opens its
//! transport through [`plugins`] and moves frames between it and the interface. `vde_plug` moves
//! them between two open transports ([`plug`]). Where both ends of a link are the user's own, the
//! kernel forwards the frames ([`panel`]). `vdectl` shows running processes and checks the machine
//! ([`tools`]), and lists, checks and starts plugins ([`plugins`]). `vde_switch` is a plug with a
//! switch at one end, and has a console ([`switch`]). A process that has links is
//! confined to what these need ([`sandbox`]).
//!
//! The supervisor forks before any plugin is loaded, so a plugin's code never runs in it, and
//! nothing a plugin does can reach the session but through its own link.
//!
//! The processes exchange messages over the typed channels of [`ipc`]. What the kernel offers is in
//! [`sys`].
//!
//! docs/architecture.md walks from `vdens ptp://x cmd` to the first frame, file by file, and says
//! what happens when something fails. docs/glossary.md defines the terms. Plugins are written with
//! the crate `vdens_plugin_kit`, or in C; what crosses between a plugin and the host is in
//! `vdens_plugin_c` and `vdens_plugin_api`.

// A reader of the source follows these links, and `cargo doc --document-private-items` has them.
#![allow(rustdoc::private_intra_doc_links)]
// They panic where nothing can be written; `output` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod error;
#[doc(hidden)]
pub mod fuzz;
pub mod ipc;
pub mod lab;
pub mod logging;
pub(crate) mod namespace;
pub mod output;
pub(crate) mod panel;
pub mod plug;
pub mod plugins;
pub(crate) mod sandbox;
pub mod session;
pub mod switch;
pub mod sys;
pub mod tap;
pub mod tools;
pub mod worker;
