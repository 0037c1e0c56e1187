//! `vde://DIR[PORT]`: a port of a switch that has a directory of sockets.
//!
//! # Theory of operation
//!
//! A switch is a directory with a stream socket `ctl` in it. Opening a link goes through four steps, one
//! module each where it is more than a call:
//!
//! 1. `target`: the VNL and the command line's options become a `target::Target`;
//! 2. `control`: connect to the switch's stream socket, see whose switch it is and whether it may
//!    be joined ([`vdens_plugin_kit::user`]), ask for a port, wait (not for ever) for the address
//!    of the datagram socket that serves it;
//! 3. `endpoint`: the client's own datagram socket, which has a path only for as long as the switch
//!    needs to find it, and permissions that let the switch and nobody else do so;
//! 4. `link`: the two connected sockets as a link. Frames are datagrams; the end of the control
//!    stream, or any byte on it, says that the port is gone. Such a link reports that it is closed and
//!    does not come back: the host opens the VNL again.
//!
//! A switch of ours has said hello on the data socket before the reply came. If it is this user's
//! too, that offers a bridge on the panel: then the interface is plugged into it as soon as the
//! link is used, the switch is told, and the kernel carries the frames. Otherwise the two exchange
//! super-frames (`hub`). A legacy switch says nothing, and is sent complete frames, one in a
//! datagram.

mod control;
mod endpoint;
mod hub;
mod link;
mod status;
mod target;
#[cfg(test)]
mod tests;

use vdens_plugin_kit::{Capabilities, Link, OpenRequest, Result};

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let target = target::Target::new(request.argument(), &request.options)?;
    Ok(Box::new(link::Vde::open(
        &target,
        request.vnl,
        request.host,
    )?))
}

vdens_plugin_kit::export_plugin! {
    scheme: "vde",
    description: "a port of a switch: vde://DIR[PORT]",
    capabilities: Capabilities::PANEL,
    open: open,
}
