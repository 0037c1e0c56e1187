//! The gateway: what runs in the namespace of the gateway's own.
//!
//! # Theory of operation
//!
//! The kernel of this namespace ends the connections of the network inside, whatever their
//! destination ([`rules`], [`routes`]). The process here only prepares that. It hands the sockets
//! to the proxy, which runs in the caller's namespaces and connects each connection to the real
//! destination, so nothing is passed per connection. Then it serves what must be served in this
//! namespace: sockets that answer from other ports, DHCP and router advertisements. For that it
//! keeps only the system calls that it needs ([`sandbox`]).
//!
//! The process ends when the proxy does: their socket says so. With it ends the session of `vdens`
//! that it is the command of.

mod advertisement;
pub(crate) mod fuzz;
mod leases;
mod queue;
mod routes;
pub(crate) mod rules;
mod services;
mod sockets;
mod unasked;

pub(crate) use queue::{Queue, Verdict};
pub(crate) use rules::Hold;
pub(crate) use sockets::{Inside, set_option};

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::getppid;

use crate::sandbox;
use crate::settings::Settings;
use crate::wire::{self, Request};
use services::Services;
use unasked::Unasked;

/// The gateway's interface.
const INTERFACE: &str = "vde0";

/// Runs until the proxy ends. `socket` is the path at which the proxy waits.
///
/// # Errors
/// The proxy is gone.
pub(crate) fn run(settings: &Settings, socket: &Path) -> io::Result<()> {
    set_no_new_privs()?;
    let channel = wire::connect(socket)?;
    let prepared = prepare(settings).and_then(|prepared| {
        let unasked = Unasked::new()?;
        sandbox::enter_gateway()?;
        Ok((prepared, unasked))
    });
    match prepared {
        Ok(((hold, inside, queue, services), unasked)) => {
            wire::send_sockets(&channel, hold, &inside, queue)?;
            drop(inside);
            serve(&channel, services, unasked)
        }
        Err(error) => wire::send_failure(&channel, &error),
    }
}

/// Makes everything that this namespace must have.
fn prepare(settings: &Settings) -> io::Result<(Hold, Vec<Inside>, Option<Queue>, Services)> {
    let ipv6 = settings.net6.is_some();
    sysctls(ipv6)?;
    let hold = rules::install(INTERFACE, ipv6)?;
    routes::install(ipv6)?;
    let (inside, queue) = sockets::make(hold, ipv6)?;
    let services = Services::open(settings, INTERFACE, settings.is_router6)?;
    Ok((hold, inside, queue, services))
}

/// Serves the clients, and answers the proxy's requests until it is gone.
fn serve(channel: &wire::Channel, mut services: Services, mut unasked: Unasked) -> io::Result<()> {
    loop {
        if unasked.is_due() {
            services.advertise();
        }
        let all = [channel.as_fd(), unasked.fd()].into_iter();
        let all = all.chain(services.fds());
        let mut fds: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(unasked.left()).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_request = fds[0].revents().is_some_and(|events| !events.is_empty());
        drop(fds);
        if has_request {
            match channel.receive_request()? {
                None => {
                    // The session ends with this process. Its own process may be stopped, and
                    // would never see that.
                    let _ = kill(getppid(), Signal::SIGCONT);
                    return Ok(());
                }
                Some(Request::Sockets(kind)) => channel.send_stock(kind, sockets::stock(kind))?,
                Some(Request::Ping) => channel.send_alive()?,
            }
        }
        services.serve();
        if let Some(leases) = services.new_leases() {
            channel.send_leases(leases)?;
        }
    }
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
    // A host's congestion control is for its way outside, and some pace what they send. On the
    // cable that only costs: with BBR, 1.3 times the throughput without it.
    set("ipv4/tcp_congestion_control", "reno")?;
    set("core/somaxconn", "16384")?;
    set("ipv4/tcp_max_syn_backlog", "16384")?;
    if ipv6 {
        set("ipv6/conf/all/forwarding", "1")?;
        set("ipv6/icmp/echo_ignore_all", "1")?;
    }
    Ok(())
}
