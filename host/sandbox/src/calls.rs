//! Which system calls a process may make.
//!
//! [`Calls`] is either a list of what is allowed, for a process that executes nothing, or
//! everything but what is dangerous, for one that starts other programs. In the first case a call
//! that is not listed is logged and fails. In the second it only fails: the log's signal handler
//! would not outlive execve(2), and the signal would kill the program.
//!
//! The lists name calls for what they are for. Some are made by the C library, whose versions
//! differ: a list has the older and the newer ones.
//!
//! `clone3` fails with ENOSYS, since a filter cannot see its flags. The C library then makes
//! threads and processes by `clone`, whose flags the filter sees. It blocks signals around that. To
//! log it nevertheless, SIGSYS is kept unblocked ([`refusal`]). If the process has threads already,
//! it is not, and `clone` fails without a line in the log.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

use crate::refusal;

/// Calls that serve one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// The allocator's, the loader's and the threads' memory, the time, signals to itself, its end.
    Runtime,
    /// To wait for descriptors and timers.
    Loop,
    /// To use sockets and pipes that are open, and to make pairs of them.
    Streams,
    /// To make sockets of these families, to bind and connect them.
    Sockets(&'static [libc::c_int]),
    /// To open files to read them.
    Read,
    /// To open files in any mode; to make, remove, rename, lock and watch them, and to set their
    /// owner and mode.
    Files,
    /// To make threads, but no processes.
    Threads,
    /// To start processes, which are confined as this one is, but no programs.
    Processes,
    /// To signal and reap children that it has.
    Children,
}

const RUNTIME: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_capget,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_membarrier,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_getcpu,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_setitimer,
    libc::SYS_restart_syscall,
    libc::SYS_setsid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

const LOOP: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
];

const STREAMS: &[c_long] = &[
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_pidfd_open,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_splice,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_socketpair,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

const SOCKETS: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
];

const READ: &[c_long] = &[
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fstatfs,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    libc::SYS_statfs,
    libc::SYS_statx,
];

const FILES: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_umask,
    libc::SYS_unlinkat,
];

/// fchmodat2(2), Linux 6.6, has one number on all architectures.
const FCHMODAT2: c_long = 452;

const CHILDREN: &[c_long] = &[
    libc::SYS_pidfd_send_signal,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// Calls of x86_64 that newer architectures have not.
#[cfg(target_arch = "x86_64")]
mod older {
    use libc::c_long;

    pub(super) const RUNTIME: &[c_long] = &[libc::SYS_alarm, libc::SYS_getpgrp, libc::SYS_time];
    pub(super) const LOOP: &[c_long] = &[
        libc::SYS_epoll_create,
        libc::SYS_epoll_wait,
        libc::SYS_eventfd,
        libc::SYS_poll,
        libc::SYS_select,
    ];
    pub(super) const STREAMS: &[c_long] = &[libc::SYS_dup2, libc::SYS_pipe];
    pub(super) const READ: &[c_long] = &[
        libc::SYS_access,
        libc::SYS_lstat,
        libc::SYS_readlink,
        libc::SYS_stat,
    ];
    pub(super) const FILES: &[c_long] = &[
        libc::SYS_open,
        libc::SYS_chmod,
        libc::SYS_chown,
        libc::SYS_lchown,
        libc::SYS_mkdir,
        libc::SYS_rename,
        libc::SYS_rmdir,
        libc::SYS_unlink,
    ];
}
#[cfg(not(target_arch = "x86_64"))]
mod older {
    use libc::c_long;

    pub(super) const RUNTIME: &[c_long] = &[];
    pub(super) const LOOP: &[c_long] = &[];
    pub(super) const STREAMS: &[c_long] = &[];
    pub(super) const READ: &[c_long] = &[];
    pub(super) const FILES: &[c_long] = &[];
}

/// What no transport and no program that it starts needs: other processes' memory and descriptors,
/// the kernel's own programs and modules, its keys, file handles, and interfaces that have often
/// been broken.
const DANGEROUS: &[c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_lookup_dcookie,
    libc::SYS_vhangup,
    libc::SYS_personality,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
];

/// The flag of clone(2) that makes a thread instead of a process.
const THREAD: u64 = libc::CLONE_THREAD as u64;

/// What prctl(2) is called for: the names of threads and of memory, the signal at the parent's
/// death, and by libcap, as it is loaded, the bounding set.
const CONTROLS: [libc::c_int; 5] = [
    libc::PR_SET_PDEATHSIG,
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_VMA,
    libc::PR_CAPBSET_READ,
];

/// What puts words into a terminal's input (TIOCSTI, TIOCLINUX; ioctl_tty(2)).
const TERMINAL_INPUT: [u64; 2] = [libc::TIOCSTI, 0x541c];

/// Which system calls a process may make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Those of these groups, and of `more`. Others are logged.
    Only {
        /// The groups.
        groups: Vec<Group>,
        /// More calls.
        more: Vec<c_long>,
    },
    /// All that are not dangerous, for a process that starts programs.
    NotDangerous,
}

