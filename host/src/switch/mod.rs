//! `vde_switch`: a switch with the command line and the console of VDE's.
//!
//! # Theory of operation
//!
//! The switch is the plugin `switch://` in a plug ([`plug`](crate::plug)), and each plug is a child
//! process (`parts`): the first has the switch at one end and nothing at the other, and each tap is
//! a client of the switch, by a plug between the two. They are confined and listed like other
//! plugs, and never see the console.
//!
//! The process itself loads no plugin. It serves the console's sessions ([`session`], `serve`):
//! standard input, and the clients of the management socket. What they say becomes requests to the
//! switch's socket ([`client`]), which `vdectl switch` uses as well.
//!
//! When a signal, the console or the end of standard input ends the program, or one of the
//! children ends, the children are asked to end, and the management socket and the pid file go.

pub(crate) mod client;
pub(crate) mod console;
mod parts;
mod serve;
pub(crate) mod session;
pub(crate) mod words;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};
use vdens_plugin_kit::control;
use vdens_switch_control::{Change, SCHEME, StpChange};

use self::client::Socket;
use self::console::Console;
use self::parts::Parts;
use self::serve::{Management, Server};
use self::session::Client;
use crate::cli::config::Config;
use crate::cli::vde_switch::VdeSwitch;
use crate::error::{Error, Result};
use crate::ipc::background::{self, Lifetime, Starter};
use crate::plug::pidfile::PidFile;
use crate::sys::service_manager;
use crate::sys::signals::Signals;

/// The exit status of `vde_switch` when it fails.
pub const EXIT_FAILURE: i32 = 1;

/// The program's name, for messages.
pub const PROGRAM: &str = "vde_switch";

/// Where the sockets are if the command line does not say so.
const DIRECTORY: &str = "/tmp/vde.ctl";
const ROOTS_DIRECTORY: &str = "/var/run/vde.ctl";

/// The files of commands that are executed if the command line names none.
const RCFILE: &str = "/etc/vde2/vde_switch.rc";
const HOME_RCFILE: &str = ".vderc";

/// Runs a switch. Returns the exit status: 0 when it was asked to end.
///
/// # Errors
/// The switch cannot be started, or has ended by itself.
pub fn run(cli: &VdeSwitch, config: &Config) -> Result<i32> {
    if !cli.daemon {
        return Program::new(cli, config)?.run(None);
    }
    let program = Program::new(cli, config)?;
    background::start(|starter| program.run(Some(starter)))?;
    Ok(0)
}

/// What the command line asks for, with absolute paths: a daemon has another working directory.
struct Program<'a> {
    cli: &'a VdeSwitch,
    config: &'a Config,
    directory: PathBuf,
    management: Option<PathBuf>,
    pidfile: Option<PathBuf>,
    rcfile: Option<PathBuf>,
}

impl<'a> Program<'a> {
    fn new(cli: &'a VdeSwitch, config: &'a Config) -> Result<Self> {
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|error| Error::path("find", path, &error))
        };
        let optional = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
        let default = match geteuid().is_root() {
            true => ROOTS_DIRECTORY,
            false => DIRECTORY,
        };
        Ok(Self {
            cli,
            config,
            directory: absolute(cli.sock.as_deref().unwrap_or(Path::new(default)))?,
            management: optional(&cli.mgmt)?,
            pidfile: optional(&cli.pidfile)?,
            rcfile: match &cli.rcfile {
                Some(path) => Some(absolute(path)?),
                None => default_rcfile(),
            },
        })
    }

    fn run(&self, mut starter: Option<&mut Starter>) -> Result<i32> {
        let cli = self.cli;
        let signals = Signals::block()?;
        let mut parts = Parts::new(cli, self.config)?;
        let mut forget = || starter.iter_mut().for_each(|starter| starter.forget());
        let vnls = [switch_vnl(&self.directory, cli), "null://".into()];
        let process = parts.start(vnls, &mut forget)?;
        let switch = control::find_of(SCHEME, process).pop().map(Socket);
        let switch = switch.ok_or_else(|| Error::closed("the switch has no control socket"))?;
        for tap in &cli.tap {
            parts.start([vnl("vde", &self.directory), tap_vnl(tap)], &mut forget)?;
        }
        client::change(&switch, changes(cli))?;
        // Who waits for this socket finds the switch there.
        let management = self.management.as_deref();
        let group = cli.mgmtgroup.as_deref();
        let management = management.map(|path| Management::new(path, cli.mgmtmode, group));
        let management = management.transpose()?;
        let console = Console {
            management: management
                .as_ref()
                .map(|it| (it.path().to_owned(), cli.mgmtmode)),
        };
        let path = self.rcfile.as_deref();
        let is_over = path.map(|path| console.start(path, &switch)).transpose()?;
        let _pidfile = self.pidfile.clone().map(PidFile::write).transpose()?;
        let standard = match cli.daemon || cli.nostdin {
            true => None,
            false => Some(standard()?),
        };
        match starter {
            Some(starter) => starter.announce(Lifetime::Own)?,
            None => service_manager::tell_ready(),
        }
        if is_over == Some(true) {
            return Ok(0);
        }
        Server::new(console, switch, management, standard).run(&signals, &mut parts)
    }
}

