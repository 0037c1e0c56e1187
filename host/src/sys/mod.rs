//! What the kernel offers, in the host's terms.

pub mod user_namespace;
