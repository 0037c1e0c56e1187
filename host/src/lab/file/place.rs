//! Places in a lab file, and what is wrong there.
//!
//! A [`Placed`] value knows the bytes of the file that it was read from. A [`Part`] is a piece of a
//! placed string: an address in `r1:eth0=10.0.0.1/24` has a place of its own. A [`Fault`] is an
//! error at such a place, and becomes a line and a column when the file has been read
//! ([`Faults`]).

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize};
use toml::Spanned;

use crate::error::{Error, ErrorKind};
use crate::output::up_to;

/// The most faults that are reported of a file: many have one cause.
const MAX_FAULTS: usize = 20;

/// A value of the file. As the key of a map it is ordered as in the file.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    pub value: T,
    span: Range<usize>,
}

impl<T> Placed<T> {
    /// What is wrong with the value.
    pub(super) fn fault(&self, error: Error) -> Fault {
        Fault {
            at: self.span.start,
            error,
        }
    }

    /// The text that the value is.
    pub(super) fn part_of<'a>(&self, text: &'a str) -> Part<'a> {
        // The text is as in the file if nothing was escaped: the quotes are two bytes more. A key
        // may have none.
        let quotes = self.span.len().checked_sub(text.len());
        Part {
            text,
            at: self.span.start + quotes.filter(|quotes| *quotes == 2).map_or(0, |_| 1),
            is_literal: matches!(quotes, Some(0 | 2)),
        }
    }
}

impl Placed<String> {
    /// All of the text.
    pub(super) fn part(&self) -> Part<'_> {
        self.part_of(&self.value)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Placed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(|spanned| Self {
            span: spanned.span(),
            value: spanned.into_inner(),
        })
    }
}

impl<T: JsonSchema> JsonSchema for Placed<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl<T> PartialEq for Placed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Placed<T> {}

impl<T> PartialOrd for Placed<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Placed<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.span.start.cmp(&other.span.start)
    }
}

/// A piece of a string of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    pub text: &'a str,
    at: usize,
    /// Whether the file has these very bytes. If not, `at` is where the string starts.
    is_literal: bool,
}

impl<'a> Part<'a> {
    /// What is wrong with this piece.
    pub(super) fn fault(&self, error: Error) -> Fault {
        Fault { at: self.at, error }
    }

    /// The piece from byte `start` to before byte `end`.
    pub(super) fn sub(&self, start: usize, end: usize) -> Self {
        Self {
            text: &self.text[start..end],
            at: self.at + if self.is_literal { start } else { 0 },
            is_literal: self.is_literal,
        }
    }

    /// The pieces before and after the first `separator`.
    pub(super) fn split_once(&self, separator: char) -> Option<(Self, Self)> {
        let at = self.text.find(separator)?;
        let after = at + separator.len_utf8();
        Some((self.sub(0, at), self.sub(after, self.text.len())))
    }

    /// The pieces between commas, without the blanks around them.
    pub(super) fn list(self) -> impl Iterator<Item = Self> {
        let mut start = 0;
        self.text.split(',').map(move |piece| {
            let trimmed = piece.trim_start();
            let from = start + piece.len() - trimmed.len();
            start += piece.len() + 1;
            self.sub(from, from + trimmed.trim_end().len())
        })
    }
}

/// An error at a byte of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    at: usize,
    error: Error,
}

impl Fault {
    /// An error at a byte of the file.
    pub(super) fn at(at: usize, error: Error) -> Self {
        Self { at, error }
    }
}

/// Why a lab file cannot be used. It displays as one line for each fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Faults {
    file: PathBuf,
    kind: ErrorKind,
    faults: Vec<Located>,
}

/// A fault, and where in the file it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Located {
    /// From 1; `None` if the file cannot be read.
    line: Option<usize>,
    /// In characters, from 1.
    column: Option<usize>,
    /// What is wrong, and why.
    message: String,
    /// What to do; may be empty.
    hint: String,
}

