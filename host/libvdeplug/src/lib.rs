//! `libvdeplug.so.2`: the C interface of VDE's library, behind which every scheme of vdens works.
//!
//! A program that was linked to VDE's library opens VNLs of vdens when the dynamic linker finds
//! this library first, for example in `LD_LIBRARY_PATH`. The functions, their types and values are
//! those of `libvdeplug.h`, interface version 1 (include/libvdeplug.h).
//!
//! # Theory of operation
//!
//! Plugins are not loaded into the program, which may have threads, signal handlers and a seccomp
//! filter of its own. Each connection has a helper process, a `vde_plug` ([`helper`] finds it,
//! [`spawn`] starts it), and two descriptors:
//!
//! - the *control* descriptor is one end of a socket pair. Its other end is the helper's. On it the
//!   helper sends the outcome of the opening, once; after that the descriptor is silent until one
//!   of both sides is gone. The helper ends when the program's last copy is closed.
//! - the *data* descriptor comes with that outcome. If the panel can carry the frames, it is a tap
//!   there: `vde_send` is a write to the kernel's bridge, and no process stands between the program
//!   and its peer. Otherwise it is one end of a socket pair whose packets are frames.
//!
//! [`mod@connection`] holds the two, [`stream`] is the vdestream codec. The functions in this file
//! check what C passes. A wrong argument gives -1 or null, and errno.

// A reader of the source follows these links, and `cargo doc --document-private-items` has them.
#![allow(rustdoc::private_intra_doc_links)]

mod connection;
mod helper;
mod spawn;
mod stream;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::slice;
use std::sync::atomic::AtomicI64;

use nix::errno::Errno;

use crate::connection::Connection;
use crate::helper::Request;
use crate::stream::{OnError, OnFrame, Stream};

/// The version of VDE that the interface comes from. The reference exports it too.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static __vde_version_tag: AtomicI64 = AtomicI64::new(4);

/// Tells the plugin libvdeplug:// that this is no library with C plugins.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)]
pub static vdens_libvdeplug: AtomicI64 = AtomicI64::new(1);

/// `struct vde_open_args`.
#[repr(C)]
pub struct OpenArgs {
    /// The port of a switch; 0 for any.
    port: c_int,
    /// A group's name, or null.
    group: *const c_char,
    /// Permission bits of a socket; 0 for the usual ones.
    mode: libc::mode_t,
}

/// Runs the body of a C function. An error becomes errno and `failure`. So does a panic, which must
/// not reach C.
fn guard<T>(failure: T, body: impl FnOnce() -> nix::Result<T>) -> T {
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or(Err(Errno::EIO));
    outcome.unwrap_or_else(|errno| {
        errno.set();
        failure
    })
}

/// A C string that may be null.
///
/// # Safety
/// `text` is null, or a string that ends in NUL and outlives `'a`.
unsafe fn text<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: per this function's contract.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}

/// The connection that C passes.
///
/// # Safety
/// `conn` is null, or what [`vde_open_real`] has returned. It may be closed.
unsafe fn connection<'a>(conn: *const Connection) -> nix::Result<&'a Connection> {
    // SAFETY: connections are never freed.
    unsafe { conn.as_ref() }.ok_or(Errno::EINVAL)
}

/// Opens a VNL. Null, with errno, if that fails.
///
/// # Safety
/// The strings are null or end in NUL. `args` is null or points to a complete structure.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vde_open_real(
    vnl: *const c_char,
    description: *const c_char,
    _interface_version: c_int,
    args: *const OpenArgs,
) -> *const Connection {
    guard(null_mut(), || {
        // SAFETY: per this function's contract.
        let request = unsafe {
            let args = args.as_ref();
            Request {
                vnl: text(vnl).unwrap_or_default(),
                description: text(description),
                port: args.map_or(0, |args| args.port),
                group: args.and_then(|args| text(args.group)),
                mode: args.map_or(0, |args| args.mode),
            }
        };
        Ok(Connection::open(&request)? as *const Connection as *mut Connection)
    })
}

