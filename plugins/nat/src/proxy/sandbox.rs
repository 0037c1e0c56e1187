//! The proxy's sandbox: only the system calls of its loop ([`vdens_sandbox`]).
//!
//! The proxy reads what strangers send, inside and outside. Were one of its parsers broken, it
//! could still start no program, write no file, look at no other process and make no namespace.
//! What it may not do fails with EPERM, and the log names the call.

use std::io;

use vdens_sandbox::{Calls, Confinement, Group, log_to};

/// The sockets that it makes: those of clients and services, and those of its own parts.
const FAMILIES: &[libc::c_int] = &[
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
    libc::AF_UNIX,
];

/// Leaves the process only what it needs from now on.
///
/// # Errors
/// The kernel has no seccomp filters.
pub(crate) fn enter() -> io::Result<()> {
    log_to(
        Some(libc::STDERR_FILENO),
        "[WARN] nat://: the proxy's sandbox refuses the system call ".into(),
        String::new(),
    );
    let groups = vec![
        Group::Runtime,
        Group::Loop,
        Group::Streams,
        Group::Sockets(FAMILIES),
        // The host's resolv.conf is read again when it changes.
        Group::Read,
        // The end of the gateway, and of the directory that it was in.
        Group::Children,
    ];
    let more = vec![
        libc::SYS_kill,
        libc::SYS_unlinkat,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_unlink,
    ];
    let confinement = Confinement {
        calls: Calls::Only { groups, more },
        files: None,
        network: true,
        signals: true,
    };
    confinement.enter().map(drop)
}
