//! The tables of the other side: a plugin, its links, the host.
//!
//! A table is copied when it is met, so that what is there does not change. Functions that must be
//! there are taken out of it at once.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use log::{Level, LevelFilter};
use nix::fcntl::{FcntlArg, fcntl};
use vdens_plugin_c::{self as c, Table, link_flag};

use super::outgoing::export_services;
use super::{NO_ERROR, buffered, c_text, error_from, panel};
use crate::adapters::BindError;
use crate::adapters::import::{RawLink, Remote, changed_batch, wrong};
use crate::batch::Storage;
use crate::tap::Tap;
use crate::{
    Bridge, BridgePort, Capabilities, Error, ErrorKind, HostPort, HostServices, Link, Manifest,
    OpenOptions, PanelAddress, PortVlans, Result, VlanBridge, logging,
};

/// The longest text in a plugin's table, in bytes.
const LONGEST_TEXT: usize = 4096;

/// The longest report of a link, in bytes. A switch's grows with its stations.
const LONGEST_REPORT: usize = 16 << 20;

/// A plugin, checked.
#[derive(Clone, Copy)]
pub(crate) struct Module {
    scheme: &'static str,
    description: &'static str,
    version: &'static str,
    capabilities: u64,
    open: c::Open,
}

/// A text of the plugin's table.
///
/// # Safety
/// The pointer is null, or points to text that ends with a NUL byte, unchanged for the life of the
/// process.
unsafe fn constant(text: *const c_char, what: &str) -> Result<&'static str, BindError> {
    let malformed = |why: &str| BindError::Table(format!("its {what} {why}"));
    if text.is_null() {
        return Err(malformed("is a null pointer"));
    }
    // SAFETY: per this function's contract.
    let text = unsafe { CStr::from_ptr(text) }.to_bytes();
    match std::str::from_utf8(text) {
        Ok(text) if text.len() <= LONGEST_TEXT => Ok(text),
        Ok(text) => Err(malformed(&format!("has {} bytes", text.len()))),
        Err(_) => Err(malformed("is not UTF-8")),
    }
}

/// Binds the table at the door's symbol.
///
/// # Safety
/// `symbol` is the address of that symbol in a library that is never unloaded.
pub(crate) unsafe fn bind(symbol: *const ()) -> Result<Module, BindError> {
    // SAFETY: per this function's contract. A table that a plugin exports under this name has the
    // size that it says.
    let table = unsafe { c::Plugin::read(symbol.cast()) }.map_err(BindError::Table)?;
    let none = || BindError::Table("it has no function open".to_owned());
    // SAFETY: the texts of the table of a library that is never unloaded.
    unsafe {
        Ok(Module {
            scheme: constant(table.scheme, "scheme")?,
            description: constant(table.description, "description")?,
            version: constant(table.version, "version")?,
            capabilities: table.capabilities,
            open: table.open.ok_or_else(none)?,
        })
    }
}

impl Module {
    pub(crate) fn manifest(&self) -> Manifest {
        Manifest {
            scheme: self.scheme.to_owned(),
            description: self.description.to_owned(),
            version: self.version.to_owned(),
            capabilities: Capabilities(self.capabilities),
        }
    }

    pub(crate) fn open(
        &self,
        vnl: &str,
        options: &OpenOptions,
        services: &'static dyn HostServices,
    ) -> Result<Box<dyn Link>> {
        let group = options.group.as_deref().unwrap_or_default();
        let (vnl, description) = (c_text(vnl)?, c_text(&options.description)?);
        let group = c_text(group)?;
        let request = c::Request {
            struct_size: size_of::<c::Request>(),
            vnl: vnl.as_ptr(),
            description: description.as_ptr(),
            group: group.as_ptr(),
            port: options.port.map_or(-1, i64::from),
            mode: options.mode.map_or(-1, i64::from),
            host: export_services(services),
        };
        opened(|link, error| {
            // SAFETY: the request and its texts live until the call returns.
            unsafe { (self.open)(&raw const request, link, error) }
        })
    }
}

