//! A connection's helper process: finding its program, starting it, and the outcome of the opening.
//!
//! The helper sends one message on the control descriptor: an `int` in host byte order, which is 0
//! or an errno. With 0 comes the data descriptor. What failed, the helper itself logs.
//!
//! The program is the `vde_plug` that belongs to this library. One that is in `PATH` may be VDE's
//! own.

use std::env;
use std::ffi::{CStr, CString, OsStr, c_int};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};
use nix::unistd::{AccessFlags, access};

use crate::spawn;

/// Names the program, as an absolute path.
const PROGRAM: &str = "VDENS_VDE_PLUG";

/// What the helper logs on the program's standard error: `error`, `warn`, `info` or `debug`.
/// Nothing without it.
const LOG: &str = "VDENS_LIBVDEPLUG_LOG";

/// Where the program is, seen from this library: beside it as cargo builds them, or below the
/// directory `PREFIX/lib/vdens` in which host/packaging installs both. `PREFIX/bin/vde_plug` may be
/// VDE's own.
const PLACES: [&str; 2] = ["vde_plug", "bin/vde_plug"];

/// How long the opening may take. The host gives a plugin 10 s.
const OPENING: Duration = Duration::from_secs(30);

/// What to open.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// A VNL, or empty for the default switch.
    pub(crate) vnl: &'a CStr,
    /// What switches show for the connection.
    pub(crate) description: Option<&'a CStr>,
    /// A switch's port; 0 for any.
    pub(crate) port: c_int,
    /// The group of the connection's sockets.
    pub(crate) group: Option<&'a CStr>,
    /// Their permission bits; 0 for the usual ones.
    pub(crate) mode: libc::mode_t,
}

/// Starts a helper that opens a VNL. Returns the control and the data descriptor.
///
/// # Errors
/// The helper's error, or that it cannot be started.
pub(crate) fn open(request: &Request<'_>) -> nix::Result<(OwnedFd, OwnedFd)> {
    let level = variable(LOG);
    let complain = |what: &str, errno: Errno| {
        if level.is_some() {
            let vnl = request.vnl.to_string_lossy();
            eprintln!("libvdeplug.so.2: {}: {what}", vnl.escape_debug());
        }
        errno
    };
    if request.port < 0 {
        return Err(complain("the port is negative", Errno::EINVAL));
    }
    if request.group.is_some_and(|group| group.to_str().is_err()) {
        return Err(complain("the group's name is not UTF-8", Errno::EINVAL));
    }
    let program = program().map_err(|(text, errno)| complain(&text, errno))?;
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    let arguments = arguments(request, level.as_deref())?;
    spawn::spawn(&program, &arguments, &theirs, level.is_some())
        .map_err(|errno| complain(&format!("cannot start {program:?}: {errno}"), errno))?;
    drop(theirs);
    let data = outcome(&ours)
        .map_err(|errno| complain(&format!("its vde_plug does not open it: {errno}"), errno))?;
    Ok((ours, data))
}

/// An environment variable, unless the program has more rights than its caller.
fn variable(name: &str) -> Option<Vec<u8>> {
    // SAFETY: the call reads a number that the kernel gave the process.
    let is_raised = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    let value = env::var_os(name).filter(|value| !is_raised && !value.is_empty());
    value.map(OsStringExt::into_vec)
}

type Failure = (String, Errno);

/// The helper's program.
fn program() -> Result<CString, Failure> {
    let named = variable(PROGRAM);
    let candidates: Vec<PathBuf> = match &named {
        Some(path) => vec![Path::new(OsStr::from_bytes(path)).to_owned()],
        None => {
            let library = library().ok_or_else(|| {
                let text = format!("the library's own file is not known; set {PROGRAM}");
                (text, Errno::ENOENT)
            })?;
            let directory = library.parent().unwrap_or(Path::new("/"));
            PLACES.map(|place| directory.join(place)).into()
        }
    };
    let is_program = |path: &&PathBuf| {
        path.is_absolute() && path.is_file() && access(*path, AccessFlags::X_OK).is_ok()
    };
    let found = candidates.iter().find(is_program);
    let found = found.and_then(|path| CString::new(path.as_os_str().as_bytes()).ok());
    found.ok_or_else(|| {
        let text = format!(
            "there is no program vde_plug of vdens at {candidates:?}; put the library where it \
             belongs, or set {PROGRAM}"
        );
        (text, Errno::ENOENT)
    })
}

