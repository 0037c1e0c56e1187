//! What `vdectl status` prints: text for a person, or JSON with everything.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use vdens_plugin_kit::{Peer, SwitchStatus, Tier};

use super::client::Answer;
use crate::error::Result;
use crate::ipc::status::{Entry, LinkEntry, Report, Service};
use crate::output::Text;

/// How much of the command line of a silent process is read, in bytes.
const MAX_COMMAND_LINE: u64 = 4096;

/// How many stations of a switch are listed as text. The rest is counted.
const STATIONS: usize = 32;

/// A process as it is shown in JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Shown<'a> {
    /// A process that answered.
    Process {
        pid: u32,
        program: &'a str,
        version: &'a str,
        command: &'a [String],
        directory: &'a str,
        started: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<&'a str>,
        #[serde(skip_serializing_if = "str::is_empty")]
        hostname: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        command_pid: Option<u32>,
        #[serde(skip_serializing_if = "str::is_empty")]
        no_panel: &'a str,
        links: Vec<ShownLink<'a>>,
    },
    /// A process that did not, and why.
    Failure {
        pid: u32,
        command: Vec<String>,
        error: String,
    },
}

/// A link as it is shown in JSON.
#[derive(Serialize)]
struct ShownLink<'a> {
    state: &'static str,
    #[serde(flatten)]
    link: &'a LinkEntry,
    #[serde(flatten)]
    report: Option<&'a Report>,
}

/// The answers as one JSON value: `{"processes": […]}`. Each process has `links`, or `error` in
/// their place.
///
/// # Errors
/// As for [`Text::json`].
pub fn json(answers: &[Answer]) -> Result<Text> {
    let processes: Vec<Shown<'_>> = answers.iter().map(shown).collect();
    Text::json(&BTreeMap::from([("processes", processes)]))
}

fn shown(answer: &Answer) -> Shown<'_> {
    match &answer.process {
        Ok(process) => {
            let links = process.links.iter().map(|entry| ShownLink {
                state: state(entry),
                link: &entry.link,
                report: entry.report.as_ref(),
            });
            Shown::Process {
                pid: process.pid,
                program: &process.program,
                version: &process.version,
                command: &process.command,
                directory: &process.directory,
                started: process.started,
                name: process.name.as_deref(),
                hostname: &process.hostname,
                command_pid: process.command_pid,
                no_panel: &process.no_panel,
                links: links.collect(),
            }
        }
        Err(error) => Shown::Failure {
            pid: answer.pid,
            command: command_line(answer.pid),
            error: error.to_string(),
        },
    }
}

/// The answers as text; empty if there are none.
pub fn text(answers: &[Answer]) -> Text {
    let mut text = Text::default();
    for (number, answer) in answers.iter().enumerate() {
        if number > 0 {
            text.gap();
        }
        one_as_text(&mut text, answer);
    }
    text
}

fn one_as_text(text: &mut Text, answer: &Answer) {
    let process = match &answer.process {
        Ok(process) => process,
        Err(error) => {
            let command = words(&command_line(answer.pid));
            text.line(format_args!("process {}: {command}", answer.pid));
            text.line(format_args!("  {error}"));
            return;
        }
    };
    let name = process.name.as_ref();
    text.line(format_args!(
        "{}{} {}, for {}, in {}: {}",
        name.map_or_else(String::new, |name| format!("{name}: ")),
        process.program,
        process.pid,
        age(process.started, SystemTime::now()),
        process.directory,
        words(&process.command)
    ));
    if !process.no_panel.is_empty() {
        text.line(format_args!("  no panel: {}", process.no_panel));
    }
    for entry in &process.links {
        link(text, entry);
    }
}

fn link(text: &mut Text, entry: &Entry<Report>) {
    let LinkEntry { interface, vnl, .. } = &entry.link;
    let name = match interface.as_str() {
        "" => vnl.clone(),
        interface => format!("{interface} {vnl}"),
    };
    let report = entry.report.as_ref();
    let way = report.and_then(|report| report.tier).map(tier);
    let why = report.map_or("", |report| report.reason.as_str());
    let parts = [Some(state(entry)), way].into_iter().flatten();
    let parts: Vec<&str> = parts.collect();
    let colon = if why.is_empty() { "" } else { ": " };
    text.line(format_args!("  {name}: {}{colon}{why}", parts.join(", ")));
    if let Some(report) = report {
        details(text, report);
    }
    traffic(text, entry);
    let served = served(entry);
    if !served.is_empty() {
        text.line(format_args!("      served by {served}"));
    }
    if let Some(switch) = report.and_then(|report| report.switch.as_ref()) {
        ports_and_stations(text, switch);
    }
}

