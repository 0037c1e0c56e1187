//! Virtual Network Locators: `scheme://argument`, and the two grammars of an argument.
//!
//! # Theory of operation
//!
//! [`Vnl::parse`] splits at the first `://`. The scheme selects the plugin, and the plugin selects
//! the grammar of its argument:
//!
//! - [`Spec::path_grammar`]: `PATH[key=value/key]{nested}`, where the path keeps its slashes;
//! - [`Spec::address_grammar`]: `ADDRESS/key=value/key{nested}`, where square brackets have no
//!   meaning, so that an IPv6 address may have its own.
//!
//! Both grammars run a lexer, and then split its output. The lexer removes quotes (`'…'`, `"…"`:
//! all inside is literal) and backslashes (outside quotes: the next byte is literal). It notes of
//! each byte whether it was bare, that is neither quoted nor escaped. Only bare bytes split:
//!
//! 1. braces: from the first bare `{` to the last bare `}`, which must be the end;
//! 2. brackets, in the same way;
//! 3. items, at `/`;
//! 4. key and value, at the first `=`.
//!
//! A bare `%XX` is decoded last, so `%2F` never splits. The text in the braces is a VNL of its own,
//! and stays as it is.
//!
//! A nested VNL may nest another. [`Vnl::parse`] refuses more than [`MAX_NESTING`] levels, whatever
//! the schemes are, because all frames pass through a link for each level. It finds nested VNLs as
//! the grammars do. Braces that are malformed, or that enclose no `scheme://`, do not count: the
//! scheme's plugin judges them.
//!
//! Each error names the thing, its place (in characters, from 1) and the keys that the scheme
//! knows.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::iter::successors;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};

/// The longest path of a UNIX socket, in bytes: `sun_path` less its terminating NUL.
pub const MAX_SOCKET_PATH: usize = 107;

/// The most VNLs nested in each other, not counting the outermost one.
pub const MAX_NESTING: usize = 8;

/// A Virtual Network Locator split at its first `://`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vnl<'a> {
    /// The transport, `[a-z0-9_-]+`.
    pub scheme: &'a str,
    /// What the transport opens, in a grammar of its choice.
    pub argument: &'a str,
}

impl<'a> Vnl<'a> {
    /// Splits `vnl`. Without a `://` it is the argument of `vde`.
    ///
    /// # Errors
    /// The scheme has other characters, or more than [`MAX_NESTING`] VNLs are nested in `vnl`.
    pub fn parse(vnl: &'a str) -> Result<Self> {
        let (scheme, argument) = vnl.split_once("://").unwrap_or(("vde", vnl));
        if !Self::is_scheme(scheme) {
            return Err(Error::usage(format!(
                "bad scheme '{}' in {}",
                OneLine(scheme),
                OneLine(vnl)
            ))
            .hint("schemes are of a-z, 0-9, _ and -; a path with :// in it is vde://PATH"));
        }
        let levels = successors(Some(argument), |argument| nested_argument(argument));
        match levels.skip(1).nth(MAX_NESTING) {
            Some(_) => Err(too_deep(vnl)),
            None => Ok(Self { scheme, argument }),
        }
    }

    /// Whether `name` can be a scheme: `[a-z0-9_-]+`. A plugin's file has `_` for `-`.
    pub fn is_scheme(name: &str) -> bool {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
        !name.is_empty() && name.bytes().all(valid)
    }
}

/// What is known of a VNL without its scheme's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline<'a> {
    /// What [`Spec::path_grammar`] takes for the target; empty if that is malformed.
    pub target: PathBuf,
    /// The VNL in the braces.
    pub nested: Option<&'a str>,
}

impl<'a> Outline<'a> {
    /// The outline of a VNL's argument.
    pub fn new(argument: &'a str) -> Self {
        const NO_KEYS: Keys = Keys::new(&[]);
        let parser = Parser {
            argument,
            keys: &NO_KEYS,
        };
        let parse = || {
            let chars = parser.lex()?;
            let (head, nested) = parser.nested(&chars)?;
            let target = match parser.enclosed(head, b'[', b']') {
                Ok(Some(inside)) => &head[..inside.start - 1],
                Ok(None) => head,
                Err(_) => &[],
            };
            let target = parser.decode(target).unwrap_or_default();
            let target = OsString::from_vec(target).into();
            Ok::<_, Error>(Self { target, nested })
        };
        parse().unwrap_or_default()
    }
}

