//! A port of the panel as a link: a worker's own side.
//!
//! While the kernel carries the frames, or there is no carrier, there is nothing to move. When the other
//! side has carrier and frames must go through user space, the port is served through a tap on a bridge
//! with it. What the interface is to be connected with follows from the other side's state alone:
//!
//! | the other side's state | the port |
//! |---|---|
//! | no carrier | unplugged: the interface has none either |
//! | plugged | left where the plugin had it plugged |
//! | carrier | on a bridge with a tap |

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use log::Level;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vdens_plugin_kit::tap::Tap;
use vdens_plugin_kit::{Link, Offloads, PanelAddress, RxBatch, State, Status, TxBatch};

use super::Orders;
use crate::error::{ErrorKind, Result, system};
use crate::ipc::Order;

/// A worker's port.
pub struct PanelPort {
    place: String,
    orders: Orders,
    tap: Option<Tap>,
    /// Never readable: what is polled while there is no tap.
    idle: EventFd,
    /// What the other side was last.
    other_side: State,
}

impl PanelPort {
    /// The port at `panel_address`, which is unplugged.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(panel_address: &PanelAddress, orders: Orders) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            place: panel_address.place.clone(),
            orders,
            tap: None,
            idle: EventFd::from_flags(flags).map_err(system("make an eventfd"))?,
            other_side: State::DOWN,
        })
    }

    fn order(&self, order: Order) -> Option<OwnedFd> {
        let done = self.orders.give(order).map(|done| done.tap);
        done.unwrap_or_else(|error| {
            // At the end of the session the supervisor goes first, and the port with the namespace.
            // If a command deletes the interface the supervisor says so.
            let is_expected = error.kind == ErrorKind::Closed || error.errno == libc::ENODEV;
            let level = match is_expected {
                true => Level::Debug,
                false => Level::Error,
            };
            log::log!(level, "the panel: {error}");
            None
        })
    }

    fn serve(&self) -> Option<Tap> {
        let fd = self.order(Order::Serve {
            port: self.place.clone(),
        })?;
        Some(Tap::from_fd(fd, format!("t{}", self.place)))
    }
}

impl Link for PanelPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.tap.as_ref().map_or(self.idle.as_fd(), AsFd::as_fd)
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        self.tap.as_mut().map_or(Ok(()), |tap| tap.recv(batch))
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        match &mut self.tap {
            Some(tap) => tap.send(batch),
            None => {
                let lost = batch.len();
                batch.count_dropped(lost as u64);
                Ok(lost)
            }
        }
    }

    fn other_side(&mut self, state: State) {
        let was = std::mem::replace(&mut self.other_side, state);
        match (state.carrier, state.plugged) {
            (false, _) if was.carrier => {
                self.tap = None;
                self.order(Order::Unplug {
                    port: self.place.clone(),
                });
            }
            (false, _) => {}
            (true, true) => self.tap = None,
            (true, false) => {
                if self.tap.is_none() {
                    self.tap = self.serve();
                }
                if let Some(tap) = &mut self.tap {
                    tap.other_side(state);
                }
            }
        }
    }

    fn status(&self) -> Status {
        self.tap.as_ref().map(Link::status).unwrap_or_default()
    }

    fn state(&self) -> State {
        State {
            offloads: Offloads::ALL,
            ..State::UP
        }
    }
}
