//! `seqpacket://NUMBER`: a socket that the program that started this one has handed down.
//!
//! # Theory of operation
//!
//! The descriptor is an end of a socket that keeps packets apart, as socketpair(2) makes them. Each
//! packet is a frame. The program at the other end decides what becomes of the frames, so it is
//! sent no messages and no super-frames.
//!
//! Descriptors of vdens itself are close-on-exec, and one that was handed down is not. So a wrong
//! number meets no socket of vdens. The link works on a copy: the number stays usable when the VNL
//! is opened again.
//!
//! A far end that has hung up does not come back, because the socket has no path. The link then
//! stays open without carrier, and has nothing more to do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use vdens_plugin_kit::log::warn;
use vdens_plugin_kit::vnl::{Keys, Spec};
use vdens_plugin_kit::{
    AlwaysReady, DatagramLink, Error, FarEnd, Link, MAX_LEGACY_MTU, OpenRequest, Peer, Result,
    RxBatch, State, Status, TxBatch, export_plugin,
};

const KEYS: Keys = Keys::new(&[]);

const HINT: &str = "hand down a socket of socketpair(2), and write its number: seqpacket://5";

/// The link.
#[derive(Debug)]
struct Seqpacket {
    number: RawFd,
    /// `None` once the far end has hung up.
    socket: Option<DatagramLink<OwnedFd>>,
    peer: Peer,
    /// Watches nothing, so it is never readable.
    never: Epoll,
    always: AlwaysReady,
}

impl Seqpacket {
    fn open(number: RawFd) -> Result<Self> {
        let socket = handed_down(number)?;
        let credentials = getsockopt(&socket, sockopt::PeerCredentials).ok();
        Ok(Self {
            number,
            socket: Some(DatagramLink::with(socket, FarEnd::legacy())),
            peer: Peer {
                uid: credentials.map(|peer| peer.uid()),
                pid: credentials.and_then(|peer| u32::try_from(peer.pid()).ok()),
                ..Peer::default()
            },
            never: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
                .map_err(|errno| Error::io("make an epoll instance", &errno.into()))?,
            always: AlwaysReady::new()?,
        })
    }

    fn hang_up(&mut self) {
        let number = self.number;
        warn!("the far end of descriptor {number} is gone: there is no carrier from now on");
        self.socket = None;
    }
}

/// A copy of a descriptor that was handed down, if it is a socket of packets.
fn handed_down(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: fcntl takes any number, and with these requests it touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        let message = format!("no descriptor {number} was handed down");
        return Err(Error::usage(message).hint(HINT));
    }
    // SAFETY: as above.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 {
        let error = io::Error::last_os_error();
        return Err(Error::io(format_args!("use descriptor {number}"), &error));
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    let copy = unsafe { OwnedFd::from_raw_fd(copy) };
    match getsockopt(&copy, sockopt::SockType) {
        Ok(SockType::SeqPacket | SockType::Datagram) => Ok(copy),
        _ => {
            let message = format!("descriptor {number} is no socket of packets");
            Err(Error::usage(message).hint(HINT))
        }
    }
}

impl Link for Seqpacket {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket
            .as_ref()
            .map_or(self.never.0.as_fd(), |socket| socket.fd())
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.socket
            .as_ref()
            .map_or(self.always.as_fd(), |socket| socket.send_fd())
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        if let Some(socket) = &mut self.socket
            && socket.recv(batch).is_err()
        {
            self.hang_up();
        }
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        if let Some(socket) = &mut self.socket {
            match socket.send(batch) {
                Ok(taken) => return Ok(taken),
                Err(_) => self.hang_up(),
            }
        }
        batch.count_dropped(batch.len() as u64);
        Ok(batch.len())
    }

    fn state(&self) -> State {
        State::carrier(self.socket.is_some())
    }

    fn status(&self) -> Status {
        Status {
            peer: self.socket.as_ref().map(|_| self.peer.clone()),
            max_mtu: Some(MAX_LEGACY_MTU),
            ..Status::default()
        }
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let spec = Spec::path_grammar(request.argument(), &KEYS)?;
    spec.no_nested()?;
    let text = spec.target_str()?;
    let number = text.parse().ok().filter(|number| *number >= 0);
    let number = number.ok_or_else(|| {
        let text = text.escape_debug();
        Error::usage(format!("'{text}' is no number of a descriptor")).hint(HINT)
    })?;
    Ok(Box::new(Seqpacket::open(number)?))
}

