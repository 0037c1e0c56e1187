//! A tap device as a link: an interface of a namespace, and `tap://`.
//!
//! Based on `linux/if_tun.h`. The device always has a virtio header in front of each frame
//! (`IFF_VNET_HDR`). `TUNSETOFFLOAD` says which offloads the kernel may use in the frames that it
//! hands over: those that the other side of the host takes. Written frames may always be
//! super-frames. `TUNSETCARRIER` shows the other side's carrier on the interface.
//!
//! An interface that is down refuses frames (EIO). The link drops and counts them. An interface
//! that was deleted (EBADFD) ends the link.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{read, write};

use crate::{
    Error, Frame, Link, MAX_FRAME, Offloads, Result, RxBatch, State, Status, Tier, TxBatch,
};

/// The largest MTU that a tap takes, in bytes.
pub const MAX_MTU: u32 = 65_521;

/// The longest interface name, in bytes (IFNAMSIZ less the terminating NUL).
pub const MAX_INTERFACE_NAME: usize = libc::IFNAMSIZ - 1;

const DEVICE: &str = "/dev/net/tun";

/// The ioctls, each with the kernel's calling convention for it.
mod ioctl {
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
    nix::ioctl_write_ptr_bad!(set_carrier, libc::TUNSETCARRIER, libc::c_int);
}

/// What is in front of each frame of a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// A virtio header, as a [`Tap`] needs it.
    Vnet,
    /// Nothing. So all frames are complete, and fit the sender's MTU.
    None,
}

/// An open tap device.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
    other_side: State,
}

impl Tap {
    /// Attaches to the tap `name`. If there is none, makes it, which needs CAP_NET_ADMIN in the
    /// network namespace. The kernel chooses a name in place of an empty one.
    ///
    /// # Errors
    /// The name is malformed, /dev/net/tun is missing or not accessible, or the tap is in use or
    /// another user's.
    pub fn open(name: &str) -> Result<Self> {
        Self::open_with(name, Header::Vnet)
    }

    /// As [`Tap::open`]. A tap without a header is for another program's use, not a link.
    ///
    /// # Errors
    /// As for [`Tap::open`].
    pub fn open_with(name: &str, header: Header) -> Result<Self> {
        check_interface_name(name)?;
        let fd = open_device()?;
        // SAFETY: ifreq is plain data for which all bits zero is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *place = byte as libc::c_char;
        }
        let header = match header {
            Header::Vnet => libc::IFF_VNET_HDR,
            Header::None => 0,
        };
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | header) as libc::c_short;
        // SAFETY: the descriptor is open and `request` is a complete ifreq that outlives the call.
        unsafe { ioctl::set_interface(fd.as_raw_fd(), &request) }
            .map_err(|errno| attach_error(name, errno))?;
        // SAFETY: the kernel leaves a NUL-terminated name of at most IFNAMSIZ bytes, and only reads
        // it here.
        let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
        Ok(Self::from_fd(fd, name.to_string_lossy().into_owned()))
    }

    /// Takes the descriptor of a tap that [`Tap::open`] attached, in this process or another.
    pub fn from_fd(fd: OwnedFd, name: String) -> Self {
        Self::resume(fd, name, State::UP)
    }

    /// As [`Tap::from_fd`], with the present state of the other side.
    pub fn resume(fd: OwnedFd, name: String, other_side: State) -> Self {
        let mut tap = Self {
            fd,
            name,
            other_side,
        };
        tap.apply(other_side);
        tap
    }

    /// The interface's name, in its own network namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's carrier, as `ip link` shows it.
    pub fn set_carrier(&self, up: bool) {
        let up = libc::c_int::from(up);
        // SAFETY: the descriptor is open and `up` outlives the call.
        if let Err(errno) = unsafe { ioctl::set_carrier(self.fd.as_raw_fd(), &up) } {
            log::debug!("{}: cannot set the carrier: {errno}", self.name);
        }
    }

    /// Writes one frame. Returns `false` if the interface did not take it, because it is down or
    /// memory is short.
    ///
    /// # Errors
    /// The interface is gone.
    pub fn write(&self, frame: Frame<'_>) -> Result<bool> {
        match write(&self.fd, frame.with_header()) {
            Ok(_) => Ok(true),
            Err(errno @ (Errno::EBADFD | Errno::ENODEV | Errno::EBADF)) => {
                Err(gone(&self.name, errno))
            }
            Err(_) => Ok(false),
        }
    }

    fn apply(&mut self, state: State) {
        self.set_carrier(state.carrier);
        self.set_offloads(state.offloads);
        self.other_side = state;
    }

    /// Lets the kernel use `offloads`, or those of them that it knows.
    fn set_offloads(&self, offloads: Offloads) {
        let without_uso = offloads.0 & !(Offloads::USO4.0 | Offloads::USO6.0);
        let tried = [offloads.0, without_uso, 0].map(Offloads);
        let set = tried.into_iter().find(|tried| self.leaves(*tried));
        log::debug!(
            "{}: offloads {:#x} of {:#x}",
            self.name,
            set.unwrap_or_default().0,
            offloads.0
        );
    }

    /// Lets the kernel leave exactly `offloads` undone in frames that are read from here on;
    /// `false` if it does not know them all, and then nothing is changed.
    pub fn leaves(&self, offloads: Offloads) -> bool {
        // SAFETY: the descriptor is open; the argument is a plain number.
        unsafe { ioctl::set_offload(self.fd.as_raw_fd(), offloads.0 as libc::c_int) }.is_ok()
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Tap> for OwnedFd {
    fn from(tap: Tap) -> Self {
        tap.fd
    }
}

impl Link for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        loop {
            match batch.fill_with_header(MAX_FRAME, |room| read(&self.fd, room)) {
                Ok(true) | Err(Errno::EINTR) => {}
                Ok(false) | Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(gone(&self.name, errno)),
            }
        }
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        let mut lost = 0;
        for frame in batch.frames() {
            lost += u64::from(!self.write(frame)?);
        }
        batch.count_dropped(lost);
        Ok(batch.len())
    }

    fn other_side(&mut self, state: State) {
        if state != self.other_side {
            self.apply(state);
        }
    }

    fn state(&self) -> State {
        State::UP.with_offloads(Offloads::ALL)
    }

    fn status(&self) -> Status {
        Status {
            tier: Some(Tier::Taps),
            ..Status::default()
        }
    }
}

