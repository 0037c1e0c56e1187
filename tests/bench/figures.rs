//! The results file: everything that was measured, as it is written and read again.
//!
//! Theory of operation. The pages are drawn from these figures alone ([`pages`](crate::pages)), so
//! a results file gives the same pages as the run that wrote it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::results::{Failure, Measure, Summary};

/// A value in a row.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Cell {
    /// `None` if the file was made of ratios alone.
    pub(crate) value: Option<Summary>,
    pub(crate) rounds: BTreeMap<u32, f64>,
    /// How many times as much as the reference's it is.
    pub(crate) to_reference: Option<Summary>,
    /// How many times as much as that of the same done with Debian's programs.
    pub(crate) to_rival: Option<Summary>,
}

/// A contender and its values, by the measures' keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) id: String,
    pub(crate) title: String,
    /// Why it was not measured.
    pub(crate) missing: Option<String>,
    pub(crate) cells: BTreeMap<String, Cell>,
}

/// A group of measurements.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) id: String,
    pub(crate) title: String,
    /// The row that ratios refer to.
    pub(crate) reference: Option<String>,
    pub(crate) measures: Vec<Measure>,
    pub(crate) rows: Vec<Line>,
}

/// Something that the product is to reach.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Bar {
    pub(crate) what: String,
    pub(crate) limit: String,
    pub(crate) found: Option<f64>,
    pub(crate) is_met: Option<bool>,
}

/// The results file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) machine: Value,
    pub(crate) groups: Vec<Table>,
    pub(crate) bars: Vec<Bar>,
    pub(crate) failures: Vec<Failure>,
}

impl Figures {
    /// Reads a results file.
    pub(crate) fn read(path: &Path) -> crate::Result<Self> {
        let text = fs::read_to_string(path);
        let text = text.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let figures = serde_json::from_str(&text);
        Ok(figures.map_err(|error| format!("{} is no results file: {error}", path.display()))?)
    }

    /// The file's text, a line for each row.
    pub(crate) fn to_json(&self) -> crate::Result<String> {
        let json = serde_json::to_string(self)?;
        Ok(json.replace("{\"id\"", "\n{\"id\"") + "\n")
    }

    /// Adds another run. If its measurements took as long as these, it fills what these lack, else
    /// its tables follow and say how long they took.
    pub(crate) fn append(&mut self, other: Self) {
        let seconds = &other.machine["seconds"];
        let is_alike = *seconds == self.machine["seconds"];
        let note = self.machine["note"].as_str().unwrap_or_default();
        let note = format!("{note}\nAdded: {}.", other.origin().join(":\n"));
        self.machine["note"] = note.trim_start().into();
        let is_measured = |table: &Table| table.rows.iter().any(|row| !row.cells.is_empty());
        for mut table in other.groups.into_iter().filter(is_measured) {
            let mut tables = self.groups.iter_mut();
            match tables.find(|mine| is_alike && mine.id == table.id) {
                Some(mine) => mine.fill(table),
                None => {
                    if !is_alike {
                        table.title = format!("{}, {seconds} s each", table.title);
                    }
                    self.groups.push(table);
                }
            }
        }
        for bar in other.bars.into_iter().filter(|bar| bar.found.is_some()) {
            match self.bars.iter_mut().find(|mine| mine.what == bar.what) {
                Some(mine) if mine.found.is_some() => {}
                Some(mine) => *mine = bar,
                None => self.bars.push(bar),
            }
        }
        self.failures.extend(other.failures);
    }

    /// The first table of a group.
    pub(crate) fn table(&self, id: &str) -> Option<&Table> {
        self.groups.iter().find(|table| table.id == id)
    }

    /// What the figures depend on, in a line or two.
    pub(crate) fn origin(&self) -> [String; 2] {
        let machine = &self.machine;
        let word = |key: &str| machine[key].as_str().unwrap_or("unknown");
        [
            format!(
                "{}, Linux {}, {} processors",
                word("date"),
                word("kernel"),
                machine["processors"]
            ),
            format!(
                "`{}`, {} rounds of {} s",
                word("command"),
                machine["rounds"],
                machine["seconds"]
            ),
        ]
    }
}

impl Table {
    /// Takes what it lacks from a table of the same group.
    fn fill(&mut self, other: Self) {
        for measure in other.measures {
            if !self.measures.iter().any(|mine| mine.key == measure.key) {
                self.measures.push(measure);
            }
        }
        for row in other.rows {
            match self.rows.iter_mut().find(|mine| mine.id == row.id) {
                Some(mine) => {
                    for (key, cell) in row.cells {
                        mine.cells.entry(key).or_insert(cell);
                    }
                }
                None => self.rows.push(row),
            }
        }
    }

    pub(crate) fn row(&self, id: &str) -> Option<&Line> {
        self.rows.iter().find(|row| row.id == id)
    }
}
