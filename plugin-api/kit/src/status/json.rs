//! The report in JSON without serde, whose macros would take most of the time of an author's build.
//!
//! It is the same text as serde's, but for the order of the members. Numbers pass through an `f64`,
//! so those beyond 2⁵³ are rounded. What is decoded here has come through the host, which decodes
//! reports with serde and encodes them again.

use std::collections::{BTreeMap, HashMap};

use tinyjson::JsonValue;

use super::{Peer, PortStatus, StationStatus, Status, SwitchStatus, Tier};

type Object = HashMap<String, JsonValue>;

/// The tiers by name. Others are [`Tier::Other`].
const TIERS: [(Tier, &str); 4] = [
    (Tier::Kernel, "kernel"),
    (Tier::Taps, "taps"),
    (Tier::SuperFrames, "super-frames"),
    (Tier::Segmented, "segmented"),
];

pub(super) fn encode(status: &Status) -> String {
    // A number that JSON does not have cannot be in it, which is the only error.
    let text = JsonValue::Object(status_object(status)).stringify();
    text.unwrap_or_default()
}

/// `None` if the text is no report.
pub(super) fn decode(text: &str) -> Option<Status> {
    <Status as Json>::from_json(&text.parse().ok()?)
}

/// An object of the members that are there.
fn object<const N: usize>(members: [(&str, Option<JsonValue>); N]) -> Object {
    let present = members.into_iter();
    present
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

fn text(text: &str) -> Option<JsonValue> {
    (!text.is_empty()).then(|| JsonValue::String(text.to_owned()))
}

fn number(number: impl Into<u64>) -> Option<JsonValue> {
    Some(JsonValue::Number(number.into() as f64))
}

fn tier(tier: Tier) -> JsonValue {
    let name = TIERS.iter().find(|(known, _)| *known == tier);
    JsonValue::String(name.map_or("other", |(_, name)| name).to_owned())
}

fn map<T>(map: &BTreeMap<String, T>, value: impl Fn(&T) -> JsonValue) -> Option<JsonValue> {
    let members = map.iter();
    let object: Object = members.map(|(k, v)| (k.clone(), value(v))).collect();
    (!object.is_empty()).then_some(JsonValue::Object(object))
}

fn list<T>(list: &[T], value: impl Fn(&T) -> Object) -> Option<JsonValue> {
    let values = list.iter().map(|it| JsonValue::Object(value(it)));
    Some(JsonValue::Array(values.collect()))
}

fn status_object(status: &Status) -> Object {
    let switch = status.switch.as_ref().map(|switch| {
        JsonValue::Object(object([
            ("ports", list(&switch.ports, port_object)),
            ("fdb", list(&switch.fdb, station_object)),
        ]))
    });
    object([
        ("peer", status.peer.as_ref().map(peer_object)),
        ("tier", status.tier.map(tier)),
        ("reason", text(&status.reason)),
        ("max_mtu", status.max_mtu.and_then(number)),
        ("switch", switch),
        (
            "extra",
            map(&status.extra, |it| JsonValue::String(it.clone())),
        ),
    ])
}

fn peer_object(peer: &Peer) -> JsonValue {
    JsonValue::Object(object([
        ("description", text(&peer.description)),
        ("uid", peer.uid.and_then(number)),
        ("pid", peer.pid.and_then(number)),
    ]))
}

fn port_object(port: &PortStatus) -> Object {
    let dropped = map(&port.dropped, |it| JsonValue::Number(*it as f64));
    object([
        ("number", number(port.number)),
        ("client", Some(peer_object(&port.client))),
        ("tier", port.tier.map(tier)),
        ("received", number(port.received)),
        ("sent", number(port.sent)),
        ("dropped", dropped),
    ])
}

fn station_object(station: &StationStatus) -> Object {
    object([
        ("mac", Some(JsonValue::String(station.mac.clone()))),
        ("vlan", number(station.vlan)),
        ("port", Some(JsonValue::String(station.port.clone()))),
        ("age", number(station.age)),
    ])
}

/// A type of JSON, of which a member is.
trait Json: Sized {
    fn from_json(value: &JsonValue) -> Option<Self>;
}

/// A member; its default if it is missing, and for an optional one also if it is null.
///
/// `None` if it is of another type.
fn member<T: Json + Default>(object: &Object, name: &str) -> Option<T> {
    object.get(name).map_or(Some(T::default()), T::from_json)
}

impl<T: Json> Json for Option<T> {
    fn from_json(value: &JsonValue) -> Option<Self> {
        match value {
            JsonValue::Null => Some(None),
            value => T::from_json(value).map(Some),
        }
    }
}

impl<T: Json> Json for Vec<T> {
    fn from_json(value: &JsonValue) -> Option<Self> {
        let values: &Vec<JsonValue> = value.get()?;
        values.iter().map(T::from_json).collect()
    }
}

impl<T: Json> Json for BTreeMap<String, T> {
    fn from_json(value: &JsonValue) -> Option<Self> {
        let object: &Object = value.get()?;
        let members = object.iter();
        members
            .map(|(name, value)| Some((name.clone(), T::from_json(value)?)))
            .collect()
    }
}

impl Json for String {
    fn from_json(value: &JsonValue) -> Option<Self> {
        value.get::<String>().cloned()
    }
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Json for $type {
            fn from_json(value: &JsonValue) -> Option<Self> {
                let number = *value.get::<f64>()?;
                let fits = (0.0..=<$type>::MAX as f64).contains(&number) && number.fract() == 0.0;
                fits.then_some(number as $type)
            }
        }
    )*};
}

numbers!(u16, u32, u64);

impl Json for Tier {
    fn from_json(value: &JsonValue) -> Option<Self> {
        let name = value.get::<String>()?;
        let known = TIERS.iter().find(|(_, known)| known == name);
        Some(known.map_or(Self::Other, |(tier, _)| *tier))
    }
}

/// Decodes an object member by member.
macro_rules! objects {
    ($($type:ident { $($field:ident),* })*) => {$(
        impl Json for $type {
            fn from_json(value: &JsonValue) -> Option<Self> {
                let object: &Object = value.get()?;
                Some(Self { $($field: member(object, stringify!($field))?),* })
            }
        }
    )*};
}

objects! {
    Status { peer, tier, reason, max_mtu, switch, extra }
    Peer { description, uid, pid }
    SwitchStatus { ports, fdb }
    PortStatus { number, client, tier, received, sent, dropped }
    StationStatus { mac, vlan, port, age }
}
