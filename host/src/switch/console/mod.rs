//! The console of `vde_switch`: lines in, replies out, in the syntax of VDE's.
//!
//! # Theory of operation
//!
//! A line is parsed ([`command`]) into a [`Command`], which is executed by requests to the switch
//! ([`client`](super::client)), whose answers are printed ([`print`]). A reply is optional data
//! between `0000 DATA END WITH '.'` and `.`, and a line with 1000 plus an errno, 0 for success.
//! Scripts match these codes. Behind the text of a failure stands what is wrong, for a person.
//!
//! The console knows no sockets: [`session`](super::session) has the lines of one client.

pub(crate) mod command;
pub(crate) mod print;

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};
use vdens_switch_control::{Change, LOCAL_PORT, PortChange, PortReport, PortSelection, StpChange};

use self::command::{Command, is_none, parse};
use super::client::{self, Ask};
use crate::error::{Error, Result};

/// The longest file of commands, in bytes.
const LONGEST_FILE: u64 = 1 << 20;

/// How deep files of commands may load others.
const DEEPEST: u32 = 8;

/// How many lines all files together may have that a line loads.
const MOST_LINES: u32 = 100_000;

/// The longest reply to a line that loads files, in bytes.
const LONGEST_REPLY: usize = 16 << 20;

/// What may still be loaded.
struct Left {
    files: u32,
    lines: u32,
}

impl Left {
    fn all() -> Self {
        Self {
            files: DEEPEST,
            lines: MOST_LINES,
        }
    }

    /// Whether another line may be executed, which is counted.
    fn take_line(&mut self) -> bool {
        self.lines = self.lines.saturating_sub(1);
        self.lines > 0
    }
}

/// What the console knows beside what the switch says.
#[derive(Debug, Default)]
pub(crate) struct Console {
    /// The management socket and its permission bits.
    pub(crate) management: Option<(PathBuf, u32)>,
}

/// The categories of events that a session wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watched(BTreeSet<&'static str>);

impl Watched {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, category: &str) -> bool {
        self.0.contains(category)
    }

    /// Turns the categories whose path starts so on or off.
    fn turn(&mut self, path: &str, on: bool) -> Result<(), Errno> {
        let meant = print::CATEGORIES.iter().map(|(category, ..)| *category);
        let meant: Vec<_> = meant
            .filter(|category| category.starts_with(path))
            .collect();
        let changed = meant.iter().filter(|category| match on {
            true => self.0.insert(category),
            false => self.0.remove(*category),
        });
        match (changed.count(), on) {
            _ if meant.is_empty() => Err(Errno::EINVAL),
            (0, true) => Err(Errno::EEXIST),
            (0, false) => Err(Errno::ENOENT),
            _ => Ok(()),
        }
    }
}

/// What became of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It says nothing.
    Blank,
    /// It has a reply: whole lines.
    Reply(String),
    /// The session is to end.
    Logout,
    /// The switch is to end.
    Shutdown,
}

/// The last line of a session that ends.
pub(crate) const END_OF_SESSION: &str = "9999 END OF SESSION";

/// The reply to a line that is too long.
pub(crate) fn too_long() -> String {
    reply(None, Err(failed(Errno::EINVAL, "the line is too long")))
}

/// Success, or a failure that needs no words.
fn found(is_found: bool, errno: Errno) -> Result<()> {
    match is_found {
        true => Ok(()),
        false => Err(failed(errno, "")),
    }
}

fn failed(errno: Errno, message: &str) -> Error {
    Error {
        errno: errno as i32,
        ..Error::usage(message)
    }
}

/// A reply with data, or without.
fn reply(data: Option<&str>, outcome: Result<()>) -> String {
    let data = data.map_or(String::new(), |data| {
        format!("0000 DATA END WITH '.'\n{data}.\n")
    });
    match outcome {
        Ok(()) => format!("{data}1000 Success\n"),
        Err(error) => {
            let errno = match error.errno {
                1..=999 => error.errno,
                _ => libc::EIO,
            };
            let text = Errno::from_raw(errno).desc();
            let message = match error.message.is_empty() {
                true => String::new(),
                false => format!(": {}", crate::output::Line(&error.message)),
            };
            format!("{data}1{errno:03} {text}{message}\n")
        }
    }
}

