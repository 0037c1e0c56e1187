//! A port of the panel as a link: the worker's own side.
//!
//! While the kernel forwards the frames, or there is no carrier, the worker moves no frames. When
//! the other side has carrier and the frames must go through user space, the port is served: it is
//! on a bridge with a tap, which the worker reads and writes. The other side's state alone decides:
//!
//! | State of the other side | The port |
//! |---|---|
//! | no carrier | is unplugged, so the interface has no carrier either |
//! | plugged | stays where the plugin had it plugged |
//! | carrier | is served |

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use log::Level;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vdens_plugin_kit::tap::Tap;
use vdens_plugin_kit::{Link, Offloads, RxBatch, State, Status, TxBatch};

use super::PanelClient;
use crate::error::{ErrorKind, Result, system};
use crate::ipc::Order;

/// A worker's port.
pub(crate) struct PanelPort {
    place: String,
    client: PanelClient,
    tap: Option<Tap>,
    /// Polled while there is no tap; never readable.
    idle: EventFd,
    /// The other side's last state.
    other_side: State,
}

impl PanelPort {
    /// The port at `place`, which is unplugged.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(crate) fn new(place: String, client: PanelClient) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            place,
            client,
            tap: None,
            idle: EventFd::from_flags(flags).map_err(system("make an eventfd"))?,
            other_side: State::DOWN,
        })
    }

    /// Has an order executed, and logs a failure.
    fn execute(&self, order: Order) -> Option<OwnedFd> {
        let done = self.client.execute(order).map(|done| done.tap);
        done.unwrap_or_else(|error| {
            // When the session ends, the supervisor closes the channel, and the port disappears
            // with the namespace. When the command deletes the interface, the supervisor logs it.
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
        let fd = self.execute(Order::Serve {
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
                self.execute(Order::Unplug {
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
        State::UP.with_offloads(Offloads::ALL)
    }
}