fn details(text: &mut Text, report: &Report) {
    if let Some(peer) = &report.peer {
        text.line(format_args!("      peer: {}", who(peer)));
    }
    for (name, value) in &report.extra {
        text.line(format_args!("      {name}: {value}"));
    }
}

/// What went each way: through the interface if there is one, else through the process.
fn traffic(text: &mut Text, entry: &Entry<Report>) {
    let report = entry.report.as_ref();
    let flows = report.map(|report| [&report.received, &report.sent]);
    let [received, sent] = match (&entry.link.interface_traffic, flows) {
        (Some(traffic), _) => {
            [traffic.received, traffic.sent].map(|count| (count.frames, count.bytes))
        }
        (None, Some(flows)) => flows.map(|flow| (flow.frames, flow.bytes)),
        (None, None) => return,
    };
    let amount = |(frames, bytes)| format!("{frames} frames, {}", amount_of(bytes));
    text.line(format_args!(
        "      received {}; sent {}",
        amount(received),
        amount(sent)
    ));
    let mut lost = Vec::new();
    for (way, flow) in ["receiving", "sending"]
        .into_iter()
        .zip(flows.into_iter().flatten())
    {
        let causes = [
            ("malformed", flow.dropped.malformed),
            ("queue full", flow.dropped.queue_full),
            ("undeliverable", flow.dropped.undeliverable),
        ];
        let causes = causes.iter().filter(|(_, count)| *count > 0);
        lost.extend(causes.map(|(cause, count)| format!("{count} {cause} {way}")));
    }
    if let Some(traffic) = &entry.link.interface_traffic {
        let ways = [("receiving", traffic.received), ("sending", traffic.sent)];
        let ways = ways.iter().filter(|(_, count)| count.dropped > 0);
        lost.extend(ways.map(|(way, count)| format!("{} by the interface {way}", count.dropped)));
    }
    if !lost.is_empty() {
        text.line(format_args!("      dropped: {}", lost.join(", ")));
    }
}

/// Who serves a link.
fn served(entry: &Entry<Report>) -> String {
    let LinkEntry {
        worker,
        restarts,
        last_end,
        ..
    } = &entry.link;
    let plugin = entry.report.as_ref().and_then(|r| r.plugin.as_ref());
    let plugin = plugin.map(|plugin| format!("{} {}", plugin.file, plugin.version));
    let worker = worker.map(|pid| format!("process {pid}"));
    let times = if *restarts == 1 { "time" } else { "times" };
    let again = (*restarts > 0).then(|| format!("started again {restarts} {times}: {last_end}"));
    let sandbox = entry.report.as_ref().map(|report| report.sandbox.clone());
    let sandbox = sandbox.filter(|sandbox| !sandbox.is_empty());
    let parts: Vec<String> = [plugin, worker, again, sandbox]
        .into_iter()
        .flatten()
        .collect();
    parts.join(", ")
}

fn ports_and_stations(text: &mut Text, switch: &SwitchStatus) {
    for port in &switch.ports {
        let lost = port.dropped.values().copied();
        let lost = lost.fold(0, u64::saturating_add);
        let way = port
            .tier
            .map_or_else(String::new, |way| format!(", {}", tier(way)));
        text.line(format_args!(
            "      port {}: {}{way}, received {}, sent {}, dropped {lost}",
            port.number,
            who(&port.client),
            port.received,
            port.sent
        ));
    }
    for station in switch.fdb.iter().take(STATIONS) {
        let vlan = match station.vlan {
            0 => String::new(),
            vlan => format!(" on VLAN {vlan}"),
        };
        text.line(format_args!(
            "      station {}{vlan}: port {}, {} s ago",
            station.mac, station.port, station.age
        ));
    }
    if let Some(more @ 1..) = switch.fdb.len().checked_sub(STATIONS) {
        text.line(format_args!(
            "      and {more} stations more; --json lists them"
        ));
    }
}

/// The state of a link in a word.
pub(crate) fn state(entry: &Entry<Report>) -> &'static str {
    match (entry.link.service, &entry.report) {
        (Service::Silent, _) => "silent",
        (Service::Restarting, _) => "restarting",
        (Service::Closed, _) => "closed",
        (Service::Served, None) => "starting",
        (Service::Served, Some(report)) if report.carrier => "up",
        (Service::Served, Some(_)) => "no carrier",
    }
}