impl Console {
    /// Executes a line.
    pub(crate) fn execute(&self, line: &str, watched: &mut Watched, switch: &dyn Ask) -> Outcome {
        self.execute_within(&mut Left::all(), line, watched, switch)
    }

    fn execute_within(
        &self,
        left: &mut Left,
        line: &str,
        watched: &mut Watched,
        switch: &dyn Ask,
    ) -> Outcome {
        let no_message = |errno| Err(failed(errno, ""));
        let (command, has_data) = match parse(line) {
            command::Line::Blank => return Outcome::Blank,
            command::Line::Unknown => {
                return Outcome::Reply(reply(None, no_message(Errno::ENOSYS)));
            }
            command::Line::Malformed { has_data } => {
                let data = has_data.then_some("");
                return Outcome::Reply(reply(data, no_message(Errno::EINVAL)));
            }
            command::Line::Command { command, has_data } => (command, has_data),
        };
        let outcome = match command {
            Command::Logout => return Outcome::Logout,
            Command::Shutdown => return Outcome::Shutdown,
            Command::Load(path) => return self.load(left, &path, watched, switch),
            Command::Debug(path, on) => {
                let turned = watched.turn(&path, on);
                return Outcome::Reply(reply(None, turned.or_else(no_message)));
            }
            Command::Categories(path) => {
                let is_known = print::CATEGORIES
                    .iter()
                    .any(|(it, ..)| it.starts_with(&path));
                let list = print::categories(&path, &|category| watched.contains(category));
                Ok((list, found(is_known, Errno::ENOENT)))
            }
            command => self.answer(command, switch),
        };
        Outcome::Reply(match outcome {
            Ok((data, outcome)) => reply(has_data.then_some(&data), outcome),
            Err(error) => reply(has_data.then_some(""), Err(error)),
        })
    }

