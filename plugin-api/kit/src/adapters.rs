//! The adapters on both sides of ABI 1, whose types are in the crate [`vdens_plugin_api`].
//!
//! On the plugin's side, an `extern "C"` shim turns each call into one of the [`Link`] trait's, and
//! catches panics. On the caller's side, a `Remote` implements [`Link`] again. It also checks what
//! `recv` leaves in a batch: it drops and counts entries that are no frames. A nested link crosses
//! the boundary twice, from its plugin to the host and from the host to the plugin that nests it,
//! so it costs two more calls per batch.
//!
//! One call of `state` answers three of [`Link`]'s methods, and one of `fds` answers two. A link
//! that nests another passes each on to the nested link, so the number of calls would grow as a
//! power of the depth. Therefore a `Remote` keeps an answer until the outermost caller has its own:
//! that time is a `question`. The number of calls then grows with the depth, also for a plugin that
//! was built with an older kit.

use std::cell::Cell;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use vdens_plugin_api::abi_stable::library::{AbiHeaderRef, LibraryError};
use vdens_plugin_api::abi_stable::prefix_type::WithMetadata;
use vdens_plugin_api::abi_stable::std_types::{RErr, ROk, RStr, RString};
use vdens_plugin_api::{
    CRATE_VERSION, ErrorV1, FdsV1, HostCallsV1, HostCallsV1Ref, HostV1, HubV1, LinkCallsV1,
    LinkCallsV1Ref, LinkV1, ManifestV1, ModuleV1, ModuleV1Ref, Outcome, PortV1, RequestV1,
    RootModuleResult, StateV1, link_flag,
};

use crate::batch::Storage;
use crate::logging;
use crate::tap::Tap;
use crate::{
    Bridge, Capabilities, Error, ErrorKind, Host, HostPort, HostServices, Link, Manifest, Offloads,
    OpenOptions, OpenRequest, PanelAddress, Plugin, Result, RxBatch, State, Status, TxBatch,
};

#[doc(hidden)]
pub use vdens_plugin_api::{LibHeader, VERSION};

impl From<Error> for ErrorV1 {
    fn from(error: Error) -> Self {
        Self {
            code: error.kind as u32,
            errno: error.errno,
            message: error.message.into(),
            hint: error.hint.into(),
        }
    }
}

impl From<ErrorV1> for Error {
    fn from(error: ErrorV1) -> Self {
        Self {
            kind: ErrorKind::from_code(error.code),
            errno: error.errno,
            message: error.message.into(),
            hint: error.hint.into(),
        }
    }
}

fn unwrap<T>(outcome: Outcome<T>) -> Result<T> {
    outcome.into_result().map_err(Error::from)
}

/// Runs an author's code; a panic in it becomes an error, because a panic must not cross the
/// boundary.
fn contain<T>(what: &str, code: impl FnOnce() -> Result<T>) -> Outcome<T> {
    let result = catch_unwind(AssertUnwindSafe(code)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let message = format!("the plugin panicked in {what}: {text}");
        Err(Error::new(ErrorKind::Panic, message).hint("report this to the plugin's author"))
    });
    match result {
        Ok(value) => ROk(value),
        Err(error) => RErr(error.into()),
    }
}

fn bit(bit: u32, set: bool) -> u32 {
    if set { bit } else { 0 }
}

impl From<State> for StateV1 {
    fn from(state: State) -> Self {
        Self {
            flags: bit(link_flag::CARRIER, state.carrier) | bit(link_flag::PLUGGED, state.plugged),
            offloads: state.offloads.0,
        }
    }
}

impl From<StateV1> for State {
    fn from(raw: StateV1) -> Self {
        Self {
            carrier: raw.flags & link_flag::CARRIER != 0,
            offloads: Offloads(raw.offloads).intersection(Offloads::ALL),
            plugged: raw.flags & link_flag::PLUGGED != 0,
        }
    }
}

/// Questions that links are being asked on this thread.
mod question {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The next question's number. Numbers are unique in the process, because a link may move to
    /// another thread.
    static NEXT: AtomicU64 = AtomicU64::new(1);

