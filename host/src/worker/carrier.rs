//! A namespace's tap whose carrier changes take effect at once.
//!
//! The kernel processes carrier changes at most once a second (`net/core/link_watch.c`). A change
//! that is undone before then is lost, and the namespace's protocols never see it. Then stations
//! that replaced others at the far end are sent frames for the others' Ethernet addresses, for as
//! long as a neighbour's entry lasts. Since Linux 6.8 the kernel catches up when a process asks for
//! the interface's state (`ETHTOOL_GLINK`, `linux/ethtool.h`). So the worker asks for it after
//! every change, through a socket of the namespace.

use std::ffi::c_char;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use vdens_plugin_kit::tap::Tap;
use vdens_plugin_kit::{Link, RxBatch, State, Status, TxBatch};

use crate::error::{Result, system};

/// `struct ethtool_value` of `linux/ethtool.h`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    value: u32,
}

const ETHTOOL_GLINK: u32 = 0x0a;

/// The ioctls (netdevice(7)), with the kernel's calling convention for them.
mod ioctl {
    nix::ioctl_readwrite_bad!(ethtool, libc::SIOCETHTOOL, libc::ifreq);
    nix::ioctl_readwrite_bad!(index, libc::SIOCGIFINDEX, libc::ifreq);
}

/// Makes the kernel catch up with the carrier of interfaces in one network namespace, and tells
/// whether an interface exists there.
#[derive(Debug)]
pub(crate) struct LinkWatch(OwnedFd);

impl LinkWatch {
    /// For the calling process's network namespace.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn open() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Unix, SockType::Datagram, flags, None)
            .map(Self)
            .map_err(system("make a socket in the namespace"))
    }

    /// A second descriptor for the same socket.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Makes the kernel catch up. The interface may be renamed or deleted, so a failure is
    /// expected.
    fn catch_up(&self, interface: &str) {
        let mut state = EthtoolValue {
            command: ETHTOOL_GLINK,
            value: 0,
        };
        let mut request = request(interface);
        request.ifr_ifru.ifru_data = (&raw mut state).cast();
        // SAFETY: the request is complete, its name ends with a NUL, and it points to the structure
        // that the command asks for; both outlive the call.
        if let Err(errno) = unsafe { ioctl::ethtool(self.0.as_raw_fd(), &raw mut request) } {
            log::debug!("{interface}: cannot ask for its state: {errno}");
        }
    }

    /// Whether an interface of that name exists. The kernel looks it up without a lock.
    pub(crate) fn has(&self, interface: &str) -> bool {
        let mut request = request(interface);
        // SAFETY: the request is complete, its name ends with a NUL, and it outlives the call.
        let found = unsafe { ioctl::index(self.0.as_raw_fd(), &raw mut request) };
        found != Err(Errno::ENODEV)
    }
}

/// A request about an interface (netdevice(7)).
fn request(interface: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain data for which all bits zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    for (place, byte) in request.ifr_name[..room].iter_mut().zip(interface.bytes()) {
        *place = byte as c_char;
    }
    request
}

impl From<OwnedFd> for LinkWatch {
    /// The socket of another process's [`LinkWatch`].
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<LinkWatch> for OwnedFd {
    fn from(watch: LinkWatch) -> Self {
        watch.0
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A tap, and the socket through which the kernel is asked for its state.
#[derive(Debug)]
pub(crate) struct WatchedTap {
    tap: Tap,
    watch: LinkWatch,
    carrier: bool,
}

impl WatchedTap {
    /// Takes over the interface `name`, and takes its carrier away.
    pub(crate) fn resume(tap: OwnedFd, watch: LinkWatch, name: String) -> Self {
        let tap = Tap::resume(tap, name, State::DOWN);
        watch.catch_up(tap.name());
        Self {
            tap,
            watch,
            carrier: false,
        }
    }
}

impl Link for WatchedTap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.tap.fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        self.tap.recv(batch)
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        self.tap.send(batch)
    }

    fn other_side(&mut self, state: State) {
        self.tap.other_side(state);
        if std::mem::replace(&mut self.carrier, state.carrier) != state.carrier {
            self.watch.catch_up(self.tap.name());
        }
    }

    fn state(&self) -> State {
        self.tap.state()
    }

    fn status(&self) -> Status {
        self.tap.status()
    }
}
