//! The tables that this side fills in: a plugin's, a link's, the host's.

use std::ffi::{c_char, c_int, c_void};
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use vdens_plugin_c::{self as c, Table};

use super::{argument, fill, finish, text};
use crate::adapters::c1::incoming::RemoteHost;
use crate::adapters::export::{self, contain, leaked};
use crate::{Bridge, Error, HostServices, Link, OpenOptions, PanelAddress, Plugin, Result};

pub use vdens_plugin_c::Plugin as CPlugin;

/// A string of the plugin's, with a NUL byte at its end, which makes up for `N`.
///
/// # Panics
/// The text contains a NUL byte.
pub const fn c_string<const N: usize>(text: &str) -> [u8; N] {
    let (mut string, text) = ([0; N], text.as_bytes());
    let mut at = 0;
    while at < text.len() {
        assert!(text[at] != 0, "a NUL byte is in the plugin's description");
        string[at] = text[at];
        at += 1;
    }
    string
}

/// The table of a plugin. The strings end with NUL bytes.
pub const fn plugin<P: Plugin>(
    scheme: &'static [u8],
    description: &'static [u8],
    version: &'static [u8],
) -> CPlugin {
    CPlugin {
        struct_size: size_of::<CPlugin>(),
        scheme: scheme.as_ptr().cast(),
        description: description.as_ptr().cast(),
        version: version.as_ptr().cast(),
        capabilities: P::CAPABILITIES.0,
        open: Some(open::<P>),
    }
}

/// # Safety
/// As `vdens_plugin.open` in the header.
unsafe extern "C" fn open<P: Plugin>(
    request: *const c::Request,
    link: *mut c::Link,
    error: *mut c::Error,
) -> c_int {
    let opened = || {
        // SAFETY: per this function's contract. The strings are lent for the call.
        let (request, vnl, description, group) = unsafe {
            let request = c::Request::read(request).map_err(Error::usage)?;
            let vnl = argument(request.vnl, "the VNL")?;
            (request, vnl, text(request.description), text(request.group))
        };
        // SAFETY: per this function's contract.
        let host = unsafe { RemoteHost::new(request.host) }?;
        let options = OpenOptions {
            description: description.unwrap_or_default().into_owned(),
            port: u32::try_from(request.port).ok(),
            group: group.map(String::from).filter(|group| !group.is_empty()),
            mode: u32::try_from(request.mode).ok(),
        };
        let log = host.log();
        export::open::<P>(&vnl, options, Box::new(host), log)
    };
    // SAFETY: per this function's contract.
    unsafe { finish(opened(), error, |it| *link = export_link(it)) }
}

static LINK_CALLS: c::LinkCalls = c::LinkCalls {
    struct_size: size_of::<c::LinkCalls>(),
    fds: Some(fds),
    recv: Some(recv),
    send: Some(send),
    other_side: Some(other_side),
    state: Some(state),
    status: Some(status),
    close: Some(close),
};

/// A link as it crosses the boundary.
pub(super) fn export_link(link: Box<dyn Link>) -> c::Link {
    c::Link {
        link: export::link_pointer(link),
        calls: &raw const LINK_CALLS,
    }
}

/// # Safety
/// Here and in the functions below: `link` came from `export_link` and is neither closed nor in
/// use; a batch or an error is valid and exclusive for the call.
unsafe extern "C" fn fds(link: *const c_void) -> c::Fds {
    // SAFETY: per this function's contract.
    unsafe { export::fds(link) }
}

/// # Safety
/// As for [`fds`].
unsafe extern "C" fn recv(link: *mut c_void, batch: *mut c::Batch, error: *mut c::Error) -> c_int {
    // SAFETY: per this function's contract.
    unsafe { finish(export::recv(link, batch), error, drop) }
}

/// # Safety
/// As for [`fds`].
unsafe extern "C" fn send(
    link: *mut c_void,
    batch: *mut c::Batch,
    start: u32,
    error: *mut c::Error,
) -> i32 {
    let mut sent = 0;
    // SAFETY: per this function's contract.
    let result = unsafe { finish(export::send(link, batch, start), error, |n| sent = n) };
    match result {
        0 => i32::try_from(sent).unwrap_or(i32::MAX),
        failed => failed,
    }
}

/// # Safety
/// As for [`fds`].
unsafe extern "C" fn other_side(link: *mut c_void, state: c::State) {
    // SAFETY: per this function's contract.
    unsafe { export::other_side(link, state) }
}

/// # Safety
/// As for [`fds`].
unsafe extern "C" fn state(link: *const c_void) -> c::State {
    // SAFETY: per this function's contract.
    unsafe { export::state(link) }
}

/// # Safety
/// As for [`fds`]; `buffer` has `size` bytes.
unsafe extern "C" fn status(link: *const c_void, buffer: *mut c_char, size: usize) -> usize {
    // SAFETY: per this function's contract.
    let report = unsafe { export::status(link) };
    if let Some(room) = size.checked_sub(1).filter(|_| !buffer.is_null()) {
        let part = report.len().min(room);
        // SAFETY: `buffer` has `size` bytes, one more than `part` at least.
        unsafe {
            buffer.copy_from_nonoverlapping(report.as_ptr().cast(), part);
            buffer.add(part).write(0);
        }
    }
    report.len()
}

/// # Safety
/// As for [`fds`]; the pointer is not used again.
unsafe extern "C" fn close(link: *mut c_void) {
    // SAFETY: per this function's contract.
    unsafe { export::close(link) }
}

static HOST_CALLS: c::HostCalls = c::HostCalls {
    struct_size: size_of::<c::HostCalls>(),
    log: Some(log),
    log_level: Some(log_level),
    open: Some(open_nested),
    port: Some(port),
    plug: Some(plug),
    attach: Some(attach),
    hub: Some(hub),
    keep: Some(keep),
    kept: Some(kept),
};

