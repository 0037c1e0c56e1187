//! Other processes.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// A descriptor for the process with this id (pidfd_open(2), Linux 5.3). It becomes readable when
/// the process ends.
///
/// # Errors
/// There is no such process, or there are too many descriptors.
pub fn open_pidfd(process: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process, 0) };
    let fd = RawFd::try_from(Errno::result(fd)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: pidfd_open returned this descriptor just now, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
