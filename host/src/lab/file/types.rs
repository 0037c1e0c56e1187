//! A lab file as it is written: TOML, read by serde.
//!
//! The comments on the fields are for users: they become the descriptions of the JSON Schema
//! (docs/lab-file.schema.json), which editors show, and the table in docs/lab-file.md.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::place::{Fault, Part, Placed};
use crate::error::Error;
use crate::plugins::search::similar;

/// A network of nodes, links and switches, for vdectl lab.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table of the lab")]
#[schemars(title = "vdens lab file")]
pub(super) struct File {
    /// The lab's name. By default it is the file's without `.toml`.
    pub name: Option<Placed<String>>,
    /// The nodes: network namespaces with what runs in them. The key is the node's name.
    #[serde(default)]
    pub nodes: BTreeMap<Placed<String>, NodeEntry>,
    /// The links: cables with two ends.
    #[serde(default)]
    pub links: Vec<LinkEntry>,
    /// The switches.
    #[serde(default)]
    pub switches: Vec<SwitchEntry>,
    /// The tests: commands that tell whether the lab works.
    #[serde(default)]
    pub tests: Vec<TestEntry>,
}

/// A node, or several that are alike.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table, [nodes.NAME]")]
#[schemars(rename = "node")]
pub(super) struct NodeEntry {
    /// Makes so many nodes, whose names are this one with a number: h1, h2, … In strings `{n}` is
    /// the number.
    #[schemars(range(min = 1, max = 4096))]
    pub count: Option<Placed<u32>>,
    /// The host name inside. By default it is the node's name.
    pub hostname: Option<Placed<String>>,
    /// Kernel parameters, as in `{ "net.ipv4.ip_forward" = 1 }`. They are set when the interfaces
    /// are there, before `exec`.
    #[serde(default)]
    pub sysctl: BTreeMap<Placed<String>, Placed<Scalar>>,
    /// Shell commands that run one after the other when the interfaces are up. If one fails, the
    /// lab does not start.
    #[serde(default)]
    pub exec: Vec<Placed<String>>,
    /// Shell commands that start after `exec`, and run as long as the lab does.
    #[serde(default)]
    pub services: Vec<Placed<String>>,
    /// Names of nodes that this one waits for, also with `*`: its `exec` starts when theirs is done
    /// and their services have started.
    #[serde(default)]
    pub after: Vec<Placed<String>>,
    /// Whether you are root inside, as with `vdens --root`.
    #[serde(default)]
    pub root: bool,
    /// Whether the node has your subordinate user ids, as with `vdens --map-auto`.
    #[serde(default)]
    pub map_auto: bool,
    /// A virtual machine whose network cards are the node's interfaces.
    pub qemu: Option<MachineEntry>,
}

/// A virtual machine. Relative paths start at the lab file's directory.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a table such as { image = \"disk.qcow2\" }"
)]
#[schemars(rename = "machine")]
pub(super) struct MachineEntry {
    /// The image of its disk.
    pub image: Option<Placed<String>>,
    /// Whether the image keeps what the guest writes. By default that is lost when the machine
    /// ends, so that several machines can use one image.
    #[serde(default)]
    pub keep: bool,
    /// The guest's memory, with a unit: `512M`, `2G`.
    #[schemars(extend("default" = "512M"))]
    pub memory: Option<Placed<String>>,
    /// The number of its processors.
    #[schemars(range(min = 1, max = 255), extend("default" = 1))]
    pub cpus: Option<Placed<u32>>,
    /// A kernel to boot, in place of the disk's.
    pub kernel: Option<Placed<String>>,
    /// The kernel's initial file system.
    pub initrd: Option<Placed<String>>,
    /// The kernel's command line.
    pub append: Option<Placed<String>>,
    /// Further arguments for QEMU.
    #[serde(default)]
    pub args: Vec<Placed<String>>,
    /// The program, with another path or for another processor.
    #[schemars(extend("default" = "qemu-system-x86_64"))]
    pub program: Option<Placed<String>>,
}

