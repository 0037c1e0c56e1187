//! A program at the far end: one that opens a VNL through our libvdeplug.so.2, which has started
//! this process for it.
//!
//! # Theory of operation
//!
//! Library and plug share a pair of sockets, the control sockets. When the VNL is open, the plug
//! sends one message there: an `int` in host byte order, 0, and the descriptor on which the program
//! sends and receives frames. If it cannot be opened, the number is an errno.
//! After that both are silent. A hang-up means that the program has closed the connection, or has
//! ended, and ends the plug.
//!
//! The descriptor is that of a tap on the panel if the VNL's plugin may have it plugged there: the
//! plug then serves that port as a worker serves its interface's ([`PanelPort`]). Otherwise it is
//! one end of a pair of sockets whose packets are frames. Either way the frames are complete, and
//! fit the sender's MTU: such programs know no offloads.

use std::cell::Cell;
use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, getsockopt, sendmsg, setsockopt,
    socketpair, sockopt,
};
use vdens_plugin_kit::{Link, MAX_LEGACY_FRAME, PanelAddress, RxBatch, TxBatch};

use crate::error::{Error, ErrorKind, Result, system};
use crate::ipc::Order;
use crate::panel::{PanelClient, PanelPort, new_place};

/// How many bytes of frames may wait for the program, or for the plug: as many as the links of
/// other sockets ask for.
const BUFFER: usize = 4 << 20;

/// The program's end of the control sockets.
#[derive(Debug)]
pub(super) struct Program {
    control: OwnedFd,
    name: String,
    /// Whether it has been told that its VNL is open.
    is_connected: Cell<bool>,
}

/// A port on the panel that is a tap for the program.
pub(super) struct TapPort {
    pub(super) address: PanelAddress,
    tap: OwnedFd,
    client: PanelClient,
}

impl TapPort {
    /// Makes the port.
    ///
    /// # Errors
    /// There is no panel, or the kernel refuses.
    pub(super) fn make(client: PanelClient) -> Result<Self> {
        let place = new_place()?;
        let port = place.clone();
        let done = client.execute(Order::AddTap {
            port,
            has_header: false,
        })?;
        let tap = done.tap.ok_or_else(|| Error::closed("a tap was lost"))?;
        // A program's own descriptor makes it wait, unless it changes that.
        fcntl(&tap, FcntlArg::F_SETFL(OFlag::empty()))
            .map_err(system("change the mode of a tap"))?;
        let panel = done.panel;
        Ok(Self {
            address: PanelAddress { panel, place },
            tap,
            client,
        })
    }
}

impl Program {
    /// The program at the other end of descriptor `fd`.
    ///
    /// # Errors
    /// It is no such descriptor.
    pub(super) fn at(fd: RawFd) -> Result<Self> {
        let wrong = |_| {
            Error::usage(format!("descriptor {fd} is no socket of a libvdeplug.so.2"))
                .hint("--program-fd is for that library")
        };
        if fd <= 2 {
            return Err(wrong(Errno::EBADF));
        }
        // SAFETY: this is the start of the program, which has opened nothing of that number. If it
        // has not inherited the descriptor either, the next call says so.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(wrong)?;
        match getsockopt(&borrowed, sockopt::SockType).map_err(wrong)? {
            SockType::SeqPacket => {}
            _ => return Err(wrong(Errno::EPROTOTYPE)),
        }
        let peer = getsockopt(&borrowed, sockopt::PeerCredentials).map_err(wrong)?;
        let command = fs::read_to_string(format!("/proc/{}/comm", peer.pid())).unwrap_or_default();
        // SAFETY: it is open, as above, and nothing else in this process knows its number.
        let control = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            control,
            name: format!("{} ({})", command.trim_end(), peer.pid()),
            is_connected: Cell::new(false),
        })
    }

    /// What people know it by: its name and process id.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has hung up.
    pub(super) fn has_ended(&self) -> bool {
        has_hung_up(self.control.as_fd())
    }

    /// Gives the program its descriptor, and returns the link to it. With `wants_panel`, the
    /// descriptor is the port's tap.
    ///
    /// # Errors
    /// There are no descriptors left, or the program has ended.
    pub(super) fn connect(
        &self,
        port: Option<TapPort>,
        wants_panel: bool,
    ) -> Result<Box<dyn Link>> {
        let (link, data): (Box<dyn Link>, OwnedFd) = match port {
            Some(port) if wants_panel => {
                let link = PanelPort::new(port.address.place.clone(), port.client)?;
                (Box::new(link), port.tap)
            }
            _ => {
                let (ours, theirs) = socketpair(
                    AddressFamily::Unix,
                    SockType::SeqPacket,
                    None,
                    SockFlag::SOCK_CLOEXEC,
                )
                .map_err(system("make a socket pair"))?;
                for socket in [&ours, &theirs] {
                    // With a smaller one the link is slower, nothing else.
                    let _ = setsockopt(socket, sockopt::SndBuf, &BUFFER);
                }
                (Box::new(ProgramLink(ours)), theirs)
            }
        };
        self.send(0, Some(data.as_fd()))?;
        self.is_connected.set(true);
        Ok(link)
    }

    /// Tells the program why its VNL cannot be opened, unless it is open.
    pub(super) fn refuse(&self, error: &Error) {
        if !self.is_connected.get()
            && let Err(error) = self.send(number(error), None)
        {
            log::debug!("{error}");
        }
    }

    fn send(&self, errno: i32, data: Option<BorrowedFd<'_>>) -> Result<()> {
        let number = errno.to_ne_bytes();
        let fds = data.map(|fd| fd.as_raw_fd());
        let rights = ControlMessage::ScmRights(fds.as_slice());
        let rights = if fds.is_some() { &[rights][..] } else { &[] };
        sendmsg::<()>(
            self.control.as_raw_fd(),
            &[IoSlice::new(&number)],
            rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map(drop)
        .map_err(|errno| Error::io(format_args!("answer {}", self.name), &errno.into()))
    }
}

