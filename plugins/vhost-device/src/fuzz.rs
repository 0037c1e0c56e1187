//! What must be true whatever front ends and guests send, for the fuzzer (tests/fuzz).

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vdens_plugin_kit::{BATCH_FRAMES, Batch, MAX_FRAME, MIN_FRAME};

use crate::connection::{Connection, End};
use crate::device::Device;
use crate::guest::{Descriptor, Guest, copy};
use crate::protocol::{HEADER, Header, Request};
use crate::wakeups::{Gate, Wakeups};

/// Pairs of queues of the device.
const PAIRS: usize = 2;

/// How many calls a device may need until it has taken what its guest has: the longest rings, a
/// batch at a time.
const CALLS: usize = PAIRS * 4096 / BATCH_FRAMES + PAIRS;

/// A device whose guest and front end do what an input says.
#[derive(Debug)]
pub struct Rings {
    guest: Guest,
    wakeups: Arc<Wakeups>,
    gate: Gate,
    batch: Batch,
}

/// What is left of an input.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn number(&mut self, bytes: usize) -> u64 {
        let mut number = [0; 8];
        let taken = self.take(bytes);
        number[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(number)
    }
}

impl Rings {
    /// A guest.
    ///
    /// # Errors
    /// There is no memory or no descriptor left.
    pub fn new() -> Result<Self, String> {
        let wakeups = Wakeups::new().map_err(|error| error.to_string())?;
        Ok(Self {
            guest: Guest::new()?,
            gate: Gate::new(&wakeups).map_err(|error| error.to_string())?,
            wakeups,
            batch: Batch::new(),
        })
    }

    /// Features of the device in eight bytes; if the first is odd, it is plugged into the guest.
    /// Then steps, each behind a byte that says which one it is.
    ///
    /// # Errors
    /// A property that does not hold.
    pub fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let mut input = Input(input);
        self.guest.write(0, &[0; 0x6000]);
        let mut device = Device::new("fuzz".into(), PAIRS, 1500);
        let features = input.number(8);
        if features & 1 != 0 {
            // It refuses features that it does not have.
            let _ = self
                .guest
                .plug(&mut device, &self.wakeups, features, 2 * PAIRS as u32);
        }
        while !input.0.is_empty() {
            self.step(&mut device, &mut input)?;
        }
        for _ in 0..CALLS {
            self.receive(&mut device)?;
            if !device.is_pending() {
                return Ok(());
            }
        }
        Err("the device does not come to rest".into())
    }

    fn step(&mut self, device: &mut Device, input: &mut Input<'_>) -> Result<(), String> {
        let step = input.number(1);
        let ring = (step >> 4) as u32 & 3;
        match step & 7 {
            0 => {
                let (code, fds, length) = (input.number(1), input.number(1), input.number(1));
                if let Ok(request) = Request::parse(code as u32, input.take(length as usize)) {
                    let fds = (0..fds & 3).map(|_| self.file(fds >> 2));
                    let fds = fds.collect::<Result<_, _>>()?;
                    // A request that is refused ends the connection, and the device with it.
                    if device.handle(request, fds, &self.wakeups).is_err() {
                        *device = Device::new("fuzz".into(), PAIRS, 1500);
                    }
                }
            }
            1 => {
                let (at, length) = (input.number(3), input.number(1));
                self.guest.write(at, input.take(length as usize));
            }
            2 | 3 => {
                let index = input.number(1) as u16;
                let address = input.number(if step & 8 == 0 { 3 } else { 8 });
                let length = input.number(if step & 8 == 0 { 2 } else { 4 });
                let (flags, next) = (input.number(1), input.number(1));
                let descriptor = Descriptor(address, length as u32, flags as u16, next as u16);
                self.guest.describe(ring, index, descriptor);
                if step & 1 == 0 {
                    self.guest.offer(ring, index);
                }
            }
            4 => self.guest.offer(ring, input.number(1) as u16),
            5 => self.receive(device)?,
            _ => {
                let length = input.number(if step & 8 == 0 { 1 } else { 2 }) as usize;
                let length = MIN_FRAME + length % (MAX_FRAME - MIN_FRAME + 1);
                self.send(device, length, input.number(1) as usize)?;
            }
        }
        Ok(())
    }

    fn file(&self, kind: u64) -> Result<OwnedFd, String> {
        let file = match kind & 3 {
            0 => return self.guest.file(),
            1 => copy(&self.guest.kick),
            2 => copy(&self.guest.call),
            _ => File::open("/dev/null").map(OwnedFd::from),
        };
        file.map_err(|error| error.to_string())
    }

    fn receive(&mut self, device: &mut Device) -> Result<(), String> {
        self.batch.clear();
        device.receive(&mut self.batch.rx());
        let taken = self.batch.len() as u64 + self.batch.take_dropped();
        if taken > BATCH_FRAMES as u64 {
            return Err(format!("{taken} frames were taken at once"));
        }
        let frames = self.batch.tx(0);
        let mut lengths = frames.frames().map(|frame| frame.bytes().len());
        match lengths.find(|length| !(MIN_FRAME..=MAX_FRAME).contains(length)) {
            Some(length) => Err(format!("a frame of {length} bytes")),
            None => Ok(()),
        }
    }

    fn send(&mut self, device: &mut Device, length: usize, number: usize) -> Result<(), String> {
        self.batch.clear();
        let frame = vec![7; length];
        while self.batch.len() < number && self.batch.rx().push(&frame) {}
        let offered = self.batch.len();
        let taken = device.send(&mut self.batch.tx(0), &self.gate);
        let dropped = self.batch.take_dropped();
        match taken <= offered && dropped <= taken as u64 {
            true => Ok(()),
            false => Err(format!(
                "of {offered} frames, {taken} were taken and {dropped} dropped"
            )),
        }
    }
}

/// The bytes of a connection, after one byte that says in what pieces they come.
///
/// # Errors
/// A property that does not hold.
pub fn requests(input: &[u8]) -> Result<(), String> {
    let Some((piece, bytes)) = input.split_first() else {
        return Ok(());
    };
    let pair = || UnixStream::pair().map_err(|error| error.to_string());
    let (mut front_end, socket) = pair()?;
    let mut connection = Connection::new(socket.into());
    let mut received = Vec::new();
    let mut end = None;
    for piece in bytes.chunks(usize::from(*piece).max(1)) {
        front_end.write_all(piece).map_err(|e| e.to_string())?;
        while end.is_none() {
            match connection.next() {
                Ok(Some(message)) => received.push((message.header, message.request)),
                Ok(None) => break,
                Err(why) => end = Some(why),
            }
        }
        if end.is_some() {
            break;
        }
    }
    let (mut expected, mut rest) = (Vec::new(), bytes);
    let mut is_malformed = false;
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER>() {
        let Ok(header) = Header::parse(header) else {
            is_malformed = true;
            break;
        };
        let Some((body, behind)) = behind.split_at_checked(header.body) else {
            break;
        };
        let Ok(request) = Request::parse(header.code, body) else {
            is_malformed = true;
            break;
        };
        expected.push((header, request));
        rest = behind;
    }
    let has_failed = matches!(end, Some(End::Failed(_)));
    match received == expected && has_failed == is_malformed {
        true => Ok(()),
        false => Err(format!("{received:?}, {end:?} instead of {expected:?}")),
    }
}