/// The argument of the VNL that is nested in `argument`. `None` if there is no VNL with a scheme: a
/// path nests nothing, and the braces of a shell command (`cmd://`) enclose no VNL.
fn nested_argument(argument: &str) -> Option<&str> {
    const NO_KEYS: Keys = Keys::new(&[]);
    let parser = Parser {
        argument,
        keys: &NO_KEYS,
    };
    let chars = argument.contains('{').then(|| parser.lex().ok())??;
    let (_, nested) = parser.nested(&chars).ok()?;
    let (scheme, inner) = nested?.split_once("://")?;
    Vnl::is_scheme(scheme).then_some(inner)
}

/// The error for a VNL on a level beyond [`MAX_NESTING`].
pub fn too_deep(vnl: &str) -> Error {
    Error::usage(format!(
        "cannot open {}: more than {MAX_NESTING} VNLs are nested in each other",
        OneLine(vnl)
    ))
    .hint("open the inner ones in a vde_plug, and join it by ptp://")
}

/// The keys that a scheme knows, for a constant beside its parser.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    names: &'static [&'static str],
    default: Option<&'static str>,
}

impl Keys {
    /// These keys, and no default key.
    pub const fn new(names: &'static [&'static str]) -> Self {
        Self {
            names,
            default: None,
        }
    }

    /// Makes a word that is no key the value of `name`, which is one of the keys.
    #[must_use]
    pub const fn default_key(mut self, name: &'static str) -> Self {
        self.default = Some(name);
        self
    }

    fn find(&self, name: &str) -> Option<&'static str> {
        self.names.iter().copied().find(|known| *known == name)
    }

    fn advice(&self) -> String {
        if self.names.is_empty() {
            "this scheme takes no keys".to_owned()
        } else {
            format!("valid keys: {}", self.names.join(", "))
        }
    }
}

/// The parsed argument of a VNL: a target, options, and a nested VNL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    argument: String,
    target: OsString,
    options: Vec<(&'static str, String)>,
    nested: Option<String>,
}

impl Spec {
    /// Parses `PATH[key=value/key]{nested}`.
    ///
    /// # Errors
    /// The argument is malformed, or has an unknown key.
    pub fn path_grammar(argument: &str, keys: &Keys) -> Result<Self> {
        let parser = Parser { argument, keys };
        let chars = parser.lex()?;
        let (head, nested) = parser.nested(&chars)?;
        let (target, items) = match parser.enclosed(head, b'[', b']')? {
            Some(inside) => (&head[..inside.start - 1], &head[inside]),
            None => (head, &head[..0]),
        };
        parser.spec(target, items, nested)
    }

    /// Parses `ADDRESS/key=value/key{nested}`.
    ///
    /// # Errors
    /// The argument is malformed, or has an unknown key.
    pub fn address_grammar(argument: &str, keys: &Keys) -> Result<Self> {
        let parser = Parser { argument, keys };
        let chars = parser.lex()?;
        let (head, nested) = parser.nested(&chars)?;
        let (target, items) = split_at_bare(head, b'/');
        parser.spec(target, items.unwrap_or_default(), nested)
    }

    /// The path or address, decoded. It has no NUL byte, and may be empty.
    pub fn target(&self) -> &Path {
        Path::new(&self.target)
    }

