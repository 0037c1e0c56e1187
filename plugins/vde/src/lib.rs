//! `vde://DIR[PORT]`: a port of a switch that has a directory of sockets.
//!
//! # Theory of operation
//!
//! A switch is a directory with a stream socket `ctl` in it. Opening a link takes four steps:
//!
//! 1. `target` parses the VNL and the command line's options.
//! 2. `control` connects to the switch's stream socket, checks whose switch it is
//!    ([`vdens_plugin_kit::user`]), asks for a port, and waits, for two seconds at most, for the
//!    address of the port's datagram socket.
//! 3. `endpoint` makes the client's own datagram socket. It has a path only until the switch has
//!    found it, and permissions that let in the switch and no more.
//! 4. `link` serves the two connected sockets. Frames are datagrams. When the control stream ends,
//!    or a byte comes on it, the port is gone; the link then reports that it is closed, and the
//!    host opens the VNL again.
//!
//! A switch of ours sends its greetings on the data socket before its reply: see
//! [`vdens_plugin_kit::FarEnd`] for what follows. They carry the nonce of the request's
//! [`Mark`](vdens_plugin_kit::wire::control::Mark), which no other client of a legacy switch knows,
//! so no client can pose as the switch. A legacy switch sends no greetings. It is sent no messages
//! and no super-frames.

mod control;
mod endpoint;
mod link;
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
    needs: "sockets:{path} sockets:/var/run sockets:/var/tmp sockets:/tmp \
            read:~/.vdeplug read:~/.vde2 read:/var/run/vde.ctl read:/tmp/vde.ctl",
    open: open,
}