    thread_local! {
        /// The number of the question under way; 0 if there is none.
        static CURRENT: Cell<u64> = const { Cell::new(0) };
    }

    /// Calls `answer` with the number of the question under way, or of a new one if there is none.
    /// `answer` must not panic.
    pub(super) fn ask<T>(answer: impl FnOnce(u64) -> T) -> T {
        CURRENT.with(|current| match current.get() {
            0 => {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                current.set(number);
                let answer = answer(number);
                current.set(0);
                answer
            }
            number => answer(number),
        })
    }
}

/// The author's side: shims from the table's functions to a `Box<dyn Link>`.
mod shim {
    use super::{
        FdsV1, Link, Outcome, RString, RxBatch, StateV1, Storage, TxBatch, bit, contain, link_flag,
        question,
    };
    use std::os::fd::AsRawFd;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use vdens_plugin_api::RawBatch;

    /// A panic where no error can be returned ends the process, which is one link's worker.
    fn give_up(what: &str) -> ! {
        log::error!("the plugin panicked in {what}");
        std::process::abort();
    }

    /// # Safety
    /// `link` came from `export` and is neither closed nor in use.
    pub(super) unsafe extern "C" fn fds(link: *const ()) -> FdsV1 {
        // SAFETY: per this function's contract the pointer is a live Box<dyn Link>.
        let link = unsafe { &*link.cast::<Box<dyn Link>>() };
        let fds = || FdsV1 {
            recv: link.fd().as_raw_fd(),
            send: link.send_fd().as_raw_fd(),
        };
        question::ask(|_| catch_unwind(AssertUnwindSafe(fds)).unwrap_or_else(|_| give_up("fd")))
    }

    /// # Safety
    /// As for `fds`; `batch` is valid and exclusive for the call.
    pub(super) unsafe extern "C" fn recv(link: *mut (), batch: *mut RawBatch) -> Outcome<()> {
        // SAFETY: per this function's contract.
        let (link, raw) = unsafe { (&mut *link.cast::<Box<dyn Link>>(), Storage::lent(batch)) };
        contain("receive", || link.recv(&mut RxBatch { raw }))
    }

    /// # Safety
    /// As for `recv`.
    pub(super) unsafe extern "C" fn send(
        link: *mut (),
        batch: *mut RawBatch,
        start: u32,
    ) -> Outcome<u32> {
        // SAFETY: per this function's contract.
        let (link, raw) = unsafe { (&mut *link.cast::<Box<dyn Link>>(), Storage::lent(batch)) };
        let start = start as usize;
        contain("send", || {
            link.send(&mut TxBatch { raw, start }).map(|n| n as u32)
        })
    }

    /// # Safety
    /// As for `fds`.
    pub(super) unsafe extern "C" fn other_side(link: *mut (), state: StateV1) {
        // SAFETY: per this function's contract.
        let link = unsafe { &mut *link.cast::<Box<dyn Link>>() };
        if catch_unwind(AssertUnwindSafe(|| link.other_side(state.into()))).is_err() {
            log::error!("the plugin panicked in other_side");
        }
    }

    /// # Safety
    /// As for `fds`.
    pub(super) unsafe extern "C" fn state(link: *const ()) -> StateV1 {
        // SAFETY: per this function's contract.
        let link = unsafe { &*link.cast::<Box<dyn Link>>() };
        let state = || {
            let mut state = StateV1::from(link.state());
            state.flags |= bit(link_flag::SHARED, link.is_shared())
                | bit(link_flag::WANTS_PANEL, link.wants_panel());
            state
        };
        question::ask(|_| {
            catch_unwind(AssertUnwindSafe(state)).unwrap_or_else(|_| give_up("state"))
        })
    }

    /// # Safety
    /// As for `fds`.
    pub(super) unsafe extern "C" fn status(link: *const ()) -> RString {
        // SAFETY: per this function's contract.
        let link = unsafe { &*link.cast::<Box<dyn Link>>() };
        catch_unwind(AssertUnwindSafe(|| link.status().to_json().into())).unwrap_or_else(|_| {
            log::error!("the plugin panicked in status");
            RString::new()
        })
    }

