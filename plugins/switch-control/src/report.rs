//! What a switch answers.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Mac, StormLimit};

/// The switch's answer. What was not asked for is not there.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Answer {
    /// Why the request cannot be fulfilled. A switch that does not understand it says only this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// What the switch is and how it is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch: Option<General>,
    /// Ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports: Option<Page<PortReport, u32>>,
    /// VLANs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlans: Option<Page<VlanReport, u16>>,
    /// Stations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stations: Option<Page<StationReport, (u16, Mac)>>,
    /// The spanning tree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stp: Option<StpReport>,
    /// What has happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Page<Event, u64>>,
    /// The number of the port that a change has made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<u32>,
}

/// Why a request cannot be fulfilled.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(from = "Said")]
pub struct Failure {
    /// The errno that VDE's console has for it; 0 if the switch has not understood the request.
    pub errno: i32,
    /// What is wrong, for a person.
    pub message: String,
}

/// A failure on the wire. One to understand the request is a mere text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Failure { errno: i32, message: String },
    Text(String),
}

impl From<Said> for Failure {
    fn from(said: Said) -> Self {
        let (errno, message) = match said {
            Said::Failure { errno, message } => (errno, message),
            Said::Text(message) => (0, message),
        };
        Self { errno, message }
    }
}

/// A part of a list.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Page<T, K> {
    /// At most [`crate::PAGE`] elements.
    pub items: Vec<T>,
    /// Where the next part starts; `None` if this is the last. Of events it is always there, and is
    /// the number that the next event will have if there are no more.
    pub from: Option<K>,
}

impl<T, K> Default for Page<T, K> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            from: None,
        }
    }
}

/// Which of the two kinds a switch is at present.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It forwards a frame for a known station to that station's port only.
    #[default]
    Switch,
    /// It forwards every frame to all other ports.
    Hub,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Switch => "switch",
            Self::Hub => "hub",
        })
    }
}

/// What the switch is and how it is set.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct General {
    /// The directory of its sockets.
    pub directory: String,
    /// The permission bits of its sockets.
    pub mode: u32,
    /// The process that it runs in, a worker or a plug, and that one's parent.
    pub processes: [u32; 2],
    /// Seconds since it started.
    pub uptime: u64,
    /// Its address: the bridge address of its spanning tree.
    pub mac: Mac,
    /// Whether it is a switch or a hub.
    pub kind: Kind,
    /// The highest number that a port may have.
    pub num_ports: u32,
    /// How many ports have a client.
    pub used_ports: u32,
    /// How many VLANs there are.
    pub vlans: u32,
    /// Seconds after which a station that sent nothing is forgotten.
    pub expiry: u32,
    /// How many stations are known.
    pub stations: u64,
    /// How many can be known.
    pub capacity: u64,
    /// The limit of flooding for ports without one of their own.
    pub storm: StormLimit,
    /// Whether there is a spanning tree.
    pub stp: bool,
    /// Its priority there.
    pub priority: u16,
    /// The times that it sets as the root.
    #[serde(default)]
    pub times: StpTimes,
    /// How VLANs of interfaces on the panel are kept apart, for a person.
    pub panel: String,
}

/// Frames and bytes in both directions, seen from the switch.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Traffic {
    /// Frames that came in.
    pub in_frames: u64,
    /// Their bytes.
    pub in_bytes: u64,
    /// Frames that went out.
    pub out_frames: u64,
    /// Their bytes.
    pub out_bytes: u64,
}

impl Traffic {
    /// Counts frames of these lengths, in bytes, that came in.
    pub fn count_in(&mut self, lengths: impl Iterator<Item = usize>) {
        for length in lengths {
            self.in_frames += 1;
            self.in_bytes += length as u64;
        }
    }

    /// Counts frames of these lengths, in bytes, that went out.
    pub fn count_out(&mut self, lengths: impl Iterator<Item = usize>) {
        for length in lengths {
            self.out_frames += 1;
            self.out_bytes += length as u64;
        }
    }
}

/// A port.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct PortReport {
    /// Its number; 0 is the switch's own side.
    pub number: u32,
    /// What its client says of itself; `None` if there is no client.
    pub client: Option<String>,
    /// The client's user id.
    pub uid: Option<u32>,
    /// The client's process.
    pub pid: Option<u32>,
    /// The VLAN of untagged frames, 0 for those of no VLAN.
    pub untagged: Option<u16>,
    /// The VLANs whose frames are tagged here.
    pub tagged: Vec<u16>,
    /// Whether a client that asks for no number may get it.
    pub allocatable: bool,
    /// The only user who may have it, by user id.
    pub user: Option<u32>,
    /// The only group whose members may have it, by group id.
    pub group: Option<u32>,
    /// The only address that may send from it.
    pub lock: Option<Mac>,
    /// The port that gets a copy of its frames.
    pub mirror: Option<u32>,
    /// Its own limit of flooding.
    pub storm: Option<StormLimit>,
    /// Whether it leads to no other bridge.
    pub edge: bool,
    /// Whether it becomes an edge port again when it has had no BPDU for a while.
    pub auto_edge: bool,
    /// Whether a BPDU disables it.
    pub guard: bool,
    /// What a path through it costs.
    pub cost: u32,
    /// Its priority in the spanning tree.
    pub priority: u8,
    /// Whether the kernel carries its frames, so that the counters stand still.
    pub is_on_panel: bool,
    /// Which way its frames take.
    pub way: Way,
    /// Its frames.
    pub traffic: Traffic,
    /// Frames lost, by cause.
    pub dropped: BTreeMap<String, u64>,
}

