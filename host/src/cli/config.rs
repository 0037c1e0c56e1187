//! The configuration, in TOML: `/etc/vdens/vdens.toml` and then
//! `$XDG_CONFIG_HOME/vdens/vdens.toml`, or the one file that `--config` names. A key of a later
//! file replaces that of an earlier one.
//!
//! docs/vdens.toml is a commented example. An unknown key, a wrong type or a relative path is an
//! error that names the file, the line and the column.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use log::LevelFilter;
use serde::{Deserialize, Deserializer};
use toml::Spanned;
use vdens_plugin_kit::trust::{self, Fault};

use crate::error::{Error, ErrorKind, Result};
use crate::sys::environment::{absolute_variable, home};

/// The system-wide configuration file.
pub(crate) const SYSTEM_FILE: &str = "/etc/vdens/vdens.toml";

/// What the configuration files say.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where plugins are found.
    pub(crate) plugins: PluginSettings,
    /// What is logged, and where to.
    pub(crate) log: Log,
    /// Values for options that are not given.
    pub defaults: Defaults,
    /// What the restricted login shell allows. Only [`SYSTEM_FILE`] decides that.
    pub(crate) login: Login,
    /// Why files in the usual places were not read.
    #[serde(skip)]
    pub unread: Vec<Error>,
}

/// The table `plugins`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PluginSettings {
    /// Directories to search, absolute, or below the home directory with `~/`.
    pub path: Option<Vec<Spanned<PathBuf>>>,
    /// Whether a scheme without a plugin is opened through libvdeplug.
    pub libvdeplug: Option<Libvdeplug>,
    /// Whether processes are confined to what their plugins need (not `--no-sandbox`).
    pub sandbox: Option<bool>,
}

/// When C plugins of libvdeplug serve.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Libvdeplug {
    /// For schemes that no plugin of vdens serves.
    #[default]
    Fallback,
    /// For `libvdeplug://` only.
    Off,
}

/// The table `log`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Log {
    /// The least serious level that is logged.
    #[serde(deserialize_with = "level")]
    pub level: Option<LevelFilter>,
    /// A file to append to, instead of standard error; below the home directory with `~/`.
    pub file: Option<PathBuf>,
}

/// The table `defaults`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// The interfaces' name without the number (`--iface`).
    pub iface: Option<String>,
    /// Name servers (`--resolvaddr`).
    pub resolvaddr: Option<String>,
    /// The VNL that an empty one (`vde://`) stands for.
    pub vnl: Option<String>,
    /// Whether interfaces start up (`--up`).
    pub up: Option<bool>,
    /// Whether the kernel may carry frames between the user's namespaces (not `--no-panel`).
    pub panel: Option<bool>,
    /// Whether TCP may send longer frames on the panel (`--big-tcp`).
    pub big_tcp: Option<bool>,
    /// Whether interfaces are configured by their network (`--auto`).
    pub auto: Option<bool>,
}

/// The table `login`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Login {
    /// The schemes that can be opened.
    #[serde(deserialize_with = "login_schemes")]
    pub schemes: Option<Vec<String>>,
}

fn login_schemes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    let schemes = Vec::<String>::deserialize(deserializer)?;
    let is_shell = |scheme: &&String| matches!(scheme.as_str(), "cmd" | "libvdeplug");
    match schemes.iter().find(is_shell) {
        None => Ok(Some(schemes)),
        Some(scheme) => Err(serde::de::Error::custom(format_args!(
            "'{scheme}' runs any command, and a restricted login shell must not"
        ))),
    }
}

fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<LevelFilter>, D::Error> {
    let word = String::deserialize(deserializer)?;
    word.parse().map(Some).map_err(|_| {
        serde::de::Error::custom(format_args!(
            "'{word}' is no level: off, error, warn, info, debug or trace"
        ))
    })
}

