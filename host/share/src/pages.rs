//! The manual pages: which there are, and what each is made of.
//!
//! The pages in section 1 are the command lines of the programs, as `--help` has them, followed by
//! the parts of docs/ that belong to them. Those in sections 5 and 7 are pages of docs/. So there
//! is nothing here to keep up to date but the names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use pulldown_cmark::HeadingLevel;
use vdens::error::{Error, Result};

use crate::markdown::{self, Reference};
use crate::roff::{Page, escape};

/// Pages of docs/ that become pages of the manual: the file, the name and section, what it is.
const DOCUMENTS: &[(&str, &str, &str, &str)] = &[
    (
        "configuration.md",
        "vdens.toml",
        "5",
        "configuration of vdens, vde_plug, vde_switch, vdens-tap and vdectl",
    ),
    (
        "lab-file.md",
        "vdens-lab",
        "5",
        "description of a network for vdectl lab",
    ),
    (
        "sessions.md",
        "vdens-sessions",
        "7",
        "sessions of vdens with names",
    ),
    ("labs.md", "vdens-labs", "7", "networks of many nodes"),
    (
        "machines.md",
        "vdens-machines",
        "7",
        "virtual machines on virtual Ethernet",
    ),
    (
        "switch.md",
        "vdens-switch",
        "7",
        "the console of a switch, and what else changes it",
    ),
    (
        "panel.md",
        "vdens-panel",
        "7",
        "how the kernel forwards frames between namespaces",
    ),
    (
        "libvdeplug.md",
        "vdens-libvdeplug",
        "7",
        "VDE's library with vdens behind it",
    ),
    (
        "sandbox.md",
        "vdens-sandbox",
        "7",
        "how vdens confines its workers and helpers",
    ),
    (
        "plugin-author.md",
        "vdens-plugin",
        "7",
        "how to write a plugin for vdens in Rust",
    ),
    (
        "plugin-author-c.md",
        "vdens-plugin-c",
        "7",
        "how to write a plugin for vdens in C or C++",
    ),
    (
        "troubleshooting.md",
        "vdens-troubleshooting",
        "7",
        "messages of vdens and their remedies",
    ),
    ("glossary.md", "vdens-glossary", "7", "the terms of vdens"),
];

/// Pages of docs/ that are part of the page of a command.
const PARTS: &[(&str, &str)] = &[
    ("status.md", "vdectl-status"),
    ("graph.md", "vdectl-graph"),
    ("capture.md", "vdectl-capture"),
];

/// The programs, each of which has a part of the command reference.
const PROGRAMS: [&str; 5] = ["vdens", "vde_plug", "vde_switch", "vdens-tap", "vdectl"];

/// A part of the command reference that is the page of a command.
const DOCTOR: (&str, &str) = ("### The doctor", "vdectl-doctor");

/// Further pages for a command and its subcommands.
const SEE_ALSO: &[(&str, &[(&str, &str)])] = &[
    (
        "vdens",
        &[
            ("vdens-vnl", "7"),
            ("vdens.toml", "5"),
            ("vdens-sessions", "7"),
        ],
    ),
    ("vde_plug", &[("vdens-vnl", "7"), ("vdens.toml", "5")]),
    (
        "vde_switch",
        &[("vdens-switch", "7"), ("vdens-vnl-switch", "7")],
    ),
    (
        "vdens-tap",
        &[
            ("vdens-vnl", "7"),
            ("vdens.toml", "5"),
            ("vdens-machines", "7"),
        ],
    ),
    ("vdectl", &[("vdens", "1"), ("vdens.toml", "5")]),
    ("vdectl-exec", &[("vdens-sessions", "7")]),
    (
        "vdectl-enter",
        &[("vdens-sessions", "7"), ("vdens-labs", "7")],
    ),
    ("vdectl-ls", &[("vdens-sessions", "7")]),
    ("vdectl-pid", &[("vdens-sessions", "7"), ("nsenter", "1")]),
    ("vdectl-stop", &[("vdens-sessions", "7")]),
    ("vdectl-wait", &[("vdens-sessions", "7")]),
    ("vdectl-top", &[("vdectl-graph", "1")]),
    ("vdectl-forward", &[("vdens-vnl-nat", "7")]),
    (
        "vdectl-link",
        &[("vdens-vnl-netem", "7"), ("vdens-labs", "7")],
    ),
    (
        "vdectl-plugin",
        &[("vdens-plugin", "7"), ("vdens-plugin-c", "7")],
    ),
    ("vdectl-lab", &[("vdens-labs", "7"), ("vdens-lab", "5")]),
];