/// A terminal or what else is standard input and output.
fn standard() -> Result<Client> {
    let cannot = |error| Error::io("use standard input and output", &error);
    Ok(Client::Standard {
        input: io::stdin().as_fd().try_clone_to_owned().map_err(cannot)?,
        output: io::stdout().as_fd().try_clone_to_owned().map_err(cannot)?,
        is_terminal: io::stdin().is_terminal() && io::stdout().is_terminal(),
    })
}

/// The file of commands for switches whose command line names none: the user's, or else the
/// machine's.
fn default_rcfile() -> Option<PathBuf> {
    let home = User::from_uid(geteuid())
        .ok()
        .flatten()
        .map(|user| user.dir);
    let files = home.map(|home| home.join(HOME_RCFILE)).into_iter();
    files.chain([RCFILE.into()]).find(|path| path.is_file())
}

/// What the command line sets that is no key of the VNL.
fn changes(cli: &VdeSwitch) -> Vec<Change> {
    let ports = cli.numports.map(Change::NumPorts);
    let hub = cli.hub.then_some(Change::Hub(true));
    let priority = cli
        .priority
        .map(|priority| Change::Stp(StpChange::Priority(priority)));
    let tree = cli.fstp.then_some(Change::Stp(StpChange::Enabled(true)));
    [ports, hub, priority, tree].into_iter().flatten().collect()
}

/// The switch's VNL.
fn switch_vnl(directory: &Path, cli: &VdeSwitch) -> String {
    let mode = cli.mode.map(|mode| format!("mode={mode:o}"));
    let dirmode = cli.dirmode.map(|mode| format!("dirmode={mode:o}"));
    let group = cli
        .group
        .as_ref()
        .map(|group| format!("group={}", literal(group).replace('/', "%2F")));
    let mac = cli.macaddr.map(|mac| format!("mac={mac}"));
    let keys: Vec<String> = [mode, dirmode, group, mac].into_iter().flatten().collect();
    let vnl = vnl("switch", directory);
    match keys.is_empty() {
        true => vnl,
        false => format!("{vnl}[{}]", keys.join("/")),
    }
}

fn tap_vnl(name: &str) -> String {
    format!("tap://{}", literal(name))
}

fn vnl(scheme: &str, path: &Path) -> String {
    format!("{scheme}://{}", literal(path))
}

/// A name as a VNL has it: other bytes than those of plain names are written as `%XX`.
fn literal(name: impl AsRef<OsStr>) -> String {
    let mut text = String::new();
    for byte in name.as_ref().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                text.push(char::from(*byte));
            }
            // Writing to a string cannot fail.
            byte => _ = write!(text, "%{byte:02X}"),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use vdens_plugin_kit::vnl::{Keys, Spec};

    use super::*;

    #[test]
    fn any_path_is_a_directory() {
        let cli = VdeSwitch::parse_from(["vde_switch", "-m", "660", "-g", "a/b"]);
        for path in ["/tmp/sw", "/tmp/a[b]{c}/'%41\\ é\"=", "/tmp/\u{1}"] {
            let vnl = switch_vnl(Path::new(path), &cli);
            let argument = vnl.strip_prefix("switch://").unwrap();
            let keys = Keys::new(&["mode", "group"]);
            let spec = Spec::path_grammar(argument, &keys).unwrap();
            assert_eq!(spec.target(), Path::new(path), "{vnl}");
            assert_eq!(spec.get("mode"), Some("660"));
            assert_eq!(spec.get("group"), Some("a/b"), "{vnl}");
        }
    }
}
