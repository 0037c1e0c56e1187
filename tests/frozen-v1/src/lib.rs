//! `frozen://{VNL}`: the link of another VNL, written by hand on ABI 1, without the kit.
//!
//! Its types are in `plugin-api`, a copy of `vdens-plugin-api` as it was when the ABI was frozen.
//! Neither ever changes: a host that refuses this plugin is wrong.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vdens_plugin_api::abi_stable::prefix_type::WithMetadata;
use vdens_plugin_api::abi_stable::std_types::{RErr, ROk, RStr, RString};
use vdens_plugin_api::{
    ErrorV1, FdsV1, HostV1, LibHeader, LinkCallsV1, LinkCallsV1Ref, LinkV1, ManifestV1, ModuleV1,
    Outcome, RawBatch, RequestV1, RootModuleResult, StateV1, VERSION, capability, error_code,
};

/// The level `info` of a host's log.
const INFO: u32 = 3;

fn info(host: HostV1, message: &str) {
    if (host.calls().log_level())() >= INFO {
        (host.calls().log())(INFO, RStr::from("frozen"), RStr::from(message));
    }
}

/// Another link, whose every call is passed on.
struct Through(LinkV1);

const CALLS: LinkCallsV1Ref = {
    const TABLE: &WithMetadata<LinkCallsV1> = &WithMetadata::new(LinkCallsV1 {
        fds,
        recv,
        send,
        other_side,
        state,
        status,
        close,
    });
    LinkCallsV1Ref(TABLE.static_as_prefix())
};

/// The link that `link` passes its calls on to.
///
/// # Safety
/// `link` came from `open` and is not closed, for `'a`. The same holds for each function below.
unsafe fn inner<'a>(link: *const ()) -> &'a LinkV1 {
    // SAFETY: per this function's contract.
    unsafe { &(*link.cast::<Through>()).0 }
}

unsafe extern "C" fn fds(link: *const ()) -> FdsV1 {
    // SAFETY: the caller keeps to the contract of LinkV1::new, and so does this call.
    unsafe { (inner(link).calls().fds())(inner(link).pointer()) }
}

unsafe extern "C" fn recv(link: *mut (), batch: *mut RawBatch) -> Outcome<()> {
    // SAFETY: as in `fds`.
    unsafe { (inner(link).calls().recv())(inner(link).pointer(), batch) }
}

unsafe extern "C" fn send(link: *mut (), batch: *mut RawBatch, start: u32) -> Outcome<u32> {
    // SAFETY: as in `fds`.
    unsafe { (inner(link).calls().send())(inner(link).pointer(), batch, start) }
}

unsafe extern "C" fn other_side(link: *mut (), state: StateV1) {
    // SAFETY: as in `fds`.
    unsafe { (inner(link).calls().other_side())(inner(link).pointer(), state) }
}

unsafe extern "C" fn state(link: *const ()) -> StateV1 {
    // SAFETY: as in `fds`.
    unsafe { (inner(link).calls().state())(inner(link).pointer()) }
}

unsafe extern "C" fn status(link: *const ()) -> RString {
    // SAFETY: as in `fds`.
    unsafe { (inner(link).calls().status())(inner(link).pointer()) }
}

unsafe extern "C" fn close(link: *mut ()) {
    // SAFETY: `open` leaked the box, and the pointer is not used again.
    drop(unsafe { Box::from_raw(link.cast::<Through>()) });
}

fn error(code: u32, message: &str, hint: &str) -> ErrorV1 {
    ErrorV1 {
        code,
        errno: 0,
        message: message.into(),
        hint: hint.into(),
    }
}

/// Has the session store a descriptor, or finds the one that this process's predecessor stored.
fn resume(host: HostV1) -> Result<(), ErrorV1> {
    // SAFETY: the pointer belongs to the functions.
    let stored = unsafe { (host.calls().kept())(host.pointer()) };
    if stored >= 0 {
        // SAFETY: the host gave the descriptor up.
        drop(unsafe { OwnedFd::from_raw_fd(stored) });
        info(host, "frozen: goes on where another stopped");
        return Ok(());
    }
    let null = File::open("/dev/null")
        .map_err(|_| error(error_code::OTHER, "cannot open /dev/null", ""))?;
    // SAFETY: the pointer belongs to the functions; the descriptor is open for the call. A host
    // without sessions refuses, which is no failure of this link.
    let _ = unsafe { (host.calls().keep())(host.pointer(), null.as_raw_fd()) };
    Ok(())
}

fn open_inner(request: &RequestV1) -> Result<LinkV1, ErrorV1> {
    let host = request.host;
    let braces = request.vnl.strip_prefix("frozen://{");
    let Some(vnl) = braces.and_then(|rest| rest.strip_suffix('}')) else {
        let hint = "write frozen://{VNL}";
        return Err(error(error_code::USAGE, "no VNL in braces", hint));
    };
    // SAFETY: the pointer belongs to the functions.
    let port = unsafe { (host.calls().port())(host.pointer()) };
    let message = format!("frozen: {} has an MTU of {}", port.interface, port.mtu);
    info(host, &message);
    resume(host)?;
    // SAFETY: the pointer belongs to the functions.
    unsafe { (host.calls().open())(host.pointer(), RStr::from(vnl)) }.into_result()
}

extern "C" fn open(request: &RequestV1) -> Outcome<LinkV1> {
    match open_inner(request) {
        Ok(inner) => {
            let link = Box::into_raw(Box::new(Through(inner))).cast();
            // SAFETY: the functions take a pointer to a boxed Through, which any thread may use.
            ROk(unsafe { LinkV1::new(link, CALLS) })
        }
        Err(error) => RErr(error),
    }
}

extern "C" fn manifest() -> ManifestV1 {
    ManifestV1 {
        scheme: "frozen".into(),
        description: "another link, through ABI 1 as it was frozen".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        capabilities: capability::NESTS,
    }
}

extern "C" fn root() -> RootModuleResult {
    ModuleV1 { manifest, open }.into_root()
}

#[unsafe(export_name = "vdens_plugin_abi")]
static ABI: u32 = VERSION;

// SAFETY: `root` returns what `ModuleV1::into_root` made.
#[unsafe(export_name = "vdens_plugin_v1")]
static HEADER: LibHeader = unsafe { vdens_plugin_api::header(root) };