export_plugin! {
    scheme: "seqpacket",
    description: "a socket that was handed down: seqpacket://NUMBER",
    needs: "",
    open: open,
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::poll::{PollFd, PollFlags, poll};
    use nix::sys::socket::{AddressFamily, SockFlag, socketpair};
    use nix::unistd::{read, write};
    use vdens_plugin_kit::{Batch, Host, OpenOptions};

    use super::*;

    fn open_vnl(vnl: &str) -> Result<Box<dyn Link>> {
        open(&OpenRequest {
            vnl,
            options: OpenOptions::default(),
            host: Host::without_services(),
        })
    }

    /// A link on one end of a pair, and the other end.
    fn pair(kind: SockType) -> (Box<dyn Link>, OwnedFd, RawFd) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, kind, None, SockFlag::empty()).unwrap();
        let number = ours.into_raw_fd();
        let link = open_vnl(&format!("seqpacket://{number}")).unwrap();
        (link, theirs, number)
    }

    #[test]
    fn packets_are_frames_until_the_far_end_hangs_up() {
        for kind in [SockType::SeqPacket, SockType::Datagram] {
            let (mut link, theirs, number) = pair(kind);
            assert!(link.state().carrier);
            assert_eq!(link.status().peer.unwrap().pid, Some(std::process::id()));
            for size in [60, 13, 9234, 9235] {
                write(&theirs, &vec![7; size]).unwrap();
            }
            let mut batch = Batch::new();
            link.recv(&mut batch.rx()).unwrap();
            let frames = batch.tx(0);
            let sizes: Vec<_> = frames.frames().map(|frame| frame.bytes().len()).collect();
            assert_eq!(sizes, [60, 9234]);
            assert_eq!(link.send(&mut batch.tx(0)).unwrap(), 2);
            let mut bytes = [0; 10_000];
            for size in sizes {
                assert_eq!(read(&theirs, &mut bytes).unwrap(), size);
            }
            // The number is still good for the next time.
            drop(link);
            link = open_vnl(&format!("seqpacket://{number}")).unwrap();
            drop(theirs);
            batch.take_dropped();
            if kind == SockType::SeqPacket {
                batch.clear();
                link.recv(&mut batch.rx()).unwrap();
                assert!(!link.state().carrier && batch.is_empty());
                batch.take_dropped();
                batch.rx().push(&[7; 60]);
            }
            assert_eq!(link.send(&mut batch.tx(0)).unwrap(), batch.len());
            assert_eq!(batch.take_dropped(), batch.len() as u64);
            assert!(!link.state().carrier);
            let mut fds = [PollFd::new(link.fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, 0_u8).unwrap(), 0, "it is quiet");
        }
    }

    #[test]
    fn what_is_no_socket_of_packets_is_refused() {
        let (ours, _theirs) = socketpair(
            AddressFamily::Unix,
            SockType::Stream,
            None,
            SockFlag::empty(),
        )
        .unwrap();
        let stream = ours.as_raw_fd();
        let (hidden, _other) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        for (vnl, words) in [
            ("seqpacket://".to_owned(), "'' is no number"),
            ("seqpacket://-1".to_owned(), "'-1' is no number"),
            ("seqpacket://x".to_owned(), "'x' is no number"),
            (
                "seqpacket://1000000".to_owned(),
                "no descriptor 1000000 was handed down",
            ),
            (
                format!("seqpacket://{}", hidden.as_raw_fd()),
                "was handed down",
            ),
            (format!("seqpacket://{stream}"), "no socket of packets"),
            ("seqpacket://3[x=1]".to_owned(), "takes no keys"),
        ] {
            let error = open_vnl(&vnl).err().unwrap().to_string();
            assert!(error.contains(words), "{vnl}: {error}");
        }
        // The refused one is still what it was.
        let flags = fcntl(&hidden, FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    }
}
