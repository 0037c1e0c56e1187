//! The words of `vdectl switch set`: changes of a switch as a sentence. No I/O.
//!
//! A sentence consists of settings of the switch, then of ports, VLANs and stations: `stp on vlan
//! 10 port 3 untagged 10 tagged 20`. A word such as `port 3` says what the words after it are
//! about. So the sentence is one request, of which the switch does all or nothing.

use std::str::FromStr;

use vdens_switch_control::{Access, Change, Mac, PortChange, StormLimit, StpChange};

use crate::error::{Error, Result};

/// What the next words are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Switch,
    Port(u32),
    Vlan(u16),
}

/// Names of users and groups.
pub(crate) struct Names<'a> {
    /// The user of a name or number; `None` for all.
    pub(crate) user: &'a dyn Fn(&str) -> Result<Option<u32>>,
    /// The group likewise.
    pub(crate) group: &'a dyn Fn(&str) -> Result<Option<u32>>,
}

/// What words there are, by what they are about; for messages.
const OF_SWITCH: &str = "hub, stp, priority, hello, max-age, forward-delay, ports, expiry, storm, \
    flush, reset, port, vlan, station";
const OF_PORT: &str = "untagged, tagged, not-tagged, allocatable, user, group, lock, mirror, storm, \
    edge, auto-edge, guard, cost, priority, create, remove, disconnect, reset, port, vlan, station";
const OF_VLAN: &str = "create, remove, offer, withdraw, port, vlan, station";

/// All words that say what is to change, for the shell.
pub(crate) const KNOWN: [&str; 34] = [
    "port",
    "vlan",
    "station",
    "hub",
    "stp",
    "priority",
    "hello",
    "max-age",
    "forward-delay",
    "ports",
    "expiry",
    "storm",
    "flush",
    "reset",
    "untagged",
    "tagged",
    "not-tagged",
    "allocatable",
    "user",
    "group",
    "lock",
    "mirror",
    "edge",
    "auto-edge",
    "guard",
    "cost",
    "create",
    "remove",
    "disconnect",
    "offer",
    "withdraw",
    "mode",
    "on",
    "off",
];

/// The words that are left.
struct Words<'a> {
    left: std::slice::Iter<'a, String>,
    /// The last word that was taken.
    last: &'a str,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let word = self.left.next()?;
        self.last = word;
        Some(word)
    }

    /// The next word, if it is this one.
    fn take(&mut self, wanted: &str) -> bool {
        let is_next = self
            .left
            .as_slice()
            .first()
            .is_some_and(|word| word == wanted);
        is_next.then(|| self.left.next()).is_some()
    }

    fn value(&mut self, what: &str) -> Result<&'a str> {
        let after = self.last;
        let missing = || {
            Error::usage(format!(
                "{what} is missing after '{}'",
                after.escape_debug()
            ))
        };
        self.next().ok_or_else(missing)
    }

    fn parsed<T: FromStr>(&mut self, what: &str) -> Result<T> {
        let word = self.value(what)?;
        word.parse().map_err(|_| wrong(word, what))
    }

    fn on_off(&mut self) -> Result<bool> {
        match self.value("on or off")? {
            "on" | "yes" => Ok(true),
            "off" | "no" => Ok(false),
            word => Err(wrong(word, "on or off")),
        }
    }

    /// A value, or `none`.
    fn or_none<T: FromStr>(&mut self, what: &str) -> Result<Option<T>> {
        match self.value(what)? {
            "none" => Ok(None),
            word => word.parse().map(Some).map_err(|_| wrong(word, what)),
        }
    }

    fn limit(&mut self) -> Result<StormLimit> {
        let what = "a number of frames a second, or off";
        match self.value(what)? {
            "off" => Ok(StormLimit::Off),
            word => word
                .parse()
                .map(StormLimit::Frames)
                .map_err(|_| wrong(word, what)),
        }
    }
}

fn wrong(word: &str, what: &str) -> Error {
    Error::usage(format!("'{}' is not {what}", word.escape_debug()))
}

