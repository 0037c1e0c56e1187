//! What became of a lab's tests, as they are printed: as TAP or JSON after each test, as JUnit's
//! XML after the last.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::lab::model::{Lab, Test};
use crate::output::Text;

/// What is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The Test Anything Protocol, version 14
    Tap,
    /// XML as JUnit has it
    Junit,
    /// A JSON object for each test
    Json,
}

/// What became of a test.
#[derive(Debug)]
pub(super) struct Verdict<'a> {
    pub(super) test: &'a Test,
    pub(super) node: &'a str,
    /// How long it took, with all attempts.
    pub(super) time: Duration,
    pub(super) failure: Option<Failure>,
}

/// How a test has failed.
#[derive(Debug, Serialize)]
pub(super) struct Failure {
    /// Why.
    #[serde(rename = "message")]
    pub(super) why: String,
    /// What its last attempt has printed.
    pub(super) output: String,
}

/// What became of all tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
}

/// Prints verdicts.
pub(super) struct Printer<'a> {
    format: Format,
    lab: &'a Lab,
    verdicts: Vec<Verdict<'a>>,
}

impl<'a> Printer<'a> {
    /// Prints what comes first.
    ///
    /// # Errors
    /// Standard output takes nothing.
    pub(super) fn start(format: Format, lab: &'a Lab) -> Result<Self> {
        if format == Format::Tap {
            let plan = format!("1..{}", lab.tests.len());
            Text::from_iter(["TAP version 14", &plan]).print()?;
        }
        Ok(Self {
            format,
            lab,
            verdicts: Vec::new(),
        })
    }

    /// Prints a verdict, if that is its time.
    ///
    /// # Errors
    /// Standard output takes nothing.
    pub(super) fn print(&mut self, verdict: Verdict<'a>) -> Result<()> {
        match self.format {
            Format::Tap => tap(self.verdicts.len() + 1, &verdict).print()?,
            Format::Json => Text::from_iter([json(&verdict)?]).print()?,
            Format::Junit => {}
        }
        self.verdicts.push(verdict);
        Ok(())
    }

    /// Prints what comes last.
    ///
    /// # Errors
    /// Standard output takes nothing.
    pub(super) fn end(self) -> Result<Outcome> {
        if self.format == Format::Junit {
            junit(&self.lab.name, &self.verdicts).print()?;
        }
        let mut verdicts = self.verdicts.iter();
        Ok(match verdicts.any(|verdict| verdict.failure.is_some()) {
            true => Outcome::Failed,
            false => Outcome::Passed,
        })
    }
}

/// A verdict as an object on one line.
fn json(verdict: &Verdict<'_>) -> Result<String> {
    #[derive(Serialize)]
    struct Line<'a> {
        name: &'a str,
        node: &'a str,
        run: &'a str,
        ok: bool,
        ms: u64,
        #[serde(flatten)]
        failure: Option<&'a Failure>,
    }
    let line = Line {
        name: &verdict.test.name,
        node: verdict.node,
        run: &verdict.test.run,
        ok: verdict.failure.is_none(),
        ms: verdict.time.as_millis().try_into().unwrap_or(u64::MAX),
        failure: verdict.failure.as_ref(),
    };
    serde_json::to_string(&line).map_err(|error| Error::io("write JSON", &error.into()))
}

fn tap(number: usize, verdict: &Verdict<'_>) -> Text {
    let Verdict {
        test,
        node,
        time,
        failure,
    } = verdict;
    // A number sign would start a directive.
    let name = test.name.replace('\\', "\\\\").replace('#', "\\#");
    let mut text = Text::default();
    let Some(Failure { why, output }) = failure else {
        text.line(format_args!(
            "ok {number} - {name} # {} ms",
            time.as_millis()
        ));
        return text;
    };
    text.line(format_args!("not ok {number} - {name}"));
    text.line("  ---");
    text.line(format_args!("  message: {}", quoted(why)));
    text.line(format_args!("  node: {}", quoted(node)));
    text.line(format_args!("  command: {}", quoted(&test.run)));
    text.line(format_args!("  duration_ms: {}", time.as_millis()));
    text.line("  output: |");
    output
        .lines()
        .for_each(|line| text.line(format_args!("    {line}")));
    text.line("  ...");
    text
}

