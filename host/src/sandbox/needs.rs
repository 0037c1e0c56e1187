//! What a plugin says that its links need: words, separated by blanks.
//!
//! | word | |
//! |---|---|
//! | `read:PATH` | read a file, or a directory and all below it |
//! | `write:PATH` | also write, make and remove there |
//! | `sockets:DIR` | make and remove sockets there, and directories for them |
//! | `device:PATH` | open a device and control it |
//! | `network` | IP sockets, and look up host names |
//! | `unix` | UNIX sockets, which `sockets` includes |
//! | `exec` | start programs, which are then confined no more than the plugin |
//! | `anything` | do anything: the process is not confined |
//!
//! A PATH is absolute, or starts with one of these; blanks in it are written `%20`.
//!
//! | start | |
//! |---|---|
//! | `~` | the home directory |
//! | `{runtime}`, `{tmp}` | `$XDG_RUNTIME_DIR`, the directory of temporary files |
//! | `{path}` | the path that the VNL names before its keys, or each of two |
//! | `{dir}` | the directory that it is in, or the nearest one; `/tmp` if the VNL names none |

use std::env;
use std::path::{Path, PathBuf};

use vdens_plugin_kit::vnl::Outline;
use vdens_sandbox::{Rule, Use};

use crate::sys::environment::{absolute_variable, home};

/// The word for a link that is not to be confined.
pub(crate) const ANYTHING: &str = "anything";

/// What the links of a process need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) rules: Vec<Rule>,
    /// Those of the rules' directories that `{dir}` stands for.
    pub(super) directories: Vec<PathBuf>,
    pub(super) network: bool,
    pub(super) unix: bool,
    pub(super) exec: bool,
    pub(super) anything: bool,
}

impl Needs {
    /// Adds the needs in `words`, of a link whose VNL has this outline.
    ///
    /// # Errors
    /// The word that is not understood.
    pub(super) fn add(&mut self, words: &str, vnl: &Outline<'_>) -> Result<(), String> {
        for word in words.split_ascii_whitespace() {
            let (kind, path) = word.split_once(':').unwrap_or((word, ""));
            let usage = match kind {
                "network" if path.is_empty() => {
                    self.network = true;
                    continue;
                }
                "unix" if path.is_empty() => {
                    self.unix = true;
                    continue;
                }
                "exec" if path.is_empty() => {
                    self.exec = true;
                    continue;
                }
                ANYTHING if path.is_empty() => {
                    self.anything = true;
                    continue;
                }
                "read" => Use::Read,
                "write" => Use::Write,
                "sockets" => Use::Sockets,
                "device" => Use::Device,
                _ => return Err(word.to_owned()),
            };
            self.unix |= usage == Use::Sockets;
            let paths = paths(path, vnl).ok_or_else(|| word.to_owned())?;
            if path == "{dir}" {
                self.directories.extend(paths.iter().cloned());
            }
            let rules = paths.into_iter().map(|path| Rule::new(usage, path));
            self.rules.extend(rules);
        }
        Ok(())
    }

    /// Whether more than reading files is needed.
    pub(super) fn changes_files(&self) -> bool {
        self.rules.iter().any(|rule| rule.usage != Use::Read)
    }
}

/// The paths that a word stands for. None, if what it refers to is not set; no `Option`, if it is
/// no path.
fn paths(text: &str, vnl: &Outline<'_>) -> Option<Vec<PathBuf>> {
    let text = text.replace("%20", " ");
    let (start, rest) = match text.split_once('/') {
        Some((start, rest)) => (start, rest),
        None => (text.as_str(), ""),
    };
    let starts = match start {
        "" if text.starts_with('/') => vec![PathBuf::from("/")],
        "~" => home().into_iter().collect(),
        "{runtime}" => absolute_variable("XDG_RUNTIME_DIR").into_iter().collect(),
        "{tmp}" => vec![env::temp_dir()],
        "{path}" => named(vnl),
        // The directory of a switch without a name is there.
        "{dir}" if vnl.target.as_os_str().is_empty() => vec![PathBuf::from("/tmp")],
        "{dir}" => named(vnl)
            .iter()
            .filter_map(|path| existing(path))
            .collect(),
        _ => return None,
    };
    let join = |start: PathBuf| match rest {
        "" => start,
        rest => start.join(rest),
    };
    Some(starts.into_iter().map(join).collect())
}

