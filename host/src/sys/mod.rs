//! What the kernel offers, in the host's terms.

pub(crate) mod child;
pub(crate) mod environment;
pub(crate) mod interface;
pub(crate) mod isolate;
pub(crate) mod names;
pub(crate) mod netlink;
pub(crate) mod packet_socket;
pub mod privilege;
pub mod process;
pub(crate) mod runtime;
pub(crate) mod service_manager;
pub(crate) mod signals;
pub(crate) mod terminal;
pub(crate) mod trusted_path;
pub(crate) mod user_namespace;
pub(crate) mod watchdog;
