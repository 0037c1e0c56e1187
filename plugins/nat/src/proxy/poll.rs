//! Waiting for sockets: epoll(7), edge-triggered, with a token for each.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// How many events are read at once.
const EVENTS: usize = 256;

/// Whose socket something happened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// The plugin's socket.
    Plugin,
    /// Requests at run time.
    Control,
    /// The gateway's channel.
    Gateway,
    /// Accepts connections of an address family.
    Accept(usize),
    /// The queue of held connections.
    Queue,
    /// A connection that is being made, by its index.
    Connect(usize),
    /// A flow's socket inside, by the flow's index.
    Inside(usize),
    /// A flow's socket outside.
    Outside(usize),
    /// Datagrams from inside, of an address family.
    Datagrams(usize),
    /// A mapping's socket outside, by the mapping's index.
    Mapping(usize),
    /// Echo requests from inside, of an address family.
    Echo(usize),
    /// A ping socket outside, by its index.
    Ping(usize),
    /// A socket outside at which a forward listens, by its index.
    Forward(usize),
    /// A name server's answers, by the index of who asked.
    Names(usize),
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, index) = match self {
            Self::Plugin => (0, 0),
            Self::Gateway => (1, 0),
            Self::Accept(index) => (2, index),
            Self::Queue => (3, 0),
            Self::Connect(index) => (4, index),
            Self::Inside(index) => (5, index),
            Self::Outside(index) => (6, index),
            Self::Datagrams(index) => (7, index),
            Self::Mapping(index) => (8, index),
            Self::Echo(index) => (9, index),
            Self::Ping(index) => (10, index),
            Self::Forward(index) => (11, index),
            Self::Names(index) => (12, index),
            Self::Control => (13, 0),
        };
        kind << 56 | index as u64
    }

    fn unpack(packed: u64) -> Option<Self> {
        let index = (packed & ((1 << 56) - 1)) as usize;
        Some(match packed >> 56 {
            0 => Self::Plugin,
            1 => Self::Gateway,
            2 => Self::Accept(index),
            3 => Self::Queue,
            4 => Self::Connect(index),
            5 => Self::Inside(index),
            6 => Self::Outside(index),
            7 => Self::Datagrams(index),
            8 => Self::Mapping(index),
            9 => Self::Echo(index),
            10 => Self::Ping(index),
            11 => Self::Forward(index),
            12 => Self::Names(index),
            13 => Self::Control,
            _ => return None,
        })
    }
}

/// What happened to a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub token: Token,
    /// There is something to read, the end or an error included.
    pub readable: bool,
    /// There is room to write, or an error.
    pub writable: bool,
    /// The last that is to be read has come.
    pub is_ending: bool,
}

/// The sockets that are waited for.
pub(crate) struct Poll {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poll {
    /// Waits for none yet.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            events: vec![EpollEvent::empty(); EVENTS],
        })
    }

    /// Waits for something to read at a socket. Closing it ends that.
    ///
    /// # Errors
    /// The kernel's limit is reached (`fs.epoll.max_user_watches`).
    pub(crate) fn read(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        self.add(fd, token, EpollFlags::EPOLLIN)
    }

    /// Waits for something to read and for room to write.
    ///
    /// # Errors
    /// As for [`Poll::read`].
    pub(crate) fn both(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP;
        self.add(fd, token, flags)
    }

    /// Waits for room to write at a socket that is waited for already, and with `reads` for
    /// something to read, too.
    ///
    /// # Errors
    /// The socket is not waited for.
    pub(crate) fn change(&self, fd: impl AsFd, token: Token, reads: bool) -> io::Result<()> {
        let mut flags = EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        flags.set(EpollFlags::EPOLLIN, reads);
        let mut event = EpollEvent::new(flags, token.pack());
        Ok(self.epoll.modify(&fd, &mut event)?)
    }

    fn add(&self, fd: impl AsFd, token: Token, flags: EpollFlags) -> io::Result<()> {
        let mut event = EpollEvent::new(flags | EpollFlags::EPOLLET, token.pack());
        match self.epoll.add(&fd, event) {
            // It is waited for already, and gets another token.
            Err(Errno::EEXIST) => Ok(self.epoll.modify(&fd, &mut event)?),
            added => Ok(added?),
        }
    }

    /// Waits until something happens, or for a time.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn wait(&mut self, limit: Option<Duration>, out: &mut Vec<Event>) -> io::Result<()> {
        let timeout = limit.map_or(EpollTimeout::NONE, |limit| {
            // Not shorter than asked, or the loop turns without a reason.
            let milliseconds =
                limit.as_millis() + u128::from(limit.subsec_nanos() % 1_000_000 != 0);
            EpollTimeout::try_from(milliseconds.min(60_000) as u32).unwrap_or(EpollTimeout::MAX)
        });
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        let broken = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        let ending = EpollFlags::EPOLLRDHUP | broken;
        let readable = EpollFlags::EPOLLIN | ending;
        let writable = EpollFlags::EPOLLOUT | broken;
        out.extend(self.events[..count].iter().filter_map(|event| {
            Some(Event {
                token: Token::unpack(event.data())?,
                readable: event.events().intersects(readable),
                writable: event.events().intersects(writable),
                is_ending: event.events().intersects(ending),
            })
        }));
        Ok(())
    }
}
