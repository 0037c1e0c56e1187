//! `vdectl status`: what the user's running processes report of themselves.
//!
//! It asks all of them at once ([`client`]) and prints the answers ([`text`]). What they answer
//! with is in [`crate::ipc::status`].
//!
//! It believes no answer. It takes one only from the process whose id is the socket's name, only in
//! a file in memory, so that reading cannot block, and only up to [`crate::ipc::MAX_REPORT`]. Any
//! number in an answer can be printed.

pub mod client;
pub mod text;