    /// [`Spec::target`] as text.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn target_str(&self) -> Result<&str> {
        self.target.to_str().ok_or_else(|| {
            Error::usage(format!(
                "{} does not decode to UTF-8",
                OneLine(&self.argument)
            ))
        })
    }

    /// [`Spec::target`] as an absolute path. Symbolic links stay as they are.
    ///
    /// # Errors
    /// It is empty, or the working directory does not exist.
    pub fn absolute_path(&self) -> Result<PathBuf> {
        if self.target.is_empty() {
            return Err(
                Error::usage(format!("no path in '{}'", OneLine(&self.argument)))
                    .hint("write one after ://, for example ptp:///tmp/cable"),
            );
        }
        std::path::absolute(self.target())
            .map_err(|e| Error::path("make an absolute path of", self.target(), &e))
    }

    /// The value of `key`. It is empty for a key without a value, and `None` for an absent key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut latest_first = self.options.iter().rev();
        latest_first
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value.as_str())
    }

    /// Whether `key` is there, with a value or without.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// The value of `key`, parsed as a `T`.
    ///
    /// # Errors
    /// There is a value, and `T` cannot parse it.
    pub fn number<T>(&self, key: &str) -> Result<Option<T>>
    where
        T: FromStr,
        T::Err: Display,
    {
        self.get(key)
            .map(|value| value.parse().map_err(|e| self.bad_value(key, value, e)))
            .transpose()
    }

    /// The value of `key` as octal permission bits, 0 to 0o7777.
    ///
    /// # Errors
    /// There is a value, and it is something else.
    pub fn mode(&self, key: &str) -> Result<Option<u32>> {
        let parse = |value: &str| {
            // from_str_radix would let a sign pass.
            Some(value)
                .filter(|v| !v.starts_with('+'))
                .and_then(|v| u32::from_str_radix(v, 8).ok())
                .filter(|bits| *bits <= 0o7777)
                .ok_or_else(|| self.bad_value(key, value, "not octal permission bits, 0 to 7777"))
        };
        self.get(key).map(parse).transpose()
    }

    /// The VNL in the braces, with its quotes.
    pub fn nested(&self) -> Option<&str> {
        self.nested.as_deref()
    }

    /// Refuses a nested VNL, for a scheme that nests none.
    ///
    /// # Errors
    /// There is a nested VNL.
    pub fn no_nested(&self) -> Result<()> {
        match &self.nested {
            None => Ok(()),
            Some(nested) => Err(Error::usage(format!(
                "unexpected nested VNL {{{}}} in {}",
                OneLine(nested),
                OneLine(&self.argument)
            ))
            .hint("this scheme takes none; quote braces that belong to the name")),
        }
    }

    fn bad_value(&self, key: &str, value: &str, why: impl Display) -> Error {
        Error::usage(format!(
            "bad value '{}' for key '{key}' in {}: {why}",
            OneLine(value),
            OneLine(&self.argument)
        ))
    }
}

/// The id of a group, from its name or its number.
///
/// # Errors
/// There is no such group.
pub fn group_id(name: &str) -> Result<u32> {
    if let Ok(Some(group)) = nix::unistd::Group::from_name(name) {
        return Ok(group.gid.as_raw());
    }
    name.parse().map_err(|_| {
        Error::usage(format!("there is no group '{}'", name.escape_debug()))
            .hint("see `getent group`")
    })
}

/// The id of a user, from the name or the number.
///
/// # Errors
/// There is no such user.
pub fn user_id(name: &str) -> Result<u32> {
    if let Ok(Some(user)) = nix::unistd::User::from_name(name) {
        return Ok(user.uid.as_raw());
    }
    name.parse().map_err(|_| {
        Error::usage(format!("there is no user '{}'", name.escape_debug()))
            .hint("see `getent passwd`")
    })
}

/// Checks that `path` and a terminating NUL fit into the address of a UNIX socket.
///
/// # Errors
/// `path` is longer than [`MAX_SOCKET_PATH`].
pub fn check_socket_path(path: &Path) -> Result<()> {
    let length = path.as_os_str().len();
    if length <= MAX_SOCKET_PATH {
        return Ok(());
    }
    Err(Error::usage(format!(
        "socket path {} is {length} bytes long, the limit is {MAX_SOCKET_PATH}",
        OneLine(&path.to_string_lossy())
    ))
    .hint("use a shorter path"))
}

/// A byte of an argument after quotes and backslashes are gone.
#[derive(Clone, Copy)]
struct Char {
    byte: u8,
    /// Neither quoted nor escaped: may be structure.
    bare: bool,
    /// Index in the argument.
    at: usize,
}

impl Char {
    fn literal(byte: u8, at: usize) -> Self {
        let bare = false;
        Self { byte, bare, at }
    }

    fn is(&self, structure: u8) -> bool {
        self.bare && self.byte == structure
    }

