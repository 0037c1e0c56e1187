//! What `netem://` does to frames, free of I/O: the plugin moves the frames, `vdectl link` changes
//! the keys of one that runs, and lab files have the same keys.
//!
//! # Theory of operation
//!
//! [`Keys`] are the impairments as people write them. [`Settings`] are what they mean, one
//! [`Direction`] for frames that the interface sends and one for those that it receives. A [`Path`]
//! does it: it takes a frame at its arrival, and says when it is due.
//!
//! [`request`] is what is asked of a link that runs, and its answer.

mod keys;
mod path;
mod random;
pub mod request;
mod settings;
mod units;

pub use keys::{Keys, NAMES, swapped_word};
pub use path::{Counters, Path};
pub use settings::{Direction, Settings};
