//! The pages of the documentation that show results, drawn from a results file.
//!
//! Theory of operation. They show ratios and shares, no absolute speeds, which belong to one
//! machine. `performance-tables.md` has everything, `performance.svg` is the [`chart`], and a table
//! for those who have a minute is put into `performance.md`, between the two lines of [`MARKS`];
//! the rest of that page is written by hand.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::figures::{Cell, Figures, Line, Table};
use crate::report::figure;
use crate::results::{Better, Measure};
use crate::{chart, costs, links, print};

/// The page into which the short table goes.
const PAGE: &str = "performance.md";
/// Between which lines of that page.
const MARKS: [&str; 2] = [
    "<!-- drawn by tests/bench/run from performance.json -->\n",
    "<!-- end of what is drawn -->\n",
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

/// Writes the results file and all pages into a directory.
pub(crate) fn write(figures: &Figures, out: &Path) -> crate::Result<()> {
    fs::create_dir_all(out)?;
    let mut files = vec![
        ("performance.json", figures.to_json()?),
        ("performance-tables.md", tables(figures)),
    ];
    files.extend(chart::svg(figures).map(|chart| ("performance.svg", chart)));
    if let Ok(page) = fs::read_to_string(out.join(PAGE)) {
        let [begin, end] = MARKS;
        let parts = page.split_once(begin).and_then(|(before, rest)| {
            let (_, after) = rest.split_once(end)?;
            Some(format!("{before}{begin}\n{}\n{end}{after}", short(figures)))
        });
        files.push((
            PAGE,
            parts.ok_or("performance.md has no place for the table")?,
        ));
    }
    for (name, text) in files {
        let path = out.join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        print(&format!("{}\n", path.display()));
    }
    Ok(())
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