    fn hex(&self) -> Option<u8> {
        let digit = char::from(self.byte).to_digit(16).filter(|_| self.bare)?;
        u8::try_from(digit).ok()
    }
}

/// What comes before and after the first bare `separator`.
fn split_at_bare(chars: &[Char], separator: u8) -> (&[Char], Option<&[Char]>) {
    match chars.iter().position(|c| c.is(separator)) {
        Some(i) => (&chars[..i], Some(&chars[i + 1..])),
        None => (chars, None),
    }
}

/// The parts of both grammars, and what an error message needs.
struct Parser<'a> {
    argument: &'a str,
    keys: &'a Keys,
}

impl<'a> Parser<'a> {
    fn lex(&self) -> Result<Vec<Char>> {
        let mut chars = Vec::with_capacity(self.argument.len());
        let mut bytes = self.argument.bytes().enumerate();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'\'' | b'"' => loop {
                    match bytes.next() {
                        Some((_, end)) if end == byte => break,
                        Some((at, byte)) => chars.push(Char::literal(byte, at)),
                        None => {
                            let what = format!("unterminated quote {}", char::from(byte));
                            return Err(self.malformed(&what, at));
                        }
                    }
                },
                b'\\' => match bytes.next() {
                    Some((at, byte)) => chars.push(Char::literal(byte, at)),
                    None => return Err(self.malformed("nothing after the backslash", at)),
                },
                _ => chars.push(Char {
                    bare: true,
                    ..Char::literal(byte, at)
                }),
            }
        }
        Ok(chars)
    }

    /// The indices between the first bare `open` and the last bare `close`, which must be the end.
    fn enclosed(&self, chars: &[Char], open: u8, close: u8) -> Result<Option<Range<usize>>> {
        let first = chars.iter().position(|c| c.is(open));
        let last = chars.iter().rposition(|c| c.is(close));
        let (open, close) = (char::from(open), char::from(close));
        match (first, last) {
            (None, None) => Ok(None),
            (None, Some(last)) => {
                Err(self.malformed(&format!("{close} without {open} before it"), chars[last].at))
            }
            (Some(first), Some(last)) if first < last => match chars.get(last + 1) {
                None => Ok(Some(first + 1..last)),
                Some(extra) => {
                    Err(self.malformed(&format!("unexpected text after {close}"), extra.at))
                }
            },
            (Some(first), _) => {
                Err(self.malformed(&format!("unterminated {open}"), chars[first].at))
            }
        }
    }

    /// Splits the nested VNL off the end.
    fn nested<'c>(&self, chars: &'c [Char]) -> Result<(&'c [Char], Option<&'a str>)> {
        Ok(match self.enclosed(chars, b'{', b'}')? {
            None => (chars, None),
            Some(inside) => {
                let (open, close) = (inside.start - 1, inside.end);
                let text = &self.argument[chars[open].at + 1..chars[close].at];
                (&chars[..open], Some(text))
            }
        })
    }

    fn spec(&self, target: &[Char], items: &[Char], nested: Option<&str>) -> Result<Spec> {
        let mut options = Vec::new();
        for item in items.split(|c| c.is(b'/')).filter(|item| !item.is_empty()) {
            options.push(self.option(item)?);
        }
        Ok(Spec {
            argument: self.argument.to_owned(),
            target: OsString::from_vec(self.decode(target)?),
            options,
            nested: nested.map(str::to_owned),
        })
    }

    fn option(&self, item: &[Char]) -> Result<(&'static str, String)> {
        let (word, value) = split_at_bare(item, b'=');
        let word = self.text(word)?;
        match (self.keys.find(&word), value, self.keys.default) {
            (Some(key), value, _) => Ok((key, self.text(value.unwrap_or_default())?)),
            (None, None, Some(key)) => Ok((key, word)),
            _ => Err(Error::usage(format!(
                "unknown key '{}' at {}",
                OneLine(&word),
                self.place(item[0].at)
            ))
            .hint(self.keys.advice())),
        }
    }

    fn text(&self, chars: &[Char]) -> Result<String> {
        String::from_utf8(self.decode(chars)?).map_err(|e| {
            let shown = String::from_utf8_lossy(e.as_bytes());
            Error::usage(format!(
                "'{}' in {} is not UTF-8",
                OneLine(&shown),
                OneLine(self.argument)
            ))
            .hint(self.keys.advice())
        })
    }

    /// Replaces each bare `%XX` by its byte.
    fn decode(&self, chars: &[Char]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(chars.len());
        let mut rest = chars.iter();
        while let Some(c) = rest.next() {
            let byte = if c.is(b'%') {
                let mut digit = || rest.next().and_then(Char::hex);
                match (digit(), digit()) {
                    (Some(high), Some(low)) => high << 4 | low,
                    _ => return Err(self.malformed("% without two hexadecimal digits", c.at)),
                }
            } else {
                c.byte
            };
            if byte == 0 {
                return Err(self.malformed("NUL byte", c.at));
            }
            bytes.push(byte);
        }
        Ok(bytes)
    }

    fn malformed(&self, what: &str, at: usize) -> Error {
        Error::usage(format!("{what} at {}", self.place(at))).hint(format!(
            "quote or escape it if it belongs to a name; {}",
            self.keys.advice()
        ))
    }

    fn place(&self, at: usize) -> String {
        let before = self
            .argument
            .char_indices()
            .take_while(|(i, _)| *i < at)
            .count();
        format!("character {} of {}", before + 1, OneLine(self.argument))
    }
}

