//! The capabilities of what runs in a session.
//!
//! The command of a usual session has the network capabilities and no others, and `-s` adds
//! CAP_SYS_ADMIN. They are ambient, so that they survive each exec. Where the user appears as root
//! (`--root`, `--map-auto`), root has all capabilities over the session's own namespaces, as root
//! has them anywhere; none of them are inheritable. So a process's inheritable set tells the two
//! apart, and a process that joins the session can take the same.

use std::fs;

use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::unistd::geteuid;

use crate::error::{Error, ErrorKind, Result, system};

/// What the processes of a session may do in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// They have these capabilities.
    Only(CapsHashSet),
    /// The user appears as root, and root may do everything.
    Root,
}

impl Rights {
    /// Those of a session whose user appears under an id of its own.
    pub(super) fn usual(sysadmin: bool) -> Self {
        use Capability::{
            CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_BROADCAST, CAP_NET_RAW, CAP_SETFCAP,
            CAP_SYS_ADMIN,
        };
        let network = [
            CAP_NET_BIND_SERVICE,
            CAP_NET_BROADCAST,
            CAP_NET_ADMIN,
            CAP_NET_RAW,
        ];
        let sysadmin = sysadmin.then_some(CAP_SYS_ADMIN);
        // Since Linux 5.12 a process needs CAP_SETFCAP to map root into a user namespace that it
        // makes (user_namespaces(7)). Root's command needs that to start another vdens.
        let nesting = geteuid().is_root().then_some(CAP_SETFCAP);
        Self::Only(network.into_iter().chain(sysadmin).chain(nesting).collect())
    }

    /// Those of a process in a session.
    ///
    /// # Errors
    /// The process has ended.
    pub(super) fn of_process(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&path)
            .map_err(|error| Error::io(format_args!("read {path}"), &error))?;
        let inheritable = text.lines().find_map(|line| line.strip_prefix("CapInh:"));
        let mask = inheritable.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        let mask = mask.ok_or_else(|| Error::closed(format!("{path} does not tell CapInh")))?;
        let has = |capability: &Capability| mask & capability.bitmask() != 0;
        Ok(match mask {
            0 => Self::Root,
            _ => Self::Only(caps::all().into_iter().filter(has).collect()),
        })
    }

    /// Takes exactly these, for this process and what it executes.
    ///
    /// # Errors
    /// This process does not have them.
    pub(super) fn take(&self) -> Result<()> {
        let Self::Only(kept) = self else {
            return Ok(());
        };
        forget_root()?;
        caps::set(None, CapSet::Inheritable, kept)
            .and_then(|()| caps::clear(None, CapSet::Ambient))
            .and_then(|()| {
                let mut kept = kept.iter();
                kept.try_for_each(|capability| caps::raise(None, CapSet::Ambient, *capability))
            })
            .map_err(|error| {
                let message = format!("cannot keep capabilities: {error}");
                Error::new(ErrorKind::Other, message)
            })
    }
}

/// Makes the exec of root give no capabilities, like the exec of any other user (SECBIT_NOROOT,
/// capabilities(7)). A user namespace that is made within starts with these bits cleared.
fn forget_root() -> Result<()> {
    let bits = libc::SECBIT_NOROOT | libc::SECBIT_NOROOT_LOCKED;
    // SAFETY: prctl(PR_SET_SECUREBITS) takes an integer and changes the credentials of this thread
    // alone.
    let outcome = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits as libc::c_ulong) };
    Errno::result(outcome)
        .map(drop)
        .map_err(system("set the secure bits"))
}
