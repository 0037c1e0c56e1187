//! Chosen datagrams to one socket with one system call.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vdens_plugin_api::BATCH_FRAMES;

/// Sends up to [`BATCH_FRAMES`] datagrams on a connected socket. Returns how many it took, 0 if its queue
/// is full.
pub(crate) fn send<'a>(
    socket: impl AsFd,
    datagrams: impl Iterator<Item = &'a [u8]>,
) -> io::Result<usize> {
    // SAFETY: iovec and mmsghdr are plain data for which all bits zero is a valid, empty value.
    let (mut iovecs, mut messages): ([libc::iovec; BATCH_FRAMES], [libc::mmsghdr; BATCH_FRAMES]) =
        unsafe { std::mem::zeroed() };
    let mut count = 0;
    for ((datagram, iovec), message) in datagrams.zip(&mut iovecs).zip(&mut messages) {
        iovec.iov_base = datagram.as_ptr().cast_mut().cast();
        iovec.iov_len = datagram.len();
        message.msg_hdr.msg_iov = iovec;
        message.msg_hdr.msg_iovlen = 1;
        count += 1;
    }
    if count == 0 {
        return Ok(0);
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` messages point to iovecs that point to datagrams, all alive during the
    // call; the kernel only reads the datagrams.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            messages.as_mut_ptr(),
            count,
            flags,
        )
    };
    if let Ok(sent) = usize::try_from(sent) {
        return Ok(sent);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => Ok(0),
        _ => Err(error),
    }
}
