//! What a plugin file is. Loading a plugin runs its code, so a child process does it (`isolate`).
//! There a crash or a hang is a finding like others.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_dumpable;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::plugins::loader::{self, LoadStage};
use crate::sys::isolate::{Ending, Fate, Isolated};

/// How long a library may take to load.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Found {
    /// A plugin that can be used.
    Plugin {
        /// One line for a person.
        description: String,
        /// The plugin's own version.
        version: String,
        /// The ABI version that is spoken with it.
        abi: u32,
        /// The names of the doors of that version that it has, the one that is used first.
        doors: Vec<String>,
        /// Its capability bits.
        capabilities: u64,
    },
    /// A file that cannot be used.
    Refused {
        /// The stage of loading that it did not pass.
        stage: LoadStage,
        /// Why, in one line.
        why: String,
        /// What to do; may be empty.
        hint: String,
    },
}

/// A file that is being loaded.
#[derive(Debug)]
pub(crate) struct Probe {
    child: Isolated,
    file: PathBuf,
    deadline: Instant,
}

impl Probe {
    /// Starts loading a file.
    ///
    /// # Errors
    /// There are too many processes or descriptors.
    pub(crate) fn start(file: &Path, scheme: &str) -> Result<Self> {
        let child = Isolated::start(|mut to| {
            // A crash is expected here and needs no core file.
            let _ = set_dumpable(false);
            let text = serde_json::to_vec(&load(file, scheme));
            // If the parent is gone, nothing needs the result.
            let _ = to.write_all(&text.unwrap_or_default());
        })?;
        Ok(Self {
            child,
            file: file.to_owned(),
            deadline: Instant::now() + PROBE_LIMIT,
        })
    }

    /// Waits for the result.
    pub(crate) fn finish(self) -> Found {
        let fate = self.child.finish(self.deadline);
        judge(&fate, &self.file)
    }
}

fn load(file: &Path, scheme: &str) -> Found {
    match loader::inspect(file, scheme) {
        Ok(loaded) => {
            let manifest = loaded.plugin.manifest();
            Found::Plugin {
                description: manifest.description,
                version: manifest.version,
                abi: loaded.abi,
                doors: loaded
                    .doors
                    .iter()
                    .map(|door| door.name().to_owned())
                    .collect(),
                capabilities: manifest.capabilities.0,
            }
        }
        Err(refusal) => Found::Refused {
            stage: refusal.stage,
            why: refusal.error.message,
            hint: refusal.error.hint,
        },
    }
}

fn judge(fate: &Fate, file: &Path) -> Found {
    if let Ok(found) = serde_json::from_slice(&fate.said) {
        return found;
    }
    let how = match fate.end {
        Ending::Hung => format!("it does not load within {} s", PROBE_LIMIT.as_secs()),
        Ending::Flooded => "it writes to descriptors of the host while it is loaded".to_owned(),
        Ending::Killed(signal) => format!("it crashes while it is loaded ({signal})"),
        Ending::Exited(status) => {
            format!("it ends the process while it is loaded (status {status})")
        }
    };
    Found::Refused {
        stage: LoadStage::Library,
        why: format!("the plugin {} is refused: {how}", file.display()),
        hint: format!("rm {}", file.display()),
    }
}
