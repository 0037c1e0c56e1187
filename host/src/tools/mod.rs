//! What a user is shown: the running processes, and whether this machine has what vdens needs.

pub mod capture;
pub(crate) mod console;
pub mod doctor;
pub mod forward;
pub mod graph;
pub mod link;
pub mod sessions;
pub mod status;
pub mod switch;
pub(crate) mod targets;
pub mod top;
