//! The pages of the documentation that show results, drawn from a results file.
//!
//! Theory of operation. They show ratios and shares, no absolute speeds, which belong to one
//! machine. `performance-tables.md` has everything, [`chart`] draws the pictures, and two tables
//! for those who have a minute are put into `performance.md`, between two lines each (`MARKS` and
//! `UPLINK_MARKS`); the rest of that page is written by hand.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::chart::{self, CHARTS};
use crate::figures::{Cell, Figures, Line, Table};
use crate::report::figure;
use crate::results::{Better, Measure};
use crate::{costs, links, print, uplink};

/// The page into which the short table goes.
const PAGE: &str = "performance.md";
/// Between which lines of that page.
const MARKS: [&str; 2] = [
    "<!-- drawn by tests/bench/run from performance.json -->\n",
    "<!-- end of what is drawn -->\n",
];

/// The same for ways to the Internet.
const UPLINK_MARKS: [&str; 2] = [
    "<!-- the uplink, drawn by tests/bench/run from performance.json -->\n",
    "<!-- end of the uplink -->\n",
];

/// The rows of the short table: contender, and what it is to a user.
const SHORT: &[(&str, &str)] = &[
    ("ours-ptp", "two of your namespaces on a cable (`ptp://`)"),
    ("ours-switch", "two of your namespaces on our switch"),
    ("ours-tap", "a namespace and the host (`tap://`)"),
    ("ours-ptp-2-users", "namespaces of two users on a cable"),
    ("ours-udp", "`udp://`"),
    ("ours-vxlan", "`vxlan://`"),
    ("mixed-ptp", "a cable to Debian's vdens"),
    ("ours-vde-switch", "two namespaces on Debian's `vde_switch`"),
];

/// The columns of the short table of ways to the Internet: measure, and title.
const SHORT_UPLINK: &[(&str, &str)] = &[
    ("tcp1-out", "TCP out ↑"),
    ("tcp1-in", "TCP in ↑"),
    ("tcp1-effort", "Processor time a GiB ↓"),
    ("requests-rate", "Requests a second ↑"),
    ("udp-1400-out", "UDP out ↑"),
    ("rtt-p50", "Round trip ↓"),
];

/// Writes the results file and all pages into a directory.
pub(crate) fn write(figures: &Figures, out: &Path) -> crate::Result<()> {
    fs::create_dir_all(out)?;
    let mut files = vec![
        ("performance.json", figures.to_json()?),
        ("performance-tables.md", tables(figures)),
    ];
    for chart in CHARTS {
        files.extend(chart::svg(chart, figures).map(|svg| (chart.file, svg)));
    }
    if let Ok(page) = fs::read_to_string(out.join(PAGE)) {
        let page = insert(&page, MARKS, &short(figures))?;
        files.push((PAGE, insert(&page, UPLINK_MARKS, &short_uplink(figures))?));
    }
    for (name, text) in files {
        let path = out.join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        print(&format!("{}\n", path.display()));
    }
    Ok(())
}

/// Puts a table between two marks of a page.
fn insert(page: &str, [begin, end]: [&str; 2], table: &str) -> crate::Result<String> {
    let parts = page.split_once(begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(end)?;
        Some(format!("{before}{begin}\n{table}\n{end}{after}"))
    });
    Ok(parts.ok_or("performance.md has no place for the table")?)
}

/// The worse of a ratio's two directions, if both were measured.
fn worse(row: &Line, ratio: impl Fn(&Cell) -> Option<f64>) -> Option<f64> {
    let [to, from] = ["tcp1-to", "tcp1-from"].map(|key| ratio(row.cells.get(key)?));
    Some(to?.min(from?))
}

fn to_reference(cell: &Cell) -> Option<f64> {
    Some(cell.to_reference?.median)
}

fn to_rival(cell: &Cell) -> Option<f64> {
    Some(cell.to_rival?.median)
}