/// The pages of a manual.
pub(crate) struct Manual {
    /// The directory docs/.
    docs: PathBuf,
    /// docs/commands.md.
    commands: String,
    schemes: Vec<String>,
    date: String,
}

impl Manual {
    /// Reads what there is.
    pub(crate) fn new(docs: &Path, date: String) -> Result<Self> {
        let mut schemes = Vec::new();
        let dir = docs.join("schemes");
        for entry in fs::read_dir(&dir).map_err(cannot_read(&dir))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            schemes.extend(name.strip_suffix(".md").map(str::to_owned));
        }
        schemes.sort();
        Ok(Self {
            docs: docs.to_owned(),
            commands: read(&docs.join("commands.md"))?,
            schemes,
            date,
        })
    }

    /// All pages: name, section, text.
    pub(crate) fn pages(&self) -> Result<Vec<(String, &'static str, String)>> {
        let mut pages = Vec::new();
        for mut command in vdens::cli::commands() {
            command = command.disable_help_subcommand(true);
            command.build();
            self.command(&command, &mut pages)?;
        }
        for (file, name, section, about) in DOCUMENTS {
            let text = self.document(file, name, section, about)?;
            pages.push(((*name).to_owned(), section, text));
        }
        pages.push(("vdens-vnl".to_owned(), "7", self.vnl()?));
        for scheme in &self.schemes {
            let file = format!("schemes/{scheme}.md");
            let name = scheme_page(scheme);
            let text = self.document(&file, &name, "7", &self.about(scheme)?)?;
            pages.push((name, "7", text));
        }
        Ok(pages)
    }

    /// The page of a command, and those of its subcommands.
    fn command(
        &self,
        command: &Command,
        pages: &mut Vec<(String, &'static str, String)>,
    ) -> Result<()> {
        let subcommands = || command.get_subcommands().filter(|one| !one.is_hide_set());
        let name = command
            .get_display_name()
            .unwrap_or(command.get_name())
            .to_owned();
        let mut page = self.page(&name, "1");
        let mut references = self.see_also(&name);
        help(&mut page, command)?;
        let mut append = |markdown: &str, level| {
            let resolve = |target: &str| self.resolve(target);
            markdown::append(&mut page, markdown, level, &resolve, &mut references);
        };
        let whole = |heading| match section(&self.commands, heading) {
            Some(part) => format!("### {}\n{part}", heading.trim_start_matches('#')),
            None => String::new(),
        };
        if PROGRAMS.contains(&&*name) {
            let notes = section(&self.commands, &format!("## {name}")).unwrap_or_default();
            // Headings of the command reference name the program where they would be alike.
            let notes = notes.replace(&format!(" of {name}\n"), "\n");
            append(&format!("### Notes\n{notes}"), HeadingLevel::H3);
            append(&whole("## Environment"), HeadingLevel::H3);
            append(&whole("## Files"), HeadingLevel::H3);
        } else {
            if let Some((file, _)) = PARTS.iter().find(|(_, page)| *page == name) {
                append("## Notes\n", HeadingLevel::H2);
                append(&self.read(file)?, HeadingLevel::H2);
            }
            if name == DOCTOR.1 {
                append(&whole(DOCTOR.0), HeadingLevel::H3);
            }
            let status = whole("### Exit status of vdectl").replace(" of vdectl\n", "\n");
            append(&status, HeadingLevel::H3);
        }
        if let Some((parent, _)) = name
            .rsplit_once('-')
            .filter(|_| name.starts_with("vdectl-"))
        {
            references.insert((parent.to_owned(), "1"));
        }
        for subcommand in subcommands() {
            references.insert((format!("{name}-{}", subcommand.get_name()), "1"));
        }
        references.remove(&(name.clone(), "1"));
        see_also(&mut page, &references);
        pages.push((name, "1", page.finish()));
        subcommands().try_for_each(|subcommand| self.command(subcommand, pages))
    }

    /// A page of docs/.
    fn document(
        &self,
        file: &str,
        name: &str,
        section: &'static str,
        about: &str,
    ) -> Result<String> {
        let mut page = self.page(name, section);
        title(&mut page, name, about);
        let mut references = BTreeSet::new();
        let mut append = |markdown: &str| {
            let directory = Path::new(file).parent().unwrap_or(Path::new(""));
            let resolve = |target: &str| self.resolve(&directory.join(target).to_string_lossy());
            markdown::append(
                &mut page,
                markdown,
                HeadingLevel::H2,
                &resolve,
                &mut references,
            );
        };
        append("## Description\n");
        append(&self.read(file)?);
        if file == "configuration.md" {
            append("## Example\n");
            page.example(&self.read("vdens.toml")?);
        }
        if let Some(scheme) = name.strip_prefix("vdens-vnl-") {
            references.insert(("vdens-vnl".to_owned(), "7"));
            references.remove(&(scheme_page(scheme), "7"));
        }
        references.insert(("vdens".to_owned(), "1"));
        references.remove(&(name.to_owned(), section));
        see_also(&mut page, &references);
        Ok(page.finish())
    }

    /// The page of VNLs: what the command reference says of them, and a line for each scheme.
    fn vnl(&self) -> Result<String> {
        let mut page = self.page("vdens-vnl", "7");
        title(
            &mut page,
            "vdens-vnl",
            "Virtual Network Locators: the networks of vdens",
        );
        let mut references = BTreeSet::new();
        let part = section(&self.commands, "## VNLs").unwrap_or_default();
        let resolve = |target: &str| self.resolve(target);
        let description = format!("### Description\n{part}");
        markdown::append(
            &mut page,
            &description,
            HeadingLevel::H3,
            &resolve,
            &mut references,
        );
        page.section("Schemes");
        for scheme in &self.schemes {
            page.tagged(&format!("\\fB{}://\\fR", escape(scheme)));
            let name = scheme_page(scheme);
            let about = escape(&self.about(scheme)?);
            page.words(&format!("{about}: \\fB{}\\fR(7)", escape(&name)));
            references.insert((name, "7"));
        }
        references.insert(("vdens".to_owned(), "1"));
        references.remove(&("vdens-vnl".to_owned(), "7"));
        see_also(&mut page, &references);
        Ok(page.finish())
    }

    fn page(&self, name: &str, section: &str) -> Page {
        Page::new(name, section, &self.date, env!("CARGO_PKG_VERSION"))
    }

    fn read(&self, file: &str) -> Result<String> {
        read(&self.docs.join(file))
    }

    /// What a scheme is: the first sentence of its page, or the part before a colon.
    fn about(&self, scheme: &str) -> Result<String> {
        let text = markdown::first_paragraph(&self.read(&format!("schemes/{scheme}.md"))?);
        let end = [". ", ": "].iter().filter_map(|end| text.find(end)).min();
        Ok(text[..end.unwrap_or(text.len())]
            .trim_end_matches('.')
            .to_owned())
    }

    /// The manual page for a file of docs/.
    fn resolve(&self, target: &str) -> Option<Reference> {
        let (file, part) = target.split_once('#').unwrap_or((target, ""));
        let file = file.trim_start_matches("schemes/../");
        if file == "commands.md" {
            let name = match part {
                "vnls" | "the-default-switch" | "vnl-files" => {
                    return Some(("vdens-vnl".into(), "7"));
                }
                "as-a-login-shell" => "vde_plug",
                part if PROGRAMS.contains(&part) => part,
                _ => "vdens",
            };
            return Some((name.to_owned(), "1"));
        }
        let scheme = file
            .strip_prefix("schemes/")
            .and_then(|file| file.strip_suffix(".md"));
        if let Some(scheme) = scheme.filter(|name| self.schemes.iter().any(|one| one == name)) {
            return Some((scheme_page(scheme), "7"));
        }
        let document = DOCUMENTS.iter().find(|(name, ..)| *name == file);
        let document = document.map(|(_, name, section, _)| ((*name).to_owned(), *section));
        let part = PARTS.iter().find(|(name, _)| *name == file);
        document.or_else(|| part.map(|(_, command)| ((*command).to_owned(), "1")))
    }

    /// The further pages for a command.
    fn see_also(&self, name: &str) -> BTreeSet<Reference> {
        let is_for = |command: &str| {
            let rest = name.strip_prefix(command);
            rest.is_some_and(|rest| rest.is_empty() || command != "vdens" && rest.starts_with('-'))
        };
        let pages = SEE_ALSO.iter().filter(|(command, _)| is_for(command));
        let pages = pages.flat_map(|(_, pages)| pages.iter());
        pages
            .map(|(page, section)| ((*page).to_owned(), *section))
            .collect()
    }
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(cannot_read(file))
}