/// The changes that a sentence asks for.
///
/// # Errors
/// It is none.
pub(crate) fn changes(words: &[String], names: &Names<'_>) -> Result<Vec<Change>> {
    let mut words = Words {
        left: words.iter(),
        last: "",
    };
    let mut changes = Vec::new();
    let mut about = About::Switch;
    while let Some(word) = words.next() {
        let change = match (word, about) {
            ("port", _) => {
                about = About::Port(words.parsed("a port's number")?);
                continue;
            }
            ("vlan", _) => {
                about = About::Vlan(words.parsed("a VLAN")?);
                continue;
            }
            ("station", _) => {
                about = About::Switch;
                station(&mut words)?
            }
            (word, About::Switch) => of_switch(word, &mut words)?,
            (word, About::Port(port)) => of_port(word, port, &mut words, names)?,
            (word, About::Vlan(vlan)) => of_vlan(word, vlan, &mut words)?,
        };
        changes.push(change);
    }
    match changes.is_empty() {
        true => {
            Err(Error::usage("nothing is to be changed").hint(format!("words are {OF_SWITCH}")))
        }
        false => Ok(changes),
    }
}

fn unknown(word: &str, known: &str) -> Error {
    Error::usage(format!("unknown word '{}'", word.escape_debug()))
        .hint(format!("words are {known}"))
}

fn of_switch(word: &str, words: &mut Words<'_>) -> Result<Change> {
    Ok(match word {
        "hub" => Change::Hub(words.on_off()?),
        "stp" => Change::Stp(StpChange::Enabled(words.on_off()?)),
        "priority" => Change::Stp(StpChange::Priority(words.parsed("a priority")?)),
        "hello" => Change::Stp(StpChange::Hello(words.parsed("a number of seconds")?)),
        "max-age" => Change::Stp(StpChange::MaxAge(words.parsed("a number of seconds")?)),
        "forward-delay" => Change::Stp(StpChange::ForwardDelay(
            words.parsed("a number of seconds")?,
        )),
        "ports" => Change::NumPorts(words.parsed("a number of ports")?),
        "expiry" => Change::Expiry(words.parsed("a number of seconds")?),
        "storm" => Change::Storm(words.limit()?),
        "flush" => Change::FlushStations,
        "reset" => Change::ResetCounters(None),
        word => return Err(unknown(word, OF_SWITCH)),
    })
}

fn of_port(word: &str, port: u32, words: &mut Words<'_>, names: &Names<'_>) -> Result<Change> {
    let change = match word {
        "untagged" => PortChange::Untagged(words.or_none("a VLAN or none")?),
        "tagged" => PortChange::AddTagged(words.parsed("a VLAN")?),
        "not-tagged" => PortChange::RemoveTagged(words.parsed("a VLAN")?),
        "allocatable" => PortChange::Allocatable(words.on_off()?),
        "user" => PortChange::User((names.user)(words.value("a user or none")?)?),
        "group" => PortChange::Group((names.group)(words.value("a group or none")?)?),
        "lock" => PortChange::Lock(words.or_none("an Ethernet address or none")?),
        "mirror" => PortChange::Mirror(words.or_none("a port's number or none")?),
        "storm" if words.take("none") => PortChange::Storm(None),
        "storm" => PortChange::Storm(Some(words.limit()?)),
        "edge" => PortChange::Edge(words.on_off()?),
        "auto-edge" => PortChange::AutoEdge(words.on_off()?),
        "guard" => PortChange::Guard(words.on_off()?),
        "cost" => PortChange::Cost(words.parsed("a cost")?),
        "priority" => PortChange::Priority(words.parsed("a priority")?),
        "create" => return Ok(Change::CreatePort(port)),
        "remove" => return Ok(Change::RemovePort(port)),
        "disconnect" => return Ok(Change::Disconnect(port)),
        "reset" => return Ok(Change::ResetCounters(Some(port))),
        word => return Err(unknown(word, OF_PORT)),
    };
    Ok(Change::Port(port, change))
}