    /// # Safety
    /// As for `fds`; the pointer is not used again.
    pub(super) unsafe extern "C" fn close(link: *mut ()) {
        // SAFETY: per this function's contract this is the one owner of the box.
        let link = unsafe { Box::from_raw(link.cast::<Box<dyn Link>>()) };
        if catch_unwind(AssertUnwindSafe(|| drop(link))).is_err() {
            log::error!("the plugin panicked while its link was closed");
        }
    }
}

const LINK_CALLS: LinkCallsV1Ref = {
    const TABLE: &WithMetadata<LinkCallsV1> = &WithMetadata::new(LinkCallsV1 {
        fds: shim::fds,
        recv: shim::recv,
        send: shim::send,
        other_side: shim::other_side,
        state: shim::state,
        status: shim::status,
        close: shim::close,
    });
    LinkCallsV1Ref(TABLE.static_as_prefix())
};

fn export(link: Box<dyn Link>) -> LinkV1 {
    let link = Box::into_raw(Box::new(link)).cast();
    // SAFETY: the shims take a pointer to a boxed link; a link is Send.
    unsafe { LinkV1::new(link, LINK_CALLS) }
}

/// A descriptor named by a plugin, for polling only.
fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: the shim took the number from a BorrowedFd of the link, which keeps the descriptor
    // open.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// An answer, and the number of the question that it is for.
struct Answer<T>(Cell<Option<(u64, T)>>);

impl<T: Copy> Answer<T> {
    const fn none() -> Self {
        Self(Cell::new(None))
    }

    /// The answer to the question under way. `ask` is called for it once.
    fn get(&self, ask: impl FnOnce() -> T) -> T {
        question::ask(|number| match self.0.get() {
            Some((asked, answer)) if asked == number => answer,
            _ => {
                let answer = ask();
                self.0.set(Some((number, answer)));
                answer
            }
        })
    }
}

/// A link at the other side of the boundary, for its caller.
struct Remote {
    raw: LinkV1,
    fds: Answer<FdsV1>,
    state: Answer<StateV1>,
}

impl Remote {
    fn new(raw: LinkV1) -> Self {
        Self {
            raw,
            fds: Answer::none(),
            state: Answer::none(),
        }
    }

    fn fds(&self) -> FdsV1 {
        let (link, calls) = (self.raw.pointer(), self.raw.calls());
        // SAFETY: the pointer is live until `close`, which only LinkV1's Drop calls.
        self.fds.get(|| unsafe { (calls.fds())(link) })
    }

    fn raw_state(&self) -> StateV1 {
        let (link, calls) = (self.raw.pointer(), self.raw.calls());
        // SAFETY: as in `fds`.
        self.state.get(|| unsafe { (calls.state())(link) })
    }
}

impl Link for Remote {
    fn fd(&self) -> BorrowedFd<'_> {
        borrow(self.fds().recv)
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        borrow(self.fds().send)
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let (first, link) = (batch.len(), self.raw.pointer());
        // SAFETY: the pointer is live, and both borrows are exclusive for the call.
        let received = unsafe { (self.raw.calls().recv())(link, batch.raw.lend()) };
        batch.drop_undecodable(first);
        unwrap(received)
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        let (len, start, link) = (batch.len(), batch.start as u32, self.raw.pointer());
        // SAFETY: as in `recv`.
        let sent = unwrap(unsafe { (self.raw.calls().send())(link, batch.raw.lend(), start) })?;
        Ok((sent as usize).min(len))
    }

    fn other_side(&mut self, state: State) {
        // SAFETY: as in `recv`.
        unsafe { (self.raw.calls().other_side())(self.raw.pointer(), state.into()) }
    }

    fn state(&self) -> State {
        self.raw_state().into()
    }

    fn status(&self) -> Status {
        // SAFETY: as in `fds`.
        let json = unsafe { (self.raw.calls().status())(self.raw.pointer()) };
        Status::from_json(&json)
    }

    fn is_shared(&self) -> bool {
        self.raw_state().flags & link_flag::SHARED != 0
    }

    fn wants_panel(&self) -> bool {
        self.raw_state().flags & link_flag::WANTS_PANEL != 0
    }
}

