//! The run: rounds, turns and what goes wrong in them.
//!
//! Theory of operation. A round visits every row of every group. The next round starts with the
//! next row, so that no contender is always the first, or always behind the same other. A failure
//! is printed at once and kept, and the run goes on. Only a signal ends the run early, and then
//! what has been measured is reported.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::lab::Lab;
use crate::process::check_interrupted;
use crate::results::{Failure, Group, Results};
use crate::{
    Result, costs, crowd, idle, labs, links, machines, netem, stuck, switches, tell, uplink,
};

/// Keys of measures and their values.
pub(crate) type Values = Vec<(String, f64)>;

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    /// For each measurement.
    pub(crate) seconds: u64,
    pub(crate) quick: bool,
    /// Parts of names; empty is everything.
    pub(crate) only: Vec<String>,
}

impl Plan {
    pub(crate) fn millis(&self) -> u64 {
        // A second is long for what reaches its pace at once.
        if self.quick { 500 } else { self.seconds * 1000 }
    }

    /// Whether something of this name is to be run.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }
}

/// Running a plan.
#[derive(Debug)]
pub(crate) struct Bench<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) plan: &'a Plan,
    pub(crate) results: Results,
    round: u32,
    start: Instant,
}

/// How a group is measured in a round.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Visit {
    /// One row after the other, with all probes.
    Rows(fn(&mut Bench<'_>, &str, &[String])),
    /// One probe after the other, with all rows.
    Probes(fn(&mut Bench<'_>, &str, &[&str])),
}

/// All groups, with what is run for each row, and how.
pub(crate) fn groups(lab: &Lab, plan: &Plan) -> Vec<(Group, Vec<String>, Visit)> {
    vec![
        (
            links::group(lab),
            links::probes(plan),
            Visit::Rows(links::visit),
        ),
        (
            switches::group(lab, plan),
            switches::probes(plan),
            Visit::Rows(switches::visit),
        ),
        (
            stuck::group(lab),
            stuck::probes(),
            Visit::Rows(stuck::visit),
        ),
        (
            costs::startup_group(lab),
            costs::startup_probes(),
            Visit::Probes(costs::visit_startup),
        ),
        (
            costs::memory_group(lab),
            costs::memory_probes(),
            Visit::Rows(costs::visit_memory),
        ),
        (
            crowd::group(lab),
            crowd::probes(),
            Visit::Rows(crowd::visit),
        ),
        (idle::group(lab), idle::probes(), Visit::Rows(idle::visit)),
        (labs::group(lab), labs::probes(), Visit::Rows(labs::visit)),
        (
            machines::group(lab),
            machines::probes(),
            Visit::Rows(machines::visit),
        ),
        (
            netem::group(lab),
            netem::probes(),
            Visit::Rows(netem::visit),
        ),
        (
            uplink::group(lab),
            uplink::probes(plan),
            Visit::Rows(uplink::visit),
        ),
        (
            uplink::start_group(lab),
            uplink::start_probes(),
            Visit::Probes(uplink::visit_start),
        ),
    ]
}

/// Runs a plan with the programs of each lab, by turns: with several labs what is ours alone.
pub(crate) fn run<const LABS: usize>(labs: [&Lab; LABS], plan: &Plan) -> [Results; LABS] {
    let mut benches = labs.map(|lab| Bench {
        lab,
        plan,
        results: Results::new(
            groups(lab, plan)
                .into_iter()
                .map(|(group, ..)| group)
                .collect(),
        ),
        round: 0,
        start: Instant::now(),
    });
    let mut order: Vec<usize> = (0..LABS).collect();
    for round in 1..=plan.rounds {
        for bench in &mut benches {
            bench.round = round;
        }
        for (group, probes, visit) in &groups(labs[0], plan) {
            let turn = round as usize - 1;
            let count = group.rows.len();
            let rows = (0..count).map(|at| &group.rows[(at + turn) % count]);
            let rows: Vec<&str> = rows
                .filter(|row| LABS == 1 || row.is_ours())
                .map(|row| row.id)
                .filter(|row| benches.iter().all(|bench| bench.results.has(group.id, row)))
                .collect();
            let wants = |row: &str, probe: &str| plan.wants(&format!("{}/{row}/{probe}", group.id));
            let mut turns = |visit: &dyn Fn(&mut Bench<'_>)| {
                for &at in &order {
                    if check_interrupted().is_ok() {
                        visit(&mut benches[at]);
                    }
                }
                // Nor is one lab always the first.
                order.reverse();
            };
            match visit {
                Visit::Rows(visit) => {
                    for row in rows {
                        let wanted = probes.iter().filter(|probe| wants(row, probe));
                        let wanted: Vec<String> = wanted.cloned().collect();
                        if !wanted.is_empty() {
                            turns(&|bench| visit(bench, row, &wanted));
                        }
                    }
                }
                Visit::Probes(visit) => {
                    for probe in probes {
                        let wanted = rows.iter().filter(|row| wants(row, probe));
                        let wanted: Vec<&str> = wanted.copied().collect();
                        if !wanted.is_empty() {
                            turns(&|bench| visit(bench, probe, &wanted));
                        }
                    }
                }
            }
        }
    }
    benches.map(|bench| bench.results)
}

impl Bench<'_> {
    /// Prepares something for measurements; `None` if that fails.
    pub(crate) fn set_up<T>(
        &mut self,
        group: &str,
        row: &str,
        set_up: impl FnOnce() -> Result<T>,
    ) -> Option<T> {
        check_interrupted().ok()?;
        guarded(set_up)
            .map_err(|error| self.fail(format!("{group}/{row}"), error.to_string()))
            .ok()
    }

    /// Measures something.
    pub(crate) fn measure(
        &mut self,
        group: &str,
        row: &str,
        probe: &str,
        measure: impl FnOnce() -> Result<Values>,
    ) {
        if check_interrupted().is_ok() {
            self.announce(&format!("{group}/{row}/{probe}"));
            self.record(group, row, probe, guarded(measure));
        }
    }

    /// Prints what is going to be measured.
    pub(crate) fn announce(&self, name: &str) {
        tell(&format!(
            "{:>5} s  round {} of {}  {name}",
            self.start.elapsed().as_secs(),
            self.round,
            self.plan.rounds
        ));
    }

    /// Keeps what was measured.
    pub(crate) fn record(&mut self, group: &str, row: &str, probe: &str, found: Result<Values>) {
        match found {
            Ok(values) => {
                for (key, value) in values {
                    self.results.add(group, row, &key, self.round, value);
                }
            }
            Err(error) => self.fail(format!("{group}/{row}/{probe}"), error.to_string()),
        }
    }

    /// Keeps what went wrong, unless that is the end of the run.
    fn fail(&mut self, what: String, why: String) {
        if check_interrupted().is_err() {
            return;
        }
        tell(&format!("FAILED: {what}: {why}"));
        let round = self.round;
        self.results.failures.push(Failure { what, round, why });
    }
}

/// Makes a panic of the kit, which has printed its reason, an error.
fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("it panicked".into()))
}