fn cannot_read(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |error| Error::path("read", path, &error)
}

fn scheme_page(scheme: &str) -> String {
    format!("vdens-vnl-{scheme}")
}

/// Writes the section NAME.
fn title(page: &mut Page, name: &str, about: &str) {
    page.section("Name");
    page.words(&format!("{} \\- {}", escape(name), escape(about)));
}

/// What clap_mangen writes before each section.
const PREAMBLE: [&str; 2] = [".ie \\n(.g .ds Aq \\(aq", ".el .ds Aq '"];

/// Writes what `--help` says: name, synopsis, description, options, subcommands.
fn help(page: &mut Page, command: &Command) -> Result<()> {
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    let mut description = format!("{about}.");
    if let Some(more) = command.get_after_help() {
        description = format!("{description}\n\n{more}");
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage
        .trim_start_matches("Usage: ")
        .replace("\n       ", "\n");
    let man = Man::new(
        command
            .clone()
            .long_about(description)
            .override_usage(usage),
    );
    PREAMBLE.iter().for_each(|line| page.line(line));
    let mut text = Vec::new();
    let written = man
        .render_name_section(&mut text)
        .and_then(|()| man.render_synopsis_section(&mut text))
        .and_then(|()| man.render_description_section(&mut text))
        .and_then(|()| man.render_options_section(&mut text))
        .and_then(|()| match command.get_subcommands().next() {
            Some(_) => man.render_subcommands_section(&mut text),
            None => Ok(()),
        });
    written.map_err(|error| Error::io("write a page", &error))?;
    let text = String::from_utf8_lossy(&text).replace(".br\n\n.br\n", ".sp\n");
    for line in text.lines().filter(|line| !PREAMBLE.contains(line)) {
        match line.starts_with('.') {
            true => page.line(line),
            false => page.words(line),
        }
    }
    Ok(())
}

/// Writes the section SEE ALSO.
fn see_also(page: &mut Page, references: &BTreeSet<Reference>) {
    let mut references: Vec<_> = references.iter().collect();
    references.sort_by_key(|(name, section)| (*section, name));
    let references = references.iter();
    let names = references.map(|(name, section)| format!("\\fB{}\\fR({section})", escape(name)));
    page.section("See also");
    page.words(&names.collect::<Vec<_>>().join(", "));
}

/// The part of a page below a heading, up to the next one of the same level.
fn section<'a>(text: &'a str, heading: &str) -> Option<&'a str> {
    let level = heading.split(' ').next()?;
    let (_, below) = text.split_once(&format!("\n{heading}\n"))?;
    let below = below.split("\n## ").next()?;
    below.split(&format!("\n{level} ")).next()
}