/// The table for those who have a minute.
fn short(figures: &Figures) -> String {
    let show = |value: Option<f64>| value.map_or("–".to_owned(), figure);
    let mut out = String::from(
        "| Between | TCP, × veth | TCP, × Debian's | Round trip, × veth | Round trip, × Debian's |\n\
         |---|---|---|---|---|\n",
    );
    let links = figures.table(links::ID);
    for (id, name) in SHORT {
        let Some(row) = links.and_then(|table| table.row(id)) else {
            continue;
        };
        let round_trip = row.cells.get("rtt-idle-p50");
        let _ = writeln!(
            out,
            "| {name} | {} | {} | {} | {} |",
            show(worse(row, to_reference)),
            show(worse(row, to_rival)),
            show(round_trip.and_then(to_reference)),
            show(round_trip.and_then(to_rival)),
        );
    }
    let cost = |table: &str, key: &str, ratio: fn(&Cell) -> Option<f64>| {
        let row = figures.table(table)?.row("ours")?;
        ratio(row.cells.get(key)?).map(figure)
    };
    let costs = [
        (
            cost(costs::STARTUP, "ptp", to_rival),
            "`vdens ptp://… true` takes {} times as long as Debian's",
        ),
        (
            cost(costs::STARTUP, "no", to_reference),
            "`vdens no true` takes {} times as long as `unshare -Urn true`",
        ),
        (
            cost(costs::MEMORY, "one", to_rival),
            "an idle session takes {} times the memory of Debian's",
        ),
    ];
    out.push('\n');
    for (value, words) in costs {
        if let Some(value) = value {
            let _ = writeln!(out, "- {}", words.replace("{}", &value));
        }
    }
    let [machine, run] = figures.origin();
    let _ = writeln!(out, "\nMeasured on {machine}:\n{run}.");
    out
}

/// The table of ways to the Internet for those who have a minute.
fn short_uplink(figures: &Figures) -> String {
    let Some(table) = figures.table(uplink::ID) else {
        return "Not measured.\n".to_owned();
    };
    let titles: Vec<&str> = SHORT_UPLINK.iter().map(|(_, title)| *title).collect();
    let mut out = format!(
        "| × kernel NAT by root | {} |\n|---|{}\n",
        titles.join(" | "),
        "---|".repeat(titles.len())
    );
    let is_reference = |row: &Line| Some(&row.id) == table.reference.as_ref();
    for row in table.rows.iter().filter(|row| !is_reference(row)) {
        let cells = SHORT_UPLINK.iter().map(|(key, _)| {
            let ratio = row.cells.get(*key).and_then(to_reference);
            ratio.map_or("–".to_owned(), figure)
        });
        let cells: Vec<String> = cells.collect();
        let _ = writeln!(out, "| {} | {} |", row.title, cells.join(" | "));
    }
    let start = figures.table(uplink::START).and_then(|table| {
        let cell = table.row("ours")?.cells.get(uplink::TRUE)?;
        to_rival(cell).map(figure)
    });
    if let Some(start) = start {
        let _ = writeln!(
            out,
            "\n`vdens --auto nat:// true` takes {start} times as long as\n\
             `pasta --config-net -- true`."
        );
    }
    out.push_str(&unmet(figures, uplink::ID));
    out
}

/// The bars of some groups that were not met.
fn unmet(figures: &Figures, groups: &str) -> String {
    let measured = figures.bars.iter().filter(|bar| bar.found.is_some());
    let bars: Vec<_> = measured
        .filter(|bar| bar.what.starts_with(groups))
        .collect();
    let unmet = bars.iter().filter(|bar| bar.is_met != Some(true));
    let rows: Vec<String> = unmet
        .map(|bar| {
            let found = bar.found.map(figure).unwrap_or_default();
            format!("| {} | {} | {found} |", bar.what, bar.limit)
        })
        .collect();
    if rows.is_empty() {
        return format!("\nAll {} bars are met.\n", bars.len());
    }
    format!(
        "\nOf {} bars {} are met. Not met:\n\n| | Bar | Here |\n|---|---|---|\n{}\n",
        bars.len(),
        bars.len() - rows.len(),
        rows.join("\n")
    )
}

