//! Starting a helper process that is nobody's child.
//!
//! # Theory of operation
//!
//! The program may have threads, wait for any child of its own, handle SIGCHLD, and hold
//! gigabytes of memory. So the helper must not be its child, and its memory is not copied.
//!
//! The calling thread clones a *middle* process. That clones the helper and exits at once, which
//! makes the helper a child of init. The middle process sends no signal when it ends, and only a
//! wait for this very process with `__WALL` finds it (clone(2)): the program cannot reap it by
//! accident. Both clones share the program's memory and suspend their parent (`CLONE_VM`,
//! `CLONE_VFORK`), as posix_spawn(3) does. So an error of the helper is stored where the program
//! reads it.
//!
//! Until execve, the helper runs in the memory of a program whose other threads go on. So it makes
//! system calls only: it allocates nothing, takes no lock, and calls no function of libc that is a
//! cancellation point. Signals are blocked, because a handler would act on the program's memory.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::mem::{size_of, size_of_val, zeroed};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// The helper's number for its end of the control socket pair.
pub(crate) const CONTROL: c_int = 3;

/// The stack of each of both processes, in pieces of 16 bytes, which is how it must be aligned.
const STACK: usize = 2048;

/// Signals are numbered up to this (signal(7)).
const LAST_SIGNAL: c_int = 64;

/// Without close_range(2), descriptors up to this number are closed.
const LAST_DESCRIPTOR: u64 = 65_535;

unsafe extern "C" {
    static environ: *const *const c_char;
}

/// What both processes need, in the program's memory.
struct Job {
    program: *const c_char,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    control: c_int,
    keeps_errors: bool,
    /// The end of the helper's stack, which grows downwards.
    stack: *mut c_void,
    /// Why the helper could not be started.
    errno: AtomicI32,
}

/// Starts `program`. It inherits `control` as [`CONTROL`], and standard error if it `keeps_errors`.
/// Its other standard streams are /dev/null. It has a session of its own, no other descriptors, and
/// the usual signals.
///
/// # Errors
/// There are too many processes, or the program cannot be executed.
pub(crate) fn spawn(
    program: &CStr,
    arguments: &[CString],
    control: &OwnedFd,
    keeps_errors: bool,
) -> nix::Result<()> {
    let mut words: Vec<*const c_char> = arguments.iter().map(|word| word.as_ptr()).collect();
    words.push(null());
    let mut stacks = vec![0_u128; 2 * STACK];
    let (middle, helper) = stacks.split_at_mut(STACK);
    let job = Job {
        program: program.as_ptr(),
        arguments: words.as_ptr(),
        // SAFETY: it is a pointer that the C library keeps.
        environment: unsafe { environ },
        control: control.as_raw_fd(),
        keeps_errors,
        stack: helper.as_mut_ptr_range().end.cast(),
        errno: AtomicI32::new(0),
    };
    let mut before = SigSet::empty();
    pthread_sigmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        Some(&mut before),
    )?;
    // SAFETY: the process runs `fork_helper` on a stack of its own, with `job`, both of which
    // outlive it: the call returns when it has ended. It has no exit signal.
    let pid = unsafe {
        libc::clone(
            fork_helper,
            middle.as_mut_ptr_range().end.cast(),
            libc::CLONE_VM | libc::CLONE_VFORK,
            (&raw const job).cast_mut().cast(),
        )
    };
    let started = Errno::result(pid).map(reap);
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
    started?;
    match job.errno.load(Ordering::Relaxed) {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// Reaps the middle process, which has ended.
fn reap(pid: c_int) {
    let none = null_mut::<c_void>();
    // SAFETY: the call writes nothing. By its number it is no cancellation point.
    while unsafe { libc::syscall(libc::SYS_wait4, pid, none, libc::__WALL, none) } < 0
        && Errno::last() == Errno::EINTR
    {}
}

/// The middle process.
extern "C" fn fork_helper(job: *mut c_void) -> c_int {
    let job = job.cast::<Job>();
    // SAFETY: `job` is the caller's, which waits. The helper's stack is its own.
    unsafe {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        if libc::clone(run_helper, (*job).stack, flags, job.cast()) < 0 {
            (*job).errno.store(Errno::last_raw(), Ordering::Relaxed);
        }
    }
    0
}

/// The helper, until it executes its program.
extern "C" fn run_helper(job: *mut c_void) -> c_int {
    let job = job.cast::<Job>();
    // SAFETY: `job` is the caller's, which waits. The calls change this process alone, whose
    // descriptors and signal dispositions are copies.
    unsafe {
        let errno = match arrange(&*job) {
            Ok(()) => {
                libc::execve((*job).program, (*job).arguments, (*job).environment);
                Errno::last_raw()
            }
            Err(errno) => errno,
        };
        (*job).errno.store(errno, Ordering::Relaxed);
    }
    libc::EXIT_FAILURE
}

/// Arranges the descriptors and signals.
///
/// # Safety
/// To be called in the helper only.
unsafe fn arrange(job: &Job) -> Result<(), c_int> {
    let check = |result: c_long| match result {
        ..0 => Err(Errno::last_raw()),
        other => Ok(other as c_int),
    };
    // SAFETY: the descriptors are this process's own, the path ends in NUL, the structures are
    // complete.
    unsafe {
        check(libc::syscall(libc::SYS_setsid))?;
        match job.control {
            CONTROL => check(libc::syscall(libc::SYS_fcntl, CONTROL, libc::F_SETFD, 0))?,
            other => check(libc::syscall(libc::SYS_dup3, other, CONTROL, 0))?,
        };
        let device = c"/dev/null".as_ptr();
        let device = libc::syscall(libc::SYS_openat, libc::AT_FDCWD, device, libc::O_RDWR);
        let null = check(device)?;
        let streams = if job.keeps_errors { 0..2 } else { 0..3 };
        for stream in streams.filter(|stream| *stream != null) {
            check(libc::syscall(libc::SYS_dup3, null, stream, 0))?;
        }
        close_from(CONTROL + 1);
        let mut usual: libc::sigaction = zeroed();
        usual.sa_sigaction = libc::SIG_DFL;
        for signal in 1..=LAST_SIGNAL {
            // It fails for signals that have no other action, or none at all.
            libc::sigaction(signal, &raw const usual, null_mut());
        }
        let none = [0_u8; LAST_SIGNAL as usize / 8];
        let old = null_mut::<c_void>();
        let (set, size) = (none.as_ptr(), size_of_val(&none));
        let set_mask = libc::SYS_rt_sigprocmask;
        check(libc::syscall(set_mask, libc::SIG_SETMASK, set, old, size))?;
    }
    Ok(())
}

/// Closes all descriptors from `first` on.
///
/// # Safety
/// To be called in the helper only.
unsafe fn close_from(first: c_int) {
    // SAFETY: the descriptors are this process's own, and it uses none of them.
    unsafe {
        let all = c_long::from(u32::MAX);
        if libc::syscall(libc::SYS_close_range, c_long::from(first), all, 0_u32) == 0 {
            return;
        }
        // Kernels before 5.9 have no such call.
        let mut limit: [u64; 2] = [0; 2];
        debug_assert_eq!(size_of::<libc::rlimit>(), size_of_val(&limit));
        let none = null::<c_void>();
        let get = libc::SYS_prlimit64;
        libc::syscall(get, 0, libc::RLIMIT_NOFILE, none, limit.as_mut_ptr());
        for fd in first as u64..limit[0].min(LAST_DESCRIPTOR) {
            libc::syscall(libc::SYS_close, fd);
        }
    }
}
