//! Identifiers, priority vectors and times, as BPDUs have them (802.1D-2004, 9.2 and 17.5).

use std::fmt;

/// A MAC address.
pub type Mac = [u8; 6];

/// The number of a port: 0 to 4095.
pub type PortNumber = u16;

/// The bits of a port's number in its identifier.
const PORT_NUMBER: u16 = 0x0fff;

/// The identifier of a bridge: four bits of priority, twelve of a system's own, and a MAC address.
/// The bridge whose identifier is smallest is the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BridgeId(u64);

impl BridgeId {
    /// The identifier of a bridge. The priority's lower twelve bits are the system's own.
    #[must_use]
    pub fn new(priority: u16, mac: Mac) -> Self {
        let [a, b, c, d, e, f] = mac;
        let [high, low] = priority.to_be_bytes();
        Self::from_bytes([high, low, a, b, c, d, e, f])
    }

    /// The identifier in a BPDU.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }

    /// As a BPDU has it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// The priority, with the system's own bits.
    #[must_use]
    pub fn priority(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The bridge's MAC address.
    #[must_use]
    pub fn mac(self) -> Mac {
        let [_, _, mac @ ..] = self.0.to_be_bytes();
        mac
    }
}

/// As Linux shows it: `8000.02005e000001`.
impl fmt::Display for BridgeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}.{:012x}",
            self.priority(),
            self.0 & (u64::MAX >> 16)
        )
    }
}

/// The identifier of a port: four bits of priority, and its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

impl PortId {
    /// The identifier of a port. The priority's lower four bits do not count.
    #[must_use]
    pub fn new(priority: u8, number: PortNumber) -> Self {
        Self(u16::from(priority & 0xf0) << 8 | number & PORT_NUMBER)
    }

    /// The port's priority.
    #[must_use]
    pub fn priority(self) -> u8 {
        let [high, _] = self.0.to_be_bytes();
        high & 0xf0
    }

    /// The port's number.
    #[must_use]
    pub fn number(self) -> PortNumber {
        self.0 & PORT_NUMBER
    }
}

/// A time in 1/256 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u16);

impl Time {
    const SECOND: u16 = 256;

    /// A time of whole seconds.
    #[must_use]
    pub fn from_secs(seconds: u8) -> Self {
        Self(u16::from(seconds) * Self::SECOND)
    }

    /// Whole seconds, rounded to the nearest.
    #[must_use]
    pub fn round(self) -> u32 {
        (u32::from(self.0) + u32::from(Self::SECOND / 2)) / u32::from(Self::SECOND)
    }

    /// The time in ticks of a timer, which must not end too early.
    pub(crate) fn ticks(self) -> u32 {
        u32::from(self.0).div_ceil(u32::from(Self::SECOND))
    }

    /// A second more.
    pub(crate) fn older(self) -> Self {
        Self(self.0.saturating_add(Self::SECOND))
    }
}

/// The times that a root bridge sets for its network, and how old that information is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Times {
    /// How old the information is: a second for each bridge on its way.
    pub message_age: Time,
    /// The age at which it is discarded.
    pub max_age: Time,
    /// The time between two BPDUs.
    pub hello: Time,
    /// How long a port without a handshake stays in discarding and learning.
    pub forward_delay: Time,
}

/// A priority vector: of two, the smaller is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vector {
    /// The root bridge.
    pub root: BridgeId,
    /// The cost of the path to it.
    pub cost: u32,
    /// The bridge that transmits this, the designated one of its network.
    pub bridge: BridgeId,
    /// The port from which it does.
    pub port: PortId,
}

impl Vector {
    /// Whether this is to replace `known` (17.6): it is better, or it comes from the same port of
    /// the same bridge.
    pub(crate) fn supersedes(&self, known: &Self) -> bool {
        let sender = |vector: &Self| (vector.bridge.mac(), vector.port.number());
        self < known || self != known && sender(self) == sender(known)
    }
}
