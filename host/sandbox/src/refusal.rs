//! The log of refused calls.
//!
//! The filter sends SIGSYS for a call that it refuses (SECCOMP_RET_TRAP). The handler writes a line
//! that names the call and makes it return EPERM. The line is written from the handler itself, so
//! that it is there even if the process does not outlive the refusal. A call's name is logged once.
//!
//! If a thread blocks SIGSYS, the kernel ends the process by it instead. C libraries block all
//! signals around the call that starts a thread or a process. So the filter stops
//! rt_sigprocmask(2), too, and the handler does what that call would have done, but leaves SIGSYS
//! unblocked ([`change_mask`]). A thread that had blocked SIGSYS before could not make the call any
//! more, so this is for processes that have one thread when they enter their confinement.

use std::fs;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use seccompiler::SeccompAction;
use syscalls::Sysno;

/// Where lines go; -1 for nowhere.
static LOG: AtomicI32 = AtomicI32::new(libc::STDERR_FILENO);

/// What a line starts with, and ends with.
static AROUND: OnceLock<[String; 2]> = OnceLock::new();

/// Calls that were logged, a bit each. Numbers beyond share one.
static LOGGED: [AtomicU64; 9] = [const { AtomicU64::new(0) }; 9];

/// The code of a SIGSYS that a filter sends (SYS_SECCOMP, siginfo.h).
const FROM_FILTER: libc::c_int = 1;

/// Whether the handler knows where a call's number and result are: elsewhere the registers are
/// others.
const KNOWS_REGISTERS: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// What the filter does about a call that is not listed.
pub(crate) const ACTION: SeccompAction = match KNOWS_REGISTERS {
    true => SeccompAction::Trap,
    false => SeccompAction::Errno(libc::EPERM as u32),
};

/// Whether SIGSYS can be kept unblocked from now on: this process has one thread.
pub(crate) fn can_guard_mask() -> bool {
    let threads = || Some(fs::read_dir("/proc/self/task").ok()?.count());
    KNOWS_REGISTERS && threads() == Some(1)
}

/// Has refused calls logged to a descriptor that stays open, or not at all. The name of the call
/// stands between `before` and `after`. The first call counts.
pub fn log_to(descriptor: Option<libc::c_int>, before: String, after: String) {
    if AROUND.set([before, after]).is_ok() {
        LOG.store(descriptor.unwrap_or(-1), Ordering::Relaxed);
    }
}

/// Installs the handler, and lets this thread receive its signal.
pub(crate) fn catch() -> io::Result<()> {
    let handler = SigHandler::SigAction(refused);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler reads statics that are never changed once they are set, changes atomics,
    // registers and the signal mask, and calls write(2) only.
    unsafe { sigaction(Signal::SIGSYS, &action) }?;
    SigSet::from(Signal::SIGSYS).thread_unblock()?;
    Ok(())
}

