//! Expressions in the strings of a lab file: `{n}`, `{n+1}`, `{(n-1)/2}`.
//!
//! # Theory of operation
//!
//! `n` is the number of what the string is for: of a node in its group, or of a link or switch that
//! is made several times. Between the braces stand `n`, whole numbers, `+ - * / %` and parentheses,
//! and no blanks. `*`, `/` and `%` go first. Division rounds down, and `%` is what remains.
//!
//! The strings are also commands, in which braces have other meanings. So only braces with `n` and
//! nothing but the characters above between them are an expression, and `${n}` is the shell's.

use std::borrow::Cow;

use super::place::{Fault, Part};
use crate::error::Error;

/// The longest expression, in bytes. It limits how deep parentheses nest.
const LONGEST: usize = 64;

/// The text with its expressions replaced by their values. `n` is `None` where nothing is numbered.
///
/// # Errors
/// There is an expression that is malformed, has no value, or has no `n`.
pub(super) fn fill(part: Part<'_>, n: Option<i64>) -> Result<Cow<'_, str>, Fault> {
    let mut filled = String::new();
    let mut done = 0;
    while let Some((start, end)) = next_expression(part.text, done) {
        let expression = part.sub(start, end);
        let value = evaluate(expression.text, n).map_err(|error| expression.fault(error))?;
        filled.push_str(&part.text[done..start]);
        filled.push_str(&value.to_string());
        done = end;
    }
    Ok(match done {
        0 => Cow::Borrowed(part.text),
        _ => Cow::Owned(filled + &part.text[done..]),
    })
}

/// Where the first expression after byte `from` starts and ends, with its braces.
fn next_expression(text: &str, from: usize) -> Option<(usize, usize)> {
    let is_allowed = |c: char| c.is_ascii_digit() || "n+-*/%()".contains(c);
    let opening = text[from..].match_indices('{').map(|(at, _)| from + at);
    opening
        .filter(|start| !text[..*start].ends_with('$'))
        .find_map(|start| {
            let inside = &text[start + 1..];
            let inside = &inside[..inside.find(|c| !is_allowed(c))?];
            let end = start + 1 + inside.len();
            (text[end..].starts_with('}') && inside.contains('n')).then_some((start, end + 1))
        })
}

/// The value of an expression in braces.
fn evaluate(expression: &str, n: Option<i64>) -> Result<i64, Error> {
    let Some(n) = n else {
        let message = format!("{expression} has no value: nothing is numbered here");
        return Err(Error::usage(message)
            .hint("give count to the node, link or switch, or name nodes with *"));
    };
    let bad = |why: &str| {
        Error::usage(format!("{expression} {why}"))
            .hint("write {n+1}, {n*2} or {(n-1)/2}; to mean the text itself, { n } with blanks")
    };
    if expression.len() > LONGEST {
        return Err(bad("is too long for an expression"));
    }
    let mut rest = &expression[1..expression.len() - 1];
    match sum(&mut rest, n) {
        Ok(value) if rest.is_empty() => Ok(value),
        Ok(_) | Err(Trouble::Malformed) => Err(bad("is no expression")),
        Err(Trouble::NoValue) => Err(bad(&format!("has no value where n is {n}"))),
    }
}

/// Why an expression has no value.
enum Trouble {
    Malformed,
    /// A number is too large, or a division by zero.
    NoValue,
}

fn sum(rest: &mut &str, n: i64) -> Result<i64, Trouble> {
    let mut value = product(rest, n)?;
    while let Some(operator) = next_of(rest, "+-") {
        let right = product(rest, n)?;
        value = match operator {
            '+' => value.checked_add(right),
            _ => value.checked_sub(right),
        }
        .ok_or(Trouble::NoValue)?;
    }
    Ok(value)
}

fn product(rest: &mut &str, n: i64) -> Result<i64, Trouble> {
    let mut value = atom(rest, n)?;
    while let Some(operator) = next_of(rest, "*/%") {
        let right = atom(rest, n)?;
        value = match operator {
            '*' => value.checked_mul(right),
            '/' => value.checked_div_euclid(right),
            _ => value.checked_rem_euclid(right),
        }
        .ok_or(Trouble::NoValue)?;
    }
    Ok(value)
}

fn atom(rest: &mut &str, n: i64) -> Result<i64, Trouble> {
    if next_of(rest, "n").is_some() {
        return Ok(n);
    }
    if next_of(rest, "(").is_some() {
        let value = sum(rest, n)?;
        return next_of(rest, ")").map(|_| value).ok_or(Trouble::Malformed);
    }
    let digits = rest.find(|c: char| !c.is_ascii_digit());
    let (number, after) = rest.split_at(digits.unwrap_or(rest.len()));
    *rest = after;
    match number.is_empty() {
        true => Err(Trouble::Malformed),
        false => number.parse().map_err(|_| Trouble::NoValue),
    }
}

/// Takes the next character if it is one of `these`.
fn next_of(rest: &mut &str, these: &str) -> Option<char> {
    let first = rest.chars().next().filter(|c| these.contains(*c))?;
    *rest = &rest[first.len_utf8()..];
    Some(first)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lab::file::place::{Faults, Placed};

    fn filled(text: &str, n: Option<i64>) -> Result<String, String> {
        #[derive(serde::Deserialize)]
        struct File {
            a: Placed<String>,
        }
        let written = format!("a = '{text}'");
        let file: File = toml::from_str(&written).unwrap();
        fill(file.a.part(), n)
            .map(Cow::into_owned)
            .map_err(|fault| {
                let faults = Faults::new(Path::new("x"), &written, vec![fault]);
                faults.to_string()
            })
    }

    #[test]
    fn expressions_are_replaced_by_their_values() {
        for (text, value) in [
            ("", ""),
            ("r1", "r1"),
            ("r{n}", "r7"),
            ("{n+1}.{n-1}", "8.6"),
            ("{2*n+1}{n*(n+1)/2}", "1528"),
            ("{(n-1)/2}", "3"),
            ("{n/4}.{n%4*64}", "1.192"),
            ("{3-n}", "-4"),
            ("{{n}}", "{7}"),
        ] {
            assert_eq!(filled(text, Some(7)).as_deref(), Ok(value), "{text}");
        }
    }

    #[test]
    fn other_braces_stay() {
        for text in [
            "{ n }",
            "${n}",
            "{}",
            "{1}",
            "{a,b}",
            "{name}",
            "{n",
            "n}",
            "{ echo n; }",
            "ptp{nul}",
            "{n é}",
        ] {
            assert_eq!(filled(text, None).as_deref(), Ok(text));
        }
    }

    #[test]
    fn what_has_no_value_is_refused_at_its_place() {
        for (text, n, words) in [
            ("r{n}", None, "x:1:7: {n} has no value: nothing is numbered"),
            ("ab{n+}", Some(1), "x:1:8: {n+} is no expression; write"),
            ("{nn}", Some(1), "{nn} is no expression"),
            ("{(n}", Some(1), "is no expression"),
            ("{n)}", Some(1), "is no expression"),
            ("{-n}", Some(1), "is no expression"),
            ("{1/(n-1)}", Some(1), "has no value where n is 1"),
            (
                "{n*9223372036854775807}",
                Some(2),
                "has no value where n is 2",
            ),
            (
                "{n+9223372036854775808}",
                Some(2),
                "has no value where n is 2",
            ),
        ] {
            let error = filled(text, n).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        let deep = format!("{{{}n{}}}", "(".repeat(9999), ")".repeat(9999));
        assert!(
            filled(&deep, Some(1))
                .unwrap_err()
                .contains("is too long for an expression")
        );
    }
}
