//! What a user may have meant: advice for a command line that is legal but hardly intended.
//!
//! A word without `://` is the path of a switch, so almost every word is a legal VNL. A word is
//! suspect only if nothing exists at that path and it looks like something else: a command, an
//! option's name, a VNL without its slashes. To open it would fail anyway. With `--wait` it may
//! succeed later, so the suspicion is only a warning then.

use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue};
use vdens_plugin_kit::vnl::{Keys, Spec, Vnl};

use crate::cli::Vdens;
use crate::error::{Error, Result};
use crate::plugins::host_services::InstalledPlugins;
use crate::plugins::search::similar;

/// Words that users may try with other programs, and the subcommand of `vdectl` that they mean.
const TASKS: [(&str, &str); 7] = [
    ("status", "status"),
    ("doctor", "doctor"),
    ("plugin", "plugin"),
    ("forward", "forward"),
    ("list-plugins", "plugin list"),
    ("check-plugin", "plugin check"),
    ("new-plugin", "plugin new"),
];

/// The kind of command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommandLine {
    /// `vdens VNL COMMAND`.
    Vdens,
    /// `vdens --multi VNL... -- COMMAND`.
    Multi,
    /// `vde_plug VNL VNL`.
    VdePlug,
    /// `vdens-tap VNL`.
    VdensTap,
}

/// Checks a word in place of a VNL. With `--wait` a suspicion is logged.
///
/// # Errors
/// The word cannot be opened now, and looks like something else.
pub(crate) fn check(
    word: &str,
    line: CommandLine,
    plugins: &InstalledPlugins,
    is_waiting: bool,
) -> Result<()> {
    match suspicion(word, line, plugins) {
        Some(error) if is_waiting => log::warn!("{error}"),
        Some(error) => return Err(error),
        None => {}
    }
    Ok(())
}

fn suspicion(word: &str, line: CommandLine, plugins: &InstalledPlugins) -> Option<Error> {
    let is_interface = matches!(line, CommandLine::Vdens | CommandLine::Multi);
    if word.contains("://") || is_interface && matches!(word, "-" | "no") || word.starts_with('=') {
        return None;
    }
    // An existing path may be meant, even if it cannot be opened.
    if word.is_empty() || fs::symlink_metadata(word).is_ok() {
        return None;
    }
    if let Some((scheme, rest)) = word.split_once(':')
        && Vnl::is_scheme(scheme)
        && plugins.has(scheme)
    {
        return Some(taken_for_a_network(word).hint(format!("did you mean {scheme}://{rest}?")));
    }
    if let Some(advice) = task(word) {
        return Some(taken_for_a_network(word).hint(advice));
    }
    if !word.contains('/') && is_command(OsStr::new(word)) {
        let advice = match line {
            CommandLine::Vdens => format!("to run the command, write vdens no {word} …"),
            CommandLine::Multi => {
                format!("put -- before the command: vdens --multi VNL … -- {word} …")
            }
            CommandLine::VdePlug => {
                format!("put '=' before the command: vde_plug VNL = {word} …")
            }
            CommandLine::VdensTap => {
                format!("to run the command in a namespace, write vdens no {word} …")
            }
        };
        return Some(taken_for_a_network(word).hint(advice));
    }
    let is_option = Vdens::command()
        .get_arguments()
        .any(|option| option.get_long() == Some(word));
    (is_interface && is_option)
        .then(|| taken_for_a_network(word).hint(format!("did you mean vdens --{word}?")))
}

fn taken_for_a_network(word: &str) -> Error {
    Error::usage(format!(
        "'{word}' is taken for a network, and there is no switch directory of that name"
    ))
}

/// Checks the two ends of a plug: it cannot be both ends of one cable.
///
/// # Errors
/// Both are the same `ptp://`.
pub(crate) fn check_cable(near: &str, far: &str) -> Result<()> {
    let cable = |vnl| {
        let vnl = Vnl::parse(vnl).ok().filter(|vnl| vnl.scheme == "ptp")?;
        // Options do not matter. A path with a quoted bracket is not compared.
        let path = vnl.argument.split('[').next()?;
        let spec = Spec::path_grammar(path, &Keys::new(&[])).ok()?;
        spec.absolute_path().ok()
    };
    match (cable(near), cable(far)) {
        (Some(near), Some(far)) if near == far => {
            let message = format!("both ends are the cable ptp://{}", near.display());
            Err(Error::usage(message).hint("name two networks"))
        }
        _ => Ok(()),
    }
}

/// Adds what to do to the failure to read a VNL from the file `word`, if that is a program.
pub(crate) fn explain(word: &str, error: Error) -> Error {
    match is_executable(Path::new(word)) {
        true => error.hint(format!("to run the program, write vdens no {word} …")),
        false => error,
    }
}

