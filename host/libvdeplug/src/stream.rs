//! The vdestream functions: frames on a byte stream, each behind its length.
//!
//! The codec is the kit's ([`wire::framing`](vdens_plugin_kit::wire::framing)). Here are its
//! ends: a callback for each frame that came in, and a descriptor for those that go out.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::uio::writev;
use vdens_plugin_kit::wire::framing::{Decoder, Framing, StreamError};
use vdens_plugin_kit::wire::vdestream::Vdestream;

/// Called with each frame.
pub(crate) type OnFrame = unsafe extern "C" fn(*mut c_void, *mut c_void, usize) -> isize;
/// Called with the type of an error, and a format of printf(3) with its arguments.
pub(crate) type OnError = unsafe extern "C" fn(*mut c_void, c_int, *const c_char, ...);

/// The type of the error that a length is too large (`PACKET_LENGTH_ERROR`).
const LENGTH_ERROR: c_int = 1;
const LENGTH_FORMAT: &CStr = c"a frame of %d bytes is too long for a vdestream";

/// `VDESTREAM`.
pub struct Stream {
    opaque: *mut c_void,
    /// Where frames are written to. It belongs to the program.
    pub(crate) output: c_int,
    on_frame: Option<OnFrame>,
    on_error: Option<OnError>,
    decoder: Decoder<Vdestream>,
}

impl Stream {
    pub(crate) fn new(
        opaque: *mut c_void,
        output: c_int,
        on_frame: Option<OnFrame>,
        on_error: Option<OnError>,
    ) -> Self {
        Self {
            opaque,
            output,
            on_frame,
            on_error,
            decoder: Decoder::new(),
        }
    }

    /// Passes the frames that `piece` completes to the callback. What follows a length that is too
    /// large is dropped: the next piece starts anew.
    ///
    /// # Safety
    /// `stream` is open, and its callbacks can be called. They may send on it, not close it.
    pub(crate) unsafe fn recv(stream: *mut Self, mut piece: &[u8]) {
        // SAFETY: per this function's contract. Only the decoder is borrowed mutably, and no
        // callback can reach that but by a nested call of this function, which C programs never
        // make.
        let (decoder, opaque, on_frame, on_error) = unsafe {
            let Self {
                opaque,
                on_frame,
                on_error,
                ..
            } = *stream;
            (&mut (*stream).decoder, opaque, on_frame, on_error)
        };
        while !piece.is_empty() {
            let space = decoder.space();
            let (taken, rest) = piece.split_at(piece.len().min(space.len()));
            space[..taken.len()].copy_from_slice(taken);
            decoder.filled(taken.len());
            piece = rest;
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => {
                        let bytes = frame.as_ptr().cast_mut().cast();
                        if let Some(call) = on_frame {
                            // SAFETY: the program gave the function for this.
                            unsafe { call(opaque, bytes, frame.len()) };
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        let StreamError::TooLong { length, .. } = error else {
                            return;
                        };
                        *decoder = Decoder::new();
                        if let Some(call) = on_error {
                            let format = LENGTH_FORMAT.as_ptr();
                            // SAFETY: as above; the format takes one int.
                            unsafe { call(opaque, LENGTH_ERROR, format, length as c_int) };
                        }
                        return;
                    }
                }
            }
        }
    }
}

/// Writes a frame to a stream. A frame is written as a whole or not at all: behind a part of one,
/// nothing could be read any more.
pub(crate) fn send(output: c_int, frame: &[u8]) -> nix::Result<usize> {
    if output < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: the descriptor is the program's, which keeps it open during the call. If not, the
    // kernel says so.
    let output = unsafe { BorrowedFd::borrow_raw(output) };
    let header = match u16::try_from(frame.len()) {
        Ok(length) if frame.len() <= Vdestream::MAX_FRAME => length.to_be_bytes(),
        _ => return Err(Errno::EMSGSIZE),
    };
    let total = header.len() + frame.len();
    let mut done = 0_usize;
    while done < total {
        let head = &header[done.min(header.len())..];
        let body = &frame[done.saturating_sub(header.len())..];
        match writev(output, &[IoSlice::new(head), IoSlice::new(body)]) {
            Ok(written) => done += written,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if done > 0 => wait(output)?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(total)
}

fn wait(output: BorrowedFd<'_>) -> nix::Result<()> {
    let mut fds = [PollFd::new(output, PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