/// This library's file. Symbolic links are followed, because the name `libvdeplug.so.2` may be one.
fn library() -> Option<PathBuf> {
    let mut info = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: the address is of this library's data, and `info` has room for the answer.
    let found = unsafe {
        libc::dladdr(
            (&raw const crate::vdens_libvdeplug).cast(),
            info.as_mut_ptr(),
        )
    };
    if found == 0 {
        return None;
    }
    // SAFETY: dladdr has filled it in, and a library that is loaded keeps its name.
    let name = unsafe {
        let info = info.assume_init();
        (!info.dli_fname.is_null()).then(|| CStr::from_ptr(info.dli_fname))?
    };
    Path::new(OsStr::from_bytes(name.to_bytes()))
        .canonicalize()
        .ok()
}

/// The helper's arguments.
fn arguments(request: &Request<'_>, level: Option<&[u8]>) -> nix::Result<Vec<CString>> {
    let mut words: Vec<CString> = vec![c"vde_plug".into()];
    let mut push = |option: &str, value: &[u8]| {
        let word = [option.as_bytes(), value].concat();
        CString::new(word).map(|word| words.push(word))
    };
    let control = spawn::CONTROL.to_string();
    let pushed = push("--program-fd=", control.as_bytes())
        .and_then(|()| match level {
            Some(b"debug") => push("-vv", b""),
            Some(b"info") => push("-v", b""),
            Some(b"warn") => Ok(()),
            _ => push("-q", b""),
        })
        .and_then(|()| match request.description {
            Some(text) if !text.is_empty() => push("--descr=", text.to_string_lossy().as_bytes()),
            _ => Ok(()),
        })
        .and_then(|()| match request.port {
            0 => Ok(()),
            port => push("--port=", port.to_string().as_bytes()),
        })
        .and_then(|()| match request.group {
            Some(group) if !group.is_empty() => push("--group=", group.to_bytes()),
            _ => Ok(()),
        })
        .and_then(|()| match request.mode {
            0 => Ok(()),
            mode => push("--mod=", format!("{:o}", mode & 0o777).as_bytes()),
        })
        .and_then(|()| push("--", b""))
        .and_then(|()| push("", request.vnl.to_bytes()));
    pushed.map(|()| words).map_err(|_| Errno::EINVAL)
}

/// Waits for the helper's message, and returns the data descriptor.
fn outcome(control: &OwnedFd) -> nix::Result<OwnedFd> {
    let deadline = Instant::now() + OPENING;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(control.as_fd(), PollFlags::POLLIN)], left) {
            Ok(0) => return Err(Errno::ETIMEDOUT),
            Ok(_) => break,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    let mut number = [0; size_of::<c_int>()];
    let mut room = [IoSliceMut::new(&mut number)];
    let mut space = nix::cmsg_space!(OwnedFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let received = recvmsg::<()>(control.as_raw_fd(), &mut room, Some(&mut space), flags)?;
    let is_whole = received.bytes == size_of::<c_int>();
    let mut descriptors = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            // SAFETY: the kernel has just made these descriptors for this process.
            let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
            descriptors.extend(numbers.into_iter().map(own));
        }
    }
    match (c_int::from_ne_bytes(number), descriptors.pop()) {
        // The helper has ended without a word.
        _ if !is_whole => Err(Errno::EIO),
        (0, Some(data)) => Ok(data),
        (0, None) => Err(Errno::EMFILE),
        (errno, _) => Err(Errno::from_raw(errno)),
    }
}
