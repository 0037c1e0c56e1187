//! The channel between the proxy and the gateway: a SEQPACKET socket with JSON in its packets and
//! descriptors beside them.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    connect as connect_to, recvmsg, sendmsg, socket,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::forward::Protocol;
use crate::gateway::{Hold, Inside, Queue};

/// What the proxy asks of the gateway.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// [`STOCK`] sockets of a kind.
    Sockets(Kind),
    /// Whether it still runs.
    Ping,
}

/// The longest packet, in bytes.
const LONGEST: usize = 4096;
/// The most descriptors in a packet.
const DESCRIPTORS: usize = STOCK;

/// The most leases that are told.
pub(crate) const LEASES: usize = 64;

/// How many sockets of a kind the gateway makes at once.
pub(crate) const STOCK: usize = 16;

/// What the gateway first sends: why it cannot work, or its sockets. The descriptors beside it are
/// TCP, UDP and ICMP of each family, then the queue if there is one.
type First = Result<Sockets, Failure>;

/// Why the gateway cannot work.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Failure {
    text: String,
    /// Whether the kernel lacks something.
    lacks: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Sockets {
    families: usize,
    hold: Hold,
}

/// A kind of socket that the gateway makes and the proxy binds: transparent ones.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub protocol: Protocol,
    pub ipv6: bool,
}

/// The gateway's answer to a request.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Reply {
    /// The sockets are beside it.
    Sockets(Kind),
    /// There are none, and why.
    Failed(Kind, String),
    Alive,
    /// Who has which address, for a person.
    Leases(Vec<String>),
}

/// What the gateway has answered.
pub(crate) enum Answer {
    /// The sockets of a kind, or why there are none.
    Sockets(Kind, Result<Vec<OwnedFd>, String>),
    /// It runs.
    Alive,
    /// Who has which address, for a person.
    Leases(Vec<String>),
}

/// The gateway's sockets, as the proxy gets them.
pub(crate) struct Received {
    /// How connections wait.
    pub hold: Hold,
    /// The sockets of each address family.
    pub inside: Vec<Inside>,
    /// The queue of held connections, if there is one.
    pub queue: Option<Queue>,
}

/// One end of the channel.
pub(crate) struct Channel(OwnedFd);

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Connects to the proxy.
///
/// # Errors
/// It is not there.
pub(crate) fn connect(path: &Path) -> io::Result<Channel> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    connect_to(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(Channel(fd))
}

/// Hands the gateway's sockets over.
///
/// # Errors
/// The proxy is gone.
pub(crate) fn send_sockets(
    channel: &Channel,
    hold: Hold,
    inside: &[Inside],
    queue: Option<Queue>,
) -> io::Result<()> {
    let sockets = Sockets {
        families: inside.len(),
        hold,
    };
    let queue = queue.map(OwnedFd::from);
    let families = inside
        .iter()
        .flat_map(|s| [s.tcp.as_fd(), s.udp.as_fd(), s.icmp.as_fd()]);
    let fds: Vec<_> = families.chain(queue.as_ref().map(AsFd::as_fd)).collect();
    channel.send(&First::Ok(sockets), &fds)
}

/// Says why the gateway cannot work.
///
/// # Errors
/// The proxy is gone.
pub(crate) fn send_failure(channel: &Channel, error: &io::Error) -> io::Result<()> {
    let failure = Failure {
        text: error.to_string(),
        lacks: error.kind() == io::ErrorKind::Unsupported,
    };
    channel.send(&First::Err(failure), &[])
}

