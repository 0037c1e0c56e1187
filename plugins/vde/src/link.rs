//! The open link: a [`DatagramLink`] for the frames, and the control stream beside it.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Uid;
use vdens_plugin_kit::user::FarUser;
use vdens_plugin_kit::{
    DatagramLink, Error, FarEnd, Host, Link, Peer, Result, RxBatch, State, Status, TxBatch, log,
};

use crate::control::Control;
use crate::endpoint::Endpoint;
use crate::target::Target;

/// A port of a switch.
#[derive(Debug)]
pub(crate) struct Vde {
    data: DatagramLink<UnixDatagram>,
    control: UnixStream,
    /// Readable when either socket is.
    ready: Epoll,
    directory: PathBuf,
    is_open: bool,
}

impl Vde {
    /// Opens the link of `vnl`, which means `target`.
    pub(crate) fn open(target: &Target, vnl: &str, host: Host) -> Result<Self> {
        let directory = target.directory.clone();
        let control = Control::connect(target)?;
        let user = control.user()?;
        let far_user = FarUser::new(target.user, vnl, host);
        far_user.check(format_args!("the switch {}", directory.display()), user)?;
        let endpoint = Endpoint::bind(&directory, &control.owner, target.group, target.mode)?;
        let (mut switch, mark) = FarEnd::switch(host, user != Uid::effective().as_raw())?;
        let description = [&target.description[..], mark.to_string().as_bytes()].concat();
        let (peer, control) = control.negotiate(endpoint.path(), &description)?;
        let data = endpoint.connect(&peer)?;
        switch.receive_greetings(&data);
        let ready = watch(&data, &control)
            .map_err(|errno| Error::io("watch the switch's sockets", &errno.into()))?;
        far_user.remember(user);
        log::debug!("port {} of {}", peer.display(), directory.display());
        Ok(Self {
            data: DatagramLink::with(data, switch),
            control,
            ready,
            directory,
            is_open: true,
        })
    }

    /// Checks that the switch has not closed the control stream, on which it sends nothing.
    fn check_control(&mut self) -> Result<()> {
        match self.control.read(&mut [0]) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(())
            }
            Ok(_) => Err(self.closed("it closed the port")),
            Err(error) => Err(self.broken(error.raw_os_error().unwrap_or(0))),
        }
    }

    fn closed(&mut self, why: &str) -> Error {
        self.is_open = false;
        let directory = self.directory.display();
        Error::closed(format!("the switch {directory} is gone: {why}"))
    }

    fn broken(&mut self, errno: i32) -> Error {
        self.closed(Errno::from_raw(errno).desc())
    }
}

fn watch(data: &UnixDatagram, control: &UnixStream) -> nix::Result<Epoll> {
    let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    ready.add(data, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    let hang_up = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
    ready.add(control, EpollEvent::new(hang_up, 0))?;
    Ok(ready)
}

impl Link for Vde {
    fn fd(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.data.fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let first = batch.len();
        match self.data.recv(batch) {
            // Awake without a frame: it may be the control stream.
            Ok(()) if batch.len() == first => self.check_control(),
            Ok(()) => Ok(()),
            Err(error) => Err(self.broken(error.errno)),
        }
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        let sent = self.data.send(batch);
        sent.map_err(|error| self.broken(error.errno))
    }

    fn other_side(&mut self, state: State) {
        self.data.other_side(state);
    }

    fn state(&self) -> State {
        match self.is_open {
            true => self.data.state(),
            false => State::DOWN,
        }
    }

    fn status(&self) -> Status {
        let peer = getsockopt(&self.control, sockopt::PeerCredentials).ok();
        self.data.far_end().status(Peer {
            uid: peer.map(|peer| peer.uid()),
            pid: peer.and_then(|peer| u32::try_from(peer.pid()).ok()),
            ..Peer::default()
        })
    }

    fn wants_panel(&self) -> bool {
        self.data.wants_panel()
    }
}
