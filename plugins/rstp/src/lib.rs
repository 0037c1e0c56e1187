//! Rapid spanning tree, as IEEE 802.1D-2004 has it: clause 9, the BPDUs, and clause 17, the state
//! machines. It is free of I/O and of clocks.
//!
//! # Theory of operation
//!
//! A [`Bridge`] has ports. Its owner says what happens: a port is added, its link goes up or down,
//! a frame for [`GROUP_ADDRESS`] has come, or [`Bridge::next_deadline`] has passed. The bridge runs
//! its state machines until nothing changes any more. Then its owner takes the [`Action`]s: frames
//! to transmit, states of ports, and stations to forget.
//!
//! ```text
//!   frame ──► bpdu ──► information ──► select ──► roles ──► Action::SetState
//!                      (one a port)   (a bridge)   │  └───► topology ──► Action::Flush
//!   tick ───► timers ──────┴───────────────────────┴───► transmit ──► Action::Transmit
//! ```
//!
//! - `bpdu`: the codec;
//! - `id`: identifiers, priority vectors and times, as BPDUs have them;
//! - `settings`: what an administrator sets;
//! - `information`: what is known of the network behind a port (17.27, port information);
//! - `bridge`: the interface, the order of the machines, and port role selection (17.28);
//! - `roles`: from a role to discarding, learning, forwarding, by handshake or time (17.29, 17.30);
//! - `topology`: topology changes (17.31);
//! - `transmit`: BPDUs that are due, and which protocol the neighbour speaks (17.24, 17.26).
//!
//! The names of the standard's variables are kept where there is such a variable. What
//! differs from its text:
//!
//! - A port's state changes at once, so `learn` and `learning`, `forward` and `forwarding` are one
//!   [`PortState`].
//! - A state that a machine passes at once is a step of a function.
//! - A dispute lasts as long as what the neighbour said would count. A BPDU that a port receives
//!   from itself is a dispute too: the port's frames are reflected.
//! - Of the BPDUs of a neighbour that floods, only so many a second are read.
//!
//! The timers of the standard count whole seconds. A tick that comes late counts as one: a process
//! that was stopped must not conclude that its neighbours were silent.

mod bpdu;
mod bridge;
mod id;
mod information;
mod roles;
mod settings;
#[cfg(test)]
mod tests;
mod topology;
mod transmit;

pub use bpdu::{Bpdu, FRAME_LEN, GROUP_ADDRESS, Malformed, RstFlags, RstRole};
pub use bridge::{Action, Bridge, Cause, Received, RootStatus};
pub use id::{BridgeId, Mac, PortId, PortNumber, Time, Times, Vector};
pub use information::{Counters, PortStatus};
pub use roles::{PortState, Role};
pub use settings::{PortSettings, Settings, SettingsError};