/// Everything: ratios, and shares.
fn tables(figures: &Figures) -> String {
    let [machine, run] = figures.origin();
    let mut out = format!(
        "# Performance: all tables\n\n\
         [Performance](performance.md) says what the rows are, how they are measured, and what the\n\
         figures mean. `tests/bench/run` draws this page from performance.json; do not edit it.\n\n\
         {machine}:\n{run}.\n"
    );
    if let Some(note) = figures.machine["note"].as_str() {
        let _ = writeln!(out, "{note}");
    }
    for group in &figures.groups {
        // Measures in groups of a few: a table has to fit on a page.
        let measured = |measure: &&Measure| {
            let mut rows = group.rows.iter();
            rows.any(|row| row.cells.contains_key(&measure.key))
        };
        let measures: Vec<&Measure> = group.measures.iter().filter(measured).collect();
        for measures in measures.chunks(6) {
            table(&mut out, group, measures);
        }
    }
    bars(&mut out, figures);
    shortcomings(&mut out, figures);
    out
}

fn table(out: &mut String, group: &Table, measures: &[&Measure]) {
    let titles: Vec<String> = measures
        .iter()
        .map(|measure| match (measure.ratios, measure.better) {
            (true, Better::More) => format!("{} ↑", measure.title),
            (true, Better::Less) => format!("{} ↓", measure.title),
            (false, _) => format!("{} [{}]", measure.title, measure.unit),
        })
        .collect();
    let _ = writeln!(
        out,
        "\n**{}**\n\n| | {} |\n|---|{}",
        group.title,
        titles.join(" | "),
        "---|".repeat(titles.len())
    );
    for row in &group.rows {
        let cells: Vec<String> = measures
            .iter()
            .map(|measure| {
                let cell = row.cells.get(&measure.key);
                cell.map_or_else(String::new, |cell| show(cell, measure))
            })
            .collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            let _ = writeln!(out, "| {} | {} |", row.title, cells.join(" | "));
        }
    }
}

/// The ratio to the reference and, behind a slash, to Debian's.
fn show(cell: &Cell, measure: &Measure) -> String {
    let value = || cell.value.map(|value| figure(value.median));
    if !measure.ratios {
        return value().unwrap_or_default();
    }
    match [to_reference(cell), to_rival(cell)].map(|ratio| ratio.map(figure)) {
        [Some(reference), Some(rival)] => format!("{reference} / {rival}"),
        [Some(reference), None] => reference,
        [None, Some(rival)] => format!("– / {rival}"),
        [None, None] => "measured".to_owned(),
    }
}

/// The bars and whether they were met, those that were not first.
fn bars(out: &mut String, figures: &Figures) {
    let measured = figures.bars.iter().filter(|bar| bar.found.is_some());
    let mut measured: Vec<_> = measured.collect();
    measured.sort_by_key(|bar| bar.is_met);
    if measured.is_empty() {
        return;
    }
    out.push_str("\n## Bars\n\n| | Bar | Here | |\n|---|---|---|---|\n");
    for bar in measured {
        let verdict = if bar.is_met == Some(true) {
            "met"
        } else {
            "not met"
        };
        let found = bar.found.map(figure).unwrap_or_default();
        let _ = writeln!(
            out,
            "| {} | {} | {found} | {verdict} |",
            bar.what, bar.limit
        );
    }
}

/// What could not be measured, and what went wrong.
fn shortcomings(out: &mut String, figures: &Figures) {
    let mut lines = Vec::new();
    for group in &figures.groups {
        for row in &group.rows {
            let why = row.missing.iter();
            lines.extend(why.map(|why| format!("| {}/{} | {why} |", group.id, row.id)));
        }
    }
    for failure in &figures.failures {
        let why = failure.why.replace(['\n', '|'], " ");
        lines.push(format!(
            "| {}, round {} | {why} |",
            failure.what, failure.round
        ));
    }
    if !lines.is_empty() {
        let lines = lines.join("\n");
        let _ = writeln!(out, "\n## Not measured\n\n| | Why |\n|---|---|\n{lines}");
    }
}
