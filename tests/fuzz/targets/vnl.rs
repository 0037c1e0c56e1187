//! VNLs: both grammars of an argument, and that every name can be written in each of three ways.

use fastrand::Rng;
use std::os::unix::ffi::OsStrExt;

use vdens_plugin_kit::Result as ApiResult;
use vdens_plugin_kit::vnl::{Keys, Spec, Vnl};

use super::{Target, ensure, pick};

const NAMES: [&str; 4] = ["port", "group", "mode", "if"];
const KEYS: Keys = Keys::new(&NAMES).default_key("port");

/// The longest name that is written in three ways, in bytes.
const LONGEST_NAME: usize = 20;

/// What VNLs are made of.
const PIECES: [&str; 32] = [
    "[",
    "]",
    "{",
    "}",
    "/",
    "=",
    "%",
    "'",
    "\"",
    "\\",
    "0",
    "4",
    "f",
    "port",
    "group=",
    "if=",
    "mode=0600",
    "é",
    "\0",
    "\n",
    "://",
    "a",
    "/tmp/sw",
    "vde",
    "%2f",
    "%00",
    "%c3%a9",
    "[3]",
    "{null://}",
    "..",
    " ",
    "\u{1f600}",
];

type Grammar = fn(&str, &Keys) -> ApiResult<Spec>;

/// The grammars, and what stands around the keys in each.
const GRAMMARS: [(Grammar, &str, &str); 2] = [
    (Spec::path_grammar, "[", "]"),
    (Spec::address_grammar, "/", ""),
];

pub(crate) struct Locator;

impl Target for Locator {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        for _ in 0..random.usize(..10) {
            input.extend(pick(random, &PIECES).as_bytes());
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(input);
        match Vnl::parse(&text) {
            Ok(vnl) => {
                let whole = format!("{}://{}", vnl.scheme, vnl.argument);
                let is_whole = whole == text || (vnl.scheme == "vde" && vnl.argument == text);
                ensure(is_whole, || format!("{whole} is left of it"))?;
            }
            Err(error) => one_line(&error.to_string())?,
        }
        for (grammar, open, close) in GRAMMARS {
            match grammar(&text, &KEYS) {
                Ok(spec) => check_spec(&spec, &text, grammar, [open, close])?,
                Err(error) => one_line(&error.to_string())?,
            }
        }
        check_name(&text)
    }
}

fn one_line(message: &str) -> Result<(), String> {
    let is_one_line = !message.is_empty() && !message.contains(char::is_control);
    ensure(is_one_line, || format!("not one line: {message:?}"))
}

/// What was accepted means something, and says the same when it is written in another way.
fn check_spec(
    spec: &Spec,
    text: &str,
    grammar: Grammar,
    [open, close]: [&str; 2],
) -> Result<(), String> {
    let target = spec.target().as_os_str().as_bytes();
    ensure(!target.contains(&0), || "a NUL in the target".into())?;
    let mut written = encoded(target) + open;
    for name in NAMES {
        if let Some(value) = spec.get(name) {
            ensure(!value.contains('\0'), || format!("a NUL in {name}"))?;
            written += &format!("{name}={}/", encoded(value.as_bytes()));
        }
    }
    written += close;
    if let Some(nested) = spec.nested() {
        ensure(text.contains(nested), || {
            format!("nested {nested} is not in it")
        })?;
        written += &format!("{{{nested}}}");
    }
    // These may refuse, and must say so in a line.
    for message in [
        spec.target_str().err(),
        spec.absolute_path().err(),
        spec.no_nested().err(),
        spec.number::<u16>("port").err(),
        spec.mode("mode").err(),
    ] {
        message.map_or(Ok(()), |error| one_line(&error.to_string()))?;
    }
    let again = grammar(&written, &KEYS).map_err(|error| format!("as {written}: {error}"))?;
    let is_same = again.target() == spec.target()
        && again.nested() == spec.nested()
        && NAMES.iter().all(|name| again.get(name) == spec.get(name));
    ensure(is_same, || format!("as {written} it is another"))
}

/// A text without NUL, as a name and as a value: quoted, escaped, percent-encoded.
fn check_name(text: &str) -> Result<(), String> {
    let mut name: String = text.chars().filter(|c| *c != '\0').collect();
    let mut end = name.len().min(LONGEST_NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    let escaped: String = name.chars().flat_map(|c| ['\\', c]).collect();
    for written in [quoted(&name), escaped, encoded(name.as_bytes())] {
        for (grammar, open, close) in GRAMMARS {
            let argument = format!("{written}{open}group={written}{close}");
            let spec = grammar(&argument, &KEYS).map_err(|error| format!("{argument}: {error}"))?;
            let is_same = spec.target_str().is_ok_and(|target| target == name)
                && spec.get("group") == Some(&name)
                && spec.nested().is_none();
            ensure(is_same, || format!("{argument} does not say {name:?}"))?;
        }
    }
    Ok(())
}

/// In quotes of the kind that what is quoted does not have.
fn quoted(text: &str) -> String {
    let piece = |piece: &str| match piece {
        "'" => "\"'\"".to_owned(),
        piece => format!("'{piece}'"),
    };
    text.split_inclusive('\'')
        .flat_map(|part| match part.strip_suffix('\'') {
            Some(before) => [before, "'"],
            None => [part, ""],
        })
        .filter(|part| !part.is_empty())
        .map(piece)
        .collect()
}

fn encoded(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes
        .iter()
        .flat_map(|byte| ['%', digit(byte >> 4), digit(byte & 15)])
        .collect()
}
