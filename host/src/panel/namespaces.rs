//! The panel's two namespaces: making them, entering them, and taking them over from another
//! process.
//!
//! A descriptor of another process is opened only if it is a namespace, and used only if it passes
//! the checks of [`take_over`]. The registry is writable by any process of the user, so it may name
//! anything: opening a FIFO, for example, could block for ever.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

use super::registry::Holder;
use crate::error::{Error, ErrorKind, Result, system};
use crate::ipc::in_child;
use crate::sys::netlink::Netlink;
use crate::sys::user_namespace::{Ids, unshare_as};

/// The ioctls of nsfs (ioctl_nsfs(2)).
mod ioctl {
    const NSIO: u8 = 0xb7;
    nix::ioctl_none!(user_namespace, NSIO, 1);
    nix::ioctl_none!(parent, NSIO, 2);
    nix::ioctl_none!(kind, NSIO, 3);
    nix::ioctl_read_bad!(owner, nix::request_code_none!(NSIO, 4), libc::uid_t);
}

/// Enters a namespace.
///
/// # Errors
/// It belongs to another user.
pub(crate) fn enter(namespace: BorrowedFd<'_>, kind: CloneFlags) -> Result<()> {
    setns(namespace, kind).map_err(system("enter the panel's namespace"))
}

/// Makes the user namespace H, in which the user appears as `ids` says, and the panel. Returns
/// their descriptors, which no other process finds until they are registered, and a connection to
/// the panel.
///
/// # Errors
/// The kernel or a limit does not allow it.
pub(crate) fn make(ids: Ids) -> Result<(OwnedFd, OwnedFd, Netlink)> {
    let mut fds = in_child(|| {
        unshare_as(ids, CloneFlags::CLONE_NEWUSER)?;
        unshare_network()?;
        Ok(vec![
            open_namespace("/proc/self/ns/user")?,
            open_namespace("/proc/self/ns/net")?,
            Netlink::open()?.into(),
        ])
    })?;
    match (fds.pop(), fds.pop(), fds.pop()) {
        (Some(netlink), Some(net), Some(user)) => Ok((user, net, netlink.into())),
        _ => Err(lost_descriptors()),
    }
}

/// Makes a network namespace for bridges, and enters it.
pub(super) fn unshare_network() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(system("make a network namespace"))?;
    // Without IPv6, the panel's own interfaces send no frames.
    for kind in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{kind}/disable_ipv6");
        if let Err(error) = fs::write(&path, "1")
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(Error::io(format_args!("write {path}"), &error));
        }
    }
    // The panel's bridges pass no frame through the packet filter, which has no rules here. It
    // would cost a tenth of the throughput and drop malformed IP packets. Before Linux 5.3 the
    // setting belongs to another namespace and cannot be changed; without br_netfilter there
    // is none.
    for kind in ["arptables", "iptables", "ip6tables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{kind}");
        match fs::write(&path, "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::debug!("write {path}: {error}");
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn lost_descriptors() -> Error {
    Error::closed("a helper process lost descriptors")
}

/// Opens a namespace by its path in /proc. Anything else at the path is not opened, and its file
/// system is not asked about it (fstatfs(2)). Both could block for ever, on a FIFO or a dead FUSE
/// mount.
pub(crate) fn open_namespace(path: &str) -> Result<OwnedFd> {
    let open = |path: &str, flags| {
        open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(system(format_args!("open {path}")))
    };
    let found = open(path, OFlag::O_PATH)?;
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    // The kernel's name for a namespace (namespaces(7)). A file's name begins with a slash.
    let name =
        fs::read_link(&link).map_err(|error| Error::io(format_args!("look at {path}"), &error))?;
    let name = name.to_string_lossy();
    match name.starts_with("user:[") || name.starts_with("net:[") {
        true => open(&link, OFlag::O_RDONLY),
        false => Err(Error::new(
            ErrorKind::Permission,
            format!("{path} is not a namespace"),
        )),
    }
}

/// Opens a holder's descriptors and checks that they are a panel of this user: a user namespace
/// that the user owns, which is a child of this process's own, and a network namespace that belongs
/// to it.
pub(super) fn take_over(holder: &Holder) -> Result<(OwnedFd, OwnedFd)> {
    let open = |fd| open_namespace(&format!("/proc/{}/fd/{fd}", holder.pid));
    let (user, net) = (open(holder.user)?, open(holder.net)?);
    let not = |what| {
        Err(Error::new(
            ErrorKind::Permission,
            format!("its descriptor is not {what}"),
        ))
    };
    if kind(&user)? != libc::CLONE_NEWUSER || owner(&user)? != geteuid().as_raw() {
        return not("a user namespace of this user");
    }
    // SAFETY: the descriptor is a user namespace; the kernel returns a new descriptor or an error.
    let parent = unsafe { ioctl::parent(user.as_raw_fd()) };
    if inode(&own(parent)?)? != inode(&open_namespace("/proc/self/ns/user")?)? {
        return not("a child of this user namespace");
    }
    if kind(&net)? != libc::CLONE_NEWNET {
        return not("a network namespace");
    }
    // SAFETY: the descriptor is a namespace; the kernel returns a new descriptor or an error.
    let owning = unsafe { ioctl::user_namespace(net.as_raw_fd()) };
    if inode(&own(owning)?)? != inode(&user)? {
        return not("a network namespace of that user namespace");
    }
    Ok((user, net))
}

fn own(fd: nix::Result<libc::c_int>) -> Result<OwnedFd> {
    let fd = fd.map_err(system("look at a namespace"))?;
    // SAFETY: the ioctl has just made this descriptor for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn kind(namespace: &OwnedFd) -> Result<libc::c_int> {
    // SAFETY: the ioctl takes no argument; on another kind of file it fails.
    unsafe { ioctl::kind(namespace.as_raw_fd()) }.map_err(system("look at a namespace"))
}

fn owner(namespace: &OwnedFd) -> Result<libc::uid_t> {
    let mut uid = 0;
    // SAFETY: the kernel writes a uid_t to `uid`, which outlives the call.
    unsafe { ioctl::owner(namespace.as_raw_fd(), &mut uid) }
        .map_err(system("look at a namespace"))?;
    Ok(uid)
}

pub(super) fn inode(namespace: &OwnedFd) -> Result<u64> {
    let file = File::from(
        namespace
            .try_clone()
            .map_err(|error| Error::io("look at a namespace", &error))?,
    );
    let meta = file
        .metadata()
        .map_err(|error| Error::io("look at a namespace", &error))?;
    Ok(meta.ino())
}
