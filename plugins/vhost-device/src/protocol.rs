//! The messages of vhost-user (docs/interop/vhost-user.rst of QEMU), as the front end sends them.
//!
//! A message is a header of 12 bytes and a body. All numbers are in the byte order of the machine.
//! Descriptors come beside the bytes. Every answer has a body of eight bytes.
//!
//! Only those requests are known that a front end may send after the protocol features that this
//! back end offers ([`PROTOCOL_FEATURES`]).

/// Bytes of a header.
pub(crate) const HEADER: usize = 12;

/// The most memory regions that a front end may have, without the protocol feature for more.
pub(crate) const MAX_REGIONS: usize = 8;

/// Bytes of a memory region in a message.
const REGION: usize = 32;

/// Bytes of the longest body: the one with all memory regions.
pub(crate) const MAX_BODY: usize = 8 + MAX_REGIONS * REGION;

/// Bytes of an answer, with its header.
pub(crate) const ANSWER: usize = HEADER + 8;

/// The feature bit by which both sides agree to use protocol features.
pub(crate) const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// More than one pair of queues.
const PROTOCOL_MQ: u64 = 1 << 0;
/// Requests may ask for an acknowledgement.
pub(crate) const PROTOCOL_REPLY_ACK: u64 = 1 << 3;
/// The front end announces the MTU of the guest.
const PROTOCOL_NET_MTU: u64 = 1 << 4;

/// The protocol features of this back end.
pub(crate) const PROTOCOL_FEATURES: u64 = PROTOCOL_MQ | PROTOCOL_REPLY_ACK | PROTOCOL_NET_MTU;

/// The version, in the flags of a header, and the mask for it.
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
/// A flag of a header: it is an answer.
const ANSWERS: u32 = 1 << 2;
/// A flag of a header: the front end waits for an acknowledgement.
const WANTS_ACK: u32 = 1 << 3;

/// In the number of a queue: no descriptor comes with it.
const NO_FD: u64 = 1 << 8;

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Which request it is.
    pub code: u32,
    /// Whether the front end waits for an acknowledgement.
    pub wants_ack: bool,
    /// Bytes of the body.
    pub body: usize,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// It is none of a request, or the body would be longer than that of any request.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut fields = Fields(bytes);
        let (code, flags, length) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if flags & VERSION_MASK != VERSION || flags & ANSWERS != 0 {
            return Err(format!("a message has the flags {flags:#x}"));
        }
        let body = usize::try_from(length).unwrap_or(usize::MAX);
        match body <= MAX_BODY {
            true => Ok(Self {
                code,
                wants_ack: flags & WANTS_ACK != 0,
                body,
            }),
            false => Err(format!("request {code} has {length} bytes")),
        }
    }
}

/// A part of the guest's memory, in a file that comes with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Where it is for the guest.
    pub guest: u64,
    /// Its length, in bytes.
    pub length: u64,
    /// Where it is for the front end.
    pub front_end: u64,
    /// Where it begins in the file.
    pub offset: u64,
}

/// Where the front end has the three parts of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingAddress {
    pub descriptors: u64,
    pub used: u64,
    pub available: u64,
}

/// The descriptors that belong to a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The guest tells that there are new buffers.
    Kick,
    /// This side tells that buffers were used.
    Call,
    /// This side tells that the ring is broken.
    Error,
}

/// A request of the front end. A ring has the index `ring`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    GetFeatures,
    SetFeatures(u64),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    /// Begins a session.
    SetOwner,
    /// Ends a session. Nobody sends it any more.
    ResetOwner,
    SetMemory(Vec<Region>),
    SetSize {
        ring: u32,
        size: u32,
    },
    SetAddress {
        ring: u32,
        address: RingAddress,
    },
    /// Where the ring goes on.
    SetBase {
        ring: u32,
        base: u32,
    },
    /// Stops the ring and asks where it would go on.
    GetBase {
        ring: u32,
    },
    SetEvent {
        ring: u32,
        event: Event,
        has_fd: bool,
    },
    Enable {
        ring: u32,
        is_enabled: bool,
    },
    SetMtu(u64),
}

impl Request {
    /// Reads the request `code` with its body.
    ///
    /// # Errors
    /// It is none that a front end may send, or the body does not fit.
    pub(crate) fn parse(code: u32, body: &[u8]) -> Result<Self, String> {
        let mut fields = Fields(body);
        let request = Self::read(code, &mut fields)?;
        match fields.0.is_empty() {
            true => Ok(request),
            false => Err(format!("request {code} has {} bytes", body.len())),
        }
    }

