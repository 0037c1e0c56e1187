//! `template://PORT`: a cable between two processes of this machine, made of UDP datagrams on the
//! loopback interface.
//!
//! The first end binds the port PORT, the second PORT + 1, and each sends to the other's. UDP does
//! not reveal whether the far end is there, so the link always has carrier. What is sent while the
//! far end is not there is lost.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use vdens_plugin_kit::vnl::{Keys, Spec};
use vdens_plugin_kit::{Error, Link, MAX_LEGACY_FRAME, OpenRequest, Result, RxBatch, TxBatch};

const KEYS: Keys = Keys::new(&[]);

struct End(UdpSocket);

impl Link for End {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        match batch.receive_datagrams(&self.0, MAX_LEGACY_FRAME) {
            // The far end was not there for an earlier frame.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            result => result.map(drop).map_err(|e| Error::io("receive", &e)),
        }
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        batch.send_datagrams(&self.0, 0).or_else(|_| {
            // The far end is not there, or the first frame is too long for UDP: drop the frame.
            batch.count_dropped(1);
            Ok(1)
        })
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let spec = Spec::address_grammar(request.argument(), &KEYS)?;
    spec.no_nested()?;
    let word = spec.target_str()?;
    let port = word
        .parse()
        .ok()
        .filter(|port| (1..u16::MAX).contains(port));
    let port = port.ok_or_else(|| {
        Error::usage(format!("'{word}' is no port")).hint("write template://PORT, from 1 to 65534")
    })?;
    let bind = |port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port));
    let (socket, far) = match bind(port) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => (bind(port + 1), port),
        first => (first, port + 1),
    };
    let cannot = |error| {
        Error::io(format_args!("open UDP port {port} or the next"), &error).hint("take another one")
    };
    let socket = socket.map_err(cannot)?;
    socket.connect((Ipv4Addr::LOCALHOST, far)).map_err(cannot)?;
    Ok(Box::new(End(socket)))
}

vdens_plugin_kit::export_plugin! {
    scheme: "template",
    description: "a cable of UDP datagrams between two processes of this machine",
    open: open,
}