impl From<Bridge> for HubV1 {
    fn from(bridge: Bridge) -> Self {
        Self {
            panel: bridge.panel_address.panel,
            place: bridge.panel_address.place.into(),
            name: bridge.tap.name().into(),
            tap: OwnedFd::from(bridge.tap).into_raw_fd(),
        }
    }
}

impl From<HubV1> for Bridge {
    fn from(raw: HubV1) -> Self {
        // SAFETY: the sender gave up the descriptor, in `from` above, and `raw` is consumed.
        let tap = unsafe { OwnedFd::from_raw_fd(raw.tap) };
        Self {
            panel_address: PanelAddress {
                panel: raw.panel,
                place: raw.place.into(),
            },
            tap: Tap::from_fd(tap, raw.name.into()),
        }
    }
}

/// The host's side: shims from the table's functions to a `&'static dyn HostServices`.
mod host_shim {
    use std::os::fd::{BorrowedFd, IntoRawFd};
    use std::time::Duration;

    use super::{HostServices, HubV1, LinkV1, Outcome, PortV1, RStr, contain, export};
    use crate::{PanelAddress, logging};

    /// The services behind the pointer of the host.
    ///
    /// # Safety
    /// `services` came from `export_services`, which leaked the reference.
    unsafe fn leaked(services: *const ()) -> &'static dyn HostServices {
        // SAFETY: per this function's contract.
        unsafe { *services.cast::<&'static dyn HostServices>() }
    }

    pub(super) extern "C" fn log(level: u32, target: RStr<'_>, message: RStr<'_>) {
        let level = logging::level_from_code(level);
        log::log!(target: target.as_str(), level, "{message}");
    }

    pub(super) extern "C" fn log_level() -> u32 {
        log::max_level() as u32
    }

    /// # Safety
    /// `services` came from `export_services`.
    pub(super) unsafe extern "C" fn open(services: *const (), vnl: RStr<'_>) -> Outcome<LinkV1> {
        // SAFETY: per this function's contract.
        let services = unsafe { leaked(services) };
        contain("open", || Ok(export(services.open(vnl.as_str())?)))
    }

    /// # Safety
    /// As for `open`.
    pub(super) unsafe extern "C" fn port(services: *const ()) -> PortV1 {
        // SAFETY: per this function's contract.
        let services = unsafe { leaked(services) };
        let port = services.port();
        PortV1 {
            interface: port.interface.into(),
            mtu: port.mtu,
            panel: port
                .panel_address
                .as_ref()
                .map_or(0, |panel_address| panel_address.panel),
            place: port
                .panel_address
                .map(|panel_address| panel_address.place)
                .unwrap_or_default()
                .into(),
        }
    }

    /// # Safety
    /// As for `open`.
    pub(super) unsafe extern "C" fn plug(services: *const (), peer: RStr<'_>) -> Outcome<()> {
        // SAFETY: per this function's contract.
        let services = unsafe { leaked(services) };
        contain("plug", || services.plug(peer.as_str()))
    }

    /// # Safety
    /// As for `open`.
    pub(super) unsafe extern "C" fn attach(
        services: *const (),
        panel: u64,
        place: RStr<'_>,
    ) -> Outcome<()> {
        // SAFETY: per this function's contract.
        let services = unsafe { leaked(services) };
        let place = place.to_string();
        contain("attach", || services.attach(&PanelAddress { panel, place }))
    }

    /// # Safety
    /// As for `open`.
    pub(super) unsafe extern "C" fn bridge(services: *const (), expiry: u64) -> Outcome<HubV1> {
        // SAFETY: per this function's contract.
        let services = unsafe { leaked(services) };
        let expiry = Duration::from_millis(expiry);
        contain("bridge", || services.bridge(expiry).map(HubV1::from))
    }

