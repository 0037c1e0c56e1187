//! `packets://PATH`: a cable of packets, as an author would write it with the kit's help.
//!
//! The first end listens at PATH, the second connects. That is all there is here: a
//! [`DatagramLink`] over the connection gets the panel and super-frames.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, accept4, connect, getsockopt, socket, sockopt,
};
use vdens_plugin_kit::bound_socket::{Access, BoundSocket};
use vdens_plugin_kit::vnl::{Keys, Spec};
use vdens_plugin_kit::wire::hello::Cable;
use vdens_plugin_kit::{
    Capabilities, DatagramLink, Error, Host, Link, OpenRequest, Result, RxBatch, State, TxBatch,
    export_plugin,
};

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);
const OWN: Access = Access {
    mode: 0o700,
    group: None,
};

/// A link over a connection to the far end.
fn link(connection: OwnedFd, path: &Path, host: Host) -> Result<DatagramLink<OwnedFd>> {
    let peer = getsockopt(&connection, sockopt::PeerCredentials);
    let place = fs::metadata(path).map_err(|error| Error::path("look at", path, &error))?;
    let cable = Cable {
        device: place.dev(),
        inode: place.ino(),
    };
    let user = peer.ok().map(|peer| peer.uid());
    Ok(DatagramLink::new(connection, cable, user, host))
}

/// The first end.
struct Listener {
    socket: OwnedFd,
    path: BoundSocket,
    host: Host,
    other_side: State,
    link: Option<DatagramLink<OwnedFd>>,
}

impl Link for Listener {
    fn fd(&self) -> BorrowedFd<'_> {
        let link = self.link.as_ref();
        link.map_or(self.socket.as_fd(), DatagramLink::fd)
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        if let Some(link) = &mut self.link {
            if link.recv(batch).is_err() {
                self.link = None;
            }
        } else if let Ok(connection) = accept4(self.socket.as_raw_fd(), FLAGS) {
            // SAFETY: accept4 returned this descriptor just now, and nothing else owns it.
            let connection = unsafe { OwnedFd::from_raw_fd(connection) };
            let mut link = link(connection, self.path.path(), self.host)?;
            link.other_side(self.other_side);
            self.link = Some(link);
        }
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        if let Some(Ok(sent)) = self.link.as_mut().map(|link| link.send(batch)) {
            return Ok(sent);
        }
        batch.count_dropped(batch.len() as u64);
        Ok(batch.len())
    }

    fn other_side(&mut self, state: State) {
        self.other_side = state;
        if let Some(link) = &mut self.link {
            link.other_side(state);
        }
    }

    fn state(&self) -> State {
        self.link.as_ref().map_or(State::DOWN, DatagramLink::state)
    }

    fn wants_panel(&self) -> bool {
        true
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let spec = Spec::path_grammar(request.argument(), &Keys::new(&[]))?;
    spec.no_nested()?;
    let path: PathBuf = spec.absolute_path()?;
    let cannot = |errno: Errno| Error::path("use", &path, &errno.into());
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None).map_err(cannot)?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(&path).map_err(cannot)?) {
        Ok(()) => Ok(Box::new(link(socket, &path, request.host)?)),
        Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(Box::new(Listener {
            path: BoundSocket::listen(&socket, &path, OWN, 1)?,
            socket,
            host: request.host,
            other_side: State::DOWN,
            link: None,
        })),
        Err(errno) => Err(cannot(errno)),
    }
}

export_plugin! {
    scheme: "packets",
    description: "a cable of packets between two ends that meet at a socket's path",
    capabilities: Capabilities::SUPER_FRAMES.and(Capabilities::PANEL),
    open: open,
}
