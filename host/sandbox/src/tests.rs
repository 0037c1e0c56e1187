//! What a confined process can do, tried in a child process each.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe};

use super::*;

const GROUPS: [Group; 7] = [
    Group::Runtime,
    Group::Loop,
    Group::Streams,
    Group::Threads,
    Group::Read,
    Group::Files,
    Group::Sockets(&[libc::AF_UNIX]),
];

fn confinement(files: Option<Vec<Rule>>) -> Confinement {
    Confinement {
        calls: Calls::only(GROUPS),
        files,
        network: false,
        signals: false,
    }
}

/// What is logged while a confined child lives, in which every check must hold.
fn logged(confinement: &Confinement, life: impl FnOnce()) -> String {
    logged_before(|| (), confinement, |()| life())
}

/// The same, of a child that has prepared something first.
fn logged_before<T>(
    prepare: impl FnOnce() -> T,
    confinement: &Confinement,
    life: impl FnOnce(T),
) -> String {
    let (from, to) = pipe().unwrap();
    // SAFETY: the child of a test's thread allocates memory, which glibc's fork allows, and ends
    // by _exit.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(from);
            let to: OwnedFd = to;
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                log_to(Some(to.as_raw_fd()), "refused: ".into(), "!".into());
                let prepared = prepare();
                confinement.enter().unwrap();
                life(prepared);
            }));
            // SAFETY: it ends the process and touches no memory.
            unsafe { libc::_exit(i32::from(outcome.is_err())) }
        }
        ForkResult::Parent { child } => {
            drop(to);
            let mut text = String::new();
            File::from(from).read_to_string(&mut text).unwrap();
            let end = waitpid(child, None).unwrap();
            assert_eq!(end, WaitStatus::Exited(child, 0), "{text}");
            text
        }
    }
}

/// A call without arguments that fails with EPERM.
fn refused(call: libc::c_long) {
    // SAFETY: the filter refuses the call before the kernel looks at its arguments.
    let result = unsafe { libc::syscall(call, 0, 0, 0, 0, 0, 0) };
    assert_eq!((result, Errno::last()), (-1, Errno::EPERM), "{call}");
}