fn of_vlan(word: &str, vlan: u16, words: &mut Words<'_>) -> Result<Change> {
    Ok(match word {
        "create" => Change::CreateVlan(vlan),
        "remove" => Change::RemoveVlan(vlan),
        "offer" => {
            let mode = match words.take("mode") {
                true => Some(mode(words.value("permission bits")?)?),
                false => None,
            };
            Change::OfferVlan(vlan, Some(Access { mode }))
        }
        "withdraw" => Change::OfferVlan(vlan, None),
        word => return Err(unknown(word, OF_VLAN)),
    })
}

fn mode(word: &str) -> Result<u32> {
    let mode = u32::from_str_radix(word, 8)
        .ok()
        .filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| wrong(word, "permission bits: three octal digits"))
}

/// `station MAC [vlan N] (port N | remove)`.
fn station(words: &mut Words<'_>) -> Result<Change> {
    let mac: Mac = words.parsed("an Ethernet address")?;
    let vlan = match words.take("vlan") {
        true => words.parsed("a VLAN")?,
        false => 0,
    };
    Ok(match words.value("port or remove")? {
        "remove" => Change::RemoveStation { vlan, mac },
        "port" => {
            let port = words.parsed("a port's number")?;
            Change::AddStation { vlan, mac, port }
        }
        word => return Err(wrong(word, "port or remove")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(sentence: &str) -> Result<Vec<Change>> {
        let words: Vec<String> = sentence.split_whitespace().map(str::to_owned).collect();
        let user = |name: &str| Ok((name != "none").then_some(7));
        changes(
            &words,
            &Names {
                user: &user,
                group: &user,
            },
        )
    }

    #[test]
    fn a_sentence_is_one_request() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let said = "stp on storm off vlan 10 create offer mode 660 port 3 untagged 10 tagged 20 \
            user alice storm none lock none port 4 mirror 3 storm 9 guard on priority 16 \
            station 2:0:0:0:0:1 vlan 10 port 3 flush vlan 5 remove";
        let limit = Some(StormLimit::Frames(9));
        let access = Some(Access { mode: Some(0o660) });
        assert_eq!(
            parse(said).unwrap(),
            [
                Change::Stp(StpChange::Enabled(true)),
                Change::Storm(StormLimit::Off),
                Change::CreateVlan(10),
                Change::OfferVlan(10, access),
                Change::Port(3, PortChange::Untagged(Some(10))),
                Change::Port(3, PortChange::AddTagged(20)),
                Change::Port(3, PortChange::User(Some(7))),
                Change::Port(3, PortChange::Storm(None)),
                Change::Port(3, PortChange::Lock(None)),
                Change::Port(4, PortChange::Mirror(Some(3))),
                Change::Port(4, PortChange::Storm(limit)),
                Change::Port(4, PortChange::Guard(true)),
                Change::Port(4, PortChange::Priority(16)),
                Change::AddStation {
                    vlan: 10,
                    mac,
                    port: 3
                },
                Change::FlushStations,
                Change::RemoveVlan(5),
            ]
        );
    }

    #[test]
    fn mistakes_say_what_is_wanted() {
        for (said, words) in [
            ("", "nothing is to be changed"),
            ("port 3", "nothing is to be changed"),
            ("port", "a port's number is missing after 'port'"),
            ("port x", "'x' is not a port's number"),
            ("port 3 colour red", "unknown word 'colour'"),
            ("hub maybe", "'maybe' is not on or off"),
            ("stp", "on or off is missing after 'stp'"),
            ("vlan 10 create untagged 3", "unknown word 'untagged'"),
            ("vlan 10 offer mode 999", "'999' is not permission bits"),
            ("station 2:0:0:0:0:1", "port or remove is missing"),
            (
                "port 3 lock 1:2",
                "'1:2' is not an Ethernet address or none",
            ),
        ] {
            let error = parse(said).unwrap_err().to_string();
            assert!(error.contains(words), "{said}: {error}");
        }
    }
}
