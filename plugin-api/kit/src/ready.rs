//! A descriptor that is always readable and writable.
//!
//! The host calls a link when its descriptor is readable. A link may take more off a socket than a
//! batch has room for. Then it holds frames that the socket no longer has. Until they are gone, it
//! returns an [`AlwaysReady`] as its descriptor. While it has no far end and drops what is sent, it
//! returns one as the descriptor to send to.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{Error, Result};

/// A descriptor that is always readable and writable.
#[derive(Debug)]
pub struct AlwaysReady(EventFd);

impl AlwaysReady {
    /// An eventfd(2) that is never reset.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new() -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        EventFd::from_value_and_flags(1, flags)
            .map(Self)
            .map_err(|errno| Error::io("make an eventfd", &errno.into()))
    }
}

impl AsFd for AlwaysReady {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