fn tier(tier: Tier) -> &'static str {
    match tier {
        Tier::Kernel => "kernel",
        Tier::Taps => "tap to tap",
        Tier::SuperFrames => "super-frames",
        Tier::Segmented => "segmented",
        Tier::Other => "a way of its own",
    }
}

fn who(peer: &Peer) -> String {
    let description = peer.description.clone();
    let pid = peer.pid.map(|pid| format!("process {pid}"));
    let uid = peer.uid.map(|uid| format!("user {uid}"));
    let parts = [Some(description), pid, uid].into_iter().flatten();
    let parts: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}

/// A command line that can be told apart from another, on one line.
fn words(command: &[String]) -> String {
    let words: Vec<String> = command
        .iter()
        .map(
            |word| match word.is_empty() || word.contains(char::is_whitespace) {
                true => format!("'{word}'"),
                false => word.clone(),
            },
        )
        .collect();
    words.join(" ")
}

/// The command line of a process that does not answer.
fn command_line(pid: u32) -> Vec<String> {
    let mut words = Vec::new();
    if let Ok(file) = File::open(format!("/proc/{pid}/cmdline")) {
        // What cannot be read is not shown.
        let _ = file.take(MAX_COMMAND_LINE).read_to_end(&mut words);
    }
    let words = String::from_utf8_lossy(&words);
    words.split_terminator('\0').map(str::to_owned).collect()
}

/// How long before `now` a time, in seconds since 1970, was.
fn age(started: u64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs().saturating_sub(started);
    match (seconds / 86_400, seconds / 3600, seconds / 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {} min", minutes % 60),
        (days, hours, _) => format!("{days} d {} h", hours % 24),
    }
}

