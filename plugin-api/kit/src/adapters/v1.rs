//! The door v1: the types of the crate [`vdens_plugin_api`], in both directions.

use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use vdens_plugin_api::abi_stable::library::{AbiHeaderRef, LibraryError};
use vdens_plugin_api::abi_stable::prefix_type::WithMetadata;
use vdens_plugin_api::abi_stable::std_types::{RErr, ROk, RStr, RString};
use vdens_plugin_api::{
    ErrorV1, FdsV1, HostCallsV1, HostCallsV1Ref, HostV1, HubV1, LinkCallsV1, LinkCallsV1Ref,
    LinkV1, ManifestV1, ModuleV1, ModuleV1Ref, Outcome, PortV1, RawBatch, RawSlot, RequestV1,
    RootModuleResult, StateV1,
};
use vdens_plugin_c::{Batch, Fds, Slot, State as RawState};

use super::BindError;
use super::c1::panel;
use super::export;
use super::import::{RawLink, Remote, changed_batch};
use crate::batch::Storage;
use crate::logging;
use crate::tap::Tap;
use crate::{
    Bridge, BridgePort, Capabilities, Error, ErrorKind, HostPort, HostServices, Link, Manifest,
    OpenOptions, PanelAddress, Plugin, PortVlans, Result, VlanBridge,
};

pub use vdens_plugin_api::LibHeader;

pub(super) use vdens_plugin_api::ModuleV1Ref as Module;

/// Batches of both doors are the same, so a pointer to one is a pointer to the other.
const _: () = {
    assert!(size_of::<Batch>() == size_of::<RawBatch>());
    assert!(size_of::<Slot>() == size_of::<RawSlot>());
    assert!(offset_of!(Batch, arena) == offset_of!(RawBatch, arena));
    assert!(offset_of!(Batch, arena_len) == offset_of!(RawBatch, arena_len));
    assert!(offset_of!(Batch, used) == offset_of!(RawBatch, used));
    assert!(offset_of!(Batch, slots) == offset_of!(RawBatch, slots));
    assert!(offset_of!(Batch, slot_capacity) == offset_of!(RawBatch, slot_capacity));
    assert!(offset_of!(Batch, len) == offset_of!(RawBatch, len));
    assert!(offset_of!(Batch, dropped) == offset_of!(RawBatch, dropped));
    assert!(offset_of!(Slot, offset) == offset_of!(RawSlot, offset));
    assert!(offset_of!(Slot, len) == offset_of!(RawSlot, len));
};

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

fn wrap<T>(result: Result<T>) -> Outcome<T> {
    match result {
        Ok(value) => ROk(value),
        Err(error) => RErr(error.into()),
    }
}

fn from_v1(state: StateV1) -> RawState {
    let StateV1 { flags, offloads } = state;
    RawState { flags, offloads }
}

fn to_v1(state: RawState) -> StateV1 {
    let RawState { flags, offloads } = state;
    StateV1 { flags, offloads }
}

/// The author's side: the table's functions.
///
/// # Safety
/// Of each: the link came from `export` and is neither closed nor in use; a batch is valid and
/// exclusive for the call.
mod shim {
    use super::{
        Batch, Fds, FdsV1, Outcome, RString, RawBatch, StateV1, export, from_v1, to_v1, wrap,
    };

    pub(super) unsafe extern "C" fn fds(link: *const ()) -> FdsV1 {
        // SAFETY: as this module demands.
        let Fds { recv, send } = unsafe { export::fds(link) };
        FdsV1 { recv, send }
    }

    pub(super) unsafe extern "C" fn recv(link: *mut (), batch: *mut RawBatch) -> Outcome<()> {
        // SAFETY: as this module demands.
        wrap(unsafe { export::recv(link, batch.cast::<Batch>()) })
    }

    pub(super) unsafe extern "C" fn send(
        link: *mut (),
        batch: *mut RawBatch,
        start: u32,
    ) -> Outcome<u32> {
        // SAFETY: as this module demands.
        wrap(unsafe { export::send(link, batch.cast::<Batch>(), start) })
    }

    pub(super) unsafe extern "C" fn other_side(link: *mut (), state: StateV1) {
        // SAFETY: as this module demands.
        unsafe { export::other_side(link, from_v1(state)) }
    }

