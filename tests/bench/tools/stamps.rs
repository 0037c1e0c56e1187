//! Datagrams with the time at which they were sent, and how late they come.

use std::io::IoSlice;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, MultiHeaders, sendmmsg};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::{BUFFER, BURST, NAP, PAYLOAD, SILENCE, STAMP, bind, paced, receive};
use crate::Result;

/// How far from its time a datagram may come.
const IN_TIME: Duration = Duration::from_millis(1);

/// The time that all processes of the machine agree on.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// Sends `rate` datagrams a second. Those of one call, 64 at the most, have the same time.
pub(super) fn stamp(to: SocketAddr, limit: Duration, rate: u64) -> Result<()> {
    let socket = bind(0)?;
    socket.connect(to)?;
    let mut datagram = [0; PAYLOAD];
    datagram[..STAMP.len()].copy_from_slice(&STAMP);
    let addresses = [None::<()>; BURST];
    let mut headers = MultiHeaders::preallocate(BURST, None);
    let (sent, refused, time) = paced(
        rate,
        |_, elapsed| elapsed >= limit,
        |due, _| {
            let due = usize::try_from(due).unwrap_or(BURST);
            let nanoseconds = now().as_nanos() as u64;
            datagram[STAMP.len()..][..8].copy_from_slice(&nanoseconds.to_be_bytes());
            let slices = vec![[IoSlice::new(&datagram)]; due];
            let (fd, flags) = (socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT);
            let taken = sendmmsg(fd, &mut headers, &slices, &addresses[..due], [], flags);
            taken.map_or(0, |messages| messages.count() as u64)
        },
    );
    println!(
        "{}",
        json!({ "sent": sent - refused, "seconds": time.as_secs_f64() })
    );
    Ok(())
}

/// Counts datagrams, and those that come `delay` after they were sent.
pub(super) fn late(port: u16, limit: Duration, delay: Duration) -> Result<()> {
    let socket = bind(port)?;
    let deadline = Instant::now() + limit;
    let mut buffers = [[0; BUFFER]; BURST];
    let (mut received, mut in_time, mut most) = (0_u64, 0_u64, Duration::ZERO);
    let mut last = None;
    while Instant::now() < deadline && last.is_none_or(|last: Instant| last.elapsed() < SILENCE) {
        let taken = receive(&socket, &mut buffers)?;
        let now = now();
        for buffer in &buffers[..taken as usize] {
            let sent = buffer[STAMP.len()..]
                .first_chunk()
                .copied()
                .unwrap_or_default();
            let took = now.saturating_sub(Duration::from_nanos(u64::from_be_bytes(sent)));
            in_time += u64::from(took.abs_diff(delay) <= IN_TIME);
            most = most.max(took);
            last = Some(Instant::now());
        }
        received += taken;
        if taken < BURST as u64 {
            sleep(NAP);
        }
    }
    println!(
        "{}",
        json!({ "received": received, "in-time": in_time, "most-ms": most.as_secs_f64() * 1e3 })
    );
    Ok(())
}