impl Calls {
    /// The calls of these groups.
    pub fn only(groups: impl Into<Vec<Group>>) -> Self {
        let (groups, more) = (groups.into(), Vec::new());
        Self::Only { groups, more }
    }

    /// Installs the filter for all threads of this process. `guards_mask`: SIGSYS can be kept
    /// unblocked.
    pub(crate) fn enter(&self, guards_mask: bool) -> io::Result<()> {
        match self {
            Self::Only { groups, more } => {
                refusal::catch()?;
                let allowed = listed(groups, more, guards_mask)?;
                for (rules, errno) in quiet(groups, guards_mask)? {
                    install(rules, SeccompAction::Allow, SeccompAction::Errno(errno))?;
                }
                install(allowed, refusal::ACTION, SeccompAction::Allow)
            }
            Self::NotDangerous => {
                let rules = DANGEROUS.iter().map(|call| (*call, Vec::new())).collect();
                let refuse = SeccompAction::Errno(libc::EPERM as u32);
                install(rules, SeccompAction::Allow, refuse)
            }
        }
    }
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn install(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> io::Result<()> {
    let architecture: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules, otherwise, matching, architecture);
    let program: BpfProgram = filter
        .and_then(TryInto::try_into)
        .map_err(io::Error::other)?;
    apply_filter_all_threads(&program).map_err(io::Error::other)
}

/// The calls of groups, and of `more`.
fn listed(groups: &[Group], more: &[c_long], guards_mask: bool) -> io::Result<Rules> {
    let mut rules = Rules::new();
    let mut allow = |calls: &[c_long]| {
        rules.extend(calls.iter().map(|call| (*call, Vec::new())));
    };
    allow(more);
    // They fail by another filter ([`quiet`]).
    allow(&[libc::SYS_clone3]);
    if !guards_mask {
        allow(&[libc::SYS_clone, libc::SYS_rt_sigprocmask]);
    }
    for group in groups {
        match group {
            Group::Runtime => [RUNTIME, older::RUNTIME].map(&mut allow),
            Group::Loop => [LOOP, older::LOOP].map(&mut allow),
            Group::Streams => [STREAMS, older::STREAMS].map(&mut allow),
            Group::Sockets(_) => [SOCKETS, &[]].map(&mut allow),
            Group::Read => [READ, older::READ].map(&mut allow),
            Group::Files => [FILES, older::FILES].map(&mut allow),
            Group::Children => [CHILDREN, &[]].map(&mut allow),
            Group::Processes => [&[libc::SYS_clone][..], &[]].map(&mut allow),
            Group::Threads => continue,
        };
    }
    // Those of which the filter sees an argument.
    let mut allow_if = |call, rule| {
        let rules = rules.entry(call).or_default();
        rules.push(rule);
    };
    for group in groups {
        match group {
            Group::Runtime => {
                allow_if(libc::SYS_tgkill, rule([is(0, std::process::id().into())])?);
                for control in CONTROLS {
                    allow_if(libc::SYS_prctl, rule([is(0, control as u64)])?);
                }
                // Of the limits of resources, its own.
                allow_if(libc::SYS_prlimit64, rule([is(0, 0)])?);
                if guards_mask {
                    let unblock = libc::SIG_UNBLOCK as u64;
                    allow_if(libc::SYS_rt_sigprocmask, rule([is(0, unblock)])?);
                }
            }
            Group::Threads if guards_mask && !groups.contains(&Group::Processes) => {
                allow_if(libc::SYS_clone, rule([has(0, THREAD, THREAD)])?);
            }
            Group::Streams => {
                let others = TERMINAL_INPUT.map(|request| differs(1, request));
                allow_if(libc::SYS_ioctl, rule(others)?);
            }
            Group::Sockets(families) => {
                for family in *families {
                    allow_if(libc::SYS_socket, rule([is(0, *family as u64)])?);
                }
                // It fails without a line in the log ([`quiet`]).
                if !families.is_empty() {
                    allow_if(libc::SYS_socket, rule([is(0, libc::AF_UNIX as u64)])?);
                }
            }
            Group::Read if !groups.contains(&Group::Files) => {
                allow_if(libc::SYS_openat, rule([has(2, O_ACCMODE, 0)])?);
            }
            _ => {}
        }
    }
    Ok(rules)
}

/// The bits of a file's access mode in the flags of openat(2); O_RDONLY is 0.
const O_ACCMODE: u64 = libc::O_ACCMODE as u64;

/// Calls that fail without a line in the log, and how.
fn quiet(groups: &[Group], guards_mask: bool) -> io::Result<Vec<(Rules, u32)>> {
    let mut quiet = vec![(
        Rules::from([(libc::SYS_clone3, Vec::new())]),
        libc::ENOSYS as u32,
    )];
    if !guards_mask && !groups.contains(&Group::Processes) {
        let clone = match groups.contains(&Group::Threads) {
            true => vec![rule([has(0, THREAD, 0)])?],
            false => Vec::new(),
        };
        quiet.push((Rules::from([(libc::SYS_clone, clone)]), libc::EPERM as u32));
    }
    let families = groups.iter().flat_map(|group| match group {
        Group::Sockets(families) => *families,
        _ => &[],
    });
    let families: Vec<_> = families.collect();
    // Looking a host's name up, the C library asks the daemons of the system first.
    if !families.is_empty() && !families.contains(&&libc::AF_UNIX) {
        let unix = rule([is(0, libc::AF_UNIX as u64)])?;
        let rules = Rules::from([(libc::SYS_socket, vec![unix])]);
        quiet.push((rules, libc::EPERM as u32));
    }
    Ok(quiet)
}

fn rule<const N: usize>(conditions: [io::Result<SeccompCondition>; N]) -> io::Result<SeccompRule> {
    let conditions: io::Result<Vec<_>> = conditions.into_iter().collect();
    SeccompRule::new(conditions?).map_err(io::Error::other)
}

fn condition(argument: u8, is: SeccompCmpOp, value: u64) -> io::Result<SeccompCondition> {
    // What is compared is an int or flags, of which the kernel reads the lower half only.
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is, value).map_err(io::Error::other)
}

/// An argument is this value.
fn is(argument: u8, value: u64) -> io::Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::Eq, value)
}

/// An argument is another value.
fn differs(argument: u8, value: u64) -> io::Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::Ne, value)
}

/// An argument's bits of this mask are these.
fn has(argument: u8, mask: u64, bits: u64) -> io::Result<SeccompCondition> {
    condition(argument, SeccompCmpOp::MaskedEq(mask), bits)
}