/// The link that a function opens, which fills in a link or an error.
fn opened(open: impl FnOnce(*mut c::Link, *mut c::Error) -> c_int) -> Result<Box<dyn Link>> {
    let mut error = Box::new(NO_ERROR);
    let mut link = c::Link {
        link: std::ptr::null_mut(),
        calls: std::ptr::null(),
    };
    match open(&raw mut link, &raw mut *error) {
        // SAFETY: the function says that it opened the link, and nothing else owns it.
        0 => Ok(Box::new(Remote::new(unsafe { COpen::new(link, error) }?))),
        _ => Err(error_from(&error, "open()")),
    }
}

#[cfg(test)]
pub(super) fn try_cross(link: c::Link) -> Result<Box<dyn Link>> {
    opened(|place, _| {
        // SAFETY: the place is lent for the call.
        unsafe { place.write(link) }
        0
    })
}

/// A link with the functions that it must have. Dropping it closes it.
struct COpen {
    link: *mut c_void,
    fds: unsafe extern "C" fn(*const c_void) -> c::Fds,
    recv: unsafe extern "C" fn(*mut c_void, *mut c::Batch, *mut c::Error) -> c_int,
    send: unsafe extern "C" fn(*mut c_void, *mut c::Batch, u32, *mut c::Error) -> i32,
    close: unsafe extern "C" fn(*mut c_void),
    /// The others, which may be null.
    calls: c::LinkCalls,
    /// The place for errors: too large for the stack of each call.
    error: Box<c::Error>,
}

// SAFETY: the header allows the calls on any thread, one at a time.
unsafe impl Send for COpen {}

impl COpen {
    /// # Errors
    /// Its table is malformed, or it names no open descriptors.
    ///
    /// # Safety
    /// `link` was filled in by a function that opened a link, and has no other owner.
    unsafe fn new(link: c::Link, error: Box<c::Error>) -> Result<Self> {
        // SAFETY: per this function's contract.
        let calls = unsafe { c::LinkCalls::read(link.calls) }.map_err(wrong)?;
        let none = |name: &str| wrong(format!("its link has no function {name}"));
        // First: without it the link stays open.
        let close = calls.close.ok_or_else(|| none("close"))?;
        let closing = |error: Error| {
            // SAFETY: the link is open, and not used again.
            unsafe { close(link.link) };
            error
        };
        let link = Self {
            link: link.link,
            fds: calls.fds.ok_or_else(|| closing(none("fds")))?,
            recv: calls.recv.ok_or_else(|| closing(none("recv")))?,
            send: calls.send.ok_or_else(|| closing(none("send")))?,
            close,
            calls,
            error,
        };
        let fds = link.fds();
        for fd in [fds.recv, fds.send] {
            // SAFETY: the number is not -1.
            let is_open = || fcntl(unsafe { BorrowedFd::borrow_raw(fd) }, FcntlArg::F_GETFD);
            if fd < 0 || is_open().is_err() {
                return Err(wrong(format!(
                    "fds() returned {fd}, which is no open descriptor"
                )));
            }
        }
        Ok(link)
    }

    /// Empties the place for errors, and returns it.
    fn no_error(&mut self) -> *mut c::Error {
        let error = &mut *self.error;
        (error.code, error.errnum, error.message[0], error.hint[0]) = (0, 0, 0, 0);
        error
    }
}

impl Drop for COpen {
    fn drop(&mut self) {
        // SAFETY: the link is open, and not used again.
        unsafe { (self.close)(self.link) }
    }
}

impl RawLink for COpen {
    fn fds(&self) -> c::Fds {
        // SAFETY: the link is open until this is dropped.
        unsafe { (self.fds)(self.link) }
    }

