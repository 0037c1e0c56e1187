//! `vdectl plugin new DIR`: writes the source of a working plugin, for its author to change.
//!
//! The source is plugins/template, or plugin-api/c/template for C, compiled into this program. The
//! scheme's name replaces the template's. A crate gets a manifest of its own and belongs to no
//! workspace; a plugin in C gets the header, so that it needs nothing else. No file is overwritten.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use clap::ValueEnum;

use crate::error::{Error, ErrorKind, Result};
use crate::output::Text;
use crate::plugins::search::{self, SearchPath};
use crate::sys::trusted_path::Trusted;

/// The languages in which `vdectl plugin new` writes a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// A crate on the plugin kit; what is written by default
    Rust,
    /// A source file and the header vdens-plugin.h
    C,
}

/// The longest scheme: crates.io accepts package names of up to 64 characters.
const LONGEST: usize = 64 - "vdens-plugin-".len();

/// The template's scheme. In its files the word has no other meaning.
const NAME: &str = "template";

/// The files of a crate, without its manifest.
const RUST: [(&str, &str); 4] = [
    (
        "src/lib.rs",
        include_str!("../../../plugins/template/src/lib.rs"),
    ),
    (
        "tests/end_to_end.rs",
        include_str!("../../../plugins/template/tests/end_to_end.rs"),
    ),
    (
        "README.md",
        include_str!("../../../plugins/template/README.md"),
    ),
    (".gitignore", "/target\n"),
];

/// The files of a plugin in C.
const C: [(&str, &str); 4] = [
    (
        "template.c",
        include_str!("../../../plugin-api/c/template/template.c"),
    ),
    (
        "vdens-plugin.h",
        include_str!("../../../plugin-api/c/include/vdens-plugin.h"),
    ),
    (
        "README.md",
        include_str!("../../../plugin-api/c/template/README.md"),
    ),
    (".gitignore", "*.so\n"),
];

/// The kit that this program was built with.
const BUILT_WITH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../plugin-api/kit");

/// Writes the source and prints what to do next. `api` is the directory or the version of the kit.
/// By default it is the directory that this program was built from, if that still exists.
///
/// # Errors
/// The directory's name is no scheme, it is not empty, or it or standard output cannot be written.
pub fn run(dir: &Path, language: Language, api: Option<&str>, path: &SearchPath) -> Result<()> {
    let scheme = scheme(dir)?;
    if let Ok(other) = path.find(scheme) {
        log::warn!(
            "there is already a plugin for {scheme}://: {}",
            other.display()
        );
    }
    let rename = |text: &str| text.replace(NAME, scheme);
    let mut files = match language {
        Language::Rust => Vec::from(RUST.map(|(name, text)| (name.to_owned(), rename(text)))),
        Language::C => Vec::from(C.map(|(name, text)| (rename(name), rename(text)))),
    };
    let advice = match language {
        Language::Rust => {
            let api = api.map_or_else(|| default_api(Path::new(BUILT_WITH)), chosen_api)?;
            files.push(("Cargo.toml".to_owned(), manifest(scheme, &api)));
            rust_advice(dir, scheme, &api)
        }
        Language::C => c_advice(dir, scheme),
    };
    let is_there = dir.exists();
    fs::create_dir_all(dir).map_err(|error| Error::path("make", dir, &error))?;
    // The author compiles and runs what is in this directory, so no other user may be able to write
    // it. It is checked after it was made: another user may have made it first.
    Trusted::directory(dir).map_err(|error| match is_there {
        true => error.hint("choose a directory that does not exist"),
        false => error,
    })?;
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        let message = format!("the directory {} is not empty", dir.display());
        return Err(
            Error::new(ErrorKind::Busy, message).hint("choose a directory that does not exist")
        );
    }
    for (name, text) in &files {
        write(&dir.join(name), text)?;
    }
    advice.print()
}

/// The scheme that the directory is named for.
fn scheme(dir: &Path) -> Result<&str> {
    let name = dir.file_name().unwrap_or(dir.as_os_str());
    let scheme = name.to_str().filter(|name| search::is_plugin(name));
    let scheme = scheme.filter(|name| name.len() <= LONGEST);
    scheme.ok_or_else(|| {
        Error::usage(format!("'{}' can be no scheme", name.to_string_lossy())).hint(format!(
            "a plugin's directory has its scheme's name, of a-z, 0-9 and _, {LONGEST} at most"
        ))
    })
}

/// The manifest's dependency on the kit: its directory, or the directory `plugin-api` above it.
fn chosen_api(api: &str) -> Result<String> {
    let path = Path::new(api);
    for path in [path, &path.join("kit")] {
        if path.join("Cargo.toml").is_file() {
            return dependency(path);
        }
    }
    let is_version = |c: char| c.is_ascii_alphanumeric() || ".-+".contains(c);
    match api.starts_with(|c: char| c.is_ascii_digit()) && api.chars().all(is_version) {
        true => Ok(format!("\"{api}\"")),
        false => Err(Error::usage(format!(
            "--api {api}: no Cargo.toml is in it, nor is it a version"
        ))
        .hint("name the directory plugin-api of vdens's source, or a version such as 1.0")),
    }
}

