//! Notifications of the kernel: the interfaces of a namespace that change.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
};

use super::{LONGEST_DATAGRAM, replies, view};
use crate::error::{Result, system};

/// A socket that tells of changes. It is readable when there is one.
#[derive(Debug)]
pub(crate) struct LinkMonitor(OwnedFd);

impl LinkMonitor {
    /// For the calling process's network namespace.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn open() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let open = || {
            let family = AddressFamily::Netlink;
            let protocol = SockProtocol::NetlinkRoute;
            let socket = socket::socket(family, SockType::Raw, flags, protocol)?;
            let groups = libc::RTMGRP_LINK.cast_unsigned();
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
            Ok(Self(socket))
        };
        open().map_err(system("watch interfaces"))
    }

    /// The interfaces that have changed, and whether they now have carrier. Of an interface that
    /// changed often, only the last state counts.
    pub(crate) fn changes(&self) -> BTreeMap<String, bool> {
        let mut changes = BTreeMap::new();
        let mut buffer = vec![0; LONGEST_DATAGRAM];
        loop {
            let length = match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                // The kernel dropped some. Those that follow tell the state all the same.
                Err(Errno::EINTR | Errno::ENOBUFS) => continue,
                Err(_) => return changes,
            };
            // A notification replies to no request.
            for payload in replies(&buffer[..length], 0) {
                match payload {
                    Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))) => {
                        let view = view::view(&link);
                        changes.insert(view.name, view.carrier);
                    }
                    Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))) => {
                        changes.insert(view::view(&link).name, false);
                    }
                    _ => {}
                }
            }
        }
    }
}

impl From<OwnedFd> for LinkMonitor {
    /// The socket of another process's [`LinkMonitor`].
    fn from(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl From<LinkMonitor> for OwnedFd {
    fn from(monitor: LinkMonitor) -> Self {
        monitor.0
    }
}

impl AsFd for LinkMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