    fn recv(&mut self, batch: &mut Storage) -> Result<()> {
        let error = self.no_error();
        // SAFETY: as in `fds`; the borrows of batch and error are exclusive for the call.
        let received = batch.lend(|raw| unsafe { (self.recv)(self.link, raw, error) });
        match received.ok_or_else(changed_batch)? {
            0 => Ok(()),
            _ => Err(error_from(&self.error, "recv()")),
        }
    }

    fn send(&mut self, batch: &mut Storage, start: u32) -> Result<usize> {
        let error = self.no_error();
        // SAFETY: as in `recv`.
        let sent =
            batch.lend_for_reading(|raw| unsafe { (self.send)(self.link, raw, start, error) });
        usize::try_from(sent.ok_or_else(changed_batch)?)
            .map_err(|_| error_from(&self.error, "send()"))
    }

    fn other_side(&mut self, state: c::State) {
        if let Some(other_side) = self.calls.other_side {
            // SAFETY: as in `fds`.
            unsafe { other_side(self.link, state) }
        }
    }

    fn state(&self) -> c::State {
        let up = c::State {
            flags: link_flag::CARRIER,
            offloads: 0,
        };
        // SAFETY: as in `fds`.
        self.calls
            .state
            .map_or(up, |state| unsafe { state(self.link) })
    }

    fn status(&self) -> String {
        let Some(status) = self.calls.status else {
            return "{}".to_owned();
        };
        let mut text: Vec<c_char> = vec![0; 4096];
        loop {
            // SAFETY: as in `fds`; the text has as many bytes as it says.
            let len = unsafe { status(self.link, text.as_mut_ptr(), text.len()) };
            match len < text.len() || len > LONGEST_REPORT {
                true => return buffered(&text),
                // It may grow meanwhile.
                false => text = vec![0; (len + len / 4).max(2 * text.len())],
            }
        }
    }
}

/// The host at the other side of the boundary, for a plugin.
pub(super) struct RemoteHost {
    services: *const c_void,
    calls: c::HostCalls,
}

// SAFETY: the header allows the calls on any thread, by several at a time.
unsafe impl Send for RemoteHost {}
// SAFETY: as above.
unsafe impl Sync for RemoteHost {}

/// Calls a function of the host's table with its services and these arguments.
///
/// # Errors
/// The host does not have it.
macro_rules! call {
    ($host:ident.$name:ident($($argument:expr),*)) => {
        match $host.calls.$name {
            // SAFETY: the host is valid for the life of the process, and the arguments are as the
            // header says.
            Some(function) => Ok(unsafe { function($host.services, $($argument),*) }),
            None => Err(Error::new(
                ErrorKind::Unsupported,
                concat!("this vdens has no function ", stringify!($name)),
            )),
        }
    };
}

/// A bridge that is not there, for the host to fill in.
pub(super) const NO_HUB: c::Hub = c::Hub {
    tap: -1,
    panel: 0,
    place: [0; 32],
    name: [0; 16],
};

/// The bridge that the host filled in.
///
/// # Errors
/// It has no tap.
///
/// # Safety
/// The host gave its descriptor up, which has no other owner.
pub(super) unsafe fn bridge_from(hub: &c::Hub) -> Result<Bridge> {
    if hub.tap < 0 {
        return Err(Error::closed("the host made a bridge without a tap"));
    }
    // SAFETY: per this function's contract.
    let tap = unsafe { OwnedFd::from_raw_fd(hub.tap) };
    Ok(Bridge {
        panel_address: PanelAddress {
            panel: hub.panel,
            place: buffered(&hub.place),
        },
        tap: Tap::from_fd(tap, buffered(&hub.name)),
    })
}

/// What an `int` result and the error in its place mean.
pub(super) fn done(result: c_int, error: &c::Error, what: &str) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(error_from(error, what)),
    }
}

