//! `vdectl doctor`: whether this machine has what vdens needs, and what mends it where it does not.
//!
//! Little is concluded from settings. What a session makes is made here too: namespaces, a tap, a panel with an
//! interface on it (`machine`), each plugin is loaded (`plugins`), and a file is written where others will be
//! (`files`). Settings only explain a failure, or are limits worth knowing (`limits`).
//!
//! All that could crash, hang or leave something is done in a child (`isolate`), all children at the same time and with a
//! bound; what they made ends with them. A panel that is in use is not touched: the one that
//! is tried is another, which nobody finds.
//!
//! Each [`Finding`] is one line. vdens works if none is `wrong`; a `note` is about something that it can do without.

mod files;
mod limits;
mod machine;
mod plugins;

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::cli::Common;
use crate::error::{Error, Result};
use crate::output::Text;

/// How long the kernel may take. It makes and removes network namespaces one at a time for the whole machine, so on a
/// busy one it is not the child's fault.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came out of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Not as it should be, or worth knowing, and vdens works without.
    Note,
    /// vdens, or a plugin, cannot do its work.
    Wrong,
}

/// A check and what came out of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What came out.
    pub verdict: Verdict,
    /// What was looked at.
    pub check: String,
    /// What it is like. One line.
    pub message: String,
    /// What to do, mostly a command; empty if there is nothing to be done. One line.
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
struct Report<'a> {
    /// Whether nothing is wrong.
    works: bool,
    findings: &'a [Finding],
}

/// Examines the machine and prints what it finds, one line each or as JSON. Returns the exit status: 0 if
/// nothing is wrong, else 1. For processes with one thread.
///
/// # Errors
/// A `--plugin-dir` is not absolute, there are too many processes, or standard output cannot be written.
pub fn run(options: &Common, json: bool) -> Result<i32> {
    let findings = examine(options)?;
    let works = findings
        .iter()
        .all(|finding| finding.verdict != Verdict::Wrong);
    let text = match json {
        true => Text::json(&Report {
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
    let mut findings = machine.finish(start + PATIENCE);
    findings.extend(files::runtime_dir());
    findings.extend(configuration);
    findings.extend(plugins::directories(&survey));
    findings.extend(plugins);
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