/// A link, or several that are alike.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table, [[links]]")]
#[schemars(rename = "link")]
pub(super) struct LinkEntry {
    /// The two ends. At least one is an interface of a node.
    #[schemars(length(min = 2, max = 2))]
    pub ends: Placed<Vec<Placed<EndEntry>>>,
    /// Makes so many links. In strings `{n}` is the link's number, from 1.
    #[schemars(range(min = 1, max = 4096))]
    pub count: Option<Placed<u32>>,
    /// The MTU of the interfaces in bytes, from 68 to 65521.
    #[schemars(range(min = 68, max = 65521))]
    pub mtu: Option<Placed<u32>>,
    /// Impairments of both directions.
    pub both: Option<Placed<ImpairmentsEntry>>,
    /// Impairments of what the first end sends, instead of those for both.
    pub tx: Option<Placed<ImpairmentsEntry>>,
    /// Impairments of what the first end receives, instead of those for both.
    pub rx: Option<Placed<ImpairmentsEntry>>,
}

/// A switch, or several that are alike.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table, [[switches]]")]
#[schemars(rename = "switch")]
pub(super) struct SwitchEntry {
    /// The switch's name. No node has the same.
    pub name: Placed<String>,
    /// What is plugged in.
    #[serde(default)]
    pub ports: Vec<Placed<EndEntry>>,
    /// The VNL that leads outside, such as `nat://`.
    pub uplink: Option<Placed<String>>,
    /// Makes so many switches. In strings, also in the name, `{n}` is the switch's number, from 1.
    #[schemars(range(min = 1, max = 4096))]
    pub count: Option<Placed<u32>>,
    /// The MTU of the interfaces in bytes, from 68 to 65521.
    #[schemars(range(min = 68, max = 65521))]
    pub mtu: Option<Placed<u32>>,
}

/// A test.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a table, [[tests]]")]
#[schemars(rename = "test")]
pub(super) struct TestEntry {
    /// The test's name. By default it is the node and the command.
    pub name: Option<Placed<String>>,
    /// The node that the command runs in. With `*` it is a test for each of the nodes.
    pub node: Placed<String>,
    /// The shell command.
    pub run: Placed<String>,
    /// The exit status that passes.
    #[serde(default)]
    pub expect: u8,
    /// How long the command is tried again until it passes: `500ms`, `10s`, `2m`.
    #[schemars(extend("default" = "10s"))]
    pub within: Option<Placed<String>>,
}

/// An end: text, or a table.
#[derive(Debug)]
pub(super) enum EndEntry {
    /// `NODE:INTERFACE=ADDRESS/PREFIX,…`, or a VNL.
    Text(String),
    Table(EndTable),
}

/// An interface of a node, with more than fits into `NODE:INTERFACE=ADDRESS`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "end")]
pub(super) struct EndTable {
    /// The node's name. With `*` it is all nodes whose names match.
    pub node: Placed<String>,
    /// The interface's name.
    pub interface: Placed<String>,
    /// Addresses with prefix lengths.
    #[serde(default)]
    pub addresses: Vec<Placed<String>>,
    /// The Ethernet address. By default it follows from the names of lab, node and interface, so it
    /// is always the same.
    pub mac: Option<Placed<String>>,
    /// The MTU in bytes, from 68 to 65521, instead of the one of the link or switch.
    #[schemars(range(min = 68, max = 65521))]
    pub mtu: Option<Placed<u32>>,
}

