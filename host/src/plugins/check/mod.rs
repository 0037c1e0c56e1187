//! `vdectl plugin check`: does a plugin keep its side of the contract? The report tells its author
//! what to do.
//!
//! # Theory of operation
//!
//! Each check is a function in [`cases`]. It works on a [`bench::Bench`], which opens one or two
//! links through the plugin as the host does, and moves frames between them. Each check runs in a
//! child process with a fresh copy of the plugin. So a crash costs one line of the report, and no
//! check suffers from an earlier one. In the child a [`watchdog`] knows which function of the
//! plugin is running, and ends the check if that takes too long. So the report distinguishes a link
//! that blocks from a slow one. The cases test, from outside, what the kit's documentation of
//! `Link` asks for.
//!
//! A [`CheckResult`] is one line: `ok`, `FAILED` with the reason and a remedy, or `skipped` with
//! the reason.

mod bench;
mod cases;
mod frames;
mod watchdog;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vdens_plugin_kit::Capabilities;
use vdens_plugin_kit::vnl::Vnl;

use crate::error::{Error, Result};
use crate::output::Text;
use crate::plugins::loader::LoadStage;
use crate::plugins::probe::{Found, Probe};
use crate::plugins::search::{self, SearchPath};
use crate::sys::isolate::{Ending, Isolated};

/// How long a check may take.
const CHECK_LIMIT: Duration = Duration::from_secs(60);

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CheckResult {
    /// The plugin does what it should. The text is a remark.
    Ok(String),
    /// The plugin does not do what it should.
    Failed {
        /// What happened.
        why: String,
        /// What the author should do.
        remedy: String,
    },
    /// The check does not apply, and why.
    Skipped(String),
}

impl CheckResult {
    /// `Ok` without a remark.
    pub(crate) fn ok() -> Self {
        Self::Ok(String::new())
    }

    /// A failure.
    pub(crate) fn failed(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (why, remedy) = (why.into(), remedy.into());
        Self::Failed { why, remedy }
    }

    /// A check that does not apply.
    pub(crate) fn skipped(why: impl Into<String>) -> Self {
        Self::Skipped(why.into())
    }
}

impl fmt::Display for CheckResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(remark) | Self::Skipped(remark) => f.write_str(remark),
            Self::Failed { why, remedy } if remedy.is_empty() => f.write_str(why),
            Self::Failed { why, remedy } => write!(f, "{why}; {remedy}"),
        }
    }
}

/// A line of the report.
#[derive(Debug, Serialize)]
struct Line {
    check: &'static str,
    verdict: &'static str,
    message: String,
    /// What the author should do; empty if there is nothing to be done.
    remedy: String,
}

/// The report. Text is printed line by line, JSON at the end.
#[derive(Debug, Serialize)]
struct Results {
    file: String,
    scheme: String,
    #[serde(skip)]
    json: bool,
    ok: u32,
    failed: u32,
    skipped: u32,
    checks: Vec<Line>,
}

impl Results {
    fn start(file: &Path, scheme: &str, json: bool) -> Result<Self> {
        let results = Self {
            file: file.display().to_string(),
            scheme: scheme.to_owned(),
            json,
            ok: 0,
            failed: 0,
            skipped: 0,
            checks: Vec::new(),
        };
        results.say(&format!("{}, which serves {scheme}://", results.file))?;
        Ok(results)
    }

    fn line(&mut self, check: &'static str, verdict: CheckResult) -> Result<()> {
        let (word, count) = match verdict {
            CheckResult::Ok(_) => ("ok", &mut self.ok),
            CheckResult::Failed { .. } => ("FAILED", &mut self.failed),
            CheckResult::Skipped(_) => ("skipped", &mut self.skipped),
        };
        *count += 1;
        self.say(&format!("{word:7}  {check:14}  {verdict}"))?;
        let (verdict, message, remedy) = match verdict {
            CheckResult::Ok(remark) => ("ok", remark, String::new()),
            CheckResult::Failed { why, remedy } => ("failed", why, remedy),
            CheckResult::Skipped(why) => ("skipped", why, String::new()),
        };
        self.checks.push(Line {
            check,
            verdict,
            message,
            remedy,
        });
        Ok(())
    }

    /// Prints a line of text.
    fn say(&self, line: &str) -> Result<()> {
        match self.json {
            true => Ok(()),
            false => Text::from_iter([line.trim_end()]).print(),
        }
    }

    /// Prints the rest. Returns the exit status: 0 if nothing failed, else 1.
    fn finish(&self) -> Result<i32> {
        self.say(&format!(
            "{} ok, {} failed, {} skipped",
            self.ok, self.failed, self.skipped
        ))?;
        if self.json {
            Text::json(self)?.print()?;
        }
        Ok(i32::from(self.failed > 0))
    }
}

