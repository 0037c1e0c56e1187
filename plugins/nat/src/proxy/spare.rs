//! The last descriptors of this process, which are kept for what must not fail: connections that
//! the kernel has accepted already, and sockets from the gateway.
//!
//! The kernel gives the lowest number that is free (open(2)). So a high number says that few are
//! left, without any account of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// How many are kept.
const KEPT: usize = 256;

/// The first number that is kept.
static FIRST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Raises the limit of descriptors as far as the user may, and tells how many may be used freely.
pub(crate) fn raise_limit() -> usize {
    let limit = match getrlimit(Resource::RLIMIT_NOFILE) {
        Err(_) => 1024,
        Ok((soft, hard)) => match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => hard as usize,
            Err(_) => soft as usize,
        },
    };
    let free = limit.saturating_sub(KEPT).max(limit / 2);
    FIRST.store(free, Ordering::Relaxed);
    free
}

/// The descriptor, unless it is one of the last.
///
/// # Errors
/// `EMFILE`: it is, and is closed.
pub(crate) fn not_last<T: AsFd>(made: T) -> io::Result<T> {
    let number = made.as_fd().as_raw_fd() as usize;
    match number < FIRST.load(Ordering::Relaxed) {
        true => Ok(made),
        false => Err(Errno::EMFILE.into()),
    }
}
