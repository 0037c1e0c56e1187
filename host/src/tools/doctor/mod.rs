//! `vdectl doctor`: does this machine have what vdens needs, and what mends it?
//!
//! The doctor concludes little from settings. It makes what a session makes: namespaces, a tap, and
//! a panel with an interface on it (`machine`). It loads each plugin (`plugins`), and writes a file
//! where a session would (`files`). It looks the programs up as a shell does (`installation`).
//! Settings only explain a failure, or are limits worth knowing
//! (`limits`).
//!
//! Whatever could crash, hang or leave something behind runs in child processes (`isolate`), all at
//! the same time and with a time limit. What they make ends with them. The doctor makes a panel of
//! its own, so it does not disturb the panel that is in use.
//!
//! Each [`Finding`] is one line. vdens works if none is `wrong`. A `note` concerns something that
//! vdens can do without.

mod files;
mod installation;
mod limits;
mod machine;
mod nat;
mod plugins;

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cli::Common;
use crate::error::{Error, Result};
use crate::output::Text;

/// How long the kernel may take. It makes and removes one network namespace at a time for the whole
/// machine, so this takes longer on a busy one.
const KERNEL_LIMIT: Duration = Duration::from_secs(5);

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Nothing to mend.
    Ok,
    /// Worth knowing, but vdens works.
    Note,
    /// vdens or a plugin cannot work.
    Wrong,
}

/// A check and its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// The result.
    pub verdict: Verdict,
    /// What was examined.
    pub check: String,
    /// What was found, in one line.
    pub message: String,
    /// What to do, mostly a command, in one line. Empty if there is nothing to do.
    pub remedy: String,
}

impl Finding {
    fn new(verdict: Verdict, check: impl fmt::Display, message: impl Into<String>) -> Self {
        Self {
            verdict,
            check: check.to_string(),
            message: message.into(),
            remedy: String::new(),
        }
    }

    fn ok(check: impl fmt::Display, message: impl Into<String>) -> Self {
        Self::new(Verdict::Ok, check, message)
    }

    fn note(check: impl fmt::Display, message: impl Into<String>) -> Self {
        Self::new(Verdict::Note, check, message)
    }

    fn wrong(check: impl fmt::Display, message: impl Into<String>) -> Self {
        Self::new(Verdict::Wrong, check, message)
    }

    /// A check that failed: an error's message, and its hint as the remedy.
    fn failed(verdict: Verdict, check: impl fmt::Display, error: Error) -> Self {
        Self::new(verdict, check, error.message).remedy(error.hint)
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Note => "note",
            Verdict::Wrong => "wrong",
        };
        write!(f, "{word:<6} {}: {}", self.check, self.message)?;
        match &*self.remedy {
            "" => Ok(()),
            remedy => write!(f, "; {remedy}"),
        }
    }
}

#[derive(Serialize)]
struct Findings<'a> {
    /// Whether nothing is wrong.
    works: bool,
    findings: &'a [Finding],
}

/// Examines the machine and prints the findings, a line each or as JSON. Returns the exit status: 0
/// if nothing is wrong, else 1. The process must have one thread.
///
/// # Errors
/// A `--plugin-dir` is not absolute, a child process cannot be started, or standard output cannot
/// be written.
pub fn run(options: &Common, json: bool) -> Result<i32> {
    let findings = examine(options)?;
    let works = findings
        .iter()
        .all(|finding| finding.verdict != Verdict::Wrong);
    let text = match json {
        true => Text::json(&Findings {
            works,
            findings: &findings,
        })?,
        false => findings.iter().collect(),
    };
    text.print()?;
    Ok(i32::from(!works))
}

fn examine(options: &Common) -> Result<Vec<Finding>> {
    let (config, configuration) = files::configuration(options.config.as_deref());
    let path = options.search_path(&config)?;
    let machine = machine::start()?;
    let survey = path.survey();
    let plugins = plugins::start(&survey)?;
    let start = Instant::now();
    let plugins = plugins.finish();
    let mut findings = machine.finish(start + KERNEL_LIMIT);
    findings.extend(files::runtime_dir());
    findings.extend(configuration);
    findings.extend(installation::all());
    findings.extend(plugins::directories(&survey));
    findings.extend(plugins);
    findings.extend(nat::all(&survey));
    findings.extend(limits::all());
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line() {
        let finding = Finding::wrong("x", "a\nb").remedy("c\x1bd");
        let text: Text = [finding, Finding::ok("x", "fine")].iter().collect();
        assert_eq!(
            text.as_ref(),
            "wrong  x: a\\nb; c\\u{1b}d\nok     x: fine\n"
        );
    }
}
