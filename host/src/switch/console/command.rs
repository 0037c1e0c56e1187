//! The commands of the console, and the parser of a line. No I/O.
//!
//! [`TABLE`] is the only place that defines commands: the parser and `help` come from it. A
//! command's path and its words are separated by blanks. What follows the words that a command
//! takes is ignored, as the original does.

use nix::errno::Errno;
use vdens_switch_control::{
    Access, Change, MAX_VLAN, Mac, PortChange, PortSelection, StormLimit, StpChange,
};

/// What a line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// List the commands whose path starts so.
    Help(String),
    /// End this session.
    Logout,
    /// End the switch.
    Shutdown,
    /// Tell what the switch is.
    ShowInfo,
    /// Tell where its sockets are.
    Sockets,
    /// Execute the lines of a file.
    Load(String),
    /// List the categories of events whose path starts so.
    Categories(String),
    /// Show the events of the categories whose path starts so, or no longer.
    Debug(String, bool),
    /// List plugins, of which there are none.
    Plugins,
    /// Tell how stations are remembered.
    StationInfo,
    /// Have room for so many stations.
    StationRoom(u64),
    /// List stations.
    Stations,
    /// Look an address up, in one VLAN or all.
    FindStation(Mac, Option<u16>),
    /// Tell whether there is a spanning tree.
    TreeInfo,
    /// List the ports of the spanning tree, if it has this VLAN.
    Tree(Option<u16>),
    /// Have a spanning tree or not.
    SetTree(bool),
    /// Whether a port leads to no other bridge, in a VLAN's tree.
    Edge(u16, u32, bool),
    /// Tell what holds for all ports.
    PortInfo,
    /// List the ports, or one of them.
    Ports(Option<u32>, PortSelection),
    /// Make a port of any number.
    CreateAnyPort,
    /// Reserve a port for a user, or for all.
    User(u32, String),
    /// Reserve a port for a group, or for all.
    Group(u32, String),
    /// Close the connection of this number at a port.
    Close(u32, u32),
    /// Remove a port where a VLAN is tagged.
    DelPort(u16, u32),
    /// List the VLANs, or one of them.
    Vlans(Option<u16>, PortSelection),
    /// Change the switch: all of these or nothing.
    Change(Vec<Change>),
    /// Nothing: the switch does so in any case.
    Accept,
    /// What this switch has not.
    Refuse(Errno),
}

/// A line of the table: a command, or the head of a menu.
pub(crate) struct Entry {
    pub(crate) path: &'static str,
    pub(crate) syntax: &'static str,
    pub(crate) help: &'static str,
    /// Whether the reply has data, be they empty.
    pub(crate) has_data: bool,
    parse: Option<fn(&mut Words<'_>) -> Parsed>,
}

/// `None` if a word is missing or malformed.
type Parsed = Option<Command>;

/// The words behind a command.
pub(crate) struct Words<'a>(std::str::SplitAsciiWhitespace<'a>);

impl Words<'_> {
    fn text(&mut self) -> Option<String> {
        self.0.next().map(str::to_owned)
    }

    fn number<T: std::str::FromStr>(&mut self) -> Option<T> {
        self.0.next()?.parse().ok()
    }

    /// `None` in it if there is no word.
    fn optional<T: std::str::FromStr>(&mut self) -> Option<Option<T>> {
        match self.0.next() {
            None => Some(None),
            Some(word) => word.parse().ok().map(Some),
        }
    }

    fn flag(&mut self) -> Option<bool> {
        self.number::<u32>().map(|number| number != 0)
    }

    /// `None` in it if the word says that there is none.
    fn or_none<T: std::str::FromStr>(&mut self) -> Option<Option<T>> {
        let word = self.0.next()?;
        match is_none(word) {
            true => Some(None),
            false => word.parse().ok().map(Some),
        }
    }

    fn limit(&mut self) -> Option<Option<StormLimit>> {
        let word = self.0.next()?;
        match word.to_ascii_uppercase().as_str() {
            "NONE" => Some(None),
            "OFF" => Some(Some(StormLimit::Off)),
            _ => word.parse().ok().map(StormLimit::Frames).map(Some),
        }
    }

    fn octal(&mut self) -> Option<Option<u32>> {
        match self.0.next() {
            None => Some(None),
            Some(word) => u32::from_str_radix(word, 8).ok().map(Some),
        }
    }
}

