//! What the host waits for.
//!
//! # Theory of operation
//!
//! The host polls one descriptor for [`vdens_plugin_kit::Link::recv`]: an epoll instance over the
//! socket and over the kicks, the eventfds by which the guest tells that it has added buffers. A
//! kick is edge-triggered, so it need not be read, and a descriptor of the front end that is
//! something else can stop nothing.
//!
//! It polls another one for [`vdens_plugin_kit::Link::send`], which must become writable when the
//! guest has added receive buffers. The guest's kick is an event to be read, and the host may not
//! call `recv` at all while frames wait in both directions. So a thread waits for the kicks of
//! receive queues, and opens a [`Gate`]: an eventfd that is so full that it is not writable, and is
//! again when the thread has emptied it. The guest kicks only when it was asked to, which is when
//! the gate is shut.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vdens_plugin_kit::{Error, Result};

/// The most that an eventfd holds (eventfd(2)).
const FULL: u64 = u64::MAX - 1;

/// What a descriptor is readable for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Purpose {
    /// A front end connects.
    Listener,
    /// The front end sends a message.
    Connection,
    /// The guest has added buffers.
    Kick,
    /// The thread is to end.
    Stop,
}

/// The descriptors that wake the host, and those that wake the thread.
#[derive(Debug)]
pub(crate) struct Wakeups {
    ready: Epoll,
    doorbell: Epoll,
}

impl Wakeups {
    pub(crate) fn new() -> Result<Arc<Self>> {
        let epoll = || {
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
                .map_err(|errno| Error::io("make an epoll instance", &errno.into()))
        };
        Ok(Arc::new(Self {
            ready: epoll()?,
            doorbell: epoll()?,
        }))
    }

    /// Readable when any of the descriptors is.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.ready.0.as_fd()
    }

    /// Watches a socket for as long as it is open.
    pub(crate) fn watch(&self, socket: impl AsFd, purpose: Purpose) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, purpose as u64);
        let watched = self.ready.add(socket, event);
        watched.map_err(|errno| Error::io("watch a socket", &errno.into()))
    }

    /// Which sockets are readable. Kicks are forgotten with that.
    pub(crate) fn take(&self) -> (bool, bool) {
        let mut events = [EpollEvent::empty(); 16];
        // It fails only if a signal interrupts it.
        let ready = self.ready.wait(&mut events, EpollTimeout::ZERO);
        let events = &events[..ready.unwrap_or(0)];
        let is_readable = |purpose| events.iter().any(|event| event.data() == purpose as u64);
        (
            is_readable(Purpose::Listener),
            is_readable(Purpose::Connection),
        )
    }
}

/// The descriptor of a queue by which the guest tells that it has added buffers.
#[derive(Debug)]
pub(crate) struct Kick {
    fd: OwnedFd,
    wakeups: Arc<Wakeups>,
}

impl Kick {
    /// Watches `fd`; that of a receive queue also opens the gate.
    pub(crate) fn new(fd: OwnedFd, wakeups: &Arc<Wakeups>, is_receive: bool) -> nix::Result<Self> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        let event = EpollEvent::new(flags, Purpose::Kick as u64);
        // It is removed again by `drop`, from either, even if it is in one only.
        let kick = Self {
            fd,
            wakeups: Arc::clone(wakeups),
        };
        wakeups.ready.add(&kick.fd, event)?;
        if is_receive {
            wakeups.doorbell.add(&kick.fd, event)?;
        }
        Ok(kick)
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // The front end has the same file open, so closing the descriptor would not remove it.
        let _ = self.wakeups.ready.delete(&self.fd);
        let _ = self.wakeups.doorbell.delete(&self.fd);
    }
}

/// A descriptor that is writable unless it was shut since the guest added receive buffers.
#[derive(Debug)]
pub(crate) struct Gate {
    gate: Arc<EventFd>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Gate {
    pub(crate) fn new(wakeups: &Arc<Wakeups>) -> Result<Self> {
        let eventfd = || {
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(|errno| Error::io("make an eventfd", &errno.into()))
        };
        let (gate, stop) = (Arc::new(eventfd()?), eventfd()?);
        let event = EpollEvent::new(EpollFlags::EPOLLIN, Purpose::Stop as u64);
        let watched = wakeups.doorbell.add(&stop, event);
        watched.map_err(|errno| Error::io("watch an eventfd", &errno.into()))?;
        let thread = {
            let (gate, wakeups) = (Arc::clone(&gate), Arc::clone(wakeups));
            thread::Builder::new()
                .name("doorbell".into())
                .spawn(move || answer_the_door(&wakeups.doorbell, &gate))
                .map_err(|error| Error::io("start a thread", &error))?
        };
        Ok(Self {
            gate,
            stop,
            thread: Some(thread),
        })
    }

    /// To wait for until it is open.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.gate.as_fd()
    }

    /// Shuts it until the next kick of a receive queue.
    pub(crate) fn shut(&self) {
        // It is empty, or full already.
        let _ = self.gate.write(FULL);
    }

    pub(crate) fn open(&self) {
        // It is full, or empty already.
        let _ = self.gate.read();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

/// Opens the gate at each kick, until the thread is to end.
fn answer_the_door(doorbell: &Epoll, gate: &EventFd) {
    let mut events = [EpollEvent::empty(); 16];
    loop {
        let rung = match doorbell.wait(&mut events, EpollTimeout::NONE) {
            Ok(rung) => &events[..rung],
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        if rung
            .iter()
            .any(|event| event.data() == Purpose::Stop as u64)
        {
            return;
        }
        let _ = gate.read();
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_writable(gate: &Gate, timeout: u16) -> bool {
        let mut fds = [PollFd::new(gate.fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::from(timeout)).unwrap() == 1
    }

    #[test]
    fn a_kick_opens_the_gate_and_is_seen_once() {
        let wakeups = Wakeups::new().unwrap();
        let gate = Gate::new(&wakeups).unwrap();
        assert!(is_writable(&gate, 0), "it is open at first");
        let guest = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let copy = || guest.as_fd().try_clone_to_owned().unwrap();
        let kick = Kick::new(copy(), &wakeups, true).unwrap();
        let is_ready = || {
            let mut fds = [PollFd::new(wakeups.fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
        };
        for _ in 0..3 {
            gate.shut();
            assert!(!is_writable(&gate, 0));
            guest.write(1).unwrap();
            assert!(is_writable(&gate, 10_000), "the kick opens it");
            assert!(is_ready());
            wakeups.take();
            assert!(!is_ready(), "the kick is seen once");
        }
        gate.shut();
        gate.open();
        assert!(is_writable(&gate, 0));
        drop(kick);
        guest.write(1).unwrap();
        assert!(!is_ready(), "a kick that is gone wakes nobody");
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert!(Kick::new(file.into(), &wakeups, true).is_err());
    }
}