/// Which way the frames of a port take.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Through the switch.
    #[default]
    UserSpace,
    /// Over a bridge on the panel, which is that of its VLAN if it is in one.
    Bridge,
    /// Over the bridge on the panel whose ports the kernel keeps apart by VLAN.
    Filter,
}

/// A VLAN.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct VlanReport {
    /// Its identifier; 0 stands for the frames of no VLAN.
    pub vlan: u16,
    /// Whether clients can choose it.
    pub is_offered: bool,
    /// The ports where it is untagged.
    pub untagged: Vec<u32>,
    /// The ports where it is tagged.
    pub tagged: Vec<u32>,
    /// Its frames: in when they enter the switch, out for each port that they leave by.
    pub traffic: Traffic,
}

/// A known station.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct StationReport {
    /// Its VLAN, 0 for none.
    pub vlan: u16,
    /// Its address.
    pub mac: Mac,
    /// The port that leads to it; `None` for the panel, behind which may be many.
    pub port: Option<u32>,
    /// Seconds since its last frame; `None` if it is static.
    pub age: Option<u64>,
}

/// The spanning tree.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct StpReport {
    /// Whether there is one.
    pub enabled: bool,
    /// This switch: priority and address.
    pub bridge: (u16, Mac),
    /// The root: priority and address.
    pub root: (u16, Mac),
    /// What the path to the root costs.
    pub root_cost: u32,
    /// The port that leads to the root; `None` if this switch is the root.
    pub root_port: Option<u32>,
    /// How often the topology has changed.
    pub changes: u64,
    /// Seconds since the last change.
    pub since: u64,
    /// The times that the root sets.
    pub times: StpTimes,
    /// Its ports by number: at most [`crate::PAGE`].
    pub ports: Vec<StpPort>,
    /// The number of the next port; `None` if these are the last.
    pub from: Option<u32>,
}

/// The times of a spanning tree, in seconds (IEEE 802.1D-2004, 17.13).
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct StpTimes {
    /// Between two BPDUs.
    pub hello: u8,
    /// After which what a BPDU has said is forgotten.
    pub max_age: u8,
    /// In discarding, and again in learning, without a handshake.
    pub forward_delay: u8,
}

/// A port's place in the spanning tree.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct StpPort {
    /// The port.
    pub port: u32,
    /// What it is there for.
    pub role: StpRole,
    /// What it lets pass.
    pub state: StpState,
    /// What a path through it costs.
    pub cost: u32,
    /// Its priority.
    #[serde(default)]
    pub priority: u8,
    /// Whether it leads to no other bridge.
    pub edge: bool,
    /// Whether its guard has disabled it.
    #[serde(default)]
    pub guarded: bool,
}

/// What a port is there for (IEEE 802.1D-2004, 17.7).
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum StpRole {
    /// It leads to the root.
    Root,
    /// It leads to others away from the root.
    Designated,
    /// It could lead to the root if the root port failed.
    Alternate,
    /// It leads to where another port of this switch leads.
    Backup,
    /// Nothing: it has no carrier, or its guard has disabled it.
    Disabled,
}

/// What a port lets pass (IEEE 802.1D-2004, 7.4).
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum StpState {
    /// No frames.
    Discarding,
    /// No frames, but the switch learns from them.
    Learning,
    /// All frames.
    Forwarding,
}

/// Something that has happened.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Event {
    /// Its number: each is one more than the one before.
    pub number: u64,
    /// Its category, by the path that VDE's console has for it, for example `port/+`.
    pub category: String,
    /// What happened, for a person.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_only_what_was_asked_for() {
        let none = Answer::default();
        assert_eq!(serde_json::to_string(&none).unwrap(), "{}");
        let some = Answer {
            created: Some(7),
            ..Answer::default()
        };
        let json = serde_json::to_string(&some).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&json).unwrap(), some);
    }

    #[test]
    fn failures_of_both_kinds_are_read() {
        for (json, errno) in [
            (r#"{"error":"unknown variant"}"#, 0),
            (
                r#"{"error":{"errno":17,"message":"there is a port 3"}}"#,
                17,
            ),
        ] {
            let answer: Answer = serde_json::from_str(json).unwrap();
            assert_eq!(answer.error.unwrap().errno, errno);
        }
    }

    #[test]
    fn a_newer_switch_is_understood() {
        let newer = r#"{"ports":{"items":[{"number":3,"colour":"red"}],"from":null},"new":1}"#;
        let answer: Answer = serde_json::from_str(newer).unwrap();
        assert_eq!(answer.ports.unwrap().items[0].number, 3);
    }
}
