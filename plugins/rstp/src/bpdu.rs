//! BPDUs in Ethernet frames (802.1D-2004, clause 9): an IEEE 802.3 length, LLC with the address of
//! the spanning tree protocol, and one of three messages.

use crate::id::{BridgeId, Mac, PortId, Time, Times, Vector};

/// The destination of BPDUs, which a bridge never forwards.
pub const GROUP_ADDRESS: Mac = [0x01, 0x80, 0xc2, 0, 0, 0];

/// The length of the frames that are encoded: Ethernet's shortest, without its checksum.
pub const FRAME_LEN: usize = 60;

/// LLC: source and destination are the spanning tree protocol; unnumbered information.
const LLC: [u8; 3] = [0x42, 0x42, 0x03];
/// Both addresses and the length.
const ETHERNET_LEN: usize = 14;
/// The longest value of the length field that is a length.
const MAX_LEN: usize = 1500;

const CONFIG: u8 = 0x00;
const RST: u8 = 0x02;
const TCN: u8 = 0x80;
const CONFIG_LEN: usize = 35;
const RST_LEN: usize = 36;
const TCN_LEN: usize = 4;

const TOPOLOGY_CHANGE: u8 = 0x01;
const PROPOSAL: u8 = 0x02;
const ROLE_SHIFT: u8 = 2;
const LEARNING: u8 = 0x10;
const FORWARDING: u8 = 0x20;
const AGREEMENT: u8 = 0x40;
const ACKNOWLEDGMENT: u8 = 0x80;

/// Why a frame is no valid BPDU (9.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It has another destination.
    #[error("the frame is not for bridges")]
    Destination,
    /// It is another protocol's.
    #[error("the frame is not of the spanning tree protocol")]
    Llc,
    /// It ends too early.
    #[error("the BPDU is cut short")]
    Short,
    /// The protocol's identifier, type or version is unknown.
    #[error("the BPDU is of an unknown protocol, type or version")]
    Unknown,
    /// It says that it is too old.
    #[error("the BPDU is as old as its maximum age")]
    Aged,
}

/// The role of the transmitting port in an RST BPDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RstRole {
    /// Alternate or backup.
    Alternate,
    /// The bridge's root port.
    Root,
    /// A designated port.
    Designated,
}

/// The flags of an RST BPDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RstFlags {
    /// Stations may have moved.
    pub topology_change: bool,
    /// The port wants to forward, and asks the neighbour for its agreement.
    pub proposal: bool,
    /// The port's role.
    pub role: RstRole,
    /// The port learns.
    pub learning: bool,
    /// The port forwards.
    pub forwarding: bool,
    /// The neighbour's port may forward.
    pub agreement: bool,
}

/// A bridge protocol data unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bpdu {
    /// A Configuration BPDU of the spanning tree protocol.
    Config {
        /// Stations may have moved.
        topology_change: bool,
        /// A topology change notification has arrived.
        acknowledgment: bool,
        /// What the transmitting port knows of the tree.
        vector: Vector,
        /// The times of the tree.
        times: Times,
    },
    /// A Topology Change Notification BPDU of the spanning tree protocol.
    Tcn,
    /// A BPDU of the rapid spanning tree protocol.
    Rst {
        /// Its flags.
        flags: RstFlags,
        /// What the transmitting port knows of the tree.
        vector: Vector,
        /// The times of the tree.
        times: Times,
    },
}

