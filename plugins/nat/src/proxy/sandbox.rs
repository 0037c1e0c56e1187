//! The proxy's sandbox: only the system calls of its loop (seccomp(2)).
//!
//! The proxy reads what strangers send, inside and outside. Were one of its parsers broken, it
//! could still start no program, write no file, look at no other process and make no namespace.
//! What is not in the list fails with EPERM.

use std::collections::BTreeMap;
use std::io;

use nix::sys::prctl::set_no_new_privs;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Calls that the loop makes, by what it makes them for.
const ALLOWED: &[&[libc::c_long]] = &[
    // Memory: the allocator's.
    &[
        libc::SYS_brk,
        libc::SYS_madvise,
        libc::SYS_mmap,
        libc::SYS_mremap,
        libc::SYS_munmap,
    ],
    // The loop: what is ready, and the time.
    &[
        libc::SYS_clock_gettime,
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_futex,
        libc::SYS_restart_syscall,
    ],
    // Sockets outside and inside: made, connected, and asked about themselves.
    &[
        libc::SYS_accept4,
        libc::SYS_bind,
        libc::SYS_connect,
        libc::SYS_getpeername,
        libc::SYS_getsockname,
        libc::SYS_getsockopt,
        libc::SYS_ioctl,
        libc::SYS_listen,
        libc::SYS_setsockopt,
        libc::SYS_shutdown,
        libc::SYS_socket,
    ],
    // What goes through them, and through the pipes between them.
    &[
        libc::SYS_close,
        libc::SYS_dup,
        libc::SYS_fcntl,
        libc::SYS_pipe2,
        libc::SYS_read,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_sendto,
        libc::SYS_splice,
        libc::SYS_write,
        libc::SYS_writev,
    ],
    // The host's resolv.conf is read again when it changes; `openat` has a rule of its own.
    &[
        libc::SYS_fstat,
        libc::SYS_lseek,
        libc::SYS_newfstatat,
        libc::SYS_statx,
    ],
    // The end of the gateway, and of the directory that it was in.
    &[
        libc::SYS_kill,
        libc::SYS_pidfd_send_signal,
        libc::SYS_unlinkat,
        libc::SYS_wait4,
        libc::SYS_waitid,
    ],
    // The runtime's: random numbers, signals, its own end.
    &[
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_getrandom,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
    ],
];

/// Calls of x86_64 that newer architectures have not.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[libc::SYS_accept, libc::SYS_epoll_wait, libc::SYS_stat];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// Leaves the process only what it needs from now on.
///
/// # Errors
/// The kernel has no seccomp filters.
pub(crate) fn enter() -> io::Result<()> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED
        .iter()
        .chain(&[OLDER])
        .copied()
        .flatten()
        .map(|call| (*call, Vec::new()))
        .collect();
    // Files are read only: the access mode in the flags of openat(2).
    let read_only = SeccompCondition::new(
        2,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(libc::O_ACCMODE as u64),
        libc::O_RDONLY as u64,
    )
    .and_then(|condition| SeccompRule::new(vec![condition]))
    .map_err(io::Error::other)?;
    rules.insert(libc::SYS_openat, vec![read_only]);
    let architecture: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture);
    let program: BpfProgram = filter
        .map_err(io::Error::other)?
        .try_into()
        .map_err(io::Error::other)?;
    set_no_new_privs()?;
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}
