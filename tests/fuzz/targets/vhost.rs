//! Front ends of `vhost-user://` and their guests. The properties are beside the device.

use fastrand::Rng;
use vdens_vhost_device::fuzz::{self, Rings};

use super::{Target, append, pick};

/// The codes of requests, and bytes of the bodies that they have.
const REQUESTS: [(u8, usize); 18] = [
    (1, 0),
    (2, 8),
    (3, 0),
    (4, 0),
    (5, 40),
    (6, 8),
    (8, 8),
    (9, 40),
    (10, 8),
    (11, 8),
    (12, 8),
    (13, 8),
    (14, 8),
    (15, 0),
    (16, 8),
    (17, 0),
    (18, 8),
    (20, 8),
];

/// A body in which most numbers are small.
fn body(random: &mut Rng, length: usize) -> Vec<u8> {
    let mut body = vec![0; length];
    for place in body.iter_mut().step_by(4) {
        *place = random.u8(..8);
    }
    if random.u8(..4) == 0 && !body.is_empty() {
        let at = random.usize(..body.len());
        body[at] = *pick(random, &[1, 16, 128, 255]);
    }
    body
}

/// What a device is asked and given: see [`Rings::check`].
pub(crate) struct Queues(Rings);

impl Queues {
    pub(crate) fn new() -> Self {
        match Rings::new() {
            Ok(rings) => Self(rings),
            Err(why) => panic!("{why}"),
        }
    }
}

impl Target for Queues {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        // Checksums and the protocol features; mergeable buffers; EVENT_IDX and tables; version 1.
        let features = [0x03, *pick(random, &[0, 0x80]), 0, 0x40, 1, 0, 0, 0];
        input.extend(features);
        input[3] |= *pick(random, &[0, 0x10, 0x20, 0x30]);
        input[0] &= random.u8(..16) | 1;
        for _ in 0..random.usize(1..40) {
            let ring = random.u8(..4) << 4;
            match random.u8(..8) {
                0 => {
                    let (code, length) = *pick(random, &REQUESTS);
                    let fds = u8::from(matches!(code, 5 | 12..=14)) | random.u8(..4) << 2;
                    input.extend([0, code, fds, length as u8]);
                    input.extend(body(random, length));
                }
                1 => {
                    // Into a ring: its available or used part, or a descriptor.
                    let at = 0x1000 * (1 + u32::from(ring >> 4)) + random.u32(..0xc00);
                    let length = random.u8(1..9);
                    input.push(1);
                    input.extend(&at.to_le_bytes()[..3]);
                    input.push(length);
                    append(random, input, length.into());
                }
                2..=4 => {
                    let step = *pick(random, &[2, 2, 2, 3, 3, 10, 11]);
                    input.extend([step | ring, random.u8(..33)]);
                    let long = step & 8 != 0;
                    let at = random.u64(..0x3_f000) + 0x1000;
                    input.extend(&at.to_le_bytes()[..if long { 8 } else { 3 }]);
                    let length = *pick(random, &[0, 12, 16, 26, 64, 512, 1524, 0xffff]);
                    let length = length + u32::from(random.u8(..2));
                    input.extend(&length.to_le_bytes()[..if long { 4 } else { 2 }]);
                    // To the guest if the ring is even, and now and then the other way round.
                    let write = if ring & 16 == 0 { 2 } else { 0 };
                    let flags = write ^ *pick(random, &[0, 0, 0, 0, 1, 1, 1, 2, 4, 5]);
                    input.extend([flags, random.u8(..33)]);
                }
                5 => input.extend([4 | ring, random.u8(..33)]),
                6 => input.push(5),
                _ => {
                    input.extend([14, random.u8(..), *pick(random, &[0, 0, 1, 6, 255])]);
                    input.push(random.u8(..33));
                }
            }
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        self.0.check(input)
    }
}

/// The bytes of a connection: see [`fuzz::requests`].
pub(crate) struct Requests;

impl Target for Requests {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        input.push(*pick(random, &[1, 5, 12, 100, 255]));
        for _ in 0..random.usize(..6) {
            let (code, length) = *pick(random, &REQUESTS);
            let flags = *pick(random, &[1, 1, 1, 1, 9, 9, 9, 5, 0]);
            let off = u32::from(random.u8(..32) == 0);
            input.extend(u32::from(code).to_ne_bytes());
            input.extend(u32::to_ne_bytes(flags));
            input.extend((length as u32 + off).to_ne_bytes());
            input.extend(body(random, length));
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        fuzz::requests(input)
    }
}
