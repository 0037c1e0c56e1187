//! The gateway's sockets: transparent ones, which take what was sent to any address and answer from
//! any address (IP_TRANSPARENT, ip(7)).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::queue::Queue;
use super::rules::{Hold, TCP_PORT, UDP_PORT};
use crate::forward::Protocol::{Tcp as Connections, Udp as Datagrams};
use crate::wire::{Kind, STOCK};

/// The connections that wait to be accepted, at most.
const BACKLOG: i32 = 16_384;

/// The size of UDP's buffers, in bytes: as much as the kernel allows an ordinary user, at most
/// this.
const UDP_BUFFER: usize = 4 << 20;

/// The sockets of one address family in the gateway's namespace.
pub(crate) struct Inside {
    /// Accepts connections.
    pub tcp: OwnedFd,
    /// Receives datagrams.
    pub udp: OwnedFd,
    /// Receives and answers echo requests: raw ICMP.
    pub icmp: OwnedFd,
}

/// Makes the sockets for IPv4 and, if wanted, IPv6, and the queue of held connections.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn make(hold: Hold, ipv6: bool) -> io::Result<(Vec<Inside>, Option<Queue>)> {
    let mut inside = vec![family(Domain::IPV4)?];
    if ipv6 {
        inside.push(family(Domain::IPV6)?);
    }
    let queue = match hold {
        Hold::None => None,
        Hold::Queue | Hold::Compat => Some(Queue::open()?),
    };
    Ok((inside, queue))
}

fn family(domain: Domain) -> io::Result<Inside> {
    let tcp = transparent(domain, Type::STREAM, None)?;
    tcp.set_reuse_address(true)?;
    // What it accepts has these options, too.
    tcp.set_tcp_nodelay(true)?;
    tcp.set_keepalive(true)?;
    tcp.bind(&any(domain, TCP_PORT).into())?;
    tcp.listen(BACKLOG)?;
    let udp = transparent(domain, Type::DGRAM, None)?;
    bulk(&udp);
    if domain == Domain::IPV4 {
        setsockopt(&udp, sockopt::Ipv4OrigDstAddr, &true)?;
    } else {
        setsockopt(&udp, sockopt::Ipv6OrigDstAddr, &true)?;
    }
    udp.bind(&any(domain, UDP_PORT).into())?;
    let icmp = if domain == Domain::IPV4 {
        let icmp = transparent(domain, Type::RAW, Some(Protocol::ICMPV4))?;
        // ICMP_FILTER (1): a mask of the types that are not received.
        set_option(&icmp, 255, 1, &(!(1_u32 << 8)).to_ne_bytes())?;
        icmp
    } else {
        let icmp = transparent(domain, Type::RAW, Some(Protocol::ICMPV6))?;
        setsockopt(&icmp, sockopt::Ipv6RecvPacketInfo, &true)?;
        // ICMP6_FILTER (1) of IPPROTO_ICMPV6 (58): a mask of the types that are not received.
        let mut mask = [0xff; 32];
        mask[16] = 0xfe;
        set_option(&icmp, 58, 1, &mask)?;
        icmp
    };
    Ok(Inside {
        tcp: tcp.into(),
        udp: udp.into(),
        icmp: icmp.into(),
    })
}

/// Sockets for the proxy to bind: to ports from which datagrams are answered, and to the addresses
/// of those who connect from outside.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn stock(kind: Kind) -> io::Result<Vec<OwnedFd>> {
    let domain = if kind.ipv6 {
        Domain::IPV6
    } else {
        Domain::IPV4
    };
    let make = |_| {
        let socket = match kind.protocol {
            Datagrams => transparent(domain, Type::DGRAM, None)?,
            Connections => transparent(domain, Type::STREAM, None)?,
        };
        socket.set_reuse_address(true)?;
        if kind.protocol == Datagrams {
            bulk(&socket);
        }
        Ok(socket.into())
    };
    (0..STOCK).map(make).collect()
}

fn transparent(domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), protocol)?;
    if domain == Domain::IPV4 {
        socket.set_ip_transparent_v4(true)?;
    } else {
        // A raw socket has one family anyway.
        if kind != Type::RAW {
            socket.set_only_v6(true)?;
        }
        set_option(
            &socket,
            libc::SOL_IPV6,
            libc::IPV6_TRANSPARENT,
            &1_i32.to_ne_bytes(),
        )?;
    }
    Ok(socket)
}

/// Large buffers and super-frames, where the kernel has them.
fn bulk(socket: &Socket) {
    let _ = socket.set_recv_buffer_size(UDP_BUFFER);
    let _ = socket.set_send_buffer_size(UDP_BUFFER);
    let _ = setsockopt(socket, sockopt::UdpGroSegment, &true);
}

/// Sets an option that no crate has a name for.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn set_option(socket: &Socket, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the pointer and the length are those of a live slice, which the kernel only reads.
    let set = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn any(domain: Domain, port: u16) -> SocketAddr {
    if domain == Domain::IPV4 {
        (Ipv4Addr::UNSPECIFIED, port).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, port).into()
    }
}
