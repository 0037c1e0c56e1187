//! The machine that starts this program, and how it takes the tap: the protocol of QEMU's network
//! helpers (qemu-bridge-helper; `net_bridge_run_helper` in QEMU's net/tap.c).
//!
//! QEMU starts the helper with one end of a stream socket pair, and says which descriptor that is
//! (`--fd=N`). The helper sends one byte with the tap's descriptor beside it (SCM_RIGHTS), and
//! exits with status 0. QEMU waits for both. The socket's credentials name QEMU's process, which
//! made the pair.

use std::fmt;
use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, SockType, getsockopt, sendmsg, sockopt};
use vdens_plugin_kit::process::open_pidfd;

use crate::error::{Error, Result, system};

/// The machine: the process of its monitor (VMM), and where it takes the tap.
#[derive(Debug)]
pub(super) struct Machine {
    pid: u32,
    /// Its program, as the kernel has it.
    name: String,
    /// Readable when it has ended.
    process: OwnedFd,
    /// Where it takes the tap, until it has it.
    socket: Option<OwnedFd>,
}

impl Machine {
    /// The machine at the other end of the socket `fd`. `has_header` says whether it takes taps
    /// with a virtio header, the only ones that there are.
    ///
    /// # Errors
    /// No machine is there.
    pub(super) fn at(fd: Option<RawFd>, has_header: bool) -> Result<Self> {
        let started_by_hand = |why: &str| {
            let message = format!("no virtual machine takes the tap: {why}");
            Error::usage(message)
                .hint("QEMU starts this program: -netdev tap,id=n,helper=\"vdens-tap VNL\"")
        };
        let fd = fd.ok_or_else(|| started_by_hand("there is no --fd"))?;
        if !has_header {
            return Err(started_by_hand("there is no --use-vnet"));
        }
        if fd <= libc::STDERR_FILENO {
            return Err(started_by_hand(&format!(
                "--fd={fd} is no socket of its own"
            )));
        }
        // SAFETY: it is borrowed for two calls, which fail if no socket has this number.
        let socket = unsafe { BorrowedFd::borrow_raw(fd) };
        let kind = getsockopt(&socket, sockopt::SockType);
        let peer = getsockopt(&socket, sockopt::PeerCredentials);
        let (Ok(SockType::Stream), Ok(peer)) = (kind, peer) else {
            return Err(started_by_hand(&format!("--fd={fd} is no socket of it")));
        };
        // SAFETY: this program has made no socket yet, so this one was handed down to it, and
        // nothing else in it owns the descriptor.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
            .map_err(system("keep the socket of the virtual machine"))?;
        let pid = peer.pid().cast_unsigned();
        let process = open_pidfd(pid)
            .map_err(|error| Error::io(format_args!("watch the process {pid}"), &error))?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Ok(Self {
            pid,
            name: name.trim_end().to_owned(),
            process,
            socket: Some(socket),
        })
    }

    /// A descriptor that is readable when it has ended.
    pub(super) fn process(&self) -> BorrowedFd<'_> {
        self.process.as_fd()
    }

    /// Lets go of the socket, in a process that hands nothing over.
    pub(super) fn forget(&mut self) {
        self.socket = None;
    }

    /// Its program, and its process.
    pub(super) fn words(&self) -> [String; 2] {
        [self.name.clone(), self.pid.to_string()]
    }

    /// Gives it the tap.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn give(&mut self, tap: BorrowedFd<'_>) -> Result<()> {
        let Some(socket) = self.socket.take() else {
            return Ok(());
        };
        let rights = [tap.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&rights)];
        let byte = [IoSlice::new(&[0])];
        let flags = MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<()>(socket.as_raw_fd(), &byte, &rights, flags, None) {
            Ok(_) => Ok(()),
            Err(Errno::EPIPE | Errno::ECONNRESET) => {
                Err(Error::closed(format!("{self} has ended")))
            }
            Err(errno) => Err(system("hand the tap over")(errno)),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}