extern "C" fn refused(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel calls the handler with a valid siginfo_t (SA_SIGINFO).
    if unsafe { (*info).si_code } != FROM_FILTER {
        return;
    }
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: it is the interrupted thread's context, which is this handler's to change, and the
    // call's arguments are the ones that the kernel would have used.
    let call = unsafe {
        let (call, arguments) = stopped(context);
        let result = match call {
            libc::SYS_rt_sigprocmask => {
                change_mask((&raw mut (*context).uc_sigmask).cast(), arguments)
            }
            _ => -i64::from(libc::EPERM),
        };
        finish(context, result);
        call
    };
    if call == libc::SYS_rt_sigprocmask {
        return;
    }
    let index = usize::try_from(call).unwrap_or(usize::MAX).min(575);
    let bit = 1_u64 << (index % 64);
    let is_new = LOGGED[index / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0;
    let log = LOG.load(Ordering::Relaxed);
    if is_new && log >= 0 {
        write_line(log, call);
    }
}

/// Does what rt_sigprocmask(2) does, but leaves SIGSYS unblocked. Returns what that call returns.
/// The kernel makes `mask` the thread's when the handler returns.
///
/// # Safety
/// `mask` must be valid, and the arguments those of a call that would not fail with EFAULT.
unsafe fn change_mask(mask: *mut u64, [how, set, old, size]: [u64; 4]) -> i64 {
    const SIGSYS: u64 = 1 << (libc::SIGSYS - 1);
    const BLOCK: u64 = libc::SIG_BLOCK as u64;
    const UNBLOCK: u64 = libc::SIG_UNBLOCK as u64;
    const SET: u64 = libc::SIG_SETMASK as u64;
    let (set, old) = (set as *const u64, old as *mut u64);
    // SAFETY: as the caller promises. The kernel's set of signals has 64 bits.
    unsafe {
        let was = *mask;
        let now = match how & 0xffff_ffff {
            _ if size != 8 => return -i64::from(libc::EINVAL),
            _ if set.is_null() => was,
            BLOCK => was | set.read_unaligned(),
            UNBLOCK => was & !set.read_unaligned(),
            SET => set.read_unaligned(),
            _ => return -i64::from(libc::EINVAL),
        };
        *mask = now & !SIGSYS;
        if !old.is_null() {
            old.write_unaligned(was);
        }
    }
    0
}

/// A stopped call's number and its first arguments. The kernel has put the registers back to what
/// they were before the call, and goes on behind it.
///
/// # Safety
/// `context` must be that of a SIGSYS's handler.
#[cfg(target_arch = "x86_64")]
unsafe fn stopped(context: *const libc::ucontext_t) -> (i64, [u64; 4]) {
    // SAFETY: as the caller promises.
    let registers = unsafe { &(*context).uc_mcontext.gregs };
    let arguments = [libc::REG_RDI, libc::REG_RSI, libc::REG_RDX, libc::REG_R10];
    let arguments = arguments.map(|register| registers[register as usize].cast_unsigned());
    (registers[libc::REG_RAX as usize], arguments)
}

/// Gives a stopped call its result.
///
/// # Safety
/// `context` must be that of a SIGSYS's handler.
#[cfg(target_arch = "x86_64")]
unsafe fn finish(context: *mut libc::ucontext_t, result: i64) {
    // SAFETY: as the caller promises.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RAX as usize] = result };
}

/// As for x86_64; the number is in x8, the arguments are in x0 and behind (syscall(2)).
///
/// # Safety
/// `context` must be that of a SIGSYS's handler.
#[cfg(target_arch = "aarch64")]
unsafe fn stopped(context: *const libc::ucontext_t) -> (i64, [u64; 4]) {
    // SAFETY: as the caller promises.
    let registers = unsafe { &(*context).uc_mcontext.regs };
    let [a, b, c, d, ..] = *registers;
    (registers[8].cast_signed(), [a, b, c, d])
}

/// As for x86_64; the result is in x0.
///
/// # Safety
/// `context` must be that of a SIGSYS's handler.
#[cfg(target_arch = "aarch64")]
unsafe fn finish(context: *mut libc::ucontext_t, result: i64) {
    // SAFETY: as the caller promises.
    unsafe { (*context).uc_mcontext.regs[0] = result.cast_unsigned() };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn stopped(_: *const libc::ucontext_t) -> (i64, [u64; 4]) {
    (-1, [0; 4])
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn finish(_: *mut libc::ucontext_t, _: i64) {}

/// Writes the line in one piece, if it has room in the buffer.
fn write_line(log: libc::c_int, call: i64) {
    let mut line = [0; 512];
    let mut length = 0;
    let mut put = |text: &str| {
        let room = &mut line[length..];
        let text = &text.as_bytes()[..text.len().min(room.len())];
        room[..text.len()].copy_from_slice(text);
        length += text.len();
    };
    let [before, after] = match AROUND.get() {
        Some([before, after]) => [before.as_str(), after.as_str()],
        None => ["the sandbox refuses the system call ", ""],
    };
    put(before);
    match usize::try_from(call).ok().and_then(Sysno::new) {
        Some(known) => put(known.name()),
        None => put("of an unknown number"),
    }
    put(after);
    put("\n");
    // SAFETY: errno is the thread's own, and the interrupted code may be about to read it; the
    // buffer is valid for its length. A line that cannot be written is lost.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(log, line.as_ptr().cast(), length);
        *libc::__errno_location() = errno;
    }
}
