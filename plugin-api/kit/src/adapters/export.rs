//! What the functions of both doors do: they call the author's [`Link`], or the host's services,
//! behind an opaque pointer.
//!
//! A panic must not cross the boundary, so it becomes an error. Where no error can be returned it
//! ends the process, which is one link's worker.

use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use log::LevelFilter;
use vdens_plugin_c::{Batch, Fds, State as RawState, link_flag};

use super::import::question;
use crate::batch::Storage;
use crate::{
    Error, ErrorKind, Host, HostServices, Link, OpenOptions, OpenRequest, Plugin, Result, RxBatch,
    State, TxBatch, logging,
};

/// Runs an author's code; a panic in it becomes an error.
pub(super) fn contain<T>(what: &str, code: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(code)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let message = format!("the plugin panicked in {what}: {text}");
        Err(Error::new(ErrorKind::Panic, message).hint("report this to the plugin's author"))
    })
}

/// Ends the process after a panic where no error can be returned.
fn give_up(what: &str) -> ! {
    log::error!("the plugin panicked in {what}");
    std::process::abort();
}

fn bit(bit: u32, set: bool) -> u32 {
    if set { bit } else { 0 }
}

impl From<State> for RawState {
    fn from(state: State) -> Self {
        Self {
            flags: bit(link_flag::CARRIER, state.carrier) | bit(link_flag::PLUGGED, state.plugged),
            offloads: state.offloads.0,
        }
    }
}

/// The pointer by which the other side knows a link.
pub(super) fn link_pointer<T>(link: Box<dyn Link>) -> *mut T {
    Box::into_raw(Box::new(link)).cast()
}

/// # Safety
/// `link` came from [`link_pointer`] and is neither closed nor in use, for `'a`. The same holds for
/// each function below.
unsafe fn borrowed<'a, T>(link: *const T) -> &'a dyn Link {
    // SAFETY: per this function's contract the pointer is a live Box<dyn Link>.
    unsafe { &**link.cast::<Box<dyn Link>>() }
}

/// # Safety
/// As for [`borrowed`].
unsafe fn exclusive<'a, T>(link: *mut T) -> &'a mut dyn Link {
    // SAFETY: per this function's contract the pointer is a live Box<dyn Link>.
    unsafe { &mut **link.cast::<Box<dyn Link>>() }
}

/// # Safety
/// As for [`borrowed`].
pub(super) unsafe fn fds<T>(link: *const T) -> Fds {
    // SAFETY: per this function's contract.
    let link = unsafe { borrowed(link) };
    let fds = || Fds {
        recv: link.fd().as_raw_fd(),
        send: link.send_fd().as_raw_fd(),
    };
    question::ask(|_| catch_unwind(AssertUnwindSafe(fds)).unwrap_or_else(|_| give_up("fd")))
}

/// # Safety
/// As for [`borrowed`]; `batch` is valid and exclusive for the call.
pub(super) unsafe fn recv<T>(link: *mut T, batch: *mut Batch) -> Result<()> {
    // SAFETY: per this function's contract.
    let (link, raw) = unsafe { (exclusive(link), Storage::lent(batch)) };
    contain("receive", || link.recv(&mut RxBatch { raw }))
}

/// # Safety
/// As for [`recv`].
pub(super) unsafe fn send<T>(link: *mut T, batch: *mut Batch, start: u32) -> Result<u32> {
    // SAFETY: per this function's contract.
    let (link, raw) = unsafe { (exclusive(link), Storage::lent(batch)) };
    let start = start as usize;
    contain("send", || {
        link.send(&mut TxBatch { raw, start }).map(|n| n as u32)
    })
}

/// # Safety
/// As for [`borrowed`].
pub(super) unsafe fn other_side<T>(link: *mut T, state: RawState) {
    // SAFETY: per this function's contract.
    let link = unsafe { exclusive(link) };
    if catch_unwind(AssertUnwindSafe(|| link.other_side(state.into()))).is_err() {
        log::error!("the plugin panicked in other_side");
    }
}

/// # Safety
/// As for [`borrowed`].
pub(super) unsafe fn state<T>(link: *const T) -> RawState {
    // SAFETY: per this function's contract.
    let link = unsafe { borrowed(link) };
    let state = || {
        let mut state = RawState::from(link.state());
        state.flags |= bit(link_flag::SHARED, link.is_shared())
            | bit(link_flag::WANTS_PANEL, link.wants_panel());
        state
    };
    question::ask(|_| catch_unwind(AssertUnwindSafe(state)).unwrap_or_else(|_| give_up("state")))
}

/// # Safety
/// As for [`borrowed`].
pub(super) unsafe fn status<T>(link: *const T) -> String {
    // SAFETY: per this function's contract.
    let link = unsafe { borrowed(link) };
    catch_unwind(AssertUnwindSafe(|| link.status().to_json())).unwrap_or_else(|_| {
        log::error!("the plugin panicked in status");
        String::new()
    })
}

/// # Safety
/// As for [`borrowed`]; the pointer is not used again.
pub(super) unsafe fn close<T>(link: *mut T) {
    // SAFETY: per this function's contract this is the one owner of the box.
    let link = unsafe { Box::from_raw(link.cast::<Box<dyn Link>>()) };
    if catch_unwind(AssertUnwindSafe(|| drop(link))).is_err() {
        log::error!("the plugin panicked while its link was closed");
    }
}

/// Opens a link with an author's code.
pub(super) fn open<P: Plugin>(
    vnl: &str,
    options: OpenOptions,
    host: Box<dyn HostServices>,
    (sink, level): (logging::Sink, LevelFilter),
) -> Result<Box<dyn Link>> {
    logging::forward_to(sink, level);
    contain("open", || {
        P::open(&OpenRequest {
            vnl,
            options,
            host: Host::new(Box::leak(host)),
        })
    })
}

/// The pointer by which a plugin knows the host's services. Leaks a pointer's worth of memory.
pub(super) fn services_pointer<T>(services: &'static dyn HostServices) -> *const T {
    std::ptr::from_ref(Box::leak(Box::new(services))).cast()
}

/// The services behind the pointer.
///
/// # Safety
/// `services` came from [`services_pointer`], which leaked the reference.
pub(super) unsafe fn leaked<T>(services: *const T) -> &'static dyn HostServices {
    // SAFETY: per this function's contract.
    unsafe { *services.cast::<&'static dyn HostServices>() }
}

/// Logs a plugin's record.
pub(super) fn log(level: u32, target: &str, message: &str) {
    let level = logging::level_from_code(level);
    log::log!(target: target, level, "{message}");
}
