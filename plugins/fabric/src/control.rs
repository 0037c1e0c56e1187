//! Clients that have connected to the control socket and have not asked for a port yet.
//!
//! A request usually comes at once and in one piece, but a stream promises neither. So its bytes
//! are collected until they are a request, cannot become one, or have taken too long. Only so many
//! clients may be incomplete at a time; then the oldest makes room for the next.
//!
//! A client names a socket that the switch is to connect to. It could name one that it may not use
//! itself, since the switch runs as another user. So the socket must belong to the client's user.
//! It is held open while that is checked, so that no other can take its place.

use std::ffi::CString;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, UnixCredentials, connect, getsockopt, socket,
    sockopt,
};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, Uid, User, getgrouplist};
use vdens_plugin_kit::wire::control::{ControlError, MAX_REQUEST_LEN, Request, RequestKind};

/// How long a client may take for its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How many clients may have sent no complete request yet.
const MAX_APPLICANTS: usize = 64;

/// Why a client gets no port.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it took too long to ask for a port")]
    TooSlow,
    #[error("others came after it and it had asked for nothing yet")]
    Overtaken,
    #[error("it left before it asked for a port")]
    Left,
    #[error(transparent)]
    Malformed(#[from] ControlError),
    #[error("there is no management port")]
    Management,
    #[error("port {0} is in use")]
    Taken(u32),
    #[error("the switch has no port {0}")]
    TooHigh(u32),
    #[error("port {0} is in a VLAN already, so no other can be chosen for it")]
    InVlan(u32),
    #[error("port {0} is for others")]
    NotAdmitted(u32),
    #[error("there is no free port")]
    NoneFree,
    #[error("it has {0} ports, as many as another user may have")]
    TooMany(usize),
    #[error("its socket '{0}' {1}")]
    Socket(String, &'static str),
    #[error("cannot {0}: {1}")]
    System(&'static str, Errno),
}

impl Refusal {
    /// Whether it is worth a warning. A client that only came and went is not.
    pub(crate) fn is_notable(&self) -> bool {
        !matches!(self, Self::Left)
    }
}

/// The process at the other end of a control stream, as the kernel knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(UnixCredentials);

impl Peer {
    /// The process at the other end of a stream.
    pub(crate) fn of(stream: &UnixStream) -> nix::Result<Self> {
        getsockopt(stream, sockopt::PeerCredentials).map(Self)
    }

    /// Its user.
    pub(crate) fn uid(self) -> u32 {
        self.0.uid()
    }

    /// Whether it is not limited: it could end the switch as well.
    pub(crate) fn is_trusted(self) -> bool {
        self.is_same_user() || self.uid() == 0
    }

    /// Whether its user, or it itself, is a member of a group.
    pub(crate) fn is_in(self, group: u32) -> bool {
        self.0.gid() == group
            || User::from_uid(Uid::from_raw(self.uid()))
                .ok()
                .flatten()
                .and_then(|user| {
                    let name = CString::new(user.name).ok()?;
                    getgrouplist(&name, user.gid).ok()
                })
                .is_some_and(|groups| groups.contains(&Gid::from_raw(group)))
    }

    /// Whether it runs as the switch's user.
    pub(crate) fn is_same_user(self) -> bool {
        self.0.uid() == Uid::effective().as_raw()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of user {}", self.0.pid(), self.0.uid())
    }
}

#[derive(Debug)]
pub(crate) struct Applicant {
    pub(crate) stream: UnixStream,
    pub(crate) peer: Peer,
    /// The VLAN that it has chosen, by the socket that it came through.
    pub(crate) vlan: Option<u16>,
    bytes: [u8; MAX_REQUEST_LEN + 1],
    len: usize,
    deadline: Instant,
}

impl Applicant {
    /// A client that chooses a VLAN, or none with 0.
    pub(crate) fn new(stream: UnixStream, vlan: u16, now: Instant) -> nix::Result<Self> {
        let peer = Peer::of(&stream)?;
        Ok(Self {
            stream,
            peer,
            vlan: Some(vlan).filter(|vlan| *vlan != 0),
            bytes: [0; MAX_REQUEST_LEN + 1],
            len: 0,
            deadline: now + REQUEST_LIMIT,
        })
    }

    /// Reads more of the request. `None` if it is not complete yet.
    pub(crate) fn read(&mut self) -> Result<Option<Request>, Refusal> {
        match self.stream.read(&mut self.bytes[self.len..]) {
            Ok(0) => return Err(Refusal::Left),
            Ok(n) => self.len += n,
            Err(e) => {
                return match e.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                    _ => Err(Refusal::Left),
                };
            }
        }
        match Request::decode(&self.bytes[..self.len]) {
            Err(ControlError::TooShort { .. }) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(request) if request.kind == RequestKind::Management => Err(Refusal::Management),
            Ok(request) => Ok(Some(request)),
        }
    }
}

/// The clients that have not asked yet, by the number of their slot.
#[derive(Debug, Default)]
pub(crate) struct Applicants(Vec<Option<Box<Applicant>>>);

impl Applicants {
    /// Adds a client. Returns its slot, and the client that had to make room for it.
    pub(crate) fn insert(&mut self, applicant: Applicant) -> (u32, Option<Box<Applicant>>) {
        let applicant = Some(Box::new(applicant));
        if let Some(free) = self.0.iter().position(Option::is_none) {
            self.0[free] = applicant;
            return (free as u32, None);
        }
        if self.0.len() < MAX_APPLICANTS {
            self.0.push(applicant);
            return (self.0.len() as u32 - 1, None);
        }
        let deadline = |slot: &Option<Box<Applicant>>| slot.as_ref().map(|a| a.deadline);
        let oldest = (0..self.0.len()).min_by_key(|slot| deadline(&self.0[*slot]));
        let oldest = oldest.unwrap_or_default();
        let overtaken = std::mem::replace(&mut self.0[oldest], applicant);
        (oldest as u32, overtaken)
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut Applicant> {
        self.0.get_mut(slot as usize)?.as_deref_mut()
    }

    pub(crate) fn take(&mut self, slot: u32) -> Option<Box<Applicant>> {
        self.0.get_mut(slot as usize)?.take()
    }

    /// Removes the clients that have taken too long.
    pub(crate) fn take_late(&mut self, now: Instant) -> impl Iterator<Item = Box<Applicant>> {
        self.0
            .iter_mut()
            .filter_map(move |slot| slot.take_if(|applicant| applicant.deadline <= now))
    }

    /// When the first client will have taken too long.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.0.iter().flatten().map(|a| a.deadline).min()
    }
}

/// A socket that is connected to the one at `path`, which must be `peer`'s.
pub(crate) fn reach(path: &Path, peer: Peer) -> Result<UnixDatagram, Refusal> {
    let refuse = |why| Refusal::Socket(path.display().to_string(), why);
    if !path.is_absolute() {
        return Err(refuse("is not named by an absolute path"));
    }
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let held: OwnedFd = match open(path, flags, Mode::empty()) {
        Ok(held) => held,
        Err(errno @ (Errno::EMFILE | Errno::ENFILE)) => {
            return Err(Refusal::System("open the client's socket", errno));
        }
        Err(_) => return Err(refuse("cannot be found")),
    };
    let found = fstat(&held).map_err(|errno| Refusal::System("look at a socket", errno))?;
    if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
        return Err(refuse("is not a socket"));
    }
    let uid = peer.0.uid();
    if uid != 0 && uid != found.st_uid {
        return Err(refuse("belongs to another user"));
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)
        .map_err(|errno| Refusal::System("make a socket", errno))?;
    let held_path = format!("/proc/self/fd/{}", held.as_raw_fd());
    UnixAddr::new(held_path.as_str())
        .and_then(|address| connect(socket.as_raw_fd(), &address))
        .map_err(|errno| match errno {
            Errno::EACCES | Errno::EPERM => refuse("is closed to us"),
            Errno::EPROTOTYPE => refuse("is not a datagram socket"),
            Errno::ECONNREFUSED => refuse("is not open"),
            errno => Refusal::System("connect to the client's socket", errno),
        })?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn applicant(now: Instant) -> (Applicant, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (Applicant::new(ours, 0, now).unwrap(), theirs)
    }

    fn peer(uid: u32) -> Peer {
        let raw = libc::ucred {
            pid: 1,
            uid,
            gid: uid,
        };
        Peer(UnixCredentials::from(raw))
    }

    fn request() -> Vec<u8> {
        let request = Request {
            kind: RequestKind::New,
            port: 3,
            socket: "/tmp/x".into(),
            description: b"me".to_vec(),
        };
        request.encode().unwrap()
    }

    #[test]
    fn a_request_in_pieces() {
        let (mut applicant, mut client) = applicant(Instant::now());
        let bytes = request();
        assert!(applicant.read().unwrap().is_none());
        for piece in bytes[..120].chunks(50) {
            client.write_all(piece).unwrap();
            assert!(applicant.read().unwrap().is_none());
        }
        client.write_all(&bytes[120..]).unwrap();
        let request = applicant.read().unwrap().unwrap();
        assert_eq!((request.port, &request.description[..]), (3, &b"me"[..]));
    }

    #[test]
    fn nonsense_is_recognised_at_once() {
        let (mut early, mut client) = applicant(Instant::now());
        client.write_all(b"GET /").unwrap();
        let refusal = early.read().unwrap_err();
        assert!(matches!(
            refusal,
            Refusal::Malformed(ControlError::WrongMagic(_))
        ));
        let (mut long, mut client) = applicant(Instant::now());
        let mut bytes = request();
        bytes.resize(1000, b'x');
        client.write_all(&bytes).unwrap();
        assert!(matches!(long.read(), Err(Refusal::Malformed(_))));
        let (mut gone, client) = applicant(Instant::now());
        drop(client);
        assert!(matches!(gone.read(), Err(Refusal::Left)));
    }

    #[test]
    fn dawdlers_are_bounded_in_time_and_number() {
        let start = Instant::now();
        let mut applicants = Applicants::default();
        assert_eq!(applicants.next_deadline(), None);
        for n in 0..MAX_APPLICANTS as u64 {
            let (applicant, _) = applicant(start + Duration::from_millis(n));
            assert!(applicants.insert(applicant).1.is_none());
        }
        let (newest, _) = applicant(start + Duration::from_secs(1));
        let (slot, overtaken) = applicants.insert(newest);
        assert_eq!(slot, 0, "the oldest goes");
        assert!(overtaken.is_some());
        assert_eq!(
            applicants.next_deadline(),
            Some(start + REQUEST_LIMIT + Duration::from_millis(1))
        );
        let later = start + REQUEST_LIMIT + Duration::from_millis(100);
        assert_eq!(applicants.take_late(later).count(), MAX_APPLICANTS - 1);
        assert!(applicants.get_mut(0).is_some());
    }

    #[test]
    fn only_a_socket_of_the_client_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let me = nix::unistd::Uid::effective().as_raw();
        let good = UnixDatagram::bind(path("good")).unwrap();
        let reached = reach(&path("good"), peer(me)).unwrap();
        reached.send(b"hello").unwrap();
        assert_eq!(good.recv(&mut [0; 10]).unwrap(), 5);
        reach(&path("good"), peer(0)).unwrap();

        let why = |name: &str, uid| match reach(&path(name), peer(uid)).unwrap_err() {
            Refusal::Socket(_, why) => why,
            other => panic!("{name}: {other}"),
        };
        assert_eq!(why("good", me + 12345), "belongs to another user");
        assert_eq!(why("missing", me), "cannot be found");
        std::fs::write(path("file"), "").unwrap();
        assert_eq!(why("file", me), "is not a socket");
        symlink(path("good"), path("link")).unwrap();
        assert_eq!(why("link", me), "is not a socket");
        let _listener = UnixListener::bind(path("stream")).unwrap();
        assert_eq!(why("stream", me), "is not a datagram socket");
        drop(UnixDatagram::bind(path("dead")).unwrap());
        assert_eq!(why("dead", me), "is not open");
        assert!(matches!(
            reach(Path::new("good"), peer(me)),
            Err(Refusal::Socket(_, "is not named by an absolute path"))
        ));
    }
}
