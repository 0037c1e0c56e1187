//! What `switch://DIR` and `hub://DIR` have in common: a fabric whose ports are the processes that
//! plug into a directory.
//!
//! # Theory of operation
//!
//! A switch forwards a frame to the port that its destination is behind. A hub forwards every frame
//! to all other ports: it is a switch that forgets stations at once, and differs in nothing else.
//! What follows is said of switches.
//!
//! The switch lives in the thread of the host that opened it, in one epoll instance, which is the
//! link's descriptor. Nothing in it blocks. The host's own side of the link is the local port.
//!
//! ```text
//!   clients ──ctl──► control ──► ports ◄──► forwarding ◄──► local port ──► host
//!                                  │             │
//!                                queue          fdb
//! ```
//!
//! - `config`: the VNL's keys;
//! - `directory`: the directory, its lock, and the sockets in it;
//! - `doors`: the sockets there through which clients come, one for each VLAN that is offered;
//! - `control`: clients that have connected and not asked for a port yet;
//! - `ports`, `port`: a client's data socket, with a bounded `queue` for what it does not take at
//!   once;
//! - `memory`: the memory of all queues, and each port's share of it;
//! - `frame`: the source and destination of a frame;
//! - `ingress`: which frames enter, and on which VLAN; `vlan`: their forms, with a tag or without;
//! - `forwarding`: from one port's batch of frames to the other ports, with one system call each;
//! - `tree`: the spanning tree, and what it says of the ports;
//! - `storm`: how many frames a port may flood;
//! - `status`: what a user may want to know;
//! - `settings`: what is set of the switch and its ports; `rules`: what that means for frames;
//! - `panel`: the bridges there, one that filters VLANs or one for each VLAN;
//! - `manage`: requests to show and change all that, and `events` that are listed there;
//! - `switch`: the events that drive it all, and the link.
//!
//! Clients of the switch's own user whose interfaces are on the panel are offered a bridge there,
//! that of their VLAN or of all. It is made when the first of them comes. A client that has plugged
//! in announces that in its first frames. The kernel then carries the frames between such clients,
//! and their ports here are idle. The bridge's tap is one more port of the fabric, behind which all
//! stations on the bridge are. So both kinds of clients are on one network. The bridge remembers
//! stations as long as the switch does, so that of a `hub://` floods as well. The host's interface
//! is plugged in like a client's.
//!
//! No client can make the link fail. A client that misbehaves loses its port, or its frames, and
//! the others notice nothing. An idle switch does not wake up: its only timer runs while there are
//! stations to forget or requests to wait for.

mod config;
mod control;
mod directory;
mod doors;
mod events;
mod forwarding;
mod frame;
mod ingress;
mod manage;
mod memory;
mod panel;
mod port;
mod ports;
mod queue;
mod rules;
mod settings;
mod status;
mod storm;
mod switch;
#[cfg(test)]
mod tests;
mod tree;
mod vlan;

use vdens_plugin_kit::{Capabilities, Link, OpenRequest, Result};
pub use vdens_switch_control::Kind;

/// What the links are like.
pub const CAPABILITIES: Capabilities = Capabilities::ONE_END
    .and(Capabilities::SHARED)
    .and(Capabilities::PANEL);

/// Makes a switch or a hub in the directory that the VNL names, and opens its own port.
///
/// # Errors
/// The VNL is wrong, or the directory is in use, not the user's own or cannot be made.
pub fn open(kind: Kind, request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let config = config::Config::new(kind, request.argument(), &request.options)?;
    Ok(Box::new(switch::Switch::open(&config, request.host)?))
}
