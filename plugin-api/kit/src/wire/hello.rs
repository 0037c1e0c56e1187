//! The messages by which two of our own ends agree on a better way for frames.
//!
//! Each message is an Ethernet frame of the local experimental ethertype 0x88B5 (IEEE 802, clause
//! 9). It goes to an address that bridges do not forward, so a legacy peer's kernel drops it.
//! Behind the Ethernet header are the magic `VDEN`, a version, the kind of message, an envelope and
//! the contents. Numbers are in network byte order. An end ignores messages of unknown versions and
//! kinds.
//!
//! The envelope has the [`Cable`] that the message was sent on (16 bytes), the receiver's [`Nonce`]
//! as the sender knows it (8 bytes, 0 while it knows none) and the sender's own (8 bytes). From
//! these, [`negotiation`](crate::negotiation) decides what to believe.
//!
//! | kind | contents |
//! |---|---|
//! | 1 hello | process id (4 bytes), panel (8 bytes, 0 for none), place (1 byte length, text) |
//! | 2 plugged | |
//! | 3 declined | |
//! | 4 accept | offload bits (4 bytes) that frames sent to this end may use |
//!
//! Kind 5 is a super-frame. Behind [`SUPER_PREFIX`] are its virtio header, in host byte order, and
//! the frame. It has no envelope.

use crate::{Error, Offloads, PanelAddress, Result};

/// The ethertype of the messages.
pub const ETHERTYPE: u16 = 0x88b5;

const MAGIC: &[u8; 4] = b"VDEN";
const VERSION: u8 = 2;

/// Bytes before a message's kind.
const HEADER_LEN: usize = SUPER_PREFIX.len() - 1;

/// The bytes in front of a super-frame's virtio header: the header of a message of kind 5. The
/// destination is the nearest non-TPMR bridge group address (IEEE 802.1Q table 8-1), the source a
/// locally administered address.
pub const SUPER_PREFIX: [u8; 20] = [
    0x01, 0x80, 0xc2, 0x00, 0x00, 0x03, 0x02, b'v', b'd', b'e', b'n', b's', 0x88, 0xb5, b'V', b'D',
    b'E', b'N', VERSION, 5,
];

/// The identity of a cable, which both its ends know and no other cable has: device and inode
/// number of the socket at which they meet. The default is for a switch and its client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cable {
    /// The device.
    pub device: u64,
    /// The inode's number.
    pub inode: u64,
}

/// A random number that an end chooses for one negotiation. A sender that knows it has received it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nonce(pub u64);

impl Nonce {
    /// In place of a nonce that is not known.
    pub const UNKNOWN: Self = Self(0);

    /// A new one, never [`Nonce::UNKNOWN`].
    ///
    /// # Errors
    /// The kernel has no random numbers (getrandom(2)).
    pub fn new() -> Result<Self> {
        let mut number = [0; 8];
        // SAFETY: the buffer is as long as the call is told.
        let read = unsafe { libc::getrandom(number.as_mut_ptr().cast(), number.len(), 0) };
        match usize::try_from(read) {
            // So few bytes come at once (getrandom(2)).
            Ok(_) => Ok(Self(u64::from_ne_bytes(number).max(1))),
            Err(_) => {
                let error = std::io::Error::last_os_error();
                Err(Error::io("read a random number", &error))
            }
        }
    }
}

/// A message and its envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The cable that it was sent on.
    pub cable: Cable,
    /// The receiver's nonce, as far as the sender knows it.
    pub to: Nonce,
    /// The sender's nonce.
    pub from: Nonce,
    /// Its contents.
    pub body: Body,
}

/// The contents of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The sender introduces itself.
    Hello {
        /// The sender's process id, for the user.
        process: u32,
        /// The panel address of the sender's interface, or of the sender's bridge.
        panel_address: Option<PanelAddress>,
    },
    /// The sender's interface is plugged into the receiver's.
    Plugged,
    /// The sender's interface could not be plugged.
    Declined,
    /// The offloads that frames sent to the sender may use.
    Accept(Offloads),
}

impl Body {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => 1,
            Self::Plugged => 2,
            Self::Declined => 3,
            Self::Accept(_) => 4,
        }
    }
}

/// Whether a frame is a message or a super-frame, of any version, and so not for the network.
pub fn is_message(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&ETHERTYPE.to_be_bytes()) && frame.get(14..18) == Some(MAGIC)
}

