//! `--tap`: in place of a plain interface there is a tap for a virtual machine.
//!
//! Some monitors (Firecracker, cloud-hypervisor) open a tap by its name. The tap gets the
//! interface's name, and the link's interface another one ([`link_name`]). The two are on a bridge
//! that is a cable: it learns no addresses, and what goes in at one end comes out at the other.
//! None of the three has an address, because the guest has them. The tap stays until the session
//! ends, so the monitor may be started again.

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

/// Makes the tap `name`, and plugs it into the link's interface, which is there.
///
/// # Errors
/// The kernel has no taps or no bridges.
pub(super) fn make(netlink: &Netlink, name: &str, mtu: Option<u32>) -> Result<()> {
    let tap = Tap::open(name)?;
    let fd = tap.as_fd().as_raw_fd();
    let owner = getuid().as_raw();
    // SAFETY: the descriptor is open, and the arguments are plain numbers.
    unsafe {
        ioctl::set_owner(fd, owner.cast_signed())
            .and_then(|_| ioctl::set_persistent(fd, 1))
            .map_err(system(format_args!("keep the tap {name}")))?;
    }
    let bridge = format!("{name}.br");
    netlink.add_bridge(&bridge, 0)?;
    if let Some(mtu) = mtu {
        netlink.set_mtu(name, mtu)?;
    }
    let link = link_name(name);
    for interface in [&bridge, &link, name] {
        keep_silent(interface)?;
    }
    for interface in [&link, name] {
        netlink.set_bridge(interface, Some(&bridge))?;
        netlink.set_up(interface)?;
    }
    netlink.set_up(&bridge)
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
