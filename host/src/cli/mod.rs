//! The command lines of `vdens`, `vde_plug`, `vde_switch`, `vdens-tap` and `vdectl`.
//!
//! These tables are the only place that defines options: the parser, `--help` and docs/commands.md
//! come from them. The words after the first VNL belong to the user's command, and are not parsed.

pub mod complete;
pub mod config;
pub(crate) mod mistakes;
pub mod plan;
pub(crate) mod values;
pub mod vde_switch;
pub mod vdectl;
pub(crate) mod version;
pub(crate) mod vnls;

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, CommandFactory, Parser, ValueHint};

use crate::cli::complete::candidates::vnls;
use crate::cli::config::{Config, Libvdeplug};
use crate::cli::mistakes::{is_command, misplaced, suggestion};
use crate::cli::values::{Cidr, MacAddress, Mtu, Numbered, numbered, octal, seconds, wait};
use crate::cli::vde_switch::VdeSwitch;
use crate::cli::vdectl::Vdectl;
use crate::error::{Error, Result};
use crate::logging;
use crate::output::{report, written};
use crate::plugins::host_services::InstalledPlugins;
use crate::plugins::search::SearchPath;
use crate::worker::reconnecting::Wait;

/// Options of all programs.
#[derive(Args, Clone, Debug, Default)]
pub struct Common {
    /// Read only this configuration file
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Search this directory for plugins first
    #[arg(long, value_name = "DIR", global = true, value_hint = ValueHint::DirPath)]
    pub plugin_dir: Vec<PathBuf>,

    /// Log more; repeat it for still more
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet", global = true)]
    pub verbose: u8,

    /// Print errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// Append the log to this file
    #[arg(long, value_name = "FILE", global = true)]
    pub log_file: Option<PathBuf>,
}

impl Common {
    /// The directories with plugins.
    ///
    /// # Errors
    /// A `--plugin-dir` is not absolute.
    pub fn search_path(&self, config: &Config) -> Result<SearchPath> {
        SearchPath::new(&self.plugin_dir, config.plugin_dirs())
    }

    /// The plugins that open VNLs.
    ///
    /// # Errors
    /// As for [`Common::search_path`].
    pub fn plugins(&self, config: &Config) -> Result<InstalledPlugins> {
        let libvdeplug = config.plugins.libvdeplug.unwrap_or_default();
        let path = self.search_path(config)?;
        let is_fallback = libvdeplug == Libvdeplug::Fallback;
        let is_confined = config.plugins.sandbox != Some(false);
        Ok(InstalledPlugins::new(path, is_fallback, is_confined))
    }

    /// What is logged, and where: the command line's choice, else the configuration's.
    pub fn logging<'a>(&'a self, config: &'a Config) -> logging::Choice<'a> {
        logging::Choice {
            verbose: self.verbose,
            quiet: self.quiet,
            level: config.log.level,
            file: self.log_file.as_deref().or(config.log.file.as_deref()),
        }
    }
}

impl Links {
    /// Whether the kernel may forward frames between the user's namespaces.
    pub(crate) fn uses_panel(&self, config: &Config) -> bool {
        !self.no_panel && config.defaults.panel != Some(false)
    }

    /// The plugins that open the program's VNLs.
    ///
    /// # Errors
    /// As for [`Common::search_path`].
    pub(crate) fn plugins(&self, common: &Common, config: &Config) -> Result<InstalledPlugins> {
        let plugins = common.plugins(config)?;
        Ok(match self.no_sandbox {
            true => plugins.without_sandbox(),
            false => plugins,
        })
    }
}

/// Options of the programs that open links.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Links {
    /// Move all frames through user space
    #[arg(long)]
    pub no_panel: bool,

    /// Do not confine plugins to what they need
    #[arg(long)]
    pub no_sandbox: bool,

    /// Do not fail while a network is absent
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
        default_missing_value = "", value_parser = wait)]
    pub wait: Option<Wait>,
}

/// How long `--wait-carrier` waits, unless it says otherwise, in seconds.
const CARRIER_SECONDS: &str = "30";

/// How long `--auto` waits for the network's answer, unless it says otherwise, in seconds.
const AUTO_SECONDS: &str = "10";

