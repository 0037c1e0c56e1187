//! Loading plugins.
//!
//! The scheme `x` is served by `libvdens_x.so`, the first file of that name in the
//! [`SearchPath`](super::search::SearchPath). A plugin is code that runs as the user, so only root,
//! the user, or the owner of this very program may be able to change the file or what its path
//! leads to ([`trusted_path`](crate::sys::trusted_path)). Loading is staged, and each stage has its
//! own one-line refusal: the file is trusted, it opens as a library, it is a vdens plugin at all,
//! it speaks an ABI version that this host speaks, the layouts agree, it serves the scheme that its
//! name promises. A library once loaded stays until the process ends.
//!
//! The linker is given the file's real path, not `/proc/self/fd/N`: glibc takes the directory in
//! that name for the library's `$ORIGIN`, from which a plugin may load what comes with it. Only
//! trusted users can change what the path leads to between the check and its use, and the loader
//! checks that they did not.

use std::error::Error as _;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use serde::{Deserialize, Serialize};
use vdens_plugin_kit::Capabilities;
use vdens_plugin_kit::adapters::{BindError, Door, LoadedPlugin, PANEL_SYMBOL};

use crate::error::{Error, ErrorKind, Result};
use crate::plugins::search::file_name;
use crate::sandbox::ANYTHING;
use crate::sys::trusted_path::Trusted;

/// A loaded plugin, and how host and plugin agreed.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// The plugin.
    pub plugin: LoadedPlugin,
    /// The ABI version that is spoken with it.
    pub abi: u32,
    /// What its links need, if it says so: the words at the symbol `vdens_plugin_needs`.
    pub needs: Option<&'static str>,
    /// The doors of that version that the plugin has, the one that is used first.
    pub doors: Vec<Door>,
}

/// The stages of loading, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LoadStage {
    /// Only trusted users can write the file.
    Trust,
    /// The linker loads it.
    Library,
    /// It is a plugin, and speaks an ABI version that this host speaks.
    Version,
    /// The layouts of the interface agree.
    Layout,
    /// It serves the scheme that its name promises.
    Scheme,
}

/// Why a file is refused, and at which stage.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The stage that it did not pass.
    pub stage: LoadStage,
    /// Why not.
    pub error: Error,
}

/// An ABI version that this host speaks.
struct Spoken {
    version: u32,
    /// The doors by which it is spoken, the one that the host prefers first.
    doors: &'static [Door],
}

/// The symbol of the newest ABI version that a plugin speaks.
const ABI_SYMBOL: &str = "vdens_plugin_abi";

/// All of them, newest first. A version that was released stays.
const SPOKEN: &[Spoken] = &[Spoken {
    version: 1,
    doors: Door::ALL,
}];

/// The newest version that both sides speak, and the doors of it that the plugin has, each with the
/// address of its symbol.
fn agree(
    spoken: &[Spoken],
    mut find: impl FnMut(&str) -> Option<*const ()>,
) -> Option<(u32, Vec<(Door, *const ())>)> {
    spoken.iter().find_map(|spoken| {
        let doors = spoken.doors.iter();
        let found: Vec<_> = doors
            .filter_map(|door| Some((*door, find(door.symbol())?)))
            .collect();
        (!found.is_empty()).then_some((spoken.version, found))
    })
}

/// Loads the plugin `file` for `scheme`.
///
/// # Errors
/// Why the file is refused.
pub(crate) fn load(file: &Path, scheme: &str) -> Result<Loaded> {
    let loaded = inspect(file, scheme).map_err(|refusal| refusal.error)?;
    let manifest = loaded.plugin.manifest();
    log::info!(
        "{scheme}:// is served by {} {}, {}",
        file.display(),
        manifest.version,
        manifest.description
    );
    Ok(loaded)
}

