//! What `nat://` and `--auto` read: packets of clients and of the kernel, DHCP, advertisements,
//! the messages between the processes, and what people write. The properties are beside the
//! parsers.

use fastrand::Rng;

use super::{Target, append, pick};

/// The beginning of a DHCP message up to its options (RFC 2131, section 2), with the magic cookie.
fn dhcp_header(random: &mut Rng) -> Vec<u8> {
    let address_length = *pick(random, &[6, 6, 6, 6, 6, 0, 17, 255]);
    let mut bytes = vec![*pick(random, &[1, 1, 1, 2]), 1, address_length, 0];
    bytes.extend([9; 4]);
    bytes.resize(28, 0);
    // The client's Ethernet address: one of many, so that addresses run out.
    bytes.extend([2, 0, 0, 0, 0, random.u8(..64)]);
    bytes.resize(236, 0);
    bytes.extend([0x63, 0x82, 0x53, 0x63]);
    bytes
}

/// Options of DHCP, each with its length, most of which a client or a server sends.
fn dhcp_options(random: &mut Rng, bytes: &mut Vec<u8>) {
    bytes.extend([53, 1, random.u8(..9)]);
    for _ in 0..random.usize(..5) {
        let kind = *pick(
            random,
            &[1, 3, 6, 12, 15, 26, 50, 51, 54, 55, 61, 82, 119, 255],
        );
        let length = *pick(random, &[0, 1, 2, 4, 4, 8, 20]);
        bytes.extend([kind, length]);
        match random.usize(..3) {
            0 => bytes.extend([10, 0, 2, random.u8(..40)].iter().take(length.into())),
            _ => append(random, bytes, length.into()),
        }
    }
    bytes.push(255);
}

/// An IP packet, or nearly one.
fn packet(random: &mut Rng, bytes: &mut Vec<u8>) {
    let length = random.usize(..48);
    match random.bool() {
        true => bytes.extend([*pick(random, &[0x45, 0x45, 0x46, 0x40, 0x4f]), 0, 0, 40]),
        false => bytes.extend([0x60, 0, 0, 0, 0, 20, *pick(random, &[6, 58, 17]), 64]),
    }
    append(random, bytes, length);
    if let Some(protocol) = bytes.get_mut(9) {
        *protocol = *pick(random, &[6, 1, 17]);
    }
}

pub(crate) struct Packets;

impl Target for Packets {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        if random.u8(..3) == 0 {
            return packet(random, input);
        }
        // Messages of the kernel's queue (linux/netlink.h, linux/netfilter/nfnetlink_queue.h).
        for _ in 0..random.usize(1..4) {
            let mut body = vec![2, 0, 0, 0];
            body.extend([11, 0, 1, 0, 0, 0, 0, random.u8(..), 0, 0, 0, 0]);
            let mut payload = Vec::new();
            packet(random, &mut payload);
            body.extend((4 + payload.len() as u16).to_ne_bytes());
            body.extend([10, 0]);
            body.extend(payload);
            body.resize(body.len().next_multiple_of(4), 0);
            let length = 16 + body.len() as u32 + u32::from(random.u8(..20) == 0);
            input.extend(length.to_ne_bytes());
            input.extend(pick(random, &[0x0300_u16, 0x0300, 2, 3]).to_ne_bytes());
            input.extend([0; 10]);
            input.extend(body);
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        vdens_nat::fuzz::packets(input)
    }
}

pub(crate) struct Dhcp;

impl Target for Dhcp {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        for _ in 0..random.usize(1..40) {
            let mut message = dhcp_header(random);
            match random.usize(..8) {
                0 => message = vec![11, 1, 2, 3, 0, 1, 0, random.u8(..9)],
                _ => dhcp_options(random, &mut message),
            }
            if random.u8(..8) == 0 {
                message.truncate(random.usize(..message.len()));
            }
            input.extend((message.len() as u16).to_be_bytes());
            input.extend(message);
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        vdens_nat::fuzz::dhcp(input)
    }
}

/// What the processes say to each other.
const MESSAGES: [&str; 12] = [
    r#"{"sockets":{"protocol":"tcp","ipv6":false}}"#,
    r#"{"failed":[{"protocol":"udp","ipv6":true},"why"]}"#,
    r#""ping""#,
    r#""alive""#,
    r#""started""#,
    r#"{"Ok":{"families":2,"hold":"queue"}}"#,
    r#"{"Err":"why"}"#,
    r#"{"warning":"text"}"#,
    r#"{"status":{"connections":"1"}}"#,
    r#"{"add":["tcp","8080:80"]}"#,
    r#"{"remove":["udp","5000-5009:6000-6009"]}"#,
    r#""list""#,
];

pub(crate) struct Messages;

impl Target for Messages {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        input.extend(pick(random, &MESSAGES).as_bytes());
        if random.bool() && !input.is_empty() {
            let at = random.usize(..input.len());
            input[at] = *pick(random, b"\"{}[],:0-9\\\x00\xff");
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        vdens_nat::fuzz::messages(input)
    }
}

/// What the argument of `nat://` is made of.
const PIECES: [&str; 30] = [
    "net=",
    "net6=",
    "ipv4=",
    "ipv6=",
    "tcp=",
    "udp=",
    "host=",
    "bind=",
    "dns=",
    "mtu=",
    "/",
    ",",
    "-",
    ":",
    "'",
    "auto",
    "no",
    "yes",
    "80",
    "8080:80",
    "5000-5009",
    "65535",
    "0",
    "10.9.0.0/24",
    "0.0.0.0/0",
    "255.255.255.255/32",
    "fd00::/64",
    "[::1]:",
    "10.0.2.2",
    "nameserver fe80::1%lo",
];

pub(crate) struct Keys;

impl Target for Keys {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        for _ in 0..random.usize(..8) {
            input.extend(pick(random, &PIECES).as_bytes());
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        vdens_nat::fuzz::settings(input)
    }
}

pub(crate) struct Auto;

impl Target for Auto {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        match random.usize(..3) {
            0 => {
                input.extend(dhcp_header(random));
                dhcp_options(random, input);
            }
            1 => {
                input.extend([134, 0, 0, 0, 64, random.u8(..)]);
                input.resize(16, 0);
                for _ in 0..random.usize(..4) {
                    let length = random.u8(..5);
                    input.extend([*pick(random, &[1, 3, 5, 25, 31]), length]);
                    append(random, input, (usize::from(length) * 8).saturating_sub(2));
                }
            }
            _ => {
                input.extend([*pick(random, &[2, 7]), 1, 2, 3]);
                for _ in 0..random.usize(..4) {
                    let length = random.u8(..40);
                    input.extend([0, *pick(random, &[1, 2, 3, 23, 24]), 0, length]);
                    append(random, input, length.into());
                }
            }
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        vdens::fuzz::auto(input)
    }
}
