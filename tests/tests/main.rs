//! End-to-end and interoperability tests, an area a module. `tests/run` builds what they test and runs them;
//! then `cargo test --release -p vdens-tests router` runs those of one area.

mod config;
mod docs;
mod errors;
mod faults;
mod hostile;
mod integrity;
mod interop;
mod leftovers;
mod multi;
mod options;
mod overview;
mod panel;
mod plug;
mod plugins;
mod resolv;
mod router;
mod status;
mod stuck;
mod switch;
mod tutorial;
mod vm;
mod waiting;
