//! Finding plugins: the scheme `x` is served by the first `libvdens_x.so` on the [`SearchPath`].
//!
//! A library that Cargo builds has no hyphen in its name, so `_` in a file's name serves a scheme
//! with `-` as well as one with `_`.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use vdens_plugin_kit::vnl::Vnl;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::environment::{absolute_variable, home};

/// The directories in which plugins are looked for, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchPath(Vec<PathBuf>);

/// A directory of the search path.
#[derive(Debug)]
pub(crate) struct Directory {
    /// The directory.
    pub path: PathBuf,
    /// The plugins in it, in the order of their schemes, or why it cannot be read.
    pub plugins: io::Result<Vec<PluginFile>>,
}

/// A plugin's file on the search path.
#[derive(Debug)]
pub(crate) struct PluginFile {
    /// The scheme that its name promises.
    pub scheme: String,
    /// The file.
    pub path: PathBuf,
    /// The file that is used in its place, because it comes first.
    pub shadowed_by: Option<PathBuf>,
}

impl SearchPath {
    /// The directories of `--plugin-dir`, of `$VDENS_PLUGIN_PATH`, of the configuration, the user's
    /// own, and those of [`SearchPath::system`]. A relative directory is ignored in the
    /// environment.
    ///
    /// # Errors
    /// A `--plugin-dir` is not absolute.
    pub fn new(options: &[PathBuf], configured: impl Iterator<Item = PathBuf>) -> Result<Self> {
        if let Some(dir) = options.iter().find(|dir| !dir.is_absolute()) {
            return Err(Error::usage(format!(
                "--plugin-dir {}: the directory must be absolute",
                dir.display()
            )));
        }
        let variable = env::var_os("VDENS_PLUGIN_PATH").unwrap_or_default();
        let data =
            absolute_variable("XDG_DATA_HOME").or_else(|| Some(home()?.join(".local/share")));
        let dirs = options
            .iter()
            .cloned()
            .chain(env::split_paths(&variable).filter(|dir| dir.is_absolute()))
            .chain(configured)
            .chain(data.map(|dir| dir.join("vdens/plugins")));
        Ok(Self::with_system(dirs))
    }

    /// The directory of this executable, that of the installation it belongs to, and the system's.
    pub(crate) fn system() -> Self {
        Self::with_system([])
    }

    /// `dirs` and then those of [`SearchPath::system`].
    fn with_system(dirs: impl IntoIterator<Item = PathBuf>) -> Self {
        let beside = executable_dir();
        let dirs = dirs
            .into_iter()
            .chain(beside.clone())
            .chain(beside.and_then(|dir| of_installation(&dir)))
            .chain(["/usr/local/lib/vdens/plugins", "/usr/lib/vdens/plugins"].map(PathBuf::from));
        let mut path: Vec<PathBuf> = Vec::new();
        for dir in dirs {
            if !path.contains(&dir) {
                path.push(dir);
            }
        }
        Self(path)
    }

    /// Its directories, best first.
    pub(crate) fn directories(&self) -> impl Iterator<Item = PathBuf> {
        self.0.iter().cloned()
    }

    /// The same path with `dir` in front.
    #[must_use]
    pub(crate) fn with_first(&self, dir: PathBuf) -> Self {
        Self([&[dir], &self.0[..]].concat())
    }

    /// The plugin file for a scheme.
    ///
    /// # Errors
    /// There is none in any directory: the error names the scheme that may be meant, or lists them.
    pub(crate) fn find(&self, scheme: &str) -> Result<PathBuf> {
        self.locate(scheme).ok_or_else(|| {
            let dirs: Vec<String> = self.0.iter().map(|d| d.display().to_string()).collect();
            let places = format!("{} is in none of {}", file_name(scheme), dirs.join(", "));
            let what = format!("no plugin for the scheme '{scheme}'");
            // No plugin appears while a link waits for it, so the kind is not NotFound.
            let error = |message| Error::new(ErrorKind::Unsupported, message);
            match self.similar(scheme) {
                Some(other) => {
                    log::info!("{what}: {places}");
                    error(what).hint(format!("did you mean {other}://?"))
                }
                None => error(format!("{what}: {places}")).hint(
                    "check the scheme's spelling, or put the file into one of these directories",
                ),
            }
        })
    }

    /// The plugin file for a scheme, if there is one.
    pub(crate) fn locate(&self, scheme: &str) -> Option<PathBuf> {
        let file = file_name(scheme);
        let mut places = self.0.iter().map(|dir| dir.join(&file));
        places.find(|place| place.is_file())
    }

    /// All plugins in the directories, best first.
    pub(crate) fn survey(&self) -> Vec<Directory> {
        let mut used: HashMap<String, PathBuf> = HashMap::new();
        let mut plugin = |path: PathBuf| {
            let scheme = scheme_of(&path)?.to_owned();
            let shadowed_by = used.get(&scheme).cloned();
            if shadowed_by.is_none() {
                used.insert(scheme.clone(), path.clone());
            }
            Some(PluginFile {
                scheme,
                path,
                shadowed_by,
            })
        };
        let directory = |dir: &PathBuf| Directory {
            path: dir.clone(),
            plugins: files(dir).map(|files| files.into_iter().filter_map(&mut plugin).collect()),
        };
        self.0.iter().map(directory).collect()
    }