impl RemoteHost {
    /// # Errors
    /// Its table is malformed.
    ///
    /// # Safety
    /// The host is valid for the life of the process.
    pub(super) unsafe fn new(host: c::Host) -> Result<Self> {
        // SAFETY: per this function's contract.
        let calls = unsafe { c::HostCalls::read(host.calls) }.map_err(Error::usage)?;
        Ok(Self {
            services: host.services,
            calls,
        })
    }

    /// Where records go, and the highest level that the host shows.
    pub(super) fn log(&self) -> (logging::Sink, LevelFilter) {
        // SAFETY: the host is valid for the life of the process.
        let level = self.calls.log_level.map_or(0, |level| unsafe { level() });
        let log = self.calls.log;
        let sink = move |level: Level, target: &str, message: &str| {
            let texts = (c_text(target), c_text(&message.replace('\0', " ")));
            if let (Some(log), (Ok(target), Ok(message))) = (log, texts) {
                // SAFETY: as above; the texts live until the call returns.
                unsafe { log(level as u32, target.as_ptr(), message.as_ptr()) }
            }
        };
        (Box::new(sink), logging::filter_from_code(level))
    }
}

impl HostServices for RemoteHost {
    fn open(&'static self, vnl: &str) -> Result<Box<dyn Link>> {
        let vnl = c_text(vnl)?;
        let mut missing = None;
        let link = opened(|link, error| {
            call!(self.open(vnl.as_ptr(), link, error)).unwrap_or_else(|error| {
                missing = Some(error);
                -1
            })
        });
        link.map_err(|error| missing.unwrap_or(error))
    }

    fn port(&self) -> HostPort {
        let mut port = c::Port {
            mtu: 0,
            panel: 0,
            place: [0; 32],
            interface: [0; 16],
        };
        if call!(self.port(&raw mut port)).is_err() {
            return HostPort::default();
        }
        HostPort {
            interface: buffered(&port.interface),
            mtu: port.mtu,
            panel_address: (port.panel != 0).then(|| PanelAddress {
                panel: port.panel,
                place: buffered(&port.place),
            }),
        }
    }

    fn plug(&self, peer: &str) -> Result<()> {
        let (peer, mut error) = (c_text(peer)?, NO_ERROR);
        let result = call!(self.plug(peer.as_ptr(), &raw mut error))?;
        done(result, &error, "plug()")
    }

    fn attach(&self, bridge: &PanelAddress) -> Result<()> {
        let (place, mut error) = (c_text(&bridge.place)?, NO_ERROR);
        let result = call!(self.attach(bridge.panel, place.as_ptr(), &raw mut error))?;
        done(result, &error, "attach()")
    }

    fn bridge(&self, expiry: Duration) -> Result<Bridge> {
        let expiry = u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX);
        let (mut error, mut hub) = (NO_ERROR, NO_HUB);
        let result = call!(self.hub(expiry, &raw mut hub, &raw mut error))?;
        done(result, &error, "hub()")?;
        // SAFETY: the host filled it in, in this call.
        unsafe { bridge_from(&hub) }
    }

    fn vlan_bridge(&self, expiry: Duration, kind: VlanBridge) -> Result<Bridge> {
        // SAFETY: the pointer is that of the host's services.
        unsafe { panel::make_bridge(self.services, expiry, kind) }
    }

    fn set_vlans(
        &self,
        bridge: &PanelAddress,
        port: BridgePort<'_>,
        vlans: &PortVlans,
    ) -> Result<()> {
        // SAFETY: as above.
        unsafe { panel::set(self.services, bridge, port, vlans) }
    }

    fn store_fd(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let (fd, mut error) = (fd.map_or(-1, |fd| fd.as_raw_fd()), NO_ERROR);
        let result = call!(self.keep(fd, &raw mut error))?;
        done(result, &error, "keep()")
    }

    fn take_fd(&self) -> Option<OwnedFd> {
        let fd = call!(self.kept()).ok().filter(|fd| *fd >= 0)?;
        // SAFETY: the host gave the descriptor up in this call.
        Some(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
