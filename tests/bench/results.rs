//! What was measured, and what follows from it.
//!
//! Theory of operation. Results come in groups (links, switches, …). A group has rows, the
//! contenders, and measures, its columns. A sample belongs to a row, a measure and a round. Two
//! values compare within a round, where both were measured within minutes of each other: the ratio
//! of two rows is the median of the ratios of the rounds that have both. A row that cannot be
//! measured on this machine says why, and what fails in a round is kept as a failure beside the
//! samples.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::figures::{Bar, Cell, Figures, Line, Table};

/// Which way a measure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    More,
    Less,
}

impl Better {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::More => "more is better",
            Self::Less => "less is better",
        }
    }
}

/// A column.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measure {
    pub(crate) key: String,
    pub(crate) title: String,
    pub(crate) unit: Cow<'static, str>,
    pub(crate) better: Better,
    /// Whether ratios mean something: not for counts that should be 0, nor for shares.
    pub(crate) ratios: bool,
}

impl Measure {
    pub(crate) fn new(
        key: impl Into<String>,
        title: impl Into<String>,
        unit: &'static str,
        better: Better,
    ) -> Self {
        Self {
            key: key.into(),
            title: title.into(),
            unit: unit.into(),
            better,
            ratios: true,
        }
    }

    /// A measure that is not compared.
    pub(crate) fn absolute(self) -> Self {
        Self {
            ratios: false,
            ..self
        }
    }
}

/// A contender.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: &'static str,
    pub(crate) title: String,
    /// The row to compare with: the same done with others' programs.
    pub(crate) rival: Option<&'static str>,
    /// Why it cannot be measured here.
    pub(crate) missing: Option<String>,
}

impl Row {
    /// Whether a program of ours takes part.
    pub(crate) fn is_ours(&self) -> bool {
        self.id.contains("ours") || self.id.starts_with("mixed")
    }
}

/// A table.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// The row that ratios refer to, and what it is.
    pub(crate) reference: Option<(&'static str, &'static str)>,
    /// Whose the rivals of rows are.
    pub(crate) rivals: &'static str,
    pub(crate) rows: Vec<Row>,
    pub(crate) measures: Vec<Measure>,
}

/// Something that was to be measured and was not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) what: String,
    pub(crate) round: u32,
    pub(crate) why: String,
}

/// The middle of some values and the extremes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Summary {
    /// `None` if there are no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let upper = values[values.len() / 2];
        let lower = values[(values.len() - 1) / 2];
        let median = f64::midpoint(lower, upper);
        Some(Self {
            median,
            least,
            most,
        })
    }
}

type Rounds = BTreeMap<u32, f64>;

/// Everything measured.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) groups: Vec<Group>,
    samples: BTreeMap<(String, String, String), Rounds>,
    pub(crate) failures: Vec<Failure>,
}

impl Results {
    pub(crate) fn new(groups: Vec<Group>) -> Self {
        Self {
            groups,
            ..Self::default()
        }
    }

    pub(crate) fn add(&mut self, group: &str, row: &str, measure: &str, round: u32, value: f64) {
        let key = (group.to_owned(), row.to_owned(), measure.to_owned());
        self.samples.entry(key).or_default().insert(round, value);
    }

    /// Whether there is a row that can be measured.
    pub(crate) fn has(&self, group: &str, row: &str) -> bool {
        let mut groups = self.groups.iter();
        let group = groups.find(|its| its.id == group);
        let row = group.and_then(|group| group.rows.iter().find(|its| its.id == row));
        row.is_some_and(|row| row.missing.is_none())
    }

    fn rounds(&self, group: &str, row: &str, measure: &str) -> Option<&Rounds> {
        let key = (group.to_owned(), row.to_owned(), measure.to_owned());
        self.samples.get(&key)
    }

    pub(crate) fn summary(&self, group: &str, row: &str, measure: &str) -> Option<Summary> {
        Summary::of(self.rounds(group, row, measure)?.values().copied())
    }

    /// How many times as much as another row's a row's measure is.
    pub(crate) fn ratio(
        &self,
        group: &str,
        measure: &str,
        row: &str,
        other: &str,
    ) -> Option<Summary> {
        let ours = self.rounds(group, row, measure)?;
        ratios(ours, self.rounds(group, other, measure)?)
    }

    /// How many times as much as in another run a row's measure is; both runs took turns.
    pub(crate) fn ratio_to(
        &self,
        other: &Self,
        group: &str,
        row: &str,
        measure: &str,
    ) -> Option<Summary> {
        let ours = self.rounds(group, row, measure)?;
        ratios(ours, other.rounds(group, row, measure)?)
    }

    /// Everything, for the results file and the pages drawn from it.
    pub(crate) fn figures(&self, machine: Value, bars: Vec<Bar>) -> Figures {
        let table = |group: &Group| Table {
            id: group.id.to_owned(),
            title: group.title.to_owned(),
            reference: group.reference.map(|(row, _)| row.to_owned()),
            measures: group.measures.clone(),
            rows: group.rows.iter().map(|row| self.line(group, row)).collect(),
        };
        Figures {
            machine,
            groups: self.groups.iter().map(table).collect(),
            bars,
            failures: self.failures.clone(),
        }
    }

    fn line(&self, group: &Group, row: &Row) -> Line {
        let cell = |measure: &Measure| {
            let rounds = self.rounds(group.id, row.id, &measure.key)?;
            let to = |other: Option<&str>| {
                let other = other.filter(|_| measure.ratios)?;
                self.ratio(group.id, &measure.key, row.id, other)
            };
            let cell = Cell {
                value: Summary::of(rounds.values().copied()),
                rounds: rounds.clone(),
                to_reference: to(group.reference.map(|(row, _)| row)),
                to_rival: to(row.rival),
            };
            Some((measure.key.clone(), cell))
        };
        Line {
            id: row.id.to_owned(),
            title: row.title.clone(),
            missing: row.missing.clone(),
            cells: group.measures.iter().filter_map(cell).collect(),
        }
    }
}

/// Ratios within rounds.
fn ratios(ours: &Rounds, theirs: &Rounds) -> Option<Summary> {
    let ratios = ours.iter().filter_map(|(round, value)| {
        let other = theirs.get(round)?;
        (*other > 0.0).then(|| value / other)
    });
    Summary::of(ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!(Summary::of([]).is_none());
        assert_eq!(Summary::of([3.0, 1.0, 2.0]).unwrap().median, 2.0);
        let even = Summary::of([4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.least, even.median, even.most), (1.0, 2.5, 4.0));
    }

    #[test]
    fn ratios_are_formed_within_rounds() {
        let mut results = Results::default();
        // The machine was twice as fast in the second round, and the other failed in the third.
        for (round, ours, theirs) in [(1, 4.0, Some(2.0)), (2, 8.0, Some(4.0)), (3, 5.0, None)] {
            results.add("g", "ours", "m", round, ours);
            if let Some(theirs) = theirs {
                results.add("g", "theirs", "m", round, theirs);
            }
        }
        let ratio = results.ratio("g", "m", "ours", "theirs").unwrap();
        assert_eq!((ratio.least, ratio.median, ratio.most), (2.0, 2.0, 2.0));
        assert!(results.ratio("g", "m", "ours", "nobody").is_none());
    }
}