/// Opens the device /dev/net/tun, attached to no tap.
///
/// # Errors
/// The device is missing or not accessible.
pub fn open_device() -> Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open(DEVICE, flags, Mode::empty()).map_err(device_error)
}

/// Checks the length and the characters of an interface's name. It may be empty: then the kernel
/// chooses one.
///
/// # Errors
/// The name is too long, or has a character that the kernel refuses.
pub fn check_interface_name(name: &str) -> Result<()> {
    if name.len() > MAX_INTERFACE_NAME {
        return Err(Error::usage(format!(
            "'{name}' is too long for an interface name: {} bytes, and at most {MAX_INTERFACE_NAME} fit",
            name.len()
        )));
    }
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    if name == "." || name == ".." || name.contains(forbidden) {
        return Err(Error::usage(format!(
            "'{}' cannot be an interface name",
            name.escape_debug()
        ))
        .hint("use letters, digits, '-', '_' and '.'"));
    }
    Ok(())
}

fn device_error(errno: Errno) -> Error {
    let error = Error::io(format_args!("open {DEVICE}"), &io::Error::from(errno));
    match errno {
        Errno::EACCES | Errno::EPERM => error.hint("let users open it: sudo chmod 0666 /dev/net/tun"),
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => error.hint(
            "load the driver and make the device: sudo modprobe tun (in a container, pass /dev/net/tun to it)",
        ),
        _ => error,
    }
}

fn attach_error(name: &str, errno: Errno) -> Error {
    let error = Error::io(
        format_args!("attach to tap '{name}'"),
        &io::Error::from(errno),
    );
    match errno {
        Errno::EBUSY => error.hint("another program has it open"),
        Errno::EPERM if name.is_empty() => {
            error.hint("without root, name a tap that was made for you: tap://NAME")
        }
        Errno::EPERM => error.hint(format!(
            "it is not there or belongs to another user; make it: sudo ip tuntap add mode tap name {name} user $USER"
        )),
        Errno::EINVAL => error.hint("the interface of that name is no tap"),
        _ => error,
    }
}

fn gone(name: &str, errno: Errno) -> Error {
    match errno {
        Errno::EBADFD | Errno::ENODEV => Error::closed(format!("interface {name} was deleted")),
        errno => Error::io(
            format_args!("use interface {name}"),
            &io::Error::from(errno),
        ),
    }
}
