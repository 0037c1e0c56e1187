//! The messages in the first frames between two of our own ends.

use fastrand::Rng;
use vdens_plugin_kit::negotiation::{Negotiation, Received};
use vdens_plugin_kit::wire::hello::{Body, Cable, Message, Nonce, SUPER_PREFIX, is_message};
use vdens_plugin_kit::{Offloads, PanelAddress};

use super::{Target, append, ensure};

pub(crate) struct Messages;

/// A message of the fields that an input gives.
fn message(input: &[u8]) -> Message {
    let (head, rest) = input.split_at(input.len().min(20));
    let field = |at: usize| head.get(at).copied().unwrap_or(0);
    let number =
        |from: usize| (0..8).fold(0, |number, at| number << 8 | u64::from(field(from + at)));
    let body = match field(0) % 5 {
        0 => Body::Plugged,
        1 => Body::Declined,
        2 => Body::Accept(Offloads(number(1) as u32).intersection(Offloads::ALL)),
        kind => {
            let mut place = String::from_utf8_lossy(rest).into_owned();
            let mut end = place.len().min(255);
            while !place.is_char_boundary(end) {
                end -= 1;
            }
            place.truncate(end);
            Body::Hello {
                process: u32::from(field(9)),
                panel_address: (kind == 3).then_some(PanelAddress {
                    panel: number(1) | 1,
                    place,
                }),
            }
        }
    };
    Message {
        cable: Cable {
            device: u64::from(field(10)),
            inode: u64::from(field(11)),
        },
        to: Nonce(u64::from(field(12) % 4)),
        from: Nonce(u64::from(field(13) % 4)),
        body,
    }
}

impl Target for Messages {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        let len = random.usize(..40);
        append(random, input, 20);
        input.resize(20 + len, b'7');
        *input = message(input).encode();
        match random.usize(..8) {
            0 => input.truncate(SUPER_PREFIX.len() + random.usize(..20)),
            1 => append(random, input, 20),
            _ => {}
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        if let Some(message) = Message::decode(input) {
            ensure(is_message(input), || format!("{message:?} is none"))?;
            let again = Message::decode(&message.encode());
            ensure(again.as_ref() == Some(&message), || {
                format!("{message:?} becomes {again:?}")
            })?;
        }
        let made = message(input);
        let again = Message::decode(&made.encode());
        ensure(again.as_ref() == Some(&made), || {
            format!("{made:?} becomes {again:?}")
        })?;
        believes_who_knows_its_nonce(input)
    }
}

/// An end of nonce 1 believes nothing that does not carry it, and always says little.
fn believes_who_knows_its_nonce(input: &[u8]) -> Result<(), String> {
    let cable = Message::decode(input).map_or_else(Cable::default, |message| message.cable);
    let mut end = Negotiation::on_cable(cable, Nonce(1), None, 7);
    let seen = end.receive(input);
    ensure((seen == Received::Frame) != is_message(input), || {
        format!("a message is {seen:?}")
    })?;
    let knows = Message::decode(input).is_some_and(|message| message.to == Nonce(1));
    ensure(knows || !end.is_proven(), || {
        "it believes a stranger".to_owned()
    })?;
    for _ in 0..4 {
        if end.next_message().is_none() {
            return Ok(());
        }
        end.message_sent();
    }
    Err("it does not stop talking".to_owned())
}