    /// # Safety
    /// As for `open`; `fd` is negative or stays open for the call.
    pub(super) unsafe extern "C" fn store_fd(services: *const (), fd: i32) -> Outcome<()> {
        // SAFETY: per this function's contract.
        let services = unsafe { leaked(services) };
        // SAFETY: per this function's contract.
        let fd = (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) });
        contain("store_fd", || services.store_fd(fd))
    }

    /// # Safety
    /// As for `open`.
    pub(super) unsafe extern "C" fn take_fd(services: *const ()) -> i32 {
        // SAFETY: per this function's contract.
        let services = unsafe { leaked(services) };
        services.take_fd().map_or(-1, IntoRawFd::into_raw_fd)
    }
}

const HOST_CALLS: HostCallsV1Ref = {
    const TABLE: &WithMetadata<HostCallsV1> = &WithMetadata::new(HostCallsV1 {
        log: host_shim::log,
        log_level: host_shim::log_level,
        open: host_shim::open,
        port: host_shim::port,
        plug: host_shim::plug,
        attach: host_shim::attach,
        hub: host_shim::bridge,
        keep: host_shim::store_fd,
        kept: host_shim::take_fd,
    });
    HostCallsV1Ref(TABLE.static_as_prefix())
};

/// The services as they cross the boundary. Leaks a pointer's worth of memory.
fn export_services(services: &'static dyn HostServices) -> HostV1 {
    let services = std::ptr::from_ref(Box::leak(Box::new(services))).cast();
    // SAFETY: the shims take a pointer to a leaked reference; services are Send and Sync.
    unsafe { HostV1::new(services, HOST_CALLS) }
}

/// The host at the other side of the boundary, for a plugin.
struct RemoteHost(HostV1);

impl HostServices for RemoteHost {
    fn open(&'static self, vnl: &str) -> Result<Box<dyn Link>> {
        // SAFETY: the pointer is what the table's functions expect, for the life of the process.
        let link = unwrap(unsafe { (self.0.calls().open())(self.0.pointer(), RStr::from(vnl)) })?;
        Ok(Box::new(Remote::new(link)))
    }

    fn port(&self) -> HostPort {
        // SAFETY: as in `open`.
        let port = unsafe { (self.0.calls().port())(self.0.pointer()) };
        HostPort {
            interface: port.interface.into(),
            mtu: port.mtu,
            panel_address: (port.panel != 0).then(|| PanelAddress {
                panel: port.panel,
                place: port.place.into(),
            }),
        }
    }

    fn plug(&self, peer: &str) -> Result<()> {
        // SAFETY: as in `open`.
        unwrap(unsafe { (self.0.calls().plug())(self.0.pointer(), RStr::from(peer)) })
    }

    fn attach(&self, bridge: &PanelAddress) -> Result<()> {
        let place = RStr::from(bridge.place.as_str());
        // SAFETY: as in `open`.
        unwrap(unsafe { (self.0.calls().attach())(self.0.pointer(), bridge.panel, place) })
    }

