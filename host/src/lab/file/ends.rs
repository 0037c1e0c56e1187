//! The interfaces on one link or switch, from their text to addresses.

use std::borrow::Cow;
use std::collections::HashMap;

use vdens_impairment::Keys;

use super::addresses::{Claim, Segment};
use super::check;
use super::expand::{Result, at};
use super::place::{Part, Placed};
use super::template::fill;
use super::types::{EndEntry, LinkEntry};
use crate::cli::values::{MacAddress, Mtu};
use crate::error::Error;
use crate::lab::model::Attachment;
use crate::sys::netlink::Mac;

/// An end as it is written, in its pieces.
pub(super) enum Written<'a> {
    /// A network outside.
    Vnl(Part<'a>),
    /// An interface of one node, or of several.
    Node(WrittenNode<'a>),
}

/// An interface as it is written.
pub(super) struct WrittenNode<'a> {
    /// The node's name, or a glob.
    pub node: Part<'a>,
    pub interface: Part<'a>,
    addresses: Vec<Part<'a>>,
    mac: Option<Part<'a>>,
    mtu: Option<&'a Placed<u32>>,
}

impl WrittenNode<'_> {
    /// Its first address, if it has one.
    pub(super) fn address(&self) -> Option<&Part<'_>> {
        self.addresses.first()
    }

    /// Whether it is for all nodes that match.
    pub(super) fn is_glob(&self) -> bool {
        self.node.text.contains('*')
    }
}

impl<'a> Written<'a> {
    /// Reads an end.
    ///
    /// # Errors
    /// It is neither.
    pub(super) fn read(end: &'a Placed<EndEntry>) -> Result<Self> {
        let text = match &end.value {
            EndEntry::Text(text) => end.part_of(text),
            EndEntry::Table(table) => {
                return Ok(Self::Node(WrittenNode {
                    node: table.node.part(),
                    interface: table.interface.part(),
                    addresses: table.addresses.iter().map(Placed::<String>::part).collect(),
                    mac: table.mac.as_ref().map(Placed::<String>::part),
                    mtu: table.mtu.as_ref(),
                }));
            }
        };
        if text.text.contains("://") {
            return Ok(Self::Vnl(text));
        }
        let Some((node, rest)) = text.split_once(':') else {
            let message = format!("'{}' names no interface", text.text.escape_debug());
            return Err(text.fault(Error::usage(message).hint(
                "write NODE:INTERFACE, as r1:eth0, or a VNL with its scheme, as vde:///PATH",
            )));
        };
        let (interface, addresses) = match rest.split_once('=') {
            Some((interface, addresses)) => (interface, addresses.list().collect()),
            None => (rest, Vec::new()),
        };
        Ok(Self::Node(WrittenNode {
            node,
            interface,
            addresses,
            mac: None,
            mtu: None,
        }))
    }

    /// The interface, if it is one.
    pub(super) fn node(&self) -> Option<&WrittenNode<'a>> {
        match self {
            Self::Vnl(_) => None,
            Self::Node(node) => Some(node),
        }
    }
}

/// The interfaces of one link or switch. They get their addresses when all are known.
pub(super) struct Wiring<'a> {
    /// The MTU of those that have none of their own.
    pub(super) mtu: Option<u32>,
    interfaces: Vec<Interface<'a>>,
    macs: HashMap<Mac, String>,
}

struct Interface<'a> {
    /// As messages have it, `r1:eth0`.
    name: String,
    /// Of its first address, if it has one.
    place: Part<'a>,
    claims: Vec<(Claim, Part<'a>)>,
    attachment: Attachment,
}

impl<'a> Wiring<'a> {
    /// No interfaces yet.
    ///
    /// # Errors
    /// The MTU is none.
    pub(super) fn new(default_mtu: Option<&Placed<u32>>) -> Result<Self> {
        Ok(Self {
            mtu: mtu(default_mtu)?,
            interfaces: Vec::new(),
            macs: HashMap::new(),
        })
    }

