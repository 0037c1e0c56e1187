//! The group `idle`: the processor time that links take on which nothing happens.
//!
//! Theory of operation. Two namespaces share a cable, and eight a switch. Some seconds later the
//! benchmark reads twice how long each of their processes has been on a processor
//! (`/proc/PID/task/TID/schedstat`, in nanoseconds). The commands inside do not count. What the
//! kernel does by itself for new interfaces, IPv6 above all, does.

use std::fs;
use std::time::Duration;

use crate::Result;
use crate::bench::{Bench, Values};
use crate::lab::{Lab, Maker};
use crate::network::{Contender, Medium};
use crate::process::pause;
use crate::results::{Better, Group, Measure, Row};
use vdens_tests::{family, name};

/// The group's name.
pub(crate) const ID: &str = "idle";
/// What is measured: keys and titles.
pub(crate) const MEASURES: &[(&str, &str)] = &[
    ("cable", "Each of 2 vdens on a ptp://"),
    ("port", "Each of 8 vdens on a switch"),
    ("switch", "A switch with 8 ports"),
];
/// The ports of the switch.
const PORTS: usize = 8;
/// What times are for, in seconds.
const SPAN: u64 = 10;
/// How long links that have just been made are left alone.
const SETTLING: Duration = Duration::from_secs(3);

/// The cables, and the switches, by the same row.
const CONTENDERS: &[[Contender; 2]] = &[
    [
        Contender::ours("ours", "ours", Medium::Ptp),
        Contender::ours("ours", "ours", Medium::Plug(Maker::Ours)),
    ],
    [
        Contender::ours("ours-no-panel", "ours, --no-panel", Medium::Ptp).without_panel(),
        Contender::ours(
            "ours-no-panel",
            "ours, --no-panel",
            Medium::Plug(Maker::Ours),
        )
        .without_panel(),
    ],
    [
        Contender::debian("debian", "Debian's", Medium::Ptp),
        Contender::debian("debian", "Debian's", Medium::VdeSwitch),
    ],
];

/// The group's rows and measures.
pub(crate) fn group(lab: &Lab) -> Group {
    let rows = CONTENDERS.iter().map(|[cable, switch]| Row {
        id: cable.id,
        title: cable.title.to_owned(),
        rival: None,
        missing: cable.missing(lab).or_else(|| switch.missing(lab)),
    });
    let measure = |(key, title): &(&'static str, &'static str)| {
        Measure::new(*key, *title, "s in 10 s", Better::Less).absolute()
    };
    Group {
        id: ID,
        title: "Processor time of idle links",
        reference: None,
        rivals: "Debian's",
        rows: rows.collect(),
        measures: MEASURES.iter().map(measure).collect(),
    }
}

/// The names of what is run.
pub(crate) fn probes() -> Vec<String> {
    vec!["all".to_owned()]
}

/// Measures a row.
pub(crate) fn visit(bench: &mut Bench<'_>, row: &str, probes: &[String]) {
    let Some([cable, switch]) = CONTENDERS.iter().find(|[cable, _]| cable.id == row) else {
        return;
    };
    let (lab, quick) = (bench.lab, bench.plan.quick);
    for probe in probes {
        bench.measure(ID, row, probe, || measure(lab, cable, switch, quick));
    }
}

fn measure(lab: &Lab, cable: &Contender, switch: &Contender, quick: bool) -> Result<Values> {
    let (cable, switch) = (cable.wire(lab, 2)?, switch.wire(lab, PORTS)?);
    pause(SETTLING)?;
    let ends: Vec<i32> = cable.members().collect();
    let ports: Vec<i32> = switch.members().collect();
    let switches: Vec<i32> = switch.between().collect();
    let used = || -> Result<[f64; 3]> { Ok([busy(&ends)?, busy(&ports)?, busy(&switches)?]) };
    let before = used()?;
    let span = if quick { SPAN / 5 } else { SPAN };
    pause(Duration::from_secs(span))?;
    let after = used()?;
    let counts = [ends.len(), ports.len(), 1];
    let values = MEASURES.iter().enumerate().map(|(number, (key, _))| {
        let each = (after[number] - before[number]) / counts[number] as f64;
        ((*key).to_owned(), each * SPAN as f64 / span as f64)
    });
    Ok(values.collect())
}

/// How long some processes and all below them but the commands have been on a processor, in
/// seconds.
pub(crate) fn busy(ids: &[i32]) -> Result<f64> {
    let all = ids.iter().flat_map(|id| family(*id));
    let mut nanoseconds = 0.0;
    for id in all.filter(|id| name(*id).as_deref() != Some("sleep")) {
        for task in fs::read_dir(format!("/proc/{id}/task"))? {
            let path = task?.path().join("schedstat");
            let text = fs::read_to_string(&path)?;
            let first = text.split_whitespace().next();
            let time = first.and_then(|word| word.parse::<f64>().ok());
            nanoseconds += time.ok_or_else(|| format!("{}: {text}", path.display()))?;
        }
    }
    Ok(nanoseconds / 1e9)
}
