//! Many datagrams a system call: recvmmsg and sendmmsg over slices.
//!
//! The message headers live on the stack and point into the caller's buffers; nothing is allocated.
//! Both calls are non-blocking whatever the socket's mode.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::batch::BATCH_FRAMES;

const EMPTY_IOVEC: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

fn headers() -> [libc::mmsghdr; BATCH_FRAMES] {
    // SAFETY: mmsghdr is plain data for which all bits zero is a valid value: no name, no data, no control.
    unsafe { std::mem::zeroed() }
}

/// Receives up to `lengths.len()` datagrams, number i at `room[i * stride + front..(i + 1) * stride]`, and
/// stores their true lengths, which may exceed the place they had. Returns how many came, 0 if none
/// was waiting.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    room: &mut [u8],
    stride: usize,
    front: usize,
    lengths: &mut [usize],
) -> io::Result<usize> {
    let mut iovecs = [EMPTY_IOVEC; BATCH_FRAMES];
    let mut messages = headers();
    let count = room
        .chunks_exact_mut(stride)
        .zip(iovecs.iter_mut().zip(messages.iter_mut()))
        .take(lengths.len())
        .map(|(place, (iovec, message))| {
            let place = &mut place[front..];
            *iovec = libc::iovec {
                iov_base: place.as_mut_ptr().cast(),
                iov_len: place.len(),
            };
            message.msg_hdr.msg_iov = iovec;
            message.msg_hdr.msg_iovlen = 1;
        })
        .count();
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: the first `count` messages point to iovecs that point into `room`; all outlive the call.
    let taken = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            messages.as_mut_ptr(),
            count as u32,
            libc::MSG_DONTWAIT | libc::MSG_TRUNC,
            std::ptr::null_mut(),
        )
    };
    if taken < 0 {
        return none_if_would_block();
    }
    let taken = (taken as usize).min(count);
    for (length, message) in lengths.iter_mut().zip(&messages[..taken]) {
        *length = message.msg_len as usize;
    }
    Ok(taken)
}

/// Sends up to [`BATCH_FRAMES`] datagrams on a connected socket with one system call (sendmmsg). Each has two parts,
/// the first of which may be empty (see [`Frame::wrapped`](crate::Frame::wrapped)). Returns how many the socket took;
/// fewer than all, or 0, when its queue is full.
///
/// # Errors
/// What sendmmsg reports of the first datagram, except that the queue is full.
pub fn send_datagrams<'a>(
    socket: impl AsFd,
    datagrams: impl Iterator<Item = [&'a [u8]; 2]>,
) -> io::Result<usize> {
    let mut iovecs = [[EMPTY_IOVEC; 2]; BATCH_FRAMES];
    let mut messages = headers();
    let count = datagrams
        .zip(iovecs.iter_mut().zip(messages.iter_mut()))
        .map(|(parts, (iovec, message))| {
            *iovec = parts.map(|part| libc::iovec {
                iov_base: part.as_ptr().cast_mut().cast(),
                iov_len: part.len(),
            });
            let used = if parts[0].is_empty() {
                &mut iovec[1..]
            } else {
                &mut iovec[..]
            };
            message.msg_hdr.msg_iov = used.as_mut_ptr();
            message.msg_hdr.msg_iovlen = used.len();
        })
        .count();
    if count == 0 {
        return Ok(0);
    }
    // SAFETY: the first `count` messages point to iovecs that point to live datagrams, which the kernel only reads.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_fd().as_raw_fd(),
            messages.as_mut_ptr(),
            count as u32,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if sent < 0 {
        return none_if_would_block();
    }
    Ok(sent as usize)
}

fn none_if_would_block() -> io::Result<usize> {
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => Ok(0),
        _ => Err(error),
    }
}