impl Message {
    /// The message as a frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = SUPER_PREFIX[..HEADER_LEN].to_vec();
        frame.push(self.body.kind());
        let (cable, to, from) = (self.cable, self.to.0, self.from.0);
        for number in [cable.device, cable.inode, to, from] {
            frame.extend(number.to_be_bytes());
        }
        match &self.body {
            Body::Hello {
                process,
                panel_address,
            } => {
                frame.extend(process.to_be_bytes());
                let (panel, place) = match panel_address {
                    Some(panel_address) => (panel_address.panel, panel_address.place.as_bytes()),
                    None => (0, &[][..]),
                };
                frame.extend(panel.to_be_bytes());
                let place = &place[..place.len().min(255)];
                frame.push(place.len() as u8);
                frame.extend(place);
            }
            Body::Plugged | Body::Declined => {}
            Body::Accept(offloads) => frame.extend(offloads.0.to_be_bytes()),
        }
        frame
    }

    /// The message in a frame; `None` if its version or kind is unknown, or it is malformed.
    pub fn decode(frame: &[u8]) -> Option<Self> {
        if !is_message(frame) {
            return None;
        }
        let [VERSION, kind, rest @ ..] = frame.get(HEADER_LEN - 1..)? else {
            return None;
        };
        let mut rest = rest;
        let mut number = || {
            let (bytes, left) = rest.split_first_chunk()?;
            rest = left;
            Some(u64::from_be_bytes(*bytes))
        };
        let cable = Cable {
            device: number()?,
            inode: number()?,
        };
        let (to, from) = (Nonce(number()?), Nonce(number()?));
        let body = match kind {
            1 => {
                let (process, rest) = rest.split_first_chunk()?;
                let (panel, rest) = rest.split_first_chunk()?;
                let (length, rest) = rest.split_first()?;
                let panel = u64::from_be_bytes(*panel);
                let place = std::str::from_utf8(rest.get(..usize::from(*length))?).ok()?;
                Body::Hello {
                    process: u32::from_be_bytes(*process),
                    panel_address: (panel != 0).then(|| PanelAddress {
                        panel,
                        place: place.to_owned(),
                    }),
                }
            }
            2 => Body::Plugged,
            3 => Body::Declined,
            4 => {
                let bits = u32::from_be_bytes(*rest.first_chunk()?);
                Body::Accept(Offloads(bits).intersection(Offloads::ALL))
            }
            _ => return None,
        };
        Some(Self {
            cable,
            to,
            from,
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages() -> impl Iterator<Item = Message> {
        let panel_address = Some(PanelAddress {
            panel: u64::MAX - 1,
            place: "0123456789abv".into(),
        });
        let hello = |panel_address| Body::Hello {
            process: 4_194_304,
            panel_address,
        };
        let bodies = [
            hello(panel_address),
            hello(None),
            Body::Plugged,
            Body::Declined,
            Body::Accept(Offloads::ALL),
        ];
        bodies.into_iter().map(|body| Message {
            cable: Cable {
                device: 0x1_0000_0001,
                inode: u64::MAX,
            },
            to: Nonce::UNKNOWN,
            from: Nonce(u64::MAX - 7),
            body,
        })
    }

    #[test]
    fn messages_survive_the_round_trip() {
        for message in messages() {
            let frame = message.encode();
            assert!(is_message(&frame));
            assert_eq!(Message::decode(&frame), Some(message));
        }
    }

    #[test]
    fn any_input_is_survived() {
        for message in messages() {
            let frame = message.encode();
            for cut in 0..frame.len() {
                assert_eq!(Message::decode(&frame[..cut]), None);
            }
            for at in 12..frame.len() {
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    let mut changed = frame.clone();
                    changed[at] = value;
                    let _ = Message::decode(&changed);
                }
            }
        }
        assert!(is_message(&SUPER_PREFIX) && Message::decode(&SUPER_PREFIX).is_none());
        assert!(!is_message(&[0xff; 60]));
    }

    #[test]
    fn no_nonce_is_the_unknown_one() {
        let (one, other) = (Nonce::new().unwrap(), Nonce::new().unwrap());
        assert!(one != other && one != Nonce::UNKNOWN);
    }
}
