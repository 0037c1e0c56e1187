//! The messages between the processes: one enum for each direction of each conversation.
//!
//! A comment names the descriptors that accompany a message. All senders are processes of the user
//! who runs the receiver, so a receiver checks what it uses, not who has sent it.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, ErrorKind};
use crate::sys::netlink::VlanSet;

/// The direction of a conversation in which nothing is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Nothing {}

/// Supervisor to namespace child.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ToNamespace {
    /// Make and configure the interfaces. For each in order, whether the child makes it, as a tap;
    /// the others exist.
    MakeInterfaces(Vec<bool>),
    /// Execute the command.
    Run,
}

/// Namespace child to supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FromNamespace {
    /// The PID namespace exists, and its first process is a child of the supervisor and goes on in
    /// this one's place. Descriptor: its pidfd.
    FirstProcess {
        /// Its id.
        pid: u32,
    },
    /// The namespace exists. Descriptors: the network namespace, and a netlink socket in it.
    NamespaceMade,
    /// The interfaces exist and are configured. Descriptors: a watch over them, and each tap that
    /// the child has made.
    InterfacesMade,
    /// The command cannot be executed.
    Failed {
        /// The exit status that this means.
        status: i32,
        /// Why.
        #[serde(with = "ErrorFields")]
        error: Error,
    },
}

/// Supervisor to worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ToWorker {
    /// The worker's side of the link is a tap. Descriptors: the tap, and a watch over it.
    UseTap,
    /// The worker's side of the link is a port of the panel.
    UsePort {
        /// The port's place.
        port: String,
    },
    /// The interface was deleted.
    InterfaceDeleted,
    /// Answer with [`FromWorker::Pong`].
    Ping,
    /// Answer with [`FromWorker::Report`].
    SendReport,
}

/// Worker to supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FromWorker {
    /// The link is open.
    Open {
        /// Whether it wants its interface to be on the panel.
        wants_panel: bool,
    },
    /// The link and the interface know each other's state.
    Settled,
    /// The answer to [`ToWorker::Ping`].
    Pong,
    /// The report that was asked for. Descriptor: as for [`ReportReply`].
    Report(ReportReply),
    /// The link has failed, and the worker ends.
    Failed(#[serde(with = "ErrorFields")] Error),
}

impl From<ReportReply> for FromWorker {
    fn from(report: ReportReply) -> Self {
        Self::Report(report)
    }
}

/// A process that has loaded plugins, to its supervisor or panel service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// Execute the order on the panel.
    Execute(Order),
    /// Store the descriptor that comes along for the worker's successor, in place of the one stored
    /// before. If none comes along, store none.
    StoreFd,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reply {
    /// The order was executed. Descriptor: the tap, if the order makes one.
    Executed {
        /// The identity of the panel.
        panel: u64,
    },
    /// The descriptor is stored.
    Stored,
    /// The request failed.
    Failed(#[serde(with = "ErrorFields")] Error),
}

/// A change of the panel. Ports and bridges are named by their places.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Order {
    /// Make a port that is on no bridge, and the member's interface. Hand over a watch over the
    /// panel's interfaces.
    AddPort {
        /// The port.
        port: String,
        /// The number of its interface on the panel.
        index: u32,
        /// The name of the member's interface.
        interface: String,
    },
    /// Make two ports that are on no bridge: what goes into one comes out of the other. They are
    /// deleted when the process that executes this gives the panel up.
    AddPair {
        /// One of them.
        port: String,
        /// The other.
        opposite: String,
    },
    /// Make a port that is a tap, and hand the tap over. It is on no bridge, and exists as long as
    /// a process has it open.
    AddTap {
        /// The port.
        port: String,
        /// Whether a virtio header comes before each of its frames.
        has_header: bool,
    },
    /// Put a port on the bridge that it shares with one other port, as a cable.
    Plug {
        /// The port.
        port: String,
        /// The other port.
        peer: String,
    },
    /// Put a port on a bridge of its own together with a tap, and hand the tap over.
    Serve {
        /// The port.
        port: String,
    },
    /// Make a learning bridge, and hand its tap over.
    Bridge {
        /// The bridge.
        bridge: String,
        /// For how many seconds it remembers an address; 0 for none.
        ageing: u32,
        /// What it does with VLANs.
        vlans: BridgeVlans,
    },
    /// Set in which VLANs a port of a bridge is that filters them.
    SetVlans {
        /// The bridge.
        bridge: String,
        /// The port. `None`: the bridge's tap.
        port: Option<String>,
        /// The VLAN whose frames have no tag there.
        untagged: Option<u16>,
        /// Those whose frames have one.
        tagged: VlanSet,
    },
    /// Put a port on a learning bridge.
    Attach {
        /// The port.
        port: String,
        /// The bridge.
        bridge: String,
    },
    /// Set a port down and take it off its bridge.
    Unplug {
        /// The port.
        port: String,
    },
}

/// What a bridge does with VLANs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BridgeVlans {
    /// It does not look at tags.
    Ignored,
    /// It filters VLANs.
    Filtered,
    /// Its ports drop frames of VLANs.
    Dropped,
}

/// A process in the background to the one that the user has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Startup {
    /// It runs.
    Open,
    /// It cannot run.
    Failed(#[serde(with = "ErrorFields")] Error),
}

/// A helper to the process that has forked it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum HelperReply {
    /// The work is done. Descriptors: what it results in.
    Done,
    /// The work failed.
    Failed(#[serde(with = "ErrorFields")] Error),
}

