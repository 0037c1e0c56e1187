//! The link that the host polls: one end of a socket pair. The connection's thread has the other.
//!
//! Nothing here waits for the thread without a limit. If a plugin hangs in a call, its link fails:
//! frames queue up until the pair is full. On closing, a thread that hangs is abandoned, and ends
//! with the process.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use vdens_plugin_kit::{
    Error, Link, MAX_LEGACY_FRAME, MAX_LEGACY_MTU, OpenOptions, Result, RxBatch, Status, TxBatch,
    log,
};

use crate::connection::Connection;
use crate::library::Library;
use crate::process::block_signals;
use crate::relay::{Relay, Stop};

/// How long a plugin may take to open a VNL.
const OPENING: Duration = Duration::from_secs(10);

/// How long a plugin may take to close a connection before its thread is abandoned. The host waits
/// 2 s for its worker.
const CLOSING: Duration = Duration::from_secs(1);

/// The thread's stack in bytes: as large as the usual one of a C program's first thread.
const STACK: usize = 8 << 20;

/// A connection of libvdeplug as a link.
#[derive(Debug)]
pub(crate) struct CLink {
    /// This end of the socket pair, non-blocking.
    pair: UnixDatagram,
    /// Brings first that the connection is open, and later why it broke. It is disconnected when
    /// the thread ends.
    events: Receiver<Result<()>>,
    /// Frames that the plugin did not take.
    lost: Arc<AtomicU64>,
    vnl: String,
}

impl CLink {
    /// Opens a VNL through the library.
    ///
    /// # Errors
    /// The plugin reports an error, or does not return in time.
    pub(crate) fn open(library: Library, vnl: &str, options: &OpenOptions) -> Result<Self> {
        let (pair, theirs) = pair().map_err(|error| Error::io("make a socket pair", &error))?;
        let (sender, events) = channel();
        let lost = Arc::new(AtomicU64::new(0));
        let (name, options, count) = (vnl.to_owned(), options.clone(), lost.clone());
        thread::Builder::new()
            .name("libvdeplug".into())
            .stack_size(STACK)
            .spawn(move || run(library, &name, &options, theirs, &count, &sender))
            .map_err(|error| Error::io("start a thread", &error))?;
        match events.recv_timeout(OPENING) {
            Ok(opened) => opened?,
            Err(RecvTimeoutError::Timeout) => {
                return Err(Error::closed(format!(
                    "the C plugin has not opened {vnl} within {} s",
                    OPENING.as_secs()
                )));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(died()),
        }
        log::info!("{vnl} is opened through libvdeplug");
        Ok(Self {
            pair,
            events,
            lost,
            vnl: vnl.to_owned(),
        })
    }

    /// Why the thread closed its end of the pair.
    fn broken(&self) -> Error {
        let event = self.events.try_recv().ok();
        event.and_then(Result::err).unwrap_or_else(died)
    }
}

impl Link for CLink {
    fn fd(&self) -> BorrowedFd<'_> {
        self.pair.as_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        batch.count_dropped(self.lost.swap(0, Ordering::Relaxed));
        loop {
            let filled = batch.fill(MAX_LEGACY_FRAME, |room| match self.pair.recv(room) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof),
                received => received.map_err(|error| error.kind()),
            });
            match filled {
                Ok(true) | Err(io::ErrorKind::Interrupted) => {}
                Ok(false) | Err(io::ErrorKind::WouldBlock) => return Ok(()),
                // First the frames that came before the end. The next call finds the end again.
                Err(_) if !batch.is_empty() => return Ok(()),
                Err(_) => return Err(self.broken()),
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            max_mtu: Some(MAX_LEGACY_MTU),
            ..Status::default()
        }
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        for index in 0..batch.len() {
            let frame = batch.frame(index).map(|frame| frame.bytes());
            let Some(frame) = frame.filter(|frame| frame.len() <= MAX_LEGACY_FRAME) else {
                batch.count_dropped(1);
                continue;
            };
            match send(self.pair.as_raw_fd(), frame, MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => {}
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(index),
                Err(_) => return Err(self.broken()),
            }
        }
        Ok(batch.len())
    }
}

impl Drop for CLink {
    fn drop(&mut self) {
        // The thread sees the end of its input.
        let _ = self.pair.shutdown(Shutdown::Both);
        let deadline = Instant::now() + CLOSING;
        let left = || deadline.saturating_duration_since(Instant::now());
        let end = loop {
            if let Err(end) = self.events.recv_timeout(left()) {
                break end;
            }
        };
        if end == RecvTimeoutError::Timeout {
            log::warn!(
                "the C plugin for {} does not close the connection; its thread is abandoned",
                self.vnl
            );
        }
    }
}

/// The thread: opens the connection, serves it, reports why it broke, and closes it.
fn run(
    library: Library,
    vnl: &str,
    options: &OpenOptions,
    pair: UnixDatagram,
    lost: &AtomicU64,
    events: &Sender<Result<()>>,
) {
    block_signals();
    // Sending fails if the opener has stopped waiting. It has then closed its end of the pair.
    let connection = match Connection::open(library, vnl, options) {
        Ok(connection) => connection,
        Err(error) => return drop(events.send(Err(error))),
    };
    let _ = events.send(Ok(()));
    let mut relay = Relay::new(connection, pair, lost);
    if let Stop::Broken(error) = relay.run() {
        let _ = events.send(Err(error));
    }
}

fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    // SOCK_SEQPACKET, because its ends see when the other is closed.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    Ok((ours.into(), theirs.into()))
}

fn died() -> Error {
    Error::closed("the thread of libvdeplug has ended")
}
