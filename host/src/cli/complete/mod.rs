//! `vdectl complete`: what a shell offers when the user presses Tab.
//!
//! The scripts for bash, zsh and fish (host/share/completions) pass the words of the command line
//! up to the cursor, and offer what this prints. clap_complete finds the options, the subcommands
//! and the argument that a word belongs to; the module `candidates` has the values, as they are
//! now.
//!
//! The words of a command that vdens or vdectl runs belong to that command. Then the shell
//! completes them as it does on a line of their own.
//!
//! The first line says what follows: `command N` and nothing else, if the words from number N on
//! are a command; or `words` and a candidate a line, with a description after a tab. Nothing is an
//! error here, because a message would end up in the line that the user types.

pub(crate) mod candidates;

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::{ArgMatches, Command};
use clap_complete::CompletionCandidate;
use clap_complete::engine::complete;

use crate::error::Result;
use crate::output::written;

/// What the last word is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// A word of ours.
    Ours,
    /// Part of the command that begins at this word.
    Command(usize),
}

/// Prints what the last of `words` may become. The first one is the program.
///
/// # Errors
/// Standard output cannot be written.
pub fn run(words: &[OsString]) -> Result<()> {
    written(std::io::stdout().write_all(answer(words).as_bytes()))
}

fn answer(words: &[OsString]) -> String {
    let Some((command, last)) = program(words).zip(words.len().checked_sub(1)) else {
        return "words\n".to_owned();
    };
    if let Place::Command(start) = place(&command, words) {
        return format!("command {start}\n");
    }
    let mut text = "words\n".to_owned();
    for (word, about) in candidates(command, words, last) {
        let about = about.map(|about| format!("\t{about}"));
        let _ = writeln!(text, "{word}{}", about.unwrap_or_default());
    }
    text
}

/// The command line of the program that the first word names.
fn program(words: &[OsString]) -> Option<Command> {
    let name = Path::new(words.first()?).file_name()?;
    let commands = super::commands().into_iter();
    commands
        .into_iter()
        .find(|command| OsStr::new(command.get_name()) == name)
}

/// The words that `words[last]` may become, and what they are.
fn candidates(
    mut command: Command,
    words: &[OsString],
    last: usize,
) -> Vec<(String, Option<String>)> {
    let here = std::env::current_dir().ok();
    let found = complete(&mut command, words.to_vec(), last, here.as_deref());
    let shown = found.unwrap_or_default().into_iter().filter_map(shown);
    // Options are offered where one was begun.
    let is_option = words[last].as_bytes().starts_with(b"-");
    shown
        .filter(|(word, _)| is_option || !word.starts_with('-'))
        .collect()
}

/// A candidate on one line. What a line cannot show, such as a file name with control characters,
/// is left out.
fn shown(candidate: CompletionCandidate) -> Option<(String, Option<String>)> {
    let word = candidate.get_value().to_str()?;
    let about = candidate.get_help().map(ToString::to_string);
    let about = about.and_then(|about| about.lines().next().map(str::to_owned));
    (!word.contains(char::is_control)).then(|| (word.to_owned(), about))
}

/// What the last word is, by those before it.
fn place(command: &Command, words: &[OsString]) -> Place {
    let before = &words[..words.len() - 1];
    let parser = command.clone().ignore_errors(true);
    let Ok(matches) = parser.try_get_matches_from(before) else {
        return Place::Ours;
    };
    let (mut leaf, mut matches) = (command, &matches);
    while let Some((name, inner)) = matches.subcommand() {
        leaf = leaf.find_subcommand(name).unwrap_or(leaf);
        matches = inner;
    }
    // Arguments that take all words which follow are the last ones.
    let rest = values(matches, "rest");
    let rest_start = before.len() - rest.len();
    let behind = |mark: &str| rest.iter().position(|word| *word == mark);
    let start = match leaf.get_name() {
        "vdens" if has_flag(matches, "multi") => behind("--").map(|at| rest_start + at + 1),
        "vdens" if rest.is_empty() => None,
        "vdens" => match rest.get(1) {
            Some(word) if *word == "--" => Some(rest_start + 2),
            _ => Some(rest_start + 1),
        },
        "vde_plug" => behind("=").map(|at| rest_start + at + 1),
        _ => {
            let has_command = leaf.get_arguments().any(|one| one.get_id() == "command");
            let targets = ["name", "nodes"].map(|id| values(matches, id).len());
            let is_next = has_command && targets != [0, 0];
            is_next.then(|| before.len() - values(matches, "command").len())
        }
    };
    start.map_or(Place::Ours, Place::Command)
}

fn has_flag(matches: &ArgMatches, id: &str) -> bool {
    matches
        .try_get_one(id)
        .is_ok_and(|flag| flag == Some(&true))
}

/// The words of an argument, if there is one of that name.
fn values<'a>(matches: &'a ArgMatches, id: &str) -> Vec<&'a OsStr> {
    let values = matches.try_get_raw(id).ok().flatten();
    values.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn offered(line: &str) -> Vec<String> {
        let answer = answer(&words(line));
        let mut lines = answer.lines();
        assert_eq!(lines.next(), Some("words"), "{line}: {answer}");
        let words = lines.map(|line| line.split('\t').next().unwrap_or_default());
        words.map(str::to_owned).collect()
    }

    #[test]
    fn a_command_is_left_to_the_shell() {
        for (line, start) in [
            ("vdens ptp:///tmp/x ", 2),
            ("vdens --up -i eth ptp:///tmp/x ls -", 5),
            ("vdens no -- ", 3),
            ("vdens no -- ls -l ", 3),
            ("/usr/bin/vdens --multi a b -- ls ", 5),
            ("vde_plug ptp://x = cat ", 3),
            ("vdectl exec r1 ", 3),
            ("vdectl -q exec r1 ls -", 4),
            ("vdectl lab exec h* ping ", 4),
        ] {
            assert_eq!(answer(&words(line)), format!("command {start}\n"), "{line}");
        }
        for line in [
            "vdens ",
            "vdens --multi a ",
            "vde_plug ptp://x ",
            "vdectl exec ",
            "vdens -",
        ] {
            assert!(answer(&words(line)).starts_with("words\n"), "{line}");
        }
    }

    #[test]
    fn options_and_subcommands_are_offered() {
        assert_eq!(offered("vdectl st"), ["status", "stop"]);
        assert_eq!(offered("vdectl lab ev"), ["events"]);
        assert_eq!(offered("vdens --wait"), ["--wait-carrier", "--wait"]);
        assert_eq!(offered("vdectl graph --format d"), ["dot"]);
        assert!(!offered("vdens ").iter().any(|word| word.starts_with('-')));
        assert!(offered("vdens -").contains(&"-m".to_owned()));
        assert!(answer(&words("vdectl stat")).contains("\tList your running"));
        for line in ["nosuch ", "", "vdens --hostname ", "vdectl ls "] {
            assert!(offered(line).is_empty(), "{line}: {:?}", offered(line));
        }
    }
}
