//! `vxlan://[GROUP-OR-PEER]`: a port of a VXLAN (RFC 7348), an Ethernet that spans an IP network.
//!
//! # Theory of operation
//!
//! A frame travels in a UDP datagram, behind a `header` that names its network, to the same port at
//! all ends. With a multicast group, frames for all stations or for an unknown one go to the group.
//! The sender of a frame is known from then on ([`Fdb`]), and frames for that station go to its
//! address only. With a peer, all frames go to the peer, and only its frames are received.
//!
//! Senders choose their source ports freely, so that routers can use several paths. So the socket
//! is not connected, and of a sender only the address counts. `config` parses the VNL, `socket`
//! sets the socket up, and [`Socket`] moves the batches. There is always carrier: the link cannot
//! know which ends are there.

mod config;
mod header;
mod socket;

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use vdens_plugin_kit::fdb::Fdb;
use vdens_plugin_kit::udp::Socket;
use vdens_plugin_kit::{Frame, Link, OpenRequest, Result, RxBatch, TxBatch, export_plugin, log};

use config::Config;

/// An Ethernet address.
type Mac = [u8; 6];

/// The most stations that are known.
const CAPACITY: usize = 16_384;

/// A port of the network.
struct Vxlan {
    socket: Socket,
    vni: u32,
    far: SocketAddr,
    /// The known stations; `None` if there is only one peer.
    fdb: Option<Fdb<Mac, SocketAddr>>,
}

impl Vxlan {
    fn open(config: &Config) -> Result<Self> {
        let socket = Socket::new(socket::open(config)?)?;
        log::debug!(
            "VXLAN {} at {} with {}",
            config.vni,
            config.local,
            config.far
        );
        let is_group = config.far.ip().is_multicast();
        Ok(Self {
            socket,
            vni: config.vni,
            far: config.far,
            fdb: is_group.then(|| Fdb::new(CAPACITY, config.expiry)),
        })
    }
}

/// One of the addresses that a frame starts with.
fn mac(frame: &[u8], at: usize) -> Option<Mac> {
    frame.get(at..)?.first_chunk().copied()
}

impl Link for Vxlan {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.socket.send_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        let now = Instant::now();
        let (vni, far, fdb) = (self.vni, self.far, &mut self.fdb);
        self.socket.recv(batch, |from, datagram| {
            let frame = header::decode(datagram, vni)?;
            match fdb {
                Some(fdb) => {
                    // Whatever port it was sent from, the station receives at the common one.
                    let mut at = from;
                    at.set_port(far.port());
                    fdb.learn(mac(frame, 6)?, at, now);
                }
                None if from.ip() != far.ip() => return None,
                None => {}
            }
            Some(frame)
        })
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        let now = Instant::now();
        let (far, fdb) = (self.far, &self.fdb);
        self.socket
            .send(batch, &header::encode(self.vni), |frame: Frame<'_>| {
                let known = fdb.as_ref().zip(mac(frame.bytes(), 0));
                let at = known.and_then(|(fdb, station)| fdb.lookup(station, now));
                Some(at.unwrap_or(far))
            })
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    Ok(Box::new(Vxlan::open(&Config::parse(request.argument())?)?))
}

export_plugin! {
    scheme: "vxlan",
    description: "a port of a VXLAN: vxlan://[GROUP-OR-PEER]/vni=NUMBER",
    needs: "network",
    open: open,
}
