//! What a link tells a person of itself ([`crate::Link::status`]), as `vdectl status` shows it.
//!
//! Nothing in the data plane depends on it. Across the boundary it travels as JSON, so that it can grow: a
//! field that one side does not know is ignored, one that is missing has its default, and what cannot be
//! understood at all is the empty status.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How frames get from one end of a link to the other, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// The kernel carries them, on the panel.
    Kernel,
    /// From one tap to another, with everything left undone that can be.
    Taps,
    /// As super-frames, with checksums left undone.
    SuperFrames,
    /// One by one: they are cut and completed here for the far end.
    Segmented,
    /// In a way that the reader of this status has no name for.
    #[serde(other)]
    Other,
}

/// What is known of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Who is at the far end, if somebody is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Peer>,
    /// How frames go. If the link does not say, its [`crate::State`] does. A link that is a tap says
    /// [`Tier::Taps`], which counts if both sides do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Why there is no better tier, in words that follow a colon; empty if there is nothing to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The largest MTU whose frames the link carries, in bytes, while the kernel does not carry
    /// them. A link that carries every frame, or does not know, says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_mtu: Option<u32>,
    /// The ports and the forwarding database of a switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch: Option<SwitchStatus>,
    /// Whatever else is worth knowing, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, String>,
}

/// Who is at the far end of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Peer {
    /// What it says of itself, or what is known of it; empty if nothing is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Its user id, if the kernel tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its process id, if the kernel tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// A switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SwitchStatus {
    /// Its ports, by number.
    pub ports: Vec<PortStatus>,
    /// Its forwarding database, sorted: the stations that were heard of lately.
    pub fdb: Vec<StationStatus>,
}

/// A port of a switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PortStatus {
    /// Its number.
    pub number: u32,
    /// Who is plugged in.
    pub client: Peer,
    /// How frames go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// Frames that came from the client through the switch's own process.
    pub received: u64,
    /// Frames that went to it likewise.
    pub sent: u64,
    /// Frames lost, by cause.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped: BTreeMap<String, u64>,
}

/// A station that a switch has heard of.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct StationStatus {
    /// Its Ethernet address, `02:00:00:00:00:01`.
    pub mac: String,
    /// Its VLAN, 0 if its frames are untagged.
    pub vlan: u16,
    /// What it is behind: a port's number, `local` for the host's own side, `panel` for the bridge on the panel.
    pub port: String,
    /// How long ago it was last heard of, in seconds.
    pub age: u64,
}

impl Status {
    /// The status as it crosses the boundary.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| {
            log::error!("a status cannot be told: {error}");
            String::new()
        })
    }

    /// Reads what came across the boundary.
    pub(crate) fn from_json(json: &str) -> Self {
        serde_json::from_str(json).unwrap_or_else(|error| {
            log::debug!("a status is not understood: {error}");
            Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_round_trip() {
        let status = Status {
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
        };
        assert_eq!(Status::from_json(&status.to_json()), status);
        assert_eq!(Status::default().to_json(), "{}");
    }

    #[test]
    fn what_is_unknown_is_ignored() {
        let newer =
            r#"{"tier":"teleport","colour":{"deep":[1]},"peer":{"uid":7,"shoe":9},"reason":"r"}"#;
        let status = Status::from_json(newer);
        assert_eq!(status.tier, Some(Tier::Other));
        assert_eq!(status.peer.and_then(|peer| peer.uid), Some(7));
        assert_eq!(status.reason, "r");
        for nonsense in ["", "null", "[", "{\"peer\":3}"] {
            assert_eq!(Status::from_json(nonsense), Status::default(), "{nonsense}");
        }
    }
}