/// A number of bytes, with a decimal prefix where it is large.
fn amount_of(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB", "EB"];
    let mut amount = bytes as f64;
    let mut unit = "bytes";
    for larger in units {
        if amount < 1000.0 {
            break;
        }
        amount /= 1000.0;
        unit = larger;
    }
    match unit {
        "bytes" => format!("{bytes} bytes"),
        unit => format!("{amount:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::ipc::status::{Counters, Dropped, Process};
    use crate::sys::interface::Traffic;
    use serde_json::{Value, json};
    use std::time::Duration;
    use vdens_plugin_kit::{PortStatus, StationStatus};

    /// A switch's link.
    fn entry() -> Entry<Report> {
        let stations = (0..STATIONS + 3).map(|n| StationStatus {
            mac: format!("02:00:00:00:00:{n:02x}"),
            port: "3".into(),
            ..StationStatus::default()
        });
        let report = Report {
            carrier: true,
            tier: Some(Tier::Segmented),
            reason: "the peer is a legacy one".into(),
            received: Counters {
                frames: 2,
                bytes: 1_234_567,
                dropped: Dropped {
                    queue_full: 7,
                    ..Dropped::default()
                },
            },
            switch: Some(SwitchStatus {
                ports: vec![PortStatus {
                    number: 3,
                    ..PortStatus::default()
                }],
                fdb: stations.collect(),
            }),
            ..Report::default()
        };
        let link = LinkEntry {
            interface: "vde0".into(),
            addresses: Vec::new(),
            vnl: "switch:///tmp/sw".into(),
            service: Service::Served,
            worker: Some(12),
            restarts: 1,
            last_end: "signal 9".into(),
            interface_traffic: None,
        };
        Entry {
            link,
            report: Some(report),
        }
    }

    fn process<R>(entry: Entry<R>) -> Process<R> {
        Process {
            pid: 1,
            program: "vdens".into(),
            version: "0".into(),
            command: vec!["sh".into(), "-c".into(), "a b".into()],
            directory: "/tmp".into(),
            started: 0,
            name: None,
            hostname: String::new(),
            command_pid: None,
            has_own_pids: false,
            no_panel: String::new(),
            lab: None,
            links: vec![entry],
        }
    }

    #[test]
    fn a_person_is_told_the_gist_and_a_program_everything() {
        let silent = Error::closed("silence");
        let answers = [
            Answer {
                pid: 1,
                process: Ok(process(entry())),
            },
            Answer {
                pid: u32::MAX,
                process: Err(silent),
            },
        ];
        let told = text(&answers);
        let told = told.as_ref();
        for part in [
            "sh -c 'a b'\n  vde0 switch:///tmp/sw: up, segmented: the peer is a legacy one\n",
            "received 2 frames, 1.2 MB; sent 0 frames, 0 bytes\n",
            "dropped: 7 queue full receiving\n",
            "served by process 12, started again 1 time: signal 9\n",
            "and 3 stations more",
            "process 4294967295: \n  silence\n",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let value: Value = serde_json::from_str(json(&answers).unwrap().as_ref()).unwrap();
        let link = &value["processes"][0]["links"][0];
        assert_eq!(link["state"], "up");
        assert_eq!(link["tier"], "segmented");
        assert_eq!(link["restarts"], 1);
        assert_eq!(link["received"]["dropped"]["queue_full"], 7);
        assert_eq!(
            link["switch"]["fdb"].as_array().map(Vec::len),
            Some(STATIONS + 3)
        );
        assert_eq!(value["processes"][1]["error"], "silence");
    }

    /// All values that are `value` with one of its leaves replaced by `absurd`.
    fn replaced(value: &Value, absurd: &Value) -> Vec<Value> {
        let children: Vec<(Value, Value)> = match value {
            Value::Array(items) => {
                let numbered = items.iter().enumerate();
                numbered
                    .map(|(at, item)| (at.into(), item.clone()))
                    .collect()
            }
            Value::Object(fields) => {
                let named = fields.iter();
                named
                    .map(|(name, field)| (name.as_str().into(), field.clone()))
                    .collect()
            }
            _ => return vec![absurd.clone()],
        };
        let mut all = vec![absurd.clone()];
        for (key, child) in children {
            for child in replaced(&child, absurd) {
                let mut value = value.clone();
                match key.as_str() {
                    Some(name) => value[name] = child,
                    None => value[key.as_u64().unwrap() as usize] = child,
                }
                all.push(value);
            }
        }
        all
    }

    #[test]
    fn whatever_a_process_says_can_be_printed() {
        let mut process = process(entry());
        let traffic = Traffic::default();
        process.links[0].link.interface_traffic = Some(traffic);
        let report = process.links[0].report.as_mut().unwrap();
        report.peer = Some(Peer::default());
        report.extra = [("name".to_owned(), "value".to_owned())].into();
        let switch = report.switch.as_mut().unwrap();
        switch.ports[0].dropped = [("a".to_owned(), u64::MAX), ("b".to_owned(), 1)].into();
        let sane = serde_json::to_value(&process).unwrap();
        let mut deep = Value::Null;
        for _ in 0..100 {
            deep = json!([deep]);
        }
        let numbers = [0, 1, u64::from(u32::MAX), i64::MAX as u64, u64::MAX].map(Value::from);
        let others = [
            json!(-1),
            json!(i64::MIN),
            json!(1e308),
            json!(0.5),
            json!(null),
            json!("\x1b[2J\n\u{9b}\u{202e}"),
            json!("x".repeat(10_000)),
            json!({}),
            json!([{}, {}]),
            deep,
        ];
        let (mut understood, mut refused) = (0, 0);
        for absurd in numbers.iter().chain(&others) {
            for value in replaced(&sane, absurd) {
                // As it comes in.
                let said = serde_json::from_str(&value.to_string());
                let process = said.map_err(|error| Error::closed(error.to_string()));
                match process {
                    Ok(_) => understood += 1,
                    Err(_) => refused += 1,
                }
                let answers = [Answer { pid: 1, process }];
                let shown = [text(&answers), json(&answers).unwrap()];
                for text in shown {
                    let text = text.as_ref();
                    let is_harmless = |c: char| c == '\n' || !c.is_control() && c != '\u{202e}';
                    assert!(text.chars().all(is_harmless), "{value}: {text}");
                }
            }
        }
        assert!(understood > 100 && refused > 100, "{understood}, {refused}");
    }

    #[test]
    fn ages_are_told_however_absurd() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (started, told) in [
            (999_999, "1 s"),
            (996_399, "1 h 0 min"),
            (0, "11 d 13 h"),
            (u64::MAX, "0 s"),
        ] {
            assert_eq!(age(started, now), told);
        }
        let future = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(age(0, future), "0 s");
        assert_eq!(amount_of(u64::MAX), "18.4 EB");
    }

    #[test]
    fn what_is_passed_on_unread_can_be_read() {
        let Entry { link, report } = entry();
        let raw = serde_json::to_string(&report).unwrap();
        let report = Some(serde_json::value::RawValue::from_string(raw).unwrap());
        let unread = process(Entry { link, report });
        let text = serde_json::to_string(&unread).unwrap();
        let read: Process<Report> = serde_json::from_str(&text).unwrap();
        let report = read.links[0].report.as_ref().unwrap();
        assert_eq!(report.received.bytes, 1_234_567);
        assert_eq!(read.links[0].link.interface, "vde0");
    }
}
