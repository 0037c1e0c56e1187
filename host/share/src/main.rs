//! `vdens-share`: writes what a package of vdens installs below `share/`.
//!
//! `cargo run --release -p vdens-share -- DIR` writes, below DIR,
//!
//! - `man/man1`, `man/man5`, `man/man7`: manual pages, not compressed;
//! - `bash-completion/completions`, `zsh/site-functions`, `fish/vendor_completions.d`: scripts that
//!   complete command lines, by asking `vdectl complete`.
//!
//! It is a program of its own, which no package contains, so that the programs do not carry what
//! makes their manual, and a cross build can run it. It reads docs/ of the source that it was built
//! from. The pages bear the date of `SOURCE_DATE_EPOCH`, or else that of the changelog, so that
//! they can be reproduced.

mod markdown;
mod pages;
mod roff;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use time::OffsetDateTime;
use vdens::error::{Error, Result};
use vdens::output::report;

use crate::pages::Manual;

/// The scripts for the shells. Where one is for one program, that is `PROGRAM` in it.
const BASH: &str = include_str!("../completions/bash");
const ZSH: &str = include_str!("../completions/zsh");
const FISH: &str = include_str!("../completions/fish");

/// The source.
const TOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let outcome =
        match &*words {
            [dir] => write_all(Path::new(dir)),
            _ => Err(Error::usage("one argument is wanted")
                .hint("vdens-share DIR, such as target/share")),
        };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report("vdens-share", error);
            ExitCode::FAILURE
        }
    }
}

fn write_all(dir: &Path) -> Result<()> {
    let top = Path::new(TOP);
    let manual = Manual::new(&top.join("docs"), date(top)?)?;
    for (name, section, text) in manual.pages()? {
        write(dir, &format!("man/man{section}/{name}.{section}"), &text)?;
    }
    for command in vdens::cli::commands() {
        let name = command.get_name();
        let bash = BASH.replace("PROGRAM", name);
        write(dir, &format!("bash-completion/completions/{name}"), &bash)?;
        let fish = FISH.replace("PROGRAM", name);
        write(
            dir,
            &format!("fish/vendor_completions.d/{name}.fish"),
            &fish,
        )?;
    }
    write(dir, "zsh/site-functions/_vdens", ZSH)?;
    Ok(())
}

/// Writes a file and makes its directory.
fn write(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    let parent = path.parent().unwrap_or(dir);
    fs::create_dir_all(parent).map_err(|error| Error::path("make", parent, &error))?;
    fs::write(&path, text).map_err(|error| Error::path("write", &path, &error))
}

/// The date of the pages.
fn date(top: &Path) -> Result<String> {
    let wrong = || Error::usage("SOURCE_DATE_EPOCH is no number of seconds since 1970");
    let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().map_err(|_| wrong())?,
        Err(_) => {
            let file = top.join("CHANGELOG.md");
            let changed = fs::metadata(&file).and_then(|meta| meta.modified());
            let changed = changed.map_err(|error| Error::path("read", &file, &error))?;
            let since = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_secs()).unwrap_or_default()
        }
    };
    let time = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| wrong())?;
    Ok(time.date().to_string())
}
