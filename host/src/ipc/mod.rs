//! The sockets between this program's own processes.

mod channel;

pub use channel::{Channel, MAX_FDS, MAX_REPORT, Message, read_report};