impl Bpdu {
    /// Reads a frame. An RST BPDU without a role is read as the Configuration BPDU that it would
    /// be (9.2.9).
    ///
    /// # Errors
    /// It is no valid BPDU.
    pub fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        if !frame.starts_with(&GROUP_ADDRESS) {
            return Err(Malformed::Destination);
        }
        let header: &[u8; ETHERNET_LEN] = frame.first_chunk().ok_or(Malformed::Short)?;
        let len = usize::from(u16::from_be_bytes([header[12], header[13]]));
        if len > MAX_LEN {
            return Err(Malformed::Llc);
        }
        let payload = frame.get(ETHERNET_LEN..ETHERNET_LEN + len);
        let bpdu = payload.ok_or(Malformed::Short)?.strip_prefix(&LLC);
        let bpdu = bpdu.ok_or(Malformed::Llc)?;
        let &[0, 0, version, kind] = bpdu.first_chunk().ok_or(Malformed::Short)? else {
            return Err(Malformed::Unknown);
        };
        match kind {
            TCN => Ok(Self::Tcn),
            CONFIG => Self::config(bpdu),
            RST if version >= 2 => Self::rst(bpdu),
            _ => Err(Malformed::Unknown),
        }
    }

    fn config(bpdu: &[u8]) -> Result<Self, Malformed> {
        let bpdu: &[u8; CONFIG_LEN] = bpdu.first_chunk().ok_or(Malformed::Short)?;
        let (flags, vector, times) = body(bpdu);
        if times.message_age >= times.max_age {
            return Err(Malformed::Aged);
        }
        Ok(Self::Config {
            topology_change: flags & TOPOLOGY_CHANGE != 0,
            acknowledgment: flags & ACKNOWLEDGMENT != 0,
            vector,
            times,
        })
    }

    fn rst(bpdu: &[u8]) -> Result<Self, Malformed> {
        let bpdu: &[u8; RST_LEN] = bpdu.first_chunk().ok_or(Malformed::Short)?;
        let role = match bpdu[4] >> ROLE_SHIFT & 3 {
            1 => RstRole::Alternate,
            2 => RstRole::Root,
            3 => RstRole::Designated,
            _ => return Self::config(bpdu),
        };
        let [bpdu @ .., _] = bpdu;
        let (flags, vector, times) = body(bpdu);
        let flags = RstFlags {
            topology_change: flags & TOPOLOGY_CHANGE != 0,
            proposal: flags & PROPOSAL != 0,
            role,
            learning: flags & LEARNING != 0,
            forwarding: flags & FORWARDING != 0,
            agreement: flags & AGREEMENT != 0,
        };
        Ok(Self::Rst {
            flags,
            vector,
            times,
        })
    }

    /// The frame of a BPDU, padded to Ethernet's shortest.
    #[must_use]
    pub fn encode(&self, source: Mac) -> [u8; FRAME_LEN] {
        let mut frame = Writer::default();
        let (len, version, kind) = match self {
            Self::Config { .. } => (CONFIG_LEN, 0, CONFIG),
            Self::Tcn => (TCN_LEN, 0, TCN),
            Self::Rst { .. } => (RST_LEN, 2, RST),
        };
        frame.put(&GROUP_ADDRESS);
        frame.put(&source);
        frame.put(&((LLC.len() + len) as u16).to_be_bytes());
        frame.put(&LLC);
        frame.put(&[0, 0, version, kind]);
        match self {
            Self::Config {
                topology_change,
                acknowledgment,
                vector,
                times,
            } => {
                let flags =
                    bit(*topology_change, TOPOLOGY_CHANGE) | bit(*acknowledgment, ACKNOWLEDGMENT);
                frame.put_body(flags, vector, times);
            }
            Self::Tcn => {}
            Self::Rst {
                flags,
                vector,
                times,
            } => frame.put_body(flags.bits(), vector, times),
        }
        frame.bytes
    }
}

impl RstFlags {
    fn bits(self) -> u8 {
        let role = match self.role {
            RstRole::Alternate => 1,
            RstRole::Root => 2,
            RstRole::Designated => 3,
        };
        role << ROLE_SHIFT
            | bit(self.topology_change, TOPOLOGY_CHANGE)
            | bit(self.proposal, PROPOSAL)
            | bit(self.learning, LEARNING)
            | bit(self.forwarding, FORWARDING)
            | bit(self.agreement, AGREEMENT)
    }
}

fn bit(is_set: bool, bit: u8) -> u8 {
    if is_set { bit } else { 0 }
}

/// What Configuration and RST BPDUs have in common: flags, vector and times.
fn body(bpdu: &[u8; CONFIG_LEN]) -> (u8, Vector, Times) {
    let short = |at: usize| u16::from_be_bytes([bpdu[at], bpdu[at + 1]]);
    let bridge = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&bpdu[at..at + 8]);
        BridgeId::from_bytes(bytes)
    };
    let vector = Vector {
        root: bridge(5),
        cost: u32::from(short(13)) << 16 | u32::from(short(15)),
        bridge: bridge(17),
        port: PortId(short(25)),
    };
    let times = Times {
        message_age: Time(short(27)),
        max_age: Time(short(29)),
        hello: Time(short(31)),
        forward_delay: Time(short(33)),
    };
    (bpdu[4], vector, times)
}

/// A frame that is filled from its start.
struct Writer {
    bytes: [u8; FRAME_LEN],
    len: usize,
}