/// Receives a frame.
///
/// # Safety
/// As for [`vde_datafd`], and the `len` bytes at `buffer` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vde_recv(
    conn: *const Connection,
    buffer: *mut c_void,
    len: usize,
    flags: c_int,
) -> isize {
    guard(-1, || {
        if buffer.is_null() || len == 0 {
            return Err(Errno::EINVAL);
        }
        // SAFETY: per this function's contract; the bytes are only written.
        let (conn, room) = unsafe {
            let room = slice::from_raw_parts_mut(buffer.cast(), len.min(isize::MAX as usize));
            (connection(conn)?, room)
        };
        conn.recv(room, flags).map(usize::cast_signed)
    })
}

/// Sends a frame.
///
/// # Safety
/// As for [`vde_datafd`], and there are `len` bytes at `buffer`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vde_send(
    conn: *const Connection,
    buffer: *const c_void,
    len: usize,
    flags: c_int,
) -> isize {
    guard(-1, || {
        if buffer.is_null() && len > 0 {
            return Err(Errno::EINVAL);
        }
        // SAFETY: per this function's contract.
        let (conn, frame) = unsafe {
            let frame = match len.min(isize::MAX as usize) {
                0 => &[],
                len => slice::from_raw_parts(buffer.cast(), len),
            };
            (connection(conn)?, frame)
        };
        conn.send(frame, flags).map(usize::cast_signed)
    })
}

/// The descriptor that is readable when there are frames.
///
/// # Safety
/// `conn` is null, or what [`vde_open_real`] has returned. It may be closed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vde_datafd(conn: *const Connection) -> c_int {
    // SAFETY: per this function's contract.
    guard(-1, || unsafe { connection(conn) }?.data())
}

/// The descriptor that is readable when the connection is over.
///
/// # Safety
/// As for [`vde_datafd`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vde_ctlfd(conn: *const Connection) -> c_int {
    // SAFETY: per this function's contract.
    guard(-1, || unsafe { connection(conn) }?.control())
}

/// Closes a connection.
///
/// # Safety
/// As for [`vde_datafd`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vde_close(conn: *const Connection) -> c_int {
    // SAFETY: per this function's contract; connections are never freed.
    guard(-1, || unsafe { connection(conn) }?.close().map(|()| 0))
}

/// Makes a vdestream. Null, with errno, if there is no output.
///
/// # Safety
/// The functions are null, or can be called with `opaque` as long as the stream is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdestream_open(
    opaque: *mut c_void,
    output: c_int,
    on_frame: Option<OnFrame>,
    on_error: Option<OnError>,
) -> *mut Stream {
    guard(null_mut(), || {
        let stream = Stream::new(opaque, output, on_frame, on_error);
        Ok(Box::into_raw(Box::new(stream)))
    })
}

/// Writes a frame to the stream's output. Returns how many bytes that took.
///
/// # Safety
/// `stream` is null or open. There are `len` bytes at `buffer`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdestream_send(
    stream: *const Stream,
    buffer: *const c_void,
    len: usize,
) -> isize {
    guard(-1, || {
        if stream.is_null() || buffer.is_null() && len > 0 {
            return Err(Errno::EINVAL);
        }
        // SAFETY: per this function's contract. The stream's decoder, which `vdestream_recv` may be
        // using further up the stack, is not touched.
        let (output, frame) = unsafe {
            let frame = match len.min(isize::MAX as usize) {
                0 => &[],
                len => slice::from_raw_parts(buffer.cast(), len),
            };
            ((*stream).output, frame)
        };
        stream::send(output, frame).map(usize::cast_signed)
    })
}

/// Takes a piece of the stream's input, and passes on the frames that are complete.
///
/// # Safety
/// `stream` is null or open. There are `len` bytes at `buffer`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdestream_recv(stream: *mut Stream, buffer: *const u8, len: usize) {
    guard((), || {
        if stream.is_null() || buffer.is_null() || len == 0 {
            return Err(Errno::EINVAL);
        }
        // SAFETY: per this function's contract.
        unsafe {
            let piece = slice::from_raw_parts(buffer, len.min(isize::MAX as usize));
            Stream::recv(stream, piece);
        }
        Ok(())
    });
}

/// Frees a stream. Its output stays open.
///
/// # Safety
/// `stream` is null or open, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vdestream_close(stream: *mut Stream) {
    guard((), || {
        if stream.is_null() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: vdestream_open has made it from a box.
        drop(unsafe { Box::from_raw(stream) });
        Ok(())
    });
}