    /// The scheme with a plugin that `scheme`, which has none, may be a misspelling of.
    pub(crate) fn similar(&self, scheme: &str) -> Option<String> {
        let plugins = self.survey().into_iter().filter_map(|dir| dir.plugins.ok());
        similar(scheme, plugins.flatten().map(|plugin| plugin.scheme))
    }
}

/// The regular files in a directory, in the order of their names.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

/// The `candidate` that `word` is most likely a misspelling of.
pub(crate) fn similar(word: &str, candidates: impl IntoIterator<Item = String>) -> Option<String> {
    // A third of the letters may differ, and at least one.
    let limit = (word.chars().count() / 3).max(1);
    let distance = |candidate: &String| strsim::damerau_levenshtein(word, candidate);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() > limit && distance(candidate) <= limit)
        .min_by_key(distance)
}

/// The name of the file that serves a scheme.
pub(crate) fn file_name(scheme: &str) -> String {
    format!("libvdens_{}.so", scheme.replace('-', "_"))
}

/// The scheme that a file's name promises to serve.
pub(crate) fn scheme_of(file: &Path) -> Option<&str> {
    let name = file.file_name()?.to_str()?;
    let scheme = name.strip_prefix("libvdens_")?.strip_suffix(".so")?;
    is_plugin(scheme).then_some(scheme)
}

/// Whether a plugin's file can have this scheme in its name.
pub(crate) fn is_plugin(scheme: &str) -> bool {
    Vnl::is_scheme(scheme) && !scheme.contains('-')
}

/// The plugins of the installation whose programs are in `dir`: `../plugins` from `…/vdens/bin`,
/// which is the layout of host/packaging, `../lib/vdens/plugins` from elsewhere.
fn of_installation(dir: &Path) -> Option<PathBuf> {
    let plugins = match dir.ends_with("vdens/bin") {
        true => "plugins",
        false => "lib/vdens/plugins",
    };
    Some(dir.parent()?.join(plugins))
}

fn executable_dir() -> Option<PathBuf> {
    Some(env::current_exe().ok()?.parent()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_wins_and_none_lists_all() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let path = SearchPath(dirs.iter().map(|dir| dir.path().to_owned()).collect());
        let message = path.find("x").unwrap_err().to_string();
        for dir in &dirs {
            assert!(message.contains(&dir.path().display().to_string()));
            fs::write(dir.path().join("libvdens_x.so"), "").unwrap();
        }
        assert_eq!(
            path.find("x").unwrap(),
            dirs[0].path().join("libvdens_x.so")
        );
        let file = dirs[1].path().join("libvdens_a_b.so");
        fs::write(&file, "").unwrap();
        for scheme in ["a-b", "a_b"] {
            assert_eq!(path.find(scheme).unwrap(), file);
        }
    }

    /// Two installations on one machine do not use each other's plugins.
    #[test]
    fn a_program_uses_the_plugins_of_its_installation() {
        for (dir, plugins) in [
            ("/usr/lib/vdens/bin", "/usr/lib/vdens/plugins"),
            ("/usr/local/lib/vdens/bin", "/usr/local/lib/vdens/plugins"),
            ("/usr/local/bin", "/usr/local/lib/vdens/plugins"),
            ("/opt/my-vdens/bin", "/opt/my-vdens/lib/vdens/plugins"),
        ] {
            let found = of_installation(Path::new(dir));
            assert_eq!(found.as_deref(), Some(Path::new(plugins)), "{dir}");
        }
    }

    #[test]
    fn a_misspelling_is_near() {
        let schemes = || ["ptp", "tap", "vde", "switch", "vxlan"].map(str::to_owned);
        let near = |word| similar(word, schemes());
        assert_eq!(near("pt").as_deref(), Some("ptp"));
        assert_eq!(near("tpa").as_deref(), Some("tap"));
        assert_eq!(near("swithc").as_deref(), Some("switch"));
        for other in ["slirp", "x", "vxvde", "nosuch"] {
            assert_eq!(near(other), None, "{other}");
        }
    }

    /// What loading would not look at is not listed, and the first file of a scheme is used.
    #[test]
    fn the_survey_has_what_loading_looks_at() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (dir, name) in [
            (0, "libvdens_x.so"),
            (0, "libvdens_UPPER.so"),
            (0, "libvdens_hy-phen.so"),
            (0, "libvdens_.so"),
            (0, "x.so"),
            (1, "libvdens_x.so"),
            (1, "libvdens_a.so"),
        ] {
            fs::write(dirs[dir].path().join(name), "").unwrap();
        }
        fs::create_dir(dirs[1].path().join("libvdens_dir.so")).unwrap();
        let nowhere = PathBuf::from("/nowhere");
        let mut path = SearchPath(dirs.iter().map(|dir| dir.path().to_owned()).collect());
        path.0.push(nowhere);
        let survey = path.survey();
        let found = |at: usize| {
            let plugins = survey[at].plugins.as_ref().unwrap().iter();
            let found = plugins.map(|p| (&*p.scheme, p.shadowed_by.is_some()));
            found.collect::<Vec<_>>()
        };
        assert_eq!(found(0), [("x", false)]);
        assert_eq!(found(1), [("a", false), ("x", true)]);
        assert!(survey[2].plugins.is_err());
        for plugin in survey.iter().flat_map(|dir| dir.plugins.iter().flatten()) {
            let used = plugin.shadowed_by.as_ref().unwrap_or(&plugin.path);
            assert_eq!(path.locate(&plugin.scheme).as_ref(), Some(used));
        }
    }
}
