//! An end of a plug on the panel: frames that the kernel carries between both ends.
//!
//! # Theory of operation
//!
//! When both ends of a plug can use the panel, the plug makes a pair of ports there: what goes into
//! one comes out of the other. Each end has the address of one of them, as an interface has that of
//! its port, and may have it plugged into its peer. Frames then take the shortest way that there
//! is:
//!
//! | this end | the opposite end | frames |
//! |---|---|---|
//! | is not plugged | | go through the link |
//! | is plugged | is not plugged | come out of the opposite port, which this process serves |
//! | is plugged | is plugged | never reach this process |
//!
//! So of two ends of which one is plugged, that one moves the frames for both. An end that was
//! plugged and is no more has its port unplugged before it moves a frame itself. The pair goes with
//! the process that has made it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use vdens_plugin_kit::tap::Tap;
use vdens_plugin_kit::{Link, PanelAddress, RxBatch, State, Status, TxBatch};

use crate::error::{Error, Result, system};
use crate::ipc::Order;
use crate::panel::{PanelClient, new_place};

/// Makes the pair of ports for the two ends of a plug; their addresses.
///
/// # Errors
/// There is no panel, or the kernel refuses.
pub(super) fn make_pair(client: PanelClient) -> Result<[PanelAddress; 2]> {
    let (port, opposite) = (new_place()?, new_place()?);
    let order = Order::AddPair {
        port: port.clone(),
        opposite: opposite.clone(),
    };
    let panel = client.execute(order)?.panel;
    Ok([port, opposite].map(|place| PanelAddress { panel, place }))
}

/// What moves the frames of this end.
enum Mover {
    /// The link.
    Link,
    /// The kernel to the opposite port, and this process from there.
    Tap(Served),
    /// The kernel.
    Kernel,
}

/// An end of a plug that has a port on the panel.
pub(super) struct CarriedEnd {
    link: Box<dyn Link>,
    /// The place of this end's port, and that of the opposite end's.
    port: String,
    opposite: String,
    client: PanelClient,
    mover: Mover,
    /// The state of the opposite end.
    other_side: State,
    /// Whether this end and the opposite one were plugged when the mover was chosen.
    plugged: [bool; 2],
}

impl CarriedEnd {
    /// The end that `link` serves, whose port is at `port`.
    pub(super) fn new(
        link: Box<dyn Link>,
        port: PanelAddress,
        opposite: PanelAddress,
        client: PanelClient,
    ) -> Self {
        Self {
            link,
            port: port.place,
            opposite: opposite.place,
            client,
            mover: Mover::Link,
            other_side: State::DOWN,
            plugged: [false; 2],
        }
    }

    /// Changes what moves the frames, after a change of either end.
    fn update(&mut self) -> Result<()> {
        let plugged = [self.link.state().plugged, self.other_side.plugged];
        if std::mem::replace(&mut self.plugged, plugged) == plugged {
            return match &mut self.mover {
                Mover::Tap(served) => served.watch(self.link.fd()),
                Mover::Link | Mover::Kernel => Ok(()),
            };
        }
        self.mover = match plugged {
            [true, true] => Mover::Kernel,
            [true, false] => self.serve().map(Mover::Tap).unwrap_or_else(|error| {
                log::error!("the panel: {error}");
                Mover::Kernel
            }),
            [false, _] => {
                if !matches!(self.mover, Mover::Link) {
                    self.unplug();
                }
                Mover::Link
            }
        };
        Ok(())
    }

    fn unplug(&self) {
        let port = self.port.clone();
        if let Err(error) = self.client.execute(Order::Unplug { port }) {
            log::error!("the panel: {error}");
        }
    }

    /// Serves the opposite port.
    fn serve(&self) -> Result<Served> {
        let port = self.opposite.clone();
        let name = format!("t{port}");
        let served = self.client.execute(Order::Serve { port })?;
        let fd = served.tap.ok_or_else(|| Error::closed("a tap was lost"))?;
        let mut tap = Tap::from_fd(fd, name);
        tap.other_side(self.other_side);
        Served::new(tap, self.link.fd())
    }
}

impl Link for CarriedEnd {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.mover {
            Mover::Tap(served) => served.ready.0.as_fd(),
            Mover::Link | Mover::Kernel => self.link.fd(),
        }
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        match &self.mover {
            Mover::Tap(served) => served.tap.as_fd(),
            Mover::Link | Mover::Kernel => self.link.send_fd(),
        }
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        self.link.recv(batch)?;
        if let Mover::Tap(served) = &mut self.mover {
            served.tap.recv(batch)?;
        }
        self.update()
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        match &mut self.mover {
            Mover::Link => {
                let taken = self.link.send(batch)?;
                self.update()?;
                Ok(taken)
            }
            Mover::Tap(served) => served.tap.send(batch),
            // A switch may flood these to the plug, although the kernel has carried them.
            Mover::Kernel => Ok(batch.len()),
        }
    }

    fn other_side(&mut self, state: State) {
        self.other_side = state;
        self.link.other_side(state);
        if let Mover::Tap(served) = &mut self.mover {
            served.tap.other_side(state);
        }
        if let Err(error) = self.update() {
            log::error!("the panel: {error}");
        }
    }

    fn state(&self) -> State {
        let state = self.link.state();
        match &self.mover {
            Mover::Tap(served) => state.with_offloads(served.tap.state().offloads),
            Mover::Link | Mover::Kernel => state,
        }
    }

    fn status(&self) -> Status {
        self.link.status()
    }

    fn is_shared(&self) -> bool {
        self.link.is_shared()
    }
}

/// The opposite port, served by a tap.
struct Served {
    tap: Tap,
    /// Readable when the tap or the link are.
    ready: Epoll,
    /// The link's descriptor that is watched.
    link: RawFd,
}

impl Served {
    fn new(tap: Tap, link: BorrowedFd<'_>) -> Result<Self> {
        let ready = Self::watching(&tap, link)?;
        Ok(Self {
            tap,
            ready,
            link: link.as_raw_fd(),
        })
    }

    fn watching(tap: &Tap, link: BorrowedFd<'_>) -> Result<Epoll> {
        let watch = || {
            let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            ready.add(tap, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
            ready.add(link, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
            Ok(ready)
        };
        watch().map_err(system("watch a port of the panel"))
    }

    /// Watches the link's descriptor, which may be another one now.
    fn watch(&mut self, link: BorrowedFd<'_>) -> Result<()> {
        let event = &mut EpollEvent::new(EpollFlags::EPOLLIN, 0);
        if link.as_raw_fd() != self.link || self.ready.modify(link, event).is_err() {
            self.ready = Self::watching(&self.tap, link)?;
            self.link = link.as_raw_fd();
        }
        Ok(())
    }
}
