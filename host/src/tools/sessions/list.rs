//! `vdectl ls`: the user's sessions.

use serde::Serialize;

use crate::error::Result;
use crate::ipc::status::{Process, Report};
use crate::output::{Text, report};
use crate::tools::status::client::{Answer, ask_all};

/// A session as it is shown in JSON.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    pid: u32,
    command_pid: Option<u32>,
    hostname: &'a str,
    command: &'a [String],
    interfaces: Vec<Interface<'a>>,
}

#[derive(Serialize)]
struct Interface<'a> {
    name: &'a str,
    vnl: &'a str,
    addresses: Vec<String>,
    carrier: bool,
}

/// Lists the sessions.
///
/// # Errors
/// Processes cannot be asked, or the list cannot be written.
pub(super) fn run(json: bool, quiet: bool) -> Result<()> {
    let answers = ask_all()?;
    let shown: Vec<Shown<'_>> = sessions(&answers).map(shown).collect();
    if json {
        return Text::json(&shown)?.print();
    }
    if shown.is_empty() && !quiet {
        report("vdectl", "no session of yours is running");
    }
    table(&shown).print()
}

/// The sessions among the processes that answered.
pub(super) fn sessions(answers: &[Answer]) -> impl Iterator<Item = &Process<Report>> {
    let processes = answers
        .iter()
        .filter_map(|answer| answer.process.as_ref().ok());
    processes.filter(|process| process.program == "vdens")
}

fn shown(process: &Process<Report>) -> Shown<'_> {
    let interfaces = process.links.iter().map(|entry| Interface {
        name: &entry.link.interface,
        vnl: &entry.link.vnl,
        addresses: entry
            .link
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect(),
        carrier: entry.report.as_ref().is_some_and(|report| report.carrier),
    });
    Shown {
        name: process.name.as_deref(),
        pid: process.pid,
        command_pid: process.command_pid,
        hostname: &process.hostname,
        command: &process.command,
        interfaces: interfaces.collect(),
    }
}

/// One line for each session: its name, its process, its interfaces with addresses, its command.
fn table(sessions: &[Shown<'_>]) -> Text {
    let mut rows = vec![["NAME", "PID", "INTERFACES", "COMMAND"].map(str::to_owned)];
    rows.extend(sessions.iter().map(|session| {
        let interfaces = session.interfaces.iter().map(|interface| {
            let down = if interface.carrier {
                ""
            } else {
                " (no carrier)"
            };
            let words = [&[interface.name.to_owned()][..], &interface.addresses].concat();
            format!("{}{down}", words.join(" "))
        });
        [
            session.name.unwrap_or("-").to_owned(),
            session.pid.to_string(),
            interfaces.collect::<Vec<_>>().join(", "),
            session.command.join(" "),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let [name, pid, interfaces] = [0, 1, 2].map(|column| width(column).unwrap_or(0));
    let mut text = Text::default();
    if sessions.is_empty() {
        return text;
    }
    for [a, b, c, d] in &rows {
        let line = format!("{a:name$}  {b:pid$}  {c:interfaces$}  {d}");
        text.line(line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_session_has_a_line() {
        let command = ["sleep".to_owned(), "9".to_owned()];
        let session = |name, command| Shown {
            name,
            pid: 12,
            command_pid: Some(13),
            hostname: "h",
            command,
            interfaces: vec![Interface {
                name: "vde0",
                vnl: "null://",
                addresses: vec!["10.0.0.1/24".into()],
                carrier: false,
            }],
        };
        let text = table(&[session(Some("r1"), &command[..]), session(None, &[])]);
        assert_eq!(
            text.as_ref(),
            "NAME  PID  INTERFACES                     COMMAND\n\
             r1    12   vde0 10.0.0.1/24 (no carrier)  sleep 9\n\
             -     12   vde0 10.0.0.1/24 (no carrier)\n"
        );
    }
}
