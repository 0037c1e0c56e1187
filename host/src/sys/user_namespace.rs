//! Makes user namespaces with the caller's ids, and explains why the kernel refuses one.
//!
//! A session's namespace and the panel's are both made here. An unprivileged process may map its
//! own uid and gid alone, and only after it has denied itself setgroups(2) (user_namespaces(7)).
//! What forbids a user namespace differs by distribution, so an error names the setting that
//! decides.

use std::fs;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getegid, geteuid};

use crate::error::{Error, Result, system};

/// How long the kernel may take to remove namespaces without processes. It removes the network
/// namespaces of the whole machine one after the other.
const LEAVING: Duration = Duration::from_secs(2);

/// Makes the namespaces of `flags`, a user namespace among them, with the caller's ids mapped to
/// themselves, and enters them. For processes with one thread.
///
/// # Errors
/// The kernel or a limit does not allow it; the hint says which setting decides.
pub(crate) fn unshare_mapped(flags: CloneFlags) -> Result<()> {
    let ids = (geteuid(), getegid());
    unshare(flags).map_err(no_namespace)?;
    map_ids(ids.0, ids.1, false)
}

/// Maps the ids `uid` and `gid`, which this process had outside of its new user namespace, to
/// themselves or, with `root`, to 0.
///
/// # Errors
/// The kernel does not allow it; the hint says which setting decides.
pub(crate) fn map_ids(uid: Uid, gid: Gid, root: bool) -> Result<()> {
    let inside = |id: u32| if root { 0 } else { id };
    let (uid, gid) = (uid.as_raw(), gid.as_raw());
    write_map("setgroups", "deny")?;
    write_map("uid_map", &format!("{} {uid} 1", inside(uid)))?;
    write_map("gid_map", &format!("{} {gid} 1", inside(gid)))
}

/// As [`unshare_mapped`], but where there are too many namespaces it waits for room. The kernel
/// still counts those of a panel that this process has left a moment ago.
///
/// # Errors
/// As for [`unshare_mapped`].
pub(crate) fn unshare_when_there_is_room(flags: CloneFlags) -> Result<()> {
    let deadline = Instant::now() + LEAVING;
    loop {
        match unshare_mapped(flags) {
            Err(error)
                if is_crowded(&error)
                    && forbidding_limit().is_none()
                    && Instant::now() < deadline =>
            {
                sleep(Duration::from_millis(5));
            }
            outcome => return outcome,
        }
    }
}

/// Whether an error says that there are too many namespaces.
pub(crate) fn is_crowded(error: &Error) -> bool {
    error.errno == libc::ENOSPC
}

fn write_map(file: &str, text: &str) -> Result<()> {
    let path = format!("/proc/self/{file}");
    match fs::write(&path, text) {
        Ok(()) => Ok(()),
        Err(error) => {
            let failure = Error::io(format_args!("write '{text}' to {path}"), &error);
            let is_for_root = text.starts_with("0 ") && !apparmor_restricts();
            Err(match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem => failure.hint(READ_ONLY_HINT),
                io::ErrorKind::PermissionDenied if is_for_root => failure.hint(ROOT_HINT),
                _ => blame_apparmor(failure),
            })
        }
    }
}

/// Adds a hint at AppArmor to an error, if it restricts user namespaces.
pub(crate) fn blame_apparmor(error: Error) -> Error {
    match apparmor_restricts() {
        true => error.hint(APPARMOR_HINT),
        false => error,
    }
}

const APPARMOR_HINT: &str = "AppArmor forbids it: \
    sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, \
    or give vdens a profile that allows userns";

/// A kernel setting that is a number, by its path below /proc/sys; `None` if this kernel does not
/// have it.
pub(crate) fn sysctl(name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    text.trim().parse().ok()
}

const READ_ONLY_HINT: &str =
    "in a container or sandbox, mount a /proc of its own there (bwrap --proc /proc)";
/// The rule is in user_namespaces(7), "Defining user and group ID mappings", since Linux 5.12.
const ROOT_HINT: &str =
    "uid 0 of a container or sandbox needs CAP_SETFCAP: allow it there, or use another uid";

fn apparmor_restricts() -> bool {
    sysctl("kernel/apparmor_restrict_unprivileged_userns") == Some(1)
}

/// Whether a seccomp filter is in force for this process (proc_pid_status(5)).
fn is_filtered() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line == "Seccomp:\t2")
}

/// The limit that allows no namespace at all, if one does.
fn forbidding_limit() -> Option<String> {
    let mut kinds = ["user", "net", "uts", "mnt"].into_iter();
    let kind = kinds.find(|kind| sysctl(&format!("user/max_{kind}_namespaces")) == Some(0))?;
    Some(format!("user.max_{kind}_namespaces"))
}

/// The error when no namespace can be made, with the setting that decides it.
fn no_namespace(errno: Errno) -> Error {
    let error = system("make a user and network namespace")(errno);
    if let Some(name) = forbidding_limit() {
        return error.hint(format!("{name} is 0: sudo sysctl {name}=10000"));
    }
    match errno {
        Errno::ENOSPC => error.hint(
            "too many namespaces, or nested too deeply: see user.max_user_namespaces and the other \
             user.max_*_namespaces",
        ),
        Errno::EPERM if sysctl("kernel/unprivileged_userns_clone") == Some(0) => {
            error.hint("sudo sysctl kernel.unprivileged_userns_clone=1")
        }
        Errno::EPERM | Errno::EACCES if apparmor_restricts() => error.hint(APPARMOR_HINT),
        Errno::EPERM if is_filtered() => error
            .hint("a container's seccomp filter may forbid it: allow unshare(CLONE_NEWUSER) there"),
        Errno::EPERM => {
            error.hint("not possible in a chroot, nor where a security module forbids it")
        }
        _ => error,
    }
}
