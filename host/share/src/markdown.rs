//! Markdown, as the pages in docs/ use it, becomes the text of a manual page.
//!
//! Headings become sections and subsections, and a table becomes a list of paragraphs with tags,
//! because its cells hold sentences and a terminal has 80 columns: the first cell of a row is the
//! tag, and the others follow, each after the heading of its column. A link to a page that has
//! become a manual page names that, the others are their text. Pictures are left out.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::mem;

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use crate::roff::{Page, escape};

/// A manual page that another one refers to: its name and section.
pub(crate) type Reference = (String, &'static str);

/// Finds the manual page for the target of a link.
pub(crate) type Resolve<'a> = &'a dyn Fn(&str) -> Option<Reference>;

/// What a link that is being read leads to.
enum Target {
    Page(Reference),
    Web(String),
}

/// The first paragraph of Markdown, as plain text.
pub(crate) fn first_paragraph(markdown: &str) -> String {
    let events = Parser::new(markdown).skip_while(|e| *e != Event::Start(Tag::Paragraph));
    let events = events.take_while(|event| *event != Event::End(TagEnd::Paragraph));
    let texts = events.map(|event| match event {
        Event::Text(text) | Event::Code(text) => text.into_string(),
        Event::SoftBreak => " ".to_owned(),
        _ => String::new(),
    });
    texts.collect()
}

/// Appends Markdown to a page, and adds the pages that it refers to. Headings of `level` become
/// sections, those below subsections; one above is left out.
pub(crate) fn append(
    page: &mut Page,
    markdown: &str,
    level: HeadingLevel,
    resolve: Resolve<'_>,
    references: &mut BTreeSet<Reference>,
) {
    let mut writer = Writer {
        page,
        level,
        resolve,
        references,
        text: String::new(),
        lists: Vec::new(),
        has_item_begun: false,
        raw: None,
        link: None,
        is_in_image: false,
        table: Table::default(),
    };
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        writer.event(event);
    }
}

struct Writer<'a> {
    page: &'a mut Page,
    level: HeadingLevel,
    resolve: Resolve<'a>,
    references: &'a mut BTreeSet<Reference>,
    /// The paragraph, heading or cell that is being read.
    text: String,
    /// The lists that are open, each with the number of the next item if it has numbers.
    lists: Vec<Option<u64>>,
    /// An item has begun, and nothing is in it yet.
    has_item_begun: bool,
    /// The heading or block of code that is being read, which stays as it is.
    raw: Option<String>,
    /// The link that is being read, and where its text begins.
    link: Option<(usize, Target)>,
    is_in_image: bool,
    table: Table,
}

#[derive(Default)]
struct Table {
    head: Vec<String>,
    row: Vec<String>,
    is_head: bool,
}

