//! Plugins, from their files to open links: finding and loading them, the services the host offers
//! them, and what their authors and users are told about them.

pub mod check;
pub(crate) mod host_services;
pub mod list;
pub(crate) mod loader;
pub(crate) mod probe;
pub mod scaffold;
pub(crate) mod search;