/// Impairments: the keys of `netem://`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a table such as { delay = \"20ms\" }"
)]
#[schemars(rename = "impairments")]
pub(super) struct ImpairmentsEntry {
    /// Added to each frame: `20ms`.
    pub delay: Option<Placed<Scalar>>,
    /// How far the delay varies.
    pub jitter: Option<Placed<Scalar>>,
    /// Of the delay's variation: `uniform`, `normal`, `pareto`, or the absolute path of a table.
    pub distribution: Option<Placed<Scalar>>,
    /// The correlation of each delay with the one before: `25%`.
    pub correlation: Option<Placed<Scalar>>,
    /// Whether a frame waits for those before it, so that jitter does not reorder.
    pub ordered: Option<Placed<bool>>,
    /// The share of frames lost, and its correlation: `1%` or `1%,25%`.
    pub loss: Option<Placed<Scalar>>,
    /// Loss in bursts by the model of Gilbert and Elliott: `P,R,1-H,1-K`.
    pub gemodel: Option<Placed<Scalar>>,
    /// The share of frames sent twice, and its correlation.
    pub duplicate: Option<Placed<Scalar>>,
    /// The share of frames with one wrong bit, and its correlation.
    pub corrupt: Option<Placed<Scalar>>,
    /// The share of frames that are not delayed, and its correlation.
    pub reorder: Option<Placed<Scalar>>,
    /// Only every so manyth frame is reordered.
    pub gap: Option<Placed<Scalar>>,
    /// Of the line: `10mbit` (bits per second) or `1mbps` (bytes per second).
    pub rate: Option<Placed<Scalar>>,
    /// What may go at once after a silence: `32kb`.
    pub burst: Option<Placed<Scalar>>,
    /// Packets that wait for the rate.
    pub limit: Option<Placed<Scalar>>,
    /// A number that decides all that is left to chance, in both directions.
    pub seed: Option<Placed<Scalar>>,
}

impl ImpairmentsEntry {
    /// The keys that are set, with their values. That of a flag is empty.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&'static str, Part<'_>)> {
        let flag = self.ordered.as_ref().filter(|ordered| ordered.value);
        let flag = flag.map(|ordered| ("ordered", ordered.part_of("")));
        let values = [
            ("delay", &self.delay),
            ("jitter", &self.jitter),
            ("distribution", &self.distribution),
            ("correlation", &self.correlation),
            ("loss", &self.loss),
            ("gemodel", &self.gemodel),
            ("duplicate", &self.duplicate),
            ("corrupt", &self.corrupt),
            ("reorder", &self.reorder),
            ("gap", &self.gap),
            ("rate", &self.rate),
            ("burst", &self.burst),
            ("limit", &self.limit),
            ("seed", &self.seed),
        ];
        let set = values
            .into_iter()
            .filter_map(|(key, value)| Some((key, value.as_ref()?.part())));
        set.chain(flag)
    }
}

/// A string, or a whole number as one.
#[derive(Debug)]
pub(super) struct Scalar(pub String);

impl Placed<Scalar> {
    pub(super) fn part(&self) -> Part<'_> {
        self.part_of(&self.value.0)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;

        impl Visitor<'_> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a whole number")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.to_owned()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
        }

        deserializer.deserialize_any(ScalarVisitor)
    }
}

impl JsonSchema for Scalar {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "scalar".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"] })
    }
}

impl<'de> Deserialize<'de> for EndEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EndVisitor;

        impl<'de> Visitor<'de> for EndVisitor {
            type Value = EndEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an end, such as \"r1:eth0=10.0.0.1/24\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<EndEntry, E> {
                Ok(EndEntry::Text(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EndEntry, A::Error> {
                EndTable::deserialize(MapAccessDeserializer::new(map)).map(EndEntry::Table)
            }
        }

        deserializer.deserialize_any(EndVisitor)
    }
}

impl JsonSchema for EndEntry {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "end or text".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                {
                    "type": "string",
                    "description": "NODE:INTERFACE=ADDRESS/PREFIX,…, or a VNL.",
                },
                generator.subschema_for::<EndTable>(),
            ]
        })
    }
}

/// Reads a file's text.
///
/// # Errors
/// It is not TOML, or has other keys and types than a lab file.
pub(super) fn parse(text: &str) -> Result<File, Fault> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        Fault::at(at, explain(error.message()))
    })
}