#[test]
fn what_is_refused_fails_and_is_logged_once() {
    let calls = [
        (libc::SYS_ptrace, "ptrace"),
        (libc::SYS_mount, "mount"),
        (libc::SYS_bpf, "bpf"),
        (libc::SYS_userfaultfd, "userfaultfd"),
        (libc::SYS_unshare, "unshare"),
        (libc::SYS_kill, "kill"),
        (libc::SYS_execve, "execve"),
    ];
    let text = logged(&confinement(None), || {
        calls.iter().for_each(|(call, _)| refused(*call));
        calls.iter().for_each(|(call, _)| refused(*call));
        // SAFETY: no such call exists.
        let unknown = unsafe { libc::syscall(4000) };
        assert_eq!((unknown, Errno::last()), (-1, Errno::EPERM));
        assert!(UdpSocket::bind("127.0.0.1:0").is_err());
    });
    let mut expected: Vec<_> = calls.map(|(_, name)| format!("refused: {name}!")).into();
    expected.push("refused: of an unknown number!".into());
    expected.push("refused: socket!".into());
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn threads_can_be_started_and_processes_cannot() {
    let text = logged(&confinement(None), || {
        let thread = thread::Builder::new().name("other".into());
        let thread = thread.spawn(|| refused(libc::SYS_ptrace)).unwrap();
        thread.join().unwrap();
        let errno = |error: io::Error| error.raw_os_error();
        let spawned = Command::new("/bin/true").spawn();
        assert_eq!(spawned.err().and_then(errno), Some(libc::EPERM));
        // SAFETY: it fails; a child would end the test by its panic.
        assert_eq!(unsafe { libc::fork() }, -1);
    });
    assert_eq!(text, "refused: ptrace!\nrefused: clone!\n");
}

#[test]
fn processes_that_may_be_started_are_confined_too() {
    let mut confinement = confinement(None);
    if let Calls::Only { groups, .. } = &mut confinement.calls {
        groups.extend([Group::Processes, Group::Children]);
    }
    let text = logged(&confinement, || {
        // SAFETY: the child makes calls only that fork allows, and ends by _exit.
        match unsafe { fork() }.unwrap() {
            ForkResult::Child => {
                refused(libc::SYS_ptrace);
                // SAFETY: it ends the process and touches no memory.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
        }
        thread::spawn(|| {}).join().unwrap();
        let spawned = Command::new("/bin/true").spawn();
        assert_eq!(spawned.unwrap_err().raw_os_error(), Some(libc::EPERM));
    });
    assert_eq!(text, "refused: ptrace!\nrefused: execve!\n");
}

#[test]
fn threads_that_were_there_can_block_signals() {
    let (go, wait) = std::sync::mpsc::channel();
    let confinement = confinement(None);
    let text = logged_before(
        move || {
            thread::spawn(move || {
                SigSet::all().thread_block().unwrap();
                wait.recv().unwrap();
                // It blocks signals and starts a thread, with SIGSYS blocked from before.
                thread::spawn(|| {}).join().unwrap();
                assert!(Command::new("/bin/true").spawn().is_err());
            })
        },
        &confinement,
        move |thread| {
            go.send(()).unwrap();
            thread.join().unwrap();
        },
    );
    assert_eq!(text, "");
}

#[test]
fn signals_can_be_blocked_but_the_one_for_refusals() {
    let text = logged(&confinement(None), || {
        let mask = || SigSet::thread_get_mask().unwrap();
        let before = mask();
        let old = SigSet::all()
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .unwrap();
        assert_eq!(old, before);
        assert!(mask().contains(Signal::SIGTERM) && !mask().contains(Signal::SIGSYS));
        refused(libc::SYS_ptrace);
        SigSet::from(Signal::SIGTERM).thread_unblock().unwrap();
        assert!(!mask().contains(Signal::SIGTERM) && mask().contains(Signal::SIGHUP));
        SigSet::all().thread_set_mask().unwrap();
        assert!(mask().contains(Signal::SIGTERM) && !mask().contains(Signal::SIGSYS));
        refused(libc::SYS_mount);
        // A blocked signal waits, and comes in when it is unblocked.
        raise(Signal::SIGTERM).unwrap();
        // SAFETY: the set is read, and the size is none.
        let invalid = unsafe {
            let set = SigSet::all();
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_BLOCK,
                set.as_ref(),
                0,
                4,
            )
        };
        assert_eq!((invalid, Errno::last()), (-1, Errno::EINVAL));
        // SAFETY: as above, and there is no such `how`.
        let invalid = unsafe {
            let set = SigSet::all();
            libc::syscall(libc::SYS_rt_sigprocmask, 9, set.as_ref(), 0, 8)
        };
        assert_eq!((invalid, Errno::last()), (-1, Errno::EINVAL));
        assert_eq!(
            SigSet::from(Signal::SIGTERM).wait().unwrap(),
            Signal::SIGTERM
        );
        before.thread_set_mask().unwrap();
        assert_eq!(mask(), before);
    });
    assert_eq!(text, "refused: ptrace!\nrefused: mount!\n");
}

#[test]
fn an_honest_process_notices_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let text = logged(&confinement(None), || {
        let path = directory.path().join("s");
        let socket = UnixDatagram::bind(&path).unwrap();
        let (a, _b) = UnixDatagram::pair().unwrap();
        a.send(b"x").unwrap();
        drop(socket);
        fs::remove_file(&path).unwrap();
        thread::sleep(std::time::Duration::from_millis(1));
        let large = vec![7_u8; 10 << 20];
        assert_eq!(
            large.iter().map(|byte| usize::from(*byte)).sum::<usize>(),
            7 * (10 << 20)
        );
    });
    assert_eq!(text, "");
}

#[test]
fn what_starts_programs_is_refused_what_is_dangerous() {
    let confinement = Confinement::of_what_starts_programs();
    let text = logged(&confinement, || {
        refused(libc::SYS_ptrace);
        refused(libc::SYS_userfaultfd);
        assert!(Command::new("/bin/true").status().unwrap().success());
    });
    assert_eq!(text, "");
}

#[test]
fn files_and_tcp_are_open_as_the_rules_say() {
    let Some(version) = landlock_version() else {
        eprintln!("SKIPPED: this kernel has no Landlock");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for name in ["read", "write", "sockets", "closed"] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("file"), "x").unwrap();
    }
    let rules = vec![
        Rule::new(Use::Read, at("read")),
        Rule::new(Use::Write, at("write")),
        Rule::new(Use::Sockets, at("sockets")),
        Rule::new(Use::Read, at("nothing")),
    ];
    let mut confinement = confinement(Some(rules));
    if let Calls::Only { groups, .. } = &mut confinement.calls {
        groups.push(Group::Sockets(&[libc::AF_INET]));
    }
    let text = logged(&confinement, || {
        let denied = |result: io::Result<()>| {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EACCES));
        };
        assert_eq!(fs::read_to_string(at("read").join("file")).unwrap(), "x");
        denied(fs::write(at("read").join("file"), "y"));
        denied(fs::remove_file(at("read").join("file")));
        fs::write(at("write").join("new"), "y").unwrap();
        denied(fs::read(at("closed").join("file")).map(drop));
        denied(fs::read_dir("/").map(drop));
        let path = CString::new("/etc/passwd").unwrap();
        // SAFETY: the path is a string.
        assert_eq!(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY) }, -1);
        drop(UnixDatagram::bind(at("sockets").join("s")).unwrap());
        fs::remove_file(at("sockets").join("s")).unwrap();
        denied(fs::write(at("sockets").join("new"), "y"));
        denied(UnixDatagram::bind(at("read").join("s")).map(drop));
        if version >= 4 {
            denied(TcpListener::bind("127.0.0.1:0").map(drop));
        }
    });
    assert_eq!(text, "");
}
