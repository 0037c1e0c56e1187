//! The socket to a front end: requests come in pieces, with descriptors beside them.
//!
//! A request is read up to its end and no further, because the kernel hands descriptors over with
//! the bytes that they were sent with. Nothing here blocks: a front end that sends half a request
//! has the other half waited for, and one that does not read its answers is disconnected.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, UnixCredentials, getsockopt, recvmsg, send, sockopt,
};

use crate::protocol::{ANSWER, HEADER, Header, MAX_BODY, Request};

/// The most descriptors of a message (SCM_MAX_FD in the kernel). With room for all of them, the
/// kernel leaves none behind.
const MAX_FDS: usize = 253;

/// Why a connection is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The front end has closed it.
    HungUp,
    /// The front end does not keep to the protocol.
    Failed(String),
}

impl From<String> for End {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// A request, and what came with it.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) request: Request,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A connection to a front end.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    /// What there is of the next request.
    bytes: [u8; HEADER + MAX_BODY],
    length: usize,
    fds: Vec<OwnedFd>,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            bytes: [0; HEADER + MAX_BODY],
            length: 0,
            fds: Vec::new(),
        }
    }

    /// Who is at the other end.
    pub(crate) fn peer(&self) -> Option<UnixCredentials> {
        getsockopt(&self.socket, sockopt::PeerCredentials).ok()
    }

    /// The next request, if all of it is there.
    pub(crate) fn next(&mut self) -> Result<Option<Message>, End> {
        loop {
            let body = match self.bytes[..self.length].get(..HEADER) {
                Some(header) => Some(Header::parse(header)?),
                None => None,
            };
            let whole = HEADER + body.map_or(0, |header| header.body);
            if let Some(header) = body
                && self.length == whole
            {
                let request = Request::parse(header.code, &self.bytes[HEADER..whole])?;
                self.length = 0;
                let fds = std::mem::take(&mut self.fds);
                return Ok(Some(Message {
                    header,
                    request,
                    fds,
                }));
            }
            match self.receive(whole) {
                Ok(0) => return Err(End::HungUp),
                Ok(received) => self.length += received,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Err(End::HungUp),
                Err(errno) => return Err(End::Failed(format!("cannot receive: {errno}"))),
            }
        }
    }

    /// Receives bytes up to `whole`.
    fn receive(&mut self, whole: usize) -> nix::Result<usize> {
        let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut parts = [IoSliceMut::new(&mut self.bytes[self.length..whole])];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let fd = self.socket.as_raw_fd();
        let message = recvmsg::<()>(fd, &mut parts, Some(&mut control), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel has just made these descriptors for this process; nothing else
                // owns them.
                let fds = fds
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                self.fds.extend(fds);
            }
        }
        match self.fds.len() > MAX_FDS {
            true => Err(Errno::ETOOMANYREFS),
            false => Ok(message.bytes),
        }
    }

    /// Sends an answer.
    pub(crate) fn answer(&self, answer: [u8; ANSWER]) -> Result<(), End> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(self.socket.as_raw_fd(), &answer, flags) {
            Ok(ANSWER) => Ok(()),
            Err(Errno::EPIPE | Errno::ECONNRESET) => Err(End::HungUp),
            Ok(_) | Err(_) => Err(End::Failed("it does not read the answers".into())),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
