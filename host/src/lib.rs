//! The host of vdens: what its two programs, `vdens` and `vde_plug`, are made of.
//!
//! `vdens` is a [`supervisor`]: one single-threaded process that parses its [`cli`] and [`config`], forks a
//! [`namespace`] child, which makes the interfaces and becomes the command, and one [`worker`] per VNL.
//! A worker opens its transport through the plugin [`loader`] and lets the [`pump`] move frames between
//! it and the interface. `vde_plug` is the same pump between two open transports ([`plug`]).
//!
//! The supervisor forks before any plugin is loaded, so a plugin's code never runs in it, and
//! nothing a plugin does can reach the session but through its own link.
//!
//! The processes talk over the typed channels of [`ipc`].

// They panic where nothing can be written; `output` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod busy_poll;
pub mod carrier;
pub mod check;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod error;
pub mod guard;
pub mod ipc;
pub mod isolate;
pub mod lasting;
pub mod listing;
pub mod loader;
pub mod logging;
pub mod login;
pub mod mistakes;
pub mod namespace;
pub mod netlink;
pub mod opener;
pub mod output;
pub mod panel;
pub mod pidfile;
pub mod plug;
pub mod privilege;
pub mod probe;
pub mod process;
pub mod pump;
pub mod resolv;
pub mod runtime;
pub mod scaffold;
pub mod session;
pub mod signals;
pub mod status;
pub mod supervisor;
pub mod sys;
pub mod tier;
pub mod trusted_path;
pub mod vnls;
pub mod worker;
