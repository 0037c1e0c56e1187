//! The C library: its functions (libvdeplug.h, interface version 1), which are loaded from the
//! system's library path.

use std::error::Error as _;
use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library as Object, RTLD_GLOBAL, RTLD_NOW};
use nix::errno::Errno;
use vdens_plugin_kit::{Error, ErrorKind, Result};

/// The library's name for the dynamic linker.
const SONAME: &str = "libvdeplug.so.2";

/// The interface version of the caller (`LIBVDEPLUG_INTERFACE_VERSION`), for `vde_open_real`.
pub(crate) const INTERFACE_VERSION: c_int = 1;

/// `struct vde_open_args`.
#[repr(C)]
pub(crate) struct OpenArgs {
    /// The port of a switch; 0 for any.
    pub(crate) port: c_int,
    /// A group's name, or null.
    pub(crate) group: *mut c_char,
    /// Permission bits of a socket.
    pub(crate) mode: libc::mode_t,
}

/// `VDECONN *`.
pub(crate) type Conn = *mut c_void;

/// The functions of the library.
#[derive(Clone, Copy)]
pub(crate) struct Library {
    pub(crate) open: unsafe extern "C" fn(*mut c_char, *mut c_char, c_int, *mut OpenArgs) -> Conn,
    pub(crate) recv: unsafe extern "C" fn(Conn, *mut c_void, usize, c_int) -> isize,
    pub(crate) send: unsafe extern "C" fn(Conn, *const c_void, usize, c_int) -> isize,
    pub(crate) datafd: unsafe extern "C" fn(Conn) -> c_int,
    pub(crate) ctlfd: unsafe extern "C" fn(Conn) -> c_int,
    pub(crate) close: unsafe extern "C" fn(Conn) -> c_int,
}

static LIBRARY: OnceLock<Library> = OnceLock::new();

/// The library. The first call loads it, and it is never unloaded.
///
/// # Errors
/// It is not installed, or lacks a function. The error's number is `EPROTONOSUPPORT`, as for a
/// scheme without a plugin.
pub(crate) fn get() -> Result<Library> {
    if let Some(library) = LIBRARY.get() {
        return Ok(*library);
    }
    let library = load()?;
    crate::process::prepare();
    Ok(*LIBRARY.get_or_init(|| library))
}

fn load() -> Result<Library> {
    let object = locate()?;
    // SAFETY: libvdeplug.h declares these types for these names, and the object is never unloaded.
    unsafe {
        let library = Library {
            open: symbol(&object, "vde_open_real")?,
            recv: symbol(&object, "vde_recv")?,
            send: symbol(&object, "vde_send")?,
            datafd: symbol(&object, "vde_datafd")?,
            ctlfd: symbol(&object, "vde_ctlfd")?,
            close: symbol(&object, "vde_close")?,
        };
        std::mem::forget(object);
        Ok(library)
    }
}

/// Loads the library that the dynamic linker finds. If that is vdens's own, which would open the
/// VNL by this plugin again, loads the system's instead.
fn locate() -> Result<Object> {
    let object = open_object(SONAME).map_err(|error| {
        let linker = error
            .source()
            .map_or_else(|| error.to_string(), ToString::to_string);
        // Only the linker's text tells the two cases apart.
        let why = match linker.contains("No such file") {
            true => "is not installed".to_owned(),
            false => format!("cannot be loaded: {linker}"),
        };
        unavailable(why).hint("install libvdeplug (Debian and Ubuntu: libvdeplug2)")
    })?;
    if !is_own(&object) {
        return Ok(object);
    }
    // C plugins that nest others must find the system's functions, not these.
    drop(object);
    let machine = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    let directories = ["/usr/local/lib", &machine, "/usr/lib64", "/usr/lib"];
    let paths = directories.map(|directory| format!("{directory}/{SONAME}"));
    let loaded = paths.iter().filter_map(|path| open_object(path).ok());
    loaded
        .into_iter()
        .find(|object| !is_own(object))
        .ok_or_else(|| {
            unavailable("that is found is vdens's own, which has no C plugins".to_owned())
                .hint("install VDE's library (Debian and Ubuntu: libvdeplug2)")
        })
}

fn open_object(file: &str) -> std::result::Result<Object, libloading::Error> {
    // Global, because plugins that nest others (agno) find the library's functions in this process.
    // SAFETY: loading runs the library's constructors. It comes from the system's library path, and
    // is trusted as any library there.
    unsafe { Object::open(Some(file), RTLD_NOW | RTLD_GLOBAL) }
}

/// Whether an object is the library of vdens (host/libvdeplug), which exports a symbol of this
/// name.
fn is_own(object: &Object) -> bool {
    // SAFETY: the symbol is looked up, and not used.
    unsafe { object.get::<*const c_void>(b"vdens_libvdeplug") }.is_ok()
}

/// A function of the library.
///
/// # Safety
/// `F` is the type of the function pointer by this name. The object is not unloaded while it is
/// used.
unsafe fn symbol<F: Copy>(object: &Object, name: &str) -> Result<F> {
    // SAFETY: per this function's contract.
    match unsafe { object.get::<F>(name.as_bytes()) } {
        Ok(symbol) => Ok(*symbol),
        Err(_) => Err(unavailable(format!("has no function {name}"))
            .hint("install libvdeplug 4 (Debian and Ubuntu: libvdeplug2)")),
    }
}

fn unavailable(why: String) -> Error {
    Error {
        errno: Errno::EPROTONOSUPPORT as i32,
        ..Error::new(
            ErrorKind::Unsupported,
            format!("the library libvdeplug {why}"),
        )
    }
}
