//! `vde_plug`: a cable between two virtual networks, or between one and a stream.

use std::ffi::OsString;
use std::process::exit;

use vdens::cli::{self, VdePlug};
use vdens::config::Config;
use vdens::error::{Error, Result, report};
use vdens::logging::{self, Choice};
use vdens::plug;
use vdens::privilege;

const PROGRAM: &str = "vde_plug";

fn main() {
    let status = privilege::refuse_raised().and_then(|()| {
        let words = std::env::args_os();
        let mut cli: VdePlug = cli::parse(PROGRAM, plug::EXIT_FAILURE, words);
        login(&mut cli).and_then(|()| run(&cli))
    });
    exit(status.unwrap_or_else(|error| {
        report(PROGRAM, error);
        plug::EXIT_FAILURE
    }));
}

/// Replaces the command line by the one that a login shell was given with `-c`.
fn login(cli: &mut VdePlug) -> Result<()> {
    if let Some(command) = cli.command.take() {
        let words: Vec<OsString> = plug::login_words(&command)?;
        *cli = cli::parse(PROGRAM, plug::EXIT_FAILURE, words.into_iter());
    }
    match cli.command {
        Some(_) => Err(Error::usage("'-c' stands within '-c'")),
        None => Ok(()),
    }
}

fn run(cli: &VdePlug) -> Result<i32> {
    let config = Config::load(cli.common.config.as_deref())?;
    logging::start(&Choice::new(&cli.common, &config))?;
    config.complain();
    plug::run(cli, &config)
}
