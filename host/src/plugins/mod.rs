//! Plugins, from their files to open links: finding and loading them, the services the host offers
//! them, and what their authors and users are told about them.

pub mod check;
pub mod host_services;
pub mod list;
pub mod loader;
pub mod probe;
pub mod scaffold;
pub mod search;
