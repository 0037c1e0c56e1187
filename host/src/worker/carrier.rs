//! A namespace's tap, with a carrier whose changes take effect at once.
//!
//! The kernel acts on changes of carrier at most once a second (`net/core/link_watch.c`); one that is undone before
//! then never happened, as far as the namespace's protocols can see. Then a far end that was replaced by another is
//! still spoken to at the Ethernet address of the first, for as long as a neighbour's entry lasts. Since Linux 6.8 the
//! kernel catches up when somebody asks for the interface's state (`ETHTOOL_GLINK`, `linux/ethtool.h`), so that is
//! asked after every change, through a socket of the namespace.

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

/// Has the kernel catch up with the carrier of the interfaces of one namespace, and says whether an
/// interface is there.
#[derive(Debug)]
pub struct LinkWatch(OwnedFd);

impl LinkWatch {
    /// For the calling process's network namespace.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn open() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Unix, SockType::Datagram, flags, None)
            .map(Self)
            .map_err(system("make a socket in the namespace"))
    }

    /// Another hold on the same.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// The interface may have been renamed or deleted: that is no failure.
    fn catch_up(&self, interface: &str) {
        let mut state = EthtoolValue {
            command: ETHTOOL_GLINK,
            value: 0,
        };
        let mut request = request(interface);
        request.ifr_ifru.ifru_data = (&raw mut state).cast();
        // SAFETY: the request is complete, its name ends with a NUL, and what it points to is the structure that
        // the command asks for; both outlive the call.
        if let Err(errno) = unsafe { ioctl::ethtool(self.0.as_raw_fd(), &raw mut request) } {
            log::debug!("{interface}: cannot ask for its state: {errno}");
        }
    }

    /// Whether there is an interface of that name. The kernel looks it up without a lock.
    pub fn has(&self, interface: &str) -> bool {
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

/// The tap and the watch over it.
#[derive(Debug)]
pub struct WatchedTap {
    tap: Tap,
    watch: LinkWatch,
    carrier: bool,
}

impl WatchedTap {
    /// Takes over the interface `name`, which has no carrier from here on.
    pub fn resume(tap: OwnedFd, watch: LinkWatch, name: String) -> Self {
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