/// Run a command in a network namespace of its own, plugged into virtual Ethernet
#[derive(Clone, Debug, Parser)]
#[command(name = "vdens", version, long_version = version::long(), disable_help_subcommand = true)]
#[command(
    override_usage = "vdens [OPTIONS] [VNL [COMMAND [ARG]...]]\n       vdens [OPTIONS] --multi [VNL]... [-- COMMAND [ARG]...]",
    after_help = "A VNL (Virtual Network Locator) tells where vde0 leads: ptp:///tmp/cable, vde:///tmp/switch, \
        tap://tap0. A plain path is vde://PATH, =COMMAND speaks vdestream, '-' or 'no' is no interface. Without a \
        COMMAND, your shell starts."
)]
pub struct Vdens {
    /// Make one interface for each VNL up to '--'
    #[arg(short, long)]
    pub multi: bool,

    /// Name interfaces PREFIX0, ... [default: vde]
    #[arg(short, long, value_name = "PREFIX")]
    pub iface: Option<String>,

    /// Show FILE as /etc/resolv.conf
    #[arg(short, long, value_name = "FILE")]
    pub resolvconf: Option<PathBuf>,

    /// Use these name servers; wins over -r
    #[arg(short = 'R', long, value_name = "ADDR[,ADDR]")]
    pub resolvaddr: Option<String>,

    /// Set the host name
    #[arg(short = 'H', long, value_name = "NAME")]
    pub hostname: Option<String>,

    /// Keep CAP_SYS_ADMIN, so the command can mount
    #[arg(short, long)]
    pub sysadm: bool,

    /// Name the session, so that vdectl finds it
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,

    /// Go to the background; needs --name
    #[arg(short, long, requires = "name")]
    pub detach: bool,

    /// End all that the command starts with it
    #[arg(long)]
    pub pid: bool,

    /// Appear as root, uid 0, to the command
    #[arg(long)]
    pub root: bool,

    /// Likewise, with your subordinate ids
    #[arg(long)]
    pub map_auto: bool,

    /// Accepted for compatibility; has no effect
    #[arg(short, long, hide = true)]
    pub clone: bool,

    /// Accepted for compatibility; has no effect
    #[arg(short, long, hide = true)]
    pub unshare: bool,

    /// Set lo and all interfaces up
    #[arg(long)]
    pub up: bool,

    /// Run the command when links have carrier
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
        default_missing_value = CARRIER_SECONDS, value_parser = seconds)]
    pub wait_carrier: Option<Duration>,

    /// Make taps for a virtual machine's monitor
    #[arg(long, conflicts_with_all = ["auto", "addr", "gateway", "mac", "big_tcp"])]
    pub tap: bool,

    /// Configure by DHCP and IPv6; implies --up
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
        default_missing_value = AUTO_SECONDS, value_parser = seconds)]
    pub auto: Option<Duration>,

    /// Give an interface an address; implies --up
    #[arg(long, value_name = "[N:]IP/PREFIX", value_parser = numbered::<Cidr>)]
    pub(crate) addr: Vec<Numbered<Cidr>>,

    /// Add a default route; implies --up
    #[arg(long, value_name = "IP")]
    pub gateway: Vec<IpAddr>,

    /// Set the MTU of the interfaces, in bytes
    #[arg(long, value_name = "[N:]BYTES", value_parser = numbered::<Mtu>)]
    pub(crate) mtu: Vec<Numbered<Mtu>>,

    /// Set an interface's Ethernet address
    #[arg(long, value_name = "[N:]MAC", value_parser = numbered::<MacAddress>)]
    pub(crate) mac: Vec<Numbered<MacAddress>>,

    /// Allow TCP frames of 512 KiB on the panel
    #[arg(long)]
    pub big_tcp: bool,

    #[command(flatten)]
    pub(crate) links: Links,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,

    /// A VNL or more, and the command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true, add = vnls())]
    pub rest: Vec<OsString>,
}

/// Plug two virtual networks together, or one into standard input and output
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "vde_plug", version, long_version = version::long(), disable_help_subcommand = true)]
#[command(
    override_usage = "vde_plug [OPTIONS] [VNL]\n       vde_plug [OPTIONS] VNL VNL\n       vde_plug [OPTIONS] [VNL] = COMMAND [ARG]...",
    after_help = "With one VNL, or none for the default switch, frames go to standard output and come from \
        standard input as a vdestream. COMMAND speaks vdestream in their place."
)]
pub struct VdePlug {
    /// Go to the background when both ends are open
    #[arg(short, long)]
    pub daemon: bool,

    /// Write the process id to this file
    #[arg(short, long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,

    /// Report start and stop to the system's log
    #[arg(short, long)]
    pub log: bool,

    #[command(flatten)]
    pub(crate) end: EndOptions,

    /// Set the group of the second end's sockets
    #[arg(short = 'G', long, value_name = "GROUP")]
    pub group2: Option<String>,