impl PartialEq for Program {
    /// Whether both are this very value.
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Program {}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

/// The errno for an error, which may have none of its own.
fn number(error: &Error) -> i32 {
    let errno = match error.kind {
        _ if error.errno != 0 => return error.errno,
        ErrorKind::Usage => Errno::EINVAL,
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::Permission => Errno::EACCES,
        ErrorKind::Busy => Errno::EBUSY,
        ErrorKind::Closed => Errno::ECONNREFUSED,
        ErrorKind::Unsupported => Errno::EPROTONOSUPPORT,
        ErrorKind::Protocol => Errno::EPROTO,
        _ => Errno::EIO,
    };
    errno as i32
}

fn has_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// The plug's end of the pair of sockets whose packets are frames.
struct ProgramLink(OwnedFd);

impl ProgramLink {
    fn ended() -> Error {
        Error::closed("the program has closed the connection")
    }
}

impl Link for ProgramLink {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let before = batch.len();
        let received = batch.receive_datagrams(&self.0, MAX_LEGACY_FRAME);
        match received {
            // At the end, each packet is empty.
            Ok(packets) if packets > 0 && batch.len() == before && has_hung_up(self.fd()) => {
                Err(Self::ended())
            }
            Ok(_) => Ok(()),
            Err(_) => Err(Self::ended()),
        }
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        batch.send_datagrams(&self.0, 0).map_err(|_| Self::ended())
    }
}

#[cfg(test)]
mod tests {
    use vdens_plugin_kit::Batch;

    use super::*;

    #[test]
    fn packets_are_frames_until_the_program_hangs_up() {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let mut link = ProgramLink(ours);
        let mut batch = Batch::new();
        let packet = [7; 10_000];
        for length in [60, 0, 13, 14, MAX_LEGACY_FRAME, MAX_LEGACY_FRAME + 1] {
            let flags = MsgFlags::empty();
            nix::sys::socket::send(theirs.as_raw_fd(), &packet[..length], flags).unwrap();
        }
        link.recv(&mut batch.rx()).unwrap();
        let lengths: Vec<_> = batch
            .tx(0)
            .frames()
            .map(|frame| frame.bytes().len())
            .collect();
        assert_eq!(lengths, [60, 14, MAX_LEGACY_FRAME]);
        assert_eq!(link.send(&mut batch.tx(0)).unwrap(), 3);
        let mut room = [0; 100];
        let taken = nix::unistd::read(&theirs, &mut room).unwrap();
        assert_eq!((taken, room[0]), (60, 7));
        drop(theirs);
        batch.clear();
        assert_eq!(
            link.recv(&mut batch.rx()).unwrap_err().kind,
            ErrorKind::Closed
        );
        batch.rx().push(&[1; 60]);
        assert!(link.send(&mut batch.tx(0)).is_err());
    }

    #[test]
    fn every_error_has_a_number() {
        let of = |kind| number(&Error::new(kind, "x"));
        assert_eq!(of(ErrorKind::Usage), libc::EINVAL);
        assert_eq!(of(ErrorKind::Panic), libc::EIO);
        let own = Error::io("x", &Errno::EADDRINUSE.into());
        assert_eq!(number(&own), libc::EADDRINUSE);
    }
}
