//! `escape://PORT`: a link that tries to leave its sandbox, to test that it cannot.
//!
//! It says that it needs nothing but to read `~/public`, and tries everything else as it opens. Its
//! status has the outcome of each attempt: `ok`, or the name of the error. PORT is one of TCP that
//! a process of this machine listens at.

use std::ffi::{CString, c_long, c_void};
use std::fs::{self, File};
use std::io;
use std::mem::zeroed;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::parent_id;
use std::path::PathBuf;
use std::process::Command;
use std::ptr::null_mut;

use nix::errno::Errno;
use vdens_plugin_kit::{
    AlwaysReady, Error, Link, OpenRequest, Result, RxBatch, State, Status, TxBatch,
};

/// The link: never readable, always writable.
struct Escape {
    outcomes: Vec<(String, String)>,
    never: std::os::fd::OwnedFd,
    always: AlwaysReady,
}

impl Link for Escape {
    fn fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.never.as_fd()
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.always.as_fd()
    }

    fn recv(&mut self, _batch: &mut RxBatch<'_>) -> Result<()> {
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        Ok(batch.len())
    }

    fn state(&self) -> State {
        State::carrier(true)
    }

    fn status(&self) -> Status {
        let extra = self.outcomes.iter().cloned().collect();
        Status {
            extra,
            ..Status::default()
        }
    }
}

/// The outcome in a word.
fn word<T>(result: io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(error) => match error.raw_os_error() {
            Some(number) => format!("{:?}", Errno::from_raw(number)),
            None => error.to_string(),
        },
    }
}

/// A system call with arguments that do no harm where it is allowed.
fn call(number: c_long, arguments: [c_long; 5]) -> io::Result<()> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: no argument is an address but 0, which the kernel does not use as one, and that of
    // `path` below, which is a string.
    match unsafe { libc::syscall(number, a, b, c, d, e) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn fork_and_exec() -> io::Result<()> {
    let status = Command::new("/bin/true").status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(status.to_string())),
    }
}

/// Starts a process that ends at once.
fn fork() -> io::Result<()> {
    // SAFETY: the child only ends, by _exit. The status is not asked for.
    unsafe {
        match libc::fork() {
            -1 => Err(io::Error::last_os_error()),
            0 => libc::_exit(0),
            child => match libc::waitpid(child, null_mut(), 0) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            },
        }
    }
}

/// Reads a word of the parent's memory.
fn read_parent() -> io::Result<()> {
    let parent = parent_id().cast_signed();
    let mut room = 0_u64;
    let local = libc::iovec {
        iov_base: (&raw mut room).cast::<c_void>(),
        iov_len: 8,
    };
    // The parent is the program that this one was forked from, so its memory is at the same place.
    let remote = libc::iovec {
        iov_base: (&raw const ATTEMPTED).cast::<c_void>().cast_mut(),
        ..local
    };
    // SAFETY: the local piece is `room`, which is as long; the remote one is only read.
    let read =
        unsafe { libc::process_vm_readv(parent, &raw const local, 1, &raw const remote, 1, 0) };
    match read {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

static ATTEMPTED: u64 = 0;

/// This plugin's own file.
fn own_file() -> PathBuf {
    let mut info: libc::Dl_info =
        // SAFETY: an all-zero Dl_info is a valid one: its members are pointers and numbers.
        unsafe { zeroed() };
    // SAFETY: `info` is writable for the call, and the address is one of this library. The name is
    // a string if the call succeeds.
    unsafe {
        match libc::dladdr((&raw const ATTEMPTED).cast(), &raw mut info) {
            0 => PathBuf::new(),
            _ => PathBuf::from(
                std::ffi::CStr::from_ptr(info.dli_fname)
                    .to_string_lossy()
                    .into_owned(),
            ),
        }
    }
}

fn attempts(port: u16) -> Vec<(String, String)> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let parent = c_long::from(parent_id());
    let file = |path: PathBuf| word(File::options().write(true).open(path));
    let program = CString::default();
    let calls = [
        ("kill", libc::SYS_kill, [parent, 0, 0, 0, 0]),
        // PTRACE_SEIZE, without effect on a process that goes on.
        ("ptrace", libc::SYS_ptrace, [0x4206, parent, 0, 0, 0]),
        (
            "execve",
            libc::SYS_execve,
            [program.as_ptr() as c_long, 0, 0, 0, 0],
        ),
        ("mount", libc::SYS_mount, [0; 5]),
        ("umount2", libc::SYS_umount2, [0; 5]),
        ("bpf", libc::SYS_bpf, [0; 5]),
        // UFFD_USER_MODE_ONLY, which every user may have.
        ("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0, 0, 0]),
        (
            "unshare",
            libc::SYS_unshare,
            [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0],
        ),
        ("setns", libc::SYS_setns, [-1, 0, 0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0; 5]),
        ("perf_event_open", libc::SYS_perf_event_open, [0; 5]),
        ("keyctl", libc::SYS_keyctl, [0; 5]),
        ("add_key", libc::SYS_add_key, [0; 5]),
        ("init_module", libc::SYS_init_module, [0; 5]),
        ("pidfd_getfd", libc::SYS_pidfd_getfd, [-1, 0, 0, 0, 0]),
        (
            "open_by_handle_at",
            libc::SYS_open_by_handle_at,
            [-1, 0, 0, 0, 0],
        ),
        (
            "process_vm_writev",
            libc::SYS_process_vm_writev,
            [parent, 0, 0, 0, 0],
        ),
    ];
    let files = [
        ("read ~/public", word(fs::read(home.join("public/file")))),
        ("read ~/.ssh", word(fs::read(home.join(".ssh/id")))),
        ("list ~", word(fs::read_dir(&home))),
        ("write own file", file(own_file())),
        ("write ~/public", file(home.join("public/file"))),
        ("make a file", word(File::create("escaped"))),
        (
            "parent's memory",
            file(format!("/proc/{parent}/mem").into()),
        ),
        (
            "parent's environment",
            word(fs::read(format!("/proc/{parent}/environ"))),
        ),
    ];
    let others = [
        ("fork", word(fork())),
        ("fork and exec", word(fork_and_exec())),
        ("process_vm_readv", word(read_parent())),
        ("TCP", word(TcpStream::connect(("127.0.0.1", port)))),
        ("UDP", word(UdpSocket::bind("127.0.0.1:0"))),
        ("UNIX", word(UnixStream::connect("/run/nothing"))),
    ];
    let calls = calls.map(|(name, number, arguments)| (name, word(call(number, arguments))));
    let all = files.into_iter().chain(others).chain(calls);
    all.map(|(name, outcome)| (name.to_owned(), outcome))
        .collect()
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let port = request.argument().parse();
    let port = port.map_err(|_| Error::usage("escape://PORT has no port"))?;
    let outcomes = attempts(port);
    let never = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC);
    let never = never.map_err(|errno| Error::io("make an epoll instance", &errno.into()))?;
    Ok(Box::new(Escape {
        outcomes,
        never: never.0,
        always: AlwaysReady::new()?,
    }))
}

vdens_plugin_kit::export_plugin! {
    scheme: "escape",
    description: "tries to leave its sandbox",
    needs: "read:~/public",
    open: open,
}
