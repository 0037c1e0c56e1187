//! Notice of changes of links (rtnetlink(7), `RTMGRP_LINK`): that one has come up, above all.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use crate::error::{Result, system};

/// A subscription to the changes in the calling process's network namespace.
pub(super) struct Changes(OwnedFd);

impl Changes {
    /// Subscribes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn open() -> Result<Self> {
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let protocol = SockProtocol::NetlinkRoute;
            let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
            bind(
                fd.as_raw_fd(),
                &NetlinkAddr::new(0, libc::RTMGRP_LINK as u32),
            )?;
            Ok(Self(fd))
        };
        open().map_err(system("watch the links"))
    }

    /// Whether there was a change since the last call.
    pub(super) fn take(&self) -> bool {
        let mut any = false;
        let mut buffer = [0; 4096];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC) {
                // Too many at once are changes, too.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => any = true,
                Err(_) => return any,
            }
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