/// Whether a word stands for no user, group, address or port.
pub(crate) fn is_none(word: &str) -> bool {
    ["NONE", "ANY"]
        .iter()
        .any(|none| none.eq_ignore_ascii_case(word))
}

const fn menu(path: &'static str, help: &'static str) -> Entry {
    Entry {
        path,
        syntax: "============",
        help,
        has_data: false,
        parse: None,
    }
}

type Parse = fn(&mut Words<'_>) -> Parsed;

/// A command that shows something.
const fn show(path: &'static str, syntax: &'static str, help: &'static str, parse: Parse) -> Entry {
    Entry {
        path,
        syntax,
        help,
        has_data: true,
        parse: Some(parse),
    }
}

/// A command that changes something.
const fn set(path: &'static str, syntax: &'static str, help: &'static str, parse: Parse) -> Entry {
    Entry {
        path,
        syntax,
        help,
        has_data: false,
        parse: Some(parse),
    }
}

fn change(change: Change) -> Parsed {
    Some(Command::Change(vec![change]))
}

fn port(number: u32, what: PortChange) -> Parsed {
    change(Change::Port(number, what))
}

/// The VLAN in which frames without a tag of a port are; 4095 stands for none, as the original has
/// it.
fn untagged(vlan: u16) -> Option<u16> {
    (vlan != MAX_VLAN + 1).then_some(vlan)
}

/// All commands, in the order in which `help` shows them.
pub(crate) const TABLE: &[Entry] = &[
    menu("ds", "SOCKETS OF THE CLIENTS"),
    show("ds/showinfo", "", "show where the sockets are", |_| {
        Some(Command::Sockets)
    }),
    show(
        "help",
        "[PATH]",
        "list the commands whose path starts so",
        |words| Some(Command::Help(words.text().unwrap_or_default())),
    ),
    set("logout", "", "leave this console", |_| {
        Some(Command::Logout)
    }),
    set("shutdown", "", "end the switch", |_| {
        Some(Command::Shutdown)
    }),
    show("showinfo", "", "show what the switch is", |_| {
        Some(Command::ShowInfo)
    }),
    set("load", "FILE", "execute the commands in a file", |words| {
        Some(Command::Load(words.text().unwrap_or_default()))
    }),
    menu("debug", "EVENTS"),
    show(
        "debug/list",
        "[PATH]",
        "list such categories of events",
        |words| Some(Command::Categories(words.text().unwrap_or_default())),
    ),
    set(
        "debug/add",
        "[PATH]",
        "show events whose category starts so",
        |words| Some(Command::Debug(words.text().unwrap_or_default(), true)),
    ),
    set("debug/del", "[PATH]", "show them no longer", |words| {
        Some(Command::Debug(words.text().unwrap_or_default(), false))
    }),
    menu("plugin", "PLUGINS OF THE SWITCH, WHICH HAS NONE"),
    show("plugin/list", "", "list the plugins", |_| {
        Some(Command::Plugins)
    }),
    set("plugin/add", "FILE", "refused: no plugin fits", |_| {
        Some(Command::Refuse(Errno::EOPNOTSUPP))
    }),
    set("plugin/del", "NAME", "unload a plugin", |_| {
        Some(Command::Refuse(Errno::ENOENT))
    }),
    menu("hash", "STATIONS"),
    show(
        "hash/showinfo",
        "",
        "show how stations are remembered",
        |_| Some(Command::StationInfo),
    ),
    set(
        "hash/setsize",
        "N",
        "check that there is room for so many",
        |words| words.number().filter(|n| *n > 0).map(Command::StationRoom),
    ),
    set(
        "hash/setgcint",
        "N",
        "no effect: stations go when they are due",
        |words| words.number::<u32>().map(|_| Command::Accept),
    ),
    set(
        "hash/setexpire",
        "N",
        "set the seconds after which stations go",
        |words| change(Change::Expiry(words.number()?)),
    ),
    set(
        "hash/setminper",
        "0",
        "only 0: stations can move at once",
        |words| {
            Some(match words.number::<u32>()? {
                0 => Command::Accept,
                _ => Command::Refuse(Errno::EOPNOTSUPP),
            })
        },
    ),
    show("hash/print", "", "list the stations", |_| {
        Some(Command::Stations)
    }),
    show("hash/find", "MAC [VLAN]", "look an address up", |words| {
        Some(Command::FindStation(words.number()?, words.optional()?))
    }),
    set(
        "hash/add",
        "MAC PORT [VLAN]",
        "add a static station",
        |words| {
            let (mac, port) = (words.number()?, words.number()?);
            let vlan = words.optional()?.unwrap_or(0);
            change(Change::AddStation { vlan, mac, port })
        },
    ),
    set("hash/del", "MAC [VLAN]", "forget a station", |words| {
        let mac = words.number()?;
        let vlan = words.optional()?.unwrap_or(0);
        change(Change::RemoveStation { vlan, mac })
    }),
    set("hash/flush", "", "forget all learned stations", |_| {
        change(Change::FlushStations)
    }),
    menu("fstp", "SPANNING TREE"),
    show(
        "fstp/showinfo",
        "",
        "show whether there is a spanning tree",
        |_| Some(Command::TreeInfo),
    ),
    show(
        "fstp/setfstp",
        "0/1",
        "have a spanning tree (RSTP) or not",
        |words| words.flag().map(Command::SetTree),
    ),
    set(
        "fstp/setedge",
        "VLAN PORT 1/0",
        "say that a port leads to no bridge",
        |words| {
            Some(Command::Edge(
                words.number()?,
                words.number()?,
                words.flag()?,
            ))
        },
    ),
    set(
        "fstp/bonus",
        "VLAN PORT COST",
        "refused: RSTP has costs, fstp/setcost",
        |words| {
            let _ = (
                words.number::<u16>()?,
                words.number::<u32>()?,
                words.number::<u32>()?,
            );
            Some(Command::Refuse(Errno::EOPNOTSUPP))
        },
    ),
    set(
        "fstp/setcost",
        "PORT COST",
        "set the cost of a path through a port",
        |words| port(words.number()?, PortChange::Cost(words.number()?)),
    ),
    set(
        "fstp/setguard",
        "PORT 0/1",
        "have a BPDU disable a port, and use it again",
        |words| port(words.number()?, PortChange::Guard(words.flag()?)),
    ),
    set(
        "fstp/setautoedge",
        "PORT 0/1",
        "have a silent port lead to no bridge",
        |words| port(words.number()?, PortChange::AutoEdge(words.flag()?)),
    ),
    set(
        "fstp/setportprio",
        "PORT N",
        "set a port's priority: N x 16",
        |words| port(words.number()?, PortChange::Priority(words.number()?)),
    ),
    set(
        "fstp/settimes",
        "HELLO AGE DELAY",
        "set hello time, maximum age, forward delay",
        |words| {
            let times = [
                StpChange::Hello(words.number()?),
                StpChange::MaxAge(words.number()?),
                StpChange::ForwardDelay(words.number()?),
            ];
            Some(Command::Change(times.map(Change::Stp).into()))
        },
    ),
    set(
        "fstp/setpriority",
        "N",
        "set the switch's priority: N x 4096",
        |words| change(Change::Stp(StpChange::Priority(words.number()?))),
    ),
    show("fstp/print", "[VLAN]", "show the spanning tree", |words| {
        words.optional().map(Command::Tree)
    }),
    menu("port", "PORTS"),
    show("port/showinfo", "", "show what holds for all ports", |_| {
        Some(Command::PortInfo)
    }),
    set(
        "port/setnumports",
        "N",
        "set the highest number of a port",
        |words| change(Change::NumPorts(words.number()?)),
    ),
    set("port/sethub", "0/1", "be a hub or a switch", |words| {
        change(Change::Hub(words.flag()?))
    }),
    set(
        "port/setvlan",
        "N VLAN",
        "set the VLAN of untagged frames; 4095: none",
        |words| {
            let number = words.number()?;
            port(number, PortChange::Untagged(untagged(words.number()?)))
        },
    ),
    show("port/createauto", "", "make a port of any number", |_| {
        Some(Command::CreateAnyPort)
    }),
    set(
        "port/create",
        "N",
        "make a port that clients must ask for",
        |words| {
            let number = words.number()?;
            let reserved = Change::Port(number, PortChange::Allocatable(false));
            Some(Command::Change(vec![Change::CreatePort(number), reserved]))
        },
    ),
    set(
        "port/remove",
        "N",
        "forget what is set of a port",
        |words| change(Change::RemovePort(words.number()?)),
    ),
    set(
        "port/allocatable",
        "N 0/1",
        "give it to clients that ask for none",
        |words| port(words.number()?, PortChange::Allocatable(words.flag()?)),
    ),
    set(
        "port/setuser",
        "N USER",
        "reserve a port for a user, or NONE",
        |words| Some(Command::User(words.number()?, words.text()?)),
    ),
    set(
        "port/setgroup",
        "N GROUP",
        "reserve a port for a group, or NONE",
        |words| Some(Command::Group(words.number()?, words.text()?)),
    ),
    set(
        "port/setlock",
        "N MAC",
        "let only this address send, or NONE",
        |words| port(words.number()?, PortChange::Lock(words.or_none()?)),
    ),
    set(
        "port/setmirror",
        "N PORT",
        "copy its frames to a port, or NONE",
        |words| port(words.number()?, PortChange::Mirror(words.or_none()?)),
    ),
    set(
        "port/setstorm",
        "N RATE",
        "limit flooding: frames/s, OFF, or NONE",
        |words| port(words.number()?, PortChange::Storm(words.limit()?)),
    ),
    set(
        "port/setallstorm",
        "RATE",
        "likewise for ports without a limit",
        |words| {
            words
                .limit()?
                .and_then(|limit| change(Change::Storm(limit)))
        },
    ),
    set(
        "port/epclose",
        "N ID",
        "close the connection of a port's client",
        |words| Some(Command::Close(words.number()?, words.number()?)),
    ),
    set("port/resetcounter", "[N]", "set counters to 0", |words| {
        change(Change::ResetCounters(words.optional()?))
    }),
    show(
        "port/print",
        "[N]",
        "list the ports that are in use",
        |words| {
            words
                .optional()
                .map(|number| Command::Ports(number, PortSelection::Used))
        },
    ),
    show("port/allprint", "[N]", "list all ports", |words| {
        words
            .optional()
            .map(|number| Command::Ports(number, PortSelection::All))
    }),
    menu("vlan", "VLANS"),
    set("vlan/create", "N", "make a VLAN", |words| {
        change(Change::CreateVlan(words.number()?))
    }),
    set("vlan/remove", "N", "remove a VLAN", |words| {
        change(Change::RemoveVlan(words.number()?))
    }),
    set(
        "vlan/addport",
        "N PORT",
        "add a port where the VLAN is tagged",
        |words| {
            let vlan = words.number()?;
            port(words.number()?, PortChange::AddTagged(vlan))
        },
    ),
    set("vlan/delport", "N PORT", "remove such a port", |words| {
        Some(Command::DelPort(words.number()?, words.number()?))
    }),
    set(
        "vlan/offer",
        "N [MODE]",
        "let clients choose a VLAN",
        |words| {
            let vlan = words.number()?;
            let mode = words.octal()?;
            change(Change::OfferVlan(vlan, Some(Access { mode })))
        },
    ),
    set(
        "vlan/unoffer",
        "N",
        "let them choose it no longer",
        |words| change(Change::OfferVlan(words.number()?, None)),
    ),
    show(
        "vlan/print",
        "[N]",
        "list VLANs with the ports in use",
        |words| {
            words
                .optional()
                .map(|vlan| Command::Vlans(vlan, PortSelection::Used))
        },
    ),
    show(
        "vlan/allprint",
        "[N]",
        "list VLANs with all ports",
        |words| {
            words
                .optional()
                .map(|vlan| Command::Vlans(vlan, PortSelection::All))
        },
    ),
];

/// What a line is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Nothing, or a comment.
    Blank,
    /// No command of the table.
    Unknown,
    /// A command with a word that is missing or malformed.
    Malformed {
        /// Whether its reply has data.
        has_data: bool,
    },
    /// A command.
    Command {
        command: Command,
        /// Whether its reply has data.
        has_data: bool,
    },
}

