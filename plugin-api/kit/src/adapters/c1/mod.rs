//! The door c1: the plain C types of the crate [`vdens_plugin_c`], in both directions.
//!
//! `outgoing` has the tables that this side fills in: a plugin's, a link's, the host's. `incoming`
//! reads those of the other side, which may be written in C by hand. So it checks all that can be
//! checked: null pointers, sizes, text. What it finds wrong is an error of one line. `panel` has
//! both directions of what came after ABI 1.

mod incoming;
mod outgoing;
pub(super) mod panel;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ffi::{CStr, CString, c_char, c_int};

use vdens_plugin_c as c;

use crate::{Error, ErrorKind, Result};

pub(super) use incoming::{Module, bind};
pub use outgoing::{CPlugin, c_string, plugin};
pub use panel::{PanelCalls, take_panel};

/// Text as the other side passed it; `None` for a null pointer. What is not UTF-8 in it is
/// replaced.
///
/// # Safety
/// A pointer that is not null points to text that ends with a NUL byte, unchanged for `'a`.
unsafe fn text<'a>(text: *const c_char) -> Option<Cow<'a, str>> {
    // SAFETY: per this function's contract.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy())
}

/// As [`text`], for an argument that must be there.
///
/// # Errors
/// It is null.
///
/// # Safety
/// As for [`text`].
unsafe fn argument<'a>(argument: *const c_char, what: &str) -> Result<Cow<'a, str>> {
    // SAFETY: per this function's contract.
    unsafe { text(argument) }.ok_or_else(|| Error::usage(format!("{what} is a null pointer")))
}

/// Text in a buffer of fixed size, which may lack its NUL byte. It becomes one line.
fn buffered(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> = buffer
        .iter()
        .map(|byte| *byte as u8)
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).replace(['\n', '\r'], " ")
}

/// Writes text into a buffer, with a NUL byte. Text that is too long ends with "…".
fn fill(buffer: &mut [c_char], text: &str) {
    const CUT: &str = "…";
    let whole = text.split('\0').next().unwrap_or_default();
    let room = buffer.len().saturating_sub(1);
    let parts = match whole.len() <= room {
        true => [whole, ""],
        false => {
            let cut = (0..=room.saturating_sub(CUT.len())).rev();
            let mut cut = cut.filter(|at| whole.is_char_boundary(*at));
            [&whole[..cut.next().unwrap_or(0)], CUT]
        }
    };
    let bytes = parts.iter().flat_map(|part| part.bytes()).chain([0]);
    for (to, byte) in buffer.iter_mut().zip(bytes) {
        *to = byte as c_char;
    }
}

/// Text for the other side.
///
/// # Errors
/// It contains a NUL byte.
fn c_text(text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| Error::usage(format!("a NUL byte is in '{}'", text.escape_debug())))
}

/// An empty error, for a callee to fill in.
const NO_ERROR: c::Error = c::Error {
    code: 0,
    errnum: 0,
    message: [0; 2048],
    hint: [0; 1024],
};

/// What a callee wrote. `what` says what failed if the callee says nothing.
fn error_from(raw: &c::Error, what: &str) -> Error {
    let message = match buffered(&raw.message) {
        empty if empty.is_empty() => format!("{what} failed, and the plugin does not say why"),
        message => message,
    };
    Error {
        kind: ErrorKind::from_code(raw.code),
        errno: raw.errnum,
        message,
        hint: buffered(&raw.hint),
    }
}

/// Ends a function of this side: 0 and the value in its place, or -1 and the error in its place.
///
/// # Safety
/// `error` is null, or valid and exclusive.
unsafe fn finish<T>(result: Result<T>, error: *mut c::Error, value: impl FnOnce(T)) -> c_int {
    match result {
        Ok(it) => {
            value(it);
            0
        }
        Err(failure) => {
            // SAFETY: per this function's contract.
            if let Some(error) = unsafe { error.as_mut() } {
                error.code = failure.kind as u32;
                error.errnum = failure.errno;
                fill(&mut error.message, &failure.message);
                fill(&mut error.hint, &failure.hint);
            }
            -1
        }
    }
}

#[cfg(all(test, feature = "abi-stable"))]
pub(super) fn cross(link: Box<dyn crate::Link>) -> Box<dyn crate::Link> {
    incoming::try_cross(outgoing::export_link(link)).unwrap_or_else(|error| panic!("{error}"))
}
