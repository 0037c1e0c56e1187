//! End-to-end and interoperability tests, an area a module. `tests/run` builds what they test and runs them;
//! then `cargo test --release -p vdens-tests router` runs those of one area.

mod cmd;
mod config;
mod docs;
mod errors;
mod interop;
mod leftovers;
mod multi;
mod options;
mod panel;
mod plug;
mod plugins;
mod resolv;
mod router;
mod status;
mod switch;
mod tutorial;
mod udp;
mod vlan;
mod vm;
mod vxlan;
