//! What carries the time at which it was sent, and how late it comes.
//!
//! Theory of operation. The sender writes the time into each frame right before it gives it to the
//! kernel, and the kernel says when the receiver's socket got it (`SO_TIMESTAMPNS` of socket(7)).
//! So what counts is the path between the two sockets, and not when the sender or the receiver had
//! a processor.
//!
//! `stamp` and `late` are at the ends of a path between two namespaces. `cable` is both ends of
//! another program's two cables: it binds the sockets that `ptp://` joins as the second comer. So
//! nothing but that program is between its two sockets.

use std::fmt::Debug;
use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt, sockopt,
};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::{BUFFER, BURST, NAP, PAYLOAD, SILENCE, STAMP, bind, paced};
use crate::Result;

/// How far from its time a frame may come.
const IN_TIME: Duration = Duration::from_millis(1);

/// How long the other program may take to join both cables.
const JOINING: Duration = Duration::from_secs(10);

/// An Ethernet header, of the ethertype for local experiments that vdens itself does not use.
const HEADER: [u8; 14] = [0x02, 0xba, 0, 0, 0, 2, 0x02, 0xba, 0, 0, 0, 1, 0x88, 0xb6];

/// The time that the kernel's stamps have.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(Duration::ZERO, Duration::from)
}

/// Sends `rate` messages a second from a connected socket: a header, the mark, the time, and zeros.
fn send(socket: impl AsFd, header: &[u8], limit: Duration, rate: u64) -> (u64, Duration) {
    let mut messages = [[0; HEADER.len() + PAYLOAD]; BURST];
    let length = header.len() + PAYLOAD;
    for message in &mut messages {
        let mark = [header, &STAMP].concat();
        message[..mark.len()].copy_from_slice(&mark);
    }
    let at = header.len() + STAMP.len();
    let mut headers = MultiHeaders::preallocate(1, None);
    let (sent, refused, time) = paced(
        rate,
        |_, elapsed| elapsed >= limit,
        |due, _| {
            let messages = messages
                .iter_mut()
                .take(usize::try_from(due).unwrap_or(BURST));
            let mut taken = 0;
            for message in messages {
                let nanoseconds = now().as_nanos() as u64;
                message[at..][..8].copy_from_slice(&nanoseconds.to_be_bytes());
                let slices = [[IoSlice::new(&message[..length])]];
                let (fd, flags) = (socket.as_fd().as_raw_fd(), MsgFlags::MSG_DONTWAIT);
                let sent = sendmmsg(fd, &mut headers, &slices, [None::<()>], [], flags);
                taken += u64::from(sent.is_ok());
            }
            taken
        },
    );
    (sent - refused, time)
}

/// What came, and how late.
#[derive(Debug)]
struct Arrivals {
    delay: Duration,
    received: u64,
    in_time: u64,
    /// How far each was off its time, in nanoseconds.
    off: Vec<u64>,
    last: Option<Instant>,
}

impl Arrivals {
    fn new(delay: Duration) -> Self {
        Self {
            delay,
            received: 0,
            in_time: 0,
            off: Vec::new(),
            last: None,
        }
    }