/// Shows foreign text on one line, with control characters escaped.
struct OneLine<'a>(&'a str);

impl Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| {
            if c.is_control() {
                write!(f, "{}", c.escape_default())
            } else {
                write!(f, "{c}")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::error::ErrorKind;

    const VDE: Keys = Keys::new(&["port", "group", "mode"]).default_key("port");
    const VXLAN: Keys = Keys::new(&["port", "vni", "if", "log"]);
    const NONE: Keys = Keys::new(&[]);

    type Options<'a> = &'a [(&'a str, &'a str)];

    #[track_caller]
    fn accepts(
        spec: Result<Spec>,
        argument: &str,
        target: &str,
        options: Options<'_>,
        nested: Option<&str>,
    ) {
        let spec = spec.unwrap_or_else(|e| panic!("{argument}: {e}"));
        assert_eq!(spec.target_str().unwrap(), target, "{argument}");
        let got: Vec<_> = spec.options.iter().map(|(k, v)| (*k, v.as_str())).collect();
        assert_eq!(got, options, "{argument}");
        assert_eq!(spec.nested(), nested, "{argument}");
    }

    #[test]
    fn an_outline_needs_no_keys() {
        for (argument, target, nested) in [
            ("/tmp/a[x=1/y]", "/tmp/a", None),
            ("a%20b", "a b", None),
            ("5/loss=1{vde:///tmp/sw}", "5/loss=1", Some("vde:///tmp/sw")),
            ("/a->/b[mode=700]", "/a->/b", None),
            ("a%{null://}", "", Some("null://")),
            ("/a[", "", None),
        ] {
            let outline = Outline::new(argument);
            assert_eq!(
                (outline.target.to_str(), outline.nested),
                (Some(target), nested)
            );
        }
    }

    #[track_caller]
    fn refuses(spec: Result<Spec>, argument: &str, words: &str) {
        let error = spec.expect_err(argument);
        assert_eq!(error.kind, ErrorKind::Usage, "{argument}");
        let line = error.to_string();
        assert!(line.contains(words), "{argument}: {line}");
        assert!(
            line.contains("keys"),
            "{argument}: the keys are missing: {line}"
        );
        assert!(!line.contains('\n'), "{argument}: {line}");
    }

    #[test]
    fn vnl() {
        for (vnl, scheme, argument) in [
            ("vde:///tmp/sw[3]", "vde", "/tmp/sw[3]"),
            ("/tmp/sw", "vde", "/tmp/sw"),
            ("", "vde", ""),
            ("null://", "null", ""),
            ("my_2nd://a://b", "my_2nd", "a://b"),
            ("vhost-user:///tmp/x", "vhost-user", "/tmp/x"),
            ("a:/b", "vde", "a:/b"),
            ("vlan://{vde:///tmp/sw[3]}", "vlan", "{vde:///tmp/sw[3]}"),
        ] {
            assert_eq!(Vnl::parse(vnl).unwrap(), Vnl { scheme, argument });
        }
        for (vnl, scheme) in [
            ("://x", "''"),
            ("VDE://x", "'VDE'"),
            ("../vde://x", "'../vde'"),
            ("a b://x", "'a b'"),
            ("a\nb://x", "'a\\nb'"),
            ("é://x", "'é'"),
            ("a\0://x", "'a\\u{0}'"),
        ] {
            let error = Vnl::parse(vnl).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Usage);
            assert!(error.message.contains(scheme), "{error}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn eight_levels_are_enough() {
        let nest = |outer: &str, levels: usize, inner: &str| {
            format!("{}{inner}{}", outer.repeat(levels), "}".repeat(levels))
        };
        for (outer, inner) in [
            ("vlan://1{", "null://"),
            ("a:///x[port='{'/y]{", "b://\\{'{'"),
            ("a://1/priority=3{", "cmd://f() { g; }; f"),
        ] {
            assert!(Vnl::parse(&nest(outer, MAX_NESTING, inner)).is_ok());
            let error = Vnl::parse(&nest(outer, MAX_NESTING + 1, inner)).unwrap_err();
            let line = error.to_string();
            let says = line.contains("more than 8 VNLs are nested") && line.contains("vde_plug");
            assert!(error.kind == ErrorKind::Usage && says, "{line}");
        }
        // Left to the scheme: quoted braces, malformed ones, a shell's.
        for vnl in [
            nest("vlan://1{", 20, "null://") + "x",
            format!("vde://'{}'", nest("vlan://1{", 20, "null://")),
            nest("cmd://{ ", 20, "x; "),
            "vlan://1{".repeat(100_000),
            nest("{", 20, ""),
        ] {
            assert!(Vnl::parse(&vnl).is_ok());
        }
    }

    #[test]
    fn path_grammar_accepts() {
        let table: &[(&str, &str, Options<'_>, Option<&str>)] = &[
            ("", "", &[], None),
            ("/tmp/sw", "/tmp/sw", &[], None),
            ("/tmp/sw[]", "/tmp/sw", &[], None),
            ("/tmp/sw[//]", "/tmp/sw", &[], None),
            ("/tmp/sw[3]", "/tmp/sw", &[("port", "3")], None),
            ("/tmp/sw[port]", "/tmp/sw", &[("port", "")], None),
            ("/tmp/sw[port=]", "/tmp/sw", &[("port", "")], None),
            (
                "/a/b[port=3/group=vde/]",
                "/a/b",
                &[("port", "3"), ("group", "vde")],
                None,
            ),
            ("/a[group=a=b]", "/a", &[("group", "a=b")], None),
            ("/a[group=a%2fb]", "/a", &[("group", "a/b")], None),
            ("/a[group=a\\/b]", "/a", &[("group", "a/b")], None),
            ("/a['group'='a/b']", "/a", &[("group", "a/b")], None),
            ("/a['port=3/x']", "/a", &[("port", "port=3/x")], None),
            ("/a[%70ort=3]", "/a", &[("port", "3")], None),
            ("/a[group=x]y]", "/a", &[("group", "x]y")], None),
            ("/a[group=[x]", "/a", &[("group", "[x")], None),
            ("/a\\[b\\]", "/a[b]", &[], None),
            ("/a%5Bb%5d", "/a[b]", &[], None),
            ("'/a [b] {c}'", "/a [b] {c}", &[], None),
            ("\"/it's\"[3]", "/it's", &[("port", "3")], None),
            ("'\"'\"'\"", "\"'", &[], None),
            ("'a\\'", "a\\", &[], None),
            ("a\\\\b\\'c", "a\\b'c", &[], None),
            ("'%41'\\%41%41", "%41%41A", &[], None),
            ("/é\\ü%c3%a9[3]", "/éüé", &[("port", "3")], None),
            ("/a{}", "/a", &[], Some("")),
            ("{vde://}", "", &[], Some("vde://")),
            (
                "/a[2]{vde://'/x y'[3]{\\}z}}",
                "/a",
                &[("port", "2")],
                Some("vde://'/x y'[3]{\\}z}"),
            ),
            ("/a{'}'%zz}", "/a", &[], Some("'}'%zz")),
            ("/a'{'b{'c'}", "/a{b", &[], Some("'c'")),
        ];
        for (argument, target, options, nested) in table {
            accepts(
                Spec::path_grammar(argument, &VDE),
                argument,
                target,
                options,
                *nested,
            );
        }
    }

    #[test]
    fn path_grammar_refuses() {
        for (argument, words) in [
            ("/a'b", "unterminated quote ' at character 3 of /a'b"),
            ("/a\"b'", "unterminated quote \" at character 3"),
            ("/é'", "at character 3"),
            ("/a\\", "nothing after the backslash at character 3"),
            ("/a[3", "unterminated [ at character 3"),
            ("/a]3[", "unterminated [ at character 5"),
            ("/a[3\\]", "unterminated [ at character 3"),
            ("/a3]", "] without [ before it at character 4"),
            ("/a[3]x", "unexpected text after ] at character 6"),
            ("/a[3]/", "unexpected text after ] at character 6"),
            ("/a{b", "unterminated { at character 3"),
            ("/a}b{", "unterminated { at character 5"),
            ("/a}", "} without { before it at character 3"),
            ("/a{b}c", "unexpected text after } at character 6"),
            ("/a[group={b}]", "unexpected text after } at character 13"),
            ("/a{b}[3]", "unexpected text after } at character 6"),
            ("/a[prt=3]", "unknown key 'prt' at character 4 of /a[prt=3]"),
            ("/a[3/por=3]", "unknown key 'por' at character 6"),
            ("/a[PORT=3]", "unknown key 'PORT'"),
            ("/a[=3]", "unknown key ''"),
            ("/a[x\n=3]", "unknown key 'x\\n'"),
            ("/a%", "% without two hexadecimal digits at character 3"),
            ("/a%4", "% without two"),
            ("/a%zz", "% without two"),
            ("/a%+1", "% without two"),
            ("/a%4'1'", "% without two"),
            ("/a%4é", "% without two"),
            ("/a%4[3]", "% without two"),
            ("/a[%4/1]", "% without two"),
            ("/a%00", "NUL byte at character 3"),
            ("/a\0", "NUL byte at character 3"),
            ("/a['\0']", "NUL byte"),
            ("/a[group=%ff]", "not UTF-8"),
        ] {
            refuses(Spec::path_grammar(argument, &VDE), argument, words);
        }
        let unknown = Spec::path_grammar("/a[prt=3]", &VDE).unwrap_err();
        assert_eq!(unknown.hint, "valid keys: port, group, mode");
        let unknown = Spec::path_grammar("/a[3]", &NONE).unwrap_err();
        assert_eq!(unknown.message, "unknown key '3' at character 4 of /a[3]");
        assert_eq!(unknown.hint, "this scheme takes no keys");
    }

    #[test]
    fn address_grammar_accepts() {
        let table: &[(&str, &str, Options<'_>, Option<&str>)] = &[
            ("", "", &[], None),
            ("239.0.0.1", "239.0.0.1", &[], None),
            ("239.0.0.1/", "239.0.0.1", &[], None),
            (
                "239.0.0.1//vni=7/log",
                "239.0.0.1",
                &[("vni", "7"), ("log", "")],
                None,
            ),
            ("/vni=7", "", &[("vni", "7")], None),
            (
                "[ff02::1%25eth0]/vni=7",
                "[ff02::1%eth0]",
                &[("vni", "7")],
                None,
            ),
            ("4000->[::1]:5000", "4000->[::1]:5000", &[], None),
            ("[::1", "[::1", &[], None),
            ("a%2Fb=c/if=a%2Fb", "a/b=c", &[("if", "a/b")], None),
            ("'a/b'/if=\"x/y\"", "a/b", &[("if", "x/y")], None),
            (
                "a/vni=1{vde:///tmp/sw[a/b]}",
                "a",
                &[("vni", "1")],
                Some("vde:///tmp/sw[a/b]"),
            ),
            ("a{b/c}", "a", &[], Some("b/c")),
            ("a/if=[x", "a", &[("if", "[x")], None),
            ("a/vni=7]", "a", &[("vni", "7]")], None),
        ];
        for (argument, target, options, nested) in table {
            accepts(
                Spec::address_grammar(argument, &VXLAN),
                argument,
                target,
                options,
                *nested,
            );
        }
    }

    #[test]
    fn address_grammar_refuses() {
        for (argument, words) in [
            ("a/7", "unknown key '7' at character 3 of a/7"),
            ("a/vn=7", "unknown key 'vn'"),
            ("a/'vni", "unterminated quote"),
            ("a/vni{", "unterminated {"),
            ("a}", "} without {"),
            ("a{b}/vni=7", "unexpected text after } at character 5"),
            ("[fe80::1%eth0]", "% without two"),
            ("a/if=%00", "NUL byte at character 6"),
        ] {
            refuses(Spec::address_grammar(argument, &VXLAN), argument, words);
        }
        let keys = VXLAN.default_key("vni");
        accepts(
            Spec::address_grammar("a/7", &keys),
            "a/7",
            "a",
            &[("vni", "7")],
            None,
        );
    }

    #[test]
    fn values() {
        let spec = |argument: &str| Spec::path_grammar(argument, &VDE).unwrap();

        let last_wins = spec("/a[port=1/2/port=3]");
        assert_eq!(last_wins.get("port"), Some("3"));
        assert_eq!(last_wins.number::<u8>("port").unwrap(), Some(3));
        assert!(last_wins.has("port") && !last_wins.has("group"));
        assert_eq!(last_wins.number::<u8>("group").unwrap(), None);
        assert_eq!(last_wins.mode("mode").unwrap(), None);

        for bad in ["", "x", "256", "-1", "1 "] {
            let error = spec(&format!("/a[port={bad}]"))
                .number::<u8>("port")
                .unwrap_err();
            assert_eq!(error.kind, ErrorKind::Usage);
            let expected = format!("bad value '{bad}' for key 'port' in /a[port={bad}]: ");
            assert!(error.message.starts_with(&expected), "{error}");
        }
        for (good, bits) in [("0", 0), ("700", 0o700), ("0600", 0o600), ("7777", 0o7777)] {
            let got = spec(&format!("/a[mode={good}]")).mode("mode").unwrap();
            assert_eq!(got, Some(bits));
        }
        for bad in ["", "8", "10000", "+7", "-7", "0o7", "77777777777777"] {
            let error = spec(&format!("/a[mode={bad}]")).mode("mode").unwrap_err();
            assert!(error.message.contains("octal"), "{error}");
        }
    }

    #[test]
    fn targets() {
        let spec = |argument: &str| Spec::path_grammar(argument, &VDE).unwrap();

        let bytes = spec("/tmp/%ff");
        assert_eq!(bytes.target().as_os_str().as_bytes(), b"/tmp/\xff");
        assert!(bytes.target_str().is_err());
        assert_eq!(bytes.absolute_path().unwrap(), bytes.target());

        let here = std::env::current_dir().unwrap();
        assert_eq!(spec("./x").absolute_path().unwrap(), here.join("x"));
        let error = spec("[3]").absolute_path().unwrap_err();
        assert_eq!(error.message, "no path in '[3]'");

        assert!(spec("/a").no_nested().is_ok());
        let error = spec("/a{b}").no_nested().unwrap_err();
        assert!(error.message.contains("{b}"), "{error}");
    }

    #[test]
    fn socket_paths() {
        assert!(check_socket_path(Path::new(&"x".repeat(107))).is_ok());
        let error = check_socket_path(Path::new(&"é".repeat(54))).unwrap_err();
        assert!(error.message.contains("108 bytes"), "{error}");
        assert!(error.message.contains("limit is 107"), "{error}");
    }

    /// Quoting, escaping and percent-encoding each make any name safe.
    #[test]
    fn any_name_can_be_written() {
        let name = "a'b\"[c]{d}/e=%41\\ é";
        let escaped: String = name.chars().map(|c| format!("\\{c}")).collect();
        let encoded: String = name.bytes().map(|b| format!("%{b:02x}")).collect();
        for written in [escaped, encoded] {
            let argument = format!("{written}[group={written}]");
            accepts(
                Spec::path_grammar(&argument, &VDE),
                &argument,
                name,
                &[("group", name)],
                None,
            );
        }
    }
}
