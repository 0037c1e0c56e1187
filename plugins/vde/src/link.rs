//! The open link: a connected datagram socket for the frames, and the control stream beside it.

use std::io::{self, Read};
use std::iter;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::unistd::Uid;
use vdens_plugin_kit::user::FarUser;
use vdens_plugin_kit::{
    Error, Host, Link, Result, RxBatch, State, Status, TxBatch, log, send_datagrams,
};

use crate::control::Control;
use crate::endpoint::Endpoint;
use crate::hub::Switch;
use crate::status;
use crate::target::Target;

/// A port of a switch.
#[derive(Debug)]
pub(crate) struct Vde {
    data: UnixDatagram,
    control: UnixStream,
    /// Readable when either socket is.
    ready: Epoll,
    directory: PathBuf,
    switch: Switch,
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
        let trusted = user == Uid::effective().as_raw();
        let (mut switch, mark) = Switch::new(host)?;
        let description = [&target.description[..], mark.to_string().as_bytes()].concat();
        let (peer, control) = control.negotiate(endpoint.path(), &description)?;
        let data = endpoint.connect(&peer)?;
        switch.meet(&data, trusted);
        let ready = watch(&data, &control)
            .map_err(|errno| Error::io("watch the switch's sockets", &errno.into()))?;
        far_user.remember(user);
        log::debug!("port {} of {}", peer.display(), directory.display());
        Ok(Self {
            data,
            control,
            ready,
            directory,
            switch,
            is_open: true,
        })
    }

    /// Looks whether the switch has hung up; it says nothing else.
    fn check_control(&mut self) -> Result<()> {
        let mut byte = [0];
        match self.control.read(&mut byte) {
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(())
            }
            Ok(_) => Err(self.closed("it closed the port")),
            Err(e) => Err(self.broken(&e)),
        }
    }

    fn closed(&mut self, why: &str) -> Error {
        self.is_open = false;
        Error::closed(format!(
            "the switch {} is gone: {why}",
            self.directory.display()
        ))
    }

    fn broken(&mut self, error: &io::Error) -> Error {
        match error.raw_os_error() {
            Some(code) => self.closed(Errno::from_raw(code).desc()),
            None => self.closed(&error.to_string()),
        }
    }

    /// Sends frame number `index` alone. `false` if the queue is full.
    fn send_one(&mut self, batch: &mut TxBatch<'_>, index: usize) -> Result<bool> {
        let frame = batch.frame(index);
        let Some(datagram) = frame.and_then(|frame| self.switch.datagram(frame)) else {
            batch.count_dropped(1);
            return Ok(true);
        };
        match send_datagrams(&self.data, iter::once(datagram)) {
            Ok(sent) => Ok(sent > 0),
            Err(e) if e.raw_os_error() == Some(Errno::EMSGSIZE as i32) => {
                batch.count_dropped(1);
                Ok(true)
            }
            Err(e) => Err(self.broken(&e)),
        }
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
        self.data.as_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let first = batch.len();
        match batch.receive_datagrams(&self.data, self.switch.max_datagram()) {
            // Awake without a frame: then it is the control stream.
            Ok(0) => self.check_control()?,
            Ok(_) => batch.filter(first, |frame| self.switch.receive(frame, &self.data)),
            Err(e) => return Err(self.broken(&e)),
        }
        self.switch.speak(&self.data);
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        let datagrams = || batch.frames().map(|frame| self.switch.datagram(frame));
        if datagrams().all(|datagram| datagram.is_some()) {
            match send_datagrams(&self.data, datagrams().flatten()) {
                Err(e) if e.raw_os_error() == Some(Errno::EMSGSIZE as i32) => {}
                Err(e) => return Err(self.broken(&e)),
                Ok(sent) => return Ok(sent),
            }
        }
        for index in 0..batch.len() {
            if !self.send_one(batch, index)? {
                return Ok(index);
            }
        }
        Ok(batch.len())
    }

    fn other_side(&mut self, state: State) {
        self.switch.plug(&self.data);
        self.switch.host_takes(state.offloads);
        self.switch.speak(&self.data);
    }

    fn state(&self) -> State {
        match self.is_open {
            true => self.switch.state(),
            false => State::DOWN,
        }
    }

    fn status(&self) -> Status {
        status::of(&self.switch, &self.control)
    }

    fn wants_panel(&self) -> bool {
        self.switch.has_bridge()
    }
}
