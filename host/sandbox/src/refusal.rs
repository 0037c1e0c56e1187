//! The log of refused calls.
//!
//! The filter sends SIGSYS for a call that it refuses (SECCOMP_RET_TRAP). The handler writes a line
//! that names the call and makes it return EPERM. The line is written from the handler itself, so
//! that it is there even if the process does not outlive the refusal. A call's name is logged once.
//!
//! If a thread blocks SIGSYS, the kernel ends the process by it instead.

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

/// What the filter does about a call that is not listed. Elsewhere the registers are others.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const ACTION: SeccompAction = SeccompAction::Trap;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) const ACTION: SeccompAction = SeccompAction::Errno(libc::EPERM as u32);

/// Has refused calls logged to a descriptor that stays open, or not at all. The name of the call
/// stands between `before` and `after`. The first call counts.
pub fn log_to(descriptor: Option<libc::c_int>, before: String, after: String) {
    if AROUND.set([before, after]).is_ok() {
        LOG.store(descriptor.unwrap_or(-1), Ordering::Relaxed);
    }
}

/// Installs the handler.
pub(crate) fn catch() -> io::Result<()> {
    let handler = SigHandler::SigAction(refused);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler reads statics that are never changed once they are set, changes atomics
    // and registers, and calls write(2) only.
    unsafe { sigaction(Signal::SIGSYS, &action) }?;
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
    // SAFETY: it is the interrupted thread's context, which is this handler's to change.
    let call = unsafe { fail(context.cast()) };
    let index = usize::try_from(call).unwrap_or(usize::MAX).min(575);
    let bit = 1_u64 << (index % 64);
    let is_new = LOGGED[index / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0;
    let log = LOG.load(Ordering::Relaxed);
    if is_new && log >= 0 {
        write_line(log, call);
    }
}

/// Makes the refused call fail with EPERM, and returns its number. The kernel has put the registers
/// back to what they were before the call, and goes on behind it.
///
/// # Safety
/// `context` must be that of a SIGSYS's handler.
#[cfg(target_arch = "x86_64")]
unsafe fn fail(context: *mut libc::ucontext_t) -> i64 {
    // SAFETY: as the caller promises.
    let result = unsafe { &mut (*context).uc_mcontext.gregs[libc::REG_RAX as usize] };
    std::mem::replace(result, -i64::from(libc::EPERM))
}

/// As for x86_64; the number is in x8, the result in x0 (syscall(2)).
///
/// # Safety
/// `context` must be that of a SIGSYS's handler.
#[cfg(target_arch = "aarch64")]
unsafe fn fail(context: *mut libc::ucontext_t) -> i64 {
    // SAFETY: as the caller promises.
    let registers = unsafe { &mut (*context).uc_mcontext.regs };
    registers[0] = (-i64::from(libc::EPERM)).cast_unsigned();
    registers[8].cast_signed()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn fail(_: *mut libc::ucontext_t) -> i64 {
    -1
}

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
