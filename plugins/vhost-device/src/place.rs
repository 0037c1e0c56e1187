//! Where front end and back end meet: the path of a socket, and who listens there.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, accept4, connect, getsockopt, socket, sockopt,
};
use vdens_plugin_kit::bound_socket::{self, Access, BoundSocket, Occupant};
use vdens_plugin_kit::user::{AllowedUser, FarUser};
use vdens_plugin_kit::vnl::{self, Keys, Spec};
use vdens_plugin_kit::{Error, ErrorKind, OpenRequest, Result};

/// The keys of a VNL.
const KEYS: Keys = Keys::new(&["client", "queues", "mode", "group", "user"]);

/// The most pairs of queues.
const MAX_PAIRS: usize = 4;

/// How many front ends may wait to be accepted: all but one are refused anyway.
const BACKLOG: i32 = 4;

/// What a VNL says.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    /// The front end listens, and this side connects.
    pub(crate) is_client: bool,
    /// How many pairs of queues the guest may have.
    pub(crate) pairs: usize,
    access: Access,
    far_user: FarUser,
}

impl Place {
    pub(crate) fn parse(request: &OpenRequest<'_>) -> Result<Self> {
        let spec = Spec::path_grammar(request.argument(), &KEYS)?;
        spec.no_nested()?;
        let path = spec.absolute_path()?;
        vnl::check_socket_path(&path)?;
        let pairs = spec.number("queues")?.unwrap_or(1);
        if !(1..=MAX_PAIRS).contains(&pairs) {
            return Err(Error::usage(format!("queues={pairs} is out of range"))
                .hint(format!("a machine has 1 to {MAX_PAIRS} pairs of queues")));
        }
        let mode = spec.mode("mode")?.or(request.options.mode);
        let group = spec.get("group").or(request.options.group.as_deref());
        let allowed = AllowedUser::of_key(spec.get("user"))?;
        Ok(Self {
            path,
            is_client: spec.has("client"),
            pairs,
            access: Access {
                mode: mode.unwrap_or(0o600) & 0o777,
                group: group.map(vnl::group_id).transpose()?,
            },
            far_user: FarUser::new(allowed, request.vnl, request.host),
        })
    }

    /// Connects to the front end that listens at the path.
    pub(crate) fn connect(&self) -> Result<OwnedFd> {
        let path = self.path.display();
        let socket = new_socket()?;
        let address = UnixAddr::new(&self.path).map_err(|errno| self.cannot_connect(errno))?;
        connect(socket.as_raw_fd(), &address).map_err(|errno| self.cannot_connect(errno))?;
        let peer = getsockopt(&socket, sockopt::PeerCredentials)
            .map_err(|errno| Error::io("ask whose the machine is", &errno.into()))?;
        let what = format_args!("the machine at {path}");
        self.far_user.check(what, peer.uid())?;
        self.far_user.remember(peer.uid());
        Ok(socket)
    }

    fn cannot_connect(&self, errno: Errno) -> Error {
        let error = Error::path("connect to", &self.path, &errno.into());
        match errno {
            Errno::ENOENT | Errno::ECONNREFUSED => error.hint(
                "no machine listens there: start it with -chardev socket,server=on, or leave out the key client",
            ),
            Errno::EAGAIN => error.hint("the machine is connected to another back end"),
            Errno::EPROTOTYPE => error.hint("another program's socket is there: use another path"),
            _ => error,
        }
    }

    /// Listens at the path. A socket that no process has open any more is replaced.
    pub(crate) fn listen(&self) -> Result<(BoundSocket, OwnedFd)> {
        let path = self.path.display();
        match bound_socket::probe(&self.path) {
            Ok(Occupant::Nothing | Occupant::Stale) => {}
            Ok(Occupant::Datagram | Occupant::Connected) => {
                let message = format!("cannot listen at {path}: another process does");
                return Err(Error::new(ErrorKind::Busy, message)
                    .hint("name another path, or [client] if a machine listens there"));
            }
            Err(error) => return Err(bound_socket::cannot_use("listen at", &self.path, &error)),
        }
        let socket = new_socket()?;
        let bound = BoundSocket::listen(&socket, &self.path, self.access, BACKLOG)?;
        Ok((bound, socket))
    }
}

/// Accepts a front end; `None` if none is waiting any more.
pub(crate) fn accept(listener: &OwnedFd, path: &Path) -> Result<Option<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    match accept4(listener.as_raw_fd(), flags) {
        // SAFETY: accept4 returned this descriptor just now, and nothing else owns it.
        Ok(socket) => Ok(Some(unsafe { OwnedFd::from_raw_fd(socket) })),
        Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
        Err(errno) => Err(Error::path("accept a machine at", path, &errno.into())),
    }
}

fn new_socket() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| Error::io("make a socket", &errno.into()))
}
