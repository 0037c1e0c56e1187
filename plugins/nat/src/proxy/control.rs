//! Requests at run time: forwards are added, removed and listed.
//!
//! A datagram socket in the gateway's directory, which is closed to other users. A request is JSON,
//! and so is the answer, which goes to the address that the request came from.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, recvfrom, sendto, socket,
};
use serde::{Deserialize, Serialize};

use crate::forward::Protocol;

/// The longest request, in bytes.
const LONGEST: usize = 4096;

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Begin to forward what the text says.
    Add(Protocol, String),
    /// Stop it.
    Remove(Protocol, String),
    /// Tell what is forwarded, and whose gateway this is.
    List,
}

/// The answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Why it cannot be done.
    pub error: Option<String>,
    /// The forwards after it.
    pub forwards: Vec<String>,
    /// The processes that the gateway belongs to: the session, or the plug.
    pub processes: Vec<u32>,
}

/// The socket.
pub(crate) struct ControlSocket(OwnedFd);

impl From<OwnedFd> for ControlSocket {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ControlSocket {
    /// Makes the socket.
    ///
    /// # Errors
    /// The directory is gone.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self(fd))
    }

    /// Answers the next request; `false` if there is none.
    pub(crate) fn serve(&self, answer: impl FnOnce(Request) -> Answer) -> bool {
        use std::os::fd::AsRawFd;
        let mut buffer = [0; LONGEST];
        let received = recvfrom::<UnixAddr>(self.0.as_raw_fd(), &mut buffer);
        let (length, from) = match received {
            Ok(received) => received,
            Err(Errno::EINTR) => return true,
            Err(_) => return false,
        };
        let answer = match serde_json::from_slice(&buffer[..length]) {
            Ok(request) => answer(request),
            Err(error) => Answer {
                error: Some(error.to_string()),
                ..Answer::default()
            },
        };
        if let (Some(from), Ok(bytes)) = (from, serde_json::to_vec(&answer)) {
            // Who does not wait for the answer does not get it.
            let _ = sendto(self.0.as_raw_fd(), &bytes, &from, MsgFlags::MSG_DONTWAIT);
        }
        true
    }
}

/// See [`crate::fuzz::messages`].
pub(crate) fn fuzz(input: &[u8]) -> Result<(), String> {
    crate::fuzz::again::<Request>(input)?;
    crate::fuzz::again::<Answer>(input)
}
