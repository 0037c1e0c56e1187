//! `switch://DIR`: an Ethernet switch whose ports are the processes that plug into its directory.
//!
//! # Theory of operation
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
//! - `frame` and `fdb`: who a frame is from and for, and where that is; pure code;
//! - `forwarding`: from one port's batch of frames to the other ports, one system call each;
//! - `status`: what a person may want to know;
//! - `switch`: the events that drive it all, and the link.
//!
//! Clients of the switch's own user whose interfaces are on the panel are offered a hub there, a bridge of the
//! kernel, made when the first of them comes. One that has plugged in says so in its first frame: the kernel then
//! carries what goes between such clients, and its port here is idle. The hub has a tap that is to the fabric
//! one port more, behind which all stations on the hub are. So both kinds of clients are on one network.
//! The host's interface is plugged in like a client's.
//!
//! What a client does never fails the link: it loses its port, or its frames, and the others notice
//! nothing. An idle switch does not wake up: its only timer runs while there are addresses to forget
//! or requests to wait for.

mod config;
mod control;
mod directory;
mod fdb;
mod forwarding;
mod frame;
mod port;
mod queue;
mod status;
mod switch;
#[cfg(test)]
mod tests;

use vdens_plugin_api::{Capabilities, Link, OpenRequest, Result};

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let config = config::Config::new(request.argument(), &request.options)?;
    Ok(Box::new(switch::Switch::open(&config, request.host)?))
}

vdens_plugin_api::export_plugin! {
    scheme: "switch",
    description: "an Ethernet switch in a directory: switch://DIR",
    capabilities: Capabilities::ONE_END.and(Capabilities::SHARED).and(Capabilities::PANEL),
    open: open,
}