impl Writer<'_> {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            _ if self.is_in_image => {}
            Event::Text(text) | Event::Code(text) if self.raw.is_some() => {
                self.raw.get_or_insert_default().push_str(&text);
            }
            Event::Text(text) => self.text.push_str(&escape(&text)),
            Event::Code(code) => {
                self.text.push_str("\\fB");
                self.text.push_str(&escape(&code));
                self.text.push_str("\\fR");
            }
            Event::SoftBreak | Event::HardBreak => self.text.push('\n'),
            _ => {}
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::List(first) => {
                self.flush();
                if !self.lists.is_empty() {
                    self.page.line(".RS 2");
                }
                self.lists.push(first);
            }
            Tag::Item => self.item(),
            Tag::Strong => self.text.push_str("\\fB"),
            Tag::Emphasis => self.text.push_str("\\fI"),
            Tag::Heading { .. } | Tag::CodeBlock(_) => {
                self.flush();
                self.raw = Some(String::new());
            }
            Tag::Link { dest_url, .. } => {
                let target = match dest_url.starts_with("https://") {
                    true => Some(Target::Web(dest_url.into_string())),
                    false => (self.resolve)(&dest_url).map(Target::Page),
                };
                self.link = target.map(|target| (self.text.len(), target));
            }
            Tag::Image { .. } => self.is_in_image = true,
            Tag::TableHead => self.table.is_head = true,
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(level) => {
                let title = self.raw.take().unwrap_or_default();
                match level.cmp(&self.level) {
                    Ordering::Less => {}
                    Ordering::Equal => self.page.section(&title),
                    Ordering::Greater => self.page.subsection(&title),
                }
            }
            TagEnd::Paragraph | TagEnd::Item => self.flush(),
            TagEnd::List(_) => {
                self.lists.pop();
                if !self.lists.is_empty() {
                    self.page.line(".RE");
                }
            }
            TagEnd::Strong | TagEnd::Emphasis => self.text.push_str("\\fR"),
            TagEnd::CodeBlock => self.code_block(),
            TagEnd::Link => self.reference(),
            TagEnd::Image => self.is_in_image = false,
            TagEnd::TableCell => {
                let cell = mem::take(&mut self.text);
                match self.table.is_head {
                    true => self.table.head.push(cell),
                    false => self.table.row.push(cell),
                }
            }
            TagEnd::TableHead => {
                self.table.is_head = false;
                self.head();
            }
            TagEnd::TableRow => self.row(),
            TagEnd::Table => self.table = Table::default(),
            _ => {}
        }
    }

    /// Writes the paragraph that has been read.
    fn flush(&mut self) {
        let text = mem::take(&mut self.text);
        if text.is_empty() {
            return;
        }
        match (self.lists.is_empty(), mem::take(&mut self.has_item_begun)) {
            (true, _) => self.page.paragraph(),
            (false, true) => {}
            (false, false) => self.page.line(".sp"),
        }
        self.page.words(&text);
    }

    fn item(&mut self) {
        self.flush();
        match self.lists.last_mut() {
            Some(Some(number)) => {
                self.page.item(&format!("{number}."), 4);
                *number += 1;
            }
            _ => self.page.item("\\(bu", 2),
        }
        self.has_item_begun = true;
    }

    fn code_block(&mut self) {
        let code = self.raw.take().unwrap_or_default();
        // What --help prints is in the page already.
        if !code.contains("\nUsage: ") {
            self.page.example(&code);
        }
    }

    /// Names what a link leads to, a manual page once, and unless the text does.
    fn reference(&mut self) {
        let (start, reference) = match self.link.take() {
            None => return,
            Some((_, Target::Web(address))) => {
                self.text.push_str(&format!(" ({})", escape(&address)));
                return;
            }
            Some((start, Target::Page(reference))) => (start, reference),
        };
        let (name, section) = &reference;
        let text = self.text[start..].replace("\\fB", "").replace("\\fR", "");
        let is_named = escape(name).ends_with(text.trim_end_matches("://"));
        if self.references.insert(reference.clone()) && !is_named {
            let name = escape(name);
            self.text.push_str(&format!(" (\\fB{name}\\fR({section}))"));
        }
    }

    /// Writes a table's head, where it says more than a word.
    fn head(&mut self) {
        if let [first, second] = &*self.table.head
            && second.contains(' ')
            && !first.is_empty()
        {
            self.page.tagged(&format!("\\fI{first}\\fR"));
            self.page.words(&format!("\\fI{second}\\fR"));
        }
    }

    fn row(&mut self) {
        let row = mem::take(&mut self.table.row);
        let Some((tag, cells)) = row.split_first() else {
            return;
        };
        self.page.tagged(tag);
        let is_only = cells.len() == 1;
        let cells = cells.iter().zip(self.table.head.iter().skip(1));
        let (plain, headed): (Vec<_>, Vec<_>) = cells
            .filter(|(cell, _)| !cell.is_empty())
            .partition(|(_, head)| is_only || head.is_empty() || *head == "Meaning");
        let plain = plain.into_iter().map(|(cell, _)| cell.clone());
        let headed = headed
            .into_iter()
            .map(|(cell, head)| format!("{head}: {cell}"));
        for (number, line) in plain.chain(headed).enumerate() {
            if number > 0 {
                self.page.line(".br");
            }
            self.page.words(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(markdown: &str) -> (String, BTreeSet<Reference>) {
        let mut page = Page::default();
        let mut references = BTreeSet::new();
        let resolve = |target: &str| (target == "ptp.md").then(|| ("vdens-vnl-ptp".into(), "7"));
        append(
            &mut page,
            markdown,
            HeadingLevel::H2,
            &resolve,
            &mut references,
        );
        (page.finish(), references)
    }

    #[test]
    fn text_is_shown_as_it_is() {
        let (text, _) = converted("## One `two`\n\n.dot 'quote' a\\\\b `-x` – \u{2500}\n\nNext\n");
        let expected = ".SH \"ONE TWO\"\n\\&.dot \\(aqquote\\(aq a\\(rsb \\fB\\-x\\fR \\(en \\[u2500]\n.PP\nNext\n";
        assert_eq!(text, expected);
        let (code, _) = converted("```sh\n.a\n\n  b -c\n```\n");
        assert_eq!(code, ".PP\n.RS 4\n.EX\n\\&.a\n\n  b \\-c\n.EE\n.RE\n");
        assert_eq!(converted("```text\nX\n\nUsage: x\n```\n").0, "");
    }

    #[test]
    fn lists_and_tables_are_paragraphs_with_tags() {
        let (list, _) = converted("1. a\n2. b\n\n- c\n  d\n");
        assert_eq!(list, ".IP 1. 4\na\n.IP 2. 4\nb\n.IP \\(bu 2\nc d\n");
        let (table, _) =
            converted("| K | T | Meaning |\n|---|---|---|\n| `a` | x | y |\n| b | | z |\n");
        assert_eq!(table, ".TP\n\\fBa\\fR\ny\n.br\nT: x\n.TP\nb\nz\n");
    }

    #[test]
    fn a_link_names_its_page_once() {
        let (text, references) = converted("[A cable](ptp.md), [again](ptp.md), [x](x.md)\n");
        assert_eq!(
            text,
            ".PP\nA cable (\\fBvdens\\-vnl\\-ptp\\fR(7)), again, x\n"
        );
        assert_eq!(references.len(), 1);
        assert_eq!(converted("[ptp](ptp.md)\n").0, ".PP\nptp\n");
        let (web, _) = converted("[site](https://x.y)\n");
        assert_eq!(web, ".PP\nsite (https://x.y)\n");
    }
}