/// What an error of serde or of the TOML parser means, in this program's words. Other messages stay
/// as they are.
fn explain(message: &str) -> Error {
    if message == "duplicate key" {
        return Error::usage("this key is written twice").hint("keep one of the two");
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let first = quoted.next().unwrap_or_default();
    if message.starts_with("unknown field ") {
        let known: Vec<String> = quoted.map(str::to_owned).collect();
        let hint = match similar(first, known.iter().cloned()) {
            Some(meant) => format!("did you mean '{meant}'?"),
            None => format!("valid keys: {}", known.join(", ")),
        };
        return Error::usage(format!("unknown key '{first}'")).hint(hint);
    }
    if message.starts_with("missing field ") {
        return Error::usage(format!("the key '{first}' is missing here"))
            .hint(format!("add {first} = …"));
    }
    let wrong = message
        .strip_prefix("invalid type: ")
        .or(message.strip_prefix("invalid value: "));
    if let Some((given, wanted)) = wrong.and_then(|wrong| wrong.rsplit_once(", expected ")) {
        let wanted = match wanted {
            "u8" => "a whole number from 0 to 255",
            "u32" => "a whole number from 0 on",
            "a map" => "a table",
            "a sequence" => "an array",
            wanted => wanted,
        };
        let message = format!("{given} is no value for this key");
        return Error::usage(message.replace('`', "")).hint(format!("write {wanted}"));
    }
    Error::usage(message.lines().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lab::file::place::Faults;

    fn fault(text: &str) -> String {
        let fault = parse(text).unwrap_err();
        Faults::new(Path::new("x"), text, vec![fault]).to_string()
    }

    #[test]
    fn nodes_are_in_the_order_of_the_file() {
        let file = parse("[nodes.b]\n[nodes.a]\ncount = 2\n[nodes]\nc = {}").unwrap();
        let names: Vec<_> = file.nodes.keys().map(|name| name.value.as_str()).collect();
        assert_eq!(names, ["b", "a", "c"]);
    }

    #[test]
    fn an_end_is_text_or_a_table() {
        let file = parse("[[links]]\nends = ['a:b', { node = 'a', interface = 'c' }]").unwrap();
        let [text, table] = &*file.links[0].ends.value else {
            panic!("two ends: {file:?}");
        };
        assert!(matches!(&text.value, EndEntry::Text(text) if text == "a:b"));
        assert!(matches!(&table.value, EndEntry::Table(table) if table.interface.value == "c"));
    }

    #[test]
    fn mistakes_are_placed_and_explained() {
        for (text, line) in [
            (
                "nodez = 1",
                "x:1:1: unknown key 'nodez'; did you mean 'nodes'?",
            ),
            (
                "[nodes.a]\nqqqq = 1",
                "x:2:1: unknown key 'qqqq'; valid keys: count, hostname, sysctl, exec, services, \
                 after, root, map_auto, qemu",
            ),
            (
                "[[links]]\nends = ['a:b', { node = 'a', iface = 'b' }]",
                "x:2:30: unknown key 'iface'; valid keys: node, interface, addresses, mac, mtu",
            ),
            (
                "\n[[tests]]\nrun = 'x'",
                "x:2:1: the key 'node' is missing here; add node = …",
            ),
            (
                "[nodes.a]\nroot = 'yes'",
                "x:2:8: string \"yes\" is no value for this key; write a boolean",
            ),
            (
                "[nodes.a]\ncount = -1",
                "x:2:9: integer -1 is no value for this key; write a whole number from 0 on",
            ),
            (
                "[[links]]\nends = [1, 'a:b']",
                "x:2:9: integer 1 is no value for this key; write an end, such as \
                 \"r1:eth0=10.0.0.1/24\"",
            ),
            (
                "[nodes.a]\nsysctl = { x = 1.5 }",
                "x:2:16: floating point 1.5 is no value for this key; write a string or a whole \
                 number",
            ),
        ] {
            assert_eq!(fault(text), line);
        }
        for (text, place) in [
            ("[nodes", "x:1:"),
            ("a = \n", "x:1:"),
            ("[nodes.a]\n[nodes.a]", "x:2:"),
        ] {
            assert!(fault(text).starts_with(place), "{}", fault(text));
        }
    }
}