impl Channel {
    /// What the gateway first sends; `None` if it ended.
    ///
    /// # Errors
    /// The packet is malformed.
    pub(crate) fn receive_sockets(&self) -> io::Result<Option<Received>> {
        let Some((first, fds)) = self.receive::<First>(MsgFlags::empty())? else {
            return Ok(None);
        };
        let sockets = first.map_err(|failure| match failure.lacks {
            true => io::Error::new(io::ErrorKind::Unsupported, failure.text),
            false => io::Error::other(failure.text),
        })?;
        let mut fds = fds.into_iter();
        let mut inside = Vec::new();
        for _ in 0..sockets.families {
            let (Some(tcp), Some(udp), Some(icmp)) = (fds.next(), fds.next(), fds.next()) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            inside.push(Inside { tcp, udp, icmp });
        }
        Ok(Some(Received {
            hold: sockets.hold,
            inside,
            queue: fds.next().map(Queue::from),
        }))
    }

    /// Asks the gateway for something, without waiting.
    ///
    /// # Errors
    /// The gateway is gone, or takes no more (`WouldBlock`).
    pub(crate) fn request(&self, request: Request) -> io::Result<()> {
        self.send(&request, &[])
    }

    /// The next request; `None` if the proxy is gone.
    ///
    /// # Errors
    /// The packet is malformed.
    pub(crate) fn receive_request(&self) -> io::Result<Option<Request>> {
        Ok(self.receive(MsgFlags::empty())?.map(|(request, _)| request))
    }

    /// Answers a request for sockets.
    ///
    /// # Errors
    /// The proxy is gone.
    pub(crate) fn send_stock(&self, kind: Kind, made: io::Result<Vec<OwnedFd>>) -> io::Result<()> {
        match made {
            Ok(made) => {
                let fds: Vec<_> = made.iter().map(AsFd::as_fd).collect();
                self.send(&Reply::Sockets(kind), &fds)
            }
            Err(error) => self.send(&Reply::Failed(kind, error.to_string()), &[]),
        }
    }

    /// Answers a ping.
    ///
    /// # Errors
    /// The proxy is gone.
    pub(crate) fn send_alive(&self) -> io::Result<()> {
        self.send(&Reply::Alive, &[])
    }

    /// Tells the leases, of which there are at most [`LEASES`].
    ///
    /// # Errors
    /// The proxy is gone.
    pub(crate) fn send_leases(&self, leases: Vec<String>) -> io::Result<()> {
        self.send(&Reply::Leases(leases), &[])
    }

    /// The next thing that the gateway sent, without waiting; `None` if it is gone.
    ///
    /// # Errors
    /// The packet is malformed, or none is there (`WouldBlock`).
    pub(crate) fn receive_answer(&self) -> io::Result<Option<Answer>> {
        let reply = self.receive(MsgFlags::MSG_DONTWAIT)?;
        Ok(reply.map(|(reply, fds)| match reply {
            Reply::Sockets(kind) => Answer::Sockets(kind, Ok(fds)),
            Reply::Failed(kind, why) => Answer::Sockets(kind, Err(why)),
            Reply::Alive => Answer::Alive,
            Reply::Leases(leases) => Answer::Leases(leases),
        }))
    }

    fn send(&self, packet: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(packet)?;
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights };
        let parts = [IoSlice::new(&bytes)];
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &parts,
            control,
            MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            None,
        )?;
        Ok(())
    }

    fn receive<T: DeserializeOwned>(
        &self,
        flags: MsgFlags,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = [0; LONGEST];
        let mut control = cmsg_space!([i32; DESCRIPTORS]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let fd = self.0.as_raw_fd();
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        let received = loop {
            match recvmsg::<()>(fd, &mut parts, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                other => break other?,
            }
        };
        let mut fds = Vec::new();
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: the kernel has just made these descriptors for this process; nobody else
                // knows them.
                fds.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        let length = received.bytes;
        if length == 0 {
            return Ok(None);
        }
        Ok(Some((serde_json::from_slice(&bytes[..length])?, fds)))
    }
}

/// See [`crate::fuzz::messages`].
pub(crate) fn fuzz(input: &[u8]) -> Result<(), String> {
    crate::fuzz::again::<Request>(input)?;
    crate::fuzz::again::<Reply>(input)?;
    crate::fuzz::again::<First>(input)
}