    pub(super) unsafe extern "C" fn state(link: *const ()) -> StateV1 {
        // SAFETY: as this module demands.
        to_v1(unsafe { export::state(link) })
    }

    pub(super) unsafe extern "C" fn status(link: *const ()) -> RString {
        // SAFETY: as this module demands.
        unsafe { export::status(link) }.into()
    }

    pub(super) unsafe extern "C" fn close(link: *mut ()) {
        // SAFETY: as this module demands; the pointer is not used again.
        unsafe { export::close(link) }
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
    // SAFETY: the shims take a pointer to a boxed link; a link is Send.
    unsafe { LinkV1::new(export::link_pointer(link), LINK_CALLS) }
}

impl RawLink for LinkV1 {
    fn fds(&self) -> Fds {
        // SAFETY: the pointer is live until `close`, which only LinkV1's Drop calls.
        let FdsV1 { recv, send } = unsafe { (self.calls().fds())(self.pointer()) };
        Fds { recv, send }
    }

    fn recv(&mut self, batch: &mut Storage) -> Result<()> {
        // SAFETY: the pointer is live, and both borrows are exclusive for the call.
        let call = |raw: *mut Batch| unsafe { (self.calls().recv())(self.pointer(), raw.cast()) };
        unwrap(batch.lend(call).ok_or_else(changed_batch)?)
    }

    fn send(&mut self, batch: &mut Storage, start: u32) -> Result<usize> {
        let call = |raw: *mut Batch| {
            // SAFETY: as in `recv`.
            unsafe { (self.calls().send())(self.pointer(), raw.cast(), start) }
        };
        let sent = batch.lend_for_reading(call).ok_or_else(changed_batch)?;
        unwrap(sent).map(|sent| sent as usize)
    }

    fn other_side(&mut self, state: RawState) {
        // SAFETY: as in `recv`.
        unsafe { (self.calls().other_side())(self.pointer(), to_v1(state)) }
    }

    fn state(&self) -> RawState {
        // SAFETY: as in `fds`.
        from_v1(unsafe { (self.calls().state())(self.pointer()) })
    }

    fn status(&self) -> String {
        // SAFETY: as in `fds`.
        unsafe { (self.calls().status())(self.pointer()) }.into()
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

/// The host's side: the table's functions.
///
/// # Safety
/// Of each: `services` came from `export_services`, and a descriptor is negative or open for the
/// call.
mod host_shim {
    use std::os::fd::{BorrowedFd, IntoRawFd};
    use std::time::Duration;

    use super::export::{self, contain, leaked};
    use super::{HubV1, LinkV1, Outcome, PortV1, RStr, export as export_link, wrap};
    use crate::PanelAddress;

    pub(super) extern "C" fn log(level: u32, target: RStr<'_>, message: RStr<'_>) {
        export::log(level, target.as_str(), message.as_str());
    }

    pub(super) extern "C" fn log_level() -> u32 {
        log::max_level() as u32
    }

    pub(super) unsafe extern "C" fn open(services: *const (), vnl: RStr<'_>) -> Outcome<LinkV1> {
        // SAFETY: as this module demands.
        let services = unsafe { leaked(services) };
        wrap(contain("open", || {
            services.open(vnl.as_str()).map(export_link)
        }))
    }

    pub(super) unsafe extern "C" fn port(services: *const ()) -> PortV1 {
        // SAFETY: as this module demands.
        let port = unsafe { leaked(services) }.port();
        let (panel, place) = port
            .panel_address
            .map_or_else(Default::default, |address| (address.panel, address.place));
        PortV1 {
            interface: port.interface.into(),
            mtu: port.mtu,
            panel,
            place: place.into(),
        }
    }

    pub(super) unsafe extern "C" fn plug(services: *const (), peer: RStr<'_>) -> Outcome<()> {
        // SAFETY: as this module demands.
        let services = unsafe { leaked(services) };
        wrap(contain("plug", || services.plug(peer.as_str())))
    }

    pub(super) unsafe extern "C" fn attach(
        services: *const (),
        panel: u64,
        place: RStr<'_>,
    ) -> Outcome<()> {
        // SAFETY: as this module demands.
        let services = unsafe { leaked(services) };
        let place = place.to_string();
        wrap(contain("attach", || {
            services.attach(&PanelAddress { panel, place })
        }))
    }

    pub(super) unsafe extern "C" fn bridge(services: *const (), expiry: u64) -> Outcome<HubV1> {
        // SAFETY: as this module demands.
        let services = unsafe { leaked(services) };
        let expiry = Duration::from_millis(expiry);
        wrap(contain("bridge", || {
            services.bridge(expiry).map(HubV1::from)
        }))
    }

    pub(super) unsafe extern "C" fn store_fd(services: *const (), fd: i32) -> Outcome<()> {
        // SAFETY: as this module demands.
        let services = unsafe { leaked(services) };
        // SAFETY: as this module demands.
        let fd = (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) });
        wrap(contain("store_fd", || services.store_fd(fd)))
    }

