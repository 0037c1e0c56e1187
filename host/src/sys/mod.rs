//! What the kernel offers, in the host's terms.

pub mod child;
pub mod environment;
pub mod interface;
pub mod isolate;
pub mod netlink;
pub mod privilege;
pub mod process;
pub mod runtime;
pub mod signals;
pub mod trusted_path;
pub mod user_namespace;
pub mod watchdog;
