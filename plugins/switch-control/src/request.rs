//! What a switch is asked.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Tell what the switch is and how it is set ([`crate::General`]).
    Show,
    /// List ports by number.
    Ports {
        /// The number to start at.
        from: u32,
        /// Which ports.
        selection: PortSelection,
    },
    /// List VLANs by identifier, 0 among them.
    Vlans {
        /// The identifier to start at.
        from: u16,
    },
    /// List known stations, by VLAN and address.
    Stations {
        /// The VLAN and address to start at.
        from: (u16, Mac),
        /// Only this address.
        mac: Option<Mac>,
        /// Only this VLAN.
        vlan: Option<u16>,
    },
    /// Tell the state of the spanning tree ([`crate::StpReport`]), and list its ports by number.
    Stp {
        /// The number to start at.
        from: u32,
    },
    /// List what has happened, oldest first.
    Events {
        /// The number of the event to start at; events that are too old are left out.
        from: u64,
    },
    /// Make these changes, all or none.
    Change(Vec<Change>),
}

/// Which ports a list has.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum PortSelection {
    /// Those that have a client.
    Used,
    /// Those, and all for which something is set.
    All,
}

/// One change of a switch.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Forward every frame to all other ports, or not.
    Hub(bool),
    /// The highest number that a port may have; those in use stay.
    NumPorts(u32),
    /// The seconds after which a station that sent nothing is forgotten, 1 or more.
    Expiry(u32),
    /// Make a port, so that its settings show although nothing was set.
    CreatePort(u32),
    /// Make the port of the lowest free number; [`crate::Answer::created`] tells it.
    CreateAnyPort,
    /// Forget what is set of a port. It must have no client.
    RemovePort(u32),
    /// Close the connection of a port's client, which may come again.
    Disconnect(u32),
    /// Change a port's settings; 0 is the switch's own side.
    Port(u32, PortChange),
    /// Make a VLAN.
    CreateVlan(u16),
    /// Remove a VLAN. No port may be in it.
    RemoveVlan(u16),
    /// Let clients choose the VLAN, through a socket of its name, or no longer.
    OfferVlan(u16, Option<Access>),
    /// Add a static station: it is behind this port for ever, whoever sends in its name.
    AddStation {
        /// The VLAN, 0 for none.
        vlan: u16,
        /// The address.
        mac: Mac,
        /// The port.
        port: u32,
    },
    /// Forget a station, static or learned.
    RemoveStation {
        /// The VLAN, 0 for none.
        vlan: u16,
        /// The address.
        mac: Mac,
    },
    /// Forget all learned stations.
    FlushStations,
    /// Set the counters of one port, or of all ports and VLANs, to 0.
    ResetCounters(Option<u32>),
    /// The frames that each port may flood in a second.
    Storm(StormLimit),
    /// Change the spanning tree.
    Stp(StpChange),
}

/// Who may use the socket through which a VLAN is chosen.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Access {
    /// Its permission bits; `None` for those of the switch.
    pub mode: Option<u32>,
}

/// A change of a port's settings.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum PortChange {
    /// The VLAN of untagged frames, 0 for those of no VLAN; `None` keeps untagged frames out.
    Untagged(Option<u16>),
    /// Add a VLAN whose frames are tagged here.
    AddTagged(u16),
    /// Remove such a VLAN.
    RemoveTagged(u16),
    /// Whether a client that asks for no number may get this port.
    Allocatable(bool),
    /// The only user who may have the port, by user id; `None` for all.
    User(Option<u32>),
    /// The only group whose members may have the port, by group id; `None` for all. With
    /// [`PortChange::User`] as well, either is enough.
    Group(Option<u32>),
    /// The only address that may send from the port; `None` for all.
    Lock(Option<Mac>),
    /// The port that gets a copy of every frame that enters or leaves by this one; `None` for none.
    Mirror(Option<u32>),
    /// The frames that it may flood in a second; `None` for the switch's own limit.
    Storm(Option<StormLimit>),
    /// Whether the port leads to no other bridge, so that it forwards at once. A port that hears a
    /// bridge is treated as leading to one in any case.
    Edge(bool),
    /// Whether a port that has had no BPDU for 3 seconds becomes an edge port again.
    AutoEdge(bool),
    /// Whether a BPDU disables the port, until this is set again or its client comes again.
    Guard(bool),
    /// What a path through the port costs, 1 to 200,000,000 (IEEE 802.1D-2004, 17.14).
    Cost(u32),
    /// Of two paths that cost the same, the one by the lower priority counts: a multiple of 16
    /// below 256.
    Priority(u8),
}

/// A limit of the frames that a port floods: broadcast, multicast, and those to unknown stations.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum StormLimit {
    /// None.
    Off,
    /// So many frames in a second, at least 1.
    Frames(u32),
}

/// A change of the spanning tree.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum StpChange {
    /// Whether there is one.
    Enabled(bool),
    /// The switch's priority: a multiple of 4096 below 65536 (IEEE 802.1D-2004, 9.2.5).
    Priority(u16),
    /// The seconds between two BPDUs. This and the other times count in the network of which this
    /// switch is the root (IEEE 802.1D-2004, 17.14).
    Hello(u8),
    /// The seconds after which what a BPDU has said is forgotten.
    MaxAge(u8),
    /// The seconds in discarding, and again in learning, without a handshake.
    ForwardDelay(u8),
}

/// An Ethernet address: six bytes in the order of the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A word is no Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMac;

impl fmt::Display for NoMac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an Ethernet address is six hexadecimal bytes with colons between them")
    }
}

impl std::error::Error for NoMac {}

impl FromStr for Mac {
    type Err = NoMac;

    fn from_str(text: &str) -> Result<Self, NoMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(NoMac)?;
            let is_hex = part.len() <= 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
            *byte = match is_hex {
                true => u8::from_str_radix(part, 16).map_err(|_| NoMac)?,
                false => return Err(NoMac),
            };
        }
        parts.next().is_none().then_some(Self(bytes)).ok_or(NoMac)
    }
}

impl Serialize for Mac {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let mac: Mac = "02:0:aB:00:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:ab:00:00:01");
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:+1:0:0:0:0",
            "2:::0:0:0",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(NoMac), "{bad}");
        }
    }

    #[test]
    fn requests_survive_the_round_trip() {
        let request = Request::Change(vec![
            Change::Port(3, PortChange::Untagged(Some(10))),
            Change::Storm(StormLimit::Off),
            Change::AddStation {
                vlan: 0,
                mac: Mac([2, 0, 0, 0, 0, 1]),
                port: 4,
            },
        ]);
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(
            json,
            r#"{"change":[{"port":[3,{"untagged":10}]},{"storm":"off"},{"add-station":{"vlan":0,"mac":"02:00:00:00:00:01","port":4}}]}"#
        );
        assert_eq!(serde_json::from_str::<Request>(&json).unwrap(), request);
    }
}