/// The error for an option in place of a VNL or a command, which `place` names.
pub(crate) fn misplaced<Program: CommandFactory>(option: &str, place: impl fmt::Display) -> Error {
    let mut command = Program::command();
    let program = command.get_name().to_owned();
    command = command.mut_arg("rest", |rest| {
        rest.allow_hyphen_values(false).trailing_var_arg(false)
    });
    // The option alone, so that clap tells whether it exists.
    let Err(error) = command.try_get_matches_from([&*program, option]) else {
        return out_of_place(option, place, &program);
    };
    if error.kind() != clap::error::ErrorKind::UnknownArgument {
        return out_of_place(option, place, &program);
    }
    let hint = suggestion(&error).unwrap_or_else(|| format!("see {program} --help"));
    Error::usage(format!("there is no option '{option}'")).hint(hint)
}

fn out_of_place(option: &str, place: impl fmt::Display, program: &str) -> Error {
    Error::usage(format!("unexpected option '{option}' in place of {place}")).hint(format!(
        "options come before the first VNL; see {program} --help"
    ))
}

/// The advice for a word that names a task of `vdectl`.
fn task(word: &str) -> Option<String> {
    let (_, subcommand) = TASKS.iter().find(|(task, _)| *task == word)?;
    Some(format!("did you mean vdectl {subcommand}?"))
}

/// What an unknown option may mean: a task of `vdectl`, else what clap suggests, else a misspelt
/// task of `vdectl`.
pub(crate) fn suggestion(error: &clap::Error) -> Option<String> {
    let option = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) => option.strip_prefix("--"),
        _ => None,
    };
    let misspelled = |option| similar(option, TASKS.map(|(task, _)| task.to_owned()));
    option
        .and_then(task)
        .or_else(|| clap_suggestion(error))
        .or_else(|| task(&misspelled(option?)?))
}

fn clap_suggestion(error: &clap::Error) -> Option<String> {
    let kinds = [
        ContextKind::SuggestedArg,
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedValue,
    ];
    kinds.into_iter().find_map(|kind| match error.get(kind)? {
        ContextValue::String(word) => Some(format!("did you mean {word}?")),
        ContextValue::Strings(words) => Some(format!("did you mean {}?", words.first()?)),
        _ => None,
    })
}

/// Whether execvp(3) would find a program of this name.
pub(crate) fn is_command(word: &OsStr) -> bool {
    if word.as_bytes().contains(&b'/') {
        return is_executable(Path::new(word));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    !word.is_empty() && env::split_paths(&path).any(|dir| is_executable(&dir.join(word)))
}

pub(crate) fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::VdePlug;
    use crate::plugins::search::SearchPath;

    #[test]
    fn what_exists_or_has_a_scheme_is_meant() {
        let plugins = InstalledPlugins::from(SearchPath::system());
        let lines = [CommandLine::Vdens, CommandLine::Multi, CommandLine::VdePlug];
        for line in lines {
            for word in ["src", "Cargo.toml", "sh://x", "=sh", "", "x/sh", "nosuch"] {
                assert!(check(word, line, &plugins, false).is_ok(), "{word}");
            }
            assert!(check("sh", line, &plugins, false).is_err());
            assert!(check("sh", line, &plugins, true).is_ok());
        }
        let error = check("status", CommandLine::Vdens, &plugins, false).unwrap_err();
        assert!(error.to_string().contains("vdectl status"), "{error}");
    }

    #[test]
    fn a_plug_joins_two_cables() {
        for same in ["ptp:///a", "ptp:///a[mode=0600]", "ptp:///./a"] {
            assert!(check_cable("ptp:///a", same).is_err(), "{same}");
        }
        for other in ["ptp:///b", "vde:///a", "ptp://'/a[1]'", "ptp:///a\\[1]"] {
            assert!(check_cable("ptp:///a", other).is_ok(), "{other}");
        }
        assert!(check_cable("ptp://'/a[1]'", "ptp://'/a[2]'").is_ok());
        assert!(check_cable("null://", "null://").is_ok());
    }

    #[test]
    fn an_option_is_unknown_or_out_of_place() {
        for (option, words) in [
            ("--sysad", "did you mean --sysadm?"),
            ("--satus", "did you mean vdectl status?"),
            ("--list-plugins", "did you mean vdectl plugin list?"),
            ("--nonsense", "see vdens --help"),
            ("--addr", "options come before"),
            ("--addr=x", "options come before"),
            ("-q", "options come before"),
        ] {
            let error = misplaced::<Vdens>(option, "a VNL").to_string();
            assert!(error.contains(words), "{error}");
        }
        let error = misplaced::<VdePlug>("--groop", "a VNL").to_string();
        assert!(error.contains("--group"), "{error}");
    }
}
