//! A connection to the peer, whichever end made it.

use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{setsockopt, sockopt};
use vdens_plugin_kit::stream::Stream;
use vdens_plugin_kit::wire::qemu_stream::QemuStream;
use vdens_plugin_kit::{Error, Link, Peer, Result, Status};

/// Seconds without a sign of life after which TCP asks for one.
const IDLE: u32 = 10;
/// Seconds between two questions.
const INTERVAL: u32 = 5;
/// How many questions go unanswered before the connection counts as broken.
const QUESTIONS: u32 = 3;
/// Milliseconds that sent bytes may stay unacknowledged.
const UNACKNOWLEDGED: u32 = 1000 * (IDLE + INTERVAL * QUESTIONS);

/// A connection to the peer.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: Stream<QemuStream>,
    pub(crate) peer: Peer,
}

impl Connection {
    /// A connection through a UNIX socket.
    pub(crate) fn unix(socket: UnixStream) -> Result<Self> {
        let credentials = nix::sys::socket::getsockopt(&socket, sockopt::PeerCredentials).ok();
        let peer = Peer {
            uid: credentials.map(|peer| peer.uid()),
            pid: credentials.and_then(|peer| u32::try_from(peer.pid()).ok()),
            ..Peer::default()
        };
        Self::new(socket.into(), peer)
    }

    /// A connection through TCP. If the peer's machine goes away, it ends after a while.
    pub(crate) fn tcp(socket: TcpStream) -> Result<Self> {
        let peer = Peer {
            description: socket
                .peer_addr()
                .map_or_else(|_| String::new(), |address| address.to_string()),
            ..Peer::default()
        };
        // The kernel knows these options. Without one the link is slower, or ends later.
        let _ = socket.set_nodelay(true);
        let _ = setsockopt(&socket, sockopt::KeepAlive, &true);
        let _ = setsockopt(&socket, sockopt::TcpKeepIdle, &IDLE);
        let _ = setsockopt(&socket, sockopt::TcpKeepInterval, &INTERVAL);
        let _ = setsockopt(&socket, sockopt::TcpKeepCount, &QUESTIONS);
        let _ = setsockopt(&socket, sockopt::TcpUserTimeout, &UNACKNOWLEDGED);
        Self::new(socket.into(), peer)
    }

    fn new(socket: OwnedFd, peer: Peer) -> Result<Self> {
        let output = socket
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Error::io("copy a descriptor", &error))?;
        Ok(Self {
            stream: Stream::new(socket, output)?,
            peer,
        })
    }

    pub(crate) fn status(&self) -> Status {
        Status {
            peer: Some(self.peer.clone()),
            ..self.stream.status()
        }
    }
}
