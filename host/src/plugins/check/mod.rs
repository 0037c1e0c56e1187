//! `vdectl plugin check`: whether a plugin keeps its side of the contract, in a report that its author can act on.
//!
//! # Theory of operation
//!
//! Each check is a function of [`trials`] over a [`bench::Bench`], which opens one or two links through the plugin as the
//! host does, and moves frames between them. It runs in a child of its own with a fresh copy of the plugin, so one
//! that crashes costs its line in the report only, and no check suffers from the one before. In the child a
//! [`watchdog`] knows which function of the plugin is running, and ends the check when it takes too long: a link that
//! blocks is told from one that is slow. The checks are those of plugin-api's documentation of `Link`, seen from outside.
//!
//! A [`Verdict`] is a line: `ok`, `FAILED` with the reason and what to do, or `skipped` with the reason.

pub mod bench;
pub mod frames;
pub mod trials;
pub mod watchdog;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vdens_plugin_kit::Capabilities;
use vdens_plugin_kit::vnl::Vnl;

use crate::error::{Error, Result};
use crate::output::Text;
use crate::plugins::loader::Stage;
use crate::plugins::probe::{Found, Probe};
use crate::plugins::search::{self, SearchPath};
use crate::sys::isolate::{End, Isolated};

/// How long a check may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The plugin does what it should; a remark.
    Ok(String),
    /// It does not.
    Failed {
        /// What happened.
        why: String,
        /// What its author should do.
        remedy: String,
    },
    /// That could not be found out, and why.
    Skipped(String),
}

impl Verdict {
    /// Without a remark.
    pub fn ok() -> Self {
        Self::Ok(String::new())
    }

    /// Something is wrong.
    pub fn failed(why: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (why, remedy) = (why.into(), remedy.into());
        Self::Failed { why, remedy }
    }

    /// It could not be found out.
    pub fn skipped(why: impl Into<String>) -> Self {
        Self::Skipped(why.into())
    }
}

impl fmt::Display for Verdict {
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

/// What was found. As text, lines go out as they come; as JSON, all together at the end.
#[derive(Debug, Serialize)]
struct Report {
    file: String,
    scheme: String,
    #[serde(skip)]
    json: bool,
    ok: u32,
    failed: u32,
    skipped: u32,
    checks: Vec<Line>,
}

impl Report {
    fn start(file: &Path, scheme: &str, json: bool) -> Result<Self> {
        let report = Self {
            file: file.display().to_string(),
            scheme: scheme.to_owned(),
            json,
            ok: 0,
            failed: 0,
            skipped: 0,
            checks: Vec::new(),
        };
        report.say(&format!("{}, which serves {scheme}://", report.file))?;
        Ok(report)
    }

    fn line(&mut self, check: &'static str, verdict: Verdict) -> Result<()> {
        let (word, count) = match verdict {
            Verdict::Ok(_) => ("ok", &mut self.ok),
            Verdict::Failed { .. } => ("FAILED", &mut self.failed),
            Verdict::Skipped(_) => ("skipped", &mut self.skipped),
        };
        *count += 1;
        self.say(&format!("{word:7}  {check:14}  {verdict}"))?;
        let (verdict, message, remedy) = match verdict {
            Verdict::Ok(remark) => ("ok", remark, String::new()),
            Verdict::Failed { why, remedy } => ("failed", why, remedy),
            Verdict::Skipped(why) => ("skipped", why, String::new()),
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

    /// Prints the rest; the exit status: 0 if nothing is wrong, else 1.
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

/// Checks the plugin in a file, or the one that serves a scheme, and prints the report; 0 if nothing is wrong, else 1.
/// `vnls` are none, one for both ends, or two.
///
/// # Errors
/// There is no such plugin, what is given is no VNL of its scheme, or standard output cannot be
/// written.
pub fn run(plugin: &Path, vnls: Vec<String>, path: &SearchPath, json: bool) -> Result<i32> {
    let (file, scheme) = locate(plugin, path)?;
    let vnls = ends(vnls, &scheme)?;
    let mut report = Report::start(&file, &scheme, json)?;
    let capabilities = match Probe::start(&file, &scheme)?.finish() {
        Found::Plugin {
            description,
            version,
            abi,
            capabilities,
        } => {
            for stage in ["trust", "load"] {
                report.line(stage, Verdict::ok())?;
            }
            report.line("ABI", Verdict::Ok(format!("version {abi}")))?;
            for stage in ["layout", "scheme"] {
                report.line(stage, Verdict::ok())?;
            }
            report.line("manifest", trials::manifest(&description, &version))?;
            Some(Capabilities(capabilities))
        }
        Found::Refused { stage, why, hint } => {
            refused(&mut report, stage, &why, &hint)?;
            None
        }
    };
    if let Some(capabilities) = capabilities {
        let dir = file.parent().unwrap_or(Path::new("/")).to_owned();
        let subject = trials::Subject {
            scheme,
            vnls,
            capabilities,
            path: path.with_first(dir),
        };
        for (name, check) in trials::ALL {
            report.line(name, tried(*check, &subject)?)?;
        }
    }
    report.finish()
}

/// The file that is meant, and the scheme that its name promises.
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

/// The VNLs of the two ends, if any.
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

/// The lines of a file that does not load.
fn refused(report: &mut Report, stage: Stage, why: &str, hint: &str) -> Result<()> {
    let why = why.split_once("is refused: ").map_or(why, |(_, why)| why);
    let stages = [
        (Stage::Trust, "trust"),
        (Stage::Library, "load"),
        (Stage::Version, "ABI"),
        (Stage::Layout, "layout"),
        (Stage::Scheme, "scheme"),
    ];
    for (at, name) in stages {
        if at < stage {
            report.line(name, Verdict::ok())?;
        } else if at == stage {
            report.line(name, Verdict::failed(why, hint))?;
        }
    }
    Ok(())
}

/// Runs a check in a child.
fn tried(check: trials::Check, subject: &trials::Subject) -> Result<Verdict> {
    let child = Isolated::start(|to| {
        let watchdog = watchdog::Watchdog::start(to);
        let verdict = check(subject).unwrap_or_else(trials::broken);
        watchdog.finish(&verdict);
    })?;
    let fate = child.finish(Instant::now() + LIMIT);
    if let (Ok(verdict), left) = (serde_json::from_slice(&fate.said), fate.left) {
        return Ok(match (verdict, left) {
            (Verdict::Ok(_), Some(name)) => Verdict::failed(
                format!("the process '{name}' is still running after the links were closed"),
                "dropping the link must end what it started, and wait for it",
            ),
            (verdict, _) => verdict,
        });
    }
    let how = match fate.end {
        End::Killed(signal) => format!("the plugin crashed ({signal})"),
        End::Hung => format!("the check was not over after {} s", LIMIT.as_secs()),
        End::Flooded => "the plugin wrote into descriptors of the host".to_owned(),
        End::Exited(status) => format!(
            "the plugin ended the process (status {status}), or closed descriptors of the host"
        ),
    };
    let remedy = "look at what it said above, or run the check in a debugger";
    Ok(Verdict::failed(how, remedy))
}