    /// Adds the interface of a node. Returns its name.
    ///
    /// # Errors
    /// It, its addresses or its MAC address are malformed, or that is in use.
    pub(super) fn plug(
        &mut self,
        end: &WrittenNode<'a>,
        node: usize,
        node_name: &str,
        n: Option<i64>,
    ) -> Result<String> {
        let interface = fill(end.interface, n)?.into_owned();
        at(&end.interface, check::interface(&interface))?;
        let name = format!("{node_name}:{interface}");
        let mac = match end.mac {
            None => None,
            Some(part) => Some(self.mac(part, n, &name)?),
        };
        let claim = |part: &Part<'a>| {
            let text = fill(*part, n)?;
            // Expressions make an address for each node.
            let is_shared = end.is_glob() && matches!(text, Cow::Borrowed(_));
            Ok((at(part, Claim::parse(&text, is_shared))?, *part))
        };
        let claims = end.addresses.iter().map(claim).collect::<Result<_>>()?;
        self.interfaces.push(Interface {
            name,
            place: end.addresses.first().copied().unwrap_or(end.node),
            claims,
            attachment: Attachment {
                node,
                interface: interface.clone(),
                addresses: Vec::new(),
                mac,
                mtu: mtu(end.mtu)?.or(self.mtu),
            },
        });
        Ok(interface)
    }

    fn mac(&mut self, part: Part<'_>, n: Option<i64>, name: &str) -> Result<Mac> {
        let text = fill(part, n)?;
        let parsed = text.parse().map_err(|why: String| {
            Error::usage(format!("'{}' is no Ethernet address", text.escape_debug())).hint(why)
        });
        let MacAddress(mac) = at(&part, parsed)?;
        match self.macs.insert(mac, name.to_owned()) {
            None => Ok(mac),
            Some(owner) => {
                let message = format!("the Ethernet address {text} is {owner}'s already");
                let hint = "give each interface one of its own, or none for the kernel's choice";
                Err(part.fault(Error::usage(message).hint(hint)))
            }
        }
    }

    /// Gives the interfaces their addresses, and checks them together.
    ///
    /// # Errors
    /// There is no free address, or networks differ by mistake.
    pub(super) fn finish(mut self, is_link: bool) -> Result<Vec<Attachment>> {
        let mut segment = Segment::default();
        // What is fixed comes first, so that counting skips it.
        for interface in &self.interfaces {
            for (claim, part) in &interface.claims {
                if let Claim::Fixed(net) = claim {
                    at(part, segment.take(*net, &interface.name))?;
                }
            }
        }
        for interface in &mut self.interfaces {
            for (claim, part) in &interface.claims {
                let net = match claim {
                    Claim::Fixed(net) => *net,
                    Claim::From(start) => at(part, segment.take_next(*start, &interface.name))?,
                };
                interface.attachment.addresses.push(net);
            }
        }
        if let Err((name, error)) = segment.check(is_link) {
            let interface = self
                .interfaces
                .iter()
                .find(|interface| interface.name == name);
            if let Some(interface) = interface {
                return Err(interface.place.fault(error));
            }
        }
        let interfaces = self.interfaces.into_iter();
        Ok(interfaces.map(|interface| interface.attachment).collect())
    }
}

fn mtu(mtu: Option<&Placed<u32>>) -> Result<Option<u32>> {
    let Some(mtu) = mtu else {
        return Ok(None);
    };
    match mtu.value.to_string().parse() {
        Ok(Mtu(mtu)) => Ok(Some(mtu)),
        Err(why) => {
            let message = format!("an MTU of {} is not possible", mtu.value);
            Err(mtu.fault(Error::usage(message).hint(why)))
        }
    }
}

/// The impairments of a link as `netem://` takes them. If the first end is not the node's
/// (`is_swapped`), what it sends is what the node's receives.
///
/// # Errors
/// They are malformed.
pub(super) fn impairments(
    entry: &LinkEntry,
    is_swapped: bool,
    n: Option<i64>,
) -> Result<Option<String>> {
    let (tx, rx) = if is_swapped {
        ("rx.", "tx.")
    } else {
        ("tx.", "rx.")
    };
    let mut keys = Keys::default();
    let mut places: Vec<(&str, Part<'_>)> = Vec::new();
    let tables = [("", &entry.both), (tx, &entry.tx), (rx, &entry.rx)];
    for (prefix, table) in tables
        .iter()
        .filter_map(|(prefix, table)| Some((prefix, table.as_ref()?)))
    {
        for (key, part) in table.value.keys() {
            let value = fill(part, n)?;
            let word = match (key, &*value) {
                ("ordered", _) => format!("{prefix}{key}"),
                ("seed", _) if !prefix.is_empty() => {
                    let error = Error::usage("a seed is for both directions");
                    return Err(part.fault(error.hint("move it to both = { … }")));
                }
                (_, "") => {
                    let error = Error::usage(format!("the key '{key}' has no value"));
                    return Err(part.fault(error.hint("write one, or remove the key")));
                }
                (_, value) => format!("{prefix}{key}={value}"),
            };
            at(&part, keys.change(&word))?;
            places.push((key, part));
        }
    }
    if let Err(error) = check::impairments(&keys) {
        // The message quotes the key at fault, and its value if that is wrong.
        let quotes = |text: &str| {
            error
                .message
                .contains(&format!("'{}'", text.escape_debug()))
        };
        let of_key = |(key, _): &&(&str, Part<'_>)| quotes(key);
        let place = places
            .iter()
            .filter(of_key)
            .find(|(_, part)| quotes(part.text));
        return Err(
            match place.or(places.iter().find(of_key)).or(places.last()) {
                Some((_, part)) => part.fault(error),
                None => entry.ends.fault(error),
            },
        );
    }
    let is_impaired = tables.iter().any(|(_, table)| table.is_some());
    Ok(is_impaired.then(|| keys.to_string()))
}
