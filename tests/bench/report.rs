//! Results for a terminal, and the bars that the product is held to.
//!
//! Theory of operation. Each measure has a table with medians, ranges and ratios. What could not be
//! measured or has failed follows, then the bars.

use std::fmt::Write;

use crate::results::{Better, Group, Measure, Results, Row, Summary};
use crate::{costs, crowd, figures, idle, labs, links, machines, netem, stuck, switches, uplink};

/// Three digits, whatever the size.
pub(crate) fn figure(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 || size == 0.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

fn range(summary: Summary) -> String {
    format!("{} – {}", figure(summary.least), figure(summary.most))
}

/// Everything, for a terminal.
pub(crate) fn text(results: &Results) -> String {
    let mut out = String::new();
    for group in &results.groups {
        for measure in &group.measures {
            table(&mut out, results, group, measure);
        }
    }
    shortcomings(&mut out, results);
    let bars = bars(results);
    let (found, unknown): (Vec<&Bar>, Vec<&Bar>) = bars.iter().partition(|bar| bar.found.is_some());
    let _ = writeln!(
        out,
        "\nBars: {} measured, {} not measured",
        found.len(),
        unknown.len()
    );
    for bar in found {
        let verdict = if bar.is_met() { "met" } else { "NOT MET" };
        let found = bar.found.map(figure).unwrap_or_default();
        let _ = writeln!(
            out,
            "  {verdict:<8} {:<70} {found:>7} (bar: {}{})",
            bar.what,
            bar.limit(),
            bar.note
        );
    }
    out
}

/// The bars, for the results file.
pub(crate) fn measured_bars(results: &Results) -> Vec<figures::Bar> {
    let bar = |bar: Bar| figures::Bar {
        is_met: bar.found.is_some().then(|| bar.is_met()),
        limit: bar.limit(),
        what: bar.what,
        found: bar.found,
    };
    bars(results).into_iter().map(bar).collect()
}

fn table(out: &mut String, results: &Results, group: &Group, measure: &Measure) {
    let summaries = group.rows.iter().filter_map(|row| {
        let summary = results.summary(group.id, row.id, &measure.key)?;
        Some((row, summary))
    });
    let ratio = |row: &Row, other: Option<&str>| {
        let other = other.filter(|other| measure.ratios && *other != row.id);
        let ratio = other.and_then(|other| results.ratio(group.id, &measure.key, row.id, other));
        ratio.map_or_else(String::new, |ratio| format!("{}×", figure(ratio.median)))
    };
    let mut head = Some(());
    for (row, summary) in summaries {
        if head.take().is_some() {
            let reference = group.reference.map_or("", |(_, name)| name);
            let _ = writeln!(
                out,
                "\n{} [{}], {}\n  {:<36} {:>9} {:>20} {:>9} {:>9}",
                measure.title,
                measure.unit,
                measure.better.word(),
                group.title,
                "median",
                "range",
                reference,
                group.rivals,
            );
        }
        let line = format!(
            "  {:<36} {:>9} {:>20} {:>9} {:>9}",
            row.title,
            figure(summary.median),
            range(summary),
            ratio(row, group.reference.map(|(id, _)| id)),
            ratio(row, row.rival),
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

/// What could not be measured, and what went wrong.
fn shortcomings(out: &mut String, results: &Results) {
    let missing: Vec<String> = results
        .groups
        .iter()
        .flat_map(|group| group.rows.iter().map(move |row| (group, row)))
        .filter_map(|(group, row)| {
            let why = row.missing.as_ref()?;
            Some(format!("  {}/{}: {why}\n", group.id, row.id))
        })
        .collect();
    if !missing.is_empty() {
        out.push_str("\nMissing here\n");
        out.extend(missing);
    }
    if !results.failures.is_empty() {
        out.push_str("\nFailed\n");
    }
    for failure in &results.failures {
        let _ = writeln!(
            out,
            "  {} (round {}): {}",
            failure.what, failure.round, failure.why
        );
    }
}

/// Something that the product is to reach.
#[derive(Debug)]
struct Bar {
    what: String,
    found: Option<f64>,
    better: Better,
    bar: f64,
    /// What to see it beside.
    note: String,
}

impl Bar {
    /// Whether it is reached; a bar that was not measured is not.
    fn is_met(&self) -> bool {
        self.found.is_some_and(|found| match self.better {
            Better::More => found >= self.bar,
            Better::Less => found <= self.bar,
        })
    }

    fn limit(&self) -> String {
        let sign = if self.better == Better::More {
            "≥"
        } else {
            "≤"
        };
        format!("{sign} {}", self.bar)
    }
}

/// Stands for the worse of both directions.
const TCP: &str = "tcp1";

/// The bars for links: row, measure, the row compared with, the direction and the value.
const LINK_BARS: &[(&str, &str, &str, Better, f64)] = &[
    ("ours-ptp", TCP, "veth", Better::More, 0.90),
    ("ours-ptp", TCP, "debian-ptp", Better::More, 15.0),
    ("ours-ptp", "rtt-idle-p50", "debian-ptp", Better::Less, 0.25),
    ("ours-switch", TCP, "veth", Better::More, 0.88),
    ("ours-switch", TCP, "debian-vde-switch", Better::More, 20.0),
    (
        "ours-switch",
        "rtt-idle-p50",
        "debian-vde-switch",
        Better::Less,
        0.25,
    ),
    ("ours-tap", TCP, "veth", Better::More, 0.60),
    ("ours-tap", "rtt-idle-p50", "debian-tap", Better::Less, 1.0),
    ("ours-ptp-2-users", TCP, "veth", Better::More, 0.40),
    (
        "ours-ptp-2-users",
        "rtt-idle-p50",
        "debian-ptp",
        Better::Less,
        1.0,
    ),
    ("ours-ptp-no-panel", TCP, "veth", Better::More, 0.40),
    (
        "ours-ptp-no-panel",
        "rtt-idle-p50",
        "debian-ptp",
        Better::Less,
        1.0,
    ),
    ("ours-switch-2-users", TCP, "veth", Better::More, 0.40),
    (
        "ours-switch-2-users",
        "rtt-idle-p50",
        "debian-vde-switch",
        Better::Less,
        1.0,
    ),
    ("ours-switch-no-panel", TCP, "veth", Better::More, 0.40),
    (
        "ours-switch-no-panel",
        "rtt-idle-p50",
        "debian-vde-switch",
        Better::Less,
        1.0,
    ),
    (
        "ours-vde-switch",
        TCP,
        "debian-vde-switch",
        Better::More,
        1.3,
    ),
    (
        "ours-vde-switch",
        "rtt-idle-p50",
        "debian-vde-switch",
        Better::Less,
        1.0,
    ),
    ("mixed-ptp", TCP, "debian-ptp", Better::More, 1.3),
    ("mixed-ptp", "rtt-idle-p50", "debian-ptp", Better::Less, 1.0),
    ("ours-udp", TCP, "debian-udp", Better::More, 3.0),
    ("ours-vxlan", TCP, "debian-vxlan", Better::More, 3.0),
    ("ours-ptp", "udp-overload", "debian-ptp", Better::More, 2.0),
    (
        "ours-switch",
        "udp-overload",
        "debian-vde-switch",
        Better::More,
        2.0,
    ),
];

/// The bars for ways to the Internet, likewise.
const UPLINK_BARS: &[(&str, &str, &str, Better, f64)] = &[
    ("ours", "tcp1-out", "kernel", Better::More, 0.90),
    ("ours", "tcp1-in", "kernel", Better::More, 0.90),
    ("ours", "tcp1-out", "pasta", Better::More, 2.0),
    ("ours", "tcp1-in", "pasta", Better::More, 1.2),
    ("ours", "tcp1-out", "slirp4netns", Better::More, 5.0),
    ("ours", "tcp1-in", "slirp4netns", Better::More, 5.0),
    ("ours", "tcp4-out", "kernel", Better::More, 0.90),
    ("ours", "tcp4-in", "kernel", Better::More, 0.90),
    ("ours-switch", "many-out", "kernel", Better::More, 0.90),
    ("ours-switch", "many-in", "kernel", Better::More, 0.90),
    ("ours-no-panel", "tcp1-out", "kernel", Better::More, 0.45),
    ("ours-no-panel", "tcp1-in", "kernel", Better::More, 0.45),
    ("ours", "requests-rate", "pasta", Better::More, 1.0),
    ("ours", "requests-p99", "pasta", Better::Less, 1.0),
    ("ours", "udp-1400-out", "pasta", Better::More, 1.2),
    ("ours", "udp-1400-in", "pasta", Better::More, 1.2),
    ("ours", "udp-64-out", "pasta", Better::More, 1.2),
    ("ours", "udp-64-in", "pasta", Better::More, 1.2),
    ("ours", "tcp1-effort", "pasta", Better::Less, 0.7),
];

/// What a veth pair did, for which no bar is set.
fn beside_veth(results: &Results, measure: &str) -> String {
    let found = results.summary(links::ID, links::REFERENCE, measure);
    found.map_or_else(String::new, |found| {
        format!("; veth: {}", figure(found.median))
    })
}

fn bars(results: &Results) -> Vec<Bar> {
    let ratio = |group: &str, measure: &str, row: &str, other: &str, better, bar| {
        let median = |measure: &str| {
            let ratio = results.ratio(group, measure, row, other)?;
            Some(ratio.median)
        };
        let found = match measure {
            TCP => median("tcp1-to").and_then(|to| Some(to.min(median("tcp1-from")?))),
            _ => median(measure),
        };
        // Overload takes several senders; what a single one gets across is worth knowing as well.
        let note = match measure {
            "udp-overload" => median("udp-1-sender"),
            _ => None,
        };
        Bar {
            what: format!("{group}/{row}: {measure}, ratio to {other}"),
            found,
            better,
            bar,
            note: note.map_or_else(String::new, |one| {
                format!("; with one sender: {}", figure(one))
            }),
        }
    };
    let mut bars: Vec<Bar> = LINK_BARS
        .iter()
        .map(|&(row, measure, other, better, bar)| {
            ratio(links::ID, measure, row, other, better, bar)
        })
        .collect();
    bars.extend(
        UPLINK_BARS
            .iter()
            .map(|&(row, measure, other, better, bar)| {
                ratio(uplink::ID, measure, row, other, better, bar)
            }),
    );
    bars.push(ratio(
        uplink::START,
        uplink::TRUE,
        "ours",
        "pasta",
        Better::Less,
        0.8,
    ));
    // Root's set-up of VLANs is a bridge for each.
    bars.push(ratio(
        switches::ID,
        "pair-2",
        "ours-vlan",
        switches::REFERENCE,
        Better::More,
        0.85,
    ));
    let ours = |row: &&Row| row.id.starts_with("ours") || row.id.starts_with("mixed");
    for group in results.groups.iter().filter(|group| group.id == links::ID) {
        for row in group.rows.iter().filter(ours) {
            for (measure, bar) in [("udp-20k-loss", 0.1), ("tcp1-retransmits", 999.0)] {
                let found = results.summary(group.id, row.id, measure);
                bars.push(Bar {
                    what: format!("{}/{}: {measure}", group.id, row.id),
                    found: found.map(|found| found.median),
                    better: Better::Less,
                    bar,
                    note: beside_veth(results, measure),
                });
            }
        }
    }
    bars.push(ratio(
        costs::STARTUP,
        "ptp",
        "ours",
        "debian",
        Better::Less,
        0.5,
    ));
    bars.push(ratio(
        costs::STARTUP,
        "no",
        "ours",
        "unshare",
        Better::Less,
        1.5,
    ));
    for row in ["ours", "ours-no-panel"] {
        bars.push(ratio(
            crowd::ID,
            crowd::CHAIN,
            row,
            "debian",
            Better::Less,
            1.0,
        ));
        let mut add = |group: &str, measure: &str, what: &str, better, bar| {
            let found = results.summary(group, row, measure);
            bars.push(Bar {
                what: format!("{group}/{row}: {what}"),
                found: found.map(|found| found.median),
                better,
                bar,
                note: String::new(),
            });
        };
        let what = "one pair on 128 ports, ratio to 2 ports";
        add(switches::ID, &switches::many(128), what, Better::More, 0.9);
        let what = "a start beside many, ratio to alone";
        add(crowd::ID, crowd::BESIDE_TO_ALONE, what, Better::Less, 1.5);
        let what = "MiB of the only namespace";
        add(costs::MEMORY, "one", what, Better::Less, 6.0);
        let what = "MiB of each of several namespaces";
        add(costs::MEMORY, "several", what, Better::Less, 6.0);
        let what = "% that a pair loses while a third client is stopped";
        add(stuck::ID, stuck::LOST, what, Better::Less, 5.0);
        for (measure, title) in idle::MEASURES {
            let what = format!("{title}, processor seconds in 10 s");
            // 0.01 s, to the hundredth.
            add(idle::ID, measure, &what, Better::Less, 0.015);
        }
    }
    for (measure, better, bar) in [
        (labs::LINE, Better::Less, 1.0),
        (labs::TCP, Better::More, 0.97),
        (labs::RTT, Better::Less, 1.1),
    ] {
        bars.push(ratio(labs::ID, measure, "ours", "root", better, bar));
    }
    bars.push(ratio(
        labs::ID,
        labs::LINE,
        "ours",
        "mininet",
        Better::Less,
        0.04,
    ));
    for (measure, title, bar) in labs::TREE {
        let found = results.summary(labs::ID, "ours", measure);
        bars.push(Bar {
            what: format!("{}/ours: {title}", labs::ID),
            found: found.map(|found| found.median),
            better: Better::Less,
            bar,
            note: String::new(),
        });
    }
    for (measure, title, unit, bar) in labs::TURNS {
        let found = results.summary(labs::ID, "ours", measure);
        bars.push(Bar {
            what: format!("{}/ours: {title}, {unit}", labs::ID),
            found: found.map(|found| found.median),
            better: Better::Less,
            bar,
            note: String::new(),
        });
    }
    for (row, other, measure, better, bar) in machines::bars() {
        bars.push(ratio(machines::ID, measure, row, other, better, bar));
    }
    for (measure, title, unit, bar) in netem::MEASURES {
        let row = match *measure {
            netem::DELAY => netem::PLUG,
            _ => netem::OURS,
        };
        let found = results.summary(netem::ID, row, measure);
        bars.push(Bar {
            what: format!("{}/{row}: {title}, {unit}", netem::ID),
            found: found.map(|found| found.median),
            better: Better::Less,
            bar: *bar,
            note: String::new(),
        });
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        let figures = [1234.5, 123.4, 12.34, 1.234, 0.1234, 0.0].map(figure);
        assert_eq!(figures, ["1234", "123", "12.3", "1.23", "0.123", "0.00"]);
    }
}