impl Config {
    /// Reads the configuration: `file` if one is named, else the two usual files. Either may be
    /// missing.
    ///
    /// # Errors
    /// A file cannot be read or says something that is not allowed.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        if let Some(file) = file {
            let text = fs::read_to_string(file)
                .map_err(|error| Error::path("read the configuration", file, &error))?;
            return Self::parse(&text, file);
        }
        Self::load_all(usual_places())
    }

    /// Reads the system-wide configuration alone, which may be missing.
    ///
    /// # Errors
    /// As for [`Config::load`], and the file is there but cannot be read.
    pub(crate) fn load_system() -> Result<Self> {
        let mut config = Self::load_all([PathBuf::from(SYSTEM_FILE)])?;
        match config.unread.pop() {
            Some(error) => Err(error),
            None => Ok(config),
        }
    }

    fn load_all(files: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        let mut config = Self::default();
        for file in files {
            match read_usual(&file) {
                Ok(Some(text)) => config.overlay(Self::parse(&text, &file)?),
                Ok(None) => {}
                Err(error) => config.unread.push(error),
            }
        }
        Ok(config)
    }

    /// Reads one file's text; `file` is for messages.
    ///
    /// # Errors
    /// The text says something that is not allowed.
    pub fn parse(text: &str, file: &Path) -> Result<Self> {
        let mut config: Self = toml::from_str(text)
            .map_err(|error| at(text, file, error.span(), &one_line(error.message())))?;
        for dir in config.plugins.path.iter().flatten() {
            if !expand_home(dir.get_ref()).is_absolute() {
                let message = format!("'{}' is not an absolute path", dir.get_ref().display());
                return Err(at(text, file, Some(dir.span()), &message));
            }
        }
        config.log.file = config.log.file.map(|file| expand_home(&file));
        Ok(config)
    }

    /// The directories of `plugins.path`, with `~/` replaced.
    pub(crate) fn plugin_dirs(&self) -> impl Iterator<Item = PathBuf> {
        let dirs = self.plugins.path.iter().flatten();
        dirs.map(|dir| expand_home(dir.get_ref()))
    }

    /// Logs which files could not be read.
    pub fn complain(&self) {
        self.unread.iter().for_each(|error| log::warn!("{error}"));
    }

    fn overlay(&mut self, over: Self) {
        fn replace<T>(under: &mut Option<T>, over: Option<T>) {
            if over.is_some() {
                *under = over;
            }
        }
        replace(&mut self.plugins.path, over.plugins.path);
        replace(&mut self.plugins.libvdeplug, over.plugins.libvdeplug);
        replace(&mut self.log.level, over.log.level);
        replace(&mut self.log.file, over.log.file);
        replace(&mut self.defaults.iface, over.defaults.iface);
        replace(&mut self.defaults.resolvaddr, over.defaults.resolvaddr);
        replace(&mut self.defaults.vnl, over.defaults.vnl);
        replace(&mut self.defaults.up, over.defaults.up);
        replace(&mut self.defaults.panel, over.defaults.panel);
        replace(&mut self.defaults.big_tcp, over.defaults.big_tcp);
        replace(&mut self.defaults.auto, over.defaults.auto);
        replace(&mut self.login.schemes, over.login.schemes);
    }
}

/// The files that are read where none is named, the later on top of the earlier.
pub(crate) fn usual_places() -> impl Iterator<Item = PathBuf> {
    let user = absolute_variable("XDG_CONFIG_HOME").or_else(|| Some(home()?.join(".config")));
    let user = user.map(|dir| dir.join("vdens/vdens.toml"));
    [Some(PathBuf::from(SYSTEM_FILE)), user]
        .into_iter()
        .flatten()
}

/// The text of a file in one of the usual places; `None` if it is not there. A configuration
/// decides what is run, so the user's must be root's or the user's own: `HOME` may be another
/// user's, or open to all.
///
/// # Errors
/// The file cannot be read or is not trusted.
pub(crate) fn read_usual(file: &Path) -> Result<Option<String>> {
    let failed = |error| Error::path("read the configuration", file, &error);
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let mut opened = match options.open(file) {
        Ok(opened) => opened,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
                _ => Err(failed(error)),
            };
        }
    };
    let fault = trust::fault(&opened.metadata().map_err(failed)?);
    if let Some(fault) = fault.filter(|_| file != Path::new(SYSTEM_FILE)) {
        let message = format!("the configuration {} is not read: {fault}", file.display());
        return Err(
            Error::new(ErrorKind::Permission, message).hint(match fault {
                Fault::Foreign(_) => "make it your own, or set HOME to your home directory".into(),
                Fault::Writable => format!("chmod go-w {}", file.display()),
            }),
        );
    }
    let mut text = String::new();
    opened.read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

fn expand_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), home()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(", ")
}

fn at(text: &str, file: &Path, span: Option<std::ops::Range<usize>>, message: &str) -> Error {
    let place = span.and_then(|span| text.get(..span.start)).map(|before| {
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!(", line {line}, column {column}")
    });
    Error::usage(format!(
        "{}{}: {message}",
        file.display(),
        place.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("/x.toml"))
    }

    #[test]
    fn later_files_win_key_by_key() {
        let mut config = parse("[defaults]\niface='eth'\nup=true\n[log]\nlevel='debug'").unwrap();
        config.overlay(parse("[defaults]\niface='lan'").unwrap());
        assert_eq!(config.defaults.iface.as_deref(), Some("lan"));
        assert_eq!(config.defaults.up, Some(true));
        assert_eq!(config.log.level, Some(LevelFilter::Debug));
    }

    #[test]
    fn mistakes_are_placed() {
        for (text, place, what) in [
            ("[plugins]\npaths = []", "line 2, column 1: ", "`paths`"),
            ("[log]\nlevel = 'loud'", "line 2, column 9: ", "'loud'"),
            ("[plugins]\npath = ['lib']", "line 2, column 9: ", "'lib'"),
            (
                "[plugins]\nlibvdeplug = 'on'",
                "line 2, column 14: ",
                "`off`",
            ),
            ("[defaults]\nup = 3", "line 2, column 6: ", "boolean"),
            (
                "[login]\nschemes = ['vde', 'cmd']",
                "line 2, column ",
                "'cmd'",
            ),
            ("[defaults", "line 1, column ", ""),
        ] {
            let message = parse(text).unwrap_err().message;
            assert!(
                message.starts_with(&format!("/x.toml, {place}")),
                "{message}"
            );
            assert!(message.contains(what), "{message}");
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