/// The services as they cross the boundary.
pub(super) fn export_services(services: &'static dyn HostServices) -> c::Host {
    c::Host {
        services: export::services_pointer(services),
        calls: &raw const HOST_CALLS,
    }
}

/// # Safety
/// The strings are null or end with NUL bytes.
unsafe extern "C" fn log(level: u32, target: *const c_char, message: *const c_char) {
    // SAFETY: per this function's contract.
    let (target, message) = unsafe { (text(target), text(message)) };
    let message = message.unwrap_or_default().replace(['\n', '\r'], " ");
    export::log(level, &target.unwrap_or("plugin".into()), &message);
}

extern "C" fn log_level() -> u32 {
    log::max_level() as u32
}

/// The place for a result, which the plugin passed.
///
/// # Errors
/// It is null.
pub(super) fn place<T>(pointer: *mut T, what: &str) -> Result<*mut T> {
    match pointer.is_null() {
        true => Err(Error::usage(format!("{what} is a null pointer"))),
        false => Ok(pointer),
    }
}

/// # Safety
/// Here and in the functions below: `services` came from `export_services`; other pointers are null
/// or as the header says; a descriptor is negative or open for the call.
unsafe extern "C" fn open_nested(
    services: *const c_void,
    vnl: *const c_char,
    link: *mut c::Link,
    error: *mut c::Error,
) -> c_int {
    let opened = contain("open", || {
        // SAFETY: per this function's contract.
        let vnl = unsafe { argument(vnl, "the VNL to open")? };
        let link = place(link, "the place for the link to open")?;
        // SAFETY: per this function's contract.
        Ok((link, unsafe { leaked(services) }.open(&vnl)?))
    });
    // SAFETY: per this function's contract; the place for the link is not null.
    unsafe { finish(opened, error, |(link, it)| link.write(export_link(it))) }
}

/// # Safety
/// As for [`open_nested`].
unsafe extern "C" fn port(services: *const c_void, port: *mut c::Port) {
    // SAFETY: per this function's contract.
    let it = unsafe { leaked(services) }.port();
    let (panel, place) = it
        .panel_address
        .map_or_else(Default::default, |address| (address.panel, address.place));
    let mut filled = c::Port {
        mtu: it.mtu,
        panel,
        place: [0; 32],
        interface: [0; 16],
    };
    fill(&mut filled.place, &place);
    fill(&mut filled.interface, &it.interface);
    match port.is_null() {
        true => log::error!("a plugin passed a null pointer to port()"),
        // SAFETY: per this function's contract; the pointer is not null.
        false => unsafe { port.write(filled) },
    }
}

/// # Safety
/// As for [`open_nested`].
unsafe extern "C" fn plug(
    services: *const c_void,
    peer: *const c_char,
    error: *mut c::Error,
) -> c_int {
    // SAFETY: per this function's contract.
    let result = contain("plug", || unsafe {
        leaked(services).plug(&argument(peer, "the place to plug into")?)
    });
    // SAFETY: per this function's contract.
    unsafe { finish(result, error, drop) }
}

/// # Safety
/// As for [`open_nested`].
unsafe extern "C" fn attach(
    services: *const c_void,
    panel: u64,
    place: *const c_char,
    error: *mut c::Error,
) -> c_int {
    let result = contain("attach", || {
        // SAFETY: per this function's contract.
        let place = unsafe { argument(place, "the place of the bridge")? }.into_owned();
        // SAFETY: per this function's contract.
        unsafe { leaked(services) }.attach(&PanelAddress { panel, place })
    });
    // SAFETY: per this function's contract.
    unsafe { finish(result, error, drop) }
}

/// A bridge as it crosses the boundary, with its tap.
pub(super) fn hub_from(bridge: Bridge) -> c::Hub {
    let mut filled = c::Hub {
        tap: -1,
        panel: bridge.panel_address.panel,
        place: [0; 32],
        name: [0; 16],
    };
    fill(&mut filled.place, &bridge.panel_address.place);
    fill(&mut filled.name, bridge.tap.name());
    filled.tap = OwnedFd::from(bridge.tap).into_raw_fd();
    filled
}

/// # Safety
/// As for [`open_nested`].
unsafe extern "C" fn hub(
    services: *const c_void,
    expiry: u64,
    hub: *mut c::Hub,
    error: *mut c::Error,
) -> c_int {
    let made = contain("hub", || {
        let hub = place(hub, "the place for the hub")?;
        // SAFETY: per this function's contract.
        let bridge = unsafe { leaked(services) }.bridge(Duration::from_millis(expiry))?;
        Ok((hub, hub_from(bridge)))
    });
    // SAFETY: per this function's contract; the place for the hub is not null.
    unsafe { finish(made, error, |(hub, filled)| hub.write(filled)) }
}

/// # Safety
/// As for [`open_nested`].
unsafe extern "C" fn keep(services: *const c_void, fd: c_int, error: *mut c::Error) -> c_int {
    // SAFETY: per this function's contract.
    let fd = (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) });
    // SAFETY: per this function's contract.
    let result = contain("keep", || unsafe { leaked(services) }.store_fd(fd));
    // SAFETY: per this function's contract.
    unsafe { finish(result, error, drop) }
}

/// # Safety
/// As for [`open_nested`].
unsafe extern "C" fn kept(services: *const c_void) -> c_int {
    // SAFETY: per this function's contract.
    unsafe { leaked(services) }
        .take_fd()
        .map_or(-1, IntoRawFd::into_raw_fd)
}