/// Checks a plugin, given as a file or a scheme, and prints the report. `vnls` are none, one for
/// both ends, or two. Returns the exit status: 0 if nothing failed, else 1.
///
/// # Errors
/// There is no such plugin, a VNL is not of its scheme, or standard output cannot be written.
pub fn run(plugin: &Path, vnls: Vec<String>, path: &SearchPath, json: bool) -> Result<i32> {
    let (file, scheme) = locate(plugin, path)?;
    let vnls = ends(vnls, &scheme)?;
    let mut results = Results::start(&file, &scheme, json)?;
    let capabilities = match Probe::start(&file, &scheme)?.finish() {
        Found::Plugin {
            description,
            version,
            abi,
            doors,
            capabilities,
        } => {
            for stage in ["trust", "load"] {
                results.line(stage, CheckResult::ok())?;
            }
            results.line("ABI", CheckResult::Ok(by_door(abi, &doors)))?;
            for stage in ["layout", "scheme"] {
                results.line(stage, CheckResult::ok())?;
            }
            results.line("manifest", cases::manifest(&description, &version))?;
            Some(Capabilities(capabilities))
        }
        Found::Refused { stage, why, hint } => {
            refused(&mut results, stage, &why, &hint)?;
            None
        }
    };
    if let Some(capabilities) = capabilities {
        let dir = file.parent().unwrap_or(Path::new("/")).to_owned();
        let subject = cases::Subject {
            scheme,
            vnls,
            capabilities,
            path: path.with_first(dir),
        };
        for (name, check) in cases::ALL {
            results.line(name, run_case(*check, &subject)?)?;
        }
    }
    results.finish()
}

/// The ABI version, and the doors of it: the one that is used, and others that the file has.
fn by_door(abi: u32, doors: &[String]) -> String {
    match doors {
        [] => format!("version {abi}"),
        [used] => format!("version {abi} by door {used}"),
        [used, others @ ..] => {
            format!(
                "version {abi} by door {used}; {} is not used",
                others.join(", ")
            )
        }
    }
}

/// The plugin's file, and the scheme that its name promises.
fn locate(plugin: &Path, path: &SearchPath) -> Result<(PathBuf, String)> {
    if let Some(scheme) = plugin.to_str().filter(|name| Vnl::is_scheme(name)) {
        return Ok((path.find(scheme)?, scheme.to_owned()));
    }
    let file = std::path::absolute(plugin).map_err(|e| Error::path("find", plugin, &e))?;
    if !file.is_file() {
        let message = format!("there is no file {}", file.display());
        return Err(
            Error::usage(message).hint("name a plugin's file, or the scheme of an installed one")
        );
    }
    match search::scheme_of(&file) {
        Some(scheme) => Ok((file.clone(), scheme.to_owned())),
        None => Err(
            Error::usage(format!("{} is no name of a plugin", file.display()))
                .hint("it must be libvdens_SCHEME.so, SCHEME of a-z, 0-9 and _"),
        ),
    }
}

/// The VNLs of the two ends, if any were given.
fn ends(vnls: Vec<String>, scheme: &str) -> Result<Option<[String; 2]>> {
    if let Some(other) = vnls
        .iter()
        .find(|vnl| Vnl::parse(vnl).is_ok_and(|v| v.scheme != scheme))
    {
        return Err(
            Error::usage(format!("{other} is no VNL of the scheme {scheme}"))
                .hint(format!("write {scheme}://…")),
        );
    }
    for vnl in &vnls {
        Vnl::parse(vnl)?;
    }
    match <[String; 2]>::try_from(vnls) {
        Ok(both) => Ok(Some(both)),
        Err(mut vnls) => match (vnls.len(), vnls.pop()) {
            (0, _) => Ok(None),
            (1, Some(vnl)) => Ok(Some([vnl.clone(), vnl])),
            _ => Err(Error::usage(
                "a link has two ends: give one VNL for both, or two",
            )),
        },
    }
}

/// Reports the stages of a file that does not load.
fn refused(results: &mut Results, stage: LoadStage, why: &str, hint: &str) -> Result<()> {
    let why = why.split_once("is refused: ").map_or(why, |(_, why)| why);
    let stages = [
        (LoadStage::Trust, "trust"),
        (LoadStage::Library, "load"),
        (LoadStage::Version, "ABI"),
        (LoadStage::Layout, "layout"),
        (LoadStage::Scheme, "scheme"),
    ];
    for (at, name) in stages {
        if at < stage {
            results.line(name, CheckResult::ok())?;
        } else if at == stage {
            results.line(name, CheckResult::failed(why, hint))?;
        }
    }
    Ok(())
}

/// Runs a check in a child process.
fn run_case(check: cases::Check, subject: &cases::Subject) -> Result<CheckResult> {
    let child = Isolated::start(|to| {
        let watchdog = watchdog::Watchdog::start(to);
        let verdict = check(subject).unwrap_or_else(cases::broken);
        watchdog.finish(&verdict);
    })?;
    let fate = child.finish(Instant::now() + CHECK_LIMIT);
    if let (Ok(verdict), left) = (serde_json::from_slice(&fate.said), fate.left) {
        return Ok(match (verdict, left) {
            (CheckResult::Ok(_), Some(name)) => CheckResult::failed(
                format!("the process '{name}' is still running after the links were closed"),
                "dropping the link must end what it started, and wait for it",
            ),
            (verdict, _) => verdict,
        });
    }
    let how = match fate.end {
        Ending::Killed(signal) => format!("the plugin crashed ({signal})"),
        Ending::Hung => format!("the check did not end within {} s", CHECK_LIMIT.as_secs()),
        Ending::Flooded => "the plugin wrote to descriptors of the host".to_owned(),
        Ending::Exited(status) => format!(
            "the plugin ended the process (status {status}), or closed descriptors of the host"
        ),
    };
    let remedy = "read its messages above, or run the check in a debugger";
    Ok(CheckResult::failed(how, remedy))
}
