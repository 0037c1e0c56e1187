//! What concerns a process as a whole: its exit status after a panic, the background, memory, and
//! waiting.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::exit;
use std::ptr;
use std::slice;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::error::{Result, system};
use crate::output::report_panics;

/// Runs a program's `life`, which ends the process. A panic is reported like an error, and ends the
/// process with the status `failure`.
pub fn fail_on_panic(program: &'static str, failure: i32, life: impl FnOnce()) {
    report_panics(program);
    if catch_unwind(AssertUnwindSafe(life)).is_err() {
        exit(failure);
    }
}

/// Detaches from the terminal: the standard streams become /dev/null.
///
/// # Errors
/// /dev/null does not exist.
pub(crate) fn detach() -> Result<()> {
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(system("open /dev/null"))?;
    dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null))
        .map_err(system("detach from the terminal"))
}

/// From this size on, in bytes, the allocator maps memory for each allocation. So the part of a
/// batch that is never used takes no memory, and freed memory returns to the kernel at once. It is
/// the value that the GNU allocator starts with, and raises unless it is set (mallopt(3)).
#[cfg(target_env = "gnu")]
const MAPPED: libc::c_int = 128 << 10;

/// Makes the allocator map large allocations for good. For processes that will load plugins: that
/// would raise the size from which the allocator does so.
pub(crate) fn map_large_allocations() {
    // SAFETY: it sets a number of the allocator's, under its own lock.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
    }
}

/// How far below the caller the stack is given back, in bytes. Starting and loading a plugin reach
/// half as far.
const STACK: usize = 128 << 10;

/// Returns unused memory to the kernel, for example after a plugin is loaded: what the allocator
/// has freed, the pages of the stack below the caller, and the program's code, most of which only
/// the start needs. All of it would stay as long as the process lives. For a process's first
/// thread, whose stack is much larger than [`STACK`].
#[inline(never)]
pub(crate) fn give_back_memory() {
    let frame = 0_u8;
    // SAFETY: malloc_trim takes the allocator's own locks, and touches no memory that is in use.
    // The stack below this frame holds no value; its page and the next one stay for the call of
    // madvise itself. The kernel skips pages that were never touched. The callback is called during
    // dl_iterate_phdr only, and needs no data.
    unsafe {
        #[cfg(target_env = "gnu")]
        libc::malloc_trim(0);
        let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
        let start = ((&raw const frame).addr() & !(page - 1)) - page - STACK;
        libc::madvise(start as *mut libc::c_void, STACK, libc::MADV_DONTNEED);
        libc::dl_iterate_phdr(Some(unmap_program), ptr::null_mut());
    }
}

/// Takes the pages of the program's code and constants out of this process's memory. What is used
/// again is mapped again from the page cache, where they stay. For dl_iterate_phdr, which reports
/// the program first; returns 1, so that it reports nothing else.
///
/// # Safety
/// `info` must describe what is loaded.
unsafe extern "C" fn unmap_program(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the segments are mapped as the headers say. One that cannot be written has the pages
    // of the file and no others, so that the kernel can map them again.
    unsafe {
        let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
        let headers = slice::from_raw_parts((*info).dlpi_phdr, usize::from((*info).dlpi_phnum));
        for header in headers {
            if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
                let start = (*info).dlpi_addr as usize + header.p_vaddr as usize;
                let end = (start + header.p_memsz as usize) & !(page - 1);
                let start = start.next_multiple_of(page);
                let length = end.saturating_sub(start);
                libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
            }
        }
    }
    1
}

/// Polls, until `deadline` if there is one. A signal may end the wait early.
///
/// # Errors
/// A descriptor is invalid.
pub(crate) fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> Result<()> {
    let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: a timeout of 0 just before the deadline would spin.
        match left.is_zero() {
            true => PollTimeout::ZERO,
            false => {
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        }
    });
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(system("wait for events")(errno)),
    }
}