    fn read(code: u32, body: &mut Fields<'_>) -> Result<Self, String> {
        Ok(match code {
            1 => Self::GetFeatures,
            2 => Self::SetFeatures(body.u64()?),
            3 => Self::SetOwner,
            4 => Self::ResetOwner,
            5 => Self::SetMemory(body.regions()?),
            8 => Self::SetSize {
                ring: body.u32()?,
                size: body.u32()?,
            },
            9 => {
                let (ring, _flags) = (body.u32()?, body.u32()?);
                let (descriptors, used, available) = (body.u64()?, body.u64()?, body.u64()?);
                // Where writes are logged, for a migration.
                body.u64()?;
                let address = RingAddress {
                    descriptors,
                    used,
                    available,
                };
                Self::SetAddress { ring, address }
            }
            10 => Self::SetBase {
                ring: body.u32()?,
                base: body.u32()?,
            },
            11 => {
                let (ring, _base) = (body.u32()?, body.u32()?);
                Self::GetBase { ring }
            }
            12 => Self::event(Event::Kick, body.u64()?),
            13 => Self::event(Event::Call, body.u64()?),
            14 => Self::event(Event::Error, body.u64()?),
            15 => Self::GetProtocolFeatures,
            16 => Self::SetProtocolFeatures(body.u64()?),
            17 => Self::GetQueueNum,
            18 => Self::Enable {
                ring: body.u32()?,
                is_enabled: body.u32()? != 0,
            },
            20 => Self::SetMtu(body.u64()?),
            _ => return Err(format!("request {code} is not known")),
        })
    }

    fn event(event: Event, value: u64) -> Self {
        Self::SetEvent {
            ring: (value & 0xff) as u32,
            event,
            has_fd: value & NO_FD == 0,
        }
    }
}

/// The answer to a request: `body` behind a header.
pub(crate) fn answer(code: u32, body: [u8; 8]) -> [u8; ANSWER] {
    let mut bytes = [0; ANSWER];
    let header = [code, VERSION | ANSWERS, 8].map(u32::to_ne_bytes);
    bytes[..HEADER].copy_from_slice(header.as_flattened());
    bytes[HEADER..].copy_from_slice(&body);
    bytes
}

/// What is left of a body.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (field, rest) = self.0.split_first_chunk().ok_or("a message is too short")?;
        self.0 = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.take().map(u64::from_ne_bytes)
    }

    fn regions(&mut self) -> Result<Vec<Region>, String> {
        let (number, _padding) = (self.u32()?, self.u32()?);
        let region = |_| {
            Ok(Region {
                guest: self.u64()?,
                length: self.u64()?,
                front_end: self.u64()?,
                offset: self.u64()?,
            })
        };
        match number as usize {
            number @ 1..=MAX_REGIONS => (0..number).map(region).collect(),
            _ => Err(format!("there are {number} regions of memory")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(code: u32, flags: u32, length: u32) -> Vec<u8> {
        [code, flags, length].map(u32::to_ne_bytes).concat()
    }

    #[test]
    fn headers() {
        let parsed = Header::parse(&header(2, 0x9, 8)).unwrap();
        let expected = Header {
            code: 2,
            wants_ack: true,
            body: 8,
        };
        assert_eq!(parsed, expected);
        assert!(!Header::parse(&header(2, 1, 8)).unwrap().wants_ack);
        for bad in [
            header(2, 0, 8),
            header(2, 2, 8),
            header(2, 5, 8),
            header(5, 1, 8 + 9 * 32),
            header(5, 1, u32::MAX),
            vec![0; 11],
        ] {
            assert!(Header::parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn requests() {
        let words = |words: &[u32]| {
            let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
            bytes.collect::<Vec<u8>>()
        };
        let longs = |longs: &[u64]| {
            let bytes = longs.iter().flat_map(|long| long.to_ne_bytes());
            bytes.collect::<Vec<u8>>()
        };
        let region = Region {
            guest: 1,
            length: 2,
            front_end: 3,
            offset: 4,
        };
        for (code, body, expected) in [
            (1, vec![], Request::GetFeatures),
            (2, longs(&[7]), Request::SetFeatures(7)),
            (
                5,
                [words(&[1, 0]), longs(&[1, 2, 3, 4])].concat(),
                Request::SetMemory(vec![region]),
            ),
            (8, words(&[1, 256]), Request::SetSize { ring: 1, size: 256 }),
            (11, words(&[3, 0]), Request::GetBase { ring: 3 }),
            (
                12,
                longs(&[0x101]),
                Request::SetEvent {
                    ring: 1,
                    event: Event::Kick,
                    has_fd: false,
                },
            ),
            (
                18,
                words(&[2, 1]),
                Request::Enable {
                    ring: 2,
                    is_enabled: true,
                },
            ),
            (20, longs(&[9000]), Request::SetMtu(9000)),
        ] {
            assert_eq!(Request::parse(code, &body), Ok(expected), "{code}");
            assert!(Request::parse(code, &[&body[..], &[0]].concat()).is_err());
            if let [_, rest @ ..] = &body[..] {
                assert!(Request::parse(code, rest).is_err(), "{code}");
            }
        }
        for (code, body) in [
            (0, vec![]),
            (6, longs(&[0])),
            (99, vec![]),
            (5, words(&[0, 0])),
            (5, words(&[9, 0])),
            (5, words(&[u32::MAX, 0])),
        ] {
            assert!(Request::parse(code, &body).is_err(), "{code}");
        }
        let answered = answer(1, 5_u64.to_ne_bytes());
        assert_eq!(answered[..HEADER], header(1, 5, 8));
        assert_eq!(answered[HEADER..], longs(&[5]));
    }
}