    /// Takes what a socket has, each with a header of `header` bytes; whether that was all.
    fn receive(&mut self, socket: impl AsFd, header: usize) -> Result<bool> {
        let mut buffers = [[0; BUFFER]; BURST];
        let mut headers = MultiHeaders::<()>::preallocate(BURST, Some(cmsg_space!(TimeSpec)));
        let mut slices: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect();
        let (fd, flags) = (socket.as_fd().as_raw_fd(), MsgFlags::MSG_DONTWAIT);
        let mut times = Vec::with_capacity(BURST);
        match recvmmsg(fd, &mut headers, &mut slices, flags, None) {
            Ok(messages) => {
                for message in messages {
                    let stamp = message.cmsgs()?.find_map(|control| match control {
                        ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time)),
                        _ => None,
                    });
                    times.push(stamp.ok_or("the kernel does not say when it got a message")?);
                }
            }
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        for (time, buffer) in times.iter().zip(&buffers) {
            let Some(sent) = buffer[header..].strip_prefix(&STAMP) else {
                continue;
            };
            let sent = sent.first_chunk().copied().unwrap_or_default();
            let took = time.saturating_sub(Duration::from_nanos(u64::from_be_bytes(sent)));
            let off = took.abs_diff(self.delay);
            self.received += 1;
            self.in_time += u64::from(off <= IN_TIME);
            self.off.push(off.as_nanos() as u64);
            self.last = Some(Instant::now());
        }
        Ok(times.len() < BURST)
    }

    /// Whether nothing has come for a while, and something before.
    fn is_over(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() > SILENCE)
    }

    fn report(mut self, sent: Option<u64>) {
        self.off.sort_unstable();
        let at = |share: f64| {
            let rank = (self.off.len() as f64 * share) as usize;
            let rank = rank.min(self.off.len().saturating_sub(1));
            self.off.get(rank).map(|off| *off as f64 / 1e3)
        };
        println!(
            "{}",
            json!({
                "sent": sent,
                "received": self.received,
                "in-time": self.in_time,
                "off-p50": at(0.5),
                "off-p99": at(0.99),
                "off-most": at(1.0),
            })
        );
    }
}

/// Sends `rate` datagrams a second.
pub(super) fn stamp(to: SocketAddr, limit: Duration, rate: u64) -> Result<()> {
    let socket = bind(0)?;
    socket.connect(to)?;
    let (sent, time) = send(&socket, &[], limit, rate);
    println!("{}", json!({ "sent": sent, "seconds": time.as_secs_f64() }));
    Ok(())
}

/// Counts datagrams, and those that come `delay` after they were sent.
pub(super) fn late(port: u16, limit: Duration, delay: Duration) -> Result<()> {
    let socket = bind(port)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    let deadline = Instant::now() + limit;
    let mut arrivals = Arrivals::new(delay);
    while Instant::now() < deadline && !arrivals.is_over() {
        if arrivals.receive(&socket, 0)? {
            sleep(NAP);
        }
    }
    arrivals.report(None);
    Ok(())
}

/// Sends `rate` frames a second into the cable at the first path, and counts those that come out of
/// the other `delay` later.
pub(super) fn cable(
    paths: [PathBuf; 2],
    limit: Duration,
    rate: u64,
    delay: Duration,
) -> Result<()> {
    let sockets = [
        UnixDatagram::bind(&paths[0])?,
        UnixDatagram::bind(&paths[1])?,
    ];
    let [from, to] = &sockets;
    setsockopt(to, sockopt::ReceiveTimestampns, &true)?;
    let joined = Instant::now() + JOINING;
    for (socket, path) in sockets.iter().zip(&paths) {
        socket.set_nonblocking(true)?;
        join(socket, path, joined)?;
    }
    // Until one has come through, there may be no carrier.
    let mut first = Arrivals::new(delay);
    while first.received == 0 {
        if Instant::now() > joined {
            return Err("nothing comes through".into());
        }
        send(from, &HEADER, Duration::from_millis(10), 1000);
        first.receive(to, HEADER.len())?;
    }
    while !first.is_over() {
        if first.receive(to, HEADER.len())? {
            sleep(NAP);
        }
    }
    let is_sent = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| -> std::result::Result<Arrivals, String> {
            let mut arrivals = Arrivals::new(delay);
            while !(is_sent.load(Ordering::Relaxed) && arrivals.is_over()) {
                let receive = arrivals.receive(to, HEADER.len());
                if receive.map_err(|error| error.to_string())? {
                    sleep(NAP);
                }
            }
            Ok(arrivals)
        });
        let (sent, _) = send(from, &HEADER, limit, rate);
        is_sent.store(true, Ordering::Relaxed);
        let arrivals = receiver.join().map_err(|_| "the receiver panicked")??;
        arrivals.report(Some(sent));
        Ok(())
    })
}

/// Connects a socket to the one of the second comer at a cable's path.
fn join(socket: &UnixDatagram, path: &Path, until: Instant) -> Result<()> {
    let mut other = path.as_os_str().to_owned();
    other.push("+");
    while let Err(error) = socket.connect(&other) {
        if Instant::now() > until {
            return Err(format!("no end joins {}: {error}", path.display()).into());
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}
