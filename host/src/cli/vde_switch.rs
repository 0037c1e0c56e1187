//! The command line of `vde_switch`: that of VDE's, and our common options.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, CommandFactory, Parser, ValueHint};
use vdens_switch_control::Mac;

use super::{Common, version};
use crate::cli::values::octal;

/// Run an Ethernet switch with the command line and the console of VDE's vde_switch
#[derive(Clone, Debug, Parser)]
#[command(name = "vde_switch", version, long_version = version::long(), disable_help_subcommand = true)]
#[command(disable_version_flag = true, infer_long_args = true)]
#[command(
    override_usage = "vde_switch [OPTIONS]",
    after_help = "The console reads commands from standard input, unless the switch is a daemon: help lists them. \
        The end of standard input ends the switch."
)]
pub struct VdeSwitch {
    /// Have the sockets in this directory
    #[arg(short, long, visible_aliases = ["vdesock", "unix"], value_name = "DIR",
        value_hint = ValueHint::DirPath)]
    pub sock: Option<PathBuf>,

    /// Set the permission bits of the sockets
    #[arg(short, long, alias = "mod", value_name = "MODE", value_parser = octal)]
    pub mode: Option<u32>,

    /// Set the permission bits of the directory
    #[arg(long, value_name = "MODE", value_parser = octal)]
    pub dirmode: Option<u32>,

    /// Set the group of sockets and directory
    #[arg(short, long, value_name = "GROUP")]
    pub group: Option<String>,

    /// Go to the background when the switch runs
    #[arg(short, long)]
    pub daemon: bool,

    /// Write the process id to this file
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub pidfile: Option<PathBuf>,

    /// Read no commands from standard input
    #[arg(long)]
    pub nostdin: bool,

    /// Have a console at this Unix socket
    #[arg(short = 'M', long, value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub mgmt: Option<PathBuf>,

    /// Set the permission bits of that socket
    #[arg(long, value_name = "MODE", value_parser = octal, requires = "mgmt", default_value = "600")]
    pub mgmtmode: u32,

    /// Set the group of that socket
    #[arg(long, value_name = "GROUP", requires = "mgmt")]
    pub mgmtgroup: Option<String>,

    /// Execute the console commands in this file first
    #[arg(short = 'f', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub rcfile: Option<PathBuf>,

    /// Set the highest number of a port
    #[arg(short = 'n', long, value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..=0xff_ffff))]
    pub numports: Option<u32>,

    /// Forward every frame to all ports
    #[arg(short = 'x', long)]
    pub hub: bool,

    /// Have a spanning tree (RSTP)
    #[arg(short = 'F', long)]
    pub fstp: bool,

    /// Set the switch's priority there
    #[arg(long, value_name = "NUMBER", value_parser = priority)]
    pub priority: Option<u16>,

    /// Set the switch's address
    #[arg(long, value_name = "MAC")]
    pub macaddr: Option<Mac>,

    /// Plug in this tap; repeat it for more
    #[arg(short, long, value_name = "TAP", value_delimiter = ',')]
    pub tap: Vec<String>,

    /// Accepted for compatibility; has no effect
    #[arg(long, hide = true, value_name = "NUMBER")]
    pub hashsize: Option<u32>,

    /// Accepted for compatibility; has no effect
    #[arg(short = 'D', long, hide = true, value_name = "NUMBER")]
    pub debugclients: Option<u32>,

    /// Move all frames through user space
    #[arg(long)]
    pub no_panel: bool,

    /// Do not confine plugins to what they need
    #[arg(long)]
    pub no_sandbox: bool,

    /// Read only this configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Search this directory for plugins first
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub plugin_dir: Vec<PathBuf>,

    /// Log more; repeat it for still more
    #[arg(long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,

    /// Print errors only
    #[arg(long)]
    pub quiet: bool,

    /// Append the log to this file
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// Print version
    #[arg(short, long, short_alias = 'V', action = ArgAction::Version)]
    pub version: Option<bool>,
}

fn priority(text: &str) -> Result<u16, &'static str> {
    let number = text
        .parse()
        .ok()
        .filter(|number: &u16| number.is_multiple_of(4096));
    number.ok_or("a priority is a multiple of 4096, up to 61440")
}

impl VdeSwitch {
    /// The options of all programs, of which VDE's has other short forms.
    pub fn common(&self) -> Common {
        Common {
            config: self.config.clone(),
            plugin_dir: self.plugin_dir.clone(),
            verbose: self.verbose,
            quiet: self.quiet,
            log_file: self.log_file.clone(),
        }
    }

    /// The words of a command line in which a long option may have one dash, as in VDE's
    /// (getopt_long_only(3)): `-sock DIR`.
    pub fn long_options(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
        let command = Self::command();
        let has_long = |name: &str| {
            let mut options = command.get_arguments();
            options.any(|option| {
                let longs = option.get_long().into_iter();
                let aliases = option.get_all_aliases().into_iter().flatten();
                longs.chain(aliases).any(|long| long.starts_with(name))
            })
        };
        let long = |word: OsString| {
            let text = word.to_str().unwrap_or_default();
            let name = text.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
            let name = name.and_then(|rest| rest.split('=').next());
            match name.is_some_and(|name| name.len() > 1 && has_long(name)) {
                true => OsString::from(format!("-{text}")),
                false => word,
            }
        };
        words.map(long).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<VdeSwitch, clap::Error> {
        let words = line.split(' ').map(OsString::from);
        VdeSwitch::try_parse_from(VdeSwitch::long_options(words))
    }

    #[test]
    fn command_lines_that_scripts_have() {
        // NixOS's test driver, Debian's ifupdown, and others.
        let nixos = parse("vde_switch --sock /tmp/a --dirmode 0700 --hub").unwrap();
        assert_eq!((nixos.dirmode, nixos.hub), (Some(0o700), true));
        let debian = "vde_switch -s /a -m 660 -g net -p /a.pid -t tap0 -M /a.m --mgmtmode 660 -d";
        let debian = parse(debian).unwrap();
        assert_eq!((debian.mode, debian.mgmtmode), (Some(0o660), 0o660));
        assert_eq!(debian.tap, ["tap0"]);
        let old = parse("vde_switch -sock /a -mod 777 -hub -daemon -tap a,b -tap c").unwrap();
        assert_eq!(old.sock, Some("/a".into()));
        assert_eq!((old.mode, old.hub, old.daemon), (Some(0o777), true, true));
        assert_eq!(old.tap, ["a", "b", "c"]);
        let short = parse("vde_switch -xd -n5 -s/tmp/a --prio 4096 --unix=/b").unwrap_err();
        assert!(
            short.to_string().contains("cannot be used multiple times"),
            "{short}"
        );
        let short = parse("vde_switch -xFd -n5 -f rc --prio 4096 --unix=/b").unwrap();
        assert_eq!((short.numports, short.priority), (Some(5), Some(4096)));
        assert!(short.hub && short.fstp && short.daemon);
    }

    #[test]
    fn mistakes_are_refused() {
        for bad in [
            "vde_switch x",
            "vde_switch -m 9",
            "vde_switch -n 0",
            "vde_switch -n x",
            "vde_switch --macaddr x",
            "vde_switch --priority 65536",
            "vde_switch --mgmtmode 600",
            "vde_switch --nonsense",
            "vde_switch --mgm x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