impl Faults {
    /// The faults, at least one, of a file's text.
    pub(super) fn new(file: &Path, text: &str, mut faults: Vec<Fault>) -> Self {
        faults.sort_by_key(|fault| fault.at);
        faults.dedup();
        let located = |Fault { at, error }: Fault| {
            let before = up_to(text, at);
            Located {
                line: Some(before.matches('\n').count() + 1),
                column: Some(before.chars().rev().take_while(|c| *c != '\n').count() + 1),
                message: error.message,
                hint: error.hint,
            }
        };
        Self {
            file: file.to_owned(),
            kind: ErrorKind::Usage,
            faults: faults.into_iter().take(MAX_FAULTS).map(located).collect(),
        }
    }

    /// The file cannot be read; `error` names it.
    pub(super) fn unreadable(file: &Path, error: Error) -> Self {
        Self {
            file: file.to_owned(),
            kind: error.kind,
            faults: vec![Located {
                line: None,
                column: None,
                message: error.message,
                hint: error.hint,
            }],
        }
    }

    /// Each fault in a line of its own.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> {
        self.faults.iter().map(|fault| {
            let place = match (fault.line, fault.column) {
                (Some(line), Some(column)) => format!("{}:{line}:{column}: ", self.file.display()),
                _ => String::new(),
            };
            let separator = if fault.hint.is_empty() { "" } else { "; " };
            format!("{place}{}{separator}{}", fault.message, fault.hint)
        })
    }

    pub(super) fn located(&self) -> &[Located] {
        &self.faults
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, line) in self.lines().enumerate() {
            write!(f, "{}{line}", if number > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

/// The first fault, and how many more there are.
impl From<Faults> for Error {
    fn from(faults: Faults) -> Self {
        let first = faults.lines().next().unwrap_or_default();
        let error = Self::new(faults.kind, first);
        match faults.faults.len() {
            0 | 1 => error,
            number => error.hint(format!(
                "{} more: vdectl lab validate {}",
                number - 1,
                faults.file.display()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        a: Placed<String>,
    }

    fn faults(text: &str, error: impl Fn(Part<'_>) -> Vec<Fault>) -> String {
        let file: File = toml::from_str(text).unwrap();
        Faults::new(Path::new("x.toml"), text, error(file.a.part())).to_string()
    }

    #[test]
    fn a_piece_of_a_string_has_its_place() {
        let second = |part: Part<'_>| {
            let (_, after) = part.split_once('=').unwrap();
            let last = after.list().last().unwrap();
            vec![last.fault(Error::usage(format!("bad '{}'", last.text)).hint("mend it"))]
        };
        for (text, expected) in [
            ("a = 'x=ä,  z '", "x.toml:1:12: bad 'z'; mend it"),
            ("\n  a = \"x=z\"", "x.toml:2:10: bad 'z'; mend it"),
            // The place of a string that is not as in the file.
            ("a = \"\\u0078=z\"", "x.toml:1:5: bad 'z'; mend it"),
            ("a = '''\nx=z'''", "x.toml:1:5: bad 'z'; mend it"),
        ] {
            assert_eq!(faults(text, second), expected);
        }
    }

    #[test]
    fn faults_come_in_the_order_of_the_file() {
        let all = |part: Part<'_>| {
            let fault = |piece: Part<'_>| piece.fault(Error::usage(piece.text));
            part.list().map(fault).rev_all()
        };
        let text = "a = 'x,y,z'";
        assert_eq!(
            faults(text, all),
            "x.toml:1:6: x\nx.toml:1:8: y\nx.toml:1:10: z"
        );
        let file: File = toml::from_str(text).unwrap();
        let error = Faults::new(Path::new("x.toml"), text, all(file.a.part()));
        assert_eq!(
            Error::from(error).to_string(),
            "x.toml:1:6: x; 2 more: vdectl lab validate x.toml"
        );
    }

    trait RevAll: Iterator + Sized {
        fn rev_all(self) -> Vec<Self::Item> {
            let mut all: Vec<_> = self.collect();
            all.reverse();
            all
        }
    }

    impl<I: Iterator> RevAll for I {}
}
