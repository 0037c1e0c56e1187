//! The impairments of a link as people write them: keys and values.
//!
//! A key holds for both directions, with `tx.` in front for frames that the interface sends, with
//! `rx.` for those that it receives. The key of one direction wins.

use std::collections::BTreeMap;
use std::fmt;

use vdens_plugin_kit::vnl::{self, Spec};
use vdens_plugin_kit::{Error, Result};

/// All keys, each but the first for both directions and for one.
macro_rules! names {
    ($($key:literal)*) => {
        &["seed", $($key, concat!("tx.", $key), concat!("rx.", $key)),*]
    };
}

/// All keys.
pub const NAMES: &[&str] = names!(
    "delay" "jitter" "correlation" "distribution" "ordered" "loss" "gemodel" "duplicate" "reorder"
    "gap" "corrupt" "rate" "burst" "limit"
);

/// What is set, which need not make sense: [`Settings::of`](crate::Settings::of) tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys(BTreeMap<&'static str, String>);

impl Keys {
    /// Reads keys as a VNL has them, `delay=50ms/tx.loss=1%`.
    ///
    /// # Errors
    /// A key is unknown, or the text is malformed.
    pub fn parse(text: &str) -> Result<Self> {
        let spec = spec(text)?;
        spec.no_nested()?;
        Ok(Self::from_spec(&spec))
    }

    /// Reads a VNL's argument: keys, and in braces the VNL of the network.
    ///
    /// # Errors
    /// As for [`Keys::parse`], or no network is named.
    pub fn with_network(argument: &str) -> Result<(Self, String)> {
        let spec = spec(argument)?;
        match spec.nested().filter(|vnl| !vnl.is_empty()) {
            Some(network) => Ok((Self::from_spec(&spec), network.to_owned())),
            None => Err(Error::usage("netem:// names no network to impair")
                .hint("write netem://delay=50ms{VNL}, in quotes in a shell")),
        }
    }

    fn from_spec(spec: &Spec) -> Self {
        let set = |name: &&'static str| Some((*name, spec.get(name)?.to_owned()));
        Self(NAMES.iter().filter_map(set).collect())
    }

    /// Changes one key: `KEY=VALUE` sets it, `KEY=` removes it, and `KEY` sets a flag. A key for
    /// both directions takes the place of those for one.
    ///
    /// # Errors
    /// There is no such key, or the value has a NUL byte, which no VNL can have.
    pub fn change(&mut self, word: &str) -> Result<()> {
        let (name, value) = match word.split_once('=') {
            Some((name, "")) => (name, None),
            Some((name, value)) => (name, Some(value)),
            None => (word, Some("")),
        };
        let Some(&key) = NAMES.iter().find(|known| **known == name) else {
            let message = format!("unknown key '{}'", name.escape_debug());
            return Err(Error::usage(message).hint(format!("valid keys: {}", NAMES.join(", "))));
        };
        if word.contains('\0') {
            return Err(Error::usage(format!(
                "the value of {key} has a NUL byte in it"
            )));
        }
        self.0
            .retain(|set, _| *set != key && direction(set) != Some(key));
        self.0.extend(value.map(|value| (key, value.to_owned())));
        Ok(())
    }

    /// The changes, as [`Keys::change`] reads them, that make these keys the new ones. A seed that
    /// stays is none, because setting it starts chance again.
    pub fn changes_to(&self, new: &Self) -> Vec<String> {
        let removed = self.iter().filter(|(key, _)| new.get(key).is_none());
        let is_set = |(key, value): &(&str, &str)| *key != "seed" || self.get(key) != Some(value);
        let set = new.iter().filter(is_set).map(|(key, value)| match value {
            "" => key.to_owned(),
            value => format!("{key}={value}"),
        });
        let removed = removed.map(|(key, _)| format!("{key}="));
        removed.chain(set).collect()
    }

    /// The keys as the other end of the link has them: what one end sends, the other receives.
    #[must_use]
    pub fn swapped(&self) -> Self {
        let mut swapped = Self::default();
        // None of the words is unknown or has a NUL byte, because they are keys that are set.
        for word in Self::default().changes_to(self) {
            let _ = swapped.change(&swapped_word(&word));
        }
        swapped
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The keys that are set, with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let set = |name: &&'static str| Some((*name, self.get(name)?));
        NAMES.iter().filter_map(set)
    }
}

/// A change, as [`Keys::change`] reads it, as the other end of the link has it.
pub fn swapped_word(word: &str) -> String {
    match word.split_at_checked(3) {
        Some(("tx.", rest)) => format!("rx.{rest}"),
        Some(("rx.", rest)) => format!("tx.{rest}"),
        _ => word.to_owned(),
    }
}

/// Of a key for one direction, the key for both.
fn direction(key: &str) -> Option<&str> {
    key.strip_prefix("tx.").or(key.strip_prefix("rx."))
}

impl fmt::Display for Keys {
    /// As [`Keys::parse`] reads them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (key, value)) in self.iter().enumerate() {
            let separator = if number > 0 { "/" } else { "" };
            write!(f, "{separator}{key}")?;
            match value.is_empty() {
                true => {}
                false if is_plain(value) => write!(f, "={value}")?,
                false => write!(f, "='{}'", value.replace('\'', r"'\''"))?,
            }
        }
        Ok(())
    }
}

