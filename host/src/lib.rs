//! The host of vdens: what its two programs, `vdens` and `vde_plug`, are made of.
//!
//! The modules follow the data. [`cli`] makes a plan of the command line and the configuration. The
//! supervisor ([`session`]), one single-threaded process, forks a [`namespace`] child, which makes
//! the interfaces and becomes the command, and one [`worker`] for each VNL. A worker opens its
//! transport through [`plugins`] and moves frames between it and the interface. `vde_plug` moves
//! them between two open transports ([`plug`]). Where both ends of a link are the user's own, the
//! kernel carries the frames ([`panel`]).
//!
//! The supervisor forks before any plugin is loaded, so a plugin's code never runs in it, and
//! nothing a plugin does can reach the session but through its own link.
//!
//! The processes talk over the typed channels of [`ipc`].

// They panic where nothing can be written; `output` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod error;
pub mod ipc;
pub mod logging;
pub mod namespace;
pub mod output;
pub mod panel;
pub mod plug;
pub mod plugins;
pub mod session;
pub mod sys;
pub mod tools;
pub mod worker;
