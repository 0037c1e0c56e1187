//! `stream://PATH[key…]` and `stream://HOST:PORT/key…`: a cable to a program with QEMU's network
//! stream: a virtual machine, passt, gvproxy.
//!
//! # Theory of operation
//!
//! A connection is a byte stream: each frame behind its length in four bytes ([`QemuStream`]). One
//! end listens and the other connects. There is no handshake, so the connection is the carrier.
//!
//! * A `Server` listens until the link is closed, and serves one peer at a time. While it has a
//!   peer, it closes the connections of others.
//! * A `Client` connects when the link is opened. When the connection ends the link breaks, and
//!   the host opens the VNL again.
//!
//! A stream that is cut anywhere can be read and written only by the process that knows where. So
//! nothing is stored for a successor of this process: the peer sees the connection end.
//!
//! [`QemuStream`]: vdens_plugin_kit::wire::qemu_stream::QemuStream

mod client;
mod connection;
mod server;
mod target;
#[cfg(test)]
mod tests;

use vdens_plugin_kit::{Link, OpenRequest, Result};

use client::Client;
use server::Server;
use target::{Side, Target};

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let Target { address, side } = Target::parse(request.argument(), &request.options)?;
    Ok(match side {
        Side::Listen(access) => Box::new(Server::listen(address, access)?),
        Side::Connect(user) => Box::new(Client::connect(&address, user, request)?),
    })
}

vdens_plugin_kit::export_plugin! {
    scheme: "stream",
    description: "a cable to QEMU's -netdev stream, passt or gvproxy: stream://PATH",
    needs: "network sockets:{dir}",
    open: open,
}