/// The kit in the source that this program was built from, or the published one if that is gone.
fn default_api(built_with: &Path) -> Result<String> {
    match fs::File::open(built_with.join("Cargo.toml")) {
        Ok(_) => dependency(built_with),
        Err(_) => Ok(format!("\"{}\"", vdens_plugin_kit::VERSION)),
    }
}

fn dependency(path: &Path) -> Result<String> {
    let path = fs::canonicalize(path).map_err(|error| Error::path("find", path, &error))?;
    // TOML's literal strings have no escapes.
    let is_literal = |text: &&str| !text.contains(|c: char| c == '\'' || c.is_control());
    let text = path.to_str().filter(is_literal);
    text.map(|text| format!("{{ path = '{text}' }}"))
        .ok_or_else(|| {
            Error::usage(format!(
                "{} cannot be written into a manifest",
                path.display()
            ))
        })
}

fn manifest(scheme: &str, api: &str) -> String {
    format!(
        r#"[package]
name = "vdens-plugin-{scheme}"
description = "The {scheme}:// transport for vdens"
version = "0.1.0"
edition = "2024"

[lib]
name = "vdens_{scheme}"
# The rlib is for the tests.
crate-type = ["cdylib", "rlib"]

[dependencies]
vdens-plugin-kit = {api}

[profile.release]
# Quicker to build, and quicker to run.
codegen-units = 1

# The crate belongs to no workspace, wherever it is.
[workspace]
"#
    )
}

/// Writes a file that is not there yet, and the directories above it.
fn write(file: &Path, text: &str) -> Result<()> {
    let cannot = |error| Error::path("write", file, &error);
    fs::create_dir_all(file.parent().unwrap_or(file)).map_err(cannot)?;
    let options = OpenOptions::new().write(true).create_new(true).open(file);
    options
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(cannot)
}

fn rust_advice(dir: &Path, scheme: &str, api: &str) -> Text {
    let file = search::file_name(scheme);
    let mut text = Text::default();
    let dir_name = dir.display();
    text.line(format_args!(
        "{dir_name} has a transport for {scheme}://, which depends on"
    ));
    text.line(format_args!("  vdens-plugin-kit = {api}"));
    let check = format!("vdectl plugin check target/release/{file} {scheme}://4000");
    next(text, dir, &["cargo build --release", &check])
}

fn c_advice(dir: &Path, scheme: &str) -> Text {
    let file = search::file_name(scheme);
    let mut text = Text::default();
    text.line(format_args!(
        "{} has a transport for {scheme}://",
        dir.display()
    ));
    let build = format!("cc -std=c11 -Wall -Wextra -O2 -fPIC -shared -o {file} {scheme}.c");
    let check = format!("vdectl plugin check ./{file} {scheme}://4000");
    next(text, dir, &[&build, &check])
}

/// Adds the next commands.
fn next(mut text: Text, dir: &Path, commands: &[&str]) -> Text {
    text.line("Next:");
    text.line(format_args!("  cd {}", dir.display()));
    for command in commands {
        text.line(format_args!("  {command}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_come_from_directories() {
        assert_eq!(scheme(Path::new("/tmp/my_2nd")).unwrap(), "my_2nd");
        assert_eq!(scheme(Path::new("x/")).unwrap(), "x");
        let long = "a".repeat(LONGEST);
        assert_eq!(scheme(Path::new(&long)).unwrap(), long);
        let longer = "a".repeat(LONGEST + 1);
        for bad in [
            "/",
            "..",
            ".",
            "x/..",
            "my-cable",
            "A",
            "",
            "a\"b",
            "a'b",
            "a\nb",
            "{}",
            "{x}",
            "x]",
            "é",
            "\u{1b}[31m",
            "x.so",
            &longer,
        ] {
            assert!(scheme(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_the_source_the_published_kit_is_used() {
        assert!(
            default_api(Path::new(BUILT_WITH))
                .unwrap()
                .contains("path = ")
        );
        let published = format!("\"{}\"", vdens_plugin_kit::VERSION);
        assert_eq!(default_api(Path::new("/nowhere")).unwrap(), published);
    }

    #[test]
    fn the_api_is_a_directory_or_a_version() {
        assert_eq!(chosen_api("1.2").unwrap(), "\"1.2\"");
        assert!(
            chosen_api(BUILT_WITH)
                .unwrap()
                .contains("plugin-api/kit' }")
        );
        for bad in [
            "",
            "/nowhere",
            "1\"",
            "x",
            "1\n[lib]",
            "1', path = '/",
            "1\\",
            "1\u{1b}[31m",
            "1 #",
        ] {
            assert!(chosen_api(bad).is_err(), "{bad}");
        }
    }
}