impl Default for Writer {
    fn default() -> Self {
        Self {
            bytes: [0; FRAME_LEN],
            len: 0,
        }
    }
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn put_body(&mut self, flags: u8, vector: &Vector, times: &Times) {
        self.put(&[flags]);
        self.put(&vector.root.to_bytes());
        self.put(&vector.cost.to_be_bytes());
        self.put(&vector.bridge.to_bytes());
        self.put(&vector.port.0.to_be_bytes());
        for time in [
            times.message_age,
            times.max_age,
            times.hello,
            times.forward_delay,
        ] {
            self.put(&time.0.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector() -> Vector {
        Vector {
            root: BridgeId::new(0x8000, [2, 0, 0, 0, 0, 1]),
            cost: 20_000,
            bridge: BridgeId::new(0x9001, [2, 0, 0, 0, 0, 2]),
            port: PortId::new(0x80, 3),
        }
    }

    fn times() -> Times {
        Times {
            message_age: Time::from_secs(1),
            max_age: Time::from_secs(20),
            hello: Time::from_secs(2),
            forward_delay: Time::from_secs(15),
        }
    }

    fn rst() -> Bpdu {
        Bpdu::Rst {
            flags: RstFlags {
                topology_change: true,
                proposal: true,
                role: RstRole::Designated,
                learning: false,
                forwarding: false,
                agreement: true,
            },
            vector: vector(),
            times: times(),
        }
    }

    fn config() -> Bpdu {
        Bpdu::Config {
            topology_change: true,
            acknowledgment: true,
            vector: vector(),
            times: times(),
        }
    }

    /// Byte by byte, as the fields of 9.3.1 follow each other.
    #[test]
    fn the_bytes_of_a_configuration_bpdu() {
        let mut frame = Vec::new();
        frame.extend(b"\x01\x80\xc2\0\0\0\x02\0\0\0\0\x02\0\x26\x42\x42\x03");
        frame.extend(b"\0\0\0\0\x81\x80\0\x02\0\0\0\0\x01\0\0\x4e\x20");
        frame.extend(b"\x90\x01\x02\0\0\0\0\x02\x80\x03\x01\0\x14\0\x02\0\x0f\0");
        frame.resize(FRAME_LEN, 0);
        assert_eq!(Bpdu::decode(&frame), Ok(config()));
        assert_eq!(config().encode([2, 0, 0, 0, 0, 2])[..], frame);
    }

    #[test]
    fn the_bytes_of_an_rst_bpdu() {
        let frame = rst().encode([2, 0, 0, 0, 0, 2]);
        assert_eq!(frame[12..22], *b"\0\x27\x42\x42\x03\0\0\x02\x02\x4f");
        assert_eq!(frame[52..], [0; 8], "version 1 length, and padding");
        assert_eq!(Bpdu::decode(&frame), Ok(rst()));
        assert_eq!(Bpdu::decode(&frame[..53]), Ok(rst()));
        assert_eq!(Bpdu::decode(&frame[..52]), Err(Malformed::Short));
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for bpdu in [rst(), config(), Bpdu::Tcn] {
            assert_eq!(Bpdu::decode(&bpdu.encode([2; 6])), Ok(bpdu));
        }
    }

    #[test]
    fn what_is_no_bpdu() {
        let change = |at: usize, to: u8| {
            let mut frame = rst().encode([2; 6]);
            frame[at] = to;
            Bpdu::decode(&frame)
        };
        assert_eq!(change(5, 0x0e), Err(Malformed::Destination));
        assert_eq!(change(12, 8), Err(Malformed::Llc), "an EtherType");
        assert_eq!(change(14, 0xaa), Err(Malformed::Llc));
        assert_eq!(change(13, 60), Err(Malformed::Short), "beyond its end");
        assert_eq!(change(13, 38), Err(Malformed::Short), "an octet missing");
        assert_eq!(change(18, 1), Err(Malformed::Unknown), "a protocol");
        assert_eq!(change(19, 1), Err(Malformed::Unknown), "RST, version 1");
        assert_eq!(change(20, 3), Err(Malformed::Unknown), "a type");
        assert!(change(19, 3).is_ok(), "versions to come are read as ours");
        for len in 0..14 {
            assert!(Bpdu::decode(&rst().encode([2; 6])[..len]).is_err());
        }
    }

    #[test]
    fn information_that_is_too_old() {
        let mut old = times();
        old.message_age = old.max_age;
        let config = Bpdu::Config {
            topology_change: false,
            acknowledgment: false,
            vector: vector(),
            times: old,
        };
        let frame = config.encode([2; 6]);
        assert_eq!(Bpdu::decode(&frame), Err(Malformed::Aged));
    }

    #[test]
    fn no_role_means_a_configuration_bpdu() {
        let mut frame = rst().encode([2; 6]);
        frame[21] = TOPOLOGY_CHANGE | ACKNOWLEDGMENT;
        assert_eq!(Bpdu::decode(&frame), Ok(config()));
    }
}
