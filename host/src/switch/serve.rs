//! The loop of `vde_switch`: signals, children, and the sessions of the console.
//!
//! Nothing here waits for a client. The switch is asked within the loop: it answers between two
//! batches of frames.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, accept4, socket};
use vdens_plugin_kit::bound_socket::{Access, BoundSocket, Occupant, cannot_use, probe};
use vdens_plugin_kit::vnl::group_id;

use super::client::Socket;
use super::console::Console;
use super::parts::Parts;
use super::session::{Client, Next, Session};
use crate::error::{Error, ErrorKind, Result, system};
use crate::output::complain;
use crate::sys::process::wait;
use crate::sys::signals::Signals;

/// How many clients the management socket may have at a time.
const MAX_SESSIONS: usize = 32;

/// How many connections can wait to be accepted.
const BACKLOG: i32 = 16;

/// How often the switch is asked for events while a session wants to see some.
const EVENTS_EVERY: Duration = Duration::from_millis(200);

/// How long the loop waits when there are no descriptors for another client.
const NO_DESCRIPTORS: Duration = Duration::from_millis(100);

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// The management socket.
pub(super) struct Management {
    socket: OwnedFd,
    path: BoundSocket,
}

impl Management {
    /// Listens at `path`.
    ///
    /// # Errors
    /// There is something else, or the path cannot be made so.
    pub(super) fn new(path: &Path, mode: u32, group: Option<&str>) -> Result<Self> {
        let group = group.map(group_id).transpose()?;
        match probe(path).map_err(|error| cannot_use("listen at", path, &error))? {
            Occupant::Nothing | Occupant::Stale => {}
            Occupant::Datagram | Occupant::Connected => {
                let message = format!("the management socket {} is in use", path.display());
                return Err(Error::new(ErrorKind::Busy, message).hint("give another path with -M"));
            }
        }
        let socket = socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)
            .map_err(system("make a socket"))?;
        let path = BoundSocket::listen(&socket, path, Access { mode, group }, BACKLOG)?;
        Ok(Self { socket, path })
    }

    pub(super) fn path(&self) -> &Path {
        self.path.path()
    }

    /// The next client, if one waits.
    fn accept(&self) -> Option<OwnedFd> {
        match accept4(self.socket.as_raw_fd(), FLAGS) {
            // SAFETY: accept4 returned this descriptor just now, and nothing else owns it.
            Ok(fd) => Some(unsafe { OwnedFd::from_raw_fd(fd) }),
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                sleep(NO_DESCRIPTORS);
                None
            }
            Err(_) => None,
        }
    }
}

/// The console's sessions, and what they talk to.
pub(super) struct Server {
    console: Console,
    switch: Socket,
    management: Option<Management>,
    sessions: Vec<Session>,
    /// When the switch is asked for events next.
    next_events: Instant,
}

/// Why the loop ends.
enum End {
    Signal(Signal),
    Shutdown,
    StandardInput,
}

impl Server {
    pub(super) fn new(
        console: Console,
        switch: Socket,
        management: Option<Management>,
        standard: Option<Client>,
    ) -> Self {
        Self {
            console,
            switch,
            management,
            sessions: standard.map(Session::new).into_iter().collect(),
            next_events: Instant::now(),
        }
    }

    /// Serves until the program is to end. Returns its exit status.
    ///
    /// # Errors
    /// A child has ended.
    pub(super) fn run(&mut self, signals: &Signals, parts: &mut Parts) -> Result<i32> {
        loop {
            if let Some(end) = self.step(signals, parts)? {
                match end {
                    End::Signal(signal) => log::info!("{signal}: the switch ends"),
                    End::Shutdown => complain("vde_switch: the console has ended the switch"),
                    End::StandardInput => {
                        complain("vde_switch: standard input has ended, and the switch with it");
                    }
                }
                return Ok(0);
            }
        }
    }

    fn step(&mut self, signals: &Signals, parts: &mut Parts) -> Result<Option<End>> {
        let can_accept = self.sessions.len() < MAX_SESSIONS;
        let is_watching = self.sessions.iter().any(Session::is_watching);
        let listener = self.management.as_ref().filter(|_| can_accept);
        {
            let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            fds.extend(listener.map(|it| PollFd::new(it.socket.as_fd(), PollFlags::POLLIN)));
            fds.extend(parts.poll_fds());
            fds.extend(self.sessions.iter().flat_map(Session::poll_fds));
            let line_ends = self.sessions.iter().filter_map(Session::line_ends);
            let next_events = is_watching.then_some(self.next_events);
            wait(&mut fds, line_ends.chain(next_events).min())?;
        }
        while let Some(signal) = signals.next() {
            if signal != Signal::SIGCHLD {
                return Ok(Some(End::Signal(signal)));
            }
        }
        parts.check()?;
        if let Some(client) = listener.and_then(Management::accept) {
            self.sessions.push(Session::new(Client::Socket(client)));
        }
        self.show_events(is_watching);
        Ok(self.serve_sessions())
    }

    /// Shows events to the sessions that want to see some, from time to time.
    fn show_events(&mut self, is_watching: bool) {
        let now = Instant::now();
        if !is_watching || now < self.next_events {
            return;
        }
        self.next_events = now + EVENTS_EVERY;
        for session in self
            .sessions
            .iter_mut()
            .filter(|session| session.is_watching())
        {
            if let Err(error) = session.show_events(&self.switch) {
                log::debug!("{error}");
            }
        }
    }

    fn serve_sessions(&mut self) -> Option<End> {
        let mut at = 0;
        while let Some(session) = self.sessions.get_mut(at) {
            match session.serve(&self.console, &self.switch) {
                Next::Wait => at += 1,
                Next::Shutdown => return Some(End::Shutdown),
                Next::End if session.is_standard() => return Some(End::StandardInput),
                Next::End => drop(self.sessions.swap_remove(at)),
            }
        }
        None
    }
}
