//! An open connection of libvdeplug: the six functions of its interface, and their results.
//!
//! A connection stays in the thread that opened it: C plugins need not be thread-safe.

use std::ffi::{CString, c_int};
use std::os::fd::BorrowedFd;
use std::ptr::null_mut;

use nix::errno::Errno;
use vdens_plugin_kit::{Error, ErrorKind, OpenOptions, Result};

use crate::library::{Conn, INTERFACE_VERSION, Library, OpenArgs};

/// The plugins that Debian ships in packages other than libvdeplug2.
const PACKAGED: [&str; 5] = ["agno", "pcap", "slirp", "vdesl", "vlan"];

/// The mode that goes with a port or a group: the default of VDE's programs. Plugins use it as it
/// is.
const DEFAULT_MODE: libc::mode_t = 0o700;

/// An open connection. Dropping it closes it, and may block.
pub(crate) struct Connection {
    library: Library,
    conn: Conn,
    data: c_int,
    control: c_int,
}

/// The result of a call of `vde_recv`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A frame of so many bytes.
    Frame(usize),
    /// No frame: the plugin handled a message itself.
    Nothing,
    /// An empty frame, or the end of a stream.
    Empty,
    /// The call failed.
    Failed(Errno),
}

impl Connection {
    /// Opens a VNL. May block.
    ///
    /// # Errors
    /// The VNL cannot be passed to C, or the plugin reports an error. The error's number is
    /// `EPROTONOSUPPORT` if there is no plugin.
    pub(crate) fn open(library: Library, vnl: &str, options: &OpenOptions) -> Result<Self> {
        let text = |what: &str, text: &str| {
            CString::new(text)
                .map(CString::into_bytes_with_nul)
                .map_err(|_| Error::usage(format!("the {what} contains a NUL byte")))
        };
        let mut name = text("VNL", vnl)?;
        let mut description = text("description", &options.description)?;
        let group = options.group.as_deref();
        let mut group = group.map(|group| text("group", group)).transpose()?;
        let port = options.port.map_or(Ok(0), c_int::try_from);
        let mut args = OpenArgs {
            port: port.map_err(|_| Error::usage("the port number is too large"))?,
            group: group
                .as_mut()
                .map_or(null_mut(), |group| group.as_mut_ptr().cast()),
            mode: options.mode.unwrap_or(DEFAULT_MODE),
        };
        let is_default = (options.port, &options.group, options.mode) == (None, &None, None);
        let args = if is_default {
            null_mut()
        } else {
            &raw mut args
        };
        Errno::clear();
        // SAFETY: the strings end in NUL. They, and what `args` points to if it is not null, belong
        // to this function until the call returns, and the plugin uses them no longer.
        let conn = unsafe {
            (library.open)(
                name.as_mut_ptr().cast(),
                description.as_mut_ptr().cast(),
                INTERFACE_VERSION,
                args,
            )
        };
        if conn.is_null() {
            return Err(refusal(vnl, Errno::last()));
        }
        // SAFETY: `conn` is an open connection.
        let (data, control) = unsafe { ((library.datafd)(conn), (library.ctlfd)(conn)) };
        let connection = Self {
            library,
            conn,
            data,
            control,
        };
        match data {
            ..0 => Err(Error::new(
                ErrorKind::Unsupported,
                format!("the C plugin for {vnl} has no descriptor to wait for frames on"),
            )),
            _ => Ok(connection),
        }
    }

    /// The descriptor that is readable when [`Connection::recv`] has something to do.
    pub(crate) fn data(&self) -> BorrowedFd<'_> {
        // SAFETY: it is not -1, and the plugin's as long as the connection is open. It is only
        // polled: if it were closed, poll would report that.
        unsafe { BorrowedFd::borrow_raw(self.data) }
    }

    /// The descriptor that is readable when the far end is gone, if the plugin has one.
    pub(crate) fn control(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: as for `data`.
        (self.control >= 0).then(|| unsafe { BorrowedFd::borrow_raw(self.control) })
    }

    /// Receives a frame. Blocks unless [`Connection::data`] is readable.
    pub(crate) fn recv(&mut self, room: &mut [u8]) -> Received {
        Errno::clear();
        // SAFETY: the connection is open, and the plugin may write `room.len()` bytes to `room`.
        let got =
            unsafe { (self.library.recv)(self.conn, room.as_mut_ptr().cast(), room.len(), 0) };
        match usize::try_from(got) {
            Err(_) => Received::Failed(Errno::last()),
            Ok(0) => Received::Empty,
            Ok(got) if (vdens_plugin_kit::MIN_FRAME..=room.len()).contains(&got) => {
                Received::Frame(got)
            }
            Ok(_) => Received::Nothing,
        }
    }

    /// Sends a frame, which may block; whether the plugin took it.
    pub(crate) fn send(&mut self, frame: &[u8]) -> bool {
        // SAFETY: the connection is open, and the plugin only reads the frame.
        let sent = unsafe { (self.library.send)(self.conn, frame.as_ptr().cast(), frame.len(), 0) };
        sent >= 0
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the connection is open and not used again. The interface defines no failure.
        unsafe { (self.library.close)(self.conn) };
    }
}

/// The error for a `vde_open` that returned null with `errno`.
fn refusal(vnl: &str, errno: Errno) -> Error {
    let scheme = vnl.split_once("://").map_or("vde", |(scheme, _)| scheme);
    match errno {
        Errno::EPROTONOSUPPORT => {
            let nested = if vnl.contains('{') {
                " or one that is nested in it"
            } else {
                ""
            };
            let hint = match PACKAGED.contains(&scheme) {
                true => format!("install libvdeplug-{scheme} (Debian and Ubuntu)"),
                false => format!("install the package that has libvdeplug_{scheme}.so"),
            };
            Error {
                errno: errno as i32,
                ..Error::new(
                    ErrorKind::Unsupported,
                    format!("libvdeplug has no C plugin for '{scheme}'{nested}"),
                )
            }
            .hint(hint)
        }
        // Some plugins fail without a reason.
        Errno::UnknownErrno => Error::usage(format!(
            "libvdeplug cannot open {vnl}, and its plugin gives no reason"
        ))
        .hint(format!("see man libvdeplug_{scheme}")),
        errno => {
            let mut error = Error::io(format_args!("open {vnl}"), &errno.into());
            error.message = format!("libvdeplug {}", error.message);
            error.hint(format!("see man libvdeplug_{scheme}"))
        }
    }
}
