//! The charts: ratios to the reference as horizontal bars, in SVG.
//!
//! Theory of operation. Each measure worth a look has a panel, with a bar for each contender that
//! has a ratio to its group's reference. The median is the bar's length, and the range over the
//! rounds is a line on it. A long bar would make the others vanish, so lengths are logarithmic when
//! the ratios are far apart. Ours, others' and the reference have a colour each.

use std::fmt::Write;

use crate::figures::{Figures, Line, Table};
use crate::report::figure;
use crate::results::{Better, Measure, Summary};
use crate::{links, uplink};

/// What a picture shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chart {
    pub(crate) file: &'static str,
    group: &'static str,
    /// What the ratios are to.
    reference: &'static str,
    /// The measures.
    panels: &'static [&'static str],
}

/// All pictures.
pub(crate) const CHARTS: &[Chart] = &[
    Chart {
        file: "performance.svg",
        group: links::ID,
        reference: "veth",
        panels: &["tcp1-to", "rtt-idle-p50"],
    },
    Chart {
        file: "performance-uplink.svg",
        group: uplink::ID,
        reference: "kernel NAT by root",
        panels: &["tcp1-out", "tcp1-in"],
    },
];
const WIDTH: f64 = 860.0;
/// Where bars begin, and how long they are at most.
const LEFT: f64 = 270.0;
const LENGTH: f64 = 500.0;
const LINE: f64 = 22.0;
/// Ratios further apart than this are drawn to a logarithmic scale.
const FAR: f64 = 30.0;

/// A chart; `None` if there is nothing to compare.
pub(crate) fn svg(chart: &Chart, figures: &Figures) -> Option<String> {
    let group = figures.table(chart.group)?;
    let mut body = String::new();
    let mut y = 46.0;
    for key in chart.panels {
        let measure = group.measures.iter().find(|measure| measure.key == *key)?;
        panel(&mut body, &mut y, chart.reference, group, measure);
    }
    if body.is_empty() {
        return None;
    }
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y}\" \
         viewBox=\"0 0 {WIDTH} {y}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    label(
        &mut out,
        12.0,
        22.0,
        "font-size=\"12\" fill=\"#666\"",
        &figures.origin().join("; ").replace('`', ""),
    );
    out.push_str(&body);
    out.push_str("</svg>\n");
    Some(out)
}

fn panel(out: &mut String, y: &mut f64, reference: &str, group: &Table, measure: &Measure) {
    let ratio = |row: &Line| row.cells.get(&measure.key)?.to_reference;
    let bars: Vec<(&Line, Summary)> = group
        .rows
        .iter()
        .filter_map(|row| Some((row, ratio(row)?)))
        .filter(|(_, ratio)| ratio.least > 0.0)
        .collect();
    let most = bars.iter().map(|(_, ratio)| ratio.most).fold(1.0, f64::max);
    let least = bars
        .iter()
        .map(|(_, ratio)| ratio.least)
        .fold(1.0, f64::min);
    if bars.len() < 2 {
        return;
    }
    let logarithmic = measure.better == Better::Less && most / least > FAR;
    // The shortest bar of a logarithmic panel is still to be seen.
    let floor = least / 2.0;
    let length = |value: f64| match logarithmic {
        true => LENGTH * (value / floor).ln() / (most / floor).ln(),
        false => LENGTH * value / most,
    };
    let scale = if logarithmic { ", logarithmic" } else { "" };
    let title = format!(
        "{} – ratio to {reference}, {}{scale}",
        measure.title,
        measure.better.word()
    );
    label(out, 12.0, *y + 14.0, "font-weight=\"bold\"", &title);
    *y += 24.0;
    let top = *y;
    for (row, ratio) in &bars {
        let colour = match &*row.id {
            id if Some(id) == group.reference.as_deref() => "#999",
            id if id.starts_with("ours") || id.starts_with("mixed") => "#37a",
            _ => "#c96",
        };
        let middle = *y + LINE / 2.0;
        label(
            out,
            LEFT - 8.0,
            middle + 4.0,
            "text-anchor=\"end\"",
            &row.title,
        );
        let _ = writeln!(
            out,
            "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>",
            *y + 3.0,
            length(ratio.median),
            LINE - 6.0
        );
        line(
            out,
            [LEFT + length(ratio.least), middle],
            [LEFT + length(ratio.most), middle],
            "#222",
        );
        let end = LEFT + length(ratio.most) + 6.0;
        label(out, end, middle + 4.0, "", &figure(ratio.median));
        *y += LINE;
    }
    let one = LEFT + length(1.0);
    line(out, [one, top], [one, *y], "#999");
    *y += 18.0;
}

fn line(out: &mut String, from: [f64; 2], to: [f64; 2], colour: &str) {
    let ([x1, y1], [x2, y2]) = (from, to);
    let _ = writeln!(
        out,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

fn label(out: &mut String, x: f64, y: f64, style: &str, text: &str) {
    let text = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{text}</text>");
}
