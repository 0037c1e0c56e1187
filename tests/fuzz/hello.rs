//! The messages in the first frames between two of our own ends.

use vdens_plugin_api::wire::hello::{Cable, Hello, SUPER_PREFIX};
use vdens_plugin_api::{Offloads, Ticket};

use crate::engine::{Target, ensure};
use crate::random::Random;

/// Where in a message its cable stands.
const CABLE: std::ops::Range<usize> = 20..36;

pub(crate) struct Messages;

fn cable(bytes: &[u8; 16]) -> Cable {
    let number = u128::from_be_bytes(*bytes);
    Cable {
        device: (number >> 64) as u64,
        inode: number as u64,
    }
}

/// A message of the fields that an input gives.
fn message(input: &[u8]) -> Hello {
    let (head, rest) = input.split_at(input.len().min(10));
    let field = |at: usize| head.get(at).copied().unwrap_or(0);
    let number = (0..8).fold(0, |number, at| number << 8 | u64::from(field(at + 1)));
    match field(0) % 5 {
        0 => Hello::Plugged,
        1 => Hello::Declined,
        2 => Hello::Accept(Offloads(number as u32).intersection(Offloads::ALL)),
        kind => {
            let mut place = String::from_utf8_lossy(rest).into_owned();
            let mut end = place.len().min(255);
            while !place.is_char_boundary(end) {
                end -= 1;
            }
            place.truncate(end);
            Hello::Hello {
                answer: field(9) & 1 != 0,
                ticket: (kind == 3).then_some(Ticket {
                    panel: number | 1,
                    place,
                }),
            }
        }
    }
}

impl Target for Messages {
    fn generate(&mut self, random: &mut Random, input: &mut Vec<u8>) {
        let len = random.below(40);
        random.append(input, 26);
        input.resize(26 + len, b'7');
        let (of, cable_of) = input.split_at(10);
        let fields = [of, b"4194304n7"].concat();
        let cable = cable_of.first_chunk().map(cable).unwrap_or_default();
        let frame = match random.chance(2) {
            true => message(&fields).encode(cable),
            false => message(input).encode(cable),
        };
        *input = frame;
        match random.below(8) {
            0 => input.truncate(SUPER_PREFIX.len() + random.below(20)),
            1 => random.append(input, 20),
            _ => {}
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let theirs = input.get(CABLE).and_then(<[u8]>::first_chunk).map(cable);
        for cable in [theirs.unwrap_or_default(), Cable::default()] {
            let Some(message) = Hello::decode(input, cable) else {
                continue;
            };
            ensure(Hello::is_message(input), || format!("{message:?} is none"))?;
            ensure(theirs == Some(cable), || {
                format!("{message:?} is about another cable")
            })?;
            let again = Hello::decode(&message.encode(cable), cable);
            ensure(again.as_ref() == Some(&message), || {
                format!("{message:?} becomes {again:?}")
            })?;
        }
        let (message, cable) = (message(input), theirs.unwrap_or_default());
        let frame = message.encode(cable);
        let again = Hello::decode(&frame, cable);
        ensure(again.as_ref() == Some(&message), || {
            format!("{message:?} becomes {again:?}")
        })?;
        let other = Cable {
            inode: cable.inode ^ 1,
            ..cable
        };
        let other = Hello::decode(&frame, other);
        ensure(other.is_none(), || format!("{other:?} on another cable"))
    }
}
