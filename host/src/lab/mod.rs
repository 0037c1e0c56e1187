//! Labs: networks of nodes, links and switches, made from a file.

pub mod file;
pub(crate) mod model;
