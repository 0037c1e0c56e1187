//! Packet sockets (packet(7)): which packets of which interface they receive.

use std::mem::zeroed;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;

/// Has a packet socket receive the packets of a protocol (`ETH_P_…`) on the interface with an
/// index.
///
/// # Errors
/// There is no such interface, or `socket` is no packet socket.
pub(crate) fn bind(socket: &OwnedFd, protocol: i32, index: i32) -> nix::Result<()> {
    // SAFETY: an all-zero address is a valid one: its members are numbers.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = index;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `address`, and keeps no pointer.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    Errno::result(result).map(drop)
}
