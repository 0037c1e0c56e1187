//! The restricted login shell: `vde_plug -c 'vde_plug ARGUMENTS'`, as sshd starts it for an account
//! whose shell is vde_plug.
//!
//! The arguments come from the other machine. The account's user may plug into virtual networks of
//! this machine. The user may not run commands, load code, read files, or write any file but a
//! link's sockets. So this module lists everything that is allowed, and a new option of vde_plug is
//! refused here until it is listed:
//!
//! * the options are those of [`LoginPlug`]. There is one VNL; the other end is standard input and
//!   output;
//! * the scheme is `vde` or `ptp`, or one of `login.schemes` in
//!   [`SYSTEM_FILE`](crate::cli::config::SYSTEM_FILE), the only configuration that is read;
//! * the VNL is opened as given: VNL files are not read, it nests no other VNL, and libvdeplug is
//!   not used;
//! * plugins are searched for beside the program and in the system's directories;
//! * the environment is cleared first, because sshd may pass on variables of the other machine.

use std::env;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;

use vdens_plugin_kit::vnl::Vnl;
use vdens_plugin_kit::vnl_file::check_plain;

use super::EXIT_FAILURE;
use crate::cli::config::Config;
use crate::cli::{self, LoginPlug};
use crate::error::{Error, Result};
use crate::logging::{self, Choice};
use crate::plugins::search::SearchPath;

/// The schemes that can be opened unless the configuration names others.
const SCHEMES: [&str; 2] = ["vde", "ptp"];

/// Runs the command that a login shell was given with `-c`. Returns the exit status, as
/// [`super::run`] does.
///
/// # Errors
/// The command is not allowed, or fails.
pub fn run(program: &str, command: &str) -> Result<i32> {
    clear_environment();
    let login: LoginPlug = cli::parse(program, EXIT_FAILURE, words(command)?.into_iter());
    let config = Config::load_system()?;
    logging::start(&Choice {
        quiet: login.quiet,
        level: config.log.level,
        file: config.log.file.as_deref(),
        ..Choice::default()
    })?;
    let vnl = allowed(&login.vnl, &config)?;
    super::run_stdio(vnl, login.end, SearchPath::system().into())
}

/// Refuses a login without a command, which is for a person at a terminal.
///
/// # Errors
/// Always.
pub fn refuse_terminal() -> Result<i32> {
    Err(
        Error::usage("vde_plug is a login shell that runs no commands")
            .hint("this account can only run vde_plug: ssh HOST vde_plug VNL"),
    )
}

/// The VNL to open for the one that was given.
fn allowed(vnl: &str, config: &Config) -> Result<String> {
    let default = config.defaults.vnl.as_deref().unwrap_or("vde://");
    let vnl = match vnl {
        "" | "vde://" => default,
        vnl => vnl,
    };
    match &config.login.schemes {
        Some(schemes) => check_plain(vnl, schemes)?,
        None => check_plain(vnl, &SCHEMES)?,
    }
    let Vnl { scheme, argument } = Vnl::parse(vnl)?;
    Ok(format!("{scheme}://{argument}"))
}

/// The words of a command, which must be a `vde_plug` command line of plain words.
fn words(command: &str) -> Result<Vec<OsString>> {
    let words: Vec<OsString> = command.split_whitespace().map(OsString::from).collect();
    let program = words.first().map(Path::new);
    match program.and_then(Path::file_name) {
        Some(name) if name == "vde_plug" => Ok(words),
        _ => Err(Error::usage(format!(
            "'-c {}' is no vde_plug command",
            command.escape_debug()
        ))
        .hint("this account can only run vde_plug")),
    }
}

/// Removes all variables but the client's address in `SSH_CLIENT`, which switches show.
fn clear_environment() {
    let client = env::var("SSH_CLIENT").unwrap_or_default();
    let address = client.split_whitespace().next();
    let address = address.and_then(|address| address.parse::<IpAddr>().ok());
    for (name, _) in env::vars_os() {
        // SAFETY: this is the start of the program, which has no other thread yet.
        unsafe { env::remove_var(name) };
    }
    if let Some(address) = address {
        // SAFETY: as above.
        unsafe { env::set_var("SSH_CLIENT", address.to_string()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_vde_plug_is_a_command() {
        assert_eq!(words("vde_plug /tmp/s").unwrap().len(), 2);
        assert!(words("/usr/bin/vde_plug").is_ok());
        for bad in ["sh -c vde_plug", "", "vde_plug/", "vde_plug;id"] {
            assert!(words(bad).is_err() || bad == "vde_plug/", "{bad}");
        }
    }

    #[test]
    fn the_system_decides_which_schemes_can_be_opened() {
        let config = |text| Config::parse(text, Path::new("/x.toml")).unwrap();
        let usual = config("");
        for (vnl, opened) in [
            ("", "vde://"),
            ("/tmp/sw", "vde:///tmp/sw"),
            ("ptp:///tmp/a", "ptp:///tmp/a"),
        ] {
            assert_eq!(allowed(vnl, &usual).unwrap(), opened);
        }
        for bad in [
            "cmd://id",
            "udp://1",
            "vlan://1{/tmp/sw}",
            "libvdeplug://cmd://id",
        ] {
            assert!(allowed(bad, &usual).is_err(), "{bad}");
        }
        let own = config("[login]\nschemes=['udp']\n[defaults]\nvnl='udp://1'");
        assert_eq!(allowed("", &own).unwrap(), "udp://1");
        assert!(allowed("ptp:///tmp/a", &own).is_err());
        assert!(allowed("udp://1{x}", &own).is_err());
    }
}