/// The paths that a VNL names. An address with a port is no path; two paths have an arrow between
/// them.
fn named(vnl: &Outline<'_>) -> Vec<PathBuf> {
    if vnl.target.as_os_str().is_empty() {
        return Vec::new();
    }
    let text = vnl.target.to_string_lossy();
    let is_address = text.rsplit_once(':').is_some_and(|(_, port)| {
        !text.contains('/') && port.bytes().all(|byte| byte.is_ascii_digit())
    });
    let paths: Vec<_> = match is_address {
        true => Vec::new(),
        // A path that is not UTF-8 is taken as it is.
        false if vnl.target.to_str().is_none() => vec![vnl.target.as_path()],
        false => text.split("->").map(Path::new).collect(),
    };
    let paths = paths
        .into_iter()
        .filter_map(|path| std::path::absolute(path).ok());
    paths.collect()
}

/// The directory that a path is in, or the nearest one above it that is there.
fn existing(path: &Path) -> Option<PathBuf> {
    let mut above = path.ancestors().skip(1);
    above.find(|above| above.is_dir()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(words: &str, argument: &str) -> Result<Needs, String> {
        let mut needs = Needs::default();
        needs.add(words, &Outline::new(argument)).map(|()| needs)
    }

    fn rules(words: &str, argument: &str) -> Vec<(Use, String)> {
        let rules = needs(words, argument).unwrap().rules;
        let text = |rule: Rule| (rule.usage, rule.path.display().to_string());
        rules.into_iter().map(text).collect()
    }

    #[test]
    fn words_say_what_is_needed() {
        let all = needs("network  unix exec", "").unwrap();
        assert!(all.network && all.unix && all.exec && all.rules.is_empty() && !all.anything);
        assert!(needs("anything", "").unwrap().anything);
        assert_eq!(needs("", "").unwrap(), Needs::default());
        assert_eq!(
            rules("read:/etc/x%20y write:/var/lib/z device:/dev/net/tun", ""),
            [
                (Use::Read, "/etc/x y".into()),
                (Use::Write, "/var/lib/z".into()),
                (Use::Device, "/dev/net/tun".into())
            ]
        );
        for bad in [
            "networks",
            "network:x",
            "read:etc",
            "read:",
            "read",
            "read:{x}/y",
            "fork",
        ] {
            assert_eq!(needs(bad, ""), Err(bad.to_owned()));
        }
    }

    #[test]
    fn paths_come_from_the_vnl() {
        let sockets = |words: &str, argument: &str| -> Vec<String> {
            let rules = rules(words, argument).into_iter();
            rules.map(|(_, path)| path).collect()
        };
        assert_eq!(sockets("sockets:{path}", "/tmp/sw[3]"), ["/tmp/sw"]);
        assert_eq!(sockets("sockets:{path}/x", "/tmp/sw[3]"), ["/tmp/sw/x"]);
        assert_eq!(sockets("sockets:{dir}", "/tmp/cable"), ["/tmp"]);
        assert_eq!(sockets("sockets:{dir}", "/tmp/no/such/cable"), ["/tmp"]);
        assert_eq!(sockets("sockets:{dir}", "/tmp/a->/usr/b"), ["/tmp", "/usr"]);
        assert!(sockets("sockets:{dir}", "127.0.0.1:4000").is_empty());
        assert!(sockets("sockets:{path}", "").is_empty());
        assert_eq!(sockets("sockets:{dir}", "[3]"), ["/tmp"]);
        let here = env::current_dir().unwrap().display().to_string();
        assert_eq!(sockets("sockets:{dir}", "cable"), [here]);
    }
}
