//! The text of a manual page in roff's language, with the macros of man(7).
//!
//! Everything that is not a macro passes through [`escape`], so that any text appears as it is
//! written, with groff and with mandoc, and whatever the character set of the terminal.

use std::fmt::Write;

/// How long lines of text may be.
const WIDTH: usize = 78;

/// A manual page, as far as it has been written.
#[derive(Debug, Default)]
pub(crate) struct Page {
    text: String,
    /// A paragraph has just begun, because of a heading or a tag. A second paragraph macro would
    /// have no effect, and mandoc warns of it.
    is_fresh: bool,
}

impl Page {
    /// Begins a page.
    pub(crate) fn new(name: &str, section: &str, date: &str, version: &str) -> Self {
        let mut page = Self::default();
        let name = escape(&name.to_uppercase());
        // A name or path that were hyphenated or stretched could not be copied.
        page.line(".nr HY 0");
        page.line(&format!(
            ".TH \"{name}\" \"{section}\" \"{date}\" \"vdens {}\" \"vdens\"",
            escape(version)
        ));
        page.line(".ad l");
        page
    }

    /// Appends roff's language.
    pub(crate) fn line(&mut self, text: &str) {
        self.text.push_str(text);
        if !text.ends_with('\n') {
            self.text.push('\n');
        }
        self.is_fresh = false;
    }

    /// Appends words, which are roff's language, on lines that are not too long.
    pub(crate) fn words(&mut self, text: &str) {
        let mut line = String::new();
        for word in text.split_ascii_whitespace() {
            if line.len() + word.len() >= WIDTH {
                self.line(&protect(&line));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        self.line(&protect(&line));
    }

    /// Begins a section. Titles are plain text.
    pub(crate) fn section(&mut self, title: &str) {
        self.heading(".SH", &title.to_uppercase());
    }

    /// Begins a subsection.
    pub(crate) fn subsection(&mut self, title: &str) {
        self.heading(".SS", title);
    }

    fn heading(&mut self, name: &str, title: &str) {
        let _ = writeln!(self.text, "{name} \"{}\"", escape(title));
        self.is_fresh = true;
    }

    /// Begins a paragraph.
    pub(crate) fn paragraph(&mut self) {
        if !self.is_fresh {
            self.line(".PP");
        }
    }

    /// Begins a paragraph with a tag, which is roff's language.
    pub(crate) fn tagged(&mut self, tag: &str) {
        self.line(".TP");
        self.line(&protect(tag));
        self.is_fresh = true;
    }

    /// Begins an item of a list.
    pub(crate) fn item(&mut self, mark: &str, width: usize) {
        self.line(&format!(".IP {mark} {width}"));
        self.is_fresh = true;
    }

    /// Appends lines that stay as they are.
    pub(crate) fn example(&mut self, text: &str) {
        self.paragraph();
        self.line(".RS 4\n.EX");
        for line in text.lines() {
            self.line(&protect(&escape(line)));
        }
        self.line(".EE\n.RE");
    }

    /// The whole page.
    pub(crate) fn finish(self) -> String {
        self.text
    }
}

/// Text as roff must read it. Characters that a terminal may lack have a name that groff and mandoc
/// know how to replace.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\(rs"),
            '-' => escaped.push_str("\\-"),
            '\'' => escaped.push_str("\\(aq"),
            '`' => escaped.push_str("\\(ga"),
            '^' => escaped.push_str("\\(ha"),
            '~' => escaped.push_str("\\(ti"),
            '"' => escaped.push_str("\\(dq"),
            '…' => escaped.push_str("..."),
            '–' => escaped.push_str("\\(en"),
            '×' => escaped.push_str("\\(mu"),
            '≤' => escaped.push_str("<="),
            '≥' => escaped.push_str(">="),
            '→' => escaped.push_str("->"),
            'µ' => escaped.push_str("\\(mc"),
            c if c.is_ascii() => escaped.push(c),
            c => {
                let _ = write!(escaped, "\\[u{:04X}]", u32::from(c));
            }
        }
    }
    escaped
}

/// A line of text that roff does not take for a macro.
fn protect(line: &str) -> String {
    match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line.to_owned(),
    }
}
