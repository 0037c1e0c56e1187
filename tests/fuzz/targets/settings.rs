//! Configuration files.

use fastrand::Rng;
use std::path::Path;

use vdens::cli::config::Config;

use super::{Target, ensure, pick};

const FILE: &str = "/x.toml";

/// What configuration files are made of.
const PIECES: [&str; 28] = [
    "[defaults]\n",
    "[log]\n",
    "[plugins]\n",
    "iface = \"eth\"\n",
    "up = true\n",
    "panel = false\n",
    "vnl = 'ptp:///tmp/x'\n",
    "level = \"debug\"\n",
    "level = 'loud'\n",
    "path = [\"/usr/lib\", '~/p']\n",
    "path = ['lib']\n",
    "file = \"/tmp/é\"\n",
    "resolvaddr = \"192.0.2.1\"\n",
    "\n",
    "# c\n",
    "=",
    "\"",
    "'",
    "\"\"\"",
    "[",
    "]",
    "{",
    "}",
    ".",
    "1e9",
    "1979-05-27",
    "up",
    "\\u00e9",
];

pub(crate) struct Settings;

impl Target for Settings {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        for _ in 0..random.usize(..6) {
            input.extend(pick(random, &PIECES).as_bytes());
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(input);
        if let Err(error) = Config::parse(&text, Path::new(FILE)) {
            check_error(&error.to_string(), &text)?;
        }
        // The input as a value.
        let value: String = text.chars().take(40).collect();
        let written = format!("[defaults]\nup = true\nvnl = \"{}\"\n", escaped(&value));
        let config = Config::parse(&written, Path::new(FILE))
            .map_err(|error| format!("{written}: {error}"))?;
        let is_same = config.defaults.vnl.as_deref() == Some(&value)
            && config.defaults.up == Some(true)
            && config.defaults.iface.is_none();
        ensure(is_same, || {
            format!("{value:?} becomes {:?}", config.defaults.vnl)
        })
    }
}

/// One line that names the file, and a place in it if there is one.
fn check_error(message: &str, text: &str) -> Result<(), String> {
    let is_one_line = message.starts_with(FILE) && !message.contains('\n');
    ensure(is_one_line, || {
        format!("not one line with the file: {message:?}")
    })?;
    let Some((_, place)) = message.split_once(", line ") else {
        return Ok(());
    };
    let mut numbers = place
        .split(|c: char| !c.is_ascii_digit())
        .filter(|word| !word.is_empty());
    let mut number = || {
        numbers
            .next()
            .and_then(|word| word.parse::<usize>().ok())
            .unwrap_or(0)
    };
    let (line, column) = (number(), number());
    let there = text.split('\n').nth(line.wrapping_sub(1));
    let is_there = there.is_some_and(|there| (1..=there.chars().count() + 1).contains(&column));
    ensure(is_there, || format!("there is no such place: {message:?}"))
}

/// As it stands in a basic string (TOML 1.0, "String").
pub(super) fn escaped(value: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    value.chars().map(escape).collect()
}
