//! The session's own interfaces in /sys.
//!
//! A sysfs shows the interfaces of the network namespace that its mounter was in (sysfs(5)), so the
//! inherited /sys shows the host's. Where the session has a mount namespace, a fresh sysfs is
//! mounted for a moment, and its two directories about interfaces are bound over the inherited
//! ones. The rest of /sys stays as it is, with what is mounted in it: control groups, for example.
//!
//! The kernel refuses a fresh sysfs where parts of /sys are hidden by mounts, as in many containers
//! (`mount_too_revealing` in fs/namespace.c). Then /sys goes on showing the host's interfaces.

use std::path::Path;

use nix::mount::{MsFlags, mount};

use super::{NOTHING, while_mounted};
use crate::error::{Result, system};

/// The links to the interfaces, and the directories of the virtual ones, where the links lead. A
/// session has no other interfaces.
const DIRECTORIES: [&str; 2] = ["class/net", "devices/virtual/net"];

/// Shows the interfaces of the calling process's network namespace in /sys. The process must have
/// made that namespace, and its mount namespace must be private.
///
/// # Errors
/// The kernel allows no fresh sysfs here.
pub(super) fn mount_fresh() -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // A read-only /sys allows a read-only one only.
    let outcome = while_mounted("sysfs", flags, "", bind);
    outcome.or_else(|_| while_mounted("sysfs", flags | MsFlags::MS_RDONLY, "", bind))
}

fn bind(fresh: &Path) -> Result<()> {
    DIRECTORIES.iter().try_for_each(|directory| {
        let target = Path::new("/sys").join(directory);
        mount(
            Some(&fresh.join(directory)),
            &target,
            NOTHING,
            MsFlags::MS_BIND,
            NOTHING,
        )
        .map_err(system(format_args!("mount on {}", target.display())))
    })
}