    /// Set the permission bits of the second end's sockets
    #[arg(short = 'M', long = "mod2", value_name = "MODE", value_parser = octal)]
    pub mode2: Option<u32>,

    /// Use this port of the second end's switch
    #[arg(long, value_name = "NUMBER")]
    pub port2: Option<u32>,

    /// Be the login shell that sshd starts for COMMAND
    #[arg(short, value_name = "COMMAND", exclusive = true)]
    pub command: Option<String>,

    /// Serve the program at the other end of this descriptor; for libvdeplug.so.2
    #[arg(long, value_name = "FD", hide = true)]
    pub program_fd: Option<RawFd>,

    #[command(flatten)]
    pub(crate) links: Links,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,

    /// One or two VNLs, or a VNL, '=' and a command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true, add = vnls())]
    pub rest: Vec<OsString>,
}

/// Plug a virtual machine into virtual Ethernet, as the helper of QEMU's tap back end
#[derive(Clone, Debug, Parser)]
#[command(name = "vdens-tap", version, long_version = version::long(), disable_help_subcommand = true)]
#[command(
    override_usage = "vdens-tap [OPTIONS] [VNL]",
    after_help = "QEMU starts it: -netdev tap,id=n,helper=\"vdens-tap VNL\". Without a VNL it is the default switch. \
        QEMU passes the helper to a shell, which wants characters like [ ] { } > quoted; a comma is written twice."
)]
pub struct VdensTap {
    /// Accept a virtio header; QEMU adds this
    #[arg(long)]
    pub use_vnet: bool,

    /// Hand the tap over through this socket; QEMU adds this
    #[arg(long, value_name = "NUMBER")]
    pub fd: Option<i32>,

    /// Accepted because QEMU adds it; has no effect
    #[arg(long, value_name = "NAME", hide = true)]
    pub br: Option<String>,

    #[command(flatten)]
    pub(crate) links: Links,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,

    /// The VNL
    #[arg(
        value_name = "VNL",
        default_value = "",
        hide_default_value = true,
        hide = true,
        add = vnls()
    )]
    pub vnl: String,
}

/// Options of `vde_plug` for its first end. They affect only that end's sockets.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct EndOptions {
    /// Set the group of the first end's sockets
    #[arg(short, long, value_name = "GROUP")]
    pub group: Option<String>,

    /// Set the permission bits of the first end's sockets
    #[arg(short, long = "mod", value_name = "MODE", value_parser = octal)]
    pub mode: Option<u32>,

    /// Use this port of the first end's switch
    #[arg(long, value_name = "NUMBER")]
    pub port: Option<u32>,

    /// Set what switches show for this plug
    #[arg(short = 'D', long, value_name = "TEXT")]
    pub descr: Option<String>,
}

/// Plug a virtual network of this machine into standard input and output
///
/// vde_plug is the login shell of this account, which can do nothing else. Without a VNL, it uses
/// the default switch.
#[derive(Clone, Debug, Parser)]
#[command(name = "vde_plug", version, disable_help_subcommand = true)]
#[command(override_usage = "vde_plug [OPTIONS] [VNL]")]
pub(crate) struct LoginPlug {
    #[command(flatten)]
    pub(crate) end: EndOptions,

    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,

    /// The VNL
    #[arg(value_name = "VNL", default_value = "", hide_default_value = true)]
    pub vnl: String,
}

impl Vdens {
    /// The VNLs and the command among the trailing arguments. Without `--multi` there is exactly
    /// one VNL, which may be empty.
    ///
    /// # Errors
    /// A VNL is not UTF-8, or there is an option among the VNLs or in place of the command.
    pub(crate) fn split_rest(&self) -> Result<(Vec<String>, Vec<OsString>)> {
        if !self.multi {
            let (vnl, command) = match self.rest.split_first() {
                None => (String::new(), &[][..]),
                Some((vnl, command)) => (text(vnl)?, command),
            };
            if is_option(&vnl) {
                return Err(misplaced::<Self>(&vnl, "a VNL"));
            }
            // As with --multi, '--' may precede the command.
            let command = match command {
                [dashes, command @ ..] if dashes == "--" => command,
                command => command,
            };
            check_command(command)?;
            return Ok((vec![vnl], command.to_vec()));
        }
        let mut parts = self.rest.splitn(2, |word| word == "--");
        let vnls = parts.next().unwrap_or_default();
        let command = parts.next().unwrap_or_default();
        let vnls: Vec<String> = vnls.iter().map(text).collect::<Result<_>>()?;
        if let Some(option) = vnls.iter().find(|vnl| is_option(vnl)) {
            return Err(misplaced::<Self>(option, "a VNL"));
        }
        check_command(command)?;
        Ok((vnls, command.to_vec()))
    }
}

