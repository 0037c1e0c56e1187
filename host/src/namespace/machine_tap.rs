//! `--tap`: in place of a plain interface there is a tap for a virtual machine.
//!
//! Some monitors (Firecracker, cloud-hypervisor) open a tap by its name. The tap gets the
//! interface's name, and the link's interface another one ([`link_name`]). The two are on a bridge
//! that is a cable: it learns no addresses, and what goes in at one end comes out at the other.
//! None of the three has an address, because the guest has them. The tap stays until the session
//! ends, so the monitor may be started again. A lab's machines have the same, with other names.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use nix::unistd::getuid;
use vdens_plugin_kit::tap::Tap;

use crate::error::{Error, Result, system};
use crate::sys::netlink::Netlink;

/// The ioctls, each with the kernel's calling convention for it (linux/if_tun.h).
mod ioctl {
    nix::ioctl_write_int_bad!(set_persistent, libc::TUNSETPERSIST);
    nix::ioctl_write_int_bad!(set_owner, libc::TUNSETOWNER);
}

/// The name of the link's interface behind the tap `name`.
pub(crate) fn link_name(name: &str) -> String {
    format!("{name}.link")
}

/// The names of the three interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// The link's.
    pub(crate) link: String,
    /// The machine's.
    pub(crate) tap: String,
    /// The bridge's between them.
    pub(crate) bridge: String,
}

impl Names {
    /// Those of a session's tap.
    pub(super) fn of_tap(tap: &str) -> Self {
        Self {
            link: link_name(tap),
            tap: tap.to_owned(),
            bridge: format!("{tap}.br"),
        }
    }
}

/// Plugs the link's interface, which is there, into the tap, over a connection to the configuration
/// of this process's network namespace. Makes the tap if there is none.
///
/// # Errors
/// The kernel has no taps or no bridges.
pub(crate) fn make(netlink: &Netlink, names: &Names, mtu: Option<u32>) -> Result<()> {
    let Names { link, tap, bridge } = names;
    if netlink.index(tap).is_err() {
        make_tap(netlink, tap, bridge)?;
    }
    if let Some(mtu) = mtu {
        netlink.set_mtu(tap, mtu)?;
    }
    plug(netlink, link, bridge)
}

/// Makes a persistent tap on a bridge, or nothing.
fn make_tap(netlink: &Netlink, name: &str, bridge: &str) -> Result<()> {
    let tap = Tap::open(name)?;
    netlink.add_bridge(bridge, 0)?;
    let outcome = keep_silent(bridge)
        .and_then(|()| plug(netlink, name, bridge))
        .and_then(|()| netlink.set_up(bridge))
        .and_then(|()| keep(&tap, name));
    if outcome.is_err() {
        // The first failure is what is told. The tap ends with its descriptor.
        let _ = netlink.delete(bridge);
    }
    outcome
}

/// Lets a tap stay when its descriptor is closed, for the user to open.
fn keep(tap: &Tap, name: &str) -> Result<()> {
    let fd = tap.as_fd().as_raw_fd();
    let owner = getuid().as_raw();
    // SAFETY: the descriptor is open, and the arguments are plain numbers.
    unsafe {
        ioctl::set_owner(fd, owner.cast_signed())
            .and_then(|_| ioctl::set_persistent(fd, 1))
            .map(drop)
            .map_err(system(format_args!("keep the tap {name}")))
    }
}

/// Makes an interface a port of the bridge.
fn plug(netlink: &Netlink, interface: &str, bridge: &str) -> Result<()> {
    keep_silent(interface)?;
    netlink.set_bridge(interface, Some(bridge))?;
    netlink.set_up(interface)
}

/// Keeps the kernel from using an interface for IPv6: its link-local address and its questions
/// would come from the guest's network.
fn keep_silent(interface: &str) -> Result<()> {
    let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"));
    match fs::write(&path, "1") {
        // A kernel without IPv6 is silent.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(|error| Error::path("write", &path, &error)),
    }
}
