//! What a user is shown: the running processes, and whether this machine has what vdens needs.

pub mod doctor;
pub mod forward;
pub mod graph;
pub mod status;
pub mod top;