/// A string of YAML.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn junit(lab: &str, verdicts: &[Verdict<'_>]) -> Text {
    let failures = verdicts
        .iter()
        .filter(|verdict| verdict.failure.is_some())
        .count();
    let time: Duration = verdicts.iter().map(|verdict| verdict.time).sum();
    let mut text = Text::default();
    text.line("<?xml version=\"1.0\" encoding=\"UTF-8\"?>");
    text.line(format_args!(
        "<testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" time=\"{:.3}\">",
        xml(lab),
        verdicts.len(),
        time.as_secs_f64()
    ));
    for Verdict {
        test,
        node,
        time,
        failure,
    } in verdicts
    {
        let case = format!(
            "  <testcase classname=\"{}.{}\" name=\"{}\" time=\"{:.3}\"",
            xml(lab),
            xml(node),
            xml(&test.name),
            time.as_secs_f64()
        );
        match failure {
            None => text.line(format_args!("{case}/>")),
            Some(Failure { why, output }) => {
                text.line(format_args!("{case}>"));
                text.line(format_args!("    <failure message=\"{}\">", xml(why)));
                text.line(xml(&test.run));
                output.lines().for_each(|line| text.line(xml(line)));
                text.line("    </failure>");
                text.line("  </testcase>");
            }
        }
    }
    text.line("</testsuite>");
    text
}

/// Text as XML has it, without the characters that it cannot have.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() || c == '\u{fffe}' || c == '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(test: &Test) -> [Verdict<'_>; 2] {
        let verdict = |failure| Verdict {
            test,
            node: "h1",
            time: Duration::from_millis(12),
            failure,
        };
        let failure = Failure {
            why: "exit status 1, not 0".to_owned(),
            output: "one\ntwo <3\u{1b}".to_owned(),
        };
        [verdict(None), verdict(Some(failure))]
    }

    fn a_test() -> Test {
        Test {
            name: "h1 #1 & r1".into(),
            node: 0,
            run: "ping '1'".into(),
            expect: 0,
            within: Duration::ZERO,
        }
    }

    #[test]
    fn verdicts_as_tap() {
        let test = a_test();
        let [good, bad] = verdicts(&test);
        assert_eq!(tap(1, &good).as_ref(), "ok 1 - h1 \\#1 & r1 # 12 ms\n");
        let expected = "not ok 2 - h1 \\#1 & r1
  ---
  message: 'exit status 1, not 0'
  node: 'h1'
  command: 'ping ''1'''
  duration_ms: 12
  output: |
    one
    two <3\\u{1b}
  ...
";
        assert_eq!(tap(2, &bad).as_ref(), expected);
    }

    #[test]
    fn verdicts_as_json() {
        let test = a_test();
        let [good, bad] = verdicts(&test);
        let passed = r#"{"name":"h1 #1 & r1","node":"h1","run":"ping '1'","ok":true,"ms":12}"#;
        assert_eq!(json(&good).unwrap(), passed);
        let text = json(&bad).unwrap();
        let failure = r#""ok":false,"ms":12,"message":"exit status 1, not 0","output":"one\ntwo"#;
        assert!(text.contains(failure), "{text}");
    }

    #[test]
    fn verdicts_as_junit() {
        let test = a_test();
        let text = junit("lab", &verdicts(&test));
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<testsuite name=\"lab\" tests=\"2\" failures=\"1\" time=\"0.024\">
  <testcase classname=\"lab.h1\" name=\"h1 #1 &amp; r1\" time=\"0.012\"/>
  <testcase classname=\"lab.h1\" name=\"h1 #1 &amp; r1\" time=\"0.012\">
    <failure message=\"exit status 1, not 0\">
ping '1'
one
two &lt;3\u{fffd}
    </failure>
  </testcase>
</testsuite>
";
        assert_eq!(text.as_ref(), expected);
    }
}