/// A report, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReportReply {
    /// Descriptor: the file in memory with the report as JSON.
    File,
    /// There is no report, and why.
    None(#[serde(serialize_with = "reason")] String),
}

/// The longest text of an error or a reason as JSON, in bytes. A longer text is cut. Two such texts
/// fit into a message.
const MAX_TEXT: usize = 3584;

/// The form of an [`Error`] in a message. A kind that the receiver does not know becomes
/// [`ErrorKind::Other`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "Error")]
pub(super) struct ErrorFields {
    #[serde(serialize_with = "code", deserialize_with = "kind")]
    kind: ErrorKind,
    errno: i32,
    #[serde(serialize_with = "reason")]
    message: String,
    #[serde(serialize_with = "reason")]
    hint: String,
}

fn code<S: Serializer>(kind: &ErrorKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(*kind as u32)
}

fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ErrorKind, D::Error> {
    u32::deserialize(deserializer).map(ErrorKind::from_code)
}

fn reason<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(cut(text))
}

/// As much of a text as takes `MAX_TEXT` bytes in JSON.
fn cut(text: &str) -> &str {
    let mut length = 0;
    let end = text.char_indices().find(|(_, c)| {
        length += match c {
            '"' | '\\' => 2,
            // The longest escape: \u001b.
            c if c.is_ascii_control() => 6,
            c => c.len_utf8(),
        };
        length > MAX_TEXT
    });
    end.map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;
    use std::os::fd::AsFd;

    use serde::de::DeserializeOwned;

    use super::*;
    use crate::ipc::{Channel, Received};

    /// Sends each message with descriptors, and expects it at the other end.
    fn arrive<T: Serialize + DeserializeOwned + Debug + PartialEq>(
        messages: impl IntoIterator<Item = T>,
    ) {
        let (a, b) = Channel::<T, Nothing>::pair().unwrap();
        for (count, message) in messages.into_iter().enumerate() {
            let fds = vec![a.as_fd(); count];
            a.send(&message, &fds).unwrap();
            match b.receive().unwrap() {
                Received::Message(got, fds) => assert_eq!((got, fds.len()), (message, count)),
                other => panic!("{message:?}: {other:?}"),
            }
        }
    }

    fn failure() -> Error {
        let error = Error::closed("\"gone\"\n\u{1b}").hint("come back, ä");
        Error { errno: 5, ..error }
    }

    #[test]
    fn every_message_arrives_with_its_descriptors() {
        arrive([
            ToNamespace::MakeInterfaces(vec![true, false]),
            ToNamespace::MakeInterfaces(vec![false; 252]),
            ToNamespace::Run,
        ]);
        arrive([
            FromNamespace::NamespaceMade,
            FromNamespace::InterfacesMade,
            FromNamespace::Failed {
                status: 127,
                error: failure(),
            },
        ]);
        arrive([
            ToWorker::UseTap,
            ToWorker::UsePort { port: "1n0".into() },
            ToWorker::InterfaceDeleted,
            ToWorker::Ping,
            ToWorker::SendReport,
        ]);
        arrive([
            FromWorker::Open { wants_panel: true },
            FromWorker::Open { wants_panel: false },
            FromWorker::Settled,
            FromWorker::Pong,
            FromWorker::Report(ReportReply::File),
            FromWorker::Report(ReportReply::None("why".into())),
            FromWorker::Failed(failure()),
        ]);
        let name = || String::from("1n0");
        let orders = [
            Order::AddPort {
                port: name(),
                index: 7,
                interface: "a \"b\"".into(),
            },
            Order::AddPair {
                port: name(),
                opposite: "2n0".into(),
            },
            Order::Plug {
                port: name(),
                peer: "2n0".into(),
            },
            Order::Serve { port: name() },
            Order::Bridge {
                bridge: name(),
                ageing: 120,
                vlans: BridgeVlans::Dropped,
            },
            Order::SetVlans {
                bridge: name(),
                port: Some("2n0".into()),
                untagged: None,
                // The longest form that a set has.
                tagged: (1..4095).collect(),
            },
            Order::Attach {
                port: name(),
                bridge: "2n0".into(),
            },
            Order::Unplug { port: name() },
        ];
        arrive(orders.map(Request::Execute));
        arrive([Request::StoreFd]);
        arrive([
            Reply::Executed { panel: u64::MAX },
            Reply::Stored,
            Reply::Failed(failure()),
        ]);
        arrive([Startup::Open, Startup::Failed(failure())]);
        arrive([HelperReply::Done, HelperReply::Failed(failure())]);
        arrive([ReportReply::File, ReportReply::None("why".into())]);
    }

    #[test]
    fn a_long_error_is_cut_and_arrives() {
        let (a, b) = Channel::<Startup, Nothing>::pair().unwrap();
        for text in ["x", "ä", "\"", "\u{1}"] {
            let error = Error::closed(text.repeat(10_000)).hint(text.repeat(10_000));
            a.send(&Startup::Failed(error), &[]).unwrap();
            match b.receive().unwrap() {
                Received::Message(Startup::Failed(error), _) => {
                    assert!(error.message.starts_with(text) && error.hint.starts_with(text));
                    assert!(error.message.len() >= MAX_TEXT / 6 - 1, "{}", error.message);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn an_unknown_kind_of_error_is_another() {
        let text = r#"{"failed":{"kind":99,"errno":0,"message":"m","hint":""}}"#;
        let Startup::Failed(error) = serde_json::from_str(text).unwrap() else {
            panic!("it failed");
        };
        assert_eq!(error, Error::new(ErrorKind::Other, "m"));
    }
}
