//! The socket: where datagrams come in, and how they leave.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use nix::{setsockopt_impl, sockopt_impl};
use vdens_plugin_kit::{Error, Result};

use crate::config::Config;

sockopt_impl!(
    /// Joins an IPv4 group by an interface's index (ip(7)).
    JoinByIndex,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_ADD_MEMBERSHIP,
    libc::ip_mreqn
);

/// A socket as `config` asks for it.
///
/// # Errors
/// The port is taken, or the interface or the group cannot be had.
pub(crate) fn open(config: &Config) -> Result<UdpSocket> {
    let failed = |what: String| move |errno: Errno| Error::io(what, &errno.into());
    let family = match config.local {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(failed("make a UDP socket".to_owned()))?;
    if config.local.is_ipv6() {
        // Somebody else may have the port with IPv4.
        setsockopt(&fd, sockopt::Ipv6V6Only, &true).map_err(failed("use IPv6 alone".to_owned()))?;
    }
    let index = match &config.interface {
        Some(name) => use_interface(&fd, name)?,
        None => 0,
    };
    let at = SockaddrStorage::from(config.local);
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &at).map_err(|errno| {
        let error = failed(format!("use UDP port {}", config.local))(errno);
        match errno {
            Errno::EADDRINUSE => error.hint(
                "one program on a machine can have it; give port=NUMBER, at all ends the same",
            ),
            Errno::EADDRNOTAVAIL => error.hint("local= must be an address of this machine"),
            _ => error,
        }
    })?;
    let socket = UdpSocket::from(fd);
    let (far, ttl) = (config.far.ip(), config.ttl.map(u32::from));
    set_ttl(&socket, far, ttl)
        .map_err(|error| Error::io("set the time to live of datagrams", &error))?;
    if far.is_multicast() {
        join(&socket, far, index).map_err(|error| {
            Error::io(format_args!("join the group {far}"), &error).hint(
                "name the interface by which it is reached with if=NAME, or add a route to it",
            )
        })?;
    }
    Ok(socket)
}

/// Makes all traffic go through an interface; its index.
fn use_interface(fd: &OwnedFd, name: &str) -> Result<u32> {
    let index = if_nametoindex(name).map_err(|errno| {
        Error::io(
            format_args!("find the interface '{}'", name.escape_debug()),
            &errno.into(),
        )
        .hint("see `ip link`")
    })?;
    setsockopt(fd, sockopt::BindToDevice, &name.into())
        .map_err(|errno| Error::io(format_args!("use the interface '{name}'"), &errno.into()))?;
    Ok(index)
}

fn set_ttl(socket: &UdpSocket, far: IpAddr, ttl: Option<u32>) -> std::io::Result<()> {
    let hops = |ttl: u32| libc::c_int::try_from(ttl).unwrap_or(libc::c_int::MAX);
    match (far, ttl) {
        (IpAddr::V4(_), Some(ttl)) => {
            socket.set_multicast_ttl_v4(ttl)?;
            socket.set_ttl(ttl)
        }
        (IpAddr::V6(_), Some(ttl)) => {
            setsockopt(socket, sockopt::Ipv6MulticastHops, &hops(ttl))?;
            Ok(setsockopt(socket, sockopt::Ipv6Ttl, &hops(ttl))?)
        }
        // The system's: 1 for groups.
        (_, None) => Ok(()),
    }
}

/// Joins a group on the interface with that index. If it is 0, the kernel chooses the interface.
fn join(socket: &UdpSocket, group: IpAddr, index: u32) -> std::io::Result<()> {
    match group {
        IpAddr::V4(group) => {
            socket.set_multicast_loop_v4(false)?;
            let request = libc::ip_mreqn {
                imr_multiaddr: in_addr(group),
                imr_address: in_addr(Ipv4Addr::UNSPECIFIED),
                imr_ifindex: index as libc::c_int,
            };
            Ok(setsockopt(socket, JoinByIndex, &request)?)
        }
        IpAddr::V6(group) => {
            socket.set_multicast_loop_v6(false)?;
            socket.join_multicast_v6(&group, index)
        }
    }
}

fn in_addr(address: Ipv4Addr) -> libc::in_addr {
    libc::in_addr {
        s_addr: u32::from_ne_bytes(address.octets()),
    }
}
