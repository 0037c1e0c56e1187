//! What two of our own ends tell each other in the first frames, so that frames can take a better way.
//!
//! Each message is an Ethernet frame of the local experimental ethertype 0x88B5 (IEEE 802, clause 9) to
//! an address that bridges do not forward, so a legacy peer's kernel drops it. Behind the header: the
//! magic `VDEN`, a version, the kind of message, and its contents, numbers in network byte order. All but
//! a super-frame start with the [`Cable`] they are about: a message that somebody has carried over from another
//! cable is for nobody. An end that does not know a version or a kind ignores the message.
//!
//! | kind | contents |
//! |---|---|
//! | 1 hello | flags (bit 0: answer wanted), panel (8 bytes, 0 for none), place (1 byte length, text) |
//! | 2 plugged | |
//! | 3 declined | |
//! | 4 accept | offload bits (4 bytes) that frames sent to this end may have left undone |
//! | 5 super-frame | the virtio header in host byte order, and the frame: for the network |

use crate::{Offloads, Ticket};

/// The ethertype of the messages.
pub const ETHERTYPE: u16 = 0x88b5;

const MAGIC: &[u8; 4] = b"VDEN";
const VERSION: u8 = 1;

/// What stands in front of a super-frame's virtio header: the message's header. It goes to the nearest
/// non-TPMR bridge group address (IEEE 802.1Q table 8-1), from a locally administered one.
pub const SUPER_PREFIX: [u8; 20] = [
    0x01, 0x80, 0xc2, 0x00, 0x00, 0x03, 0x02, b'v', b'd', b'e', b'n', b's', 0x88, 0xb5, b'V', b'D',
    b'E', b'N', VERSION, 5,
];

/// What two ends of one cable both know, and no other cable has: device and inode number of the socket
/// that they meet at. The default stands for the way between a switch and its client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cable {
    /// The device.
    pub device: u64,
    /// The inode's number.
    pub inode: u64,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// Who is there.
    Hello {
        /// Whether a hello is wanted in return.
        answer: bool,
        /// Where the sender's interface can be plugged.
        ticket: Option<Ticket>,
    },
    /// The sender's interface is plugged into the receiver's.
    Plugged,
    /// The sender's interface could not be plugged.
    Declined,
    /// What frames sent to the sender of this may leave undone.
    Accept(Offloads),
}

impl Hello {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => 1,
            Self::Plugged => 2,
            Self::Declined => 3,
            Self::Accept(_) => 4,
        }
    }

    /// The message as a frame.
    pub fn encode(&self, cable: Cable) -> Vec<u8> {
        // All but the kind.
        let mut frame = SUPER_PREFIX[..19].to_vec();
        frame.push(self.kind());
        frame.extend(cable.device.to_be_bytes());
        frame.extend(cable.inode.to_be_bytes());
        match self {
            Self::Hello { answer, ticket } => {
                frame.push(u8::from(*answer));
                let (panel, place) = match ticket {
                    Some(ticket) => (ticket.panel, ticket.place.as_bytes()),
                    None => (0, &[][..]),
                };
                frame.extend(panel.to_be_bytes());
                let place = &place[..place.len().min(255)];
                frame.push(place.len() as u8);
                frame.extend(place);
            }
            Self::Plugged | Self::Declined => {}
            Self::Accept(offloads) => frame.extend(offloads.0.to_be_bytes()),
        }
        frame
    }

    /// Whether a frame is a message, known or not: no frame for the network.
    pub fn is_message(frame: &[u8]) -> bool {
        frame.get(12..14) == Some(&ETHERTYPE.to_be_bytes()) && frame.get(14..18) == Some(MAGIC)
    }

    /// The message in a frame; `None` if it is none that this end knows, or about another cable.
    pub fn decode(frame: &[u8], cable: Cable) -> Option<Self> {
        if !Self::is_message(frame) {
            return None;
        }
        let (version, kind, rest) = match frame.get(18..)? {
            [version, kind, rest @ ..] => (*version, *kind, rest),
            _ => return None,
        };
        let (device, rest) = rest.split_first_chunk()?;
        let (inode, rest) = rest.split_first_chunk()?;
        let (device, inode) = (u64::from_be_bytes(*device), u64::from_be_bytes(*inode));
        if cable != (Cable { device, inode }) {
            return None;
        }
        match (version, kind) {
            (VERSION, 1) => {
                let (flags, rest) = rest.split_first()?;
                let (panel, rest) = rest.split_first_chunk()?;
                let (length, rest) = rest.split_first()?;
                let panel = u64::from_be_bytes(*panel);
                let place = std::str::from_utf8(rest.get(..usize::from(*length))?).ok()?;
                Some(Self::Hello {
                    answer: flags & 1 != 0,
                    ticket: (panel != 0).then(|| Ticket {
                        panel,
                        place: place.to_owned(),
                    }),
                })
            }
            (VERSION, 2) => Some(Self::Plugged),
            (VERSION, 3) => Some(Self::Declined),
            (VERSION, 4) => {
                let bits = u32::from_be_bytes(*rest.first_chunk()?);
                Some(Self::Accept(Offloads(bits).intersection(Offloads::ALL)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CABLE: Cable = Cable {
        device: 0x1_0000_0001,
        inode: u64::MAX,
    };

    fn messages() -> Vec<Hello> {
        let ticket = Some(Ticket {
            panel: u64::MAX - 1,
            place: "4194304n7".into(),
        });
        vec![
            Hello::Hello {
                answer: true,
                ticket,
            },
            Hello::Hello {
                answer: false,
                ticket: None,
            },
            Hello::Plugged,
            Hello::Declined,
            Hello::Accept(Offloads::ALL),
        ]
    }

    #[test]
    fn messages_survive_the_round_trip() {
        for message in messages() {
            let frame = message.encode(CABLE);
            assert_eq!(Hello::decode(&frame, Cable::default()), None);
            assert_eq!(Hello::decode(&frame, CABLE), Some(message));
        }
    }

    #[test]
    fn whatever_comes_is_survived() {
        for message in messages() {
            let frame = message.encode(CABLE);
            for cut in 0..frame.len() {
                let _ = Hello::decode(&frame[..cut], CABLE);
            }
            for at in 12..frame.len() {
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    let mut changed = frame.clone();
                    changed[at] = value;
                    let _ = Hello::decode(&changed, CABLE);
                }
            }
        }
        assert!(!Hello::is_message(&[0xff; 60]));
    }
}
