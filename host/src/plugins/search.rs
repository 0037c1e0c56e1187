//! Finding plugins.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use vdens_plugin_kit::vnl::Vnl;

use crate::cli::config::Config;
use crate::cli::mistakes;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::environment::{absolute_variable, home};

/// The directories in which plugins are looked for, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchPath(Vec<PathBuf>);

impl SearchPath {
    /// `--plugin-dir`, `$VDENS_PLUGIN_PATH`, the configuration's `plugins.path`, the user's drop-in directory, beside the
    /// executable, and the system's places. Relative directories are refused on the command line and
    /// ignored in the environment.
    ///
    /// # Errors
    /// A `--plugin-dir` is not absolute.
    pub fn new(options: &[PathBuf], config: &Config) -> Result<Self> {
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
            .chain(config.plugin_dirs())
            .chain(data.map(|dir| dir.join("vdens/plugins")));
        Ok(Self::with_system(dirs))
    }

    /// Beside the executable and the system's places, whatever the user says.
    pub fn system() -> Self {
        Self::with_system([])
    }

    /// `dirs` and then those of [`SearchPath::system`].
    fn with_system(dirs: impl IntoIterator<Item = PathBuf>) -> Self {
        let beside = executable_dir();
        let dirs = dirs
            .into_iter()
            .chain(beside.clone())
            .chain(beside.and_then(|dir| Some(dir.parent()?.join("lib/vdens/plugins"))))
            .chain(["/usr/local/lib/vdens/plugins", "/usr/lib/vdens/plugins"].map(PathBuf::from));
        let mut path: Vec<PathBuf> = Vec::new();
        for dir in dirs {
            if !path.contains(&dir) {
                path.push(dir);
            }
        }
        Self(path)
    }

    /// The directories, best first.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.0
    }

    /// The same path with `dir` in front.
    #[must_use]
    pub fn with_first(&self, dir: PathBuf) -> Self {
        Self([&[dir], &self.0[..]].concat())
    }

    /// The plugin file for a scheme.
    ///
    /// # Errors
    /// There is none in any directory: the error names the scheme that may be meant, or lists them.
    pub fn find(&self, scheme: &str) -> Result<PathBuf> {
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
    pub fn locate(&self, scheme: &str) -> Option<PathBuf> {
        let file = file_name(scheme);
        let mut places = self.0.iter().map(|dir| dir.join(&file));
        places.find(|place| place.is_file())
    }

    /// The scheme with a plugin that `scheme`, which has none, may be a misspelling of.
    pub fn similar(&self, scheme: &str) -> Option<String> {
        let entries = self.0.iter().filter_map(|dir| fs::read_dir(dir).ok());
        let files = entries.flatten().flatten().map(|entry| entry.path());
        let plugins = files.filter(|file| file.is_file());
        let schemes = plugins.filter_map(|file| scheme_of(&file).map(str::to_owned));
        mistakes::similar(scheme, schemes)
    }
}

/// The name of the file that serves a scheme.
pub fn file_name(scheme: &str) -> String {
    format!("libvdens_{scheme}.so")
}

/// The scheme that a file's name promises to serve.
pub fn scheme_of(file: &Path) -> Option<&str> {
    let name = file.file_name()?.to_str()?;
    let scheme = name.strip_prefix("libvdens_")?.strip_suffix(".so")?;
    Vnl::is_scheme(scheme).then_some(scheme)
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
    }
}
