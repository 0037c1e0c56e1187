//! Switches and hubs whose ports are the processes that plug into a directory: what `switch://DIR` and `hub://DIR` are
//! made of.
//!
//! # Theory of operation
//!
//! A switch sends a frame where it belongs; a hub sends every frame to all others. A hub is a switch that remembers
//! stations for no time at all, and that is the only difference. All the rest, here and below, is said of switches.
//!
//! The switch lives in the thread of the host that opened it, in one epoll instance, which is the
//! link's descriptor; nothing in it ever blocks. The host's own side of the link is the local port.
//!
//! ```text
//!   clients ──ctl──► control ──► ports ◄──► forwarding ◄──► local port ──► host
//!                                  │             │
//!                                queue          fdb
//! ```
//!
//! - `config`: the VNL's keys;
//! - `directory`: the directory, its lock, the sockets in it; everything made is removed;
//! - `control`: clients that have connected and not yet said what they want;
//! - `port`: a client's data socket, with a bounded `queue` for what it does not take at once;
//! - `memory`: what all queues together may take, and each port's share of it;
//! - `frame` and `fdb`: who a frame is from and for, and where that is; pure code;
//! - `forwarding`: from one port's batch of frames to the other ports, one system call each;
//! - `status`: what a person may want to know;
//! - `switch`: the events that drive it all, and the link.
//!
//! Clients of the switch's own user whose interfaces are on the panel are offered a bridge there,
//! of the kernel, made when the first of them comes. One that has plugged in says so in its first
//! frame: the kernel then carries what goes between such clients, and its port here is idle. The
//! bridge has a tap that is to the fabric one port more, behind which all stations on the bridge
//! are. So both kinds of clients are on one network. The bridge remembers stations for as long as
//! the switch does, so that of a `hub://` floods as well. The host's interface is plugged in like a
//! client's.
//!
//! What a client does never fails the link: it loses its port, or its frames, and the others notice
//! nothing. An idle switch does not wake up: its only timer runs while there are addresses to forget
//! or requests to wait for.

mod config;
mod control;
mod directory;
mod forwarding;
mod frame;
mod memory;
mod port;
mod queue;
mod status;
mod switch;
#[cfg(test)]
mod tests;

use std::fmt;

use vdens_plugin_kit::{Capabilities, Link, OpenRequest, Result};

/// What the links are like.
pub const CAPABILITIES: Capabilities = Capabilities::ONE_END
    .and(Capabilities::SHARED)
    .and(Capabilities::PANEL);

/// What the fabric does with a frame for one station.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It goes to the port that the station is behind, and to all others while that is not known.
    Switch,
    /// It goes to all other ports.
    Hub,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switch => "switch",
            Self::Hub => "hub",
        })
    }
}

/// Makes a switch or a hub in the directory that the VNL names, and opens its own port.
///
/// # Errors
/// The VNL is wrong, or the directory is in use, not the user's own or cannot be made.
pub fn open(kind: Kind, request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let config = config::Config::new(kind, request.argument(), &request.options)?;
    Ok(Box::new(switch::Switch::open(&config, request.host)?))
}
