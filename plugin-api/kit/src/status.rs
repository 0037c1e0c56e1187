//! The report of a link for the user ([`crate::Link::status`]), which `vdectl status` shows.
//!
//! Nothing in the data plane depends on it. It crosses the boundary as JSON, so that it can grow.
//! An unknown field is ignored, a missing one has its default, and a malformed report is an empty
//! one.

#[cfg(any(test, not(feature = "serde")))]
mod json;

use std::collections::BTreeMap;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// How frames get from one end of a link to the other, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Tier {
    /// The kernel forwards them, on the panel.
    Kernel,
    /// From one tap to another, with all offloads.
    Taps,
    /// As super-frames, with incomplete checksums.
    SuperFrames,
    /// One by one: this process cuts and completes them for the far end.
    Segmented,
    /// In a way that this version does not know.
    #[cfg_attr(feature = "serde", serde(other))]
    Other,
}

/// The report of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Status {
    /// The peer at the far end, if there is one.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub peer: Option<Peer>,
    /// How frames get to the far end. By default, the link's [`crate::State`] decides. A tap
    /// reports [`Tier::Taps`], which counts if both sides are taps.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub tier: Option<Tier>,
    /// Why there is no better tier, in words that follow a colon; may be empty.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "String::is_empty"))]
    pub reason: String,
    /// The largest MTU whose frames the link carries, in bytes, while the kernel does not forward
    /// them; `None` if it carries every frame or does not know.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub max_mtu: Option<u32>,
    /// The ports and the forwarding database of a switch.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub switch: Option<SwitchStatus>,
    /// Other facts, by name.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "BTreeMap::is_empty"))]
    pub extra: BTreeMap<String, String>,
}

/// The peer at the far end of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct Peer {
    /// Its description of itself, or what is known of it; may be empty.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "String::is_empty"))]
    pub description: String,
    /// Its user id, if known from the kernel.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub uid: Option<u32>,
    /// Its process id, if known.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub pid: Option<u32>,
}

/// A switch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct SwitchStatus {
    /// Its ports, by number.
    pub ports: Vec<PortStatus>,
    /// Its forwarding database, sorted.
    pub fdb: Vec<StationStatus>,
}

/// A port of a switch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct PortStatus {
    /// Its number.
    pub number: u32,
    /// The client of the port.
    pub client: Peer,
    /// How frames get to the client.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub tier: Option<Tier>,
    /// Frames from the client through the switch's own process.
    pub received: u64,
    /// Frames to the client through it.
    pub sent: u64,
    /// Frames lost, by cause.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "BTreeMap::is_empty"))]
    pub dropped: BTreeMap<String, u64>,
}

/// A station in the forwarding database of a switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(default))]
pub struct StationStatus {
    /// Its Ethernet address, `02:00:00:00:00:01`.
    pub mac: String,
    /// Its VLAN, 0 if its frames are untagged.
    pub vlan: u16,
    /// The port that leads to it: a number, `local` for the host's own side, `panel` for the bridge
    /// on the panel.
    pub port: String,
    /// Seconds since its last frame.
    pub age: u64,
}

#[cfg(feature = "serde")]
impl Status {
    /// The status as it crosses the boundary.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| {
            log::error!("cannot encode the link's status: {error}");
            String::new()
        })
    }

    /// The status that crossed the boundary.
    pub(crate) fn from_json(json: &str) -> Self {
        serde_json::from_str(json).unwrap_or_else(|error| {
            log::debug!("cannot decode the link's status: {error}");
            Self::default()
        })
    }
}

#[cfg(not(feature = "serde"))]
impl Status {
    /// The status as it crosses the boundary.
    pub(crate) fn to_json(&self) -> String {
        json::encode(self)
    }

    /// The status that crossed the boundary.
    pub(crate) fn from_json(text: &str) -> Self {
        json::decode(text).unwrap_or_else(|| {
            log::debug!("cannot decode the link's status");
            Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report with everything in it.
    fn whole() -> Status {
        Status {
            peer: Some(Peer {
                description: "\"quoted\" \u{1}".into(),
                uid: Some(0),
                pid: None,
            }),
            tier: Some(Tier::SuperFrames),
            reason: "the peer belongs to another user".into(),
            switch: Some(SwitchStatus {
                ports: vec![PortStatus {
                    number: 3,
                    dropped: [("queue full".to_owned(), 2)].into(),
                    ..PortStatus::default()
                }],
                fdb: vec![StationStatus::default()],
            }),
            max_mtu: Some(9216),
            extra: [("generation".to_owned(), "dgram".to_owned())].into(),
        }
    }

    #[test]
    fn survives_the_round_trip() {
        let status = whole();
        assert_eq!(Status::from_json(&status.to_json()), status);
        assert_eq!(json::decode(&json::encode(&status)), Some(status));
        assert_eq!(json::encode(&Status::default()), "{}");
        assert_eq!(Status::default().to_json(), "{}");
    }

    #[test]
    fn what_is_unknown_is_ignored() {
        let newer =
            r#"{"tier":"teleport","colour":{"deep":[1]},"peer":{"uid":7,"shoe":9},"reason":"r"}"#;
        let status = Status::from_json(newer);
        assert_eq!(json::decode(newer), Some(status.clone()));
        assert_eq!(status.tier, Some(Tier::Other));
        assert_eq!(status.peer.and_then(|peer| peer.uid), Some(7));
        assert_eq!(status.reason, "r");
        for nonsense in ["", "null", "[", "{\"peer\":3}"] {
            assert_eq!(Status::from_json(nonsense), Status::default(), "{nonsense}");
            assert_eq!(json::decode(nonsense), None, "{nonsense}");
        }
    }

    /// The host decodes with serde what a plugin encodes without it, and the reverse.
    #[cfg(feature = "serde")]
    #[test]
    fn both_codecs_understand_each_other() {
        for tier in [Tier::Kernel, Tier::Taps, Tier::Segmented, Tier::Other] {
            let status = Status {
                tier: Some(tier),
                ..whole()
            };
            let (with, without) = (status.to_json(), json::encode(&status));
            assert_eq!(Status::from_json(&without), status);
            assert_eq!(json::decode(&with), Some(status));
        }
        for text in [
            r#"{"max_mtu":null,"peer":null}"#,
            r#"{"max_mtu":-1}"#,
            r#"{"max_mtu":1.5}"#,
            r#"{"max_mtu":4294967296}"#,
            r#"{"reason":null}"#,
            r#"{"switch":{"ports":[{}],"fdb":[{"vlan":65535}]}}"#,
            r#"{"switch":{"ports":[{"dropped":{"a":"b"}}]}}"#,
            r#"{"extra":{"a":1}}"#,
        ] {
            let serde = serde_json::from_str::<Status>(text).ok();
            assert_eq!(json::decode(text), serde, "{text}");
        }
    }
}