/// Reads a line.
pub(crate) fn parse(line: &str) -> Line {
    let mut words = line.split_ascii_whitespace();
    let Some(path) = words.next() else {
        return Line::Blank;
    };
    if path.starts_with('#') {
        return Line::Blank;
    }
    let mut commands = TABLE.iter().filter(|entry| entry.path == path);
    let Some((entry, parse)) = commands.find_map(|entry| Some((entry, entry.parse?))) else {
        return Line::Unknown;
    };
    let has_data = entry.has_data;
    match parse(&mut Words(words)) {
        Some(command) => Line::Command { command, has_data },
        None => Line::Malformed { has_data },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Command {
        match parse(line) {
            Line::Command { command, .. } => command,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn lines_become_commands() {
        assert_eq!(command(" showinfo\tx"), Command::ShowInfo);
        assert_eq!(command("help"), Command::Help(String::new()));
        assert_eq!(
            command("port/setvlan 3 10"),
            Command::Change(vec![Change::Port(3, PortChange::Untagged(Some(10)))])
        );
        assert_eq!(
            command("port/setvlan 3 4095"),
            Command::Change(vec![Change::Port(3, PortChange::Untagged(None))])
        );
        assert_eq!(
            command("vlan/addport 10 3"),
            Command::Change(vec![Change::Port(3, PortChange::AddTagged(10))])
        );
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        assert_eq!(
            command("hash/find 2:0:0:0:0:7"),
            Command::FindStation(mac, None)
        );
        assert_eq!(
            command("port/setlock 3 any"),
            Command::Change(vec![Change::Port(3, PortChange::Lock(None))])
        );
        assert_eq!(
            command("port/setallstorm off"),
            Command::Change(vec![Change::Storm(StormLimit::Off)])
        );
        assert_eq!(
            command("vlan/offer 7 660"),
            Command::Change(vec![Change::OfferVlan(
                7,
                Some(Access { mode: Some(0o660) })
            )])
        );
    }

    #[test]
    fn what_is_no_command() {
        for blank in ["", " ", "\r", "# port/create 1", "#"] {
            assert_eq!(parse(blank), Line::Blank, "{blank:?}");
        }
        for unknown in [
            "version",
            "port",
            "PORT/PRINT",
            "port /print",
            "port/printx",
            "\0",
        ] {
            assert_eq!(parse(unknown), Line::Unknown, "{unknown:?}");
        }
        for (malformed, has_data) in [
            ("port/create", false),
            ("port/create -1", false),
            ("port/create 4294967296", false),
            ("vlan/create x", false),
            ("hash/find", true),
            ("port/print x", true),
            ("port/setallstorm none", false),
            ("hash/setsize 0", false),
        ] {
            assert_eq!(
                parse(malformed),
                Line::Malformed { has_data },
                "{malformed:?}"
            );
        }
    }

    #[test]
    fn the_table_has_each_path_once_and_menus_before_their_commands() {
        for (at, entry) in TABLE.iter().enumerate() {
            assert!(
                TABLE[..at].iter().all(|other| other.path != entry.path),
                "{}",
                entry.path
            );
            if let Some((menu, _)) = entry.path.split_once('/') {
                assert!(
                    TABLE[..at].iter().any(|other| other.path == menu),
                    "{}",
                    entry.path
                );
            }
        }
    }
}
