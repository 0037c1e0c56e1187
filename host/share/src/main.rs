//! `vdens-share`: writes what a package of vdens installs below `share/`.
//!
//! `cargo run --release -p vdens-share -- DIR` writes, below DIR,
//!
//! - `man/man1`, `man/man5`, `man/man7`: manual pages, not compressed.
//!
//! It is a program of its own, which no package contains, so that the programs do not carry what
//! makes their manual, and a cross build can run it. It reads docs/ of the source that it was built
//! from. The pages bear the date of `SOURCE_DATE_EPOCH`, or else that of the changelog, so that
//! they can be reproduced.

mod markdown;
mod pages;
mod roff;

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use time::OffsetDateTime;

use crate::pages::Manual;

/// The source.
const TOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let outcome = match &*words {
        [dir] => write_all(Path::new(dir)).map_err(|error| format!("cannot write: {error}")),
        _ => Err("give the directory to write to, such as target/share".to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "vdens-share: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_all(dir: &Path) -> Result<(), Box<dyn Error>> {
    let top = Path::new(TOP);
    let manual = Manual::new(&top.join("docs"), date(top)?)?;
    for (name, section, text) in manual.pages()? {
        let dir = dir.join(format!("man/man{section}"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("{name}.{section}")), text)?;
    }
    Ok(())
}

/// The date of the pages.
fn date(top: &Path) -> Result<String, Box<dyn Error>> {
    let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse()?,
        Err(_) => {
            let changed = fs::metadata(top.join("CHANGELOG.md"))?.modified()?;
            changed.duration_since(UNIX_EPOCH)?.as_secs().try_into()?
        }
    };
    Ok(OffsetDateTime::from_unix_timestamp(seconds)?
        .date()
        .to_string())
}