/// As [`load`], with what was found out on the way.
///
/// # Errors
/// Why the file is refused, and at which stage.
pub(crate) fn inspect(file: &Path, scheme: &str) -> Result<Loaded, Refusal> {
    let refuse = |stage: LoadStage, why: String, hint: String| Refusal {
        stage,
        error: Error::new(
            ErrorKind::Unsupported,
            format!("the plugin {} is refused: {why}", file.display()),
        )
        .hint(hint),
    };
    let distrust = |error: Error| match lack_of_descriptors(file, error.errno) {
        Some(error) => Refusal {
            stage: LoadStage::Trust,
            error,
        },
        None => refuse(LoadStage::Trust, error.message, error.hint),
    };
    let trusted = Trusted::file(file).map_err(distrust)?;
    let real = trusted.path();
    trusted.check_unchanged().map_err(distrust)?;
    // SAFETY: loading runs the library's constructors. The file passed the trust check: the user,
    // root or the owner of this program put it there to be run.
    let library = unsafe { Library::open(Some(real), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|error| {
        // The linker says only in words why it failed. So this tries whether a file can be opened.
        let errno =
            File::open("/proc/self/exe").map_or_else(|error| error.raw_os_error(), |_| None);
        if let Some(error) = lack_of_descriptors(file, errno.unwrap_or(0)) {
            let stage = LoadStage::Library;
            return Refusal { stage, error };
        }
        let linker = error
            .source()
            .map_or_else(|| error.to_string(), ToString::to_string);
        let hint = "build or fetch it again, with what it needs";
        refuse(LoadStage::Library, reason(&linker, real), hint.into())
    })?;
    trusted.check_unchanged().map_err(distrust)?;
    let find = |symbol: &str| {
        // SAFETY: only the address is taken here.
        let found = unsafe { library.get::<*const ()>(symbol) };
        found.ok().map(|address| *address)
    };
    let Some(newest) = find(ABI_SYMBOL) else {
        let mut doors = SPOKEN.iter().flat_map(|spoken| spoken.doors);
        let why = match doors.find(|door| find(door.symbol()).is_some()) {
            Some(door) => format!(
                "it has the symbol {}, and has no symbol {ABI_SYMBOL}",
                door.symbol()
            ),
            None => "it is a shared library, but no vdens plugin".to_owned(),
        };
        return Err(refuse(LoadStage::Version, why, String::new()));
    };
    // SAFETY: the symbol is the u32 that every plugin exports under this name, and the plugin's
    // linker aligned it.
    let newest = unsafe { *newest.cast::<u32>() };
    let agreed = agree(SPOKEN, find).map(|(abi, found)| (abi, found[0].1, found));
    let Some((abi, root, found)) = agreed else {
        let versions: Vec<String> = SPOKEN.iter().map(|s| s.version.to_string()).collect();
        let why = match SPOKEN.iter().find(|spoken| spoken.version == newest) {
            Some(Spoken { doors, .. }) => {
                let symbols: Vec<_> = doors.iter().map(|door| door.symbol()).collect();
                format!(
                    "it says that it speaks ABI version {newest}, and has no symbol {}",
                    symbols.join(" or ")
                )
            }
            None => format!(
                "it speaks ABI version {newest}, and this vdens speaks version {}",
                versions.join(", ")
            ),
        };
        let hint = "get a plugin built for this vdens, or another vdens";
        return Err(refuse(LoadStage::Version, why, hint.into()));
    };
    let needs = find("vdens_plugin_needs");
    let panel = find(PANEL_SYMBOL);
    let doors: Vec<Door> = found.into_iter().map(|(door, _)| door).collect();
    // The library stays loaded for the life of the process.
    std::mem::forget(library);
    // SAFETY: `root` is the address of the first door's symbol in a library that is never unloaded.
    let plugin = unsafe { LoadedPlugin::bind(doors[0], root) }.map_err(|error| {
        if let BindError::Layout { report, .. } = &error {
            for line in report.lines() {
                log::debug!("{}: {line}", real.display());
            }
        }
        let hint = match error {
            BindError::Table(_) => "report this to the plugin's author",
            _ => "build it again with the plugin-api of this vdens",
        };
        refuse(LoadStage::Layout, error.to_string(), hint.into())
    })?;
    if let Some(panel) = panel {
        // SAFETY: at this symbol a plugin has that function.
        unsafe { plugin.offer_panel(panel) };
    }
    let served = plugin.manifest().scheme;
    if served.replace('-', "_") != scheme.replace('-', "_") {
        let why = format!("it serves the scheme '{served}', not '{scheme}'");
        let hint = format!("rename it to {}", file_name(&served));
        return Err(refuse(LoadStage::Scheme, why, hint));
    }
    let is_confined = plugin
        .manifest()
        .capabilities
        .contains(Capabilities::CONFINED);
    // SAFETY: at this symbol a plugin has a string, which stays as long as the library.
    let needs = needs.map(|words| unsafe { CStr::from_ptr(words.cast()) });
    let needs = needs.map_or(Some(""), |words| words.to_str().ok());
    Ok(Loaded {
        plugin,
        abi,
        doors,
        needs: needs.filter(|words| is_confined || *words == ANYTHING),
    })
}

/// Why the linker refuses the file: its own words, without the file's name, which the message
/// contains already. For a library of another architecture the linker says that the file does not
/// exist, so that case has words of ours.
fn reason(linker: &str, file: &Path) -> String {
    match (elf_kind(Path::new("/proc/self/exe")), elf_kind(file)) {
        (Some(own), Some(other)) if own != other => {
            "it was built for another architecture".to_owned()
        }
        _ => {
            let name = format!("{}: ", file.display());
            linker.replace(&name, "").replace('\n', " ")
        }
    }
}

/// The class, byte order and machine of an ELF file (`e_ident`, `e_machine`).
fn elf_kind(file: &Path) -> Option<[u8; 4]> {
    let mut header = [0; 20];
    File::open(file).ok()?.read_exact(&mut header).ok()?;
    let is_elf = header.starts_with(b"\x7fELF");
    is_elf.then_some([header[4], header[5], header[18], header[19]])
}

/// The failure to load a plugin because too many files are open, if `errno` says so. That is not
/// the plugin's fault.
fn lack_of_descriptors(file: &Path, errno: i32) -> Option<Error> {
    let source = io::Error::from_raw_os_error(errno);
    let is_it = matches!(errno, libc::EMFILE | libc::ENFILE);
    is_it.then(|| Error::path("load the plugin", file, &source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn refusal(file: &Path) -> String {
        load(file, "x").unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_plugin_is_refused_in_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("libvdens_x.so");
        fs::write(&file, "not a library").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let message = refusal(&file);
        assert!(message.contains("refused"), "{message}");
        assert!(!message.contains('\n'), "{message}");

        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(refusal(&file).contains("can be written by others"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(refusal(&file).contains("chmod go-w"));
    }

    #[test]
    fn the_newest_version_and_its_best_door_are_used() {
        let both = |version| Spoken {
            version,
            doors: &[Door::V1, Door::C1],
        };
        let with = |exported: &[&str]| {
            let here = agree(&[both(1)], |symbol| {
                exported.contains(&symbol).then_some(std::ptr::null())
            });
            here.map(|(version, found)| (version, found.iter().map(|f| f.0).collect::<Vec<_>>()))
        };
        let (v1, c1) = ("vdens_plugin_v1", "vdens_plugin_c1");
        assert_eq!(with(&[c1, v1]), Some((1, vec![Door::V1, Door::C1])));
        assert_eq!(with(&[v1]), Some((1, vec![Door::V1])));
        assert_eq!(with(&[c1]), Some((1, vec![Door::C1])));
        assert_eq!(with(&["vdens_plugin_v3"]), None);
        assert!(SPOKEN.is_sorted_by(|a, b| a.version > b.version));
    }
}
