//! `vhost-user://PATH`: the network card of a virtual machine.
//!
//! # Theory of operation
//!
//! A VMM such as QEMU is the front end: it shares the guest's memory with this process, which is
//! the back end, and tells it where the queues of the card are. From then on frames are copied
//! straight between the guest's memory and batches, and the VMM sees none of them.
//!
//! 1. `place` parses the VNL, and listens at the path or connects to it.
//! 2. `connection` receives the front end's requests, which `protocol` reads.
//! 3. `device` does what they ask, and moves frames between batches and queues.
//! 4. `ring` is one queue, in the guest's `memory`.
//! 5. `wakeups` are the descriptors that the host waits for.
//!
//! The front end is trusted as far as it can harm this process only: it has the memory mapped that
//! it shares. The guest is not trusted at all. A queue that it breaks is used no more until its
//! driver starts again.
//!
//! If this side listens, it waits for the next front end when one leaves. If it connects, the link
//! is closed then, and the host opens it again. The link has carrier while the guest's driver runs.
//! A guest has carrier while its front end is connected.
//!
//! The crate `vhost` is not used: its connection blocks in the middle of a message, and leaves
//! received descriptors open for programs that are executed.

mod connection;
mod device;
#[doc(hidden)]
pub mod fuzz;
mod guest;
mod memory;
mod place;
mod protocol;
mod ring;
#[cfg(test)]
mod tests;
mod wakeups;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use vdens_plugin_kit::bound_socket::BoundSocket;
use vdens_plugin_kit::log::{debug, warn};
use vdens_plugin_kit::{
    AlwaysReady, Error, ErrorKind, Host, Link, Offloads, OpenRequest, Peer, Result, RxBatch, State,
    Status, Tier, TxBatch,
};

use connection::{Connection, End};
use device::Device;
use place::Place;
use wakeups::{Gate, Purpose, Wakeups};

/// How many requests are handled before frames get their turn.
const REQUESTS: usize = 32;

/// A front end that is connected.
#[derive(Debug)]
struct Machine {
    connection: Connection,
    device: Device,
}

/// The link.
#[derive(Debug)]
struct VhostUser {
    place: Place,
    host: Host,
    /// The socket at the path, unless the front end listens there.
    listener: Option<(BoundSocket, OwnedFd)>,
    machine: Option<Machine>,
    /// Why a front end was disconnected last.
    complaint: Option<String>,
    gate: Gate,
    wakeups: Arc<Wakeups>,
    /// To wait for while the guest has more frames than fitted into a batch.
    ready: AlwaysReady,
}

impl VhostUser {
    fn open(place: Place, host: Host) -> Result<Self> {
        let wakeups = Wakeups::new()?;
        let mut link = Self {
            host,
            listener: None,
            machine: None,
            complaint: None,
            gate: Gate::new(&wakeups)?,
            wakeups,
            ready: AlwaysReady::new()?,
            place,
        };
        if link.place.is_client {
            let socket = link.place.connect()?;
            link.join(socket)?;
        } else {
            let (path, socket) = link.place.listen()?;
            link.wakeups.watch(&socket, Purpose::Listener)?;
            link.listener = Some((path, socket));
        }
        Ok(link)
    }

    /// Begins to serve a front end.
    fn join(&mut self, socket: OwnedFd) -> Result<()> {
        self.wakeups.watch(&socket, Purpose::Connection)?;
        let name = self.place.path.display().to_string();
        debug!("{name}: a machine is connected");
        self.machine = Some(Machine {
            connection: Connection::new(socket),
            device: Device::new(name, self.place.pairs, self.host.port().mtu),
        });
        Ok(())
    }

    /// Accepts a front end, or refuses it if there is one.
    fn accept(&mut self) -> Result<()> {
        let Some((_, listener)) = &self.listener else {
            return Ok(());
        };
        let path = &self.place.path;
        let Some(socket) = place::accept(listener, path)? else {
            return Ok(());
        };
        if self.machine.is_some() {
            warn!("{}: a second machine is refused", path.display());
            return Ok(());
        }
        self.join(socket)
    }

    /// Handles requests of the front end.
    fn serve(&mut self) -> Result<()> {
        let Some(machine) = &mut self.machine else {
            return Ok(());
        };
        let outcome = machine.handle(&self.wakeups);
        // Frames that waited for buffers need not wait if the queue has been stopped.
        self.gate.open();
        let Err(end) = outcome else {
            return Ok(());
        };
        self.machine = None;
        let path = self.place.path.display();
        if let End::Failed(why) = &end {
            let complaint = format!("{path}: the machine is disconnected: {why}");
            if self.listener.is_none() {
                return Err(Error::new(ErrorKind::Protocol, complaint));
            }
            // A front end that connects again may do the same again.
            if self.complaint.as_ref() != Some(&complaint) {
                warn!("{complaint}");
                self.complaint = Some(complaint);
            }
        }
        debug!("{path}: the machine has hung up");
        match self.listener {
            Some(_) => Ok(()),
            None => Err(Error::closed(format!("the machine at {path} hung up"))),
        }
    }
}

impl Machine {
    /// Handles the requests that are there.
    fn handle(&mut self, wakeups: &Arc<Wakeups>) -> Result<(), End> {
        for _ in 0..REQUESTS {
            let Some(message) = self.connection.next()? else {
                return Ok(());
            };
            let header = message.header;
            debug!("vhost-user: {:?}", message.request);
            let answer = self.device.handle(message.request, message.fds, wakeups)?;
            let acknowledged = header.wants_ack && self.device.acknowledges();
            if let Some(body) = answer.or(acknowledged.then_some([0; 8])) {
                self.connection
                    .answer(protocol::answer(header.code, body))?;
            }
        }
        Ok(())
    }
}

impl Link for VhostUser {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.machine {
            Some(machine) if machine.device.is_pending() => self.ready.as_fd(),
            _ => self.wakeups.fd(),
        }
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.gate.fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let (connects, asks) = self.wakeups.take();
        if asks {
            self.serve()?;
        }
        if connects {
            self.accept()?;
        }
        if let Some(machine) = &mut self.machine {
            machine.device.receive(batch);
        }
        Ok(())
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        if let Some(machine) = &mut self.machine {
            return Ok(machine.device.send(batch, &self.gate));
        }
        batch.count_dropped(batch.len() as u64);
        Ok(batch.len())
    }

    fn state(&self) -> State {
        let machine = self.machine.as_ref();
        machine.map_or(State::DOWN, |machine| machine.device.state())
    }

    fn status(&self) -> Status {
        let mut status = Status::default();
        let Some(machine) = &self.machine else {
            status.reason = "no machine is connected".into();
            return status;
        };
        let state = self.state();
        if machine.device.is_broken() {
            status.reason = "the machine's driver has broken a queue".into();
        } else if !state.carrier {
            status.reason = "the machine's driver does not run".into();
        } else if state.offloads == Offloads::NONE {
            status.reason = "the machine's driver takes no offloads".into();
        } else {
            status.tier = Some(Tier::SuperFrames);
        }
        status.peer = machine.connection.peer().map(|peer| Peer {
            uid: Some(peer.uid()),
            pid: u32::try_from(peer.pid()).ok(),
            ..Peer::default()
        });
        let pairs = machine.device.pairs().to_string();
        status.extra.insert("queues".into(), pairs);
        status
    }
}

/// Opens a link.
///
/// # Errors
/// The VNL is malformed, or the path cannot be used.
pub fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let place = Place::parse(request)?;
    Ok(Box::new(VhostUser::open(place, request.host)?))
}
