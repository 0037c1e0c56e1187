//! The gateway: what runs in the namespace of the gateway's own.
//!
//! # Theory of operation
//!
//! The kernel of this namespace ends the connections of the network inside, whatever their
//! destination ([`rules`], [`routes`]). The process here only prepares that. It hands the sockets to
//! the proxy, which runs in the caller's namespaces and connects each connection to the real
//! destination, so nothing is passed per connection. Then it serves what must be served in this
//! namespace: sockets that answer from other ports, DHCP and router advertisements.
//!
//! The process ends when the proxy does: their socket says so. With it ends the session of `vdens`
//! that it is the command of.

mod message;
mod queue;
mod routes;
pub(crate) mod rules;
mod sockets;

pub(crate) use queue::{Queue, Verdict};
pub(crate) use rules::Hold;
pub(crate) use sockets::Inside;

use std::fs;
use std::io;
use std::path::Path;

use crate::settings::Settings;
use crate::wire;

/// The gateway's interface.
const INTERFACE: &str = "vde0";

/// Runs until the proxy ends. `socket` is the path at which the proxy waits.
///
/// # Errors
/// The kernel lacks something, which the message names.
pub(crate) fn run(settings: &Settings, socket: &Path) -> io::Result<()> {
    let ipv6 = settings.net6.is_some();
    sysctls(ipv6)?;
    let hold = rules::install(INTERFACE, ipv6)?;
    routes::install(ipv6)?;
    let (inside, queue) = sockets::make(hold, ipv6)?;
    let channel = wire::connect(socket)?;
    wire::send_sockets(&channel, hold, &inside, queue)?;
    drop(inside);
    serve(&channel)
}

/// Answers the proxy's requests until it is gone.
fn serve(channel: &wire::Channel) -> io::Result<()> {
    while let Some(request) = channel.receive_request()? {
        let socket = sockets::replies(request.port, request.ipv6);
        channel.send_reply(request, socket)?;
    }
    Ok(())
}

/// Settings of this namespace's kernel.
fn sysctls(ipv6: bool) -> io::Result<()> {
    let set = |name: &str, value: &str| {
        fs::write(format!("/proc/sys/net/{name}"), value)
            .map_err(|e| io::Error::new(e.kind(), format!("cannot set net.{name}: {e}")))
    };
    // What is neither TCP, UDP nor an echo request is answered as unreachable, as a router does.
    set("ipv4/ip_forward", "1")?;
    // The proxy answers echo requests, as the far side does.
    set("ipv4/icmp_echo_ignore_all", "1")?;
    set("core/somaxconn", "16384")?;
    set("ipv4/tcp_max_syn_backlog", "16384")?;
    if ipv6 {
        set("ipv6/conf/all/forwarding", "1")?;
        set("ipv6/icmp/echo_ignore_all", "1")?;
    }
    Ok(())
}