    fn bridge(&self, expiry: Duration) -> Result<Bridge> {
        let expiry = u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX);
        // SAFETY: as in `open`.
        unwrap(unsafe { (self.0.calls().hub())(self.0.pointer(), expiry) }).map(Bridge::from)
    }

    fn store_fd(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let fd = fd.map_or(-1, |fd| fd.as_raw_fd());
        // SAFETY: as in `open`; the descriptor is borrowed for the call.
        unwrap(unsafe { (self.0.calls().keep())(self.0.pointer(), fd) })
    }

    fn take_fd(&self) -> Option<OwnedFd> {
        // SAFETY: as in `open`.
        let fd = unsafe { (self.0.calls().kept())(self.0.pointer()) };
        // SAFETY: the host gave the descriptor up in this call.
        (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

extern "C" fn manifest<P: Plugin>() -> ManifestV1 {
    ManifestV1 {
        scheme: P::SCHEME.into(),
        description: P::DESCRIPTION.into(),
        version: P::VERSION.into(),
        capabilities: P::CAPABILITIES.0,
    }
}

extern "C" fn open<P: Plugin>(request: &RequestV1) -> Outcome<LinkV1> {
    contain("open", || {
        let level = (request.host.calls().log_level())();
        logging::forward_to(request.host, logging::filter_from_code(level));
        let link = P::open(&OpenRequest {
            vnl: &request.vnl,
            options: OpenOptions {
                description: request.description.to_string(),
                port: u32::try_from(request.port).ok(),
                group: Some(request.group.to_string()).filter(|group| !group.is_empty()),
                mode: u32::try_from(request.mode).ok(),
            },
            host: Host::new(Box::leak(Box::new(RemoteHost(request.host)))),
        })?;
        Ok(export(link))
    })
}

extern "C" fn root<P: Plugin>() -> RootModuleResult {
    let module = ModuleV1 {
        manifest: manifest::<P>,
        open: open::<P>,
    };
    module.into_root()
}

/// The library header that [`crate::export_plugin!`] exports.
#[doc(hidden)]
pub const fn header<P: Plugin>() -> LibHeader {
    // SAFETY: `root` returns what `into_root` made.
    unsafe { vdens_plugin_api::header(root::<P>) }
}

/// A loaded plugin, seen from the host.
#[derive(Clone, Copy)]
pub struct LoadedPlugin {
    module: ModuleV1Ref,
}

/// Why the host cannot use a shared object as a plugin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The layout of the interface differs.
    #[error("it was built for another revision of ABI {VERSION} (plugin-api {plugin}, vdens has {host})", host = CRATE_VERSION)]
    Layout {
        /// The plugin-api version that the plugin was built with.
        plugin: String,
        /// abi_stable's report, long.
        report: String,
    },
    /// abi_stable itself is another version.
    #[error("it was built with an incompatible abi_stable")]
    AbiStable(String),
    /// The plugin's constructor failed.
    #[error("it does not initialise: {0}")]
    Constructor(String),
}

impl LoadedPlugin {
    /// Binds the library header at the symbol `vdens_plugin_v1`.
    ///
    /// # Safety
    /// `symbol` is the address of that symbol in a library that is never unloaded.
    ///
    /// # Errors
    /// The header or the types in it are not those of ABI 1, or the plugin does not initialise.
    pub unsafe fn bind(symbol: *const ()) -> Result<Self, BindError> {
        // SAFETY: the symbol is a LibHeader, whose first field is an AbiHeader; AbiHeaderRef is a
        // transparent reference to that, and `upgrade` compares it before anything else is read.
        let header = unsafe { std::mem::transmute::<*const (), AbiHeaderRef>(symbol) };
        let header = header
            .upgrade()
            .map_err(|error| BindError::AbiStable(error.to_string()))?;
        let module = header.init_root_module::<ModuleV1Ref>();
        let module = module.map_err(|error| match error {
            LibraryError::AbiInstability(_) | LibraryError::IncompatibleVersionNumber { .. } => {
                BindError::Layout {
                    plugin: header.version_strings().version.to_string(),
                    report: error.to_string(),
                }
            }
            error => BindError::Constructor(error.to_string()),
        })?;
        Ok(Self { module })
    }

    /// The plugin's description of itself.
    pub fn manifest(&self) -> Manifest {
        let manifest = (self.module.manifest())();
        Manifest {
            scheme: manifest.scheme.into(),
            description: manifest.description.into(),
            version: manifest.version.into(),
            capabilities: Capabilities(manifest.capabilities),
        }
    }

    /// Opens a link through the plugin.
    ///
    /// # Errors
    /// The plugin reports an error.
    pub fn open(
        &self,
        vnl: &str,
        options: &OpenOptions,
        services: &'static dyn HostServices,
    ) -> Result<Box<dyn Link>> {
        let request = RequestV1 {
            vnl: vnl.into(),
            description: options.description.as_str().into(),
            group: options.group.as_deref().unwrap_or_default().into(),
            port: options.port.map_or(-1, i64::from),
            mode: options.mode.map_or(-1, i64::from),
            host: export_services(services),
        };
        let link = unwrap((self.module.open())(&request))?;
        Ok(Box::new(Remote::new(link)))
    }
}

impl std::fmt::Debug for LoadedPlugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LoadedPlugin")
            .field(&self.manifest())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, VNET_HEADER_LEN};
    use std::cell::RefCell;
    use std::fs::File;
    use std::os::fd::AsFd;

    thread_local! {
        /// What the innermost link has been asked.
        static ASKED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    }

    fn asked(what: &'static str) {
        ASKED.with_borrow_mut(|asked| asked.push(what));
    }

    /// Receives three frames, the second of which it cuts short in a way that only an older kit
    /// allows.
    struct Innermost(File, bool);

    impl Link for Innermost {
        fn fd(&self) -> BorrowedFd<'_> {
            asked("fd");
            self.0.as_fd()
        }
        fn send_fd(&self) -> BorrowedFd<'_> {
            asked("send_fd");
            self.0.as_fd()
        }
        fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
            let second = batch.len() + 1;
            for n in 1..=3 {
                batch.push(&[n; 25]);
            }
            let cut = 20 + VNET_HEADER_LEN as u32;
            batch.raw.move_slot(second, second, cut);
            self.1 = false;
            Ok(())
        }
        fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
            Ok(batch.len())
        }
        fn state(&self) -> State {
            asked("state");
            State::carrier(self.1)
        }
        fn is_shared(&self) -> bool {
            asked("is_shared");
            true
        }
        fn wants_panel(&self) -> bool {
            asked("wants_panel");
            false
        }
    }

    /// Answers everything with another link's answer.
    struct Through(Box<dyn Link>);

    impl Link for Through {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.fd()
        }
        fn send_fd(&self) -> BorrowedFd<'_> {
            self.0.send_fd()
        }
        fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
            self.0.recv(batch)
        }
        fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
            self.0.send(batch)
        }
        fn state(&self) -> State {
            self.0.state()
        }
        fn is_shared(&self) -> bool {
            self.0.is_shared()
        }
        fn wants_panel(&self) -> bool {
            self.0.wants_panel()
        }
    }

    /// A link, and around it others that cross the boundary as often as `depth` nested VNLs do.
    fn nested(depth: usize) -> Remote {
        let null = File::open("/dev/null").unwrap();
        let mut link = Remote::new(export(Box::new(Innermost(null, true))));
        for _ in 0..depth {
            // From the inner plugin to the host, from the host to the outer plugin.
            let in_the_outer = Remote::new(export(Box::new(link)));
            link = Remote::new(export(Box::new(Through(Box::new(in_the_outer)))));
        }
        link
    }

    #[test]
    fn the_innermost_link_is_asked_once_a_question() {
        let mut link = nested(8);
        for _ in 0..3 {
            let _ = link.state();
            let all = ASKED.take();
            assert_eq!(all, ["state", "is_shared", "wants_panel"]);
            assert!(link.is_shared() && !link.wants_panel());
            assert_eq!(ASKED.take(), [&all[..], &all].concat());
            let _ = (link.fd(), link.send_fd());
            assert_eq!(ASKED.take(), ["fd", "send_fd", "fd", "send_fd"]);
        }
        assert!(link.state().carrier);
        link.recv(&mut Batch::new().rx()).unwrap();
        assert!(!link.state().carrier, "an answer to an earlier question");
        let asked = std::thread::spawn(move || (link.state(), ASKED.take())).join();
        assert_eq!(asked.unwrap().1.len(), 3, "a question on another thread");
    }

    #[test]
    fn what_a_plugin_receives_is_frames_or_is_dropped_and_counted() {
        for depth in [0, 1, 3] {
            let mut batch = Batch::new();
            batch.rx().push(&[0; 14]);
            nested(depth).recv(&mut batch.rx()).unwrap();
            assert_eq!((batch.len(), batch.take_dropped()), (3, 1));
            let left: Vec<u8> = batch.tx(0).frames().map(|f| f.bytes()[0]).collect();
            assert_eq!(left, [0, 1, 3]);
        }
    }
}