/// Whether a word in place of a VNL is an option.
pub(crate) fn is_option(word: &str) -> bool {
    word.starts_with('-') && word != "-"
}

/// Refuses an option in place of the command, unless a program has that name.
fn check_command(command: &[OsString]) -> Result<()> {
    match command.first() {
        Some(word) if word.as_encoded_bytes().starts_with(b"-") && !is_command(word) => {
            Err(misplaced::<Vdens>(&word.to_string_lossy(), "the command"))
        }
        _ => Ok(()),
    }
}

/// The command lines of all programs.
pub fn commands() -> [clap::Command; 5] {
    [
        Vdens::command(),
        VdePlug::command(),
        VdeSwitch::command(),
        VdensTap::command(),
        Vdectl::command(),
    ]
}

/// A command-line word that must be UTF-8.
///
/// # Errors
/// It is not.
pub fn text(word: &OsString) -> Result<String> {
    word.to_str().map(str::to_owned).ok_or_else(|| {
        Error::usage(format!("'{}' is not UTF-8", word.to_string_lossy()))
            .hint("write other bytes of a path as %XX")
    })
}

/// Parses a command line. Prints help or a one-line error and exits if there is nothing to run.
pub fn parse<T: Parser>(program: &str, failure: i32, words: impl Iterator<Item = OsString>) -> T {
    T::try_parse_from(words).unwrap_or_else(|error| {
        if !error.use_stderr() {
            // Help and version.
            std::process::exit(match written(error.print()) {
                Ok(()) => 0,
                Err(error) => {
                    report(program, error);
                    failure
                }
            });
        }
        let text = error.to_string();
        // clap lists missing arguments on lines of their own.
        let lines: Vec<_> = text
            .lines()
            .take_while(|line| !line.is_empty())
            .map(str::trim)
            .collect();
        let line = lines.join(" ");
        let line = line.strip_prefix("error: ").unwrap_or(&line);
        let advice = suggestion(&error).unwrap_or_else(|| format!("see {program} --help"));
        report(program, format_args!("{line}; {advice}"));
        std::process::exit(failure);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn vdens(words: &[&str]) -> Vdens {
        Vdens::try_parse_from([&["vdens"], words].concat()).unwrap()
    }

    #[test]
    fn the_tables_are_sound() {
        for command in commands() {
            command.debug_assert();
        }
        LoginPlug::command().debug_assert();
    }

    #[test]
    fn options_after_the_vnl_belong_to_the_command() {
        let cli = vdens(&["-i", "eth", "ptp:///tmp/a", "ls", "-i", "--", "x"]);
        assert_eq!(cli.iface.as_deref(), Some("eth"));
        let (vnls, command) = cli.split_rest().unwrap();
        assert_eq!(vnls, ["ptp:///tmp/a"]);
        assert_eq!(command, ["ls", "-i", "--", "x"]);
        assert_eq!(vdens(&[]).split_rest().unwrap().0, [""]);
        assert_eq!(vdens(&["-", "id"]).split_rest().unwrap().0, ["-"]);
        assert_eq!(vdens(&["", "id"]).split_rest().unwrap().1, ["id"]);
        assert_eq!(vdens(&["no", "--", "ls"]).split_rest().unwrap().1, ["ls"]);
        let after = vdens(&["no", "--addr", "10.0.0.1/24"]).split_rest();
        assert!(after.unwrap_err().hint.contains("before the first VNL"));
    }

    #[test]
    fn waiting_may_have_a_limit() {
        let wait = |option| vdens(&[option, "x"]).links.wait;
        assert_eq!(wait("--wait"), Some(Wait::Meanwhile));
        let limit = Duration::from_millis(2500);
        assert_eq!(wait("--wait=2.5"), Some(Wait::AtMost(limit)));
        for bad in ["--wait=-1", "--wait=soon", "--wait=1e99", "--wait=NaN"] {
            assert!(Vdens::try_parse_from(["vdens", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn multi_takes_vnls_up_to_the_dashes() {
        let split = |words: &[&str]| vdens(words).split_rest().unwrap();
        let (vnls, command) = split(&["-m", "a", "-", "no", "--", "ls", "-l", "--"]);
        assert_eq!(vnls, ["a", "-", "no"]);
        assert_eq!(command, ["ls", "-l", "--"]);
        assert_eq!(split(&["--multi", "a", "b"]).0, ["a", "b"]);
        assert!(vdens(&["-m", "a", "--up"]).split_rest().is_err());
    }
}