    /// The data for a command, and whether it has succeeded.
    fn answer(&self, command: Command, switch: &dyn Ask) -> Result<(String, Result<()>)> {
        let change = |changes| client::change(switch, changes).map(|_| (String::new(), Ok(())));
        let data = match command {
            Command::Help(path) => print::help(&path),
            Command::ShowInfo => {
                let management = self.management.as_ref();
                let management = management.map(|(path, mode)| (path.as_path(), *mode));
                print::info(&client::general(switch)?, management)
            }
            Command::Sockets => print::sockets(&client::general(switch)?),
            Command::Plugins => return Ok((print::plugins(), found(false, Errno::ENOENT))),
            Command::StationInfo => print::station_info(&client::general(switch)?),
            Command::StationRoom(number) => {
                let room = client::general(switch)?.capacity;
                let outcome = match number <= room {
                    true => Ok(()),
                    false => Err(failed(Errno::EINVAL, &format!("there is room for {room}"))),
                };
                return Ok((String::new(), outcome));
            }
            Command::Stations => print::stations(&client::stations(switch, None, None)?),
            Command::FindStation(mac, vlan) => {
                let stations = client::stations(switch, Some(mac), vlan)?;
                let outcome = found(!stations.is_empty(), Errno::ENODEV);
                return Ok((print::stations(&stations), outcome));
            }
            Command::TreeInfo => print::tree_info(&client::general(switch)?),
            Command::Tree(vlan) => {
                check_vlan(vlan.unwrap_or(0), switch)?;
                print::tree(&client::tree(switch)?)
            }
            Command::SetTree(enabled) => {
                return change(vec![Change::Stp(StpChange::Enabled(enabled))]);
            }
            Command::Edge(vlan, port, is_edge) => {
                check_vlan(vlan, switch)?;
                return change(vec![Change::Port(port, PortChange::Edge(is_edge))]);
            }
            Command::PortInfo => print::port_info(&client::general(switch)?),
            Command::Ports(number, selection) => {
                let ports = ports(selection, switch)?;
                let is_meant = |port: &PortReport| number.is_none_or(|it| it == port.number);
                let ports: Vec<_> = ports.into_iter().filter(is_meant).collect();
                let outcome = found(number.is_none() || !ports.is_empty(), Errno::ENXIO);
                return Ok((print::ports(&ports, &name), outcome));
            }
            Command::CreateAnyPort => {
                let created = client::change(switch, vec![Change::CreateAnyPort])?;
                let number = created.ok_or_else(|| failed(Errno::EIO, "the port has no number"))?;
                let reserved = Change::Port(number, PortChange::Allocatable(false));
                client::change(switch, vec![reserved])?;
                format!("Port {number:04}\n")
            }
            Command::User(port, user) => {
                return change(vec![Change::Port(port, PortChange::User(user_id(&user)?))]);
            }
            Command::Group(port, group) => {
                return change(vec![Change::Port(
                    port,
                    PortChange::Group(group_id(&group)?),
                )]);
            }
            // A port has one connection, which has its number.
            Command::Close(port, id) if port != id => {
                let message = format!("port {port} has no connection {id}");
                return Err(failed(Errno::ENXIO, &message));
            }
            Command::Close(port, _) => return change(vec![Change::Disconnect(port)]),
            Command::DelPort(vlan, number) => {
                let remove = Change::Port(number, PortChange::RemoveTagged(vlan));
                let ports = client::ports(switch, PortSelection::All)?;
                match ports.iter().find(|port| port.number == number) {
                    Some(port) if port.untagged == Some(vlan) => {
                        let message = format!("VLAN {vlan} is untagged on port {number}");
                        return Err(failed(Errno::EADDRINUSE, &message));
                    }
                    Some(port) if !port.tagged.contains(&vlan) => {
                        check_vlan(vlan, switch)?;
                        String::new()
                    }
                    _ => return change(vec![remove]),
                }
            }
            Command::Vlans(vlan, selection) => {
                let mut vlans = client::vlans(switch)?;
                vlans.retain(|known| vlan.is_none_or(|vlan| vlan == known.vlan));
                let outcome = found(vlan.is_none() || !vlans.is_empty(), Errno::ENXIO);
                let ports = ports(selection, switch)?;
                let tree = client::tree(switch)?;
                return Ok((print::vlans(&vlans, &ports, &tree), outcome));
            }
            Command::Change(changes) => return change(changes),
            Command::Refuse(errno) => return Err(failed(errno, "")),
            Command::Accept
            | Command::Logout
            | Command::Shutdown
            | Command::Load(_)
            | Command::Categories(_)
            | Command::Debug(..) => String::new(),
        };
        Ok((data, Ok(())))
    }

    /// Executes the lines of a file. A line of the reply says which.
    fn load(
        &self,
        left: &mut Left,
        path: &str,
        watched: &mut Watched,
        switch: &dyn Ask,
    ) -> Outcome {
        let refused = |message| Outcome::Reply(reply(None, Err(failed(Errno::ELOOP, message))));
        if left.files == 0 {
            return refused("files load each other");
        }
        let lines = match read(Path::new(path)) {
            Ok(lines) => lines,
            Err(error) => return Outcome::Reply(reply(None, Err(error))),
        };
        left.files -= 1;
        let mut text = String::new();
        for (number, line) in (1..).zip(lines.lines()) {
            if !left.take_line() || text.len() > LONGEST_REPLY {
                return refused("files have too many lines");
            }
            match self.execute_within(left, line, watched, switch) {
                Outcome::Blank => {}
                Outcome::Reply(reply) => {
                    let path = crate::output::Line(path);
                    text.push_str(&format!("vde[{path}]: line {number}\n{reply}"));
                }
                Outcome::Logout => break,
                Outcome::Shutdown => return Outcome::Shutdown,
            }
        }
        left.files += 1;
        text.push_str(&reply(None, Ok(())));
        Outcome::Reply(text)
    }