/// Whether a value needs no quotes.
fn is_plain(value: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".,%-+_".contains(c);
    // A bare percent sign ends a number.
    let ends_number = |(at, _)| matches!(value[at + 1..].chars().next(), None | Some(','));
    value.chars().all(is_plain) && value.match_indices('%').all(ends_number)
}

fn spec(argument: &str) -> Result<Spec> {
    const KEYS: vnl::Keys = vnl::Keys::new(NAMES);
    // There is no address before the first key.
    Spec::address_grammar(&format!("/{}", escape_percent(argument)), &KEYS)
}

/// Lets a bare `%` that ends a number stand for itself; elsewhere it is the start of `%XX`.
fn escape_percent(argument: &str) -> String {
    let mut escaped = String::with_capacity(argument.len());
    let mut quote = None;
    let mut chars = argument.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, '{') => return escaped + &argument[at..],
            (None, '\'' | '"') => quote = Some(c),
            (Some(end), _) if c == end => quote = None,
            _ => {}
        }
        escaped.push(c);
        match (quote, c, chars.peek()) {
            (None, '\\', Some(_)) => escaped.extend(chars.next().map(|(_, c)| c)),
            (None, '%', None | Some((_, ',' | '/' | '{'))) => escaped.push_str("25"),
            _ => {}
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_shown_as_they_are_read() {
        for (text, shown) in [
            ("", ""),
            (
                "loss=1%,25%/delay=50ms/seed=7",
                "seed=7/delay=50ms/loss=1%,25%",
            ),
            (
                "delay=1ms/jitter=1ms/ordered/distribution='/usr/lib/tc/pareto.dist'/loss=1%",
                "delay=1ms/jitter=1ms/distribution='/usr/lib/tc/pareto.dist'/ordered/loss=1%",
            ),
            (
                r"distribution=\/a\{b\'c%25/rx.loss=2%",
                r"distribution='/a{b'\''c%'/rx.loss=2%",
            ),
        ] {
            let keys = Keys::parse(text).unwrap();
            assert_eq!(keys.to_string(), shown);
            assert_eq!(Keys::parse(shown).unwrap(), keys);
        }
        let (keys, network) = Keys::with_network("loss=1%{ptp:///tmp/a%b}").unwrap();
        assert_eq!(
            (keys.get("loss"), &*network),
            (Some("1%"), "ptp:///tmp/a%b")
        );
        assert!(Keys::parse("loss=1%{null://}").is_err());
    }

    #[test]
    fn a_change_sets_removes_and_goes_before_what_was_set_for_one_direction() {
        let mut keys = Keys::parse("delay=50ms/tx.delay=1ms/rx.delay=2ms/loss=1%").unwrap();
        for (word, shown) in [
            ("rx.delay=", "delay=50ms/tx.delay=1ms/loss=1%"),
            ("jitter=1ms", "delay=50ms/tx.delay=1ms/jitter=1ms/loss=1%"),
            (
                "ordered",
                "delay=50ms/tx.delay=1ms/jitter=1ms/ordered/loss=1%",
            ),
            ("delay=9ms", "delay=9ms/jitter=1ms/ordered/loss=1%"),
            ("ordered=", "delay=9ms/jitter=1ms/loss=1%"),
            ("loss=", "delay=9ms/jitter=1ms"),
        ] {
            keys.change(word).unwrap();
            assert_eq!(keys.to_string(), shown, "{word}");
        }
        let error = keys.change("delai=1ms").unwrap_err().to_string();
        assert!(
            error.contains("unknown key 'delai'; valid keys: seed, delay"),
            "{error}"
        );
    }
    #[test]
    fn changes_lead_from_some_keys_to_others_and_keep_the_seed() {
        for (old, new, changes) in [
            ("seed=1/delay=5ms", "seed=1/delay=7ms", &["delay=7ms"][..]),
            (
                "delay=5ms/tx.delay=1ms/loss=1%",
                "delay=7ms/tx.delay=1ms/ordered",
                &["loss=", "delay=7ms", "tx.delay=1ms", "ordered"],
            ),
            (
                "tx.loss=1%",
                "loss=1%/seed=3",
                &["tx.loss=", "seed=3", "loss=1%"],
            ),
            ("delay=5ms", "", &["delay="]),
        ] {
            let [mut keys, new] = [old, new].map(|text| Keys::parse(text).unwrap());
            let words = keys.changes_to(&new);
            assert_eq!(words, changes);
            words.iter().for_each(|word| keys.change(word).unwrap());
            assert_eq!(keys, new);
        }
    }

    #[test]
    fn the_other_end_receives_what_one_end_sends() {
        let keys = Keys::parse("seed=7/delay=1ms/tx.delay=2ms/rx.loss=1%/rx.ordered").unwrap();
        let swapped = keys.swapped();
        let shown = "seed=7/delay=1ms/rx.delay=2ms/tx.ordered/tx.loss=1%";
        assert_eq!(swapped.to_string(), shown);
        assert_eq!(swapped.swapped(), keys);
        assert_eq!(swapped_word("tx.loss="), "rx.loss=");
    }
}
