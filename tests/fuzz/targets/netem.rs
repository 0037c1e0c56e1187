//! The keys of `netem://`, as VNLs, lab files and `vdectl link` have them.

use fastrand::Rng;
use vdens_impairment::{Keys, Settings};

use super::{Target, ensure, pick};

/// What keys and their values are made of. A line's end starts a change, as of `vdectl link set`.
const PIECES: [&str; 34] = [
    "delay=",
    "tx.",
    "rx.",
    "jitter=",
    "correlation=",
    "distribution=",
    "normal",
    "ordered",
    "loss=",
    "gemodel=",
    "duplicate=",
    "reorder=",
    "gap=",
    "corrupt=",
    "rate=",
    "burst=",
    "limit=",
    "seed=",
    "50",
    "0.5",
    "99999999999999999999",
    "ms",
    "s",
    "%",
    "%25",
    "mbit",
    "kb",
    ",",
    "/",
    "'",
    "\\",
    "{",
    "}",
    "\n",
];

pub(crate) struct NetemKeys;

impl Target for NetemKeys {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        for _ in 0..random.usize(..14) {
            input.extend(pick(random, &PIECES).as_bytes());
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(input);
        let (argument, changes) = text.split_once('\n').unwrap_or((&text, ""));
        let _ = Keys::with_network(argument);
        let mut keys = Keys::parse(argument).unwrap_or_default();
        for word in changes.lines() {
            if let Err(error) = keys.change(word) {
                one_line(&error.to_string())?;
            }
        }
        // What is shown reads as the same, and means the same.
        let shown = keys.to_string();
        let again = Keys::parse(&shown).map_err(|error| format!("{shown:?}: {error}"))?;
        ensure(again == keys, || format!("{keys:?} is shown as {shown:?}"))?;
        match (Settings::of(&keys), Settings::parse(&shown)) {
            (Err(error), _) => one_line(&error.to_string()),
            (Ok(settings), again) => ensure(again == Ok(settings), || {
                format!("{shown:?} means something else")
            }),
        }
    }
}

fn one_line(error: &str) -> Result<(), String> {
    ensure(!error.contains('\n'), || format!("not one line: {error:?}"))
}