    /// Executes the lines of a file when the switch starts, and says which of them fail. Returns
    /// whether the switch is to end.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn start(&self, path: &Path, switch: &dyn Ask) -> Result<bool> {
        let mut watched = Watched::default();
        for (number, line) in (1..).zip(read(path)?.lines()) {
            match self.execute(line, &mut watched, switch) {
                Outcome::Blank => {}
                Outcome::Reply(reply) => {
                    let is_failure =
                        |line: &&str| line.starts_with('1') && !line.starts_with("1000 ");
                    // A line that loads another file has a reply for each of that one's.
                    for failure in reply.lines().filter(is_failure) {
                        log::warn!("{}, line {number}: {failure}", path.display());
                    }
                }
                Outcome::Logout => break,
                Outcome::Shutdown => return Ok(true),
            }
        }
        Ok(false)
    }
}

/// The ports of the selection, but for the switch's own side, which leads nowhere.
fn ports(selection: PortSelection, switch: &dyn Ask) -> Result<Vec<PortReport>> {
    let mut ports = client::ports(switch, selection)?;
    ports.retain(|port| port.number != LOCAL_PORT);
    Ok(ports)
}

/// Checks that the tree of a VLAN can be meant: there is one tree for all.
fn check_vlan(vlan: u16, switch: &dyn Ask) -> Result<()> {
    match vlan == 0
        || client::vlans(switch)?
            .iter()
            .any(|known| known.vlan == vlan)
    {
        true => Ok(()),
        false => Err(failed(Errno::ENXIO, &format!("there is no VLAN {vlan}"))),
    }
}

/// A file of commands. It must be a file: another would never end, or take its time.
fn read(path: &Path) -> Result<String> {
    let cannot = |error: &io::Error| Error::path("read", path, error);
    let mut options = OpenOptions::new();
    let options = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(|error| cannot(&error))?;
    let meta = file.metadata().map_err(|error| cannot(&error))?;
    let wrong = match meta.is_file() {
        false => Some("it is not a regular file"),
        true => (meta.len() > LONGEST_FILE).then_some("it has more than 1 MiB"),
    };
    if let Some(why) = wrong {
        let message = format!("cannot read {}: {why}", path.display());
        return Err(failed(Errno::EINVAL, &message));
    }
    let mut bytes = Vec::new();
    let read = file.take(LONGEST_FILE).read_to_end(&mut bytes);
    read.map_err(|error| cannot(&error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What users and groups are called.
pub(crate) fn name(is_user: bool, id: u32) -> String {
    let name = match is_user {
        true => User::from_uid(Uid::from_raw(id))
            .ok()
            .flatten()
            .map(|user| user.name),
        false => Group::from_gid(Gid::from_raw(id))
            .ok()
            .flatten()
            .map(|group| group.name),
    };
    name.unwrap_or_else(|| id.to_string())
}

/// The user of a name or number; `None` for all.
pub(crate) fn user_id(word: &str) -> Result<Option<u32>> {
    id(word, "user", |word| {
        User::from_name(word)
            .ok()
            .flatten()
            .map(|user| user.uid.as_raw())
    })
}

/// The group of a name or number; `None` for all.
pub(crate) fn group_id(word: &str) -> Result<Option<u32>> {
    id(word, "group", |word| {
        Group::from_name(word)
            .ok()
            .flatten()
            .map(|group| group.gid.as_raw())
    })
}

fn id(word: &str, what: &str, find: impl Fn(&str) -> Option<u32>) -> Result<Option<u32>> {
    if is_none(word) {
        return Ok(None);
    }
    let id = find(word).or_else(|| word.parse().ok());
    id.map(Some)
        .ok_or_else(|| failed(Errno::EINVAL, &format!("there is no {what} '{word}'")))
}

#[cfg(test)]
mod tests;
