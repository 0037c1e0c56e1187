//! When the gateway advertises itself to clients of IPv6 that have not asked.
//!
//! A client may have asked when there was no gateway yet. So all are told when the gateway's link
//! has its carrier, and are told anew when that has changed. The gateway's end may have it a moment
//! before theirs, so the advertisement is repeated, in growing distances.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The first distance.
const FIRST: Duration = Duration::from_millis(50);

/// The longest distance (RFC 4861, section 6.2.1: at most ten minutes).
const LONGEST: Duration = Duration::from_secs(200);

/// The times of unasked advertisements. They begin anew when a link of this namespace has changed.
pub(super) struct Unasked {
    /// Notice of changes of links (rtnetlink(7), `RTMGRP_LINK`).
    changes: Socket,
    next: Instant,
    distance: Duration,
}

impl Unasked {
    /// The first advertisement is due now.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn new() -> io::Result<Self> {
        let mut changes = Socket::new(NETLINK_ROUTE)?;
        changes.bind(&SocketAddr::new(0, libc::RTMGRP_LINK as u32))?;
        changes.set_non_blocking(true)?;
        Ok(Self {
            changes,
            next: Instant::now(),
            distance: FIRST,
        })
    }

    /// Readable when a link has changed.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    /// How long to wait for the next advertisement.
    pub(super) fn left(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }

    /// Whether to advertise now.
    pub(super) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        if self.has_changed() {
            (self.next, self.distance) = (now, FIRST);
        }
        let is_due = now >= self.next;
        if is_due {
            self.next = now + self.distance;
            self.distance = (self.distance * 2).min(LONGEST);
        }
        is_due
    }

    fn has_changed(&self) -> bool {
        let mut any = false;
        loop {
            // What it says does not matter, and may be cut off.
            match self.changes.recv(&mut Vec::with_capacity(1024), 0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return any,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // More changes than the socket holds are changes, too.
                Ok(_) | Err(_) => any = true,
            }
        }
    }
}