    pub(super) unsafe extern "C" fn take_fd(services: *const ()) -> i32 {
        // SAFETY: as this module demands.
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

/// The services as they cross the boundary.
fn export_services(services: &'static dyn HostServices) -> HostV1 {
    // SAFETY: the shims take this pointer; services are Send and Sync.
    unsafe { HostV1::new(export::services_pointer(services), HOST_CALLS) }
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

    fn vlan_bridge(&self, expiry: Duration, kind: VlanBridge) -> Result<Bridge> {
        // SAFETY: the pointer is that of the host's services.
        unsafe { panel::make_bridge(self.0.pointer().cast(), expiry, kind) }
    }

    fn set_vlans(
        &self,
        bridge: &PanelAddress,
        port: BridgePort<'_>,
        vlans: &PortVlans,
    ) -> Result<()> {
        // SAFETY: as above.
        unsafe { panel::set(self.0.pointer().cast(), bridge, port, vlans) }
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
    let host = request.host;
    let level = logging::filter_from_code((host.calls().log_level())());
    let sink = move |level: log::Level, target: &str, message: &str| {
        (host.calls().log())(level as u32, target.into(), message.into());
    };
    let options = OpenOptions {
        description: request.description.to_string(),
        port: u32::try_from(request.port).ok(),
        group: Some(request.group.to_string()).filter(|group| !group.is_empty()),
        mode: u32::try_from(request.mode).ok(),
    };
    let services = Box::new(RemoteHost(host));
    let link = export::open::<P>(&request.vnl, options, services, (Box::new(sink), level));
    wrap(link.map(export))
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

/// Binds the library header at the door's symbol.
///
/// # Safety
/// `symbol` is the address of that symbol in a library that is never unloaded.
pub(super) unsafe fn bind(symbol: *const ()) -> Result<Module, BindError> {
    // SAFETY: the symbol is a LibHeader, whose first field is an AbiHeader; AbiHeaderRef is a
    // transparent reference to that, and `upgrade` compares it before anything else is read.
    let header = unsafe { std::mem::transmute::<*const (), AbiHeaderRef>(symbol) };
    let header = header
        .upgrade()
        .map_err(|error| BindError::AbiStable(error.to_string()))?;
    let module = header.init_root_module::<ModuleV1Ref>();
    module.map_err(|error| match error {
        LibraryError::AbiInstability(_) | LibraryError::IncompatibleVersionNumber { .. } => {
            BindError::Layout {
                plugin: header.version_strings().version.to_string(),
                report: error.to_string(),
            }
        }
        error => BindError::Constructor(error.to_string()),
    })
}

/// The plugin's description of itself.
pub(super) fn manifest_of(module: Module) -> Manifest {
    let manifest = (module.manifest())();
    Manifest {
        scheme: manifest.scheme.into(),
        description: manifest.description.into(),
        version: manifest.version.into(),
        capabilities: Capabilities(manifest.capabilities),
    }
}

/// Opens a link through the plugin.
pub(super) fn open_with(
    module: Module,
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
    let link = unwrap((module.open())(&request))?;
    Ok(Box::new(Remote::new(link)))
}

#[cfg(test)]
pub(super) fn cross(link: Box<dyn Link>) -> Box<dyn Link> {
    Box::new(Remote::new(export(link)))
}
